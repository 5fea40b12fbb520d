"""Trajectories as a LeRobot folder (`common/lerobot.py`), in which every picture is a PNG."""

import io
import json

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import plain, whole_folder, write_atomic, write_json
from wmpo_lite.common.lerobot import IMAGES, OF_EPISODES, OF_STEPS, OURS, STATE, arrow

FILES_IN_CHUNK, FILE_BYTES = 1000, 100 * 2**20  # LeRobot's own limits
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def write(
    folder,
    trajectories,
    observations=None,
    *,
    fps: int,
    about: dict | None = None,
    metadata: dict | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write trajectories as a LeRobot folder, which appears whole or not at all.

    observations: for each trajectory further arrays by name, T rows each: uint8 (T, H, W, 3) is a
    camera, numbers (T,) or (T, n) are parts of `observation.state`. fps: control steps a second.
    about: what `read` returned as such: camera, action_names, state_names, robot_type. metadata: as
    of `load_metadata`. A data file is closed when it holds file_bytes. UserError where trajectories
    differ in what they hold, or an array has no place in LeRobot's columns.
    """
    pa, trajectories, about = arrow(), list(trajectories), dict(about or {})
    observations = observations or [{} for _ in trajectories]
    if not trajectories or not (isinstance(fps, int) and fps > 0):
        raise UserError(
            f"{folder} cannot be written from {len(trajectories)} trajectories at {fps} control"
            " steps a second; give one or more, and a whole number of steps a second"
        )
    about |= {"fps": fps, "observations": _layout(observations[0])}
    about["camera"] = about.get("camera") or "agentview"
    episodes = [_columns(t, more, about) for t, more in zip(trajectories, observations)]
    tasks = list(dict.fromkeys(t.instruction for t in trajectories))
    first, place, parts, rows, raws = 0, 0, [], [], {}
    with whole_folder(folder) as staging:
        for number, (trajectory, columns) in enumerate(zip(trajectories, episodes)):
            if _kinds(columns) != _kinds(episodes[0]):
                raise UserError(
                    f"trajectory {number} has other columns, shapes or number types than the first;"
                    " write them into folders of their own"
                )
            columns = columns | _numbering(number, first, trajectory, tasks, fps)
            table = pa.table({name: _to_arrow(array) for name, array in columns.items()})
            if parts and sum(part.nbytes for part in parts) + table.nbytes > file_bytes:
                write_atomic(staging / "data" / _file(place), _parquet(parts))
                place, parts = place + 1, []
            parts.append(table)
            raw = {k: _raw(v) for k, v in columns.items() if k not in OF_STEPS}
            for name, values in raw.items():
                raws.setdefault(name, []).append(values)
            rows.append(_episode(number, first, place, trajectory, raw))
            first += len(trajectory)
        write_atomic(staging / "data" / _file(place), _parquet(parts))
        stats = {k: _summary(np.concatenate(v), first) for k, v in raws.items()}
        features = {name: _feature(name, array, about) for name, array in columns.items()}
        write_atomic(staging / "meta" / "episodes" / _file(0), _parquet([_episode_table(rows)]))
        write_atomic(staging / "meta" / "tasks.parquet", _parquet([_task_table(tasks)]))
        write_json(staging / "meta" / "stats.json", stats)
        write_json(staging / "meta" / "wmpo_lite.json", {**(metadata or {}), "about": about})
        write_json(staging / "meta" / "info.json", _info(features, rows, first, tasks, about))


def _columns(trajectory, observations: dict, about: dict) -> dict:
    """The arrays of one episode by LeRobot's names, T rows each."""
    steps, found = len(trajectory), {}
    frames = {about["camera"]: trajectory.frames[:-1]}
    frames |= {k: v for k, v in observations.items() if _is_video(v)}
    for name, array in frames.items():
        found[IMAGES + name.removesuffix("_rgb").removesuffix("_image")] = array
    parts = [observations[name] for name in about["observations"] if name in observations]
    for name, array in observations.items():
        if len(array) != steps or not (_is_video(array) or _is_vector(array)):
            raise UserError(
                f"'{name}', {array.dtype} {array.shape}, has no place in LeRobot's columns for"
                f" {steps} steps; leave it out, or give numbers ({steps}, n) or uint8 pictures"
            )
    if parts:
        wide = np.concatenate([p.reshape(steps, -1).astype(np.float64) for p in parts], axis=1)
        double = any(p.dtype.kind != "f" or p.dtype.itemsize > 4 for p in parts)
        found[STATE] = wide if double else wide.astype(np.float32)
    reward = np.zeros(steps, np.float32)
    reward[trajectory.finish_step - 1] = trajectory.success
    found |= {"action": trajectory.actions, "next.reward": reward}
    found |= {"next.done": np.arange(1, steps + 1) == trajectory.finish_step}
    found |= {"next.success": reward > 0}
    own = {name: getattr(trajectory, key) for name, key in OF_STEPS.items()}
    return found | {name: array for name, array in own.items() if array is not None}


def _numbering(number: int, first: int, trajectory, tasks: list, fps: int) -> dict:
    steps = np.arange(len(trajectory))
    return {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(steps), number),
        "index": first + steps,
        "task_index": np.full(len(steps), tasks.index(trajectory.instruction)),
    }


