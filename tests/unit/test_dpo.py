"""DPO: pairs, the loss against arithmetic done by hand, and a real training run of
a tiny policy.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from wmpo_lite.common.errors import UserError
from wmpo_lite.dpo import DPOConfig, dpo_loss, make_pairs, reduce_log_probs, train_dpo
from wmpo_lite.grpo import batch_from_trajectories, batch_log_probs
from wmpo_lite.trajectory import Trajectory

K, D, BINS = 2, 3, 5


class TinyPolicy(nn.Module):
    """Categorical logits, linear in the mean color of the frame; counts the frames
    it was shown.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, K * D * BINS)
        self.shown = 0

    def log_probs(self, frames, instructions, tokens, temperature):
        self.shown += len(frames)
        logits = self.head(frames.float().mean((1, 2)) / 255).view(-1, K, D, BINS) / temperature
        distribution = torch.distributions.Categorical(logits=logits)
        return distribution.log_prob(tokens), distribution.entropy()


def make_trajectory(
    success, seed=0, instruction="push", state=0.0, T=6, finish_step=None, **kwargs
):
    rng = np.random.default_rng(seed)
    return Trajectory(
        **(
            dict(
                frames=rng.integers(0, 256, (T + 1, 4, 4, 3), dtype=np.uint8),
                actions=np.zeros((T, D), np.float32),
                tokens=rng.integers(0, BINS, (T, D)),
                log_probs=None,
                success=success,
                finish_step=finish_step or T,
                instruction=instruction,
                initial_state=np.full(2, state),
                split="rollouts",
                index=0,
                chunk=K,
            )
            | kwargs
        )
    )


def rollouts(successes=4, failures=4):
    return [make_trajectory(True, i, state=i, finish_step=3) for i in range(successes)] + [
        make_trajectory(False, 100 + i, state=i) for i in range(failures)
    ]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- configuration and pairs


