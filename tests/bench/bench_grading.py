"""How long a class takes to grade: 40 submissions of all exercises, with one command.

    python tests/bench/bench_grading.py [40]

Of ten students seven hand in the solutions, one the sheets as they were handed out, one every
listed wrong answer below the solutions, and one a first cell that never ends.
"""

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

from wmpo_lite import cli
from wmpo_lite.course import sheets

ENDLESS = "while True:\n    pass"


def main(count: int = 40) -> None:
    """Print the time, and the points by kind of student."""
    kinds = ("solved",) * 7 + ("empty", "wrong", "endless")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            home = Path(folder) / "submissions" / f"{number:02d}-{kinds[number % 10]}"
            home.mkdir(parents=True)
            for path in sheets.masters():
                cells = sheets.read_master(path)
                made = sheets.notebook(cells, path.stem, kinds[number % 10] != "empty")
                more = {
                    "wrong": [cell.source for cell in cells if cell.kind == "wrong"],
                    "endless": [ENDLESS],
                }.get(kinds[number % 10], [])
                made["cells"] += [
                    {"cell_type": "code", "source": text, "metadata": {}, "outputs": []}
                    for text in more
                ]
                (home / f"{path.stem}.ipynb").write_text(json.dumps(made))
        begin = time.monotonic()
        cli.main(["grade", str(Path(folder) / "submissions"), "--out", str(Path(folder) / "out")])
        seconds = time.monotonic() - begin
        with open(Path(folder) / "out" / "grades.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    print(f"{len(rows)} submissions in {seconds:.0f} s, {seconds / len(rows):.1f} s each")
    for kind in dict.fromkeys(kinds):
        found = sorted({row["points"] or "-" for row in rows if row["student"].endswith(kind)})
        print(f"{kind:8s} {' '.join(found)} of {rows[0]['out of']}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
