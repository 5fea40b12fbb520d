"""The method on LIBERO, small: play in the scenes of a suite, what its tasks share, a cloned policy
and a whole run.
"""

import dataclasses

import numpy as np
import pytest

import wmpo_lite.rollout
from wmpo_lite.common import checkpoint
from wmpo_lite.common.files import read_arrays
from wmpo_lite.datagen.collect import labels_of
from wmpo_lite.policy import Policy
from wmpo_lite.recipes.main_job import describe, main_job
from wmpo_lite.recipes.pretrain_libero import install_suite, make_suite
from wmpo_lite.recipes.workspace import Run
from wmpo_lite.world_model import WorldModel

SUITE = "libero_object"


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_suite(tmp_path_factory.mktemp("assets"), SUITE, profile="smoke")


def test_play_is_pictures_and_actions_and_its_labels_are_kept_apart(assets):
    paths = sorted((assets / "work" / SUITE / "play").glob("play_*.npz"))
    shards = [read_arrays(path) for path in paths]
    assert len(shards) == 3 and all(set(shard) == {"frames", "actions"} for shard in shards)
    assert all(shard["actions"].shape == (2, 48, 7) for shard in shards)
    labels = [read_arrays(labels_of(path)) for path in paths]
    assert len({tuple(told["names"]) for told in labels}) == 3  # the first three tasks' scenes
    height = np.concatenate([told["objects"][..., 2] for told in labels], axis=0)  # (6, 49, n)
    lifted = (height - height[:, :1]).max(axis=(1, 2)) > 0.05
    assert 0 < lifted.sum() < 6  # taken by some hands, missed by others


def test_what_the_suite_shares_begins_with_the_table_tops_weights(assets):
    model = WorldModel.load(assets / SUITE / "world_model")
    assert model.config.action_dim == 7
    made = checkpoint.read_json(assets / SUITE / "world_model" / "provenance.json")
    assert made["play_episodes"] == 6 and set(made["inputs"]) == {
        "autoencoder",
        "start_autoencoder",
        "start_world_model",
    }
    policy = Policy.load(assets / f"{SUITE}-0" / "policy")
    assert policy.statistics.names[3:6] == ("droll", "dpitch", "dyaw")


def test_a_finished_suite_is_not_made_again_and_is_installed(assets, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in assets.rglob("*") if path.is_file()}
    make_suite(assets, SUITE, profile="smoke")
    assert before == {p: p.stat().st_mtime_ns for p in assets.rglob("*") if p.is_file()}
    install_suite(assets, tmp_path, SUITE)
    found = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("config.json")}
    names = ("autoencoder", "seeing", "world_model")
    assert found == {f"{SUITE}/{name}" for name in names} | {f"{SUITE}-0/policy"}
    assert (tmp_path / f"{SUITE}-0" / "demos.hdf5").exists()


def test_a_whole_run_tells_the_benchmarks_states_from_drawn_ones(
    assets, tmp_path, monkeypatch, capsys
):
    """An untrained policy never succeeds, so every second episode is called a success."""
    whole = wmpo_lite.rollout.rollout

    def dealt(*args, **options):
        for n, t in enumerate(whole(*args, **options)):
            yield dataclasses.replace(t, success=bool(n % 2), finish_step=len(t))

    monkeypatch.setattr(wmpo_lite.rollout, "rollout", lambda *a, **more: list(dealt(*a, **more)))
    few = {"trust_rollouts": 2, "evaluation_states": 2, "evaluation_from": 49, "track_real": False}
    run = Run(f"{SUITE}/0", "smoke", rollout_budget=8, assets=str(assets), changes=few)
    result = main_job(run, tmp_path / "run")
    evaluation = checkpoint.read_json(tmp_path / "run" / "evaluation.json")
    assert evaluation["of_the_benchmark"] == [True, False]
    assert result["n"] == 2 and result["task"] == f"{SUITE}/0"
    said = describe(result, evaluation)
    assert said.count("of the benchmark's own states") == 4
    assert said.count("of states drawn by the kit") == 4
    assert said in capsys.readouterr().out and (tmp_path / "run" / "report.html").exists()
