"""What every environment asks of the actions that it is given."""

import numpy as np

from wmpo_lite.common.errors import UserError


def check_actions(
    actions,
    batch: int | None,
    action_dim: int,
    consequence: str = "the policy that made them has diverged",
) -> np.ndarray:
    """Actions as float64 (B, K, D). UserError for another number of episodes or of numbers, none at
    all, and NaN or infinity.

    batch: episodes of the last reset, None before the first. A row too few would be broadcast to
    all episodes, a number too many ignored.
    """
    if batch is None:
        raise UserError(
            "the environment has no episode to step yet; reset it to initial states first"
        )
    try:
        actions = np.asarray(actions, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"actions are not an array of numbers ({error}); expected ({batch}, K, {action_dim})"
        ) from error
    if actions.ndim != 3 or actions.shape[::2] != (batch, action_dim) or not actions.shape[1]:
        raise UserError(
            f"actions have shape {actions.shape}; expected ({batch}, K, {action_dim}), one row for"
            " each episode of the last reset"
        )
    if not np.isfinite(actions).all():
        raise UserError(f"actions hold NaN or infinity; {consequence}")
    return actions
