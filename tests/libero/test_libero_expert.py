"""Scripted experts: one task of each kind, disturbed demonstrations, and goals that they have no
plan for.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.env import LiberoEnv
from wmpo_lite.envs.libero.expert import PickAndPlace, demonstrate, kind
from wmpo_lite.envs.libero.states import get_task


@pytest.mark.parametrize("suite, number", [("libero_object", 4), ("libero_spatial", 6)])
def test_the_expert_solves_tasks_of_both_suites(suite, number):
    """A tall bottle over the basket's wall; a bowl by its rim, with another bowl on the stove."""
    with LiberoEnv(get_task(suite, number), workers=2) as env:
        found = demonstrate(env, env.initial_states("validation", [0, 1]), np.random.default_rng(0))
        assert all(premise.holds for premise in env.premises) and found["done"][:, -1].all()


def test_noise_is_executed_and_never_recorded_as_intended(env):
    found = demonstrate(
        env, env.initial_states("demos", [0, 1]), np.random.default_rng(0), noise=0.4, burst=0.3
    )
    moved = np.abs(found["executed"] - found["intended"]).max(axis=-1) > 1e-6
    assert (
        0.05 < moved.mean() < 0.35
        and (found["executed"][..., 6] == found["intended"][..., 6]).all()
    )
    assert found["frames"].shape == (2, env.task.horizon + 1, 64, 64, 3) and found["objects"].shape[
        :2
    ] == found["tip"].shape[:2] == (2, env.task.horizon + 1)


def test_a_goal_without_a_plan_is_refused():
    for goal in (
        (("turnon", "flat_stove_1"),),
        (("on", "bowl_1", "wine_rack_1_top"),),
        (("on", "a_1", "plate_1"), ("on", "b_1", "plate_1")),
    ):
        with pytest.raises(UserError, match="no plan for the goal"):
            PickAndPlace(SimpleNamespace(goal=goal))


def test_kinds_of_things():
    assert [
        kind(name) for name in ("akita_black_bowl_1", "basket_1_contain_region", "plate_1", "milk")
    ] == ["akita_black_bowl", "basket", "plate", "milk"]
