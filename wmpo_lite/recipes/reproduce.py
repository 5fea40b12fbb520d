"""`wmpo-lite reproduce`: the cells of the ledger, each made once, from the runs and policies that
they share. A demo of one task, budget and seed gives the cells of its four methods together.
"""

import dataclasses
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError, require_between
from wmpo_lite.common.files import ASSETS
from wmpo_lite.common.owner import Owner
from wmpo_lite.envs.splits import USES
from wmpo_lite.recipes.cells import (
    Book,
    enter,
    here,
    inputs,
    policy_of,
    standing,
    trained,
    waves,
)
from wmpo_lite.recipes.experiments import (
    EXPERIMENTS,
    NOT_CELLS,
    ORACLE_ITERATIONS,
    WAITING,
    cost,
    keys,
)
from wmpo_lite.report.ledger import Key, Ledger, write_cell

# -- making cells ----------------------------------------------------------------------------------


def find_policy(key: Key, book: Book, weights: str):
    """The policy with these weights: of the run that gave the cell, or of the shipped run."""
    return _find(key, book, weights)[0]


def _find(key: Key, book: Book, weights: str):
    """`find_policy`, and the folder of its run."""
    from wmpo_lite.envs.tasks import folder_name

    places = [book.run_folder(key), ASSETS / folder_name(key.task) / "run"]
    for place in places:
        if key.method == "base" or place.exists():
            try:
                policy = policy_of(place, key, book.device)
            except UserError:
                continue
            if checkpoint.fingerprint(policy) == weights:
                return policy, place
    raise UserError(
        f"the policy of {key} is in none of {', '.join(map(str, places))}; copy its run folder"
        f" there, or remove the cell and run it again"
    )


def attempt(policy, task: str, world: dict, rows, every_frame: bool = False) -> list:
    """Greedy episodes (`Trajectory`) in a changed world, one from each evaluation state of `rows`.

    world: {"disturbance": fields of `Disturbance`}, {"error": one of `envs.injected.ERRORS`}, or {}
    for the world as it is.
    """
    from wmpo_lite.envs.injected import InjectedErrors
    from wmpo_lite.envs.tabletop.env import Disturbance, initial_states
    from wmpo_lite.envs.tasks import get_task, make_env
    from wmpo_lite.rollout import rollout

    task, change = get_task(task), Disturbance(**world.get("disturbance", {}))
    with closing(make_env(task, disturbance=change)) as env:
        return rollout(
            policy,
            InjectedErrors(env, world["error"]) if "error" in world else env,
            initial_states(task, USES["evaluation"].split, rows, change),
            horizon=task.horizon,
            every_frame=every_frame,
            batch=64,
        )


def recoveries(error: str, book: Book) -> tuple[list, list]:
    """Of one kind of injected error the first evaluation state that WMPO's policy alone recovers
    from, and the first that the base policy alone does: their numbers, and for each the frames
    uint8 (T + 1, H, W, 3) of the base policy and of WMPO's.
    """
    cells = standing(book).cells
    base, other = (
        Key("self_correction", "place", *which, error)
        for which in (("base", 0, 0), ("wmpo", 128, 0))
    )
    if absent := [key for key in (base, other) if key not in cells]:
        raise UserError(f"{absent[0]} is not in the ledger; make it with `wmpo-lite reproduce`")
    a, b = cells[base].success, cells[other].success
    rows = [np.flatnonzero(only)[:1] + cells[base].evaluation_from for only in (b & ~a, a & ~b)]
    rows, films = np.concatenate(rows), []
    if not len(rows):
        raise UserError(f"base and wmpo recover from the same states of '{error}'; try another")
    for key in (base, other):
        policy = find_policy(trained(key), book, cells[key].record["weights"])
        found = attempt(policy, "place", {"error": error}, rows, every_frame=True)
        films.append([t.frames for t in found])
    return rows.tolist(), list(zip(*films))


def picture(error: str, book: Book, folder: Path = ASSETS / "figures") -> Path:
    """recovery.png of `recoveries`: rows in pairs, the base policy above WMPO's, every fourth frame
    from the error on.
    """
    from wmpo_lite.report.show import film_rows, write_png

    return write_png(film_rows(recoveries(error, book)[1]), Path(folder) / "recovery.png")


def make(group: list[Key], book: Book) -> None:
    """Make the cells of one run, or one cell that tries a policy out. UserError where another
    process is at it.
    """
    from wmpo_lite.train import set_threads

    set_threads()
    key, kind = group[0], EXPERIMENTS[group[0].experiment].kind
    if kind == "try":
        with Owner(book.runs / "reproduce" / str(key).replace("/", "-")):
            _try(key, book)
    elif kind == "oracle":
        from wmpo_lite.recipes.upper_bound import upper_bound

        upper_bound(book.run(key), book.run_folder(key), ORACLE_ITERATIONS, book.device)
        enter(book.run_folder(key), book)
    else:
        from wmpo_lite.recipes.main_job import main_job

        run = book.run(key)
        if kind == "round":
            begun = inputs(key, book, standing(book).cells)["policy"]
            _, before = _find(trained(key), book, begun)
            run = dataclasses.replace(run, after=str(before))
        main_job(run, book.run_folder(key), book.device)
        enter(book.run_folder(key), book)


