"""`wmpo-lite doctor`: is this installation sound, and did a run really learn?"""

from pathlib import Path

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
