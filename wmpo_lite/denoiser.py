"""The denoiser: which frames come next, given the newest ones and the actions? Two networks, one
interface.

`UNet` is convolutional (as DIAMOND's, Alonso et al. 2024, arXiv 2405.12399, but on latents): it
knows that things look alike wherever they lie, and is what a CPU can train. `SpaceTimeDiT` is the
paper's (OpenSora's STDiT): spatial blocks, then causal temporal ones, under AdaLN. Both predict the
clean latents.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.errors import UserError


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
    warp: bool = False  # whether pixels of the newest frame may also move; folded pixels only
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

        if self.gates < 1 or self.latent_channels % self.gates:
            raise UserError(
                f"{self.gates} gates cannot share {self.latent_channels} channels; gates has to "
                "divide latent_channels"
            )
        if self.warp and math.isqrt(self.gates) ** 2 != self.gates:
            raise UserError(
                f"warp moves pixels, so gates is their number in a latent, not {self.gates};"
                " set gates to fold * fold of the 'pixels' autoencoder, or warp off"
            )

    @property
    def num_gates(self) -> int:
        """Gates of a position: none without a reference to let through."""
        return self.gates * (self.gate and self.reference)

    @property
    def outputs(self) -> int:
        """Channels that a network gives for one frame, see `compose`."""
        return self.latent_channels + self.num_gates + 2 * self.gates * self.warp


def build_denoiser(config: DenoiserConfig) -> nn.Module:
    """The network that `config.kind` names."""
    return UNet(config) if config.kind == "unet" else SpaceTimeDiT(config)


def compose(config: DenoiserConfig, context: Context, out: torch.Tensor) -> torch.Tensor:
    """Next frames (B, k, C, h, w) from what a network says, `out` (B, k, outputs, h, w): the newest
    frame, moved where `warp` is on, and its change; or, where a gate opens, the reference. Gate g
    is that of the channels g, g + G, g + 2 G, ...: where a latent is folded pixels, those of one
    pixel's colors.

    A small thing that lies still fades a little with every pass of a network that draws it anew,
    what has been behind the arm has to come back from somewhere, and what is carried should look as
    it did before. Compositing from earlier frames, moved pixel by pixel, is an old remedy (Finn et
    al. 2016, arXiv 1605.07157).
    """
    change, gate, flow = out.split(
        [config.latent_channels, config.num_gates, 2 * config.gates * config.warp], dim=2
    )
    newest = context.frames[:, -1:]
    frames = change + (move_pixels(newest[:, 0], flow) if config.warp else newest)
    if config.num_gates:
        # (B, k, C, h, w), nearly closed at the start
        gate = torch.sigmoid(gate - 3).repeat(1, 1, config.latent_channels // config.gates, 1, 1)
        frames = torch.lerp(frames, context.reference[:, None].expand_as(frames), gate)
    return frames


def move_pixels(latents: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Folded pixels (B, C, h, w), fetched from where `flow` (B, k, 2 f f, h, w) says: k frames (B,
    k, C, h, w).

    flow: for each pixel of the new frame how many pixels to the right (first f f channels) and
    below it lies what it shows; bilinear between pixels, the edge's color beyond the edge.
    """
    (b, k), fold = flow.shape[:2], math.isqrt(flow.shape[2] // 2)
    flow = F.pixel_shuffle(flow.flatten(0, 1), fold).movedim(1, -1)  # (B k, H, W, 2)
    height, width = flow.shape[1:3]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype),
        torch.arange(width, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    size = flow.new_tensor((width, height))
    # -1 and 1 are the outer edges of the picture's outer pixels
    places = (torch.stack([x, y], dim=-1) + flow + 0.5) / size * 2 - 1
    pictures = F.pixel_shuffle(latents, fold)[:, None].expand(-1, k, -1, -1, -1).flatten(0, 1)
    moved = F.grid_sample(pictures, places, padding_mode="border", align_corners=False)
    return F.pixel_unshuffle(moved, fold).unflatten(0, (b, k))


def time_features(t: torch.Tensor, size: int = 64) -> torch.Tensor:
    """Sines and cosines (..., size) of t (...), at frequencies from 1 to 1000."""
    frequencies = torch.exp(math.log(1000.0) * torch.linspace(0, 1, size // 2, device=t.device))
    angles = t[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def action_features(
    config: DenoiserConfig, context: Context, actions: torch.Tensor
) -> torch.Tensor:
    """What the U-Net is told beside pictures, (B, F): actions, summed action, noise level of the
    context.
    """
    every = torch.cat([context.actions, actions], dim=1)  # (B, c - 1 + k, D)
    if config.actions == "pooled":
        every = every.mean(dim=1, keepdim=True).expand_as(every)
    parts = [every.flatten(1), context.level[:, None] * 10]
    if config.path:
        path = context.path + actions.sum(
            dim=1
        )  # (B, D), where the arm should be after these frames
        parts += [path / 5, path.sin(), path.cos()]
    return torch.cat(parts, dim=1)


def count_features(config: DenoiserConfig) -> int:
    """F of `action_features`."""
    return (
        config.action_dim * (config.context - 1 + config.frames)
        + 1
        + 3 * config.action_dim * config.path
    )


# -- U-Net -----------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after a group norm that time and actions scale
    and shift (FiLM).
    """

    def __init__(self, width_in: int, width: int, embed: int):
        super().__init__()
        self.width_in, self.width = width_in, width
        self.norm1, self.conv1 = (
            nn.GroupNorm(8, width_in, affine=False),
            nn.Conv2d(width_in, width, 3, padding=1),
        )
        self.norm2, self.conv2 = (
            nn.GroupNorm(8, width, affine=False),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.film = nn.Linear(embed, 2 * width_in + 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        # Zero: at the start of training a block passes its input on.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(
        self, x: torch.Tensor, embed: torch.Tensor
    ) -> torch.Tensor:  # (B, width_in, h, w), (B, E)
        a, b, c, d = self.film(embed)[:, :, None, None].split(
            (self.width_in, self.width_in, self.width, self.width), 1
        )
        h = self.conv1(F.silu(torch.addcmul(b, self.norm1(x), 1 + a)))
        h = self.conv2(F.silu(torch.addcmul(d, self.norm2(h), 1 + c)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over all positions of the half-resolution map: what happens here may depend on
    over there.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, W, h, w)
        b, width, h, w = x.shape
        q, k, v = (
            self.qkv(self.norm(x))
            .reshape(b, 3, self.heads, width // self.heads, h * w)
            .transpose(3, 4)
            .unbind(1)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(
            2, 3
        )  # (B, heads, W / heads, h w)
        return x + self.out(found.reshape(b, width, h, w))


class UNet(nn.Module):
    """Stacks noisy next frames, context frames and reference as channels; predicts the change of
    the newest frame.
    """

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        c, (wide, narrow), embed = config, config.widths, 256
        self.config = c
        # + 2: where a position lies; gravity, the arm's base and the picture's edge are not alike
        # everywhere.
        channels = c.latent_channels * (c.frames + c.context + c.reference) + 2
        self.embed = nn.Sequential(
            nn.Linear(64 + count_features(c), embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU()
        )
        self.input = nn.Conv2d(channels, wide, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(wide, wide, embed) for _ in range(c.blocks))
        self.shrink = nn.Conv2d(wide, narrow, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResBlock(narrow, narrow, embed) for _ in range(2 * c.blocks))
        self.attend = nn.ModuleList(Attention(narrow, c.heads) for _ in range(c.blocks))
        self.grow = nn.Conv2d(narrow, 4 * wide, 1)
        self.up = nn.ModuleList(
            ResBlock(wide if i else 2 * wide, wide, embed) for i in range(c.blocks)
        )
        self.norm, self.output = (
            nn.GroupNorm(8, wide),
            nn.Conv2d(wide, c.outputs * c.frames, 3, padding=1),
        )
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        side = (torch.arange(c.latent_size) + 0.5) / c.latent_size * 2 - 1
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(side, side, indexing="xy"))[None], persistent=False
        )

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, context: Context, actions: torch.Tensor
    ) -> torch.Tensor:
        """Clean next frames (B, k, C, h, w) from noisy ones x_t, times t (B,) and the actions (B,
        k, D) towards them.
        """
        embed = self.embed(
            torch.cat([time_features(t), action_features(self.config, context, actions)], dim=1)
        )
        # (B, 2, h, w), (B, c C, h, w), (B, k C, h, w), (B, C, h, w)
        maps = [
            self.grid.expand(len(t), -1, -1, -1),
            context.frames.flatten(1, 2),
            x_t.flatten(1, 2),
        ]
        maps += [context.reference] * self.config.reference
        h = self.input(torch.cat(maps, dim=1).contiguous(memory_format=torch.channels_last))
        for block in self.down:
            h = block(h, embed)
        skip, h = h, self.shrink(h)  # (B, wide, h, w), (B, narrow, h / 2, w / 2)
        for i, block in enumerate(self.middle):
            h = block(h, embed)
            if i % 2 == 0:
                h = self.attend[i // 2](h)
        h = torch.cat([F.pixel_shuffle(self.grow(h), 2), skip], dim=1)  # (B, 2 wide, h, w)
        for block in self.up:
            h = block(h, embed)
        out = self.output(F.silu(self.norm(h))).unflatten(1, (x_t.shape[1], -1))
        return compose(self.config, context, out)


# -- space-time transformer ------------------------------------------------------------------------


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: x (..., T, d), cos and sin (T, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class STBlock(nn.Module):
    """Attention and MLP under AdaLN with gates. Spatial: tokens of one frame; temporal: one place
    and its past.
    """

    def __init__(self, width: int, heads: int, temporal: bool):
        super().__init__()
        self.temporal, self.heads = temporal, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(
            self.modulation.weight
        )  # zero gates: at the start every block is the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        batch, frames, tokens, width = x.shape  # (B, T, N, W); condition (B, T, W)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].chunk(
            6, dim=-1
        )
        h = torch.addcmul(shift1, F.layer_norm(x, (width,)), 1 + scale1)
        q, k, v = (
            self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(3)
        )  # each (B, T, N, heads, d)
        if self.temporal:
            q, k, v = (part.permute(0, 2, 3, 1, 4) for part in (q, k, v))  # (B, N, heads, T, d)
            h = F.scaled_dot_product_attention(
                rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
            )
            h = h.permute(0, 3, 1, 2, 4)
        else:
            q, k, v = (part.transpose(2, 3) for part in (q, k, v))  # (B, T, heads, N, d)
            h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        x = torch.addcmul(x, gate1, self.out(h.reshape(batch, frames, tokens, width)))
        h = torch.addcmul(shift2, F.layer_norm(x, (width,)), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh")))


class SpaceTimeDiT(nn.Module):
    """The paper's denoiser: frames as tokens, each frame modulated by its own noise level and its
    own action.
    """

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = c = config
        tokens, features = (c.latent_size // c.patch) ** 2, c.latent_channels * c.patch**2
        # Frames that are known enter through their own projection: they are pictures, the others
        # mostly noise.
        self.embed_known, self.embed_noisy = (
            nn.Linear(features, c.width),
            nn.Linear(features, c.width),
        )
        self.position = nn.Parameter(torch.randn(1, 1, tokens, c.width) * 0.02)
        self.embed_time = nn.Sequential(
            nn.Linear(64, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        inputs = c.action_dim * (1 + 3 * c.path)
        self.embed_action = nn.Sequential(
            nn.Linear(inputs, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.null_action = nn.Parameter(
            torch.zeros(c.width)
        )  # of the reference, that no action led to
        self.blocks = nn.ModuleList(
            STBlock(c.width, c.heads, bool(i % 2)) for i in range(2 * c.depth)
        )
        self.final, self.head = (
            nn.Linear(c.width, 2 * c.width),
            nn.Linear(c.width, c.outputs * c.patch**2),
        )
        for layer in (self.final, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        half = c.width // c.heads // 2
        angles = torch.arange(1 + c.context + c.frames)[:, None] * 100.0 ** (
            -torch.arange(half) / half
        )
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _patchify(self, z: torch.Tensor) -> torch.Tensor:  # (B, T, C, h, w) -> (B, T, N, C p p)
        b, t, c, h, w = z.shape
        p = self.config.patch
        folded = z.reshape(b, t, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6)
        return folded.reshape(b, t, (h // p) * (w // p), c * p * p)

    def _unpatchify(self, x: torch.Tensor) -> torch.Tensor:  # the inverse
        b, t, _, _ = x.shape
        p, s = self.config.patch, self.config.latent_size // self.config.patch
        c = x.shape[-1] // p**2
        return (
            x.reshape(b, t, s, s, c, p, p)
            .permute(0, 1, 4, 2, 5, 3, 6)
            .reshape(b, t, c, s * p, s * p)
        )

    def _conditions(self, t: torch.Tensor, context: Context, actions: torch.Tensor) -> torch.Tensor:
        """Of every frame, (B, T, W): its noise level and the action that led to it."""
        c, (batch, k) = self.config, actions.shape[:2]
        known = c.reference + c.context
        levels = torch.cat(
            [context.level[:, None].expand(-1, known), t[:, None].expand(-1, k)], dim=1
        )
        still = actions.new_zeros(batch, 1, c.action_dim)  # towards the oldest frame: not known
        steps = torch.cat([still, context.actions, actions], dim=1)  # (B, c + k, D)
        if c.actions == "pooled":
            steps = steps.mean(dim=1, keepdim=True).expand_as(steps)
        if c.path:
            here = context.path[:, None]
            path = torch.cat([here.expand(-1, c.context, -1), here + actions.cumsum(dim=1)], dim=1)
            steps = torch.cat([steps, path / 5, path.sin(), path.cos()], dim=-1)
        moved = self.embed_action(steps)  # (B, c + k, W)
        if c.reference:
            moved = torch.cat([self.null_action.expand(batch, 1, -1), moved], dim=1)
        return F.silu(self.embed_time(time_features(levels)) + moved)

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, context: Context, actions: torch.Tensor
    ) -> torch.Tensor:
        """As `UNet.predict_x0`."""
        known = context.frames
        if self.config.reference:
            known = torch.cat([context.reference[:, None], known], dim=1)
        past, noisy = self.embed_known(self._patchify(known)), self.embed_noisy(self._patchify(x_t))
        x = torch.cat([past, noisy + past[:, -1:]], dim=1) + self.position  # (B, T, N, W)
        condition, frames = self._conditions(t, context, actions), x.shape[1]
        for block in self.blocks:
            x = block(x, condition, self.cos[:frames], self.sin[:frames])
        shift, scale = self.final(condition)[:, :, None].chunk(2, dim=-1)
        x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)[:, -x_t.shape[1] :]
        return compose(self.config, context, self._unpatchify(self.head(x)))
