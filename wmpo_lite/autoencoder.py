"""The per-frame autoencoder: what the world model calls a frame is its latent (paper section 3.2).

Every frame is encoded on its own, never a stack of frames: fine motion must survive (the paper's
argument against temporal autoencoders).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.common.checkpoint import Saved
from wmpo_lite.common.errors import UserError


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder."""

    # `diffusers.AutoencoderTiny`; 'kl': `diffusers.AutoencoderKL`, the paper's SDXL layout; or
    # 'pixels': nothing is learned, a latent is fold x fold pixels of three colors
    kind: str = "tiny"
    size: int = 64  # pixels of the square frame
    # space-to-depth factor: convolutions at full resolution are what a CPU cannot afford
    fold: int = 4
    channels: tuple = (48, 48)  # from fine to coarse; each step halves the resolution
    latent_channels: int = 16

    def __post_init__(self):
        if self.size % self.pixels:
            raise UserError(
                f"frames of {self.size} x {self.size} pixels cannot be cut into latents of"
                f" {self.pixels} x {self.pixels} pixels; choose a size that this divides"
            )

    @property
    def pixels(self) -> int:
        """Rows and columns of pixels that a latent stands for."""
        return self.fold * 2 ** (0 if self.kind == "pixels" else len(self.channels) - 1)

    @property
    def latent_size(self) -> int:
        """Rows and columns of a latent."""
        return self.size // self.pixels


class Autoencoder(Saved, nn.Module):
    """Frames (B, 3, H, W) in [-1, 1] <-> latents (B, C, h, w), after `measure_spread` of zero mean
    and unit variance per channel.
    """

    config_class = AutoencoderConfig
    net: Any  # diffusers' types do not know what its autoencoders return
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()):
        super().__init__()
        self.config = config
        folded, channels = 3 * config.fold**2, tuple(config.channels)
        sizes: dict[str, Any] = {
            "in_channels": folded,
            "out_channels": folded,
            "latent_channels": config.latent_channels,
        }
        if config.kind == "tiny":
            from diffusers import AutoencoderTiny

            one = (1,) * len(channels)
            self.net = AutoencoderTiny(
                **sizes,
                encoder_block_out_channels=channels,
                decoder_block_out_channels=channels[::-1],
                num_encoder_blocks=one,
                num_decoder_blocks=one,
                upsampling_scaling_factor=2,
            )
        elif config.kind == "kl":
            from diffusers import AutoencoderKL

            sizes["down_block_types"] = ("DownEncoderBlock2D",) * len(channels)
            sizes["up_block_types"] = ("UpDecoderBlock2D",) * len(channels)
            self.net = AutoencoderKL(**sizes, block_out_channels=channels, layers_per_block=2)
        elif config.kind == "pixels":
            if config.latent_channels != folded:
                raise UserError(
                    f"folded by {config.fold}, a latent of pixels has {folded} channels, not "
                    f"{config.latent_channels}; set latent_channels to that"
                )
        else:
            raise UserError(
                f"autoencoder kind '{config.kind}' is unknown; use 'tiny', 'kl' or 'pixels'"
            )
        # Measured after training (`measure_spread`): the denoiser wants zero mean and unit
        # variance.
        self.register_buffer("mean", torch.zeros(1, config.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(1, config.latent_channels, 1, 1))

    def encode_raw(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, H, W) -> latents before they are scaled."""
        folded = fold_pixels(frames, self.config.fold)
        if self.config.kind == "pixels":
            return folded
        if self.config.kind == "tiny":
            return self.net.encoder(folded)
        return self.net.encode(folded).latent_dist.mean

    def decode_raw(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode_raw`."""
        if self.config.kind == "tiny":
            latents = self.net.decoder(latents)
        elif self.config.kind == "kl":
            latents = self.net.decode(latents).sample
        return F.pixel_shuffle(latents, self.config.fold)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)."""
        return (self.encode_raw(frames) - self.mean) / self.std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> frames (B, 3, H, W), about [-1, 1]."""
        return self.decode_raw(latents * self.std + self.mean)

    @torch.no_grad()
    def measure_spread(self, frames: torch.Tensor):
        """Set mean and standard deviation of the latents from frames (B, 3, H, W)."""
        z = torch.cat([self.encode_raw(part) for part in frames.split(256)])
        self.mean.copy_(z.mean(dim=(0, 2, 3)).view(1, -1, 1, 1))
        self.std.copy_(z.std(dim=(0, 2, 3)).view(1, -1, 1, 1))

    @torch.no_grad()
    def encode_uint8(self, frames: torch.Tensor, chunk: int = 256) -> torch.Tensor:
        """uint8 (..., H, W, 3) -> latents (..., C, h, w); in pieces, so that a data set fits."""
        lead = frames.shape[:-3]
        flat = frames.reshape(-1, *frames.shape[-3:])
        latents = torch.cat(
            [self.encode(to_float(part.to(self.mean.device))) for part in flat.split(chunk)]
        )
        return latents.reshape(*lead, *latents.shape[1:])

    @torch.no_grad()
    def decode_uint8(self, latents: torch.Tensor, chunk: int = 256) -> torch.Tensor:
        """Latents (..., C, h, w) -> uint8 (..., H, W, 3): what a camera could have given."""
        lead = latents.shape[:-3]
        flat = latents.reshape(-1, *latents.shape[-3:])
        frames = torch.cat([to_uint8(self.decode(part)) for part in flat.split(chunk)])
        return frames.reshape(*lead, *frames.shape[1:])

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (..., H, W, 3) encoded and decoded: what a perfect denoiser would show."""
        return self.decode_uint8(self.encode_uint8(torch.from_numpy(frames))).cpu().numpy()


def fold_pixels(frames: torch.Tensor, fold: int) -> torch.Tensor:
    """Frames (B, 3, H, W) -> (B, 3 fold fold, H / fold, W / fold): `F.pixel_unshuffle`, which
    leaves a batch of no frames as it is.
    """
    batch, colors, height, width = frames.shape
    parts = frames.reshape(batch, colors, height // fold, fold, width // fold, fold)
    return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    levels = frames.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1)


class PerceptualLoss(nn.Module):
    """How different two pictures are to a frozen vision tower (as LPIPS is of a classifier's
    features).

    A pixel that is a little gray is nothing to a squared error and may tell a policy that a peg
    stands two millimeters farther on. tower: a SigLIP-style tower, as a policy has; sample: frames
    (B, 3, H, W) in [-1, 1] that the spread of its features is measured on.
    """

    def __init__(self, tower: nn.Module, sample: torch.Tensor):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        with torch.no_grad():
            self.spread = self.features(sample).std(dim=(0, 1)).clamp(min=1e-6)

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values=frames).last_hidden_state

    def forward(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean squared error of features, in units of their variance, of frames (B, 3, H, W)."""
        with torch.no_grad():
            target = self.features(wanted)
        return ((self.features(found) - target) / self.spread).square().mean()


