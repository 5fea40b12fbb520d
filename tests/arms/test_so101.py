"""The SO-101's driver against the emulated arm, end to end: it moves where told, and whatever
breaks it comes to rest, says why and switches off.
"""

import os
import threading
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("scservo_sdk", reason="the extra `arm` is not installed")

from wmpo_lite.arms.bus import FeetechBus  # noqa: E402
from wmpo_lite.arms.calibration import load_calibration  # noqa: E402
from wmpo_lite.arms.cameras import Camera  # noqa: E402
from wmpo_lite.arms.interface import ArmStopped  # noqa: E402
from wmpo_lite.arms.safety import Guard  # noqa: E402
from wmpo_lite.arms.so101 import SO101  # noqa: E402
from wmpo_lite.common.errors import UserError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:the torque of the arm could not be switched off")
SWING = np.array(
    [0.35, 0.0, 0.0, 0.2, 0.3, 0.0]
)  # rad, about the posture in which an episode begins


def an_arm(desk, **options) -> SO101:
    return SO101(desk.port, desk.calibration, desk.camera(), **options)


def swing(arm, seconds: float, then=None, after: float = 1.5):
    """Move to and fro at 50 Hz, after `seconds` call `then` and go on for `after` more; the reason
    for which the arm stopped, or None, and what `then` gave.
    """
    home, begin, given = arm.observe().joints, time.monotonic(), None
    for k in range(int(50 * (seconds + after * (then is not None)))):
        time.sleep(max(0.0, begin + k / 50 - time.monotonic()))
        try:
            arm.command(home + SWING * np.sin(3 * (time.monotonic() - begin)))
            arm.observe()
        except ArmStopped as stopped:
            return stopped.reason, given
        if then is not None and given is None and time.monotonic() - begin > seconds:
            given = then() or time.monotonic()
    return None, given


def registers(desk, name) -> list[int]:
    """A register of all six servos, read by someone who comes after the arm."""
    bus = FeetechBus(desk.port, load_calibration(desk.calibration).id)
    bus.open()
    try:
        return [bus.read(name, joint) for joint in range(6)]
    finally:
        bus.close()


def rest_after(desk, begin: float) -> float:
    """Seconds from `begin` until the last joint has come to rest for good."""
    time.sleep(max(0.0, begin + 0.7 - time.monotonic()))
    assert np.abs(desk.moving()).max() < 0.05
    return desk.last_motion(0.05) - begin


def test_it_reaches_its_targets_and_leaves_with_torque_off(desk):
    with an_arm(desk) as arm:
        first = arm.observe()
        assert (
            first.frame.shape == (32, 32, 3) and np.abs(first.joints - desk.joints()).max() < 2e-3
        )
        goal = first.joints + [0.4, 0.1, -0.2, 0.3, -0.5, -0.7]
        longest = 0.0
        for part in np.linspace(0, 1, 50):
            begin = time.perf_counter()
            arm.command(first.joints + part * (goal - first.joints))
            longest = max(longest, time.perf_counter() - begin)
            time.sleep(0.02)
        for _ in range(30):
            arm.command(goal)
            time.sleep(0.02)
        seen = arm.observe()
        assert (
            np.abs(seen.joints - goal).max() < 0.015 and np.abs(desk.joints() - goal).max() < 0.015
        )
        assert (
            abs(seen.joint_time - time.monotonic()) < 0.2
            and abs(seen.frame_time - time.monotonic()) < 0.4
            and (seen.frame != first.frame).any()
        )
        assert longest < 0.02 and 0 < arm.bus_seconds < 5 and arm.stopped is None
        held = arm.bus
        assert [held.read("torque_enable", joint) for joint in range(6)] == [1] * 6
        assert (
            held.read("torque_limit", 0) == 700
            and held.read("torque_limit", 5) == 500
            and held.read("acceleration", 0) == 254
        )
    assert registers(desk, "torque_enable") == [0] * 6
    with pytest.raises(ArmStopped, match="switched off"):
        arm.command(goal)


def test_connecting_moves_nothing(desk):
    bus = FeetechBus(desk.port, load_calibration(desk.calibration).id)
    bus.open()
    bus.write_all("goal_position", [2047] * 6)  # what an earlier program left there
    bus.close()
    here = desk.joints()
    with an_arm(desk):
        time.sleep(0.3)
        assert np.abs(desk.joints() - here).max() < 5e-3


