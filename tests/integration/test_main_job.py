"""The main job itself, in the smoke profile: it ends with a report, and a killed run resumed gives
the numbers of one that was not.
"""

import json
import subprocess
import sys
import time

import pytest
import ranks
from reliability.kills import COMMAND, differences, finish, killed, spread, start, timeless

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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same run by two processes, one of which is killed on the way, and then by two again:
    folder, exit codes, what both said, seconds that the survivor took to end.
    """
    folder = tmp_path_factory.mktemp("two")
    command = ["-m", "wmpo_lite", *COMMAND]
    started = ranks.launch(command, 2, cwd=folder)
    deadline = time.monotonic() + 300
    while not (folder / "runs" / "run" / "fit_align" / "progress.json").exists():
        assert time.monotonic() < deadline and started[0].poll() is None
        time.sleep(0.05)
    started[1].kill()
    clock = time.monotonic()
    said = [process.communicate(timeout=120) for process in started]
    lasted, codes = time.monotonic() - clock, [process.returncode for process in started]
    started = ranks.launch(command, 2, cwd=folder)
    more = [process.communicate(timeout=600) for process in started]
    return (
        folder / "runs" / "run",
        codes + [process.returncode for process in started],
        (said + more),
        lasted,
    )


def test_when_one_process_is_killed_the_other_ends_with_one_sentence(two):
    _, codes, said, seconds = two
    assert codes[:2] == [1, -9] and seconds < 60
    assert "waited in vain for the others" in said[0][1] and "Traceback" not in said[0][1]
    assert said[0][1].count("wmpo-lite:") == 1


def close(one, other, where="") -> list[str]:
    """Where two JSON values differ, but for times and rounding."""
    if isinstance(one, dict):
        keys = sorted(one.keys() | other.keys())
        return sum((close(one.get(k), other.get(k), f"{where}.{k}") for k in keys), [])
    if isinstance(one, list):
        return sum((close(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other))), [])
    if isinstance(one, float):
        return [] if one == pytest.approx(other, rel=1e-3, abs=1e-4) else [f"{where} {one} {other}"]
    return [] if one == other else [f"{where} {one} {other}"]


def test_two_processes_end_with_the_result_of_one(whole, two):
    """What they compute differs by rounding; a last bit that turns an action over is not seen."""
    run, codes, said, _ = two
    assert codes[2:] == [0, 0], said
    assert "report:" in said[2][0] and not said[3][0]  # the first process speaks
    one = whole[0] / "runs" / "run"
    for name in ("result.json", "evaluation.json", "seen.json"):
        read = lambda run: timeless(json.loads((run / name).read_text()))
        assert close(read(one), read(run)) == []
    names = lambda run: sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())
    assert names(one) == names(run)


def test_more_processes_than_groups_are_refused(tmp_path):
    command = ["-m", "wmpo_lite", *COMMAND, "--groups", "2"]
    started = ranks.launch(command, 3, cwd=tmp_path)
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1, 1]
    assert "3 processes cannot share 2 groups" in said[0] and said[0].count("wmpo-lite:") == 1
    assert not any("wmpo-lite:" in text or "Traceback" in text for text in said[1:])
    assert not list(tmp_path.iterdir())


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