def autoencoder_loss(
    model: Autoencoder,
    frames: np.ndarray,
    *,
    perceptual: PerceptualLoss | None = None,
    perceptual_weight: float = 10.0,
    batch: int = 48,
    looked_at: int = 16,
    emphasis: float = 6.0,
    latent_noise: float = 0.1,
):
    """The `loss_fn` for `fit`: pixels, and what a frozen vision tower makes of them.

    frames: uint8 (N, H, W, 3). emphasis: extra weight of pixels that differ from the mean frame
    (arm and things are a tenth of the picture and all of the task). latent_noise: on the latents,
    in units of their spread, so that the decoder forgives a denoiser's small errors. looked_at: how
    many of a batch the tower, which costs as much as the autoencoder, is shown. perceptual_weight:
    of what the tower says: a policy acts better on copies if it is large, eyes see more in them if
    it is small (notebooks/lab_book.md, LIBERO).
    """
    device = model.mean.device
    median = np.median(frames[:: max(1, len(frames) // 400)], axis=0).astype(np.uint8)
    mean = to_float(torch.from_numpy(median)[None]).to(device)

    def loss_fn(generator, rng, step):
        x = to_float(torch.from_numpy(frames[rng.integers(len(frames), size=batch)]).to(device))
        z = model.encode_raw(x)
        spread = z.detach().std(dim=(0, 2, 3), keepdim=True)
        level = torch.rand(len(z), 1, 1, 1, generator=generator).to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        given = model.decode_raw(z + latent_noise * spread * level * noise)
        error = given - x
        weight = 1 + emphasis * ((x - mean).abs().amax(dim=1, keepdim=True) > 0.15)
        loss = (weight * (error.abs() + 2 * error.square())).mean() + 1e-4 * z.square().mean()
        logs = {"psnr": float(10 * torch.log10(4 / error.detach().square().mean()))}
        if perceptual is None:
            return loss, logs
        unlike = perceptual(given[:looked_at], x[:looked_at])
        return loss + perceptual_weight * unlike, logs | {"perceptual": float(unlike.detach())}

    return loss_fn
