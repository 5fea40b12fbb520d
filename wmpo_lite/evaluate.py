"""Numbers with their uncertainty: success rates, paired comparisons, lengths, agreement of
imagination with reality.

128 episodes carry about +-8.5 points of noise at 95 %, so no success rate here comes without an
interval. A quantity that the data cannot give (no episodes, one class only) is a UserError, never a
silent zero. Rates are fractions in [0, 1]; `str()` shows per cent.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from wmpo_lite.common.errors import UserError


@dataclass(frozen=True)
class SuccessRate:
    """`rate` = successes / n with its interval [low, high]."""

    successes: int
    n: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n={self.n})"


@dataclass(frozen=True)
class PairedComparison:
    """`gain` = rate(b) - rate(a) on n states, of which b alone solves `won` and a alone `lost`."""

    gain: float
    low: float
    high: float
    won: int
    lost: int
    p_value: float
    n: int

    def __str__(self) -> str:
        return (
            f"{100 * self.gain:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], "
            f"{self.won} won, {self.lost} lost, p = {self.p_value:.3g} (n={self.n})"
        )


@dataclass(frozen=True)
class Agreement:
    """How far imagined outcomes tell real ones: see `agreement`."""

    auc: float
    success_agreement: float  # of the real successes, the share imagined as successes (recall)
    failure_agreement: float  # of the real failures, the share imagined as failures (specificity)
    balanced: float  # mean of the two; 0.5 is chance
    confusion: tuple[tuple[int, int], tuple[int, int]]  # [real][imagined], 0 failure, 1 success
    n: int


def _outcomes(values, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise UserError(
            f"{name} must be a non-empty list of True/False; got {array.dtype} of shape"
            f" {array.shape}."
        )
    return array.astype(bool)


def _scored(labels, name: str, scores, score_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes bool (N,) of both kinds and a finite score (N,) of each."""
    labels, scores = _outcomes(labels, name), np.asarray(scores)
    scores = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    if scores.shape != labels.shape or not np.isfinite(scores).all():
        raise UserError(
            f"{score_name} must hold {len(labels)} finite numbers, one an outcome; got shape"
            f" {scores.shape}."
        )
    if labels.all() or not labels.any():
        missing = "negatives" if labels.all() else "positives"
        raise UserError(
            f"{name} holds no {missing} among its {len(labels)} outcomes; "
            "collect episodes until there is at least one success and one failure."
        )
    return labels, scores


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a success rate: Wilson's score interval, sane even at 0 and n successes."""
    if not (n >= 1 and 0 <= successes <= n and 0 < confidence < 1):
        raise UserError(
            f"No interval for {successes} successes in {n} episodes at confidence {confidence}; "
            "expected n >= 1, 0 <= successes <= n and a confidence between 0 and 1."
        )
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(
        confidence_level=confidence, method="wilson"
    )
    return float(interval.low), float(interval.high)


def success_rate(outcomes, confidence: float = 0.95) -> SuccessRate:
    """The success rate of bool outcomes (N,), N >= 1, with its Wilson interval."""
    outcomes = _outcomes(outcomes, "outcomes")
    successes, n = int(outcomes.sum()), len(outcomes)
    return SuccessRate(successes, n, successes / n, *wilson_interval(successes, n, confidence))


def paired_comparison(a, b, *, seed: int = 0, resamples: int = 10_000) -> PairedComparison:
    """Compare policy b with policy a on the **same** initial states; a, b bool (N,), a[i] and b[i]
    from state i.

    The interval is the 95 % percentile interval of a paired bootstrap; p_value is McNemar's exact
    test (a sign test on the states that exactly one of them solves; 1 if there are none). Pairing
    removes the luck of the initial states.
    """
    a, b = _outcomes(a, "a"), _outcomes(b, "b")
    if len(a) != len(b):
        raise UserError(
            f"A paired comparison needs the same initial states; got {len(a)} and {len(b)}"
            " outcomes."
        )
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; expected at least 1.")
    n, won, lost = len(a), int((b & ~a).sum()), int((a & ~b).sum())
    # A pair contributes +1, -1 or 0, so drawing n pairs with replacement is one multinomial draw
    # over these three.
    draws = np.random.default_rng(seed).multinomial(
        n, np.array([won, lost, n - won - lost]) / n, size=resamples
    )
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / n, (2.5, 97.5))
    p_value = stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    return PairedComparison((won - lost) / n, float(low), float(high), won, lost, float(p_value), n)


