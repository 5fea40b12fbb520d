"""Recording by worker processes: shards of play as npz files that hold pictures and actions only."""

import multiprocessing
import os
from pathlib import Path

import numpy as np

from wmpo_lite.errors import UserError
from wmpo_lite.machine import cores
from wmpo_lite.progress import progress

SHARD = 32  # episodes that share a kit
HORIZON = 48  # control steps an episode


def play_states(kit, shard: int, count: int = SHARD):
    """The initial states of one shard of play."""
    from wmpo_lite.envs.tabletop.env import SPLITS
    from wmpo_lite.trajectory import InitialStates

    indices = np.arange(shard * SHARD, shard * SHARD + count)
    rows = [kit.sample(np.random.default_rng([SPLITS["play"], shard, i])) for i in range(count)]
    return InitialStates(np.stack(rows), None, ("",) * count, "play", indices)


def record_shard(shard: int, size: int, horizon: int = HORIZON) -> dict:
    """Play of one kit: frames uint8 (SHARD, T + 1, H, W, 3), actions float32 (SHARD, T, 4).

    First and last frames are drawn twice and compared: an OpenGL context that was disturbed by
    another one would otherwise leave faulty pictures that nobody notices.
    """
    from wmpo_lite.datagen.kits import Kit
    from wmpo_lite.datagen.play import play
    from wmpo_lite.envs.tabletop.env import TabletopEnv

    kit = Kit(shard)
    env = TabletopEnv(kit, size=size, threads=1)
    try:
        states = play_states(kit, shard)
        data = play(env, states, np.random.default_rng([shard, 43]), horizon)
        last = np.stack([env.render(b) for b in range(len(states))])
        first = env.reset(states)
    finally:
        env.close()
    if (first != data["frames"][:, 0]).any() or (last != data["frames"][:, -1]).any():
        raise UserError(
            f"shard {shard} of play was drawn twice and the pictures differ; the OpenGL driver is at "
            "fault (MUJOCO_GL=osmesa draws without it)"
        )
    return data


def _work(job):
    shard, size, path = job
    temporary = f"{path}.part.npz"
    np.savez(temporary, **record_shard(shard, size))
    os.replace(temporary, path)
    return path


def collect_play(shards: int, folder: Path, *, size: int = 64, workers: int | None = None) -> list[Path]:
    """Record shards 0 to `shards` - 1 of play into `folder`; those that are there are kept.

    A shard's number is its seed, so any number of workers gives the same files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"play_{size}px_{shard:04d}.npz" for shard in range(shards)]
    jobs = [(shard, size, str(path)) for shard, path in enumerate(paths) if not path.exists()]
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers or min(cores(), 8)) as pool:
            for _ in progress(pool.imap_unordered(_work, jobs), total=len(jobs), desc="record play"):
                pass
    return paths
