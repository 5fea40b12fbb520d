"""`make grade`: a folder of submissions into a CSV table and a Gradescope result a student.

A submission is a notebook, or a folder with a student's notebooks. Scores are made here, by
comparing what the students' functions returned in a sandbox with the kit's core on fresh inputs; a
notebook's own output, checks and prints mean nothing. What cannot be graded is never scored 0: its
score stays empty and a sentence says why.
"""

import csv
import io
import json
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import make_folder, one_sentence, write_atomic, write_json
from wmpo_lite.course.exercise import Exercise, Verdict, judge, wrong
from wmpo_lite.course.extract import code_cells, extract
from wmpo_lite.course.packing import pack, unpack
from wmpo_lite.course.registry import EXERCISES
from wmpo_lite.course.sandbox import command, isolation

ROOT = Path(__file__).resolve().parents[2]
SHEET = re.compile(r"(?i)[-_ ]*(0[1-7]_[a-z0-9_]+|capstone)( \(\d+\)|-?copy\d*)*$")


@dataclass
class Submission:
    """A student's code cells by notebook, and what could not be read."""

    student: str
    cells: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def submissions(folder: Path) -> list[Submission]:
    """One for each student: a folder of notebooks, or notebooks that lie in `folder` itself, named
    after the student ("ada_05_grpo.ipynb" and "ada_06_statistics.ipynb" are both ada's).
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; name one that holds submissions")
    with one_sentence(folder, "read"):
        found: dict[str, Submission] = {}
        for path in sorted(Path(folder).rglob("*.ipynb")):
            parts = path.relative_to(folder).parts
            if any(part.startswith(".") for part in parts):
                continue
            student = parts[0] if len(parts) > 1 else SHEET.sub("", path.stem) or path.stem
            mine = found.setdefault(student, Submission(student))
            try:
                mine.cells += code_cells(path)
            except UserError as error:
                mine.unreadable.append(str(error))
    if not found:
        raise UserError(f"{folder} holds no notebooks (*.ipynb); name a folder of submissions")
    return list(found.values())


def handed_out(found: list[Submission], only: tuple[str, ...] = ()) -> list[Exercise]:
    """The exercises whose names begin with one of `only`; without any, those of all sheets from
    which somebody handed in a function.
    """
    if only:
        chosen = [e for e in EXERCISES.values() if e.name.startswith(only)]
        if not chosen:
            raise UserError(f"no exercise begins with {' or '.join(only)}: {', '.join(EXERCISES)}")
        return chosen
    text = "\n".join(cell for one in found for cell in one.cells)
    names = [
        e.name for e in EXERCISES.values() if re.search(rf"^(def|class) {e.function}\b", text, re.M)
    ]
    sheets = {name.partition(".")[0] for name in names}
    return [e for e in EXERCISES.values() if e.name.partition(".")[0] in sheets or not sheets]


def grade(one: Submission, exercises: list[Exercise], seed: int) -> dict[str, Verdict]:
    """A verdict for each exercise."""
    verdicts, tasks, inputs = {}, [], {}
    for number, exercise in enumerate(exercises):
        try:
            source = extract(one.cells, exercise.function)
        except UserError as error:
            verdicts[exercise.name] = (
                not_graded("; ".join(one.unreadable))
                if one.unreadable
                else wrong("missing", str(error))
            )
            continue
        cases = exercise.cases(np.random.default_rng([seed, number]))
        inputs[exercise.name] = cases
        shown = pack([exercise.given(case) for case in cases])
        tasks.append({"name": exercise.name, "source": source, "cases": shown})
    results = dict(sandboxed(tasks)) if tasks else {}
    for task in tasks:
        exercise = EXERCISES[task["name"]]
        verdicts[exercise.name] = settle(exercise, inputs[exercise.name], results)
    return {exercise.name: verdicts[exercise.name] for exercise in exercises}


def not_graded(why: str) -> Verdict:
    """A verdict without a score: a person has to look."""
    return Verdict("not graded", f"could not be graded: {why}", None)


def settle(exercise: Exercise, cases: list[tuple], results: dict) -> Verdict:
    """What a sandbox reports about one exercise as a verdict."""
    result = results.get(exercise.name)
    if result is None:
        return not_graded("the sandbox ended before this exercise")
    if result.get("ended") == "time":
        said = f"`{exercise.function}` ran out of time (limit: {exercise.limit:g} s of CPU time)"
        return wrong("out of time", said)
    if "outcomes" not in result:
        return not_graded(f"the process of `{exercise.function}` ended early ({result['ended']})")
    try:
        return judge(exercise, cases, [unpack(outcome) for outcome in result["outcomes"]])
    except UserError as error:
        return not_graded(str(error))


def sandboxed(tasks: list[dict]) -> Iterator[tuple[str, dict]]:
    """Results by exercise, as far as the sandbox got."""
    seconds = 60 + sum(10 + 8 * EXERCISES[task["name"]].limit for task in tasks)
    with tempfile.TemporaryDirectory(prefix="wmpo-grade-") as folder:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            "HOME": folder,
            "TMPDIR": folder,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            command(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(json.dumps(tasks).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    for line in said.splitlines():
        try:
            result = json.loads(line)
            yield result["name"], result
        except (ValueError, KeyError, TypeError):
            continue


def total(verdicts: dict[str, Verdict]) -> float:
    """Points of the exercises that could be graded."""
    return sum(EXERCISES[name].points * (v.score or 0) for name, v in verdicts.items())


def gradescope(verdicts: dict[str, Verdict]) -> dict:
    """Gradescope's results.json. A test that could not be graded has no score."""
    tests = []
    for name, verdict in verdicts.items():
        points = EXERCISES[name].points
        entry = {"name": name, "max_score": points, "output": verdict.message}
        if verdict.score is not None:
            entry["score"] = points * verdict.score
            entry["status"] = "passed" if verdict.score == 1 else "failed"
        tests.append(entry)
    open_ones = [name for name, verdict in verdicts.items() if verdict.score is None]
    said = (
        f"Could not be graded: {', '.join(open_ones)}; a person has to look." if open_ones else ""
    )
    return {"output": said, "tests": tests} | ({} if open_ones else {"score": total(verdicts)})


