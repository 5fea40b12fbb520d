"""Advantages and losses beside those of TRL, verl, OpenRLHF, RLinf and WMPO's public code, whose
own functions gave the numbers in tests/golden/grpo_peers.json on the same random inputs.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from wmpo_lite import grpo
from wmpo_lite.common.errors import UserError
from wmpo_lite.grpo import GRPOConfig, group_advantages, policy_loss
from wmpo_lite.report import peers

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import make_grpo_peers as made  # noqa: E402  imports no package of theirs

PEERS = json.loads((GOLDEN / "grpo_peers.json").read_text())
PACKAGES = ("trl", "verl", "openrlhf", "rlinf", "wmpo")

# Their setting, and the options under which this kit computes the same.
TOKEN, TRAJECTORY = {"aggregation": "token"}, {"aggregation": "trajectory"}
CHUNK = {"aggregation": "chunk", "ratio": "chunk"}
DUAL = {"dual_clip": made.DUAL}
SAME = {
    ("trl", "loss_type=grpo"): TRAJECTORY,
    ("trl", "loss_type=dapo"): TOKEN,
    ("trl", "loss_type=dapo, delta=3"): TOKEN | DUAL,
    ("verl", "loss_agg_mode=seq-mean-token-mean, clip_ratio_c=1e9"): TRAJECTORY,
    ("verl", "loss_agg_mode=token-mean, clip_ratio_c=1e9"): TOKEN,
    ("verl", "loss_agg_mode=token-mean, clip_ratio_c=3"): TOKEN | DUAL,
    ("openrlhf", "token_level_loss=False"): TRAJECTORY,
    ("openrlhf", "token_level_loss=True"): TOKEN,
    ("openrlhf", "token_level_loss=True, dual_clip=3"): TOKEN | DUAL,
    ("wmpo", "one trajectory at a time"): TRAJECTORY,
    ("rlinf", "token level"): TOKEN,
    ("rlinf", "token level, clip_ratio_c=3"): TOKEN | DUAL,
    ("rlinf", "chunk level"): CHUNK,
    ("rlinf", "chunk level, clip_ratio_c=3"): CHUNK | DUAL,
}


def loss_and_gradient(**options):
    given = made.inputs()
    new = given["new"].requires_grad_()
    loss, logs = policy_loss(
        new,
        given["old"],
        given["advantages"],
        given["mask"],
        made.CLIP_LOW,
        made.CLIP_HIGH,
        **options,
    )
    loss.backward()
    return loss.item(), new.grad.flatten(), logs


def test_every_number_of_theirs_has_its_options():
    there = {(name, setting) for name in PACKAGES for setting in PEERS[name]["losses"]}
    assert there == set(SAME)
    assert PEERS["about"]["seed"] == made.SEED
    assert PEERS["about"]["clip"] == [made.CLIP_LOW, made.CLIP_HIGH]


@pytest.mark.parametrize("name, setting", SAME)
def test_losses_and_gradients_are_theirs(name, setting):
    theirs = PEERS[name]["losses"][setting]
    loss, gradient, _ = loss_and_gradient(**SAME[name, setting])
    assert loss == pytest.approx(theirs["loss"], abs=1e-6)
    assert torch.allclose(gradient, torch.tensor(theirs["gradient"]), rtol=0, atol=1e-6)


def test_the_options_tell_the_settings_apart():
    losses = [loss_and_gradient(**options)[0] for options in (TRAJECTORY, TOKEN, TOKEN | DUAL)]
    losses += [loss_and_gradient(**options)[0] for options in (CHUNK, CHUNK | DUAL)]
    losses.append(loss_and_gradient(aggregation="chunk")[0])
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rewards", sorted(set(made.REWARDS) - {"eight equal 0.7"}))
def test_advantages_are_theirs_up_to_what_they_add_to_the_deviation(name, rewards):
    """All five divide by the unbiased deviation, plus 1e-4 (TRL), 1e-6 or 1e-9 (OpenRLHF)."""
    theirs = torch.tensor(PEERS[name]["advantages"][rewards])
    ours = group_advantages(torch.tensor([made.REWARDS[rewards]]), "unbiased")[0]
    apart = {"trl": 4e-4, "openrlhf": 5e-6}.get(name, 1e-6)
    assert torch.allclose(ours, theirs, rtol=0, atol=apart)
    if name == "trl":
        assert not torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_of_equal_rewards_only_this_kit_makes_nothing():
    """The mean of eight times 0.7 rounds, and a deviation of nothing divides what is left."""
    ours = group_advantages(torch.tensor([made.REWARDS["eight equal 0.7"]]), "unbiased")
    assert torch.equal(ours, torch.zeros(1, 8))
    theirs = {name: PEERS[name]["advantages"]["eight equal 0.7"][0] for name in PACKAGES}
    assert theirs["openrlhf"] > 0.9 and 0.05 < theirs["verl"] < 0.06 and 0 < theirs["trl"] < 1e-3


def test_the_books_table_is_made_from_these_numbers():
    page = GOLDEN.parents[1] / "notebooks" / "what_the_libraries_do.md"
    assert peers.table() in page.read_text()


# ------------------------------------------------------------------ by hand


def two_episodes():
    """Ratio 1; a first episode of 2 and a second of 8 valid tokens, advantages +1 and -1."""
    log_probs = torch.zeros(2, 2, 4, 1)
    mask = torch.arange(8).view(1, 2, 4, 1) < torch.tensor([2, 8]).view(2, 1, 1, 1)
    return log_probs, log_probs, torch.tensor([1.0, -1.0]), mask


@pytest.mark.parametrize(
    "aggregation, loss", [("trajectory", 0.0), ("token", 0.6), ("chunk", 1 / 3)]
)
def test_what_counts_alike(aggregation, loss):
    # trajectory: -(1 - 1) / 2; token: -(2 - 8) / 10; chunk: -(1 - 1 - 1) / 3
    assert float(policy_loss(*two_episodes(), aggregation=aggregation)[0]) == pytest.approx(loss)


@pytest.mark.parametrize("kind", ["token", "chunk"])
@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (5.0, -1.0, 3.0, 0.0),  # the second clip: -max(min(-5, -1.28), 3 * -1)
        (2.5, -1.0, 2.5, 2.5),  # within it
        (5.0, 1.0, -1.28, 0.0),  # a positive advantage knows the first clip only
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_the_second_clip(ratio, advantage, loss, slope, kind):
    new = torch.tensor(ratio).log().view(1, 1, 1, 1).requires_grad_()
    mask = torch.ones(1, 1, 1, 1).bool()
    got, logs = policy_loss(
        new, torch.zeros(1, 1, 1, 1), torch.tensor([advantage]), mask, ratio=kind, dual_clip=3.0
    )
    got.backward()
    assert got.item() == pytest.approx(loss) and float(new.grad) == pytest.approx(slope, abs=1e-6)
    assert logs["clip_fraction"] == float(slope == 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aggregation": "sequence"}, "aggregation is 'sequence'"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0"),
        ({"dual_clip": float("nan")}, "dual_clip is nan"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        policy_loss(*two_episodes(), **options)
    names = {"aggregation": "loss_aggregation"}
    with pytest.raises(UserError, match=message):
        GRPOConfig(**{names.get(key, key): value for key, value in options.items()})


@pytest.mark.parametrize("ratio", ["token", "chunk"])
@pytest.mark.parametrize("aggregation", ["trajectory", "token", "chunk"])
def test_parts_of_a_batch_add_up_to_its_loss(aggregation, ratio):
    given = made.inputs()
    options = {"aggregation": aggregation, "ratio": ratio, "dual_clip": 3.0}

    def loss(rows):
        mask = given["mask"][rows]
        names = ("new", "old", "advantages")
        found, _ = policy_loss(*(given[name][rows] for name in names), mask, **options)
        return found, grpo.loss_count(mask, ratio, aggregation)

    whole, total = loss(slice(None))
    parts = [loss(rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert sum(count for _, count in parts) == total
    assert float(sum(part * count / total for part, count in parts)) == pytest.approx(float(whole))
