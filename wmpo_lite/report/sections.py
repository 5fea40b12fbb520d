"""The sections of a report: each takes what was read of a run, empty where it is missing, and
returns HTML.
"""

import html
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.evaluate import success_rate
from wmpo_lite.report import plots, show
from wmpo_lite.report.checks import FIGURES
from wmpo_lite.report.page import film_figures, folded, note, pairs, picture, table, text
from wmpo_lite.report.run_files import RunFolder

FILM_WIDTH = 192  # pixels a film is enlarged to before encoding, at least about

SEEN_WORDS = {
    "base": "base policy (all methods start from it)",
    "grpo": "online GRPO, beyond its start",
    "dpo": "offline DPO, beyond its start",
    "world_model": "WMPO: its world model",
    "reward_model": "WMPO: its reward model",
}
SWAP_WORDS = {
    "as_said": "success with the instruction of the scene",
    "swapped_follows_new": "success with the swapped instruction",
}


def head(name: str, config: dict, task: str | None, evaluation: dict, trust: dict) -> str:
    """Title, settings, the result in one sentence and in tiles; dicts are empty where missing."""
    known = ("profile", "seed", "rollout_budget", "round", "horizon", "chunk")
    facts = "".join(
        f" &middot; {key.replace('_', ' ')} {html.escape(str(config[key]))}"
        for key in known
        if key in config
    )
    outcomes = {
        policy: success_rate(evaluation["policies"][policy]["success"])
        for policy in plots.ordered_policies(evaluation)
    }
    comparison = evaluation.get("comparisons", {}).get("wmpo_vs_base")
    tiles = [
        (f"{100 * rate.rate:.1f} %", f"{plots.NAMES[policy]}: success {_interval(rate)}")
        for policy, rate in outcomes.items()
        if policy in ("base", "wmpo")
    ]
    if comparison:
        gain, _, interval = _points(comparison).partition(" points ")
        tiles.append((gain, f"points gained {interval}"))
    if (auc := (trust.get("agreement") or {}).get("auc")) is not None:
        tiles.append((f"{auc:.3f}", "AUC: imagined against real success"))
    shown = "".join(f'<div class="tile"><b>{x}</b><span>{label}</span></div>' for x, label in tiles)
    title = "World-model-based policy optimization" + (
        f": {html.escape(str(task))}" if task else ""
    )
    return (
        f'<header><h1>{title}</h1><p class="sub">run {html.escape(name)}{facts}</p><p'
        f' class="headline">{_headline(config, outcomes, comparison)}</p>'
        + (f'<div class="tiles">{shown}</div>' if tiles else "")
        + "</header>"
    )


def _headline(config: dict, outcomes: dict, comparison: dict | None) -> str:
    """The result in one sentence, and no more than the interval carries."""
    if "wmpo" not in outcomes or "base" not in outcomes:
        known = ", ".join(
            f"{html.escape(plots.NAMES.get(name, name))} {rate}" for name, rate in outcomes.items()
        )
        return (
            "No result yet: base and WMPO have not both been"
            f" evaluated{f' ({known})' if known else ''}."
        )
    budget = config.get("rollout_budget")
    source = f"with {budget} real rollouts" if budget is not None else "on recorded rollouts"
    if before := config.get("recorded_before"):
        source += f" and the {before} of rounds before"
    base, wmpo = outcomes["base"], outcomes["wmpo"]
    sentence = (
        f"After training only inside a world model fitted {source}, the policy solves"
        f" <b>{100 * wmpo.rate:.1f}&nbsp;%</b> of {wmpo.n} held-out initial states of the real"
        f" environment; before, it solved <b>{100 * base.rate:.1f}&nbsp;%</b>"
    )
    if not comparison:
        return (
            sentence
            + ". The two were not evaluated on the same states, so the difference has no paired"
            " interval."
        )
    sentence += f": <b>{_points(comparison)}</b>, 95&nbsp;% paired interval."
    if comparison["low"] > 0:
        return sentence
    return sentence + (
        " That is a loss."
        if comparison["high"] < 0
        else " The interval holds zero, so this run does not show a difference."
    )


def _interval(rate) -> str:
    """In percent, of a `SuccessRate`."""
    return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _points(comparison: dict) -> str:
    """'+23.1 points [17.2, 29.0]'; the gain of a comparison is a fraction."""
    return (
        f"{100 * comparison['gain']:+.1f} points [{100 * comparison['low']:.1f},"
        f" {100 * comparison['high']:.1f}]"
    )


