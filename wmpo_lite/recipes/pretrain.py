"""`make assets`: everything that is trained once and shipped. Finished stages are kept, interrupted
ones go on.

For the whole table-top (assets/tabletop): broad play; an autoencoder of its frames; a world model
of its latents and actions. Per task (assets/<task>): the cloned policy, and the demonstrations that
it was cloned from.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    PerceptualLoss,
    autoencoder_loss,
    to_float,
)
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS, read_arrays
from wmpo_lite.common.machine import choose_device
from wmpo_lite.common.origin import claim, require_same
from wmpo_lite.common.progress import progress
from wmpo_lite.datagen.collect import (
    PLAY_HORIZON,
    PLAY_SHARD,
    collect_demonstrations,
    collect_play,
    collect_scenes,
    contents,
)
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.policy import Policy
from wmpo_lite.train import FitConfig, fit, set_threads
from wmpo_lite.world_model import WorldModel, WorldModelConfig

SHARED = "tabletop"  # the folder of what all table-top tasks share
HELD_OUT = 2  # first shards of play, which nothing is trained on


@dataclass(frozen=True)
class PolicyConfig:
    """How a task's policy is made before WMPO begins."""

    # labeled still scenes, 2048 each: what stands in for a big VLA's pre-training
    scene_shards: int = 10
    vision_steps: int = 2200
    ground_steps: int = 900
    reach_steps: int = 2500
    hover: float = 0.2  # share of 'move to the target' among the instructions of `reach`
    demos: int = 32
    clone_steps: int = 300
    early: float = 0.3  # see `pretrain_policy.clone`
    # demonstrations are disturbed seldom and strongly: most chunks have a clean label
    noise: float = 0.8
    burst: float = 0.1
    # of the demonstrations, so many at most are shipped for alignment and reward model
    shipped_demos: int = 128
    start: str | None = None  # begin with the policy of another task


