"""Scripted experts for LIBERO: pick-and-place by a state machine that looks at the true state, with
a grasp for every kind of object; attempts that go wrong and play that never comes to the goal, made
of the same moves.
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
    the table, by default to the task's goal. pick_offset, place_offset (B, 2): meters by which the
    hand closes and lets go elsewhere. keeps (B,): whose hand neither lowers what it carries nor
    lets go of it, and goes on with it to one point of `wander` (T, B, 3) after the other, 8 steps
    each.
    """

    def __init__(
        self,
        env,
        things=None,
        spots=None,
        pick_offset=0.0,
        place_offset=0.0,
        keeps=False,
        wander=None,
    ):
        thing, self.place = goal_of(env)
        self.batch = len(env.now["tip"])
        self.pick_offset, self.place_offset = (
            np.broadcast_to(x, (self.batch, 2)).copy() for x in (pick_offset, place_offset)
        )
        self.things = np.full(self.batch, thing) if things is None else np.array(things)
        self.spots = spots
        self.carry, self.low = GOALS[kind(env.objects[self.place])] if spots is None else TABLE
        self.keeps, self.wander = np.broadcast_to(keeps, self.batch), wander
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
        there = there + self.place_offset
        aim, up = np.concatenate([there, self.stood[:, 2:]], axis=1) + self.held, [0, 0, self.carry]
        goals = np.select(
            [(phase == p)[:, None] for p in range(8)],
            [
                grip + [0, 0, HOVER],
                grip,
                grip,
                self.stood + self.held + up,
                aim + up,
                aim + [0, 0, self.low],
                tip,
                aim + up,
            ],
        )
        if self.keeps.any():
            on = self.keeps & (phase == AWAY)
            point = np.minimum(self.timer // 8, len(self.wander) - 1)
            goals[on] = self.wander[point, np.arange(self.batch)][on]
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
        closed = (phase >= CLOSE) & ((phase <= LOWER) | self.keeps)
        hand = np.where(closed, 1.0, -1.0)[:, None]
        move = np.clip(error / FULL, -1, 1)
        action = np.concatenate([move, np.zeros((self.batch, 3)), hand], axis=1)
        self.phase = np.where(advance & self.keeps & (phase == CARRY), AWAY, phase + advance)
        self.timer = np.where(advance, 0, self.timer + 1)
        return action

    def restart(self, which: np.ndarray):
        self.phase[which], self.timer[which], self.held[which] = ABOVE, 0, 0


def _record(env, states, rng, noise, burst, make, each_step=None) -> dict:
    """Episodes of the expert `make()`; Gaussian noise (in action units) is added to the motion that
    is executed, in each step with probability `burst`.
    """
    seen = []

    def begin():
        expert = make()

        def act():
            seen.append(env.now)
            if each_step:
                each_step(expert)
            return expert.act(env)

        return act

    # single precision, as it is recorded: a replay is then exact
    how = {"horizon": env.task.horizon, "executed": np.float32}
    found = record(env, states, begin, rng, noise, burst, **how)
    seen.append(env.now)
    for name in ("tip", "objects", "opening"):
        found[name] = np.stack([now[name] for now in seen], axis=1)
    return found


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
    return _record(env, states, rng, noise, burst, lambda: PickAndPlace(env))


def attempt(env, states, rng: np.random.Generator) -> dict:
    """The expert, off by centimeters in half of its grasps and two thirds of its placements; in a
    third of the episodes it comes to the goal, keeps hold and goes on from there, or a world model
    would take the way up for letting go. Returns the dict of `demonstrate`; `done` tells which came
    out well.
    """

    def off(spread, share):
        return spread * (rng.random((len(states), 1)) < share) * rng.normal(size=(len(states), 2))

    def make():
        place = env.now["objects"][:, goal_of(env)[1]]
        count = env.task.horizon // 8, len(states), 3
        wander = place + rng.uniform((-0.15, -0.15, 0.12), (0.15, 0.15, 0.55), count)
        return PickAndPlace(
            env,
            pick_offset=off(0.03, 0.5),
            place_offset=off(0.08, 0.67),
            keeps=rng.random(len(states)) < 1 / 3,
            wander=wander,
        )

    return _record(env, states, rng, 0.3, 0.2, make)


def play(env, states, rng: np.random.Generator) -> dict:
    """Objects picked up, or missed, and put down elsewhere on the table, one after the other, with
    more or less noise: never at the task's goal.

    Returns the dict of `demonstrate`; `done` is True from where the goal was reached by accident:
    such episodes are to be thrown away.
    """
    batch, (_, place) = len(states), goal_of(env)
    movable = np.array([i for i in range(len(env.objects)) if i != place])
    noise = rng.choice([0.0, 0.2, 0.5], size=(batch, 1))

    def spots(which):
        """Places within reach and 12 cm away from the goal."""
        middle = env.now["objects"][which, place, :2]
        tries = middle + rng.uniform(-0.35, 0.35, (64, len(which), 2))
        free = (
            (np.linalg.norm(tries - middle, axis=-1) > 0.2)
            & (np.abs(tries[..., 1]) < 0.3)
            & (tries[..., 0] > -0.25)
            & (tries[..., 0] < 0.2)
        )
        return tries[free.argmax(axis=0), np.arange(len(which))]

    def make():
        everyone = np.arange(batch)
        return PickAndPlace(
            env, things=rng.choice(movable, batch), spots=spots(everyone), pick_offset=miss(batch)
        )

    def miss(count):
        return rng.normal(size=(count, 2)) * rng.choice([0.0, 0.01, 0.03], size=(count, 1))

    def anew(expert):
        over = np.flatnonzero((expert.phase == AWAY) & (expert.timer >= 2))
        if len(over):
            expert.things[over] = rng.choice(movable, len(over))
            expert.spots[over] = spots(over)
            expert.pick_offset[over] = miss(len(over))
            expert.restart(over)

    return _record(env, states, rng, noise, 0.4, make, anew)
