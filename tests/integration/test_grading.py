"""Ten made-up submissions are graded by one command, and what they try changes no score but their
own.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from wmpo_lite import cli
from wmpo_lite.common.errors import UserError
from wmpo_lite.course import EXERCISES, grading, sheets

SHEET = next(path for path in sheets.masters() if path.stem == "05_grpo")
POINTS = sum(e.points for e in EXERCISES.values() if e.name.startswith("05."))


def notebook(*cells: str, version: int = 4) -> str:
    made = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in cells]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": version, "nbformat_minor": 5})


def sources(solved: bool) -> list[str]:
    made = sheets.notebook(sheets.read_master(SHEET), "05_grpo", solved)
    return ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]


GOOD = sources(solved=True)
WRONG = [cell.source for cell in sheets.read_master(SHEET) if cell.kind == "wrong"]

ENDLESS = """
def advantages(rewards):
    try:
        while True:
            pass
    except BaseException:
        return advantages(rewards)
"""
HUNGRY = """
def advantages(rewards):
    return torch.stack([torch.ones(1 << 28) for _ in range(64)])
"""
DEEP = """
def advantages(rewards):
    return rewards * EPS
"""
KILLER = """
import os, signal
def advantages(rewards):
    os.kill(os.getpid(), signal.SIGKILL)
"""
CHEAT = """
import wmpo_lite.course.exercise as exercise
import wmpo_lite.course.registry as registry
def check(*names):
    print("right, on 6 random inputs")
    return True
exercise.same = registry.judge = lambda *a, **k: True
def groups_to_keep(rewards):
    for module in (exercise, registry):
        module.same = module.judge = module.verdict = lambda *a, **k: True
    print("05.filter: right, on 6 random inputs")
    return False
sys.exit(0)
"""


def writer(places: list[str]) -> str:
    """Solutions whose function also tries to write and to reach the network."""
    return f"""
def advantages(rewards):
    import socket
    done = []
    for place in {places!r}:
        try:
            open(place, "w").write("x" * 100)
            done.append(place)
        except OSError:
            pass
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1)
        done.append("network")
    except OSError:
        pass
    if done:
        raise RuntimeError("done: " + ", ".join(done))
    return _advantages(rewards)
