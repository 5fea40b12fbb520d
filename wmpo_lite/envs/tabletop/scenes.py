"""Random rendered scenes with their contents as labels: what stands in for the web-scale
pre-training of a big VLA's vision tower.

No episode is shown: things lie or hang at random places, and nobody moves them. The world model
never sees these labels.
"""

import numpy as np

from wmpo_lite.envs.renderer import Renderer
from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import WORKSPACE, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import labels

# what a mask can say of a pixel; everything else is background
CLASSES = ("red", "green", "blue", "target", "hand")


def random_scenes(task, count: int, seed: int, size: int = 64) -> dict:
    """`count` pictures with labels: frames uint8 (N, H, W, 3); masks uint8 (N, H, W), 0 background
    else 1 + index in CLASSES; points float32 (N, 5, 3) table coordinates in meters; present bool
    (N, 5); opening float32 (N,) finger travel in [0, 1].
    """
    env = TabletopEnv(task, size=size, threads=1)
    model = env.model
    rng = np.random.default_rng([seed, 21])
    out = {
        "frames": np.zeros((count, size, size, 3), np.uint8),
        "masks": np.zeros((count, size, size), np.uint8),
        "points": np.zeros((count, 5, 3), np.float32),
        "present": np.zeros((count, 5), bool),
        "opening": np.zeros(count, np.float32),
    }
    states = initial_states(task, "pretraining", np.arange(seed * 100_000, seed * 100_000 + count))
    env.reset(states[:1])
    masker = Renderer(model, size)
    hand = [model.geom(name).id for name in ("palm", "finger_left", "finger_right")]
    geoms = {
        name: np.flatnonzero(model.geom_bodyid == model.body(name).id)
        for name in (*task.objects, task.target)
    }
    for n in range(count):
        state = states.states[n].copy()
        qpos = state[: model.nq]
        tip = rng.uniform(WORKSPACE[:, 0], WORKSPACE[:, 1])
        opening = rng.choice([0.0, 1.0, rng.random(), 0.42])
        qpos[:5], qpos[5:7] = arm.inverse_kinematics(tip), opening * scene.FINGER_TRAVEL
        # 0, 1: that cube sits in the gripper; 2, 3: that cube hangs in the air; 4, 5: both on the
        # table
        held = rng.integers(6)
        for i, cube in enumerate(task.objects):
            start = model.joint(cube).qposadr[0]
            if held == i:
                qpos[start : start + 3] = tip + rng.normal(size=3) * 0.003
                qpos[5:7] = max(opening, 0.42) * scene.FINGER_TRAVEL
            elif held == i + 2:
                qpos[start + 2] = rng.uniform(qpos[start + 2], 0.11)
            if rng.random() < 0.3:
                angle = rng.uniform(-np.pi, np.pi) / 2
                qpos[start + 3 : start + 7] = np.cos(angle), 0, 0, np.sin(angle)
        env.parameters = state[None, model.nq :]
        env._physics[0, 1 : 1 + model.nq] = qpos
        out["frames"][n] = env.render(0)
        ids = masker.draw_geoms(env._render_data, "front")
        out["masks"][n][np.isin(ids, hand)] = 5
        out["masks"][n][np.isin(ids, geoms[task.target])] = 4
        for cube, color in zip(task.objects, env.parameters[0]):
            out["masks"][n][np.isin(ids, geoms[cube])] = 1 + int(color)
        for key, value in labels(env).items():
            out[key][n] = value[0]
    masker.close()
    env.close()
    return out
