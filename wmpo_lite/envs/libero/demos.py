"""Official LIBERO demonstrations (HDF5) as trajectories of the environment: upright frames, its
size, its control stride.
"""

import dataclasses

import h5py
import numpy as np

from wmpo_lite.common import foreign
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.hdf5 import demo_names
from wmpo_lite.trajectory import Trajectory, load_trajectories

ACTIONS = 7


def load_demonstrations(
    path, stride: int, size: int | None = None, env=None, pictures: str | None = None
) -> list[Trajectory]:
    """The demonstrations of one task's file, each as one Trajectory of split "demos".

    stride: recorded steps (20 Hz) that become one policy step, as in `LiberoTask.stride`: positions
    and turns of the recorded actions add up to what the held action asks for, the gripper does what
    it did last. size: pixels of the frames, the recorded size by default; frames come out upright.
    env: a LiberoEnv of the same task draws the frames anew from the recorded states, in its own
    look and size, so that they look like its own episodes; the episodes begin and end as they do
    with the recorded frames. pictures: see `load_trajectories`, which leaves the first action out
    where its frame is missing. UserError, naming the file, if it is not such a file or belongs to
    another task than `env`.
    """
    if stride < 1:
        raise UserError(
            f"the stride is {stride}; expected 1 or more recorded steps for one policy step"
        )
    trajectories = load_trajectories(path, pictures)
    if (found := trajectories[0].actions.shape[1]) != ACTIONS:
        raise UserError(
            f"{path} has actions of {found} numbers; demonstrations of LIBERO have {ACTIONS}"
        )
    upside_down, states, recorded = _recorded(path)
    left_out = [count - len(t) for count, t in zip(recorded, trajectories)]
    if env is not None:
        _require_states(path, env, trajectories, states, left_out)
    out = []
    for trajectory, rows, cut in zip(trajectories, states, left_out):
        ends = np.append(np.arange(0, len(trajectory), stride), len(trajectory))  # of T + 1 frames
        if env is not None:
            # the state after the last action is mostly not in the file
            frames = env.pictures(rows[np.minimum(ends + cut, len(rows) - 1)])
        else:
            frames = trajectory.frames[ends]
            frames = _resize(frames[:, ::-1] if upside_down else frames, size)
        out.append(
            dataclasses.replace(
                trajectory,
                frames=np.ascontiguousarray(frames),
                actions=thin(trajectory.actions, stride),
                finish_step=-(-trajectory.finish_step // stride),
                tokens=None,
                log_probs=None,
            )
        )
    return out


def _recorded(path) -> tuple[bool, list, list[int]]:
    """Whether the file's frames are upside down, and of each demonstration the simulator's states,
    None without any, and how many actions it has.
    """
    with h5py.File(path, "r") as file:
        data = file["data"]
        convention = foreign.text(
            data.attrs.get("macros_image_convention", ""), f"macros_image_convention of {path}"
        )
        demos = [data[name] for name in demo_names(data)]
        states = [demo["states"][()] if "states" in demo else None for demo in demos]
        counts = [len(demo["actions"]) for demo in demos]
    if convention not in ("", "opengl", "opencv"):
        raise UserError(
            f"{path} has the macros_image_convention '{convention}'; expected 'opengl' (upside"
            " down) or 'opencv' (upright)"
        )
    return convention == "opengl", states, counts


def _require_states(path, env, trajectories, states, left_out) -> None:
    """UserError unless the file is of the environment's task and has a state for each action."""
    if env.task.instruction.lower() != trajectories[0].instruction.lower():
        raise UserError(
            f"{path} shows '{trajectories[0].instruction}' and the environment is for"
            f" '{env.task.instruction}'; take the file of its task"
        )
    rows = zip(states, trajectories, left_out)
    if any(known is None or len(known) < len(t) + cut for known, t, cut in rows):
        raise UserError(
            f"{path} holds no recorded states to draw from, one for each action; load it"
            " without `env`, or take an official file"
        )


def thin(actions: np.ndarray, stride: int) -> np.ndarray:
    """Recorded actions (T, 7) as actions (ceil(T / stride), 7) that are each held for `stride`
    steps.
    """
    pieces = [actions[n : n + stride] for n in range(0, len(actions), stride)]
    return np.stack(
        [np.append(piece[:, :-1].sum(axis=0) / stride, piece[-1, -1]) for piece in pieces]
    ).astype(np.float32)


def _resize(frames: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or frames.shape[1:3] == (size, size):
        return frames
    from PIL import Image

    small = lambda frame: Image.fromarray(frame).resize((size, size), Image.Resampling.BOX)
    return np.stack([np.asarray(small(frame)) for frame in frames])
