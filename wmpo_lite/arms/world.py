"""The table-top scene with one arm in it, for whoever moves it joint by joint: the simulated arm
and the bus emulator stand on it.
"""

from dataclasses import replace

import numpy as np

from wmpo_lite.arms.interface import JOINTS, LIMITS, check_joints
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.drawing import import_mujoco
from wmpo_lite.envs.tabletop import scene
from wmpo_lite.envs.tabletop.env import Disturbance, TabletopEnv
from wmpo_lite.trajectory import InitialStates

# added to a state's index, once for each seed: the changed look is drawn from the index
ANOTHER_LOOK = 1_000_003
# of MuJoCo's joints, two of which are fingers
UNITS = np.array([1, 1, 1, 1, 1, scene.FINGER_TRAVEL, scene.FINGER_TRAVEL])


class World:
    """One scene of `task` (a module of `wmpo_lite.envs.tabletop.tasks`). Joints are (6,) in the
    order and units of `wmpo_lite.arms.interface`.

    size: pixels of the square picture; disturbance: how the scene looks unlike the training's;
    seed: another look of the same strength (0: the one that TabletopEnv shows for the same state).
    Everything must be called from one thread, because MuJoCo's renderer belongs to the thread that
    made it.
    """

    def __init__(
        self, task, size: int = 64, disturbance: Disturbance = Disturbance(), seed: int = 0
    ):
        mujoco = import_mujoco()
        self.task, self.size, self.seed = task, size, seed
        self.env = TabletopEnv(task, size=size, threads=1, disturbance=disturbance)
        self._mujoco, self.model = mujoco, self.env.model
        self.data = mujoco.MjData(self.model)
        joints = [self.model.joint(name) for name in (*JOINTS[:5], "finger_left", "finger_right")]
        self._qpos, self._qvel = [j.qposadr[0] for j in joints], [j.dofadr[0] for j in joints]
        self._force = self.model.actuator_forcerange[:, 1]
        self._targets, self._ready = None, False

    def reset(self, states: InitialStates, row: int = 0) -> None:
        """Put the scene into initial state number `row` of `states`, at rest, torque on; targets
        are where the joints are.
        """
        if not -len(states) <= row < len(states):
            raise UserError(
                f"row {row} was asked for and there are {len(states)} initial states; count from 0"
            )
        one = states[row]
        self.env.reset(replace(one, indices=one.indices + ANOTHER_LOOK * self.seed))
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = one.states[0, : self.model.nq]
        self._remainder, self._ready = 0.0, True
        self.torque(True)
        self.target(self.joints)
        self._mujoco.mj_forward(self.model, self.data)

    def target(self, joints) -> None:
        """Joint targets (6,) of the position servos, at once. UserError unless they are six finite
        numbers; each is clipped to its range.
        """
        self._targets = np.clip(check_joints(joints), LIMITS[:, 0], LIMITS[:, 1])
        self.data.ctrl[:5] = self._targets[:5]
        self.data.ctrl[5:] = self._targets[5] * scene.FINGER_TRAVEL

    def torque(self, on: bool) -> None:
        """False: the servos are limp (the arm is balanced in this scene, so it coasts and comes to
        rest instead of falling).
        """
        flag = int(self._mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        flags = self.model.opt.disableflags
        self.model.opt.disableflags = flags & ~flag if on else flags | flag

    def advance(self, seconds: float) -> None:
        """Step the physics by `seconds` of simulated time: whole steps of `scene.TIMESTEP`, what is
        left over counts next time.
        """
        self._need_state()
        steps, self._remainder = divmod(self._remainder + seconds + 1e-9, scene.TIMESTEP)
        if steps >= 1:
            self._mujoco.mj_step(self.model, self.data, nstep=int(steps))
        if not np.isfinite(self.data.qpos).all():
            raise UserError(
                "the simulation diverged (non-finite state); please report the task, the split and"
                " the index of the initial state"
            )

    @property
    def targets(self) -> np.ndarray:
        """The joint targets (6,) in force."""
        return self._targets.copy()

    @property
    def joints(self) -> np.ndarray:
        """Where the joints (6,) are: rad, and the opening of the gripper from 0 to 1."""
        return self._six(self.data.qpos[self._qpos] / UNITS)

    @property
    def velocities(self) -> np.ndarray:
        """How fast they move (6,): rad/s, and openings a second."""
        return self._six(self.data.qvel[self._qvel] / UNITS)

    @property
    def loads(self) -> np.ndarray:
        """Motor force (6,) as a share of its limit, in [-1, 1]; positive where it pushes the joint
        up its scale.
        """
        return self._six(self.data.actuator_force / self._force)

    @property
    def tip(self) -> np.ndarray:
        """Position (3,) of the point between the finger tips in meters."""
        return self.data.site("tip").xpos.copy()

    @property
    def instruction(self) -> str:
        self._need_state()
        return self.env.instructions[0]

    def frame(self) -> np.ndarray:
        """What the camera sees now: uint8 (size, size, 3)."""
        self._share()
        return self.env.render(0).copy()

    def success(self) -> bool:
        """Whether the task's test holds now."""
        self._share()
        return bool(self.task.success(self.env)[0])

    def close(self) -> None:
        self.env.close()

    def _share(self):
        """Show the state to the environment, whose camera and whose task look at it."""
        self._need_state()
        self._mujoco.mj_getState(self.model, self.data, self.env._physics[0], self.env._spec)

    def _six(self, seven: np.ndarray) -> np.ndarray:
        return np.append(seven[:5], seven[5:].mean())

    def _need_state(self):
        if not self._ready:
            raise UserError("the scene is empty; put an initial state into it with `reset` first")
