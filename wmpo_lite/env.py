"""What every environment offers: simulator, imagination, LIBERO, a desk around any of them.

**The imagined environment is an environment**, so there is one rollout, one kind of trajectory and
one GRPO loop. `tests/unit/test_env.py` holds all environments to this contract.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from wmpo_lite.trajectory import InitialStates


@runtime_checkable
class Env(Protocol):
    """B episodes at once, moved by chunks of K control steps.

    action_dim: D, numbers of an action, each in [-1, 1]; action_names: what they are, which a
    policy compares with its own; instructions: the sentence of each episode since the last reset.
    """

    action_dim: int
    action_names: tuple[str, ...]
    instructions: list[str]

    def reset(self, states: InitialStates) -> np.ndarray:
        """Begin an episode from each of B states, whatever was before: the first frames, uint8
        (B, H, W, 3). UserError where the states do not belong to this environment.
        """
        ...

    def step_chunk(
        self, actions: np.ndarray, every_frame: bool = True
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Carry out actions (B, K, D).

        Returns the frames after each of them, uint8 (B, K, H, W, 3), or with every_frame=False
        after the last alone, (B, 1, H, W, 3); done (B, K) bool, which stays True once an episode
        has succeeded; and more about it by name. Numbers beyond [-1, 1] are clipped. UserError,
        before anything moves, for NaN, another shape, and before the first `reset`.
        """
        ...
