"""The pixel-space video world model (paper section 3.2): a per-frame autoencoder and a space-time diffusion transformer in its latent space.

Left out of the paper's model, and why: classifier-free guidance (the paper samples without it), text conditioning (actions say it all) and a
temporal autoencoder (fine motion must survive; the paper's argument too).
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite import checkpoint
from wmpo_lite.draft import Draft
from wmpo_lite.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------- autoencoder


@dataclass(frozen=True)
class AutoencoderConfig:
    """kind: 'tiny' (`diffusers.AutoencoderTiny` on space-to-depth pixels) or 'kl' (`diffusers.AutoencoderKL`, the paper's SDXL layout)."""

    kind: str = "tiny"
    size: int = 64  # pixels, square
    fold: int = 4  # space-to-depth factor before the first convolution: convolutions at full resolution are what a CPU cannot afford
    channels: tuple = (48, 48)  # from fine to coarse; each step halves the resolution (all equal for kind "tiny")
    latent_channels: int = 16

    @property
    def latent_size(self) -> int:
        return self.size // self.fold // 2 ** (len(self.channels) - 1)


class Autoencoder(nn.Module):
    """Frames (B, 3, H, W) in [-1, 1] <-> latents (B, C, h, w) with unit variance per channel; every frame on its own."""

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()):
        super().__init__()
        self.config = config
        folded, channels = 3 * config.fold**2, tuple(config.channels)
        if config.kind == "tiny":
            from diffusers import AutoencoderTiny
            self.net = AutoencoderTiny(
                in_channels=folded, out_channels=folded, latent_channels=config.latent_channels,
                encoder_block_out_channels=channels, decoder_block_out_channels=channels[::-1],
                num_encoder_blocks=(1,) * len(channels), num_decoder_blocks=(1,) * len(channels), upsampling_scaling_factor=2)
        elif config.kind == "kl":
            from diffusers import AutoencoderKL
            self.net = AutoencoderKL(
                in_channels=folded, out_channels=folded, latent_channels=config.latent_channels, block_out_channels=channels, layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels))
        else:
            raise UserError(f"autoencoder kind '{config.kind}' is unknown; use 'tiny' or 'kl'")
        # Measured after training: the transformer wants latents of zero mean and unit variance.
        self.register_buffer("mean", torch.zeros(1, config.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(1, config.latent_channels, 1, 1))

    def encode_raw(self, frames: torch.Tensor) -> torch.Tensor:
        folded = F.pixel_unshuffle(frames, self.config.fold)
        return self.net.encoder(folded) if self.config.kind == "tiny" else self.net.encode(folded).latent_dist.mean

    def decode_raw(self, latents: torch.Tensor) -> torch.Tensor:
        folded = self.net.decoder(latents) if self.config.kind == "tiny" else self.net.decode(latents).sample
        return F.pixel_shuffle(folded, self.config.fold)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return (self.encode_raw(frames) - self.mean) / self.std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decode_raw(latents * self.std + self.mean)

    @torch.no_grad()
    def encode_uint8(self, frames: torch.Tensor, chunk: int = 256) -> torch.Tensor:
        """uint8 (..., H, W, 3) -> latents (..., C, h, w); in pieces, so that a whole data set fits through."""
        lead = frames.shape[:-3]
        flat = frames.reshape(-1, *frames.shape[-3:])
        latents = torch.cat([self.encode(to_float(part)) for part in flat.split(chunk)])
        return latents.reshape(*lead, *latents.shape[1:])

    @torch.no_grad()
    def decode_uint8(self, latents: torch.Tensor, chunk: int = 256) -> torch.Tensor:
        """Latents (..., C, h, w) -> uint8 (..., H, W, 3): what a camera could have given, so a policy sees nothing else."""
        lead = latents.shape[:-3]
        frames = torch.cat([to_uint8(self.decode(part)) for part in latents.reshape(-1, *latents.shape[-3:]).split(chunk)])
        return frames.reshape(*lead, *frames.shape[1:])

    def recode(self, frames):
        """uint8 array (..., H, W, 3) as encoding and decoding leave it: what a perfect world model would show."""
        return self.decode_uint8(self.encode_uint8(torch.from_numpy(frames))).numpy()

    def save(self, folder, provenance=None):
        checkpoint.save_module(folder, self, self.config, provenance)

    @classmethod
    def load(cls, folder):
        return checkpoint.load_state(folder, cls(checkpoint.load_config(folder, AutoencoderConfig, cls.__name__))).eval()


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return frames.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


# --------------------------------------------------------------------------------------------------------- space-time transformer


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the transformer and the settings of rectified flow. Paper: STDiT-XL, SDXL latents, c = 4, K = 8.

    conditioning: 'gate' (AdaLN with shift, scale and gate; the paper's code) or 'scale' (residual scaled by 1 + alpha; the paper's text).
    action_blocks: 'all', or 'spatial' as in the paper's code, where temporal blocks see only the diffusion time.
    draft_width, draft_memory: sizes of the `Draft`, a small deterministic network whose guess the transformer corrects; width 0: none, as in the
    paper. slots: how many things it tells apart, the hand being the last. draft_fine, draft_controller,
    draft_rest: see `Mover`; draft_keyframe: see `Draft`.
    action_path: each future frame's embedding sees its own action and the sum of all actions since the newest context frame. False: own action only.
    prediction: 'data' (the network outputs the clean latents as a correction of the draft, or of the newest context frame without one, and the
    velocity follows from it; a small network need not model the noise) or 'velocity' (the network outputs the velocity).
    loss_cap: the loss is the velocity's squared error, (data error)^2 / t^2, with 1 / t^2 capped at this: what happens next is decided near pure
    noise, while small t, which few-step sampling never visits, would have most of the weight.
    context_noise: standard deviation of the noise that context latents get in training, and the time label they carry always (paper: 0.05; its
    code: 0.015).
    """

    latent_channels: int = 16
    latent_size: int = 8
    patch: int = 2
    width: int = 128
    depth: int = 4  # pairs of one spatial and one temporal block
    heads: int = 4
    action_dim: int = 4
    context: int = 4
    chunk: int = 8
    conditioning: str = "gate"
    action_blocks: str = "all"
    draft_width: int = 128
    draft_memory: int = 64
    draft_fine: float = 0.0
    draft_controller: bool = False
    draft_keyframe: bool = False
    draft_rest: bool = False
    slots: int = 5
    action_path: bool = True
    prediction: str = "data"
    context_noise: float = 0.05
    loss_cap: float = 2.0
    time_shift: float = 8.0  # > 1 spends training and sampling near pure noise, where few-step sampling is decided
    sample_steps: int = 2

    def __post_init__(self):
        for name, allowed in (("conditioning", ("gate", "scale")), ("action_blocks", ("all", "spatial")), ("prediction", ("data", "velocity"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"world model option {name}='{getattr(self, name)}' is unknown; use one of {', '.join(allowed)}")


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: x (..., T, d), cos and sin (T, d / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Attention and MLP under AdaLN. spatial: the N tokens of one frame see each other; temporal: one token sees its own past."""

    def __init__(self, config: WorldModelConfig, temporal: bool):
        super().__init__()
        width = config.width
        self.temporal, self.heads, self.gated = temporal, config.heads, config.conditioning == "gate"
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        # Zero: at the start of training every gated block is the identity and the model copies its newest context frame.
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight), nn.init.zeros_(self.modulation.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, frames, tokens, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].chunk(6, dim=-1)  # each (B, T, 1, D)
        if not self.gated:
            gate1, gate2 = 1 + gate1, 1 + gate2
        h = modulate(F.layer_norm(x, (width,)), shift1, scale1)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(3)  # each (B, T, N, heads, d)
        if self.temporal:
            q, k, v = (t.permute(0, 2, 3, 1, 4) for t in (q, k, v))  # (B, N, heads, T, d)
            h = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True).permute(0, 3, 1, 2, 4)
        else:
            q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, T, heads, N, d)
            h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        x = torch.addcmul(x, gate1, self.out(h.reshape(batch, frames, tokens, width)))
        h = modulate(F.layer_norm(x, (width,)), shift2, scale2)
        return torch.addcmul(x, gate2, self.down(F.gelu(self.up(h), approximate="tanh")))


