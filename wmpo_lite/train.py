"""One plain training loop for everything that is fitted by gradient descent, with an exponential
moving average, checkpoints and exact resume.

Every step draws from generators seeded with (seed, step), so a run that was killed and started
again sees the batches it would have seen.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim import AdamW

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import require
from wmpo_lite.common.files import append, make_folder
from wmpo_lite.common.machine import cores
from wmpo_lite.common.progress import progress
from wmpo_lite.training_state import due, origin, resume, save_progress, trainable


@dataclass(frozen=True)
class FitConfig:
    """steps: optimizer steps; lr: peak; warmup: steps; decay: final share of the steps over which
    lr falls linearly to a twentieth; ema: 0 for none, else the most that its decay comes to (see
    `ema_decay`).

    save_every: steps between checkpoints (paper for the world model: AdamW 1e-4, clip 0.1, EMA
    0.9999, batch 128).
    """

    steps: int = 1000
    lr: float = 1e-3
    warmup: int = 50
    decay: float = 0.3
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema: float = 0.0
    save_every: int = 250


def set_threads(threads: int | None = None):
    """Fix the number of threads: results are bit-equal for a machine and a thread count."""
    torch.set_num_threads(threads or min(cores(), 8))
    torch.set_flush_denormal(True)


def learning_rate(step: int, c: FitConfig) -> float:
    """The rate of a step (0, 1, ...), see `FitConfig`. No schedule of diffusers' `get_scheduler`
    stays and then falls in this way.
    """
    left = (c.steps - step) / max(1.0, c.decay * c.steps)
    return c.lr * min(1.0, (step + 1) / max(1, c.warmup)) * min(1.0, 0.05 + 0.95 * left)


def ema_decay(step: int, ema: float) -> float:
    """The decay that acts in a step (0, 1, ...): `ema`, but a short memory first, or the initial
    weights would linger. Short trainings never reach the decay that is set: after 80 steps it is
    0.90, after 400 it is 0.978. diffusers' `EMAModel` does the same but for its first step, which
    forgets all: it would change the numbers of every training, and make nothing shorter.
    """
    return min(ema, (step + 1) / (step + 10))


def generators(seed: int, step: int) -> tuple[torch.Generator, np.random.Generator]:
    """The two random sources of one step."""
    rng = np.random.default_rng([seed, step])
    return torch.Generator().manual_seed(int(rng.integers(2**62))), rng


def fit(
    module: torch.nn.Module,
    loss_fn: Callable,
    config: FitConfig,
    *,
    seed: int,
    name: str,
    folder: Path | None = None,
    log_every: int = 50,
    on_log: Callable | None = None,
    extra: dict | None = None,
    made_from: dict | None = None,
    shared: bool = False,
    passes: int = 1,
) -> list[dict]:
    """Minimize `loss_fn(generator, rng, step) -> (loss, logs)` over the parameters of `module`;
    leaves the averaged weights in it. Returns the logged records: means since the one before.

    folder: of checkpoints; a training found there is continued. extra: tensors by name that
    `loss_fn` changes as it goes (a pool of windows), which belong to a checkpoint, too. made_from:
    what else the result depends on, as plain values by name (`checkpoint.digest` for data). shared:
    `loss_fn` computes this process's `parallel.rows` of the batch, losses and logs add up to those
    of the batch, and `extra` is kept by rows; the first one writes. passes: call such a `loss_fn`
    so often a step, each time for other rows and with the same random numbers: less memory.
    UserError: a loss that is not finite, a folder whose training was made from something else.
    """
    advice = "does not run on several processes or in several passes; ask for one"
    require(shared or parallel.count() * passes == 1, f"the training of '{name}' {advice}")
    parallel.same_weights(module)
    trained = trainable(module)
    optimizer = AdamW(trained.values(), betas=(0.9, 0.99), weight_decay=config.weight_decay)
    average = {key: p.detach().clone() for key, p in trained.items()} if config.ema else {}
    settings = dataclasses.asdict(config) | {"name": name, "seed": seed} | (made_from or {})
    del settings["save_every"]  # changes no weight
    made = origin(module, folder, **settings)
    start, records = resume(folder, module, optimizer, average, made, extra)
    module.train()
    clock, said = time.monotonic(), []
    steps = range(start, config.steps)
    for step in progress(steps, initial=start, total=config.steps, desc=name, mininterval=2):
        set_rate(optimizer, learning_rate(step, config))
        part = lambda: loss_fn(*generators(seed, step), step)
        said.append(descend(part, passes, optimizer, config, f"'{name}'", step))
        for key, mean in average.items():
            mean.lerp_(trained[key].detach(), 1 - ema_decay(step, config.ema))
        if due(step + 1, log_every, config.steps):
            records.append({"stage": name, "step": step + 1} | means(said))
            records[-1] |= {"ema_decay": ema_decay(step, config.ema)} if config.ema else {}
            records[-1]["seconds"] = round(time.monotonic() - clock, 2)
            clock, said = time.monotonic(), []
            if on_log and not parallel.rank():
                on_log(records[-1])
        if folder is not None and due(step + 1, config.save_every, config.steps):
            save_progress(folder, step + 1, module, optimizer, average, records, made, extra)
    with torch.no_grad():
        for key, mean in average.items():
            trained[key].copy_(mean)
    module.eval()
    return records


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(loss_fn, passes: int, optimizer, config: FitConfig, what: str, step: int) -> dict:
    """One step down the loss of `loss_fn`; returns loss and logs of the whole batch. UserError, and
    no step, where the loss or its gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    total, logs = backward(loss_fn, passes)
    advice = f"at step {step}; lower its learning rate ({config.lr:g}) and start again"
    require(math.isfinite(total), f"the loss of {what} became {total} {advice}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parallel.add_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    require(bool(torch.isfinite(norm)), f"the gradient of {what} is not finite {advice}")
    optimizer.step()
    return {"loss": total, **logs}


def means(logs: list[dict]) -> dict:
    """The mean of each value over several steps."""
    sums = {}
    for step in logs:
        for key, value in step.items():
            sums[key] = sums.get(key, 0.0) + value
    return {key: value / len(logs) for key, value in sums.items()}


def backward(loss_fn: Callable, passes: int = 1) -> tuple[float, dict]:
    """Loss and logs of the whole batch, to which every pass of every process adds its part
    `loss_fn() -> (loss, logs)`; gradients are those of this process.
    """
    total, sums = 0.0, {}
    for number in range(passes):
        with parallel.one_pass(number, passes):
            loss, logs = loss_fn()
            loss.backward()
        total += float(loss.detach())
        sums = {name: sums.get(name, 0.0) + value for name, value in logs.items()}
    if parallel.count() == 1:
        return total, sums
    parts = torch.tensor([total, *sums.values()], dtype=torch.float64)
    total, *others = parallel.add(parts).tolist()
    return total, dict(zip(sums, others))


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended and flushed. NaN and infinity, which JSON
    has not, become null: `about_updates` reads null as such.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        make_folder(self.path.parent)

    def __call__(self, record: dict):
        append(self.path, json.dumps(_finite(checkpoint.plain(record))).encode())


def _finite(value):
    """`value` of lists, dicts and numbers with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
