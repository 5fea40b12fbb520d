"""The course: solutions pass, stubs do not, and each listed wrong answer is caught and named."""

import ast
import json
import sys
import zipfile

import numpy as np
import pytest
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.course import EXERCISES, CheckFailed, capstone, check, grading, models, sheets
from wmpo_lite.course.exercise import Raised, Verdict, same
from wmpo_lite.course.extract import code_cells, extract
from wmpo_lite.course.packing import pack, unpack
from wmpo_lite.course.registry import verdict

FINAL = "capstone.world_model"
COMPARED = [name for name in EXERCISES if name != FINAL]  # those that are compared with the core
CELLS = {path.stem: sheets.read_master(path) for path in sheets.masters()}
WRONG = [
    (*cell.label.split(": ", 1), cell.source, sheet)
    for sheet, cells in CELLS.items()
    for cell in cells
    if cell.kind == "wrong"
]


def sheet_of(name: str) -> str:
    return next(
        s for s, cells in CELLS.items() if any(f'check("{name}")' in c.source for c in cells)
    )


def defined(cells: list[str], name: str):
    """The function of exercise `name` in code cells, taken out as a grader does."""
    space = {}
    exec(extract(cells, EXERCISES[name].function), space)
    return space[EXERCISES[name].function]


def cells_of(sheet: str, solved: bool) -> list[str]:
    made = sheets.notebook(CELLS[sheet], sheet, solved)
    return ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "code"]


def test_there_are_exercises_on_every_topic_and_each_lists_wrong_answers():
    assert len(COMPARED) >= 12
    assert {name[:2] for name in COMPARED} == {f"0{n}" for n in range(1, 8)}
    for name in EXERCISES:
        assert sum(entry[0] == name for entry in WRONG) >= 3, name
    assert {entry[0] for entry in WRONG} == set(EXERCISES)


@pytest.mark.parametrize("name", COMPARED)
def test_the_solution_passes_and_the_stub_does_not(name):
    solution = defined(cells_of(sheet_of(name), solved=True), name)
    assert verdict(name, solution, seed=1) == verdict(name, solution, seed=2)
    found = verdict(name, solution, seed=3)
    assert (found.status, found.score) == ("passed", 1), found.message
    stub = extract(cells_of(sheet_of(name), solved=False), EXERCISES[name].function)
    planted = "NotImplementedError" not in stub  # a bug to be found instead of a gap
    found = verdict(name, defined([stub], name), seed=1)
    assert found.score == 0 and found.status == ("wrong" if planted else "not attempted")
    assert not planted or found.message in EXERCISES[name].mistakes


@pytest.mark.parametrize("name, words, source, sheet", WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_answer_is_caught_and_named(name, words, source, sheet):
    function = defined([*cells_of(sheet, solved=True), source], name)
    found = verdict(name, function, seed=5)
    assert found.score == 0 and words in found.message, found.message


@pytest.mark.parametrize("name", COMPARED)
def test_no_two_known_mistakes_are_told_alike(name):
    exercise = EXERCISES[name]
    cases = exercise.cases(np.random.default_rng(8))
    for sentence, mistaken in exercise.mistakes.items():
        assert sentence in _judged(exercise, mistaken, cases)
    assert all("\n" not in sentence and len(sentence) < 200 for sentence in exercise.mistakes)


def _judged(exercise, function, cases) -> str:
    from wmpo_lite.course.exercise import attempt_reference, judge

    return judge(exercise, cases, attempt_reference(exercise, function, cases)).message


# -- check -----------------------------------------------------------------------------------------


def test_check_finds_the_function_of_the_cell_and_fails_aloud(capsys):
    def groups_to_keep(rewards):
        return rewards.amax(1) != rewards.amin(1)

    check("05.filter", seed=0)
    assert capsys.readouterr().out == "05.filter: right, on 6 random inputs\n"

    def groups_to_keep(rewards):  # noqa: F811
        return rewards.amax(1) == rewards.amin(1)

    with pytest.raises(CheckFailed, match="05.filter: this is inverted"):
        check("05.filter", seed=0)
    with pytest.raises(CheckFailed, match="there is no `advantages` yet"):
        check("05.advantage")
    with pytest.raises(UserError, match="there is no exercise '05.nothing'"):
        check("05.nothing")


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda rewards: None, "returned None: is there a `return`?"),
        (lambda rewards: rewards / 0, "differs from the kit's on 6 of 6 random inputs"),
        (lambda rewards: rewards.nothing, "raised AttributeError"),
        (lambda rewards: sys.exit(0), "raised SystemExit"),
        (lambda rewards: torch.zeros(1 << 50), "ran out of memory"),
        (lambda rewards: rewards[:, :2], "differs from the kit's"),
    ],
)
def test_whatever_a_function_does_the_verdict_says_it(function, words):
    found = verdict("05.advantage", function, seed=0)
    assert found.score == 0 and words in found.message


