"""What the figures of a run mean: a table of checks, each with what was measured, what it should
be, and what to do where it is not.

The aims are rules of thumb for policies of this size: reasons to look closer, no verdicts.
"""

import math
from dataclasses import dataclass

import numpy as np

EPISODES = 128  # +-8.5 points at 95 %
CLIP_HIGH, KL_HIGH = 0.30, 0.10  # share of tokens; nats a token in one iteration
ENTROPY_LEFT = 0.20  # share of the first iteration's entropy
GROUPS_KEPT, TOKENS_KEPT = 0.25, 0.02  # shares


@dataclass(frozen=True)
class Check:
    """One row. level: 'ok', 'note' (look at it) or 'problem' (until it is solved, the run's numbers
    mean little).
    """

    name: str
    value: str  # what was measured, in words
    aim: str = ""
    advice: str = ""
    level: str = "problem"

    def __str__(self) -> str:
        if self.level == "ok":
            return f"{self.value}."
        return f"{self.value}{f' (aim: {self.aim})' * bool(self.aim)}: {self.advice}."


# By name: the aim, the advice and, where a miss is only a note, that. What depends on the case is
# said where the check is made.
TABLE = {
    "budget": ("the same, since P counts every real episode", "record again, or state the number"),
    "rollouts": (
        "both outcomes, or no reward model can be fitted",
        "start from a base policy that does both, or raise P",
    ),
    "clips": ("some of both", "shorten the clip or lengthen the episodes"),
    "quick clips": ("none", "shorten the clip so that quick successes are rewarded", "note"),
    "reward windows": ("one at least, or every reward is 0", "raise the horizon or shorten clips"),
    "late successes": ("none, since imagination stops there", "raise the horizon"),
    "threshold": ("between 0 and 1, or the reward never changes", "fit it again"),
    "reached": (
        "some",
        "align the world model longer, or fit the threshold again on held-out rollouts",
    ),
    "leakage": ("none", "the gain may be memory; record rollouts on the split 'rollouts'"),
    "metrics": ("none", "lower their learning rate and run them again"),
    "spent": ("P at most", "the comparison is unfair; give it fewer or smaller groups"),
    "groups": (f"{100 * GROUPS_KEPT:.0f} % or more, and some in every iteration", "", "note"),
    "clip fraction": (f"above 0, {100 * CLIP_HIGH:.0f} % on average at most", "", "note"),
    "KL": (f"above 0, {KL_HIGH:g} at most", "lower the learning rate, single updates leap", "note"),
    "entropy": (
        f"{100 * ENTROPY_LEFT:.0f} % left",
        "exploration has collapsed, so stop earlier or raise the temperature",
        "note",
    ),
    "reward": ("a rise", "look at groups and learning rate, or train for longer", "note"),
    "mask": (
        f"above {100 * TOKENS_KEPT:.0f} %",
        "finish_step comes too early, check the threshold",
    ),
    "prediction": ("more than copying, after any number of steps", "train it longer"),
    "episodes": (f"{EPISODES} episodes", "evaluate on more before comparing", "note"),
    "base policy": ("some, not all", "check action statistics, simulator version and frame size"),
    "transfer": (
        "a third of it or more",
        "the policy exploits the imagination; improve the agreement, or stop earlier",
    ),
    "gain": ("clear of zero", "no gain to report", "note"),
    "action statistics": (
        "a range that is not empty for each, or its tokens mean no motion",
        "save it again with Policy.save, from the right data",
    ),
}
NAMES = {"quick clips": "clips", "late successes": "reward windows"}
NAMES |= {"reached": "threshold", "spent": "budget"}


def check(key, good, value, *, stage="", **changes) -> Check:
    """A row of TABLE whose level is 'ok' if `good`. stage: of the training that it is about;
    changes: aim, advice or level that this case has.
    """
    found = dict(zip(("aim", "advice", "level"), TABLE.get(key, ()))) | changes
    name = f"{stage} {NAMES.get(key, key)}".strip()
    return Check(name, value, **found | ({"level": "ok"} if good else {}))


# -- the P rollouts --------------------------------------------------------------------------------


def about_rollouts(rollouts, config, clip) -> list[Check]:
    """The P real rollouts: none missing, both outcomes there, and clips to be cut from them."""
    n, won = len(rollouts), [t for t in rollouts if t.success]
    if not n:
        return []
    budget = config.get("kept_rollouts") or config.get("rollout_budget") or n
    said = f"rollouts.hdf5 holds {n} episodes and the budget P is {budget}"
    rows = [check("budget", n == budget, said)]
    said = f"{len(won)} of {n} real rollouts succeed"
    rows.append(check("rollouts", 0 < len(won) < n, said))
    if not 0 < len(won) < n:
        return rows
    positives = sum(t.finish_step + 1 >= clip for t in won)
    negatives = n - len(won) + sum(t.finish_step - clip >= clip - 1 for t in won)
    said = f"the rollouts yield {positives} positive and {negatives} negative reward clips of"
    rows.append(check("clips", positives and negatives, f"{said} {clip} frames"))
    said = f"{len(won) - positives} of {len(won)} successes end before frame {clip - 1} and give no"
    rows.append(check("quick clips", positives == len(won), f"{said} clip of {clip} frames"))
    return rows


