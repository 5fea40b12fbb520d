"""Recordings that pre-training needs: play, demonstrations and random scenes, made by worker processes and kept as npz shards."""
import multiprocessing
import os
from pathlib import Path

import numpy as np

SHARD = 64  # episodes a worker steps together
ATTEMPTS_FROM = 50_000_000  # in the pretraining split, whose first states are random scenes
LABELS = ("points", "present", "opening")


def _collect_shard(arguments):
    """One shard of play, attempts or demonstrations (runs in a worker process; the shard's number is its seed, so any number of workers gives one result)."""
    kind, task_name, shard, count, noise, burst, size, path = arguments
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import attempt, demonstrate, play
    from wmpo_lite.envs.tabletop.tasks import get_task

    task = get_task(task_name)
    env = TabletopEnv(task, size=size, threads=1)
    first = shard * SHARD + (ATTEMPTS_FROM if kind == "attempts" else 0)
    states = initial_states(task, "pretraining" if kind == "attempts" else kind, np.arange(first, first + count))
    rng = np.random.default_rng([shard, 11])
    if kind == "play":
        data = play(env, states, rng, task.horizon)
        keep = data.pop("clean")
    elif kind == "attempts":
        data = attempt(env, states, rng)
        keep = ~data["done"][:, -1]
    else:
        data = demonstrate(env, states, rng, noise=noise, burst=burst)
        keep = data["done"][:, -1]
    data = {key: value[keep] for key, value in data.items()}
    data["instruction"] = np.array([text for text, good in zip(states.instructions, keep) if good])
    env.close()
    temporary = f"{path}.part.npz"
    np.savez(temporary, **data)
    os.replace(temporary, path)
    return path


def collect(kind: str, task: str, episodes: int, folder: Path, *, noise: float = 0.0, burst: float = 1.0, size: int = 64, workers: int | None = None) -> list[Path]:
    """Record `episodes` of 'play', 'attempts' or expert 'demos' as npz shards; existing shards are kept.

    Thrown away are demonstrations that failed, attempts that did not, and play that came to the goal by accident.

    Shards are always full, so what a shard holds does not depend on how many are asked for.

    noise, burst: see `demonstrate`.
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    jobs, paths = [], []
    for shard in range(-(-episodes // SHARD)):
        path = folder / f"{kind}_{task}_{noise:g}_{burst:g}_{shard:04d}.npz"
        paths.append(path)
        if not path.exists():
            jobs.append((kind, task, shard, SHARD, noise, burst, size, str(path)))
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers or min(os.cpu_count() or 1, 8)) as pool:
            for _ in tqdm(pool.imap_unordered(_collect_shard, jobs), total=len(jobs), desc=f"collect {kind}"):
                pass
    return paths


def load_frames(paths, key: str = "frames") -> np.ndarray:
    """One array of many npz shards, concatenated over episodes."""
    return np.concatenate([np.load(path)[key] for path in paths])


def _scene_shard(arguments):
    kind, task, shard, count, path = arguments
    from wmpo_lite.envs.tabletop.scenes import dropped, random_scenes
    from wmpo_lite.envs.tabletop.tasks import get_task
    temporary = f"{path}.part.npz"
    np.savez(temporary, **(dropped if kind == "dropped" else random_scenes)(get_task(task), count, shard))
    os.replace(temporary, path)


def collect_scenes(task: str, count: int, folder: Path, workers: int | None = None, kind: str = "scenes") -> list[Path]:
    """Random labelled 'scenes', or clips of objects 'dropped' near the target, as npz shards of 2048; existing shards are kept."""
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}_{task}_{shard:04d}.npz" for shard in range(-(-count // 2048))]
    jobs = [(kind, task, shard, min(2048, count - 2048 * shard), str(path)) for shard, path in enumerate(paths) if not path.exists()]
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers or min(os.cpu_count() or 1, 8)) as pool:
            for _ in tqdm(pool.imap_unordered(_scene_shard, jobs), total=len(jobs), desc=f"render {kind}"):
                pass
    return paths


def load_demonstrations(paths, count: int) -> dict:
    """The first `count` demonstrations as arrays: frames (E, T + 1, H, W, 3), executed and intended (E, T, D), done (E, T), instruction (E,)."""
    shards = [np.load(path) for path in paths]
    data = {key: np.concatenate([shard[key] for shard in shards])[:count] for key in ("frames", "executed", "intended", "done", "instruction", *LABELS)}
    if len(data["frames"]) < count:
        from wmpo_lite.errors import UserError
        raise UserError(f"{count} demonstrations were asked for and {len(data['frames'])} are recorded; collect more")
    return data


def world_model_data(autoencoder, demos: dict, play_paths, cache: Path) -> dict:
    """Tensors of the demonstrations, then of all play: latents half (E, T + 1, C, h, w), executed actions (E, T, D), object maps half (E, T + 1, h, w)
    and labels, points (E, T + 1, S, 3) in metres, present (E, T + 1, S), opening (E, T + 1).

    Kept in `cache`.
    """
    import torch

    from wmpo_lite.checkpoint import load_tensors, save_tensors
    from wmpo_lite.envs.tabletop.scene import object_map
    if not cache.exists():
        parts = []
        for data in [demos, *map(np.load, play_paths)]:
            frames = data["frames"]
            present = np.repeat(data["present"][:, None], frames.shape[1], axis=1).astype(np.float32)
            arrays = {"actions": data["executed"], "points": data["points"], "present": present, "opening": data["opening"]}
            parts.append({"latents": autoencoder.encode_uint8(torch.from_numpy(frames)).half(),
                          "objects": torch.from_numpy(object_map(frames, autoencoder.config.latent_size)).half(),
                          **{key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}})
        save_tensors(cache, {key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    return load_tensors(cache)
