"""The shipped run: its models are those that the run ended with, its figures belong to them."""

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.recipes.shipped import FILES, POLICIES, Shipped, ship_run
from wmpo_lite.recipes.workspace import ASSETS, initial_frames
from wmpo_lite.trajectory import save_trajectories

SHARED = ("autoencoder", "world_model")


# --------------------------------------------------------------------------------------------------
# what is in assets/


@pytest.fixture(scope="module")
def shipped():
    return Shipped("place")


def test_the_run_has_its_rollouts_and_figures(shipped):
    rollouts, result = shipped.rollouts(), shipped.read("result")
    assert len(rollouts) == result["rollout_budget"] == 128 and {t.split for t in rollouts} == {
        "rollouts"
    }
    evaluation = shipped.read("evaluation")
    for name in ("base", *POLICIES):
        assert np.mean(evaluation["policies"][name]["success"]) == pytest.approx(
            result[f"{name}_success"]
        )
    assert result["wmpo_success"] > result["base_success"]
    assert {record["stage"] for record in shipped.metrics()} >= {
        "align",
        "reward",
        "wmpo",
        "grpo",
        "dpo",
    }
    weights = {name: ASSETS / "tabletop" / name for name in SHARED} | {
        "policy": ASSETS / "place" / "policy"
    }
    assert shipped.read("config")["assets"] == {
        name: checkpoint.checksum(folder / "model.safetensors")[:12]
        for name, folder in weights.items()
    }


def test_every_policy_differs_and_only_where_it_was_trained(shipped):
    base = shipped.policy().state_dict()
    for name in POLICIES:
        changed = {
            key
            for key, value in shipped.policy(name).state_dict().items()
            if not torch.equal(value, base[key])
        }
        assert changed and not any(key.startswith("vision.") for key in changed)


def test_alignment_changed_the_world_model(shipped):
    before, after = (shipped.world_model(aligned=aligned).state_dict() for aligned in (False, True))
    gap = sum(float((after[key] - value).square().sum()) for key, value in before.items())
    size = sum(float(value.square().sum()) for value in before.values())
    assert 0 < gap < 0.25 * size  # fine-tuned, not trained anew


def test_the_shipped_imagination_tells_successes_from_failures(shipped):
    """On 16 successes and 16 failures of the P rollouts; chance is 0.5, the trust panel's AUC on
    fresh ones is above 0.9.
    """
    from wmpo_lite.evaluate import agreement
    from wmpo_lite.rollout import replay

    rollouts = shipped.rollouts()
    chosen = [t for t in rollouts if t.success][:16] + [t for t in rollouts if not t.success][:16]
    env = shipped.imagined_env(stop=False)
    replay(env, chosen, initial_frames(chosen), every_frame=False)
    assert agreement(np.array([t.success for t in chosen]), env.scores, env.threshold).auc > 0.75


def test_imagination_starts_from_the_shipped_rollouts(shipped):
    rollouts = shipped.rollouts()[:2]
    env, starts = shipped.imagined_env(seed=1), initial_frames(rollouts)
    assert (
        env.reset(starts) == np.stack([t.frames[0] for t in rollouts])
    ).all() and env.instructions == [t.instruction for t in rollouts]
    frames, done, _ = env.step_chunk(np.zeros((2, 8, env.action_dim), np.float32))
    assert frames.shape == (2, 8, *rollouts[0].frames.shape[1:]) and done.shape == (2, 8)


# ---------------------------------------------------------------------------- how a run gets there

CHANGED = {"world_model": "denoiser.output.bias", **dict.fromkeys(POLICIES, "head")}


@pytest.fixture
def finished(tmp_path):
    """(run, assets): a finished run of tiny models with thresholds and a reward model of its own.

    Each of its other models is the one that it began with but for one tensor.
    """
    assets, run = tiny.assets(tmp_path / "assets"), tmp_path / "run"
    folders = {name: assets / "tabletop" / name for name in SHARED} | {
        "policy": assets / "place" / "policy"
    }
    for name in ("evaluation.json", "trust.json", "result.json", "seen.json"):
        checkpoint.write_json(run / name, {"of": name})
    (run / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "loss": 0.5}\n')
    save_trajectories(
        run / "rollouts.hdf5",
        tiny.trajectories(8),
        env_args={"task": "place"},
        provenance={"seed": 0},
    )
    checkpoint.write_json(
        run / "config.json",
        {
            "task": "place",
            "num_inference_steps": 3,
            "reward_stride": 4,
            "min_consecutive": 2,
            "assets": {
                name: checkpoint.checksum(folder / "model.safetensors")[:12]
                for name, folder in folders.items()
            },
        },
    )
    checkpoint.write_json(
        run / "stages" / "reward.json", {"result": {"threshold": 0.25, "imagined_threshold": 0.75}}
    )
    for name, key in CHANGED.items():
        weights = checkpoint.load_tensors(
            folders[name if name in SHARED else "policy"] / "model.safetensors"
        )
        weights[key] = weights[key] + 0.1
        checkpoint.save_tensors(
            run / ("" if name in SHARED else "policies") / name / "model.safetensors", weights
        )
    judge = tiny.reward_model(contrast=7.0)
    judge.threshold.fill_(0.25)
    judge.save(run / "reward", {"stage": "reward"})
    return run, assets


