#!/bin/bash
# minari 0.5.4 stores uint8 observations that look like pictures (32 pixels and more) as JPEG unless
# jpeg_encoding=False is said: what is read is not what was recorded.
source "$(dirname "$0")/common.sh"
packages 'minari[create,hdf5]==0.5.4' gymnasium==1.4.0 numpy==2.4.6 pillow==13.0.0
measure <<'PYTHON'
import inspect
import os

os.environ["MINARI_DATASETS_PATH"] = os.path.abspath("data")
import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer


def stored(side, **options):
    """Mean difference in gray levels between recorded and stored pictures."""
    rng = np.random.default_rng(0)
    base = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), side // 8, 0), side // 8, 1)
    frames = np.stack([np.roll(base, s, axis=1) for s in range(6)])
    actions = np.zeros((5, 2), np.float32)
    episode = EpisodeBuffer(
        id=0,
        observations=frames,
        actions=actions,
        rewards=[0.0] * 5,
        terminations=[False] * 5,
        truncations=[False] * 4 + [True],
        infos={},
    )
    name = f"tiny/s{side}{len(options)}-v0"
    minari.create_dataset_from_buffers(
        name,
        [episode],
        observation_space=gym.spaces.Box(0, 255, (side, side, 3), np.uint8),
        action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
        **options,
    )
    back = next(minari.load_dataset(name).iterate_episodes()).observations
    return float(np.abs(back.astype(int) - frames).mean())


usual, small = stored(64), stored(16)
exact = stored(64, jpeg_encoding=False)
print("minari", minari.__version__, "mean error at 64 pixels:", usual, "at 16:", small)
print("with jpeg_encoding=False:", exact)
assert usual > 0.5 and small == 0 and exact == 0
print(f"64x64 pictures come back {usual:.2f} gray levels off; exact with jpeg_encoding=False")
PYTHON
