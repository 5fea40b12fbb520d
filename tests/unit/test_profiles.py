"""Profiles, and the paper's sizes built without memory."""
import dataclasses

import pytest
import torch

from wmpo_lite.errors import UserError
from wmpo_lite.workspace import Run
from wmpo_lite.policy import ActionStatistics, Policy
from wmpo_lite.profiles import PROFILES, paper_models
from wmpo_lite.reward import RewardModel
from wmpo_lite.world_model import Autoencoder, WorldModel


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_paper_sizes_on_the_meta_device():
    sizes = paper_models()
    with torch.device("meta"):
        autoencoder, world_model, reward = Autoencoder(sizes["autoencoder"]), WorldModel(sizes["world_model"]), RewardModel(sizes["reward"])
        seven = ActionStatistics(tuple("abcdefg"), (-1.0,) * 7, (1.0,) * 7)
        policy = Policy(sizes["policy"], seven)
    assert 80e6 < parameters(autoencoder) < 90e6  # SDXL's VAE has 83.7 M
    assert sizes["autoencoder"].latent_size == sizes["world_model"].latent_size == 32
    assert 1.0e9 < parameters(world_model) < 1.6e9  # two blocks a layer, twice DiT-XL/2's 28
    assert 85e6 < parameters(reward.encoder.encoder) < 90e6  # ViT-B
    assert parameters(policy) > 5e9
    assert all(p.is_meta for p in world_model.parameters())


def test_budget_smaller_than_a_group_is_refused():
    with pytest.raises(UserError, match="smaller than one group of 8"):
        Run(rollout_budget=7).settings()


def test_unknown_profile_is_named():
    with pytest.raises(UserError, match="'huge' is unknown; use one of smoke, laptop, gpu"):
        Run(profile="huge").settings()


def test_a_tasks_own_settings_come_on_top_of_the_profiles():
    place, square = (Run(task=task, profile="smoke").settings() for task in ("place", "square"))
    assert square.doubt < place.doubt and square.judge_hold == place.judge_hold == 2 > PROFILES["smoke"].judge_hold
    assert dataclasses.replace(square, doubt=place.doubt, judge_hold=place.judge_hold, align_perceived=place.align_perceived) == place


def test_a_tasks_own_sizes_are_those_of_one_profile():
    square, gpu = Run(task="square").settings(), Run(task="square", profile="gpu").settings()
    assert (square.group_size, square.iterations) == (16, 20) and Run().settings().group_size == 8
    assert gpu.group_size == 16 and gpu.iterations == PROFILES["gpu"].iterations
