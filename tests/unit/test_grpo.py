"""GRPO: every option against arithmetic done by hand, then properties on random inputs, then a real
update.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wmpo_lite.batch import minibatches
from wmpo_lite.common.errors import UserError
from wmpo_lite.grpo import (
    GroupStats,
    GRPOConfig,
    batch_from_trajectories,
    batch_log_probs,
    filter_groups,
    group_advantages,
    group_rewards,
    group_stats,
    keep_groups,
    policy_loss,
    require_signal,
    update,
    valid_token_mask,
)
from wmpo_lite.trajectory import Trajectory

K, D, BINS = 2, 3, 5


class TinyPolicy(nn.Module):
    """Categorical logits, linear in the mean color of the frame; it remembers how many frames it
    was shown.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3, K * D * BINS)
        self.seen: list[tuple[torch.Tensor, list[str]]] = []

    def distribution(self, frames, temperature):
        color = frames.float().mean((1, 2)) / 255  # (M, 3)
        return torch.distributions.Categorical(
            logits=self.head(color).view(-1, K, D, BINS) / temperature
        )

    def log_probs(self, frames, instructions, tokens, temperature):
        assert frames.dtype == torch.uint8 and len(frames) == len(instructions) == len(tokens)
        self.seen.append((frames, instructions))
        distribution = self.distribution(frames, temperature)
        return distribution.log_prob(tokens), distribution.entropy()


def make_trajectory(
    success=True, finish_step=None, group=0, seed=0, T=6, policy=None, temperature=1.0, **kwargs
):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (T + 1, 4, 4, 3), dtype=np.uint8)
    tokens = rng.integers(0, BINS, (T, D))
    log_probs = np.full((T, D), -math.log(BINS), np.float32)
    if policy is not None:
        with torch.no_grad():
            chunks = policy.distribution(torch.from_numpy(frames[:T:K]), temperature)
            log_probs = (
                chunks.log_prob(torch.from_numpy(tokens).view(-1, K, D)).reshape(T, D).numpy()
            )
    fields = {
        "instruction": f"task {group}",
        "initial_state": np.zeros(2),
        "split": "rollouts",
        "index": group,
    }
    return Trajectory(
        **(
            dict(
                frames=frames,
                actions=np.zeros((T, D), np.float32),
                tokens=tokens,
                log_probs=log_probs,
                success=success,
                finish_step=finish_step or T,
                group=group,
                chunk=K,
            )
            | fields
            | kwargs
        )
    )


def make_group_batch(policy, rewards=((1, 0, 0, 1), (0, 1, 0, 0)), **kwargs):
    return batch_from_trajectories(
        [
            make_trajectory(bool(r), 3 if r else None, g, seed=10 * g + i, policy=policy, **kwargs)
            for g, row in enumerate(rewards)
            for i, r in enumerate(row)
        ]
    )


def tokens_shaped(values) -> torch.Tensor:
    """(N, n) -> (N, n, 1, 1): n chunks of one token each."""
    return torch.tensor(values, dtype=torch.float64)[..., None, None]


# ---- configuration


def test_defaults_are_the_documented_ones():
    c = GRPOConfig()
    assert (c.group_size, c.groups, c.clip_low, c.clip_high) == (8, 16, 0.20, 0.28)
    assert (c.std, c.ratio, c.dynamic_sampling) == ("population", "token", "drop")
    assert (c.lr, c.epochs, c.minibatch, c.grad_clip, c.temperature) == (3e-4, 2, 128, 1.0, 1.0)


