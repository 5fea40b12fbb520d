#!/bin/bash
# Not of a package alone: minari 0.5.4 reads a data set that this kit has written, bit for bit.
kit=$(cd "$(dirname "$0")/.." && pwd)
source "$(dirname "$0")/common.sh"
packages 'minari[create,hdf5]==0.5.4' gymnasium==1.4.0 numpy==2.4.6 pillow==13.0.0 h5py==3.16.0
ln -s "$kit/wmpo_lite" "$folder/wmpo_lite"
measure <<'PYTHON'
import os
import sys

sys.path.insert(0, "")
os.environ["MINARI_DATASETS_PATH"] = os.path.abspath("data")
import minari
import numpy as np

from wmpo_lite.datagen import minari as ours
from wmpo_lite.trajectory import Trajectory

rng = np.random.default_rng(0)
made = [
    Trajectory(
        frames=rng.integers(0, 256, (9, 64, 64, 3), np.uint8),
        actions=rng.uniform(-1, 1, (8, 4)),
        success=n < 2,
        finish_step=5 if n < 2 else 8,
        instruction="put the red cube on the plate",
        initial_state=rng.normal(size=26),
        split="rollouts",
        index=n,
    )
    for n in range(3)
]
ours.write("data/tabletop/place-v0", made, {"env_args": {}, "provenance": {}})
data = minari.load_dataset("tabletop/place-v0")
print("minari", minari.__version__, data.spec.observation_space.shape, data.spec.action_space)
for trajectory, episode in zip(made, data.iterate_episodes(), strict=True):
    assert np.array_equal(episode.observations, trajectory.frames)
    assert np.array_equal(episode.actions, trajectory.actions)
    assert episode.infos["success"].any() == trajectory.success and episode.truncations[-1]
print(f"{data.total_episodes} episodes of {data.total_steps} steps: pictures and actions equal bit for bit")
PYTHON
