"""Initial states and trajectories: what goes into an environment and what comes out of it.

One `Trajectory` type serves the simulator, the imagination, LIBERO and the arm, from collection to
GRPO. On disk it is HDF5 (`common/hdf5.py` shows the layout); LeRobot's folders are read as well.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.common import hdf5, lerobot
from wmpo_lite.common.errors import require


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
        require(
            self.states.ndim == 2,
            f"InitialStates.states has shape {self.states.shape}; expected (B, S).",
        )
        size = len(self.states)
        require(
            len(self.instructions) == size and self.indices.shape == (size,),
            f"InitialStates has {size} states, {len(self.instructions)} instructions and indices of"
            f" shape {self.indices.shape}; give one instruction and one index for each state.",
        )
        require(
            self.frames is None or _is_frames(self.frames, size),
            f"InitialStates.frames must be uint8 ({size}, H, W, 3) or None; got"
            f" {_describe(self.frames)}.",
        )

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index) -> "InitialStates":
        """The states of a slice, an index array, a boolean mask or an integer (a batch of one)."""
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
        """Each state `times` times in a row: group g of GRPO is rows g * times and following."""
        return self[np.repeat(np.arange(len(self)), times)]

    @staticmethod
    def concat(parts: "list[InitialStates]") -> "InitialStates":
        """Join batches of one split: a mixed one would hide a leak of evaluation into training."""
        parts = list(parts)
        splits = sorted({part.split for part in parts})
        require(
            len(splits) == 1,
            f"InitialStates.concat got the splits {splits}; join batches of one split.",
        )
        shapes = {
            (part.states.shape[1], None if part.frames is None else part.frames.shape[1:])
            for part in parts
        }
        require(
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
    """One episode of T control steps; UserError where shapes, types or finish_step disagree."""

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
            require(
                self.tokens.dtype.kind in "iu",
                f"Trajectory.tokens must be integers; got {self.tokens.dtype}.",
            )
            self.tokens = self.tokens.astype(np.int64, copy=False)
        if self.log_probs is not None:
            self.log_probs = np.asarray(self.log_probs, dtype=np.float32)
        self.validate()

    def validate(self) -> None:
        """Check every shape against T = len(actions): on construction and before saving."""
        shape, steps = self.actions.shape, len(self.actions) if self.actions.ndim else 0
        require(
            len(shape) == 2 and steps > 0,
            f"Trajectory.actions has shape {shape}; expected (T, D) with T >= 1.",
        )
        require(
            bool(np.isfinite(self.actions).all()),
            "Trajectory.actions holds NaN or infinity; expected numbers.",
        )
        require(
            _is_frames(self.frames, steps + 1),
            f"Trajectory.frames must be uint8 ({steps + 1}, H, W, 3): one more than its {steps}"
            f" actions; got {_describe(self.frames)}.",
        )
        for name in ("tokens", "log_probs"):
            array = getattr(self, name)
            require(
                array is None or array.shape == shape,
                f"Trajectory.{name} must have the shape of the actions, {shape}; got"
                f" {_describe(array)}.",
            )
        require(
            self.initial_state.ndim == 1,
            f"Trajectory.initial_state has shape {self.initial_state.shape}; expected (S,).",
        )
        require(
            1 <= self.finish_step <= steps and (self.success or self.finish_step == steps),
            f"Trajectory.finish_step is {self.finish_step} with success {self.success}; expected"
            f" 1..{steps} for a success and {steps} for a failure.",
        )
        require(self.chunk >= 1, f"Trajectory.chunk is {self.chunk}; expected at least 1.")

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
    """Write trajectories to `path` in the layout of `common/hdf5.py`: never half a file, and a
    full disk is a UserError.

    env_args: the environment, as robomimic keeps it; provenance: how the data came about; both are
    stored as JSON. compression: of the frames, "gzip" (smaller) or "lzf" (faster). A success has
    rewards = dones = 1 at finish_step - 1 and nowhere else; a failure has no reward and is done at
    its last step. observations: for each trajectory further arrays of obs/ by name, T rows each.
    """
    trajectories = list(trajectories)
    require(len(trajectories) > 0, f"No trajectories to save to {path}; give at least one.")
    require(
        compression in ("gzip", "lzf"),
        f"Unknown compression {compression!r}; expected 'gzip' or 'lzf'.",
    )
    for trajectory in trajectories:
        trajectory.validate()
    hdf5.write(
        path,
        trajectories,
        env_args=env_args,
        provenance=provenance,
        compression=compression,
        observations=observations,
    )


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
    return hdf5.read(path, Trajectory, pictures)


def load_observations(path, pictures: str | None = None) -> list[dict]:
    """For every trajectory of an HDF5 file the other arrays of obs/ by name, T rows each: what was
    measured with the frame that an action was chosen on. Arguments and errors as in
    `load_trajectories`.
    """
    return hdf5.observations(path, pictures)


def load_metadata(path) -> dict:
    """env_args and provenance of a file by name, empty without; errors as `load_trajectories`."""
    if lerobot.is_folder(path):
        found = lerobot.metadata(path)
        return {key: found[key] for key in ("env_args", "provenance")}
    return hdf5.metadata(path)


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
