"""The trust panel: how far imagination may be believed, measured on real rollouts that nothing was trained on."""
import dataclasses

import numpy as np

from wmpo_lite import checkpoint
from wmpo_lite.workspace import TRAINING_STATES, TRUST_STATES, Workspace, clip_scores, imagined_env, initial_frames, save_arrays


def trust(w: Workspace) -> dict:
    """The trust panel, on fresh real rollouts of the base policy from the validation split."""
    from wmpo_lite.evaluate import acts_otherwise, agreement, f1_score, psnr
    from wmpo_lite.rollout import replay, rollout

    n = w.settings.trust_rollouts
    states = w.states("validation", TRUST_STATES + TRAINING_STATES * w.run.seed, n)
    real = rollout(w.base(), w.env, states, horizon=w.horizon, temperature=w.settings.temperature, seed=w.run.seed + 1, desc="trust: real rollouts")
    starts, success = initial_frames(real), np.array([t.success for t in real])
    env = imagined_env(w, w.run.seed, stop=False)
    imagined, _ = replay(env, real, starts)
    scores = clip_scores(w.reward_model(), imagined, starts, w.settings.judge_stride, w.settings.judge_hold)
    threshold, real_threshold = env.threshold, float(w.reward_model().threshold)
    truth = np.stack([t.frames for t in real])
    real_scores = clip_scores(w.reward_model(), truth, starts)
    horizons = sorted({h for h in (8, 16, 32, w.horizon) if h <= w.horizon})
    mean = lambda film, h: float(np.mean(psnr(film[:, h], truth[:, h])))  # noqa: E731
    copy = np.repeat(truth[:, :1], truth.shape[1], axis=1)
    few = min(n, 64)
    quality = {"true": float(np.mean(psnr(imagined[:few, 1:], truth[:few, 1:])))}
    for kind, actions in (("shuffled", np.roll(np.stack([t.actions for t in real[:few]]), 1, axis=0)), ("zero", np.zeros_like(np.stack([t.actions for t in real[:few]])))):
        wrong = [dataclasses.replace(t, actions=a, tokens=None, log_probs=None) for t, a in zip(real[:few], actions)]
        film, _ = replay(imagined_env(w, w.run.seed, stop=False), wrong, starts[:few])
        quality[kind] = float(np.mean(psnr(film[:, 1:], truth[:few, 1:])))
    quality |= {"shuffled_cost": quality["true"] - quality["shuffled"], "zero_cost": quality["true"] - quality["zero"]}
    verdict, policy = agreement(success, scores, threshold), w.base()
    when = policy.config.chunk  # later the two worlds differ in more than in how they are painted
    eye = {key: acts_otherwise(policy, truth[:, when], other, starts.instructions)
           for key, other in (("imagined", imagined[:, when]), ("autoencoder", w.autoencoder().recode(truth[:, when])))}
    result = {"n": n, "psnr": {"horizons": horizons, "model": [mean(imagined, h) for h in horizons], "copy_last": [mean(copy, h) for h in horizons]},
              "sensitivity": quality, "agreement": dataclasses.asdict(verdict), "threshold": threshold, "acts_otherwise": eye,
              "real_threshold": real_threshold, "reward_f1_real": f1_score(real_scores >= real_threshold, success), "reward_f1_imagined": f1_score(scores >= threshold, success),
              "scores": [round(float(x), 4) for x in scores], "real": [bool(x) for x in success]}
    checkpoint.write_json(w.folder / "trust.json", result)
    pick = np.concatenate([np.flatnonzero(success)[:4], np.flatnonzero(~success)[:4]])
    save_arrays(w.folder / "trust_films.npz", real=truth[pick], imagined=imagined[pick], real_success=success[pick], scores=scores[pick],
                 instructions=np.array([real[i].instruction for i in pick]))
    return {key: result[key] for key in ("n", "agreement", "reward_f1_real", "reward_f1_imagined", "sensitivity", "psnr", "acts_otherwise")}


def describe_trust(t: dict) -> str:
    a, p, s = t["agreement"], t["psnr"], t["sensitivity"]
    lines = [f"trust panel on {t['n']} fresh real rollouts",
             "  PSNR after " + ", ".join(f"{h} frames {m:.1f} dB (copy {c:.1f})" for h, m, c in zip(p["horizons"], p["model"], p["copy_last"])),
             f"  shuffled actions cost {s['shuffled_cost']:.1f} dB, zero actions {s['zero_cost']:.1f} dB",
             f"  imagined against real success: AUC {a['auc']:.3f}, agrees on {100 * a['success_agreement']:.0f} % of successes and "
             f"{100 * a['failure_agreement']:.0f} % of failures; confusion {a['confusion']}",
             f"  reward model F1: {t['reward_f1_real']:.3f} on real, {t['reward_f1_imagined']:.3f} on imagined video"]
    if eye := t.get("acts_otherwise"):
        lines.append(f"  shown the imagined picture after a chunk instead of the camera's, the policy chooses {100 * eye['imagined']:.0f} % of its action tokens otherwise "
                     f"(the camera's as the autoencoder gives it back: {100 * eye['autoencoder']:.0f} %)")
    from wmpo_lite.findings_evaluation import about_trust
    return "\n".join(lines + [f"  warning: {found.message}" for found in about_trust(t) if found.level == "problem"])
