"""LeRobot's folders, dataset format v3.0, in and out, without LeRobot.

    meta/info.json                              fps, names and shapes of the columns, counts
    meta/tasks.parquet, meta/stats.json         instructions by number; ranges of the columns
    meta/episodes/chunk-000/file-000.parquet    a row an episode: its length, where it lies
    data/chunk-000/file-000.parquet             a row a control step
    videos/<camera>/chunk-000/file-000.mp4      read, never written: pictures go out as PNG, exactly
    meta/wmpo_lite.json                         ours: env_args, provenance, names

Columns: `observation.images.<camera>`, the frame that the action was chosen on;
`observation.state`; `action`; `next.reward`, `next.done`, `next.success`. Numbers keep their units.
What LeRobot has no place for (the frame after the last action, initial state, split, ...) is in
columns `wmpo_lite/...` of the episodes, which LeRobot passes over.

A video of small pictures in LeRobot's usual coding (AV1, g=2, crf 30) lags: at 64 pixels many a
frame between the key frames shows a moving thing where it was a frame earlier, from 128 on none
does (findings/small_av1_video.sh). Reading one raises a warning.
"""

import io
import warnings
from collections import deque
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import read_json

IMAGES, STATE, OURS = "observation.images.", "observation.state", "wmpo_lite/"
SMALL = 128  # pixels: at this size and below an inter-coded video is not trusted
OF_EPISODES = ("split", "index", "group", "chunk", "success", "finish_step", "initial_state")
UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, OSError)  # by what is damaged
OF_STEPS = {"policy.tokens": "tokens", "policy.log_probs": "log_probs"}


def arrow():
    """pyarrow; UserError where the extra is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"LeRobot's folders are read and written with pyarrow and av ({error}); pip install"
            " 'wmpo_lite[lerobot]'"
        ) from error
    return pyarrow


def is_folder(path) -> bool:
    """Whether `path` is a folder in one of LeRobot's formats."""
    return (Path(path) / "meta" / "info.json").is_file()


def metadata(folder) -> dict:
    """{"env_args", "provenance"} of a folder that this kit has written, empty in others' ones."""
    path = Path(folder) / "meta" / "wmpo_lite.json"
    found = read_json(path) if path.exists() else {}
    return {"env_args": {}, "provenance": {}, "about": {}} | found


def read(
    folder, *, camera: str | None = None, success: bool | None = None, partial: bool = False
) -> tuple[list[dict], list[dict], dict]:
    """Read a LeRobot folder: arguments of `Trajectory`, further arrays by name, about.

    The arrays are `state` (T, n), or its parts in a folder of this kit, and `<camera>_rgb` uint8
    (T, H, W, 3) for every other camera; further columns are not read. Where the frame after the
    last action is not there, the last one is repeated. camera: whose pictures are the frames, where
    there are several, none is "agentview" and the kit has not written them. success: of all
    episodes, where the folder does not tell. partial: read what can be read of a recording that was
    killed, and warn of the rest.
    UserError, naming the file, for what is missing, damaged, of another version, or unclear.
    """
    pa, folder = arrow(), Path(folder)
    if not is_folder(folder):
        raise UserError(f"{folder} has no meta/info.json; name a folder in LeRobot's format v3.0")
    try:
        return _read(folder, camera, success, partial)
    except (pa.ArrowException, *UNREADABLE) as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"{folder} cannot be read as a LeRobot dataset ({type(error).__name__}: {said}); record"
            " or download it again"
        ) from error


