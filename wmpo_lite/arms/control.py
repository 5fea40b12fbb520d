"""From what a policy says five times a second to what an arm is told fifty times a second, with the
arithmetic of the training environment.
"""

import numpy as np

from wmpo_lite.arms.interface import LIMITS, ArmStopped, check_joints
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import arm
from wmpo_lite.envs.tabletop.env import ACTION_DIM, CONTROL_PERIOD, HOME, MAX_STEP, REACH, WORKSPACE

RATE = 50.0  # Hz of joint targets
# share of the control period after which a target is reached; the arm settles in the rest
RAMP = 0.7
IN_RANGE = 1e-4  # by which an action may pass 1: rounding


class Commander:
    """Actions (4,) in [-1, 1] at the control rate -> joint targets (n, 6) at `rate` Hz, n of them a
    control period.

    As in TabletopEnv: the action moves a commanded tip, which stays within a step and a half of the
    measured tip, inside the box and within reach; the joints that put the tip there, and the
    gripper, are the goal; targets run straight from the last goal to this one. Each target is meant
    to hold from its moment until the next, so it is the ramp's value half-way between.
    """

    def __init__(self, rate: float = RATE):
        self.steps = round(rate * CONTROL_PERIOD)
        if self.steps < 2:
            raise UserError(
                f"the rate of joint targets is {rate} Hz; expected at least {2 / CONTROL_PERIOD:g}"
                " Hz, two targets a control period"
            )
        self._ramp = np.minimum((np.arange(self.steps) + 0.5) / (RAMP * self.steps), 1.0)[:, None]
        self._goal = None

    def reset(self, joints) -> None:
        """Begin an episode with the arm at `joints` (6,)."""
        self._goal = check_joints(joints).copy()
        self.commanded = arm.forward_kinematics(self._goal[:5])

    @property
    def goal(self) -> np.ndarray:
        """Where the last targets led (6,)."""
        return self._goal.copy()

    def targets(self, action, joints) -> np.ndarray:
        """Joint targets (n, 6) of one control period for `action` (4,), with the arm measured at
        `joints` (6,).

        Raises ArmStopped for NaN, infinity or an action outside [-1, 1]: whoever made it has gone
        wrong, and the caller stops the arm.
        """
        if self._goal is None:
            raise UserError(
                "the commander does not know where the arm is; call `reset` with its joints first"
            )
        action = check_action(action)
        self.commanded = lead(
            self.commanded, arm.forward_kinematics(np.asarray(joints, dtype=np.float64)[:5]), action
        )
        goal = np.append(arm.inverse_kinematics(self.commanded), (1 - action[3]) / 2)
        made = self._goal * (1 - self._ramp) + goal * self._ramp
        self._goal = goal
        return made


def check_action(action) -> np.ndarray:
    """One action as float64 (4,) in [-1, 1]; ArmStopped for NaN, infinity or anything farther out
    than rounding explains.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
        raise ArmStopped(
            f"the policy's action is not {ACTION_DIM} finite numbers: {action.tolist()}"
        )
    if np.abs(action).max() > 1 + IN_RANGE:
        raise ArmStopped(f"the policy's action is outside [-1, 1]: {action.round(3).tolist()}")
    return np.clip(action, -1, 1)


def lead(commanded, tip, action) -> np.ndarray:
    """Where the tip (3,) is commanded next, meters: see `Commander`."""
    moved = np.clip(commanded + MAX_STEP * action[:3], tip - 1.5 * MAX_STEP, tip + 1.5 * MAX_STEP)
    moved = np.clip(moved, WORKSPACE[:, 0], WORKSPACE[:, 1])
    moved[:2] *= min(1, REACH / np.linalg.norm(moved[:2]))
    return moved


def home() -> np.ndarray:
    """Joints (6,) of the posture in which episodes begin: tips over the middle of the desk, gripper
    open.
    """
    return np.append(arm.inverse_kinematics(HOME), 1.0).clip(LIMITS[:, 0], LIMITS[:, 1])
