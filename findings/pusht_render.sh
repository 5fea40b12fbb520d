#!/bin/bash
# gym-pusht 0.1.8: render() draws the last action into the picture, and reset does not forget it. The
# first picture of an episode shows the last action of the one before: one seed, two first pictures.
source "$(dirname "$0")/common.sh"
packages gym-pusht==0.1.8 pymunk==6.11.1 gymnasium==1.4.0 numpy==2.4.6
export SDL_VIDEODRIVER=dummy
measure <<'PYTHON' | grep -v pygame
import gym_pusht  # noqa: F401
import gymnasium
import numpy as np

options = {"obs_type": "pixels", "render_mode": "rgb_array", "disable_env_checker": True}
env = gymnasium.make("gym_pusht/PushT-v0", **options)


def first():
    """What is observed and what is rendered of the start that seed 5 gives."""
    seen, _ = env.reset(seed=5)
    return seen.copy(), env.render()


new = first()
for _ in range(20):
    env.step(np.array([256, 500], np.float32))
used = first()
observed, rendered = ((a != b).any(-1) for a, b in zip(new, used))
where = np.argwhere(rendered).mean(0) / rendered.shape * 512
print("pixels that differ: observed", observed.sum(), "rendered", rendered.sum(), "about (y, x) =", where)
assert not observed.any() and rendered.sum() > 100 and np.abs(where - [500, 256]).max() < 12
print(f"{rendered.sum()} pixels of a first rendered picture are the last episode's action; observed ones: 0")
PYTHON
