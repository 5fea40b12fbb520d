"""The world model: autoencoder latents moved by a denoiser, frame after frame (paper section 3.2).

It has seen pictures and actions and nothing else: no simulator state, label, instruction or camera.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from wmpo_lite.common.checkpoint import Saved
from wmpo_lite.common.errors import UserError, require
from wmpo_lite.conditioning import Context, DenoiserConfig
from wmpo_lite.denoiser import build_denoiser
from wmpo_lite.diffusion import draw_times, euler_sample, flow_loss, interpolate


@dataclass(frozen=True)
class WorldModelConfig(DenoiserConfig):
    """The denoiser's sizes, and how it is sampled."""

    num_inference_steps: int = 1  # Euler steps a pass (paper: 30)
    shift: float = 3.0  # > 1 spends training and sampling near pure noise
    context_noise: float = 0.0  # level that the context is taken to carry in imagination


class State(NamedTuple):
    """Where B imagined episodes stand: the fields of `Context` but for the noise level."""

    reference: torch.Tensor  # (B, C, h, w)
    frames: torch.Tensor  # (B, c, C, h, w)
    actions: torch.Tensor  # (B, c - 1, D)
    path: torch.Tensor  # (B, D)

    def rows(self, index) -> "State":
        """The episodes `index`."""
        return State(*(part[index] for part in self))

    def append(self, frames: torch.Tensor, actions: torch.Tensor) -> "State":
        """The state k frames (B, k, C, h, w) and the actions (B, k, D) that led to them later."""
        c = self.frames.shape[1]
        past = torch.cat([self.actions, actions], dim=1)
        return State(
            self.reference,
            torch.cat([self.frames, frames], dim=1)[:, -c:],
            past[:, past.shape[1] - (c - 1) :],
            self.path + actions.sum(dim=1),
        )


class WorldModel(Saved, nn.Module):
    """p(next frames | first frame, newest frames, actions), in the autoencoder's latents."""

    config_class = WorldModelConfig

    def __init__(self, config: WorldModelConfig = WorldModelConfig()):
        super().__init__()
        self.config, self.denoiser = config, build_denoiser(config)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def init_state(self, first: torch.Tensor) -> State:
        """Imagination starts from one recorded frame's latent (B, C, h, w), repeated as context."""
        c = self.config
        shape = (c.latent_channels, c.latent_size, c.latent_size)
        if first.shape[1:] != shape:
            raise UserError(
                f"the world model moves latents of shape {shape}, got {tuple(first.shape[1:])}; "
                "load the autoencoder that it was trained with"
            )
        still = first.new_zeros(len(first), c.context - 1, c.action_dim)
        return State(
            first,
            first[:, None].repeat(1, c.context, 1, 1, 1),
            still,
            still.new_zeros(len(first), c.action_dim),
        )

    def context(self, state: State, level: float | torch.Tensor = 0.0, generator=None) -> Context:
        """The denoiser's view of a state; `level` (B,): noise on the newest frames (training)."""
        if torch.is_tensor(level):
            noise = torch.randn(state.frames.shape, generator=generator).to(state.frames)
            frames = state.frames + level.view(-1, 1, 1, 1, 1) * noise
        else:
            frames = state.frames
            level = torch.full((len(frames),), level, device=frames.device)
        return Context(state.reference, frames, state.actions, state.path, level)

    @torch.no_grad()
    def next_frames(
        self,
        state: State,
        actions: torch.Tensor,
        generator=None,
        num_inference_steps: int | None = None,
    ):
        """The frames (B, T, C, h, w) that actions (B, T, D) lead to, and the state afterwards.

        generator: a CPU generator, so that a seed means the same on every device, or the noise of
        all passes that it would give (`noise`).
        """
        c, frames = self.config, []
        if actions.shape[-1] != c.action_dim:
            raise UserError(
                f"the world model knows actions of {c.action_dim} numbers, got {actions.shape[-1]};"
                " load the one of this robot"
            )
        steps = num_inference_steps or c.num_inference_steps
        require(steps >= 1, f"num_inference_steps is {steps}: expected 1 or more.")
        for part in actions.split(c.frames, dim=1):
            k = part.shape[1]
            if k < c.frames:  # a last short piece: what it does not show is not kept
                part = torch.cat([part, part[:, -1:].expand(-1, c.frames - k, -1)], dim=1)
            context = self.context(state, c.context_noise)
            if torch.is_tensor(generator):
                noise, generator = generator[:, : c.frames], generator[:, c.frames :]
            else:
                noise = self.noise(len(part), c.frames, generator)
            noise = noise.to(state.reference)
            new = euler_sample(
                lambda x, t: self.denoiser.predict_x0(x, t, context, part), noise, steps, c.shift
            )
            state = state.append(new[:, :k], part[:, :k])
            frames.append(new[:, :k])
        return torch.cat(frames, dim=1), state

    def noise(self, n: int, steps: int, generator=None) -> torch.Tensor:
        """What the passes for `steps` frames of n episodes start from: (n, passes x k, C, h, w)."""
        c = self.config
        shape = (n, c.frames, c.latent_channels, c.latent_size, c.latent_size)
        passes = range(-(-steps // c.frames))
        return torch.cat([torch.randn(shape, generator=generator) for _ in passes], dim=1)

    def loss(
        self,
        state: State,
        actions,
        target,
        generator,
        *,
        level=0.0,
        pure: float = 0.5,
        weight=None,
        rows: slice = slice(None),
    ):
        """Rectified-flow loss of k next frames `target` (B, k, C, h, w) after `actions` (B, k, D).

        level: (B,), noise on the context. rows: compute these of the B only, with the random
        numbers that they have among all. Returns their loss, their predicted clean frames
        (detached) and the times (B,) of all.
        """
        t = draw_times(
            len(target), generator, shift=self.config.shift, pure=pure, device=target.device
        )
        noise = torch.randn(target.shape, generator=generator).to(target)
        context = Context(*(part[rows] for part in self.context(state, level, generator)))
        weight = None if weight is None else weight.expand(target.shape)[rows]
        target, noise, now = target[rows], noise[rows], t[rows]
        x0 = self.denoiser.predict_x0(interpolate(target, noise, now), now, context, actions[rows])
        return flow_loss(x0, target, now, weight=weight), x0.detach(), t
