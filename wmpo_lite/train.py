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

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import append, make_folder
from wmpo_lite.common.machine import cores
from wmpo_lite.common.progress import progress


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
    """Fix the number of threads once per process: results are bit-reproducible per machine and
    thread count, oversubscription is ruinous.
    """
    torch.set_num_threads(threads or min(cores(), 8))
    torch.set_flush_denormal(True)


def learning_rate(step: int, c: FitConfig) -> float:
    left = (c.steps - step) / max(1.0, c.decay * c.steps)
    return c.lr * min(1.0, (step + 1) / max(1, c.warmup)) * min(1.0, 0.05 + 0.95 * left)


def ema_decay(step: int, ema: float) -> float:
    """The decay that acts in a step (0, 1, ...): `ema`, but a short memory first, or the initial
    weights would linger. Short trainings never reach the decay that is set: after 80 steps it is
    0.90, after 400 it is 0.978.
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
    leaves the averaged weights in it.

    folder: where to checkpoint (None: no checkpoint); a finished or interrupted run found there is
    continued, if it began with the same weights, settings and seed. extra: tensors by name that
    `loss_fn` changes as it goes (a pool of windows), which belong to a checkpoint, too. made_from:
    what else the result depends on, as plain values by name (see `checkpoint.digest` for data).
    shared: on several processes `loss_fn` computes this one's `parallel.rows` of the batch, losses
    and logs add up to those of the batch, and `extra` is kept by rows; the first one writes.
    passes: call such a `loss_fn` so often a step, each time for a part of the rows
    (`parallel.one_pass`) and with the same random numbers: the same step in less memory.
    Returns the logged records: means since the one before, and `ema_decay`, the decay that acts at
    that step. Raises UserError when the loss is not finite, and when the folder
    holds a training that was made from something else.
    """
    if (parallel.count() > 1 or passes > 1) and not shared:
        raise UserError(
            f"the training of '{name}' does not run on several processes or in several passes; ask"
            " for one"
        )
    parallel.same_weights(module)
    trained = trainable(module)
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    average = {key: p.detach().clone() for key, p in trained.items()} if config.ema else None
    records, start = [], 0
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if key != "save_every"
    }  # when to save changes no weight
    made = origin(module, folder, name=name, seed=seed, **settings, **(made_from or {}))
    if folder is not None and (Path(folder) / "progress.json").exists():
        start, records = load_progress(folder, module, optimizer, average, made, extra)
    module.train()
    clock, sums, count = time.monotonic(), {}, 0
    for step in progress(
        range(start, config.steps), initial=start, total=config.steps, desc=name, mininterval=2
    ):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        total, logs = backward(lambda: loss_fn(*generators(seed, step), step), passes)
        if not math.isfinite(total):
            raise UserError(
                f"the loss of '{name}' became {total} at step {step}; lower its learning rate"
                f" ({config.lr:g}) and start again"
            )
        parallel.add_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        if not torch.isfinite(norm):
            raise UserError(
                f"the gradient of '{name}' is not finite at step {step}; lower its learning rate"
                f" ({config.lr:g}) and start again"
            )
        optimizer.step()
        if average is not None:
            torch._foreach_lerp_(
                list(average.values()),
                [p.detach() for p in parameters],
                1 - ema_decay(step, config.ema),
            )
        for key, value in {"loss": total, **logs}.items():
            sums[key] = sums.get(key, 0.0) + value
        count += 1
        if (step + 1) % log_every == 0 or step + 1 == config.steps:
            records.append(
                {
                    "stage": name,
                    "step": step + 1,
                    **{key: value / count for key, value in sums.items()},
                    **({"ema_decay": ema_decay(step, config.ema)} if config.ema else {}),
                    "seconds": round(time.monotonic() - clock, 2),
                }
            )
            clock, sums, count = time.monotonic(), {}, 0
            if on_log and not parallel.rank():
                on_log(records[-1])
        if folder is not None and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            save_progress(folder, step + 1, module, optimizer, average, records, made, extra)
    if average is not None:
        with torch.no_grad():
            for key, parameter in trained.items():
                parameter.copy_(average[key])
    module.eval()
    return records


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


def trainable(module) -> dict:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def origin(module, folder, **settings) -> dict:
    """What a training is made from, to be kept with its checkpoints: settings, the weights it
    begins with (buffers that are not saved included) and which of them learn.
    """
    if folder is None:
        return {}
    weights = {**module.state_dict(), **dict(module.named_buffers())}
    return checkpoint.plain(
        {
            **settings,
            "initial weights": checkpoint.digest(weights),
            "trained parameters": sorted(trainable(module)),
        }
    )


