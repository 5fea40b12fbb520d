"""Does a thing that stays behind in the simulator come along in imagination?

    python tests/bench/bench_carried.py [runs/NAME ...]

The base policy of `place` acts in the simulator, as it is and after two of the injected errors, and
its actions are imagined from the same first frames: by the world model before alignment, by the
shipped run's and by those of the runs named ("copies": the autoencoder's, of the true frames).
Where the named cube is in a frame is the center of the pixels of its color; it has moved if it has
gone more than MOVED pixels from where it was first seen. Colors are used for this look alone. Five
minutes and two for each world model, on one core.
"""

import sys
from pathlib import Path

import numpy as np

from wmpo_lite.envs.injected import InjectedErrors
from wmpo_lite.envs.splits import numbers
from wmpo_lite.envs.tasks import get_task, initial_states, make_env
from wmpo_lite.evaluate import success_rate
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.recipes.shipped import Shipped
from wmpo_lite.recipes.workspace import initial_frames
from wmpo_lite.rollout import replay, rollout
from wmpo_lite.train import set_threads
from wmpo_lite.world_model import WorldModel

EPISODES = 256
MOVED = 6.0  # pixels of 64
PURE = {"red": (0, 110), "green": (1, 40), "blue": (2, 50)}  # channel, lead over the other two


def places(frames: np.ndarray, instructions) -> np.ndarray:
    """Center (B, T, 2) in pixels of the named color in frames (B, T, H, W, 3); NaN where fewer than
    three pixels show it.
    """
    found = np.full((*frames.shape[:2], 2), np.nan)
    rows, columns = np.mgrid[: frames.shape[2], : frames.shape[3]]
    for b, sentence in enumerate(instructions):
        channel, lead = PURE[next(word for word in sentence.split() if word in PURE)]
        video = frames[b].astype(int)
        mask = video[..., channel] - np.delete(video, channel, axis=-1).max(axis=-1) > lead
        count = mask.sum(axis=(1, 2))
        center = np.stack([(mask * axis).sum(axis=(1, 2)) for axis in (rows, columns)], axis=1)
        found[b] = np.where((count >= 3)[:, None], center / np.maximum(count, 1)[:, None], np.nan)
    return found


def first_seen(path: np.ndarray) -> np.ndarray:
    """The first place (B, 1, 2) of each path (B, T, 2) that is not NaN."""
    seen = ~np.isnan(path[..., 0])
    return path[np.arange(len(path)), seen.argmax(axis=1)][:, None]


def moved(path: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Which things (B,) are at some time more than MOVED pixels from where they began."""
    far = np.linalg.norm(path - start, axis=-1)
    return np.nanmax(np.where(np.isnan(far), 0.0, far), axis=1) > MOVED


def main(*folders: str) -> None:
    """Print one row for each kind of episode and world model."""
    set_threads()
    shipped, task = Shipped("place"), get_task("place")
    autoencoder = shipped.autoencoder()
    models = {"not aligned": shipped.world_model(aligned=False), "shipped": shipped.world_model()}
    models |= {Path(f).name: WorldModel.load(Path(f) / "world_model") for f in folders}
    env, policy = make_env(task), shipped.policy()
    states = initial_states(task, env, *numbers("outcomes", EPISODES))
    print("| episodes | world model | moved, of those moved | moved, of those still | apart |")
    print("|---|---|---|---|---|")
    for error in (None, "early_closing", "offset"):
        world = env if error is None else InjectedErrors(env, error)
        options = {"horizon": task.horizon, "temperature": 1.0, "seed": 5}
        real = rollout(policy, world, states, **options)
        starts, sentences = initial_frames(real), [t.instruction for t in real]
        truth = places(np.stack([t.frames for t in real]), sentences)
        start = first_seen(truth)
        went = moved(truth, start)
        for name, model in {"copies": None, **models}.items():
            if model is None:
                frames = autoencoder.reconstruct(np.stack([t.frames for t in real]))
            else:
                frames = replay(ImaginedEnv(autoencoder, model, seed=5), real, starts)[0]
            path = places(frames, sentences)
            came = moved(path, start)
            apart = np.linalg.norm(path[:, -1] - truth[:, -1], axis=-1)
            cells = [error or "as they are", name, *map(success_rate, (came[went], came[~went]))]
            print(f"| {' | '.join(map(str, cells))} | {np.nanmedian(apart):.1f} px |", flush=True)
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
