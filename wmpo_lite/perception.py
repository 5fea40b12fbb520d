"""How different two pictures are to a policy's eye: the squared error of its vision tower's features (a perceptual loss, as LPIPS is of a classifier's).

A policy that practises in imagination looks at imagined pictures. A pixel that is a little grey says nothing to a squared error of colours and may
tell the policy that a peg is two millimetres farther on. What it makes of a picture is what the picture has to get right (figures in the README).
"""
import torch
from torch import nn


class Perception(nn.Module):
    """error(found, wanted): of frames (B, 3, H, W) in [-1, 1], in units of the features' variance over pictures and places.

    tower: a vision tower as in `policy.Policy`, which stays as it is; sample: frames that its features' spread is measured on.
    """

    def __init__(self, tower, sample: torch.Tensor):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        with torch.no_grad():
            self.spread = self(sample).std(dim=(0, 1)).clamp(min=1e-6)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Features (B, N, width)."""
        return self.tower(pixel_values=frames).last_hidden_state

    def error(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self(wanted)
        return ((self(found) - target) / self.spread).square().mean()


class LatentPerception:
    """The same of latents (B, C, h, w) that `autoencoder`, which stays as it is too, makes pictures of. At most `most` of them are looked at."""

    def __init__(self, tower, autoencoder, sample: torch.Tensor, most: int = 48):
        self.autoencoder, self.most = autoencoder.eval().requires_grad_(False), most
        with torch.no_grad():
            self.pictures = Perception(tower, autoencoder.decode(sample))

    def error(self, found: torch.Tensor, wanted: torch.Tensor, rng) -> torch.Tensor:
        pick = torch.from_numpy(rng.permutation(len(found))[: self.most])
        with torch.no_grad():
            wanted = self.autoencoder.decode(wanted[pick])
        return self.pictures.error(self.autoencoder.decode(found[pick]), wanted)