def _episode(number: int, first: int, place: int, trajectory, raw: dict) -> dict:
    """The row of an episode in meta/episodes."""
    chunk, file = divmod(place, FILES_IN_CHUNK)
    row = {"episode_index": number, "tasks": [trajectory.instruction], "length": len(trajectory)}
    row |= {"data/chunk_index": chunk, "data/file_index": file}
    row |= {"dataset_from_index": first, "dataset_to_index": first + len(trajectory)}
    for name, values in raw.items():
        summary = _summary(values, len(trajectory))
        row |= {f"stats/{name}/{key}": value for key, value in summary.items()}
    row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    row |= {OURS + name: plain(getattr(trajectory, name)) for name in OF_EPISODES}
    return row | {OURS + "last_frame": _png(trajectory.frames[-1])}


def _info(features: dict, rows: list, frames: int, tasks: list, about: dict) -> dict:
    path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    return {
        "codebase_version": "v3.0",
        "fps": about["fps"],
        "features": features,
        "total_episodes": len(rows),
        "total_frames": frames,
        "total_tasks": len(tasks),
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "data_path": path,
        "video_path": None,
        "robot_type": about.get("robot_type"),
        "splits": {"train": f"0:{len(rows)}"},
    }


def _feature(name: str, array: np.ndarray, about: dict) -> dict:
    shape = list(array.shape[1:]) or [1]
    if _is_video(array):
        names = ["height", "width", "channels"]
        return {"dtype": "image", "shape": shape, "names": names}
    names = about.get({"action": "action_names", STATE: "state_names"}.get(name))
    if isinstance(names, list) and len(names) != shape[0]:
        names = None
    if name == STATE and names is None:
        widths = about["observations"].items()
        names = [f"{part}.{i}" for part, width in widths for i in range(max(width, 1))]
    return {"dtype": str(array.dtype), "shape": shape, "names": names}


def _layout(observations: dict) -> dict:
    """Widths of the parts of `observation.state` by name, in their order; 0: one number a step."""
    vectors = {k: v for k, v in sorted(observations.items()) if _is_vector(v)}
    return {name: array.shape[1] if array.ndim == 2 else 0 for name, array in vectors.items()}


def _is_video(array: np.ndarray) -> bool:
    return array.ndim == 4 and array.dtype == np.uint8 and array.shape[-1] == 3


def _is_vector(array: np.ndarray) -> bool:
    return array.ndim in (1, 2) and array.dtype.kind in "biuf"


def _kinds(columns: dict) -> dict:
    return {name: (array.dtype, array.shape[1:]) for name, array in columns.items()}


def _raw(array: np.ndarray) -> np.ndarray:
    """What statistics are made from: numbers (T, n); of pictures how often each level occurs,
    (1, 3, 256).
    """
    if not _is_video(array):
        return array.reshape(len(array), -1).astype(np.float64)
    levels = np.ascontiguousarray(np.moveaxis(array, -1, 0)).reshape(3, -1)
    return np.stack([np.bincount(channel, minlength=256) for channel in levels])[None]


def _summary(raw: np.ndarray, count: int) -> dict:
    """LeRobot's statistics of a column, those of pictures (3, 1, 1) in [0, 1]."""
    if raw.ndim == 2:
        found = {"min": raw.min(0), "max": raw.max(0), "mean": raw.mean(0), "std": raw.std(0)}
        found |= dict(zip(QUANTILES, np.quantile(raw, list(QUANTILES.values()), axis=0)))
    else:
        counts, levels = raw.sum(0), np.arange(256) / 255  # (3, 256), (256,)
        share = counts / counts.sum(1, keepdims=True)
        upto, mean = share.cumsum(1), (share * levels).sum(1)
        spread = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
        ends = [[levels[c > 0][end] for c in counts] for end in (0, -1)]
        found = {"min": ends[0], "max": ends[1], "mean": mean, "std": spread}
        found |= {k: levels[(upto >= q - 1e-12).argmax(1)] for k, q in QUANTILES.items()}
        found = {name: np.reshape(value, (3, 1, 1)) for name, value in found.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [count]}


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(frame).save(memory, "png", compress_level=1)
    return memory.getvalue()


def _to_arrow(array: np.ndarray):
    pa = arrow()
    if _is_video(array):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": _png(frame), "path": None} for frame in array], kind)
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def _episode_table(rows: list):
    pa = arrow()
    schema = pa.Table.from_pylist(rows).schema
    at = schema.get_field_index(OURS + "initial_state")  # which may be empty, and of no type then
    schema = schema.set(at, pa.field(OURS + "initial_state", pa.list_(pa.float64())))
    return pa.Table.from_pylist(rows, schema=schema)


def _task_table(tasks: list):
    """As pandas would write a frame whose index `task` holds the instructions."""
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None}
        for n, (p, t) in kinds.items()
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = arrow().table({"task_index": list(range(len(tasks))), "task": tasks})
    return table.replace_schema_metadata(
        {"pandas": json.dumps(about | {"pandas_version": "2.3.3"})}
    )


def _file(place: int) -> str:
    chunk, file = divmod(place, FILES_IN_CHUNK)
    return f"chunk-{chunk:03d}/file-{file:03d}.parquet"


def _parquet(tables: list) -> memoryview:
    """Tables of one schema as a parquet file, each a row group of its own."""
    pa, memory = arrow(), io.BytesIO()
    with pa.parquet.ParquetWriter(memory, tables[0].schema, compression="snappy") as writer:
        for table in tables:
            writer.write_table(table)
    return memory.getbuffer()