def scoreboard(graded: dict[str, dict[str, Verdict]]) -> list[dict]:
    """The capstone's results, best first."""
    found = [
        {"student": student, "exercise": name, "score": verdict.score, "result": verdict.message}
        for student, verdicts in graded.items()
        for name, verdict in verdicts.items()
        if EXERCISES[name].judge and verdict.score
    ]
    return sorted(found, key=lambda entry: -entry["score"])


def table(graded: dict[str, dict[str, Verdict]], exercises: list[Exercise]) -> str:
    """The CSV: a row for each student, an empty score where one could not be graded."""
    out = io.StringIO()
    names = [exercise.name for exercise in exercises]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", "points", "out of", *names, "remarks"])
    for student, verdicts in graded.items():
        scores = [
            "" if v.score is None else f"{EXERCISES[name].points * v.score:g}"
            for name, v in verdicts.items()
        ]
        complete = all(v.score is not None for v in verdicts.values())
        said: dict[str, list[str]] = {}
        for name, verdict in verdicts.items():
            if verdict.status != "passed":
                said.setdefault(verdict.message, []).append(name)
        remarks = [f"{', '.join(names)}: {message}" for message, names in said.items()]
        most = sum(exercise.points for exercise in exercises)
        points = f"{total(verdicts):g}" if complete else ""
        writer.writerow(
            [spelled(student), points, f"{most:g}", *scores, spelled("; ".join(remarks))]
        )
    return out.getvalue()


def summary(verdicts: dict[str, Verdict]) -> str:
    """A student's result in a line; no points are named where nothing could be graded."""
    missing = sum(v.score is None for v in verdicts.values())
    if missing == len(verdicts):
        return "could not be graded"
    points = f"{total(verdicts):g} points"
    return f"{points} at least, {missing} could not be graded" if missing else points


def spelled(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def grade_folder(folder: Path, out: Path, only: tuple[str, ...] = (), seed: int | None = None):
    """Grade all submissions in `folder`; write grades.csv and gradescope/<student>.json to `out`.
    Returns the verdicts by student and exercise. seed: of the hidden inputs; None draws one.
    """
    found = submissions(folder)
    exercises = handed_out(found, tuple(only))
    seed = secrets.randbits(32) if seed is None else seed
    print(isolation()[1])
    print(f"{len(found)} submissions, {len(exercises)} exercises, hidden inputs of seed {seed}")
    graded = {}
    for one in found:
        try:
            verdicts = grade(one, exercises, seed)
        except Exception as error:  # whatever somebody has thought of, the others are graded
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            verdicts = {exercise.name: not_graded(said) for exercise in exercises}
        graded[one.student] = verdicts
        print(f"{one.student}: {summary(verdicts)}", flush=True)
    make_folder(out / "gradescope")
    write_atomic(out / "grades.csv", table(graded, exercises).encode())
    for student, verdicts in graded.items():
        write_json(out / "gradescope" / f"{student}.json", gradescope(verdicts))
    if any(exercise.judge for exercise in exercises):
        write_json(out / "scoreboard.json", scoreboard(graded))
    print(f"written: {out / 'grades.csv'} and {out / 'gradescope'}")
    return graded
