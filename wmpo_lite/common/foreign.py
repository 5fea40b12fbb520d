"""What HDF5 files of other programs mean: texts, flags and outcomes, and which frame belongs to
which action.

Nothing is converted by `str`, `bool` or `> 0`: what cannot be told from the file is refused.
"""

import json
from typing import Any

import h5py
import numpy as np

from wmpo_lite.common.errors import UserError

# Of an HDF5 file. In h5py's types an item may be anything, so that nothing could be done with it;
# what it has to be is looked at as the file is read.
Group = Any
CAMERAS = ("agentview_rgb", "agentview_image")


class Unclear(UserError):
    """A file that can be read and not be understood; the message says what to do."""


def clear(condition: bool, message: str) -> None:
    if not condition:
        raise Unclear(message)


# -- values ----------------------------------------------------------------------------------------


def text(value, name: str) -> str:
    """A string, bytes in UTF-8, or a list of words (or of letters) of either."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Unclear(f"{name} is no text in UTF-8; store it as a string") from None
    if isinstance(value, str):
        return str(value)
    parts = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    clear(
        isinstance(parts, list | tuple)
        and len(parts) > 0
        and all(isinstance(p, str | bytes) for p in parts),
        f"{name} is {_short(value)}; store it as a string",
    )
    parts = [text(part, name) for part in parts]
    letters = all(len(part) <= 1 for part in parts)
    return "".join(parts) if letters else " ".join(" ".join(parts).split())


def flag(value, name: str) -> bool:
    """True, False, 1 or 0."""
    value = _single(value)
    clear(
        isinstance(value, bool | int | float) and value in (0, 1),
        f"{name} is {_short(value)}; store it as a boolean",
    )
    return bool(value)


def whole(value, name: str) -> int:
    """An integer."""
    value = _single(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    clear(number, f"{name} is {_short(value)}; store it as an integer")
    return int(value)


def instruction(data: Group, demo: Group) -> str:
    """Of a demonstration's own attributes, else from problem_info or env_args of the file."""
    for key in ("instruction", "language_instruction"):
        if key in demo.attrs:
            return text(demo.attrs[key], f"the attribute {key} of {_name(demo)}")
    env_args = attribute(data, "env_args")
    for source in (attribute(data, "problem_info"), env_args, env_args.get("env_kwargs", {})):
        if isinstance(source, dict) and source.get("language_instruction"):
            found = text(source["language_instruction"], "language_instruction").strip().strip('"')
            if found:
                return found
    raise Unclear(
        "it has no language_instruction in the attributes problem_info or env_args of 'data'; store"
        " it there as JSON"
    )


def attribute(data: Group, key: str) -> dict:
    """An attribute that holds a JSON object; {} where there is none."""
    if key not in data.attrs:
        return {}
    found = json.loads(text(data.attrs[key], f"the attribute {key}"))
    clear(
        isinstance(found, dict),
        f"the attribute {key} holds {_short(found)}; store a JSON object there",
    )
    return found


# -- outcomes --------------------------------------------------------------------------------------


def outcome(demo: Group, steps: int) -> tuple[bool, int]:
    """(success, finish_step) of T = `steps` actions; finish_step is 1..T, T for a failure.

    `success` decides, an attribute, or a dataset of one flag or of one for each step. Without it
    rewards do, if they are 0 and 1 only: a shaped reward says nothing of success. Without rewards
    the first of `dones` is the success, as in LIBERO. A success whose step nothing tells is one at
    the last step.
    """
    name, said = _name(demo), None
    own = demo.get("success")
    if "success" in demo.attrs:
        said = flag(demo.attrs["success"], f"the attribute success of {name}")
    elif isinstance(own, h5py.Dataset) and own.size == 1:
        said = flag(own[()], f"success of {name}")
    signals = [
        key for key in ("success", "rewards", "dones") if isinstance(demo.get(key), h5py.Dataset)
    ]
    if said is not None:
        flags = [
            found
            for key in signals
            if demo[key].size == steps and (found := _flags(demo[key])) is not None
        ]
        flags = next((found for found in flags if found.any()), np.zeros(steps, bool))
        success = said
    else:
        clear(
            len(signals) > 0,
            f"{name} has neither rewards nor dones to tell success from; add an attribute success",
        )
        key = signals[0]
        clear(
            demo[key].size == steps,
            f"{name} has {demo[key].size} {key} and {steps} actions; store one for each action",
        )
        flags = _flags(demo[key])
        if flags is None:
            raise Unclear(
                f"{name} has {key} other than 0 and 1, which do not tell success; add an attribute"
                " success to it"
            )
        success = bool(flags.any())
    if "finish_step" in demo.attrs:
        return success, whole(demo.attrs["finish_step"], f"the attribute finish_step of {name}")
    return success, int(flags.argmax()) + 1 if success and flags.any() else steps