def before_and_after(assets, name):
    """The model called `name` as it was before the run, and as the run ended with it."""
    ours = Shipped("place", assets)
    if name == "world_model":
        return ours.world_model(aligned=False), ours.world_model()
    return ours.policy(), ours.policy(name)


def test_shipping_a_run_keeps_what_it_changed_and_nothing_else(finished):
    run, assets = finished
    target = ship_run(run, assets)
    assert target == assets / "place" / "run"
    for name, key in CHANGED.items():
        stored = checkpoint.load_tensors(target / f"{name}.safetensors")
        assert set(stored) == {key} and stored[key].dtype == torch.float16
        old, new = (model.state_dict() for model in before_and_after(assets, name))
        assert (
            torch.allclose(new[key], old[key] + 0.1, atol=2e-3) and new[key].dtype == torch.float32
        )
        assert all(torch.equal(new[other], old[other]) for other in old if other not in stored)
    weights = {f"{name}.safetensors" for name in CHANGED}
    assert {path.name for path in target.iterdir()} == {*FILES, "reward.json", "reward"} | weights
    ours = Shipped("place", assets)
    assert ours.read("result") == {"of": "result.json"} and ours.metrics() == [
        {"stage": "align", "step": 1, "loss": 0.5}
    ]


def test_the_reward_model_is_shipped_whole_and_half_as_large(finished):
    run, assets = finished
    ship_run(run, assets)
    folder = assets / "place" / "run" / "reward"
    stored = checkpoint.load_tensors(folder / "model.safetensors")
    fitted, model = tiny.reward_model(contrast=7.0), Shipped("place", assets).reward_model()
    assert stored.keys() == fitted.state_dict().keys()
    assert {value.dtype for value in stored.values()} == {torch.float16}
    fitted.threshold.fill_(0.25)
    own = model.state_dict()
    assert all(torch.equal(own[k], v.half().float()) for k, v in fitted.state_dict().items())
    assert model.config == fitted.config
    assert checkpoint.read_json(folder / "provenance.json")["stage"] == "reward"


def test_the_shipped_imagination_is_set_as_the_run_was(finished):
    run, assets = finished
    ship_run(run, assets)
    ours = Shipped("place", assets)
    env = ours.imagined_env()
    assert (env.threshold, float(env.reward_model.threshold)) == (0.75, 0.25)
    assert (env.num_inference_steps, env.reward_stride, env.min_consecutive) == (3, 4, 2)
    assert env.action_names == ours.policy().statistics.names
    other = ours.imagined_env(threshold=0.6, reward_stride=1, stop=False)
    assert (other.threshold, other.reward_stride, other.min_consecutive, other.stop) == (
        0.6,
        1,
        2,
        False,
    )
    for name in ("base", *POLICIES):
        ours.policy(name).check_environment(env)