def about_windows(rollouts, config, clip, trust) -> list[Check]:
    """Can any window of an imagined episode reach the reward?"""
    rows = []
    horizon = config.get("horizon") or (len(rollouts[0]) if rollouts else None)
    if horizon:
        windows = max(0, horizon + 1 - clip + 1)  # frames 0..horizon at stride 1
        said = f"{windows} windows of {clip} frames fit into a horizon of {horizon} steps"
        rows.append(check("reward windows", windows, said))
        late = sum(t.success and t.finish_step > horizon for t in rollouts)
        said = f"{late} recorded successes finish after the horizon of {horizon} steps"
        rows.append(check("late successes", not late, said))
    scores, real, threshold = trust.get("scores"), trust.get("real"), trust.get("threshold")
    if threshold is None:
        return rows
    if scores and real and len(scores) == len(real) and any(real):
        reached = sum(s >= threshold for s, r in zip(scores, real) if r)
        said = f"{reached} of {sum(map(bool, real))} real successes reach the threshold"
        rows.append(check("reached", reached, f"{said} {threshold:.3f} when imagined"))
    said = f"the reward threshold is {threshold:.3g}"
    return [*rows, check("threshold", 0 < threshold < 1, said)]


def about_states(rollouts, config, evaluation) -> list[Check]:
    """Do the rollouts start from states of the evaluation? Compared number by number, whatever the
    split is called.
    """
    from wmpo_lite.envs.tabletop import tasks
    from wmpo_lite.envs.tabletop.env import initial_states

    held_out = sorted({t.split for t in rollouts} & {"validation", "evaluation"})
    if held_out:
        said = f"rollouts.hdf5 was recorded on the split {', '.join(held_out)}"
        return [check("leakage", False, said, aim="a split of their own")]
    if not rollouts or config.get("task") not in tasks.NAMES:
        return []
    n, first = int(evaluation.get("n") or 256), int(evaluation.get("from") or 0)
    task, rows = tasks.get_task(config["task"]), np.arange(first, first + n)
    used = {t.initial_state.tobytes() for t in rollouts}
    shared = sum(x.tobytes() in used for x in initial_states(task, "evaluation", rows).states)
    said = f"{shared} of {n} evaluation states also occur among the {len(used)} initial states of"
    return [check("leakage", not shared, f"{said} the rollouts")]


# -- training --------------------------------------------------------------------------------------


def about_updates(records, budget=None) -> list[Check]:
    """What training logged, update by update: groups, clipping, entropy, divergence, progress.

    records: of metrics.jsonl, one dict a step; budget: P, which online GRPO may spend.
    """
    broken = sorted({str(r.get("stage")) for r in records if not _finite(r)})
    said = f"stages that logged NaN or infinity: {', '.join(broken) or 'none'}"
    rows = [check("metrics", not broken, said)] * bool(records)
    for stage, where in (("wmpo", "in imagination"), ("grpo", "in the simulator")):
        logged = [r for r in records if r.get("stage") == stage and "kept" in r]
        if logged:
            rows += _groups(stage, logged) + _steps(stage, logged) + _reward(stage, where, logged)
    if budget:
        spent = sum(r.get("rollouts", 0) for r in records if r.get("stage") == "grpo")
        said = f"online GRPO spent {spent} real rollouts and the budget P is {budget}"
        rows.append(check("spent", spent <= budget, said))
    return rows


def _finite(value) -> bool:
    """Whether a logged value, or all in it, are numbers: the log writes null for NaN and
    infinity.
    """
    if isinstance(value, (dict, list)):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def column(rows, key) -> np.ndarray:
    """The finite numbers under `key`, in order of the rows, float (n,)."""
    found = [r.get(key) for r in rows]
    return np.array([x for x in found if isinstance(x, (int, float)) and math.isfinite(x)], float)


