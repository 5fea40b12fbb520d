"""Golden values worked out by hand, and properties on random inputs."""

from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.evaluate import (
    agreement,
    auc_interval,
    best_threshold,
    f1_score,
    mean_over_seeds,
    paired_comparison,
    psnr,
    success_rate,
    successful_lengths,
    trajectory_length_ratio,
    valid_frames,
    wilson_interval,
)


def test_wilson_golden_values():
    # center (p + z^2/2n) / (1 + z^2/n), half-width z/(1 + z^2/n) sqrt(p(1-p)/n + z^2/4n^2), with z
    # = 1.959964
    z = 1.959963984540054
    low, high = wilson_interval(0, 10)
    assert low == 0 and high == pytest.approx(z**2 / (10 + z**2))
    assert wilson_interval(5, 10) == pytest.approx(
        (0.5 - z / 2 / np.sqrt(10 + z**2), 0.5 + z / 2 / np.sqrt(10 + z**2))
    )
    assert wilson_interval(107, 256) == pytest.approx((0.3592, 0.4791), abs=5e-4)


def test_128_episodes_carry_eight_and_a_half_points_of_noise():
    low, high = wilson_interval(64, 128)
    assert (high - low) / 2 == pytest.approx(0.085, abs=1e-3)


def test_wilson_properties():
    rng = np.random.default_rng(0)
    for _ in range(100):
        n = int(rng.integers(1, 300))
        k = int(rng.integers(0, n + 1))
        low, high = wilson_interval(k, n)
        mirrored = wilson_interval(n - k, n)
        assert 0 <= low <= k / n <= high <= 1 and low < high
        assert mirrored == pytest.approx((1 - high, 1 - low))
        assert wilson_interval(k, n, 0.99)[1] - wilson_interval(k, n, 0.99)[0] > high - low


@pytest.mark.parametrize("arguments", [(0, 0), (3, 2), (-1, 2), (1, 2, 1.0)])
def test_wilson_refuses_the_impossible(arguments):
    with pytest.raises(UserError):
        wilson_interval(*arguments)


def test_success_rate_reads_like_a_table():
    rate = success_rate([True] * 107 + [False] * 149)
    assert str(rate) == "41.8 % [35.9, 47.9] (n=256)"
    assert (rate.successes, rate.n, rate.rate) == (107, 256, 107 / 256)
    for wrong in ([], [0.5, 1], [[True]], [np.nan]):
        with pytest.raises(UserError, match="outcomes"):
            success_rate(wrong)


