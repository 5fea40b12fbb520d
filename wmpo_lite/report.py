"""`write_report(run)`: one HTML file that tells a run's story with its films, and needs nothing beside it.

A run may have been killed or may have skipped a stage: the report shows what is there and says, in its place, what is
missing.
"""
import html
import json
import zipfile
from pathlib import Path

import numpy as np

from wmpo_lite import checkpoint, plots, show
from wmpo_lite.errors import UserError
from wmpo_lite.evaluate import paired_comparison, success_rate

FILM_BYTES = 3_800_000  # of MP4 in one report, a third more as base64: with the plots the file stays below 6 MB
FILM_WIDTH = 192        # pixels a film is enlarged to before encoding, at least about
FPS = 5                 # the control rate of the table-top: films play in real time

# What an imagination worth training in should reach. key: (label, aim, how to print, why it matters)
TRUST_AIMS = {
    "auc": ("AUC of imagined against real success", 0.92, "{:.3f}",
            "a real success scores above a real failure this often; 0.5 is guessing"),
    "success_agreement": ("Real successes imagined as successes", 0.85, "{:.2f}",
                          "low: the imagination loses objects at contact"),
    "failure_agreement": ("Real failures imagined as failures", 0.85, "{:.2f}",
                          "low: the imagination flatters the policy"),
    "shuffled_cost": ("Cost of shuffled actions (dB)", 3.0, "{:.1f}", "near zero: the world model ignores the actions"),
    "reward_f1_real": ("F1 of the reward model on real video", 0.95, "{:.3f}",
                       "whether the judge is right where it was trained"),
    "reward_f1_imagined": ("F1 of the reward model on imagined video", None, "{:.3f}",
                           "whether it still is right on imagined pictures"),
}

