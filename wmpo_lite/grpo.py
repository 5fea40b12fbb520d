"""GRPO: group advantages, dynamic sampling, the clipped loss and one policy update (paper: policy
optimization).

Left out, as in the paper: critic, reference model, KL term, entropy bonus. The only learning signal
is which of the G trajectories from the same first frame ended in success, so a group in which all
of them did the same teaches nothing.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from wmpo_lite.batch import (  # noqa: F401
    RolloutBatch,
    batch_from_trajectories,
    batch_log_probs,
    evaluating,
    minibatches,
    optimizer_step,
    valid_token_mask,
)
from wmpo_lite.common import parallel
from wmpo_lite.common.errors import UserError

if TYPE_CHECKING:
    from wmpo_lite.trajectory import Trajectory

# exp(20) is 5e8: past any use, yet finite, so a ratio times a zero advantage is 0 and not NaN
MAX_LOG_RATIO = 20.0
ROUNDING, ROUNDING_16_BIT = (
    2e-3,
    0.05,
)  # mean difference of log-probs that another batch size may make
EXTREMES = {"ratio_max": max, "ratio_min": min}  # logs that an average would hide


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of one GRPO iteration; the defaults suit a policy of a few million weights.

    The paper: lr 5e-6, 64 groups of 8 (512 trajectories), minibatch 128 in one pass (4 updates),
    temperature 1.6.
    """

    group_size: int = 8  # G, trajectories that share a first frame
    groups: int = 16  # groups an iteration
    clip_low: float = 0.20  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.28
    std: Literal["population", "unbiased"] = (
        "population"  # paper: population; its code: unbiased + 1e-6
    )
    ratio: Literal["token", "chunk"] = (
        "token"  # paper: per chunk (sum of K x D log-probs); its code: per token
    )
    # What counts alike in the mean. "trajectory": every trajectory, whatever its length (the paper;
    # TRL's loss_type="grpo", verl's seq-mean-token-mean, OpenRLHF without token_level_loss);
    # "token": every valid token, so that long trajectories weigh more (DAPO; the defaults of TRL,
    # verl and OpenRLHF); "chunk": every chunk of actions (RLinf's mean of its chunk-level loss)
    loss_aggregation: Literal["trajectory", "token", "chunk"] = "trajectory"
    # c > 1: the loss of a negative advantage goes no further than c times it, however large the
    # ratio (Dual-Clip PPO, arXiv 1912.09729; verl's clip_ratio_c, 3 by default, TRL's delta,
    # OpenRLHF's dual_clip). None: as far as the ratio goes (the paper)
    dual_clip: float | None = None
    dynamic_sampling: Literal["drop", "range"] = (
        "drop"  # paper: all-equal groups go; its code: keep 0.1 <= mean <= 0.9
    )
    lr: float = 3e-4
    # iterations over which lr rises: Adam's first steps are as long in directions that are all
    # noise as in any other
    warmup: int = 1
    # last iterations over which lr falls, linearly: a policy that is learned from few episodes at a
    # time wanders about where it would settle
    decay: int = 0
    epochs: int = 2  # passes over the trajectories of an iteration
    # trajectories an optimizer step; those of an iteration are cut evenly, into parts near this
    # size
    minibatch: int = 128
    # trajectories a forward pass; gradients add up to the same step in less memory
    micro_batch: int | None = None
    grad_clip: float = 1.0
    temperature: float = 1.0  # of sampling; log-probs are taken at the same temperature

    def __post_init__(self):
        check_choice("std", self.std, ("population", "unbiased"))
        check_choice("ratio", self.ratio, ("token", "chunk"))
        check_choice("loss_aggregation", self.loss_aggregation, ("trajectory", "token", "chunk"))
        check_choice("dynamic_sampling", self.dynamic_sampling, ("drop", "range"))
        check_range(
            "GRPOConfig", self, group_size=2, groups=1, warmup=1, decay=0, epochs=1, minibatch=1
        )
        check_positive(
            "GRPOConfig", self, "clip_low", "clip_high", "lr", "grad_clip", "temperature"
        )
        if self.clip_low >= 1:
            raise UserError(
                f"GRPOConfig.clip_low is {self.clip_low}: no ratio is below 0, so choose less"
                " than 1."
            )
        if self.micro_batch is not None:
            check_range("GRPOConfig", self, micro_batch=1)
        check_dual_clip(self.dual_clip)


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")