def test_the_kits_own_function_is_no_answer():
    from wmpo_lite import grpo

    def by_name(rewards):
        return grpo.group_advantages(rewards)

    def hidden(rewards):
        return getattr(grpo, "group_" + "advantages")(rewards)

    for function in (by_name, hidden):
        found = verdict("05.advantage", function, seed=0)
        assert found.score == 0 and "write it by hand" in found.message
    assert grpo.group_advantages(torch.tensor([[0.0, 1.0]])).tolist() == [[-1, 1]]


def test_a_function_may_write_into_its_inputs():
    def advantages(rewards):
        equal = (rewards == rewards[:, :1]).all(1)
        rewards -= rewards.mean(1, keepdim=True)
        rewards /= rewards.square().mean(1, keepdim=True).sqrt()
        rewards[equal] = 0
        return rewards

    assert verdict("05.advantage", advantages, seed=0).status == "passed"


def test_true_is_not_one_and_shapes_have_to_agree():
    assert same(torch.ones(2), np.ones(2), 0) and not same(torch.ones(2), torch.ones(2) > 0, 0)
    assert not same(torch.ones(2), torch.ones(2, 1), 1) and same((1, [2.0]), [1, (2,)], 0)
    assert same(Raised("UserError", "a"), Raised("ValueError", "b"), 0)
    assert not same(Raised("ValueError", ""), None, 0) and not same(None, 0, 1)


# -- the references against the core ---------------------------------------------------------------


def test_clips_of_the_core_end_where_the_exercise_says():
    from wmpo_lite.reward import RewardConfig, sample_clips

    rng, last, length = np.random.default_rng(0), 20, 4
    success, finish = np.array([True, False, True]), np.array([14, last, 9])
    frames = np.tile(
        np.arange(last + 1, dtype=np.uint8)[None, :, None, None, None], (3, 1, 2, 2, 3)
    )
    frames[..., 1:, :, 0] = np.arange(3, dtype=np.uint8)[:, None, None, None]
    episodes = {"frames": frames, "success": success, "finish_step": finish}
    episodes |= {"instruction": ["a"] * 3, "other": [""] * 3}
    clips, _, labels = sample_clips(episodes, RewardConfig(clip=length), rng, 300, after=0)
    seen = {(int(c[-1, 1, 0, 0]), bool(y), int(c[-1, 0, 0, 0])) for c, y in zip(clips, labels)}
    allowed = set()
    for e in range(3):
        good, bad = models.clip_ends(bool(success[e]), int(finish[e]), last, length)
        allowed |= {(e, True, end) for end in good} | {(e, False, end) for end in bad}
    assert seen <= allowed and len(seen) > 20


def test_the_planned_number_of_states_gives_the_power_asked_for():
    from scipy import stats

    from wmpo_lite.course.learning import states_needed

    rng, gain, differ = np.random.default_rng(0), 0.15, 0.4
    n = states_needed(gain, differ, 0.8)
    won = (differ + gain) / 2
    table = rng.multinomial(n, [won, differ - won, 1 - differ], size=4000)
    z = (table[:, 0] - table[:, 1]) / np.sqrt(np.maximum(table[:, 0] + table[:, 1], 1))
    assert abs((z > stats.norm.ppf(0.975)).mean() - 0.8) < 0.03


