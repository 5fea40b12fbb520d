"""Tasks by name: both simulators behind the same four questions."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs import tasks
from wmpo_lite.envs.tabletop.tasks import NAMES, Task, get_task
from wmpo_lite.trajectory import InitialStates

ELSEWHERE = SimpleNamespace(suite="libero_object", horizon=56)


def test_table_top_tasks_by_name():
    task = tasks.get_task("place")
    env = tasks.make_env(task, threads=1)
    states = tasks.initial_states(task, env, "validation", [3, 4])
    assert (
        env.reset(states).shape == (2, 64, 64, 3)
        and states.split == "validation"
        and states.indices.tolist() == [3, 4]
    )
    env.close()


@pytest.mark.parametrize(
    "name, message",
    [
        ("juggle", "juggle"),
        ("libero_object/first", "libero_object/0"),
        ("libero_object/", "libero_object/0"),
        ("libero_soup/1", "no suite 'libero_soup'"),
    ],
)
def test_unknown_tasks_are_named(name, message):
    with pytest.raises(UserError, match=message):
        tasks.get_task(name)


def test_folders_of_tasks():
    assert [tasks.folder_name(name) for name in ("place", "libero_object/0")] == [
        "place",
        "libero_object-0",
    ]


def test_what_tasks_share_is_in_a_folder_of_their_simulator_or_suite():
    names = ("place", "square", "libero_object/0", "libero_object/7", "libero_spatial/2")
    found = [tasks.shared_name(name) for name in names]
    assert found == ["tabletop"] * 2 + ["libero_object"] * 2 + ["libero_spatial"]


@pytest.mark.parametrize("split, own", [("evaluation", 2), ("validation", 0)])
def test_the_first_fifty_states_of_evaluation_are_the_benchmarks_own(split, own):
    states = InitialStates(np.zeros((4, 3)), None, ("",) * 4, split, np.arange(48, 52))
    assert tasks.of_the_benchmark(ELSEWHERE, states).tolist() == [True] * own + [False] * (4 - own)
    assert not tasks.of_the_benchmark(tasks.get_task("place"), states).any()


def test_the_other_sentence_names_the_other_object_of_the_same_scene():
    task = tasks.get_task("square")
    states = tasks.initial_states(task, None, "demos", np.arange(8))
    other = tasks.with_other_sentence(task, states)
    assert (
        all(a != b for a, b in zip(states.instructions, other.instructions))
        and (states.states[:, :-1] == other.states[:, :-1]).all()
    )
    assert tasks.with_other_sentence(task, other).instructions == states.instructions
    assert tasks.has_other_sentence(task) and not tasks.has_other_sentence(ELSEWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_every_table_top_task_says_all_that_a_task_has_to_say(name):
    task = get_task(name)
    wanted = {*Task.__annotations__, *(n for n, f in vars(Task).items() if callable(f))}
    wanted = {n for n in wanted if not n.startswith("_")}
    assert {"horizon", "bodies", "goal"} <= wanted
    assert {n for n in wanted if not hasattr(task, n)} == set()
    for n in wanted - set(Task.__annotations__):
        taken = list(inspect.signature(getattr(task, n)).parameters)
        assert taken == list(inspect.signature(getattr(Task, n)).parameters)[1:], n
