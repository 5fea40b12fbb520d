"""The convolutional denoiser (as DIAMOND's, Alonso et al. 2024, arXiv 2405.12399, but on latents):
it knows that things look alike wherever they lie, and is what a CPU can train.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.conditioning import (
    Context,
    DenoiserConfig,
    action_features,
    compose,
    count_features,
    start_at_zero,
    time_features,
)


class ResBlock(nn.Module):
    """Two 3x3 convolutions after group norms that time and actions scale and shift (FiLM)."""

    def __init__(self, width_in: int, width: int, embed: int):
        super().__init__()
        self.width_in, self.width = width_in, width
        self.norm1 = nn.GroupNorm(8, width_in, affine=False)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width, affine=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.film = nn.Linear(embed, 2 * width_in + 2 * width)
        start_at_zero(self.film)
        start_at_zero(self.conv2)  # a block passes its input on

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
    """Self-attention over the half-resolution map: what is here may depend on over there."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        start_at_zero(self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, W, h, w)
        b, width, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, width // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)  # each (B, heads, h w, W / heads)
        found = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.out(found.reshape(b, width, h, w))


class UNet(nn.Module):
    """Noisy, context and reference frames stacked as channels -> change of the newest frame."""

    grid: torch.Tensor  # (1, 2, h, w)

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
        self.norm = nn.GroupNorm(8, wide)
        self.output = nn.Conv2d(wide, c.outputs * c.frames, 3, padding=1)
        start_at_zero(self.output)
        side = (torch.arange(c.latent_size) + 0.5) / c.latent_size * 2 - 1
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(side, side, indexing="xy"))[None], persistent=False
        )

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, context: Context, actions: torch.Tensor
    ) -> torch.Tensor:
        """Clean next frames (B, k, C, h, w) from x_t alike, times t (B,) and actions (B, k, D)."""
        told = [time_features(t), action_features(self.config, context, actions)]
        embed = self.embed(torch.cat(told, dim=1))
        # (B, 2, h, w), (B, c C, h, w), (B, k C, h, w), (B, C, h, w)
        maps = [self.grid.expand(len(t), -1, -1, -1), context.frames.flatten(1, 2)]
        maps += [x_t.flatten(1, 2), *[context.reference] * self.config.reference]
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
