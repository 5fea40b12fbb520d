"""What the files of a run folder say, as far as they are there: what each figure means, whether one of the classic silent zeros struck, what to do."""
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite.doctor import pinned_versions
from wmpo_lite.errors import UserError

# Where a figure of the run stops being good: rules of thumb for policies of this size, to look closer and not to judge.
CLIP_HIGH, KL_HIGH = 0.30, 0.10  # share of tokens; nats a token in one iteration
ENTROPY_LEFT = 0.20  # share of the first iteration's entropy
GROUPS_LOW = 0.25  # share of groups kept
SHUFFLED_COST, AUC, AGREEMENT, REWARD_F1 = 3.0, 0.90, 0.85, 0.95
EPISODES_LOW = 128  # +-8.5 points at 95 %

FILES = {"config.json": "the run's settings", "metrics.jsonl": "the learning curves", "rollouts.hdf5": "the real "
         "rollouts",
         "trust.json": "the trust panel", "evaluation.json": "the evaluation"}


@dataclass(frozen=True)
class Finding:
    """A sentence about a run. level: 'ok', 'note' (look at it) or 'problem' (until solved, the numbers mean little)."""

    level: str
    topic: str
    message: str


def diagnose(run_folder) -> list[Finding]:
    """Findings about a run folder. Any of its files may be missing (a run that was killed, or goes on): that is named.

    Raises UserError if the folder does not exist or holds none of a run's files.
    """
    run = Path(run_folder)
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; name a run, such as runs/place-laptop-0")
    missing = [name for name in FILES if not (run / name).is_file()]
    if len(missing) == len(FILES):
        raise UserError(f"{run} holds none of {', '.join(FILES)}; name the folder that `wmpo-lite demo` wrote, such "
                        "as runs/place-laptop-0")
    findings = []
    if missing:
        what = ", ".join(f"{name} ({FILES[name]})" for name in missing)
        findings.append(Finding("note", "files", f"{what} missing: the run has not come so far; start the same "
                                "command again and it resumes."))
    config, trust, evaluation = (_read(run / name, findings) for name in ("config.json", "trust.json",
                                                                          "evaluation.json"))
    records = _read_lines(run / "metrics.jsonl", findings)
    rollouts = _read_rollouts(run / "rollouts.hdf5", findings)
    rewards = [folder for folder, kind in _checkpoints(run) if kind == "RewardModel"]
    clip = _read(rewards[0] / "config.json", findings).get("clip", 8) if rewards else config.get("clip", 8)
    findings += _rollouts(rollouts, config, clip) if rollouts else []
    findings += _windows(rollouts, config, clip, trust)
    findings += _metrics(records, config.get("rollout_budget"))
    findings += _trust(trust)
    findings += _evaluation(evaluation, records)
    findings += _states(rollouts, config, evaluation)
    findings += _statistics(run) + _versions(run)
    return findings


