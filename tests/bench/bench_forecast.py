"""How well world models forecast play that they have not seen, in pixels: whatever their latents.

    python tests/bench/bench_forecast.py assets/tabletop [FOLDER ...]

Each folder holds an autoencoder and a world_model. Episodes of play with kits of their own are
recorded, imagined from the first frame with the recorded actions, and compared frame by frame:
PSNR, and the error of colored things alone (root mean square, gray levels), which are a twentieth
of the picture and all of a task. "copied" is what the autoencoder alone makes of the true frames.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.datagen.collect import record_play
from wmpo_lite.train import set_threads
from wmpo_lite.world_model import WorldModel

KITS, EPISODES = range(900, 908), 12  # play has fewer shards than that; of each so many episodes
SPANS = ((0, 8), (19, 28), (39, 48))


def is_colored(frames: torch.Tensor) -> torch.Tensor:
    """Pixels (..., H, W) of strong color, the orange arm apart."""
    red, green, blue = frames.unbind(-1)
    arm = (red > 150) & (green > 70) & (green < 190) & (blue < 90)
    return (frames.amax(-1) - frames.amin(-1) > 80) & ~arm


def errors(found: torch.Tensor, truth: torch.Tensor) -> tuple[list, list]:
    """PSNR (dB) and error of colored things (gray levels) of each span of frames."""
    square = (found.float() - truth).square().mean(-1)
    psnr = [10 * torch.log10(255**2 / square[:, a:b].mean()) for a, b in SPANS]
    mask = is_colored(truth)
    colored = [square[:, a:b][mask[:, a:b]].mean().sqrt() for a, b in SPANS]
    return psnr, colored


def main(folders) -> None:
    """Print one row for each folder."""
    set_threads()
    play = [record_play(kit) for kit in KITS]
    frames = torch.from_numpy(np.concatenate([shard["frames"][:EPISODES] for shard in play]))
    actions = torch.from_numpy(np.concatenate([shard["actions"][:EPISODES] for shard in play]))
    truth = frames[:, 1:].float()
    spans = " / ".join(f"{a + 1}-{b}" for a, b in SPANS)
    print(f"n = {len(frames)} episodes; frames {spans}\n")
    print("| world model | PSNR (dB) | colored things (gray levels) |\n|---|---|---|")
    for folder in map(Path, folders):
        autoencoder = Autoencoder.load(folder / "autoencoder")
        model = WorldModel.load(folder / "world_model")
        start = model.init_state(autoencoder.encode_uint8(frames[:, 0]))
        latents, _ = model.next_frames(start, actions, torch.Generator().manual_seed(0))
        copied = torch.from_numpy(autoencoder.reconstruct(frames[:, 1:].numpy()))
        for name, found in ((folder, autoencoder.decode_uint8(latents)), ("  copied", copied)):
            psnr, colored = errors(found, truth)
            cells = [" / ".join(f"{x:.1f}" for x in row) for row in (psnr, colored)]
            print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["assets/tabletop"])
