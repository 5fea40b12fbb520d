"""`make assets` for a task of LIBERO: the same parts as on the table-top, trained on scripted demonstrations, failed attempts and play of that task."""
import dataclasses
import os
from pathlib import Path

import numpy as np

from wmpo_lite.errors import UserError
from wmpo_lite.pretrain import AssetSettings, first_frames_and_labels, shorter, train_autoencoder, train_world_model
from wmpo_lite.pretrain_reward import imagined_clips, reward_data
from wmpo_lite.progress import progress

SHARD = 32  # episodes of a shard
THINGS = 3  # objects that the draft follows, the task's first; the place and the hand come after them

_LAPTOP = AssetSettings(demos=160, clone_demos=96, demo_noise=0.4, demo_burst=0.15, play=480, attempts=256, autoencoder_steps=3000, vision_steps=2500, clone_steps=2500,
                        clone_early=0.0, read_steps=1500, move_steps=5000, follow_steps=1000, paint_steps=4000, settle_steps=800, world_steps=300, held_out=32,
                        reward_steps=1200, imagined_starts=384)
# Few demonstrations and updates leave room to learn; how few, the base policy's success on validation states decides: two demonstrations gave 2 % whatever the
# updates, four gave 4, 31, 88 and 94 % after 120, 140, 160 and 200 updates, and 100 % more of either.
TASK_SETTINGS = {"libero_object/0": {"demos": 64, "play": 320, "attempts": 192, "clone_demos": 4, "clone_steps": 140, "paint_steps": 3600, "settle_steps": 800, "follow_steps": 800},
                 "libero_spatial/2": {"demos": 64, "play": 320, "attempts": 192, "clone_demos": 3, "clone_steps": 150, "paint_steps": 3600, "settle_steps": 800, "follow_steps": 800}}
_SMOKE = dataclasses.replace(_LAPTOP, demos=4, clone_demos=4, play=4, attempts=4, autoencoder_steps=2, vision_steps=2, clone_steps=2, read_steps=2, move_steps=2,
                             follow_steps=2, paint_steps=2, settle_steps=2, world_steps=2, world_batch=4, held_out=1, reward_steps=2, imagined_starts=0)
LIBERO_PROFILES = {"laptop": _LAPTOP, "libero": _LAPTOP, "gpu": dataclasses.replace(_LAPTOP, demos=400, play=4000, attempts=2000, paint_steps=20000, world_steps=60000,
                                                                                  world_batch=128), "smoke": _SMOKE}


