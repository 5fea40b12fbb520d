"""Models that are built in milliseconds, worlds small enough to know everything about, and an
environment without physics.
"""

import functools
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.autoencoder import Autoencoder, AutoencoderConfig
from wmpo_lite.policy import Policy, PolicyConfig
from wmpo_lite.reward import RewardConfig, RewardModel
from wmpo_lite.trajectory import InitialStates, Trajectory, save_trajectories
from wmpo_lite.world_model import WorldModel, WorldModelConfig

SIZE = 16  # pixels
CONTEXT, CHUNK, ACTIONS = 2, 4, 4
RED, BLUE = "put the red cube on the plate", "put the blue cube on the plate"


def same_weights(build):
    """The decorated builder draws the same weights in every call and leaves torch's global
    generator alone.
    """

    @functools.wraps(build)
    def seeded(*args, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build(*args, **options)

    return seeded


def shake(module: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> torch.nn.Module:
    """Random values in every parameter: zero-initialized layers would hide what their inputs do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@same_weights
def autoencoder(**changes) -> Autoencoder:
    """Frames (B, 3, 16, 16) <-> latents (B, 4, 8, 8)."""
    options = dict(size=SIZE, fold=2, channels=(16,), latent_channels=4) | changes
    return Autoencoder(AutoencoderConfig(**options)).eval()


@same_weights
def world_model(shaken: float = 0.1, **changes) -> WorldModel:
    """Latents (4, 8, 8), context 2, two frames a pass: a chunk takes two passes.

    shaken=0 leaves the zero initialization, with which the newest frame is copied.
    """
    options = dict(
        latent_channels=4,
        latent_size=8,
        widths=(16, 16),
        blocks=1,
        heads=2,
        action_dim=ACTIONS,
        context=CONTEXT,
        frames=2,
    )
    model = WorldModel(WorldModelConfig(**options | changes))
    return shake(model, shaken) if shaken else model.eval()


@same_weights
def policy(contrast: float = 10.0, statistics=None, **changes) -> Policy:
    """contrast: factor on the head, so that an untrained policy has opinions."""
    options = dict(
        image=SIZE,
        patch=4,
        merge=2,
        vision_width=16,
        vision_depth=1,
        width=16,
        depth=1,
        heads=2,
        chunk=CHUNK,
        action_dim=ACTIONS,
        bins=7,
    )
    model = Policy(
        PolicyConfig(**options | changes), **({"statistics": statistics} if statistics else {})
    )
    with torch.no_grad():
        model.head.mul_(contrast)
    return model.eval()


@same_weights
def reward_model(contrast: float = 20.0, **changes) -> RewardModel:
    """Clips of 4 frames; sizes of `RewardModel.from_tower(policy())`.

    contrast: factor on the words, so that an untrained model has opinions.
    """
    options = dict(image=SIZE, patch=4, width=16, depth=1) | changes
    model = RewardModel(RewardConfig(**options))
    with torch.no_grad():
        model.words.weight.mul_(contrast)
    return model.eval()


def noise_frames(*lead: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*lead, size, size, 3), dtype=np.uint8)


def random_actions(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def states(count: int, seed: int = 0, frames: bool = True, texts=(RED, BLUE)) -> InitialStates:
    """`count` initial states with one number each; instructions alternate."""
    rng = np.random.default_rng(seed)
    return InitialStates(
        rng.uniform(-1, 1, (count, 1)),
        noise_frames(count, seed=seed) if frames else None,
        tuple(texts[i % len(texts)] for i in range(count)),
        "rollouts",
        10 + np.arange(count),
    )


def trajectories(
    count: int, steps: int = 2 * CHUNK, seed: int = 0, split: str = "rollouts"
) -> list[Trajectory]:
    """Episodes of noise, every other one a success that ends in its second half; instructions
    alternate in pairs.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        finish = int(rng.integers(steps // 2 + 1, steps + 1)) if i % 2 == 0 else steps
        made.append(
            Trajectory(
                frames=noise_frames(steps + 1, seed=100 * seed + i),
                actions=random_actions(steps, ACTIONS, seed=100 * seed + i),
                success=i % 2 == 0,
                finish_step=finish,
                instruction=(RED, BLUE)[i // 2 % 2],
                initial_state=rng.uniform(-1, 1, 1),
                split=split,
                index=i,
                chunk=CHUNK,
            )
        )
    return made


def assets(folder: Path, task: str = "place") -> Path:
    """A folder of assets, as `make_assets` leaves it, with tiny models that know nothing."""
    policy().save(folder / task / "policy")
    save_trajectories(
        folder / task / "demos.hdf5",
        trajectories(4, seed=7, split="demos"),
        env_args={"task": task},
        provenance={},
    )
    for name, model in (("autoencoder", autoencoder()), ("world_model", world_model())):
        model.save(folder / "tabletop" / name)
    return folder


class Counter:
    """An environment in four lines: the state is a running sum of first action numbers, the picture
    is its brightness.

    Success: the sum has reached `goal`. The sum starts at the initial state's only number.
    """

    action_dim, action_names = ACTIONS, ("dx", "dy", "dz", "gripper")

    def __init__(self, goal: float = 1.0):
        self.goal, self.resets, self.instructions = goal, [], []

    def picture(self, total) -> np.ndarray:
        gray = np.clip(128 + 20 * np.asarray(total), 0, 255).astype(np.uint8)
        return np.broadcast_to(gray[..., None, None, None], (*gray.shape, SIZE, SIZE, 3)).copy()

    def reset(self, initial: InitialStates) -> np.ndarray:
        self.total, self.done = initial.states[:, 0].copy(), np.zeros(len(initial), bool)
        self.instructions = list(initial.instructions)
        self.resets.append(len(initial))
        return self.picture(self.total)

    def step_chunk(self, actions, every_frame: bool = True):
        totals = self.total[:, None] + np.cumsum(
            actions[..., 0].astype(np.float64), axis=1
        )  # (B, K)
        done = np.maximum.accumulate(totals >= self.goal, axis=1) | self.done[:, None]
        self.total, self.done = totals[:, -1], done[:, -1].copy()
        frames = self.picture(totals)
        return frames if every_frame else frames[:, -1:], done, {}


def moving_dot(episodes: int, steps: int, seed: int):
    """Latents (E, T + 1, 1, 8, 8) of a soft dot that starts near the center and moves by the first
    action, and actions (E, T, 2).
    """
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(episodes, steps, 2, generator=generator) * 2 - 1
    actions[..., 1] = 0
    start = 3.5 + torch.rand(episodes, 1, 2, generator=generator) - 0.5
    where = torch.cat([start, start + actions.cumsum(1)], dim=1)  # (E, T + 1, 2)
    bump = torch.exp(
        -(torch.arange(8.0) - where[..., None]).square() / (2 * 1.2**2)
    )  # (E, T + 1, 2, 8)
    return 3 * (bump[:, :, 0, :, None] * bump[:, :, 1, None, :])[:, :, None], actions