def successful_lengths(trajectories) -> np.ndarray:
    """finish_step of every successful trajectory, int (M,), for `trajectory_length_ratio`."""
    return np.array([t.finish_step for t in trajectories if t.success], dtype=np.int64)


def trajectory_length_ratio(base_lengths, other_lengths) -> float:
    """Mean length of successful trajectories, base = 100 (the paper's length table): below 100 is
    faster than the base.

    Both arguments hold the lengths of **successful** trajectories only (a failure has the length of
    its time limit).
    """
    means = []
    for name, values in (("base_lengths", base_lengths), ("other_lengths", other_lengths)):
        lengths = np.asarray(values, dtype=np.float64)
        positive = np.isfinite(lengths) & (lengths > 0)
        if lengths.ndim != 1 or lengths.size == 0 or not positive.all():
            raise UserError(
                f"{name} must hold at least one length, all positive; got {lengths.size} values. "
                "A policy without a success has no length."
            )
        means.append(lengths.mean())
    return float(100 * means[1] / means[0])


def agreement(real, imagined_score, threshold: float) -> Agreement:
    """Does the imagination tell real successes from real failures?

    real bool (N,): outcomes in the real environment; imagined_score (N,): the reward model's score
    of the same action sequences replayed in imagination; a score >= threshold is an imagined
    success. `auc` needs no threshold: the chance that a real success scores above a real failure,
    ties counting one half (Mann-Whitney). One class only: UserError.
    """
    real, scores = _scored(real, "real", imagined_score, "imagined_score")
    positives, negatives = int(real.sum()), int((~real).sum())
    above = stats.rankdata(scores)[real].sum() - positives * (positives + 1) / 2
    imagined = scores >= threshold
    hits, rejections = int((imagined & real).sum()), int((~imagined & ~real).sum())
    recall, specificity = hits / positives, rejections / negatives
    return Agreement(
        float(above / (positives * negatives)),
        recall,
        specificity,
        (recall + specificity) / 2,
        ((rejections, negatives - rejections), (positives - hits, hits)),
        len(real),
    )


