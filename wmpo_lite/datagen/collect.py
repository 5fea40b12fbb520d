"""Recording by worker processes: play, demonstrations and labeled still scenes, as npz shards.

A shard's number is its seed, so any number of workers gives the same files. Shards that exist are
kept if they were recorded with the same settings, which the comment of the npz archive tells;
others are refused. Files of play hold pictures and actions only: nothing else may reach a world
model.
"""

import inspect
import io
import json
import multiprocessing
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import BROKEN_ARCHIVE, make_folder, read_arrays, write_atomic
from wmpo_lite.common.machine import cores
from wmpo_lite.common.origin import require_same
from wmpo_lite.common.progress import progress

PLAY_SHARD = 32  # episodes that share a kit
PLAY_HORIZON = 48  # control steps an episode
DEMO_SHARD, SCENE_SHARD = 64, 2048


def play_states(kit, shard: int):
    """The initial states of one shard of play."""
    from wmpo_lite.envs.tabletop.env import SPLITS
    from wmpo_lite.trajectory import InitialStates

    rows = [
        kit.sample(np.random.default_rng([SPLITS["play"], shard, i])) for i in range(PLAY_SHARD)
    ]
    indices = np.arange(shard * PLAY_SHARD, (shard + 1) * PLAY_SHARD)
    return InitialStates(np.stack(rows), None, ("",) * PLAY_SHARD, "play", indices)


def record_play(shard: int, size: int = 64, horizon: int = PLAY_HORIZON) -> dict:
    """Play with one kit: frames uint8 (PLAY_SHARD, T + 1, H, W, 3), actions float32 (PLAY_SHARD, T,
    4).

    First and last frames are drawn twice and compared: an OpenGL context that was disturbed by
    another one would otherwise leave faulty pictures that nobody notices.
    """
    from wmpo_lite.datagen.kits import Kit
    from wmpo_lite.datagen.play import play
    from wmpo_lite.envs.tabletop.env import TabletopEnv

    kit = Kit(shard)
    env = TabletopEnv(kit, size=size, threads=1)
    try:
        states = play_states(kit, shard)
        data = play(env, states, np.random.default_rng([shard, 43]), horizon)
        last = np.stack([env.render(b) for b in range(len(states))])
        first = env.reset(states)
    finally:
        env.close()
    if (first != data["frames"][:, 0]).any() or (last != data["frames"][:, -1]).any():
        raise UserError(
            f"shard {shard} of play was drawn twice and the pictures differ; the OpenGL driver is"
            " at fault (MUJOCO_GL=osmesa draws without it)"
        )
    return data


def record_demonstrations(task_name: str, shard: int, noise: float, burst: float) -> dict:
    """The scripted expert on one shard of states, those that succeeded: the dict of
    `expert.demonstrate` and instruction (N,). noise, burst: see there.
    """
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import demonstrate
    from wmpo_lite.envs.tabletop.tasks import get_task

    task, rows = get_task(task_name), np.arange(shard * DEMO_SHARD, (shard + 1) * DEMO_SHARD)
    env, states = TabletopEnv(task, threads=1), initial_states(task, "demos", rows)
    try:
        data = demonstrate(
            env, states, np.random.default_rng([shard, 11]), noise, burst, recover=task.collides
        )
    finally:
        env.close()
    keep = data["done"][:, -1]
    said = np.array([text for text, good in zip(states.instructions, keep) if good])
    return {key: value[keep] for key, value in data.items()} | {"instruction": said}


def record_scenes(task_name: str, shard: int) -> dict:
    """Labelled still scenes (`scenes.random_scenes`), for the policy's vision tower alone."""
    from wmpo_lite.envs.tabletop.scenes import random_scenes
    from wmpo_lite.envs.tabletop.tasks import get_task

    return random_scenes(get_task(task_name), SCENE_SHARD, shard)


def recipe(function, arguments) -> dict:
    """What a shard is made from: which `record_*`, its arguments by name, and how many episodes or
    scenes a shard has.
    """
    bound = inspect.signature(function).bind(*arguments)
    bound.apply_defaults()
    sizes = {"play": PLAY_SHARD, "demonstrations": DEMO_SHARD, "scenes": SCENE_SHARD}
    kind = function.__name__.removeprefix("record_")
    return checkpoint.plain({"recording": kind, **bound.arguments, "shard_size": sizes.get(kind)})


def write_shard(path: Path, data: dict, made_from: dict) -> None:
    """A complete npz shard of `data`, with `made_from` as the archive's comment."""
    memory = io.BytesIO()
    np.savez(memory, **data)
    with zipfile.ZipFile(memory, "a") as archive:
        archive.comment = json.dumps(made_from).encode()
    write_atomic(path, memory.getbuffer())


