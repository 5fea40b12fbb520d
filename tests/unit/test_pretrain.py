"""What the policy learns before it is cloned, grasping and moving where words and a still picture say; and what of the trained is shipped."""
import numpy as np
import pytest
import torch

import tiny
from wmpo_lite import checkpoint, pretrain_policy
from wmpo_lite.envs.tabletop.env import MAX_STEP, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import TRAVEL, plan_grasp, plan_hover
from wmpo_lite.envs.tabletop.scenes import random_scenes
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.errors import UserError
from wmpo_lite.recipes.pretrain import demonstration_trajectories, install_assets, make_assets
from wmpo_lite.train import FitConfig
from wmpo_lite.world_model import WorldModel


def test_a_planned_grasp_lifts_the_cube_in_the_simulator():
    task = get_task("place")
    env, states = TabletopEnv(task, threads=1), initial_states(task, "pretraining", np.arange(16))
    env.reset(states)
    actions = plan_grasp(env.tip, task.named_cube(env), 16)
    assert np.abs(actions).max() <= 1 and (actions[:, 0, 3] == -1).all() and (actions[:, -1, 3] == 1).all()
    env.step_chunk(actions, every_frame=False)
    assert (task.named_cube(env)[:, 2] > 0.05).mean() > 0.8  # planned on the first picture alone, carried out blindly
    env.close()


def test_a_planned_hover_ends_above_the_point_with_an_open_gripper():
    rng = np.random.default_rng(0)
    tip, point = rng.uniform(-0.1, 0.1, (20, 3)), rng.uniform(-0.1, 0.1, (20, 3))
    actions = plan_hover(tip, point, 12)
    end = tip + MAX_STEP * actions[..., :3].sum(axis=1)
    assert np.allclose(end[:, :2], point[:, :2]) and np.allclose(end[:, 2], TRAVEL) and (actions[..., 3] == -1).all() and np.abs(actions).max() <= 1


def test_reach_teaches_the_decoder_and_leaves_the_tower_alone(monkeypatch):
    monkeypatch.setattr(pretrain_policy, "HELD_OUT_SCENES", 8)
    task, asked = get_task("place"), []
    scenes, policy = random_scenes(task, 40, 0, size=tiny.SIZE), tiny.policy(contrast=1.0)
    log_probs = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda frames, texts, *rest, **more: asked.extend(texts) or log_probs(frames, texts, *rest, **more))
    tower = [p.clone() for p in policy.vision.parameters()]
    records, errors = pretrain_policy.reach(policy, scenes, task, FitConfig(steps=60, lr=3e-3, warmup=5, decay=0.3), seed=0, folder=None, batch=16)
    assert all(torch.equal(a, b) for a, b in zip(tower, policy.vision.parameters()))
    assert records[-1]["loss"] < np.log(7) * 0.7  # seven bins
    assert 0 <= errors["reach_median_mm"] <= errors["reach_p80_mm"] < 200
    said = set(asked)
    assert "move to the plate" in said and said <= {"move to the plate", *(f"pick up the {c} cube" for c in ("red", "green", "blue"))}
    assert 0.1 < np.mean([text == "move to the plate" for text in asked]) < 0.3


def test_demonstrations_become_trajectories_of_executed_actions():
    """`finish_step` counts from 1: done is true from the step that led to the first successful frame on."""
    done = np.arange(6) >= np.array([[2], [5]])
    data = {"frames": tiny.noise_frames(2, 7), "executed": tiny.random_actions(2, 6, 4), "intended": np.zeros((2, 6, 4)), "done": done,
            "instruction": np.array([tiny.RED, tiny.BLUE])}
    one, two = demonstration_trajectories(data)
    assert (one.finish_step, two.finish_step) == (3, 6) and one.success and two.success
    assert (one.instruction, two.instruction, one.split, two.index) == (tiny.RED, tiny.BLUE, "demos", 1)
    assert np.array_equal(two.frames, data["frames"][1]) and np.array_equal(two.actions, data["executed"][1])


def test_what_is_installed_is_half_as_large_and_nothing_is_left_out(tmp_path):
    made, installed = tiny.assets(tmp_path / "made"), tmp_path / "installed"
    checkpoint.write_json(made / "work" / "fit" / "progress.json", {})
    install_assets(made, installed)
    names = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "work" not in path.parts)  # noqa: E731
    assert names(installed) == names(made) and not (installed / "work").exists()
    for name in names(made):
        old, new = made / name, installed / name
        if old.suffix != ".safetensors":
            assert new.read_bytes() == old.read_bytes()
            continue
        weights, halves = checkpoint.load_tensors(old), checkpoint.load_tensors(new)
        assert weights.keys() == halves.keys() and {value.dtype for value in halves.values()} == {torch.float16}
        assert all(torch.equal(value.half(), halves[key]) for key, value in weights.items())
    again = WorldModel.load(installed / "tabletop" / "world_model")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert checkpoint.fingerprint(again) == checkpoint.fingerprint(tiny.world_model())


def test_an_unknown_size_of_pre_training_is_named(tmp_path):
    with pytest.raises(UserError, match="profile 'huge' is unknown; use one of laptop, gpu, smoke"):
        make_assets(tmp_path / "new", profile="huge")
    assert not (tmp_path / "new").exists()
