"""The paper's denoiser, a space-time transformer (OpenSora's STDiT): spatial blocks, then causal
temporal ones, under AdaLN.
"""

import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.conditioning import Context, DenoiserConfig, compose, start_at_zero, time_features


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: x (..., T, d), cos and sin (T, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class STBlock(nn.Module):
    """Attention and MLP under gated AdaLN: over tokens of a frame, or a place and its past."""

    def __init__(self, width: int, heads: int, temporal: bool):
        super().__init__()
        self.temporal, self.heads = temporal, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        start_at_zero(self.modulation)  # closed gates: every block is the identity

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        batch, frames, tokens, width = x.shape  # (B, T, N, W); condition (B, T, W)
        modulation = self.modulation(condition)[:, :, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h = torch.addcmul(shift1, F.layer_norm(x, (width,)), 1 + scale1)
        # q, k and v, each (B, T, N, heads, d)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(3)
        if self.temporal:
            q, k, v = (part.permute(0, 2, 3, 1, 4) for part in (q, k, v))  # (B, N, heads, T, d)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(0, 3, 1, 2, 4)
        else:
            q, k, v = (part.transpose(2, 3) for part in (q, k, v))  # (B, T, heads, N, d)
            h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        x = torch.addcmul(x, gate1, self.out(h.reshape(batch, frames, tokens, width)))
        h = torch.addcmul(shift2, F.layer_norm(x, (width,)), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh")))


class SpaceTimeDiT(nn.Module):
    """The paper's denoiser: each frame's tokens under its own noise level and its own action."""

    cos: torch.Tensor  # (T, width of a head / 2), as `sin`
    sin: torch.Tensor

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = c = config
        tokens, features = (c.latent_size // c.patch) ** 2, c.latent_channels * c.patch**2
        # Frames that are known enter through their own projection: they are pictures, the others
        # mostly noise.
        self.embed_known = nn.Linear(features, c.width)
        self.embed_noisy = nn.Linear(features, c.width)
        self.position = nn.Parameter(torch.randn(1, 1, tokens, c.width) * 0.02)
        mlp = lambda n: nn.Sequential(nn.Linear(n, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.embed_time = mlp(64)
        self.embed_action = mlp(c.action_dim * (1 + 3 * c.path))
        self.null_action = nn.Parameter(torch.zeros(c.width))  # of the reference: none led to it
        self.blocks = nn.ModuleList(
            STBlock(c.width, c.heads, bool(i % 2)) for i in range(2 * c.depth)
        )
        self.final = nn.Linear(c.width, 2 * c.width)
        self.head = nn.Linear(c.width, c.outputs * c.patch**2)
        start_at_zero(self.final)
        start_at_zero(self.head)
        half = c.width // c.heads // 2
        places = torch.arange(1 + c.context + c.frames)[:, None]
        angles = places * 100.0 ** (-torch.arange(half) / half)
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
        tiles = x.reshape(b, t, s, s, c, p, p).permute(0, 1, 4, 2, 5, 3, 6)
        return tiles.reshape(b, t, c, s * p, s * p)

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