@contextmanager
def _shard(path: Path):
    """The archive of a shard; UserError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BROKEN_ARCHIVE as error:
        raise UserError(
            f"{path} is not a recording of this kit ({error}); move it away to have it recorded"
            " anew"
        ) from error


def made_from(path: Path) -> dict | None:
    """What the shard at `path` says that it was made from; None if it says nothing. UserError if it
    is no shard.
    """
    with _shard(path) as archive:
        return json.loads(archive.comment) if archive.comment else None


def contents(path: Path) -> list:
    """Name, size and checksum (CRC-32) of every array in the shard at `path`."""
    with _shard(path) as archive:
        return [[part.filename, part.file_size, part.CRC] for part in archive.infolist()]


def labels_of(path: Path) -> Path:
    """Where the labels of a shard are, which no world model is shown."""
    return path.with_name(f"labels_{path.name}")


def _work(job):
    function, arguments, path = job
    data, how = function(*arguments), recipe(function, arguments)
    if "labels" in data:
        write_shard(labels_of(path), data.pop("labels"), how)
    write_shard(path, data, how)


def _collect(jobs, desc: str, workers: int | None = None) -> list[Path]:
    jobs = [(function, arguments, Path(path)) for function, arguments, path in jobs]
    missing = [job for job in jobs if not job[2].exists()]
    for function, arguments, path in jobs:
        if path.exists():
            require_same(path, made_from(path), recipe(function, arguments))
    if missing:
        make_folder(missing[0][2].parent)
        with multiprocessing.get_context("spawn").Pool(workers or min(cores(), 8)) as pool:
            for _ in progress(pool.imap_unordered(_work, missing), total=len(missing), desc=desc):
                pass
    return [path for _, _, path in jobs]


def collect_play(
    shards: int,
    folder: Path,
    *,
    size: int = 64,
    horizon: int = PLAY_HORIZON,
    workers: int | None = None,
):
    """Record shards 0 to `shards` - 1 of play into `folder`; returns the paths."""
    name = f"play_{size}px_{horizon}steps" + "_{:04d}.npz"
    jobs = [(record_play, (i, size, horizon), Path(folder) / name.format(i)) for i in range(shards)]
    return _collect(jobs, "record play", workers)


def collect_libero_play(suite: str, shards: int, folder: Path, *, episodes: int):
    """Record shards 0 to `shards` - 1 of play in the scenes of a suite of LIBERO, their labels
    beside them (`labels_of`); returns the paths.
    """
    from wmpo_lite.datagen.libero import HORIZON, record_libero_play

    jobs = [
        (record_libero_play, (suite, i, 64, HORIZON, episodes), Path(folder) / f"play_{i:04d}.npz")
        for i in range(shards)
    ]
    return _collect(jobs, "record play")


def collect_libero_demonstrations(
    task: str, count: int, folder: Path, *, noise: float, burst: float
) -> dict:
    """As `collect_demonstrations`, of a task of LIBERO."""
    from wmpo_lite.datagen.libero import record_libero_demonstrations

    wanted = count + count // 8 + 1  # some fail
    size = min(wanted, 16)
    jobs = [
        (
            record_libero_demonstrations,
            (task, i, noise, burst, 64, size),
            Path(folder) / f"demos_{noise:g}_{burst:g}_{i:04d}.npz",
        )
        for i in range(-(-wanted // size))
    ]
    return _joined(jobs, task, count)


def collect_demonstrations(
    task: str, count: int, folder: Path, *, noise: float, burst: float
) -> dict:
    """The first `count` demonstrations that succeeded: frames (E, T + 1, H, W, 3), executed and
    intended (E, T, D), done (E, T), instruction (E,).
    """
    name = f"demos_{task}_{noise:g}_{burst:g}" + "_{:04d}.npz"
    shards = -(-(count + count // 8) // DEMO_SHARD)
    jobs = [
        (record_demonstrations, (task, i, noise, burst), Path(folder) / name.format(i))
        for i in range(shards)
    ]
    return _joined(jobs, task, count)


def _joined(jobs, task: str, count: int) -> dict:
    """The first `count` of the demonstrations that `jobs` record; UserError for too few."""
    parts = [read_arrays(path) for path in _collect(jobs, "record demonstrations")]
    data = {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}
    if len(data["frames"]) < count:
        raise UserError(
            f"{count} demonstrations of {task} were asked for and {len(data['frames'])} of those"
            " recorded succeeded; ask for fewer"
        )
    return data


def collect_scenes(task: str, shards: int, folder: Path) -> list[Path]:
    """Record shards of labeled scenes of `task`; returns the paths."""
    jobs = [
        (record_scenes, (task, i), Path(folder) / f"scenes_{task}_{i:04d}.npz")
        for i in range(shards)
    ]
    return _collect(jobs, "render scenes")
