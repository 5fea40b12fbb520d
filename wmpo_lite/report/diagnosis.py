"""`wmpo-lite doctor runs/<name>`: reads what is there of a run folder and makes the checks."""

from pathlib import Path

from wmpo_lite.common.errors import UserError
from wmpo_lite.install_check import pinned_versions
from wmpo_lite.report.checks import (
    Check,
    about_evaluation,
    about_rollouts,
    about_states,
    about_trust,
    about_updates,
    about_windows,
    check,
)
from wmpo_lite.report.run_files import RunFolder

FILES = {
    "config.json": "the run's settings",
    "metrics.jsonl": "the learning curves",
    "rollouts.hdf5": "the real rollouts",
    "trust.json": "the trust panel",
    "evaluation.json": "the evaluation",
}
NOT_WHAT_A_RUN_WRITES = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def diagnose(run_folder) -> list[Check]:
    """Checks of a run folder. Any of its files may be missing (a run that was killed, or goes on):
    that is named.

    Raises UserError if the folder does not exist or holds none of a run's files.
    """
    run = RunFolder(run_folder)
    if not run.path.is_dir():
        raise UserError(f"{run.path} is not a folder; name a run, such as runs/place-laptop-0")
    missing = [
        f"{name} ({what})" for name, what in FILES.items() if not (run.path / name).is_file()
    ]
    if len(missing) == len(FILES):
        raise UserError(
            f"{run.path} holds none of {', '.join(FILES)}; name the folder that `wmpo-lite demo`"
            " wrote, such as runs/place-laptop-0"
        )
    advice = "the run has not come so far; start the same command again and it resumes"
    rows = [Check("files", f"{', '.join(missing)} missing", "", advice, "note")] * bool(missing)
    config, trust, evaluation = (
        run.json(f"{name}.json") for name in ("config", "trust", "evaluation")
    )
    records, rollouts = run.metrics(), run.rollouts()
    advice = "delete it, or its broken lines, and run the stage again"
    rows += [Check("files", text, "", advice) for text in run.broken]
    clip, budget = _clip(run.path, config), config.get("rollout_budget")
    for files, look in (
        ("config.json", lambda: about_rollouts(rollouts, config, clip)),
        ("config.json or trust.json", lambda: about_windows(rollouts, config, clip, trust)),
        ("config.json or metrics.jsonl", lambda: about_updates(records, budget)),
        ("trust.json", lambda: about_trust(trust)),
        ("evaluation.json", lambda: about_evaluation(evaluation, records)),
        ("config.json or evaluation.json", lambda: about_states(rollouts, config, evaluation)),
        ("a policy's actions.json", lambda: _statistics(run.path)),
        ("a provenance.json", lambda: _versions(run.path)),
        ("rollouts.hdf5", lambda: _replayed(run.path / "rollouts.hdf5", rollouts, config)),
    ):
        try:
            rows += look()
        except NOT_WHAT_A_RUN_WRITES as error:
            value = f"{files} has another content than a run writes ({type(error).__name__}:"
            rows.append(Check("files", f"{value} {error})", "", "delete it, run the stage again"))
    return rows


def _checkpoints(run: Path):
    """(folder, class name) of every checkpoint in the run folder."""
    for path in sorted(run.glob("**/config.json")):
        if kind := RunFolder(path.parent).json(path.name).get("class"):
            yield path.parent, kind


def _clip(run: Path, config: dict) -> int:
    """Frames of a reward clip: as the run's reward model says, else as the settings say, else as
    the kit has it.
    """
    from wmpo_lite.reward import RewardConfig

    models = [folder for folder, kind in _checkpoints(run) if kind == "RewardModel"]
    clip = (RunFolder(models[0]).json("config.json") if models else config).get("clip")
    return clip if isinstance(clip, int) else RewardConfig().clip


def _statistics(run: Path) -> list[Check]:
    """Every policy must carry the ranges that turn tokens into actions."""
    rows = []
    for folder, kind in _checkpoints(run):
        if kind == "Policy":
            values = RunFolder(folder).json("actions.json")
            names, low, high = (values.get(key) or () for key in ("names", "low", "high"))
            good = names and len(names) == len(low) == len(high)
            good = good and all(a < b for a, b in zip(low, high))
            said = f"policy {folder.relative_to(run)} has {len(low)} action ranges for {len(names)}"
            rows.append(check("action statistics", good, f"{said} names"))
    return rows


def _replayed(path: Path, rollouts: list, config: dict) -> list[Check]:
    """Do the recorded rollouts come out as recorded with the simulator that is installed? Files
    that do not name its version (an arm's) are left out.
    """
    from wmpo_lite.envs.tabletop import replay

    made = replay.recorded_with(path) if rollouts else None
    equal, count = replay.equal_outcomes(rollouts, config.get("task")) if made else (0, 0)
    if not count:
        return []
    value = (
        f"{equal} of {count} rollouts come out as recorded (mujoco {made}) when carried out anew"
    )
    advice = f"success rates measured now do not compare with the run's; install mujoco {made}"
    aim = f"{replay.ALIKE:.0%} of them"
    return [check("replay", replay.alike(equal, count), value, aim=aim, advice=advice)]


def _versions(run: Path) -> list[Check]:
    """Was the run made with the pinned simulator and libraries?"""
    pins, seen = {name: version for name, (version, _) in pinned_versions().items()}, {}
    for path in [run / "result.json", run / "config.json", *sorted(run.glob("**/provenance.json"))]:
        versions = RunFolder(path.parent).json(path.name).get("versions")
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            seen.setdefault(name, set()).add(str(version).partition("+")[0])
    other = [name for name in seen if name in pins and seen[name] != {pins[name]}]
    made = ", ".join(f"{name} {'/'.join(sorted(seen[name]))}" for name in seen if name in pins)
    advice = "success rates of another simulator version do not compare; install the pinned"
    return [
        check(
            "versions",
            seen and not other,
            f"the run was made with {made or 'packages that it does not name'}",
            aim=", ".join(f"{name} {pins[name]}" for name in other) or "package versions",
            advice=f"{advice} versions and run it again",
            level="problem" if "mujoco" in other else "note",
        )
    ]
