"""The trust panel: how far imagination may be believed, measured on real rollouts that nothing was
trained on.

Everything is measured twice, with the world model as pre-trained and as aligned on the P rollouts,
so that every run shows what alignment did.
"""

import dataclasses

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.recipes.workspace import (
    SCORED,
    Workspace,
    clip_scores,
    imagined_env,
    initial_frames,
    replay_in,
    save_arrays,
)

PANEL = (  # of a trust panel, what a stage's result and the report show
    "agreement",
    "auc_interval",
    "reward_f1_imagined",
    "sensitivity",
    "psnr",
    "latent_error",
    "valid_frames",
)


def trust(w: Workspace) -> dict:
    """Replay fresh real rollouts of the base policy in imagination, before and after alignment, and
    compare. Every process records them; they share out what is imagined and judged.
    """
    from wmpo_lite.evaluate import f1_score
    from wmpo_lite.rollout import rollout

    n = w.settings.trust_rollouts
    states = w.states("trust", n)
    real = rollout(
        w.base(),
        w.env,
        states,
        horizon=w.horizon,
        temperature=w.settings.temperature,
        seed=w.run.seed + 1,
        desc="trust: real rollouts",
    )
    success, truth = np.array([t.success for t in real]), np.stack([t.frames for t in real])
    camera = shared_scores(w, truth, initial_frames(real))
    before = panel(w, real, truth, w.pretrained_world_model())
    after = panel(w, real, truth, w.world_model())
    imagined, scores = after.pop("frames"), after.pop("imagined_scores")
    for key in ("frames", "imagined_scores"):
        before.pop(key)
    threshold = float(w.reward_model().threshold)
    result = {
        "n": n,
        **after,
        "before_alignment": before,
        "real_threshold": threshold,
        "reward_f1_real": f1_score(camera >= threshold, success),
        "reward_f1_imagined": f1_score(scores >= after["threshold"], success),
        "scores": [round(float(x), 4) for x in scores],
        "real": [bool(x) for x in success],
    }
    films = examples(real, truth, imagined, scores)

    def write():
        checkpoint.write_json(w.folder / "trust.json", result)
        save_arrays(w.folder / "trust_films.npz", **films)

    parallel.first(write)
    return {key: result[key] for key in (*PANEL, "n", "reward_f1_real", "before_alignment")}


def examples(real, truth: np.ndarray, imagined: np.ndarray, scores: np.ndarray) -> dict:
    """The first four real successes and failures, as arrays by name for trust_films.npz."""
    success = np.array([t.success for t in real])
    pick = np.concatenate([np.flatnonzero(success)[:4], np.flatnonzero(~success)[:4]])
    return {
        "real": truth[pick],
        "imagined": imagined[pick],
        "real_success": success[pick],
        "scores": scores[pick],
        "instructions": np.array([real[i].instruction for i in pick]),
    }


def panel(w: Workspace, real, truth: np.ndarray, world_model, few: int = 64) -> dict:
    """What one world model makes of the rollouts `real`, whose frames are `truth` (E, T + 1, H, W,
    3).
    """
    import torch

    from wmpo_lite.evaluate import agreement, auc_interval, psnr, valid_frames

    starts, success = initial_frames(real), np.array([t.success for t in real])
    env = imagined_env(w, w.run.seed, stop=False, world_model=world_model)
    imagined = replay_in(env, real)
    scores = shared_scores(
        w, imagined, starts, w.settings.reward_stride, w.settings.min_consecutive
    )
    horizons = sorted({h for h in (8, 16, 24, 32, w.horizon) if h <= w.horizon})
    copy = np.repeat(truth[:, :1], truth.shape[1], axis=1)
    at = lambda frames, h: float(np.mean(psnr(frames[:, h], truth[:, h])))
    encode = lambda frames: w.autoencoder().encode_uint8(torch.from_numpy(frames[:few, horizons]))
    latent = [
        (encode(frames) - encode(truth)).square().mean(dim=(0, 2, 3, 4)).tolist()
        for frames in (imagined, copy)
    ]
    few = min(few, len(real))
    quality, actions = (
        {"true": float(np.mean(psnr(imagined[:few, 1:], truth[:few, 1:])))},
        np.stack([t.actions for t in real[:few]]),
    )
    for kind, wrong in (
        ("shuffled", np.roll(actions, 1, axis=0)),
        ("zero", 0 * actions),
        ("delayed", np.concatenate([0 * actions[:, :1], actions[:, :-1]], axis=1)),
    ):
        told = [
            dataclasses.replace(t, actions=a, tokens=None, log_probs=None)
            for t, a in zip(real[:few], wrong)
        ]
        frames = replay_in(
            imagined_env(w, w.run.seed, stop=False, judged=False, world_model=world_model), told
        )
        quality[kind] = float(np.mean(psnr(frames[:, 1:], truth[:few, 1:])))
        quality[f"{kind}_cost"] = quality["true"] - quality[kind]
    return {
        "threshold": env.threshold,
        "agreement": dataclasses.asdict(agreement(success, scores, env.threshold)),
        "auc_interval": auc_interval(success, scores),
        "psnr": {
            "horizons": horizons,
            "model": [at(imagined, h) for h in horizons],
            "copy_last": [at(copy, h) for h in horizons],
        },
        "latent_error": {"horizons": horizons, "model": latent[0], "copy_last": latent[1]},
        "sensitivity": quality,
        "valid_frames": float(np.mean(valid_frames(imagined, truth))),
        "frames": imagined,
        "imagined_scores": scores,
    }


def shared_scores(w: Workspace, films, starts, *rule) -> np.ndarray:
    """`clip_scores` of this run's reward model, of which every process computes its share."""
    run = lambda own: clip_scores(w.reward_model(), films[own], starts[own], *rule)
    return parallel.whole(run, len(films), SCORED)


def describe_trust(t: dict) -> str:
    """The panel in words."""
    a, p, s, b = t["agreement"], t["psnr"], t["sensitivity"], t["before_alignment"]["agreement"]
    low, high = t["auc_interval"]
    lines = [
        f"trust panel on {t['n']} fresh real rollouts",
        "  PSNR after "
        + ", ".join(
            f"{h} frames {m:.1f} dB (copy {c:.1f})"
            for h, m, c in zip(p["horizons"], p["model"], p["copy_last"])
        ),
        (
            f"  shuffled actions cost {s['shuffled_cost']:.1f} dB, zero actions"
            f" {s['zero_cost']:.1f} dB, actions a step late {s['delayed_cost']:.1f} dB"
        ),
        f"  an imagined thing is off by its own width after {t['valid_frames']:.1f} frames (mean)",
        (
            f"  imagined against real success: AUC {a['auc']:.3f} [{low:.3f}, {high:.3f}],"
            f" true-positive rate {a['success_agreement']:.2f}, true-negative rate"
            f" {a['failure_agreement']:.2f}; confusion {a['confusion']}"
        ),
        (
            f"  before alignment: AUC {b['auc']:.3f}, true-positive rate"
            f" {b['success_agreement']:.2f}, true-negative rate {b['failure_agreement']:.2f}"
        ),
        (
            f"  reward model F1: {t['reward_f1_real']:.3f} on real, {t['reward_f1_imagined']:.3f}"
            " on imagined video"
        ),
    ]
    from wmpo_lite.report.checks import about_trust

    return "\n".join(
        lines + [f"  warning: {row}" for row in about_trust(t) if row.level == "problem"]
    )
