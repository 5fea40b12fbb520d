"""Initial states and trajectories: what goes into an environment and what comes out of it.

One `Trajectory` type serves the simulator, the imagination, LIBERO and the arm, from collection to
GRPO. On disk it is HDF5 in the LIBERO / robomimic layout: official LIBERO demonstrations load
unchanged, and our files open in their tools.

    data                                   attrs env_args (JSON), total, num_demos, problem_info
                                           (JSON, if all share one instruction); ours: provenance
    data/demo_0                            attrs num_samples, init_state; ours: instruction,
                                           success, finish_step, split, index, group, chunk
    data/demo_0/obs/agentview_rgb          uint8 (T, H, W, 3), the frame that each action was
                                           chosen on (robomimic: agentview_image)
    data/demo_0/actions, rewards, dones    float32 (T, D), float32 (T,), uint8 (T,)
    data/demo_0/next_obs_last/agentview_rgb   ours: uint8 (H, W, 3), the frame after the last action
    data/demo_0/tokens, log_probs          ours, only if the trajectory carries them
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmpo_lite.common import foreign, lerobot
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import write_atomic

OUR_ATTRS = {
    "split": foreign.text,
    "index": foreign.whole,
    "group": foreign.whole,
    "chunk": foreign.whole,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True, eq=False)
class InitialStates:
    """A batch of B initial states from one named split; `env.reset` takes it.

    states float64 (B, S); frames uint8 (B, H, W, 3) or None; instructions: B strings; split:
    "demos", "rollouts", ...; indices int64 (B,): the place of each state in its split. Raises
    UserError where the lengths or types disagree.
    """

    states: np.ndarray
    frames: np.ndarray | None
    instructions: tuple[str, ...]
    split: str
    indices: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "states", np.asarray(self.states, dtype=np.float64))
        object.__setattr__(self, "indices", np.asarray(self.indices, dtype=np.int64))
        object.__setattr__(self, "instructions", tuple(self.instructions))
        _require(
            self.states.ndim == 2,
            f"InitialStates.states has shape {self.states.shape}; expected (B, S).",
        )
        size = len(self.states)
        _require(
            len(self.instructions) == size and self.indices.shape == (size,),
            f"InitialStates has {size} states, {len(self.instructions)} instructions and indices of"
            f" shape {self.indices.shape}; give one instruction and one index for each state.",
        )
        _require(
            self.frames is None or _is_frames(self.frames, size),
            f"InitialStates.frames must be uint8 ({size}, H, W, 3) or None; got"
            f" {_describe(self.frames)}.",
        )

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index) -> "InitialStates":
        """A slice, an index array or a boolean mask selects states; a single integer gives a batch
        of one.
        """
        rows = np.atleast_1d(np.arange(len(self))[index])
        frames = None if self.frames is None else self.frames[rows]
        return InitialStates(
            self.states[rows],
            frames,
            tuple(self.instructions[row] for row in rows),
            self.split,
            self.indices[rows],
        )

    def repeat(self, times: int) -> "InitialStates":
        """Each state `times` times in a row: the B groups of GRPO, group g at rows g * times, g *
        times + 1, ...
        """
        return self[np.repeat(np.arange(len(self)), times)]

    @staticmethod
    def concat(parts: "list[InitialStates]") -> "InitialStates":
        """Join batches end to end. Splits must match: a mixed batch would hide a leak of evaluation
        into training.
        """
        parts = list(parts)
        splits = sorted({part.split for part in parts})
        _require(
            len(splits) == 1,
            f"InitialStates.concat got the splits {splits}; join batches of one split.",
        )
        shapes = {
            (part.states.shape[1], None if part.frames is None else part.frames.shape[1:])
            for part in parts
        }
        _require(
            len(shapes) == 1,
            f"InitialStates.concat got different (state size, frame shape): {list(shapes)}.",
        )
        frames = [part.frames for part in parts if part.frames is not None]  # all or none
        return InitialStates(
            np.concatenate([part.states for part in parts]),
            np.concatenate(frames) if frames else None,
            sum((part.instructions for part in parts), ()),
            parts[0].split,
            np.concatenate([part.indices for part in parts]),
        )


@dataclass(kw_only=True, eq=False)
class Trajectory:
    """One episode of T control steps; `len()` is T. Raises UserError where shapes, types or
    finish_step disagree.
    """

    frames: np.ndarray  # uint8 (T+1, H, W, 3); frames[0] is the initial frame
    actions: np.ndarray  # float32 (T, D); actions[s] leads to frames[s + 1]
    tokens: np.ndarray | None = None  # int64 (T, D), as sampled
    log_probs: np.ndarray | None = None  # float32 (T, D), at the sampling temperature
    success: bool
    finish_step: int  # frame index (1..T) of the first successful frame; T when not successful
    instruction: str
    initial_state: np.ndarray  # float64 (S,)
    split: str
    index: int  # of the initial state in its split
    group: int = -1  # GRPO group, -1 if none
    chunk: int = 8  # K, actions chosen in one policy call

    def __post_init__(self):
        self.actions = np.asarray(self.actions, dtype=np.float32)
        self.initial_state = np.asarray(self.initial_state, dtype=np.float64)
        self.success, self.finish_step = bool(self.success), int(self.finish_step)
        if self.tokens is not None:
            self.tokens = np.asarray(self.tokens)
            _require(
                self.tokens.dtype.kind in "iu",
                f"Trajectory.tokens must be integers; got {self.tokens.dtype}.",
            )
            self.tokens = self.tokens.astype(np.int64, copy=False)
        if self.log_probs is not None:
            self.log_probs = np.asarray(self.log_probs, dtype=np.float32)
        self.validate()

    def validate(self) -> None:
        """Check every shape against T = len(actions); called on construction and again before
        saving.
        """
        shape, steps = self.actions.shape, len(self.actions) if self.actions.ndim else 0
        _require(
            len(shape) == 2 and steps > 0,
            f"Trajectory.actions has shape {shape}; expected (T, D) with T >= 1.",
        )
        _require(
            bool(np.isfinite(self.actions).all()),
            "Trajectory.actions holds NaN or infinity; expected numbers.",
        )
        _require(
            _is_frames(self.frames, steps + 1),
            f"Trajectory.frames must be uint8 ({steps + 1}, H, W, 3): one more than its {steps}"
            f" actions; got {_describe(self.frames)}.",
        )
        for name in ("tokens", "log_probs"):
            array = getattr(self, name)
            _require(
                array is None or array.shape == shape,
                f"Trajectory.{name} must have the shape of the actions, {shape}; got"
                f" {_describe(array)}.",
            )
        _require(
            self.initial_state.ndim == 1,
            f"Trajectory.initial_state has shape {self.initial_state.shape}; expected (S,).",
        )
        _require(
            1 <= self.finish_step <= steps and (self.success or self.finish_step == steps),
            f"Trajectory.finish_step is {self.finish_step} with success {self.success}; expected"
            f" 1..{steps} for a success and {steps} for a failure.",
        )
        _require(self.chunk >= 1, f"Trajectory.chunk is {self.chunk}; expected at least 1.")

    def __len__(self) -> int:
        return len(self.actions)


def outcomes(done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Success bool (E,) and finish_step int (E,), 1..T, of episodes whose `done` (E, T) is true
    from the step on that led to the first successful frame; finish_step is T where it never is.
    """
    done = np.asarray(done, dtype=bool)
    success = np.any(done, axis=1)
    return success, np.where(success, done.argmax(axis=1) + 1, done.shape[1])