def f1_score(predictions, labels) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) of bool (N,) predictions; UserError if no label is positive."""
    predictions, labels = _outcomes(predictions, "predictions"), _outcomes(labels, "labels")
    if predictions.shape != labels.shape:
        raise UserError(
            f"F1 needs one prediction for each label; got {len(predictions)} and {len(labels)}."
        )
    if not labels.any():
        raise UserError(
            f"labels holds no positives among its {len(labels)} outcomes; F1 is undefined."
        )
    return float(2 * (predictions & labels).sum() / (predictions.sum() + labels.sum()))


def best_threshold(scores, labels) -> tuple[float, float]:
    """(threshold, F1) of the best rule `score >= threshold` for scores (N,) and bool labels (N,).

    Candidates lie half-way between neighboring distinct scores; to call everything a success is no
    candidate, even where F1 would like it. Among equally good ones the widest gap wins (new scores
    are least likely to cross it), then the middle one. Raises UserError for one class only or equal
    scores.
    """
    labels, scores = _scored(labels, "labels", scores, "scores")
    levels, inverse = np.unique(scores, return_inverse=True)  # ascending
    if len(levels) < 2:
        raise UserError(
            f"All {len(scores)} scores equal {levels[0]:.6g}, so no threshold separates them; "
            "train the reward model further."
        )
    # Everything from level k + 1 upwards is predicted positive by candidate k.
    predicted = np.cumsum(np.bincount(inverse)[::-1])[::-1][1:]
    hits = np.cumsum(np.bincount(inverse, weights=labels)[::-1])[::-1][1:]
    f1 = 2 * hits / (predicted + labels.sum())
    gaps = np.diff(levels)
    best = np.flatnonzero(f1 == f1.max())
    best = best[np.isclose(gaps[best], gaps[best].max())]
    k = best[(len(best) - 1) // 2]
    middle = levels[k] + gaps[k] / 2
    # Between adjacent floats the middle may be the lower one, which must stay below the threshold.
    return float(middle if middle > levels[k] else levels[k + 1]), float(f1[k])


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 images (..., H, W, C), one value for each leading
    index: float64 (...).

    10 log10(255^2 / mean squared error); infinite for identical images.
    """
    a, b = np.asarray(a), np.asarray(b)
    if not a.dtype == b.dtype == np.uint8 or a.shape != b.shape or a.ndim < 3 or not a.size:
        raise UserError(
            "psnr compares uint8 images (..., H, W, C) of one shape; "
            f"got {a.dtype} {a.shape} and {b.dtype} {b.shape}."
        )
    error = np.square(a.astype(np.int32) - b).mean(axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def auc_interval(real, scores, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of the AUC of `agreement`: successes and failures are resampled apart."""
    real, scores = _scored(real, "real", scores, "scores")
    rng, good, bad = np.random.default_rng(seed), scores[real], scores[~real]
    # above[i, j]: 1 where success i scores above failure j, 1/2 for a tie
    above = (good[:, None] > bad[None]) + 0.5 * (good[:, None] == bad[None])
    draws = []
    for _ in range(resamples):
        g = np.bincount(rng.integers(len(good), size=len(good)), minlength=len(good))
        b = np.bincount(rng.integers(len(bad), size=len(bad)), minlength=len(bad))
        draws.append(g @ above @ b / (len(good) * len(bad)))
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def valid_frames(imagined, truth, width: float = 7.0, visible: int = 10) -> np.ndarray:
    """How many frames (E,) pass until a thing is imagined further from its true place than its own
    width, or is gone.

    imagined, truth: uint8 (E, T, H, W, 3) from the same first frame. Things are told by color:
    pixels of pure red, green or blue (the table-top's tasks have no other things that move; a
    measure for reports, nothing is trained on it). width: pixels; visible: pixels of a thing that
    the true picture must show. T - 1 where nothing goes wrong.
    """
    centers, counts = _color_centers(imagined)  # (E, T, 3, 2), (E, T, 3)
    true_centers, true_counts = _color_centers(truth)
    off = np.linalg.norm(centers - true_centers, axis=-1) > width
    gone = counts < 0.25 * true_counts
    wrong = ((true_counts >= visible) & (off | gone)).any(axis=-1)  # (E, T)
    return np.where(wrong.any(axis=1), wrong.argmax(axis=1) - 1, wrong.shape[1] - 1).clip(min=0)


def _color_centers(frames) -> tuple[np.ndarray, np.ndarray]:
    """Mean place (..., 3, 2) and number (..., 3) of purely red, green and blue pixels."""
    x = np.asarray(frames).astype(np.int16)
    low, middle, high = np.moveaxis(np.sort(x, axis=-1), -1, 0)
    pure = (high - low > 70) & (middle - low < 0.35 * (high - low))
    which = (x.argmax(axis=-1)[..., None] == np.arange(3)) & pure[..., None]  # (..., H, W, 3)
    counts = which.sum(axis=(-3, -2))
    rows, columns = np.arange(x.shape[-3])[:, None, None], np.arange(x.shape[-2])[None, :, None]
    total = np.maximum(counts, 1)
    centers = [(which * axis).sum(axis=(-3, -2)) / total for axis in (rows, columns)]
    return np.stack(centers, axis=-1), counts


@dataclass(frozen=True)
class SeedMean:
    """`mean` over training seeds and states, with its interval [low, high]."""

    mean: float
    low: float
    high: float
    seeds: int
    n: int

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
            f" (n={self.n}, seeds={self.seeds})"
        )


def mean_over_seeds(values, *, seed: int = 0, resamples: int = 4000) -> SeedMean:
    """Mean of values (S, n) of S training seeds on the same n evaluation states: outcomes (0 or 1),
    or differences of two policies' outcomes (-1, 0, 1).

    95 % percentile interval of a bootstrap that draws states (the same for all seeds) and, where
    there are two or more, seeds. With one seed it tells nothing about other seeds; with three it is
    too narrow, since three cannot show how far seeds lie apart.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or resamples < 1:
        raise UserError(
            f"a mean over seeds takes finite values (seeds, states); got shape {values.shape}"
        )
    (count, n), rng = values.shape, np.random.default_rng(seed)
    # How often each state is drawn, (R, n).
    states = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    means = states @ values.T / n  # (R, S)
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    low, high = np.percentile((means * seeds).sum(axis=1) / count, (2.5, 97.5))
    return SeedMean(float(values.mean()), float(low), float(high), count, n)
