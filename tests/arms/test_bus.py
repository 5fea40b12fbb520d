"""The driver's side of the line: Feetech's SDK on a real pseudo-terminal, with servos in this
process that can be made to misbehave.
"""

import os
import time
import tty

import numpy as np
import pytest

pytest.importorskip("scservo_sdk", reason="the extra `arm` is not installed")

from wmpo_lite.arms.bus import BusError, BusGone, FeetechBus, ServoError  # noqa: E402
from wmpo_lite.arms.interface import JOINTS  # noqa: E402
from wmpo_lite.common.errors import UserError  # noqa: E402

ids = list(range(1, 7))


@pytest.fixture
def bus(line):
    bus = FeetechBus(line.path, ids)
    bus.open()
    bus.state()  # it knows by now how fast the line is
    yield bus
    bus.close()


def test_what_goes_over_the_line_is_what_the_manual_says(tmp_path):
    master, slave = os.openpty()
    tty.setraw(slave)
    bus = FeetechBus(os.ttyname(slave), [1, 2], tries=1)
    bus.open()
    try:
        bus.write_all("goal_position", [2048, 1024])
        assert os.read(master, 100) == bytes.fromhex("FF FF FE 0A 83 2A 02 01 00 08 02 00 04 39")
        with pytest.raises(BusError):
            bus.state()
        assert os.read(master, 100) == bytes.fromhex(
            "FF FF FE 06 82 38 0A 01 02 34"
        )  # 254 + 6 + 130 + 56 + 10 + 1 + 2 = 459 = 1CB
        with pytest.raises(BusError):
            bus.read("position", 0)
        assert os.read(master, 100) == bytes.fromhex("FF FF 01 04 02 38 02 BE")
    finally:
        bus.close(), os.close(master), os.close(slave)


def test_a_healthy_arm_passes_and_tells_its_state(bus, line):
    line.servos.all[1]["velocity"], line.servos.all[2]["load"] = -300, -500
    state = bus.check(line.calibration)
    assert state.position.tolist() == [2059, 2027, 2082, 2039, 2047, 2035]
    assert (
        state.velocity[1] == -300
        and state.load[2] == -500
        and (state.voltage == 74).all()
        and (state.temperature == 31).all()
        and not state.errors.any()
    )
    assert abs(state.time - time.monotonic()) < 1 and 0 < bus.seconds < 5
    assert [bus.ping(joint) for joint in range(6)] == [777] * 6


def test_registers_are_written_one_by_one_and_all_at_once(bus, line):
    bus.write("goal_velocity", 3, 1234)
    assert line.servos.all[3]["goal_velocity"] == 1234 == bus.read("goal_velocity", 3)
    bus.write_all("goal_position", [100, 200, 300, 400, 500, 600])
    assert [bus.read("goal_position", joint) for joint in range(6)] == [
        100,
        200,
        300,
        400,
        500,
        600,
    ]
    bus.write("homing_offset", 0, -5)
    assert bus.read("homing_offset", 0) == -5
    bus.write("position", 0, 7)  # read-only: the servo says yes and keeps its own
    assert bus.read("position", 0) == 2059


def test_registered_writes_wait_for_the_action(bus, line):
    with bus._turn():
        assert bus._packets.regWriteTxRx(bus._line, 2, 42, 2, [10, 0])[1] == 0
    assert line.servos.all[1]["goal_position"] == 0
    with bus._turn():
        bus._packets.action(bus._line, 2)
    assert line.servos.all[1]["goal_position"] == 10


