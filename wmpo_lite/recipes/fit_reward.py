"""The reward model of a run: fitted to the P rollouts and the cloning demonstrations, its
thresholds chosen on rollouts that were held out.
"""

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.recipes.rollouts import demonstrations, recordings, split_rollouts
from wmpo_lite.recipes.workspace import (
    REWARD_CLIPS,
    Workspace,
    clip_scores,
    imagined_env,
    initial_frames,
    replay_in,
)


def reward_episodes(trajectories, frames=None) -> dict:
    """Trajectories as the arrays that `reward.sample_clips` wants; frames (E, T + 1, H, W, 3):
    others than their own.
    """
    from wmpo_lite.envs.tabletop.tasks.pair import with_another_color

    other = [with_another_color(t.instruction, t.index) for t in trajectories]
    return {
        "frames": np.stack([t.frames for t in trajectories]) if frames is None else frames,
        "success": np.array([t.success for t in trajectories]),
        "finish_step": np.array([t.finish_step for t in trajectories]),
        "instruction": [t.instruction for t in trajectories],
        "other": other,
    }


def fit_reward(w: Workspace) -> dict:
    """Fit the reward model to the P rollouts and the cloning demonstrations: as filmed, as the
    autoencoder gives them back, and as the aligned world model imagines them, with the real outcome
    as the label of all three.

    The encoder begins with the weights of the policy's image tower (`RewardModel.inflate`), and its
    lower half keeps them. A quarter of the rollouts is held out; on it the threshold for camera
    video is chosen by F1 (median of bootstrap samples), and the one for imagined video so that as
    many imagined replays count as success as truly succeeded. With several members each holds out
    another quarter, and thresholds are chosen on the judgments that each gives of its own.
    """
    from wmpo_lite.reward import RewardModel

    s, trajectories = w.settings, w.rollouts()
    success = [t.success for t in trajectories]
    first, held = split_rollouts(success, w.run.seed)
    env = imagined_env(w, w.run.seed, stop=False, judged=False)
    seen = [trajectories[i] for i in first] + demonstrations(w)
    films = [replay_in(env, seen), replay_in(env, [trajectories[i] for i in held])]
    films = dict(zip([*first, *range(-len(seen) + len(first), 0), *held], np.concatenate(films)))
    members, judged = [], []
    for part in range(s.reward_members):
        fitted, held = split_rollouts(success, w.run.seed, part)
        model, trained = fit_member(w, part, fitted, films)
        members.append(model)
        judged.append(judge_held_out(w, model, held, np.stack([films[i] for i in held])))
    model = RewardModel.together(members)
    return parallel.first(lambda: choose_thresholds(w, model, judged, trained))


def fit_member(w: Workspace, part: int, fitted: list[int], films: dict):
    """One reward model, fitted to the rollouts of these numbers and to the demonstrations, which
    have the numbers below zero; and the last record of its training. films: imagined, by number.
    """
    import torch

    from wmpo_lite.reward import RewardModel, reward_loss
    from wmpo_lite.train import FitConfig, fit

    s, seed = w.settings, w.run.seed + 1000 * part
    torch.manual_seed(seed)
    model = RewardModel.from_tower(w.base()).to(w.device)
    w.compute.prepare(model).freeze_lower(s.reward_frozen)
    seen = [w.rollouts()[i] for i in fitted] + demonstrations(w)
    real = np.stack([t.frames for t in seen])
    imagined = np.stack([films[i] for i in [*fitted, *range(len(fitted) - len(seen), 0)]])
    parts = (real, w.autoencoder().reconstruct(real), imagined)
    episodes = reward_episodes(seen * len(parts), np.concatenate(parts))
    records = fit(
        model,
        reward_loss(model, episodes, half=REWARD_CLIPS // 2),
        FitConfig(
            steps=s.reward_steps,
            lr=s.reward_lr,
            warmup=30,
            decay=0.6,
            ema=0.99,
            save_every=100,
            weight_decay=0.05,
        ),
        seed=seed,
        name="reward",
        folder=w.folder / ("fit_reward" + f"_{part}" * (part > 0)),
        log_every=20,
        on_log=w.log,
        shared=True,
        passes=parallel.passes(REWARD_CLIPS, w.compute.micro_batch),
        made_from={**recordings(seen), "world model": checkpoint.fingerprint(w.world_model())},
    )
    return model, records[-1]


def judge_held_out(w: Workspace, model, held: list[int], imagined: np.ndarray):
    """Success of the rollouts of these numbers, and what the reward model says of their camera
    frames and of their imagined ones: three arrays (n,).
    """
    import torch

    chosen_on = [w.rollouts()[i] for i in held]
    real = torch.from_numpy(np.stack([t.frames for t in chosen_on]))
    starts = initial_frames(chosen_on)
    rule = (w.settings.reward_stride, w.settings.min_consecutive)
    return (
        np.array([t.success for t in chosen_on]),
        model.score(real, [t.instruction for t in chosen_on]).cpu().numpy(),
        clip_scores(model, imagined, starts, *rule),
    )


def choose_thresholds(w: Workspace, model, judged: list, trained: dict) -> dict:
    """Both thresholds, from what every member says of its held-out rollouts (`judge_held_out`);
    the reward model is saved with them. trained: the last record of its training.
    """
    from wmpo_lite.evaluate import f1_score
    from wmpo_lite.reward import best_probability, matching_threshold

    success, scores, imagined_scores = (np.concatenate(part) for part in zip(*judged))
    threshold, f1 = best_probability(scores, success, resamples=200)
    model.threshold.fill_(threshold)
    imagined_threshold = matching_threshold(imagined_scores, success)
    imagined_f1 = f1_score(imagined_scores >= imagined_threshold, success)
    about = {"threshold": threshold, "f1": f1, "ema_decay": trained["ema_decay"]}
    model.save(w.folder / "reward", w.provenance(stage="reward", **about))
    return {
        "threshold": threshold,
        "f1": f1,
        "chosen_on": len(success),
        "imagined_threshold": imagined_threshold,
        "imagined_f1": imagined_f1,
        "loss": trained["loss"],
    }
