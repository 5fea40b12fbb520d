"""The `square` task: the expert solves it, a bad descent collides, a corrected one succeeds."""

import dataclasses

import numpy as np
import pytest

from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import PickAndPlace, demonstrate, labels
from wmpo_lite.envs.tabletop.tasks import get_task, pair

SQUARE = get_task("square")


@pytest.fixture
def env():
    env = TabletopEnv(SQUARE, size=32, threads=1)
    yield env
    env.close()


def states(count, split="demos", start=0):
    return initial_states(SQUARE, split, np.arange(start, start + count))


def drive(env, batch, steps, goal=SQUARE.goal):
    """Drive the expert; returns done (B,)."""
    expert, done = PickAndPlace(batch), None
    for _ in range(steps):
        done = env.step_chunk(expert.act(env, *goal(env))[:, None], every_frame=False)[1][:, -1]
    return done


def beside(env, offset=0.012):
    """The goal, missed by more than the play."""
    pick, place = SQUARE.goal(env)
    return pick, place + [offset, 0, 0]


def test_expert_solves_at_least_95_per_cent(env):
    env.reset(states(40))
    assert drive(env, 40, SQUARE.horizon).mean() >= 0.95
    assert (SQUARE.over_peg(env, "nut_a") ^ SQUARE.over_peg(env, "nut_b")).mean() >= 0.95


def test_a_descent_beside_the_peg_collides(env):
    """12 mm off, which is more than the play: no nut comes down over the peg."""
    env.reset(states(8))
    assert not drive(env, 8, 40, goal=beside).any()
    assert not (SQUARE.over_peg(env, "nut_a") | SQUARE.over_peg(env, "nut_b")).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_corrected_descent_succeeds(env, axis):
    """The same descent, 12 mm off, by an expert that notices the collision, lifts and descends
    anew; without that it fails.
    """
    outcome = {}
    for recover in (True, False):
        env.reset(states(16))
        expert = PickAndPlace(16, place_offset=0.012 * np.eye(3)[axis], recover=recover)
        for _ in range(SQUARE.horizon):
            done = env.step_chunk(expert.act(env, *SQUARE.goal(env))[:, None], every_frame=False)[
                1
            ][:, -1]
        outcome[recover] = done.mean()
        assert expert.collided.all() == recover
    assert outcome[True] >= 0.9 and outcome[False] == 0


def test_demonstrations_of_a_bad_descent_recover(env):
    beside, part = np.tile([0.009, 0, 0], (8, 1)), states(8)
    found = demonstrate(env, part, np.random.default_rng(0), offsets=(0.0, beside), recover=True)
    assert set(found) == {"frames", "executed", "intended", "done"} and found["done"][:, -1].all()
    env.reset(part)
    qpos = env.step_chunk(found["executed"], every_frame=None)[2]["states"]  # (8, T, nq)
    column = [
        env.model.joint("nut_b" if row[-1] else "nut_a").qposadr[0] + 2 for row in part.states
    ]
    heights = qpos[np.arange(8), :, column]  # of the named nut, (8, T)
    lifts = (np.diff((heights > 0.06).astype(int), axis=1) == 1).sum(axis=1)
    assert (heights[:, -1] < 0.02).all()
    assert (lifts >= 2).mean() >= 0.5  # lifted twice: once from the table, once from the peg


def test_the_wrong_nut_is_no_success(env):
    env.reset(states(6))

    def wrong(env):
        other = np.where(env.parameters[:, 2:3] > 0.5, env.position("nut_a"), env.position("nut_b"))
        aim = env.position("peg") + np.where(other[:, 2:3] > 0.02, env.tip[:, :2] - other[:, :2], 0)
        return other.copy(), np.concatenate([aim, np.full((6, 1), 0.014)], axis=1)

    done = drive(env, 6, 40, goal=wrong)
    assert (
        SQUARE.over_peg(env, "nut_a") | SQUARE.over_peg(env, "nut_b")
    ).mean() > 0.8 and not done.any()


def test_initial_states_are_fair():
    part = states(200)
    a, b, peg = part.states[:, 7:9], part.states[:, 14:16], part.states[:, 21:23]
    for x, y in ((a, b), (a, peg), (b, peg)):
        assert np.linalg.norm(x - y, axis=1).min() > 0.075
    for text, row in zip(part.instructions, part.states):
        assert text == f"put the {pair.COLORS[int(row[-2 if row[-1] else -3])]} nut over the peg"
    assert (
        0.35 < part.states[:, -1].mean() < 0.65 and (part.states[:, -3] != part.states[:, -2]).all()
    )
    swapped = SQUARE.swap_instruction(part.states)
    assert all(SQUARE.instruction(row) != text for row, text in zip(swapped, part.instructions))


def test_objects_rest_until_touched(env):
    env.reset(states(8))
    before = env.qpos[:, 7:].copy()
    env.step_chunk(np.tile(np.float32([0, 0, 0, -1]), (8, 10, 1)), every_frame=False)
    assert np.abs(env.qpos[:, 7:] - before)[:, [0, 1, 7, 8, 14, 15]].max() < 1e-3


def test_physics_looks_the_same_in_a_mirror(env):
    """What mirrored clips of the reward model rest on: everything is symmetric about the plane y =
    0, collisions too.
    """
    ordinary = states(16)
    beside = np.where(
        np.arange(16)[:, None] % 2, [0.012, 0, 0], [0, 0.012, 0]
    )  # every nut comes down on the peg
    actions = demonstrate(env, ordinary, np.random.default_rng(0), offsets=(0.0, beside))[
        "executed"
    ]
    other = ordinary.states.copy()
    start = lambda name: env.model.joint(name).qposadr[0]
    other[
        :,
        [
            start("shoulder_pan"),
            start("wrist_roll"),
            start("nut_a") + 1,
            start("nut_b") + 1,
            start("peg_y"),
        ],
    ] *= -1

    def end(states, actions):
        env.reset(states)
        env.step_chunk(actions, every_frame=None)
        return labels(env)["points"]

    points = end(ordinary, actions)
    mirrored = end(dataclasses.replace(ordinary, states=other), actions * [1, -1, 1, 1])
    near = (
        np.abs(points[:, :3] - points[:, 3:4])[..., :2].max(axis=-1) < 0.025
    )  # some lie on the peg
    assert near.sum() >= 8 and np.abs(points * [1, -1, 1] - mirrored).max() < 1e-4