# -- the capstone ----------------------------------------------------------------------------------


def test_the_capstones_solution_beats_copying_and_its_stub_is_not_written():
    exercise, cells = EXERCISES[FINAL], cells_of("capstone", solved=True)
    case = capstone.cases(np.random.default_rng(0))[0]
    assert len(exercise.given(case)) == 4 and exercise.given(exercise.given(case)) == case[:4]
    frames, actions, first, hidden, truth = case
    imagined = defined(cells, FINAL)(frames, actions, seconds=4)(first, hidden)
    found = capstone.judge(exercise, [case], [imagined])
    assert found.status == "passed" and 0.1 < found.score < 1, found.message
    perfect = capstone.judge(exercise, [case], [truth[:, 1:]])
    assert perfect.score == 1 and perfect.message.startswith("20.0 of 20 frames are valid")
    stub = defined(cells_of("capstone", solved=False), FINAL)
    assert verdict(FINAL, stub, seed=0).status == "not attempted"


def test_the_capstones_world_pushes_what_the_hand_touches():
    hand, puck = np.array([[5.0, 5.0], [5.0, 5.0]]), np.array([[5.0, 9.5], [12.0, 12.0]])
    hand, after = capstone.move(hand, puck, np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert np.allclose(after, [[5.0, 10.0], [12.0, 12.0]]) and np.allclose(hand, [[5, 6], [5, 6]])
    frames, actions = capstone.record(np.random.default_rng(0), 3)
    assert frames.shape == (3, 21, 16, 16, 3) and np.abs(actions).max() <= 1
    again, _ = capstone.record(np.random.default_rng(0), 3)
    assert (frames == again).all() and (frames[:, 0] != frames[:, -1]).any()


# -- masters and notebooks -------------------------------------------------------------------------


def test_release_writes_notebooks_without_solutions_that_are_valid(tmp_path):
    import nbformat

    made = sheets.release(tmp_path)
    assert [path.name for path in made] == ["student.zip", "solutions.zip"]
    again = made[0].read_bytes()
    assert sheets.release(tmp_path)[0].read_bytes() == again
    with zipfile.ZipFile(made[0]) as archive:
        names = archive.namelist()
        assert names == [f"exercises/{sheet}.ipynb" for sheet in sorted(CELLS)]
        for name in names:
            text = archive.read(name).decode()
            nbformat.validate(nbformat.reads(text, as_version=4))
            assert "SOLUTION" not in text and "INSTEAD" not in text and "# %%" not in text
            sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
            assert any("YOUR CODE HERE" in source for source in sources)
            assert max(len(line) for source in sources for line in source.splitlines()) <= 88
    solved = code_cells(tmp_path / "solutions" / "05_grpo.ipynb")
    assert not any("YOUR CODE HERE" in cell or "SOLUTION" in cell for cell in solved)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_has_text_a_typed_stub_hints_and_a_check(name):
    cells = [cell for cell in CELLS[sheet_of(name)] if cell.kind != "wrong"]
    at = next(i for i, cell in enumerate(cells) if cell.source.strip() == f'check("{name}")')
    text, stub = cells[at - 2], sheets.as_handed_out(cells[at - 1].source)
    assert text.kind == "markdown" and text.source.startswith(f"## {name} - ")
    assert "<details><summary>Hint" in text.source and len(text.source.split()) > 60
    assert EXERCISES[name].function in stub and "YOUR CODE HERE" in stub and '"""' in stub
    functions = [n for n in ast.walk(ast.parse(stub)) if isinstance(n, ast.FunctionDef)]
    for node in functions:
        assert all(a.annotation for a in node.args.args if a.arg != "self"), ast.unparse(node.args)
        assert node.returns or node.name == "__init__"
    assert functions


def test_a_master_with_an_unknown_cell_is_refused(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("# %% solution\nx = 1\n")
    with pytest.raises(UserError, match="expected \\[markdown\\] or wrong|wrong or nothing"):
        sheets.read_master(path)


@pytest.mark.parametrize("sheet", [sheet for sheet in CELLS if sheet != "capstone"])
def test_the_solved_notebook_runs_from_top_to_bottom(sheet, capsys):
    """As a script, its own prints and checks included."""
    exec("\n".join(cells_of(sheet, solved=True)), {"__name__": "notebook"})
    count = sum(cell.source.strip().startswith('check("') for cell in CELLS[sheet])
    assert capsys.readouterr().out.count(": right, on") == count > 0


# -- taking a function out of a notebook -----------------------------------------------------------

NOTEBOOK = [
    "%matplotlib inline\nimport sys\nimport math as m",
    "SCALE = 2\nSCALE += 1\nsys.exit()",
    "def helper(x):\n    return SCALE * x",
    "def answer(x):\n    return helper(x) + m.pi",
    "while True:\n    pass",
    "!rm -rf nothing\nprint(answer(1))",
    "def broken(:",
]


def test_only_what_a_function_needs_is_taken():
    source = extract(NOTEBOOK, "answer")
    assert "exit" not in source and "while" not in source and "print" not in source
    space = {}
    exec(source, space)
    assert space["answer"](1) == pytest.approx(3 + np.pi)


def test_the_last_definition_counts_and_what_is_missing_is_said():
    later = [*NOTEBOOK, "def answer(x):\n    return x", "def answer(x):\n    return -x"]
    space = {}
    exec(extract(later, "answer"), space)
    assert space["answer"](1) == -1
    with pytest.raises(UserError, match="no cell defines `other`"):
        extract(NOTEBOOK, "other")
    with pytest.raises(UserError, match="line 1 of its cell is not valid Python"):
        extract(NOTEBOOK, "broken")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is not a notebook"),
        ("[]", "is not a notebook"),
        ('{"nbformat": 3, "worksheets": []}', "notebook format 3 where 4 is read"),
        ('{"nbformat": 5, "cells": []}', "notebook format 5 where 4 is read"),
        ('{"nbformat": 4, "cells": [{"cell_type": "code"}]}', "is not a notebook"),
    ],
)
def test_what_is_no_notebook_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        code_cells(path)


