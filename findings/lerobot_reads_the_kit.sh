#!/bin/bash
# Not of a package alone: lerobot 0.6.1 reads a folder that this kit has written, bit for bit, and
# takes an episode out of it. It needs Python 3.12 or newer (PYTHON=python3.12).
kit=$(cd "$(dirname "$0")/.." && pwd)
source "$(dirname "$0")/common.sh"
for PYTHON in "${PYTHON:-python3}" python3.12 python3.13 python3.14; do
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null && break
done
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null || {
    echo "lerobot 0.6.1 needs Python 3.12"
    exit 75
}
packages 'lerobot[dataset]==0.6.1' h5py==3.16.0
ln -s "$kit/wmpo_lite" "$folder/wmpo_lite"
measure <<'PYTHON' 2> /dev/null
import sys

sys.path.insert(0, "")
import logging
import time

logging.disable(logging.CRITICAL)
import numpy as np
from lerobot import __version__
from lerobot.datasets.dataset_tools import delete_episodes
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from wmpo_lite.common import lerobot
from wmpo_lite.datagen.lerobot import write
from wmpo_lite.trajectory import Trajectory

rng = np.random.default_rng(0)
trajectories = [
    Trajectory(
        frames=rng.integers(0, 256, (21, 64, 64, 3), np.uint8),
        actions=rng.normal(size=(20, 4)),
        success=i % 2 == 0,
        finish_step=9 if i % 2 == 0 else 20,
        instruction=("put the red cube on the plate", "lift the cube")[i % 2],
        initial_state=np.zeros(3),
        split="demos",
        index=i,
    )
    for i in range(8)
]
states = [{"state": rng.normal(size=(20, 6)).astype(np.float32)} for _ in trajectories]
write("made", trajectories, states, fps=5)
data, begin = LeRobotDataset("kit/made", root="made"), time.monotonic()
rows = [data[i] for i in range(len(data))]
theirs = time.monotonic() - begin
assert len(rows) == 160 and data.num_episodes == 8 and data.fps == 5
for e, (t, more) in enumerate(zip(trajectories, states)):
    for s in range(20):
        row = rows[20 * e + s]
        picture = (row["observation.images.agentview"] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(picture, t.frames[s]) and row["task"] == t.instruction
        assert np.array_equal(row["action"].numpy(), t.actions[s])
        assert np.array_equal(row["observation.state"].numpy(), more["state"][s])
        assert bool(row["next.success"]) == (t.success and s == 8)
begin = time.monotonic()
lerobot.read("made")
ours = time.monotonic() - begin
less = delete_episodes(data, [0], output_dir="less", repo_id="kit/less")
assert less.num_episodes == 7 and len(less) == 140
fields = lerobot.read("less")[0]
assert np.array_equal(fields[0]["actions"], trajectories[1].actions)
print(f"lerobot {__version__} reads the kit's folder bit for bit; the kit reads it {theirs / ours:.1f} times as fast")
PYTHON
