"""Six servos on one serial line, through Feetech's SDK: registers, one fast question for the state
of all, and faults told apart.

The SDK leaves three things to its caller: it waits in a busy loop, it never gives up on a line that
only chatters, and a cable that is pulled shows as whatever the operating system raises at that
moment. The port below waits in the system and stops listening to chatter, and the bus raises
`BusGone`.
"""

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from wmpo_lite.arms import protocol
from wmpo_lite.arms.calibration import Calibration
from wmpo_lite.arms.interface import JOINTS
from wmpo_lite.common.errors import UserError

BAUD_RATE = 1_000_000
# s that an answer may take beyond its bytes on the line, at least and at most. Between them the bus
# waits twice as long as the slowest of the last answers took (`SEEN` of them): an adapter may keep
# every byte for 16 ms, and Feetech's SDK waits 34 ms, LeRobot 50.
PATIENCE, LONGEST, SEEN = 0.010, 0.050, 128
CALM = 0.030  # s, at least, for one servo: asked before and after the arm moves, never meanwhile
TRIES = 3  # questions before an answer counts as lost
TOO_HOT, VOLTAGE = 65, (4.5, 13.5)  # Celsius, V: outside an arm is not switched on
CHATTER = 1024  # bytes in one answer's time that only a line full of noise can have
BLOCK = ("position", 10)  # one question reads the bytes from `position` to `status`
# Questions of different lengths: their answers tell by their own which question they belong to.
LENGTHS = 8
SETTLED = 0.02  # s after which a servo whose `phase` was changed tells its position anew
# Of every servo and of the gripper, which may close on something for minutes; all LeRobot's.
LASTING = {"return_delay": 0, "mode": 0, "p": 16, "i": 0, "d": 32, "maximum_acceleration": 254}
GRIPPER = {"max_torque": 500, "protection_current": 250, "overload_torque": 25}


class BusError(RuntimeError):
    """No sound answer from a servo in all tries; the text names it."""


class BusGone(BusError):
    """The serial port itself does not work any more."""


class ServoError(BusError):
    """A servo reports an error; the text names the joint and says which."""


@dataclass(frozen=True)
class State:
    """What six servos told, int64 (6,) each: position in ticks, velocity in ticks/s, load in 1/1000
    of the limit, voltage in 0.1 V, temperature in Celsius, errors as bits; time: seconds of
    `time.monotonic` at which the question was sent, so that nothing here is older, however slow the
    line (of several questions the first that was answered).
    """

    position: np.ndarray
    velocity: np.ndarray
    load: np.ndarray
    voltage: np.ndarray
    temperature: np.ndarray
    errors: np.ndarray
    time: float

    def check(self) -> None:
        """ServoError if any servo reports an error."""
        bits = [(joint, int(bits)) for joint, bits in zip(JOINTS, self.errors) if bits]
        if bits:
            told = "; ".join(protocol.sentence(*pair) for pair in bits)
            raise ServoError(f"{told}; switch the arm off, find the cause and start again")


