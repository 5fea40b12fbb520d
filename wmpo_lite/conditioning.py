"""What both denoisers share: their sizes, what they are told, and how the next frames are put
together from what they say.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from wmpo_lite.common.errors import UserError, check_range


class Context(NamedTuple):
    """What is known of B episodes before the next frames.

    reference: (B, C, h, w), the episode's first frame. frames: (B, c, C, h, w), the newest ones,
    oldest first; at an episode's start the first frame repeated. actions: (B, c - 1, D), that led
    to frames[1:] (zero before the start). path: (B, D), the sum of all actions since the reference.
    level: (B,), standard deviation of the noise that was added to `frames` (training), or that they
    are taken to carry.
    """

    reference: torch.Tensor
    frames: torch.Tensor
    actions: torch.Tensor
    path: torch.Tensor
    level: torch.Tensor


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of the denoiser."""

    kind: str = "unet"  # or 'stdit'
    latent_channels: int = 16
    latent_size: int = 8
    action_dim: int = 4
    context: int = 4  # newest frames that it sees (paper: c = 4)
    frames: int = 1  # that one pass predicts (paper: K = 8)
    reference: bool = True  # whether it sees the episode's first frame
    gate: bool = True  # whether it may also take a position from that frame as it is, see `compose`
    gates: int = 1  # of a position: one for all of it, or one for each pixel that a latent holds
    path: bool = True  # and the summed action: an arm that integrates its errors drifts less
    # each frame's own action, or 'pooled': their mean, which loses the order
    actions: str = "frame"
    widths: tuple = (96, 160)  # U-Net channels at full and half resolution
    blocks: int = 2  # residual blocks a stage
    patch: int = 2  # STDiT: latent positions a token holds, squared
    width: int = 192  # STDiT
    depth: int = 6  # STDiT: pairs of a spatial and a temporal block
    heads: int = 4

    def __post_init__(self):
        for name, allowed in (("kind", ("unet", "stdit")), ("actions", ("frame", "pooled"))):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"denoiser option {name}='{getattr(self, name)}' is unknown; use one of"
                    f" {', '.join(allowed)}"
                )

        least = dict.fromkeys(("context", "frames", "blocks", "patch", "depth", "heads"), 1)
        check_range(type(self).__name__, self, **least)
        piece = self.patch if self.kind == "stdit" else 2
        if self.latent_size % piece:
            raise UserError(
                f"latents of {self.latent_size} x {self.latent_size} cannot be cut into pieces of"
                f" {piece} x {piece}; choose latent_size and patch so that one divides the other"
            )
        if self.gates < 1 or self.latent_channels % self.gates:
            raise UserError(
                f"{self.gates} gates cannot share {self.latent_channels} channels; gates has to "
                "divide latent_channels"
            )

    @property
    def num_gates(self) -> int:
        """Gates of a position: none without a reference to let through."""
        return self.gates * (self.gate and self.reference)

    @property
    def outputs(self) -> int:
        """Channels that a network gives for one frame, see `compose`."""
        return self.latent_channels + self.num_gates


def compose(config: DenoiserConfig, context: Context, out: torch.Tensor) -> torch.Tensor:
    """Next frames (B, k, C, h, w) from what a network says, `out` (B, k, outputs, h, w): the newest
    frame and its change; or, where a gate opens, the reference. Gate g is that of the channels g,
    g + G, g + 2 G, ...: where a latent is folded pixels, those of one pixel's colors.

    A small thing that lies still fades a little with every pass of a network that draws it anew,
    and what has been behind the arm has to come back from somewhere.
    """
    change, gate = out.float().split([config.latent_channels, config.num_gates], dim=2)
    frames = context.frames[:, -1:] + change
    if config.num_gates:
        # (B, k, C, h, w), nearly closed at the start
        gate = torch.sigmoid(gate - 3).repeat(1, 1, config.latent_channels // config.gates, 1, 1)
        frames = torch.lerp(frames, context.reference[:, None].expand_as(frames), gate)
    return frames


def start_at_zero(layer: nn.Module) -> None:
    """Weights and bias zero: what the layer says is nothing at the start of training."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def time_features(t: torch.Tensor, size: int = 64) -> torch.Tensor:
    """Sines and cosines (..., size) of t (...), at frequencies from 1 to 1000."""
    frequencies = torch.exp(math.log(1000.0) * torch.linspace(0, 1, size // 2, device=t.device))
    angles = t[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def action_features(
    config: DenoiserConfig, context: Context, actions: torch.Tensor
) -> torch.Tensor:
    """What the U-Net is told beside pictures, (B, F): actions, their sum, the context's noise."""
    every = torch.cat([context.actions, actions], dim=1)  # (B, c - 1 + k, D)
    if config.actions == "pooled":
        every = every.mean(dim=1, keepdim=True).expand_as(every)
    parts = [every.flatten(1), context.level[:, None] * 10]
    if config.path:
        path = context.path + actions.sum(dim=1)  # (B, D): where the arm should be after these
        parts += [path / 5, path.sin(), path.cos()]
    return torch.cat(parts, dim=1)


def count_features(config: DenoiserConfig) -> int:
    """F of `action_features`."""
    steps = config.context - 1 + config.frames
    return config.action_dim * (steps + 3 * config.path) + 1
