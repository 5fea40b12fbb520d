"""Two processes of one thread each learn what one process learns from the same batch."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wmpo_lite import cli, parallel
from wmpo_lite.checkpoint import load_tensors
from wmpo_lite.errors import UserError
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize

TESTS = Path(__file__).resolve().parents[1]
CASES = ("world_model", "reward_model", "cloning", "update_uneven", "update_none", "loop")


def run(folder, processes: int, *cases):
    """Start them; returns exit codes, what they said on standard error, seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    clock, started = time.monotonic(), []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        names |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths, "OMP_NUM_THREADS": 1}
        environment = os.environ | {key: str(value) for key, value in names.items()}
        command = [sys.executable, str(TESTS / "ranks.py"), str(folder), *cases]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=120)[1] for process in started]
    return [process.returncode for process in started], said, time.monotonic() - clock


def results(folder, case, rank=0):
    path = folder / f"{case}-{rank}"
    records = json.loads(path.with_suffix(".json").read_text())
    return load_tensors(path.with_suffix(".safetensors")), records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process and what two made of every case, {processes: folder}."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp(f"ranks{processes}")
        codes, said, _ = run(folders[processes], processes, *CASES)
        assert not any(codes), said
    return folders


@pytest.mark.parametrize("case", [case for case in CASES if case != "loop"])
def test_two_processes_learn_what_one_learns(trained, case):
    one, records = results(trained[1], case)
    for rank in (0, 1):
        two, _ = results(trained[2], case, rank)
        for name, value in one.items():
            assert torch.allclose(two[name], value, rtol=0, atol=1e-5), (name, rank)
    for a, b in zip(records, results(trained[2], case)[1], strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "stage"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


def test_it_is_learning_and_not_standing_still(trained):
    for case in CASES:
        import ranks

        before = {"world_model": ranks.tiny.world_model, "reward_model": ranks.tiny.reward_model}
        start = before.get(case, ranks.tiny.policy)().state_dict()
        after, _ = results(trained[1], case)
        assert max(float((after[name] - start[name]).abs().max()) for name in start) > 1e-3, case


def test_processes_that_sample_for_themselves_keep_one_policy(trained):
    (first, records), (second, _) = (results(trained[2], "loop", rank) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(record["rollouts"] >= 16 and record["kept"] <= 4 for record in records)
    assert {record["step"] for record in records} == {1, 2, 3}


def test_a_checkpoint_is_written_once_and_goes_on_with_another_number(trained, tmp_path):
    names = sorted(path.name for path in (trained[2] / "fit").iterdir())
    assert names == ["progress.json", "state_20.safetensors"]
    whole, _ = results(trained[1], "world_model")
    for begin, end in ((2, 1), (1, 2)):
        folder = tmp_path / f"{begin}{end}"
        for processes, case in ((begin, "half_of_world_model"), (end, "world_model")):
            codes, said, _ = run(folder, processes, case)
            assert not any(codes), said
        found, records = results(folder, "world_model")
        assert [record["step"] for record in records] == [5, 10, 15, 20]
        assert all(torch.allclose(found[name], whole[name], rtol=0, atol=1e-5) for name in whole)


def test_when_one_process_dies_the_other_ends_with_one_sentence(tmp_path):
    codes, said, seconds = run(tmp_path, 2, "dies")
    assert codes == [1, 3] and seconds < 60
    assert "waited in vain" in said[0] and "Traceback" not in said[0]


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