def check_origin(folder, found: dict | None, made: dict):
    """Refuse to go on with a training that was made from something else; more steps are fine where
    the learning rate does not fall towards the last.
    """
    if not isinstance(found, dict):
        raise UserError(
            f"{folder} holds a training that does not say what it was made from (an older version"
            " of the kit wrote it); choose another folder or remove it"
        )
    if found.get("trained parameters") != made["trained parameters"]:
        others = sorted(
            set(map(str, found.get("trained parameters") or [])) ^ set(made["trained parameters"])
        ) or ["in another order"]
        raise UserError(
            f"{folder} holds a training of other parameters"
            f" ({others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}); choose another"
            " folder or remove it"
        )
    changed = sorted(key for key in found.keys() | made.keys() if found.get(key) != made.get(key))
    if (
        changed == ["steps"]
        and isinstance(found["steps"], int)
        and made["steps"] > found["steps"]
        and not made["decay"]
    ):
        return
    if changed:
        what = ", ".join(f"{key}: {found.get(key)} there, {made.get(key)} here" for key in changed)
        raise UserError(
            f"{folder} holds a training that was made from something else ({what}); choose another"
            " folder or remove it"
        )


def save_progress(folder, step, module, optimizer, average, records, made, extra=None):
    """Write a checkpoint: the optimizer's state and the average (dict or None) by name of the
    parameter, and `made`, the `origin` of the training. Of several processes the first one writes.
    """
    tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
    for name, parameter in trainable(module).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = (
                value if torch.is_tensor(value) else torch.tensor(value)
            )
    tensors |= {f"average.{name}": value for name, value in (average or {}).items()}
    tensors |= {f"extra.{key}": value for key, value in parallel.merge_rows(extra or {}).items()}
    if parallel.rank():
        return parallel.wait()
    # The new tensors are complete on disk before progress.json names them, so no kill can pair one
    # step's weights with another's count.
    name = f"state_{step}.safetensors"
    checkpoint.save_tensors(Path(folder) / name, tensors)
    checkpoint.write_json(
        Path(folder) / "progress.json",
        {"step": step, "state": name, "made_from": made, "records": records},
    )
    for old in Path(folder).glob("state_*.safetensors"):
        if old.name != name:
            old.unlink()
    parallel.wait()


def load_progress(folder, module, optimizer, average, made, extra=None):
    """Put a checkpoint into module, optimizer, average and extra; returns (step, records).
    UserError where it was not `made` from the same; nothing is changed then.
    """
    path = Path(folder) / "progress.json"
    progress = checkpoint.read_json(path, {"step": int, "state": str, "records": [dict]})
    if progress["state"] != f"state_{progress['step']}.safetensors" or not all(
        {"stage", "step"} <= record.keys() for record in progress["records"]
    ):
        raise UserError(
            f"{path} is not the progress of a training (its step, state and records do not fit each"
            f" other); it was edited, remove {folder} and train again"
        )
    tensors = checkpoint.load_tensors(Path(folder) / progress["state"])
    weights = {
        key[len("module.") :]: value for key, value in tensors.items() if key.startswith("module.")
    }
    own = module.state_dict()
    if set(weights) != set(own) or any(weights[key].shape != own[key].shape for key in own):
        raise UserError(
            f"{folder} holds the unfinished training of another model (other names or shapes);"
            " remove it or choose another folder"
        )
    check_origin(folder, progress.get("made_from"), made)
    wanted = {f"extra.{key}": value.shape for key, value in (extra or {}).items()}
    wanted |= {f"average.{name}": value.shape for name, value in (average or {}).items()}
    for name, parameter in trainable(module).items():
        # a parameter that has had no gradient yet has no state
        if f"optimizer.{name}.step" in tensors:
            wanted |= {
                f"optimizer.{name}.step": (),
                **{f"optimizer.{name}.{key}": parameter.shape for key in ("exp_avg", "exp_avg_sq")},
            }
    unknown = [key for key in tensors if key not in wanted and not key.startswith("module.")]
    for key, shape in [*wanted.items(), *((key, None) for key in unknown)]:
        if key not in tensors or tensors[key].shape != shape:
            what = "holds" if shape is None else "lacks"
            what = "has another shape of" if shape is not None and key in tensors else what
            what = f"{what} '{key.removeprefix('extra.')}'"
            raise UserError(
                f"{folder} holds the unfinished training of another kind (it {what}); remove it or"
                " choose another folder"
            )
    module.load_state_dict(weights)
    for name, parameter in trainable(module).items():
        if f"optimizer.{name}.step" in tensors:
            optimizer.state[parameter] = {
                key: (
                    tensors[f"optimizer.{name}.{key}"]
                    .clone()
                    .to("cpu" if key == "step" else parameter.device)
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        if average is not None:
            average[name].copy_(tensors[f"average.{name}"])
    for key in extra or {}:
        extra[key] = tensors[f"extra.{key}"].clone().to(extra[key].device)
    return progress["step"], progress["records"]


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
