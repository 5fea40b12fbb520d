"""Plots of results, each a matplotlib Figure made without pyplot's global state; matplotlib is
imported where it is used.
"""

from collections.abc import Sequence

import numpy as np

from wmpo_lite.common.errors import UserError

COLORS = {"base": "#8d949e", "grpo": "#d98a2b", "dpo": "#8a6bb0", "wmpo": "#1f6fb4"}
NAMES = {"base": "base", "grpo": "online GRPO", "dpo": "offline DPO", "wmpo": "WMPO"}


def policy_color(name: str) -> str:
    return COLORS.get(name, "#4f9d8f")


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _clean(axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _say(axes, text: str) -> None:
    """A panel without data says so, instead of showing empty axes."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#777"
    )


def ordered_policies(evaluation: dict) -> list[str]:
    """Names of the evaluated policies that have outcomes, base first, WMPO last of the four, then
    any others.
    """
    policies = evaluation.get("policies") or {}
    names = [name for name in COLORS if name in policies]
    names += [name for name in policies if name not in COLORS]
    return [name for name in names if policies[name].get("success")]


def success_bars(evaluation: dict):
    """Figure: success of each policy of an evaluation.json with 95 % Wilson intervals. Raises
    UserError without any.
    """
    from wmpo_lite.evaluate import success_rate

    names = ordered_policies(evaluation)
    if not names:
        raise UserError(
            "the evaluation holds no policy with outcomes; "
            "expected {'policies': {'base': {'success': [true, ...]}, ...}}"
        )
    rates = [success_rate(evaluation["policies"][name]["success"]) for name in names]
    figure = _figure(1.6 + 1.25 * len(names), 3.4)
    axes, places = figure.subplots(), range(len(names))
    values, low, high = 100 * np.array([(rate.rate, rate.low, rate.high) for rate in rates]).T
    axes.bar(places, values, width=0.62, color=[policy_color(name) for name in names])
    # Rounding may leave a bound a hair on the wrong side at 0 and 100 %, which errorbar refuses.
    gaps = np.maximum(0, [values - low, high - values])
    axes.errorbar(places, values, gaps, fmt="none", ecolor="#23262b", capsize=4, lw=1.2)
    for i in places:
        axes.text(i, high[i] + 1, f"{values[i]:.1f} %", ha="center", va="bottom", fontsize=9)
    labels = [f"{NAMES.get(n, n)}\n{r.successes} of {r.n}" for n, r in zip(names, rates)]
    axes.set_xticks(places, labels)
    axes.set_ylim(0, min(112, max(20, 1.25 * high.max())))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 100])
    axes.grid(axis="y", color="#e6e8eb", lw=0.7)
    axes.set_axisbelow(True)
    _clean(axes, "Success in the real environment, 95 % intervals", y="success (%)")
    return figure


def _series(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the finite values under `key`."""
    pairs = [
        (record["step"], record[key])
        for record in records
        if isinstance(record.get(key), (int, float)) and np.isfinite(record[key])
    ]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def _curve(axes, records, key: str, color: str, label: str, factor: float = 1.0) -> None:
    """The values, pale, under their running mean (at most 9 records): single
    iterations are noisy.
    """
    x, y = _series(records, key)
    width = min(9, len(y) // 5)
    if width < 2:
        few = {"marker": "o" if len(y) < 4 else None, "label": label if len(y) else None}
        axes.plot(x, factor * y, color=color, lw=1.6, ms=4, **few)
        return
    half = width // 2
    mean = [y[max(0, i - half) : i + half + 1].mean() for i in range(len(y))]
    axes.plot(x, factor * y, color=color, lw=0.9, alpha=0.35)
    axes.plot(x, factor * np.array(mean), color=color, lw=1.8, label=label)


def learning_curves(records: Sequence[dict]):
    """Figure: what the policy updates did (stages wmpo, grpo) and the loss of every other stage,
    from metrics.jsonl.

    Success is the share of the iteration's sampled trajectories: imagined ones for WMPO, real ones
    for online GRPO.
    """
    stages: dict[str, list[dict]] = {}
    for record in records:
        if "stage" in record and "step" in record:
            stages.setdefault(record["stage"], []).append(record)
    if not stages:
        raise UserError(
            "the metrics hold no record with a stage and a step, so there is no curve to draw"
        )
    updates = [name for name in ("wmpo", "grpo") if name in stages]
    fits = [
        name for name in stages if name not in updates and len(_series(stages[name], "loss")[0])
    ]
    panels = (4 if updates else 0) + len(fits)
    if not panels:
        raise UserError(
            f"the stages {sorted(stages)} of the metrics hold no loss and no success, "
            "so there is no curve to draw"
        )
    columns = min(4, panels) if panels != 5 else 3
    rows = -(-panels // columns)
    figure = _figure(max(2.9 * columns, 3.4), 2.6 * rows)
    figure.get_layout_engine().set(h_pad=0.1)
    flat = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in flat[panels:]:
        axes.set_axis_off()
    if updates:
        _update_panels(flat, stages, updates)
    for axes, name in zip(flat[4 if updates else 0 :], fits):
        _curve(axes, stages[name], "loss", "#4b5563", "loss")
        _clean(axes, f"Loss: {name}", "step")
    return figure


def _update_panels(flat, stages, updates) -> None:
    for name in updates:
        label = {"wmpo": "WMPO (imagined)", "grpo": "online GRPO (real)"}[name]
        _curve(flat[0], stages[name], "success", COLORS[name], label, 100)
        _curve(flat[1], stages[name], "entropy", COLORS[name], NAMES[name])
        _curve(flat[2], stages[name], "approx_kl", COLORS[name], NAMES[name])
    _real_success(flat[0], stages.get("real", []))
    flat[0].set_ylim(0, 100)
    flat[2].set_ylim(bottom=min(0, flat[2].get_ylim()[0]))
    if flat[0].lines or flat[0].containers:
        flat[0].legend(fontsize=7, frameon=False, loc="upper left")
    _clean(flat[0], "Success of sampled trajectories (%)", "iteration")
    _clean(flat[1], "Policy entropy (nats a token)", "iteration")
    _clean(flat[2], "Approximate KL to the sampler", "iteration")
    _group_fates(flat[3], stages[updates[0]], NAMES[updates[0]])


def _real_success(axes, records) -> None:
    """The WMPO policy tried out in the real environment as it learns, greedy, with 95 % Wilson
    intervals.
    """
    if not records:
        return
    from wmpo_lite.evaluate import wilson_interval  # loads scipy

    steps, rates, counts = np.array([(r["step"], r["success"], r["n"]) for r in records]).T
    ends = np.array([wilson_interval(round(p * n), int(n)) for p, n in zip(rates, counts)])
    gaps, look = 100 * np.abs(ends.T - rates), {"color": "#23262b", "marker": "o", "ms": 3.5}
    label = "WMPO, greedy (real)"
    axes.errorbar(steps, 100 * rates, gaps, lw=1, capsize=2, label=label, **look)


def _group_fates(axes, records, name: str) -> None:
    """Stacked areas: which groups of trajectories taught something, and why the others did not
    (dynamic sampling).
    """
    fates = {
        "kept": ("kept", "#1f6fb4"),
        "all_success": ("all succeed", "#7cc49b"),
        "all_failure": ("all fail", "#e39a9f"),
        "out_of_range": ("out of range", "#c9ccd2"),
    }
    x = _series(records, "kept")[0]
    if not len(x):
        return _say(axes, "groups: not recorded")
    known = [record for record in records if record.get("kept") is not None]
    shares = np.array([[float(record.get(key) or 0) for record in known] for key in fates])
    labels, colors = zip(*fates.values())
    axes.stackplot(x, shares, labels=labels, colors=colors)
    axes.set_ylim(0, 1.35 * max(1.0, shares.sum(axis=0).max()))  # room for the legend
    axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    _clean(axes, f"Groups of trajectories ({name})", "iteration")


def trust_plot(trust: dict):
    """Figure of six panels: can the imagination be trusted? From trust.json, all measured on
    held-out real rollouts.

    PSNR by horizon against repeating the last known frame; PSNR under true, shuffled and zero
    actions; F1 of the reward model on real and imagined video; imagined score by real outcome; its
    ROC curve; the confusion matrix at the threshold. A missing part says so in its panel.
    """
    figure = _figure(10.5, 6.2)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    panels = figure.subplots(2, 3)
    drawings = (
        (_psnr_panel, "PSNR by horizon"),
        (_sensitivity_panel, "Sensitivity to actions"),
        (_f1_panel, "Reward model F1"),
        (_scores_panel, "Imagined scores"),
        (_roc_panel, "ROC curve"),
        (_confusion_panel, "Confusion matrix"),
    )
    for axes, (draw, title) in zip(panels.flat, drawings):
        try:
            draw(axes, trust)
        except (KeyError, TypeError, ValueError):  # absent, null, or of another shape
            axes.clear()
            _say(axes, f"{title}: not recorded")
    return figure


def _psnr_panel(axes, trust):
    curves = trust["psnr"]
    for key, label, color in (
        ("model", "world model", COLORS["wmpo"]),
        ("copy_last", "last known frame repeated", COLORS["base"]),
    ):
        y = np.array(curves[key], float)
        axes.plot(curves["horizons"], y, marker="o", ms=4, color=color, label=label)
    axes.set_xticks(curves["horizons"])
    axes.legend(fontsize=8, frameon=False)
    axes.grid(color="#eceef0", lw=0.7)
    _clean(axes, "How long does it stay true?", "imagined frames", "PSNR (dB)")


def _bars(axes, labels, values, colors, form: str, limits: tuple[float, float]):
    axes.bar(range(len(values)), values, width=0.6, color=colors)
    axes.set_xticks(range(len(values)), labels)
    axes.set_ylim(*limits)
    for i, value in enumerate(values):
        axes.text(i, value, form.format(value), ha="center", va="bottom", fontsize=8)


def _sensitivity_panel(axes, trust):
    part = trust["sensitivity"]
    kinds = [key for key in ("shuffled", "zero", "delayed") if key in part]
    values = np.array([part[key] for key in ("true", *kinds)], float)
    costs = {key: part[f"{key}_cost"] for key in kinds}
    worse = lambda cost: f"({cost:.1f} dB worse)" if cost >= 0 else "(no worse)"
    labels = ["true\nactions", *(f"{key}\n{worse(cost)}" for key, cost in costs.items())]
    colors = [COLORS["wmpo"], *[COLORS["base"]] * len(kinds)]
    _bars(axes, labels, values, colors, "{:.1f}", (0, 1.15 * values.max()))
    _clean(axes, "Does it listen to the actions?", y="PSNR (dB)")


def _f1_panel(axes, trust):
    videos = (("real\nvideo", "reward_f1_real"), ("imagined\nvideo", "reward_f1_imagined"))
    known = [(name, float(trust[key])) for name, key in videos if trust.get(key) is not None]
    if not known:
        raise KeyError("reward_f1_real")
    names, values = zip(*known)
    _bars(axes, names, values, ["#5a9bd0", COLORS["wmpo"]][: len(known)], "{:.2f}", (0, 1.12))
    axes.set_yticks(np.linspace(0, 1, 6))
    _clean(axes, "Does the reward model see success?", y="F1 of the reward model")


def _scores_panel(axes, trust):
    scores, real = np.array(trust["scores"], float), np.array(trust["real"], bool)
    if scores.shape != real.shape:
        raise KeyError("scores")
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))
    colors = np.where(real, "#229657", "#cd3e46")
    axes.scatter(real + jitter, scores, s=13, c=colors, alpha=0.65, linewidths=0)
    if trust.get("threshold") is not None:
        axes.axhline(trust["threshold"], color="#23262b", lw=1, ls="--")
        axes.text(0.5, trust["threshold"], "threshold", fontsize=7, ha="center", va="bottom")
    axes.set_xticks(
        [0, 1], [f"real failures\n({(~real).sum()})", f"real successes\n({real.sum()})"]
    )
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(-0.04, 1.06)
    _clean(axes, "Same actions, imagined", y="score in imagination")


def _roc_panel(axes, trust):
    scores, real = np.array(trust["scores"], float), np.array(trust["real"], bool)
    axes.plot([0, 1], [0, 1], color="#c9ccd2", lw=1, ls="--")
    if real.any() and not real.all() and scores.shape == real.shape:
        levels = np.concatenate([[np.inf], np.unique(scores)[::-1]])
        false_alarms, hits = (
            np.array([(scores[group] >= level).mean() for level in levels])
            for group in (~real, real)
        )
        axes.plot(false_alarms, hits, color=COLORS["wmpo"], lw=1.8)
        axes.fill_between(false_alarms, hits, color=COLORS["wmpo"], alpha=0.08, lw=0)
    auc = (trust.get("agreement") or {}).get("auc")
    if auc is not None:
        axes.text(0.96, 0.06, f"AUC {auc:.3f}", ha="right", fontsize=11)
    axes.set_aspect("equal")
    _clean(axes, "Does it rank outcomes rightly?", "false alarms", "successes recognized")


def _confusion_panel(axes, trust):
    counts = np.array(trust["agreement"]["confusion"], int).reshape(2, 2)  # [real][imagined]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for i, j in np.ndindex(2, 2):
        said = f"{counts[i, j]}\n{100 * shares[i, j]:.0f} %"
        color = "white" if shares[i, j] > 0.6 else "#23262b"
        axes.text(j, i, said, ha="center", va="center", fontsize=10, color=color)
    axes.set_xticks([0, 1], ["failure", "success"])
    axes.set_yticks([0, 1], ["failure", "success"], rotation=90, va="center")
    _clean(axes, "Does it judge outcomes rightly?", "imagined", "real")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


REAL, DREAM, LEARN = "#f6dcc0", "#cfe2f3", "#dcebd9"
# The method's boxes: left and lower edge, text, color; its arrows: from, to, bend.
BOXES = {
    "demos": (0.1, 2.6, "demonstrations", REAL),
    "base": (2.05, 2.6, "base policy\n(cloned)", LEARN),
    "rollouts": (4.0, 2.6, "P real rollouts,\nonce", REAL),
    "world": (5.95, 3.15, "world model\n(aligned)", LEARN),
    "judge": (5.95, 2.05, "reward\nmodel", LEARN),
    "imagine": (7.55, 0.5, "imagined episodes\nfrom recorded\nfirst frames", DREAM),
    "score": (5.05, 0.5, "success or failure\nof each, in\ngroups of G", DREAM),
    "update": (2.55, 0.5, "GRPO: groups say\nwhat was better\nthan usual", DREAM),
    "deploy": (0.1, 0.5, "better policy,\nreal again", REAL),
}
ARROWS = (
    ((1.66, 2.96), (1.99, 2.96), 0),
    ((3.61, 2.96), (3.94, 2.96), 0),
    ((5.56, 3.1), (5.89, 3.45), 0),
    ((5.56, 2.8), (5.89, 2.45), 0),
    ((7.53, 3.45), (8.55, 1.3), -0.35),
    ((6.3, 2.0), (5.9, 1.3), 0),
    ((7.49, 0.86), (6.63, 0.86), 0),
    ((4.99, 0.86), (4.13, 0.86), 0),
    ((2.49, 0.86), (1.66, 0.86), 0),
    ((3.3, 0.42), (8.2, 0.42), 0.16),
)


def method_loop(*here: str):
    """Figure: the method in boxes. What touches the real environment is orange, what happens in
    imagination is blue.

    here: names of the boxes that a notebook is about, drawn in strong colors and the others pale;
    without any all are strong. Raises UserError for a name that no box has.
    """
    if unknown := sorted(set(here) - set(BOXES)):
        raise UserError(
            f"the method's picture has no box '{unknown[0]}'; use some of {', '.join(BOXES)}"
        )
    figure = _figure(9.2, 3.9)
    axes = figure.subplots()
    axes.set(xlim=(0, 9.2), ylim=(-0.35, 4.0))
    axes.set_axis_off()
    for name, (x, y, text, color) in BOXES.items():
        strong = name in here or not here
        edge = "#23262b" if name in here else "#5b6068" if strong else "#c9ccd2"
        _box(
            axes,
            x,
            y,
            1.5,
            0.72,
            0.04,
            color if strong else "white",
            edge,
            1 + 1.4 * (name in here),
        )
        ink = "black" if strong else "#7d838c"
        axes.text(x + 0.75, y + 0.36, text, ha="center", va="center", fontsize=8.5, color=ink)
    for start, end, bend in ARROWS:
        _arrow(axes, start, end, bend, mutation_scale=11, lw=1.2)
    again = "the changed policy imagines again, a few dozen times"
    axes.text(5.75, -0.3, again, fontsize=8, ha="center", color="#3a3f47")
    return figure


def _box(axes, x, y, width, height, pad, face, edge, line) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad={pad},rounding_size={2 * pad}"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, lw=line
        )
    )


