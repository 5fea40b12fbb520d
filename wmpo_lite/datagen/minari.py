"""Trajectories as a Minari data set (format of minari 0.5), in and out without that package.

Minari stores pictures of 32 pixels and more as JPEG unless it is told not to; here they are always
kept as they are. A data set is a folder whose name ends in -v and a number:

    NAME-v0/data/metadata.json    spaces and sizes; ours: env_args, provenance
    NAME-v0/data/main_data.hdf5   episode_0/observations uint8 (T + 1, H, W, 3), actions (T, D),
                                  rewards, terminations, truncations (T,), infos/success (T + 1,)
"""

import io
import json
import re
import warnings
from pathlib import Path

import h5py
import numpy as np

from wmpo_lite.common import foreign
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import read_json, whole_folder, write_atomic, write_json
from wmpo_lite.trajectory import Trajectory

NAME = re.compile(r".+-v\d+")
OURS = ("instruction", "split", "index", "group", "chunk", "initial_state")
SUCCESS = ("success", "is_success")  # what environments call it in their infos


def is_dataset(path) -> bool:
    return (Path(path) / "data" / "metadata.json").is_file()


def write(folder, trajectories, metadata: dict) -> None:
    """Write trajectories, of one size of pictures and actions, as the data set `folder`. metadata:
    as of `load_metadata`. Tokens and log-probabilities have no place there.
    """
    trajectories, memory = list(trajectories), io.BytesIO()
    with h5py.File(memory, "w", track_order=True) as file:
        for number, t in enumerate(trajectories):
            episode, steps = file.create_group(f"episode_{number}"), np.arange(1, len(t) + 1)
            episode.attrs.update({name: getattr(t, name) for name in OURS})
            episode.attrs.update({"id": number, "total_steps": len(t)})
            solved = t.success & (steps >= t.finish_step)
            arrays = {
                "actions": t.actions,
                "rewards": (t.success & (steps == t.finish_step)).astype(np.float64),
                "terminations": np.zeros(len(t), dtype=bool),  # it goes on after a success
                "truncations": steps == len(t),
                "infos/success": np.append(False, solved),
            }
            for name, array in arrays.items():
                episode[name] = array
            episode.create_dataset("observations", data=t.frames, compression="gzip")
    first, data = trajectories[0], memory.getbuffer()
    about = {
        "total_episodes": len(trajectories),
        "total_steps": sum(map(len, trajectories)),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": _box(first.frames[0], 0, 255),
        "action_space": _box(first.actions[0], -1.0, 1.0),
        "dataset_id": Path(folder).name,
        "minari_version": "0.5.4",
        "dataset_size": round(len(data) / 1e6, 1),
        "wmpo_lite": metadata,
    }
    with whole_folder(folder) as staging:
        write_atomic(staging / "data" / "main_data.hdf5", data)
        write_json(staging / "data" / "metadata.json", about)


def read(folder, success: bool | None = None) -> tuple[list[Trajectory], dict]:
    """The episodes of a data set whose observations are, or hold, pictures, and its metadata as of
    `load_metadata`.

    success: of all episodes, where neither the file nor its infos tell. A warning where pictures
    were stored as JPEG. UserError for what is damaged or unclear.
    """
    folder = Path(folder)
    about = read_json(folder / "data" / "metadata.json", {"total_episodes": int})
    try:
        with h5py.File(folder / "data" / "main_data.hdf5", "r") as file:
            names = [f"episode_{n}" for n in range(about["total_episodes"])]
            found = [_episode(file[name], n, success) for n, name in enumerate(names)]
    except (UserError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"Cannot read Minari episodes from {folder}: {str(error).rstrip('.')}."
        ) from error
    return found, about.get("wmpo_lite") or {"env_args": {}, "provenance": {}}


def _episode(episode: h5py.Group, number: int, success: bool | None) -> Trajectory:
    frames, actions = _pictures(episode["observations"]), episode["actions"][()]
    told = [episode[f"infos/{name}"][()] for name in SUCCESS if f"infos/{name}" in episode]
    if not told and success is None:
        raise UserError(
            f"{episode.name[1:]} does not tell whether it succeeded (infos/success); say --success"
        )
    # Infos begin with that of reset: row n belongs to frame n.
    solved = told[0][-len(actions) :].astype(bool) if told else np.zeros(len(actions), dtype=bool)
    won = bool(solved.any()) if told else success
    own = {name: episode.attrs[name] for name in OURS if name in episode.attrs}
    own = {"instruction": "", "split": "demos", "index": number, "initial_state": []} | own
    own["instruction"] = foreign.text(own["instruction"], "the instruction")
    finish = int(solved.argmax()) + 1 if solved.any() else len(actions)
    return Trajectory(frames=frames, actions=actions, success=won, finish_step=finish, **own)


def _pictures(observations) -> np.ndarray:
    """The only pictures among the observations, a data set or a group of them."""
    items = observations.values() if isinstance(observations, h5py.Group) else [observations]
    coded = [item for item in items if isinstance(item, h5py.Dataset) and item.dtype == object]
    if coded:
        from PIL import Image

        warnings.warn(
            f"pictures of {observations.file.filename} were stored as JPEG: they are not what was"
            " recorded",
            stacklevel=4,
        )
        return np.stack([np.asarray(Image.open(io.BytesIO(bytes(b)))) for b in coded[0][()]])
    plain = [item for item in items if isinstance(item, h5py.Dataset) and item.dtype == np.uint8]
    plain = [item for item in plain if item.ndim == 4 and item.shape[-1] == 3]
    if len(plain) != 1:
        raise UserError(f"its observations hold {len(plain)} kinds of RGB pictures, expected one")
    return plain[0][()]


def _box(example: np.ndarray, low, high) -> str:
    """A space as Minari writes it: JSON within JSON, every number's bounds."""
    bounds = {
        name: np.full(example.shape, v).tolist() for name, v in (("low", low), ("high", high))
    }
    shape = list(example.shape)
    return json.dumps({"type": "Box", "dtype": str(example.dtype), "shape": shape, **bounds})
