"""What the files of a run folder say, as far as they are there: what each figure means, whether one
of the classic silent zeros struck, what to do.
"""

import json
from pathlib import Path

from wmpo_lite.errors import UserError
from wmpo_lite.install_check import pinned_versions
from wmpo_lite.report.findings import Finding, about_rollouts, about_states, about_windows
from wmpo_lite.report.findings_evaluation import about_evaluation, about_trust
from wmpo_lite.report.findings_updates import about_updates

FILES = {
    "config.json": "the run's settings",
    "metrics.jsonl": "the learning curves",
    "rollouts.hdf5": "the real rollouts",
    "trust.json": "the trust panel",
    "evaluation.json": "the evaluation",
}


def diagnose(run_folder) -> list[Finding]:
    """Findings about a run folder. Any of its files may be missing (a run that was killed, or goes
    on): that is named.

    Raises UserError if the folder does not exist or holds none of a run's files.
    """
    run = Path(run_folder)
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; name a run, such as runs/place-laptop-0")
    missing = [name for name in FILES if not (run / name).is_file()]
    if len(missing) == len(FILES):
        raise UserError(
            f"{run} holds none of {', '.join(FILES)}; name the folder that `wmpo-lite demo` wrote,"
            " such as runs/place-laptop-0"
        )
    findings = []
    if missing:
        what = ", ".join(f"{name} ({FILES[name]})" for name in missing)
        findings.append(
            Finding(
                "note",
                "files",
                f"{what} missing: the run has not come so far; start the same command again and it"
                " resumes.",
            )
        )
    config, trust, evaluation = (
        _read(run / name, findings) for name in ("config.json", "trust.json", "evaluation.json")
    )
    records = _read_lines(run / "metrics.jsonl", findings)
    rollouts = _read_rollouts(run / "rollouts.hdf5", findings)
    clip = _clip(run, config)
    for files, look in (
        ("config.json", lambda: about_rollouts(rollouts, config, clip)),
        ("config.json or trust.json", lambda: about_windows(rollouts, config, clip, trust)),
        (
            "config.json or metrics.jsonl",
            lambda: about_updates(records, config.get("rollout_budget")),
        ),
        ("trust.json", lambda: about_trust(trust)),
        ("evaluation.json", lambda: about_evaluation(evaluation, records)),
        ("config.json or evaluation.json", lambda: about_states(rollouts, config, evaluation)),
        ("a policy's actions.json", lambda: _statistics(run)),
        ("a provenance.json", lambda: _versions(run)),
    ):
        try:
            findings += look()
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
        ) as error:  # JSON, but not what a run writes
            findings.append(
                Finding(
                    "problem",
                    "files",
                    f"{files} has another content than a run writes ({type(error).__name__}:"
                    f" {error}): delete it and run the stage again.",
                )
            )
    return findings


# ---------------------------------------------------------------------------- reading a run folder


def _read(path: Path, findings: list) -> dict:
    """A JSON object, or {} where it is missing; a broken one is a finding."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    except (ValueError, OSError):
        pass
    findings.append(
        Finding(
            "problem",
            "files",
            f"{path.name} cannot be read as JSON: it was truncated or edited; delete it and run the"
            " stage again.",
        )
    )
    return {}


def _read_lines(path: Path, findings: list) -> list[dict]:
    """Records of a JSON-lines file. A cut last line (a kill in mid-write) is passed over, another
    is a finding.
    """
    if not path.is_file():
        return []
    lines, records, bad = path.read_text(encoding="utf-8", errors="replace").splitlines(), [], 0
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no object")
            hash((record.get("stage"), record.get("step")))
            records.append(record)
        except (ValueError, TypeError, RecursionError):
            bad += bool(line.strip()) and number + 1 < len(lines)
    # A run that was resumed may log a step twice: the later record counts.
    records = list({(r.get("stage"), r.get("step", n)): r for n, r in enumerate(records)}.values())
    if bad:
        findings.append(
            Finding(
                "problem",
                "files",
                f"{path.name} has {bad} lines that are not JSON objects: delete them, or run the"
                " stage again.",
            )
        )
    return records


def _read_rollouts(path: Path, findings: list) -> list:
    if not path.is_file():
        return []
    from wmpo_lite.trajectory import load_trajectories

    try:
        return load_trajectories(path)
    except UserError as error:
        findings.append(Finding("problem", "files", str(error)))
        return []


def _checkpoints(run: Path):
    """(folder, class name) of every checkpoint in the run folder."""
    for path in sorted(run.glob("**/config.json")):
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("class")
        except (ValueError, OSError, AttributeError):
            continue
        if kind:
            yield path.parent, kind


def _clip(run: Path, config: dict) -> int:
    """Frames of a reward clip: as the run's success classifier says, else as the settings say, else
    as the kit has it.
    """
    from wmpo_lite.reward import RewardConfig

    classifiers = [folder for folder, kind in _checkpoints(run) if kind == "RewardModel"]
    clip = (_read(classifiers[0] / "config.json", []) if classifiers else config).get("clip")
    return clip if isinstance(clip, int) else RewardConfig().clip


# ---------------------------------------------------------------------- findings about files alone


def _statistics(run: Path) -> list[Finding]:
    """Every policy must carry the ranges that turn tokens into actions."""
    out, good = [], 0
    for folder, kind in _checkpoints(run):
        if kind != "Policy":
            continue
        name, values = folder.relative_to(run), _read(folder / "actions.json", [])
        names, low, high = (values.get(key) for key in ("names", "low", "high"))
        if names is None or low is None or high is None:
            out.append(
                Finding(
                    "problem",
                    "action statistics",
                    f"policy {name} has no complete actions.json, so its tokens mean no motion:"
                    " save it again with Policy.save.",
                )
            )
        elif not (len(names) == len(low) == len(high) and all(a < b for a, b in zip(low, high))):
            out.append(
                Finding(
                    "problem",
                    "action statistics",
                    f"policy {name} has action ranges that are empty or of different lengths: save"
                    " it again from the right data.",
                )
            )
        else:
            good += 1
    return out + (
        [
            Finding(
                "ok", "action statistics", f"{good} saved policies carry their action statistics."
            )
        ]
        if good
        else []
    )


def _versions(run: Path) -> list[Finding]:
    """Was the run made with the pinned simulator and libraries?"""
    pins, seen = {name: version for name, (version, _) in pinned_versions().items()}, {}
    for path in [run / "result.json", run / "config.json", *sorted(run.glob("**/provenance.json"))]:
        versions = _read(path, []).get("versions")
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            seen.setdefault(name, set()).add(str(version).partition("+")[0])
    other = [
        f"{name} {'/'.join(sorted(versions))} (pinned {pins[name]})"
        for name, versions in seen.items()
        if name in pins and versions != {pins[name]}
    ]
    if not seen:
        return [
            Finding(
                "note",
                "versions",
                "the run records no package versions: success rates of another simulator version do"
                " not compare; finish the run or record them.",
            )
        ]
    if other:
        level = "problem" if any(text.startswith("mujoco") for text in other) else "note"
        return [
            Finding(
                level,
                "versions",
                f"the run was made with {', '.join(other)}: install the pinned versions and run it"
                " again before comparing numbers.",
            )
        ]
    return [
        Finding(
            "ok",
            "versions",
            "the run was made with the pinned"
            f" {', '.join(f'{name} {pins[name]}' for name in seen if name in pins)}.",
        )
    ]