@pytest.mark.parametrize(
    "field, value",
    [
        ("beta", 0.0),
        ("normalize", "max"),
        ("lr", -1.0),
        ("epochs", 0),
        ("pairs", 0),
        ("batch", 0),
        ("grad_clip", 0.0),
        ("temperature", 0.0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=field):
        DPOConfig(**{field: value})


def test_defaults_are_the_documented_ones():
    assert (DPOConfig().beta, DPOConfig().normalize) == (0.1, "sum")


def test_pairs_prefer_the_same_initial_state():
    trajectories = rollouts(4, 4)  # success i and failure 4 + i share a state
    pairs = make_pairs(trajectories, seeded(), 20)
    assert pairs.shape == (20, 2) and torch.equal(pairs[:, 1], pairs[:, 0] + 4)


def test_pairs_fall_back_to_the_instruction_and_then_to_any_failure():
    # the last failure has the state of the "lift" success, but not its instruction
    table = [
        (True, 1, "push"),
        (True, 2, "lift"),
        (False, 3, "push"),
        (False, 4, "push"),
        (False, 2, "slide"),
    ]
    trajectories = [
        make_trajectory(success, state=state, instruction=text) for success, state, text in table
    ]
    pairs = make_pairs(trajectories, seeded(), 60).tolist()
    assert {tuple(p) for p in pairs} == {(0, 2), (0, 3), (1, 2), (1, 3), (1, 4)}


def test_trajectories_without_states_do_not_share_one():
    trajectories = [
        make_trajectory(s, initial_state=np.zeros(0), instruction=i)
        for s, i in ((True, "push"), (False, "push"), (False, "push"))
    ]
    assert {tuple(p) for p in make_pairs(trajectories, seeded(), 30).tolist()} == {(0, 1), (0, 2)}


def test_successes_are_used_evenly_and_pairs_are_seeded():
    trajectories = rollouts(5, 3)
    pairs = make_pairs(trajectories, seeded(), 12)
    counts = torch.bincount(pairs[:, 0], minlength=5)
    assert counts.min() == 2 and counts.max() == 3 and bool((pairs[:, 1] >= 5).all())
    assert torch.equal(pairs, make_pairs(trajectories, seeded(), 12))
    assert not torch.equal(pairs, make_pairs(trajectories, seeded(1), 12))


@pytest.mark.parametrize("counts, word", [((3, 0), "always"), ((0, 3), "never"), ((0, 0), "never")])
def test_one_sided_rollouts_are_refused(counts, word):
    with pytest.raises(UserError, match=f"there are {counts[0]} and {counts[1]}.*{word} succeeds"):
        make_pairs(rollouts(*counts), seeded(), 4)


# ---- loss


def test_reduce_log_probs():
    log_probs = torch.tensor([[-1.0, -2, -3, -50], [-4, -50, -50, -50]]).view(2, 2, 2, 1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool().view(2, 2, 2, 1)
    assert reduce_log_probs(log_probs, mask).tolist() == [-6, -4]  # -1 - 2 - 3; -4
    assert reduce_log_probs(log_probs, mask, "mean").tolist() == [-2, -4]  # -6 / 3; -4 / 1
    assert reduce_log_probs(log_probs * float("nan"), torch.zeros_like(mask), "mean").tolist() == [
        0,
        0,
    ]
    with pytest.raises(UserError, match="normalize"):
        reduce_log_probs(log_probs, mask, "max")


def test_dpo_loss_golden():
    # pair 1: 0.5 * ((-1 + 3) - (-4 + 3)) = 1.5, log(1 + e^-1.5) = 0.2014133
    # pair 2: 0.5 * ((-5 + 3) - (-2 + 2)) = -1.0, log(1 + e^1) = 1.3132617
    # loss = (0.2014133 + 1.3132617) / 2 = 0.7573375
    loss, logs = dpo_loss(
        torch.tensor([-1.0, -5]),
        torch.tensor([-4.0, -2]),
        torch.tensor([-3.0, -3]),
        torch.tensor([-3.0, -2]),
        beta=0.5,
    )
    assert float(loss) == pytest.approx(0.7573375, abs=1e-6)
    assert logs["accuracy"] == 0.5 and logs["margin"] == pytest.approx(0.25)  # (1.5 - 1.0) / 2
    assert (
        logs["chosen_shift"] == 0.0 and logs["rejected_shift"] == -0.5
    )  # (2 - 2) / 2; (-1 + 0) / 2


def test_the_reference_itself_has_loss_log_two():
    x, y = torch.randn(7, generator=seeded()), torch.randn(7, generator=seeded(1))
    loss, logs = dpo_loss(x, y, x, y)
    assert (
        float(loss) == pytest.approx(math.log(2))
        and logs["margin"] == 0
        and logs["accuracy"] == 0.5
    )


def test_default_beta():
    # 0.1 * (10 - 0) = 1: log(1 + e^-1) = 0.3132617
    zero = torch.zeros(1)
    assert float(dpo_loss(zero + 10, zero, zero, zero)[0]) == pytest.approx(0.3132617, abs=1e-6)


def test_gradient_favors_the_chosen():
    c, r = (
        torch.randn(9, generator=seeded()).requires_grad_(),
        torch.randn(9, generator=seeded(1)).requires_grad_(),
    )
    dpo_loss(c, r, torch.zeros(9), torch.zeros(9))[0].backward()
    assert bool((c.grad < 0).all()) and torch.allclose(c.grad, -r.grad)


def test_extreme_margins_stay_finite():
    big = torch.tensor([1e6, -1e6])
    loss, _ = dpo_loss(big, -big, torch.zeros(2), torch.zeros(2))
    assert math.isfinite(float(loss))


# ---- training


def total_log_prob(policy, trajectories):
    batch = batch_from_trajectories(trajectories)
    with torch.no_grad():
        log_probs, _ = batch_log_probs(
            policy, batch, torch.arange(len(trajectories)), 1.0, torch.device("cpu")
        )
    return reduce_log_probs(log_probs, batch.mask)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_training_prefers_successes(normalize):
    policy, trajectories, seen = TinyPolicy(), rollouts(), []
    reference = copy.deepcopy(policy)
    before = total_log_prob(policy, trajectories)
    config = DPOConfig(lr=0.02, epochs=5, pairs=16, batch=4, normalize=normalize)
    history = train_dpo(
        policy, reference, trajectories, config, seed=1, on_step=lambda *args: seen.append(args)
    )
    shift = total_log_prob(policy, trajectories) - before
    assert shift[:4].mean() > shift[4:].mean() + 1
    assert len(history) == 5 * 4 and seen == list(enumerate(history))
    # The first step starts at the reference: margin 0, loss log 2.
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["accuracy"] > 0.7 and history[-1]["margin"] > 0
    assert set(history[0]) == {
        "loss",
        "accuracy",
        "margin",
        "chosen_shift",
        "rejected_shift",
        "grad_norm",
    }
    for ours, theirs in zip(reference.parameters(), TinyPolicy().parameters()):
        assert torch.equal(ours, theirs) and ours.grad is None


def test_reference_is_asked_once_and_may_be_the_policy_itself():
    policy, trajectories = TinyPolicy(), rollouts()
    reference, config = TinyPolicy(), DPOConfig(pairs=8, batch=4, epochs=3)
    with_copy = train_dpo(policy, reference, trajectories, config, seed=3)
    assert reference.shown == 4 * 2 + 4 * 3  # live chunks: successes end in chunk 2 of 3
    assert train_dpo(TinyPolicy(), None, trajectories, config, seed=3) == with_copy
    assert train_dpo(TinyPolicy(), None, trajectories, config, seed=4) != with_copy


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.7}, {"normalize": "mean"}, {"temperature": 1.6}]
)
def test_training_computes_the_loss_of_its_options(options):
    settings = {"beta": 0.1, "normalize": "sum", "temperature": 1.0} | options
    policy, other, trajectories = TinyPolicy(), TinyPolicy(), rollouts(1, 1)
    with torch.no_grad():
        other.head.weight.mul_(3)
    batch = batch_from_trajectories(trajectories)
    (chosen, rejected), (ref_chosen, ref_rejected) = (
        reduce_log_probs(
            batch_log_probs(
                p, batch, torch.arange(2), settings["temperature"], torch.device("cpu")
            )[0],
            batch.mask,
            settings["normalize"],
        ).tolist()
        for p in (policy, other)
    )
    margin = settings["beta"] * (chosen - ref_chosen - rejected + ref_rejected)
    logs = train_dpo(policy, other, trajectories, DPOConfig(pairs=1, epochs=1, **options))[0]
    assert logs["margin"] == pytest.approx(margin, abs=1e-5)
    assert logs["loss"] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)