def save_trajectories(
    path,
    trajectories,
    *,
    env_args: dict,
    provenance: dict,
    compression: str = "gzip",
    observations: list[dict] | None = None,
) -> None:
    """Write trajectories to `path` (see the layout above), made in memory first: never half a file,
    and a full disk is a UserError.

    env_args: the environment, as robomimic keeps it; provenance: how the data came about; both are
    stored as JSON. compression: of the frames, "gzip" (smaller) or "lzf" (faster). A success has
    rewards = dones = 1 at finish_step - 1 and nowhere else; a failure has no reward and is done at
    its last step. observations: for each trajectory further arrays of obs/ by name, T rows each.
    """
    path, trajectories = Path(path), list(trajectories)
    _require(len(trajectories) > 0, f"No trajectories to save to {path}; give at least one.")
    _require(
        compression in ("gzip", "lzf"),
        f"Unknown compression {compression!r}; expected 'gzip' or 'lzf'.",
    )
    for trajectory in trajectories:
        trajectory.validate()
    memory = io.BytesIO()  # the HDF5 library ends the process where a disk is full
    with h5py.File(memory, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"], data.attrs["provenance"] = (
            json.dumps(env_args),
            json.dumps(provenance),
        )
        data.attrs["num_demos"], data.attrs["total"] = (
            len(trajectories),
            sum(map(len, trajectories)),
        )
        if len(instructions := {trajectory.instruction for trajectory in trajectories}) == 1:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instructions.pop()})
        for number, trajectory in enumerate(trajectories):
            demo = data.create_group(f"demo_{number}")
            _write_demo(demo, trajectory, compression)
            for name, array in (observations[number] if observations else {}).items():
                _require(
                    len(array) == len(trajectory),
                    f"obs/{name} of trajectory {number} has {len(array)} rows; expected"
                    f" {len(trajectory)}, one for each action.",
                )
                demo.create_dataset(f"obs/{name}", data=array, compression=compression)
    write_atomic(path, memory.getbuffer())


