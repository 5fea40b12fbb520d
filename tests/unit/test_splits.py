"""Which initial states are used for what: no range overlaps another, whatever the seed."""

from itertools import combinations

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.splits import USES, numbers
from wmpo_lite.envs.tabletop.env import SPLITS

SEEDS = range(300)


def spans(use: str) -> np.ndarray:
    """First and last state (SEEDS, 2) of a use, for every seed."""
    return np.array([numbers(use, USES[use].room, seed)[1][[0, -1]] for seed in SEEDS])


def test_no_two_uses_share_a_state_whatever_the_seeds():
    for one, other in combinations(USES, 2):
        if USES[one].split == USES[other].split:
            a, b = spans(one)[:, None], spans(other)[None]
            assert not ((a[..., 0] <= b[..., 1]) & (b[..., 0] <= a[..., 1])).any(), (one, other)


def test_seeds_of_one_use_do_not_overlap_and_splits_exist():
    for name, use in USES.items():
        assert use.split in SPLITS
        assert use.per_seed == 0 or use.per_seed >= use.room, name


def test_numbers_are_those_that_shipped_runs_took():
    """Another start would make shipped results irreproducible."""
    assert numbers("rollouts", 3, seed=2)[1].tolist() == [20_000, 20_001, 20_002]
    assert numbers("trust", 2, seed=1)[1].tolist() == [11_000, 11_001]
    assert numbers("tracking", 1, seed=7)[1].tolist() == [60_000]
    split, rows = numbers("evaluation", 1024, seed=5, skip=1000)
    assert split == "evaluation" and np.array_equal(rows, np.arange(1000, 2024))


def test_more_states_than_there_is_room_for_are_refused():
    with pytest.raises(UserError, match="states 900 to 1000 are asked for 'arm', which has 1000"):
        numbers("arm", 101, skip=900)
