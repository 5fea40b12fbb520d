#!/bin/bash
# Not of a package alone: gym-pusht 0.1.8 behind this kit's contract. Its actions are absolute pixels
# and are not clipped to its own action space; the kit's are, and lie in [-1, 1].
kit=$(cd "$(dirname "$0")/.." && pwd)
source "$(dirname "$0")/common.sh"
packages gym-pusht==0.1.8 pymunk==6.11.1 gymnasium==1.4.0 numpy==2.4.6 h5py==3.16.0 pillow==13.0.0 mujoco==3.17.0
ln -s "$kit/wmpo_lite" "$folder/wmpo_lite"
export SDL_VIDEODRIVER=dummy
measure <<'PYTHON' 2> /dev/null | grep -v pygame
import sys

sys.path.insert(0, "")
import gym_pusht  # noqa: F401
import gymnasium
import numpy as np

from wmpo_lite.envs.gymnasium_bridge import FromGymnasium


def make():
    options = {"obs_type": "pixels_agent_pos", "render_mode": "rgb_array"}
    return gymnasium.make("gym_pusht/PushT-v0", disable_env_checker=True, **options)


raw = make()
raw.reset(seed=0)
for _ in range(20):
    seen = raw.step(np.array([256, 900], np.float32))[0]
beyond = float(seen["agent_pos"][1])
print("actions", raw.action_space, "; told to go to y = 900 it is at y =", round(beyond, 1))
raw.close()

# What render() shows has the last action in it (finding pusht_render), what is observed has not.
pixels = lambda env, seen: seen["pixels"]
env = FromGymnasium(make, "push the T onto its place", ("x", "y"), size=64, picture=pixels)
states = env.initial_states("rollouts", range(4))
first = env.reset(states)
away = np.tile([0.0, 9.0], (4, 20, 1))  # clipped to 1: y = 512
frames, done, info = env.step_chunk(away)
inside = max(float(one.unwrapped.agent.position.y) for one in env._envs)
again = env.reset(states)
print("frames", frames.dtype, frames.shape, "; at most at y =", round(inside, 1), "; done", done.any())
assert frames.shape == (4, 20, 64, 64, 3) and frames.dtype == np.uint8
assert np.array_equal(first, again) and (frames[:, -1] != first).any() and not done.any()
assert beyond > 513 >= inside
env.close()
print(f"raw, action 900 leads to y = {beyond:.0f} on a field of 512; behind the contract to {inside:.0f}")
PYTHON
