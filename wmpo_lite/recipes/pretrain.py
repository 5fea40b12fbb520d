"""`make assets`: everything that is trained once and shipped. Finished stages are kept, interrupted ones go on.

For the whole table-top (assets/tabletop): broad play; an autoencoder of its frames; a world model of its
latents and actions. Per task (assets/<task>): the cloned policy, and the demonstrations that it was cloned
from.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from wmpo_lite import checkpoint
from wmpo_lite.autoencoder import Autoencoder, PerceptualLoss, autoencoder_loss, to_float
from wmpo_lite.datagen.collect import collect_demonstrations, collect_play, collect_scenes
from wmpo_lite.errors import UserError
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.policy import Policy
from wmpo_lite.progress import progress
from wmpo_lite.train import FitConfig, fit, set_threads
from wmpo_lite.world_model import WorldModel, WorldModelConfig

SHARED = "tabletop"  # the folder of what all table-top tasks share
HELD_OUT = 2  # first shards of play, which nothing is trained on


@dataclass(frozen=True)
class PolicyConfig:
    """How a task's policy is made before WMPO begins."""

    scene_shards: int = 10  # labelled still scenes, 2048 each: what stands in for a big VLA's pre-training
    vision_steps: int = 2200
    ground_steps: int = 900
    reach_steps: int = 2500
    hover: float = 0.2  # share of 'move to the target' among the instructions of `reach`
    demos: int = 32
    clone_steps: int = 300
    early: float = 0.3  # see `pretrain_policy.clone`
    noise: float = 0.8  # demonstrations are disturbed seldom and strongly: most chunks have a clean label
    burst: float = 0.1
    shipped_demos: int = 128  # of the demonstrations, so many at most are shipped for alignment and reward model
    start: str | None = None  # begin with the policy of another task