def load_trajectories(path, pictures: str | None = None) -> list[Trajectory]:
    """Read every data/demo_k of a file, in the order of k; what `save_trajectories` wrote comes
    back bit for bit.

    Files of others keep T frames for T actions. If a frame is the one before its action
    (robomimic), the one after the last action is taken from next_obs or, where it is not in the
    file, repeated. If a frame is the one *after* its action (LIBERO's own recorder), the first
    action is left out, because the frame that it was chosen on is missing: frames = obs, actions =
    actions[1:]. The file tells which (see `foreign.pictures`); pictures: "before" or "after" for a
    file that does not.

    A folder in LeRobot's format v3.0 is read as well, see `wmpo_lite.common.lerobot`.

    Frames stay as stored (LIBERO stores them upside down: attr macros_image_convention);
    instruction, success and finish_step by the rules of `foreign`; split is "demos", index is k,
    chunk is 8. Raises UserError, naming the file, if it is missing, truncated, empty, of another
    layout, or its meaning cannot be told.
    """

    if lerobot.is_folder(path):
        return [Trajectory(**fields) for fields in lerobot.read(path)[0]]

    def read(data):
        names = demo_names(data)
        for name in names:
            _check_layout(data, name)
        told = [
            (
                foreign.outcome(data[name], len(data[name]["actions"])),
                foreign.instruction(data, data[name]),
            )
            for name in names
        ]
        when = foreign.pictures(data, names, pictures)
        return [
            _read_demo(data, name, when, *outcome, text)
            for name, (outcome, text) in zip(names, told)
        ]

    return _read(path, read)


def load_observations(path, pictures: str | None = None) -> list[dict]:
    """For every trajectory of an HDF5 file the other arrays of obs/ by name, T rows each: what was
    measured with the frame that an action was chosen on. Arguments and errors as in
    `load_trajectories`.
    """

    def read(data):
        names = demo_names(data)
        cut = int(foreign.pictures(data, names, pictures) == "after")
        return [_other_observations(data[name], cut) for name in names]

    return _read(path, read)


def _other_observations(demo: foreign.Group, cut: int) -> dict:
    rows, found = len(demo["actions"]) - cut, {}
    for name, item in demo["obs"].items():
        if name != foreign.camera(demo):
            foreign.clear(
                isinstance(item, h5py.Dataset) and item.ndim > 0 and len(item) >= rows,
                f"obs/{name} of {demo.name} is no array of a row for each action",
            )
            found[name] = item[:rows]
    return found


def load_metadata(path) -> dict:
    """{"env_args": dict, "provenance": dict} of a file, empty where it has none. Errors as in
    `load_trajectories`.
    """
    if lerobot.is_folder(path):
        found = lerobot.metadata(path)
        return {key: found[key] for key in ("env_args", "provenance")}
    return _read(
        path, lambda data: {key: foreign.attribute(data, key) for key in ("env_args", "provenance")}
    )


def _is_frames(frames, length: int) -> bool:
    return (
        isinstance(frames, np.ndarray)
        and frames.dtype == np.uint8
        and frames.ndim == 4
        and len(frames) == length
        and frames.shape[-1] == 3
        and 0 not in frames.shape[1:]
    )


def _describe(array) -> str:
    return (
        f"{array.dtype} {tuple(array.shape)}" if hasattr(array, "shape") else type(array).__name__
    )


def _write_demo(demo: foreign.Group, trajectory: Trajectory, compression: str) -> None:
    steps = len(trajectory)
    rewards, dones = np.zeros(steps, np.float32), np.zeros(steps, np.uint8)
    rewards[trajectory.finish_step - 1] = float(trajectory.success)
    dones[trajectory.finish_step - 1] = 1  # finish_step is T for a failure
    frames = trajectory.frames[:-1]  # (T, H, W, 3)
    # Neighbouring frames resemble each other: compress up to 16 together.
    demo.create_dataset(
        "obs/agentview_rgb",
        data=frames,
        compression=compression,
        chunks=(min(steps, 16), *frames.shape[1:]),
    )
    demo.create_dataset(
        "next_obs_last/agentview_rgb", data=trajectory.frames[-1], compression=compression
    )
    arrays = {
        "actions": trajectory.actions,
        "rewards": rewards,
        "dones": dones,
        "tokens": trajectory.tokens,
        "log_probs": trajectory.log_probs,
    }
    for name, array in arrays.items():
        if array is not None:
            demo.create_dataset(name, data=array)
    demo.attrs["num_samples"], demo.attrs["init_state"] = steps, trajectory.initial_state
    for name in ("instruction", "success", "finish_step", *OUR_ATTRS):
        demo.attrs[name] = getattr(trajectory, name)


