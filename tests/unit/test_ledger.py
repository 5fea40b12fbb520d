"""The ledger: what is entered is what was measured, and a cell that was edited, that is made from
other things than would be taken now, or that is missing, is named and never mixed in.
"""

import csv
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from wmpo_lite import cli
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS
from wmpo_lite.recipes import cells, reproduce
from wmpo_lite.recipes.cells import Book, enter, standing
from wmpo_lite.recipes.experiments import EXPERIMENTS, WAITING, cost, disturbances, keys
from wmpo_lite.recipes.profiles import PROFILES
from wmpo_lite.report import ledger_figures, ledger_tables
from wmpo_lite.report.ledger import Cell, Key, read_ledger, seal, write_cell

RUN = ASSETS / "place" / "run"
WMPO = Key("table_1", "place", "wmpo", 128, 0)
SLIP = Key("self_correction", "place", "wmpo", 128, 0, "slip")
MORE = {"versions": {}, "commit": "c", "episodes": {}, "frames_seen": {}}


@pytest.fixture(scope="module")
def entered(tmp_path_factory):
    book = Book(folder=tmp_path_factory.mktemp("entered") / "ledger")
    return book, enter(RUN, book)


@pytest.fixture
def book(entered, tmp_path):
    """A ledger with the cells of the shipped run and one of its policies tried out."""
    shutil.copytree(entered[0].folder, tmp_path / "ledger")
    found = Book(folder=tmp_path / "ledger", runs=tmp_path / "runs")
    tried(found)
    return found


def tried(book, key=SLIP, **changes):
    weights = standing(book).cells[cells.trained(key)].record["weights"]
    made = {"policy": weights, **EXPERIMENTS[key.experiment].variants[key.variant], **changes}
    success = np.arange(512) % 2 == (key.method == "base")
    steps = np.where(success, 20, 40)
    common = dict(evaluation_from=1000, inputs=made, weights=weights, **MORE)
    return write_cell(key, success, steps, book.folder, **common)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# -- entering --------------------------------------------------------------------------------------


def test_a_finished_run_becomes_the_cells_of_its_four_methods(entered):
    book, made = entered
    told = json.loads((RUN / "evaluation.json").read_text())
    found = standing(book)
    assert set(found.cells) == set(made) and not found.bad
    assert {(k.method, k.rollout_budget) for k in made} == {
        ("base", 0),
        ("grpo", 128),
        ("dpo", 128),
        ("wmpo", 128),
    }
    for key, cell in found.cells.items():
        row = told["policies"][key.method]
        assert cell.success.tolist() == row["success"]
        assert cell.finish_steps.tolist() == row["finish_step"]
    record = found.cells[WMPO].record
    assert record["episodes"] == {"demonstrations": 32, "rollouts": 128, "play": 7104}
    assert record["commit"] == json.loads((RUN / "result.json").read_text())["commit"]
    assert len({cell.record["weights"] for cell in found.cells.values()}) == 4


def test_entering_it_again_changes_nothing(book):
    before = {path: path.read_bytes() for path in book.folder.rglob("*.json")}
    assert enter(RUN, book) == []
    assert before == {path: path.read_bytes() for path in book.folder.rglob("*.json")}


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("config.json", {"seed": 17}, "seed 17 and changes none is no cell of any experiment"),
        ("config.json", {"wmpo_lr": 1.0}, r"wmpo_lr: 1.0 then, 0.0003 now"),
        ("config.json", {"evaluation_from": 0}, "from number 0 on, and table_1/.* asks for 1024"),
        ("config.json", {"profile": "smoke"}, "is of profile smoke, and this ledger is of profile"),
        ("config.json", {"changes": {"groups": 3}}, "changes {'groups': 3} is no cell"),
        ("evaluation.json", {"policies": {}}, "evaluation.json has no 'base'"),
        ("result.json", None, r"is not a finished run \(result.json missing\)"),
    ],
)
def test_a_run_that_is_no_cell_is_refused_in_one_sentence(tmp_path, name, fields, message):
    run = shutil.copytree(RUN, tmp_path / "run")
    change(run / name, **fields) if fields else (run / name).unlink()
    with pytest.raises(UserError, match=message):
        enter(run, Book(folder=tmp_path / "ledger"))