def test_learning_rate_and_clip_are_used():
    moved = []
    for options in ({"lr": 1e-4}, {"lr": 1e-2}, {"lr": 1e-2, "grad_clip": 1e-12}):
        policy = TinyPolicy()
        train_dpo(policy, None, rollouts(), DPOConfig(pairs=1, epochs=1, **options))
        moved.append((policy.head.weight - TinyPolicy().head.weight).abs().max().item())
    # the first Adam step is lr in each direction; a gradient far below Adam's epsilon (1e-8) moves
    # almost nothing
    assert (
        moved[0] == pytest.approx(1e-4, rel=0.1)
        and moved[1] == pytest.approx(1e-2, rel=0.1)
        and moved[2] < 2e-4
    )


def test_the_reference_matters():
    other = TinyPolicy()
    with torch.no_grad():
        other.head.weight.mul_(3)
    history = train_dpo(TinyPolicy(), other, rollouts(), DPOConfig(pairs=4, batch=4, epochs=1))
    assert abs(history[0]["margin"]) > 1e-3


def test_training_names_what_is_wrong():
    with pytest.raises(UserError, match="never succeeds"):
        train_dpo(TinyPolicy(), None, rollouts(0, 3))
    with pytest.raises(UserError, match="no action tokens"):
        train_dpo(TinyPolicy(), None, rollouts(1, 1) + [make_trajectory(True, tokens=None)])

    class Broken(TinyPolicy):
        def log_probs(self, *args):
            log_probs, entropy = super().log_probs(*args)
            return log_probs * float("nan"), entropy

    policy = Broken()
    with pytest.raises(UserError, match="loss is nan at step 0"):
        train_dpo(policy, TinyPolicy(), rollouts(), DPOConfig(pairs=4))
    assert torch.equal(policy.head.weight, TinyPolicy().head.weight)