# -- inputs and outcomes as JSON -------------------------------------------------------------------


def test_packing_keeps_values_shapes_and_kinds():
    value = {
        "a": (1, 2.5, True, None, "text", float("nan")),
        "b": [torch.arange(6).view(2, 3), np.zeros((0, 2), np.float32), np.float64(3)],
        "c": Raised("ValueError", "no"),
    }
    again = unpack(json.loads(json.dumps(pack(value))))
    assert same(again, value, 0) and isinstance(again["b"], list) and isinstance(again["a"], tuple)
    assert again["b"][0].dtype == torch.int64 and again["b"][1].shape == (0, 2)
    assert unpack(pack(object())).kind == "TypeError"


@pytest.mark.parametrize(
    "value",
    [[1], {"array": []}, {"array": ["|O", [1], ""]}, {"x": 1}, {"array": ["<f4", [9], "AA"]}],
)
def test_what_pack_does_not_write_is_refused(value):
    with pytest.raises(UserError, match="not an outcome"):
        unpack(value)


def test_a_student_whose_work_could_not_be_graded_is_not_told_0_points():
    lost, done = grading.not_graded("it was killed"), Verdict("passed", "right", 1.0)
    assert grading.summary({"05.mask": lost, "05.filter": lost}) == "could not be graded"
    said = grading.summary({"05.mask": lost, "05.filter": done})
    assert said == f"{EXERCISES['05.filter'].points:g} points at least, 1 could not be graded"
    assert "graded" not in grading.summary({"05.filter": done})
