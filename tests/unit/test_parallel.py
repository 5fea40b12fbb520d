"""Two processes of one thread each learn what one process learns from the same batch."""

import json
import time

import numpy as np
import pytest
import ranks
import torch
from ranks import STEPS, world_model

from wmpo_lite import cli
from wmpo_lite.common import parallel
from wmpo_lite.common.checkpoint import load_tensors
from wmpo_lite.common.errors import UserError
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize

UPDATES = ("update_uneven", "update_tokens", "update_none")
FITS = ("world_model", "world_model_in_passes", "reward_model", "cloning")
CASES = (*FITS, *UPDATES, "loop", "dpo", "dpo_of_single_pairs")
MORE = ("half_of_world_model", "other_half", "imagination")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes made of every case: folder, exit codes, what each said, seconds. In
    between they go on with what this one has begun, and in the end the second one dies.
    """
    folder = tmp_path_factory.mktemp("ranks")
    world_model(folder / "one", STEPS // 2)
    command, clock = [ranks.__file__, str(folder), *CASES, *MORE, "dies"], time.monotonic()
    started = ranks.launch(command, 2)
    said = [process.communicate(timeout=240)[1] for process in started]
    return folder, [process.returncode for process in started], said, time.monotonic() - clock


def results(folder, case, rank=0):
    path = folder / f"{case}-{rank}"
    assert path.with_suffix(".json").exists(), f"{case} did not end"
    records = json.loads(path.with_suffix(".json").read_text())
    return load_tensors(path.with_suffix(".safetensors")), records


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(two, tmp_path, case):
    """What their models compute is compared, not every weight: where a gradient is zero (the bias
    of an attention's keys), Adam makes whole steps out of its rounding.
    """
    module, records = getattr(ranks, case)(tmp_path)
    expected = ranks.answers(module.eval())
    untrained = ranks.answers(type(module)(module.config).eval())
    assert (expected - untrained).abs().max() > 1e-3  # it has learned something
    for rank in (0, 1):
        found, _ = results(two[0], case, rank)
        assert torch.allclose(found["answers"], expected, rtol=0, atol=1e-5), rank
    for a, b in zip(records, results(two[0], case)[1], strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "stage"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


def test_two_processes_imagine_judge_and_evaluate_as_one_does(two, tmp_path):
    _, [expected] = ranks.imagination(tmp_path)
    assert len(set(expected["success"])) == 2
    for rank in (0, 1):
        _, [found] = results(two[0], "imagination", rank)
        assert found["success"] == expected["success"]
        assert found["finish_step"] == expected["finish_step"]
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        for a, b in zip(found["films"], expected["films"], strict=True):
            assert np.abs(np.array(a) - np.array(b)).max() <= 1  # of 255, where rounding tips


def test_processes_that_sample_their_own_groups_keep_one_policy(two):
    (first, records), (second, _) = (results(two[0], "loop", rank) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(record["rollouts"] >= 16 and 1 <= record["kept"] <= 4 for record in records)
    assert [record["step"] for record in records] == [1, 2, 3]


def test_a_checkpoint_is_written_once_and_goes_on_with_another_number(two, tmp_path):
    names = sorted(path.name for path in (two[0] / "fit").iterdir())
    assert names == ["progress.json", "state_20.safetensors"]
    whole = ranks.answers(world_model(tmp_path)[0])
    from_one, _ = results(two[0], "other_half")
    from_two, records = world_model(two[0] / "two")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    for found in (from_one["answers"], ranks.answers(from_two)):
        assert torch.allclose(found, whole, rtol=0, atol=1e-5)


def test_when_one_process_dies_the_other_ends_with_one_sentence(two):
    _, codes, said, seconds = two
    assert codes == [1, 3] and seconds < 120, said
    assert "waited in vain" in said[0] and "Traceback" not in said[0]


def test_the_group_and_its_threads_end_before_python_does(two):
    """Those of gloo abort the process when they outlive the interpreter."""
    assert "the group is left" not in "".join(two[2])


def together(monkeypatch, rank=0):
    """As if three processes had been started."""
    monkeypatch.setattr(parallel, "count", lambda: 3)
    monkeypatch.setattr(parallel, "rank", lambda: rank)


def test_rows_are_shared_out_without_gaps(monkeypatch):
    for n in (1, 2, 3, 7, 64):
        found = []
        for rank in range(3):
            together(monkeypatch, rank)
            found += range(n)[parallel.rows(n)]
            assert parallel.share(n) == len(range(n)[parallel.rows(n)]) / n
        assert found == list(range(n))


def test_no_pass_is_empty_or_larger_than_asked(monkeypatch):
    assert parallel.passes(7, None) == 1 and parallel.passes(7, 2) == 4
    for n, micro_batch in ((7, 1), (8, 2), (48, 5), (2, 1)):
        found = []
        for rank in range(3):
            together(monkeypatch, rank)
            for number in range(k := parallel.passes(n, micro_batch)):
                with parallel.one_pass(number, k):
                    found.append(range(n)[parallel.rows(n)])
                    assert parallel.is_pass(-1) == (number == k - 1)
        assert sum(map(list, found), []) == list(range(n))
        if n >= 3:
            assert all(1 <= len(part) <= max(micro_batch, 2) for part in found)


def test_what_is_not_supported_is_refused(monkeypatch, capsys):
    together(monkeypatch)
    with pytest.raises(UserError, match="training of 'autoencoder' does not run on several"):
        fit(torch.nn.Linear(1, 1), None, FitConfig(), seed=0, name="autoencoder")
    with pytest.raises(UserError, match="3 processes cannot share 2 groups; start 2 or fewer"):
        options = dict(iterations=1, horizon=8, seed=0, stage="x")
        optimize(None, None, [0], GRPOConfig(groups=2), **options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        cli.main(["config"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "2 were started" in said and said.count("\n") == 1