# -- what does not count ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda path: change(path, successes=1000), "was edited after it was written"),
        (lambda path: change(path, seed=1), "was edited after it was written"),
        (lambda path: change(path, commit="x"), "was edited after it was written"),
        (lambda path: path.write_text(path.read_text()[:700]), "is not valid JSON"),
        (lambda path: path.write_text("{}"), "has no 'ledger'"),
        (lambda path: path.rename(path.with_stem("place-wmpo-p128-s1")), "it was renamed"),
    ],
)
def test_a_damaged_cell_is_named_and_left_out(book, edit, message):
    edit(WMPO.path(book.folder))
    found = standing(book)
    assert WMPO not in found.cells and SLIP not in found.cells and len(found.cells) == 3
    assert any(message in said for said in found.bad.values())
    said, shown = reproduce.describe(book, ["table_1/place"]), reproduce.publish(book)
    assert message in said and f"missing {WMPO}" in said and message in shown
    assert "WMPO" not in shown.partition("not counted")[0]


def test_a_cell_that_was_sealed_anew_must_still_agree_with_itself(book):
    path = WMPO.path(book.folder)
    record = json.loads(path.read_text()) | {"successes": 1000}
    path.write_text(json.dumps(record | {"seal": seal(record)}))
    assert "contradicts itself" in standing(book).bad[path.stem]


def test_another_setting_makes_only_the_cells_stale_that_depend_on_it(book, monkeypatch):
    other = dataclasses.replace(PROFILES["laptop"], wmpo_lr=1e-3, track_every=1, trust_rollouts=9)
    monkeypatch.setitem(PROFILES, "laptop", other)
    found = standing(book)
    assert found.bad[str(WMPO)] == f"{WMPO} is stale: wmpo_lr: 0.0003 then, 0.001 now"
    assert {key.method for key in found.cells} == {"base", "grpo", "dpo"}
    assert "is not in the ledger yet" in found.bad[str(SLIP)]


def test_other_assets_make_cells_stale(book, monkeypatch):
    now = cells.shipped_assets("place")
    monkeypatch.setattr(cells, "shipped_assets", lambda task: now | {"world_model": "another"})
    assert {key.method for key in standing(book).cells} == {"base", "grpo", "dpo"}
    monkeypatch.setattr(cells, "shipped_assets", lambda task: now | {"policy": "another"})
    assert not standing(book).cells and "policy: 22e1a8c3bcbc then" in str(standing(book).bad)


@pytest.mark.parametrize("changes", [{"policy": "others"}, {"error": "offset"}])
def test_a_policy_that_was_tried_out_otherwise_is_stale(book, changes):
    tried(book, **changes)
    found = standing(book)
    assert SLIP not in found.cells and WMPO in found.cells
    assert f"{SLIP} is stale: {next(iter(changes))}" in found.bad[str(SLIP)]


def test_a_setting_that_the_kit_has_gained_since_is_not_compared(book, monkeypatch):
    settings = cells.plain_settings
    monkeypatch.setattr(cells, "plain_settings", lambda run: settings(run) | {"brand_new": 1})
    assert WMPO in standing(book).cells and not standing(book).bad


def test_a_ledger_of_another_version_is_refused(book):
    change(WMPO.path(book.folder), ledger=2)
    with pytest.raises(UserError, match="is of version 2 of the ledger, and this kit reads"):
        standing(book)


def test_cells_of_no_experiment_are_left_out(book):
    key = dataclasses.replace(WMPO, rollout_budget=99)
    common = dict(evaluation_from=1000, inputs={}, weights="w", **MORE)
    write_cell(key, [True], [3], book.folder, **common)
    assert key in read_ledger(book.folder).cells
    assert standing(book).bad == {str(key): f"{key} is a cell of no experiment"}


