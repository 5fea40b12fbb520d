"""An SO-101 on a serial port, or its emulator: a thread speaks with the servos, so that commands
and observations never wait for the line.
"""

import atexit
import threading
import time
import warnings

import numpy as np

from wmpo_lite.arms.bus import BusError, BusGone, FeetechBus
from wmpo_lite.arms.calibration import Calibration, load_calibration
from wmpo_lite.arms.cameras import Camera
from wmpo_lite.arms.interface import LIMITS, Arm, ArmStopped, Observation
from wmpo_lite.arms.lifeline import Lifeline
from wmpo_lite.arms.safety import SPEED, Guard
from wmpo_lite.common.errors import UserError

PERIOD = 0.02  # s between two questions to the servos where no command comes in between
# s without any sound answer of some servo, all retries included, after which the arm is stopped
LOST = 0.15
STALE = 0.25  # s without a new picture after which it is stopped
# rad, opening: an arm that has moved by this much looks different in every picture
VISIBLE = np.array([0.05, 0.05, 0.05, 0.05, 0.05, 0.15])
REPEATS = 3  # pictures that do not: the camera is frozen
YOUNG = 0.05  # s: a joint position this old still says where a moving arm is
FASTEST = 32767  # ticks/s, the largest speed limit of a servo


def narrowed(limits: np.ndarray, by: np.ndarray) -> np.ndarray:
    """What is inside both of two pairs of limits (6, 2)."""
    low, high = np.maximum(limits, by)[:, 0], np.minimum(limits, by)[:, 1]
    return np.stack([low, high], axis=1)