def _read(path, reader):
    _require(
        Path(path).is_file(),
        f"{path} does not exist or is not a file; expected an HDF5 file of trajectories.",
    )
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise UserError("it has no group 'data', as LIBERO and robomimic files have")
            return reader(file["data"])
    except foreign.Unclear as error:
        raise UserError(f"Cannot read trajectories from {path}: {error}.") from error
    # h5py and json answer a damaged or foreign file with any of these, depending on the byte they
    # trip over.
    except (
        UserError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise UserError(
            f"Cannot read trajectories from {path}: {str(error).rstrip('.')}. "
            "Record or download the file again, or check that it is in the LIBERO layout."
        ) from error


def demo_names(data: foreign.Group) -> list[str]:
    """demo_0, demo_1, ... of the group `data`, in the order of their numbers."""
    names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
    _require(len(names) > 0, "it holds no demo_0, demo_1, ...: it is empty")
    return sorted(names, key=lambda name: int(name[5:]))  # HDF5 lists demo_10 before demo_2


def _read_demo(
    data: foreign.Group, name: str, pictures: str, success: bool, finish_step: int, text: str
) -> Trajectory:
    demo = data[name]
    frames, actions = demo["obs"][foreign.camera(demo)][()], demo["actions"][()]
    steps, cut = len(actions), int(pictures == "after")
    foreign.clear(
        finish_step > cut,
        f"{name} is solved by its first action, before its first frame; take it out of the file",
    )
    optional = {key: demo[key][cut:] for key in ("tokens", "log_probs") if key in demo}
    extras: dict[str, Any] = {"split": "demos", "index": int(name[5:])}
    for key, kind in OUR_ATTRS.items():
        if key in demo.attrs:
            extras[key] = kind(demo.attrs[key], f"the attribute {key} of {name}")
    try:
        return Trajectory(
            **extras | optional,
            success=success,
            finish_step=finish_step - cut,
            frames=_frames(demo, frames, steps, cut),
            actions=actions[cut:],
            instruction=text,
            initial_state=_initial_state(demo, cut),
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _frames(demo: foreign.Group, frames: np.ndarray, steps: int, cut: int) -> np.ndarray:
    """One more than the actions: with the frame after the last one, as far as the file has it."""
    if cut or len(frames) == steps + 1:
        return frames
    name = foreign.camera(demo)
    for key, rows in ((f"next_obs_last/{name}", ...), (f"next_obs/{name}", -1)):
        if key in demo:
            return np.concatenate([frames, demo[key][rows][None]])
    return np.concatenate([frames, frames[-1:]])


def _initial_state(demo: foreign.Group, cut: int) -> np.ndarray:
    """The state that the first frame shows, empty where the file does not have it; init_state is
    from before all.
    """
    if "init_state" in demo.attrs and not cut:
        return demo.attrs["init_state"]
    return demo["states"][cut] if "states" in demo and len(demo["states"]) > cut else np.empty(0)


def _check_layout(data: foreign.Group, name: str) -> None:
    demo = data[name]
    _require(isinstance(demo, h5py.Group), f"{name} is not a group")
    pictures = f"obs/{foreign.camera(demo)}"
    for key in (pictures, "actions"):
        _require(isinstance(demo.get(key), h5py.Dataset), f"{name} has no {key}")
    frames, actions, told = (
        demo[pictures],
        demo["actions"],
        demo.attrs.get("num_samples"),
    )
    _require(
        actions.ndim == 2 and actions.dtype.kind in "biuf",
        f"{name} has actions of {_describe(actions)}; expected numbers (T, D)",
    )
    _require(
        len(frames) in (len(actions), len(actions) + 1),
        f"{name} has {len(frames)} frames and {len(actions)} actions; expected as many, or one"
        " frame more",
    )
    foreign.clear(
        told is None or foreign.whole(told, f"num_samples of {name}") == len(actions),
        f"{name} has {len(actions)} actions, {len(frames)} frames and num_samples {told}; store as"
        " many as there are",
    )