@pytest.mark.parametrize(
    "field, value",
    [
        ("group_size", 1),
        ("groups", 0),
        ("clip_low", 0.0),
        ("clip_low", 1.0),
        ("clip_high", -0.1),
        ("std", "biased"),
        ("ratio", "sequence"),
        ("dynamic_sampling", "keep"),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("epochs", 0),
        ("minibatch", 0),
        ("micro_batch", 0),
        ("grad_clip", 0.0),
        ("temperature", 0.0),
        ("temperature", math.inf),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=field):
        GRPOConfig(**{field: value})


# ---- advantages and dynamic sampling


def test_population_advantages():
    # mean 1/4; variance (0.75^2 + 3 * 0.25^2) / 4 = 0.1875; std 0.4330127
    # 0.75 / std = 1.7320508, -0.25 / std = -0.5773503
    got = group_advantages(torch.tensor([[1.0, 0, 0, 0]]))
    assert torch.allclose(got, torch.tensor([[1.7320508, -0.5773503, -0.5773503, -0.5773503]]))


def test_unbiased_advantages():
    # variance (0.75^2 + 3 * 0.25^2) / 3 = 0.25; std 0.5 + 1e-6
    # 0.75 / 0.500001 = 1.499997, -0.25 / 0.500001 = -0.499999
    got = group_advantages(torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), "unbiased")
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25]], dtype=torch.float64) / 0.500001
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert abs(float(got[0, 0]) - 1.5) > 2e-6  # the 1e-6 is really there


