"""assets/results/main_job.json and the table that the README shows from it."""
from pathlib import Path

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.evaluate import wilson_interval

PATH = Path(__file__).resolve().parent.parent / "assets" / "results" / "main_job.json"


def collect(runs, path: Path = PATH) -> list[dict]:
    """Add the records of finished run folders; one per task and seed, newer ones replace older. Measures of the machine already stored are kept."""
    records = {(r["task"], r["seed"]): r for r in (checkpoint.read_json(path) if path.exists() else [])}
    for run in runs:
        new = checkpoint.read_json(Path(run) / "result.json")
        if new["profile"] != "laptop":
            raise UserError(f"{run} was run with profile '{new['profile']}'; only laptop runs are collected, a smoke run proves nothing")
        old = records.get((new["task"], new["seed"]), {})
        records[new["task"], new["seed"]] = {**{key: old[key] for key in ("upper_bound_success", "unet_ratio") if key in old}, **new}
    merged = [records[key] for key in sorted(records)]
    checkpoint.write_json(path, merged)
    return merged


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
