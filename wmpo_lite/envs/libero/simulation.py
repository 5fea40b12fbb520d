"""One LIBERO task in this process: built once, reset once, then only states are put into it (runs
inside `worker`).
"""

import types

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.bridge import bridge, read_arm
from wmpo_lite.envs.libero.look import Look, Painter

AGENT, WRIST = "agentview", "robot0_eye_in_hand"
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])  # no motion, gripper open
# of the cabinets and stoves under the benchmark's states, which do not say where these stand
# (LIBERO draws it, within a centimeter)
PLACEMENT_SEED = 0
# control steps: the benchmark's states leave the objects in the air, and evaluations wait as long
SETTLE = 10
# rad, standard deviation of each arm joint in an initial state: the noise with which the
# benchmark's states were made (robosuite's own; LIBERO's class for evaluation turns it off)
ARM_NOISE = 0.02
# meters over ground and degrees that an object may move while its initial state settles, m/s that
# it may have then
DRIFT, TILT, SPEED = 0.03, 30.0, 0.1


class Simulation:
    """bddl: the task's definition; size, look: of the frames; wrist: draw the wrist camera too."""

    def __init__(self, bddl: str, size: int, look: Look, wrist: bool):
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv

        self._mujoco = mujoco
        bridge()
        # hard_reset rebuilds the whole model at every reset; cameras and observations of its own
        # are computed 25 times a step and not used here.
        self.env = ControlEnv(
            bddl_file_name=bddl,
            initialization_noise={"type": "gaussian", "magnitude": ARM_NOISE},
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
        ).env
        self.sim, self.robot = self.env.sim, self.env.robots[0]
        self.model, self.data = self.sim.model._model, self.sim.data._data
        self.substeps = int(self.env.control_timestep / self.env.model_timestep)
        if self.model.opt.integrator != mujoco.mjtIntegrator.mjINT_EULER:
            raise UserError(
                "LIBERO's model uses another integrator than Euler, which this environment's split"
                " steps need; install robosuite 1.4.0"
            )
        self._spec = mujoco.mjtState.mjSTATE_INTEGRATION
        self._size = mujoco.mj_stateSize(self.model, self._spec)
        fixtures = [self.env.fixtures_dict[name] for name in sorted(self.env.fixtures_dict)]
        number = lambda body: mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, body)
        numbers = [number(getattr(fixture, "root_body", "")) for fixture in fixtures]
        self.fixtures = [body for body in numbers if body >= 0]
        self.objects = tuple(sorted(self.env.objects_dict))
        self.goal = [[str(word) for word in part] for part in self.env.parsed_problem["goal_state"]]
        self._bodies = [self.env.obj_body_id[name] for name in self.objects]
        self._fingers = self.robot._ref_gripper_joint_pos_indexes
        self._torque_limits = self.robot.torque_limits
        names = self.robot.gripper.actuators
        self._grip = [self.sim.model.actuator_name2id(name) for name in names]
        low, high = self.model.actuator_ctrlrange[self._grip].T
        self._grip_middle, self._grip_half = 0.5 * (high + low), 0.5 * (high - low)
        self.wrist = wrist
        self._rest = self._read_at_rest()
        self.sample(PLACEMENT_SEED)
        self.placement = self._placed()
        self.painter = Painter(self.model, size, look)
        self.camera = self._projection(AGENT)

    @property
    def row_size(self) -> int:
        return 1 + self.model.nq + self.model.nv

    def close(self):
        self.painter.close()

    # -- states ------------------------------------------------------------------------------------

    def sample(self, seed: int):
        """LIBERO's own reset from a seed of ours, tried again where it finds no room
        for an object.
        """
        from robosuite.utils.errors import RandomizationError

        np.random.seed(seed)  # LIBERO draws from NumPy's global generator
        for _ in range(20):
            # What lies on a stove or in a drawer is placed from the fixture's pose and its
            # region's, which is read where a new model has it: at the origin.
            for body in self.fixtures:
                self.model.body_pos[body], self.model.body_quat[body] = 0, (1, 0, 0, 0)
            self._mujoco.mj_resetData(self.model, self.data)
            self._mujoco.mj_forward(self.model, self.data)
            try:
                self.env.reset()  # with a new controller
                self.robot.controller.update = types.MethodType(read_arm, self.robot.controller)
                return
            except RandomizationError:
                pass
        raise UserError(
            "LIBERO found no room for the objects of this task in 20 tries; choose another index"
        )

    def row(self) -> np.ndarray:
        """The present state as an initial state: time, qpos, qvel, then position and orientation
        (7) of every fixture.
        """
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel, self._placed()])

    def draw(self, seeds: list[int], taken: np.ndarray) -> np.ndarray:
        """A state as LIBERO's reset leaves it, not settled, like the benchmark's own: from the
        first of `seeds` that gives one whose premise holds once it has settled, at least a
        millimeter away from all states in `taken` (N, S).
        """
        for seed in seeds:
            self.sample(seed)
            row = self.row()
            self.put(row)
            broken = self.settle(SETTLE)
            if not broken and self.apart(row, taken) > 1e-3:
                return row
        raise UserError(
            f"none of {len(seeds)} states drawn for this task can start an episode"
            f" ({'; '.join(broken) or 'all are evaluation states'}); this version of MuJoCo cannot"
            " hold its premise, choose another task"
        )

    def apart(self, row: np.ndarray, taken: np.ndarray) -> float:
        """Metres over ground: the smallest distance of a state from those in `taken`, as far as its
        most displaced object.
        """
        columns = [
            1 + self.model.jnt_qposadr[self.model.body_jntadr[body]]
            for body in self._bodies
            if self.model.body_jntnum[body]
        ]
        both = np.array([[c, c + 1] for c in columns])  # x and y
        far = np.linalg.norm(taken[:, both] - row[both], axis=-1).max(axis=1)
        return float(far.min(initial=np.inf))

    def put(self, row: np.ndarray):
        """Put an initial state into the simulation, with or without fixtures; nothing of an earlier
        episode is left.

        The controller knows of the arm's noise no more than in LIBERO's loop for evaluation, where
        a state is put into an environment that was reset without noise: while the state settles,
        the hand straightens.
        """
        if len(row) not in (self.row_size, self.row_size + 7 * len(self.fixtures)):
            raise UserError(
                f"an initial state of this task has {self.row_size} numbers (and 7 for each of its"
                f" {len(self.fixtures)} fixtures), got {len(row)}: it belongs to another task or"
                " version; take it from `initial_states`"
            )
        if not np.isfinite(row).all():
            raise UserError("an initial state holds NaN or infinity; take it from `initial_states`")
        placement = row[self.row_size :] if len(row) > self.row_size else self.placement
        self._place(placement)
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.time = row[0]
        self.data.qpos[:] = row[1 : 1 + self.model.nq]
        self.data.qvel[:] = row[1 + self.model.nq : self.row_size]
        self._mujoco.mj_forward(self.model, self.data)
        self._as_after_reset()
        self.robot.gripper.current_action = np.zeros(self.robot.gripper.dof)
        self.env._post_process()

    def save(self) -> dict:
        """Everything that an episode needs to go on later."""
        state = np.zeros(self._size)
        self._mujoco.mj_getState(self.model, self.data, state, self._spec)
        return {
            "state": state,
            "fresh": not self.robot.controller.new_update,
            "goal": self.robot.controller.goal_ori.copy(),
            "gripper": np.array(self.robot.gripper.current_action),
            "placement": self._placed(),
        }

    def load(self, saved: dict):
        self._place(saved["placement"])
        self._mujoco.mj_setState(self.model, self.data, saved["state"], self._spec)
        self._as_after_reset()
        self.robot.controller.new_update = not saved["fresh"]
        self.robot.controller.goal_ori = saved["goal"].copy()
        self.robot.gripper.current_action = saved["gripper"].copy()

    def _read_at_rest(self) -> dict:
        """What the controller reads (pose of the hand, joints, Jacobians, mass matrix) where the
        arm has no noise, which is how LIBERO's environments for evaluation are reset.
        """
        self.data.qpos[self.robot._ref_joint_pos_indexes] = self.robot.init_qpos
        read_arm(self.robot.controller, force=True)
        names = ("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel")
        names += ("J_pos", "J_ori", "J_full", "mass_matrix")
        return {name: getattr(self.robot.controller, name).copy() for name in names}

    def _as_after_reset(self):
        """The controller as LIBERO's reset leaves it: it has read the arm at rest, and does not
        read it again before the first substep has passed. So the first action moves the hand from
        where it would be at rest, and until an action turns it, it turns to its orientation at
        rest.
        """
        controller = self.robot.controller
        for name, value in self._rest.items():
            setattr(controller, name, value.copy())
        controller.new_update = False
        controller.initial_joint = controller.joint_pos.copy()
        controller.reset_goal()

    def _place(self, placement: np.ndarray):
        """Put every fixture where `placement` (7 numbers each) says."""
        for body, pose in zip(self.fixtures, placement.reshape(-1, 7)):
            self.model.body_pos[body], self.model.body_quat[body] = pose[:3], pose[3:]

    def _placed(self) -> np.ndarray:
        pos, quat = self.model.body_pos[self.fixtures], self.model.body_quat[self.fixtures]
        return np.concatenate([pos, quat], axis=1).ravel()

    def _projection(self, camera: str) -> np.ndarray:
        """Homogeneous point of the room -> homogeneous picture coordinates (right, down, 1), both
        in [-1, 1] inside the picture: float32 (3, 4).
        """
        number = self.model.camera(camera).id
        right, up, back = self.data.cam_xmat[number].reshape(3, 3).T
        zoom = 1 / np.tan(np.radians(self.model.cam_fovy[number] / 2))
        rows = np.stack([zoom * right, -zoom * up, -back])
        offset = -(rows @ self.data.cam_xpos[number])[:, None]
        return np.concatenate([rows, offset], axis=1).astype(np.float32)

    # -- motion ------------------------------------------------------------------------------------

    def step(self, action: np.ndarray):
        """One control step of 0.05 s, the same physics as LIBERO's `step`: it computes every
        forward pass three times, here it is computed once, and what its robot looks up by name in
        every substep is looked up once for all.
        """
        controller, robot, data = self.robot.controller, self.robot, self.data
        # the controller asks for a forward pass that has just been made
        self.sim.forward = _nothing
        try:
            for substep in range(self.substeps):
                self._mujoco.mj_step1(self.model, data)
                if not substep:
                    controller.set_goal(action[:6])
                torques = np.clip(controller.run_controller(), *self._torque_limits)
                grip = robot.gripper.format_action(action[6:])
                data.ctrl[self._grip] = self._grip_middle + self._grip_half * grip
                data.ctrl[robot._ref_joint_actuator_indexes] = torques
                self._mujoco.mj_step2(self.model, data)
        finally:
            del self.sim.forward
        self.env._post_process()  # a burner that glows, for example
        if not np.isfinite(data.qpos).all():
            raise UserError(
                "the simulation diverged (non-finite state); please report the task, the split and"
                " the index of the initial state"
            )

    def hold(self, action: np.ndarray, times: int, stop: bool = True) -> bool:
        """The same action for `times` control steps; whether the task was solved on the way, after
        which, with `stop`, nothing moves any more.
        """
        solved = False
        for _ in range(times):
            self.step(action)
            solved = solved or self.success()
            if solved and stop:
                break
        return solved

    def success(self) -> bool:
        return bool(self.env._check_success())

    def frames(self) -> list[np.ndarray]:
        cameras = (AGENT, WRIST) if self.wrist else (AGENT,)
        return [self.painter.draw(self.data, camera) for camera in cameras]

    def measures(self) -> dict:
        """What experts and tests may look at: joint state, finger-tip position (3,), object
        positions (n, 3), meters, and their orientations (n, 4); how far the fingers are apart, of
        the 8 cm that they can be.
        """
        return {
            "states": self.data.qpos.copy(),
            "tip": self.data.site_xpos[self.robot.eef_site_id].copy(),
            "objects": self.data.xpos[self._bodies].copy(),
            "turned": self.data.xquat[self._bodies].copy(),
            "opening": np.clip(np.abs(self.data.qpos[self._fingers]).sum() / 0.08, 0, 1),
        }

    # -- premises ----------------------------------------------------------------------------------

    def settle(self, steps: int) -> list[str]:
        """Let the present initial state come to rest; returns what of its premise is broken then,
        in words, empty if it holds.
        """
        before = self.data.xpos[self._bodies].copy()
        turned = self.data.xmat[self._bodies].reshape(-1, 3, 3).copy()
        for _ in range(steps):
            self.step(STILL)
        broken = []
        for name, body, was, frame in zip(self.objects, self._bodies, before, turned):
            drift = np.linalg.norm((self.data.xpos[body] - was)[:2])
            turn = (self.data.xmat[body].reshape(3, 3).T @ frame).trace() / 2 - 0.5
            tilt = np.degrees(np.arccos(np.clip(turn, -1, 1)))
            if drift > DRIFT or tilt > TILT:
                broken.append(f"{name} slid {100 * drift:.1f} cm and turned {tilt:.0f} degrees")
            elif (speed := np.linalg.norm(self._velocity(body))) > SPEED:
                broken.append(f"{name} still moves at {speed:.1f} m/s")
        for premise in self.env.parsed_problem["initial_state"]:
            if not self._holds(premise):
                broken.append(f"'{' '.join(premise)}' does not hold")
        if self.success():
            broken.append("the task is solved at the start")
        return broken

    def _velocity(self, body: int) -> np.ndarray:
        if not self.model.body_jntnum[body]:
            return np.zeros(3)
        first = self.model.jnt_dofadr[self.model.body_jntadr[body]]
        return self.data.qvel[first : first + 3]

    def _holds(self, premise: list[str]) -> bool:
        """Whether a line of the task's `:init` is true now. Where an object stands on the bare
        table is not asked: the drift tells.
        """
        known = self.env.object_states_dict
        if any(name not in known for name in premise[1:]):
            return True
        if len(premise) == 3 and premise[1] in self.env.fixtures_dict:
            return True
        if premise[0] == "on":
            place = known[premise[2]]
            if place.object_state_type == "site" and place.parent_name not in known:
                return True
        return bool(self.env._eval_predicate(premise))


def _nothing():
    pass
