"""One plain training loop for everything that is fitted by gradient descent, with an exponential moving average, checkpoints and exact resume.

Every step draws from generators seeded with (seed, step), so a run that was killed and started again sees the batches it would have seen.
"""
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.files import append, make_folder
from wmpo_lite.machine import cores
from wmpo_lite.progress import progress


@dataclass(frozen=True)
class FitConfig:
    """steps: optimiser steps; lr: peak; warmup: steps; decay: final share of the steps over which lr falls linearly to a twentieth; ema: 0 for none.

    save_every: steps between checkpoints (paper for the world model: AdamW 1e-4, clip 0.1, EMA 0.9999, batch 128).
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
    """Fix the number of threads once per process: results are bit-reproducible per machine and thread count, oversubscription is ruinous."""
    torch.set_num_threads(threads or min(cores(), 8))
    torch.set_flush_denormal(True)


def learning_rate(step: int, c: FitConfig) -> float:
    left = (c.steps - step) / max(1.0, c.decay * c.steps)
    return c.lr * min(1.0, (step + 1) / max(1, c.warmup)) * min(1.0, 0.05 + 0.95 * left)


def generators(seed: int, step: int) -> tuple[torch.Generator, np.random.Generator]:
    """The two random sources of one step."""
    rng = np.random.default_rng([seed, step])
    return torch.Generator().manual_seed(int(rng.integers(2**62))), rng


def fit(module: torch.nn.Module, loss_fn: Callable, config: FitConfig, *, seed: int, name: str, folder: Path | None = None, log_every: int = 50,
        on_log: Callable | None = None, extra: dict | None = None) -> list[dict]:
    """Minimise `loss_fn(generator, rng, step) -> (loss, logs)` over the parameters of `module`; leaves the averaged weights in it.

    folder: where to checkpoint (None: no checkpoint); a finished or interrupted run found there is continued. extra: tensors by name that `loss_fn` changes as it goes (a
    pool of windows), which belong to a checkpoint, too. Returns the logged records.
    Raises UserError when the loss is not finite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters] if config.ema else None
    records, start = [], 0
    if folder is not None and (folder / "progress.json").exists():
        start, records = load_progress(folder, module, optimiser, parameters, average, extra)
    module.train()
    clock, sums, count = time.monotonic(), {}, 0
    for step in progress(range(start, config.steps), initial=start, total=config.steps, desc=name, mininterval=2):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        loss, logs = loss_fn(*generators(seed, step), step)
        if not torch.isfinite(loss):
            raise UserError(f"the loss of '{name}' became {loss.item()} at step {step}; lower its learning rate ({config.lr:g}) and start again")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        if not torch.isfinite(norm):
            raise UserError(f"the gradient of '{name}' is not finite at step {step}; lower its learning rate ({config.lr:g}) and start again")
        optimiser.step()
        if average is not None:
            decay = min(config.ema, (step + 1) / (step + 10))  # a short memory first, or the initial weights would linger
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        for key, value in {"loss": float(loss.detach()), **logs}.items():
            sums[key] = sums.get(key, 0.0) + value
        count += 1
        if (step + 1) % log_every == 0 or step + 1 == config.steps:
            records.append({"stage": name, "step": step + 1, **{key: value / count for key, value in sums.items()},
                            "seconds": round(time.monotonic() - clock, 2)})
            clock, sums, count = time.monotonic(), {}, 0
            if on_log:
                on_log(records[-1])
        if folder is not None and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            save_progress(folder, step + 1, module, optimiser, parameters, average, records, extra)
    if average is not None:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average):
                parameter.copy_(mean)
    module.eval()
    return records


def save_progress(folder, step, module, optimiser, parameters, average, records, extra=None):
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    for i, parameter in enumerate(parameters):
        state = optimiser.state.get(parameter, {})
        for key, value in state.items():
            tensors[f"optimiser.{i}.{key}"] = value if torch.is_tensor(value) else torch.tensor(value)
        if average is not None:
            tensors[f"average.{i}"] = average[i]
    tensors |= {f"extra.{key}": value for key, value in (extra or {}).items()}
    # The new tensors are complete on disk before progress.json names them, so no kill can pair one step's weights with another's count.
    name = f"state_{step}.safetensors"
    checkpoint.save_tensors(folder / name, tensors)
    checkpoint.write_json(folder / "progress.json", {"step": step, "state": name, "records": records})
    for old in folder.glob("state_*.safetensors"):
        if old.name != name:
            old.unlink()


def load_progress(folder, module, optimiser, parameters, average, extra=None):
    progress = checkpoint.read_json(folder / "progress.json")
    tensors = checkpoint.load_tensors(folder / progress["state"])
    weights = {key[len("module."):]: value for key, value in tensors.items() if key.startswith("module.")}
    own = module.state_dict()
    if set(weights) != set(own) or any(weights[key].shape != own[key].shape for key in own):
        raise UserError(f"{folder} holds the unfinished training of another model (other names or shapes); remove it or choose another folder")
    module.load_state_dict(weights)
    for i, parameter in enumerate(parameters):
        keys = ("step", "exp_avg", "exp_avg_sq")
        if f"optimiser.{i}.step" in tensors:
            optimiser.state[parameter] = {key: tensors[f"optimiser.{i}.{key}"].clone() for key in keys}
        if average is not None:
            average[i].copy_(tensors[f"average.{i}"])
    for key in extra or {}:
        if f"extra.{key}" not in tensors:
            raise UserError(f"{folder} holds the unfinished training of another kind (it lacks '{key}'); remove it or choose another folder")
        extra[key] = tensors[f"extra.{key}"].clone()
    return progress["step"], progress["records"]


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended and flushed."""

    def __init__(self, path: Path):
        self.path = Path(path)
        make_folder(self.path.parent)

    def __call__(self, record: dict):
        clean = {key: (None if isinstance(value, float) and not math.isfinite(value) else value) for key, value in record.items()}
        append(self.path, json.dumps(clean, default=checkpoint._plain).encode())