def _try(key: Key, book: Book) -> None:
    cells = standing(book).cells
    if key in cells:  # another process has made it just now
        return
    made_from = inputs(key, book, cells)
    policy = find_policy(trained(key), book, made_from["policy"])
    n, first = book.states(key.experiment)
    clock, busy = time.monotonic(), time.process_time()
    world = EXPERIMENTS[key.experiment].variants[key.variant]
    found = attempt(policy, key.task, world, np.arange(first, first + n))
    seconds = round(time.monotonic() - clock, 1)
    core_seconds = round(time.process_time() - busy, 1)
    write_cell(
        key,
        [t.success for t in found],
        [t.finish_step for t in found],
        book.folder,
        evaluation_from=first,
        inputs=made_from,
        weights=made_from["policy"],
        episodes={},
        frames_seen={},
        seconds=seconds,
        core_seconds=core_seconds,
        **here(),
    )


# -- choosing and running --------------------------------------------------------------------------


def choose(names, found: Ledger) -> list[Key]:
    """The cells that are left to make among those named (by the beginnings of their names; without
    names all but those of tasks that wait).
    """
    every = [key for name in EXPERIMENTS for key in keys(name)]
    wrong = [name for name in names if not any(str(key).startswith(name) for key in every)]
    if wrong:
        raise UserError(
            f"'{wrong[0]}' is no cell and no beginning of one; cells are named like {every[0]} and"
            f" {every[-1]}, and experiments are {', '.join(EXPERIMENTS)}"
        )
    named = lambda key: any(str(key).startswith(name) for name in names)
    wanted = named if names else lambda key: key.task not in WAITING
    return [key for key in every if key not in found.cells and wanted(key)]


def groups(chosen: list[Key], book: Book) -> list[list[Key]]:
    """Cells that one piece of work makes stand together: those of one run folder."""
    found: dict = {}
    for key in chosen:
        tried = EXPERIMENTS[key.experiment].kind == "try"
        found.setdefault(key if tried else book.run_folder(key), []).append(key)
    return list(found.values())


def reproduce(names, book: Book, jobs: int = 1) -> None:
    """Make what is missing of the cells named; what cannot be made is said and the others are made.
    UserError at the end if anything was not.
    """
    require_between("--jobs", jobs, 1, 1024)
    work = groups(choose(names, standing(book)), book)
    # policies that are tried out, or that a round begins with, have to be there
    stages = [[g for g in work if g[0].experiment in names] for names in waves()]
    rounds = dict.fromkeys(g[0].variant for g in stages[1])
    one_by_one = [[g for g in stages[1] if g[0].variant == name] for name in rounds]
    failed = []
    for wave in (stages[0], *one_by_one, stages[2]):
        for group, said in _together(wave, book, min(jobs, len(wave))):
            print(f"{group[0]}: {said or 'done'}", flush=True)
            failed += [said] if said else []
    if failed:
        raise UserError(
            f"{len(failed)} of {len(work)} pieces of work were not done, the first for this:"
            f" {failed[0]}"
        )


def _together(wave: list, book: Book, jobs: int):
    """(group, what went wrong or None) of each group, as they end."""
    if jobs < 2:
        yield from ((group, _attempt_to_make(group, book)) for group in wave)
        return
    context = multiprocessing.get_context("spawn")
    shares = context.Queue()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for job in range(jobs):
        shares.put(cores[job::jobs])
    with ProcessPoolExecutor(jobs, context, _take_cores, (shares,)) as pool:
        futures = [(group, pool.submit(_attempt_to_make, group, book)) for group in wave]
        for group, future in futures:
            try:
                yield group, future.result()
            except BrokenProcessPool:
                yield group, f"the process that made {group[0]} was ended; run the command again"


def _take_cores(shares) -> None:
    """In a new process: take a share of the cores, so that none gets in another's way."""
    if mine := shares.get():
        os.sched_setaffinity(0, mine)


def _attempt_to_make(group: list[Key], book: Book) -> str | None:
    try:
        make(group, book)
    except UserError as error:
        return str(error)


def describe(book: Book, names=()) -> str:
    """What is missing and what it costs, in words: each cell that can be run now, and sums of those
    that wait.
    """
    found = standing(book)
    left, lines = choose(names, found), []
    for name, e in EXPERIMENTS.items():
        cells, here = keys(name), [key for key in left if key.experiment == name]
        if names and not here:
            continue
        done = sum(key in found.cells for key in cells)
        hours = sum(cost(key) for key in cells if key not in found.cells)
        lines.append(
            f"{name}: {e.claim}; {done} of {len(cells)} cells are done, the others cost"
            f" {hours:.1f} core-hours at most"
        )
        lines += [f"  missing {key} ({cost(key):.2f} core-hours)" for key in here]
        for task in dict.fromkeys(key.task for key in cells):
            rest = [key for key in cells if key.task == task and key not in found.cells]
            if task in WAITING and rest and not names:
                hours = sum(map(cost, rest))
                lines.append(
                    f"  {task}: {len(rest)} cells wait, {hours:.1f} core-hours: {WAITING[task]}"
                )
    lines += [f"no cells: {what}: {why}" for what, why in NOT_CELLS.items()]
    lines += [f"not counted: {said}" for said in found.bad.values()]
    total = sum(cost(key) for key in left)
    return "\n".join([*lines, f"to run now: {len(left)} cells, {total:.1f} core-hours at most"])


def publish(book: Book) -> str:
    """Tables and figures of the cells that count, and a sentence for each that does not."""
    from wmpo_lite.report import ledger_figures, ledger_tables

    found = standing(book)
    text = ledger_tables.write(found.cells, book.folder)
    ledger_figures.write(found.cells, book.folder)
    return "\n\n".join([text, *(f"not counted: {said}" for said in found.bad.values())]).strip()