def make_libero_assets(task: str, folder: Path, *, seed: int = 0, profile: str = "laptop", start: Path | None = None) -> Path:
    """Train autoencoder, vision tower, cloned policy, world model and success classifier for `task` (such as "libero_object/0") into a folder of its own.

    Finished parts are kept. start: a table-top task's assets, whose autoencoder is begun with; or those of another LIBERO task, whose vision tower, world
    model and success classifier are begun with too, and two fifths of the steps are then enough.
    """
    import torch

    from wmpo_lite.checkpoint import load_tensors, save_tensors
    from wmpo_lite.envs.libero.env import ACTION_NAMES, LiberoEnv
    from wmpo_lite.envs.libero.states import tasks
    from wmpo_lite.envs.tasks import folder_name, get_task
    from wmpo_lite.policy import ActionStatistics, Policy, PolicyConfig, build_tokenizer
    from wmpo_lite.pretrain_policy import clone, train_vision
    from wmpo_lite.reward import RewardModel, reward_loss
    from wmpo_lite.train import FitConfig, fit, set_threads
    from wmpo_lite.world_model import Autoencoder, WorldModel, WorldModelConfig

    if profile not in LIBERO_PROFILES:
        raise UserError(f"profile '{profile}' is unknown; use one of {', '.join(LIBERO_PROFILES)}")
    set_threads()
    s, home, spec = LIBERO_PROFILES[profile], Path(folder) / folder_name(task), get_task(task)
    sibling = Path(start) if start is not None and Path(start).name.startswith("libero_") else None
    if start is not None and not (Path(start) / "autoencoder" / "model.safetensors").exists():
        raise UserError(f"{start} holds no trained assets to start from; name a folder such as assets/place or assets/libero_object-0")
    if sibling is not None:
        s = shorter(s)
    if profile != "smoke":
        s = dataclasses.replace(s, **TASK_SETTINGS.get(task, {}))
    made = lambda name: (home / name / "provenance.json").exists()  # noqa: E731
    if all(made(name) for name in ("autoencoder", "policy", "world_model", "reward")):
        return home
    with LiberoEnv(spec, stop=False) as env:  # or the world model would learn that the world stands still where the task is solved
        demos = record(env, "demos", s.demos, home, noise=s.demo_noise, burst=s.demo_burst)
        play, attempts = record(env, "play", s.play, home), record(env, "attempts", s.attempts, home)
        camera, names = env.camera, [env.objects[i] for i in slots(env)]
    length = spec.horizon + 1
    about = {"task": task, "seed": seed, "settings": dataclasses.asdict(s), "play_frames": s.play * length, "demonstration_frames": s.demos * length,
             "attempt_frames": s.attempts * length, "slots": [*names, "hand"], "start": start and Path(start).name}
    note = lambda records: {**about, "final": records[-1]}  # noqa: E731
    join = lambda paths, *keys: {key: np.concatenate([np.load(path)[key] for path in paths]) for key in keys}  # noqa: E731
    everything = ("frames", "executed", "intended", "done", "instruction", "points", "present", "opening")
    demonstrations = {key: value[: s.demos] for key, value in join(demos, *everything).items()}

    if not made("autoencoder"):
        torch.manual_seed(seed)
        model = Autoencoder() if start is None else Autoencoder.load(Path(start) / "autoencoder").train()
        frames = np.concatenate([demonstrations["frames"], join(play, "frames")["frames"]])
        records = train_autoencoder(frames, model, FitConfig(steps=s.autoencoder_steps, lr=2e-3, warmup=100, ema=0.995, save_every=500), seed=seed,
                                    folder=home / "fit_autoencoder")
        model.save(home / "autoencoder", note(records))
    autoencoder = Autoencoder.load(home / "autoencoder")

    if not made("policy"):
        torch.manual_seed(seed)
        words = sorted({word for one in tasks(spec.suite) for word in one.instruction.lower().split()})
        policy = Policy(PolicyConfig(action_dim=len(ACTION_NAMES), text_length=24), ActionStatistics(ACTION_NAMES, (-1.0,) * 7, (1.0,) * 7), build_tokenizer(words))
        if sibling is not None:
            policy.vision.load_state_dict(Policy.load(sibling / "policy").vision.state_dict())
        stills = stills_of(join([*play, *attempts, *demos], "frames", "points", "present", "opening"), seed)
        centre, scale = stills["points"].mean((0, 1)), stills["points"].std((0, 1)) + 0.02
        _, seen = train_vision(stills, policy.vision, FitConfig(steps=s.vision_steps, lr=1.5e-3, warmup=100, ema=0.995, save_every=500, weight_decay=0.02), seed=seed,
                               folder=home / "fit_vision", centre=centre.tolist(), scale=scale.tolist())
        save_tensors(home / "vision.safetensors", policy.vision.state_dict())
        records = clone(policy, {key: value[: s.clone_demos] for key, value in demonstrations.items()}, FitConfig(
            steps=s.clone_steps, lr=1e-3, warmup=50, ema=0.99, decay=0.6, save_every=500, weight_decay=0.05), seed=seed, folder=home / "fit_clone", early=s.clone_early)
        policy.save(home / "policy", note(records) | {"vision_held_out": seen})

    if not made("world_model"):
        torch.manual_seed(seed)
        model = WorldModel(WorldModelConfig(action_dim=len(ACTION_NAMES))) if sibling is None else WorldModel.load(sibling / "world_model").train()
        data = model_data(autoencoder, [demonstrations, *map(np.load, play)], camera, home / "latents.safetensors")
        seen = play[:-1] or play  # the last shard holds the episodes that the world model never sees
        more = {"attempts": first_frames_and_labels(autoencoder, attempts), "practice": first_frames_and_labels(autoencoder, seen)}
        data = {key: value[: -s.held_out] for key, value in data.items()}
        model.draft.calibrate(torch.as_tensor(camera), data["points"][data["present"] > 0.5].mean(0), 0.15)
        records = train_world_model(model, data, more, s, seed=seed, home=home)
        model.save(home / "world_model", note(records))

    if not made("reward"):
        torch.manual_seed(seed)
        failed = join(attempts, "frames", "instruction", "done")
        failed = {key: value[~failed["done"][:, -1]] for key, value in failed.items()}
        episodes = reward_data(demonstrations, failed, join(play[: s.reward_play_shards], "frames", "instruction"), autoencoder)
        first = np.concatenate([demonstrations["frames"][:, 0], failed["frames"][:, 0]])[: s.imagined_starts]
        ends = join([*demos, *attempts], "frames", "points", "done", "instruction")
        zone = goal_zone(ends)
        still = [zone_clips(ends, zone, autoencoder)]
        if s.imagined_starts:
            still.append(imagined_clips(autoencoder, WorldModel.load(home / "world_model"), Policy.load(home / "policy"), spec.horizon, lambda points, *_: in_zone(points, zone),
                                        first, [spec.instruction] * len(first), seed=seed, temperature=0.6, meddle=0.1))
        model = RewardModel() if sibling is None else RewardModel.load(sibling / "reward").train()
        if sibling is None:
            model.inflate(load_tensors(home / "vision.safetensors"))
        records = fit(model, reward_loss(model, episodes, half=12, still=still), FitConfig(steps=s.reward_steps, lr=5e-4, warmup=100, ema=0.995, decay=0.5, save_every=300, weight_decay=0.05),
                      seed=seed, name="reward", folder=home / "fit_reward")
        model.save(home / "reward", note(records))
    return home


