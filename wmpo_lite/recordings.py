"""Recordings that pre-training needs: play, demonstrations and random scenes, made by worker processes and kept as npz shards."""
import multiprocessing
import os
from pathlib import Path

import numpy as np

from wmpo_lite.machine import cores
from wmpo_lite.progress import progress

SHARD = 64  # episodes a worker steps together
ATTEMPTS_FROM, RELEASES_FROM = 50_000_000, 60_000_000  # in the pretraining split, whose first states are random scenes
LABELS = ("points", "present", "opening")
PRACTICE_FROM, TRIES_FROM, PRACTICE_SHARD = 2_000_000, 2_012_800, 128  # in the play split


def _collect_shard(arguments):
    """One shard of play, attempts or demonstrations (runs in a worker process; the shard's number is its seed, so any number of workers gives one result)."""
    kind, task_name, shard, count, noise, burst, size, filmed, path = arguments
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import attempt, demonstrate, play, release
    from wmpo_lite.envs.tabletop.tasks import get_task

    task = get_task(task_name)
    env = TabletopEnv(task, size=size, threads=1)
    from_ = {"attempts": ATTEMPTS_FROM, "releases": RELEASES_FROM}.get(kind, 0)
    states = initial_states(task, "pretraining" if from_ else kind, np.arange(from_ + shard * SHARD, from_ + shard * SHARD + count))
    rng = np.random.default_rng([shard, 11])
    if kind == "play":
        data = play(env, states, rng, task.horizon)
        keep = data.pop("clean")
    elif kind in ("attempts", "releases"):
        data = attempt(env, states, rng) if kind == "attempts" else release(env, states, rng, every_frame=filmed)
        keep = ~data["done"][:, -1] | (kind == "releases")
    else:
        data = demonstrate(env, states, rng, noise=noise, burst=burst, recover=task.collides)
        keep = data["done"][:, -1]
    data = {key: value[keep] for key, value in data.items()}
    data["instruction"] = np.array([text for text, good in zip(states.instructions, keep) if good])
    env.close()
    temporary = f"{path}.part.npz"
    np.savez(temporary, **data)
    os.replace(temporary, path)
    return path


