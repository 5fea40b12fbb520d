"""Initial states whose premise does not hold once they have settled: left out of training, told
apart in evaluation, and a table of all that the benchmark stores.

The benchmark's states were stored with an older MuJoCo. Under the installed one some objects slide
or fall while a state settles, and an episode from there is not the task's.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError, require
from wmpo_lite.common.files import ASSETS, read_json, write_json
from wmpo_lite.common.machine import cores
from wmpo_lite.envs.libero import installed
from wmpo_lite.envs.libero.env import LiberoEnv, Premise
from wmpo_lite.envs.libero.simulation import SETTLE
from wmpo_lite.envs.libero.states import SUITES, LiberoTask, of_the_benchmark, tasks
from wmpo_lite.evaluate import SuccessRate, success_rate
from wmpo_lite.trajectory import InitialStates

BENCHMARK, DRAWN, BROKEN = "benchmark", "drawn", "broken premise"
SHIPPED = ASSETS / "results" / "libero_premises.json"
ROW = {"instruction": str, "states": int, "hold": int, "broken": dict}


def left_out(task: LiberoTask, split: str, broken: list[Premise]) -> str:
    """One sentence: which initial states are left out, and why (of more than four, the first)."""
    named = broken if len(broken) <= 4 else [broken[0], *(p.index for p in broken[1:])]
    count = "1 initial state" if len(broken) == 1 else f"{len(broken)} initial states"
    return (
        f"{count} of {task.suite}/{task.number} {'is' if len(broken) == 1 else 'are'} left out,"
        f" because what the task says of them does not hold under MuJoCo"
        f" {installed.versions()['mujoco']} once they have settled: {split} "
        + ", ".join(map(str, named))
    )


def leave_out(env: LiberoEnv, states: InitialStates) -> InitialStates:
    """The states whose premise holds; a line about the others. UserError if none holds."""
    kept, broken = env.sound(states)
    if broken:
        said = left_out(env.task, states.split, broken)
        if not len(kept):
            raise UserError(f"{said}; none is left, choose another task")
        print(said)
    return kept


def kinds(states: InitialStates, premises: list[Premise]) -> list[str]:
    """What each state counts as: "benchmark" (one of its 50), "drawn" (by the kit), or "broken
    premise". premises: of the same states, as `LiberoEnv.premises` has them after a reset.
    """
    if len(premises) != len(states):
        raise UserError(
            f"there are {len(premises)} premises for {len(states)} initial states; give those of"
            " the same reset"
        )
    own = of_the_benchmark(states)
    return [
        BROKEN if not premise.holds else BENCHMARK if mine else DRAWN
        for premise, mine in zip(premises, own)
    ]


def rates(states: InitialStates, premises: list[Premise], success) -> dict[str, SuccessRate]:
    """Success, bool (N,), on the benchmark's states, on drawn ones and on broken ones apart, each
    with n and its 95 % Wilson interval: what a policy learned on one kind says little of another.
    """
    success, own = np.asarray(success), np.asarray(kinds(states, premises))
    require(
        len(success) == len(own),
        f"there are {len(success)} outcomes for {len(own)} initial states; give one for each",
    )
    return {kind: success_rate(success[own == kind]) for kind in dict.fromkeys(own.tolist())}


# -- the table -------------------------------------------------------------------------------------


def check_task(task: LiberoTask, states: int) -> dict:
    """How many of the first `states` stored initial states of a task hold their premise, and what
    is broken in each of the others.
    """
    with LiberoEnv(task, size=16, workers=1) as env:
        found = env.premises_of(env.initial_states("evaluation", np.arange(states)))
    broken = {str(p.index): list(p.broken) for p in found if not p.holds}
    return {
        "instruction": task.instruction,
        "states": states,
        "hold": states - len(broken),
        "broken": broken,
    }


def load_table(path: Path) -> dict:
    """{suite: {task number: row}} of a table's file; {} if it is of other versions or not there."""
    if not path.exists():
        return {}
    found = read_json(path, {"versions": dict, "settle": int, "suites": dict})
    if found["versions"] != installed.versions() or found["settle"] != SETTLE:
        return {}
    whole = lambda row: isinstance(row, dict) and row.keys() >= ROW.keys()
    return {
        suite: {number: row for number, row in rows.items() if whole(row)}
        for suite, rows in found["suites"].items()
    }


def table(suites, states: int, cache: Path | None, say=print) -> dict:
    """{suite: {task number: row of `check_task`}} of all tasks of the named suites.

    Rows of at least `states` states are taken from `cache`, or from the table that ships, if they
    were made with the installed versions; the others are measured now, one task a core, and written
    to `cache` one by one, so that a stopped table goes on. states: 0 measures nothing.
    """
    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise UserError(f"LIBERO has no suite '{unknown[0]}'; use one of {', '.join(SUITES)}")
    if not 0 <= states <= 50:
        raise UserError(f"the number of states is {states}; the benchmark stores 50 of each task")
    known = load_table(SHIPPED)
    for suite, rows in (load_table(cache) if cache else {}).items():
        for number, row in rows.items():
            mine = known.setdefault(suite, {})
            if row["states"] >= mine.get(number, row)["states"]:
                mine[number] = row
    count = lambda t: known.get(t.suite, {}).get(str(t.number), {"states": 0})["states"]
    every = [task for suite in suites for task in tasks(suite)] if states else []
    wanted = [task for task in every if count(task) < states]

    def measure(task):
        return task, check_task(task, states)

    with ThreadPoolExecutor(cores()) as pool:
        for count, (task, row) in enumerate(pool.map(measure, wanted), 1):
            known.setdefault(task.suite, {})[str(task.number)] = row
            say(f"  {count} of {len(wanted)}: {line(task.suite, str(task.number), row)}")
            if cache:
                save_table(cache, known)
    return {suite: known.get(suite, {}) for suite in suites}


def save_table(path: Path, suites: dict):
    """Write a table's file, tasks in their order."""
    ordered = {
        suite: dict(sorted(rows.items(), key=lambda item: int(item[0])))
        for suite, rows in suites.items()
    }
    versions = installed.versions()
    write_json(path, {"versions": versions, "settle": SETTLE, "suites": ordered})


def line(suite: str, number: str, row: dict) -> str:
    """A row in words; of broken states the first one's reason."""
    said = f"{suite}/{number}: the premise holds in {row['hold']} of {row['states']} states"
    if row["broken"]:
        index, why = next(iter(row["broken"].items()))
        which = ", ".join(row["broken"]) if row["hold"] else "any"
        said += f"; not in {which} (in {index} {'; '.join(why)})"
    return said


def describe(found: dict) -> list[str]:
    """A table in words: a line for every suite, then one for every task with a broken state."""
    lines = []
    for suite, rows in found.items():
        count = len(rows)
        total = sum(row["states"] for row in rows.values())
        hold = sum(row["hold"] for row in rows.values())
        lines.append(
            f"{suite}: {count} tasks, the premise holds in {hold} of {total} stored states"
            if rows
            else f"{suite}: not measured"
        )
        lines += [f"  {line(suite, number, row)}" for number, row in rows.items() if row["broken"]]
    return lines
