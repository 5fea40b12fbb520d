"""`wmpo-lite convert`: recorded episodes between HDF5 (the kit's, LIBERO's, robomimic's), LeRobot
folders and Minari data sets.
"""

import warnings
from pathlib import Path

from wmpo_lite.common import lerobot
from wmpo_lite.common.errors import UserError
from wmpo_lite.datagen import lerobot as lerobot_writer
from wmpo_lite.datagen import minari
from wmpo_lite.trajectory import (
    Trajectory,
    load_metadata,
    load_observations,
    load_trajectories,
    save_trajectories,
)

HDF5 = (".hdf5", ".h5")


def convert(
    source,
    target,
    *,
    camera: str | None = None,
    pictures: str | None = None,
    success: bool | None = None,
    fps: int | None = None,
    observations: tuple[str, ...] | None = None,
    partial: bool = False,
) -> dict:
    """Write the episodes of `source` to `target`: HDF5 where its name ends in .hdf5 or .h5, a
    Minari data set where it ends in -v0 (or another number), else a LeRobot folder. Actions, states
    and pictures are kept exactly; in Minari, which wants as many observations as frames, arrays
    beside the frames have no place, and a warning names them.

    camera, success, partial: see `lerobot.read`; of an HDF5 file the camera is the name that its
    frames get; pictures: see `load_trajectories`; fps: control
    steps a second, where an HDF5 file does not tell; observations: further arrays of obs/ that are
    kept (all). Returns {"episodes", "steps", "successes", "observations"}. UserError where `target`
    exists, and as in `lerobot.read` and `load_trajectories`.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"{target} exists; choose another name, or remove it")
    if minari.is_dataset(source):
        trajectories, metadata = minari.read(source, success)
        more, about = [{} for _ in trajectories], _about(metadata["env_args"])
    elif source.is_dir():
        metadata = load_metadata(source) if lerobot.is_folder(source) else {}
        fields, more, about = lerobot.read(source, camera=camera, success=success, partial=partial)
        trajectories = [Trajectory(**f) for f in fields]
    else:
        trajectories = load_trajectories(source, pictures)
        more = load_observations(source, pictures)
        metadata = load_metadata(source)
        about = _about(metadata["env_args"]) | metadata["provenance"].get("lerobot", {})
        about |= {"camera": camera} if camera else {}
    if fps and target.suffix not in HDF5:
        about["fps"] = fps
    kept = _write(source, target, trajectories, _chosen(more, observations), metadata, about)
    return {
        "episodes": len(trajectories),
        "steps": sum(map(len, trajectories)),
        "successes": sum(t.success for t in trajectories),
        "observations": kept,
    }


def _write(source, target: Path, trajectories, more: list, metadata: dict, about: dict) -> list:
    """Write the target; the names of the arrays beside the frames that it keeps."""
    names = sorted(more[0]) if more else []
    if target.suffix in HDF5:
        metadata["provenance"] = metadata["provenance"] | {"lerobot": about}
        save_trajectories(target, trajectories, observations=more, **metadata)
    elif minari.NAME.fullmatch(target.name):
        if names:
            left = ", ".join(names)
            warnings.warn(f"{target} keeps frames and actions, not {left}", stacklevel=3)
        minari.write(target, trajectories, metadata)
        return []
    elif "fps" not in about:
        raise UserError(f"{source} does not tell how many control steps a second has; say --fps")
    else:
        rate = about["fps"]
        lerobot_writer.write(target, trajectories, more, fps=rate, about=about, metadata=metadata)
    return names


def _about(env_args: dict) -> dict:
    """What env_args of an HDF5 file tells a LeRobot folder: fps and the names of the actions."""
    from wmpo_lite.envs.libero.env import ACTION_NAMES as LIBERO
    from wmpo_lite.envs.tabletop import tasks
    from wmpo_lite.envs.tabletop.env import ACTION_NAMES, CONTROL_PERIOD

    kwargs, task = env_args.get("env_kwargs"), str(env_args.get("task", ""))
    rate = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
    if task in tasks.NAMES:
        return {"fps": round(1 / CONTROL_PERIOD), "action_names": list(ACTION_NAMES)}
    if "/" in task:
        return {"fps": 20, "action_names": list(LIBERO)}
    return {"fps": int(rate)} if isinstance(rate, int | float) and rate == int(rate) > 0 else {}


def _chosen(more: list[dict], names: tuple[str, ...] | None) -> list[dict]:
    unknown = set(names or ()) - set(more[0])
    if unknown:
        raise UserError(
            f"there is no obs/{min(unknown)}; choose from {', '.join(sorted(more[0])) or 'none'}"
        )
    return [{k: v for k, v in arrays.items() if names is None or k in names} for arrays in more]
