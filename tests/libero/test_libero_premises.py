"""States whose premise is broken are left out and told apart; the doctor's table of them is
measured once for each set of versions.
"""

import subprocess
import sys

import numpy as np
import pytest

from wmpo_lite.cli import main
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import read_json
from wmpo_lite.envs import tasks as all_tasks
from wmpo_lite.envs.libero import installed, premises
from wmpo_lite.envs.libero.env import LiberoEnv, Premise
from wmpo_lite.envs.libero.states import get_task, of_the_benchmark
from wmpo_lite.trajectory import InitialStates


def states(split, indices, size=3):
    indices = np.array(indices)
    return InitialStates(
        np.zeros((len(indices), size)), None, ("x",) * len(indices), split, indices
    )


def test_the_benchmarks_states_are_told_from_drawn_ones():
    assert of_the_benchmark(states("evaluation", [0, 49, 50, 1000])).tolist() == [1, 1, 0, 0]
    assert not of_the_benchmark(states("validation", [0, 49])).any()


def test_results_are_told_apart():
    some = states("evaluation", [0, 1, 2, 50, 51])
    found = [Premise(i, ("fell",) if i == 1 else ()) for i in some.indices]
    rates = premises.rates(some, found, [True, True, False, True, True])
    assert {kind: (r.successes, r.n) for kind, r in rates.items()} == {
        "benchmark": (1, 2),
        "broken premise": (1, 1),
        "drawn": (2, 2),
    }
    assert "50.0 % [9.5, 90.5] (n=2)" == str(rates["benchmark"])
    with pytest.raises(UserError, match="4 premises for 5 initial states"):
        premises.rates(some, found[:4], [True] * 5)


def test_many_broken_states_are_one_short_sentence():
    task = get_task("libero_spatial", 5)
    said = premises.left_out(task, "evaluation", [Premise(i, (f"fell {i} cm",)) for i in range(6)])
    assert said.startswith("6 initial states of libero_spatial/5 are left out, because")
    assert said.endswith("evaluation 0 (fell 0 cm), 1, 2, 3, 4, 5")


@pytest.mark.slow
def test_broken_states_are_left_out_with_one_sentence(capsys):
    task = get_task("libero_spatial", 2)
    with LiberoEnv(task, size=16, workers=2) as env:
        env.reset(env.initial_states("demos", [0]))
        episode = env.step_chunk(np.full((1, 2, 7), 0.3))[0]
        env.reset(env.initial_states("demos", [0]))
        env.step_chunk(np.full((1, 1, 7), 0.3))
        kept = all_tasks.initial_states(task, env, "evaluation", [3, 4, 18, 50])
        said = capsys.readouterr().out
        # a look at premises leaves the episode under way alone
        assert (env.step_chunk(np.full((1, 1, 7), 0.3))[0][:, 0] == episode[:, 1]).all()
        env.reset(kept)
        assert all(p.holds for p in env.premises)
        table = premises.load_table(premises.SHIPPED)
        broken = {int(i) for i in table["libero_spatial"]["2"]["broken"]} if table else {4, 18}
        assert kept.indices.tolist() == [i for i in (3, 4, 18, 50) if i not in broken]
        if broken >= {4, 18}:
            assert said.count("\n") == 1 and said.startswith(
                "2 initial states of libero_spatial/2 are left out"
            )
            assert "evaluation 4 (" in said and "18 (" in said and " slid " in said
            with pytest.raises(UserError, match="none is left, choose another task"):
                all_tasks.initial_states(task, env, "evaluation", [4, 18])


@pytest.fixture
def measured(monkeypatch):
    """Tasks that a table measures, in their order; nothing is simulated."""
    asked = []

    def pretend(task, count):
        asked.append((task.suite, task.number, count))
        broken = {"3": ["bowl slid 4.0 cm"]} if task.number == 5 else {}
        return {
            "instruction": task.instruction,
            "states": count,
            "hold": count - len(broken),
            "broken": broken,
        }

    monkeypatch.setattr(premises, "check_task", pretend)
    monkeypatch.setattr(premises, "SHIPPED", premises.SHIPPED.with_name("none.json"))
    monkeypatch.setattr(premises, "cores", lambda: 1)
    return asked


def test_a_table_is_measured_once_for_a_set_of_versions(measured, tmp_path, monkeypatch):
    cache = tmp_path / "made" / "table.json"
    found = premises.table(["libero_object"], 4, cache)
    assert len(measured) == 10 and found["libero_object"]["5"]["hold"] == 3
    assert premises.table(["libero_object"], 4, cache) == found and len(measured) == 10
    assert premises.table(["libero_object"], 3, cache) == found and len(measured) == 10
    premises.table(["libero_object"], 6, cache)
    assert len(measured) == 20
    premises.table(["libero_goal"], 0, cache)
    assert len(measured) == 20
    said = premises.describe(premises.table(["libero_object"], 6, cache))
    assert said[0] == "libero_object: 10 tasks, the premise holds in 59 of 60 stored states"
    assert said[1:] == [
        "  libero_object/5: the premise holds in 5 of 6 states; not in 3 (in 3 bowl slid 4.0 cm)"
    ]
    other = {**installed.versions(), "mujoco": "4.0.0"}
    monkeypatch.setattr(installed, "versions", lambda: other)
    premises.table(["libero_object"], 4, cache)
    assert len(measured) == 30 and read_json(cache)["versions"] == other