def check_dual_clip(c: float | None) -> None:
    if c is not None and not (math.isfinite(c) and c > 1):
        raise UserError(f"dual_clip is {c}: expected a finite number above 1, or None.")


def check_range(where: str, config, **minimum: int) -> None:
    for name, least in minimum.items():
        if getattr(config, name) < least:
            raise UserError(f"{where}.{name} is {getattr(config, name)}: expected {least} or more.")


def check_positive(where: str, config, *names: str) -> None:
    for name in names:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise UserError(
                f"{where}.{name} is {getattr(config, name)}: expected a finite number above 0."
            )


def table_of(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (N_groups, G) of any number type as floating-point numbers; UserError for another
    shape and for NaN.
    """
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
    """A_i = (R_i - mean) / std inside each group: (N_groups, G) -> (N_groups, G); zero in a group
    of equal rewards.
    """
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
    """Sort trajectories into groups: rewards, groups (N,) -> rewards (N_groups, G), their positions
    (N_groups, G).
    """
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
    """Dynamic sampling on trajectories: those of the kept groups, group by group,
    and the counts.
    """
    rewards = torch.tensor([float(t.success) for t in trajectories])
    table, positions = group_rewards(
        rewards, torch.tensor([t.group for t in trajectories], dtype=torch.long)
    )
    kept = positions[keep_groups(table, rule)].flatten().tolist()
    return [trajectories[i] for i in kept], group_stats(table, rule)


def policy_loss(
    new_log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_low: float = 0.20,
    clip_high: float = 0.28,
    ratio: str = "token",
    aggregation: str = "trajectory",
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Clipped GRPO objective, negated: mean over a trajectory's valid tokens (or chunks), then over
    trajectories.

    new_log_probs, old_log_probs, mask: (N, n_chunks, K, D); advantages: (N,). A chunk's ratio joins
    its valid tokens. A trajectory with no valid token adds zero (and still counts in the mean).
    aggregation, dual_clip: see `GRPOConfig`; "token" is the mean over all valid tokens (or chunks),
    "chunk" over the valid tokens of a chunk, then over all chunks that have one.
    Logs: clip_fraction (valid ratios where a clip stops the gradient), approx_kl (k3 estimate of
    KL(old || new) over valid tokens), ratio_max, ratio_min.
    """
    check_choice("ratio", ratio, ("token", "chunk"))
    check_choice("aggregation", aggregation, ("trajectory", "token", "chunk"))
    check_dual_clip(dual_clip)
    difference = (new_log_probs - old_log_probs).masked_fill(~mask, 0.0)  # (N, n_chunks, K, D)
    if ratio == "token":
        log_ratio, valid = difference.flatten(1), mask.flatten(1)  # (N, n_chunks * K * D)
    else:
        log_ratio, valid = difference.sum((-2, -1)), mask.flatten(2).any(-1)  # (N, n_chunks)
    r = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = r * advantages[:, None]
    clipped = r.clamp(1 - clip_low, 1 + clip_high) * advantages[:, None]
    objective, stopped = torch.minimum(free, clipped), clipped < free
    if dual_clip is not None:
        floor = dual_clip * advantages[:, None]
        beyond = (advantages[:, None] < 0) & (objective < floor)
        objective, stopped = torch.where(beyond, floor, objective), stopped | beyond
    objective = objective.masked_fill(~valid, 0.0)
    if aggregation == "trajectory":
        loss = -(objective.sum(1) / valid.sum(1).clamp(min=1)).mean()
    elif aggregation == "token" or ratio == "chunk":
        loss = -objective.sum() / valid.sum().clamp(min=1)
    else:
        chunks, there = objective.view(*mask.shape[:2], -1), mask.flatten(2)  # (N, n_chunks, K * D)
        means = chunks.sum(2) / there.sum(2).clamp(min=1)
        loss = -means.sum() / there.any(2).sum().clamp(min=1)
    with torch.no_grad():
        d, seen = difference[mask].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), r[valid]
        logs = (
            {
                "clip_fraction": stopped[valid].float().mean(),
                "approx_kl": (d.exp() - 1 - d).mean(),
                "ratio_max": seen.max(),
                "ratio_min": seen.min(),
            }
            if len(seen)
            else {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_max": 1.0, "ratio_min": 1.0}
        )
    return loss, {name: float(value) for name, value in logs.items()}


def loss_count(mask: torch.Tensor, ratio: str, aggregation: str) -> int:
    """How many things `policy_loss` is the mean of, for mask (N, n_chunks, K, D): trajectories,
    valid tokens or chunks. Losses of parts of a batch add up with these as weights.
    """
    if aggregation == "trajectory":
        return len(mask)
    if aggregation == "token" and ratio == "token":
        return int(mask.sum())
    return int(mask.flatten(2).any(-1).sum())


def update(
    policy,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch | None,
    config: GRPOConfig,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """One GRPO iteration on a batch of whole groups: `epochs` passes over minibatches shuffled by
    `generator` (CPU). On several processes each gives the groups that it has, None for none: they
    take the steps, and return the logs, of one process that has them all, by the groups' numbers.

    policy.log_probs(frames (M, H, W, 3), instructions, tokens (M, K, D), temperature) -> log-probs,
    entropy (M, K, D). Dropout is off meanwhile. Logs: the mean loss of what
    `loss_aggregation` counts, the mean entropy, KL and clipped share of a valid token (or chunk),
    however they were cut into batches, the mean gradient norm of a step, and the extreme ratios.
    UserError: groups without signal or of another size, log-probs that were not recorded or are not
    those of this policy at this temperature, a loss or gradient that is not finite (that step is
    not taken).
    """
    advantages = torch.zeros(0) if batch is None else trajectory_advantages(batch, config)
    mask = None if batch is None else batch.mask
    places, total = own_places([] if batch is None else batch.groups.tolist())
    if not total:
        require_signal(GroupStats(0, 0, 0))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    sums, counts, steps = {}, {}, 0
    with evaluating(policy):
        for _ in range(config.epochs):
            for minibatch in minibatches(
                torch.randperm(total, generator=generator), config.minibatch
            ):
                optimizer.zero_grad(set_to_none=True)
                surprise = [0.0, 0]  # sum of |log ratio| and number of valid tokens
                there = places[minibatch]
                mine = there[there >= 0]
                part = mask[mine] if len(mine) else torch.zeros(0, 1, 1, 1, dtype=torch.bool)
                whole = loss_count(part, config.ratio, config.loss_aggregation)
                whole = max(1, sum(parallel.collect(whole)))
                for index in mine.split(config.micro_batch or len(mine)) if len(mine) else ():
                    valid, old = mask[index].to(device), batch.log_probs[index].to(device)
                    new, entropy = batch_log_probs(policy, batch, index, config.temperature, device)
                    loss, parts = policy_loss(
                        new,
                        old,
                        advantages[index].to(device),
                        valid,
                        config.clip_low,
                        config.clip_high,
                        config.ratio,
                        config.loss_aggregation,
                        config.dual_clip,
                    )
                    if not torch.isfinite(loss):
                        raise UserError(
                            f"The GRPO loss is {loss.item()} at update {steps}: lower lr "
                            f"(now {config.lr}), and check the policy's weights for NaN."
                        )
                    tokens = int(valid.sum())
                    count = loss_count(valid, config.ratio, config.loss_aggregation)
                    surprise[0] += float((new.detach() - old)[valid].abs().sum())
                    surprise[1] += tokens
                    if loss.requires_grad:  # the loss is a mean, so shares add up exactly
                        (loss * (count / whole)).backward()
                    parts |= {
                        "loss": loss.item(),
                        "entropy": float(entropy.detach()[valid].mean()) if tokens else 0.0,
                    }
                    chunks = int(valid.flatten(2).any(-1).sum())
                    weights = {
                        "loss": count,
                        "clip_fraction": tokens if config.ratio == "token" else chunks,
                    }
                    for name, value in parts.items():
                        if name in EXTREMES:
                            sums[name] = EXTREMES[name](sums.get(name, value), value)
                        else:
                            _add(sums, counts, name, value, weights.get(name, tokens))
                parallel.add_gradients(parameters)
                if steps == 0:
                    gap, tokens = (sum(part) for part in zip(*parallel.collect(surprise)))
                    check_on_policy(policy, gap / max(1, tokens), config.temperature)
                norm = optimizer_step(optimizer, config.grad_clip, f"GRPO update {steps}")
                _add(sums, counts, "grad_norm", norm, 1)
                steps += 1
    sums, counts = _join(parallel.collect((sums, counts)))
    return {
        name: value if name in EXTREMES else value / max(1, counts[name])
        for name, value in sums.items()
    }


def trajectory_advantages(batch: RolloutBatch, config: GRPOConfig) -> torch.Tensor:
    """Advantages (N,) of a batch of whole groups; UserErrors of `update` for what cannot be learned
    from.
    """
    table, positions = group_rewards(batch.rewards, batch.groups)
    if (
        table.shape[1] != config.group_size
    ):  # such as two rounds of sampling that number their groups alike
        raise UserError(
            f"Groups hold {table.shape[1]} trajectories, but GRPOConfig.group_size is"
            f" {config.group_size}: give each group its own number."
        )
    require_signal(group_stats(table, "drop"))
    if not torch.isfinite(batch.log_probs[batch.mask]).all():
        raise UserError(
            "Some trajectories lack the log-probs of the policy that sampled them: record rollouts"
            " with their log-probs for GRPO."
        )
    advantages = torch.empty(len(batch.rewards))
    advantages[positions] = group_advantages(table, config.std).float()
    return advantages


def own_places(groups: list[int]) -> tuple[torch.Tensor, int]:
    """Where the trajectories of all processes, sorted by group, are in this one (-1: in another):
    (total,), total. groups: the group of each trajectory here. One process keeps its order.
    """
    found = parallel.collect(groups)
    *before, total = np.cumsum([0, *map(len, found)]).tolist()
    order = torch.arange(total)
    if parallel.count() > 1:
        order = torch.argsort(torch.tensor(sum(found, []), dtype=torch.long), stable=True)
    order = order - before[parallel.rank()]
    return order.masked_fill((order < 0) | (order >= len(groups)), -1), total


def _join(parts: list[tuple[dict, dict]]) -> tuple[dict, dict]:
    """Sums and counts of all processes as one."""
    (sums, counts), *others = parts
    for more, number in others:
        for name, value in more.items():
            join = EXTREMES.get(name, operator.add)
            sums[name] = join(sums[name], value) if name in sums else value
            counts[name] = counts.get(name, 0) + number.get(name, 0)
    return sums, counts


def _add(sums: dict, counts: dict, name: str, mean: float, count: int) -> None:
    sums[name], counts[name] = sums.get(name, 0.0) + mean * count, counts.get(name, 0) + count


def check_on_policy(policy, surprise: float, temperature: float) -> None:
    """Before the first step nothing has been learned, so every ratio is 1 up to rounding, which
    depends on the number type.

    surprise: mean |log ratio| of a valid token. UserError where that is not rounding: another
    temperature, another policy, or one that draws at random (dropout). A clipped loss would train
    on it in silence.
    """
    rounds = lambda kind: torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    exact = all(
        p.dtype in (torch.float32, torch.float64) and not rounds(p.device.type)
        for p in policy.parameters()
    )
    if surprise > (ROUNDING if exact else ROUNDING_16_BIT):
        raise UserError(
            f"The rollouts were not sampled by this policy at temperature {temperature}: before the"
            f" first step the log-probs of their tokens differ by {surprise:.2g} on average, where"
            " 0 is expected; sample rollouts with the policy as it is, at GRPOConfig.temperature."
        )
