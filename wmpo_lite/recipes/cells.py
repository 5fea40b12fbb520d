"""Cells and what they are made from: which of the ledger's count, and how a finished run's become
cells.

A cell counts while what it was made from is what would be taken now: the trained assets and the
settings of a run, the weights of a policy that is tried out.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS
from wmpo_lite.recipes.experiments import EXPERIMENTS, METHODS, OF_METHOD, ORACLE_ITERATIONS, keys
from wmpo_lite.recipes.profiles import PROFILES
from wmpo_lite.recipes.workspace import Run
from wmpo_lite.report.ledger import LEDGER, Cell, Key, Ledger, read_ledger, write_cell
from wmpo_lite.report.results import REPORTS

# Settings that a method's policy depends on, by how their names begin (WMPO's: all but some).
COMMON = ("horizon", "temperature", "freeze_vision")
USED = {
    "grpo": (*COMMON, "online_", "minibatch"),
    "dpo": (*COMMON, "dpo_"),
    "oracle": (*COMMON, "wmpo_", "oracle_", "groups", "group_size", "minibatch"),
}
UNUSED_BY_WMPO = (*REPORTS, "online_", "dpo_", "oracle_")


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
        n = min(n, profile.evaluation_states) if self.profile == "smoke" else n
        return n, profile.evaluation_from

    def run_folder(self, key: Key) -> Path:
        """The folder of the run that gives a cell, as `demo` names it. The base policy is tried out
        beside the others: any run does.
        """
        from wmpo_lite.envs.tasks import folder_name

        task = folder_name(key.task)
        if key.method == "oracle":
            other = "" if self.profile == "laptop" else f"-{self.profile}"
            return self.runs / f"{task}-upper{other}-s{key.seed}"
        parts = [task, self.profile, f"p{key.rollout_budget or 128}", f"s{key.seed}"]
        return self.runs / "-".join([*parts, *([key.variant] if key.variant else [])])

    def run(self, key: Key) -> Run:
        """The run that gives a cell; of a round without the folder of the one before."""
        e, states = EXPERIMENTS[key.experiment], self.states(key.experiment)[0]
        changes, budget = e.variants[key.variant], key.rollout_budget or 128
        if e.kind != "round":
            changes = {"evaluation_states": states, **changes}
            return Run(key.task, self.profile, key.seed, budget, changes=changes)
        number, changes = changes["round"], {"evaluation_states": states}
        more = {"round": number, "recorded_before": (number - 1) * budget}
        return Run(key.task, self.profile, key.seed, budget, changes=changes, **more)


def trained(key: Key) -> Key:
    """The cell whose policy a cell tries out, or a round begins with."""
    e = EXPERIMENTS[key.experiment]
    if e.kind == "round":
        number = e.variants[key.variant]["round"]
        before = [name for name, of in e.variants.items() if of["round"] == number - 1]
        where = (key.experiment, before[0]) if before else ("table_1", "")
        return Key(where[0], key.task, "wmpo", key.rollout_budget, key.seed, where[1])
    return Key("table_1", key.task, key.method, key.rollout_budget, key.seed)


def waves() -> list[list[str]]:
    """The experiments in the order in which one needs the policies of another."""
    kinds = lambda *these: [name for name, e in EXPERIMENTS.items() if e.kind in these]
    return [kinds("run", "oracle"), kinds("round"), kinds("try")]


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
    settings = {} if e.kind == "try" else plain_settings(book.run(key))
    if e.kind in ("run", "oracle"):
        return run_inputs(key.method, shipped_assets(key.task), settings)
    if trained(key) not in cells:
        raise UserError(f"{key} takes the policy of {trained(key)}, which is not in the ledger yet")
    policy = {"policy": cells[trained(key)].record["weights"]}
    if e.kind == "round":
        return run_inputs(key.method, shipped_assets(key.task) | policy, settings)
    return {**policy, **e.variants[key.variant]}


def plain_settings(run: Run) -> dict:
    from wmpo_lite.envs.tasks import get_task

    more = {"horizon": get_task(run.task).horizon, "oracle_iterations": ORACLE_ITERATIONS}
    return checkpoint.plain({**dataclasses.asdict(run.settings()), **more})


def shipped_assets(task: str) -> dict:
    """The beginnings of the checksums of the weights that a run of `task` begins with."""
    from wmpo_lite.envs.tasks import folder_name

    folders = {"policy": ASSETS / folder_name(task) / "policy"}
    folders |= {name: ASSETS / "tabletop" / name for name in ("autoencoder", "world_model")}
    weights = {name: folder / "model.safetensors" for name, folder in folders.items()}
    return {name: checkpoint.checksum(path)[:12] for name, path in weights.items()}


def standing(book: Book) -> Ledger:
    """Read the ledger. A cell counts if it is whole, of states that are asked for, and made from
    what would be taken now; a cell whose source does not count does not count either.
    """
    found = read_ledger(book.folder)
    cells, bad = {}, dict(found.bad)
    every = {key for name in EXPERIMENTS for key in keys(name)}
    bad |= {str(k): f"{k} is a cell of no experiment" for k in found.cells if k not in every}
    # a policy that is tried out, or that a round begins with, has a cell of its own, which comes
    # first
    wave = {name: number for number, names in enumerate(waves()) for name in names}
    order = lambda key: (wave[key.experiment], key.variant)
    for key in sorted(every & set(found.cells), key=order):
        if said := stale(found.cells[key], book, cells):
            bad[str(key)] = said
        else:
            cells[key] = found.cells[key]
    return Ledger(cells, bad)


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
    there = standing(book).cells
    made = [key for key in given(config, book, oracle) if key not in there]
    evaluated = lambda key: len(measured[key.method][0])
    begun = [_made_from(key, folder, book, config, evaluated(key), there) for key in made]
    for key, made_from in zip(made, begun):
        _enter(key, measured[key.method], folder, book, made_from)
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
    saw = {m: seen["world_model" if m == "wmpo" else m] for m in METHODS}
    return {m: (table[m]["success"], table[m]["finish_step"], saw[m], origin) for m in METHODS}


def _of_upper_bound(folder: Path, config: dict) -> dict:
    read = lambda stage, shape: checkpoint.read_json(
        folder / "stages" / f"{stage}.json", {"result": shape}
    )["result"]
    success = read("evaluate_upper", {"success": [bool]})["success"]
    trained, steps = read("upper", {"real_rollouts": int, "iterations": int}), config["horizon"]
    config["oracle_iterations"] = trained["iterations"]
    seen = {"rollouts": [trained["real_rollouts"], trained["real_rollouts"] * (steps + 1)]}
    # an upper bound does not keep when its episodes succeeded, nor versions
    return {"oracle": (success, [steps] * len(success), seen, here())}


def _made_from(key: Key, folder: Path, book: Book, config: dict, evaluated: int, there) -> dict:
    """The inputs of a cell that a run gives. UserError where the run was evaluated on other states,
    or made from other things, than are asked for now.
    """
    n, first = book.states(key.experiment)
    if evaluated < n or config["evaluation_from"] != first:
        raise UserError(
            f"{folder} was evaluated on {evaluated} states from number {config['evaluation_from']}"
            f" on, and {key} asks for {n} from {first} on; run it again with"
            f" --evaluation-states {n} under another --name"
        )
    settings = {k: config[k] for k in plain_settings(book.run(key)) if k in config}
    made = run_inputs(key.method, config["assets"], settings)
    if changed := changes(made, inputs(key, book, there)):
        raise UserError(
            f"{folder} was made from something else than {key} asks for now ({changed}); run it"
            " again under another --name"
        )
    return made


def _enter(key: Key, measured: tuple, folder: Path, book: Book, made_from: dict) -> None:
    success, finish_steps, seen, origin = measured
    n, first = book.states(key.experiment)
    pairs = {name: pair or (0, 0) for name, pair in seen.items()}
    write_cell(
        key,
        success[:n],
        finish_steps[:n],
        book.folder,
        evaluation_from=first,
        inputs=made_from,
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
    shape, number = (task, 0 if oracle else budget, seed), config.get("round", 1)
    kind = "oracle" if oracle else "round" if number > 1 else "run"
    asked = changed | ({"round": number} if kind == "round" else {})
    found = [
        key
        for name, e in EXPERIMENTS.items()
        if e.kind == kind
        for key in keys(name)
        if (key.task, key.rollout_budget, key.seed) == shape
        and (key.method != "base" or kind == "round")
        and e.variants[key.variant] == asked
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


def policy_of(folder: Path, key: Key, device: str = "cpu"):
    """The policy that a run (or the shipped run) has trained for a cell; `base`: what it began
    with.
    """
    from wmpo_lite.common.machine import choose_device
    from wmpo_lite.envs.tasks import folder_name
    from wmpo_lite.policies import load_policy
    from wmpo_lite.recipes.rounds import finished
    from wmpo_lite.recipes.shipped import Shipped

    name = {"oracle": "upper"}.get(key.method, key.method)
    if key.method == "base" and EXPERIMENTS[key.experiment].kind == "round":
        config = checkpoint.read_json(Path(folder) / "config.json", {"after": str})
        found = finished(Path(config["after"]), key.task).policy()
    elif key.method == "base":
        found = load_policy(ASSETS / folder_name(key.task) / "policy")
    elif (Path(folder) / f"{name}.safetensors").exists():
        found = Shipped(key.task, Path(folder).parents[1]).policy(name)
    else:
        found = load_policy(Path(folder) / "policies" / name)
    return found.to(choose_device(device))
