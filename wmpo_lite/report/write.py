"""`write_report(run)`: one HTML file that tells a run's story with its films, and needs nothing
beside it.

A run may have been killed or may have skipped a stage: the report shows what is there and says, in
its place, what is missing.
"""

from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.report import plots, sections
from wmpo_lite.report.page import page
from wmpo_lite.report.run_files import load_films, load_object, read_metrics, with_comparisons

# of MP4 in one report, a third more as base64: with the plots the file stays below 6 MB
FILM_BYTES = 3_800_000


def write_report(run: Path) -> Path:
    """Write report.html from the files of the folder `run`; returns its path. UserError if `run` is
    no folder.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder; name one that `wmpo-lite demo` has written")
    missing: list[str] = []
    names = ("config.json", "evaluation.json", "trust.json", "result.json", "seen.json")
    config, evaluation, trust, result, seen = (load_object(run, name, missing) for name in names)
    evaluation = evaluation and with_comparisons(evaluation)
    trust_films = load_films(
        run, "trust_films.npz", ("real", "imagined", "real_success", "scores"), missing
    )
    episodes = load_films(
        run, "episodes.npz", ("before", "after", "before_success", "after_success"), missing
    )
    try:
        curves = plots.learning_curves(read_metrics(run / "metrics.jsonl"))
    except UserError:
        curves = None
        missing.append("metrics.jsonl is not there or holds nothing to draw")
    task = (config or {}).get("task") or (result or {}).get("task")
    budget = [FILM_BYTES]  # what is left of it: the first films come first
    parts = {
        "Success in the real environment": sections.success(evaluation),
        "Before and after": sections.episodes(episodes, budget),
        "Can the imagination be trusted?": sections.trust(trust, trust_films, budget),
        "What each method has seen": sections.seen(seen),
        "Learning curves": sections.curves(curves),
        "Instruction swap": sections.swap(evaluation),
        "Configuration": sections.configuration(config),
        "Provenance": sections.provenance(run, result),
    }
    path = run / "report.html"
    head = sections.head(run.name, config or {}, task, evaluation or {}, trust or {})
    checkpoint.write_atomic(path, page(f"WMPO: {task or run.name}", head, missing, parts).encode())
    return path
