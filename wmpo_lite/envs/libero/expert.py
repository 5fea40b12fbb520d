"""Scripted experts for LIBERO: pick-and-place by a state machine that looks at the true state, with
a grasp for every kind of object.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.expert import record

ABOVE, DOWN, CLOSE, LIFT, CARRY, LOWER, OPEN, AWAY = range(8)
FULL = 0.10  # meters of error that ask for the full action
HOVER = 0.12  # m over the grasp before the hand goes down


@dataclass(frozen=True)
class Grasp:
    """Where the hand closes, seen from the object's origin: `aside` (x, y) and `height`, meters."""

    aside: tuple[float, float] = (0.0, 0.0)
    height: float = 0.0


GRASPS = {"akita_black_bowl": Grasp((0.0, 0.05), 0.03)}
# Metres by which the object is higher than where it stood: while it is carried there, and when it
# is let go.
GOALS = {"basket": (0.17, 0.09), "plate": (0.10, 0.03)}
TABLE = (0.10, 0.01)  # the same for a place on the table


def kind(name: str) -> str:
    """'akita_black_bowl_1' -> 'akita_black_bowl'; a region such as 'basket_1_contain_region' ->
    'basket'.
    """
    words = name.split("_")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return "_".join(words[: numbers[0]] if numbers else words)


def goal_of(env) -> tuple[int, int]:
    """Numbers, in `env.objects`, of the object to move and of the one to move it to. UserError for
    goals that are not one object on or in another.
    """
    wanted = [part for part in env.goal if part[0] in ("on", "in")]
    if len(env.goal) != 1 or not wanted or kind(wanted[0][2]) not in GOALS:
        raise UserError(
            f"the scripted expert has no plan for the goal {env.goal}; it can put one object on a"
            " plate or into a basket"
        )
    _, thing, place = wanted[0]
    return env.objects.index(thing), env.objects.index(
        next(name for name in env.objects if place.startswith(name))
    )


class PickAndPlace:
    """Closed-loop expert for the B episodes of the environment's last reset. `act` gives the
    intended action (B, 7) for its present state.

    things (B,): numbers of the objects to move, by default the task's; spots (B, 2): where to on
    the table, by default to the task's goal. pick_offset (B, 2): meters by which the hand closes
    elsewhere. carry, low: meters by which the object is higher than where it stood while it is
    carried, and when it is let go; numbers or one for each episode.
    """

    def __init__(self, env, things=None, spots=None, pick_offset=0.0):
        if things is None or spots is None:
            thing, self.place = goal_of(env)
        self.batch = len(env.now["tip"])
        self.pick_offset = np.broadcast_to(pick_offset, (self.batch, 2)).copy()
        self.things = np.full(self.batch, thing) if things is None else np.array(things)
        self.spots = spots
        self.carry, self.low = GOALS[kind(env.objects[self.place])] if spots is None else TABLE
        self.dwell = max(2, 12 // env.stride)
        self.phase, self.timer = np.full(self.batch, ABOVE), np.zeros(self.batch, dtype=int)
        self.stood, self.held = self._thing(env).copy(), np.zeros((self.batch, 3))
        grasps = (GRASPS.get(kind(name), Grasp()) for name in env.objects)
        self.grasps = np.array([[*grasp.aside, grasp.height] for grasp in grasps])

    def _thing(self, env):
        return env.now["objects"][np.arange(self.batch), self.things]

    def act(self, env) -> np.ndarray:
        tip, thing, phase = env.now["tip"], self._thing(env), self.phase
        self.stood = np.where((phase == ABOVE)[:, None], thing, self.stood)
        grip = self.stood + self.grasps[self.things]
        grip[:, :2] += self.pick_offset
        # Once, as the fingers have closed: a hand that lifts nothing would chase its own distance
        # from it.
        self.held = np.where(((phase == LIFT) & (self.timer == 0))[:, None], tip - thing, self.held)
        there = env.now["objects"][:, self.place, :2] if self.spots is None else self.spots
        aim = np.concatenate([there, self.stood[:, 2:]], axis=1) + self.held
        up, low = (np.multiply.outer(x, [0, 0, 1]) for x in (self.carry, self.low))
        goals = np.select(
            [(phase == p)[:, None] for p in range(8)],
            [
                grip + [0, 0, HOVER],
                grip,
                grip,
                self.stood + self.held + up,
                aim + up,
                aim + low,
                tip,
                aim + up,
            ],
        )
        error = goals - tip
        reached = np.linalg.norm(error, axis=1) < np.select(
            [phase == ABOVE, phase == DOWN, phase == LIFT], [0.008, 0.01, 0.04], 0.015
        )
        # Where the arm cannot quite get to, near the end of its reach or against something, it goes
        # on after a while.
        waited = self.timer >= np.select(
            [phase == CLOSE, phase == OPEN, phase == ABOVE], [self.dwell, 1, 14], 8
        )
        still = (phase == CLOSE) | (phase == OPEN)
        advance = np.where(still, waited, reached | waited) & (phase < AWAY)
        closed = (phase >= CLOSE) & (phase <= LOWER)
        hand = np.where(closed, 1.0, -1.0)[:, None]
        move = np.clip(error / FULL, -1, 1)
        action = np.concatenate([move, np.zeros((self.batch, 3)), hand], axis=1)
        self.phase = phase + advance
        self.timer = np.where(advance, 0, self.timer + 1)
        return action

    def restart(self, which: np.ndarray):
        self.phase[which], self.timer[which], self.held[which] = ABOVE, 0, 0


def demonstrate(
    env, states, rng: np.random.Generator, noise: float = 0.0, burst: float = 1.0
) -> dict:
    """Run the expert from `states` to the task's horizon. Gaussian noise (in action units) is added
    to the motion of what is executed, in each step with probability `burst`, never to what is
    recorded as the expert's intention.

    Returns dict: frames uint8 (B, T + 1, H, W, 3), executed and intended actions float32 (B, T, 7),
    done bool (B, T), `tip` (B, T + 1, 3) and `objects` (B, T + 1, n, 3) in meters, `opening` (B, T
    + 1) in [0, 1].
    """
    seen = []

    def begin():
        expert = PickAndPlace(env)

        def act():
            seen.append(env.now)
            return expert.act(env)

        return act

    # single precision, as it is recorded: a replay is then exact
    how = {"horizon": env.task.horizon, "executed": np.float32}
    found = record(env, states, begin, rng, noise, burst, **how)
    seen.append(env.now)
    for name in ("tip", "objects", "opening"):
        found[name] = np.stack([now[name] for now in seen], axis=1)
    return found
