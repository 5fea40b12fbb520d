"""`wmpo-lite demo` in the smoke profile, killed with -9 at random moments and started again, beside
a run that was left alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

COMMAND = ["demo", "--profile", "smoke", "--rollout-budget", "32", "--name", "run"]
# One core each: the bits of a run belong to its number of threads, and two runs with two threads
# each get in each other's way.
PINNED = (
    "import os, sys; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0,"
    " {int(sys.argv[1])}); from wmpo_lite.cli import main; main(sys.argv[2:])"
)
# what the clock and the checkout decide
TIMED = {"seconds", "core_seconds", "demo_s", "iteration_s", "commit"}
UNLIKE = {
    "report.html",
    "provenance.json",
    ".owner",
}  # times and the moment of writing are in these


def start(folder: Path, core: int = 0) -> subprocess.Popen:
    """The demo in `folder` on one core, the core-th that this process may use; its output is read
    by `finish`.
    """
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    command = [sys.executable, "-c", PINNED, str(usable[core % len(usable)]), *COMMAND]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What it printed; it must have ended well."""
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    return out


def timeless(value):
    """JSON without what the clock decides."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMED}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def content(path: Path):
    """What a file of a run says, apart from times."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":  # a run that was killed may have logged a step twice
        rows = [json.loads(line) for line in path.read_text().splitlines() if line]
        return {json.dumps([row.get("stage"), row.get("step")]): timeless(row) for row in rows}
    if path.suffix == ".hdf5":
        from wmpo_lite.trajectory import load_trajectories

        return [
            [
                (
                    getattr(t, name)
                    if not isinstance(getattr(t, name), np.ndarray)
                    else getattr(t, name).tobytes()
                )
                for name in ("frames", "actions", "success", "finish_step", "instruction", "index")
            ]
            for t in load_trajectories(path)
        ]
    return path.read_bytes()


def differences(one: Path, other: Path) -> list[str]:
    """Files of two run folders that are not there in both, or differ in more than times."""
    files = lambda run: {
        str(p.relative_to(run)): p for p in run.rglob("*") if p.is_file() and p.name not in UNLIKE
    }
    mine, theirs = files(one), files(other)
    return sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or content(mine[name]) != content(theirs[name])
    )


def killed(folder: Path, moments: list, core: int = 0) -> list[str]:
    """Run the demo in `folder`, killed at each of the moments, then to its end; returns where it
    was each time (the newest stage).

    A moment is (stage, seconds): so long after that stage was finished; stage None: after the
    start.
    """
    where = []
    for stage, seconds in moments:
        process, deadline = start(folder, core), None if stage else time.monotonic() + seconds
        stages = folder / "runs" / "run" / "stages"
        while (deadline is None or time.monotonic() < deadline) and process.poll() is None:
            if deadline is None and (stages / f"{stage}.json").exists():
                deadline = time.monotonic() + seconds
            time.sleep(0.02)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = in_order(stages)
        where.append(
            "after the end" if ended else f"after {done[-1]}" if done else "in the first stage"
        )
    finish(start(folder, core))
    return where


def in_order(stages: Path) -> list[str]:
    """Names of the finished stages, the newest last."""
    return [path.stem for path in sorted(stages.glob("*.json"), key=lambda p: p.stat().st_mtime)]


def spread(stages: Path, kills: int, runs: int, seed: int) -> list[list]:
    """For each run the moments of its kills: every stage in turn, at a random moment of the time
    that it took in the run whose `stages` these are.
    """
    names, rng = in_order(stages), np.random.default_rng(seed)
    times = [(stages / f"{name}.json").stat().st_mtime for name in names]
    lasted = [5.0] + [later - sooner for sooner, later in zip(times, times[1:])]
    number = np.resize(np.linspace(0, len(names) - 1, min(kills, len(names))).astype(int), kills)
    plans = [[] for _ in range(runs)]
    for kill, stage in enumerate(number):
        # A start takes some seconds before it does anything; a stage that was killed goes on.
        share = float(rng.uniform(0.05, 0.9)) * lasted[stage]
        moment = (names[stage - 1], share) if stage else (None, share + 4)
        plans[kill % runs].append((stage, moment))
    return [[moment for _, moment in sorted(plan, key=lambda row: row[0])] for plan in plans]


def measure(folder: Path, kills: int, runs: int, seed: int = 0) -> dict:
    """`kills` kills spread over `runs` runs, which are compared with one that was left alone; two
    of them at a time.
    """
    from concurrent.futures import ThreadPoolExecutor

    (folder / "whole").mkdir(parents=True)
    finish(start(folder / "whole"))
    moments = spread(folder / "whole" / "runs" / "run" / "stages", kills, runs, seed)

    def one(number):
        place = folder / f"killed{number}"
        place.mkdir()
        where = killed(place, moments[number], number)
        return where, differences(folder / "whole" / "runs" / "run", place / "runs" / "run")

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, range(runs)))
    flat = [place for where, _ in results for place in where]
    return {
        "kills": sum(place != "after the end" for place in flat),
        "runs": runs,
        "equal": sum(not found for _, found in results),
        "where": {place: flat.count(place) for place in sorted(set(flat))},
        "differing_files": sorted({name for _, found in results for name in found}),
    }