def test_a_servo_that_counts_turns_is_set_right_before_its_position_is_believed(desk):
    bus = FeetechBus(desk.port, load_calibration(desk.calibration).id)
    bus.open()
    before = bus.state().position
    for joint in range(6):
        bus.write("phase", joint, bus.read("phase", joint) | 0x10)
    time.sleep(0.1)
    assert (bus.state().position == before - 4096).all()
    bus.close()
    here = desk.joints()
    with an_arm(desk) as arm:
        time.sleep(0.3)
        assert np.abs(arm.observe().joints - here).max() < 5e-3
        assert np.abs(desk.joints() - here).max() < 5e-3
    assert not any(phase & 0x10 for phase in registers(desk, "phase"))


@pytest.mark.parametrize("seconds", [0.016, 0.028])
def test_an_arm_on_a_slow_line_moves_and_holds_where_it_was_stopped(desk, seconds):
    desk.fault("slow", seconds=seconds)
    with an_arm(desk) as arm:
        assert swing(arm, 0.5)[0] is None
        assert time.monotonic() - arm.observe().joint_time < 2 * seconds + 0.05
        arm.stop("enough")
        time.sleep(0.4)
        ticks = arm.calibration.to_ticks(desk.joints())
        assert np.abs(arm._held - ticks).max() < 25  # not the last target, but where it was


def test_leaps_are_slowed_down_and_limits_kept(desk):
    with an_arm(desk, speed=0.5) as arm:
        start, begin = arm.observe().joints, time.monotonic()
        while time.monotonic() - begin < 0.6:
            arm.command(start + [3, 0, 0, 0, 0, 0])  # beyond the limit of 1.92 rad
            time.sleep(0.02)
        assert 0.15 < desk.joints()[0] - start[0] < 0.5 and arm.guard.pulled_back["speed"] > 10


@pytest.mark.parametrize(
    "name, how, within, message",
    [
        ("drop", {"share": 1.0}, 0.5, "no sound answer from all six servos"),
        ("corrupt", {"share": 1.0}, 0.5, "no sound answer from all six servos"),
        ("error", {"joint": "elbow_flex", "bits": 4}, 0.3, "servo of elbow_flex is too hot"),
        ("error", {"joint": "gripper", "bits": 32}, 0.3, "gripper is overloaded"),
        ("camera", {"how": "stop"}, 0.5, "no new picture for 0.25 s"),
        ("camera", {"how": "repeat"}, 0.5, "repeats the same picture"),
        ("pull", {}, 0.3, "has gone"),
        ("die", {}, None, "has gone"),
    ],
)
def test_whatever_breaks_for_good_the_arm_comes_to_rest_and_says_why(
    desk, states, name, how, within, message
):
    if name == "die":
        from wmpo_lite.arms.emulator import Emulator
        from wmpo_lite.envs.tabletop.tasks import get_task

        with Emulator(get_task("place"), states, size=32) as mortal, an_arm(mortal) as arm:
            reason, _ = swing(arm, 0.3, lambda: mortal.fault("die"))
        assert message in reason
        return
    with an_arm(desk) as arm:
        reason, begin = swing(arm, 0.3, lambda: desk.fault(name, **how))
        assert reason is not None and message in reason and "\n" not in reason
        assert rest_after(desk, begin) < within
        for call in (arm.observe, lambda: arm.command(np.zeros(6))):
            with pytest.raises(ArmStopped) as stopped:
                call()
            assert stopped.value.reason == reason  # the first reason stays
    desk.fault("none")
    if name != "pull":
        return
    with an_arm(desk) as again:  # the same arm, cable plugged in again
        assert swing(again, 0.2)[0] is None


@pytest.mark.parametrize(
    "name, how",
    [
        ("drop", {"count": 1}),
        ("corrupt", {"count": 1}),
        ("drop", {"share": 0.02}),
        ("corrupt", {"share": 0.02}),
    ],
)
def test_a_lost_or_broken_answer_now_and_then_is_ridden_out(desk, name, how):
    with an_arm(desk) as arm:
        reason, begin = swing(arm, 0.2, lambda: desk.fault(name, **how), after=0.6)
        assert reason is None and begin is not None and arm.bus.retries >= 1


def test_commands_that_are_no_numbers_stop_the_arm(desk):
    with an_arm(desk) as arm:
        assert swing(arm, 0.3)[0] is None
        begin = time.monotonic()
        with pytest.raises(ArmStopped, match="finite numbers"):
            arm.command([0, 0, np.nan, 0, 0, 0])
        assert rest_after(desk, begin) < 0.4


