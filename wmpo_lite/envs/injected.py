"""Injected errors: episodes that begin in the middle, with something gone wrong.

The task's expert acts up to a fixed moment of its motion and errs there in one of four ways; from
then on whoever is tested acts, with the whole time limit. So all policies meet the same errors.
"""

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.expert import CARRY, CLOSE, DESCEND, OPEN, PickAndPlace

LEAD = 32  # control steps in which the expert reaches its moment; who is there sooner waits
ASIDE = 0.022  # m, to which side of an object the hand comes down
CLOSING_HEIGHT = 0.050  # m over an object's center, below which the hand closes too early
RIM = {"place": 0.040, "square": 0.014}  # m from the target's center: its rim
# phase of the expert in which it errs, and what it then does with its gripper for two steps
ERRORS = {
    "slip": (CARRY, -1),  # the object falls from the lifted hand
    "offset": (CLOSE, -1),  # the hand comes down beside the object
    "early_closing": (DESCEND, 1),  # the hand closes above the object
    "collision": (OPEN, 1),  # the object is pressed upon the target's rim
}


class InjectedErrors:
    """A table-top environment whose episodes begin with an error; the same `reset` / `step_chunk`,
    so `rollout` runs a policy on it unchanged.

    error: one of ERRORS. The direction of what goes aside is drawn for each initial state, by its
    number alone.
    """

    def __init__(self, env, error: str):
        if error not in ERRORS:
            raise UserError(f"error '{error}' is unknown; use one of {', '.join(ERRORS)}")
        self.env, self.error = env, error

    def __getattr__(self, name):
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, states) -> np.ndarray:
        env, (phase, gripper) = self.env, ERRORS[self.error]
        env.reset(states)
        aside = np.zeros((len(states), 3))
        angle = [np.random.default_rng([11, i]).uniform(0, 2 * np.pi) for i in states.indices]
        aside[:, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        offsets = {
            "offset": (ASIDE * aside, 0.0),
            "collision": (0.0, RIM.get(env.task.name, 0.02) * aside),
        }
        expert = PickAndPlace(len(states), *offsets.get(self.error, (0.0, 0.0)))
        there, last = np.zeros(len(states), dtype=bool), np.full(len(states), -1.0)
        for _ in range(LEAD):
            pick, place = env.task.goal(env)[:2]
            action = expert.act(env, pick, place)
            low = env.tip[:, 2] < pick[:, 2] + CLOSING_HEIGHT
            there |= (expert.phase >= phase) & (low if self.error == "early_closing" else True)
            action[there, :3] = 0
            action[there, 3] = last[there]
            last = action[:, 3]
            env.step_chunk(action[:, None], every_frame=None)
        still = np.zeros((len(states), 2, env.action_dim))
        still[:, :, 3] = gripper
        return env.step_chunk(still, every_frame=False)[0][:, -1]

    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        return self.env.step_chunk(actions, every_frame=every_frame)