@pytest.mark.parametrize("std", ["population", "unbiased"])
@pytest.mark.parametrize(
    "value", [0.0, 1.0, 0.1]
)  # 0.1 does not average to 0.1 exactly in floating point
def test_equal_rewards_have_no_advantage(std, value):
    assert torch.equal(group_advantages(torch.full((3, 7), value), std), torch.zeros(3, 7))


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool, torch.uint8])
def test_rewards_may_be_whole_numbers(dtype):
    table = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    for std in ("population", "unbiased"):
        assert torch.equal(
            group_advantages(table.to(dtype), std), group_advantages(table.float(), std)
        )
    for rule in ("drop", "range"):
        assert keep_groups(table.to(dtype), rule).tolist() == [True, False]
    assert group_stats(table.to(dtype)) == GroupStats(1, 1, 0, 0)
    policy = TinyPolicy()
    whole, twin = make_group_batch(policy), TinyPolicy()
    numbers = replace(whole, rewards=whole.rewards.to(dtype))
    for learner, batch in ((policy, whole), (twin, numbers)):
        update(
            learner,
            torch.optim.SGD(learner.parameters(), lr=0.5),
            batch,
            GRPOConfig(group_size=4),
            torch.Generator().manual_seed(0),
        )
    assert torch.equal(policy.head.weight, twin.head.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_refused(bad):
    """And not blamed on the learning rate."""
    table = torch.tensor([[1.0, 0, bad, 0]])
    policy = TinyPolicy()
    batch = make_group_batch(policy)
    batch.rewards[2] = bad
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    for attempt in (
        lambda: group_advantages(table),
        lambda: keep_groups(table),
        lambda: group_stats(table),
        lambda: update(policy, optimizer, batch, GRPOConfig(group_size=4)),
    ):
        with pytest.raises(UserError, match="rewards hold NaN or infinity"):
            attempt()
    with pytest.raises(UserError, match="rewards have shape .4,.; expected"):
        group_advantages(torch.zeros(4))
    with pytest.raises(UserError, match="one of each for each trajectory"):
        group_rewards(torch.zeros(4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("std", ["population", "unbiased"])
def test_advantages_sum_to_zero_and_follow_permutations(std):
    g = torch.Generator().manual_seed(1)
    rewards = torch.rand(20, 8, generator=g, dtype=torch.float64).round()
    got = group_advantages(rewards, std)
    assert torch.allclose(got.sum(1), torch.zeros(20, dtype=torch.float64), atol=1e-12)
    order, rows = torch.randperm(8, generator=g), torch.randperm(20, generator=g)
    assert torch.allclose(group_advantages(rewards[:, order], std), got[:, order])
    assert torch.allclose(group_advantages(rewards[rows], std), got[rows])
    kept = keep_groups(rewards)
    unit = torch.ones(int(kept.sum()), dtype=torch.float64)
    assert torch.allclose(
        got[kept].std(1, correction=0 if std == "population" else 1), unit, atol=1e-5
    )


def rewards_with(successes: int, size: int) -> torch.Tensor:
    return (torch.arange(size) < successes).float()[None]


@pytest.mark.parametrize(
    "rule, size, kept",
    [
        ("drop", 8, range(1, 8)),  # everything but none and all
        ("range", 8, range(1, 8)),  # 1/8 = 0.125 and 7/8 = 0.875 are inside [0.1, 0.9]
        ("drop", 16, range(1, 16)),
        ("range", 16, range(2, 15)),  # 1/16 = 0.0625 and 15/16 = 0.9375 are outside
        ("range", 10, range(1, 10)),  # 1/10 and 9/10 are the limits themselves: kept
    ],
)
def test_keep_groups(rule, size, kept):
    table = torch.cat([rewards_with(n, size) for n in range(size + 1)])
    assert keep_groups(table, rule).tolist() == [n in kept for n in range(size + 1)]


def test_group_stats_and_messages():
    table = torch.cat([rewards_with(n, 16) for n in (0, 0, 0, 16, 16, 1, 8)])
    assert group_stats(table, "drop") == GroupStats(2, 2, 3, 0)
    assert group_stats(table, "range") == GroupStats(1, 2, 3, 1)
    assert group_stats(table).message() == "2 of 7 groups kept (2 all successes, 3 all failures)"
    message = group_stats(table, "range").message()
    assert message == "1 of 7 groups kept (2 all successes, 3 all failures, 1 outside the range)"
    require_signal(group_stats(table))
    with pytest.raises(UserError, match="0 of 5 groups kept .2 all successes, 3 all failures"):
        require_signal(group_stats(table[:5]))


def test_group_rewards_sorts_interleaved_groups():
    table, positions = group_rewards(torch.tensor([1.0, 2, 3, 4]), torch.tensor([7, 3, 7, 3]))
    assert table.tolist() == [[2, 4], [1, 3]] and positions.tolist() == [[1, 3], [0, 2]]
    with pytest.raises(UserError, match="different sizes .1 to 3"):
        group_rewards(torch.zeros(4), torch.tensor([0, 0, 0, 1]))
    with pytest.raises(UserError, match="group"):
        group_rewards(torch.zeros(2), torch.tensor([-1, -1]))


def test_filter_groups_keeps_whole_groups():
    rows = {0: (0, 0), 1: (1, 0), 2: (1, 1)}
    trajectories = [
        make_trajectory(bool(rows[g][i]), group=g, seed=g) for i in range(2) for g in rows
    ]
    kept, stats = filter_groups(trajectories)
    assert [(t.group, t.success) for t in kept] == [(1, True), (1, False)] and stats == GroupStats(
        1, 1, 1, 0
    )


# ---- masks


def test_mask_ends_with_the_finish_step():
    # finish_step 3 of 2 chunks x 2 steps: actions 0, 1, 2 lead to frames 1, 2, 3; action 3 comes
    # after the success
    got = valid_token_mask(torch.tensor([3, 4, 0, 1]), 2, 2, 3)
    steps = [[[1, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    assert got.dtype == torch.bool and torch.equal(
        got, torch.tensor(steps).bool()[..., None].expand(4, 2, 2, 3)
    )
    assert valid_token_mask(torch.tensor([5]), 4, 3, 7).sum() == 5 * 7


@pytest.mark.parametrize("finish_step", [-1, 5])
def test_impossible_finish_step(finish_step):
    with pytest.raises(UserError, match="between 0 and 4"):
        valid_token_mask(torch.tensor([finish_step]), 2, 2, 1)


# ---- loss


def test_loss_of_an_unchanged_policy():
    # all ratios are 1, so each trajectory contributes its advantage: -(2 - 1) / 2 = -0.5, however
    # many tokens are valid
    old, mask = (
        tokens_shaped([[-1.0, -2], [-3, -4]]),
        torch.tensor([[1, 1], [1, 0]]).bool()[..., None, None],
    )
    loss, logs = policy_loss(old, old, torch.tensor([2.0, -1]), mask)
    assert float(loss) == -0.5
    assert logs == {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_max": 1.0, "ratio_min": 1.0}


@pytest.mark.parametrize(
    "ratio, advantage, expected, clips",
    [
        (1.5, 1.0, -1.28, 1.0),  # raised too far: clipped at 1 + 0.28
        (1.25, 1.0, -1.25, 0.0),  # inside the upper limit, though outside 1 + 0.20
        (0.5, 1.0, -0.5, 0.0),  # a good token that fell is not clipped: min(0.5, 0.8)
        (0.5, -1.0, 0.8, 1.0),  # lowered too far: clipped at 1 - 0.20, -min(-0.5, -0.8)
        (0.75, -1.0, 0.8, 1.0),  # outside 1 - 0.20, though inside 1 - 0.28
        (1.5, -1.0, 1.5, 0.0),  # a bad token that rose is not clipped
    ],
)
@pytest.mark.parametrize("kind", ["token", "chunk"])
def test_clip_sides(ratio, advantage, expected, clips, kind):
    new = tokens_shaped([[math.log(ratio)]]).requires_grad_()
    mask = torch.ones(1, 1, 1, 1).bool()
    loss, logs = policy_loss(
        new, torch.zeros_like(new), torch.tensor([advantage]), mask, ratio=kind
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected) and logs["clip_fraction"] == clips
    # d/d log-prob of -(ratio * advantage) is itself; a clipped token has no gradient
    assert float(new.grad) == pytest.approx(0.0 if clips else -ratio * advantage)


def test_clip_limits_are_options():
    new, mask = tokens_shaped([[math.log(1.5)], [math.log(0.5)]]), torch.ones(2, 1, 1, 1).bool()
    loss, _ = policy_loss(
        new, torch.zeros_like(new), torch.tensor([1.0, -1]), mask, clip_low=0.4, clip_high=0.1
    )
    assert float(loss) == pytest.approx(-(1.1 - 0.6) / 2)  # 1 + 0.1 and 1 - 0.4


def golden_case():
    # one trajectory, two chunks of K = 2, D = 1; ratios 1.1, 1.2 | 0.9, (masked)
    new = torch.tensor([1.1, 1.2, 0.9, 50.0], dtype=torch.float64).log().view(1, 2, 2, 1)
    mask = torch.tensor([1, 1, 1, 0]).bool().view(1, 2, 2, 1)
    return new, torch.zeros_like(new), torch.tensor([2.0], dtype=torch.float64), mask


def test_token_ratio():
    # -(2 * 1.1 + 2 * 1.2 + 2 * 0.9) / 3 = -2.1333333
    loss, logs = policy_loss(*golden_case())
    assert float(loss) == pytest.approx(-6.4 / 3) and logs["clip_fraction"] == 0
    assert logs["ratio_max"] == pytest.approx(1.2) and logs["ratio_min"] == pytest.approx(0.9)
    # k3 with d = log r is r - 1 - log r: (0.1 - 0.0953102 + 0.2 - 0.1823216 - 0.1 + 0.1053605) / 3
    # = 0.0092429
    assert logs["approx_kl"] == pytest.approx(0.0092429, abs=1e-6)


def test_chunk_ratio():
    # chunk ratios 1.1 * 1.2 = 1.32 (clipped to 1.28) and 0.9 (its valid token alone): -(2 * 1.28 +
    # 2 * 0.9) / 2 = -2.18
    loss, logs = policy_loss(*golden_case(), ratio="chunk")
    assert float(loss) == pytest.approx(-2.18) and logs["clip_fraction"] == 0.5
    assert logs["ratio_max"] == pytest.approx(1.32) and logs["approx_kl"] == pytest.approx(
        0.0092429, abs=1e-6
    )


def test_mean_is_inside_the_trajectory_first():
    # A: 2 tokens of ratio 1.1, advantage 1 -> 1.1; B: 1 token of ratio 0.9, advantage 1 -> 0.9;
    # -(1.1 + 0.9) / 2 = -1.0 (a mean over all tokens would give -(1.1 + 1.1 + 0.9) / 3 = -1.0333)
    new = tokens_shaped([[1.1, 1.1], [0.9, 7.0]]).log()
    mask = torch.tensor([[1, 1], [1, 0]]).bool()[..., None, None]
    assert float(policy_loss(new, torch.zeros_like(new), torch.ones(2), mask)[0]) == pytest.approx(
        -1.0
    )


def test_unknown_ratio():
    with pytest.raises(UserError, match="ratio"):
        policy_loss(*golden_case(), ratio="sequence")


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_masked_tokens_have_no_say(ratio):
    new, old, advantages, mask = golden_case()
    first = policy_loss(new, old, advantages, mask, ratio=ratio)
    for junk in (float("nan"), float("inf"), -1e9):
        wild = new.masked_fill(~mask, junk).requires_grad_()
        loss, logs = policy_loss(
            wild, old.masked_fill(~mask, float("nan")), advantages, mask, ratio=ratio
        )
        loss.backward()
        assert torch.equal(loss, first[0]) and logs == first[1]
        assert (
            torch.equal(wild.grad[~mask], torch.zeros(1, dtype=torch.float64))
            and torch.isfinite(wild.grad).all()
        )


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_trajectory_without_valid_tokens_adds_zero(ratio):
    new = tokens_shaped([[0.0, 0.0], [0.0, 0.0]]).requires_grad_()
    mask = torch.tensor([[1, 1], [0, 0]]).bool()[..., None, None]
    loss, _ = policy_loss(new, torch.zeros_like(new), torch.tensor([1.0, 5.0]), mask, ratio=ratio)
    assert loss.item() == -0.5  # -(1 + 0) / 2
    nothing, logs = policy_loss(
        new, torch.zeros_like(new), torch.ones(2), torch.zeros_like(mask), ratio=ratio
    )
    assert nothing.item() == 0.0 and all(math.isfinite(v) for v in logs.values())


def test_huge_ratio_with_no_advantage_is_not_nan():
    new = tokens_shaped([[800.0]])
    assert (
        float(
            policy_loss(new, torch.zeros_like(new), torch.zeros(1), torch.ones(1, 1, 1, 1).bool())[
                0
            ]
        )
        == 0.0
    )


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_gradient_raises_success_and_lowers_failure(ratio):
    g = torch.Generator().manual_seed(3)
    old = -torch.rand(6, 4, K, D, generator=g)
    new = old.clone().requires_grad_()
    mask = valid_token_mask(torch.randint(1, 8, (6,), generator=g), 4, K, D)
    advantages = torch.tensor([1.0, -1, 2, -2, 0, 0.5])
    policy_loss(new, old, advantages, mask, ratio=ratio)[0].backward()
    sign = (
        -torch.sign(advantages).view(6, 1, 1, 1).expand_as(old) * mask
    )  # descent moves against the gradient
    assert torch.equal(torch.sign(new.grad), sign)


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_loss_does_not_depend_on_the_order(ratio):
    g = torch.Generator().manual_seed(4)
    old, new = -torch.rand(5, 3, K, D, generator=g), -torch.rand(5, 3, K, D, generator=g)
    mask, advantages = (
        valid_token_mask(torch.tensor([1, 2, 3, 5, 6]), 3, K, D),
        torch.randn(5, generator=g),
    )
    p = torch.randperm(5, generator=g)
    one, two = (
        policy_loss(new[i], old[i], advantages[i], mask[i], ratio=ratio)
        for i in (torch.arange(5), p)
    )
    assert torch.allclose(one[0], two[0]) and one[1] == pytest.approx(two[1])


# ---- batches


def test_batch_layout():
    short, long = (
        make_trajectory(T=3, seed=1, group=4),
        make_trajectory(False, T=6, seed=2, group=5),
    )
    batch = batch_from_trajectories([short, long])
    assert batch.frames.shape == (
        2,
        3,
        4,
        4,
        3,
    ) and batch.tokens.shape == batch.log_probs.shape == (2, 3, K, D)
    for c in range(3):  # the frame that chunk c was chosen on is frame c * K
        assert np.array_equal(batch.frames[1, c].numpy(), long.frames[c * K])
        assert np.array_equal(batch.tokens[1, c].numpy(), long.tokens[c * K : (c + 1) * K])
    assert np.array_equal(batch.frames[0, :2].numpy(), short.frames[[0, 2]])
    assert (
        batch.rewards.tolist() == [1, 0]
        and batch.groups.tolist() == [4, 5]
        and batch.finish_step.tolist() == [3, 6]
    )
    assert batch.mask.sum((1, 2, 3)).tolist() == [3 * D, 6 * D]
    assert torch.isfinite(batch.log_probs[batch.mask]).all() and batch.instructions == [
        "task 4",
        "task 5",
    ]


def test_batch_refuses_what_it_cannot_stack():
    with pytest.raises(UserError, match="no trajectories"):
        batch_from_trajectories([])
    with pytest.raises(UserError, match="no action tokens"):
        batch_from_trajectories([make_trajectory(tokens=None)])
    with pytest.raises(UserError, match="differ"):
        batch_from_trajectories([make_trajectory(), make_trajectory(chunk=3)])


def test_log_probs_land_in_their_place_and_late_chunks_are_skipped():
    policy = TinyPolicy()
    batch = make_group_batch(policy, temperature=1.6)
    index = torch.tensor(
        [5, 0, 1]
    )  # a success, a success (finish 3: two live chunks each) and a failure (three)
    log_probs, entropy = batch_log_probs(policy, batch, index, 1.6, torch.device("cpu"))
    assert torch.allclose(log_probs[batch.mask[index]], batch.log_probs[index][batch.mask[index]])
    frames, instructions = policy.seen[0]
    assert len(frames) == 2 + 2 + 3 and instructions == ["task 1"] * 2 + ["task 0"] * 5
    assert torch.equal(log_probs[0, 2], torch.zeros(K, D)) and torch.equal(
        entropy[0, 2], torch.zeros(K, D)
    )


# ---- update


def success_log_prob(policy, batch, sign):
    with torch.no_grad():
        log_probs, _ = batch_log_probs(
            policy, batch, torch.arange(len(batch.rewards)), 1.0, torch.device("cpu")
        )
    return float(log_probs[batch.mask & (batch.rewards == sign).view(-1, 1, 1, 1)].mean())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": "chunk"},
        {"std": "unbiased"},
        {"minibatch": 3},
        {"micro_batch": 3},
        {"loss_aggregation": "token", "dual_clip": 3.0},
        {"loss_aggregation": "chunk", "micro_batch": 3},
    ],
)
def test_update_makes_success_likelier(options):
    policy = TinyPolicy()
    batch = make_group_batch(policy)
    before = [success_log_prob(policy, batch, r) for r in (1, 0)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    config = GRPOConfig(group_size=4, epochs=6, **options)
    logs = update(policy, optimizer, batch, config, torch.Generator().manual_seed(0))
    after = [success_log_prob(policy, batch, r) for r in (1, 0)]
    assert after[0] > before[0] and after[0] - after[1] > before[0] - before[1]
    assert set(logs) == {
        "loss",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "grad_norm",
        "ratio_max",
        "ratio_min",
    }
    assert (
        all(math.isfinite(v) for v in logs.values())
        and 0 < logs["entropy"] <= math.log(BINS) + 1e-6
    )
    assert logs["grad_norm"] > 0 and logs["ratio_max"] > 1 > logs["ratio_min"]


def test_first_update_starts_on_policy():
    policy = TinyPolicy()
    batch = make_group_batch(policy, temperature=1.6)
    config = GRPOConfig(group_size=4, epochs=1, temperature=1.6)
    logs = update(policy, torch.optim.SGD(policy.parameters(), lr=0.0), batch, config)
    # the ratios are all 1 and the advantages of each group sum to 0
    assert logs["ratio_max"] == pytest.approx(1, abs=1e-5) and logs["loss"] == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("other", ["temperature", "slightly", "policy", "one of eight"])
def test_rollouts_that_another_policy_sampled_are_refused_before_a_step(other, micro_batch):
    policy = TinyPolicy()
    batch = make_group_batch(TinyPolicy(seed=1) if other == "policy" else policy, temperature=1.6)
    if other == "one of eight":
        batch.log_probs[3] -= 0.05
    temperature = {"temperature": 1.0, "slightly": 1.55}.get(other, 1.6)
    before = policy.head.weight.detach().clone()
    config = GRPOConfig(group_size=4, temperature=temperature, micro_batch=micro_batch)
    with pytest.raises(
        UserError,
        match=f"not sampled by this policy at temperature {temperature}: before the first step",
    ):
        update(policy, torch.optim.SGD(policy.parameters(), lr=0.1), batch, config)
    assert torch.equal(policy.head.weight, before)


class Forgetful(TinyPolicy):
    """Drops a third of its inputs while it is trained."""

    def distribution(self, frames, temperature):
        color = nn.functional.dropout(frames.float().mean((1, 2)) / 255, 0.3, self.training)
        return torch.distributions.Categorical(
            logits=self.head(color).view(-1, K, D, BINS) / temperature
        )


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_in_an_update(training):
    policy = Forgetful().eval()
    batch = make_group_batch(policy)
    policy.train(training)
    logs = update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        batch,
        GRPOConfig(group_size=4, epochs=1),
    )
    assert logs["ratio_max"] == pytest.approx(1, abs=1e-5) and logs["ratio_min"] == pytest.approx(
        1, abs=1e-5
    )
    assert policy.training == training  # as it came in


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_logs_do_not_depend_on_the_micro_batch(ratio):
    """One trajectory of a single valid step beside others of six: a mean of means would give its
    tokens six times the say.
    """
    found = []
    for micro_batch in (None, 1, 3):
        policy = TinyPolicy()
        batch = batch_from_trajectories(
            [make_trajectory(i == 0, 1 if i == 0 else 6, seed=i, policy=policy) for i in range(8)]
        )
        config = GRPOConfig(
            group_size=8,
            epochs=3,
            micro_batch=micro_batch,
            ratio=ratio,
            clip_low=0.01,
            clip_high=0.01,
        )
        found.append(
            update(
                policy,
                torch.optim.SGD(policy.parameters(), lr=2.0),
                batch,
                config,
                torch.Generator().manual_seed(0),
            )
        )
    assert 0 < found[0]["clip_fraction"] < 1
    assert all(other == pytest.approx(found[0], rel=1e-4, abs=1e-6) for other in found[1:])


def test_logs_are_those_of_all_valid_tokens():
    """The second pass by hand, over minibatches of other lengths: nothing is learnt at a rate of 0,
    so every entropy can be had at once.
    """
    policy = TinyPolicy()
    batch = batch_from_trajectories(
        [make_trajectory(i == 0, 1 if i == 0 else 6, seed=i, policy=policy) for i in range(4)]
    )
    logs = update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        batch,
        GRPOConfig(group_size=4, minibatch=1, epochs=2),
    )
    with torch.no_grad():
        entropy = batch_log_probs(policy, batch, torch.arange(4), 1.0, torch.device("cpu"))[1][
            batch.mask
        ].mean()
    assert logs["entropy"] == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize(
    "count, size, parts",
    [
        (128, 64, [64, 64]),
        (512, 128, [128] * 4),
        (72, 64, [72]),
        (96, 64, [48, 48]),
        (120, 64, [60, 60]),
        (8, 64, [8]),
        (65, 8, [9] + [8] * 7),
        (3, 1, [1, 1, 1]),
    ],
)
def test_no_step_is_taken_on_a_small_rest(count, size, parts):
    cut = minibatches(torch.arange(count), size)
    assert [len(part) for part in cut] == parts and torch.equal(torch.cat(cut), torch.arange(count))


def test_an_update_joins_the_rest_to_the_others():
    policy = TinyPolicy()
    batch = make_group_batch(policy, ((1, 0, 0), (0, 1, 0), (1, 1, 0)))
    update(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.1),
        batch,
        GRPOConfig(group_size=3, minibatch=8, epochs=1),
    )
    assert len(policy.seen) == 1  # nine, not eight and one


def test_micro_batches_take_the_same_step():
    weights = []
    for micro_batch in (None, 1, 3):
        policy = TinyPolicy()
        batch = make_group_batch(policy)
        config = GRPOConfig(group_size=4, minibatch=5, micro_batch=micro_batch)
        update(
            policy,
            torch.optim.SGD(policy.parameters(), lr=0.5),
            batch,
            config,
            torch.Generator().manual_seed(5),
        )
        weights.append(policy.head.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6) and torch.allclose(
        weights[0], weights[2], atol=1e-6
    )


def test_update_is_seeded_and_visits_each_trajectory_once_a_pass():
    weights = []
    for seed in (0, 0, 1):
        policy = TinyPolicy()
        batch = make_group_batch(policy)
        config = GRPOConfig(group_size=4, minibatch=2, epochs=3)
        update(
            policy,
            torch.optim.SGD(policy.parameters(), lr=0.5),
            batch,
            config,
            torch.Generator().manual_seed(seed),
        )
        weights.append(policy.head.weight.detach())
        live = int(
            batch.mask.flatten(2).any(-1).sum()
        )  # 3 successes of 2 live chunks + 5 failures of 3 = 21
        assert (
            live == 21
            and sum(len(f) for f, _ in policy.seen) == 3 * live
            and len(policy.seen) == 3 * 4
        )
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"std": "unbiased"},
        {"ratio": "chunk"},
        {"clip_low": 0.01},
        {"clip_high": 0.01},
        {"temperature": 1.6},
    ],
)
def test_update_is_the_loss_of_its_options_and_nothing_else(options):
    settings = {
        "std": "population",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "temperature": 1.0,
    } | options
    policy, by_hand = TinyPolicy(), TinyPolicy()
    batch = make_group_batch(policy, temperature=settings["temperature"])
    config = GRPOConfig(group_size=4, epochs=4, grad_clip=1e6, **options)
    update(policy, torch.optim.SGD(policy.parameters(), lr=4.0), batch, config)
    advantages = group_advantages(batch.rewards.view(2, 4), settings["std"]).flatten()
    for _ in range(4):
        new, _ = by_hand.log_probs(
            batch.frames.flatten(0, 1),
            ["task"] * 24,
            batch.tokens.flatten(0, 1),
            settings["temperature"],
        )
        loss, _ = policy_loss(
            new.view_as(batch.log_probs),
            batch.log_probs,
            advantages,
            batch.mask,
            settings["clip_low"],
            settings["clip_high"],
            settings["ratio"],
        )
        for p, grad in zip(
            by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters()))
        ):
            p.data -= 4.0 * grad
    assert torch.allclose(policy.head.weight, by_hand.head.weight, atol=2e-6)
    if options:  # and the option does make a difference, even std by its factor sqrt(3/4)
        default = TinyPolicy()
        config = GRPOConfig(group_size=4, epochs=4, grad_clip=1e6)
        update(
            default,
            torch.optim.SGD(default.parameters(), lr=4.0),
            make_group_batch(default),
            config,
        )
        assert not torch.allclose(policy.head.weight, default.head.weight, atol=2e-5)


