"""What the policy learns before it is cloned, grasping and moving where words and a still picture
say; and what of the trained is shipped.
"""

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.autoencoder import Autoencoder, AutoencoderConfig
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS
from wmpo_lite.common.origin import claim
from wmpo_lite.envs.tabletop.env import MAX_STEP, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import TRAVEL, plan_grasp, plan_hover
from wmpo_lite.envs.tabletop.scenes import random_scenes
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.recipes import pretrain, pretrain_policy
from wmpo_lite.recipes.pretrain import (
    PolicyConfig,
    PretrainConfig,
    demonstration_trajectories,
    install_assets,
    make_assets,
    make_policy,
    make_shared,
)
from wmpo_lite.reward import RewardConfig, sample_clips
from wmpo_lite.train import FitConfig
from wmpo_lite.trajectory import save_trajectories
from wmpo_lite.world_model import WorldModel


def test_a_planned_grasp_lifts_the_cube_in_the_simulator():
    task = get_task("place")
    env, states = TabletopEnv(task, threads=1), initial_states(task, "pretraining", np.arange(16))
    env.reset(states)
    actions = plan_grasp(env.tip, task.named_cube(env), 16)
    assert (
        np.abs(actions).max() <= 1
        and (actions[:, 0, 3] == -1).all()
        and (actions[:, -1, 3] == 1).all()
    )
    env.step_chunk(actions, every_frame=False)
    assert (
        task.named_cube(env)[:, 2] > 0.05
    ).mean() > 0.8  # planned on the first picture alone, carried out blindly
    env.close()


def test_a_planned_hover_ends_above_the_point_with_an_open_gripper():
    rng = np.random.default_rng(0)
    tip, point = rng.uniform(-0.1, 0.1, (20, 3)), rng.uniform(-0.1, 0.1, (20, 3))
    actions = plan_hover(tip, point, 12)
    end = tip + MAX_STEP * actions[..., :3].sum(axis=1)
    assert (
        np.allclose(end[:, :2], point[:, :2])
        and np.allclose(end[:, 2], TRAVEL)
        and (actions[..., 3] == -1).all()
        and np.abs(actions).max() <= 1
    )


def test_reach_teaches_the_decoder_and_leaves_the_tower_alone(monkeypatch):
    monkeypatch.setattr(pretrain_policy, "HELD_OUT_SCENES", 8)
    task, asked = get_task("place"), []
    scenes, policy = random_scenes(task, 40, 0, size=tiny.SIZE), tiny.policy(contrast=1.0)
    log_probs = policy.log_probs
    monkeypatch.setattr(
        policy,
        "log_probs",
        lambda frames, texts, *rest, **more: (
            asked.extend(texts) or log_probs(frames, texts, *rest, **more)
        ),
    )
    tower = [p.clone() for p in policy.vision.parameters()]
    records, errors = pretrain_policy.reach(
        policy,
        scenes,
        task,
        FitConfig(steps=60, lr=3e-3, warmup=5, decay=0.3),
        seed=0,
        folder=None,
        batch=16,
    )
    assert all(torch.equal(a, b) for a, b in zip(tower, policy.vision.parameters()))
    assert records[-1]["loss"] < np.log(7) * 0.7  # seven bins
    assert 0 <= errors["reach_median_mm"] <= errors["reach_p80_mm"] < 200
    said = set(asked)
    assert "move to the plate" in said and said <= {
        "move to the plate",
        *(f"pick up the {c} cube" for c in ("red", "green", "blue")),
    }
    assert 0.1 < np.mean([text == "move to the plate" for text in asked]) < 0.3


def test_a_model_begins_with_anothers_weights_as_far_as_they_fit(tmp_path):
    """The world model of another arm reads other actions; everything else is the same."""
    other, model = tiny.world_model(), tiny.world_model(action_dim=7)
    other.save(tmp_path / "world_model")
    pretrain._begin_with(model, None, "world_model")  # with nothing: as it was drawn
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pretrain._begin_with(model, tmp_path, "world_model")
    found, there = model.state_dict(), other.state_dict()
    fits = {name for name in found if found[name].shape == there[name].shape}
    assert 0 < len(found) - len(fits) < 3 and len(fits) > 10
    assert all(torch.equal(found[name], there[name]) for name in fits)
    assert all(torch.equal(found[name], before[name]) for name in set(found) - fits)


