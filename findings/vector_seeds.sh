#!/bin/bash
# gymnasium 1.4.0: a vector reset with seed s gives its environments the seeds s, s + 1, ... Runs with
# the seeds 0, 1, 2, ... of a vector of 16 start from almost the same states.
source "$(dirname "$0")/common.sh"
packages gymnasium==1.4.0 numpy==2.4.6
measure <<'PYTHON'
import gymnasium
import numpy as np

envs = gymnasium.make_vec("CartPole-v1", num_envs=16, vectorization_mode="sync")
starts = np.stack([envs.reset(seed=seed)[0] for seed in range(5)])  # (5 runs, 16 episodes, 4)
distinct = len({row.tobytes() for row in starts.reshape(-1, 4)})
print("first states of 5 runs:", starts.shape[:2], "distinct:", distinct)
assert np.array_equal(starts[0, 1:], starts[1, :-1]) and distinct == 20
print(f"five seeds of 16 environments are {distinct} different starts, not 80")
PYTHON