def _arrow(axes, start, end, bend=0.0, **look) -> None:
    from matplotlib.patches import FancyArrowPatch

    style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": "#3a3f47"}
    axes.add_patch(FancyArrowPatch(start, end, **style, **look))


def shape_diagram(rows: Sequence[Sequence[tuple[str, object]]]):
    """Figure: how tensors go through a network. rows: for each line of the drawing its steps from
    left to right, each (what is done, shape of the result); a line ends where the next begins.
    """
    columns, wide = max(len(row) for row in rows), 1.9
    figure = _figure(max(4.0, 1.55 * columns), 0.25 + 1.0 * len(rows))
    axes = figure.subplots()
    axes.set(xlim=(-0.15, wide * columns), ylim=(-len(rows) + 0.3, 0.75))
    axes.set_axis_off()
    for y, row in enumerate(rows):
        for x, (text, shape) in enumerate(row):
            left, face = wide * x, LEARN if x else DREAM
            _box(axes, left, 0.08 - y, wide - 0.42, 0.48, 0.03, face, "#5b6068", 0.8)
            label = "x".join(map(str, shape)) if isinstance(shape, tuple | list) else str(shape)
            for height, words in ((0.32, text), (-0.13, label)):
                middle = left + (wide - 0.42) / 2
                axes.text(middle, height - y, words, ha="center", va="center", fontsize=7.5)
            if x + 1 < len(row):
                start, end = (left + wide - 0.4, 0.32 - y), (left + wide - 0.02, 0.32 - y)
                _arrow(axes, start, end, mutation_scale=8)
    return figure
