"""Training windows for the world model: recorded frames, and its own (paper section 3.2,
"noisy-frame conditioning").

A world model is trained on clean recorded contexts and used on its own imperfect frames. Noise on
the context narrows that gap; *own-context training* closes it: a pool of episodes is carried along,
each step predicts one pass further on the model's own earlier frames and is corrected against the
recording. It costs no extra pass, since what a step predicts is the next step's context.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from wmpo_lite.common import parallel
from wmpo_lite.common.checkpoint import digest
from wmpo_lite.common.errors import UserError
from wmpo_lite.world_model import State


@dataclass(frozen=True)
class WindowConfig:
    """How world-model batches are cut and weighted."""

    batch: int = 64
    # passes at most that a slot is carried on its own frames; 0: recorded contexts only
    own: int = 12
    # steps over which that number rises: at first its own frames are nothing to learn from
    ramp: int = 1000
    noise: float = 0.15  # context noise has a level drawn from [0, noise]
    pure: float = 0.5  # share of samples at t = 1, where sampling begins
    motion: float = 8.0  # extra weight of positions that change between neighboring frames
    change: float = 2.0  # and of those that differ from the episode's first frame
    # windows soon before the gripper opens or closes are drawn so much more often
    events: float = 4.0
    # share of windows that begin at an episode's first frame, as imagination does
    start: float = 0.1


class Episodes:
    """Recorded latents (E, T + 1, C, h, w) and actions (E, T, D) as a world model sees them.

    last (E,): windows never reach past this frame (paper: none past finish_step); None: whole
    episodes. encode: makes latents of what stands in their place, such as pictures uint8
    (E, T + 1, H, W, 3), when a batch wants them; None: they are latents.
    """

    def __init__(self, latents: torch.Tensor, actions: torch.Tensor, last=None, encode=None):
        if latents.shape[:1] != actions.shape[:1] or latents.shape[1] != actions.shape[1] + 1:
            raise UserError(
                f"latents {tuple(latents.shape)} and actions {tuple(actions.shape)} do not fit:"
                " expected T + 1 frames for T actions of the same episodes"
            )
        self.latents, self.actions, self.encode = latents, actions.float(), encode
        # (E, T + 1, D)
        self.path = torch.cat([self.actions[:, :1] * 0, self.actions.cumsum(dim=1)], dim=1)
        self.last = np.full(len(latents), actions.shape[1]) if last is None else np.asarray(last)

    def __len__(self) -> int:
        return len(self.latents)

    def at(self, episode, frame) -> torch.Tensor:
        """Latents (..., C, h, w) of frames (...)."""
        found = self.latents[episode, frame]
        return self.encode(found) if self.encode else found.float()

    def state(self, episode, frame, context: int) -> State:
        """The recorded state at `frame` (B,) of `episode` (B,)."""
        e, s = torch.as_tensor(episode)[:, None], torch.as_tensor(frame)[:, None]
        frames = (s + torch.arange(1 - context, 1)).clamp(min=0)
        steps = s + torch.arange(1 - context, 0)
        actions = self.actions[e, steps.clamp(min=0)] * (steps >= 0)[..., None]
        path = self.path[e[:, 0], s[:, 0]]
        return State(self.at(e[:, 0], 0), self.at(e, frames), actions, path)

    def future(self, episode, frame, k: int):
        """The k frames (B, k, C, h, w) after `frame` and the actions (B, k, D) that led to them."""
        e, s = torch.as_tensor(episode)[:, None], torch.as_tensor(frame)[:, None]
        steps = s + torch.arange(k)
        return self.at(e, steps + 1), self.actions[e, steps]

    def weights(self, windows: WindowConfig, k: int) -> np.ndarray:
        """How often each window (E, T), by its newest frame, is drawn; 0 if it reaches too far."""
        grip = np.sign(self.actions[..., -1].numpy())
        # at the step that opens or closes
        turns = np.pad(grip[:, 1:] != grip[:, :-1], ((0, 0), (1, 0)))
        ahead = range(min(6, turns.shape[1]))
        soon = np.any([np.pad(turns[:, d:], ((0, 0), (0, d))) for d in ahead], axis=0)
        weight = 1.0 + windows.events * soon
        steps = np.arange(weight.shape[1])
        return weight * (steps[None] + k <= self.last[:, None])


class Pool:
    """B slots, each in an episode with recorded or own frames as context; `tensors` are saved."""

    def __init__(self, episodes: Episodes, model, windows: WindowConfig):
        c = model.config
        self.episodes, self.model, self.windows = episodes, model, windows
        self.device = model.device
        weight = episodes.weights(windows, c.frames)
        if not weight.any():
            raise UserError(
                f"no episode is at least {c.frames} steps long, so no window can be cut; record"
                " longer ones"
            )
        self.cumulative, self.steps = np.cumsum(weight), weight.shape[1]
        self.starts = np.flatnonzero(weight[:, 0])
        n = windows.batch
        state = self.recorded(np.zeros(n, int), np.zeros(n, int))
        numbers = {name: torch.zeros(n, dtype=torch.long) for name in ("episode", "frame", "left")}
        numbers["left"] -= 1  # every slot begins anew
        self.tensors = numbers | dict(zip(State._fields, state))

    def recorded(self, episode, frame) -> State:
        """The recorded state at `frame` (B,) of `episode` (B,), where the model is."""
        state = self.episodes.state(episode, frame, self.model.config.context)
        return State(*(part.to(self.device) for part in state))

    def origin(self) -> dict:
        """What the losses depend on besides the model, for `fit`'s made_from."""
        recorded = {
            "latents": self.episodes.latents,
            "actions": self.episodes.actions,
            "last": self.episodes.last,
        }
        return {"episodes": digest(recorded), "windows": dataclasses.asdict(self.windows)}

    def refill(self, rng, step: int) -> None:
        """New windows for the slots that have been carried far enough or have come to an end."""
        t, c, n = self.tensors, self.model.config, self.windows.batch
        ends = t["frame"].numpy() + c.frames > self.episodes.last[t["episode"].numpy()]
        draws, firsts = rng.random(n) * self.cumulative[-1], rng.integers(len(self.starts), size=n)
        begins, far = rng.random(n) < self.windows.start, rng.random(n)
        risen = min(1.0, step / self.windows.ramp) if self.windows.ramp else 1.0
        most = round(self.windows.own * risen)
        rows = np.flatnonzero((t["left"].numpy() < 0) | ends)
        if not len(rows):
            return
        where = np.searchsorted(self.cumulative, draws[rows], side="right")
        episode = np.where(begins[rows], self.starts[firsts[rows]], where // self.steps)
        frame = np.where(begins[rows], 0, where % self.steps)
        index = torch.from_numpy(rows)
        fresh = self.recorded(episode, frame)
        for name, value in zip(State._fields, fresh):
            t[name][index] = value
        t["episode"][index], t["frame"][index] = torch.from_numpy(episode), torch.from_numpy(frame)
        t["left"][index] = torch.from_numpy((far[rows] * (most + 1)).astype(int))

    def loss(self, generator, rng, step):
        """The `loss_fn` for `fit`: every slot goes a pass of the model further, or those that are
        this process's share.
        """
        t, c, w = self.tensors, self.model.config, self.windows
        if parallel.is_pass(0):
            self.refill(rng, step)
        state = State(*(t[name] for name in State._fields))
        future = self.episodes.future(t["episode"], t["frame"], c.frames)
        target, actions = (part.to(self.device) for part in future)
        newest = self.episodes.at(t["episode"], t["frame"]).to(self.device)
        previous = torch.cat([newest[:, None], target[:, :-1]], dim=1)
        rms = lambda x: x.square().mean(dim=2, keepdim=True).sqrt().clamp(max=1)
        change = target - state.reference[:, None]
        weight = 1 + w.motion * rms(target - previous) + w.change * rms(change)
        level = (w.noise * torch.rand(w.batch, generator=generator)).to(self.device)
        own = parallel.rows(w.batch)
        loss, x0, times = self.model.loss(
            state, actions, target, generator, level=level, pure=w.pure, weight=weight, rows=own
        )
        after = state.rows(own).append(x0, actions[own])
        for name, value in zip(State._fields, after):
            t[name] = torch.cat([t[name][: own.start], value, t[name][own.stop :]])
        if parallel.is_pass(-1):
            t["frame"] += c.frames
            t["left"] -= 1
        pure = times == 1  # (B,)
        error = (x0 - target[own]).square().mean(dim=(1, 2, 3, 4))
        mse = float(error[pure[own]].sum() / pure.sum()) if pure.any() else 0.0
        return loss * parallel.share(w.batch), {"mse": mse}