def test_demonstrations_become_trajectories_of_executed_actions():
    """`finish_step` counts from 1: done is true from the step that led to the first successful
    frame on.
    """
    done = np.arange(6) >= np.array([[2], [5]])
    data = {
        "frames": tiny.noise_frames(2, 7),
        "executed": tiny.random_actions(2, 6, 4),
        "intended": np.zeros((2, 6, 4)),
        "done": done,
        "instruction": np.array([tiny.RED, tiny.BLUE]),
    }
    one, two = demonstration_trajectories(data)
    assert (one.finish_step, two.finish_step) == (3, 6) and one.success and two.success
    assert (one.instruction, two.instruction, one.split, two.index) == (
        tiny.RED,
        tiny.BLUE,
        "demos",
        1,
    )
    assert np.array_equal(two.frames, data["frames"][1]) and np.array_equal(
        two.actions, data["executed"][1]
    )


def test_a_demonstration_that_never_succeeds_is_a_failure_of_whole_length():
    done = np.zeros((3, 6), bool)
    done[1, 3:], done[2, 0:] = True, True
    data = {
        "frames": tiny.noise_frames(3, 7),
        "executed": tiny.random_actions(3, 6, 4),
        "done": done,
        "instruction": np.array([tiny.RED] * 3),
    }
    found = demonstration_trajectories(data)
    assert [(t.success, t.finish_step) for t in found] == [(False, 6), (True, 4), (True, 1)]
    clips = RewardConfig(image=tiny.SIZE, clip=2)
    episodes = {
        "frames": data["frames"],
        "success": [t.success for t in found],
        "finish_step": [t.finish_step for t in found],
        "instruction": data["instruction"],
        "other": [""] * 3,
    }
    positives, _, _ = sample_clips(episodes, clips, np.random.default_rng(0), half=40, after=0)
    shown = {
        int(
            np.flatnonzero(
                [
                    (f[:1] == clip[0].numpy()).all()
                    for f in data["frames"][:, 0:6].reshape(-1, 1, 16, 16, 3)
                ]
            )[0]
        )
        // 6
        for clip in positives[:40]
    }
    assert shown == {1, 2}  # no positive clip of the failure


@pytest.mark.parametrize("succeeds, farthest", [(False, 12), (True, 8)])
def test_cloning_reads_a_demonstration_to_its_end_or_to_shortly_after_success(
    monkeypatch, succeeds, farthest
):
    """Actions tell the frame at which a chunk begins."""
    done = np.zeros((2, 12), bool)
    done[:, 3:] = succeeds
    intended = np.tile(np.linspace(-1, 1, 12, dtype=np.float32)[:, None], (2, 1, tiny.ACTIONS))
    demos = {
        "frames": tiny.noise_frames(2, 13),
        "executed": intended,
        "intended": intended,
        "done": done,
        "instruction": np.array([tiny.RED, tiny.BLUE]),
    }
    begun, cloning_loss = set(), pretrain_policy.cloning_loss
    monkeypatch.setattr(
        pretrain_policy,
        "cloning_loss",
        lambda policy, frames, texts, actions, *rest: (
            begun.update(actions[:, 0, 0].tolist())
            or cloning_loss(policy, frames, texts, actions, *rest)
        ),
    )
    pretrain_policy.clone(
        tiny.policy(), demos, FitConfig(steps=4, lr=1e-3), seed=0, folder=None, batch=64
    )
    assert begun == set(intended[0, :farthest, 0].tolist())


