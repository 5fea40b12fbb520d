"""How fast is imagination? The world model against a per-frame pixel U-Net diffusion model of DIAMOND's size, by turns.

    python tests/bench/bench_imagination.py        or        pytest -s tests/bench

Untrained weights do: the time does not depend on them. Prints one JSON line. Ratios are medians over pairs that were
measured one after the other, so that the machine's changing speed cancels; the matrix-product rate is measured in
between for the same reason. It takes about a minute on 2 quiet cores.
"""
import json
import statistics
import time

import torch
from torch import nn

from wmpo_lite.train import set_threads
from wmpo_lite.draft import Draft
from wmpo_lite.world_model import Autoencoder, AutoencoderConfig, WorldModel, WorldModelConfig

BATCH, DENOISING_STEPS = 32, 3
LEAST, MOST, ENOUGH_SECONDS = 3, 7, 45  # repeats, and the time after which no further one begins


class PixelUNet(nn.Module):
    """DIAMOND's shape from `diffusers` parts: the next frame from 4 frames and their actions, 3 denoising steps.

    64-64-64-64 channels, two residual blocks a level, 64 x 64; the embedding that scales and shifts the blocks' norms
    carries the noise level and the actions.
    """

    def __init__(self, size: int = 64, context: int = 4, action_dim: int = 4, channels: int = 64):
        super().__init__()
        from diffusers import UNet2DModel
        self.net = UNet2DModel(
            sample_size=size, in_channels=3 * (context + 1), out_channels=3, layers_per_block=2,
            block_out_channels=(channels,) * 4, down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4, norm_num_groups=8, add_attention=False,
            class_embed_type="identity", resnet_time_scale_shift="scale_shift")
        width = 4 * channels  # of that embedding
        self.embed_actions = nn.Sequential(nn.Linear(context * action_dim, width), nn.SiLU(), nn.Linear(width, width))

    @torch.no_grad()
    def imagine(self, context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """K next frames (B, K, 3, H, W), one after the other. context (B, 4, 3, H, W) in [-1, 1], actions (B, K, D)."""
        batch, past, _, height, width = context.shape
        earlier, frames = torch.zeros(batch, past - 1, actions.shape[-1]), []
        history = torch.cat([earlier, actions], dim=1)  # (B, 3 + K, D)
        levels = torch.linspace(1, 0, DENOISING_STEPS + 1)
        for k in range(actions.shape[1]):
            label = self.embed_actions(history[:, k: k + past].flatten(1))
            x, seen = torch.randn(batch, 3, height, width), context.flatten(1, 2)
            for now, then in zip(levels[:-1], levels[1:]):
                velocity = self.net(torch.cat([x, seen], dim=1), 1000 * now, class_labels=label).sample
                x = x + (then - now) * velocity
            context = torch.cat([context[:, 1:], x[:, None]], dim=1)
            frames.append(x)
        return torch.stack(frames, dim=1)


def flops(config: WorldModelConfig) -> int:
    """Operations (2 a multiply-add) of the transformer's matrix products over one window of c + K frames.

    A backward pass costs twice as much, so a training step is 3 x this; sampling is `sample_steps` x this (a little less: the draft is made once).
    """
    frames, width = config.context + config.chunk, config.width
    tokens, features = (config.latent_size // config.patch) ** 2, config.latent_channels * config.patch**2
    linear = frames * tokens * (3 + 1 + 4 + 4) * width**2  # qkv, out, up, down
    spatial = 2 * frames * tokens**2 * width  # scores and their sum over values
    temporal = 2 * tokens * frames**2 * width  # what is computed, masked half included
    modulation = frames * 6 * width**2  # AdaLN, once a frame
    blocks = config.depth * (2 * linear + 2 * modulation + spatial + temporal)
    time = frames * (64 * width + width**2)
    action = config.chunk * (config.action_dim * width + width**2)
    # Embedding of all frames; final modulation and head of the future ones.
    ends = frames * tokens * features * width + config.chunk * (2 * width**2 + tokens * width * features)
    draft = 0
    if config.draft_width:
        with torch.device("meta"):
            net = Draft(config.latent_channels, config.latent_size, config.action_dim, config.draft_width, config.draft_memory, config.slots)
        size = lambda module: sum(p.numel() for p in module.parameters() if p.ndim in (2, 4))  # noqa: E731
        cells, p = config.latent_size**2, net.painter
        per_frame = size(p.whole) + size(p.frame)
        per_cell = size(p.near) + size(p.from_frame) + size(p.body) + size(p.out)
        draft = 2 * cells * size(net.reader) + cells * size(p.local) + config.chunk * (per_frame + cells * per_cell + config.slots * size(net.mover))
    return 2 * (blocks + time + action + ends + draft)


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
    autoencoder, unet = Autoencoder(AutoencoderConfig()).eval(), PixelUNet().eval()
    config = WorldModelConfig()
    world_model = WorldModel(config)
    for parameter in (*world_model.parameters(), *unet.parameters()):  # zeros might be cheaper than trained numbers
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    latent = torch.randn(BATCH, config.context, config.latent_channels, config.latent_size, config.latent_size)
    future = torch.randn(BATCH, config.chunk, *latent.shape[2:])
    pixels = torch.rand(BATCH, 4, 3, 64, 64) * 2 - 1
    actions = torch.rand(BATCH, config.chunk, config.action_dim) * 2 - 1
    optimiser = torch.optim.AdamW(world_model.parameters(), lr=1e-5)

    @torch.no_grad()
    def dream():
        autoencoder.decode_uint8(world_model.imagine(latent, actions))

    def train():
        loss, _ = world_model.loss(latent, future, actions)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    one_frame = lambda: unet.imagine(pixels, actions[:, :1])  # noqa: E731
    sample = lambda: world_model.imagine(latent, actions)  # noqa: E731
    with torch.no_grad():  # the first call allocates and picks kernels
        unet.net(torch.randn(BATCH, 15, 64, 64), 0, class_labels=torch.randn(BATCH, 256))
    for function in (dream, train, sample):
        function()
    work = flops(config) * BATCH / 1e9  # GFLOP of one forward pass
    names = ("wm_fps", "unet_fps", "unet_ratio", "matmul_gflops", "sampling_share", "training_share")
    runs, ratios = {name: [] for name in names}, []
    begin = time.perf_counter()
    while len(ratios) < LEAST or (len(ratios) < MOST and time.perf_counter() - begin < ENOUGH_SECONDS):
        before = seconds(dream)
        pixel = seconds(one_frame)
        after = seconds(dream)
        # The world model's turns lie on both sides of the U-Net's: a machine that changes speed favours neither.
        wm_fps, unet_fps = BATCH * config.chunk / ((before + after) / 2), BATCH / pixel
        rates = [matmul_gflops()]
        sampling = work * config.sample_steps / seconds(sample)
        rates.append(matmul_gflops())
        training = 3 * work / seconds(train)
        rates.append(matmul_gflops())
        ratios.append(wm_fps / unet_fps)
        values = (wm_fps, unet_fps, ratios[-1], statistics.mean(rates), sampling / statistics.mean(rates[:2]),
                  training / statistics.mean(rates[1:]))
        for name, value in zip(names, values):
            runs[name].append(value)
    median = {name: statistics.median(values) for name, values in runs.items()}
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    return {
        "unet_params": count(unet), "unet_fps": round(median["unet_fps"], 1), "wm_fps": round(median["wm_fps"], 1),
        "unet_ratio": round(median["unet_ratio"], 1), "matmul_gflops": round(median["matmul_gflops"], 1),
        "sampling_share": round(median["sampling_share"], 3), "training_share": round(median["training_share"], 3),
        "unet_ratio_range": [round(min(ratios), 1), round(max(ratios), 1)], "wm_params": count(world_model),
        "wm_gflop": round(flops(config) / 1e9, 4), "batch": BATCH, "threads": torch.get_num_threads(),
        "repeats": len(ratios)}


def test_imagination_is_at_least_twenty_times_as_fast():
    """The claim of the README, and that the analytic operation count is the one that PyTorch counts."""
    from torch.utils.flop_counter import FlopCounterMode
    config = WorldModelConfig()
    world_model, picture = WorldModel(config), (config.latent_channels, config.latent_size, config.latent_size)
    future, context = torch.randn(1, config.chunk, *picture), torch.randn(1, config.context, *picture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # The CPU's fused attention is not in the counter's table; the plain one is.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            world_model.clean(future, torch.ones(1), context, torch.zeros(1, config.chunk, config.action_dim))
    assert abs(counter.get_total_flops() / flops(config) - 1) < 0.02
    figures = measure()
    print(json.dumps(figures))
    assert 3e6 <= figures["unet_params"] <= 4.5e6
    assert figures["unet_ratio"] >= 20
    assert 0 < figures["sampling_share"] < 1.2 and 0 < figures["training_share"] < 1.2


if __name__ == "__main__":
    print(json.dumps(measure()))