def collect(kind: str, task: str, episodes: int, folder: Path, *, noise: float = 0.0, burst: float = 1.0, size: int = 64, filmed: int = 0,
            workers: int | None = None) -> list[Path]:
    """Record `episodes` of 'play', 'attempts', 'releases' (the first `filmed` of them as they went, of the others the first frame alone) or expert 'demos' as npz shards; existing shards are kept.

    Thrown away are demonstrations that failed, attempts that did not, and play that came to the goal by accident. Releases are all kept: without those that
    come well a mover learns that what is let go in the right place does not fall into it.

    Shards are always full, so what a shard holds does not depend on how many are asked for.

    noise, burst: see `demonstrate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs, paths = [], []
    for shard in range(-(-episodes // SHARD)):
        path = folder / f"{kind}_{task}_{noise:g}_{burst:g}_{shard:04d}.npz"
        paths.append(path)
        if not path.exists():
            jobs.append((kind, task, shard, SHARD, noise, burst, size, shard * SHARD < filmed, str(path)))
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers or min(cores(), 8)) as pool:
            for _ in progress(pool.imap_unordered(_collect_shard, jobs), total=len(jobs), desc=f"collect {kind}"):
                pass
    return paths


def collect_practice(policy, task_name: str, episodes: int, folder: Path) -> list[Path]:
    """Play by a policy that has not seen the task: it is told to pick things up and to move to the target, by turns, as npz shards; existing ones are kept.

    It grasps as its clone will, and misses as it will; scripted play is too tidy for that. Thrown away are episodes that come to the goal by accident.
    A shard holds first frames uint8 (N, H, W, 3), actions (N, T, D), `labels` of every step and which episodes (N,) had anything at the goal.
    """
    def told(env, rng, which, moving):
        turn = rng.random(len(which))
        return np.where((turn >= 0.45) & (turn < 0.55), 1 - which, which), np.where(turn < 0.45, moving, turn >= 0.65)

    def held(env, rng, moving, actions):
        actions[moving & (rng.random(len(moving)) < 0.6), :, 3] = 1.0  # hold on to it on the way; the others let go where they are

    return _practise("practice", policy, task_name, episodes, folder, PRACTICE_FROM, told, held, keep_goals=False)


def collect_tries(policy, task_name: str, episodes: int, folder: Path) -> list[Path]:
    """The same, but the policy is mostly told to move to the target when it holds something, and there it mostly lets go, lower or higher, early or late.

    So things are let go where its clone will let go of them, askew as it grasps them. All are kept, those that come to the goal too: they are for the mover
    alone and count with the demonstrations.
    """
    def told(env, rng, which, moving):
        rows = np.arange(len(which))
        lifted = np.stack([env.position(name)[:, 2] for name in env.task.objects], axis=1)[rows, which] > 0.02
        turn = rng.random(len(which))
        return np.where(turn > 0.97, 1 - which, which), np.where(turn < 0.8, lifted, np.where(turn < 0.9, ~lifted, moving))

    def let_go(env, rng, moving, actions):
        away = np.linalg.norm(env.tip[:, :2] - env.position(env.task.target)[:, :2], axis=1)
        actions[moving & (away > 0.04) & (rng.random(len(moving)) < 0.8), :, 3] = 1.0
        for i in np.flatnonzero(moving & (away <= 0.04) & (rng.random(len(moving)) < 0.8)):
            when = rng.integers(actions.shape[1])
            actions[i, :when, 3], actions[i, when:, 3] = 1.0, -1.0
            actions[i, :when, 2] -= 0.6 * rng.random()
            actions[i, when + 1:, 2] = np.abs(actions[i, when + 1:, 2]) + 0.5 * rng.random()

    return _practise("tries", policy, task_name, episodes, folder, TRIES_FROM, told, let_go, keep_goals=True)


def _practise(kind: str, policy, task_name: str, episodes: int, folder: Path, from_: int, told, afterwards, keep_goals: bool) -> list[Path]:
    """told(env, rng, which, moving): what to say next, about which thing and whether to move to the target; afterwards(env, rng, moving, actions) changes what
    the policy chose. from_: the first state, of the play split; the number of a shard of states is its seed."""
    import torch
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import labels, stack_labels
    from wmpo_lite.envs.tabletop.tasks import get_task, pair

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}_{task_name}_{shard:04d}.npz" for shard in range(-(-episodes // PRACTICE_SHARD))]
    missing = [(shard, path) for shard, path in enumerate(paths) if not path.exists()]
    task, n = get_task(task_name), PRACTICE_SHARD
    env = TabletopEnv(task) if missing else None
    for shard, path in progress(missing, desc="practise"):
        number = shard + (from_ - PRACTICE_FROM) // n
        rng, generator = np.random.default_rng([number, 31]), torch.Generator().manual_seed(number)
        frames = env.reset(initial_states(task, "play", np.arange(n) + from_ + shard * n))
        first, seen, done, goal = frames, [labels(env)], [], np.zeros(n, dtype=bool)
        which, moving = rng.integers(2, size=n), np.zeros(n, dtype=bool)
        for chunk in range(task.horizon // policy.config.chunk):
            if chunk:
                which, moving = told(env, rng, which, moving)
            colours = env.parameters[np.arange(n), which].astype(int)
            texts = [pair.move_to(task) if m else pair.pick_up(task, pair.COLOURS[c]) for m, c in zip(moving, colours)]
            actions = policy.act(torch.from_numpy(frames), texts, (1.0, 1.0, 1.5)[number % 3], generator)[2].numpy()
            afterwards(env, rng, moving, actions)
            actions = actions.clip(-1, 1)
            for action in np.moveaxis(actions, 1, 0):
                frames = env.step_chunk(action[:, None], every_frame=False)[0][:, -1]
                seen.append(labels(env))
                goal |= task.goal_relation(env)
            done.append(actions)
        data = {"first": first, "actions": np.concatenate(done, axis=1), **stack_labels(seen), "goal": goal}
        temporary = f"{path}.part.npz"
        np.savez(temporary, **{key: value[keep_goals | ~goal] for key, value in data.items()})
        os.replace(temporary, path)
    if env is not None:
        env.close()
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
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}_{task}_{shard:04d}.npz" for shard in range(-(-count // 2048))]
    jobs = [(kind, task, shard, min(2048, count - 2048 * shard), str(path)) for shard, path in enumerate(paths) if not path.exists()]
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers or min(cores(), 8)) as pool:
            for _ in progress(pool.imap_unordered(_scene_shard, jobs), total=len(jobs), desc=f"render {kind}"):
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


def world_model_data(autoencoder, demos: dict, play_paths, cache: Path, target: bool = False) -> dict:
    """Tensors of the demonstrations, then of all play: latents half (E, T + 1, C, h, w), executed actions (E, T, D), object maps half (E, T + 1, h, w)
    and labels, points (E, T + 1, S, 3) in metres, present (E, T + 1, S), opening (E, T + 1).

    Kept in `cache`. target: see `scene.object_map`.
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
                          "objects": torch.from_numpy(object_map(frames, autoencoder.config.latent_size, target)).half(),
                          **{key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}})
        save_tensors(cache, {key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    return load_tensors(cache)
