"""The shipped run: its models are those that the run ended with, its figures belong to them."""
import numpy as np
import pytest
import torch

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.shipped import FILES, POLICIES, Shipped, ship_run
from wmpo_lite.workspace import ASSETS, initial_frames, starts_of_imagination


@pytest.fixture(scope="module")
def shipped():
    return Shipped("place")


def test_the_run_has_its_rollouts_and_figures(shipped):
    rollouts, result = shipped.rollouts(), shipped.read("result")
    assert len(rollouts) == result["rollout_budget"] == 128 and {t.split for t in rollouts} == {"rollouts"}
    evaluation = shipped.read("evaluation")
    for name in ("base", *POLICIES):
        assert np.mean(evaluation["policies"][name]["success"]) == pytest.approx(result[f"{name}_success"])
    assert result["wmpo_success"] > result["base_success"]
    assert {record["stage"] for record in shipped.metrics()} >= {"align", "wmpo", "grpo", "dpo"}
    assert shipped.read("config")["assets"] == {name: checkpoint.checksum(ASSETS / "place" / name / "model.safetensors")[:12]
                                                for name in ("autoencoder", "policy", "world_model", "reward")}


def test_every_policy_differs_and_only_where_it_was_trained(shipped):
    base = shipped.policy().state_dict()
    for name in POLICIES:
        changed = {key for key, value in shipped.policy(name).state_dict().items() if not torch.equal(value, base[key])}
        assert changed and not any(key.startswith("vision.") for key in changed)


def test_alignment_touched_the_transformer_alone(shipped):
    before, after = (shipped.world_model(aligned=aligned).state_dict() for aligned in (False, True))
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and not any(key.startswith("draft.") for key in changed)


def test_the_shipped_imagination_tells_successes_from_failures(shipped):
    """On 16 successes and 16 failures of the P rollouts; chance is 0.5, the trust panel's AUC on fresh ones is above 0.9."""
    from wmpo_lite.evaluate import agreement
    from wmpo_lite.rollout import replay
    rollouts = shipped.rollouts()
    chosen = [t for t in rollouts if t.success][:16] + [t for t in rollouts if not t.success][:16]
    env = shipped.imagined_env(stop=False)
    replay(env, chosen, initial_frames(chosen), every_frame=False)
    assert agreement(np.array([t.success for t in chosen]), env.scores, env.threshold).auc > 0.75


def test_imagination_starts_from_the_shipped_rollouts_as_in_a_run(shipped):
    """Of every recorded first frame twice, under either sentence; and the shipped imagination takes them, doubt and all."""
    rollouts, starts = shipped.rollouts(), starts_of_imagination(shipped)
    assert len(starts) == 2 * len(rollouts) and starts.instructions[:128] == tuple(t.instruction for t in rollouts)
    assert (starts.frames[128:] == starts.frames[:128]).all()
    assert all(own != other for own, other in zip(starts.instructions[:128], starts.instructions[128:]))
    env, pair = shipped.imagined_env(seed=1, doubt=0.005), starts[np.array([0, 128])]
    assert (env.reset(pair) == rollouts[0].frames[0]).all() and env.instructions == list(pair.instructions)
    frames, done, _ = env.step_chunk(np.zeros((2, 8, env.action_dim), np.float32))
    assert frames.shape == (2, 8, *rollouts[0].frames.shape[1:]) and done.shape == (2, 8)


CHANGED = {"world_model": "blocks.0.down.bias", **dict.fromkeys(POLICIES, "head")}


@pytest.fixture
def finished(tmp_path):
    """(run, assets): a finished run with thresholds and sampling of its own, each of its models the shipped one with one tensor moved by 0.1."""
    home, run = tmp_path / "assets" / "place", tmp_path / "run"
    home.mkdir(parents=True), run.mkdir()
    for name in ("autoencoder", "policy", "world_model", "reward"):
        (home / name).symlink_to(ASSETS / "place" / name)
    for name in FILES:
        (run / name).write_bytes((ASSETS / "place" / "run" / name).read_bytes())
    checkpoint.write_json(run / "config.json", checkpoint.read_json(run / "config.json") | {"sample_steps": 3, "judge_stride": 4})
    checkpoint.write_json(run / "stages" / "reward.json", {"result": {"threshold": 0.25, "imagined_threshold": 0.75}})
    for name, key in CHANGED.items():
        weights = checkpoint.load_tensors(home / ("world_model" if name == "world_model" else "policy") / "model.safetensors")
        weights = {k: v.float() + 0.1 * (k == key) for k, v in weights.items()}  # a run trains in single precision
        checkpoint.save_tensors(run / ("" if name == "world_model" else "policies") / name / "model.safetensors", weights)
    return run, tmp_path / "assets"


def test_shipping_a_run_keeps_what_it_changed_and_nothing_else(finished, shipped):
    run, assets = finished
    target, ours = ship_run(run, assets), Shipped("place", assets)
    assert target == assets / "place" / "run"
    for name, key in CHANGED.items():
        assert set(checkpoint.load_tensors(target / f"{name}.safetensors")) == {key}
        new, old = ((s.world_model(aligned=s is ours) if name == "world_model" else s.policy(name if s is ours else "base")) for s in (ours, shipped))
        assert torch.allclose(new.state_dict()[key], old.state_dict()[key] + 0.1, atol=2e-3)
    env = ours.imagined_env(doubt=0.01)
    assert (env.threshold, float(env.reward_model.threshold), env.steps, env.stride, env.doubt) == (0.75, 0.25, 3, 4, 0.01)
    assert ours.imagined_env(threshold=0.6, stride=1).threshold == 0.6 and len(ours.rollouts()) == 128 and ours.metrics() == shipped.metrics()
    assert ship_run(run, assets, rollouts=5) == target  # again: nothing in the way
    few, all_of_them = ours.rollouts(), shipped.rollouts()
    assert len(few) == 5 and all((a.frames == b.frames).all() and a.success == b.success for a, b in zip(few, all_of_them))


@pytest.mark.parametrize("make, message", [
    (lambda folder: Shipped("square", folder), "no trained assets for task 'square'"),
    (lambda folder: Shipped("place").policy("ppo"), "policy 'ppo' is unknown"),
    (lambda folder: ship_run(folder), "not a finished run"),
])
def test_bad_input_gets_one_sentence(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_run_of_other_weights_is_not_shipped(finished, tmp_path):
    run, assets = finished
    with pytest.raises(UserError, match="began with other weights"):
        ship_run(run, tmp_path / "elsewhere")  # where there are none at all
    config = checkpoint.read_json(run / "config.json")
    config["assets"]["policy"] = "0" * 12
    checkpoint.write_json(run / "config.json", config)
    with pytest.raises(UserError, match="began with other weights"):
        ship_run(run, assets)
    assert not (assets / "place" / "run").exists()


def test_a_missing_run_is_named(tmp_path):
    (tmp_path / "place" / "policy").mkdir(parents=True)
    with pytest.raises(UserError, match="wmpo-lite ship"):
        Shipped("place", tmp_path).rollouts()


@pytest.mark.parametrize("task", ["place", pytest.param("libero_object/0", marks=pytest.mark.libero)])
def test_the_shipped_policies_fit_the_shipped_imagination(task):
    if "/" in task:
        pytest.importorskip("libero.libero", reason="needs the extra: pip install 'wmpo_lite[libero]'")
    shipped = Shipped(task)
    for name in ("base", "wmpo"):
        shipped.policy(name).check_environment(shipped.imagined_env())
