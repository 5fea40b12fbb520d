"""The sections of a report: each takes what was read of a run, None where it is missing, and
returns HTML.
"""

import html
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.evaluate import success_rate
from wmpo_lite.report import plots, show
from wmpo_lite.report.page import film_figures, folded, note, pairs, picture, table, text
from wmpo_lite.report.run_files import load_object

FILM_WIDTH = 192  # pixels a film is enlarged to before encoding, at least about

# What an imagination worth training in should reach. key: (label, aim, how to print, why it
# matters)
TRUST_AIMS = {
    "auc": (
        "AUC of imagined against real success",
        0.92,
        "{:.3f}",
        "a real success scores above a real failure this often; 0.5 is guessing",
    ),
    "success_agreement": (
        "Real successes imagined as successes",
        0.85,
        "{:.2f}",
        "low: the imagination loses objects at contact",
    ),
    "failure_agreement": (
        "Real failures imagined as failures",
        0.85,
        "{:.2f}",
        "low: the imagination flatters the policy",
    ),
    "before_auc": (
        "AUC before alignment",
        None,
        "{:.3f}",
        "what the P rollouts were good for, beside the first row",
    ),
    "before_success": (
        "Real successes imagined as successes, before alignment",
        None,
        "{:.2f}",
        "beside the second row",
    ),
    "valid_frames": (
        "Frames until a thing is off by its own width (mean)",
        None,
        "{:.1f}",
        "how long an imagined episode can be believed in detail",
    ),
    "shuffled_cost": (
        "Cost of shuffled actions (dB)",
        6.0,
        "{:.1f}",
        "near zero: the world model ignores the actions",
    ),
    "reward_f1_real": (
        "F1 of the reward model on real video",
        0.95,
        "{:.3f}",
        "whether it is right where it was trained",
    ),
    "reward_f1_imagined": (
        "F1 of the reward model on imagined video",
        None,
        "{:.3f}",
        "whether it still is right on imagined frames",
    ),
}

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
    known = ("profile", "seed", "rollout_budget", "horizon", "chunk")
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
    tiles = []
    for policy in ("base", "wmpo"):
        if policy in outcomes:
            rate = outcomes[policy]
            tiles.append(
                (
                    f"{100 * rate.rate:.1f} %",
                    f"{plots.NAMES[policy]}: success [{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
                )
            )
    if comparison:
        tiles.append(
            (
                f"{100 * comparison['gain']:+.1f}",
                f"points gained [{100 * comparison['low']:.1f}, {100 * comparison['high']:.1f}]",
            )
        )
    auc = (trust.get("agreement") or {}).get("auc")
    if auc is not None:
        tiles.append((f"{auc:.3f}", "AUC: imagined against real success"))
    tiles = "".join(
        f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles
    )
    return (
        "<header><h1>World-model-based policy"
        f" optimization{f': {html.escape(str(task))}' if task else ''}</h1>"
        f'<p class="sub">run {html.escape(name)}{facts}</p><p'
        f' class="headline">{_headline(config, outcomes, comparison)}</p>'
        f'{f"""<div class="tiles">{tiles}</div>""" if tiles else ""}</header>'
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


def _points(comparison: dict) -> str:
    """'+23.1 points [17.2, 29.0]'; the gain of a comparison is a fraction."""
    return (
        f"{100 * comparison['gain']:+.1f} points [{100 * comparison['low']:.1f},"
        f" {100 * comparison['high']:.1f}]"
    )


def success(evaluation: dict | None) -> str:
    names = plots.ordered_policies(evaluation) if evaluation else []
    if not names:
        return note("The evaluation (evaluation.json)")
    ratios, rows = evaluation.get("length_ratio") or {}, []
    for name in names:
        policy = evaluation["policies"][name]
        rate = success_rate(policy["success"])
        lengths = [
            step for step, won in zip(policy.get("finish_step") or [], policy["success"]) if won
        ]
        ratio = ratios.get(name, 100.0 if name == "base" and ratios else None)
        rows.append(
            [
                html.escape(plots.NAMES.get(name, name)),
                f"{100 * rate.rate:.1f}",
                f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
                f"{rate.successes} / {rate.n}",
                f"{np.mean(lengths):.1f}" if lengths else "-",
                f"{ratio:.1f}" if ratio is not None else "-",
            ]
        )
    header = [
        "policy",
        "success (%)",
        "95 % interval",
        "solved",
        "mean length of successes",
        "length, base = 100",
    ]
    compared = [
        [
            html.escape(_versus(key)),
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
        + table(header, rows, (1, 2, 3, 4, 5))
        + '<p class="sub">Greedy policies, all on the same held-out initial states. Intervals are'
        " Wilson intervals; one policy's interval says nothing about pairs, for which see the"
        " next table. Length, base = 100: on the states that the base and the policy both"
        " solve.</p><h3>Paired comparisons</h3>"
        + comparisons
        + '<p class="sub">Same initial states, so the luck of the draw cancels. won, lost: states'
        " that only the first, only the second solves; interval: paired bootstrap; p: McNemar's"
        " exact test.</p>"
    )


def seen(counts: dict | None) -> str:
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


def _versus(key: str) -> str:
    return " against ".join(plots.NAMES.get(name, name) for name in key.split("_vs_"))


def _captions(films: dict, count: int) -> list[str]:
    words = films.get("instructions")
    return [
        str(words[i]) if words is not None and len(words) == count else f"episode {i}"
        for i in range(count)
    ]


def _scale(films: np.ndarray) -> int:
    return max(1, -(-FILM_WIDTH // films.shape[3]))


def _word(won) -> str:
    return "success" if won else "failure"


def episodes(films: dict | None, budget: list[int]) -> str:
    """budget: [bytes of film left], taken from here too."""
    if films is None:
        return note("episodes.npz (films of the policy before and after)")
    before, after, first, second = (
        films[key] for key in ("before", "after", "before_success", "after_success")
    )
    beside = (
        show.side_by_side(
            [before[i], after[i]],
            [f"before: {_word(first[i])}", f"after WMPO: {_word(second[i])}"],
            _scale(before),
            [bool(first[i]), bool(second[i])],
        )
        for i in range(len(before))
    )
    return (
        "<p>The base policy and the WMPO policy from the same initial states, in the real"
        " environment. Green border: solved; red: not.</p>"
        + film_figures(beside, _captions(films, len(before)), budget)
    )


def trust(measured: dict | None, films: dict | None, budget: list[int]) -> str:
    """measured: trust.json; budget: [bytes of film left], taken from here too."""
    count = f", on {measured['n']} held-out real rollouts" if measured and measured.get("n") else ""
    figures = (
        note("The measurement of the world model (trust.json)")
        if measured is None
        else _trust_figures(measured)
    )
    beside = (
        note("trust_films.npz (films of real beside imagined episodes)")
        if films is None
        else _trust_films((measured or {}).get("threshold"), films, budget)
    )
    return (
        f"<p>The same actions were run in the real environment and in imagination{count}. A world"
        " model that ignores actions, or flatters the policy, teaches nothing that holds in the"
        f" real environment.</p>{figures}<h3>Real beside imagined</h3>{beside}"
    )


def _trust_figures(measured: dict) -> str:
    values = {
        **measured,
        **(measured.get("sensitivity") or {}),
        **(measured.get("agreement") or {}),
    }
    rows = []
    before = (measured.get("before_alignment") or {}).get("agreement") or {}
    values |= {"before_auc": before.get("auc"), "before_success": before.get("success_agreement")}
    for key, (label, aim, form, why) in TRUST_AIMS.items():
        value, met = values.get(key), ""
        if value is not None and aim is not None:
            met = (
                '<span class="yes">met</span>'
                if value >= aim
                else '<span class="no">not met</span>'
            )
        rows.append(
            [
                label,
                "not measured" if value is None else form.format(value),
                "" if aim is None else form.format(aim),
                met,
                f'<span class="why">{why}</span>',
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
    real, imagined, won, scores = (
        films[key] for key in ("real", "imagined", "real_success", "scores")
    )
    judged = [None if threshold is None else bool(score >= threshold) for score in scores]
    verdict = [
        f"imagined: {'' if ok is None else _word(ok) + ', '}score {score:.2f}"
        for ok, score in zip(judged, scores)
    ]
    beside = (
        show.side_by_side(
            [real[i], imagined[i]],
            [f"real: {_word(won[i])}", verdict[i]],
            _scale(real),
            [bool(won[i]), judged[i]],
        )
        for i in range(len(real))
    )
    wrong = sum(judged[i] is not None and judged[i] != bool(won[i]) for i in range(len(real)))
    misjudged = f" ({wrong} of these {len(real)})" if threshold is not None else ""
    return (
        "<p>Left: what the simulator did. Right: what the world model imagined from the first"
        " frame and the same actions. Borders: green for success, red for failure; where the"
        f" colors differ, the imagination misjudged{misjudged}.</p>"
        + film_figures(beside, _captions(films, len(real)), budget)
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


def swap(evaluation: dict | None) -> str:
    """Optional part of the evaluation; its rates, fractions of `n` episodes,
    get their intervals.
    """
    found = (evaluation or {}).get("instruction_swap")
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


def configuration(config: dict | None) -> str:
    return pairs(config) if config else note("config.json")


def provenance(run: Path, result: dict | None) -> str:
    result = result or {}
    made = result.get("versions") if isinstance(result.get("versions"), dict) else None
    facts = ({"commit": result["commit"]} if result.get("commit") else {}) | (made or {})
    content = (
        pairs(facts)
        if facts
        else (
            note("result.json with the versions of the run")
            + '<p class="sub">The report itself was written with:</p>'
            + pairs({"commit": checkpoint.commit(), **checkpoint.versions()})
        )
    )
    record = {key: value for key, value in result.items() if key not in ("versions", "commit")}
    if record:
        content += folded("The record of this run (result.json)", pairs(record))
    stages = sorted((run / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    clocks = [
        (path.stem, (load_object(path.parent, path.name, []) or {}).get("seconds"))
        for path in stages
    ]
    times = [
        [html.escape(name), f"{seconds:.1f}"] for name, seconds in clocks if seconds is not None
    ]
    if times:
        content += folded("Time of each stage", table(["stage", "seconds"], times, (1,)))
    for path in sorted(run.rglob("provenance.json")):
        found = load_object(path.parent, path.name, [])
        if found:
            content += folded(str(path.parent.relative_to(run)), pairs(found))
    files = [
        [html.escape(str(path.relative_to(run))), f"{path.stat().st_size / 1e3:,.1f}"]
        for path in sorted(run.iterdir())
        if path.is_file() and path.name != "report.html" and not path.name.endswith(".part")
    ]
    if files:
        content += folded("Files of this run", table(["file", "kB"], files, (1,)))
    return content
