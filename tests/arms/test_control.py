"""From actions to joint targets: the ramp, the leash, and what no arm is told."""

import numpy as np
import pytest

from wmpo_lite.arms.control import RATE, Commander, home
from wmpo_lite.arms.interface import LIMITS, ArmStopped
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import arm
from wmpo_lite.envs.tabletop.env import CONTROL_PERIOD, HOME, MAX_STEP, REACH, WORKSPACE


@pytest.fixture
def commander():
    commander = Commander()
    commander.reset(home())
    return commander


def tip(joints):
    return arm.forward_kinematics(joints[..., :5])


def test_targets_come_at_the_rate_and_arrive_before_the_period_ends(commander):
    targets = commander.targets([0, 1, 0, -1], home())
    assert len(targets) == RATE * CONTROL_PERIOD == 10
    assert np.allclose(targets[7:], commander.goal) and not np.allclose(targets[6], commander.goal)
    assert np.allclose(tip(targets[-1]), HOME + [0, MAX_STEP, 0], atol=1e-6)
    steps = np.diff(np.concatenate([home()[None], targets[:7]]), axis=0)[1:]
    assert np.allclose(steps, steps[0], atol=1e-9)  # a straight ramp


@pytest.mark.parametrize("rate", [10, 30, 50, 100])
def test_the_rate_changes_how_fine_the_ramp_is_not_where_it_leads(rate):
    fine, usual = Commander(rate), Commander()
    fine.reset(home()), usual.reset(home())
    ours, theirs = (c.targets([0.5, -0.5, -1, 1], home()) for c in (fine, usual))
    assert len(ours) == round(rate / 5) and np.allclose(ours[-1], theirs[-1])


def test_targets_go_on_from_the_last_goal(commander):
    first = commander.targets([0, 1, 0, -1], home())
    second = commander.targets([0, 1, 0, -1], first[-1])
    assert np.abs(second[0] - first[-1]).max() < np.abs(second[-1] - first[-1]).max() / 5


def test_a_blocked_arm_does_not_wind_the_command_up(commander):
    """Pressing down for ten steps with an arm that does not move: the command stays within a step
    and a half of where the arm is.
    """
    for _ in range(10):
        commander.targets([0, 0, -1, 1], home())
    assert HOME[2] - tip(commander.goal)[2] == pytest.approx(1.5 * MAX_STEP, abs=1e-6)


def test_commands_stay_in_the_box_and_within_reach(commander):
    rng = np.random.default_rng(0)
    for _ in range(30):
        direction = np.append(rng.choice([-1, 1], 3), rng.choice([-1, 1]))
        for _ in range(8):
            where = commander.targets(direction, commander.goal)[-1]
            assert (tip(where) > WORKSPACE[:, 0] - 1e-6).all() and (
                tip(where) < WORKSPACE[:, 1] + 1e-6
            ).all()
            assert np.linalg.norm(tip(where)[:2]) < REACH + 1e-6
            assert (where >= LIMITS[:, 0]).all() and (where <= LIMITS[:, 1]).all()


def test_the_gripper_is_open_at_minus_one_and_closed_at_one(commander):
    assert (
        commander.targets([0, 0, 0, -1], home())[-1][5] == 1
        and commander.targets([0, 0, 0, 1], home())[-1][5] == 0
    )
    assert commander.targets([0, 0, 0, 0], home())[-1][5] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "action, message",
    [
        ([0, np.nan, 0, 0], "finite"),
        ([np.inf, 0, 0, 0], "finite"),
        ([0, 0, 1.2, 0], "outside"),
        ([0, 0, 0], "4 finite"),
    ],
)
def test_what_a_sound_policy_does_not_say_stops_the_arm(commander, action, message):
    goal = commander.goal
    with pytest.raises(ArmStopped, match=message):
        commander.targets(action, home())
    assert (commander.goal == goal).all()


def test_bad_use_gets_one_sentence():
    with pytest.raises(UserError, match="at least 10 Hz"):
        Commander(5)
    with pytest.raises(UserError, match="`reset`"):
        Commander().targets([0, 0, 0, 0], home())