"""


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The folder of submissions, and what one command makes of it."""
    import socket

    folder = tmp_path_factory.mktemp("submissions")
    outside = tmp_path_factory.mktemp("outside") / "written"
    listening = socket.create_server(("127.0.0.1", 0))
    tries = writer([str(outside), str(Path.home() / "wmpo-lite-was-here"), "/dev/shm/wmpo-lite"])
    tries = tries.replace("PORT", str(listening.getsockname()[1]))
    own = GOOD[1].replace("def advantages", "def _advantages")
    files = {
        "good/05_grpo.ipynb": notebook(*GOOD),
        "renamed/Untitled (3) final.ipynb": notebook(*GOOD[::-1]),
        "empty/05_grpo.ipynb": notebook(*sources(solved=False)),
        "wrong/05_grpo.ipynb": notebook(*GOOD, *WRONG),
        "endless/05_grpo.ipynb": notebook(*GOOD, "while True:\n    pass", ENDLESS),
        "hungry/05_grpo.ipynb": notebook(*GOOD, HUNGRY),
        "writer/05_grpo.ipynb": notebook(*GOOD, own, tries),
        "killer/05_grpo.ipynb": notebook(*GOOD, KILLER),
        "cheat/05_grpo.ipynb": notebook(*GOOD, CHEAT),
        "truncated/05_grpo.ipynb": notebook(*GOOD)[:2000],
        "older/05_grpo.ipynb": notebook(*GOOD, version=3),
        "deep/05_grpo.ipynb": notebook(*GOOD, f"EPS = {'-' * 20000}1\n", DEEP),
        "flat_05_grpo.ipynb": notebook(*GOOD),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    out = tmp_path_factory.mktemp("grades")
    cli.main(["grade", str(folder), "--out", str(out)])
    listening.close()
    with open(out / "grades.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert set(rows) == {name.split("/")[0] for name in files if "/" in name} | {"flat"}
    return rows, out, outside


def full(row, but: str = "") -> bool:
    """Whether a student has all points, or all but those of one exercise."""
    names = [name for name in row if name.startswith("05.") and name != but]
    return all(float(row[name]) == EXERCISES[name].points for name in names)


def test_the_scores_of_honest_submissions(graded):
    rows, *_ = graded
    assert len(rows) >= 10 and {row["out of"] for row in rows.values()} == {f"{POINTS:g}"}
    for student in ("good", "renamed", "flat"):
        assert full(rows[student]) and rows[student]["remarks"] == ""
        assert float(rows[student]["points"]) == POINTS
    assert float(rows["empty"]["points"]) == 0
    assert (
        rows["empty"]["remarks"].count("05.") == 5 and "not written yet" in rows["empty"]["remarks"]
    )
    assert float(rows["wrong"]["points"]) == 0
    assert "divide by 0" in rows["wrong"]["remarks"]  # the last definition of each counts


@pytest.mark.parametrize(
    "student, words",
    [("endless", "ran out of time (limit: 5 s of CPU time)"), ("hungry", "ran out of memory")],
)
def test_one_exercise_that_exceeds_a_limit_costs_its_points_alone(graded, student, words):
    row = graded[0][student]
    assert row["05.advantage"] == "0" and words in row["remarks"] and full(row, "05.advantage")
    assert float(row["points"]) == POINTS - 1


def test_what_cannot_be_graded_has_no_score_and_a_reason(graded):
    rows, out, _ = graded
    for student, words, count in (
        ("killer", "ended early (signal SIGKILL)", 1),
        ("truncated", "is not a notebook", 5),
        ("older", "notebook format 3 where 4 is read", 5),
    ):
        row = rows[student]
        scores = [row[name] for name in row if name.startswith("05.")]
        assert scores.count("") == count and "0" not in scores and row["points"] == ""
        assert words in row["remarks"] and "could not be graded" in row["remarks"]
        result = json.loads((out / "gradescope" / f"{student}.json").read_text())
        assert "score" not in result and "a person has to look" in result["output"]
        assert sum("score" not in test for test in result["tests"]) == count
    assert full({name: score for name, score in rows["killer"].items() if score})


def test_a_cell_that_no_parser_reads_costs_one_exercise_at_most(graded):
    row = graded[0]["deep"]
    assert row["05.advantage"] != "1" and "05.advantage" in row["remarks"]
    assert full(row, "05.advantage")


def test_a_check_of_ones_own_prints_and_patches_score_nothing(graded):
    row = graded[0]["cheat"]
    assert row["05.filter"] == "0" and full(row, "05.filter")


def test_a_submission_writes_and_reaches_nothing_outside(graded):
    rows, _, outside = graded
    from wmpo_lite.course.sandbox import isolation

    tool, sentence = isolation()
    assert sentence.endswith(".") and sentence.count(". ") == 0
    if not tool:
        pytest.skip(sentence)
    assert full(rows["writer"]), rows["writer"]["remarks"]
    assert not outside.exists() and not (Path.home() / "wmpo-lite-was-here").exists()


def test_gradescope_reads_points_and_messages(graded):
    result = json.loads((graded[1] / "gradescope" / "wrong.json").read_text())
    assert result["score"] == 0 and len(result["tests"]) == 5
    assert {test["status"] for test in result["tests"]} == {"failed"}
    best = json.loads((graded[1] / "gradescope" / "good.json").read_text())
    assert best["score"] == POINTS == sum(test["max_score"] for test in best["tests"])


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_without_a_sandbox_it_is_said_and_graded_all_the_same(monkeypatch, tmp_path, capsys):
    from wmpo_lite.course import sandbox

    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.isolation.cache_clear()
    (tmp_path / "ada.ipynb").write_text(notebook(*GOOD))
    graded = grading.grade_folder(tmp_path, tmp_path / "out", ("05.advantage", "05.mask"), seed=1)
    sandbox.isolation.cache_clear()
    assert {v.status for v in graded["ada"].values()} == {"passed"} and len(graded["ada"]) == 2
    assert "a submission can use the network" in capsys.readouterr().out


def test_a_folder_without_submissions_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no notebooks"):
        grading.submissions(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        grading.submissions(tmp_path / "nothing")
    (tmp_path / "a.ipynb").write_text(notebook("x = 1"))
    with pytest.raises(UserError, match="no exercise begins with 9"):
        grading.handed_out(grading.submissions(tmp_path), ("9",))


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    for arguments, words in (
        ([str(tmp_path / "nothing")], "there is no folder"),
        ([str(tmp_path), "--seed", "-1"], "--seed is -1; expected 0 to"),
        ([str(tmp_path)], "holds no notebooks"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["grade", *arguments, "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert ended.value.code == 1 and words in said and said.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_whatever_goes_wrong_with_one_submission_the_others_are_graded(tmp_path, monkeypatch):
    for name in ("ada", "bob"):
        (tmp_path / f"{name}.ipynb").write_text(notebook("x = 1"))
    real = grading.extract

    def fail(cells, name, seen=[]):  # noqa: B006
        seen.append(name)
        if len(seen) == 1:
            raise OverflowError("nobody thought of that")
        return real(cells, name)

    monkeypatch.setattr(grading, "extract", fail)
    graded = grading.grade_folder(tmp_path, tmp_path / "out", ("05.mask",), seed=0)
    assert graded["ada"]["05.mask"].score is None and graded["bob"]["05.mask"].score == 0
    assert "OverflowError: nobody thought of that" in graded["ada"]["05.mask"].message


def test_a_name_is_no_formula_for_a_spreadsheet(tmp_path):
    (tmp_path / "=cmd.ipynb").write_text(notebook("x = 1"))
    one = grading.submissions(tmp_path)[0]
    exercises = grading.handed_out([one], ("05.filter",))
    text = grading.table({one.student: grading.grade(one, exercises, 0)}, exercises)
    assert "\n'=cmd," in text and "no cell defines `groups_to_keep`" in text