def test_a_stopped_table_goes_on(measured, tmp_path, monkeypatch):
    cache, whole = tmp_path / "table.json", premises.check_task

    def stop(task, count):
        if task.number == 4:
            raise KeyboardInterrupt
        return whole(task, count)

    monkeypatch.setattr(premises, "check_task", stop)
    with pytest.raises(KeyboardInterrupt):
        premises.table(["libero_object"], 4, cache)
    monkeypatch.setattr(premises, "check_task", whole)
    before = len(premises.load_table(cache)["libero_object"])
    assert before == 4
    del measured[:]
    assert len(premises.table(["libero_object"], 4, cache)["libero_object"]) == 10
    assert [number for _, number, _ in measured] == [4, 5, 6, 7, 8, 9]


def test_the_doctor_shows_the_table(measured, tmp_path, capsys):
    arguments = ["doctor", "--libero", "--suites", "libero_object", "--states", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--cache", str(tmp_path)])
    said = capsys.readouterr().out
    assert not ended.value.code and len(measured) == 10
    assert installed.named(installed.versions()) in said
    assert "suites have files" in said and "libero_object_temp" in said
    assert "libero_object/5: the premise holds in 1 of 2 states" in said
    assert [p.name for p in tmp_path.iterdir()] == [
        f"libero_premises-{installed.distribution().replace(' ', '-')}"
        f"-mujoco-{installed.versions()['mujoco']}.json"
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--suites", "libero_11"], "no suite 'libero_11'"),
        (["--states", "51"], "stores 50 of each task"),
        (["--states", "-1"], "stores 50 of each task"),
    ],
)
def test_bad_arguments_of_the_doctor(arguments, message, measured, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--libero", *arguments, "--cache", str(tmp_path)])
    assert ended.value.code == 1 and message in capsys.readouterr().err


def test_a_table_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"versions": 1')
    with pytest.raises(UserError, match="table.json is not valid JSON"):
        premises.load_table(path)


def test_the_shipped_table_knows_the_broken_states():
    found = read_json(premises.SHIPPED, {"versions": dict, "settle": int, "suites": dict})
    assert found["versions"] == installed.TESTED
    spatial = found["suites"]["libero_spatial"]
    assert len(spatial) == 10 and all(row["states"] == 50 for row in spatial.values())
    assert list(spatial["2"]["broken"]) == ["4", "18", "20", "27"]
    assert spatial["5"]["hold"] == 0 and len(spatial["5"]["broken"]) == 50
    rows = [row for suite in found["suites"].values() for row in suite.values()]
    assert all(row["states"] == row["hold"] + len(row["broken"]) for row in rows)


def test_states_of_another_task_are_refused(env):
    """They may have as many numbers."""
    mine = env.initial_states("evaluation", [0])
    other = get_task("libero_object", 3)
    foreign = InitialStates(mine.states, None, (other.instruction,), "evaluation", mine.indices)
    with pytest.raises(UserError, match="bbq sauce.*the environment is for.*alphabet soup"):
        env.reset(foreign)


def test_a_task_without_files_is_named(monkeypatch, tmp_path):
    from libero.libero import benchmark

    monkeypatch.setattr(benchmark, "get_libero_path", lambda what: str(tmp_path))
    with pytest.raises(UserError, match="libero_object/0 has no files.*alphabet_soup.*is missing"):
        get_task("libero_object", 0)


ASKING = """
import os
place = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
path = os.path.join(place, "config.yaml")
os.makedirs(place, exist_ok=True)
if not os.path.exists(path):
    input("Where are the data? ")
    open(path, "w").write("{}")
def get_libero_path(what):
    import yaml
    return yaml.safe_load(open(path))[what]
"""


def test_a_libero_that_asks_and_writes_is_kept_from_both(tmp_path):
    """And one without meshes is told so before it goes to fetch them."""
    package, home = tmp_path / "libero" / "libero", tmp_path / "home"
    package.mkdir(parents=True), home.mkdir()
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(ASKING)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom wmpo_lite.envs.libero import"
        " installed\nfrom wmpo_lite.common.errors import UserError\ninstalled.prepare()\nimport"
        " libero.libero\nprint(libero.libero.get_libero_path('bddl_files'))\ntry:\n   "
        " installed.check_meshes()\nexcept UserError as error:\n    print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(home), "PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    place, meshes = said.stdout.splitlines()
    assert place == str(package / "bddl_files")
    assert "comes without meshes" in meshes and f"{package / 'assets'} is missing" in meshes
    assert not list(home.rglob("*"))
