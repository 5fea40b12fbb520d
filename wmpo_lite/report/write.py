"""`write_report(run)`: one HTML file that tells a run's story with its films, and needs nothing
beside it.

A run may have been killed or may have skipped a stage: the report shows what is there and says, in
its place, what is missing.
"""

from contextlib import suppress
from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.evaluate import paired_comparison
from wmpo_lite.report import plots, sections
from wmpo_lite.report.page import page
from wmpo_lite.report.run_files import RunFolder

# of MP4 in one report, a third more as base64: with the plots the file stays below 6 MB
FILM_BYTES = 3_800_000


def write_report(run: Path) -> Path:
    """Write report.html from the files of the folder `run`; returns its path. UserError if `run` is
    no folder.
    """
    run = RunFolder(run)
    if not run.path.is_dir():
        raise UserError(
            f"{run.path} is not a run folder; name one that `wmpo-lite demo` has written"
        )
    config, trust, result, seen = (
        run.json(f"{n}.json") for n in ("config", "trust", "result", "seen")
    )
    evaluation = with_comparisons(run.json("evaluation.json"))
    pair = ("real", "imagined", "real_success", "scores")
    trust_films = run.films("trust_films.npz", pair)
    pair = ("before", "after", "before_success", "after_success")
    episodes = run.films("episodes.npz", pair)
    curves = None
    if records := run.metrics():
        with suppress(UserError):  # nothing to draw
            curves = plots.learning_curves(records)
    if curves is None and (run.path / "metrics.jsonl").exists():
        run.broken.append("metrics.jsonl holds nothing to draw")
    task = config.get("task") or result.get("task")
    budget = [FILM_BYTES]  # what is left of it: the first films come first
    parts = {
        "Success in the real environment": sections.success(evaluation),
        "Before and after": sections.episodes(episodes, budget),
        "Can the imagination be trusted?": sections.trust(trust, trust_films, budget),
        "What each method has seen": sections.seen(seen),
        "Learning curves": sections.curves(curves),
        "Instruction swap": sections.swap(evaluation),
        "Configuration": sections.configuration(config),
        "Provenance": sections.provenance(run.path, result),
    }
    path = run.path / "report.html"
    head = sections.head(run.path.name, config, task, evaluation, trust)
    text = page(f"WMPO: {task or run.path.name}", head, run.absent + run.broken, parts)
    checkpoint.write_atomic(path, text.encode())
    return path


def with_comparisons(evaluation: dict) -> dict:
    """The evaluation with every comparison of WMPO that its outcomes allow; the run's own
    comparisons are kept.
    """
    comparisons = dict(evaluation.get("comparisons") or {})
    outcomes = {
        name: evaluation["policies"][name]["success"] for name in plots.ordered_policies(evaluation)
    }
    wmpo = outcomes.pop("wmpo", ())
    for name, success in outcomes.items():
        key = f"wmpo_vs_{name}"
        if key not in comparisons and len(success) == len(wmpo):
            comparisons[key] = vars(paired_comparison(success, wmpo))
    return {**evaluation, "comparisons": comparisons}
