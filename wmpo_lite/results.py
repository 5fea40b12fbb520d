"""assets/results/main_job.json and the table that the README shows from it."""
from pathlib import Path

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.evaluate import wilson_interval

PATH = Path(__file__).resolve().parent.parent / "assets" / "results" / "main_job.json"


def collect(runs, path: Path = PATH) -> list[dict]:
    """Add the records of finished run folders; one per task and seed, newer ones replace older. Measures of the machine already stored are kept.

    An upper bound (a folder with upper_bound.json) is written into every record of its task.
    """
    records = {(r["task"], r["seed"]): r for r in (checkpoint.read_json(path) if path.exists() else [])}
    bounds = [checkpoint.read_json(Path(run) / "upper_bound.json") for run in runs if (Path(run) / "upper_bound.json").exists()]
    runs = [run for run in runs if not (Path(run) / "upper_bound.json").exists()]
    for run in runs:
        new = checkpoint.read_json(Path(run) / "result.json")
        if new["profile"] != "laptop":
            raise UserError(f"{run} was run with profile '{new['profile']}'; only laptop runs are collected, a smoke run proves nothing")
        old = records.get((new["task"], new["seed"]), {})
        records[new["task"], new["seed"]] = {**{key: old[key] for key in ("upper_bound_success", "unet_ratio") if key in old}, **new}
    for bound in bounds:
        for (task, _), row in records.items():
            if task == bound["task"]:
                row["upper_bound_success"] = bound["upper_bound_success"]
    if runs:
        picture(Path(runs[0]))
    merged = [records[key] for key in sorted(records)]
    checkpoint.write_json(path, merged)
    return merged


def picture(run: Path, path: Path = PATH.parent.parent / "figures" / "real_and_imagined.png"):
    """The README's picture: real episodes (odd rows) above what the world model made of the same first frame and actions (even rows)."""
    import io

    import numpy as np
    from PIL import Image

    films = run / "trust_films.npz"
    if not films.exists():
        raise UserError(f"{films} is missing; the run was stopped before its trust panel, run the same demo again to finish it")
    with np.load(films) as data:
        rows = [np.concatenate(list(film[::4]), axis=1) for pair in zip(data["real"][[0, 1, -2, -1]], data["imagined"][[0, 1, -2, -1]]) for film in pair]
    buffer = io.BytesIO()
    grid = np.concatenate(rows)
    Image.fromarray(grid).resize((grid.shape[1] * 3 // 2, grid.shape[0] * 3 // 2), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    checkpoint.write_atomic(path, buffer.getvalue())


def table(path: Path = PATH) -> str:
    """The records as a Markdown table; success in percent with 95 % Wilson intervals, the gain with its paired bootstrap interval."""
    records = checkpoint.read_json(path)
    rate = lambda p, n: "{:.1f} [{:.0f}, {:.0f}]".format(100 * p, *(100 * x for x in wilson_interval(round(p * n), n)))  # noqa: E731
    rows = ["| task | seed | P | n | base | online GRPO | DPO | WMPO | WMPO - base | AUC |", "|---|---|---|---|---|---|---|---|---|---|"]
    for r in records:
        cells = [rate(r[f"{name}_success"], r["n"]) for name in ("base", "grpo", "dpo", "wmpo")]
        gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(100 * r["gain"], 100 * r["gain_low"], 100 * r["gain_high"])
        rows.append(f"| {r['task']} | {r['seed']} | {r['rollout_budget']} | {r['n']} | {' | '.join(cells)} | {gain} | {r['agreement_auc']:.3f} |")
    return "\n".join(rows)
