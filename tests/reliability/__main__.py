"""python -m reliability kinds fuzz kill | endurance: measure, print, and put into
assets/results/reliability.json.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reliability import endurance, fuzz, kills, kinds
from wmpo_lite.common import checkpoint

PATH = fuzz.ROOT / "assets" / "results" / "reliability.json"


def fuzzed(scale: float, seed: int) -> tuple[dict, list]:
    """Counts by kind and in all, and every input that ended badly."""
    with ThreadPoolExecutor(2) as pool:
        ends = dict(
            zip(
                fuzz.SHARES,
                pool.map(
                    lambda kind: fuzz.run(kind, max(1, round(scale * fuzz.SHARES[kind])), seed),
                    fuzz.SHARES,
                ),
            )
        )
    by_kind = {kind: fuzz.summary(found) for kind, found in ends.items()}
    total = {key: sum(row[key] for row in by_kind.values()) for key in next(iter(by_kind.values()))}
    bad = [
        {"kind": kind, **end}
        for kind, found in ends.items()
        for end in found
        if end["end"] not in ("success", "sentence")
    ]
    return {**total, "by_kind": by_kind, "seed": seed}, bad


def main() -> int:
    """0 where nothing ended badly."""
    parser = argparse.ArgumentParser(prog="reliability", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=("kinds", "fuzz", "kill", "endurance"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the fuzz test's inputs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4, help="over which the kills are spread")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    record = checkpoint.read_json(PATH) if PATH.exists() else {}
    well = True
    for part in asked.parts:
        clock = time.monotonic()
        if part == "kinds":
            record[part] = kinds.measure()
            wrong = [
                kind
                for kind, row in record[part].items()
                if row["mended"] < row["tried"] or not row["tried"]
            ]
            said = (
                f"{len(record[part]) - len(wrong)} of {len(record[part])} kinds mended"
                + "".join(f"\n  {kind}: {record[part][kind]}" for kind in wrong)
            )
            good = not wrong
        elif part == "fuzz":
            record[part], bad = fuzzed(asked.scale, asked.seed)
            said = json.dumps(
                {key: value for key, value in record[part].items() if key != "by_kind"}
            )
            said += "".join(
                f"\n  {end['kind']} {end['number']} ({end['how']}): {end['end']}\n{end['said']}"
                for end in bad
            )
            good = not bad
        elif part == "kill":
            with tempfile.TemporaryDirectory() as folder:
                record[part] = kills.measure(
                    Path(folder) / "kill", asked.kills, asked.runs, asked.seed
                )
            said, good = json.dumps(record[part]), record[part]["equal"] == record[part]["runs"]
        else:
            record[part] = endurance.measure()
            said = json.dumps(record[part])
            good = all(
                row["memory_ratio"] <= 1.05 and row["files_left"] <= 0 and row["threads_left"] <= 0
                for row in record[part].values()
            )
        seconds = round(time.monotonic() - clock, 1)
        record["seconds"] = {**record.get("seconds", {}), part: seconds}
        print(f"{part} ({seconds:.0f} s): {said}", flush=True)
        checkpoint.write_json(PATH, record)
        well &= good
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
