"""`wmpo-lite reproduce`: the cells of the ledger, each made once, from the runs and policies that
they share.

A demo of one task, budget and seed gives the cells of its four methods together; a finished run
folder can be entered as it is. A cell counts while what it was made from is what would be taken
now: trained assets and settings of a run, the weights of a policy that is tried out.
"""

import dataclasses
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError, require_between
from wmpo_lite.files import ASSETS
from wmpo_lite.owner import Owner
from wmpo_lite.recipes.experiments import (
    EXPERIMENTS,
    METHODS,
    NOT_CELLS,
    OF_METHOD,
    WAITING,
    cost,
    keys,
)
from wmpo_lite.recipes.profiles import PROFILES
from wmpo_lite.recipes.workspace import Run
from wmpo_lite.report.ledger import LEDGER, Cell, Key, read_ledger, write_cell

# Settings that a method's policy depends on, by how their names begin (WMPO's: all but some).
COMMON = ("horizon", "temperature", "freeze_vision")
USED = {
    "grpo": (*COMMON, "online_", "minibatch"),
    "dpo": (*COMMON, "dpo_"),
    "oracle": (*COMMON, "wmpo_", "groups", "group_size", "minibatch"),
}
REPORTS = ("evaluation_", "track_", "trust_")
UNUSED_BY_WMPO = (*REPORTS, "online_", "dpo_")


@dataclass(frozen=True)
class Book:
    """Where cells are kept and how they are made. Other profiles than laptop need a folder of their
    own: their cells are not the paper's claims in any size.
    """

    folder: Path = LEDGER
    profile: str = "laptop"
    runs: Path = Path("runs")
    device: str = "auto"

    def __post_init__(self):
        if self.profile not in PROFILES:
            raise UserError(
                f"profile '{self.profile}' is unknown; use one of {', '.join(PROFILES)}"
            )
        if self.profile != "laptop" and Path(self.folder) == LEDGER:
            raise UserError(
                f"{LEDGER} holds cells of profile laptop; name another folder with --ledger for"
                f" profile {self.profile}"
            )

    def states(self, experiment: str) -> tuple[int, int]:
        """How many evaluation states a cell has, and the number of the first."""
        profile, n = PROFILES[self.profile], EXPERIMENTS[experiment].n
        return (
            min(n, profile.evaluation_states) if self.profile == "smoke" else n
        ), profile.evaluation_from

    def run_folder(self, key: Key) -> Path:
        """The folder of the run that gives a cell: that of `demo`, where a demo does."""
        from wmpo_lite.envs.tasks import folder_name

        task = folder_name(key.task)
        if key.method == "oracle":
            return self.runs / f"{task}-upper-s{key.seed}"
        parts = [task, self.profile, f"p{key.rollout_budget}", f"s{key.seed}"]
        return self.runs / "-".join([*parts, *([key.variant] if key.variant else [])])

    def run(self, key: Key) -> Run:
        """The run that gives a cell."""
        changes = EXPERIMENTS[key.experiment].variants[key.variant]
        changes = {"evaluation_states": self.states(key.experiment)[0], **changes}
        budget = {"rollout_budget": key.rollout_budget} if key.rollout_budget else {}
        return Run(key.task, self.profile, key.seed, changes=changes, **budget)


def trained(key: Key) -> Key:
    """The cell whose policy a cell tries out."""
    return Key("table_1", key.task, key.method, key.rollout_budget, key.seed)


# -- what a cell is made from ----------------------------------------------------------------------


def run_inputs(method: str, assets: dict, settings: dict) -> dict:
    """What the policy of a method depends on: of the trained assets and of a run's settings."""
    if method == "base":
        return {"policy": assets["policy"]}
    if method == "wmpo":
        used = {k: v for k, v in settings.items() if not k.startswith(UNUSED_BY_WMPO)}
        return {**assets, **used}
    used = {k: v for k, v in settings.items() if k.startswith(USED[method])}
    return {"policy": assets["policy"], **used}


def inputs(key: Key, book: Book, cells: dict) -> dict:
    """What the cell would be made from now. UserError where it cannot be told."""
    e = EXPERIMENTS[key.experiment]
    if e.kind != "try":
        run = book.run(key)
        return run_inputs(key.method, shipped_assets(key.task), plain_settings(run))
    if trained(key) not in cells:
        raise UserError(f"{key} takes the policy of {trained(key)}, which is not in the ledger yet")
    return {"policy": cells[trained(key)].record["weights"], **e.variants[key.variant]}


