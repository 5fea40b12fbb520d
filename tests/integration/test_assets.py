"""`make assets` in miniature: trained from nothing, loadable, kept, installed in half precision."""

import json

import numpy as np
import pytest
import torch

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.common.checkpoint import fingerprint, load_tensors
from wmpo_lite.common.errors import UserError
from wmpo_lite.policy import Policy
from wmpo_lite.recipes.pretrain import HELD_OUT, PRETRAINING, install_assets, make_assets
from wmpo_lite.recipes.shipped import Shipped
from wmpo_lite.trajectory import load_trajectories
from wmpo_lite.world_model import WorldModel

pytestmark = pytest.mark.integration
SHARED = {"autoencoder": Autoencoder, "world_model": WorldModel}
POLICIES = ("place", "square")
FOLDERS = [f"tabletop/{name}" for name in SHARED] + [f"{task}/policy" for task in POLICIES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets"), profile="smoke")


def test_everything_is_made_with_its_provenance_and_kept(made):
    config = PRETRAINING["smoke"]
    for folder in FOLDERS:
        note = json.loads((made / folder / "provenance.json").read_text())
        assert note["seed"] == 0 and np.isfinite(note["final"]["loss"]) and "versions" in note
        if folder.startswith("tabletop"):
            assert note["play_episodes"] == 96 and note["play_frames"] == 96 * 49
            assert note["settings"]["world_model_steps"] == config.world_model_steps
        else:
            assert note["task"] == folder.split("/")[0] and note["reach_median_mm"] > 0
    stamps = lambda: {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    before = stamps()
    make_assets(made, profile="smoke")  # nothing is recorded or trained twice
    assert stamps() == before


def test_the_world_model_was_given_latents_and_actions_of_play_and_nothing_else(made):
    """And none of the first shards, which are held out."""
    shards = sorted((made / "work" / "play").iterdir())
    assert len(shards) == 3 and HELD_OUT == 2
    for path in shards:
        with np.load(path) as shard:
            assert set(shard.files) == {"frames", "actions"} and shard["frames"].shape == (
                32,
                49,
                64,
                64,
                3,
            )
    caches = sorted(path for path in (made / "work" / "latents").rglob("*") if path.is_file())
    assert [path.stem for path in caches] == [shards[2].stem]
    assert set(load_tensors(caches[0])) == {"latents", "actions"}
    autoencoder = Autoencoder.load(made / "tabletop" / "autoencoder")
    assert caches[0].parent.name == fingerprint(autoencoder)


def test_square_began_with_the_policy_of_place(made):
    """After a few steps it is still next to it; a policy that began with nothing is not."""
    torch.manual_seed(1)
    start, square = (Policy.load(made / task / "policy").state_dict() for task in POLICIES)
    size = sum(float(value.square().sum()) for value in start.values())

    def gap(found):
        return (
            sum(float((found[key] - value).square().sum()) for key, value in start.items()) / size
        )

    assert 0 < gap(square) < 0.02 < 0.2 < gap(Policy().state_dict())


def test_the_demonstrations_are_shipped_with_the_policy(made):
    for task, noun in zip(POLICIES, ("cube", "nut")):
        demos = load_trajectories(made / task / "demos.hdf5")
        assert len(demos) == 8 and all(
            t.success and t.split == "demos" and noun in t.instruction for t in demos
        )
        assert all(t.frames.shape[1:] == (64, 64, 3) and 1 < t.finish_step <= len(t) for t in demos)


def test_the_made_world_imagines_the_made_pictures(made):
    autoencoder, world = (
        SHARED[name].load(made / "tabletop" / name) for name in ("autoencoder", "world_model")
    )
    with np.load(sorted((made / "work" / "play").iterdir())[0]) as shard:
        frames = torch.from_numpy(shard["frames"][:2, :4])
    latents = autoencoder.encode_uint8(frames)
    assert abs(float(latents.mean())) < 0.5 and 0.5 < float(latents.std()) < 2
    future, _ = world.next_frames(
        world.init_state(latents[:, 0]), torch.zeros(2, 8, 4), torch.Generator().manual_seed(0)
    )
    assert future.shape == (2, 8, *latents.shape[2:]) and future.isfinite().all()


def test_installed_weights_are_half_precision_and_load(made, tmp_path):
    install_assets(made, tmp_path)
    for folder in FOLDERS:
        sizes = [(root / folder / "model.safetensors").stat().st_size for root in (tmp_path, made)]
        assert sizes[0] < 0.6 * sizes[1]
    for task in POLICIES:
        assert (tmp_path / task / "demos.hdf5").read_bytes() == (
            made / task / "demos.hdf5"
        ).read_bytes()
        assert Shipped(task, tmp_path).policy().config == Policy.load(made / task / "policy").config
    assert not (tmp_path / "work").exists()  # no recordings, no checkpoints
    for name, kind in SHARED.items():
        one, two = (kind.load(root / "tabletop" / name) for root in (made, tmp_path))
        assert fingerprint(one) == fingerprint(two)
        for a, b in zip(one.parameters(), two.parameters()):
            assert torch.allclose(a, b, atol=2e-3, rtol=2e-3)


def test_an_unknown_profile_is_refused_before_anything_is_recorded(tmp_path):
    with pytest.raises(UserError, match="profile 'huge' is unknown; use one of laptop, gpu, smoke"):
        make_assets(tmp_path / "new", profile="huge")
    assert not (tmp_path / "new").exists()
