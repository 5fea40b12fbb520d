"""`make assets` in miniature: everything is trained from nothing, is loadable, is kept, and provides for a second task."""
import json

import numpy as np
import pytest
import torch

from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.errors import UserError
from wmpo_lite.policy import Policy
from wmpo_lite.pretrain import install_assets, make_assets, shorter, AssetSettings
from wmpo_lite.workspace import ASSETS
from wmpo_lite.world_model import Autoencoder, WorldModel

NAMES = ("autoencoder", "policy", "world_model", "reward")


@pytest.fixture(scope="module", params=["place", "square"])
def made(request, tmp_path_factory):
    """`place` from nothing, `square` from the shipped weights of `place`."""
    folder, start = tmp_path_factory.mktemp(request.param), ASSETS / "place" if request.param == "square" else None
    return request.param, folder, make_assets(request.param, folder, profile="smoke", start=start)


def test_everything_is_made_with_its_provenance_and_kept(made):
    task, folder, home = made
    for name in NAMES:
        note = json.loads((home / name / "provenance.json").read_text())
        assert note["task"] == task and note["play_frames"] == 16 * (get_task(task).horizon + 1) and "versions" in note
    note = json.loads((home / "world_model" / "provenance.json").read_text())
    tries = [np.load(path) for path in sorted(home.glob("tries_*"))]
    assert sum(len(shard["actions"]) for shard in tries) == 128 and note["tries_that_came_to_the_goal"] == sum(shard["goal"].sum() for shard in tries)
    practice = [np.load(path) for path in sorted(home.glob("practice_*"))]
    assert 0 < sum(len(shard["actions"]) for shard in practice) <= 128 and not any(shard["goal"].any() for shard in practice)
    stamps = {name: (home / name / "model.safetensors").stat().st_mtime_ns for name in NAMES}
    make_assets(task, folder, profile="smoke", start=ASSETS / "place" if task == "square" else None)  # nothing is trained twice
    assert stamps == {name: (home / name / "model.safetensors").stat().st_mtime_ns for name in NAMES}


def test_a_start_from_another_task_begins_with_its_weights(made):
    """After two steps a model that began with trained weights is still next to them; one that began with nothing is not."""
    task, _, home = made
    anew = ("draft.mover.hand", "draft.mover.follow_command", "draft.mover.lag")  # `with_controller`
    for name, kind in (("policy", Policy), ("world_model", WorldModel)):
        shipped, found = (dict(kind.load(where / name).named_parameters()) for where in (ASSETS / "place", home))
        gap = sum(float((shipped[key] - value).detach().square().sum()) for key, value in found.items() if not key.startswith(anew))
        size = sum(float(value.detach().square().sum()) for value in shipped.values())
        assert (gap < 0.01 * size) == (task == "square"), (name, gap / size)


def test_fewer_steps_from_another_task():
    full = AssetSettings()
    less = shorter(full, 0.5)
    assert less.paint_steps == full.paint_steps // 2 and less.clone_steps == full.clone_steps and less.play == full.play


def test_a_start_without_weights_is_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(UserError, match="no trained assets to start from"):
        make_assets("square", tmp_path / "new", profile="smoke", start=tmp_path)
    assert not (tmp_path / "new").exists()


def test_attempts_are_kept_when_they_failed(made):
    _, _, home = made
    shards = [np.load(path) for path in home.glob("attempts_*.npz")]
    kept = sum(len(shard["done"]) for shard in shards)
    assert 0 < kept < 64 * len(shards) and not any(shard["done"].any() for shard in shards)


def test_the_made_world_imagines_the_made_pictures(made):
    _, _, home = made
    autoencoder, world = Autoencoder.load(home / "autoencoder"), WorldModel.load(home / "world_model")
    frames = np.load(sorted(home.glob("play_*.npz"))[0])["frames"][:2, :4]
    latents = autoencoder.encode_uint8(torch.from_numpy(frames))
    assert abs(float(latents.mean())) < 0.5 and 0.5 < float(latents.std()) < 2
    future = world.imagine(latents, torch.zeros(2, 8, 4), torch.Generator().manual_seed(0))
    assert future.shape == (2, 8, *latents.shape[2:]) and future.isfinite().all()


def test_installed_weights_are_half_precision_and_load(made, tmp_path):
    _, _, home = made
    install_assets(home, tmp_path)
    for name in NAMES:
        assert (tmp_path / name / "model.safetensors").stat().st_size < 0.6 * (home / name / "model.safetensors").stat().st_size
    one, two = WorldModel.load(home / "world_model"), WorldModel.load(tmp_path / "world_model")
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.allclose(a, b, atol=2e-3, rtol=2e-3)