def _flags(dataset: h5py.Dataset) -> np.ndarray | None:
    """A sparse signal as bool (T,); None if it is anything but 0 and 1."""
    values = dataset[()].ravel()
    flags = values.dtype.kind in "biuf" and np.isin(values, (0, 1)).all()
    return values.astype(bool) if flags else None


# -- frames and actions ----------------------------------------------------------------------------


def pictures(data: Group, names: list[str], said: str | None) -> str:
    """Whether the frame beside an action is from "before" or "after" it, for all demonstrations of
    a file.

    LIBERO's own recorder keeps the frame that the action led to, robomimic and re-made files the
    one that it was chosen on. `states` are from before the action in both, so the robot's
    positions, which are measured with the frame, tell: beside the same row of `states`, or beside
    the next. said: the user's word, where the file has none.
    """
    clear(
        said in (None, "before", "after"),
        f"pictures is {said!r}; expected 'before', 'after' or None",
    )
    found = {seen for name in names if (seen := _seen(data[name])) is not None}
    clear(
        len(found) < 2,
        "some demonstrations keep frames from before the action, others from after it; split the"
        " file",
    )
    if not found and said is not None:
        return said
    if not found:
        if all(_still(data[name]["obs"][camera(data[name])]) for name in names):
            return "before"  # nothing that could be misplaced
        raise Unclear(
            "it does not tell whether a frame is from before or after the action beside it (no"
            " positions of the robot that move as `states` do); say which with pictures='before' or"
            " pictures='after'"
        )
    seen = found.pop()
    clear(
        said in (None, seen),
        f"its frames are from {seen} the action beside them; pictures={said!r} is wrong, leave"
        " it out",
    )
    return seen


def _seen(demo: Group) -> str | None:
    name, steps = camera(demo), len(demo["actions"])
    frames = demo["obs"][name]
    if f"next_obs_last/{name}" in demo or len(frames) == steps + 1:
        return "before"
    following = demo.get(f"next_obs/{name}")
    if following is not None and following.shape == frames.shape and steps > 1:
        if not _still(frames) and np.array_equal(following[:-1], frames[1:]):
            return "before"
    states = demo["states"][()] if "states" in demo else None
    if states is None or states.ndim != 2 or states.dtype.kind not in "iuf":
        return None
    if not 2 <= steps <= len(states):
        return None
    measured = [
        d for d in [*demo["obs"].values(), demo.get("robot_states")] if isinstance(d, h5py.Dataset)
    ]
    measured = [d[()] for d in measured if d.ndim == 2 and len(d) == steps and d.dtype.kind == "f"]
    same, following = 0.0, 0.0
    for column in [column for table in measured for column in table.T]:
        stride = np.abs(np.diff(column)).mean()
        if not stride > 0:
            continue
        off = [
            np.abs(column[: steps - 1, None] - states[row : steps - 1 + row]).mean(axis=0).min()
            / stride
            for row in (0, 1)
        ]
        if min(off) < 0.25:  # one of the states, and not, say, a place of the hand that is none
            same, following = same + off[0], following + off[1]
    if 2 * min(same, following) >= max(same, following):
        return None
    return "before" if same < following else "after"


def camera(demo: Group) -> str:
    """The name of the pictures in obs/: as LIBERO calls them, or as robomimic does."""
    return next((name for name in CAMERAS if f"obs/{name}" in demo), CAMERAS[0])


def _still(frames: h5py.Dataset) -> bool:
    return len(frames) > 0 and bool((frames[()] == frames[:1]).all())


def _single(value):
    """A Python number of a scalar or of an array with one element."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def _name(demo: Group) -> str:
    return demo.name.rpartition("/")[2]


def _short(value) -> str:
    said = repr(value)
    return said if len(said) < 60 else said[:57] + "..."
