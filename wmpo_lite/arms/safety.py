"""What keeps every arm safe, simulated or real: limits of joints, speed and room on each command,
and a watchdog over their stream.
"""

import threading
import time

import numpy as np

from wmpo_lite.arms.interface import LIMITS, WATCHDOG, Arm, ArmStopped
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import arm
from wmpo_lite.envs.tabletop.env import WORKSPACE

# rad/s, and openings a second: above what a policy's steps ask for, below what an STS3215 can do
SPEED = np.array([4.0, 4.0, 4.0, 4.0, 6.0, 8.0])
# m around the box of the commands: joints that move in straight lines carry the tips a little past
# its faces
MARGIN = 0.015
APPROACH = 0.25  # of the speed limit while the arm is still on its way into its working posture
DOWN = 0.35  # rad by which the hand may be off pointing straight down in a working posture
# s: after a longer silence a command may go no farther than after this one, so a late command is no
# leap
PAUSE = 0.1
POLL = 0.01  # s between two looks of the watchdog


class Guard:
    """Checks every command of one arm and stops the arm when no more come.

    limits (6, 2): joint limits; speed (6,): how fast targets may move, rad/s and openings a second;
    box (3, 2): where the finger tips may be, meters, by forward kinematics; margin: meters that a
    target may leave it by; watchdog: seconds without a command after which the arm is stopped.

    A target outside is not refused but pulled back: a joint to its limit, a leap to what the speed
    allows, a tip that would leave the box to the last point of its way inside. An arm that is
    connected in another than a working posture (tips in the box, hand pointing down) moves at a
    quarter of the speed until it has been in one; on that way only the floor of the box stops it.
    `pulled_back` counts, by name, how many commands a limit changed.
    """

    def __init__(
        self,
        *,
        limits=LIMITS,
        speed=SPEED,
        box=WORKSPACE,
        margin: float = MARGIN,
        watchdog: float = WATCHDOG,
    ):
        self.limits = np.asarray(limits, dtype=np.float64)
        self.box = np.asarray(box, dtype=np.float64)
        self.speed = np.broadcast_to(np.asarray(speed, dtype=np.float64), (len(LIMITS),))
        if (
            self.limits.shape != (len(LIMITS), 2)
            or not (self.limits[:, 0] < self.limits[:, 1]).all()
        ):
            raise UserError(
                f"joint limits must be {len(LIMITS)} pairs (low, high) with low below high; got"
                f" {self.limits.tolist()}"
            )
        if self.box.shape != (3, 2) or not (self.box[:, 0] < self.box[:, 1]).all():
            raise UserError(
                "the box of the finger tips must be three pairs (low, high) in meters with low"
                f" below high; got {self.box.tolist()}"
            )
        if not (self.speed > 0).all() or not margin >= 0 or not watchdog > 2 * POLL:
            raise UserError(
                "speed limits must be above 0, the margin 0 m or more and the watchdog above"
                f" {2 * POLL} s; got {self.speed.tolist()}, {margin} and {watchdog}"
            )
        self.margin, self.watchdog = margin, watchdog
        self.pulled_back = {"joint": 0, "speed": 0, "box": 0}
        self._thread, self._ended = None, threading.Event()
        self._forget()

    def _forget(self):
        self._last, self._last_time, self._fed, self._inside = None, None, None, False

    def start(self, arm: Arm, joints=None) -> None:
        """Begin to watch `arm`. joints (6,): where it is, from which the first command may lead
        away no faster than any other; without them the first command itself is the beginning. The
        watchdog wakes with the first `fed`.
        """
        self.close()
        self._forget()
        if joints is not None:
            self._last = np.asarray(joints, dtype=np.float64).copy()
            self._inside = self.works(self._last)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(arm, self._ended), name="arm watchdog", daemon=True
        )
        self._thread.start()

    def fed(self) -> None:
        """A command has been carried out now."""
        self._fed = time.monotonic()

    def rest(self) -> None:
        """No command is due until the next `fed`: for a pause in which the arm
        holds still anyway.
        """
        self._fed = None

    def close(self) -> None:
        """End the watchdog. Safe to call twice and from the watchdog itself."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1)
        self._thread = None

    def check(self, joints, now: float) -> np.ndarray:
        """The command (6,) as the arm may carry it out at `now` (seconds, any clock that only goes
        forward). NaN or infinity raise ArmStopped: stop the arm.
        """
        joints = np.asarray(joints, dtype=np.float64)
        if joints.shape != (len(LIMITS),) or not np.isfinite(joints).all():
            raise ArmStopped(
                f"a command of the arm is not {len(LIMITS)} finite numbers: {joints.tolist()}"
            )
        wanted = np.clip(joints, self.limits[:, 0], self.limits[:, 1])
        self._count("joint", wanted, joints)
        if self._last is None:
            self._last, self._inside = wanted, self.works(wanted)
        passed = PAUSE if self._last_time is None else min(now - self._last_time, PAUSE)
        allowed = passed * self.speed * (1 if self._inside else APPROACH)
        slow = self._last + np.clip(wanted - self._last, -allowed, allowed)
        self._count("speed", slow, wanted)
        kept = self._keep_in(slow)
        self._count("box", kept, slow)
        self._last, self._last_time = kept, now
        self._inside = self._inside or self.works(kept)
        return kept.copy()

    def outside(self, joints) -> float:
        """Metres by which the tips lie outside the box and its margin, 0 inside."""
        tip = arm.forward_kinematics(np.asarray(joints)[:5])
        beyond = np.maximum(self.box[:, 0] - self.margin - tip, tip - self.box[:, 1] - self.margin)
        return float(np.linalg.norm(np.maximum(0, beyond)))

    def works(self, joints) -> bool:
        """Whether this is a posture to work in: tips in the box, hand pointing down."""
        return self.outside(joints) == 0 and abs(np.sum(joints[1:4]) - np.pi / 2) < DOWN

    def _depth(self, joints) -> float:
        """Metres by which the tips lie below the floor of the box."""
        height = arm.forward_kinematics(np.asarray(joints)[:5])[2]
        return max(0.0, float(self.box[2, 0] - self.margin - height))

    def _keep_in(self, wanted):
        """The last point of the straight way (in joints) from the last command to `wanted` that is
        no farther outside than the last command is.
        """
        measure = self.outside if self._inside else self._depth
        bound = measure(self._last) + 1e-9
        if measure(wanted) <= bound:
            return wanted
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            inside = measure(self._last + middle * (wanted - self._last)) <= bound
            low, high = (middle, high) if inside else (low, middle)
        return self._last + low * (wanted - self._last)

    def _count(self, name, after, before):
        self.pulled_back[name] += bool(np.abs(after - before).max() > 1e-9)

    def _watch(self, arm, ended):
        # Two looks early, so that the stop itself comes within the time that was promised.
        while not ended.wait(POLL):
            fed = self._fed
            if fed is not None and time.monotonic() - fed > self.watchdog - 2 * POLL:
                arm.stop(f"no command for {self.watchdog:g} s")
                return
