"""Figures of the ledger, from its cells alone; each says what is missing where there is none."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from wmpo_lite.common.checkpoint import write_atomic
from wmpo_lite.report import plots
from wmpo_lite.report.ledger_tables import METHODS, NAMES, lines, rate


def bars(cells: dict, experiment: str, title: str = "success (%)"):
    """Figure: a group of bars a comparison, a bar a method, with 95 % intervals."""
    found = lines(cells, experiment)
    figure = plots._figure(2.2 + 1.5 * max(1, len(found)), 3.0)
    axes = figure.subplots()
    if not found:
        plots._say(axes, f"no cell of {experiment} yet")
        return figure
    shown = [method for method in METHODS if any(method in line.cells for line in found)]
    for offset, method in enumerate(shown):
        have = [
            (x, rate(line.cells[method])) for x, line in enumerate(found) if method in line.cells
        ]
        x, rates = np.array([x for x, _ in have]), 100 * np.array([value for _, value in have]).T
        x = x + 0.8 * (offset + 0.5) / len(shown) - 0.4
        axes.bar(
            x, rates[0], 0.8 / len(shown), color=plots.policy_color(method), label=NAMES[method]
        )
        axes.vlines(x, rates[1], rates[2], color="#23262b", lw=1)
    budget = lambda line: f"P = {line.budget}" if line.budget else ""
    labels = [f"{x.variant.replace('_', ' ') or x.task}\n{budget(x)}" for x in found]
    axes.set_xticks(range(len(found)), labels, fontsize=8)
    axes.set_ylim(0, 100)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    plots._clean(axes, title)
    return figure


def curves(cells: dict, panels: dict, x_label: str, log: bool = False):
    """Figure: success of each method against a number, a panel each, with 95 % intervals.

    panels: by title a list of (number, line); methods that a line lacks have no point there.
    """
    figure = plots._figure(2.2 + 2.3 * max(1, len(panels)), 2.8)
    flat = np.atleast_1d(figure.subplots(1, max(1, len(panels)), sharey=True))
    for axes, (title, points) in zip(flat, panels.items()):
        for method in METHODS:
            have = [(x, *rate(line.cells[method])) for x, line in points if method in line.cells]
            if have:
                x, mean, low, high = np.array(have).T
                gaps = 100 * np.maximum(0, [mean - low, high - mean])
                look = {"color": plots.policy_color(method), "label": NAMES[method]}
                axes.errorbar(x, 100 * mean, gaps, marker="o", ms=3.5, lw=1.3, capsize=2, **look)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
        axes.minorticks_off()
        plots._clean(axes, title, x_label)
    flat[0].set_ylim(bottom=0)
    flat[0].set_ylabel("success (%)", fontsize=9)
    if panels and (handles := flat[0].get_legend_handles_labels())[0]:
        figure.legend(*handles, fontsize=7, frameon=False, loc="outside right upper")
    return figure


def efficiency(cells: dict):
    """Figure: success against the number of real rollouts P, a panel a task."""
    panels: dict = {}
    for line in lines(cells, "efficiency"):
        if line.budget:
            panels.setdefault(line.task, []).append((line.budget, line))
    return curves(cells, panels, "real rollouts P", log=True)


def rounds(cells: dict):
    """Figure: success after each round of P rollouts, a panel a task. Base: where a round began;
    the baselines began there, too. Round 1 is table 1's, of the seeds that went on.
    """
    panels: dict = {}
    for line in lines(cells, "lifelong"):
        points = panels.setdefault(f"{line.task}, P = {line.budget}", [])
        if not points:
            points.append((1, undisturbed(cells, line)))
        points.append((int(line.variant.partition("-")[2]), line))
    return curves(cells, panels, "round")


def strengths(cells: dict):
    """Figure: success against the strength of a disturbance, a panel a kind; strength 0 is the same
    evaluation states of table 1.
    """
    panels: dict = {}
    for line in lines(cells, "table_2"):
        kind, _, level = line.variant.partition("-")
        panels.setdefault(f"{line.task}: {kind}", []).append((int(level), line))
    for title, points in panels.items():
        plain = undisturbed(cells, points[0][1])
        panels[title] = sorted([(0, plain), *points], key=lambda point: point[0])
    return curves(cells, panels, "strength")


def undisturbed(cells: dict, line):
    """The line of table 1 with the methods and seeds of `line`, cut to its states."""
    n = min(len(cell) for row in line.cells.values() for cell in row.values())
    plain = [
        row for row in lines(cells, "table_1") if (row.task, row.budget) == (line.task, line.budget)
    ]
    cut = lambda cell: dataclasses.replace(
        cell, success=cell.success[:n], finish_steps=cell.finish_steps[:n]
    )
    found = plain[0].cells if plain else {}
    # the base policy of table 1 is one cell, whatever the seed
    same = lambda method, seed: (
        method in line.cells and (method == "base" or seed in line.cells[method])
    )
    return dataclasses.replace(
        line,
        variant="",
        cells={
            method: {seed: cut(row[seed]) for seed in row if same(method, seed)}
            for method, row in found.items()
            if any(same(method, seed) for seed in row)
        },
    )


def write(cells: dict, folder: Path) -> None:
    """figures/*.png of the experiments that have cells."""
    here = {key.experiment for key in cells}
    made = {name: bars(cells, name) for name in ("table_1", "ablations") if name in here}
    if "self_correction" in here:
        made["self_correction"] = bars(cells, "self_correction", "recovered (%)")
    if here & {"efficiency", "table_1"}:
        made["efficiency"] = efficiency(cells)
    if "lifelong" in here:
        made["lifelong"] = rounds(cells)
    if "table_2" in here:
        made["table_2"] = strengths(cells)
    for name, figure in made.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
        write_atomic(Path(folder) / "figures" / f"{name}.png", buffer.getvalue())