def success(evaluation: dict) -> str:
    names = plots.ordered_policies(evaluation)
    if not names:
        return note("The evaluation (evaluation.json)")
    ratios, rows = evaluation.get("length_ratio") or {}, []
    for name in names:
        policy = evaluation["policies"][name]
        rate = success_rate(policy["success"])
        steps = [
            step for step, won in zip(policy.get("finish_step") or [], policy["success"]) if won
        ]
        ratio = ratios.get(name, 100.0 if name == "base" and ratios else None)
        rows.append(
            [
                html.escape(plots.NAMES.get(name, name)),
                f"{100 * rate.rate:.1f}",
                _interval(rate),
                f"{rate.successes} / {rate.n}",
                f"{np.mean(steps):.1f}" if steps else "-",
                f"{ratio:.1f}" if ratio is not None else "-",
            ]
        )
    header = "policy|success (%)|95 % interval|solved|mean length of successes|length, base = 100"
    compared = [
        [
            html.escape(
                " against ".join(plots.NAMES.get(name, name) for name in key.split("_vs_"))
            ),
            _points(value),
            str(value.get("won", "-")),
            str(value.get("lost", "-")),
            f"{value['p_value']:.2g}" if value.get("p_value") is not None else "-",
        ]
        for key, value in evaluation["comparisons"].items()
        if value
    ]
    comparisons = (
        table(["comparison", "difference, 95 % interval", "won", "lost", "p"], compared, (2, 3, 4))
        if compared
        else note("A second evaluated policy")
    )
    return (
        picture(
            plots.success_bars(evaluation), "Bars of the success rate of each policy with intervals"
        )
        + table(header.split("|"), rows, (1, 2, 3, 4, 5))
        + '<p class="sub">Greedy policies, all on the same held-out initial states. Intervals are'
        " Wilson intervals; one policy's interval says nothing about pairs, for which see the"
        " next table. Length, base = 100: on the states that the base and the policy both"
        " solve.</p><h3>Paired comparisons</h3>"
        + comparisons
        + '<p class="sub">Same initial states, so the luck of the draw cancels. won, lost: states'
        " that only the first, only the second solves; interval: paired bootstrap; p: McNemar's"
        " exact test.</p>"
    )


def seen(counts: dict) -> str:
    """counts: seen.json of the run."""
    if not counts:
        return note("The list of what each method has seen (seen.json)")
    cell = lambda pair: "-" if pair is None else f"{pair[0]:,} episodes, {pair[1]:,} frames"
    rows = [
        [
            html.escape(SEEN_WORDS.get(name, name)),
            *(cell(row[key]) for key in ("demonstrations", "rollouts", "play")),
        ]
        for name, row in counts.items()
    ]
    return (
        table(
            ["", "demonstrations", "P real rollouts", "broad play (no task, no goal, no labels)"],
            rows,
        )
        + '<p class="sub">Rollouts for the trust panel, for the curve of real success and for the'
        " evaluation are for reporting only; nothing is trained or chosen on them.</p>"
    )


def _word(won) -> str:
    return "success" if won else "failure"