def slots(env) -> list[int]:
    """Numbers, in `env.objects`, of what the draft follows: the task's object, the first other ones, the place."""
    from wmpo_lite.envs.libero.expert import goal_of
    thing, place = goal_of(env)
    others = [i for i in range(len(env.objects)) if i not in (thing, place)][: THINGS - 1]
    return [thing, *others, place]


def goal_zone(episodes: dict) -> tuple[float, float]:
    """Where, seen from the place, the task's object was when recorded episodes came to their goal: how far aside at the most, and how high, in metres."""
    solved = np.flatnonzero(episodes["done"][:, -1])
    at = episodes["points"][solved, episodes["done"][solved].argmax(axis=1) + 1]
    away = at[:, 0] - at[:, THINGS]
    return float(np.linalg.norm(away[:, :2], axis=1).max()), float(np.quantile(away[:, 2], 0.98))


def in_zone(points: np.ndarray, zone: tuple[float, float]) -> np.ndarray:
    """Which scenes, points (B, S, 3), have the task's object in the zone of `goal_zone`: bool (B,)."""
    away = points[:, 0] - points[:, THINGS]
    return (np.linalg.norm(away[:, :2], axis=1) < zone[0]) & (away[:, 2] < zone[1])


def zone_clips(episodes: dict, zone: tuple[float, float], autoencoder, length: int = 4, every: int = 3) -> dict:
    """Clips from all over recorded episodes, as filmed and as the autoencoder gives them back, labelled by whether their last frame has the object in the zone:
    frames uint8 (M, length, H, W, 3), success bool (M,), instruction (M,). Of a success they show what is just short of it and what comes after, too."""
    ends = range(length - 1, episodes["frames"].shape[1], every)
    frames = np.concatenate([episodes["frames"][:, end - length + 1: end + 1] for end in ends])
    success = np.concatenate([in_zone(episodes["points"][:, end], zone) for end in ends])
    return {"frames": np.concatenate([frames, autoencoder.recode(frames)]), "success": np.tile(success, 2), "instruction": np.tile(episodes["instruction"], 2 * len(ends))}