def plain_settings(run: Run) -> dict:
    from wmpo_lite.envs.tasks import get_task

    return checkpoint.plain(
        {**dataclasses.asdict(run.settings()), "horizon": get_task(run.task).horizon}
    )


def shipped_assets(task: str) -> dict:
    """The beginnings of the checksums of the weights that a run of `task` begins with."""
    from wmpo_lite.envs.tasks import folder_name

    folders = {
        "policy": ASSETS / folder_name(task) / "policy",
        **{name: ASSETS / "tabletop" / name for name in ("autoencoder", "world_model")},
    }
    return {
        name: checkpoint.checksum(folder / "model.safetensors")[:12]
        for name, folder in folders.items()
    }


@dataclass(frozen=True)
class Standing:
    """The ledger as it is: the cells that count, and by key why another one does not."""

    cells: dict
    bad: dict


def standing(book: Book) -> Standing:
    """Read the ledger. A cell counts if it is whole, of states that are asked for, and made from
    what would be taken now; a cell whose source does not count does not count either.
    """
    found = read_ledger(book.folder)
    cells, bad = {}, {path.stem: said for path, said in found.problems.items()}
    every = {key for name in EXPERIMENTS for key in keys(name)}
    bad |= {str(k): f"{k} is a cell of no experiment" for k in found.cells if k not in every}
    # a policy that is tried out has a cell of its own, which comes first
    for key in sorted(
        every & set(found.cells), key=lambda k: EXPERIMENTS[k.experiment].kind == "try"
    ):
        if said := stale(found.cells[key], book, cells):
            bad[str(key)] = said
        else:
            cells[key] = found.cells[key]
    return Standing(cells, bad)


def stale(cell: Cell, book: Book, cells: dict) -> str | None:
    """Why a cell does not count any more, None if it does. A setting that the kit has gained since
    it was made is not compared.
    """
    n, first = book.states(cell.key.experiment)
    made = {**cell.record["inputs"], "n": len(cell), "evaluation_from": cell.evaluation_from}
    try:
        now = {**inputs(cell.key, book, cells), "n": n, "evaluation_from": first}
    except UserError as error:
        return f"{cell.key} is stale: {error}"
    changed = changes(made, now)
    return f"{cell.key} is stale: {changed}" if changed else None


def changes(made: dict, now: dict) -> str:
    """In what `made` differs from `now`, in words; "" if in nothing."""
    now = checkpoint.plain(now)
    return ", ".join(f"{k}: {v} then, {now.get(k)} now" for k, v in made.items() if now.get(k) != v)


# -- entering a run --------------------------------------------------------------------------------


def enter(folder: Path, book: Book) -> list[Key]:
    """Write the cells that a finished run gives (of a demo, an upper bound, or the shipped run).
    Cells that count already are left as they are.
    """
    folder = Path(folder)
    oracle = (folder / "upper_bound.json").exists()
    files = ["upper_bound.json"] if oracle else ["result.json", "evaluation.json", "seen.json"]
    if absent := [name for name in files if not (folder / name).exists()]:
        raise UserError(
            f"{folder} is not a finished run ({', '.join(absent)} missing); run the same demo again"
            " to finish it"
        )
    config = checkpoint.read_json(
        folder / "config.json",
        {"task": str, "profile": str, "seed": int, "rollout_budget": int, "changes": dict}
        | {"assets": dict, "horizon": int, "evaluation_from": int},
    )
    measured = (_of_upper_bound if oracle else _of_demo)(folder, config)
    there, made = standing(book).cells, []
    for key in given(config, book, oracle):
        if key not in there:
            _enter(key, measured[key.method], folder, book, config)
            made.append(key)
    return made


def _of_demo(folder: Path, config: dict) -> dict:
    """By method: outcomes, finish steps, what was seen, and where the numbers come from."""
    row = {"success": [bool], "finish_step": [int]}
    table = checkpoint.read_json(
        folder / "evaluation.json", {"policies": {method: row for method in METHODS}}
    )["policies"]
    result = checkpoint.read_json(folder / "result.json", {"versions": dict, "commit": str})
    seen = checkpoint.read_json(folder / "seen.json", {"base": dict, "world_model": dict})
    origin = {name: result[name] for name in ("versions", "commit")}
    return {
        m: (
            table[m]["success"],
            table[m]["finish_step"],
            seen[{"wmpo": "world_model"}.get(m, m)],
            origin,
        )
        for m in METHODS
    }