def _pairs_of_films(left, right, words, borders, films: dict, budget: list[int]) -> str:
    """Two films side by side for each episode; words, borders: of the left and the right one."""
    scale, count = max(1, -(-FILM_WIDTH // left.shape[3])), len(left)
    said = films.get("instructions")
    known = said is not None and len(said) == count
    captions = [str(said[i]) if known else f"episode {i}" for i in range(count)]
    beside = (
        show.side_by_side([left[i], right[i]], words[i], scale, borders[i]) for i in range(count)
    )
    return film_figures(beside, captions, budget)


def episodes(films: dict, budget: list[int]) -> str:
    """budget: [bytes of film left], taken from here too."""
    if not films:
        return note("episodes.npz (films of the policy before and after)")
    won = list(zip(films["before_success"].astype(bool), films["after_success"].astype(bool)))
    words = [(f"before: {_word(a)}", f"after WMPO: {_word(b)}") for a, b in won]
    return (
        "<p>The base policy and the WMPO policy from the same initial states, in the real"
        " environment. Green border: solved; red: not.</p>"
        + _pairs_of_films(films["before"], films["after"], words, won, films, budget)
    )


def trust(measured: dict, films: dict, budget: list[int]) -> str:
    """measured: trust.json; budget: [bytes of film left], taken from here too."""
    count = f", on {measured['n']} held-out real rollouts" if measured.get("n") else ""
    figures = (
        _trust_figures(measured)
        if measured
        else note("The measurement of the world model (trust.json)")
    )
    beside = (
        _trust_films(measured.get("threshold"), films, budget)
        if films
        else note("trust_films.npz (films of real beside imagined episodes)")
    )
    return (
        f"<p>The same actions were run in the real environment and in imagination{count}. A world"
        " model that ignores actions, or flatters the policy, teaches nothing that holds in the"
        f" real environment.</p>{figures}<h3>Real beside imagined</h3>{beside}"
    )


def _trust_figures(measured: dict) -> str:
    rows, met = [], ('<span class="no">not met</span>', '<span class="yes">met</span>')
    for figure in FIGURES:
        value, aim = figure.of(measured), figure.aim
        rows.append(
            [
                figure.label,
                "not measured" if value is None else figure.form.format(value),
                "" if aim is None else figure.form.format(aim),
                "" if value is None or aim is None else met[value >= aim],
                f'<span class="why">{figure.why}</span>',
            ]
        )
    return table(
        ["measure", "value", "aim, at least", "", "what it tells"], rows, (1, 2)
    ) + picture(
        plots.trust_plot(measured),
        "Six panels on the world model: PSNR, action sensitivity, F1, scores, ROC, confusion"
        " matrix",
    )


def _trust_films(threshold: float | None, films: dict, budget: list[int]) -> str:
    won, scores = films["real_success"].astype(bool), films["scores"]
    judged = [None if threshold is None else bool(score >= threshold) for score in scores]
    words = [
        (
            f"real: {_word(real)}",
            f"imagined: {'' if ok is None else _word(ok) + ', '}score {score:.2f}",
        )
        for real, ok, score in zip(won, judged, scores)
    ]
    wrong = sum(ok is not None and ok != real for ok, real in zip(judged, won))
    misjudged = f" ({wrong} of these {len(won)})" if threshold is not None else ""
    return (
        "<p>Left: what the simulator did. Right: what the world model imagined from the first"
        " frame and the same actions. Borders: green for success, red for failure; where the"
        f" colors differ, the imagination misjudged{misjudged}.</p>"
        + _pairs_of_films(
            films["real"], films["imagined"], words, list(zip(won, judged)), films, budget
        )
    )


def curves(figure) -> str:
    if figure is None:
        return note("metrics.jsonl (what training did, step by step)")
    return picture(
        figure,
        "Learning curves of the policy updates and losses of the other stages",
        "Success of sampled trajectories is that of the exploring policy, in imagination for WMPO:"
        " the greedy policy in the real environment is judged above. Groups whose trajectories all"
        " succeed or all fail carry no gradient and are left out.",
    )


def swap(evaluation: dict) -> str:
    """Optional part of the evaluation; its rates, fractions of `n` episodes, get their
    intervals.
    """
    found = evaluation.get("instruction_swap")
    if not isinstance(found, dict) or not found:
        return ""
    n, rows = found.get("n"), []
    for key, value in found.items():
        if isinstance(value, float) and 0 <= value <= 1 and isinstance(n, int) and n > 0:
            value = str(success_rate(np.arange(n) < round(value * n)))
        if key != "n" and not isinstance(value, list):
            rows.append([html.escape(SWAP_WORDS.get(key, str(key).replace("_", " "))), text(value)])
    return (
        "<p>The base policy on the same scenes, once with the instruction of the scene and once"
        " with that for another object: a policy that listens does what it is told about as"
        " often.</p>" + table([], rows)
    )


def configuration(config: dict) -> str:
    return pairs(config) if config else note("config.json")


def provenance(run: Path, result: dict) -> str:
    made = result.get("versions") if isinstance(result.get("versions"), dict) else None
    facts = ({"commit": result["commit"]} if result.get("commit") else {}) | (made or {})
    content = (
        pairs(facts)
        if facts
        else note("result.json with the versions of the run")
        + '<p class="sub">The report itself was written with:</p>'
        + pairs({"commit": checkpoint.commit(), **checkpoint.versions()})
    )
    record = {key: value for key, value in result.items() if key not in ("versions", "commit")}
    if record:
        content += folded("The record of this run (result.json)", pairs(record))
    read = lambda path: RunFolder(path.parent).json(path.name)
    stages = sorted((run / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    clocks = [(path.stem, read(path).get("seconds")) for path in stages]
    times = [[html.escape(name), f"{x:.1f}"] for name, x in clocks if x is not None]
    if times:
        content += folded("Time of each stage", table(["stage", "seconds"], times, (1,)))
    for path in sorted(run.rglob("provenance.json")):
        if found := read(path):
            content += folded(str(path.parent.relative_to(run)), pairs(found))
    files = [
        [html.escape(str(path.relative_to(run))), f"{path.stat().st_size / 1e3:,.1f}"]
        for path in sorted(run.iterdir())
        if path.is_file() and path.name != "report.html" and not path.name.endswith(".part")
    ]
    if files:
        content += folded("Files of this run", table(["file", "kB"], files, (1,)))
    return content
