"""Less memory and 16 bits: the same training, up to rounding."""

import pytest
import ranks
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from wmpo_lite import grpo
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import Compute

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", ("world_model", "reward_model", "update_uneven", "loop"))
def test_in_16_bits_everything_runs_and_learns_about_the_same(case, tmp_path):
    """Fits, sampling, rollouts and updates. A weight that was rounded once and kept would not
    move, and the loss would not fall.
    """
    exact, expected = getattr(ranks, case)(tmp_path / "fp32")
    with Compute("bf16").autocast(CPU):
        rounded, found = getattr(ranks, case)(tmp_path / "bf16")
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
    assert not torch.equal(ranks.answers(rounded), ranks.answers(exact))
    if case != "loop":  # whose sampled actions are others after a while
        scale = ranks.answers(exact).abs().mean()
        assert (ranks.answers(rounded) - ranks.answers(exact)).abs().mean() < 0.1 * scale
        assert [r["loss"] for r in found] == pytest.approx(
            [r["loss"] for r in expected], rel=0.02, abs=0.01
        )


def kept_bytes(module, loss) -> int:
    """What the way back of `loss()` keeps beside the weights."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", ("unet", "stdit", "reward", "policy"))
def test_recomputed_blocks_give_the_same_gradients_in_less_memory(kind):
    def make():
        torch.manual_seed(0)
        if kind == "reward":
            return tiny.reward_model(depth=3)
        return tiny.policy(depth=3) if kind == "policy" else tiny.world_model(kind=kind, depth=3)

    def loss_of(model):
        frames = torch.from_numpy(tiny.noise_frames(3, 4))
        if kind == "reward":
            return lambda: model(frames, [tiny.RED] * 3).square().sum()
        if kind == "policy":
            return lambda: model.logits(frames[:, 0], [tiny.RED] * 3).square().sum()
        state = model.init_state(torch.randn(3, 4, 8, 8))
        target, actions = torch.randn(2, 3, model.config.frames, 4, 8, 8)[0], torch.rand(3, 4, 4)
        actions = actions[:, : model.config.frames]
        draw = lambda: torch.Generator().manual_seed(0)
        return lambda: model.loss(state, actions, target, draw())[0]

    found = []
    for compute in (Compute(), Compute(recompute=True)):
        model = compute.prepare(make())
        loss = loss_of(model)
        with FlopCounterMode(display=False) as flops:
            loss().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((gradients, kept_bytes(model, loss), flops.get_total_flops()))
    (plain, memory, work), (again, less, more) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < 0.8 * memory and work < more < 1.4 * work


def test_an_update_in_small_pieces_is_the_same_update(tmp_path):
    """The pieces of `micro_batch` trajectories add up to the same steps."""
    whole, _ = ranks.update((4, 0), micro_batch=None)
    pieces, _ = ranks.update((4, 0), micro_batch=1)
    assert torch.allclose(ranks.answers(whole), ranks.answers(pieces), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "case, pieces",
    (
        ("world_model", {"passes": 3}),
        ("reward_model", {"passes": 3}),
        ("cloning", {"passes": 3}),
        ("dpo", {"micro_batch": 2}),
    ),
)
def test_a_batch_in_several_passes_is_the_same_batch(case, pieces, tmp_path):
    """Gradients add up, and every row has the random numbers that it has in the whole batch."""
    whole, expected = getattr(ranks, case)(tmp_path / "whole")
    found, records = getattr(ranks, case)(tmp_path / "pieces", **pieces)
    assert torch.allclose(ranks.answers(whole), ranks.answers(found), rtol=0, atol=1e-5)
    losses = [[record["loss"] for record in each] for each in (records, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rounding_of_16_bits_is_not_taken_for_another_policy():
    policy = tiny.policy()
    with pytest.raises(UserError, match="not sampled by this policy"):
        grpo.check_on_policy(policy, 0.02, 1.0)
    with Compute("bf16").autocast(CPU):
        grpo.check_on_policy(policy, 0.02, 1.0)
        with pytest.raises(UserError, match="not sampled by this policy"):
            grpo.check_on_policy(policy, 0.2, 1.0)


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match="--precision is 'fp8'; expected one of fp32, bf16"):
        Compute("fp8")
    with pytest.raises(UserError, match="--micro-batch is 0"):
        Compute(micro_batch=0)