def test_paired_comparison_golden_values():
    result = paired_comparison([1, 0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert (result.won, result.lost, result.n) == (6, 1, 10) and result.gain == pytest.approx(0.5)
    assert result.p_value == pytest.approx(
        2 * (1 + 7) / 2**7
    )  # both tails of a fair coin thrown 7 times
    assert str(result).startswith("+50.0 points [") and "6 won, 1 lost, p = 0.125 (n=10)" in str(
        result
    )


def test_paired_bootstrap_equals_resampling_the_pairs():
    rng = np.random.default_rng(3)
    a, b = rng.random(128) < 0.4, rng.random(128) < 0.55
    result = paired_comparison(a, b)
    rows = rng.integers(0, 128, (20_000, 128))
    gains = b[rows].mean(axis=1) - a[rows].mean(axis=1)
    assert (result.low, result.high) == pytest.approx(np.percentile(gains, (2.5, 97.5)), abs=0.01)


def test_paired_comparison_properties():
    rng = np.random.default_rng(0)
    for seed in range(20):
        a, b = rng.random(60) < 0.5, rng.random(60) < 0.6
        forth, back = paired_comparison(a, b, seed=seed), paired_comparison(b, a, seed=seed)
        assert forth == paired_comparison(a, b, seed=seed)
        assert forth.low <= forth.gain <= forth.high
        assert forth.gain == pytest.approx(b.mean() - a.mean())
        assert (forth.gain, forth.won, forth.lost) == (-back.gain, back.lost, back.won)
        assert forth.p_value == pytest.approx(back.p_value)


def test_paired_comparison_corners():
    same = paired_comparison([1, 0, 1], [1, 0, 1])
    assert (same.gain, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    for a, b in (([], []), ([1, 0], [1])):
        with pytest.raises(UserError):
            paired_comparison(a, b)
    with pytest.raises(UserError, match="resamples"):
        paired_comparison([1], [0], resamples=0)


def test_intervals_cover_what_they_promise():
    """Nominal 95 %: of 300 experiments with a true gain of 0.2, nearly all intervals hold it."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        u = rng.random((2, 128))
        result = paired_comparison(u[0] < 0.4, u[1] < 0.6, seed=seed, resamples=1000)
        covered += result.low <= 0.2 <= result.high
    assert 0.91 <= covered / 300 <= 0.99


def test_length_ratio_golden_values():
    episodes = [
        SimpleNamespace(success=True, finish_step=50),
        SimpleNamespace(success=False, finish_step=300),
        SimpleNamespace(success=True, finish_step=150),
    ]
    assert successful_lengths(episodes).tolist() == [50, 150]
    assert trajectory_length_ratio(successful_lengths(episodes), [90, 100]) == pytest.approx(95.0)
    for base, other, name in (
        ([], [1], "base_lengths"),
        ([1], [], "other_lengths"),
        ([0], [1], "base_lengths"),
        ([1], [np.nan], "other_lengths"),
    ):
        with pytest.raises(UserError, match=name):
            trajectory_length_ratio(base, other)


def test_agreement_golden_values():
    real = [True, True, True, False, False]
    result = agreement(real, [0.9, 0.5, 0.2, 0.5, 0.1], 0.5)
    # pairs (success, failure): 0.9 wins both, 0.5 ties one and wins one, 0.2 loses one and wins
    # one: 4.5 of 6
    assert result.auc == pytest.approx(4.5 / 6)
    assert result.success_agreement == pytest.approx(
        2 / 3
    ) and result.failure_agreement == pytest.approx(1 / 2)
    assert result.balanced == pytest.approx(7 / 12)
    assert result.confusion == ((1, 1), (1, 2)) and result.n == 5


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        real = np.r_[True, False, rng.random(28) < 0.4]
        scores = rng.integers(0, 6, 30) / 5
        pairs = scores[real][:, None] - scores[~real][None]
        result = agreement(real, scores, 0.5)
        assert result.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        assert agreement(real, -scores, 0.5).auc == pytest.approx(1 - result.auc)
        assert sum(map(sum, result.confusion)) == 30


def test_agreement_refuses_what_it_cannot_judge():
    for real, missing in (([True, True], "no negatives"), ([False, False], "no positives")):
        with pytest.raises(UserError, match=missing):
            agreement(real, [0.1, 0.2], 0.5)
    for scores in ([0.1], [0.1, np.nan], [[0.1, 0.2]]):
        with pytest.raises(UserError, match="imagined_score"):
            agreement([True, False], scores, 0.5)


def test_f1_golden_values():
    assert f1_score([1, 1, 0, 0], [1, 0, 1, 0]) == 0.5
    assert f1_score([1, 1, 1], [1, 1, 0]) == pytest.approx(0.8)
    assert f1_score([0, 0], [1, 0]) == 0.0  # a real zero: a positive exists and was missed
    with pytest.raises(UserError, match="no positives"):
        f1_score([1, 0], [0, 0])
    with pytest.raises(UserError, match="one prediction"):
        f1_score([1, 0], [1])


def test_best_threshold_golden_values():
    assert best_threshold([0.1, 0.2, 0.8, 1.0], [0, 0, 1, 1]) == (pytest.approx(0.5), 1.0)
    # a cut at 0.15 keeps 3 of which 2 are right: 4/5; at 0.35 2 and 1: 2/4; at 0.55 1 and 1: 2/3
    assert best_threshold([0.1, 0.2, 0.5, 0.6], [0, 1, 0, 1]) == (
        pytest.approx(0.15),
        pytest.approx(4 / 5),
    )


def test_best_threshold_prefers_the_widest_gap_then_the_middle():
    # F1 = 2 TP / (predicted + 2): above the lowest 2 * 2/6, above the fourth 2 * 1/3, less in
    # between: a tie.
    labels = [0, 1, 0, 0, 1]
    assert best_threshold([0, 1, 2, 3, 9], labels) == (pytest.approx(6.0), pytest.approx(2 / 3))
    assert best_threshold([0, 5, 6, 7, 8], labels) == (pytest.approx(2.5), pytest.approx(2 / 3))
    # Three cuts tie at 2 * 1/4 = 2 * 2/8 = 2 * 3/12 with equal gaps: the middle one.
    assert best_threshold(range(10), [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]) == (
        pytest.approx(4.5),
        pytest.approx(0.5),
    )


def test_best_threshold_is_the_best_by_brute_force():
    rng = np.random.default_rng(0)
    for dtype, _ in product((np.float64, np.float32), range(100)):
        labels = np.r_[True, False, rng.random(18) < 0.5]
        scores = (rng.integers(0, 9, 20) / 7).astype(dtype)
        scores[:2] = 0, 1
        threshold, f1 = best_threshold(scores, labels)
        assert f1 == f1_score(scores >= threshold, labels)
        levels = np.unique(scores)
        cuts = [(int((labels & (scores >= t)).sum()), int((scores >= t).sum())) for t in levels[1:]]
        assert f1 == float(
            max(Fraction(2 * hits, predicted + int(labels.sum())) for hits, predicted in cuts)
        )
        assert levels[0] < threshold <= levels[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", [0.1, 0.3, 0.7, 1.0])
def test_threshold_separates_adjacent_floats(dtype, low):
    scores = np.array([low, np.nextafter(dtype(low), dtype(2))], dtype=dtype)
    threshold, f1 = best_threshold(scores, [False, True])
    assert f1 == 1.0 and (scores >= threshold).tolist() == [False, True]


def test_best_threshold_refuses_what_it_cannot_fit():
    for labels, missing in (([1, 1], "no negatives"), ([0, 0], "no positives")):
        with pytest.raises(UserError, match=missing):
            best_threshold([0.1, 0.2], labels)
    with pytest.raises(UserError, match="equal"):
        best_threshold([0.5, 0.5], [0, 1])
    with pytest.raises(UserError, match="scores"):
        best_threshold([0.5, np.inf], [0, 1])


def test_psnr_golden_values():
    a = np.zeros((2, 3, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0] = 255  # the largest possible error: 0 dB
    b[0, 1] = 1  # mean squared error 1: 20 log10(255) = 48.13 dB
    b[1, 2, 0, 0, 0] = 48  # 48^2 / 48 values = 48
    result = psnr(a, b)
    assert result.shape == (2, 3)
    assert result[0, :2] == pytest.approx([0, 48.1308], abs=1e-4)
    assert result[1, 2] == pytest.approx(10 * np.log10(65025 / 48))
    assert np.isinf(result[0, 2]) and np.array_equal(result, psnr(b, a))


def test_psnr_of_noise_falls_as_noise_grows():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 190, (5, 16, 16, 3), dtype=np.uint8)
    values = [
        psnr(
            image, (image + rng.normal(0, sigma, image.shape)).clip(0, 255).round().astype(np.uint8)
        )
        for sigma in (2, 8, 20)
    ]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()
    assert values[1] == pytest.approx(20 * np.log10(255 / 8), abs=0.6)


@pytest.mark.parametrize(
    "a, b",
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
        (np.zeros((4, 4, 3)), np.zeros((4, 4, 3))),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)),
    ],
)
def test_psnr_refuses_other_inputs(a, b):
    with pytest.raises(UserError, match="psnr"):
        psnr(a, b)


# -- the AUC's interval ----------------------------------------------------------------------------


def exact_draws(real, scores):
    """The AUC of every resample of successes and of failures, by the definition, pair by pair; all
    are equally likely.
    """
    good, bad = np.array(scores)[np.array(real)], np.array(scores)[~np.array(real)]
    found = []
    for g in product(good, repeat=len(good)):
        for b in product(bad, repeat=len(bad)):
            wins = sum((x > y) + 0.5 * (x == y) for x in g for y in b)
            found.append(wins / (len(good) * len(bad)))
    return np.array(found)


@pytest.mark.parametrize(
    "scores",
    [[0.9, 0.5, 0.2, 0.5, 0.1, 0.7], [3, 2, 1, 2, 0, 1], [0.8, 0.9, 0.3, 0.4, 0.5, 0.2]],
    ids=str,
)
def test_auc_interval_is_that_of_all_resamples_counted_out(scores):
    """3 successes and 3 failures have 27 x 27 resamples: enough random ones
    give their quantiles.
    """
    real = [True, True, True, False, False, False]
    exact = exact_draws(real, scores)
    assert len(exact) == 729
    low, high = np.percentile(exact, (2.5, 97.5))
    assert auc_interval(real, scores, resamples=20_000) == pytest.approx((low, high))
    assert low < agreement(real, scores, 0.5).auc < high


def test_auc_interval_golden_values():
    assert auc_interval([1, 1, 1, 0, 0], [5, 4, 3, 2, 1]) == (
        1.0,
        1.0,
    )  # every resample is perfect, too
    assert auc_interval([1, 1, 0, 0], [1, 1, 1, 1]) == (0.5, 0.5)
    # One success above half of the failures: the draw's AUC is the drawn share of the lower one, 0,
    # 1/2 or 1 with 1/4, 1/2, 1/4.
    assert auc_interval([1, 0, 0], [0.5, 0.2, 0.8]) == (0.0, 1.0)


def test_auc_interval_properties():
    rng = np.random.default_rng(0)
    for n in (40, 640):
        real = rng.random(n) < 0.4
        scores = rng.normal(size=n) + real
        low, high = auc_interval(real, scores)
        auc = agreement(real, scores, 0.5).auc
        assert 0 < low < auc < high < 1
        assert auc_interval(real, scores) == (low, high) != auc_interval(real, scores, seed=1)
        assert auc_interval(real, np.exp(scores)) == (low, high)  # only the order counts
        mirrored = auc_interval(real, -scores)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=0.02)
        width = high - low
        assert 0.15 < width < 0.35 if n == 40 else 0.05 < width < 0.1


def test_auc_interval_covers_what_it_promises():
    """Two normal distributions a standard deviation apart have an AUC of Phi(1 / sqrt
    2) = 0.7602.
    """
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        real = np.arange(60) < 30
        low, high = auc_interval(real, rng.normal(size=60) + real, seed=seed, resamples=300)
        covered += low <= 0.7602 <= high
    assert 0.88 <= covered / 200 <= 0.98


def test_auc_interval_refuses_what_it_cannot_judge():
    for real, missing in (([True, True], "no negatives"), ([False, False], "no positives")):
        with pytest.raises(UserError, match=missing):
            auc_interval(real, [0.1, 0.2])
    with pytest.raises(UserError, match="scores"):
        auc_interval([True, False], [0.1, np.nan])


# -- how long things stay where they are -----------------------------------------------------------

RED, GREEN, BLUE, ARM, GRAY = (
    (217, 26, 26),
    (26, 158, 38),
    (31, 56, 217),
    (242, 140, 31),
    (158, 153, 148),
)


def film(*things, steps=12, size=48):
    """uint8 (1, T, H, W, 3): squares of 5 pixels, each (color, row, column), with numbers or one of
    them for each frame.
    """
    frames = np.full((1, steps, size, size, 3), GRAY, np.uint8)
    for color, row, column in things:
        for t, (r, c) in enumerate(
            zip(np.broadcast_to(row, steps), np.broadcast_to(column, steps))
        ):
            frames[0, t, r : r + 5, c : c + 5] = color
    return frames


MOVING = 4 + 2 * np.arange(12)


def test_a_perfect_imagination_is_valid_to_its_end():
    truth = film((RED, MOVING, 10), (BLUE, 30, MOVING))
    assert valid_frames(truth, truth).tolist() == [11]


@pytest.mark.parametrize("color", [RED, GREEN, BLUE])
def test_a_thing_that_stays_behind_is_off_by_its_width_after_some_frames(color):
    """The true one moves two pixels a frame: frame 4 is the first with more than 7 pixels between
    them.
    """
    truth, stuck = film((color, MOVING, 10)), film((color, 4, 10))
    assert valid_frames(stuck, truth).tolist() == [3]
    assert valid_frames(stuck, truth, width=2.0).tolist() == [1] and valid_frames(
        stuck, truth, width=8.0
    ).tolist() == [4]
    slanted = film((color, MOVING, MOVING))  # 2.83 pixels a frame: frame 3
    assert valid_frames(film((color, 4, 4)), slanted).tolist() == [2]


def test_a_thing_that_is_gone_ends_it_and_one_that_pales_does_not():
    truth = film((RED, 10, 10), (GREEN, 30, 30))
    gone = truth.copy()
    gone[0, 6:, 30:35, 30:35] = GRAY
    assert valid_frames(gone, truth).tolist() == [5]
    gone[0, 6:, 32, 31:34] = GREEN  # 3 of 25 pixels, at its very place
    assert valid_frames(gone, truth).tolist() == [5]
    shrunk = truth.copy()
    shrunk[0, 6:, 30:32, 30:35] = GRAY  # 15 of 25 pixels are left, a pixel further down
    assert valid_frames(shrunk, truth).tolist() == [11]


def test_the_first_thing_that_goes_wrong_counts():
    truth = film((RED, MOVING, 10), (BLUE, 30, MOVING))
    wrong = film(
        (RED, MOVING, 10), (BLUE, 30, np.minimum(MOVING, 10))
    )  # stops at frame 3, is 8 pixels behind at frame 7
    assert valid_frames(wrong, truth).tolist() == [6]
    both = np.concatenate([truth, wrong, film((RED, 4, 10), (BLUE, 30, MOVING))])
    assert valid_frames(both, np.concatenate([truth] * 3)).tolist() == [11, 6, 3]


def test_what_is_hidden_or_no_thing_of_the_task_is_not_asked_about():
    """The orange arm and the gray table are no things; one that the true picture hides may be
    imagined anywhere.
    """
    truth, other = film((ARM, MOVING, 10), (RED, 30, 30)), film((ARM, 4, 40), (RED, 30, 30))
    assert valid_frames(other, truth).tolist() == [11]
    hidden = truth.copy()
    hidden[0, 3:, 30:35, 31:35] = ARM  # 5 of 25 pixels are left to see
    assert valid_frames(film((ARM, MOVING, 10), (RED, 10, 10)), hidden).tolist() == [
        0
    ]  # wrong from the start
    moved = film((ARM, MOVING, 10), (RED, np.where(np.arange(12) < 3, 30, 5), 30))
    assert valid_frames(moved, hidden).tolist() == [11] and valid_frames(moved, truth).tolist() == [
        2
    ]
    assert valid_frames(moved, hidden, visible=5).tolist() == [2]


def test_a_mean_over_one_seed_is_as_wide_as_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.3, rng.random(400) < 0.45
    paired, found = paired_comparison(a, b), mean_over_seeds((b.astype(int) - a)[None])
    assert found.mean == pytest.approx(paired.gain) and (found.seeds, found.n) == (1, 400)
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high), abs=0.01)


def test_seeds_that_disagree_widen_the_interval_and_seeds_that_agree_do_not():
    states = np.arange(200) % 2
    same = mean_over_seeds(np.stack([states] * 3))
    apart = mean_over_seeds(np.stack([np.zeros(200), states, np.ones(200)]))
    assert same.mean == apart.mean == 0.5
    assert same.high - same.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(200), rel=0.1)
    assert apart.low < 0.2 and apart.high > 0.8


def test_the_interval_of_a_mean_over_seeds_covers_what_it_should():
    """States and seeds both vary: of 200 experiments with ten seeds about 95 % cover the truth."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        rates = np.clip(0.4 + rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.2, (1, 60)), 0, 1)
        found = mean_over_seeds((rng.random((10, 60)) < rates).astype(int), resamples=300)
        hits += found.low <= 0.4 <= found.high
    assert 175 <= hits <= 199


@pytest.mark.parametrize("values", [[0, 1], [[]], [[np.nan, 1]]])
def test_a_mean_over_seeds_refuses_what_has_no_seeds_or_states(values):
    with pytest.raises(UserError, match="takes finite values"):
        mean_over_seeds(values)
