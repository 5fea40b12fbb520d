"""Trajectories as tensors for policy optimization: chunks, token masks, and their log-probabilities
under a policy.

Shared by GRPO and DPO. N trajectories, K steps a chunk, D action dimensions; all stays on the CPU
until it is used.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wmpo_lite.common.errors import UserError

if TYPE_CHECKING:
    from wmpo_lite.trajectory import Trajectory


def valid_token_mask(finish_step: torch.Tensor, n_chunks: int, K: int, D: int) -> torch.Tensor:
    """Tokens that the loss sees: finish_step (N,) -> bool (N, n_chunks, K, D).

    Action s leads to frame s + 1, so the actions up to the first successful frame are those with s
    < finish_step.
    """
    if bool(((finish_step < 0) | (finish_step > n_chunks * K)).any()):
        raise UserError(
            f"finish_step must lie between 0 and {n_chunks * K} (the control steps of a"
            f" trajectory), but it ranges from {int(finish_step.min())} to"
            f" {int(finish_step.max())}."
        )
    steps = torch.arange(n_chunks * K, device=finish_step.device)
    return (steps < finish_step[:, None]).view(-1, n_chunks, K, 1).expand(-1, -1, -1, D)


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """Trajectories cut into chunks, of which only the frame is kept that each was chosen on."""

    frames: torch.Tensor  # uint8 (N, n_chunks, H, W, 3)
    instructions: list[str]  # length N
    tokens: torch.Tensor  # int64 (N, n_chunks, K, D)
    log_probs: torch.Tensor  # float32 (N, n_chunks, K, D) as sampled; NaN where not recorded
    finish_step: torch.Tensor  # int64 (N,)
    rewards: torch.Tensor  # float32 (N,), 1 for a success
    groups: torch.Tensor  # int64 (N,), -1 for none

    @property
    def mask(self) -> torch.Tensor:
        return valid_token_mask(self.finish_step, *self.tokens.shape[1:])  # (N, n_chunks, K, D)


def batch_from_trajectories(trajectories: list[Trajectory]) -> RolloutBatch:
    """Stack trajectories, shorter ones padded past their finish_step; UserError if unlike."""
    if not trajectories:
        raise UserError("There are no trajectories to learn from: collect rollouts first.")
    sampled = [t.tokens for t in trajectories if t.tokens is not None]
    if len(sampled) < len(trajectories):
        raise UserError(
            "A trajectory has no action tokens: expected rollouts of a policy, not demonstrations."
        )
    shapes = {
        (t.chunk, rows.shape[1], *t.frames.shape[1:]) for t, rows in zip(trajectories, sampled)
    }
    if len(shapes) > 1:
        raise UserError(
            f"Trajectories differ in (K, D, H, W, 3): {sorted(shapes)}; expected one chunk length,"
            " one number of action dimensions and one image size."
        )
    (K, D, *image), N = shapes.pop(), len(trajectories)
    n_chunks = max(math.ceil(len(rows) / K) for rows in sampled)
    frames = np.zeros((N, n_chunks, *image), np.uint8)
    tokens = np.zeros((N, n_chunks * K, D), np.int64)
    log_probs = np.full((N, n_chunks * K, D), np.nan, np.float32)
    for i, (t, rows) in enumerate(zip(trajectories, sampled)):
        T = len(rows)
        frames[i, : math.ceil(T / K)] = t.frames[:T:K]
        tokens[i, :T] = rows
        if t.log_probs is not None:
            log_probs[i, :T] = t.log_probs
    split = lambda x: torch.from_numpy(x).view(N, n_chunks, K, D)
    column = lambda values, dtype: torch.tensor(values, dtype=dtype)
    instructions = [t.instruction for t in trajectories]
    return RolloutBatch(
        torch.from_numpy(frames),
        instructions,
        split(tokens),
        split(log_probs),
        column([t.finish_step for t in trajectories], torch.long),
        column([float(t.success) for t in trajectories], torch.float32),
        column([t.group for t in trajectories], torch.long),
    )


def batch_log_probs(
    policy, batch: RolloutBatch, index: torch.Tensor, temperature: float, device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of trajectories `index` (m,): two (m, n_chunks, K, D), zero in chunks
    past finish_step.

    Those chunks are never shown to the policy, which saves most of the work once success comes
    early.
    """
    tokens = batch.tokens[index]
    mask = valid_token_mask(batch.finish_step[index], *tokens.shape[1:])
    live = mask.flatten(2).any(-1)  # (m, n_chunks)
    log_probs, entropy = torch.zeros(2, *tokens.shape, device=device)
    if live.any():
        instructions = [batch.instructions[index[i]] for i in live.nonzero()[:, 0].tolist()]
        frames = batch.frames[index][live].to(device)  # (M, H, W, 3)
        chosen = tokens[live].to(device)  # (M, K, D)
        new, spread = policy.log_probs(frames, instructions, chosen, temperature)
        where = live.to(device)[..., None, None]
        log_probs = log_probs.masked_scatter(where, new.float())
        entropy = entropy.masked_scatter(where, spread.float())
    return log_probs, entropy


def minibatches(order: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """`order` (n,) cut into equal parts (give or take one) of `size`, or near it: a small rest
    beside full ones would move the weights as far as they do.

    Parts have 3/4 to 3/2 of `size`, unless n is less.
    """
    return torch.tensor_split(order, max(1, int(len(order) / size + 0.5)))


@contextmanager
def evaluating(policy):
    """Dropout off inside: log-probabilities are to be those of the policy that acted."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def optimizer_step(optimizer: torch.optim.Optimizer, grad_clip: float, where: str) -> float:
    """Clip the gradient, step, return its norm before. UserError, and no step, if not finite."""
    norm = torch.nn.utils.clip_grad_norm_(
        [p for g in optimizer.param_groups for p in g["params"]], grad_clip
    )
    if not torch.isfinite(norm):
        raise UserError(
            f"The gradient is not finite in {where}: lower lr, and check the policy's weights for"
            " NaN."
        )
    optimizer.step()
    return float(norm)
