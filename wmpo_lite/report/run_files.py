"""What is read of a run folder. What is missing or broken is named and stops nobody."""

import json
import zipfile
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError


class RunFolder:
    """The files of a run, any of which may be missing (it was killed, or goes on) or broken:
    `absent` and `broken` name them, a phrase each.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.absent: list[str] = []
        self.broken: list[str] = []

    def json(self, name: str) -> dict:
        """A JSON object, {} where there is none."""
        try:
            found = checkpoint.read_json(self.path / name)
        except UserError:
            self._miss(name, "cannot be read as JSON")
            return {}
        if not isinstance(found, dict):
            self.broken.append(f"{name} holds no JSON object")
        return found if isinstance(found, dict) else {}

    def metrics(self) -> list[dict]:
        """The records of metrics.jsonl, see `read_metrics`; [] without any."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            self.absent.append(f"{path.name} is not there")
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        whole = lines[:-1]  # a kill in mid-write cuts the last one
        if wrong := sum(bool(line.strip()) and not isinstance(_json(line), dict) for line in whole):
            self.broken.append(f"{path.name} has {wrong} lines that are not JSON objects")
        return _records(lines)

    def rollouts(self) -> list:
        """The trajectories of rollouts.hdf5, [] without any."""
        from wmpo_lite.trajectory import load_trajectories

        try:
            return load_trajectories(self.path / "rollouts.hdf5")
        except UserError as error:
            self._miss("rollouts.hdf5", f"cannot be read ({error})")
            return []

    def films(self, name: str, keys: tuple[str, ...]) -> dict:
        """The arrays of an npz file, if all `keys` are there, as long as each other, and the first
        two are n films each; else {}.
        """
        try:
            with np.load(self.path / name, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            films = [arrays[key] for key in keys[:2]]
            if len({len(arrays[key]) for key in keys}) == 1 and all(
                film.ndim == 5 and film.dtype == np.uint8 for film in films
            ):
                return arrays
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            pass
        self._miss(name, f"cannot be read, or lacks one of {', '.join(keys)}")
        return {}

    def _miss(self, name: str, broken: str) -> None:
        if (self.path / name).exists():
            self.broken.append(f"{name} {broken}")
        else:
            self.absent.append(f"{name} is not there")


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl in order of first appearance. Raises UserError if there is no
    such file.

    A run that was killed may leave half a last line (skipped) and, resumed, repeat steps: the last
    record of a (stage, step) counts.
    """
    try:
        return _records(Path(path).read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError as error:
        raise UserError(
            f"{path} is missing; the run was stopped before its first training step"
        ) from error


def _records(lines: list[str]) -> list[dict]:
    records = {}
    for record in map(_json, lines):
        if isinstance(record, dict):
            stage, step = record.get("stage"), record.get("step")
            if isinstance(stage, str) and isinstance(step, int):
                records[stage, step] = record
    return list(records.values())


def _json(line: str):
    """What a line says, None where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
