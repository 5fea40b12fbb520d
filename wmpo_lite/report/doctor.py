"""`wmpo-lite doctor`: is this installation sound, did a run really learn, and what is LIBERO like
here?
"""

from pathlib import Path

from wmpo_lite.common.errors import UserError
from wmpo_lite.install_check import check_installation
from wmpo_lite.report.diagnosis import diagnose


def main(run: Path | None = None) -> int:
    """Print the installation's report, and a run's if named. Returns 1 if a check fails or a
    check of it is a problem.
    """
    print("Installation")
    checks = check_installation()
    for name, ok, message in checks:
        print(f"  {'ok  ' if ok else 'FAIL'}  {name:<14} {message}")
    bad = sum(not ok for _, ok, _ in checks)
    if run is not None:
        rows = diagnose(run)
        print(f"\nRun {run}")
        for level in ("problem", "note", "ok"):
            for row in rows:
                if row.level == level:
                    print(f"  {level:<8} {row.name:<19} {row}")
        bad += sum(row.level == "problem" for row in rows)
    print(
        f"\n{bad} {'problem' if bad == 1 else 'problems'} found." if bad else "\nNo problems found."
    )
    return int(bool(bad))


def libero(suites: tuple[str, ...], states: int, cache: Path) -> int:
    """Print which LIBERO is installed, which of its suites have files, and of every task of
    `suites` in how many of its first `states` stored initial states the premise holds after
    settling. Rows that the shipped table lacks are measured, and kept in the folder `cache`.

    Returns 1 if LIBERO is missing, or files of its five own suites are. A broken premise is no
    fault of the installation: such states are left out.
    """
    from wmpo_lite.envs.libero import installed, premises
    from wmpo_lite.envs.libero.states import SUITES, files_of_suites

    print("LIBERO")
    versions = installed.versions()
    try:
        files = files_of_suites()
    except UserError as error:
        print(f"  FAIL  {'distribution':<14} {error}")
        return 1
    note = "" if installed.is_tested() else f"; tested: {installed.named(installed.TESTED)}"
    print(f"  ok    {'distribution':<14} {installed.named(versions)}{note}")
    absent = [name for name, (_, whole) in files.items() if not whole]
    gaps = [name for name in SUITES if files.get(name, (1, 0))[0] != files.get(name, (1, 0))[1]]
    print(
        f"  {'FAIL' if gaps else 'ok  '}  {'files':<14}"
        f" {len(files) - len(absent)} of {len(files)} suites have files"
        f" ({sum(whole for _, whole in files.values())} of"
        f" {sum(named for named, _ in files.values())} tasks)"
        + (f"; incomplete: {', '.join(gaps)}" if gaps else "")
    )
    if absent:
        print(f"        {'without files':<14} {', '.join(absent)}")
    if gaps:
        return 1
    name = f"libero_premises-{versions['distribution']}-mujoco-{versions['mujoco']}.json"
    print(f"\nPremises of stored initial states after {premises.SETTLE} steps")
    found = premises.table(suites or tuple(SUITES), states, cache / name.replace(" ", "-"))
    for said in premises.describe(found):
        print(f"  {said}")
    return 0