def test_gradient_is_clipped():
    policy = TinyPolicy()
    batch = make_group_batch(policy)
    before = policy.head.weight.detach().clone()
    config = GRPOConfig(group_size=4, epochs=1, grad_clip=1e-3)
    logs = update(policy, torch.optim.SGD(policy.parameters(), lr=1.0), batch, config)
    moved = (policy.head.weight.detach() - before).norm().item()
    assert logs["grad_norm"] > 1e-2 and 0 < moved <= 1.001e-3


def test_update_names_what_is_wrong():
    policy = TinyPolicy()
    config, optimizer = GRPOConfig(group_size=4), torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(UserError, match="1 all successes, 1 all failures"):
        update(policy, optimizer, make_group_batch(policy, ((1, 1, 1, 1), (0, 0, 0, 0))), config)
    with pytest.raises(UserError, match="group_size is 8"):
        update(policy, optimizer, make_group_batch(policy), replace(config, group_size=8))
    unrecorded = [make_trajectory(bool(i % 2), log_probs=None, seed=i) for i in range(4)]
    with pytest.raises(UserError, match="lack the log-probs"):
        update(policy, optimizer, batch_from_trajectories(unrecorded), config)


def test_broken_policy_is_reported_before_it_spreads():
    policy = TinyPolicy()
    batch = make_group_batch(policy)
    with torch.no_grad():
        policy.head.weight[0, 0] = float("nan")
    policy.distribution = lambda frames, t: torch.distributions.Categorical(
        logits=policy.head(frames.float().mean((1, 2)) / 255).view(-1, K, D, BINS),
        validate_args=False,
    )
    bias = policy.head.bias.detach().clone()
    with pytest.raises(UserError, match="loss is nan at update 0"):
        update(
            policy, torch.optim.SGD(policy.parameters(), lr=0.1), batch, GRPOConfig(group_size=4)
        )
    assert torch.equal(policy.head.bias, bias)