@pytest.mark.parametrize("fault", ["drop", "corrupt"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_lost_or_broken_answer_is_asked_for_again(bus, line, fault, count):
    line.servos.faults[fault]["count"] = count
    begin = time.monotonic()
    state = bus.state()
    assert state.position.tolist() == [2059, 2027, 2082, 2039, 2047, 2035] and 1 <= bus.retries <= 2
    assert time.monotonic() - begin < 0.15
    line.servos.faults[fault]["count"] = 1
    assert bus.read("position", 2) == 2082


@pytest.mark.parametrize("fault", ["drop", "corrupt"])
def test_silence_ends_in_bounded_time_with_the_names(bus, line, fault):
    line.servos.faults[fault]["share"] = 1.0
    begin = time.monotonic()
    with pytest.raises(BusError, match="all six servos"):
        bus.state()
    with pytest.raises(BusError, match=r"servo of elbow_flex \(id 3\)"):
        bus.read("position", 2)
    assert time.monotonic() - begin < 0.3


def test_one_dead_servo_is_named_and_the_others_still_obey(bus, line):
    del line.servos.all[3]
    with pytest.raises(BusError, match="servo of wrist_flex on"):
        bus.state()
    with pytest.raises(UserError, match=r"no answer on .* from wrist_flex \(id 4\); check"):
        bus.check(line.calibration)
    for servo in line.servos.all:
        servo["torque_enable"] = 1
    with pytest.raises(BusError, match="wrist_flex"):
        bus.torque(False)
    assert not any(servo["torque_enable"] for servo in line.servos.all)


@pytest.mark.parametrize(
    "bits, message",
    [
        (1, "supply voltage"),
        (2, "angle sensor"),
        (4, "too hot"),
        (8, "too much current"),
        (32, "overloaded"),
    ],
)
def test_error_bits_name_the_joint(bus, line, bits, message):
    line.servos.all[2].fault = bits
    with pytest.raises(ServoError, match=f"servo of elbow_flex.*{message}"):
        bus.state().check()
    with pytest.raises(UserError, match="elbow_flex"):
        bus.check(line.calibration)


@pytest.mark.parametrize(
    "register, value, message",
    [
        ("model", 1284, "model 1284"),
        ("firmware_minor", 9, "different firmware"),
        ("voltage", 30, "3.0 V"),
        ("temperature", 80, "80 degrees"),
        ("homing_offset", 5, "holds homing_offset 5"),
        ("max_position", 4000, "holds max_position 4000"),
    ],
)
def test_an_arm_that_is_not_as_it_should_be_is_refused(bus, line, register, value, message):
    line.servos.all[1][register] = value
    with pytest.raises(UserError, match=message) as raised:
        bus.check(line.calibration)
    assert "\n" not in str(raised.value)


def test_the_calibration_can_be_stored_in_the_servos(bus, line):
    for servo in line.servos.all:
        servo["homing_offset"], servo["min_position"] = 1, 5
    bus.write_calibration(line.calibration)
    bus.check(line.calibration)
    assert all(servo["lock"] == 1 for servo in line.servos.all)


def test_lasting_registers_are_written_only_where_they_differ(bus, line):
    written = []
    store = type(line.servos.all[0]).store
    for servo in line.servos.all:
        servo.store = lambda address, data, servo=servo: (
            written.append(address),
            store(servo, address, data),
        )
    arguments = dict(velocity=np.full(6, 1000.4), torque=np.full(6, 0.7), acceleration=200)
    bus.configure(**arguments)
    lasting = lambda: {address for address in written if address < 40 or address >= 80}
    first, written[:] = lasting(), []
    bus.configure(**arguments)
    # return delay, P, maximum acceleration and the gripper's protection are not the factory's
    assert first == {7, 21, 85, 16, 28, 36} and not lasting()
    servo = line.servos.all[4]
    assert (
        servo["goal_velocity"],
        servo["torque_limit"],
        servo["acceleration"],
        servo["torque_enable"],
    ) == (1000, 700, 200, 0)


def test_what_lasts_is_what_lerobot_writes(bus, line):
    """lerobot 0.6.1: `FeetechMotorsBus.configure_motors` and `SOFollower.configure`."""
    line.servos.all[2]["phase"] = 0x1C  # counts turns
    bus.configure(velocity=np.full(6, 1000), torque=np.full(6, 0.7), acceleration=254)
    for servo in line.servos.all:
        assert (servo["phase"], servo["return_delay"], servo["mode"]) == (0x0C, 0, 0)
        assert (servo["p"], servo["i"], servo["d"]) == (16, 0, 32)
        assert (servo["maximum_acceleration"], servo["acceleration"]) == (254, 254)
        assert (servo["lock"], servo["torque_enable"]) == (1, 0)
    protection = [
        [servo[name] for name in ("max_torque", "protection_current", "overload_torque")]
        for servo in line.servos.all
    ]
    assert protection == [[1000, 500, 80]] * 5 + [[500, 250, 25]]


@pytest.mark.parametrize("seconds", [0.016, 0.028, 0.040])
def test_a_slow_line_is_waited_for_and_its_times_are_true(line, seconds):
    """Every state is what the servos held after the time that it bears."""
    line.servos.faults["slow"]["seconds"] = seconds
    bus = FeetechBus(line.path, ids)
    bus.open()
    try:
        bus.state()  # nothing is known of the line yet
        took, before = [], bus.retries
        for n in range(20):
            line.servos.all[0]["position"], changed = n, time.monotonic()
            state = bus.state()
            took.append(time.monotonic() - state.time)
            assert state.position[0] == n and state.time >= changed
        # of single questions a busy machine may answer any late, but not most of them
        assert min(took) > 0.8 * seconds and np.median(took) < seconds + 0.02
        assert bus.retries - before < 5 and min(2 * seconds, 0.05) <= bus.patience <= 0.05
    finally:
        bus.close()


@pytest.mark.parametrize("seconds", [0.016, 0.028, 0.08])
def test_an_answer_that_comes_late_is_never_taken_for_a_later_one(bus, line, seconds):
    """A line that was fast, and then holds back one answer, or all of them."""
    assert bus.patience < seconds
    for count in (1, None if seconds < 0.05 else 1):
        line.servos.faults["slow"] = {"count": count, "seconds": seconds}
        for n in range(100, 130):
            line.servos.all[0]["position"], changed = n, time.monotonic()
            state = bus.state()
            assert state.position[0] == n and state.time >= changed
    assert bus.retries >= 1 or seconds < 0.05  # a busy machine may have shown a slow line before


def test_a_pulled_cable_is_told_at_once_and_for_good(bus, line):
    bus.state()
    line.port.pull()
    begin = time.monotonic()
    for action in (
        bus.state,
        lambda: bus.read("position", 0),
        lambda: bus.write_all("goal_position", [0] * 6),
        lambda: bus.torque(False),
    ):
        with pytest.raises(BusGone, match="has gone"):
            action()
    assert time.monotonic() - begin < 0.1
    bus.close(), bus.close()
    with pytest.raises(BusGone, match="closed"):
        bus.state()


def test_an_answer_to_an_earlier_question_is_none_to_this_one(bus, line):
    from wmpo_lite.arms.protocol import packet

    os.write(line.port.master, packet(1, 0, b"\x11\x11"))
    time.sleep(0.02)
    assert bus.read("position", 0) == 2059


def test_a_line_that_only_chatters_does_not_hold_the_caller(tmp_path):
    import threading

    master, slave = os.openpty()
    tty.setraw(slave)
    bus, quiet = FeetechBus(os.ttyname(slave), ids), threading.Event()
    bus.open()
    os.set_blocking(master, False)

    def chatter():
        while not quiet.is_set():
            try:
                os.write(master, b"\x55" * 64)
            except BlockingIOError:
                time.sleep(0.0005)

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        begin = time.monotonic()
        with pytest.raises(BusError):
            bus.read("position", 0)
        with pytest.raises(BusError):
            bus.state()
        assert time.monotonic() - begin < 1
    finally:
        quiet.set(), thread.join(), bus.close(), os.close(master), os.close(slave)


def test_a_port_belongs_to_one_program_and_must_exist(bus, line):
    with pytest.raises(UserError, match="no other program"):
        FeetechBus(line.path, ids).open()
    with pytest.raises(UserError, match="cannot open the serial port /dev/none"):
        FeetechBus("/dev/none", ids).open()
    assert len(JOINTS) == len(ids)