def test_of_the_rollouts_the_first_may_be_shipped_alone(finished):
    run, assets = finished
    ship_run(run, assets)
    every = Shipped("place", assets).rollouts()
    assert (
        ship_run(run, assets, rollouts=5) == assets / "place" / "run"
    )  # again: nothing in the way
    few = Shipped("place", assets).rollouts()
    assert len(every) == 8 and len(few) == 5
    assert all((a.frames == b.frames).all() and a.success == b.success for a, b in zip(few, every))


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda run: {"rollouts": 0}, "--rollouts is 0; expected 1 to 8"),
        (lambda run: {"rollouts": 9}, "--rollouts is 9"),
        (lambda run: {"rollouts": -1}, "--rollouts"),
        (lambda run: (run / "rollouts.hdf5").write_bytes(b"half"), "rollouts.hdf5"),
        (lambda run: (run / "trust.json").write_text("[]"), "trust.json"),
        (
            lambda run: (run / "stages" / "reward.json").write_text('{"result": {}}'),
            "reward.json has no 'threshold'",
        ),
        (lambda run: (run / "policies" / "dpo" / "model.safetensors").unlink(), "dpo"),
        (lambda run: (run / "reward" / "model.safetensors").write_bytes(b"x"), "reward"),
        (
            lambda run: checkpoint.save_tensors(
                run / "world_model" / "model.safetensors", {"other": torch.zeros(1)}
            ),
            "another model",
        ),
        (lambda run: (run / "config.json").write_text("[]"), "config.json"),
    ],
)
def test_what_cannot_be_shipped_leaves_the_shipped_run_as_it_is(finished, spoil, message):
    run, assets = finished
    ship_run(run, assets)
    (run / "result.json").write_text('{"newer": true}')
    before = content(assets)
    options = spoil(run)
    with pytest.raises(UserError, match=message):
        ship_run(run, assets, **(options if isinstance(options, dict) else {}))
    assert content(assets) == before


def test_a_run_that_is_shipped_anew_replaces_the_old_one_whole(finished, monkeypatch):
    run, assets = finished
    (ship_run(run, assets) / "left.json").write_text("over")
    save, before = checkpoint.save_tensors, content(assets)
    monkeypatch.setattr(
        checkpoint,
        "save_tensors",
        lambda path, tensors: (
            (_ for _ in ()).throw(KeyboardInterrupt)
            if path.name == "dpo.safetensors"
            else save(path, tensors)
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        ship_run(run, assets)
    assert content(assets) == before
    monkeypatch.undo()
    ship_run(run, assets, rollouts=8)
    assert (
        not (assets / "place" / "run" / "left.json").exists()
        and len(Shipped("place", assets).rollouts()) == 8
    )
    assert not [path for path in assets.rglob("*") if path.name.endswith((".part", ".old"))]


def test_a_threshold_close_to_one_stays_below_one(finished):
    run, assets = finished
    checkpoint.write_json(
        run / "stages" / "reward.json",
        {"result": {"threshold": 0.9999, "imagined_threshold": 0.75}},
    )
    path = run / "reward" / "model.safetensors"
    checkpoint.save_tensors(
        path, checkpoint.load_tensors(path) | {"threshold": torch.tensor(0.9999)}
    )
    ship_run(run, assets)
    assert float(Shipped("place", assets).reward_model().threshold) == pytest.approx(
        0.9999, abs=1e-6
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: Shipped("square", folder), "no trained assets for task 'square'"),
        (
            lambda folder: Shipped("place", tiny.assets(folder)).policy("ppo"),
            "policy 'ppo' is unknown",
        ),
        (lambda folder: ship_run(folder), "not a finished run"),
    ],
)
def test_bad_input_gets_one_sentence(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_run_of_other_weights_is_not_shipped(finished, tmp_path):
    run, assets = finished
    with pytest.raises(UserError, match="began with other weights"):
        ship_run(run, tmp_path / "elsewhere")  # where there are none at all
    config = checkpoint.read_json(run / "config.json")
    for name in config["assets"]:
        checkpoint.write_json(
            run / "config.json", config | {"assets": config["assets"] | {name: "0" * 12}}
        )
        with pytest.raises(UserError, match="began with other weights"):
            ship_run(run, assets)
    assert not (assets / "place" / "run").exists()


def test_shipped_weights_that_the_model_does_not_have_are_named(finished):
    run, assets = finished
    ship_run(run, assets)
    checkpoint.save_tensors(
        assets / "place" / "run" / "world_model.safetensors", {"draft.mover.lag": torch.zeros(1)}
    )
    with pytest.raises(
        UserError,
        match="weights that the model does not have \\(draft.mover.lag\\); ship the run anew",
    ):
        Shipped("place", assets).world_model()


def test_a_missing_run_is_named(tmp_path):
    (tmp_path / "place" / "policy").mkdir(parents=True)
    with pytest.raises(UserError, match="wmpo-lite ship"):
        Shipped("place", tmp_path).rollouts()
    with pytest.raises(UserError, match="reward is missing"):
        Shipped("place", tmp_path).reward_model()


def test_the_shipped_policies_fit_the_shipped_imagination(shipped):
    for name in ("base", "wmpo"):
        shipped.policy(name).check_environment(shipped.imagined_env())
