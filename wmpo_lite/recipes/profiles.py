"""Sizes: every number of a run in one dataclass, one instance a profile, and the paper's own model
sizes.
"""

import dataclasses
from dataclasses import dataclass

from wmpo_lite.common.errors import require_between
from wmpo_lite.envs.splits import USES


@dataclass(frozen=True)
class Profile:
    """Sizes of one run, the same for all tasks. Every number that a result depends on is here and
    is written into the run's config.json.

    Some of them are those of a run with P = 128 and others with more rollouts: see `for_budget`.
    """

    evaluation_states: int = 256
    # the first 256 evaluation states were looked at in six series of runs of an earlier edition
    evaluation_from: int = 1000
    trust_rollouts: int = 256
    temperature: float = 1.0
    align_steps: int = 300
    align_lr: float = 3e-4
    align_batch: int = 64
    after_success: int = 4  # frames that alignment still sees once an episode has succeeded
    reward_steps: int = 500
    reward_lr: float = 1e-3
    # lower layers of its encoder that stay as the policy's image tower has them
    reward_frozen: int = 2
    # networks that judge together, each fitted without another quarter of the rollouts (1 to 4)
    reward_members: int = 1
    iterations: int = 28
    groups: int = 16
    group_size: int = 16
    refill: int = 0
    wmpo_lr: float = 3e-4
    wmpo_warmup: int = 3
    wmpo_decay: int = 8  # the last iterations, over which lr falls
    wmpo_epochs: int = 2
    minibatch: int = 64
    freeze_vision: bool = True  # as in cloning: the tower stays as pre-trained
    # try the policy in the real environment as it learns; outside the budget, and nothing is chosen
    # by it
    track_real: bool = True
    track_every: int = 7  # iterations
    track_states: int = 256
    online_groups: int = 4
    online_group_size: int = 8
    online_lr: float = 3e-4
    online_warmup: int = 2
    online_epochs: int = 2
    dpo_lr: float = 1e-5
    dpo_beta: float = 0.1
    dpo_pairs: int = 256
    dpo_epochs: int = 2
    num_inference_steps: int = 1
    reward_stride: int = 4  # frames between the windows that the reward model judges in imagination
    min_consecutive: int = 2  # of those in a row that must reach the threshold
    # True: an imagined iteration whose groups are all dropped is noted and skipped instead of
    # ending the run
    tolerate_silence: bool = False

    def wmpo_update(self):
        """WMPO's GRPO settings, which the upper bound shares."""
        from wmpo_lite.grpo import GRPOConfig

        return GRPOConfig(
            groups=self.groups,
            group_size=self.group_size,
            lr=self.wmpo_lr,
            warmup=self.wmpo_warmup,
            decay=self.wmpo_decay,
            epochs=self.wmpo_epochs,
            minibatch=self.minibatch,
            temperature=self.temperature,
        )


PROFILES = {
    "smoke": Profile(
        evaluation_states=24,
        trust_rollouts=24,
        align_steps=4,
        align_batch=8,
        reward_steps=8,
        iterations=1,
        wmpo_decay=0,
        groups=4,
        group_size=4,
        refill=2,
        track_states=8,
        online_groups=2,
        online_group_size=4,
        dpo_pairs=16,
        dpo_epochs=1,
        tolerate_silence=True,
    ),
    "laptop": Profile(),
    "gpu": Profile(
        iterations=80,
        groups=64,
        align_steps=2000,
        align_batch=128,
        reward_steps=1000,
        trust_rollouts=512,
    ),
}


def for_suite(profile: Profile) -> Profile:
    """The profile for a task of LIBERO: evaluation begins with the benchmark's own initial states,
    and what is only looked at takes fewer episodes, since each takes seconds. The method's own
    numbers are those of the table-top.
    """
    return dataclasses.replace(
        profile,
        evaluation_from=0,
        trust_rollouts=min(128, profile.trust_rollouts),
        track_states=min(64, profile.track_states),
    )