def test_smoke_cells_never_come_among_the_others(tmp_path):
    with pytest.raises(UserError, match="holds cells of profile laptop; name another folder"):
        Book(profile="smoke")
    assert Book(folder=tmp_path, profile="smoke").states("table_1") == (24, 1000)


# -- making ----------------------------------------------------------------------------------------


def outcomes(policy, task, world, rows):
    return [SimpleNamespace(success=True, finish_step=7)] * len(rows)


def test_what_is_missing_is_made_once_and_goes_on_when_one_fails(book, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(reproduce, "attempt", lambda *a: calls.append(a[2]) or outcomes(*a))
    can, cannot = (dataclasses.replace(SLIP, method="dpo", seed=seed) for seed in (0, 1))
    with pytest.raises(UserError, match="1 of 2 pieces of work were not done.*p128-s1, which is"):
        reproduce.reproduce([str(cannot), str(can)], book)
    assert calls == [{"error": "slip"}] and f"{can}: done" in capsys.readouterr().out
    reproduce.reproduce([str(can)], book)
    assert len(calls) == 1
    made = standing(book).cells[can]
    assert made.success.all() and made.record["core_seconds"] >= 0


def test_a_stale_cell_is_made_again(book, monkeypatch):
    tried(book, error="offset")
    monkeypatch.setattr(reproduce, "attempt", outcomes)
    reproduce.reproduce([str(SLIP)], book)
    assert standing(book).cells[SLIP].success.all() and not standing(book).bad


def test_recoveries_are_the_first_states_that_one_policy_alone_recovers_from(book, monkeypatch):
    base = Key("self_correction", "place", "base", 0, 0, "slip")
    with pytest.raises(UserError, match=f"{base} is not in the ledger"):
        reproduce.recoveries("slip", book)
    tried(book, base)
    film = lambda policy, task, world, rows, every_frame: [
        SimpleNamespace(frames=np.full((41, 8, 8, 3), row % 256, np.uint8)) for row in rows
    ]
    monkeypatch.setattr(reproduce, "attempt", film)
    rows, films = reproduce.recoveries("slip", book)
    assert rows == [1000, 1001] and [len(pair) for pair in films] == [2, 2]
    path = reproduce.picture("slip", book, book.folder)
    assert Image.open(path).size == (11 * 8, 4 * 8)


def test_the_second_of_two_processes_on_one_cell_says_so(book):
    other = dataclasses.replace(SLIP, method="grpo")
    code = "import sys, wmpo_lite.common.owner as o; held = o.Owner(sys.argv[1]); print(1); input()"
    folder = book.runs / "reproduce" / str(other).replace("/", "-")
    command = [sys.executable, "-u", "-c", code, str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"in use by another process .process {process.pid}"):
            reproduce.reproduce([str(other)], book)
        process.communicate("\n")
    assert other not in standing(book).cells


def test_work_is_shared_by_the_cells_of_one_run(tmp_path):
    book = Book(folder=tmp_path)
    chosen = reproduce.choose(["table_1/place", "oracle/place-oracle-p0-s1"], standing(book))
    work = reproduce.groups(chosen, book)
    assert len(chosen) == 20 and len(work) == 7  # six runs, an oracle
    assert len(work[0]) == 4 and {key.method for key in work[0]} == {"base", "grpo", "dpo", "wmpo"}
    assert str(book.run_folder(work[0][0])) == "runs/place-laptop-p128-s0"
    assert book.run(work[0][0]) == book.run(work[0][3])


def test_two_processes_at_a_time_make_what_can_be_made(tmp_path):
    book = Book(folder=tmp_path / "ledger", profile="smoke", runs=tmp_path / "runs")
    base = Key("table_1", "place", "base", 0, 0)
    policy = cells.policy_of(RUN, base)
    common = dict(inputs=cells.inputs(base, book, {}), weights=checkpoint.fingerprint(policy))
    write_cell(base, [True] * 24, [9] * 24, book.folder, evaluation_from=1000, **common, **MORE)
    can, cannot = (
        dataclasses.replace(SLIP, method=method, rollout_budget=budget)
        for method, budget in (("base", 0), ("wmpo", 128))
    )
    with pytest.raises(UserError, match="1 of 2 pieces of work.*wmpo-p128-s0, which is not in"):
        reproduce.reproduce([str(can), str(cannot)], book, jobs=2)
    made = standing(book).cells[can]
    assert (len(made), made.record["weights"]) == (24, common["weights"])
    known = read_ledger().cells.get(can)  # the same states of the shipped ledger's cell
    assert known is None or (known.success[:24] == made.success).mean() > 0.8
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="free some disk space"):
        write_cell(WMPO, [True], [3], tmp_path, evaluation_from=0, inputs={}, weights="", **MORE)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_cell_is_refused_in_one_sentence(book):
    with pytest.raises(UserError, match="'table_3' is no cell and no beginning of one"):
        reproduce.choose(["table_1/place", "table_3"], standing(book))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["table_9"], "'table_9' is no cell"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--profile", "huge"], "profile 'huge' is unknown"),
        (["--from", "nowhere"], "nowhere is not a finished run"),
        (["table_1/coffee-base"], "task 'coffee' is unknown"),
    ],
)
def test_the_command_says_in_one_line_what_cannot_be(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", *arguments, "--ledger", str(tmp_path / "ledger")])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and message in said and "\n" not in said
    assert not list(tmp_path.rglob("*.json"))


def test_the_dry_run_lists_what_is_missing_with_its_cost_and_what_waits_with_the_reason(book):
    said = reproduce.describe(book)
    assert "table_1: WMPO ends above both baselines; 4 of 95 cells are done" in said
    assert f"missing {dataclasses.replace(WMPO, seed=1)} (1.38 core-hours)" in said
    assert f"missing {WMPO} " not in said and f"missing {SLIP} " not in said
    assert all(f"  {task}: " in said and why in said for task, why in WAITING.items())


# -- what an experiment is -------------------------------------------------------------------------


def test_every_cell_has_a_name_of_its_own_and_a_cost():
    every = [key for name in EXPERIMENTS for key in keys(name)]
    assert len({str(key) for key in every}) == len(every) and all(cost(key) > 0 for key in every)
    assert [key for key in keys("table_1") if (key.task, key.method) == ("place", "base")] == [
        Key("table_1", "place", "base", 0, 0)
    ]
    larger = dataclasses.replace(WMPO, rollout_budget=1280)
    assert cost(WMPO) < cost(larger) < 4 * cost(WMPO)


def test_disturbances_grow():
    for kind in ("position", "background", "texture", "light"):
        sizes = [
            next(iter(disturbances()[f"{kind}-{k}"]["disturbance"].values())) for k in (1, 2, 3)
        ]
        assert 0 < sizes[0] < sizes[1] < sizes[2]


# -- tables ----------------------------------------------------------------------------------------


def cell(method, success, seed=0, budget=128, steps=None, variant="", experiment="table_1"):
    success = np.array(success, dtype=bool)
    steps = np.where(success, 20, 40) if steps is None else np.array(steps)
    key = Key(experiment, "place", method, 0 if method == "base" else budget, seed, variant)
    return key, Cell(key, 1000, success, steps, {"seconds": 7200, "core_seconds": None})


def test_a_comparison_pairs_seeds_and_states():
    made = dict(
        [
            cell("base", [1, 0, 0, 0]),
            cell("wmpo", [1, 1, 0, 0]),
            cell("wmpo", [1, 1, 1, 0], seed=2),
            cell("dpo", [0, 0, 0, 0], seed=1),
            cell("dpo", [0, 1, 1, 1], seed=2),
        ]
    )
    (line,) = ledger_tables.lines(made, "table_1")
    assert ledger_tables.gain(line, "wmpo", "base")[0] == pytest.approx((1 + 2) / 8)
    assert ledger_tables.gain(line, "wmpo", "dpo")[0] == 0  # of seed 2, which both have
    assert ledger_tables.gain(line, "wmpo", "grpo") is None
    assert ledger_tables.rate(line.cells["base"])[0] == 0.25
    assert ledger_tables.rate(line.cells["wmpo"])[0] == 5 / 8


def test_lengths_are_of_states_that_both_solve():
    base = cell("base", [1, 1, 0], steps=[20, 30, 40])
    (line,) = ledger_tables.lines(
        dict([base, cell("wmpo", [1, 1, 1], steps=[10, 30, 5])]), "table_1"
    )
    mean, low, high, count = ledger_tables.relative_length(line, "wmpo")
    assert (mean, count) == (80.0, 2) and low <= 80 <= high
    (alone,) = ledger_tables.lines(dict([base, cell("wmpo", [0, 0, 1])]), "table_1")
    assert ledger_tables.relative_length(alone, "wmpo") is None


def test_the_interval_of_lengths_is_as_wide_as_seeds_lie_apart():
    steps = [20] * 40
    base = cell("base", [1] * 40, steps=steps)
    found = []
    for lengths in ([10], [5, 15]):  # the same mean
        cells = [cell("wmpo", [1] * 40, s, steps=[x] * 40) for s, x in enumerate(lengths)]
        (line,) = ledger_tables.lines(dict([base, *cells]), "table_1")
        found.append(ledger_tables.relative_length(line, "wmpo"))
    assert found[0] == (50, 50, 50, 40) and found[1] == (50, 25, 75, 80)


def test_the_base_policy_stands_beside_every_budget_and_efficiency_takes_table_1_along():
    made = dict(
        [
            cell("base", [0, 0]),
            cell("wmpo", [1, 0]),
            cell("wmpo", [1, 1], budget=1280),
            cell("wmpo", [0, 1], budget=32, experiment="efficiency"),
        ]
    )
    assert [line.budget for line in ledger_tables.lines(made, "table_1")] == [128, 1280]
    efficiency = ledger_tables.lines(made, "efficiency")
    assert [line.budget for line in efficiency] == [32, 128, 1280]
    assert all(set(line.cells) == {"base", "wmpo"} for line in efficiency)


def test_tables_are_rebuilt_from_the_ledger_alone(book):
    shown = reproduce.publish(book)
    assert "30.7 [28, 34] | 25.9 [23, 29] | 34.2 [31, 37] | 44.9 [42, 48]" in shown
    assert "| +14.3 [+10.6, +17.9] |" in shown
    table = book.folder / "tables" / "table_1.csv"
    rows = list(csv.DictReader(table.open()))
    assert {r["method"]: int(r["successes"]) for r in rows}["wmpo"] == 460
    before = table.read_bytes()
    table.unlink()
    assert reproduce.publish(book) == shown and table.read_bytes() == before
    assert checkpoint.read_json(WMPO.path(book.folder))["successes"] == 460


def test_figures_are_rebuilt_from_the_ledger_alone_and_say_what_is_missing(book):
    reproduce.publish(book)
    made = {path.name: path.read_bytes() for path in (book.folder / "figures").glob("*.png")}
    assert set(made) == {"table_1.png", "self_correction.png", "efficiency.png"}
    reproduce.publish(book)
    assert made == {p.name: p.read_bytes() for p in (book.folder / "figures").glob("*.png")}
    texts = ledger_figures.bars({}, "table_2").axes[0].texts
    assert [text.get_text() for text in texts] == ["no cell of table_2 yet"]


def test_strengths_begin_with_the_same_states_undisturbed():
    made = dict(
        [
            cell("base", [1, 0, 1]),
            cell("base", [0, 0], variant="light-2", experiment="table_2"),
            cell("wmpo", [1, 1, 1]),
            cell("wmpo", [0, 1], variant="light-2", experiment="table_2"),
        ]
    )
    (panel,) = ledger_figures.strengths(made).axes
    ends = {c.get_label(): list(c.lines[0].get_ydata()) for c in panel.containers}
    assert panel.get_title(loc="left") == "place: light"
    assert ends == {"base": [50, 0], "WMPO": [100, 50]}
