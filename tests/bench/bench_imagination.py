"""How fast is imagination? The world model against a per-frame pixel U-Net diffusion model of
DIAMOND's size, by turns.

    python tests/bench/bench_imagination.py        or        pytest -s tests/bench

Untrained weights do: the time does not depend on them. Prints one JSON line. Ratios are medians
over pairs that were measured one after the other, so that the machine's changing speed cancels; the
matrix-product rate is measured in between for the same reason. It takes about a minute on 2 quiet
cores.
"""

import json
import statistics
import time

import torch
from torch import nn

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.recipes.pretrain import PRETRAINING
from wmpo_lite.train import set_threads
from wmpo_lite.world_model import WorldModel

CONFIG = PRETRAINING["laptop"].world_model  # the shipped world model's sizes
BATCH, CHUNK, DENOISING_STEPS = 32, 8, 3
LEAST, MOST, ENOUGH_SECONDS = 3, 7, 45  # repeats, and the time after which no further one begins


class PixelUNet(nn.Module):
    """DIAMOND's shape from `diffusers` parts: the next frame from 4 frames and their actions, 3
    denoising steps.

    64-64-64-64 channels, two residual blocks a level, 64 x 64; the embedding that scales and shifts
    the blocks' norms carries the noise level and the actions.
    """

    def __init__(self, size: int = 64, context: int = 4, action_dim: int = 4, channels: int = 64):
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=size,
            in_channels=3 * (context + 1),
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(channels,) * 4,
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
            norm_num_groups=8,
            add_attention=False,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        width = 4 * channels  # of that embedding
        self.embed_actions = nn.Sequential(
            nn.Linear(context * action_dim, width), nn.SiLU(), nn.Linear(width, width)
        )

    @torch.no_grad()
    def imagine(self, context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """K next frames (B, K, 3, H, W), one after the other. context (B, 4, 3, H, W) in [-1, 1],
        actions (B, K, D).
        """
        batch, past, _, height, width = context.shape
        earlier, frames = torch.zeros(batch, past - 1, actions.shape[-1]), []
        history = torch.cat([earlier, actions], dim=1)  # (B, 3 + K, D)
        levels = torch.linspace(1, 0, DENOISING_STEPS + 1)
        for k in range(actions.shape[1]):
            label = self.embed_actions(history[:, k : k + past].flatten(1))
            x, seen = torch.randn(batch, 3, height, width), context.flatten(1, 2)
            for now, then in zip(levels[:-1], levels[1:]):
                velocity = self.net(
                    torch.cat([x, seen], dim=1), 1000 * now, class_labels=label
                ).sample
                x = x + (then - now) * velocity
            context = torch.cat([context[:, 1:], x[:, None]], dim=1)
            frames.append(x)
        return torch.stack(frames, dim=1)


def flops(model: WorldModel) -> int:
    """Operations (2 a multiply-add) of the U-Net's convolutions and matrix products in one pass
    over one episode.

    A backward pass costs twice as much, so a training step is 3 x this; a chunk is
    `num_inference_steps` times CHUNK / frames x this.
    """
    net, cells = model.denoiser, model.config.latent_size**2
    size = lambda ndim, *parts: sum(
        p.numel() for part in parts for p in part.parameters() if p.ndim == ndim
    )
    whole = size(4, net.input, net.down, net.up, net.output)  # at full resolution
    half = size(4, net.shrink, net.middle, net.attend, net.grow)  # at half of it
    attention = (
        len(net.attend) * 2 * (cells // 4) ** 2 * model.config.widths[1]
    )  # scores and their sum over values
    return 2 * (cells * whole + cells // 4 * half + attention + size(2, net))


def seconds(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def matmul_gflops(size: int = 1024, times: int = 8) -> float:
    """The machine's own rate of fp32 matrix products now, in 1e9 operations a second."""
    a, b = torch.randn(size, size), torch.randn(size, size)

    def products():
        for _ in range(times):
            torch.mm(a, b)

    return 2 * size**3 * times / seconds(products) / 1e9


def measure() -> dict:
    """All figures of the JSON line, and the spread of the ratio."""
    set_threads()
    torch.manual_seed(0)
    autoencoder, unet, world_model = Autoencoder().eval(), PixelUNet().eval(), WorldModel(CONFIG)
    for net in (autoencoder, world_model):
        net.to(memory_format=torch.channels_last)
    for parameter in (
        *world_model.parameters(),
        *unet.parameters(),
    ):  # zeros might be cheaper than trained numbers
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    state = world_model.init_state(
        torch.randn(BATCH, CONFIG.latent_channels, CONFIG.latent_size, CONFIG.latent_size)
    )
    future = torch.randn(BATCH, CONFIG.frames, *state.reference.shape[1:])
    pixels = torch.rand(BATCH, 4, 3, 64, 64) * 2 - 1
    actions = torch.rand(BATCH, CHUNK, CONFIG.action_dim) * 2 - 1
    optimizer = torch.optim.AdamW(world_model.parameters(), lr=1e-5)

    def dream():
        autoencoder.decode_uint8(world_model.next_frames(state, actions)[0])

    def train():
        loss, _, _ = world_model.loss(state, actions[:, : CONFIG.frames], future, None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    one_frame = lambda: unet.imagine(pixels, actions[:, :1])
    sample = lambda: world_model.next_frames(state, actions)
    with torch.no_grad():  # the first call allocates and picks kernels
        unet.net(torch.randn(BATCH, 15, 64, 64), 0, class_labels=torch.randn(BATCH, 256))
    for function in (dream, train, sample):
        function()
    work = flops(world_model) * BATCH / 1e9  # GFLOP of one forward pass
    passes = CONFIG.num_inference_steps * CHUNK / CONFIG.frames
    names = (
        "wm_fps",
        "unet_fps",
        "unet_ratio",
        "matmul_gflops",
        "sampling_share",
        "training_share",
    )
    runs, ratios = {name: [] for name in names}, []
    begin = time.perf_counter()
    while len(ratios) < LEAST or (
        len(ratios) < MOST and time.perf_counter() - begin < ENOUGH_SECONDS
    ):
        before = seconds(dream)
        pixel = seconds(one_frame)
        after = seconds(dream)
        # The world model's turns lie on both sides of the U-Net's: a machine that changes speed
        # favors neither.
        wm_fps, unet_fps = BATCH * CHUNK / ((before + after) / 2), BATCH / pixel
        rates = [matmul_gflops()]
        sampling = work * passes / seconds(sample)
        rates.append(matmul_gflops())
        training = 3 * work / seconds(train)
        rates.append(matmul_gflops())
        ratios.append(wm_fps / unet_fps)
        values = (
            wm_fps,
            unet_fps,
            ratios[-1],
            statistics.mean(rates),
            sampling / statistics.mean(rates[:2]),
            training / statistics.mean(rates[1:]),
        )
        for name, value in zip(names, values):
            runs[name].append(value)
    median = {name: statistics.median(values) for name, values in runs.items()}
    count = lambda module: sum(p.numel() for p in module.parameters())
    return {
        "unet_params": count(unet),
        "unet_fps": round(median["unet_fps"], 1),
        "wm_fps": round(median["wm_fps"], 1),
        "unet_ratio": round(median["unet_ratio"], 1),
        "matmul_gflops": round(median["matmul_gflops"], 1),
        "sampling_share": round(median["sampling_share"], 3),
        "training_share": round(median["training_share"], 3),
        "unet_ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
        "wm_params": count(world_model),
        "wm_gflop": round(flops(world_model) / 1e9, 4),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "repeats": len(ratios),
    }


def test_imagination_is_at_least_twenty_times_as_fast():
    """The claim of the README, and that the analytic operation count is the one that PyTorch
    counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    world_model = WorldModel(CONFIG)
    state = world_model.init_state(
        torch.randn(1, CONFIG.latent_channels, CONFIG.latent_size, CONFIG.latent_size)
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # The CPU's fused attention is not in the counter's table; the plain one is.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            world_model.next_frames(
                state, torch.zeros(1, CONFIG.frames, CONFIG.action_dim), num_inference_steps=1
            )
    assert abs(counter.get_total_flops() / flops(world_model) - 1) < 0.02
    figures = measure()
    print(json.dumps(figures))
    assert 3e6 <= figures["unet_params"] <= 4.5e6
    assert figures["unet_ratio"] >= 20
    assert 0 < figures["sampling_share"] < 1.2 and 0 < figures["training_share"] < 1.2


if __name__ == "__main__":
    print(json.dumps(measure()))
