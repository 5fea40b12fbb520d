"""The shipped run: its models are those that the run ended with, its figures belong to them."""
import numpy as np
import pytest
import torch

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.shipped import FILES, POLICIES, Shipped, ship_run
from wmpo_lite.workspace import ASSETS, initial_frames


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


@pytest.mark.parametrize("make, message", [
    (lambda folder: Shipped("square", folder), "no trained assets for task 'square'"),
    (lambda folder: Shipped("place").policy("ppo"), "policy 'ppo' is unknown"),
    (lambda folder: ship_run(folder), "not a finished run"),
])
def test_bad_input_gets_one_sentence(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_run_of_other_weights_is_not_shipped(tmp_path):
    run = ASSETS / "place" / "run"
    for name in FILES:
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = checkpoint.read_json(tmp_path / "config.json")
    config["assets"]["policy"] = "0" * 12
    checkpoint.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match="began with other weights"):
        ship_run(tmp_path)


def test_a_missing_run_is_named(tmp_path):
    (tmp_path / "place" / "policy").mkdir(parents=True)
    with pytest.raises(UserError, match="wmpo-lite ship"):
        Shipped("place", tmp_path).rollouts()
