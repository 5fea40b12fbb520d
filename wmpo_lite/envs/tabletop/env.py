"""The embedded simulator: many copies of one table-top scene stepped together by MuJoCo's own
thread pool and rendered off screen.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.actions import check_actions
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import cores
from wmpo_lite.envs.drawing import import_mujoco
from wmpo_lite.envs.renderer import Renderer
from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.trajectory import InitialStates

# dx, dy, dz of the finger tips and the gripper (-1 open, +1 closed), each in [-1, 1]
ACTION_DIM = 4
ACTION_NAMES = ("dx", "dy", "dz", "gripper")
MAX_STEP = 0.030  # m per control step at |action| = 1
CONTROL_PERIOD = 0.2  # s: 5 Hz
SUBSTEPS = round(CONTROL_PERIOD / scene.TIMESTEP)
# m, where the finger tips may be commanded
WORKSPACE = np.array([[0.125, 0.255], [-0.12, 0.12], [0.012, 0.125]])
REACH = 0.247  # m from the pan axis: farther out the wrist's limit tilts a raised hand
HOME = np.array([0.170, 0.0, 0.09])  # m
SPLITS = {"demos": 0, "rollouts": 1, "validation": 2, "evaluation": 3, "play": 4, "pretraining": 5}


@dataclass(frozen=True)
class Disturbance:
    """Changes of the scene that no training run sees (paper: position, background and texture
    disruption); all off by default.

    object_shift, target_shift: extra uniform range in meters; background, texture, lighting:
    strength in [0, 1]; camera: meters of eye movement.
    """

    object_shift: float = 0.0
    target_shift: float = 0.0
    background: float = 0.0
    texture: float = 0.0
    lighting: float = 0.0
    camera: float = 0.0


def check_numbers(split: str, indices) -> np.ndarray:
    """The numbers (B,) of initial states, int64; UserError for an unknown split or a negative
    number.
    """
    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown; use one of {', '.join(SPLITS)}")
    indices = np.atleast_1d(np.asarray(indices, dtype=np.int64))
    if (indices < 0).any():
        raise UserError(
            f"initial states are numbered from 0, got index {int(indices.min())}; use non-negative"
            " indices"
        )
    return indices


def initial_states(
    task, split: str, indices, disturbance: Disturbance = Disturbance()
) -> InitialStates:
    """States number `indices` of a named split. Every (task, split, index) has a seed of its own,
    so splits never share a state.
    """
    indices = check_numbers(split, indices)
    seeds = ([SPLITS[split], int(i), *task.name.encode()] for i in indices)
    states = np.stack([task.sample(np.random.default_rng(s), disturbance, split) for s in seeds])
    return InitialStates(states, None, tuple(map(task.instruction, states)), split, indices)


class TabletopEnv:
    """`reset` / `step_chunk` over a batch of episodes of one task (the chunk-level contract that
    every environment of the kit offers).

    task: an object of `wmpo_lite.envs.tabletop.tasks`; size: pixels of the square RGB image;
    threads: physics threads.
    """

    action_dim = ACTION_DIM
    action_names = ACTION_NAMES

    def __init__(
        self,
        task,
        size: int = 64,
        threads: int | None = None,
        disturbance: Disturbance = Disturbance(),
        shadows: bool = False,
    ):
        mujoco = import_mujoco()
        self.task, self.size, self.disturbance = task, size, disturbance
        self.model = mujoco.MjModel.from_xml_string(
            scene.build_xml(task.bodies(), size, shadows=shadows)
        )
        self._mujoco = mujoco
        self._threads = max(1, threads or min(cores(), 8))
        self._data = [mujoco.MjData(self.model) for _ in range(self._threads)]
        self._spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
        self._state_size = mujoco.mj_stateSize(self.model, self._spec)
        self._render_data = mujoco.MjData(self.model)
        self._renderer = None
        self._rollout = None
        self._site = self.model.site("tip").id
        self._default_rgba = self.model.geom_rgba.copy()
        self._camera = self.model.camera("front").pos.copy()
        self._light = self.model.light_diffuse.copy()
        self.instructions: list[str] = []
        self.split, self.indices, self.initial = None, None, None

    # -- contract ----------------------------------------------------------------------------------

    def reset(self, states: InitialStates) -> np.ndarray:
        """Start one episode per row of `states`; returns uint8 (B, H, W, 3) and sets
        `instructions`.
        """
        batch = len(states)
        model, data = self.model, self._render_data
        expected = model.nq + self.task.num_parameters
        if states.states.shape[1] != expected:
            raise UserError(
                f"initial states of task '{self.task.name}' have {expected} numbers each, got"
                f" {states.states.shape[1]}: they were recorded for another task or version; record"
                " them again"
            )
        self._physics = np.zeros((batch, self._state_size))
        self._commanded = np.zeros((batch, 3))
        self._gripper = np.zeros(batch)
        self.parameters = states.states[:, model.nq :].copy()
        for b in range(batch):
            self._mujoco.mj_resetData(model, data)
            data.qpos[:] = states.states[b, : model.nq]
            self._mujoco.mj_forward(model, data)
            self._mujoco.mj_getState(model, data, self._physics[b], self._spec)
            self._commanded[b] = data.site_xpos[self._site]
        fingers = np.full((batch, 2), scene.FINGER_TRAVEL)
        self._controls = np.concatenate([arm.inverse_kinematics(self._commanded), fingers], axis=1)
        self.instructions = list(states.instructions)
        self.initial = states
        self.done = np.zeros(batch, dtype=bool)
        return np.stack([self.render(b) for b in range(batch)])

    def step_chunk(self, actions: np.ndarray, every_frame: bool | None = True):
        """Execute K control steps in every episode. actions (B, K, D) in [-1, 1] (clipped). Returns
        frames, done, info of the contract.

        every_frame=False renders only the newest frame, (B, 1, H, W, 3): all that a policy looks
        at, and several times faster. None renders nothing, (B, 0, H, W, 3).

        info holds `states` (B, K, nq): the joint state after every step, which only experts, tests
        and teleoperation may look at.
        """
        actions = check_actions(
            actions, None if self.initial is None else len(self.initial), ACTION_DIM
        )
        batch, steps, _ = actions.shape
        drawn = 0 if every_frame is None else steps if every_frame else 1
        frames = np.zeros((batch, drawn, self.size, self.size, 3), dtype=np.uint8)
        done = np.zeros((batch, steps), dtype=bool)
        states = np.zeros((batch, steps, self.model.nq))
        for k in range(steps):
            self._step(actions[:, k])
            self.done = self.done | self.task.success(self)
            done[:, k], states[:, k] = self.done, self.qpos
            if every_frame or (k == steps - 1 and every_frame is not None):
                frames[:, k if every_frame else 0] = [self.render(b) for b in range(batch)]
        return frames, done, {"states": states}

    # -- state, for tasks, experts and tests -------------------------------------------------------

    @property
    def qpos(self) -> np.ndarray:  # (B, nq)
        return self._physics[:, 1 : 1 + self.model.nq]

    @property
    def qvel(self) -> np.ndarray:  # (B, nv)
        return self._physics[:, 1 + self.model.nq : 1 + self.model.nq + self.model.nv]

    @property
    def tip(self) -> np.ndarray:
        """Finger-tip positions (B, 3) in meters."""
        return arm.forward_kinematics(self.qpos[:, self._columns(arm.JOINTS)])

    @property
    def opening(self) -> np.ndarray:
        """Mean finger travel (B,) in meters, 0 closed."""
        return self.qpos[:, self._columns(("finger_left", "finger_right"))].mean(axis=1)

    def position(self, name: str) -> np.ndarray:
        """Position (B, 3) of a free body, or (B, 2) of a sliding disc, in meters."""
        if f"{name}_x" in self._joint_names:
            return self.qpos[:, self._columns((f"{name}_x", f"{name}_y"))]
        start = self.model.joint(name).qposadr[0]
        return self.qpos[:, start : start + 3]

    def speed(self, name: str) -> np.ndarray:
        """Linear speed (B,) of a free body in m/s."""
        start = self.model.joint(name).dofadr[0]
        return np.linalg.norm(self.qvel[:, start : start + 3], axis=1)

    @property
    def _joint_names(self):
        return {self.model.joint(j).name for j in range(self.model.njnt)}

    def _columns(self, names):
        return [self.model.joint(n).qposadr[0] for n in names]

    # -- physics and rendering ---------------------------------------------------------------------

    def _step(self, action: np.ndarray):
        from mujoco import rollout

        if self._rollout is None:
            self._rollout = rollout.Rollout(nthread=self._threads)
        action = np.clip(action, -1, 1)
        # The command may lead the measured tip by at most two steps' worth: pressing on something
        # must not wind it up.
        target = self._commanded + MAX_STEP * action[:, :3]
        tip = self.tip
        target = np.clip(target, tip - 1.5 * MAX_STEP, tip + 1.5 * MAX_STEP)
        self._commanded = np.clip(target, WORKSPACE[:, 0], WORKSPACE[:, 1])
        radius = np.linalg.norm(self._commanded[:, :2], axis=1, keepdims=True)
        self._commanded[:, :2] *= np.minimum(1, REACH / radius)
        fingers = np.repeat((1 - action[:, 3:4]) / 2 * scene.FINGER_TRAVEL, 2, axis=1)
        goal = np.concatenate([arm.inverse_kinematics(self._commanded), fingers], axis=1)
        # reach the target early, then settle
        ramp = np.minimum(np.arange(1, SUBSTEPS + 1) / (0.7 * SUBSTEPS), 1.0)[None, :, None]
        controls = self._controls[:, None] * (1 - ramp) + goal[:, None] * ramp  # (B, S, nu)
        self._controls = goal
        states, _ = self._rollout.rollout(
            [self.model] * len(action), self._data, np.ascontiguousarray(self._physics), controls
        )
        self._physics = states[:, -1].copy()
        if not np.isfinite(self._physics).all():
            raise UserError(
                "the simulation diverged (non-finite state); please report the task, the split and"
                " the index of the initial state"
            )

    def render(self, b: int) -> np.ndarray:
        model, data = self.model, self._render_data
        self._mujoco.mj_setState(model, data, self._physics[b], self._spec)
        self._mujoco.mj_kinematics(model, data)
        self._paint(b)  # moves the camera too, so it comes before the camera's frame is computed
        self._mujoco.mj_camlight(model, data)
        if self._renderer is None:
            self._renderer = Renderer(model, self.size)
        return self._renderer.draw(data, "front")

    def _paint(self, b: int):
        model, d = self.model, self.disturbance
        model.geom_rgba[:] = self._default_rgba
        for geom, rgb in self.task.colors(self.parameters[b]).items():
            model.geom_rgba[model.geom(geom).id, :3] = rgb
        if d.background or d.lighting or d.camera or d.texture:
            rng = np.random.default_rng([7, int(self.initial.indices[b])])
            table = rng.uniform(-1, 1, 3)
            tint = rng.uniform(-1, 1, (model.ngeom, 3))
            lamp = rng.uniform(-1, 1)
            eye = rng.uniform(-1, 1, 3)
            change = 0.25 * d.texture * tint
            change[model.geom("table").id] = 0.3 * d.background * table
            model.geom_rgba[:, :3] = np.clip(model.geom_rgba[:, :3] + change, 0, 1)
            model.light_diffuse[:] = self._light * (1 + 0.8 * d.lighting * lamp)
            model.cam_pos[model.camera("front").id] = self._camera + d.camera * eye

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None