def ends(curve) -> tuple[float, float]:
    """Means of the first and of the last fifth of a curve."""
    edge = max(1, len(curve) // 5)
    return curve[:edge].mean(), curve[-edge:].mean()


def _groups(stage, logged) -> list[Check]:
    kept, won, lost, outside = (
        sum(r.get(key, 0) for r in logged)
        for key in ("kept", "all_success", "all_failure", "out_of_range")
    )
    groups, empty = kept + won + lost + outside, sum(not r["kept"] for r in logged)
    advice = "stop earlier or raise the reward threshold: the policy has solved what it imagines"
    if lost >= won:
        advice = "raise the temperature, or start from a better policy or an easier threshold"
    if not groups:
        advice = "check rollout_budget against the group size (P smaller than one group?)"
    # The online baseline has few iterations; an empty one is part of what its budget buys.
    bad = not kept or (empty and stage == "wmpo")
    said = f"{stage} kept {kept} of {groups} groups in {len(logged)} iterations ({won} all"
    said += (
        f" successes, {lost} all failures, {outside} out of range; {empty} iterations kept none)"
    )
    good, level = (
        not bad and not empty and kept >= GROUPS_KEPT * groups,
        "problem" if bad else "note",
    )
    return [check("groups", good, said, stage=stage, advice=advice, level=level)]


def _steps(stage, logged) -> list[Check]:
    """How large the policy's steps were."""
    names = ("clip_fraction", "approx_kl", "entropy")
    clip, kl, entropy = (column(logged, name) for name in names)
    rows = []
    if len(clip):
        mean, most = 100 * clip.mean(), 100 * clip.max()
        said = f"{mean:.1f} % of the tokens are clipped on average, {most:.1f} % at most"
        advice = "lower the learning rate or the epochs"
        if not most:
            advice = "raise the learning rate or the epochs (one update a batch never clips)"
        good = clip.mean() <= CLIP_HIGH and most > 0
        rows.append(check("clip fraction", good, said, stage=stage, advice=advice))
    if len(kl):
        said = f"the approximate KL of an iteration is {kl.mean():.4f} nats a token on average and"
        still = {"advice": "the policy did not change; check requires_grad and lr"}
        still = {} if kl.max() else {**still, "level": "problem"}
        good, said = 0 < kl.max() <= KL_HIGH, f"{said} {kl.max():.4f} at most"
        rows.append(check("KL", good, said, stage=stage, **still))
    if len(entropy):
        said = f"entropy goes from {entropy[0]:.3f} to {entropy[-1]:.3f} nats a token"
        rows.append(check("entropy", entropy[-1] >= ENTROPY_LEFT * entropy[0], said, stage=stage))
    return rows


def _reward(stage, where, logged) -> list[Check]:
    """Whether the reward rose, and whether tokens were left to learn from."""
    success, valid, rows = column(logged, "success"), column(logged, "valid_fraction"), []
    if len(success):
        first, last = ends(success)
        said = f"sampled success {where} goes from {100 * first:.0f} to {100 * last:.0f} %"
        silent = {"advice": "check the reward threshold, the reward windows and the instruction"}
        silent["level"] = "problem"
        constant = success.max() == 0 or success.min() == 1
        rows.append(check("reward", last > first, said, stage=stage, **silent if constant else {}))
    if len(valid):
        said = f"{100 * valid.min():.0f} % of the tokens or more are unmasked in every iteration"
        rows.append(check("mask", valid.min() > TOKENS_KEPT, said, stage=stage))
    return rows


# -- what was measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure of trust.json. where: its keys, with dots between; why: what it tells; aim: at least
    so much; name, advice, level: of the check that it makes, where it has a name.
    """

    where: str
    label: str
    why: str
    aim: float | None = None
    form: str = "{:.2f}"
    name: str = ""
    advice: str = ""
    level: str = "note"

    def of(self, trust: dict) -> float | None:
        """The figure in a trust.json, None where it was not measured."""
        found = trust
        for key in self.where.split("."):
            found = (found or {}).get(key)
        return found


SHUFFLED = Figure(
    "sensitivity.shuffled_cost",
    "Cost of shuffled actions (dB)",
    "near zero: the world model ignores the actions",
    aim=3.0,
    form="{:.1f}",
)
MORE_STEPS = "give it more steps, or look at the clips it gets wrong"
FIGURES = (
    Figure(
        "agreement.auc",
        "Imagined against real success: AUC",
        "a real success scores above a real failure this often; 0.5 is guessing",
        aim=0.90,
        form="{:.3f}",
        name="agreement",
        advice="GRPO would learn the imagination's mistakes; align and train the world model"
        " longer, and watch the videos",
        level="problem",
    ),
    Figure(
        "agreement.success_agreement",
        "Real successes imagined as successes",
        "low: the imagination loses objects at contact",
        aim=0.85,
        name="agreement",
        advice="imagination misses them; lower the threshold or align longer",
    ),
    Figure(
        "agreement.failure_agreement",
        "Real failures imagined as failures",
        "low: the imagination flatters the policy",
        aim=0.85,
        name="agreement",
        advice="fit the reward model to imagined failures",
    ),
    Figure(
        "before_alignment.agreement.auc",
        "AUC before alignment",
        "what the P rollouts were good for, beside the first row",
        form="{:.3f}",
    ),
    Figure(
        "before_alignment.agreement.success_agreement",
        "Real successes imagined as successes, before alignment",
        "beside the second row",
    ),
    Figure(
        "valid_frames",
        "Frames until a thing is off by its own width (mean)",
        "how long an imagined episode can be believed in detail",
        form="{:.1f}",
    ),
    SHUFFLED,
    Figure(
        "reward_f1_real",
        "F1 of the reward model on real video",
        "whether it is right where it was trained",
        aim=0.95,
        form="{:.3f}",
        name="reward F1",
        advice=MORE_STEPS,
    ),
    Figure(
        "reward_f1_imagined",
        "F1 of the reward model on imagined video",
        "whether it still is right on imagined frames",
        aim=0.85,
        form="{:.3f}",
        name="reward F1",
        advice=MORE_STEPS,
    ),
)


def about_trust(trust) -> list[Check]:
    """May imagination be believed? World model and reward model on fresh real rollouts."""
    rows, psnr = [], trust.get("psnr") or {}
    model, copy = (np.array(psnr.get(key, [])) for key in ("model", "copy_last"))
    if len(model):
        said = f"the world model reaches {model[-1]:.1f} dB after {psnr['horizons'][-1]} steps, a"
        said += f" copied first frame {copy[-1]:.1f} dB"
        rows.append(check("prediction", (model > copy).all(), said))
    if (cost := SHUFFLED.of(trust)) is not None:
        # Where episodes are alike there is little to lose: then what counts is the share of what
        # the model gains over a copied frame.
        alike = len(model) and 0 < (model - copy).mean() <= 2 * cost
        said = f"the actions of another episode cost {cost:.1f} dB"
        case = {"advice": "check that action s belongs to frame s + 1, add play and train longer"}
        if alike:
            case = {"advice": "episodes are alike here, and the world model listens"}
            case["level"] = "note"
        aim = f"{SHUFFLED.aim:g} dB"
        rows.append(check("actions", cost >= SHUFFLED.aim, said, aim=aim, **case))
    for figure in FIGURES:
        if figure.name and (value := figure.of(trust)) is not None:
            said = f"{figure.label} {value:.3f} (n = {trust.get('n', '?')})"
            case = {"aim": f"{figure.aim:g}", "advice": figure.advice, "level": figure.level}
            rows.append(check(figure.name, value >= figure.aim, said, **case))
    return rows


def about_evaluation(evaluation, records) -> list[Check]:
    """Is the gain real, or noise read as signal?"""
    from wmpo_lite.evaluate import paired_comparison, success_rate

    stored = evaluation.get("policies") or {}
    policies = {name: p["success"] for name, p in stored.items() if p.get("success")}
    if not policies:
        return []
    n = min(map(len, policies.values()))
    noise = 100 * 1.96 * math.sqrt(0.25 / n)
    said = f"{n} evaluation episodes carry up to +-{noise:.1f} points of noise at 95 %"
    rows = [check("episodes", n >= EPISODES, said)]
    base, won = policies.get("base"), policies.get("wmpo")
    if base is not None:
        case = {"advice": "choose a harder task"} if all(base) else {}
        said = f"the base policy succeeds in {success_rate(base)}"
        rows.append(check("base policy", any(base) and not all(base), said, **case))
    for name, other in policies.items():
        if won is not None and name != "wmpo" and len(other) == len(won):
            rows.append(_gain(name, paired_comparison(other, won), n))
    curve = column([r for r in records if r.get("stage") == "wmpo"], "success")
    if won is not None and base is not None and len(base) == len(won) and len(curve) >= 5:
        first, last = ends(curve)
        imagined, real = last - first, np.mean(won) - np.mean(base)
        said = f"imagined success rises by {100 * imagined:.0f} points and real success by"
        good = imagined <= 0.1 or real >= imagined / 3
        rows.append(check("transfer", good, f"{said} {100 * real:.0f}"))
    return rows


def _gain(name, pair, n) -> Check:
    """WMPO against another policy on the same states; pair: a `paired_comparison`."""
    case = {}
    if pair.high < 0:
        case["advice"] = "read the agreement above, and stop earlier on the validation split"
        case["level"] = "problem"
    elif pair.gain:
        need = math.ceil(n * ((pair.high - pair.low) / 2 / abs(pair.gain)) ** 2)
        case["advice"] = f"inside the noise, no gain to report; about {need} states would tell one"
    return check("gain", pair.low > 0, f"WMPO over {name}: {pair}", **case)