def _read(path: Path, findings: list) -> dict:
    """A JSON object, or {} where it is missing; a broken one is a finding."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    except (ValueError, OSError):
        pass
    findings.append(Finding("problem", "files", f"{path.name} cannot be read as JSON: it was truncated or edited; "
                            "delete it and run the stage again."))
    return {}


def _read_lines(path: Path, findings: list) -> list[dict]:
    """Records of a JSON-lines file. A cut last line (a kill in mid-write) is passed over, another is a finding."""
    if not path.is_file():
        return []
    lines, records, bad = path.read_text(errors="replace").splitlines(), [], 0
    for number, line in enumerate(lines):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            bad += bool(line.strip()) and number + 1 < len(lines)
    # A run that was resumed may log a step twice: the later record counts.
    records = list({(r.get("stage"), r.get("step", n)): r for n, r in enumerate(records)}.values())
    if bad:
        findings.append(Finding("problem", "files", f"{path.name} has {bad} lines that are not JSON objects: delete "
                                "them, or run the stage again."))
    return records


def _read_rollouts(path: Path, findings: list) -> list:
    if not path.is_file():
        return []
    from wmpo_lite.trajectory import load_trajectories
    try:
        return load_trajectories(path)
    except UserError as error:
        findings.append(Finding("problem", "files", str(error)))
        return []


def _checkpoints(run: Path):
    """(folder, class name) of every checkpoint in the run folder."""
    for path in sorted(run.glob("**/config.json")):
        try:
            kind = json.loads(path.read_text()).get("class")
        except (ValueError, OSError, AttributeError):
            continue
        if kind:
            yield path.parent, kind


def _rollouts(rollouts, config, clip) -> list[Finding]:
    """The P real rollouts: both outcomes there, none missing, and clips to be cut from them."""
    out, n, won = [], len(rollouts), [t for t in rollouts if t.success]
    budget = config.get("rollout_budget")
    if budget and n != budget:
        out.append(Finding("problem", "budget", f"rollouts.hdf5 holds {n} episodes and the budget P is {budget}: P "
                           "counts every real episode, so record again or state the true number."))
    if not won or len(won) == n:
        out.append(Finding("problem", "rollouts", f"{'none' if not won else 'all'} of the {n} real rollouts succeed, "
                           "so no success classifier can be fitted: start from a base policy that does both, or raise "
                           "P."))
        return out
    out.append(Finding("ok", "rollouts", f"{len(won)} of {n} real rollouts succeed ({100 * len(won) / n:.0f} %): both "
                       "outcomes are there to learn from."))
    positives = sum(t.finish_step + 1 >= clip for t in won)
    negatives = n - len(won) + sum(t.finish_step - clip >= clip - 1 for t in won)
    if not positives or not negatives:
        out.append(Finding("problem", "clips", f"the rollouts yield {positives} positive and {negatives} negative "
                           f"reward clips of {clip} frames, so the classifier sees one class only: shorten the clip or "
                           "lengthen the episodes."))
    elif positives < len(won):
        out.append(Finding("note", "clips", f"{len(won) - positives} of {len(won)} successes end before frame "
                           f"{clip - 1} and give no clip of {clip} frames: shorten the clip so that quick successes "
                           "are rewarded."))
    else:
        out.append(Finding("ok", "clips", f"every success gives a terminal clip of {clip} frames, and {negatives} "
                           "episodes give negatives."))
    return out


def _windows(rollouts, config, clip, trust) -> list[Finding]:
    """Can any window of an imagined episode reach the reward?"""
    out = []
    horizon = config.get("horizon") or (len(rollouts[0]) if rollouts else None)
    if horizon:
        windows = horizon + 1 - clip + 1  # frames 0..horizon at stride 1
        if windows < 1:
            out.append(Finding("problem", "reward windows", f"no reward window of {clip} frames fits into a horizon "
                               f"of {horizon} steps, so every reward is 0: raise the horizon or shorten the clip."))
        else:
            late = [t.finish_step for t in rollouts if t.success and t.finish_step > horizon]
            out.append(Finding("ok", "reward windows", f"{windows} windows of {clip} frames fit into a horizon of "
                               f"{horizon} steps; a success is seen from frame {clip - 1} on."))
            if late:
                out.append(Finding("problem", "reward windows", f"{len(late)} recorded successes finish after the "
                                   f"horizon of {horizon} steps, where imagination has stopped: raise the horizon."))
    scores, real, threshold = trust.get("scores"), trust.get("real"), trust.get("threshold")
    if scores and real and threshold is not None and len(scores) == len(real):
        reached = sum(s >= threshold for s, r in zip(scores, real) if r)
        if any(real) and not reached:
            out.append(Finding("problem", "threshold", f"no imagined replay of the {sum(map(bool, real))} real "
                               f"successes reaches the threshold {threshold:.3f} (zero clips): align the world model "
                               "longer, or fit the threshold again on held-out rollouts."))
        elif any(real):
            out.append(Finding("ok", "threshold", f"{reached} of {sum(map(bool, real))} real successes reach the "
                               f"threshold {threshold:.3f} when imagined."))
    if threshold is not None and not 0 < threshold < 1:
        out.append(Finding("problem", "threshold", f"the reward threshold is {threshold}, outside (0, 1), so the "
                           "reward never changes: fit it again."))
    return out


def _metrics(records, budget=None) -> list[Finding]:
    """Update by update: groups, clipping, entropy, divergence, and whether anything was learned at all."""
    out = []
    broken = {r.get("stage") for r in records if any(isinstance(v, float) and not math.isfinite(v) for v in r.values())}
    if broken:
        out.append(Finding("problem", "metrics", f"stage {', '.join(sorted(map(str, broken)))} logged NaN or "
                           "infinity: lower its learning rate and run it again."))
    for stage, where in (("wmpo", "in imagination"), ("grpo", "in the simulator")):
        rows = [r for r in records if r.get("stage") == stage and "kept" in r]
        if rows:
            out += _groups(stage, rows) + _updates(stage, where, rows)
    spent = sum(r.get("rollouts", 0) for r in records if r.get("stage") == "grpo")
    if budget and spent > budget:
        out.append(Finding("problem", "budget", f"online GRPO spent {spent} real rollouts and the budget P is "
                           f"{budget}: the comparison is unfair; give it fewer or smaller groups."))
    return out


def _groups(stage, rows) -> list[Finding]:
    total = {key: sum(r.get(key, 0) for r in rows) for key in ("kept", "all_success", "all_failure", "out_of_range")}
    groups, empty = sum(total.values()), sum(not r["kept"] for r in rows)
    if not groups:
        return [Finding("problem", f"{stage} groups", f"{stage} sampled no groups at all: check rollout_budget "
                        "against the group size (P smaller than one group?).")]
    text = (f"{stage} kept {total['kept']} of {groups} groups in {len(rows)} iterations ({total['all_success']} "
            f"dropped as all successes, {total['all_failure']} as all failures, {total['out_of_range']} out of range)")
    fail = total["all_failure"] >= total["all_success"]
    advice = ("raise the temperature, or start from a better policy or an easier threshold" if fail else
              "stop earlier or raise the reward threshold: the policy has solved what it imagines")
    if not total["kept"]:
        return [Finding("problem", f"{stage} groups", f"{text}, so nothing was learned: {advice}.")]
    if empty:  # the online baseline has few iterations, and an empty one is part of what its budget buys
        return [Finding("problem" if stage == "wmpo" else "note", f"{stage} groups",
                        f"{text}, and {empty} iterations kept none and learned nothing: {advice}.")]
    if total["kept"] < GROUPS_LOW * groups:
        return [Finding("note", f"{stage} groups", f"{text}, little signal for the price: {advice}.")]
    return [Finding("ok", f"{stage} groups", f"{text}.")]


def _column(rows, key) -> np.ndarray:
    return np.array([r[key] for r in rows if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])],
                    dtype=float)


def _updates(stage, where, rows) -> list[Finding]:
    out = []
    clip, entropy, kl, success, valid = (_column(rows, key) for key in ("clip_fraction", "entropy", "approx_kl",
                                                                        "success", "valid_fraction"))
    if len(clip):
        level = "note" if clip.mean() > CLIP_HIGH or clip.max() == 0 else "ok"
        advice = (": the steps overshoot, lower the learning rate or the epochs" if clip.mean() > CLIP_HIGH else
                  ": no ratio ever left its bounds, so raise the learning rate or the epochs (one update a batch "
                  "never clips)" if clip.max() == 0 else "")
        out.append(Finding(level, f"{stage} clip fraction", f"{100 * clip.mean():.1f} % of the tokens are clipped on "
                           f"average, {100 * clip.max():.1f} % at most{advice}."))
    if len(kl):
        level = "problem" if kl.max() == 0 else "note" if kl.max() > KL_HIGH else "ok"
        advice = {"problem": ": the policy did not change at all, check that its parameters require gradients and "
                  "that lr is not 0",
                  "note": ": single updates leap, lower the learning rate", "ok": ""}[level]
        out.append(Finding(level, f"{stage} KL", f"the approximate KL of an iteration is {kl.mean():.4f} nats a token "
                           f"on average and {kl.max():.4f} at most{advice}."))
    if len(entropy):
        level = "note" if entropy[-1] < ENTROPY_LEFT * entropy[0] else "ok"
        advice = ": exploration has collapsed, so stop earlier or raise the temperature" if level == "note" else ""
        out.append(Finding(level, f"{stage} entropy", f"entropy goes from {entropy[0]:.3f} to {entropy[-1]:.3f} nats "
                           f"a token{advice}."))
    if len(success):
        edge = max(1, len(success) // 5)
        first, last = 100 * success[:edge].mean(), 100 * success[-edge:].mean()
        if success.max() == 0 or success.min() == 1:
            out.append(Finding("problem", f"{stage} reward", f"the reward {where} is {success.max():.0f} in every "
                               "iteration, which teaches nothing: check the reward threshold, the reward windows and "
                               "the instruction."))
        else:
            out.append(Finding("ok" if last > first else "note", f"{stage} reward", f"sampled success {where} goes "
                               f"from {first:.0f} to {last:.0f} %"
                               + ("." if last > first else ": no progress; look at groups and learning rate, or train "
                                  "for longer.")))
    if len(valid) and valid.min() <= 0.02:
        out.append(Finding("problem", f"{stage} mask", "an iteration left at most 2 % of the tokens unmasked: "
                           "finish_step comes too early, check the threshold."))
    return out


def _trust(trust) -> list[Finding]:
    """The world model and the reward model, where a flattering imagination would make everything else meaningless."""
    out, threshold = [], trust.get("threshold")
    psnr = trust.get("psnr") or {}
    beaten = [h for h, model, copy in zip(psnr.get("horizons", []), psnr.get("model", []), psnr.get("copy_last", []))
              if model <= copy]
    if beaten:
        out.append(Finding("problem", "prediction", f"copying the last frame predicts as well as the world model at "
                           f"{', '.join(map(str, beaten))} steps: train it longer."))
    elif psnr.get("model"):
        out.append(Finding("ok", "prediction", f"the world model reaches {psnr['model'][-1]:.1f} dB after "
                           f"{psnr['horizons'][-1]} steps, a copied frame {psnr['copy_last'][-1]:.1f} dB."))
    cost = (trust.get("sensitivity") or {}).get("shuffled_cost")
    if cost is not None:
        weak = cost < SHUFFLED_COST
        out.append(Finding("problem" if weak else "ok", "actions", f"shuffled actions cost {cost:.1f} dB" + (
            f", less than {SHUFFLED_COST:g}: the world model largely ignores its actions; check that action s belongs "
            "to frame s + 1, add play and train longer." if weak else ": the world model listens.")))
    agreement = trust.get("agreement") or {}
    if agreement.get("auc") is not None:
        weak = agreement["auc"] < AUC
        out.append(Finding("problem" if weak else "ok", "agreement", f"imagined success tells real success with AUC "
                           f"{agreement['auc']:.3f} (n = {agreement.get('n', '?')})" + (
            f", below {AUC}: GRPO would learn the imagination's mistakes; align longer, oversample contact and watch "
            "the films." if weak else ".")))
    for key, name, advice in (("success_agreement", "successes", "imagination misses them; lower the threshold or "
                               "align longer"),
                              ("failure_agreement", "failures", "imagination flatters the policy; add failures and "
                               "smeared frames to the reward model")):
        if agreement.get(key) is not None and agreement[key] < AGREEMENT:
            out.append(Finding("note", "agreement", f"{100 * agreement[key]:.0f} % of the real {name} are imagined as "
                               f"such, below {100 * AGREEMENT:.0f} %: {advice}."))
    for key, what in (("reward_f1_real", "real"), ("reward_f1_imagined", "imagined")):
        if trust.get(key) is not None:
            weak = trust[key] < (REWARD_F1 if what == "real" else 0.85)
            out.append(Finding("note" if weak else "ok", "reward F1", f"the success classifier has F1 "
                               f"{trust[key]:.3f} on {what} video" + (
                ": give it more steps, or look at the clips it gets wrong." if weak else f" (threshold "
                f"{threshold:.3f})." if threshold is not None else ".")))
    return out


def _evaluation(evaluation, records) -> list[Finding]:
    """Is the gain real, or noise read as signal?"""
    from wmpo_lite.evaluate import paired_comparison, success_rate
    out, policies = [], {name: p["success"] for name, p in (evaluation.get("policies") or {}).items()
                         if p.get("success")}
    if not policies:
        return out
    n = min(len(s) for s in policies.values())
    half = 100 * 1.96 * math.sqrt(0.25 / n)
    out.append(Finding("ok" if n >= EPISODES_LOW else "note", "episodes", f"{n} evaluation episodes carry up to "
                       f"+-{half:.1f} points of noise at 95 %" + (
        "." if n >= EPISODES_LOW else f": evaluate on {EPISODES_LOW} or more before comparing.")))
    base = policies.get("base")
    if base is not None and (all(base) or not any(base)):
        out.append(Finding("problem", "base policy", f"the base policy {'always' if all(base) else 'never'} succeeds "
                           f"in evaluation ({success_rate(base)}): "
                                                     + ("there is nothing to improve; choose a harder task."
                                                        if all(base) else "check the action statistics, the "
                                                        "simulator's version and the frame size before blaming the "
                                                        "training.")))
    won = policies.get("wmpo")
    for name, other in policies.items():
        if won is None or name == "wmpo" or len(other) != len(won):
            continue
        pair = paired_comparison(other, won)
        if pair.low > 0:
            out.append(Finding("ok", "gain", f"WMPO over {name}: {pair}, clear of zero."))
        elif pair.high < 0:
            out.append(Finding("problem", "gain", f"WMPO is worse than {name}: {pair}; read the agreement above, and "
                               "stop earlier on the validation split."))
        else:
            need = math.ceil(n * ((pair.high - pair.low) / 2 / abs(pair.gain)) ** 2) if pair.gain else None
            size = f"about {need} states would tell a gain of this size" if need and need < 1e5 else "it is no gain"
            out.append(Finding("note", "gain", f"WMPO over {name} is inside the noise ({pair}): {size}, and do not "
                               "report it as one."))
    curve = _column([r for r in records if r.get("stage") == "wmpo"], "success")
    if won is not None and base is not None and len(base) == len(won) and len(curve) >= 5:
        edge = max(1, len(curve) // 5)
        dreamt, real = curve[-edge:].mean() - curve[:edge].mean(), np.mean(won) - np.mean(base)
        if dreamt > 0.1 and real < dreamt / 3:
            out.append(Finding("problem", "transfer", f"imagined success rises by {100 * dreamt:.0f} points and real "
                               f"success by {100 * real:.0f}: the policy exploits the imagination; improve the "
                               "agreement, or stop earlier."))
    return out


def _states(rollouts, config, evaluation) -> list[Finding]:
    """Do the rollouts start from states of the evaluation? Compared number by number, whatever the split is called."""
    if not rollouts:
        return []
    splits = sorted({t.split for t in rollouts})
    held_out = [split for split in splits if split in ("validation", "evaluation")]
    if held_out:
        return [Finding("problem", "leakage", f"rollouts.hdf5 was recorded on the split {', '.join(held_out)}: the "
                        "gain may be memory; record on 'rollouts'.")]
    from wmpo_lite.envs.tabletop import tasks
    from wmpo_lite.envs.tabletop.env import initial_states
    if config.get("task") not in tasks.NAMES:
        return []
    task, n = tasks.get_task(config["task"]), int(evaluation.get("n") or 256)
    used = {t.initial_state.tobytes() for t in rollouts}
    shared = sum(row.tobytes() in used for row in initial_states(task, "evaluation", np.arange(n)).states)
    if shared:
        return [Finding("problem", "leakage", f"{shared} of {n} evaluation states also occur in the rollouts: the "
                        "gain may be memory; record rollouts on states of their own.")]
    double = "" if len(used) == len(rollouts) else f" ({len(rollouts) - len(used)} rollouts repeat a state)"
    return [Finding("ok", "leakage", f"the {len(used)} initial states of the rollouts{double} and the {n} of the "
                    "evaluation have none in common.")]


def _statistics(run: Path) -> list[Finding]:
    """Every policy must carry the ranges that turn tokens into actions."""
    out, good = [], 0
    for folder, kind in _checkpoints(run):
        if kind != "Policy":
            continue
        values = _read(folder / "actions.json", [])
        name = folder.relative_to(run)
        if not {"names", "low", "high"} <= set(values):
            out.append(Finding("problem", "action statistics", f"policy {name} has no complete actions.json, so its "
                               "tokens mean no motion: save it again with Policy.save."))
        elif not (len(values["names"]) == len(values["low"]) == len(values["high"]) and all(a < b for a,
                                                                                            b in zip(values["low"],
                                                                                                     values["high"]))):
            out.append(Finding("problem", "action statistics", f"policy {name} has action ranges that are empty or of "
                               "different lengths: save it again from the right data."))
        else:
            good += 1
    return out + ([Finding("ok", "action statistics", f"{good} saved policies carry their action statistics.")] if good
                  else [])


def _versions(run: Path) -> list[Finding]:
    """Was the run made with the pinned simulator and libraries?"""
    pins, seen = {name: version for name, (version, _) in pinned_versions().items()}, {}
    for path in [run / "result.json", run / "config.json", *sorted(run.glob("**/provenance.json"))]:
        versions = _read(path, []).get("versions")
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            seen.setdefault(name, set()).add(str(version).partition("+")[0])
    other = [f"{name} {'/'.join(sorted(versions))} (pinned {pins[name]})" for name, versions in seen.items()
             if name in pins and versions != {pins[name]}]
    if not seen:
        return [Finding("note", "versions", "the run records no package versions: success rates of another simulator "
                        "version do not compare; finish the run or record them.")]
    if other:
        level = "problem" if any(text.startswith("mujoco") for text in other) else "note"
        return [Finding(level, "versions", f"the run was made with {', '.join(other)}: install the pinned versions "
                        "and run it again before comparing numbers.")]
    return [Finding("ok", "versions", f"the run was made with the pinned "
                    f"{', '.join(f'{name} {pins[name]}' for name in seen if name in pins)}.")]