def _read(folder: Path, camera, success, partial):
    info = read_json(
        folder / "meta" / "info.json",
        {"codebase_version": str, "fps": float, "features": dict, "total_episodes": int},
    )
    if not info["codebase_version"].startswith("v3."):
        raise UserError(
            f"{folder} is in LeRobot's format {info['codebase_version']}, expected v3.0; convert it"
            " with LeRobot's own script first"
        )
    features, about = info["features"], metadata(folder)["about"] | {"fps": round(info["fps"])}
    about |= {"action_names": features["action"].get("names"), "robot_type": info.get("robot_type")}
    about |= {"state_names": features[STATE].get("names")} if STATE in features else {}
    cameras = _cameras(folder, features)
    written, main = about.get("camera"), _choose(folder, cameras, camera or about.get("camera"))
    about["camera"] = main
    broken = []
    data = _tables(sorted((folder / "data").glob("*/*.parquet")), broken)
    rows = _tables(sorted((folder / "meta" / "episodes").glob("*/*.parquet")), broken)
    rows = {row["episode_index"]: row for table in rows for row in _rows(table)}
    episodes = {number: part for table in data for number, part in _episodes(table)}
    told, kept = info["total_episodes"], set(episodes)
    if "video" in cameras.values():  # the rows of the episodes tell where they lie
        kept &= set(rows)
    if kept != set(range(told)) or broken:
        lost = "; ".join(f"{path} has no footer" for path in broken) or "rows are missing"
        said = (
            f"{folder} counts {told} episodes and {len(kept)} can be read ({lost}), as when a"
            " recording is killed"
        )
        if not partial or not kept:
            raise UserError(f"{said}; {'read those with --partial' if kept else 'record it again'}")
        warnings.warn(said, stacklevel=4)
    tasks = _tables([folder / "meta" / "tasks.parquet"], broken := [])
    if broken:
        raise UserError(f"{broken[0]} has no footer; record the dataset again")
    tasks = {row.pop("task_index"): next(iter(row.values())) for row in _rows(*tasks)}
    films = {
        name: _videos(folder, name, {n: (rows[n], episodes[n]) for n in kept}, info["fps"])
        for name, kind in cameras.items()
        if kind == "video"
    }
    found = []
    for number in sorted(kept):
        table, row = episodes[number], dict(rows.get(number, {}))
        if main != written:
            row.pop(OURS + "last_frame", None)  # which is of another camera
        frames = {k: films[k][number] if k in films else _images(table, k) for k in cameras}
        fields = _fields(table, row, tasks, frames.pop(main), success, f"episode {number}")
        more = {f"{name}_rgb": pictures for name, pictures in frames.items()}
        found.append((fields, more | _state(table, about.get("observations"))))
    return [f for f, _ in found], [m for _, m in found], about


def _cameras(folder: Path, features: dict) -> dict:
    """Kind ("image", "video") of every camera by its name, without depth cameras."""
    found = {
        name.removeprefix(IMAGES): feature["dtype"]
        for name, feature in features.items()
        if feature["dtype"] in ("image", "video")
        and name.startswith(IMAGES)
        and not (feature.get("info") or {}).get("is_depth_map")
    }
    if not found:
        raise UserError(f"{folder} has no column {IMAGES}<camera>; the kit learns from pictures")
    return found


def _choose(folder: Path, cameras: dict, camera: str | None) -> str:
    usual = "agentview" if "agentview" in cameras else min(cameras)
    if camera not in cameras and (
        camera is not None or (len(cameras) > 1 and usual != "agentview")
    ):
        raise UserError(
            f"{folder} has the cameras {', '.join(sorted(cameras))}"
            f"{f' and no {camera}' if camera else ''}; choose one of them with --camera"
        )
    return camera or usual


def _tables(paths: list, broken: list) -> list:
    """The tables of parquet files; those without a footer (killed) are added to `broken`."""
    pa, found = arrow(), []
    for path in paths:
        try:
            with pa.parquet.ParquetFile(path) as file:
                found.append(file.read())
        except pa.ArrowInvalid:
            broken.append(path)
    return found


def _rows(table) -> list[dict]:
    """A dict for each row, without the statistics."""
    return table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()


def _episodes(table) -> list:
    """(number, its part of the table) of every episode in a data file."""
    numbers = table["episode_index"].to_numpy()
    ends = [*np.nonzero(np.diff(numbers))[0] + 1, len(numbers)]
    return [(int(numbers[a]), table.slice(a, b - a)) for a, b in zip([0, *ends], ends)]


