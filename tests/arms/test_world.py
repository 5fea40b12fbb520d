"""The scene behind an arm: driven joint by joint it does what the training environment does."""

import numpy as np
import pytest

from wmpo_lite.arms.control import RATE, Commander
from wmpo_lite.arms.interface import LIMITS
from wmpo_lite.arms.safety import Guard
from wmpo_lite.arms.world import World
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import Disturbance, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import demonstrate
from wmpo_lite.envs.tabletop.tasks import get_task

PLACE = get_task("place")


@pytest.fixture(scope="module")
def world():
    world = World(PLACE, size=32)
    yield world
    world.close()


@pytest.fixture
def fresh(world):
    world.reset(initial_states(PLACE, "demos", range(4)), 1)
    return world


@pytest.mark.parametrize("name", ["place", "square"])
def test_a_stream_of_joint_targets_does_what_step_chunk_does(name):
    """The expert's recorded actions, replayed with their noise: the tips stay within 2 mm of the
    environment's all along, the task is done, and no limit of the guard is touched on the way.
    """
    task = get_task(name)
    states = initial_states(task, "demos", range(4))
    env, world, guard = TabletopEnv(task, size=32, threads=1), World(task, size=32), Guard()
    recorded = demonstrate(env, states, np.random.default_rng(0), noise=0.2)
    actions, done = recorded["executed"], recorded["done"][:, -1]
    env.reset(states)
    tips = []
    for k in range(task.horizon):
        env.step_chunk(actions[:, k : k + 1], every_frame=False)
        tips.append(env.tip)
    ours = np.zeros_like(tips)
    succeeded = np.zeros(4, dtype=bool)
    for b in range(4):
        world.reset(states, b)
        commander, now = Commander(), 0.0
        commander.reset(world.joints)
        guard.start(None, world.joints)
        for k in range(task.horizon):
            for target in commander.targets(actions[b, k], world.joints):
                now += 1 / RATE
                world.target(guard.check(target, now))
                world.advance(1 / RATE)
            ours[k, b] = world.tip
            succeeded[b] |= world.success()
        guard.close()
    assert np.abs(ours - tips).max() < 0.002
    assert done.sum() >= 3 and (succeeded == done).all()
    assert guard.pulled_back == {"joint": 0, "speed": 0, "box": 0}
    env.close(), world.close()


def test_it_begins_at_rest_in_the_state_that_was_asked_for(fresh):
    states = initial_states(PLACE, "demos", range(4))
    assert np.allclose(fresh.joints[:5], states.states[1, :5]) and fresh.joints[5] == pytest.approx(
        1
    )
    assert (
        not fresh.velocities.any()
        and np.abs(fresh.loads).max() < 1e-6
        and (fresh.targets == fresh.joints).all()
    )
    assert fresh.instruction == states.instructions[1] and not fresh.success()
    fresh.advance(0.5)
    assert np.abs(fresh.joints - fresh.targets).max() < 1e-3


def test_the_camera_shows_what_the_environment_shows(fresh):
    env = TabletopEnv(PLACE, size=32, threads=1)
    theirs = env.reset(initial_states(PLACE, "demos", range(4))[1:2])[0]
    assert np.abs(fresh.frame().astype(int) - theirs).max() <= 1
    fresh.target([0.5, 0, 0.7, 0.8, 0, 0])
    fresh.advance(1)
    assert np.abs(fresh.frame().astype(int) - theirs).max() > 100
    env.close()


def test_units_of_the_gripper_and_the_signs_of_speed_and_load(fresh):
    goal = fresh.joints
    goal[0] += 0.4
    goal[5] = 0.25
    fresh.target(goal)
    fresh.advance(0.05)
    assert (
        fresh.velocities[0] > 0.3
        and fresh.velocities[5] < -1
        and fresh.loads[0] > 0.1
        and fresh.loads[5] < 0
    )
    fresh.advance(1)
    assert fresh.joints[5] == pytest.approx(0.25, abs=0.01) and fresh.joints[0] == pytest.approx(
        goal[0], abs=0.005
    )


def test_without_torque_targets_move_nothing(fresh):
    before = fresh.joints
    fresh.torque(False)
    fresh.target(before + [0.3, 0, 0, 0, 0, -0.5])
    fresh.advance(0.5)
    assert np.abs(fresh.joints - before).max() < 1e-3
    fresh.torque(True)
    fresh.advance(1)
    assert np.abs(fresh.joints - before - [0.3, 0, 0, 0, 0, -0.5]).max() < 0.01


def test_parts_of_a_step_are_carried_over(fresh):
    begin = fresh.data.time
    for _ in range(100):
        fresh.advance(0.0033)
    assert fresh.data.time - begin == pytest.approx(0.33, abs=0.0051)


def test_targets_stay_in_the_joints_ranges(fresh):
    fresh.target([9, 9, 9, 9, 9, 9])
    assert (fresh.targets == LIMITS[:, 1]).all()


def test_a_seed_is_another_look_and_the_look_changes_nothing_but_the_picture():
    states = initial_states(PLACE, "demos", range(2))
    pictures, joints = [], []
    for look, seed in (
        (Disturbance(), 0),
        (Disturbance(background=1, texture=1), 0),
        (Disturbance(background=1, texture=1), 1),
    ):
        world = World(PLACE, size=32, disturbance=look, seed=seed)
        world.reset(states)
        world.advance(0.5)
        pictures.append(world.frame().astype(int)), joints.append(world.joints)
        world.close()
    assert np.allclose(joints[0], joints[1]) and np.allclose(joints[0], joints[2])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[a] - pictures[b]).mean() > 2


def test_bad_input_gets_one_sentence(fresh):
    with pytest.raises(UserError, match="row 9"):
        fresh.reset(initial_states(PLACE, "demos", range(2)), 9)
    with pytest.raises(UserError, match="6 finite numbers"):
        fresh.target([0, 0, np.nan, 0, 0, 0])
    empty = World(PLACE, size=32)
    for use in (lambda: empty.advance(0.1), empty.frame, empty.success, lambda: empty.instruction):
        with pytest.raises(UserError, match="`reset`"):
            use()
    empty.close()