class FeetechBus:
    """The servos `ids` (6,) at serial port `port`. Any thread may call; one call at a time has the
    line.

    tries: questions before BusError, each with more patience than the one before. A call takes at
    most tries x (`LONGEST` + the time of its bytes). seconds: time spent on the line since it was
    opened; retries: answers that had to be asked for again.
    """

    def __init__(self, port: str, ids, *, tries: int = TRIES, exclusive: bool = True):
        self.exclusive = exclusive
        self.port, self.ids, self.tries = str(port), [int(i) for i in ids], tries
        self._line, self._lock = None, threading.RLock()
        self._forget()

    def _forget(self):
        self.seconds, self.retries = 0.0, 0
        self._took, self._asked_at, self._unanswered = deque(maxlen=SEEN), {}, 0

    @property
    def patience(self) -> float:
        """Seconds that an answer may take beyond its bytes, by what the line has been like."""
        return min(max(2 * max(self._took), PATIENCE), LONGEST) if self._took else LONGEST

    @property
    def calm(self) -> float:
        """The same for one servo."""
        return max(self.patience, CALM)

    def open(self) -> None:
        """Open the port, for this process alone if `exclusive`. UserError if it cannot be."""
        try:
            import scservo_sdk
            import serial
        except ImportError as error:
            raise UserError(
                f"the SO-101 needs Feetech's SDK and pyserial, and {error.name} is not installed;"
                " run: pip install 'wmpo_lite[arm]'"
            ) from None
        try:
            self._line = _port_class(scservo_sdk, serial)(self.port, self.exclusive)
            self._line.openPort()
        except Exception as error:
            # SerialException, OSError, ValueError, termios.error: each says why
            self._line = None
            raise UserError(
                f"cannot open the serial port {self.port} ({error}); check the cable, the name of"
                " the port (Linux: ls /dev/ttyACM*), the right to use it (sudo usermod -aG dialout"
                " $USER, then log in again) and that no other program has it open"
            ) from None
        self._packets = scservo_sdk.PacketHandler(0)
        self._forget()

    def close(self) -> None:
        """Release the port; torque stays as it is. Safe to call twice."""
        with self._lock:
            line, self._line = self._line, None
            if line is not None:
                try:
                    line.closePort()
                except Exception:
                    # a pulled cable may fail here too, and there is nothing left to release
                    pass

    @property
    def is_open(self) -> bool:
        return self._line is not None

    # -- registers of one servo --------------------------------------------------------------------

    def read(self, name: str, joint: int) -> int:
        """A register of the servo of joint number `joint`."""
        address, size = protocol.REGISTERS[name]
        ask = lambda: self._packets.readTxRx(self._line, self.ids[joint], address, size)
        data, _ = self._asked(joint, name, size, ask)
        return protocol.decode(name, bytes(data))

    def write(self, name: str, joint: int, value: int) -> None:
        """Write a register and wait until the servo has said that it did."""
        data = list(protocol.encode(name, value))
        address = protocol.REGISTERS[name][0]

        def once():
            result, error = self._packets.writeTxRx(
                self._line, self.ids[joint], address, len(data), data
            )
            return [], result, error

        self._asked(joint, name, 0, once)

    def ping(self, joint: int) -> int:
        """Whether a servo is there: its model number."""

        def once():
            _, result, error = self._packets.txRxPacket(
                self._line, [0, 0, self.ids[joint], 2, protocol.PING, 0]
            )
            return [], result, error

        self._asked(joint, "ping", 0, once)
        return self.read("model", joint)

    def _asked(self, joint, name, size, once):
        """Ask until a sound answer has come: (data, error bits)."""
        for attempt in range(self.tries):
            begin = time.monotonic()
            with self._turn(self.calm):
                data, result, error = once()
            sound = result == 0 and len(data) == size
            if attempt or not sound:
                # answers to earlier tries may be on their way: they come now, and are not taken for
                # one to the next question
                time.sleep(self.calm)
            if sound:
                if not attempt:
                    self._took.append(time.monotonic() - begin)
                return data, error
            self.retries += 1
        raise BusError(
            f"no answer from the servo of {JOINTS[joint]} (id {self.ids[joint]}) on {self.port}"
            f" ({name}); check its cable and the power supply"
        )

    # -- all servos at once ------------------------------------------------------------------------

    def write_all(self, name: str, values) -> None:
        """Write a register of all six in one packet; servos do not answer it."""
        address, size = protocol.REGISTERS[name]
        parts = ((i, *protocol.encode(name, int(value))) for i, value in zip(self.ids, values))
        data = [byte for part in parts for byte in part]
        with self._turn():
            if self._packets.syncWriteTxOnly(self._line, address, size, data, len(data)) != 0:
                raise BusError(f"the packet for {name} could not be sent on {self.port}")

    def state(self, tries: int | None = None) -> State:
        """Ask all six in one packet, again for those whose answer is missing or broken; BusError
        names who stays silent.
        """
        address, asked, answers = protocol.REGISTERS[BLOCK[0]][0], set(), {}
        for attempt in range(tries or self.tries):
            missing = [ident for ident in self.ids if ident not in answers]
            size = BLOCK[1] + self._unanswered % LENGTHS
            with self._turn(min(4**attempt * self.patience, LONGEST)):  # a busy machine is late
                self._asked_at[size] = time.monotonic()
                asked.add(size)
                if self._packets.syncReadTx(self._line, address, size, missing, len(missing)) != 0:
                    raise BusError(f"a question could not be sent on {self.port}")
                while len(answers) < len(self.ids):
                    packet, result = self._packets.rxPacket(self._line)
                    length = len(packet) - 6
                    if result == 0 and length in self._asked_at:
                        self._took.append(time.monotonic() - self._asked_at[length])
                        if packet[2] in missing and length in asked:  # else: an earlier call's
                            answers[packet[2]] = self._asked_at[length], packet[4], packet[5:-1]
                    elif result != 0 and self._line.late:
                        break
            complete = len(answers) == len(self.ids)
            self._unanswered += bool(attempt) or not complete
            if complete:
                break
            self.retries += 1
        else:
            silent = [joint for joint, ident in zip(JOINTS, self.ids) if ident not in answers]
            who = (
                "all six servos" if silent == list(JOINTS) else f"the servo of {', '.join(silent)}"
            )
            raise BusError(
                f"no sound answer from {who} on {self.port}; check the cables and the power supply"
            )
        rows = [answers[ident] for ident in self.ids]

        def column(name):
            start, length = protocol.REGISTERS[name][0] - address, protocol.REGISTERS[name][1]
            return np.array(
                [protocol.decode(name, bytes(data[start : start + length])) for *_, data in rows]
            )

        errors = column("status") | np.array([error for _, error, _ in rows])
        return State(
            *(column(name) for name in ("position", "velocity", "load", "voltage", "temperature")),
            errors,
            min(sent for sent, _, _ in rows),
        )

    # -- the arm -----------------------------------------------------------------------------------

    def check(self, calibration: Calibration) -> State:
        """Six servos of the right model with one firmware, healthy, calibrated as the file says:
        their state. UserError where not.
        """
        silent, models = [], []
        for joint, name in enumerate(JOINTS):
            try:
                models.append(self.ping(joint))
            except BusGone:
                raise
            except BusError:
                silent.append(f"{name} (id {self.ids[joint]})")
        if silent:
            raise UserError(
                f"no answer on {self.port} from {', '.join(silent)}; check the power supply, the"
                " cables between the servos and their ids"
            )
        for name, model in zip(JOINTS, models):
            if model not in protocol.MODELS:
                raise UserError(
                    f"the servo of {name} is model {model}, expected"
                    f" {' or '.join(f'{k} ({v})' for k, v in protocol.MODELS.items())}: is this an"
                    " SO-101 follower?"
                )
        firmware = {
            (self.read("firmware_major", joint), self.read("firmware_minor", joint))
            for joint in range(len(JOINTS))
        }
        if len(firmware) > 1:
            raise UserError(
                "the servos have different firmware"
                f" ({', '.join(f'{a}.{b}' for a, b in sorted(firmware))}), and LeRobot refuses such"
                " an arm too; update them with Feetech's software"
            )
        state = self.state()
        for name, voltage, temperature in zip(JOINTS, state.voltage / 10, state.temperature):
            if not VOLTAGE[0] <= voltage <= VOLTAGE[1]:
                raise UserError(
                    f"the servo of {name} has {voltage:.1f} V, expected {VOLTAGE[0]} to"
                    f" {VOLTAGE[1]}; check the power supply"
                )
            if temperature > TOO_HOT:
                raise UserError(
                    f"the servo of {name} is at {temperature} degrees Celsius, more than {TOO_HOT};"
                    " let the arm cool down"
                )
        try:
            state.check()
        except ServoError as error:
            raise UserError(str(error)) from None
        for joint, name in enumerate(JOINTS):
            for register, wanted in self._calibrated(calibration, joint):
                if (found := self.read(register, joint)) != wanted:
                    raise UserError(
                        f"the servo of {name} holds {register} {found} and {calibration.source}"
                        f" says {wanted}: the file is of another arm or an older calibration; run"
                        " `lerobot-calibrate`, or write the file into the servos with"
                        " write_calibration=True if it is right"
                    )
        return state

    def write_calibration(self, calibration: Calibration) -> None:
        """Store the file's homing offsets and limits in the servos (torque goes off)."""
        for joint in range(len(JOINTS)):
            self._store(joint, self._calibrated(calibration, joint))

    def configure(self, *, velocity, torque, acceleration: int) -> None:
        """Torque off, position mode with LeRobot's gains and protection of the gripper, and the
        limits: velocity (6,) ticks/s, torque (6,) shares of the servo's own, acceleration in 100
        ticks/s^2 (0 to 254). Lasting registers are only written where they differ, because they
        wear out. A servo that counted turns tells another position from now on.
        """
        for joint, name in enumerate(JOINTS):
            phase = self.read("phase", joint)
            wanted = {"phase": phase & ~protocol.MANY_TURNS, **LASTING}
            self._store(joint, (wanted | (GRIPPER if name == "gripper" else {})).items())
            if phase != wanted["phase"]:
                time.sleep(SETTLED)
            self.write("acceleration", joint, acceleration)
            self.write("goal_velocity", joint, max(1, round(velocity[joint])))
            self.write("torque_limit", joint, round(1000 * torque[joint]))

    def torque(self, on: bool) -> None:
        """Torque of all six, each asked until it has answered; off is tried on every servo before
        an error is raised.
        """
        if on:
            for joint in range(len(JOINTS)):
                self.write("torque_enable", joint, 1)
            return
        failed = None
        for attempt in (
            lambda: self.write_all("torque_enable", [0] * len(JOINTS)),
            *(lambda j=j: self.write("torque_enable", j, 0) for j in range(len(JOINTS))),
        ):
            try:
                attempt()
            except BusGone:
                raise
            except BusError as error:
                failed = error
        if failed:
            raise failed

    @staticmethod
    def _calibrated(calibration, joint):
        return (
            ("homing_offset", int(calibration.homing_offset[joint])),
            ("min_position", int(calibration.range_min[joint])),
            ("max_position", int(calibration.range_max[joint])),
        )

    def _store(self, joint, registers):
        self.write("torque_enable", joint, 0)
        changed = [(name, value) for name, value in registers if self.read(name, joint) != value]
        if changed:
            self.write("lock", joint, 0)
            for name, value in changed:
                self.write(name, joint, value)
            self.write("lock", joint, 1)

    @contextmanager
    def _turn(self, patience: float | None = None):
        """One turn on the line: alone, timed, and with everything that a pulled cable raises turned
        into BusGone.
        """
        with self._lock:
            if self._line is None:
                raise BusGone(f"the serial port {self.port} is closed")
            begin = time.perf_counter()
            self._line.patience = 1000 * (patience or self.patience)
            try:
                yield
            except Exception as error:
                if isinstance(error, BusError) or not _is_serial(error):
                    raise
                raise BusGone(
                    f"the serial port {self.port} has gone ({error}); was the cable pulled or the"
                    " power cut?"
                ) from error
            finally:
                self._line.is_using = False  # the SDK forgets this on its way out of an error
                self.seconds += time.perf_counter() - begin


