"""The ledger, assets/results/ledger/: one small JSON a cell of an experiment, and the tables and
figures that are made from these files alone.

A cell keeps the outcome of every evaluation state, so that any two cells can be compared state by
state. Its seal tells an edited file from one that was written; a file that does not keep its own
promises is named and left out.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS

LEDGER = ASSETS / "results" / "ledger"
VERSION = 1
SHAPE = {
    **dict.fromkeys(("experiment", "task", "method", "variant"), str),
    **dict.fromkeys(("ledger", "rollout_budget", "seed", "n", "evaluation_from", "successes"), int),
    **dict.fromkeys(("outcomes", "finish_steps", "weights", "commit", "seal"), str),
    **dict.fromkeys(("inputs", "episodes", "frames_seen", "versions"), dict),
}


class OtherVersion(UserError):
    """A cell of another version of the ledger: nothing in the folder is to be trusted."""


@dataclass(frozen=True, order=True)
class Key:
    """Which cell: rollout_budget is P, 0 for what no rollout has taught; variant: a disturbance, an
    ablation, a round, or "".
    """

    experiment: str
    task: str
    method: str
    rollout_budget: int
    seed: int
    variant: str = ""

    def __str__(self) -> str:
        parts = [self.task.replace("/", "_"), self.method, f"p{self.rollout_budget}"]
        parts += [f"s{self.seed}", *([self.variant] if self.variant else [])]
        return f"{self.experiment}/{'-'.join(parts)}"

    def path(self, folder: Path = LEDGER) -> Path:
        return Path(folder) / f"{self}.json"


@dataclass(frozen=True)
class Cell:
    """One measured cell. success bool (n,) and finish_steps int (n,): of evaluation states number
    `evaluation_from` on; a failure's finish step is its time limit. record: all that its file says.
    """

    key: Key
    evaluation_from: int
    success: np.ndarray
    finish_steps: np.ndarray
    record: dict

    def __len__(self) -> int:
        return len(self.success)


@dataclass(frozen=True)
class Ledger:
    """Cells by key, and by name why another one does not count, in one sentence."""

    cells: dict
    bad: dict


def write_cell(key: Key, success, finish_steps, folder: Path = LEDGER, **record) -> Path:
    """Write a cell, whole or not at all. record: the fields of SHAPE that are not written here."""
    record = checkpoint.plain(
        {
            "ledger": VERSION,
            **dataclasses.asdict(key),
            "n": len(success),
            "successes": int(np.sum(success)),
            "outcomes": "".join("1" if value else "0" for value in success),
            "finish_steps": " ".join(str(int(step)) for step in finish_steps),
            **record,
        }
    )
    checkpoint.write_json(key.path(folder), {**record, "seal": seal(record)})
    return key.path(folder)


def seal(record: dict) -> str:
    """Twelve digits of all that a record says beside its seal. Against slips, not against forgery:
    whoever edits a file can seal it anew.
    """
    text = json.dumps({key: record[key] for key in sorted(record) if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_ledger(folder: Path = LEDGER) -> Ledger:
    """All whole cells of a folder. UserError where a file is of another version of the ledger."""
    cells, bad = {}, {}
    for path in sorted(Path(folder).glob("*/*.json")):
        try:
            cell = read_cell(path)
        except OtherVersion:
            raise
        except UserError as error:
            bad[path.stem] = str(error)
            continue
        if cell.key.path(folder) != path:
            bad[path.stem] = f"{path} holds the cell {cell.key}; it was renamed, remove it"
        else:
            cells[cell.key] = cell
    return Ledger(cells, bad)


def read_cell(path: Path) -> Cell:
    """The cell in a file. UserError where it was edited, is damaged or is of another version."""
    record = checkpoint.read_json(path, {"ledger": int})
    if record["ledger"] != VERSION:
        raise OtherVersion(
            f"{path} is of version {record['ledger']} of the ledger, and this kit reads version"
            f" {VERSION}; use the kit that wrote it, or move the ledger away"
        )
    record = checkpoint.read_json(path, SHAPE)
    if seal(record) != record["seal"]:
        raise UserError(f"{path} was edited after it was written; remove it and run the cell again")
    key = Key(**{field.name: record[field.name] for field in dataclasses.fields(Key)})
    success = np.array([mark == "1" for mark in record["outcomes"]], dtype=bool)
    steps = np.array([int(s) for s in record["finish_steps"].split() if s.isdigit()], dtype=int)
    if {len(success), len(steps)} != {record["n"]} or success.sum() != record["successes"]:
        raise UserError(f"{path} contradicts itself; remove it and run the cell again")
    return Cell(key, record["evaluation_from"], success, steps, record)
