"""`wmpo-lite assets --suite`: what is trained once for a suite of LIBERO, by the same code as for
the table-top.

For the whole suite (assets/<suite>): broad play in all its scenes; an image tower; an autoencoder
and a world model, which begin with the table-top's. Per task (assets/<suite>-<number>): the cloned
policy and the demonstrations that it was cloned from.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS, read_arrays
from wmpo_lite.common.machine import choose_device
from wmpo_lite.datagen.collect import (
    collect_libero_demonstrations,
    collect_libero_play,
    labels_of,
)
from wmpo_lite.datagen.libero import HORIZON, SHARD, stills
from wmpo_lite.envs.tasks import folder_name, get_task
from wmpo_lite.own_context import WindowConfig
from wmpo_lite.policy import Policy, PolicyConfig
from wmpo_lite.recipes.pretrain import (
    HELD_OUT,
    SHARED,
    PretrainConfig,
    claim_work,
    demonstration_trajectories,
    fingerprints,
    is_made,
    train_shared,
)
from wmpo_lite.train import FitConfig, set_threads
from wmpo_lite.world_model import WorldModelConfig


@dataclass(frozen=True)
class SuiteConfig:
    """Sizes of what is trained for a suite."""

    shared: PretrainConfig
    episodes: int = SHARD  # of a shard of play
    vision_steps: int = 2000
    demos: int = 32
    clone_steps: int = 260
    early: float = 0.0  # see `pretrain_policy.clone`
    noise: float = 0.4
    burst: float = 0.15


SUITE_PRETRAINING = {
    "laptop": SuiteConfig(
        PretrainConfig(
            play_shards=24,
            autoencoder_shards=22,
            autoencoder_steps=3_000,
            world_model_steps=8_000,
            world_model=WorldModelConfig(frames=2, action_dim=7),
            policies={},
        )
    ),
    "gpu": SuiteConfig(
        PretrainConfig(
            play_shards=512,
            autoencoder_shards=256,
            autoencoder_steps=40_000,
            world_model_steps=120_000,
            world_model=WorldModelConfig(frames=2, action_dim=7),
            policies={},
        )
    ),
    "smoke": SuiteConfig(
        PretrainConfig(
            play_shards=3,
            autoencoder_shards=1,
            autoencoder_steps=2,
            world_model_steps=2,
            world_model=WorldModelConfig(frames=2, action_dim=7, widths=(16, 16), blocks=1),
            windows=WindowConfig(batch=8),
            policies={},
        ),
        episodes=2,
        vision_steps=2,
        demos=4,
        clone_steps=2,
    ),
}


def make_suite(
    folder: Path,
    suite: str,
    tasks: tuple[int, ...] = (0,),
    *,
    seed: int = 0,
    profile: str = "laptop",
    device: str = "auto",
) -> Path:
    """Train what all tasks of `suite` share, and the policies of `tasks`, into `folder`. Killed and
    started again it goes on where it was.

    UserError where the folder holds what was made with another seed, other settings or other
    inputs, and as `envs.tasks.get_task`.
    """
    if profile not in SUITE_PRETRAINING:
        raise UserError(
            f"profile '{profile}' is unknown; use one of {', '.join(SUITE_PRETRAINING)}"
        )
    set_threads()
    folder, config, device = Path(folder), SUITE_PRETRAINING[profile], choose_device(device)
    names = [f"{suite}/{number}" for number in tasks]
    for name in names:
        get_task(name)
    work = folder / "work" / suite
    paths = collect_libero_play(
        suite, config.shared.play_shards, work / "play", episodes=config.episodes
    )
    tower = _tower(folder / suite, work, paths, suite, config, seed=seed, device=device)
    played = (config.episodes, HORIZON)
    start = ASSETS / SHARED
    train_shared(folder / suite, work, paths, config.shared, tower, played, seed=seed, start=start)
    for name in names:
        make_libero_policy(name, folder, config, seed=seed, device=device)
    return folder


def new_policy(suite: str) -> Policy:
    """An untrained policy for the arm of LIBERO that knows all words of a suite."""
    from wmpo_lite.action_tokens import ActionStatistics
    from wmpo_lite.envs.libero.env import ACTION_DIM, ACTION_NAMES
    from wmpo_lite.envs.libero.states import instructions
    from wmpo_lite.language import build_tokenizer

    words = sorted({word for text in instructions(suite) for word in text.lower().split()})
    ends = (-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM
    sizes = PolicyConfig(action_dim=ACTION_DIM, text_length=24)
    return Policy(sizes, ActionStatistics(ACTION_NAMES, *ends), build_tokenizer(words))


def _tower(home: Path, work: Path, paths, suite: str, config: SuiteConfig, *, seed: int, device):
    """The image tower of the suite's policies, pre-trained on labeled frames of play: where things
    are. A policy that can see and nothing else is kept in home/seeing.
    """
    from wmpo_lite.recipes.pretrain_policy import train_vision

    kept = home / "seeing"
    asked = {"suite": suite, "seed": seed, "vision_steps": config.vision_steps}
    asked |= {"play_shards": len(paths), "episodes": config.episodes}
    if not is_made(kept, asked):
        claim_work(work, asked)
        torch.manual_seed(seed)
        policy = new_policy(suite).to(device)
        shown = [(read_arrays(path), read_arrays(labels_of(path))) for path in paths[HELD_OUT:]]
        how = FitConfig(
            steps=config.vision_steps, lr=1.5e-3, warmup=100, ema=0.995, weight_decay=0.02
        )
        scenes = stills(shown)
        _, found = train_vision(scenes, policy.vision, how, seed=seed, folder=work / "fit_vision")
        policy.save(kept, {**asked, "held_out": found})
    return Policy.load(kept).vision.to(device)


def make_libero_policy(task: str, folder: Path, config: SuiteConfig, *, seed: int, device="cpu"):
    """The cloned policy of `task` and the demonstrations that it was cloned from."""
    from wmpo_lite.envs.tabletop.replay import env_args
    from wmpo_lite.recipes.pretrain_policy import clone
    from wmpo_lite.trajectory import save_trajectories

    home, work = folder / folder_name(task), folder / "work" / folder_name(task)
    seeing = Policy.load(folder / get_task(task).suite / "seeing")
    about = {"of": config.demos, "noise": config.noise, "burst": config.burst}
    asked = {"task": task, "seed": seed, **about, "clone_steps": config.clone_steps}
    asked |= {"early": config.early, "inputs": fingerprints(start=seeing)}
    if is_made(home / "policy", asked) and (home / "demos.hdf5").exists():
        return
    claim_work(work, asked)
    demos = collect_libero_demonstrations(
        task, config.demos, work, noise=config.noise, burst=config.burst
    )
    torch.manual_seed(seed)
    how = FitConfig(
        steps=config.clone_steps, lr=1e-3, warmup=30, ema=0.99, decay=0.6, weight_decay=0.05
    )
    options = {"seed": seed, "folder": work / "fit_clone", "early": config.early}
    policy = seeing.train().to(device)
    records = clone(policy, demos, how, **options)
    frames = int(demos["frames"][..., 0, 0, 0].size)
    policy.save(home / "policy", asked | {"final": records[-1], "demonstration_frames": frames})
    trajectories = demonstration_trajectories(demos)
    save_trajectories(home / "demos.hdf5", trajectories, env_args=env_args(task), provenance=about)


def install_suite(source: Path, target: Path, suite: str):
    """Copy what `make_suite` trained into the shipped assets, weights in half precision (read back
    as single).
    """
    import shutil

    from wmpo_lite.recipes.shipped import copy_half

    source, target = Path(source), Path(target)
    for path in sorted(source.glob(f"{suite}*/*/provenance.json")):
        copy_half(path.parent, target / path.parent.parent.name / path.parent.name)
    for demos in sorted(source.glob(f"{suite}-*/demos.hdf5")):
        shutil.copy(demos, target / demos.parent.name / demos.name)
