"""Fitting the reward model: clips of recorded rollouts, the loss, and the threshold (paper section
3.3).
"""

import numpy as np
import torch
from torch.nn import functional as F

from wmpo_lite.common import parallel
from wmpo_lite.common.errors import UserError
from wmpo_lite.evaluate import best_threshold, f1_score
from wmpo_lite.reward_model import RewardConfig, RewardModel


def sample_clips(
    episodes: dict, config: RewardConfig, rng: np.random.Generator, half: int, after: int = 8
):
    """A balanced batch of 2 x half clips uint8 (2 half, L, H, W, 3) with instructions and labels
    (paper section 3.3).

    episodes: frames uint8 (E, T + 1, H, W, 3), success bool (E,), finish_step int (E,), instruction
    (E,), other (E,) (an instruction that the same pictures do not fulfil, or ''). Positives are the
    terminal clips of successes, or end up to `after` frames later. Negatives are clips of failures,
    clips of successes that end at least L frames before the end, and terminal clips under the other
    instruction.
    """
    length, frames, last_frame = config.clip, episodes["frames"], episodes["frames"].shape[1] - 1
    success = np.asarray(episodes["success"], dtype=bool)
    finish = np.asarray(episodes["finish_step"])
    good, bad = np.flatnonzero(success & (finish + 1 >= length)), np.flatnonzero(~success)
    if not len(good) or not len(bad):
        raise UserError(
            f"{int(success.sum())} of {len(success)} episodes are successes and {len(good)} of"
            f" those are at least {length} frames long; a reward model needs both successes and"
            " failures: record more rollouts or start from another base policy"
        )

    def terminal(e):
        end = min(finish[e] + int(rng.integers(after + 1)), last_frame)
        return frames[e, end - length + 1 : end + 1]

    clips, texts, labels = [], [], [1.0] * half + [0.0] * half
    for e in rng.choice(good, half):
        clips.append(terminal(e))
        texts.append(episodes["instruction"][e])
    for kind in rng.random(half):
        e = rng.choice(good) if kind < 0.55 else rng.choice(bad)
        if kind < 0.3 and episodes["other"][e]:
            clips.append(terminal(e))
            texts.append(episodes["other"][e])
            continue
        if success[e] and finish[e] - length < length - 1:
            e = rng.choice(bad)
        latest = finish[e] - length if success[e] else last_frame
        # Often a late clip: an unfinished placement is the hardest negative.
        earliest = (length - 1 + latest) // 2 if rng.random() < 0.6 else length - 1
        end = latest if rng.random() < 0.2 else int(rng.integers(earliest, latest + 1))
        clips.append(frames[e, end - length + 1 : end + 1])
        texts.append(episodes["instruction"][e])
    return torch.from_numpy(np.stack(clips)), texts, torch.tensor(labels)


def reward_loss(model: RewardModel, episodes: dict, half: int = 16, smooth: float = 0.01):
    """The `loss_fn` for `train.fit`: binary cross-entropy on balanced clips, mirrored, shifted by
    up to two pixels and of other brightness by chance.

    smooth: labels are 1 - smooth and smooth, so that few clips learned by heart do not drive all
    probabilities to 0 and 1.
    """

    def loss_fn(generator, rng, step):
        clips, texts, labels = sample_clips(episodes, model.config, rng, half)
        mirrored = torch.from_numpy(rng.random(len(clips)) < 0.5).view(-1, 1, 1, 1, 1)
        clips = shifted(torch.where(mirrored, clips.flip(3), clips).float(), rng)
        brightness = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) * 0.1 + 0.95
        own = parallel.rows(len(clips))
        logits = model((clips * brightness).clamp(0, 255)[own], texts[own])
        labels = labels[own].to(logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, labels * (1 - 2 * smooth) + smooth)
        part = parallel.share(len(clips))
        right = float(((logits > 0) == (labels > 0.5)).float().mean())
        return loss * part, {"accuracy": right * part}

    return loss_fn


def shifted(clips: torch.Tensor, rng: np.random.Generator, most: int = 2) -> torch.Tensor:
    """Clips (B, L, H, W, 3), each moved by up to `most` pixels both ways, its border repeated."""
    size = clips.shape[2:4]
    padded = F.pad(clips.permute(0, 1, 4, 2, 3).flatten(1, 2), (most,) * 4, mode="replicate")
    places = rng.integers(0, 2 * most + 1, (len(clips), 2))
    moved = torch.stack(
        [clip[:, y : y + size[0], x : x + size[1]] for clip, (y, x) in zip(padded, places)]
    )
    return moved.unflatten(1, (clips.shape[1], 3)).permute(0, 1, 3, 4, 2)


def fit_threshold(
    model: RewardModel, frames: torch.Tensor, instructions, success, resamples: int = 0
) -> tuple[float, float]:
    """Set the threshold by F1 on held-out rollouts (paper); returns it and F1."""
    scores = model.score(frames, instructions)
    threshold, f1 = best_probability(scores.cpu().numpy(), success, resamples)
    model.threshold.fill_(threshold)
    return threshold, f1


def best_probability(scores: np.ndarray, success, resamples: int = 0) -> tuple[float, float]:
    """`evaluate.best_threshold` for probabilities (N,), with gaps measured in log-odds: near 1 a
    wide gap is a small number.

    resamples: take the median of the best thresholds of so many bootstrap samples. The best one of
    a few dozen rollouts jumps about with every one of them.
    """
    odds, success = log_odds(scores), np.asarray(success, dtype=bool)
    best = [best_threshold(odds, success)[0]]
    for rows in np.random.default_rng(0).integers(len(odds), size=(resamples, len(odds))):
        if 0 < success[rows].sum() < len(rows) and len(np.unique(odds[rows])) > 1:
            best.append(best_threshold(odds[rows], success[rows])[0])
    threshold = probability(np.median(best))
    return threshold, f1_score(clipped(scores) >= threshold, success)


def matching_threshold(scores: np.ndarray, success) -> float:
    """The threshold at which as many of the probabilities (N,) count as success as truly were one.

    In imagination F1 is a poor guide: where outcomes are told apart badly it prefers to call too
    much a success, and a policy learns to please such a reward.
    """
    success = np.asarray(success, dtype=bool)
    count = int(success.sum())
    if not 0 < count < len(success):
        raise UserError(
            f"{count} of {len(success)} rollouts are successes; a threshold can only be matched"
            " where there are both kinds"
        )
    ranked = np.sort(log_odds(scores))[::-1]
    return probability((ranked[count - 1] + ranked[count]) / 2)


def clipped(probabilities) -> np.ndarray:
    """Probabilities (N,) whose log-odds are finite."""
    return np.clip(np.asarray(probabilities, dtype=np.float64), 1e-7, 1 - 1e-7)


def log_odds(probabilities) -> np.ndarray:
    p = clipped(probabilities)
    return np.log(p / (1 - p))


def probability(odds) -> float:
    """The inverse of `log_odds`."""
    return float(1 / (1 + np.exp(-odds)))