BUDGET = 128  # P that the profiles' numbers of training steps are meant for


def for_budget(profile: Profile, rollout_budget: int, before: int = 0) -> Profile:
    """The profile for P rollouts beside those that rounds `before` have recorded. Where there are
    more of them, the world model is fitted for more steps and DPO gets more pairs in proportion, so
    that a rollout is seen as often, and the reward model is fitted for more steps by the square
    root: its loss levels off sooner. DPO and online GRPO, which then take more steps, take smaller
    ones: their learning rates fall by the square root. With those of P = 128 they gain nothing from
    1,280 rollouts of `place`, with the smaller ones about ten points (notebooks/lab_book.md).
    """
    times = max(1.0, (before + rollout_budget) / BUDGET)
    spent = max(1.0, rollout_budget / BUDGET)  # by online GRPO, which learns from its own alone
    return dataclasses.replace(
        profile,
        align_steps=round(times * profile.align_steps),
        reward_steps=round(times**0.5 * profile.reward_steps),
        dpo_pairs=round(times * profile.dpo_pairs),
        dpo_lr=profile.dpo_lr / times**0.5,
        online_lr=profile.online_lr / spent**0.5,
    )


ZERO_IS_FINE = ("evaluation_from", "after_success", "reward_frozen", "refill", "wmpo_decay")


def check_ranges(profile: Profile) -> None:
    """UserError for a number that no run can work with, by the name of its flag."""
    for field in dataclasses.fields(profile):
        value, flag = getattr(profile, field.name), f"--{field.name.replace('_', '-')}"
        if field.type is int:
            require_between(flag, value, int(field.name not in ZERO_IS_FINE), 1_000_000)
        elif field.type is float:
            require_between(flag, value, 1e-9, 1_000)
    for flag, value in (
        ("--group-size", profile.group_size),
        ("--online-group-size", profile.online_group_size),
    ):
        require_between(flag, value, 2, 1_000_000)  # attempts are compared with each other
    require_between("--reward-members", profile.reward_members, 1, 4)  # a quarter for each
    room = lambda use: USES[use].room
    require_between("--trust-rollouts", profile.trust_rollouts, 1, room("trust"))
    require_between("--track-states", profile.track_states, 1, room("tracking"))
    left = room("evaluation") - profile.evaluation_from
    require_between("--evaluation-states", profile.evaluation_states, 1, left)


def paper_models() -> dict:
    """Configurations with the paper's sizes: SDXL's autoencoder at 256 pixels, a transformer of
    STDiT-XL's size, VideoMAE-base, 256 action bins.

    They are ordinary configurations of the kit's classes; training them takes the paper's 32 GPUs.
    A test builds them on the meta device.
    """
    from wmpo_lite.autoencoder import AutoencoderConfig
    from wmpo_lite.policy import PolicyConfig
    from wmpo_lite.reward import RewardConfig
    from wmpo_lite.world_model import WorldModelConfig

    return {
        "autoencoder": AutoencoderConfig(
            kind="kl", size=256, fold=1, channels=(128, 256, 512, 512), latent_channels=4
        ),
        "world_model": WorldModelConfig(
            kind="stdit",
            latent_channels=4,
            latent_size=32,
            patch=2,
            width=1152,
            depth=28,
            heads=16,
            action_dim=7,
            context=4,
            frames=8,
            reference=False,
            path=False,
            num_inference_steps=30,
            shift=1.0,
            context_noise=0.05,
        ),
        "reward": RewardConfig(image=224, clip=8, patch=16, width=768, depth=12, heads=12),
        "policy": PolicyConfig(
            image=256,
            patch=16,
            merge=2,
            vision_width=1024,
            vision_depth=24,
            width=4096,
            depth=32,
            heads=32,
            action_dim=7,
            bins=256,
        ),
    }