def _of_upper_bound(folder: Path, config: dict) -> dict:
    read = lambda stage, shape: checkpoint.read_json(
        folder / "stages" / f"{stage}.json", {"result": shape}
    )["result"]
    success = read("evaluate_upper", {"success": [bool]})["success"]
    rollouts, steps = read("upper", {"real_rollouts": int})["real_rollouts"], config["horizon"]
    seen = {"rollouts": [rollouts, rollouts * (steps + 1)]}
    # an upper bound does not keep when its episodes succeeded, nor versions
    return {"oracle": (success, [steps] * len(success), seen, here())}


def _enter(key: Key, measured: tuple, folder: Path, book: Book, config: dict) -> None:
    """Write a cell that a run gives. UserError where the run was evaluated on other states, or made
    from other things, than are asked for now.
    """
    success, finish_steps, seen, origin = measured
    n, first = book.states(key.experiment)
    if len(success) < n or config["evaluation_from"] != first:
        raise UserError(
            f"{folder} was evaluated on {len(success)} states from number"
            f" {config['evaluation_from']} on, and {key} asks for {n} from {first} on; run it under"
            f" another --name with --evaluation-states {n}"
        )
    settings = {k: config[k] for k in plain_settings(book.run(key)) if k in config}
    made = run_inputs(key.method, config["assets"], settings)
    if changed := changes(made, inputs(key, book, {})):
        raise UserError(
            f"{folder} was made from something else than {key} asks for now ({changed}); run it"
            " again under another --name"
        )
    pairs = {name: pair or (0, 0) for name, pair in seen.items()}
    write_cell(
        key,
        success[:n],
        finish_steps[:n],
        book.folder,
        evaluation_from=first,
        inputs=made,
        weights=checkpoint.fingerprint(policy_of(folder, key, book.device)),
        episodes={name: pair[0] for name, pair in pairs.items()},
        frames_seen={name: pair[1] for name, pair in pairs.items()},
        **_spent(folder, key.method),
        **origin,
    )


def here() -> dict:
    return {"versions": checkpoint.versions(), "commit": checkpoint.commit()}


def given(config: dict, book: Book, oracle: bool = False) -> list[Key]:
    """The cells that a run with this configuration gives."""
    task, budget, seed = (config[name] for name in ("task", "rollout_budget", "seed"))
    if config["profile"] != book.profile:
        raise UserError(
            f"the run of {task} is of profile {config['profile']}, and this ledger is of profile"
            f" {book.profile}; name another folder with --ledger and its --profile"
        )
    changed = {k: v for k, v in config["changes"].items() if not k.startswith(REPORTS)}
    shape = (task, 0 if oracle else budget, seed)
    found = [
        key
        for name, e in EXPERIMENTS.items()
        if e.kind == ("oracle" if oracle else "run")
        for key in keys(name)
        if (key.task, key.rollout_budget, key.seed) == shape
        and key.method != "base"
        and e.variants[key.variant] == changed
    ]
    if not found:
        raise UserError(
            f"a run of {task} with P = {budget}, seed {seed} and changes {changed or 'none'} is no"
            " cell of any experiment; `wmpo-lite reproduce --dry-run` lists them"
        )
    base = Key("table_1", task, "base", 0, 0)
    return found + ([base] if found[0].experiment == base.experiment else [])


def _spent(folder: Path, method: str) -> dict:
    """Seconds, and core-seconds where they were measured, of the stages that a method alone needs
    and of its share of the evaluation; null for a run that came without its stages.
    """
    stages = ("upper", "evaluate_upper") if method == "oracle" else (*OF_METHOD[method], "evaluate")
    rows = []
    for stage in stages:
        path = Path(folder) / "stages" / f"{stage}.json"
        row = checkpoint.read_json(path, {"seconds": float}) if path.exists() else {}
        share = len(METHODS) if stage == "evaluate" else 1
        rows.append({k: row[k] / share for k in ("seconds", "core_seconds") if k in row})
    total = lambda name: (
        round(sum(row[name] for row in rows), 1) if all(name in row for row in rows) else None
    )
    return {"seconds": total("seconds"), "core_seconds": total("core_seconds")}


# -- making cells ----------------------------------------------------------------------------------


def policy_of(folder: Path, key: Key, device: str = "cpu"):
    """The policy that a run (or the shipped run) has trained for a cell; `base`: what it began
    with.
    """
    from wmpo_lite.envs.tasks import folder_name
    from wmpo_lite.machine import choose_device
    from wmpo_lite.policies import load_policy
    from wmpo_lite.recipes.shipped import Shipped

    name = {"oracle": "upper"}.get(key.method, key.method)
    if key.method == "base":
        found = load_policy(ASSETS / folder_name(key.task) / "policy")
    elif (Path(folder) / f"{name}.safetensors").exists():
        found = Shipped(key.task, Path(folder).parents[1]).policy(name)
    else:
        found = load_policy(Path(folder) / "policies" / name)
    return found.to(choose_device(device))


