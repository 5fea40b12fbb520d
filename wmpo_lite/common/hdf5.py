"""Episodes in HDF5, in the layout of LIBERO and robomimic: official LIBERO demonstrations load
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

What the files of others mean, `foreign` tells.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmpo_lite.common import foreign
from wmpo_lite.common.errors import UserError, require
from wmpo_lite.common.files import write_atomic

OUR_ATTRS = {"split": foreign.text} | dict.fromkeys(("index", "group", "chunk"), foreign.whole)
# What h5py and json answer a damaged or foreign file with, depending on the byte they trip over.
UNREADABLE = (UserError, OSError, LookupError, ValueError, TypeError, RuntimeError)
UNREADABLE += (AttributeError, MemoryError)


def write(
    path,
    trajectories: list,
    *,
    env_args: dict,
    provenance: dict,
    compression: str,
    observations: list[dict] | None,
) -> None:
    """Write `trajectories`: made in memory first, so that a full disk leaves nothing."""
    memory = io.BytesIO()  # the HDF5 library ends the process where a disk is full
    with h5py.File(memory, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["provenance"] = json.dumps(provenance)
        data.attrs["num_demos"] = len(trajectories)
        data.attrs["total"] = sum(map(len, trajectories))
        if len(instructions := {trajectory.instruction for trajectory in trajectories}) == 1:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instructions.pop()})
        for number, trajectory in enumerate(trajectories):
            demo = data.create_group(f"demo_{number}")
            _write_demo(demo, trajectory, compression)
            for name, array in (observations[number] if observations else {}).items():
                require(
                    len(array) == len(trajectory),
                    f"obs/{name} of trajectory {number} has {len(array)} rows; expected"
                    f" {len(trajectory)}, one for each action.",
                )
                demo.create_dataset(f"obs/{name}", data=array, compression=compression)
    write_atomic(path, memory.getbuffer())


def _write_demo(demo: foreign.Group, trajectory, compression: str) -> None:
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
    demo.attrs["num_samples"] = steps
    demo.attrs["init_state"] = trajectory.initial_state
    for name in ("instruction", "success", "finish_step", *OUR_ATTRS):
        demo.attrs[name] = getattr(trajectory, name)


def read(path, make: Callable, pictures: str | None = None) -> list:
    """`make(**fields)` of every data/demo_k in the order of k, with the fields of `Trajectory`;
    pictures and errors as in `load_trajectories`.
    """

    def episodes(data):
        names = demo_names(data)
        for name in names:
            _check_layout(data, name)
        demos = [data[name] for name in names]
        told = [
            (*foreign.outcome(demo, len(demo["actions"])), foreign.instruction(data, demo))
            for demo in demos
        ]
        cut = int(foreign.pictures(data, names, pictures) == "after")
        return [_read_demo(demo, make, cut, *said) for demo, said in zip(demos, told)]

    return _open(path, episodes)


def observations(path, pictures: str | None = None) -> list[dict]:
    """The other arrays of obs/ by name, for every data/demo_k."""

    def others(data):
        names = demo_names(data)
        cut = int(foreign.pictures(data, names, pictures) == "after")
        return [_other_observations(data[name], cut) for name in names]

    return _open(path, others)


def metadata(path) -> dict:
    """{"env_args": dict, "provenance": dict} of a file, empty where it has none."""
    keys = ("env_args", "provenance")
    return _open(path, lambda data: {key: foreign.attribute(data, key) for key in keys})


def demo_names(data: foreign.Group) -> list[str]:
    """demo_0, demo_1, ... of the group `data`, in the order of their numbers."""
    names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
    require(len(names) > 0, "it holds no demo_0, demo_1, ...: it is empty")
    return sorted(names, key=lambda name: int(name[5:]))  # HDF5 lists demo_10 before demo_2


def _open(path, reader: Callable) -> Any:
    """`reader(group data of the file)`; whatever goes wrong is a UserError that names the file."""
    require(
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
    except UNREADABLE as error:
        raise UserError(
            f"Cannot read trajectories from {path}: {str(error).rstrip('.')}. "
            "Record or download the file again, or check that it is in the LIBERO layout."
        ) from error


def _read_demo(
    demo: foreign.Group, make: Callable, cut: int, success: bool, finish_step: int, text: str
):
    """One demonstration without its first `cut` actions."""
    name = demo.name.rpartition("/")[2]
    frames, actions = demo["obs"][foreign.camera(demo)][()], demo["actions"][()]
    foreign.clear(
        finish_step > cut,
        f"{name} is solved by its first action, before its first frame; take it out of the file",
    )
    extras = {"split": "demos", "index": int(name[5:])}
    extras |= {key: demo[key][cut:] for key in ("tokens", "log_probs") if key in demo}
    for key, kind in OUR_ATTRS.items():
        if key in demo.attrs:
            extras[key] = kind(demo.attrs[key], f"the attribute {key} of {name}")
    try:
        return make(
            **extras,
            success=success,
            finish_step=finish_step - cut,
            frames=_frames(demo, frames, len(actions), cut),
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
    """The state that the first frame shows (init_state is from before all), empty without one."""
    if "init_state" in demo.attrs and not cut:
        return demo.attrs["init_state"]
    return demo["states"][cut] if "states" in demo and len(demo["states"]) > cut else np.empty(0)


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


def _check_layout(data: foreign.Group, name: str) -> None:
    demo = data[name]
    require(isinstance(demo, h5py.Group), f"{name} is not a group")
    pictures = f"obs/{foreign.camera(demo)}"
    for key in (pictures, "actions"):
        require(isinstance(demo.get(key), h5py.Dataset), f"{name} has no {key}")
    frames, actions, told = demo[pictures], demo["actions"], demo.attrs.get("num_samples")
    require(
        actions.ndim == 2 and actions.dtype.kind in "biuf",
        f"{name} has actions of {actions.dtype} {actions.shape}; expected numbers (T, D)",
    )
    require(
        len(frames) in (len(actions), len(actions) + 1),
        f"{name} has {len(frames)} frames and {len(actions)} actions; expected as many, or one"
        " frame more",
    )
    foreign.clear(
        told is None or foreign.whole(told, f"num_samples of {name}") == len(actions),
        f"{name} has {len(actions)} actions, {len(frames)} frames and num_samples {told}; store as"
        " many as there are",
    )
