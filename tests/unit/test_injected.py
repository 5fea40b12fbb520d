"""Injected errors: every episode begins with the error that its name says, whoever acts then."""

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.injected import ERRORS, RIM, InjectedErrors
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.scene import FINGER_TRAVEL
from wmpo_lite.envs.tabletop.tasks import get_task


@pytest.fixture(scope="module", params=["place", "square"])
def world(request):
    env = TabletopEnv(get_task(request.param), size=16)
    yield env, initial_states(env.task, "validation", range(8))
    env.close()


def begin(world, error, rows=slice(None)):
    env, states = world
    return InjectedErrors(env, error).reset(states[np.arange(8)[rows]])


def aside(world):
    """How far (B,) the hand is from the named object, seen from above, meters."""
    env, _ = world
    return np.linalg.norm((env.tip - env.task.goal(env)[0])[:, :2], axis=1)


def test_after_a_slip_the_object_lies_below_an_open_lifted_hand(world):
    begin(world, "slip")
    env, _ = world
    pick = env.task.goal(env)[0]
    assert (env.tip[:, 2] > 0.07).all() and (pick[:, 2] < 0.016).all()
    assert (env.opening > 0.9 * FINGER_TRAVEL).all() and not env.done.any()


def test_an_offset_brings_the_open_hand_down_beside_the_grasp(world):
    begin(world, "offset")
    env, _ = world
    assert (env.tip[:, 2] < 0.03).all() and (env.opening > 0.8 * FINGER_TRAVEL).all()
    assert (aside(world) > 0.010).mean() > 0.7  # a finger may push the object along


def test_a_hand_that_closed_early_is_above_the_object(world):
    begin(world, "early_closing")
    env, _ = world
    above = env.tip[:, 2] - env.task.goal(env)[0][:, 2]
    assert (above > 0.02).all() and (env.opening < 0.004).all() and (aside(world) < 0.01).all()


def test_in_a_collision_the_held_object_is_at_the_rim(world):
    begin(world, "collision")
    env, _ = world
    gap = np.linalg.norm(
        env.task.goal(env)[0][:, :2] - env.position(env.task.target)[:, :2], axis=1
    )
    assert (np.abs(gap - RIM[env.task.name]) < 0.02).mean() > 0.7
    assert (env.opening < 0.7 * FINGER_TRAVEL).all() and not env.done.any()


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_the_same_each_time_and_alone_as_in_a_batch(world, error):
    whole = begin(world, error)
    assert np.array_equal(whole, begin(world, error))
    assert np.array_equal(whole[5:7], begin(world, error, slice(5, 7)))


def test_an_unknown_error_is_refused(world):
    with pytest.raises(UserError, match="error 'earthquake' is unknown; use one of slip, offset"):
        InjectedErrors(world[0], "earthquake")