def _fields(table, row: dict, tasks: dict, frames: np.ndarray, success, name: str) -> dict:
    """Arguments of `Trajectory` for an episode: its part of the data, its row of the episodes."""
    own = {k: row[OURS + k] for k in OF_EPISODES if OURS + k in row}
    if "success" not in own:
        own["success"], own["finish_step"] = _outcome(table, success, name)
    said = {tasks[number] for number in table["task_index"].to_pylist()}
    if len(said) != 1:
        raise UserError(
            f"{name} has several instructions: {'; '.join(sorted(said))}; split it there"
        )
    last = row.get(OURS + "last_frame")
    last = frames[-1] if last is None else _picture(last)
    own |= {
        key: _array(table[column])
        for column, key in OF_STEPS.items()
        if column in table.column_names
    }
    number = table["episode_index"][0].as_py()
    usual = {"split": "demos", "index": number, "initial_state": []}
    return usual | {
        **own,
        "frames": np.concatenate([frames, last[None]]),  # uint8 (T+1, H, W, 3)
        "actions": _array(table["action"]),
        "instruction": said.pop(),
    }


def _outcome(table, success, name: str) -> tuple[bool, int]:
    """(success, finish_step) from what the columns tell, else from the user's word."""
    steps = len(table)
    for column in ("next.success", "next.reward"):
        if column in table.column_names:
            flags = _array(table[column]).ravel()
            if np.isin(flags, (0, 1)).all():  # a shaped reward says nothing of success
                won = bool(flags.any())
                return won, int(flags.argmax()) + 1 if won else steps
    if success is None:
        raise UserError(
            f"{name} has neither next.success nor a next.reward of 0 and 1 to tell success from;"
            " say it of all episodes with --success True or --success False"
        )
    return bool(success), steps


def _state(table, layout: dict | None) -> dict:
    """`observation.state` as `state` (T, n), or as the parts that this kit has written."""
    if STATE not in table.column_names:
        return {}
    state, layout = _array(table[STATE]), layout or {}
    widths = [max(width, 1) for width in layout.values()]
    if sum(widths) != state.shape[1]:
        return {"state": state}
    parts = np.split(state, np.cumsum(widths)[:-1], axis=1)
    return {k: p if n else p[:, 0] for (k, n), p in zip(layout.items(), parts)}


def _array(column) -> np.ndarray:
    """A column of numbers, (T,), or of lists of one length, (T, n)."""
    pa, array = arrow(), column.combine_chunks()
    lists = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    values = (array.flatten() if lists else array).to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or len(values) % len(array):
        raise ValueError(f"a column holds {array.type} with gaps, not numbers")
    return values.reshape(len(array), -1) if lists else values


def _picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _images(table, camera: str) -> np.ndarray:
    """uint8 (T, H, W, 3) of pictures that are kept in the parquet file."""
    stored = table[IMAGES + camera].combine_chunks().field("bytes").to_pylist()
    if None in stored:
        raise ValueError(f"{IMAGES}{camera} names files of pictures in place of holding them")
    return np.stack([_picture(data) for data in stored])


def _videos(folder: Path, camera: str, episodes: dict, fps: float) -> dict:
    """uint8 (T, H, W, 3) of each episode from a camera's videos; a warning where they lag."""
    key, files, found = IMAGES + camera, {}, {}
    for number, (row, table) in episodes.items():
        place = (row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"])
        times = row[f"videos/{key}/from_timestamp"] + _array(table["timestamp"]).astype(np.float64)
        files.setdefault(place, []).extend((float(time), number) for time in times)
        found[number] = []
    lagging = None
    for (chunk, file), wanted in sorted(files.items()):
        path = folder / "videos" / key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"
        wanted = deque(sorted(wanted))
        for time, picture, whole in _decode(path):
            while wanted and wanted[0][0] < time + 0.5 / fps:
                when, number = wanted.popleft()
                if when > time - 0.5 / fps:
                    found[number].append(picture)
            lagging = path if not whole and min(picture.shape[:2]) <= SMALL else lagging
    short = [n for n, (_, table) in episodes.items() if len(found[n]) != len(table)]
    if short:
        raise ValueError(f"the video of {key} has not all frames of episode {short[0]}")
    if lagging:
        warnings.warn(
            f"{lagging} is an inter-coded video of small pictures: in LeRobot's usual coding up to"
            " every second frame shows what moves where it was a frame earlier; record with images"
            " in place of videos, or with g=1",
            stacklevel=6,
        )
    return {number: np.stack(frames) for number, frames in found.items()}


def _decode(path: Path):
    """(seconds, uint8 (H, W, 3), whether it is coded on its own) of every frame of a video."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{path} is read with PyAV ({error}); pip install 'wmpo_lite[lerobot]'"
        ) from error
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24"), bool(frame.key_frame)