def test_an_arm_that_nobody_commands_any_more_stops_by_itself(desk):
    with an_arm(desk) as arm:
        time.sleep(0.8)
        assert arm.stopped is None  # nobody has begun to
        assert swing(arm, 0.3)[0] is None
        begin = time.monotonic()
        assert rest_after(desk, begin) < 0.5
        with pytest.raises(ArmStopped, match="no command for 0.5 s"):
            arm.observe()


def test_another_thread_can_stop_it(desk):
    with an_arm(desk) as arm:
        threading.Timer(0.3, arm.stop, ["somebody pressed the key"]).start()
        reason, _ = swing(arm, 2)
        assert reason == "somebody pressed the key"


def test_a_stopped_arm_stays_where_it_is_until_it_is_connected_anew(desk):
    with an_arm(desk) as arm:
        swing(arm, 0.4)
        arm.stop("enough")
        time.sleep(0.3)
        here = desk.joints()
        time.sleep(0.4)
        assert np.abs(desk.joints() - here).max() < 2e-3
        arm.close()
        arm.connect()
        assert swing(arm, 0.3)[0] is None


@pytest.mark.parametrize("error", [ValueError("a fault in the policy"), KeyboardInterrupt()])
def test_torque_goes_off_on_any_exception(desk, error):
    with pytest.raises(type(error)):
        with an_arm(desk) as arm:
            swing(arm, 0.2)
            raise error
    assert registers(desk, "torque_enable") == [0] * 6


def test_torque_is_tried_even_if_nobody_answers_and_its_failure_is_told(desk):
    with pytest.warns(UserWarning, match="take hold of the arm and cut its power"):
        with an_arm(desk) as arm:
            swing(arm, 0.2)
            desk.fault("drop", share=1.0)
    desk.fault("none")
    assert registers(desk, "torque_enable") == [0] * 6  # the servos heard it all the same


def test_nothing_is_left_of_a_connection(desk):
    def things():
        return set(os.listdir("/proc/self/fd")), sorted(
            thread.name for thread in threading.enumerate()
        )

    before = things()
    for fault in (None, "pull", "drop"):
        arm = an_arm(desk)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with arm:
                swing(arm, 0.1)
                if fault:
                    desk.fault(fault)
                    time.sleep(0.1)
            arm.close()
        desk.fault("none")
        assert things() == before


def test_an_arm_that_cannot_be_is_refused_and_nothing_stays_open(desk, tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="cannot open the serial port"):
        SO101(str(tmp_path / "none"), desk.calibration, desk.camera()).__enter__()
    other = tmp_path / "other.json"
    other.write_text(desk.calibration.read_text().replace("812", "811"))
    with pytest.raises(UserError, match="holds homing_offset 812 and .*other.json says 811"):
        SO101(desk.port, other, desk.camera()).__enter__()
    desk.fault("error", joint="gripper", bits=1)
    with pytest.raises(UserError, match="gripper has a supply voltage"):
        an_arm(desk).__enter__()
    desk.fault("none")

    class Blind(Camera):
        def open(self):
            raise UserError("camera 0 gives no picture")

        def read(self):
            raise AssertionError

    with pytest.raises(UserError, match="no picture"):
        SO101(desk.port, desk.calibration, Blind()).__enter__()
    with an_arm(desk) as arm, pytest.raises(UserError, match="connected already"):
        arm.connect()
    assert set(os.listdir("/proc/self/fd")) == before
    assert registers(desk, "torque_enable") == [0] * 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"torque": 0.0}, "torque is 0.0"),
        ({"acceleration": 300}, "acceleration is 300"),
        ({"stale": 0.0}, "seconds above 0"),
        ({"speed": -1.0}, "above 0"),
    ],
)
def test_bad_options_get_one_sentence(desk, options, message):
    with pytest.raises(UserError, match=message):
        an_arm(desk, **options)


def test_a_guard_of_ones_own_is_narrowed_to_the_calibrated_range(desk):
    arm = an_arm(desk, guard=Guard(limits=np.array([[-9.0, 9.0]] * 5 + [[0.0, 1.0]])))
    assert np.abs(arm.guard.limits[:5]).max() < 3.2
    assert np.allclose(arm.guard.limits[0], [-1.92, 1.92], atol=0.01)
