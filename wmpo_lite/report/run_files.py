"""What the report reads of a run folder. What is missing or broken is named and does not stop the
report.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.evaluate import paired_comparison
from wmpo_lite.report import plots


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl in order of first appearance. Raises UserError if there is no
    such file.

    A run that was killed may leave half a last line (skipped) and, resumed, repeat steps: the last
    record of a (stage, step) counts.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} is missing; the run was stopped before its first training step"
        ) from error
    records = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(record, dict)
            and isinstance(record.get("stage"), str)
            and isinstance(record.get("step"), int)
        ):
            records[record["stage"], record["step"]] = record
    return list(records.values())


def load_object(folder: Path, name: str, missing: list[str]) -> dict | None:
    """A JSON object, or None and an entry in `missing`."""
    try:
        value = checkpoint.read_json(folder / name)
    except UserError:
        missing.append(
            f"{name} {'cannot be read as JSON' if (folder / name).exists() else 'is not there'}"
        )
        return None
    if not isinstance(value, dict):
        missing.append(f"{name} holds no JSON object")
        return None
    return value


def load_films(folder: Path, name: str, keys: tuple[str, ...], missing: list[str]) -> dict | None:
    """The arrays of an npz file, if all `keys` are there, as long as each other, and the first two
    are n films each; else None and an entry in `missing`.
    """
    try:
        with np.load(folder / name, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        lengths = {len(arrays[key]) for key in keys}
        if len(lengths) != 1 or any(
            arrays[key].ndim != 5 or arrays[key].dtype != np.uint8 for key in keys[:2]
        ):
            raise ValueError("shapes")
        return arrays
    except FileNotFoundError:
        missing.append(f"{name} is not there")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        missing.append(f"{name} cannot be read, or lacks one of {', '.join(keys)}")
    return None


def with_comparisons(evaluation: dict) -> dict:
    """The evaluation with every comparison of WMPO that its outcomes allow; the run's own
    comparisons are kept.
    """
    policies = evaluation.get("policies") or {}
    comparisons = dict(evaluation.get("comparisons") or {})
    outcomes = {name: policies[name]["success"] for name in plots.ordered_policies(evaluation)}
    for name in outcomes:
        key = f"wmpo_vs_{name}"
        if name == "wmpo" or "wmpo" not in outcomes or key in comparisons:
            continue
        if len(outcomes[name]) == len(outcomes["wmpo"]):
            found = paired_comparison(outcomes[name], outcomes["wmpo"])
            comparisons[key] = {
                field: getattr(found, field)
                for field in ("gain", "low", "high", "won", "lost", "p_value")
            }
    return {**evaluation, "comparisons": comparisons}
