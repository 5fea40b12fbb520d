"""The GRPO loop: groups of all rounds of one iteration are told apart."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from wmpo_lite import grpo, train_grpo


@pytest.mark.parametrize("groups", [3, 1100, 2001])
def test_groups_drawn_anew_have_numbers_of_their_own(monkeypatch, groups):
    """Every other group is all alike, so half of them are drawn anew, and half of those."""

    def rollout(policy, env, states, *, groups, **options):
        return [
            SimpleNamespace(success=bool(i % 2 and n % 2), group=int(n))
            for i, n in enumerate(groups)
        ]

    learnt = []
    monkeypatch.setattr(train_grpo, "rollout", rollout)
    monkeypatch.setattr(
        grpo, "batch_from_trajectories", lambda kept: SimpleNamespace(mask=torch.ones(1), kept=kept)
    )
    monkeypatch.setattr(
        grpo, "update", lambda policy, optimizer, data, *rest: learnt.extend(data.kept) or {}
    )
    (record,) = train_grpo.optimize(
        tiny.policy(),
        lambda seed: None,
        tiny.states(4, frames=False),
        grpo.GRPOConfig(groups=groups, group_size=2),
        iterations=1,
        horizon=4,
        seed=0,
        stage="test",
        refill=2,
    )
    numbers = torch.tensor([t.group for t in learnt])
    table, _ = grpo.group_rewards(torch.tensor([float(t.success) for t in learnt]), numbers)
    assert table.shape == (record["kept"], 2) and record["kept"] > groups / 2
    assert numbers.tolist() == sorted(
        numbers.tolist()
    )  # groups keep the order in which they were drawn
