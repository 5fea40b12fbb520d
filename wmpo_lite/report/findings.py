"""Findings, and those about the P real rollouts: both outcomes there, clips to be cut, windows that
reach the reward, states of their own.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Finding:
    """A sentence about a run. level: 'ok', 'note' (look at it) or 'problem' (until solved, the
    numbers mean little).
    """

    level: str
    topic: str
    message: str


def about_rollouts(rollouts, config, clip) -> list[Finding]:
    """The P real rollouts: both outcomes there, none missing, and clips to be cut from them.
    Nothing is said about no rollouts.
    """
    out, n, won = [], len(rollouts), [t for t in rollouts if t.success]
    if not n:
        return out
    budget = config.get("rollout_budget")
    if budget and n != budget:
        out.append(
            Finding(
                "problem",
                "budget",
                f"rollouts.hdf5 holds {n} episodes and the budget P is {budget}: P counts every"
                " real episode, so record again or state the true number.",
            )
        )
    if not won or len(won) == n:
        out.append(
            Finding(
                "problem",
                "rollouts",
                f"{'none' if not won else 'all'} of the {n} real rollouts succeed, so no reward"
                " model can be fitted: start from a base policy that does both, or raise P.",
            )
        )
        return out
    out.append(
        Finding(
            "ok",
            "rollouts",
            f"{len(won)} of {n} real rollouts succeed ({100 * len(won) / n:.0f} %): both outcomes"
            " are there to learn from.",
        )
    )
    positives = sum(t.finish_step + 1 >= clip for t in won)
    negatives = n - len(won) + sum(t.finish_step - clip >= clip - 1 for t in won)
    if not positives or not negatives:
        out.append(
            Finding(
                "problem",
                "clips",
                f"the rollouts yield {positives} positive and {negatives} negative reward clips of"
                f" {clip} frames, so the reward model sees one class only: shorten the clip or"
                " lengthen the episodes.",
            )
        )
    elif positives < len(won):
        out.append(
            Finding(
                "note",
                "clips",
                f"{len(won) - positives} of {len(won)} successes end before frame {clip - 1} and"
                f" give no clip of {clip} frames: shorten the clip so that quick successes are"
                " rewarded.",
            )
        )
    else:
        out.append(
            Finding(
                "ok",
                "clips",
                f"every success gives a terminal clip of {clip} frames, and {negatives} episodes"
                " give negatives.",
            )
        )
    return out


def about_windows(rollouts, config, clip, trust) -> list[Finding]:
    """Can any window of an imagined episode reach the reward?"""
    out = []
    horizon = config.get("horizon") or (len(rollouts[0]) if rollouts else None)
    if horizon:
        windows = horizon + 1 - clip + 1  # frames 0..horizon at stride 1
        if windows < 1:
            out.append(
                Finding(
                    "problem",
                    "reward windows",
                    f"no reward window of {clip} frames fits into a horizon of {horizon} steps, so"
                    " every reward is 0: raise the horizon or shorten the clip.",
                )
            )
        else:
            late = [t.finish_step for t in rollouts if t.success and t.finish_step > horizon]
            out.append(
                Finding(
                    "ok",
                    "reward windows",
                    f"{windows} windows of {clip} frames fit into a horizon of {horizon} steps; a"
                    f" success is seen from frame {clip - 1} on.",
                )
            )
            if late:
                out.append(
                    Finding(
                        "problem",
                        "reward windows",
                        f"{len(late)} recorded successes finish after the horizon of {horizon}"
                        " steps, where imagination has stopped: raise the horizon.",
                    )
                )
    scores, real, threshold = trust.get("scores"), trust.get("real"), trust.get("threshold")
    if scores and real and threshold is not None and len(scores) == len(real):
        reached, successes = (
            sum(s >= threshold for s, r in zip(scores, real) if r),
            sum(map(bool, real)),
        )
        if successes and not reached:
            out.append(
                Finding(
                    "problem",
                    "threshold",
                    f"no imagined replay of the {successes} real successes reaches the threshold"
                    f" {threshold:.3f} (zero clips): align the world model longer, or fit the"
                    " threshold again on held-out rollouts.",
                )
            )
        elif successes:
            out.append(
                Finding(
                    "ok",
                    "threshold",
                    f"{reached} of {successes} real successes reach the threshold {threshold:.3f}"
                    " when imagined.",
                )
            )
    if threshold is not None and not 0 < threshold < 1:
        out.append(
            Finding(
                "problem",
                "threshold",
                f"the reward threshold is {threshold}, outside (0, 1), so the reward never changes:"
                " fit it again.",
            )
        )
    return out


def about_states(rollouts, config, evaluation) -> list[Finding]:
    """Do the rollouts start from states of the evaluation? Compared number by number, whatever the
    split is called.
    """
    if not rollouts:
        return []
    held_out = [
        split
        for split in sorted({t.split for t in rollouts})
        if split in ("validation", "evaluation")
    ]
    if held_out:
        return [
            Finding(
                "problem",
                "leakage",
                f"rollouts.hdf5 was recorded on the split {', '.join(held_out)}: the gain may be"
                " memory; record on 'rollouts'.",
            )
        ]
    from wmpo_lite.envs.tabletop import tasks
    from wmpo_lite.envs.tabletop.env import initial_states

    if config.get("task") not in tasks.NAMES:
        return []
    task, n, first = (
        tasks.get_task(config["task"]),
        int(evaluation.get("n") or 256),
        int(evaluation.get("from") or 0),
    )
    used = {t.initial_state.tobytes() for t in rollouts}
    shared = sum(
        row.tobytes() in used
        for row in initial_states(task, "evaluation", np.arange(first, first + n)).states
    )
    if shared:
        return [
            Finding(
                "problem",
                "leakage",
                f"{shared} of {n} evaluation states also occur in the rollouts: the gain may be"
                " memory; record rollouts on states of their own.",
            )
        ]
    double = (
        ""
        if len(used) == len(rollouts)
        else f" ({len(rollouts) - len(used)} rollouts repeat a state)"
    )
    return [
        Finding(
            "ok",
            "leakage",
            f"the {len(used)} initial states of the rollouts{double} and the {n} of the evaluation"
            " have none in common.",
        )
    ]
