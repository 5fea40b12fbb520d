"""Findings about what was measured: may imagination be believed, and is the gain real or noise read
as signal?
"""

import math

import numpy as np

from wmpo_lite.report.findings import Finding
from wmpo_lite.report.findings_updates import column, ends

# Where a figure stops being good: rules of thumb for policies of this size, to look closer and not
# to judge.
SHUFFLED_COST, AUC, AGREEMENT, F1_REAL, F1_IMAGINED = 3.0, 0.90, 0.85, 0.95, 0.85  # the first in dB
EPISODES_LOW = 128  # +-8.5 points at 95 %


def about_trust(trust) -> list[Finding]:
    """The world model and the reward model, where a flattering imagination would make everything
    else meaningless.
    """
    out, threshold = [], trust.get("threshold")
    psnr = trust.get("psnr") or {}
    beaten = [
        h
        for h, model, copy in zip(
            psnr.get("horizons", []), psnr.get("model", []), psnr.get("copy_last", [])
        )
        if model <= copy
    ]
    if beaten:
        out.append(
            Finding(
                "problem",
                "prediction",
                "copying the last frame predicts as well as the world model at"
                f" {', '.join(map(str, beaten))} steps: train it longer.",
            )
        )
    elif psnr.get("model"):
        out.append(
            Finding(
                "ok",
                "prediction",
                f"the world model reaches {psnr['model'][-1]:.1f} dB after {psnr['horizons'][-1]}"
                f" steps, a copied frame {psnr['copy_last'][-1]:.1f} dB.",
            )
        )
    cost = (trust.get("sensitivity") or {}).get("shuffled_cost")
    if cost is not None:
        weak = cost < SHUFFLED_COST
        # Where episodes are alike there is little to lose: then what counts is the share of what
        # the model gains over a copied frame.
        gained = np.mean(
            [model - copy for model, copy in zip(psnr.get("model", []), psnr.get("copy_last", []))]
            or [np.inf]
        )
        alike = weak and 0 < gained <= 2 * cost
        verdict = (
            f", less than {SHUFFLED_COST:g}, but copying the first frame costs only {gained:.1f}:"
            " episodes are alike here, and the world model listens."
            if alike
            else (
                f", less than {SHUFFLED_COST:g}: the world model largely ignores its actions; check"
                " that action s belongs to frame s + 1, add play and train longer."
                if weak
                else ": the world model listens."
            )
        )
        out.append(
            Finding(
                "note" if alike else "problem" if weak else "ok",
                "actions",
                f"shuffled actions cost {cost:.1f} dB{verdict}",
            )
        )
    agreement = trust.get("agreement") or {}
    if agreement.get("auc") is not None:
        weak = agreement["auc"] < AUC
        verdict = (
            f", below {AUC}: GRPO would learn the imagination's mistakes; align longer, train the"
            " world model longer and watch the videos."
            if weak
            else "."
        )
        out.append(
            Finding(
                "problem" if weak else "ok",
                "agreement",
                f"imagined success tells real success with AUC {agreement['auc']:.3f} (n ="
                f" {agreement.get('n', '?')}){verdict}",
            )
        )
    for key, name, advice in (
        (
            "success_agreement",
            "successes",
            "imagination misses them; lower the threshold or align longer",
        ),
        (
            "failure_agreement",
            "failures",
            "imagination flatters the policy; fit the reward model to imagined video of failures",
        ),
    ):
        if agreement.get(key) is not None and agreement[key] < AGREEMENT:
            out.append(
                Finding(
                    "note",
                    "agreement",
                    f"{100 * agreement[key]:.0f} % of the real {name} are imagined as such, below"
                    f" {100 * AGREEMENT:.0f} %: {advice}.",
                )
            )
    for key, what, aim in (
        ("reward_f1_real", "real", F1_REAL),
        ("reward_f1_imagined", "imagined", F1_IMAGINED),
    ):
        if trust.get(key) is not None:
            weak = trust[key] < aim
            verdict = (
                ": give it more steps, or look at the clips it gets wrong."
                if weak
                else f" (threshold {threshold:.3f})."
                if threshold is not None
                else "."
            )
            out.append(
                Finding(
                    "note" if weak else "ok",
                    "reward F1",
                    f"the reward model has F1 {trust[key]:.3f} on {what} video{verdict}",
                )
            )
    return out


def about_evaluation(evaluation, records) -> list[Finding]:
    """Is the gain real, or noise read as signal?"""
    from wmpo_lite.evaluate import paired_comparison, success_rate

    out, policies = (
        [],
        {
            name: p["success"]
            for name, p in (evaluation.get("policies") or {}).items()
            if p.get("success")
        },
    )
    if not policies:
        return out
    n = min(len(s) for s in policies.values())
    enough = n >= EPISODES_LOW
    advice = "" if enough else f": evaluate on {EPISODES_LOW} or more before comparing"
    out.append(
        Finding(
            "ok" if enough else "note",
            "episodes",
            f"{n} evaluation episodes carry up to +-{100 * 1.96 * math.sqrt(0.25 / n):.1f} points"
            f" of noise at 95 %{advice}.",
        )
    )
    base, won = policies.get("base"), policies.get("wmpo")
    if base is not None and (all(base) or not any(base)):
        how, advice = (
            ("always", "there is nothing to improve; choose a harder task")
            if all(base)
            else (
                "never",
                (
                    "check the action statistics, the simulator's version and the frame size before"
                    " blaming the training"
                ),
            )
        )
        out.append(
            Finding(
                "problem",
                "base policy",
                f"the base policy {how} succeeds in evaluation ({success_rate(base)}): {advice}.",
            )
        )
    for name, other in policies.items():
        if won is None or name == "wmpo" or len(other) != len(won):
            continue
        pair = paired_comparison(other, won)
        if pair.low > 0:
            out.append(Finding("ok", "gain", f"WMPO over {name}: {pair}, clear of zero."))
        elif pair.high < 0:
            out.append(
                Finding(
                    "problem",
                    "gain",
                    f"WMPO is worse than {name}: {pair}; read the agreement above, and stop earlier"
                    " on the validation split.",
                )
            )
        else:
            need = (
                math.ceil(n * ((pair.high - pair.low) / 2 / abs(pair.gain)) ** 2)
                if pair.gain
                else None
            )
            size = (
                f"about {need} states would tell a gain of this size"
                if need and need < 1e5
                else "it is no gain"
            )
            out.append(
                Finding(
                    "note",
                    "gain",
                    f"WMPO over {name} is inside the noise ({pair}): {size}, and do not report it"
                    " as one.",
                )
            )
    curve = column([r for r in records if r.get("stage") == "wmpo"], "success")
    if won is not None and base is not None and len(base) == len(won) and len(curve) >= 5:
        first, last = ends(curve)
        dreamt, real = last - first, np.mean(won) - np.mean(base)
        if dreamt > 0.1 and real < dreamt / 3:
            out.append(
                Finding(
                    "problem",
                    "transfer",
                    f"imagined success rises by {100 * dreamt:.0f} points and real success by"
                    f" {100 * real:.0f}: the policy exploits the imagination; improve the"
                    " agreement, or stop earlier.",
                )
            )
    return out