SWAP_WORDS = {"as_said": "success with the instruction of the scene",
              "swapped_follows_new": "success with the swapped instruction"}

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: #fff; color: #23262b;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 0.5rem; padding-top: 1.1rem; border-top: 1px solid #e3e6ea; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 50rem; }
.sub, figcaption, .why { color: #626873; font-size: 0.88rem; }
.headline { font-size: 1.22rem; line-height: 1.5; max-width: 52rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.8rem; margin: 1.2rem 0; }
.tile { border: 1px solid #e3e6ea; border-radius: 8px; padding: 0.7rem 0.9rem; background: #fafbfc; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; }
.tile span { color: #626873; font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.34rem 1.2rem 0.34rem 0; border-bottom: 1px solid #eceef1; vertical-align: top; }
th { font-weight: 600; color: #4b515b; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
.yes { color: #1b7a46; font-weight: 600; } .no { color: #b3262f; font-weight: 600; }
.note { background: #fff7e0; border-left: 4px solid #e2a400; padding: 0.5rem 0.8rem; border-radius: 3px; }
.note ul { margin: 0.2rem 0; padding-left: 1.2rem; }
figure { margin: 0.8rem 0; } figure > img { max-width: 100%; height: auto; display: block; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1rem 1.2rem;
         margin: 0.8rem 0; }
.films figure { margin: 0; } .films video { width: 100%; display: block; }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
"""


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl in order of first appearance. Raises UserError if there is no such file.

    A run that was killed may leave half a last line (skipped) and, resumed, repeat steps: the last record of a (stage,
    step) counts.
    """
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} is missing; the run was stopped before its first training step") from error
    records = {}
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "stage" in record and "step" in record:
            records[record["stage"], record["step"]] = record
    return list(records.values())


def write_report(run: Path) -> Path:
    """Write report.html from the files of the folder `run`; returns its path. UserError if `run` is no folder."""
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder; name one that `wmpo-lite demo` has written")
    missing: list[str] = []
    config, evaluation, trust, result = (_load(run, name, missing)
                                         for name in ("config.json", "evaluation.json", "trust.json", "result.json"))
    evaluation = evaluation and _with_comparisons(evaluation)
    budget = [FILM_BYTES]
    trust_films, episodes = (_films(run, name, keys, missing) for name, keys in (
        ("trust_films.npz", ("real", "imagined", "real_success", "scores")),
        ("episodes.npz", ("before", "after", "before_success", "after_success"))))
    task = (config or {}).get("task") or (result or {}).get("task")
    parts = [
        _head(run, config, task, evaluation, trust),
        ("Success in the real environment", _success(evaluation)),
        ("Before and after", _episodes(episodes, budget)),
        ("Can the imagination be trusted?", _trust(trust, trust_films, budget)),
        ("Learning curves", _curves(run, missing)),
        ("Instruction swap", _swap(evaluation)),
        ("Configuration", _pairs(config) if config else _note("config.json")),
        ("Provenance", _provenance(run, result)),
    ]
    sections = [f"<section><h2>{title}</h2>{content}</section>" for title, content in parts[1:] if content]
    body = [parts[0], _missing(missing), *sections]
    title = html.escape(f"WMPO: {task or run.name}")
    page = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{CSS}</style></head>\n<body>\n'
            + "\n".join(body) + "\n</body></html>\n")
    path = run / "report.html"
    checkpoint.write_atomic(path, page.encode())
    return path


# ------------------------------------------------------------------------------------------------ reading the run

def _load(run: Path, name: str, missing: list[str]) -> dict | None:
    """A JSON object of the run, or None and an entry in `missing`."""
    try:
        value = checkpoint.read_json(run / name)
    except UserError:
        missing.append(f"{name} {'cannot be read as JSON' if (run / name).exists() else 'is not there'}")
        return None
    if not isinstance(value, dict):
        missing.append(f"{name} holds no JSON object")
        return None
    return value


def _films(run: Path, name: str, keys: tuple[str, ...], missing: list[str]) -> dict | None:
    """The arrays of an npz file, if all `keys` are there, as long as each other, and the first two are n films each."""
    try:
        with np.load(run / name, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        lengths = {len(arrays[key]) for key in keys}
        if len(lengths) != 1 or any(arrays[key].ndim != 5 or arrays[key].dtype != np.uint8 for key in keys[:2]):
            raise ValueError("shapes")
        return arrays
    except FileNotFoundError:
        missing.append(f"{name} is not there")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        missing.append(f"{name} cannot be read, or lacks one of {', '.join(keys)}")
    return None


def _with_comparisons(evaluation: dict) -> dict:
    """The evaluation with every comparison of WMPO that its outcomes allow; the run's own comparisons are kept."""
    policies, comparisons = evaluation.get("policies") or {}, dict(evaluation.get("comparisons") or {})
    outcomes = {name: policies[name]["success"] for name in plots.ordered_policies(evaluation)}
    for name in outcomes:
        key = f"wmpo_vs_{name}"
        if name == "wmpo" or "wmpo" not in outcomes or key in comparisons:
            continue
        if len(outcomes[name]) == len(outcomes["wmpo"]):
            found = paired_comparison(outcomes[name], outcomes["wmpo"])
            comparisons[key] = {field: getattr(found, field)
                                for field in ("gain", "low", "high", "won", "lost", "p_value")}
    return {**evaluation, "comparisons": comparisons}


# --------------------------------------------------------------------------------------------------- small pieces

def _note(what: str) -> str:
    return f'<p class="note">{html.escape(what)} is missing from this run, so this part cannot be shown.</p>'


def _missing(missing: list[str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{html.escape(item)}</li>" for item in missing)
    return ('<div class="note"><b>This run is incomplete.</b> It was stopped, or skipped a stage; start the same '
            "command again to complete it."
            f"<ul>{items}</ul></div>")


def _table(header: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """Cells are HTML already. numbers: columns set flush right."""
    mark = [' class="n"' if i in numbers else "" for i in range(max(map(len, rows)) if rows else 0)]
    head = "<tr>" + "".join(f"<th{mark[i]}>{cell}</th>" for i, cell in enumerate(header)) + "</tr>" if header else ""
    body = "".join("<tr>" + "".join(f"<td{mark[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
                   for row in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _pairs(values: dict) -> str:
    """A table of names and values."""
    return _table([], [[html.escape(str(key)), _value(value)] for key, value in values.items()])


def _value(value) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(str(key))}: {_value(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, default=str))


def _points(comparison: dict) -> str:
    """'+23.1 points [17.2, 29.0]'; the gain of a comparison is a fraction."""
    return f"{100 * comparison['gain']:+.1f} points [{100 * comparison['low']:.1f}, {100 * comparison['high']:.1f}]"


def _picture(figure, alt: str, caption: str = "") -> str:
    # Drawn at 150 dpi and shown at 96: sharp on dense screens, and text of the size of the page's captions.
    width = round(96 * figure.get_figwidth())
    picture = show.image_html(figure, alt).replace("<img ", f'<img style="width:{width}px" ', 1)
    return f"<figure>{picture}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


# ------------------------------------------------------------------------------------------------------- sections

def _head(run: Path, config: dict | None, task: str | None, evaluation: dict | None, trust: dict | None) -> str:
    config = config or {}
    known = ("profile", "seed", "rollout_budget", "horizon", "chunk")
    facts = "".join(f" &middot; {key.replace('_', ' ')} {html.escape(str(config[key]))}"
                    for key in known if key in config)
    names = plots.ordered_policies(evaluation or {})
    outcomes = {name: success_rate(evaluation["policies"][name]["success"]) for name in names}
    comparison = (evaluation or {}).get("comparisons", {}).get("wmpo_vs_base")
    tiles = []
    for name in ("base", "wmpo"):
        if name in outcomes:
            rate = outcomes[name]
            tiles.append((f"{100 * rate.rate:.1f} %",
                          f"{plots.NAMES[name]}: success [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"))
    if comparison:
        tiles.append((f"{100 * comparison['gain']:+.1f}",
                      f"points gained [{100 * comparison['low']:.1f}, {100 * comparison['high']:.1f}]"))
    auc = ((trust or {}).get("agreement") or {}).get("auc")
    if auc is not None:
        tiles.append((f"{auc:.3f}", "AUC: imagined against real success"))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return (f"<header><h1>World-model-based policy optimization{f': {html.escape(str(task))}' if task else ''}</h1>"
            f'<p class="sub">run {html.escape(run.name)}{facts}</p>'
            f'<p class="headline">{_headline(config, outcomes, comparison)}</p>'
            f'{f"""<div class="tiles">{tiles}</div>""" if tiles else ""}</header>')


def _headline(config: dict, outcomes: dict, comparison: dict | None) -> str:
    """The result in one sentence, and no more than the interval carries."""
    if "wmpo" not in outcomes or "base" not in outcomes:
        known = ", ".join(f"{html.escape(plots.NAMES.get(name, name))} {rate}" for name, rate in outcomes.items())
        return f"No result yet: base and WMPO have not both been evaluated{f' ({known})' if known else ''}."
    budget = config.get("rollout_budget")
    source = f"with {budget} real rollouts" if budget is not None else "on recorded rollouts"
    base, wmpo = outcomes["base"], outcomes["wmpo"]
    text = (f"After training only inside a world model fitted {source}, the policy solves "
            f"<b>{100 * wmpo.rate:.1f}&nbsp;%</b> of {wmpo.n} held-out initial states of the real environment; "
            f"before, it solved <b>{100 * base.rate:.1f}&nbsp;%</b>")
    if not comparison:
        return text + ". The two were not evaluated on the same states, so the difference has no paired interval."
    text += f": <b>{_points(comparison)}</b>, 95&nbsp;% paired interval."
    if comparison["low"] > 0:
        return text
    return text + (" That is a loss." if comparison["high"] < 0
                   else " The interval holds zero, so this run does not show a difference.")


def _success(evaluation: dict | None) -> str:
    names = plots.ordered_policies(evaluation) if evaluation else []
    if not names:
        return _note("The evaluation (evaluation.json)")
    ratios, rows = evaluation.get("length_ratio") or {}, []
    for name in names:
        policy = evaluation["policies"][name]
        rate = success_rate(policy["success"])
        steps = policy.get("finish_step") or []
        lengths = [step for step, success in zip(steps, policy["success"]) if success]
        ratio = ratios.get(name, 100.0 if name == "base" and ratios else None)
        rows.append([html.escape(plots.NAMES.get(name, name)), f"{100 * rate.rate:.1f}",
                     f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
                     f"{rate.successes} / {rate.n}", f"{np.mean(lengths):.1f}" if lengths else "-",
                     f"{ratio:.1f}" if ratio is not None else "-"])
    table = _table(["policy", "success (%)", "95 % interval", "solved", "mean length of successes",
                    "length, base = 100"], rows, (1, 2, 3, 4, 5))
    compared = [[html.escape(_versus(key)), _points(value), str(value.get("won", "-")), str(value.get("lost", "-")),
                 f"{value['p_value']:.2g}" if value.get("p_value") is not None else "-"]
                for key, value in evaluation["comparisons"].items() if value]
    header = ["comparison", "difference, 95 % interval", "won", "lost", "p"]
    pairs = _table(header, compared, (2, 3, 4)) if compared else _note("A second evaluated policy")
    return (_picture(plots.success_bars(evaluation), "Bars of the success rate of each policy with intervals")
            + table + '<p class="sub">Greedy policies, all on the same held-out initial states. Intervals are '
              "Wilson intervals; one policy's interval says nothing about pairs, for which see the next table. "
              "Length, base = 100: on the states that the base and the policy both solve.</p>"
              "<h3>Paired comparisons</h3>" + pairs
            + '<p class="sub">Same initial states, so the luck of the draw cancels. won, lost: states that only the '
              "first, only the second solves; "
              "interval: paired bootstrap; p: McNemar's exact test.</p>")


def _versus(key: str) -> str:
    return " against ".join(plots.NAMES.get(name, name) for name in key.split("_vs_"))


def _film_figures(pairs, captions: list[str], budget: list[int]) -> str:
    """Films (an iterable) encoded until the report's budget of bytes is spent; what was left out is said."""
    figures = []
    for film, caption in zip(pairs, captions):
        data = show.to_mp4(film, FPS)
        if len(data) > budget[0]:
            left = len(captions) - len(figures)
            figures.append(f'<p class="note">{left} more films were left out to keep this file small.</p>')
            break
        budget[0] -= len(data)
        figures.append(f"<figure>{show.mp4_html(data, caption)}"
                       f"<figcaption>{html.escape(caption)}</figcaption></figure>")
    return f'<div class="films">{"".join(figures)}</div>'


def _captions(films: dict, count: int) -> list[str]:
    words = films.get("instructions")
    return [str(words[i]) if words is not None and len(words) == count else f"episode {i}" for i in range(count)]


def _scale(films: np.ndarray) -> int:
    return max(1, -(-FILM_WIDTH // films.shape[3]))


def _word(success) -> str:
    return "success" if success else "failure"


def _episodes(films: dict | None, budget: list[int]) -> str:
    if films is None:
        return _note("episodes.npz (films of the policy before and after)")
    before, after, first, second = (films[key] for key in ("before", "after", "before_success", "after_success"))
    pairs = (show.side_by_side([before[i], after[i]], [f"before: {_word(first[i])}", f"after WMPO: {_word(second[i])}"],
                               _scale(before),
                               [bool(first[i]), bool(second[i])]) for i in range(len(before)))
    return ("<p>The base policy and the WMPO policy from the same initial states, in the real environment. "
            "Green border: solved; red: not.</p>"
            + _film_figures(pairs, _captions(films, len(before)), budget))


def _trust(trust: dict | None, films: dict | None, budget: list[int]) -> str:
    count = f", on {trust['n']} held-out real rollouts" if trust and trust.get("n") else ""
    intro = (f"<p>The same actions were run in the real environment and in imagination{count}. A world model that "
             "ignores actions, or flatters the policy, teaches nothing that holds in the real environment.</p>")
    parts = [intro]
    if trust is None:
        parts.append(_note("The measurement of the world model (trust.json)"))
    else:
        values = {**trust, **(trust.get("sensitivity") or {}), **(trust.get("agreement") or {})}
        rows = []
        for key, (label, aim, form, why) in TRUST_AIMS.items():
            value = values.get(key)
            met = ""
            if value is not None and aim is not None:
                met = '<span class="yes">met</span>' if value >= aim else '<span class="no">not met</span>'
            rows.append([label, "not measured" if value is None else form.format(value),
                         "" if aim is None else form.format(aim), met,
                         f'<span class="why">{why}</span>'])
        parts += [_table(["measure", "value", "aim, at least", "", "what it tells"], rows, (1, 2)),
                  _picture(plots.trust_plot(trust), "Six panels on the world model: PSNR, action sensitivity, F1, "
                                                   "scores, ROC, confusion matrix")]
    parts.append("<h3>Real beside imagined</h3>")
    if films is None:
        return "".join(parts) + _note("trust_films.npz (films of real beside imagined episodes)")
    threshold = (trust or {}).get("threshold")
    real, imagined, success, scores = (films[key] for key in ("real", "imagined", "real_success", "scores"))
    judged = [None if threshold is None else bool(score >= threshold) for score in scores]
    verdict = [f"imagined: {'' if ok is None else _word(ok) + ', '}score {score:.2f}"
               for ok, score in zip(judged, scores)]
    pairs = (show.side_by_side(
        [real[i], imagined[i]], [f"real: {_word(success[i])}", verdict[i]],
        _scale(real), [bool(success[i]), judged[i]]) for i in range(len(real)))
    wrong = sum(judged[i] is not None and judged[i] != bool(success[i]) for i in range(len(real)))
    misjudged = f" ({wrong} of these {len(real)})" if threshold is not None else ""
    parts.append("<p>Left: what the simulator did. Right: what the world model imagined from the first frame and the "
                 "same actions. Borders: green for success, red for failure; where the colours differ, the imagination "
                 f"misjudged{misjudged}.</p>")
    return "".join(parts) + _film_figures(pairs, _captions(films, len(real)), budget)


def _curves(run: Path, missing: list[str]) -> str:
    try:
        figure = plots.learning_curves(read_metrics(run / "metrics.jsonl"))
    except UserError:
        missing.append("metrics.jsonl is not there or holds nothing to draw")
        return _note("metrics.jsonl (what training did, step by step)")
    return _picture(figure, "Learning curves of the policy updates and losses of the other stages",
                    "Success of sampled trajectories is that of the exploring policy, in imagination for WMPO: the "
                    "greedy policy in the real environment is judged above. Groups whose trajectories all succeed or "
                    "all fail carry no gradient and are left out.")


def _swap(evaluation: dict | None) -> str:
    """Optional part of the evaluation; its rates, fractions of `n` episodes, get their intervals."""
    swap = (evaluation or {}).get("instruction_swap")
    if not isinstance(swap, dict) or not swap:
        return ""
    n, rows = swap.get("n"), []
    for key, value in swap.items():
        if isinstance(value, float) and 0 <= value <= 1 and isinstance(n, int) and n > 0:
            value = str(success_rate(np.arange(n) < round(value * n)))
        if key != "n" and not isinstance(value, list):
            rows.append([html.escape(SWAP_WORDS.get(key, str(key).replace("_", " "))), _value(value)])
    return ("<p>The base policy on the same scenes, once with the instruction of the scene and once with "
            "that for another object: a policy that listens does what it is told about as often.</p>"
            + _table([], rows))


def _provenance(run: Path, result: dict | None) -> str:
    result = result or {}
    made = result.get("versions") if isinstance(result.get("versions"), dict) else None
    facts = ({"commit": result["commit"]} if result.get("commit") else {}) | (made or {})
    text = _pairs(facts) if facts else _note("result.json with the versions of the run") + (
        '<p class="sub">The report itself was written with:</p>'
        + _pairs({"commit": checkpoint.commit(), **checkpoint.versions()}))
    record = {key: value for key, value in result.items() if key not in ("versions", "commit")}
    if record:
        text += f"<details><summary>The record of this run (result.json)</summary>{_pairs(record)}</details>"
    stages = sorted((run / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    clocks = [(path.stem, (_load(path.parent, path.name, []) or {}).get("seconds")) for path in stages]
    times = [[html.escape(name), f"{seconds:.1f}"] for name, seconds in clocks if seconds is not None]
    if times:
        text += f"<details><summary>Time of each stage</summary>{_table(['stage', 'seconds'], times, (1,))}</details>"
    for path in sorted(run.rglob("provenance.json")):
        found = _load(path.parent, path.name, [])
        if found:
            text += (f"<details><summary>{html.escape(str(path.parent.relative_to(run)))}</summary>"
                     f"{_pairs(found)}</details>")
    files = [[html.escape(str(path.relative_to(run))), f"{path.stat().st_size / 1e3:,.1f}"]
             for path in sorted(run.iterdir())
             if path.is_file() and path.name != "report.html" and not path.name.endswith(".part")]
    if files:
        text += f"<details><summary>Files of this run</summary>{_table(['file', 'kB'], files, (1,))}</details>"
    return text
