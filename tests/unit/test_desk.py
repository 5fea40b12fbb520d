"""A desk around an environment: late and noisy pictures, limits, a dry run; and the plain
environment where nothing is switched on.
"""

import dataclasses

import numpy as np
import pytest
import tiny

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.desk import Desk, DeskConfig
from wmpo_lite.envs.tabletop.env import MAX_STEP, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.rollout import rollout

PLACE = get_task("place")


@pytest.fixture(scope="module")
def table():
    env = TabletopEnv(PLACE, size=32, threads=1)
    yield env
    env.close()


def ramp(batch=2, steps=6):
    """Actions that move the counter by 1 a step."""
    actions = np.zeros((batch, steps, tiny.ACTIONS), np.float32)
    actions[..., 0] = 1
    return actions


def test_a_desk_without_disturbance_is_the_environment():
    desk, plain = Desk(tiny.Counter(), DeskConfig()), tiny.Counter()
    policy, states = tiny.policy(), tiny.states(5)
    ours, theirs = (
        rollout(policy, env, states, horizon=12, temperature=1.0, seed=3) for env in (desk, plain)
    )
    for a, b in zip(ours, theirs):
        assert (
            (a.frames == b.frames).all()
            and (a.actions == b.actions).all()
            and a.success == b.success
            and a.finish_step == b.finish_step
        )


@pytest.mark.parametrize("latency", [0, 1, 3])
def test_the_picture_is_as_old_as_said(latency):
    desk, plain = Desk(tiny.Counter(goal=99), DeskConfig(latency=latency)), tiny.Counter(goal=99)
    first, _ = desk.reset(tiny.states(2)), plain.reset(tiny.states(2))
    seen, truth = desk.step_chunk(ramp())[0], plain.step_chunk(ramp())[0]
    assert (seen[:, latency:] == truth[:, : truth.shape[1] - latency]).all()
    assert all((seen[:, k] == first).all() for k in range(latency))


def test_an_old_picture_stays_old_across_chunks():
    whole, parts = (Desk(tiny.Counter(goal=99), DeskConfig(latency=3)) for _ in range(2))
    whole.reset(tiny.states(2)), parts.reset(tiny.states(2))
    once = whole.step_chunk(ramp(steps=8))[0]
    twice = np.concatenate([parts.step_chunk(ramp(steps=4))[0] for _ in range(2)], axis=1)
    assert (once == twice).all()


def test_camera_noise_and_brightness_have_the_stated_size():
    desk = Desk(tiny.Counter(goal=99), DeskConfig(camera_noise=6.0, brightness=0.9))
    states = tiny.states(64)
    noisy, clean = desk.reset(states).astype(float), tiny.Counter().reset(states).astype(float)
    error = noisy - 0.9 * clean
    assert abs(error.mean()) < 0.2 and 5.7 < error.std() < 6.3
    assert (desk.reset(states) == noisy).all()  # the seed decides


def test_a_dry_run_moves_nothing_and_tells_what_it_would_have_done(table):
    desk = Desk(table, DeskConfig(dry_run=True))
    first = desk.reset(initial_states(PLACE, "demos", np.arange(2)))
    tip = table.tip.copy()
    actions = tiny.random_actions(2, 4, 4)
    frames, done, _ = desk.step_chunk(actions)
    assert (table.tip == tip).all() and (frames == first[:, None]).all() and not done.any()
    assert np.allclose(
        [r["commanded"] for r in desk.log], np.moveaxis(actions, 1, 0)
    ) and not np.any([r["executed"] for r in desk.log])


def test_the_box_keeps_the_tips_and_lets_them_back_in(table):
    states = initial_states(PLACE, "demos", np.arange(4))
    table.reset(states)
    low, high = table.tip.min(axis=0) - 0.01, table.tip.max(axis=0) + 0.01
    desk = Desk(table, DeskConfig(low=tuple(low), high=tuple(high)))
    desk.reset(states)
    for direction in np.concatenate([np.eye(3), -np.eye(3)]):
        desk.step_chunk(np.tile(np.float32([*direction, -1]), (4, 5, 1)), every_frame=False)
        assert (table.tip > low - 0.006).all() and (
            table.tip < high + 0.006
        ).all()  # the arm itself overshoots by a few millimeters
    assert sum(record["limited"].all() for record in desk.log) > 6
    free = [record["limited"].any() for record in desk.log[::5]]
    assert not all(free)  # a command back into the box is left alone


