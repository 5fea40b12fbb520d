"""The main job itself, in the smoke profile: it ends with a report, and a killed run resumed gives
the numbers of one that was not.
"""

import json
import subprocess
import sys

import pytest
from reliability.kills import COMMAND, differences, finish, killed, spread, start

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(start(folder))


def test_one_command_ends_with_numbers_and_a_report(whole):
    folder, out = whole
    run = folder / "runs" / "run"
    result = json.loads((run / "result.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert result["n"] == 24 and set(evaluation["policies"]) == {"base", "grpo", "dpo", "wmpo"}
    assert result["base_success"] == sum(evaluation["policies"]["base"]["success"]) / 24
    assert result["gain_low"] <= result["gain"] <= result["gain_high"]
    assert "trust panel" in out and "wmpo vs base" in out
    html = (run / "report.html").read_text()
    assert (
        "<video" in html
        and "http://" not in html.replace("http://www.w3.org", "")
        and len(html) > 50_000
    )
    assert (run / "rollouts.hdf5").stat().st_size > 10_000
    seen = json.loads((run / "seen.json").read_text())
    assert seen["base"] == {"demonstrations": [32, 32 * 41], "rollouts": None, "play": None}
    budget = seen["grpo"]["rollouts"][0]
    assert seen["grpo"] == seen["dpo"] and seen["world_model"]["rollouts"] == [budget, budget * 41]
    assert seen["world_model"]["play"][1] > 100_000
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"align", "reward", "wmpo", "grpo", "dpo"} <= {line["stage"] for line in lines}
    assert not list(run.rglob("*.part*")), "half-written files were left behind"
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".pkl", ".pickle")]


def test_alignment_fine_tunes_the_shipped_world_model(whole):
    from wmpo_lite.recipes.workspace import ASSETS
    from wmpo_lite.world_model import WorldModel

    folder, _ = whole
    before, after = (
        WorldModel.load(path / "world_model")
        for path in (ASSETS / "tabletop", folder / "runs" / "run")
    )
    assert before.config == after.config
    gap = sum(
        float((p - q).detach().square().sum())
        for p, q in zip(before.parameters(), after.parameters())
    )
    size = sum(float(p.detach().square().sum()) for p in before.parameters())
    assert 0 < gap < 0.1 * size


def test_the_trust_panel_compares_before_and_after_alignment(whole):
    folder, out = whole
    trust = json.loads((folder / "runs" / "run" / "trust.json").read_text())
    assert trust["n"] == len(trust["scores"]) == len(trust["real"]) == 24
    for panel in (trust, trust["before_alignment"]):
        low, high = panel["auc_interval"]
        assert low <= panel["agreement"]["auc"] <= high and panel["psnr"]["horizons"] == [
            8,
            16,
            24,
            32,
            40,
        ]
        assert {f"{kind}_cost" for kind in ("shuffled", "zero", "delayed")} < set(
            panel["sensitivity"]
        )
    assert trust["psnr"]["model"] != trust["before_alignment"]["psnr"]["model"]
    assert (
        trust["psnr"]["copy_last"] == trust["before_alignment"]["psnr"]["copy_last"]
        and "before alignment" in out
    )


def test_killed_five_times_and_started_again_it_ends_bit_for_bit_as_if_left_alone(whole, tmp_path):
    folder, _ = whole
    stages = folder / "runs" / "run" / "stages"
    where = killed(tmp_path, spread(stages, kills=5, runs=1, seed=0)[0])
    assert where.count("after the end") <= 1 and len(set(where)) >= 4, where
    assert differences(folder / "runs" / "run", tmp_path / "runs" / "run") == []


def test_other_settings_in_the_same_folder_are_refused(whole):
    folder, _ = whole
    done = subprocess.run(
        [sys.executable, "-m", "wmpo_lite.cli", *COMMAND, "--seed", "5"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and "other settings (seed)" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "juggle"], "task 'juggle' is unknown"),
        (["--profile", "huge"], "profile 'huge' is unknown"),
        (["--rollout-budget", "3"], "smaller than one group"),
    ],
)
def test_bad_arguments_get_one_sentence_and_leave_nothing(tmp_path, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "wmpo_lite.cli", "demo", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and message in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
    assert not list(tmp_path.rglob("*.json"))