POLICIES = {
    "place": PolicyConfig(),
    "square": PolicyConfig(
        vision_steps=880,
        ground_steps=360,
        reach_steps=1400,
        hover=0.35,
        demos=984,
        clone_steps=2500,
        early=0.1,
        start="place",
    ),
}


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes of the shared training."""

    play_shards: int = 224  # of 32 episodes of 48 steps, the first two held out
    autoencoder_shards: int = 111
    autoencoder_steps: int = 8_000
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    world_model_steps: int = 16_000
    world_model_lr: float = 1e-3
    world_model: WorldModelConfig = WorldModelConfig(frames=2)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policies: dict = field(default_factory=lambda: POLICIES)


_TINY = dict(
    vision_steps=2,
    ground_steps=2,
    reach_steps=2,
    clone_steps=2,
    scene_shards=1,
    demos=8,
    shipped_demos=8,
)
PRETRAINING = {
    "laptop": PretrainConfig(),
    "gpu": PretrainConfig(
        play_shards=1024,
        autoencoder_shards=512,
        autoencoder_steps=40_000,
        world_model_steps=120_000,
    ),
    "smoke": PretrainConfig(
        play_shards=3,
        autoencoder_shards=1,
        autoencoder_steps=4,
        world_model_steps=4,
        world_model=WorldModelConfig(frames=2, widths=(16, 16), blocks=1),
        windows=WindowConfig(batch=8),
        policies={task: dataclasses.replace(config, **_TINY) for task, config in POLICIES.items()},
    ),
}


def make_assets(
    folder: Path,
    *,
    seed: int = 0,
    profile: str = "laptop",
    device: str = "auto",
    only: str | None = None,
) -> Path:
    """Train all that is shipped into `folder`. Killed and started again it goes on where it was.

    only: a task; its policy and demonstrations are made and nothing else, from a shipped policy
    where its recipe starts with one that is not in the folder. UserError where the folder holds
    what was made with another seed, other settings or other inputs.
    """
    if profile not in PRETRAINING:
        raise UserError(f"profile '{profile}' is unknown; use one of {', '.join(PRETRAINING)}")
    set_threads()
    folder, config, device = Path(folder), PRETRAINING[profile], choose_device(device)
    if only is not None and only not in config.policies:
        raise UserError(
            f"--only is '{only}'; expected one of {', '.join(config.policies)} (a new task's sizes"
            " go into POLICIES of recipes/pretrain.py)"
        )
    for task in config.policies if only is None else (only,):
        make_policy(task, folder, config.policies[task], seed=seed, device=device)
    if only is None:
        make_shared(folder, config, seed=seed, device=device)
    return folder


def _start(folder: Path, task: str) -> Path:
    """The policy of `task` to begin with: as made in `folder`, else as shipped."""
    made = folder / task / "policy"
    return made if made.is_dir() else ASSETS / task / "policy"


def is_made(folder: Path, asked: dict) -> bool:
    """Whether `folder` is complete. UserError where it was made from something
    else than `asked`.
    """
    path = folder / "provenance.json"  # written last
    if not path.exists():
        return False
    require_same(path, checkpoint.read_json(path), asked)
    return True


def claim_work(folder: Path, asked: dict) -> None:
    """Note in `folder`, where trainings keep their unfinished states, what they are made from;
    UserError as in `is_made`.
    """
    claim(folder / "made_from.json", asked, begun=any(folder.glob("**/progress.json")))


def fingerprints(**modules) -> dict:
    return {name: checkpoint.fingerprint(module) for name, module in modules.items()}


def _part(config: PretrainConfig, *names: str) -> dict:
    """Some of the settings, as they are in provenance.json."""
    plain = checkpoint.plain(dataclasses.asdict(config))
    return {name: value for name, value in plain.items() if name in names}


# -- shared by all tasks ---------------------------------------------------------------------------


def make_shared(folder: Path, config: PretrainConfig, *, seed: int, device="cpu"):
    """Autoencoder and world model of the table-top, from broad play."""
    paths = collect_play(config.play_shards, folder / "work" / "play")
    tower = Policy.load(folder / "place" / "policy").vision.to(device)
    played = (PLAY_SHARD, PLAY_HORIZON)
    train_shared(folder / SHARED, folder / "work", paths, config, tower, played, seed=seed)


def train_shared(
    home: Path, work: Path, paths, config, tower, played: tuple[int, int], *, seed: int, start=None
):
    """An autoencoder, which looks through the image `tower` of a policy, and a world model into
    `home`, on tower's device, from the shards of play at `paths`. played: episodes of a shard and
    their steps. start: the folder of an autoencoder and a world model to begin with.
    """
    episodes, device = played[0] * config.play_shards, next(tower.parameters()).device
    note = lambda asked, records, **more: {
        **asked,
        "settings": checkpoint.plain(dataclasses.asdict(config)),
        "final": records[-1],
        "play_episodes": episodes,
        "play_frames": (played[1] + 1) * episodes,
        **more,
    }
    begun = {}
    if start is not None:
        begun = fingerprints(
            start_autoencoder=Autoencoder.load(start / "autoencoder"),
            start_world_model=WorldModel.load(start / "world_model"),
        )
    asks = lambda settings, **inputs: {
        "seed": seed,
        "settings": _part(config, *settings),
        "inputs": fingerprints(**inputs) | begun,
    }

    asked = asks(("autoencoder", "autoencoder_shards", "autoencoder_steps"), tower=tower)
    if not is_made(home / "autoencoder", asked):
        if config.autoencoder.kind == "pixels":  # nothing to learn
            Autoencoder(config.autoencoder).save(home / "autoencoder", note(asked, [None]))
        else:
            _fit_autoencoder(home, work, paths, config, tower, asked, note, start)

    autoencoder = Autoencoder.load(home / "autoencoder").to(device)
    names = ("play_shards", "world_model_steps", "world_model_lr", "world_model", "windows")
    asked = asks(names, autoencoder=autoencoder)
    if not is_made(home / "world_model", asked):
        _fit_world_model(home, work, paths, config, autoencoder, asked, note, start)


def _begin_with(model, start: Path | None, name: str):
    """Give `model` the weights of the one in start/name, as far as they have its shapes: those that
    read actions of another arm stay as they are drawn.
    """
    if start is None:
        return
    found, own = type(model).load(start / name).state_dict(), model.state_dict()
    fit = {
        key: value for key, value in found.items() if key in own and own[key].shape == value.shape
    }
    model.load_state_dict(own | fit)


def _fit_world_model(home, work, paths, config, autoencoder, asked: dict, note, start=None):
    """Train the world model on play as the autoencoder sees it."""
    seed, work = asked["seed"], work / "fit_world_model"
    claim_work(work, asked)
    episodes = play_episodes(autoencoder, paths[HELD_OUT:], work.parent / "latents")
    torch.manual_seed(seed)
    device = next(autoencoder.parameters()).device
    model = WorldModel(config.world_model).to(device, memory_format=torch.channels_last)
    _begin_with(model, start, "world_model")
    pool = Pool(episodes, model, config.windows)
    more = {"warmup": 100, "decay": 0.5, "ema": 0.998, "save_every": 500}
    records = fit(
        model,
        pool.loss,
        FitConfig(steps=config.world_model_steps, lr=config.world_model_lr, **more),
        seed=seed,
        name="world model",
        folder=work,
        extra=pool.tensors,
        made_from=pool.origin(),
        shared=True,
    )
    model.save(home / "world_model", note(asked, records))


def _fit_autoencoder(home, work, paths, config, tower, asked: dict, note, start=None):
    """Train the autoencoder on pictures of play, looked at through the policy's image tower."""
    seed, work = asked["seed"], work / "fit_autoencoder"
    claim_work(work, asked)
    shown = paths[HELD_OUT : HELD_OUT + config.autoencoder_shards]
    frames = np.concatenate([read_arrays(path)["frames"][:, ::2] for path in shown])
    frames = frames.reshape(-1, *frames.shape[2:])
    torch.manual_seed(seed)
    device = next(tower.parameters()).device
    model = Autoencoder(config.autoencoder).to(device, memory_format=torch.channels_last)
    _begin_with(model, start, "autoencoder")
    spread_over = np.random.default_rng(seed).integers(len(frames), size=2048)
    sample = to_float(torch.from_numpy(frames[spread_over]).to(device))
    more = {"warmup": 100, "decay": 0.5, "ema": 0.995, "save_every": 500}
    records = fit(
        model,
        autoencoder_loss(model, frames, perceptual=PerceptualLoss(tower, sample[:512])),
        FitConfig(steps=config.autoencoder_steps, lr=2e-3, **more),
        seed=seed,
        name="autoencoder",
        folder=work,
        made_from={"frames": checkpoint.digest({"frames": frames})},
    )
    model.measure_spread(sample)
    model.save(home / "autoencoder", note(asked, records, frames=len(frames)))