def test_a_command_away_from_the_wall_is_not_cut(table):
    states = initial_states(PLACE, "demos", np.arange(1))
    table.reset(states)
    tip = table.tip[0]
    desk = Desk(table, DeskConfig(low=tuple(tip - 0.05), high=tuple(tip + [0.0, 0.05, 0.05])))
    desk.reset(states)
    desk.step_chunk(np.float32([[[1, 0.5, 0, -1], [-1, 0, 0, -1]]]))
    out, back = (record["executed"][0] for record in desk.log)
    assert (
        out[0] == pytest.approx(0, abs=0.01)
        and out[1] == pytest.approx(0.5)
        and back[0] == pytest.approx(-1)
    )
    assert [record["limited"][0] for record in desk.log] == [True, False]


def test_speed_and_jitter(table):
    desk = Desk(table, DeskConfig(speed=0.4))
    desk.reset(initial_states(PLACE, "demos", np.arange(2)))
    start = table.tip.copy()
    desk.step_chunk(np.tile(np.float32([0, 1, 1, -1]), (2, 3, 1)), every_frame=False)
    assert np.abs(table.tip - start).max() < 3.5 * 0.4 * MAX_STEP
    shaky = Desk(table, DeskConfig(jitter=0.3))
    shaky.reset(initial_states(PLACE, "demos", np.arange(64)))
    shaky.step_chunk(np.zeros((64, 4, 4), np.float32), every_frame=False)
    executed = np.stack([record["executed"] for record in shaky.log])
    assert 0.27 < executed[..., :3].std() < 0.33 and not executed[..., 3].any()


def test_noise_belongs_to_the_initial_state_and_not_to_the_batch():
    """Batches of any size, part and order meet the same noise, and no two states, splits or seeds
    the same.
    """

    def noise(states, batch, seed=0):
        """What was added to motionless actions (N, 6, 3), and the noisy pictures (N, 7,
        H, W, 3).
        """
        moved, seen = [], []
        for begin in range(0, len(states), batch):
            part = states[begin : begin + batch]
            desk = Desk(tiny.Counter(goal=99), DeskConfig(jitter=0.3, camera_noise=4.0, seed=seed))
            first = desk.reset(part)
            frames, _, _ = desk.step_chunk(np.zeros((len(part), 6, tiny.ACTIONS), np.float32))
            seen.append(np.concatenate([first[:, None], frames], axis=1))
            moved.append(np.stack([record["executed"][:, :3] for record in desk.log], axis=1))
        return np.concatenate(moved), np.concatenate(seen)

    states = tiny.states(7)
    moved, seen = noise(states, 7)
    for rows, batch in ((np.arange(7), 3), (np.arange(7), 1), ([4, 2, 6], 2)):
        again, pictures = noise(states[rows], batch)
        assert (again == moved[rows]).all() and (pictures == seen[rows]).all()
    assert (
        len({row.tobytes() for row in moved}) == 7
        and len({row.tobytes() for row in moved.reshape(42, 3)}) == 42
    )
    others = (
        noise(states, 7, seed=1)[0],
        noise(dataclasses.replace(states, split="evaluation"), 7)[0],
    )
    assert all((other != moved).all() for other in others)
    assert abs(np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1]) < 0.9


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DeskConfig(latency=-1), "latency is -1"),
        (lambda: DeskConfig(speed=0.0), "speed is 0.0"),
        (lambda: DeskConfig(low=(0, 0, 0)), "must both be given"),
        (lambda: DeskConfig(low=(0, 0, 0), high=(1, 0, 1)), "every low below its high"),
        (lambda: Desk(tiny.Counter(), DeskConfig(low=(0, 0, 0), high=(1, 1, 1))), "finger tips"),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_nan_stops_the_arm_before_it_moves(table):
    desk = Desk(table)
    desk.reset(initial_states(PLACE, "demos", np.arange(1)))
    tip = table.tip.copy()
    actions = np.zeros((1, 3, 4), np.float32)
    actions[0, 2, 1] = np.nan
    with pytest.raises(UserError, match="not moved"):
        desk.step_chunk(actions)
    assert (table.tip == tip).all()


@pytest.mark.parametrize(
    "shape", [(3, 4, 7), (3, 4, 3), (1, 4, 4), (4, 4, 4), (3, 4), (3, 0, 4), (4, 4)]
)
def test_actions_of_another_size_or_batch_are_refused_before_anything_moves(shape):
    """A row too few would be broadcast to all episodes, a number too many ignored."""
    table = tiny.Counter()
    env = Desk(table)
    env.reset(tiny.states(3))
    before = table.total.copy()
    with pytest.raises(UserError, match=r"actions have shape .*; expected \(3, K, 4\)"):
        env.step_chunk(np.zeros(shape))
    assert np.array_equal(table.total, before) and env.log == []


def test_an_environment_is_reset_before_it_is_stepped():
    env = Desk(tiny.Counter())
    with pytest.raises(UserError, match="reset it to initial states first"):
        env.step_chunk(np.zeros((3, 4, 4)))