class WorldModel(nn.Module):
    """p(next K latents | c context latents, K actions) by rectified flow: x_t = (1 - t) x + t noise, velocity = noise - x."""

    def __init__(self, config: WorldModelConfig = WorldModelConfig()):
        super().__init__()
        self.config = c = config
        tokens, features = (c.latent_size // c.patch) ** 2, c.latent_channels * c.patch**2
        # Context tokens enter through their own projection: they are pictures, the others are mostly noise.
        self.embed, self.embed_context = nn.Linear(features, c.width), nn.Linear(features, c.width)
        self.position = nn.Parameter(torch.randn(1, 1, tokens, c.width) * 0.02)
        self.embed_time = nn.Sequential(nn.Linear(64, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.embed_action = nn.Sequential(nn.Linear(c.action_dim * (1 + c.action_path), c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.null_action = nn.Parameter(torch.zeros(c.width))
        if c.draft_width:
            self.draft = Draft(c.latent_channels, c.latent_size, c.action_dim, c.draft_width, c.draft_memory, c.slots, fine=c.draft_fine,
                               controller=c.draft_controller, keyframe=c.draft_keyframe, rest=c.draft_rest)
            self.embed_draft, self.embed_scene = nn.Linear(features, c.width), nn.Linear(4 * c.slots + 1, c.width)
        self.blocks = nn.ModuleList(Block(c, temporal=bool(i % 2)) for i in range(2 * c.depth))
        self.final = nn.Linear(c.width, 2 * c.width)
        self.head = nn.Linear(c.width, features)
        for layer in (self.final, self.head):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        half = c.width // c.heads // 2
        angles = torch.arange(c.context + c.chunk)[:, None] * 100.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False), self.register_buffer("sin", angles.sin(), persistent=False)

    # -- network -------------------------------------------------------------------------------------------------------------------------

    def _patchify(self, z):  # (B, T, C, h, w) -> (B, T, N, C p p)
        b, t, c, h, w = z.shape
        p = self.config.patch
        return z.reshape(b, t, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, t, (h // p) * (w // p), c * p * p)

    def _unpatchify(self, x):  # inverse of _patchify
        b, t, n, _ = x.shape
        p, s, c = self.config.patch, self.config.latent_size // self.config.patch, self.config.latent_channels
        return x.reshape(b, t, s, s, c, p, p).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, t, c, s * p, s * p)

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor, actions: torch.Tensor, draft=None) -> torch.Tensor:
        """Velocity of the K future latents. x_t (B, K, C, h, w), t (B,) in (0, 1], context (B, c, C, h, w), actions (B, K, D)."""
        return (x_t - self.clean(x_t, t, context, actions, draft)) / t.view(-1, 1, 1, 1, 1)

    def clean(self, x_t, t, context, actions, draft=None):
        """The network's estimate of the clean future latents (B, K, C, h, w), from which the velocity follows (or the other way round).

        draft: what `self.draft(context, actions)` returned, or None to compute it here.
        """
        c = self.config
        batch, frames = len(x_t), c.context + x_t.shape[1]
        past, noisy = self.embed_context(self._patchify(context)), self.embed(self._patchify(x_t))
        noisy = noisy + past[:, -1:]  # the frame to change is at hand from the first layer on
        if c.draft_width:
            draft, scene = draft or self.draft(context, actions)[:2]
            noisy = noisy + self.embed_draft(self._patchify(draft))
        x = torch.cat([past, noisy], dim=1) + self.position
        levels = torch.cat([t.new_full((batch, c.context), c.context_noise), t[:, None].expand(-1, x_t.shape[1])], dim=1)  # (B, T)
        frequencies = torch.exp(-math.log(1000.0) * torch.arange(32, device=x.device) / 32)
        angles = 1000 * levels[..., None] * frequencies
        time = self.embed_time(torch.cat([angles.cos(), angles.sin()], dim=-1))  # (B, T, D)
        if c.action_path:
            actions = torch.cat([actions, actions.cumsum(dim=1) / 3], dim=-1)  # the usual sum over a chunk has about the spread of one action
        acted = self.embed_action(actions)
        if c.draft_width:
            acted = acted + self.embed_scene(scene)
        action = torch.cat([self.null_action.expand(batch, c.context, -1), acted], dim=1)  # action[k] belongs to frame k + 1
        both, only_time = F.silu(time + action), F.silu(time)
        cos, sin = self.cos[:frames], self.sin[:frames]
        for block in self.blocks:
            x = block(x, only_time if block.temporal and c.action_blocks == "spatial" else both, cos, sin)
        shift, scale = self.final(both)[:, c.context:, None].chunk(2, dim=-1)
        out = self._unpatchify(self.head(modulate(F.layer_norm(x[:, c.context:], (c.width,)), shift, scale)))
        if c.prediction == "data":
            return (draft if c.draft_width else context[:, -1:]) + out
        return x_t - t.view(-1, 1, 1, 1, 1) * out

    # -- training ------------------------------------------------------------------------------------------------------------------------

    def loss(self, context, future, actions, generator=None, weight=None, past=None, unlike=None):
        """Rectified-flow loss on the future latents. context (B, c, C, h, w), future (B, K, C, h, w), actions (B, K, D) -> (loss, logs).

        weight: (B, K, 1, h, w) or None, importance of each latent position. past: as in `go_on`. unlike: a further loss on the estimate of the clean
        latents and the true ones, both (B * K, C, h, w), or None.
        """
        c = self.config
        draw = lambda like: torch.randn(like.shape, generator=generator, device=like.device)  # noqa: E731
        u = torch.rand(len(future), generator=generator, device=future.device)
        t = (c.time_shift * u / (1 + (c.time_shift - 1) * u)).clamp(min=0.1)
        noise, shape = draw(future), (-1, 1, 1, 1, 1)
        x_t = (1 - t.view(shape)) * future + t.view(shape) * noise
        # Noise is added without the (1 - t) shrink of the flow: at inference the context is clean, and must have the scale seen in training.
        context = context + c.context_noise * draw(context)
        with torch.no_grad():  # trained by its own losses, the draft stays the best guess by itself
            draft = self.draft(context, actions, past)[:2] if c.draft_width else None
        clean = self.clean(x_t, t, context, actions, draft)
        error = (clean - future).square() / t.view(shape).square().clamp(min=1 / c.loss_cap)  # = squared velocity error, tamed at small t
        if weight is not None:
            error = error * weight
        with torch.no_grad():
            logs = {"data_mse": float((clean - future).square().mean())}
            if draft:
                logs["draft_mse"] = float((draft[0] - future).square().mean())
        loss = error.mean()
        return loss if unlike is None else loss + unlike(clean.flatten(0, 1), future.flatten(0, 1)), logs

    # -- sampling ------------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def recall(self, context, doubt: float = 0.0, generator=None):
        """What `go_on` takes as `past` (B, M) after recorded frames, None without a draft. doubt: metres by which the scene may be otherwise."""
        if doubt and not self.config.draft_width:
            raise UserError(f"doubt is {doubt} m, but a world model without a draft does not know where things are; set doubt to 0")
        return self.draft.recall(context, doubt=doubt, generator=generator) if self.config.draft_width else None

    def imagine(self, context, actions, generator=None, steps: int | None = None):
        """K future latents (B, K, C, h, w) by Euler integration from noise. The context stays clean but carries its training noise level."""
        return self.go_on(context, actions, None, generator, steps)[0]

    @torch.no_grad()
    def go_on(self, context, actions, past=None, generator=None, steps: int | None = None):
        """`imagine`, and what to pass as `past` when the newest context frame is the last one imagined (None: it is a recorded one)."""
        c = self.config
        steps = steps or c.sample_steps
        shape = (len(context), actions.shape[1], *context.shape[2:])
        x = torch.randn(shape, generator=generator, device=context.device)
        grid = torch.linspace(1, 0, steps + 1, device=context.device)
        grid = c.time_shift * grid / (1 + (c.time_shift - 1) * grid)
        draft = None
        if c.draft_width:
            *draft, past = self.draft(context, actions, past)
        for now, then in zip(grid[:-1], grid[1:]):
            t = now.expand(len(context))
            x = x + (then - now) * self.velocity(x, t, context, actions, draft)
        return x, past

    def save(self, folder, provenance=None):
        checkpoint.save_module(folder, self, self.config, provenance)

    @classmethod
    def load(cls, folder):
        return checkpoint.load_state(folder, cls(checkpoint.load_config(folder, WorldModelConfig, cls.__name__))).eval()
