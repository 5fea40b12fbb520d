"""Groups of trajectories from the same first frame: their advantages, and which teach anything
(dynamic sampling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wmpo_lite.common.errors import UserError, check_choice

if TYPE_CHECKING:
    from wmpo_lite.batch import RolloutBatch
    from wmpo_lite.trajectory import Trajectory


def table_of(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (N_groups, G) in floating point; UserError for another shape and for NaN."""
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if rewards.ndim != 2 or not rewards.shape[1]:
        raise UserError(
            f"rewards have shape {tuple(rewards.shape)}; expected (N_groups, G), a row for each"
            " group"
        )
    if not torch.isfinite(rewards).all():
        raise UserError(
            "rewards hold NaN or infinity, from which no group can be told better or worse; check"
            " the reward model's weights and the rollouts"
        )
    return rewards


def group_advantages(rewards: torch.Tensor, std: str = "population") -> torch.Tensor:
    """A_i = (R_i - mean) / std in each group, (N_groups, G); zero where rewards are equal."""
    check_choice("std", std, ("population", "unbiased"))
    rewards = table_of(rewards)
    n = rewards.shape[1]
    centered = rewards - rewards.mean(1, keepdim=True)  # (N_groups, G)
    squares = centered.square().sum(1, keepdim=True)
    scale = (squares / n).sqrt() if std == "population" else (squares / max(n - 1, 1)).sqrt() + 1e-6
    # Rewards are compared, not std > 0: the mean of equal rewards rounds, and the division would
    # blow that up to +-1.
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(equal, torch.zeros_like(centered), centered / scale.masked_fill(equal, 1.0))


def keep_groups(rewards: torch.Tensor, rule: str = "drop") -> torch.Tensor:
    """Dynamic sampling: (N_groups, G) rewards -> bool (N_groups,), True for the groups that are
    worth an update.

    'drop' keeps every group whose rewards differ; 'range' (the paper's code) keeps 0.1 <= mean
    reward <= 0.9.
    """
    check_choice("dynamic_sampling", rule, ("drop", "range"))
    rewards = table_of(rewards)
    if rule == "drop":
        return rewards.amax(1) != rewards.amin(1)
    mean = rewards.double().sum(1) / rewards.shape[1]
    return (mean >= 0.1) & (mean <= 0.9)


@dataclass(frozen=True)
class GroupStats:
    """How many groups dynamic sampling kept, and why it dropped the others."""

    kept: int
    all_success: int
    all_failure: int
    out_of_range: int = 0  # rewards differ, but their mean is outside [0.1, 0.9]

    def __add__(self, other: GroupStats) -> GroupStats:
        return GroupStats(
            self.kept + other.kept,
            self.all_success + other.all_success,
            self.all_failure + other.all_failure,
            self.out_of_range + other.out_of_range,
        )

    def message(self) -> str:
        total = self.kept + self.all_success + self.all_failure + self.out_of_range
        outside = f", {self.out_of_range} outside the range" if self.out_of_range else ""
        return (
            f"{self.kept} of {total} groups kept ({self.all_success} all successes,"
            f" {self.all_failure} all failures{outside})"
        )


def group_stats(rewards: torch.Tensor, rule: str = "drop") -> GroupStats:
    """Counts of `keep_groups` on rewards (N_groups, G)."""
    rewards = table_of(rewards)
    keep = keep_groups(rewards, rule)
    equal = rewards.amax(1) == rewards.amin(1)
    high = rewards[:, 0] > 0.5
    count = lambda mask: int((mask & ~keep).sum())
    return GroupStats(int(keep.sum()), count(equal & high), count(equal & ~high), count(~equal))


def require_signal(stats: GroupStats) -> None:
    """Raise UserError when no group is left: the update would otherwise do nothing, in silence."""
    if stats.kept == 0:
        raise UserError(
            f"No group is left to learn from: {stats.message()}; raise the temperature or"
            " group_size, or start from a policy (or a reward threshold) that yields both"
            " successes and failures."
        )


def group_rewards(rewards: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and groups (N,) -> rewards (N_groups, G) and the positions they come from."""
    if rewards.shape != groups.shape or groups.ndim != 1:
        raise UserError(
            f"there are rewards of shape {tuple(rewards.shape)} and group numbers of shape "
            f"{tuple(groups.shape)}; expected one of each for each trajectory"
        )
    if len(groups) == 0 or bool((groups < 0).any()):
        raise UserError(
            "GRPO needs trajectories sampled in groups: there are none, or some have no group (-1)."
        )
    sizes = torch.unique(groups, return_counts=True)[1]
    if bool((sizes != sizes[0]).any()):
        raise UserError(
            f"Groups have different sizes ({int(sizes.min())} to {int(sizes.max())} trajectories): "
            "expected the same group_size for all; sample whole groups."
        )
    positions = torch.argsort(groups, stable=True).view(len(sizes), -1)  # (N_groups, G)
    return rewards[positions], positions


def filter_groups(
    trajectories: list[Trajectory], rule: str = "drop"
) -> tuple[list[Trajectory], GroupStats]:
    """Dynamic sampling on trajectories: those of the kept groups, in order, and the counts."""
    rewards = torch.tensor([float(t.success) for t in trajectories])
    table, positions = group_rewards(
        rewards, torch.tensor([t.group for t in trajectories], dtype=torch.long)
    )
    kept = positions[keep_groups(table, rule)].flatten().tolist()
    return [trajectories[i] for i in kept], group_stats(table, rule)


def trajectory_advantages(batch: RolloutBatch, group_size: int, std: str) -> torch.Tensor:
    """Advantages (N,) of a batch of whole groups; the UserErrors of `grpo.update`."""
    table, positions = group_rewards(batch.rewards, batch.groups)
    # Unequal, for instance, after two rounds of sampling that number their groups alike.
    if table.shape[1] != group_size:
        raise UserError(
            f"Groups hold {table.shape[1]} trajectories, but GRPOConfig.group_size is"
            f" {group_size}: give each group its own number."
        )
    require_signal(group_stats(table, "drop"))
    if not torch.isfinite(batch.log_probs[batch.mask]).all():
        raise UserError(
            "Some trajectories lack the log-probs of the policy that sampled them: record rollouts"
            " with their log-probs for GRPO."
        )
    advantages = torch.empty(len(batch.rewards))
    advantages[positions] = group_advantages(table, std).float()
    return advantages