def play_episodes(autoencoder: Autoencoder, paths, folder: Path) -> Episodes:
    """Shards of play as the world model's episodes; what is costly to encode is encoded once, into
    `folder`.
    """
    if autoencoder.config.kind != "pixels":
        return Episodes(*play_latents(autoencoder, paths, folder))
    shards = [read_arrays(path) for path in progress(paths, desc="read play")]
    frames, actions = (np.concatenate([s[key] for s in shards]) for key in ("frames", "actions"))
    return Episodes(
        torch.from_numpy(frames), torch.from_numpy(actions), encode=autoencoder.encode_uint8
    )


def play_latents(autoencoder: Autoencoder, paths, folder: Path):
    """Latents half (E, T + 1, C, h, w) and actions (E, T, D) of shards of play.

    Kept in `folder` under the autoencoder's checksum. A cache says from which bits of weights and
    shard it was made; one of others is made anew.
    """
    from safetensors.torch import save

    weights = {k: v.detach().cpu().contiguous() for k, v in autoencoder.state_dict().items()}
    exact = hashlib.sha256(save(weights) + repr(autoencoder.config).encode()).hexdigest()
    folder = Path(folder) / checkpoint.fingerprint(autoencoder)
    parts = []
    for path in progress(paths, desc="encode play"):
        cache = folder / (path.stem + ".safetensors")
        made = json.dumps({"autoencoder": exact, "shard": contents(path)})
        if not cache.exists() or _metadata(cache).get("made_from") != made:
            shard = read_arrays(path)
            latents = autoencoder.encode_uint8(torch.from_numpy(shard["frames"])).half()
            actions = torch.from_numpy(shard["actions"])
            tensors = {"latents": latents.cpu().contiguous(), "actions": actions}
            checkpoint.write_atomic(cache, save(tensors, metadata={"made_from": made}))
        parts.append(checkpoint.load_tensors(cache))
    return tuple(torch.cat([part[key] for part in parts]) for key in ("latents", "actions"))


