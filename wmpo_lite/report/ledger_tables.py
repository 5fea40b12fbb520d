"""Tables (Markdown, CSV) and figures of the ledger, from its cells alone."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite.common.checkpoint import write_atomic
from wmpo_lite.evaluate import mean_over_seeds, paired_comparison, wilson_interval
from wmpo_lite.report import plots
from wmpo_lite.report.markdown import markdown

METHODS = ("base", "grpo", "dpo", "wmpo", "oracle")
NAMES = {**plots.NAMES, "oracle": "GRPO in the simulator"}
# experiments whose cells stand in a table, too
WITH = {"efficiency": ("table_1",), "ablations": ("table_1",), "table_1": ("oracle",)}


@dataclass(frozen=True)
class Line:
    """One comparison on the same evaluation states. cells: by method, by training seed."""

    task: str
    budget: int
    variant: str
    cells: dict


def lines(cells: dict, experiment: str) -> list[Line]:
    """The comparisons of an experiment by task, budget and variant. What no rollout has taught (the
    base policy, the oracle) belongs to every budget.
    """
    names, found = (experiment, *WITH.get(experiment, ())), {}
    chosen = [key for key in sorted(cells) if key.experiment in names]
    for key in sorted(chosen, key=lambda key: key.rollout_budget == 0):
        places = [(key.task, key.rollout_budget, key.variant)]
        if not key.rollout_budget:
            same = [place for place in found if (place[0], place[2]) == (key.task, key.variant)]
            places = same or places
        for place in places:
            found.setdefault(place, {}).setdefault(key.method, {})[key.seed] = cells[key]
    return [
        Line(*place, {method: found[place][method] for method in METHODS if method in found[place]})
        for place in sorted(found)
    ]


def rate(cells: dict) -> tuple[float, float, float]:
    """Success of cells by seed and its 95 % interval: Wilson's for one seed, else a bootstrap over
    seeds and states.
    """
    success = np.stack([cell.success for cell in cells.values()])
    if len(success) == 1:
        hits, n = int(success.sum()), success.shape[1]
        return hits / n, *wilson_interval(hits, n)
    found = mean_over_seeds(success)
    return found.mean, found.low, found.high


def pairs(line: Line, method: str, over: str) -> list[tuple]:
    """Cells (over, method) of the same seed. The base policy is one cell, which meets every seed,
    but for rounds. Empty where the line lacks one of the two.
    """
    a, b = (line.cells.get(name, {}) for name in (over, method))
    alone = lambda cells: any(not cell.key.rollout_budget for cell in cells.values())
    if "base" in (over, method) and (alone(a) or alone(b)):
        return [(one, other) for one in a.values() for other in b.values()]
    return [(a[seed], b[seed]) for seed in a if seed in b]


def gain(line: Line, method: str, over: str) -> tuple[float, float, float] | None:
    """Success of `method` less that of `over` on the same states, seed by seed, and its interval;
    None where there is no pair.
    """
    both = [(a.success, b.success) for a, b in pairs(line, method, over)]
    if len(both) == 1:
        one = paired_comparison(*both[0])
        return one.gain, one.low, one.high
    if not both:
        return None
    found = mean_over_seeds(np.stack([b.astype(int) - a for a, b in both]))
    return found.mean, found.low, found.high


def relative_length(line: Line, method: str):
    """(mean, low, high, episodes): mean finish step of `method` where the base policy took 100, of
    episodes that both solve, with a bootstrap interval over states and seeds (`mean_over_seeds`);
    None for fewer than two.
    """
    both = pairs(line, method, "base")
    count = sum(int((a.success & b.success).sum()) for a, b in both)
    if count < 2:
        return None
    # steps of every episode, 0 where one of the two fails: (2, S, n)
    steps = np.stack(
        [np.stack([a.finish_steps, b.finish_steps]) * (a.success & b.success) for a, b in both],
        axis=1,
    )
    _, seeds, n = steps.shape
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=4000)  # how often each state, (R, n)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=4000)  # (R, S)
    before, after = np.einsum("rn,psn,rs->pr", drawn, steps, weights, optimize=True)
    ratios = 100 * after[before > 0] / before[before > 0]
    mean = 100 * steps[1].sum() / steps[0].sum()
    return mean, *np.percentile(ratios, (2.5, 97.5)), count


# -- tables ----------------------------------------------------------------------------------------


def rows(cells: dict, experiment: str) -> list[dict]:
    """An experiment as a long table: one row a comparison and method. Rates and gains are
    fractions, lengths per cent of the base policy's.
    """
    made = []
    for line in lines(cells, experiment):
        for method, by_seed in line.cells.items():
            solved = np.concatenate([c.finish_steps[c.success] for c in by_seed.values()])
            row = {
                "experiment": experiment,
                "task": line.task,
                "rollout_budget": line.budget,
                "variant": line.variant,
                "method": method,
                "seeds": len(by_seed),
                "n": len(next(iter(by_seed.values()))),
                "successes": sum(int(cell.success.sum()) for cell in by_seed.values()),
                **dict(zip(("success", "low", "high"), rate(by_seed))),
                "mean_steps": float(solved.mean()) if len(solved) else None,
            }
            over = gain(line, "wmpo", method) if method != "wmpo" else None
            row |= dict(zip(("wmpo_gain", "wmpo_gain_low", "wmpo_gain_high"), over or [None] * 3))
            ratio = relative_length(line, method) if method not in ("base", "oracle") else None
            names = ("length", "length_low", "length_high", "length_n")
            made.append(row | dict(zip(names, ratio or [None] * 4)))
    return made


def as_csv(table: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: list[dict], lengths: bool = False) -> str:
    """A long table as one that is read: a line a comparison, a column a method; success in percent
    (lengths: of solved episodes, base = 100) with 95 % intervals.
    """
    shown = [m for m in METHODS if any(row["method"] == m for row in table)]
    if lengths:
        columns = [(NAMES[m], m, _length) for m in shown if m not in ("base", "oracle")]
    else:
        compared = [m for m in shown if m not in ("wmpo", "oracle")] if "wmpo" in shown else []
        columns = [(NAMES[m], m, _rate) for m in shown]
        columns += [(f"WMPO - {NAMES[m]}", m, _gain) for m in compared]
    place = lambda row: (row["task"], row["rollout_budget"] or "-", row["variant"] or "-", row["n"])
    found = {(place(row), row["method"]): row for row in table}
    texts = []
    for at in dict.fromkeys(map(place, table)):
        rest = [form(found[at, m]) if (at, m) in found else "-" for _, m, form in columns]
        texts.append([*at, *rest])
    return markdown(["task", "P", "variant", "n", *(name for name, _, _ in columns)], texts)


def _rate(row: dict) -> str:
    seeds = f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""
    values = (100 * row[name] for name in ("success", "low", "high"))
    return "{:.1f} [{:.0f}, {:.0f}]".format(*values) + seeds


def _gain(row: dict) -> str:
    if row["wmpo_gain"] is None:
        return "-"
    values = (100 * row[name] for name in ("wmpo_gain", "wmpo_gain_low", "wmpo_gain_high"))
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values)


def _length(row: dict) -> str:
    if row["length"] is None:
        return "-"
    return "{length:.1f} [{length_low:.1f}, {length_high:.1f}] ({length_n})".format(**row)


def compute(cells: dict) -> list[dict]:
    """Core-hours by experiment; of cells that were measured without, the hours on the clock."""
    made = []
    for name in dict.fromkeys(key.experiment for key in sorted(cells)):
        here = [cell.record for key, cell in cells.items() if key.experiment == name]
        total = lambda field, of: sum(r.get(field) or 0 for r in of) / 3600
        unmeasured = [r for r in here if r.get("core_seconds") is None]
        made.append(
            {
                "experiment": name,
                "cells": len(here),
                "core_hours": total("core_seconds", here),
                "cells_by_the_clock": len(unmeasured),
                "clock_hours": total("seconds", unmeasured),
            }
        )
    return made


def write(cells: dict, folder: Path) -> str:
    """tables/*.md and *.csv of the experiments that have cells; returns them as Markdown."""
    said = []
    for name in dict.fromkeys(key.experiment for key in sorted(cells)):
        table = rows(cells, name)
        texts = {"": as_markdown(table)}
        if any(row["length"] is not None for row in table):
            texts["_lengths"] = as_markdown(table, lengths=True)
        for more, text in texts.items():
            write_atomic(Path(folder) / "tables" / f"{name}{more}.md", f"{text}\n".encode())
            said.append(f"{name}{more.replace('_', ', ')}\n\n{text}")
        write_atomic(Path(folder) / "tables" / f"{name}.csv", as_csv(table).encode())
    write_atomic(Path(folder) / "tables" / "compute.csv", as_csv(compute(cells)).encode())
    return "\n\n".join(said)
