"""What every arm offers, simulated or real: connect, observe, command joint targets, stop. Nothing
above this file knows which arm it moves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.arm import JOINTS as REVOLUTE
from wmpo_lite.envs.tabletop.arm import LIMITS as REVOLUTE_LIMITS

# five in rad, 0 in the middle of the range as LeRobot's calibration has it; the gripper from 0,
# closed, to 1, open
JOINTS = (*REVOLUTE, "gripper")
LIMITS = np.concatenate([REVOLUTE_LIMITS, [[0.0, 1.0]]])  # (6, 2)
WATCHDOG = 0.5  # s without a command after which an arm stops by itself


class ArmStopped(RuntimeError):
    """The arm has been brought to a stop and takes no more commands until it is connected anew.
    `reason` is one sentence for people.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Observation:
    """frame uint8 (H, W, 3); joints (6,) as in `JOINTS`; frame_time, joint_time: when each was
    taken, seconds of `time.monotonic`.
    """

    frame: np.ndarray
    joints: np.ndarray
    frame_time: float
    joint_time: float


class Arm(ABC):
    """One arm. Every fault inside (bus, servo, camera, watchdog) stops the arm and shows as
    `ArmStopped` from the next call.

    Used as a context manager it connects on entry and always ends with torque off, whatever
    happened in between.
    """

    guard = None  # the `safety.Guard` that checks its commands
    _reason: str | None = "the arm is not connected"

    @property
    def stopped(self) -> str | None:
        """Why the arm takes no commands, or None while it does."""
        return self._reason

    def _allowed(self, joints, now: float) -> np.ndarray:
        """The command (6,) as the guard lets it pass at `now`; one that it refuses ends all."""
        try:
            return self.guard.check(joints, now)
        except ArmStopped as refused:
            self.stop(refused.reason)
            raise

    @abstractmethod
    def connect(self) -> None:
        """Open everything, check it, hold the present posture with torque on."""

    @abstractmethod
    def observe(self) -> Observation:
        """The newest picture and joint positions. Never older than asked for at construction, else
        ArmStopped.
        """

    @abstractmethod
    def command(self, joints: np.ndarray) -> None:
        """Joint targets (6,). Values outside `LIMITS` or leaps beyond the speed limit are clamped;
        NaN or infinity stop the arm.
        """

    @abstractmethod
    def stop(self, reason: str) -> None:
        """Hold still where the arm is, at once, from any thread; later calls raise ArmStopped with
        the first reason.
        """

    @abstractmethod
    def close(self) -> None:
        """Torque off and everything released. Safe to call twice and after any fault."""

    def __enter__(self):
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception):
        self.close()


def check_joints(joints) -> np.ndarray:
    """Joint targets as float64 (6,); UserError unless they are six finite numbers."""
    joints = np.asarray(joints, dtype=np.float64)
    if joints.shape != (len(JOINTS),) or not np.isfinite(joints).all():
        raise UserError(
            f"joint targets must be {len(JOINTS)} finite numbers ({', '.join(JOINTS)}); got"
            f" {joints.tolist()}"
        )
    return joints