def test_what_is_installed_is_half_as_large_and_nothing_is_left_out(tmp_path):
    made, installed = tiny.assets(tmp_path / "made"), tmp_path / "installed"
    checkpoint.write_json(made / "work" / "fit" / "progress.json", {})
    install_assets(made, installed)
    names = lambda folder: sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "work" not in path.parts
    )
    assert names(installed) == names(made) and not (installed / "work").exists()
    for name in names(made):
        old, new = made / name, installed / name
        if old.suffix != ".safetensors":
            assert new.read_bytes() == old.read_bytes()
            continue
        weights, halves = checkpoint.load_tensors(old), checkpoint.load_tensors(new)
        assert weights.keys() == halves.keys() and {value.dtype for value in halves.values()} == {
            torch.float16
        }
        assert all(torch.equal(value.half(), halves[key]) for key, value in weights.items())
    again = WorldModel.load(installed / "tabletop" / "world_model")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert checkpoint.fingerprint(again) == checkpoint.fingerprint(tiny.world_model())


def test_an_unknown_size_of_pre_training_is_named(tmp_path):
    with pytest.raises(UserError, match="profile 'huge' is unknown; use one of laptop, gpu, smoke"):
        make_assets(tmp_path / "new", profile="huge")
    assert not (tmp_path / "new").exists()


def test_one_task_alone_is_made_and_installed_and_the_rest_is_left_as_it_is(tmp_path, monkeypatch):
    """A new task needs no new world model."""
    made, installed = tiny.assets(tmp_path / "made"), tmp_path / "installed"
    asked = []
    monkeypatch.setattr(pretrain, "make_policy", lambda task, *_, **__: asked.append(task))
    monkeypatch.setattr(pretrain, "make_shared", lambda *_, **__: asked.append("shared"))
    with pytest.raises(UserError, match="--only is 'juggle'; expected one of place, square"):
        make_assets(made, profile="smoke", only="juggle")
    make_assets(made, profile="smoke", only="square")
    assert asked == ["square"]
    install_assets(made, installed, "place")
    assert [path.name for path in installed.iterdir()] == ["place"]
    assert (installed / "place" / "policy" / "actions.json").exists()


def test_a_policy_begins_with_one_of_the_folder_or_a_shipped_one(tmp_path):
    assert pretrain._start(tmp_path, "place") == ASSETS / "place" / "policy"
    (tmp_path / "place" / "policy").mkdir(parents=True)
    assert pretrain._start(tmp_path, "place") == tmp_path / "place" / "policy"


# -- what lies on disk is taken for what was asked for, or it is not -------------------------------


SMALL = PolicyConfig(
    scene_shards=1,
    demos=1,
    shipped_demos=1,
    vision_steps=1,
    ground_steps=1,
    reach_steps=1,
    clone_steps=1,
)


def finished(folder, seed=0, config=SMALL):
    """A folder in which the policy of "place" is complete, as `make_policy` leaves it."""
    provenance = {"task": "place", "seed": seed, "settings": dataclasses.asdict(config)}
    tiny.policy().save(folder / "place" / "policy", provenance)
    save_trajectories(
        folder / "place" / "demos.hdf5",
        tiny.trajectories(1),
        env_args={},
        provenance={"of": config.demos, "noise": config.noise, "burst": config.burst},
    )
    return folder


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_policy_is_kept_for_the_same_question_and_refused_for_another(tmp_path):
    folder = finished(tmp_path)
    before = files(folder)
    make_policy("place", folder, SMALL, seed=0)
    for seed, config, what in (
        (1, SMALL, "seed: 0 there, 1 here"),
        (0, dataclasses.replace(SMALL, hover=0.5), r"settings.hover: 0.2 there, 0.5 here"),
        (0, dataclasses.replace(SMALL, demos=9), "demos.hdf5 .*of: 1 there, 9 here"),
        (0, dataclasses.replace(SMALL, clone_steps=9), "settings.clone_steps"),
    ):
        with pytest.raises(UserError, match=f"{what}.*move it away"):
            make_policy("place", folder, config, seed=seed)
    assert files(folder) == before


def test_a_policy_that_began_with_another_one_is_refused(tmp_path):
    folder, config = finished(tmp_path), dataclasses.replace(SMALL, start="place")
    provenance = {
        "task": "square",
        "seed": 0,
        "settings": dataclasses.asdict(config),
        "inputs": {"start": checkpoint.fingerprint(tiny.policy())},
    }
    tiny.policy().save(folder / "square" / "policy", provenance)
    save_trajectories(
        folder / "square" / "demos.hdf5",
        tiny.trajectories(1),
        env_args={},
        provenance={"of": 1, "noise": 0.8, "burst": 0.1},
    )
    make_policy("square", folder, config, seed=0)
    tiny.policy(contrast=3.0).save(
        folder / "place" / "policy",
        checkpoint.read_json(folder / "place" / "policy" / "provenance.json"),
    )
    with pytest.raises(UserError, match="square.*inputs.start"):
        make_policy("square", folder, config, seed=0)


