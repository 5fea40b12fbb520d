"""Findings about what training logged, update by update: groups, clipping, entropy, divergence, and
whether anything was learned at all.
"""

import math

import numpy as np

from wmpo_lite.report.findings import Finding

# Where a figure stops being good: rules of thumb for policies of this size, to look closer and not
# to judge.
CLIP_HIGH, KL_HIGH = 0.30, 0.10  # share of tokens; nats a token in one iteration
ENTROPY_LEFT = 0.20  # share of the first iteration's entropy
GROUPS_LOW = 0.25  # share of groups kept
TOKENS_LOW = 0.02  # share of tokens unmasked


def about_updates(records, budget=None) -> list[Finding]:
    """records: of metrics.jsonl, one dict a step; budget: P, the real rollouts that online GRPO may
    spend.
    """
    out = []
    broken = {r.get("stage") for r in records if not _finite(r)}
    if broken:
        out.append(
            Finding(
                "problem",
                "metrics",
                f"stage {', '.join(sorted(map(str, broken)))} logged NaN or infinity: lower its"
                " learning rate and run it again.",
            )
        )
    for stage, where in (("wmpo", "in imagination"), ("grpo", "in the simulator")):
        rows = [r for r in records if r.get("stage") == stage and "kept" in r]
        if rows:
            out += _groups(stage, rows) + _figures(stage, where, rows)
    spent = sum(r.get("rollouts", 0) for r in records if r.get("stage") == "grpo")
    if budget and spent > budget:
        out.append(
            Finding(
                "problem",
                "budget",
                f"online GRPO spent {spent} real rollouts and the budget P is {budget}: the"
                " comparison is unfair; give it fewer or smaller groups.",
            )
        )
    return out


def _finite(value) -> bool:
    """Whether a logged value, or all in it, are numbers: the log writes null for
    NaN and infinity.
    """
    if isinstance(value, (dict, list)):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def column(rows, key) -> np.ndarray:
    """The finite numbers under `key`, in order of the rows, float (n,)."""
    return np.array(
        [r[key] for r in rows if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])],
        dtype=float,
    )


def _groups(stage, rows) -> list[Finding]:
    total = {
        key: sum(r.get(key, 0) for r in rows)
        for key in ("kept", "all_success", "all_failure", "out_of_range")
    }
    groups, empty, topic = sum(total.values()), sum(not r["kept"] for r in rows), f"{stage} groups"
    if not groups:
        return [
            Finding(
                "problem",
                topic,
                f"{stage} sampled no groups at all: check rollout_budget against the group size (P"
                " smaller than one group?).",
            )
        ]
    text = (
        f"{stage} kept {total['kept']} of {groups} groups in {len(rows)} iterations"
        f" ({total['all_success']} dropped as all successes, {total['all_failure']} as all"
        f" failures, {total['out_of_range']} out of range)"
    )
    advice = (
        "raise the temperature, or start from a better policy or an easier threshold"
        if total["all_failure"] >= total["all_success"]
        else "stop earlier or raise the reward threshold: the policy has solved what it imagines"
    )
    if not total["kept"]:
        return [Finding("problem", topic, f"{text}, so nothing was learned: {advice}.")]
    if (
        empty
    ):  # the online baseline has few iterations, and an empty one is part of what its budget buys
        return [
            Finding(
                "problem" if stage == "wmpo" else "note",
                topic,
                f"{text}, and {empty} iterations kept none and learned nothing: {advice}.",
            )
        ]
    if total["kept"] < GROUPS_LOW * groups:
        return [Finding("note", topic, f"{text}, little signal for the price: {advice}.")]
    return [Finding("ok", topic, f"{text}.")]


def _figures(stage, where, rows) -> list[Finding]:
    out = []
    clip, entropy, kl, success, valid = (
        column(rows, key)
        for key in ("clip_fraction", "entropy", "approx_kl", "success", "valid_fraction")
    )
    if len(clip):
        level, advice = "ok", ""
        if clip.mean() > CLIP_HIGH:
            level, advice = "note", ": the steps overshoot, lower the learning rate or the epochs"
        elif clip.max() == 0:
            level, advice = (
                "note",
                (
                    ": no ratio ever left its bounds, so raise the learning rate or the epochs (one"
                    " update a batch never clips)"
                ),
            )
        out.append(
            Finding(
                level,
                f"{stage} clip fraction",
                f"{100 * clip.mean():.1f} % of the tokens are clipped on average,"
                f" {100 * clip.max():.1f} % at most{advice}.",
            )
        )
    if len(kl):
        level, advice = "ok", ""
        if kl.max() == 0:
            level, advice = (
                "problem",
                (
                    ": the policy did not change at all, check that its parameters require"
                    " gradients and that lr is not 0"
                ),
            )
        elif kl.max() > KL_HIGH:
            level, advice = "note", ": single updates leap, lower the learning rate"
        out.append(
            Finding(
                level,
                f"{stage} KL",
                f"the approximate KL of an iteration is {kl.mean():.4f} nats a token on average and"
                f" {kl.max():.4f} at most{advice}.",
            )
        )
    if len(entropy):
        collapsed = entropy[-1] < ENTROPY_LEFT * entropy[0]
        advice = (
            ": exploration has collapsed, so stop earlier or raise the temperature"
            if collapsed
            else ""
        )
        out.append(
            Finding(
                "note" if collapsed else "ok",
                f"{stage} entropy",
                f"entropy goes from {entropy[0]:.3f} to {entropy[-1]:.3f} nats a token{advice}.",
            )
        )
    if len(success):
        first, last = ends(success)
        if success.max() == 0 or success.min() == 1:
            out.append(
                Finding(
                    "problem",
                    f"{stage} reward",
                    f"the reward {where} is {success.max():.0f} in every iteration, which teaches"
                    " nothing: check the reward threshold, the reward windows and the"
                    " instruction.",
                )
            )
        else:
            advice = (
                ""
                if last > first
                else ": no progress; look at groups and learning rate, or train for longer"
            )
            out.append(
                Finding(
                    "ok" if last > first else "note",
                    f"{stage} reward",
                    f"sampled success {where} goes from {100 * first:.0f} to {100 * last:.0f}"
                    f" %{advice}.",
                )
            )
    if len(valid) and valid.min() <= TOKENS_LOW:
        out.append(
            Finding(
                "problem",
                f"{stage} mask",
                f"an iteration left at most {100 * TOKENS_LOW:.0f} % of the tokens unmasked:"
                " finish_step comes too early, check the threshold.",
            )
        )
    return out


def ends(curve) -> tuple[float, float]:
    """Means of the first and of the last fifth of a curve."""
    edge = max(1, len(curve) // 5)
    return curve[:edge].mean(), curve[-edge:].mean()
