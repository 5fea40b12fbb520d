"""U-Net and STDiT at equal training compute: which forecasts play better that neither has seen?

    python tests/bench/bench_denoisers.py [unet] [stdit]

Every run trains a new denoiser of the shipped sizes on the same play, with recorded contexts, until
it has spent the same number of floating-point operations (of the network, three forward passes a
training step), and is measured on the way. Both have the learning rate and the warm-up that were
chosen for the U-Net. Records go to assets/results/denoisers.json, one for each network, and are
printed; one to two minutes each on one core, after one for recording the play.
"""

import sys

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from wmpo_lite.common import checkpoint
from wmpo_lite.datagen.collect import record_play
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.recipes.shipped import Shipped
from wmpo_lite.report.results import RESULTS
from wmpo_lite.train import FitConfig, fit, set_threads
from wmpo_lite.world_model import WorldModel, WorldModelConfig

PATH = RESULTS / "denoisers.json"
KINDS = ("unet", "stdit")
TRAIN, HELD_OUT = range(910, 915), range(900, 901)  # kits of play, 32 episodes each
BUDGET = 3e12  # floating-point operations of training
WINDOWS = WindowConfig(batch=16, own=0)
AHEAD = 16  # frames that are imagined in a row
MEASURED_AT = np.array([0.25, 0.5, 1.0])  # of the budget


def recorded(autoencoder, kits) -> Episodes:
    """Play with `kits` as latents and actions."""
    shards = [record_play(kit) for kit in kits]
    frames, actions = (np.concatenate([s[key] for s in shards]) for key in ("frames", "actions"))
    return Episodes(autoencoder.encode_uint8(torch.from_numpy(frames)), torch.from_numpy(actions))


def operations(model: WorldModel) -> int:
    """Floating-point operations of one training step: forward, and twice as much backward."""
    counter, state = FlopCounterMode(display=False), model.init_state(torch.zeros(1, 16, 8, 8))
    with counter:
        model.next_frames(state, torch.zeros(1, model.config.frames, 4), torch.Generator(), 1)
    return 3 * WINDOWS.batch * counter.get_total_flops()


@torch.no_grad()
def errors(model, play: Episodes) -> dict:
    """Mean squared error of latents: of the next pass from recorded contexts, and of AHEAD frames
    imagined from the first one. model: None for repeating the newest frame.
    """
    config = WorldModelConfig(frames=2) if model is None else model.config
    every, g = np.arange(len(play)), torch.Generator().manual_seed(0)
    found = {"next": [], "ahead": []}
    for name, starts, k in (("next", range(4, 45, 10), config.frames), ("ahead", (0,), AHEAD)):
        for frame in starts:
            state = play.state(every, np.full(len(every), frame), config.context)
            target, actions = play.future(every, np.full(len(every), frame), k)
            made = state.frames[:, -1:]
            if model is not None:
                made, _ = model.next_frames(state, actions, g)
            found[name].append(float((made - target).square().mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def train(kind: str, play: Episodes, unseen: Episodes) -> dict:
    """Spend the budget on a new denoiser; what was measured on the way."""
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(frames=2, kind=kind))
    a_step = operations(model)
    model = model.to(memory_format=torch.channels_last)
    settings = FitConfig(steps=round(BUDGET / a_step), lr=1e-3, warmup=20, decay=0.5)
    pool, marks = Pool(play, model, WINDOWS), np.ceil(MEASURED_AT * settings.steps)
    curve = []

    def loss(generator, rng, step):
        if step in marks:
            curve.append({"operations": a_step * step, **errors(model, unseen)})
        return pool.loss(generator, rng, step)

    fit(model, loss, settings, seed=0, name=kind)
    curve.append({"operations": a_step * settings.steps, **errors(model, unseen)})
    return {
        "kind": kind,
        "lr": settings.lr,
        "n": len(unseen),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": settings.steps,
        "still": errors(None, unseen),
        "curve": curve,
    }


def main(*names: str) -> None:
    """Train the named networks (both by default) and store their records."""
    set_threads()
    autoencoder = Shipped("place").autoencoder()
    play, unseen = (recorded(autoencoder, kits) for kits in (TRAIN, HELD_OUT))
    made = checkpoint.read_json(PATH, [dict]) if PATH.exists() else []
    records = {record["kind"]: record for record in made}
    for name in names or KINDS:
        records[name] = train(name, play, unseen)
        print(records[name], flush=True)
        checkpoint.write_json(PATH, [records[key] for key in KINDS if key in records])


if __name__ == "__main__":
    main(*sys.argv[1:])
