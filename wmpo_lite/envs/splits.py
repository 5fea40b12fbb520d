"""Which initial states are used for what: every range of every split stands here, and none overlaps
another.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.common.errors import UserError


@dataclass(frozen=True)
class Use:
    """Where one use of a split begins, and how many states it may take.

    split: its name; first: number of its first state; per_seed: how far the states of the next
    training seed lie from those of this one (0: all seeds use the same); room: states at most.
    """

    split: str
    first: int
    room: int
    per_seed: int = 0


USES = {
    # the P rollouts, and online GRPO's: the only real states that a method learns from
    "rollouts": Use("rollouts", 0, 10_000, per_seed=10_000),
    "upper_bound": Use("rollouts", 50_000_000, 10_000, per_seed=10_000),
    "evaluation": Use("evaluation", 0, 1_000_000),
    # of a validation split's every ten thousand, the second thousand is a seed's trust panel
    "trust": Use("validation", 1_000, 1_000, per_seed=10_000),
    "instruction_swap": Use("validation", 50_000, 1_000),
    "tracking": Use("validation", 60_000, 1_000),
    "arm": Use("validation", 80_000, 1_000),
    "arm_faults": Use("validation", 82_000, 1_000),
    "outcomes": Use("validation", 120_000, 1_000),
    "tuning": Use("validation", 140_000, 1_000),
}


def numbers(use: str, count: int, seed: int = 0, skip: int = 0) -> tuple[str, np.ndarray]:
    """The split and the numbers (count,) of the states of one use, from its `skip`-th on. UserError
    for more than it has room for.
    """
    found = USES[use]
    if skip + count > found.room:
        raise UserError(
            f"initial states {skip} to {skip + count - 1} are asked for '{use}', which has"
            f" {found.room}; ask for fewer"
        )
    first = found.first + found.per_seed * seed + skip
    return found.split, np.arange(first, first + count)