def find_policy(key: Key, book: Book, weights: str):
    """The policy with these weights: of the run that gave the cell, or of the shipped run."""
    from wmpo_lite.envs.tasks import folder_name

    places = [book.run_folder(key), ASSETS / folder_name(key.task) / "run"]
    for place in places:
        if key.method == "base" or place.exists():
            try:
                policy = policy_of(place, key, book.device)
            except UserError:
                continue
            if checkpoint.fingerprint(policy) == weights:
                return policy
    raise UserError(
        f"the policy of {key} is in none of {', '.join(map(str, places))}; copy its run folder"
        f" there, or remove the cell and run it again"
    )


def attempt(policy, task: str, world: dict, n: int, first: int):
    """Greedy episodes in a changed world from evaluation states number `first` on: success bool
    (n,) and finish steps int (n,).

    world: {"disturbance": fields of `Disturbance`}, {"error": one of `envs.injected.ERRORS`}, or {}
    for the world as it is.
    """
    from wmpo_lite.envs.injected import InjectedErrors
    from wmpo_lite.envs.splits import numbers
    from wmpo_lite.envs.tabletop.env import Disturbance, initial_states
    from wmpo_lite.envs.tasks import get_task, make_env
    from wmpo_lite.rollout import rollout

    task, change = get_task(task), Disturbance(**world.get("disturbance", {}))
    split, rows = numbers("evaluation", n, skip=first)
    with closing(make_env(task, disturbance=change)) as env:
        found = rollout(
            policy,
            InjectedErrors(env, world["error"]) if "error" in world else env,
            initial_states(task, split, rows, change),
            horizon=task.horizon,
            every_frame=False,
            batch=64,
        )
    return np.array([t.success for t in found]), np.array([t.finish_step for t in found])


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

        upper_bound(book.run(key), book.run_folder(key), 40, book.device)
        enter(book.run_folder(key), book)
    else:
        from wmpo_lite.recipes.main_job import main_job

        main_job(book.run(key), book.run_folder(key), book.device)
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
    success, steps = attempt(policy, key.task, world, n, first)
    seconds = round(time.monotonic() - clock, 1)
    core_seconds = round(time.process_time() - busy, 1)
    write_cell(
        key,
        success,
        steps,
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


def choose(names, found: Standing) -> list[Key]:
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
    chosen = [
        key
        for key in every
        if key not in found.cells
        and (any(str(key).startswith(name) for name in names) if names else key.task not in WAITING)
    ]
    return chosen


def groups(chosen: list[Key], book: Book) -> list[list[Key]]:
    """Cells that one piece of work makes stand together: those of one run folder."""
    found: dict = {}
    for key in chosen:
        kind = EXPERIMENTS[key.experiment].kind
        if key.method == "base" and kind == "run":
            folder = book.run_folder(Key("table_1", key.task, "wmpo", 128, 0))
        else:
            folder = key if kind == "try" else book.run_folder(key)
        found.setdefault(folder, []).append(key)
    return [sorted(group, key=lambda key: key.rollout_budget == 0) for group in found.values()]


def reproduce(names, book: Book, jobs: int = 1) -> None:
    """Make what is missing of the cells named; what cannot be made is said and the others are made.
    UserError at the end if anything was not.
    """
    require_between("--jobs", jobs, 1, 1024)
    work = groups(choose(names, standing(book)), book)
    kinds = lambda group: EXPERIMENTS[group[0].experiment].kind
    # policies that are tried out have to be there
    waves = [[g for g in work if (kinds(g) == "try") == later] for later in (False, True)]
    failed = []
    for wave in waves:
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
        cells = keys(name)
        here = [key for key in left if key.experiment == name and key.task not in WAITING]
        done = sum(key in found.cells for key in cells)
        hours = sum(cost(key) for key in cells if key not in found.cells)
        lines.append(
            f"{name}: {e.claim}; {done} of {len(cells)} cells are done, the others cost"
            f" {hours:.1f} core-hours at most"
        )
        lines += [f"  missing {key} ({cost(key):.2f} core-hours)" for key in here]
        for task in dict.fromkeys(key.task for key in cells):
            rest = [key for key in cells if key.task == task and key not in found.cells]
            if task in WAITING and rest:
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
    from wmpo_lite.report.ledger_tables import publish as write

    found = standing(book)
    text = write(found.cells, book.folder)
    return "\n\n".join([text, *(f"not counted: {said}" for said in found.bad.values())]).strip()