def record(env, kind: str, episodes: int, folder: Path, *, noise: float = 0.0, burst: float = 1.0) -> list[Path]:
    """`episodes` of "demos", "attempts" or "play" as npz shards; existing shards are kept. Thrown away are demonstrations that failed and play that came to
    the goal; a shard is filled up with further ones, and its number is its seed."""
    from wmpo_lite.envs.libero import expert
    folder.mkdir(parents=True, exist_ok=True)
    shard_size = min(SHARD, episodes)
    paths = [folder / f"{kind}_{shard:04d}_{shard_size}.npz" for shard in range(-(-episodes // shard_size))]
    which = slots(env)
    for shard, path in enumerate(progress(paths, desc=f"collect {kind}")):
        if path.exists():
            continue
        rng, parts, next_state = np.random.default_rng([shard, 11]), [], 1000 * shard + (500_000 if kind == "attempts" else 0)
        while (have := sum(len(part["done"]) for part in parts)) < shard_size:
            if next_state >= 1000 * (shard + 1) + (500_000 if kind == "attempts" else 0) - shard_size:
                raise UserError(f"of {len(parts) * shard_size} episodes of {kind} in '{env.task.name}' only {have} are of use; the scripted expert does not fit this task")
            states = env.initial_states("demos" if kind == "demos" else "play", next_state + np.arange(shard_size))
            next_state += shard_size
            found = {"demos": lambda: expert.demonstrate(env, states, rng, noise, burst), "attempts": lambda: expert.attempt(env, states, rng),
                     "play": lambda: expert.play(env, states, rng)}[kind]()
            solved = found["done"][:, -1]
            keep = {"demos": solved, "attempts": np.ones_like(solved), "play": ~solved}[kind]
            points = np.concatenate([found.pop("objects")[:, :, which], found.pop("tip")[:, :, None]], axis=2).astype(np.float32)
            found |= {"points": points, "present": np.ones((len(points), points.shape[2]), bool), "opening": found["opening"].astype(np.float32),
                      "instruction": np.array(states.instructions)}
            parts.append({key: value[keep] for key, value in found.items()})
        temporary = f"{path}.part.npz"
        np.savez(temporary, **{key: np.concatenate([part[key] for part in parts])[:shard_size] for key in parts[0]})
        os.replace(temporary, path)
    return paths


def stills_of(episodes: dict, seed: int, count: int = 20480) -> dict:
    """Single frames of episodes with their labels, in random order: what `train_vision` takes."""
    moments = np.random.default_rng([seed, 3]).permutation(episodes["frames"].shape[0] * episodes["frames"].shape[1])[:count]
    e, t = np.divmod(moments, episodes["frames"].shape[1])
    return {"frames": episodes["frames"][e, t], "points": episodes["points"][e, t], "present": episodes["present"][e], "opening": episodes["opening"][e, t]}


def cover(points: np.ndarray, camera: np.ndarray, cells: int) -> np.ndarray:
    """How much of each cell of a picture (..., cells, cells) the things at `points` (..., n, 3) in metres cover, about a cell's width around where they are seen."""
    seen = np.concatenate([points, np.ones((*points.shape[:-1], 1), points.dtype)], axis=-1) @ camera.T
    place = seen[..., :2] / seen[..., 2:]
    centres = (np.arange(cells) + 0.5) / cells * 2 - 1
    square = lambda axis: ((place[..., axis, None] - centres) * cells / 2) ** 2  # noqa: E731
    distance = square(1)[..., :, None] + square(0)[..., None, :]  # (..., n, rows, columns)
    return np.exp(-distance / 2).max(axis=-3).astype(np.float32)


def model_data(autoencoder, parts, camera: np.ndarray, cache: Path) -> dict:
    """The tensors of `recordings.world_model_data`, object maps told by the labels. Kept in `cache`."""
    import torch

    from wmpo_lite.checkpoint import load_tensors, save_tensors
    if not cache.exists():
        tensors = []
        for part in parts:
            frames, points = part["frames"], part["points"]
            present = np.repeat(part["present"][:, None], frames.shape[1], axis=1).astype(np.float32)
            arrays = {"actions": part["executed"], "points": points, "present": present, "opening": part["opening"]}
            tensors.append({"latents": autoencoder.encode_uint8(torch.from_numpy(frames)).half(),
                            "objects": torch.from_numpy(cover(points[:, :, :THINGS], camera, autoencoder.config.latent_size)).half(),
                            **{key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}})
        save_tensors(cache, {key: torch.cat([part[key] for part in tensors]) for key in tensors[0]})
    return load_tensors(cache)