def _is_serial(error) -> bool:
    return isinstance(error, OSError) or type(error).__module__ in ("termios", "serial.serialutil")


def _port_class(sdk, serial):
    """The SDK's port, waiting in the operating system instead of a busy loop, with a clock that
    nobody sets and a deadline that holds.
    """

    class Port(sdk.PortHandler):
        def __init__(self, name, exclusive):
            super().__init__(name)
            self.baudrate, self.patience, self._deadline, self._heard = BAUD_RATE, 0.0, 0.0, 0
            self.exclusive = exclusive

        def setupPort(self, _):
            # 2 ms a read: long enough to sleep in, short enough to keep the deadline.
            times = {"timeout": 0.002, "write_timeout": 0.05}
            alone = self.exclusive or None
            self.ser = serial.Serial(self.port_name, self.baudrate, exclusive=alone, **times)
            self.is_open, self.tx_time_per_byte = True, 10 * 1000.0 / self.baudrate
            self.ser.reset_input_buffer()
            return True

        def clearPort(self):
            # called before every packet: a late answer to an earlier question is none to this one
            self.ser.reset_input_buffer()

        def getCurrentTime(self):
            return 1000 * time.perf_counter()

        def setPacketTimeout(self, packet_length):
            self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + self.patience)

        def setPacketTimeoutMillis(self, msec):
            super().setPacketTimeoutMillis(msec)
            self._deadline, self._heard = self.packet_start_time + msec, 0

        @property
        def late(self) -> bool:
            return self.getCurrentTime() > self._deadline

        def readPort(self, length):
            if self._heard > CHATTER and self.late:
                return b""
            data = self.ser.read(length)
            self._heard += len(data)
            return data

    return Port
