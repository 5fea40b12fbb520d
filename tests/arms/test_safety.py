"""The guard of every arm: what commands become, and what happens when none come."""

import threading
import time

import numpy as np
import pytest

from wmpo_lite.arms.control import home
from wmpo_lite.arms.interface import LIMITS, ArmStopped
from wmpo_lite.arms.safety import APPROACH, MARGIN, PAUSE, SPEED, Guard
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import arm
from wmpo_lite.envs.tabletop.env import WORKSPACE

FOLDED = np.array([0.0, -1.7, 1.6, 1.2, 0.0, 0.0])  # an arm at rest, hand pointing forward
UP = np.array([0.3, -0.5, -0.2, 0.0, 0.0, 0.5])  # stretched up
FLAT = np.array([-1.5, 0.6, 0.4, 0.3, 0.0, 0.0])  # off to the side


class Stopped:
    """Something that can be stopped, and says when and why."""

    def __init__(self):
        self.reason, self.when, self.event = None, None, threading.Event()

    def stop(self, reason):
        self.reason, self.when = reason, time.monotonic()
        self.event.set()


@pytest.fixture
def guard():
    guard = Guard()
    guard.start(Stopped(), home())
    yield guard
    guard.close()


def tip(joints):
    return arm.forward_kinematics(joints[:5])


def posture(x, y, z, grip=1.0):
    return np.append(arm.inverse_kinematics(np.array([x, y, z])), grip)


def walk(guard, goal, begin=1.0, seconds=3.0):
    """Command `goal` fifty times a second and return every allowed command (N, 6)."""
    return np.stack([guard.check(goal, begin + k / 50) for k in range(round(50 * seconds))])


@pytest.mark.parametrize("bad", [[0, 0, 0, 0, 0, np.nan], [np.inf, 0, 0, 0, 0, 0], [0, 0, 0], None])
def test_nonsense_stops_the_arm(guard, bad):
    with pytest.raises(ArmStopped, match="6 finite numbers"):
        guard.check(np.array(bad, dtype=float), 1.0)
    assert np.allclose(walk(guard, home())[-1], home())  # and leaves no trace in the guard


def test_a_command_within_the_limits_is_left_alone(guard):
    wanted = posture(0.18, 0.01, 0.09)
    assert (guard.check(wanted, 1.0) == wanted).all() and guard.pulled_back == {
        "joint": 0,
        "speed": 0,
        "box": 0,
    }


def test_speed_is_limited_from_the_measured_posture_on(guard):
    goal = posture(0.15, 0.1, 0.05, grip=0.0)
    path = np.concatenate([home()[None], walk(guard, goal)])
    assert (np.abs(np.diff(path[1:], axis=0)) <= SPEED / 50 + 1e-9).all()
    assert (np.abs(path[1] - path[0]) <= SPEED * PAUSE + 1e-9).all()
    assert np.allclose(path[-1], goal) and guard.pulled_back["speed"] > 1


def test_a_late_command_is_no_leap(guard):
    guard.check(home(), 1.0)
    far = posture(0.15, 0.11, 0.03)
    after = guard.check(far, 60.0)
    assert (np.abs(after - home()) <= SPEED * PAUSE + 1e-9).all() and not np.allclose(after, far)


def test_two_commands_at_once_do_not_add_up(guard):
    far = posture(0.15, 0.11, 0.03)
    first = guard.check(far, 1.0)
    assert np.allclose(guard.check(far, 1.0), first)


def test_joints_stay_in_their_range():
    guard = Guard(box=((-1, 1), (-1, 1), (-1, 1)), limits=LIMITS / 2)
    guard.start(Stopped(), np.zeros(6))
    end = walk(guard, np.full(6, 5.0), seconds=5)[-1]
    assert (end == LIMITS[:, 1] / 2).all() and guard.pulled_back["joint"] > 0
    guard.close()


def test_tips_never_leave_the_box_and_may_always_come_back(guard):
    rng = np.random.default_rng(0)
    low, high = WORKSPACE[:, 0] - MARGIN - 1e-6, WORKSPACE[:, 1] + MARGIN + 1e-6
    clock = 0.0
    for _ in range(40):
        path = walk(guard, rng.uniform(LIMITS[:, 0], LIMITS[:, 1]), clock, seconds=1)
        assert all(((tip(j) >= low) & (tip(j) <= high)).all() for j in path)
        clock += 1
    assert guard.pulled_back["box"] > 20
    assert np.allclose(walk(guard, home(), clock)[-1], home())


@pytest.mark.parametrize("posture", [FOLDED, UP, FLAT])
def test_an_arm_in_any_posture_comes_in_slowly_and_then_stays(guard, posture):
    guard.start(Stopped(), posture)
    assert not guard.works(posture) and guard.works(home())
    path = np.concatenate([posture[None], walk(guard, home(), seconds=10)])
    assert np.allclose(path[-1], home())
    arrived = int(np.argmax([guard.works(j) for j in path]))
    assert (np.abs(np.diff(path[1:arrived], axis=0)) <= APPROACH * SPEED / 50 + 1e-9).all()
    assert all(guard.outside(j) == 0 for j in path[arrived:])
    assert all(guard.outside(j) <= 1e-6 for j in walk(guard, UP, 20.0))  # there is no way out again


def test_an_arm_on_its_way_in_may_not_dive_below_the_table(guard):
    below = np.array([0.0, 1.7, -0.2, 0.2, 0.0, 1.0])
    assert tip(below)[2] < -0.1
    guard.start(Stopped(), UP)
    path = walk(guard, below, seconds=10)
    assert (
        all(tip(j)[2] >= WORKSPACE[2, 0] - MARGIN - 1e-6 for j in path)
        and guard.pulled_back["box"] > 0
    )


def test_the_watchdog_stops_an_arm_that_hears_nothing_within_half_a_second():
    arm, guard = Stopped(), Guard()
    guard.start(arm, home())
    assert not arm.event.wait(0.7)  # it sleeps until the first command
    begin = time.monotonic()
    for _ in range(40):
        guard.fed()
        time.sleep(0.02)
    assert arm.reason is None
    last = time.monotonic()
    guard.fed()
    assert (
        arm.event.wait(2) and 0.4 < arm.when - last < 0.6 and arm.reason == "no command for 0.5 s"
    )
    assert last - begin > 0.7
    guard.close()


def test_a_resting_arm_needs_no_commands():
    arm, guard = Stopped(), Guard(watchdog=0.1)
    guard.start(arm, home())
    guard.fed()
    guard.rest()
    assert not arm.event.wait(0.3)
    guard.fed()
    assert arm.event.wait(1)
    guard.close(), guard.close()


def test_a_closed_guard_stops_nothing():
    arm, guard = Stopped(), Guard(watchdog=0.1)
    guard.start(arm, home())
    guard.fed()
    guard.close()
    assert not arm.event.wait(0.3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limits": [[0, 1]] * 5}, "6 pairs"),
        ({"limits": [[1, 0]] * 6}, "low below high"),
        ({"box": [[0, 1]] * 2}, "three pairs"),
        ({"speed": 0}, "above 0"),
        ({"margin": -1}, "0 m or more"),
        ({"watchdog": 0}, "watchdog above"),
    ],
)
def test_bad_limits_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        Guard(**options)
