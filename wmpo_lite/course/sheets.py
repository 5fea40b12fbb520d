"""Exercise sheets: one master each, `notebooks/exercises/masters/NN_topic.py`, from which the
student's notebook and the one with solutions are made.

A master is a Python file in cells. `# %% [markdown]` begins text; `# %%` a cell of both notebooks,
in which what stands between `# BEGIN SOLUTION` and `# END SOLUTION` gives way to `# YOUR CODE
HERE`, or to the commented lines after `# INSTEAD`; `# %% wrong NAME: words` a wrong answer to the
exercise NAME, for the tests: its verdict has to hold these words.
"""

import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import one_sentence, whole_folder, write_atomic

MASTERS = Path(__file__).resolve().parents[2] / "notebooks" / "exercises" / "masters"
BLOCK = re.compile(r"^( *)# BEGIN SOLUTION\n(.*?)^ *# END SOLUTION\n?", re.M | re.S)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Cell:
    """kind: markdown, code or wrong. label: what follows `wrong` in the cell's first line."""

    kind: str
    source: str
    label: str = ""


def masters() -> list[Path]:
    """The masters' files; UserError where there are none."""
    found = sorted(MASTERS.glob("*.py"))
    if not found:
        raise UserError(
            f"{MASTERS} holds no exercise sheets; they come with a checkout, not with the package"
        )
    return found


def read_master(path: Path) -> list[Cell]:
    """The cells of a master."""
    with one_sentence(path, "read"):
        text = Path(path).read_text(encoding="utf-8")
    cells = []
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        head, body = head.strip(), body.strip("\n")
        if head == "[markdown]":
            lines = [re.sub(r"^# ?", "", line) for line in body.splitlines()]
            cells.append(Cell("markdown", "\n".join(lines)))
        elif head.startswith("wrong "):
            cells.append(Cell("wrong", body, head.removeprefix("wrong ")))
        elif not head:
            cells.append(Cell("code", body))
        else:
            raise UserError(
                f"{path} has a cell '# %% {head}'; expected [markdown], wrong or nothing"
            )
    return cells


def with_solution(source: str) -> str:
    """A cell's source with its solution, without the marks."""
    return BLOCK.sub(lambda found: found[2].partition(_mark(found))[0], source + "\n").rstrip("\n")


def as_handed_out(source: str) -> str:
    """A cell's source with the stub in place of the solution."""

    def stub(found):
        _, instead, given = found[2].partition(_mark(found))
        if instead:
            given = re.sub(r"^( *)# ?", r"\1", given, flags=re.M)
            return f"{found[1]}# YOUR CODE HERE: what follows has a bug\n{given}"
        return f"{found[1]}# YOUR CODE HERE\n{found[1]}raise NotImplementedError\n"

    return BLOCK.sub(stub, source + "\n").rstrip("\n")


def _mark(found) -> str:
    return f"{found[1]}# INSTEAD\n"


def notebook(cells: list[Cell], sheet: str, solved: bool) -> dict:
    """A notebook (format 4.5) as JSON."""
    change, made = (with_solution if solved else as_handed_out), []
    for cell in cells:
        if cell.kind == "wrong":
            continue
        source = cell.source if cell.kind == "markdown" else change(cell.source)
        entry = {"cell_type": cell.kind, "id": f"cell-{len(made):02d}", "metadata": {}}
        entry |= {"execution_count": None, "outputs": []} if cell.kind == "code" else {}
        made.append(entry | {"source": source.splitlines(keepends=True)})
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    metadata["wmpo_lite"] = {"sheet": sheet}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def release(out: Path) -> list[Path]:
    """Write student notebooks and their zip, and those with solutions, to `out`."""
    made = []
    for kind, solved in (("student", False), ("solutions", True)):
        packed = io.BytesIO()
        with whole_folder(Path(out) / kind) as folder, zipfile.ZipFile(packed, "w") as archive:
            for path in masters():
                found = notebook(read_master(path), path.stem, solved)
                data = json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n"
                write_atomic(folder / f"{path.stem}.ipynb", data)
                entry = zipfile.ZipInfo(f"exercises/{path.stem}.ipynb", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
        made.append(Path(out) / f"{kind}.zip")
        write_atomic(made[-1], packed.getvalue())
    return made