POLICIES = {
    "place": PolicyConfig(),
    "square": PolicyConfig(
        vision_steps=880, ground_steps=360, reach_steps=1400, hover=0.35, demos=984, clone_steps=2500, early=0.1, start="place"
    ),
}


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes of the shared training."""

    play_shards: int = 320  # of 32 episodes of 48 steps
    autoencoder_shards: int = 160
    autoencoder_steps: int = 12_000
    world_model_steps: int = 30_000
    world_model_lr: float = 1e-3
    world_model: WorldModelConfig = WorldModelConfig(frames=2)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policies: dict = field(default_factory=lambda: POLICIES)


_TINY = dict(vision_steps=2, ground_steps=2, reach_steps=2, clone_steps=2, scene_shards=1, demos=8, shipped_demos=8)
PRETRAINING = {
    "laptop": PretrainConfig(),
    "gpu": PretrainConfig(play_shards=1024, autoencoder_shards=512, autoencoder_steps=40_000, world_model_steps=120_000),
    "smoke": PretrainConfig(
        play_shards=3, autoencoder_shards=1, autoencoder_steps=4, world_model_steps=4,
        world_model=WorldModelConfig(frames=2, widths=(16, 16), blocks=1), windows=WindowConfig(batch=8),
        policies={task: dataclasses.replace(config, **_TINY) for task, config in POLICIES.items()},
    ),
}  # fmt: skip


def make_assets(folder: Path, *, seed: int = 0, profile: str = "laptop") -> Path:
    """Train all that is shipped into `folder`. Killed and started again it goes on where it was."""
    if profile not in PRETRAINING:
        raise UserError(f"profile '{profile}' is unknown; use one of {', '.join(PRETRAINING)}")
    set_threads()
    folder, config = Path(folder), PRETRAINING[profile]
    for task in config.policies:
        make_policy(task, folder, config.policies[task], seed=seed)
    make_shared(folder, config, seed=seed)
    return folder


def _made(folder: Path) -> bool:
    return (folder / "provenance.json").exists()  # written last


# -- shared by all tasks ------------------------------------------------------------------------------


def make_shared(folder: Path, config: PretrainConfig, *, seed: int):
    """Autoencoder and world model of the table-top, from broad play."""
    home, work = folder / SHARED, folder / "work"
    paths = collect_play(config.play_shards, work / "play")
    frames_of = lambda some, every=1: np.concatenate([np.load(p)["frames"][:, ::every] for p in some])  # noqa: E731
    counted = {"play_episodes": 32 * config.play_shards, "play_frames": 32 * 49 * config.play_shards}
    note = lambda records, **more: {  # noqa: E731
        "seed": seed, "settings": checkpoint.plain(dataclasses.asdict(config)), "final": records[-1], **counted, **more
    }  # fmt: skip

    if not _made(home / "autoencoder"):
        frames = frames_of(paths[HELD_OUT : HELD_OUT + config.autoencoder_shards], every=2).reshape(-1, 64, 64, 3)
        tower = Policy.load(folder / "place" / "policy").vision
        torch.manual_seed(seed)
        model = Autoencoder().to(memory_format=torch.channels_last)
        spread_over = np.random.default_rng(seed).integers(len(frames), size=2048)
        sample = to_float(torch.from_numpy(frames[spread_over]))
        loss = autoencoder_loss(model, frames, perceptual=PerceptualLoss(tower, sample[:512]))
        settings = FitConfig(steps=config.autoencoder_steps, lr=2e-3, warmup=100, ema=0.995, decay=0.5, save_every=500)
        records = fit(model, loss, settings, seed=seed, name="autoencoder", folder=work / "fit_autoencoder",
                      made_from={"frames": checkpoint.digest({"frames": frames})})  # fmt: skip
        model.measure_spread(sample)
        model.save(home / "autoencoder", note(records, frames=len(frames)))

    if not _made(home / "world_model"):
        episodes = Episodes(*play_latents(Autoencoder.load(home / "autoencoder"), paths[HELD_OUT:], work / "latents"))
        torch.manual_seed(seed)
        model = WorldModel(config.world_model).to(memory_format=torch.channels_last)
        pool = Pool(episodes, model, config.windows)
        settings = FitConfig(
            steps=config.world_model_steps, lr=config.world_model_lr, warmup=100, decay=0.5, ema=0.998, save_every=500
        )
        records = fit(model, pool.loss, settings, seed=seed, name="world model", folder=work / "fit_world_model", extra=pool.tensors,
                      made_from=pool.origin())  # fmt: skip
        model.save(home / "world_model", note(records))


def play_latents(autoencoder: Autoencoder, paths, folder: Path):
    """Latents half (E, T + 1, C, h, w) and actions (E, T, D) of shards of play.

    Kept in `folder` under the autoencoder's checksum: latents of another autoencoder are never taken for its own.
    """
    from wmpo_lite.checkpoint import fingerprint

    folder = Path(folder) / fingerprint(autoencoder)
    parts = []
    for path in progress(paths, desc="encode play"):
        cache = folder / (path.stem + ".safetensors")
        if not cache.exists():
            with np.load(path) as shard:
                latents = autoencoder.encode_uint8(torch.from_numpy(shard["frames"])).half()
                checkpoint.save_tensors(cache, {"latents": latents, "actions": torch.from_numpy(shard["actions"])})
        parts.append(checkpoint.load_tensors(cache))
    return torch.cat([part["latents"] for part in parts]), torch.cat([part["actions"] for part in parts])


# -- per task -----------------------------------------------------------------------------------------


def make_policy(task: str, folder: Path, config: PolicyConfig, *, seed: int):
    """The cloned policy of `task` and the demonstrations that are shipped with it.

    Its vision tower and decoder are pre-trained on labelled still scenes, the stand-in for the web-scale
    pre-training of a big VLA and the only place where the simulator's labels are used.
    """
    from wmpo_lite.envs.tabletop.tasks import get_task
    from wmpo_lite.pretrain_policy import clone, ground, reach, train_vision
    from wmpo_lite.trajectory import save_trajectories

    home, work = folder / task, folder / "work" / task
    if _made(home / "policy") and (home / "demos.hdf5").exists():
        return
    torch.manual_seed(seed)
    policy = Policy() if config.start is None else Policy.load(folder / config.start / "policy").train()
    scenes = None
    if not _made(home / "policy"):
        shards = [np.load(path) for path in collect_scenes(task, config.scene_shards, work)]
        scenes = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0].files}
    demos = collect_demonstrations(task, config.demos, work, noise=config.noise, burst=config.burst)
    if not _made(home / "policy"):
        settings = lambda steps, lr, **more: FitConfig(steps=steps, lr=lr, save_every=500, **more)  # noqa: E731
        train_vision(
            scenes, policy.vision, settings(config.vision_steps, 1.5e-3, warmup=200, ema=0.995, weight_decay=0.02),
            seed=seed, folder=work / "fit_vision",
        )  # fmt: skip
        ground(
            policy, scenes, get_task(task).sentence, settings(config.ground_steps, 1.5e-3, warmup=50, decay=0.5), seed=seed,
            folder=work / "fit_ground",
        )  # fmt: skip
        _, reached = reach(
            policy, scenes, get_task(task), settings(config.reach_steps, 1e-3, warmup=50, ema=0.99, decay=0.6, weight_decay=0.02),
            seed=seed, folder=work / "fit_reach", hover=config.hover,
        )  # fmt: skip
        records = clone(
            policy, demos, settings(config.clone_steps, 5e-4, warmup=30, ema=0.99, decay=0.6, weight_decay=0.05), seed=seed,
            folder=work / "fit_clone", early=config.early,
        )  # fmt: skip
        note = {"task": task, "seed": seed, "settings": dataclasses.asdict(config), "final": records[-1]}
        policy.save(home / "policy", note | reached | {"demonstration_frames": int(demos["frames"][..., 0, 0, 0].size)})
    kept = demonstration_trajectories({key: value[: config.shipped_demos] for key, value in demos.items()})
    save_trajectories(home / "demos.hdf5", kept, env_args={"task": task}, provenance={"of": config.demos, "noise": config.noise, "burst": config.burst})


def demonstration_trajectories(demos: dict) -> list:
    """Recorded demonstrations as trajectories (the executed actions), to be kept as HDF5."""
    from wmpo_lite.trajectory import Trajectory

    return [
        Trajectory(
            frames=frames, actions=actions, success=True, finish_step=int(done.argmax()) + 1, instruction=str(text),
            initial_state=np.zeros(0), split="demos", index=i,
        )
        for i, (frames, actions, done, text) in enumerate(zip(demos["frames"], demos["executed"], demos["done"], demos["instruction"]))
    ]  # fmt: skip


def install_assets(source: Path, target: Path):
    """Copy what `make_assets` trained into the shipped assets, weights in half precision (read back as single)."""
    import shutil

    from wmpo_lite.shipped import copy_half

    folders = [source / SHARED / name for name in ("autoencoder", "world_model")]
    folders += [path.parent for path in sorted(Path(source).glob("*/policy/provenance.json"))]
    for folder in folders:
        copy_half(folder, target / folder.parent.name / folder.name)
    for demos in sorted(Path(source).glob("*/demos.hdf5")):
        shutil.copy(demos, target / demos.parent.name / demos.name)
