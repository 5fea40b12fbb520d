"""The denoiser: which frames come next, given the newest ones and the actions? Two networks, one
interface, `predict_x0(x_t, t, context, actions)`; both predict the clean latents.
"""

from wmpo_lite.conditioning import DenoiserConfig
from wmpo_lite.stdit import SpaceTimeDiT
from wmpo_lite.unet import UNet


def build_denoiser(config: DenoiserConfig) -> UNet | SpaceTimeDiT:
    """The network that `config.kind` names."""
    return UNet(config) if config.kind == "unet" else SpaceTimeDiT(config)
