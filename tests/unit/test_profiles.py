"""Profiles, and the paper's sizes built without memory."""

import dataclasses

import pytest
import torch

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.common.errors import UserError
from wmpo_lite.policy import ActionStatistics, Policy
from wmpo_lite.recipes import baselines
from wmpo_lite.recipes.profiles import PROFILES, for_budget, paper_models
from wmpo_lite.recipes.workspace import Run
from wmpo_lite.reward import RewardModel
from wmpo_lite.world_model import WorldModel


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_paper_sizes_on_the_meta_device():
    sizes = paper_models()
    with torch.device("meta"):
        autoencoder, world_model, reward = (
            Autoencoder(sizes["autoencoder"]),
            WorldModel(sizes["world_model"]),
            RewardModel(sizes["reward"]),
        )
        seven = ActionStatistics(tuple("abcdefg"), (-1.0,) * 7, (1.0,) * 7)
        policy = Policy(sizes["policy"], seven)
    assert 80e6 < parameters(autoencoder) < 90e6  # SDXL's VAE has 83.7 M
    assert sizes["autoencoder"].latent_size == sizes["world_model"].latent_size == 32
    assert 1.0e9 < parameters(world_model) < 1.6e9  # two blocks a layer, twice DiT-XL/2's 28
    assert 85e6 < parameters(reward.encoder.encoder) < 90e6  # ViT-B
    assert parameters(policy) > 5e9
    assert all(p.is_meta for p in world_model.parameters())
    paper = sizes["world_model"]  # c = 4, K = 8, 30 denoising steps; what this kit adds is off
    assert (
        (paper.context, paper.frames, paper.num_inference_steps) == (4, 8, 30)
        and not paper.reference
        and not paper.path
    )


def test_budget_smaller_than_a_group_is_refused():
    with pytest.raises(UserError, match="smaller than one group of 8"):
        Run(rollout_budget=7).settings()


@pytest.mark.parametrize("budget, times", [(8, 1), (128, 1), (192, 1.5), (1280, 10)])
def test_more_rollouts_are_fitted_for_more_steps(budget, times):
    usual, sized = PROFILES["laptop"], Run(rollout_budget=budget).settings()
    grown = {"align_steps": round(300 * times), "reward_steps": round(500 * times**0.5)}
    grown |= {"dpo_pairs": round(256 * times)}
    grown |= {"dpo_lr": 1e-5 / times**0.5, "online_lr": 3e-4 / times**0.5}
    assert sized == dataclasses.replace(usual, **grown) == for_budget(usual, budget)


def test_steps_that_are_asked_for_do_not_grow_with_the_budget():
    asked = Run(rollout_budget=1280, changes={"align_steps": 20}).settings()
    assert (asked.align_steps, asked.reward_steps) == (20, 1581)


@pytest.mark.parametrize(
    "budget, spent", [(8, 8), (24, 24), (63, 48), (64, 64), (100, 96), (128, 128), (1280, 1280)]
)
def test_online_grpo_spends_the_budget(budget, spent):
    """In equal iterations, of about four groups of eight."""
    iterations, groups, size = baselines.online_iterations(PROFILES["laptop"], budget)
    assert iterations * groups * size == spent and 1 <= groups <= 6 and size == 8


def test_unknown_profile_is_named():
    with pytest.raises(UserError, match="'huge' is unknown; use one of smoke, laptop, gpu"):
        Run(profile="huge").settings()


def test_all_tasks_have_the_same_settings():
    for name in PROFILES:
        assert (
            Run(task="place", profile=name).settings()
            == Run(task="square", profile=name).settings()
            == PROFILES[name]
        )


def test_changes_come_on_top_of_the_profile():
    changed = Run(profile="smoke", changes={"track_real": False, "evaluation_states": 8}).settings()
    assert (changed.track_real, changed.evaluation_states) == (False, 8)
    assert dataclasses.replace(changed, track_real=True, evaluation_states=24) == PROFILES["smoke"]


def test_updates_in_imagination_take_their_numbers_from_the_profile():
    settings = dataclasses.replace(
        PROFILES["laptop"], groups=3, group_size=5, wmpo_lr=0.25, wmpo_decay=7, wmpo_epochs=4
    )
    update = settings.wmpo_update()
    assert (update.groups, update.group_size, update.lr, update.decay, update.epochs) == (
        3,
        5,
        0.25,
        7,
        4,
    )