def test_an_unfinished_training_of_another_seed_is_refused(tmp_path):
    work = tmp_path / "work" / "place"
    asked = {"task": "place", "seed": 0, "settings": dataclasses.asdict(SMALL)}
    claim(work / "made_from.json", asked, begun=False)
    claim(work / "made_from.json", asked, begun=True)  # the same again
    with pytest.raises(
        UserError, match="made_from.json was made from something else .*seed: 0 there, 3 here"
    ):
        make_policy("place", tmp_path, SMALL, seed=3)
    (work / "made_from.json").unlink()
    checkpoint.write_json(work / "fit_vision" / "progress.json", {})
    with pytest.raises(UserError, match="made_from.json does not say what it was made from"):
        make_policy("place", tmp_path, SMALL, seed=0)
    assert sorted(path.name for path in files(tmp_path)) == ["progress.json"]


def test_autoencoder_and_world_model_of_other_settings_are_refused(tmp_path, monkeypatch):
    """The settings that they depend on count, and the weights that they were made with; others do
    not.
    """
    config = PretrainConfig(
        play_shards=0, autoencoder_shards=1, autoencoder_steps=1, world_model_steps=1, policies={}
    )
    folder, settings = finished(tmp_path), checkpoint.plain(dataclasses.asdict(config))
    tower = {"tower": checkpoint.fingerprint(tiny.policy().vision)}
    latent = {"autoencoder": checkpoint.fingerprint(tiny.autoencoder())}
    tiny.autoencoder().save(
        folder / "tabletop" / "autoencoder", {"seed": 0, "settings": settings, "inputs": tower}
    )
    tiny.world_model().save(
        folder / "tabletop" / "world_model", {"seed": 0, "settings": settings, "inputs": latent}
    )
    make_shared(folder, config, seed=0)
    make_shared(folder, dataclasses.replace(config, policies={"place": SMALL}), seed=0)
    for changes, seed, what in (
        ({}, 2, "autoencoder/provenance.json.*seed: 0 there, 2 here"),
        ({"autoencoder_steps": 2}, 0, "autoencoder/provenance.json.*autoencoder_steps"),
        (
            {"world_model_lr": 0.5},
            0,
            "world_model/provenance.json.*world_model_lr: 0.001 there, 0.5 here",
        ),
        (
            {"windows": dataclasses.replace(config.windows, batch=3)},
            0,
            "world_model.*windows.batch",
        ),
    ):
        with pytest.raises(UserError, match=what):
            make_shared(folder, dataclasses.replace(config, **changes), seed=seed)
    tiny.autoencoder(channels=(8,)).save(
        folder / "tabletop" / "autoencoder", {"seed": 0, "settings": settings, "inputs": tower}
    )
    with pytest.raises(UserError, match="world_model/provenance.json.*inputs.autoencoder"):
        make_shared(folder, config, seed=0)


def test_play_as_pixels_is_kept_as_pictures_until_it_is_wanted(tmp_path):
    for shard in range(2):
        frames = tiny.noise_frames(2, 4, seed=shard)
        np.savez(tmp_path / f"{shard}.npz", frames=frames, actions=tiny.random_actions(2, 3, 4))
    pixels = Autoencoder(AutoencoderConfig(kind="pixels", size=16, fold=4, latent_channels=48))
    paths = sorted(tmp_path.glob("*.npz"))
    episodes = pretrain.play_episodes(pixels, paths, tmp_path / "latents")
    assert episodes.latents.dtype == torch.uint8 and len(episodes) == 4
    assert torch.equal(episodes.at(3, 2), pixels.encode_uint8(episodes.latents[3, 2]))
    assert not (tmp_path / "latents").exists()
