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
from typing import Literal

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
from wmpo_lite.common.errors import UserError, check_choice, check_positive, check_range
from wmpo_lite.groups import (  # noqa: F401
    GroupStats,
    filter_groups,
    group_advantages,
    group_rewards,
    group_stats,
    keep_groups,
    require_signal,
    trajectory_advantages,
)

# exp(20) is 5e8: past any use, yet finite, so a ratio times a zero advantage is 0 and not NaN
MAX_LOG_RATIO = 20.0
# mean difference of log-probs that another batch size may make
ROUNDING, ROUNDING_16_BIT = 2e-3, 0.05
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
    # paper: population; its code: unbiased + 1e-6
    std: Literal["population", "unbiased"] = "population"
    # paper: per chunk (sum of K x D log-probs); its code: per token
    ratio: Literal["token", "chunk"] = "token"
    # What counts alike in the mean. "trajectory": every trajectory, whatever its length (the paper;
    # TRL's loss_type="grpo", verl's seq-mean-token-mean, OpenRLHF without token_level_loss);
    # "token": every valid token, so that long trajectories weigh more (DAPO; the defaults of TRL,
    # verl and OpenRLHF); "chunk": every chunk of actions (RLinf's mean of its chunk-level loss)
    loss_aggregation: Literal["trajectory", "token", "chunk"] = "trajectory"
    # c > 1: the loss of a negative advantage goes no further than c times it, however large the
    # ratio (Dual-Clip PPO, arXiv 1912.09729; verl's clip_ratio_c, 3 by default, TRL's delta,
    # OpenRLHF's dual_clip). None: as far as the ratio goes (the paper)
    dual_clip: float | None = None
    # paper: all-equal groups go; its code: keep 0.1 <= mean <= 0.9
    dynamic_sampling: Literal["drop", "range"] = "drop"
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


def check_dual_clip(c: float | None) -> None:
    if c is not None and not (math.isfinite(c) and c > 1):
        raise UserError(f"dual_clip is {c}: expected a finite number above 1, or None.")


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
        if not len(seen):
            none = {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_max": 1.0, "ratio_min": 1.0}
            return loss, none
        logs = {
            "clip_fraction": float(stopped[valid].float().mean()),
            "approx_kl": float((d.exp() - 1 - d).mean()),
            "ratio_max": float(seen.max()),
            "ratio_min": float(seen.min()),
        }
    return loss, logs


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
    advantages, groups = torch.zeros(0), []
    if batch is not None:
        advantages = trajectory_advantages(batch, config.group_size, config.std)
        groups = batch.groups.tolist()
    places, total = parallel.places(groups)
    if not total:
        require_signal(GroupStats(0, 0, 0))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    logs, step = _Logs(), 0
    with evaluating(policy):
        for _ in range(config.epochs):
            order = torch.randperm(total, generator=generator)
            for minibatch in minibatches(order, config.minibatch):
                optimizer.zero_grad(set_to_none=True)
                there = places[minibatch]
                mine = there[there >= 0]
                surprise = _backward(policy, batch, mine, advantages, config, logs, step)
                parallel.add_gradients(parameters)
                if step == 0:
                    gap, tokens = (sum(part) for part in zip(*parallel.collect(surprise)))
                    check_on_policy(policy, gap / max(1, tokens), config.temperature)
                norm = optimizer_step(optimizer, config.grad_clip, f"GRPO update {step}")
                logs.add("grad_norm", norm, 1)
                step += 1
    return logs.of_all_processes()


def _backward(
    policy,
    batch: RolloutBatch | None,
    mine: torch.Tensor,
    advantages: torch.Tensor,
    config: GRPOConfig,
    logs: _Logs,
    step: int,
) -> tuple[float, int]:
    """The gradient of this process's part of a minibatch, trajectories `mine` (m,) of `batch`, in
    passes of `micro_batch`. Returns the sum of |log ratio| of its valid tokens and their number.
    """
    count = lambda mask: loss_count(mask, config.ratio, config.loss_aggregation)
    whole = parallel.collect(0 if batch is None else count(batch.mask[mine]))
    if batch is None or not len(mine):
        return 0.0, 0
    device, gap, seen = next(policy.parameters()).device, 0.0, 0
    for index in mine.split(config.micro_batch or len(mine)):
        valid, old = batch.mask[index].to(device), batch.log_probs[index].to(device)
        new, entropy = batch_log_probs(policy, batch, index, config.temperature, device)
        loss, said = policy_loss(
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
                f"The GRPO loss is {loss.item()} at update {step}: lower lr "
                f"(now {config.lr}), and check the policy's weights for NaN."
            )
        if loss.requires_grad:  # the loss is a mean, so shares add up exactly
            (loss * (count(valid) / max(1, sum(whole)))).backward()
        tokens, chunks = int(valid.sum()), int(valid.flatten(2).any(-1).sum())
        gap, seen = gap + float((new.detach() - old)[valid].abs().sum()), seen + tokens
        said["loss"] = loss.item()
        said["entropy"] = float(entropy.detach()[valid].mean()) if tokens else 0.0
        ratios = tokens if config.ratio == "token" else chunks
        weights = {"loss": count(valid), "clip_fraction": ratios}
        for name, value in said.items():
            logs.add(name, value, weights.get(name, tokens))
    return gap, seen


class _Logs:
    """Weighted means of what the passes of an update say, and the extremes."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: float, count: int) -> None:
        if name in EXTREMES:
            self.sums[name] = EXTREMES[name](self.sums.get(name, value), value)
        else:
            self.sums[name] = self.sums.get(name, 0.0) + value * count
            self.counts[name] = self.counts.get(name, 0) + count

    def of_all_processes(self) -> dict[str, float]:
        (sums, counts), *others = parallel.collect((self.sums, self.counts))
        for more, number in others:
            for name, value in more.items():
                join = EXTREMES.get(name, operator.add)
                sums[name] = join(sums[name], value) if name in sums else value
                counts[name] = counts.get(name, 0) + number.get(name, 0)
        return {
            name: value if name in EXTREMES else value / max(1, counts[name])
            for name, value in sums.items()
        }


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