def _metadata(path: Path) -> dict:
    """What a safetensors file says of itself; {} if it says nothing or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


# -- per task --------------------------------------------------------------------------------------


def make_policy(task: str, folder: Path, config: PolicyConfig, *, seed: int, device="cpu"):
    """The cloned policy of `task` and the demonstrations that are shipped with it.

    Its vision tower and decoder are pre-trained on labeled still scenes, the stand-in for the
    web-scale pre-training of a big VLA and the only place where the simulator's labels are used.
    """
    from wmpo_lite.envs.tabletop.replay import env_args
    from wmpo_lite.trajectory import load_metadata, save_trajectories

    home, work, kept = folder / task, folder / "work" / task, folder / task / "demos.hdf5"
    asked = {"task": task, "seed": seed, "settings": dataclasses.asdict(config)}
    if config.start is not None:
        asked["inputs"] = fingerprints(start=Policy.load(_start(folder, config.start)))
    about = {"of": config.demos, "noise": config.noise, "burst": config.burst}
    if kept.exists():
        require_same(kept, load_metadata(kept)["provenance"], about)
    made = is_made(home / "policy", asked)
    if made and kept.exists():
        return
    if not made:
        claim_work(work, asked)
        torch.manual_seed(seed)
        policy = Policy() if config.start is None else Policy.load(_start(folder, config.start))
        shards = [read_arrays(path) for path in collect_scenes(task, config.scene_shards, work)]
        scenes = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
    demos = collect_demonstrations(task, config.demos, work, noise=config.noise, burst=config.burst)
    if not made:
        found = _teach(policy.train().to(device), task, scenes, demos, config, seed, work)
        policy.save(home / "policy", asked | found)
    shown = {key: value[: config.shipped_demos] for key, value in demos.items()}
    trajectories = demonstration_trajectories(shown)
    save_trajectories(kept, trajectories, env_args=env_args(task), provenance=about)


def _teach(policy, task: str, scenes: dict, demos: dict, config: PolicyConfig, seed, work) -> dict:
    """All that a policy learns before WMPO begins; what is noted of it."""
    from wmpo_lite.envs.tabletop.tasks import get_task
    from wmpo_lite.recipes.pretrain_policy import clone, ground, reach, train_vision

    task = get_task(task)
    settings = lambda steps, lr, **more: FitConfig(steps=steps, lr=lr, save_every=500, **more)
    options = lambda name: {"seed": seed, "folder": work / f"fit_{name}"}
    how = settings(config.vision_steps, 1.5e-3, warmup=200, ema=0.995, weight_decay=0.02)
    train_vision(scenes, policy.vision, how, **options("vision"))
    how = settings(config.ground_steps, 1.5e-3, warmup=50, decay=0.5)
    ground(policy, scenes, task.sentence, how, **options("ground"))
    how = settings(config.reach_steps, 1e-3, warmup=50, ema=0.99, decay=0.6, weight_decay=0.02)
    _, reached = reach(policy, scenes, task, how, **options("reach"), hover=config.hover)
    how = settings(config.clone_steps, 5e-4, warmup=30, ema=0.99, decay=0.6, weight_decay=0.05)
    records = clone(policy, demos, how, **options("clone"), early=config.early)
    frames = int(demos["frames"][..., 0, 0, 0].size)
    return {"final": records[-1], **reached, "demonstration_frames": frames}


def demonstration_trajectories(demos: dict) -> list:
    """Recorded demonstrations as trajectories (the executed actions), to be kept as HDF5."""
    from wmpo_lite.trajectory import Trajectory, outcomes

    return [
        Trajectory(
            frames=frames,
            actions=actions,
            success=success,
            finish_step=finish,
            instruction=str(text),
            initial_state=np.zeros(0),
            split="demos",
            index=i,
        )
        for i, (frames, actions, success, finish, text) in enumerate(
            zip(demos["frames"], demos["executed"], *outcomes(demos["done"]), demos["instruction"])
        )
    ]


def install_assets(source: Path, target: Path, only: str | None = None):
    """Copy what `make_assets` trained into the shipped assets, weights in half precision (read back
    as single). only: see there.
    """
    import shutil

    from wmpo_lite.recipes.shipped import copy_half

    source, target = Path(source), Path(target)
    tasks = only or "*"
    folders = [] if only else [source / SHARED / name for name in ("autoencoder", "world_model")]
    folders += [path.parent for path in sorted(source.glob(f"{tasks}/policy/provenance.json"))]
    for folder in folders:
        copy_half(folder, target / folder.parent.name / folder.name)
    for demos in sorted(source.glob(f"{tasks}/demos.hdf5")):
        shutil.copy(demos, target / demos.parent.name / demos.name)
