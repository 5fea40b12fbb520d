"""The compositor: which pixels of an imagined frame are the recorded first frame's own.

A denoiser draws every frame anew from its last ones, and a small thing that lies still fades a
little each time: a peg of five pixels is gone after four frames, and a policy cannot put a nut over
what it does not see. The first frame, which the world model has anyhow as its fixed reference
(paper section 3.2), still shows it. Compositing a forecast from earlier frames by learned masks is
an old remedy (Finn et al. 2016, arXiv 1605.07157).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite import checkpoint, parallel
from wmpo_lite.autoencoder import fold_pixels, to_float, to_uint8
from wmpo_lite.errors import UserError
from wmpo_lite.own_context import Pool, WindowConfig
from wmpo_lite.world_model import State

# Forecasts to learn from: up to 24 passes long, often from the first frame, as imagination begins.
COMPOSITOR_WINDOWS = WindowConfig(own=24, ramp=0, start=0.4)


@dataclass(frozen=True)
class CompositorConfig:
    """Sizes of the compositor."""

    size: int = 64  # pixels of the square frame
    fold: int = 4  # it works on patches of fold x fold pixels
    latent_channels: int = 16
    width: int = 48
    blocks: int = 2


class Compositor(nn.Module):
    """Two pictures of one moment and the latent behind it -> the share of each pixel that the first
    frame gives.
    """

    def __init__(self, config: CompositorConfig = CompositorConfig()):
        super().__init__()
        self.config = config
        width, pixels = config.width, config.fold**2
        self.latent = nn.Conv2d(config.latent_channels, width, 1)
        self.pictures = nn.Conv2d(2 * 3 * pixels, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(config.blocks)
        )
        self.gate = nn.Conv2d(width, pixels, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(
        self, latents: torch.Tensor, decoded: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """Frames (B, 3, H, W). latents: (B, C, h, w). decoded: what the autoencoder makes of them,
        first: the episode's first frame, both (B, 3, H, W) in [-1, 1].
        """
        return torch.lerp(decoded, first, self.share(latents, decoded, first))

    def share(
        self, latents: torch.Tensor, decoded: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """How much of each pixel is the first frame's, (B, 1, H, W) from 0 to 1."""
        c = self.config
        pictures = fold_pixels(torch.cat([decoded, first], dim=1), c.fold)
        x = self.pictures(pictures)
        x = x + F.interpolate(self.latent(latents), size=x.shape[-2:], mode="nearest")
        for block in self.blocks:
            x = x + block(x)
        return F.pixel_shuffle(self.gate(x), c.fold).sigmoid()

    @torch.no_grad()
    def draw(self, autoencoder, latents: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """uint8 (B, k, H, W, 3): latents (B, k, C, h, w) of episodes that begin with `first`, uint8
        (B, H, W, 3), as a camera could have seen them.
        """
        b, k = latents.shape[:2]
        flat = latents.flatten(0, 1)
        start = to_float(first.to(latents.device)).repeat_interleave(k, dim=0)
        return to_uint8(self(flat, autoencoder.decode(flat), start)).unflatten(0, (b, k))

    def check_fits(self, autoencoder) -> None:
        """UserError unless it was made for frames and latents of `autoencoder`'s sizes."""
        for name in ("size", "latent_channels"):
            own, other = getattr(self.config, name), getattr(autoencoder.config, name)
            if own != other:
                raise UserError(
                    f"the compositor works with {name} {own}, the autoencoder with {other}; load"
                    " the autoencoder that it was trained with"
                )

    def save(self, folder, provenance=None):
        """Write config, weights and provenance to `folder`."""
        checkpoint.save_module(folder, self, self.config, provenance)

    @classmethod
    def load(cls, folder) -> "Compositor":
        """Read what `save` wrote."""
        config = checkpoint.load_config(folder, CompositorConfig, cls.__name__)
        return checkpoint.load_model(folder, lambda: cls(config)).eval()


class CompositorPool(Pool):
    """Slots that the finished world model carries along recorded actions, so that the compositor
    learns from forecasts as wrong as those it will be given.

    frames: uint8 (E, T + 1, H, W, 3) of `episodes`. emphasis: extra weight of pixels that differ
    from the frames' median picture, as in `autoencoder_loss`.
    """

    def __init__(self, episodes, frames, model, windows, compositor, autoencoder, emphasis=6.0):
        super().__init__(episodes, model, windows)
        compositor.check_fits(autoencoder)
        self.frames, self.compositor, self.autoencoder = frames, compositor, autoencoder
        self.emphasis = emphasis
        some = frames[:, :: max(1, frames.shape[1] // 8)].flatten(0, 1)
        usual = some[:: max(1, len(some) // 400)].median(dim=0).values
        self.usual = to_float(usual[None]).to(self.device)

    def loss(self, generator, rng, step):
        """The `loss_fn` for `fit`: the next frames of every slot."""
        t, n, k = self.tensors, self.windows.batch, self.model.config.frames
        self.refill(rng, step)
        own = parallel.rows(n)
        state = State(*(t[name][own] for name in State._fields))
        e, after = t["episode"][own, None], t["frame"][own, None] + 1 + torch.arange(k)
        actions = self.episodes.actions[e, after - 1].to(self.device)
        noise = self.model.noise(n, k, generator)[own]
        latents, state = self.model.next_frames(state, actions, noise)
        self.carry(state, own)
        latents = latents.flatten(0, 1)
        wanted = to_float(self.frames[e, after].flatten(0, 1)).to(self.device)
        first = to_float(self.frames[e[:, 0], 0]).to(self.device).repeat_interleave(k, dim=0)
        with torch.no_grad():
            decoded = self.autoencoder.decode(latents)
        error = self.compositor(latents, decoded, first) - wanted
        unusual = (wanted - self.usual).abs().amax(dim=1, keepdim=True) > 0.15
        loss = ((1 + self.emphasis * unusual) * (error.abs() + 2 * error.square())).mean()
        before, now = (x.square().mean() for x in (decoded - wanted, error.detach()))
        share = parallel.share(n)
        return loss * share, {"gain_db": float(10 * torch.log10(before / now)) * share}