class SO101(Arm):
    """LeRobot's SO-101 follower arm.

    port: serial port (/dev/ttyACM0, COM3); calibration: path of LeRobot's file, or a `Calibration`;
    camera: a `cameras.Camera`. speed: speed limit, rad/s and openings a second, one number or (6,);
    torque: share of the servos' torque, (0, 1], the gripper gets at most half; acceleration: of the
    servos, 100 ticks/s^2, 0 to 254; lost, stale: seconds of silence of a servo and of the camera
    after which the arm is stopped; guard: another `safety.Guard` than the usual one (its limits are
    narrowed to the calibrated range); write_calibration: store the file in the servos first.

    A camera that repeats one picture, bit by bit, while the arm moves counts as silent. A single
    answer that is lost or broken is asked for again and goes unnoticed; while a servo does not
    answer at all, nothing new is commanded. If the line is dead the servos hold the last target
    that they heard, which is at most one command ahead of where the arm was. A process of its own
    (`lifeline`) switches the torque off when this one is killed or hangs.
    """

    def __init__(
        self,
        port: str,
        calibration,
        camera: Camera,
        *,
        speed=SPEED,
        torque: float = 0.7,
        acceleration: int = 254,
        lost: float = LOST,
        stale: float = STALE,
        guard: Guard | None = None,
        write_calibration: bool = False,
    ):
        if not 0 < torque <= 1:
            raise UserError(
                f"torque is {torque}; expected a share of the servos' torque, more than 0 and at"
                " most 1"
            )
        if not 0 <= acceleration <= 254:
            raise UserError(
                f"acceleration is {acceleration}; expected 0 (no limit) to 254, in 100 ticks/s^2"
            )
        if not (lost > 0 and stale > 0):
            raise UserError(f"lost and stale are {lost} and {stale}; expected seconds above 0")
        self.calibration = (
            calibration if isinstance(calibration, Calibration) else load_calibration(calibration)
        )
        self.calibration.check_mechanics()
        inside = narrowed(LIMITS, self.calibration.limits)
        self.guard = guard if guard is not None else Guard(limits=inside, speed=speed)
        self.guard.limits = narrowed(self.guard.limits, inside)
        self.port = str(port)
        self.camera = camera
        self.torque = torque
        self.acceleration = acceleration
        self.lost, self.stale, self._write_calibration = lost, stale, write_calibration
        self.bus = FeetechBus(self.port, self.calibration.id)
        self._thread = None
        self._connected = False
        self.lifeline = Lifeline(self.port, self.calibration.id)
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()

    # -- the interface -----------------------------------------------------------------------------

    def connect(self) -> None:
        if self._connected:
            raise UserError("the arm is connected already")
        self._connected, self._powered = True, False  # from here on `close` has something to do
        atexit.register(self.close)
        self.camera.open()
        self.bus.open()
        calibration = self.calibration
        try:
            if self._write_calibration:
                self.bus.write_calibration(calibration)
            self.bus.check(calibration)
            velocity = np.minimum(
                1.25 * self.guard.speed * np.abs(calibration.ticks_per_unit), FASTEST
            )  # behind the guard, a second limit in the servos
            self.bus.configure(
                velocity=velocity,
                torque=np.append(np.full(5, self.torque), min(self.torque, 0.5)),
                acceleration=self.acceleration,
            )
            state = self.bus.state()
            # with an answer each: a servo that missed this would leap to an old target
            for joint, position in enumerate(state.position):
                self.bus.write("goal_position", joint, int(position))
            self.lifeline.start()
            self._powered = True
            self.bus.torque(True)
            self.lifeline.beat()
            self._take(self.bus.state())
        except BusError as error:
            raise UserError(f"{error}") from None
        self._goal = None
        self._done = None
        self._sent = state.position
        self._held = None
        self._blind = False
        self._picture, self._picture_joints, self._taken, self._repeats = None, None, None, 0
        self._closing.clear()
        self._wake.clear()
        self._reason = None
        self._thread = threading.Thread(target=self._run, name="arm bus", daemon=True)
        self._thread.start()
        self.guard.start(self, self._joints)

    def observe(self) -> Observation:
        self._need()
        frame, taken = self.camera.read()
        if time.monotonic() - taken > self.stale:
            self.stop(self._no_picture())
            self._need()
        joints, told = self._joints, self._told
        return Observation(frame, joints.copy(), taken, told)

    def command(self, joints: np.ndarray) -> None:
        self._need()
        self._goal = self._allowed(joints, time.monotonic())
        self._wake.set()
        self.guard.fed()

    def stop(self, reason: str) -> None:
        with self._lock:
            if self._reason is None:
                self._reason = reason
        self._wake.set()

    def close(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self.stop("the arm was switched off")
        self._closing.set()
        self._wake.set()
        try:
            self.guard.close()
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(timeout=2)
            self._thread = None
        finally:
            try:
                if self.bus.is_open:
                    self.bus.torque(False)
            except BusError as error:
                if self._powered:
                    warnings.warn(
                        f"the torque of the arm could not be switched off ({error}); take hold of"
                        " the arm and cut its power",
                        stacklevel=2,
                    )
            finally:
                self.bus.close()
                self.lifeline.end()
                self.camera.close()
                atexit.unregister(self.close)

    # -- figures -----------------------------------------------------------------------------------

    @property
    def bus_seconds(self) -> float:
        """Seconds spent on the serial line since the arm was connected; the difference over a
        control step is what the step costs there.
        """
        return self.bus.seconds

    # -- the thread --------------------------------------------------------------------------------

    def _run(self):
        """Commands as they come, and a question every PERIOD; once stopped, holding still until
        closed.
        """
        due = time.monotonic()
        while True:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            self.lifeline.beat()
            if self._closing.is_set():
                return
            due = time.monotonic() + PERIOD
            try:
                if self._reason is None:
                    self._exchange()
                    self._look()
            except Exception as error:
                # whatever it is: a moving arm without this thread would be worse
                known = isinstance(error, BusError | UserError)
                what = "" if known else f"{type(error).__name__} on the way to the servos: "
                self.stop(f"{what}{error}")
            try:
                if self._reason is not None:
                    self._hold()
            except BusGone:
                return  # nothing more can be said to the servos; they hold what they heard last
            except BusError:
                pass  # the next turn says it again

    def _exchange(self):
        """Send the newest target, if there is one, and ask how the servos are."""
        goal = self._goal
        if goal is not self._done and not self._blind:
            self._done, self._sent = goal, self.calibration.to_ticks(goal)
            self.bus.write_all("goal_position", self._sent)
        try:
            state = self.bus.state()
        except BusGone:
            raise
        except BusError:
            self._blind = True  # nothing new is commanded until all have answered again
            if time.monotonic() - self._told > self.lost:
                raise
            return
        self._blind = False
        self._take(state)
        state.check()

    def _take(self, state):
        self._joints, self._told = self.calibration.from_ticks(state.position), state.time
        self.state = state

    def _look(self):
        """Stop if the camera gives no new pictures."""
        picture, taken = self.camera.read()
        now, joints = time.monotonic(), self._joints
        if now - taken > self.stale:
            self.stop(self._no_picture())
        elif self._picture is None or not np.array_equal(picture, self._picture):
            self._picture, self._picture_joints, self._repeats = picture, joints, 0
        elif taken != self._taken and (np.abs(joints - self._picture_joints) > VISIBLE).any():
            self._repeats += 1
            if self._repeats >= REPEATS:
                self.stop("the camera repeats the same picture while the arm moves; is it frozen?")
        self._taken = taken

    def _no_picture(self):
        return f"the camera has given no new picture for {self.stale:g} s; was its cable pulled?"

    def _hold(self):
        """Make the place where the arm is its target; if that is not known, the last target. Again
        and again: nobody answers a packet to all.
        """
        if self._held is None:
            try:
                self._take(self.bus.state(tries=1))
            except BusGone:
                raise
            except BusError:
                pass
            known = time.monotonic() - self._told < YOUNG
            self._held = self.state.position if known else self._sent
        self.bus.write_all("goal_position", self._held)

    def _need(self):
        if self._reason is not None:
            raise ArmStopped(self._reason)
