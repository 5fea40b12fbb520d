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
    clock, sums, count = time.time(), {}, 0
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
                            "seconds": round(time.time() - clock, 2)})
            clock, sums, count = time.time(), {}, 0
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
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: dict):
        clean = {key: (None if isinstance(value, float) and not math.isfinite(value) else value) for key, value in record.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(clean, default=checkpoint._plain) + "\n")


# ------------------------------------------------------------------------------------------------------------------ world model


@dataclass(frozen=True)
class WindowConfig:
    """How world-model batches are cut (paper: windows of c + K frames at stride 1, front-padded with the first frame).

    first: share of windows that begin at the first frame, where every imagined episode begins and uniform cutting seldom does.
    emphasis, objects: extra weight of latent positions that change against the newest context frame, and of those that show an object;
    own_rollout: share of windows whose context is the model's own work (noisy-frame conditioning alone leaves a gap between clean training contexts
    and imagined ones); own_chunks: up to how many chunks it has imagined by then; own_from: training share after which that starts.
    """

    batch: int = 64
    first: float = 0.1
    emphasis: float = 3.0
    objects: float = 12.0
    own_rollout: float = 0.5
    own_chunks: int = 3
    own_from: float = 0.4


def cut_windows(latents, actions, episode, start, context: int, chunk: int):
    """Context (B, c, ...), future (B, K, ...) and actions (B, K, D) of windows whose newest context frame is number `start` (B,) of its episode.

    latents (E, T + 1, C, h, w); actions (E, T, D); action[s] leads to frame s + 1. Frames before the first are the first one again.
    """
    episode, start = np.asarray(episode)[:, None], np.asarray(start)[:, None]
    past = np.maximum(start + np.arange(1 - context, 1), 0)
    steps = start + np.arange(chunk)
    return latents[episode, past].float(), latents[episode, steps + 1].float(), actions[episode, steps]


def world_model_loss(model, latents: torch.Tensor, actions: torch.Tensor, windows: WindowConfig, total_steps: int, last_frame: np.ndarray | None = None,
                     objects: torch.Tensor | None = None, perception=None, perceived: float = 5.0):
    """The `loss_fn` for `fit`: rectified flow on random windows of recorded episodes.

    objects (E, T + 1, h, w): how much of each latent position an object covers, or None. last_frame (E,): windows never reach past this frame of
    an episode (paper: none past finish_step); None: whole episodes. A draft with a keyframe paints from the episode's first frame, as in imagination.
    perception: a `perception.LatentPerception`, whose error counts `perceived` times, or None.
    """
    c = model.config
    horizon = actions.shape[1]
    latest = np.full(len(latents), horizon) if last_frame is None else np.asarray(last_frame)
    if (latest < c.chunk).all():
        raise UserError(f"no episode is at least {c.chunk} steps long, so no training window can be cut; lower the chunk length or record longer episodes")
    usable = np.flatnonzero(latest >= c.chunk)

    def loss_fn(generator, rng, step):
        episode = usable[rng.integers(len(usable), size=windows.batch)]
        start = (rng.random(windows.batch) * (latest[episode] - c.chunk + 1)).astype(int)
        start[rng.random(windows.batch) < windows.first] = 0
        context, future, acts = cut_windows(latents, actions, episode, start, c.context, c.chunk)
        with torch.no_grad():
            past = model.draft.recall(context, keyframe=latents[episode, 0].float()) if c.draft_width else None
        if step >= windows.own_from * total_steps:
            chunks = int(rng.integers(1, windows.own_chunks + 1))
            own = np.flatnonzero((start >= chunks * c.chunk) & (rng.random(windows.batch) < windows.own_rollout))
            if len(own):
                context[own], recalled = _imagined_context(model, latents, actions, episode[own], start[own], chunks, generator)
                if past is not None:
                    past[own] = recalled
        change = (future - context[:, -1:]).square().mean(2, keepdim=True).sqrt().clamp(max=1)
        weight = 1 + windows.emphasis * change
        if objects is not None:
            weight = weight + windows.objects * objects[episode[:, None], start[:, None] + 1 + np.arange(c.chunk)].float().unsqueeze(2)
        if perception is None:
            return model.loss(context, future, acts, generator, weight=weight, past=past)
        return model.loss(context, future, acts, generator, weight=weight, past=past, unlike=lambda a, b: perceived * perception.error(a, b, rng))

    return loss_fn


@torch.no_grad()
def _imagined_context(model, latents, actions, episode, start, chunks: int, generator):
    """Context (B, c, C, h, w) at frame `start`, and what goes with it, as the model has it after imagining `chunks` chunks up to there."""
    c, past = model.config, None
    context, _, _ = cut_windows(latents, actions, episode, start - chunks * c.chunk, c.context, c.chunk)
    if c.draft_width:
        past = model.draft.recall(context, keyframe=latents[episode, 0].float())
    for back in range(chunks, 0, -1):
        acts = actions[episode[:, None], (start - back * c.chunk)[:, None] + np.arange(c.chunk)]
        future, past = model.go_on(context, acts, past, generator, steps=1)
        context = torch.cat([context, future], dim=1)[:, -c.context:]
    return context, past
