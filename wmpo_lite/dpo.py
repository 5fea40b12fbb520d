"""DPO: the offline baseline (paper: baselines). Pairs of recorded success and failure; the base
policy as reference.

It sees the same P real rollouts as WMPO, but never acts: it learns which recorded trajectory of a
pair to prefer. The loss is Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290,
equation 7).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from wmpo_lite.batch import (
    RolloutBatch,
    batch_from_trajectories,
    batch_log_probs,
    evaluating,
    minibatches,
    optimizer_step,
)
from wmpo_lite.common import parallel
from wmpo_lite.common.errors import UserError, check_choice, check_positive, check_range
from wmpo_lite.train import backward

if TYPE_CHECKING:
    from wmpo_lite.trajectory import Trajectory


LOGS = ("loss", "accuracy", "margin", "chosen_shift", "rejected_shift")  # of `dpo_loss`


@dataclass(frozen=True)
class DPOConfig:
    """Settings of the DPO baseline."""

    # strength of the pull towards the reference; small lets the policy move further
    beta: float = 0.1
    # of a trajectory's log-probs; mean makes length irrelevant
    normalize: Literal["sum", "mean"] = "sum"
    lr: float = 1e-4
    epochs: int = 2  # passes over the pairs
    pairs: int = 256  # pairs drawn from the rollouts
    batch: int = 16  # pairs an optimizer step, give or take what divides them evenly
    # pairs a forward pass; gradients add up to the same step in less memory
    micro_batch: int | None = None
    grad_clip: float = 1.0
    temperature: float = 1.0  # of the log-probs, policy and reference alike

    def __post_init__(self):
        check_choice("normalize", self.normalize, ("sum", "mean"))
        check_range("DPOConfig", self, epochs=1, pairs=1, batch=1)
        if self.micro_batch is not None:
            check_range("DPOConfig", self, micro_batch=1)
        check_positive("DPOConfig", self, "beta", "lr", "grad_clip", "temperature")


def make_pairs(
    trajectories: list[Trajectory], generator: torch.Generator | None, n: int
) -> torch.Tensor:
    """Draw n pairs: int64 (n, 2), positions of (success, failure) in `trajectories`.

    A failure from the same initial state is preferred, then one with the same instruction, then
    any: the closer they are, the more the pair says about the actions. Successes come in shuffled
    rounds: none comes twice before each has come once.
    """
    successes = [i for i, t in enumerate(trajectories) if t.success]
    failures = [i for i, t in enumerate(trajectories) if not t.success]
    if not successes or not failures:
        always = "always" if successes else "never"
        raise UserError(
            f"DPO needs successes and failures, but there are {len(successes)} and {len(failures)}:"
            f" it cannot learn from a policy that {always} succeeds; record more rollouts or"
            " another task."
        )
    same_state, same_instruction = defaultdict(list), defaultdict(list)
    for i in failures:
        same_state[state_key(trajectories[i], i)].append(i)
        same_instruction[trajectories[i].instruction].append(i)
    draw = lambda size: int(torch.randint(size, (1,), generator=generator))
    pairs: list[tuple[int, int]] = []
    while len(pairs) < n:
        for k in torch.randperm(len(successes), generator=generator).tolist()[: n - len(pairs)]:
            chosen = successes[k]
            rejected = (
                same_state.get(state_key(trajectories[chosen], chosen))
                or same_instruction.get(trajectories[chosen].instruction)
                or failures
            )
            pairs.append((chosen, rejected[draw(len(rejected))]))
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def state_key(trajectory: Trajectory, position: int) -> tuple:
    """What trajectories from one initial state share; without states, each has its own."""
    state = trajectory.initial_state
    known = state is not None and state.size
    return (trajectory.instruction, state.tobytes()) if known else (position,)


def reduce_log_probs(
    log_probs: torch.Tensor, mask: torch.Tensor, normalize: str = "sum"
) -> torch.Tensor:
    """Log-probability (N,) of each trajectory's valid tokens; both (N, n_chunks, K, D)."""
    check_choice("normalize", normalize, ("sum", "mean"))
    total = log_probs.masked_fill(~mask, 0.0).flatten(1).sum(1)
    return total if normalize == "sum" else total / mask.flatten(1).sum(1).clamp(min=1)


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean over pairs of -log sigmoid(margin), margin = beta * [(policy - ref) chosen - (policy -
    ref) rejected].

    All inputs (N,): log-probs of whole trajectories (`reduce_log_probs`). Logs: loss, accuracy
    (share of positive margins; a zero counts half), margin (mean), chosen_shift and rejected_shift
    (mean policy - ref).
    """
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    margin = beta * (chosen - rejected)
    loss = -F.logsigmoid(margin).mean()
    with torch.no_grad():
        accuracy = ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()
        logs = {
            "loss": loss.detach(),
            "accuracy": accuracy,
            "margin": margin.mean(),
            "chosen_shift": chosen.mean(),
            "rejected_shift": rejected.mean(),
        }
        return loss, {name: float(value) for name, value in logs.items()}


def trajectory_log_probs(
    policy, batch: RolloutBatch, index: torch.Tensor, config: DPOConfig, device
) -> torch.Tensor:
    """Log-probabilities (m,) of trajectories `index` (m,) of a batch under a policy."""
    log_probs, _ = batch_log_probs(policy, batch, index, config.temperature, device)
    return reduce_log_probs(log_probs, batch.mask[index].to(device), config.normalize)


def train_dpo(
    policy,
    reference,
    trajectories: list[Trajectory],
    config: DPOConfig = DPOConfig(),
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on recorded rollouts; return the logs of each step, which
    `on_step(step, logs)` sees too.

    `reference` is the base policy: its log-probs are taken once, before training, so None is the
    policy as it comes in. Dropout is off in both. Only success, tokens and finish_step of the
    rollouts are used, not the log-probs of the policy that sampled them. Several processes share
    out the pairs of a step; the first one calls `on_step`. UserError: no successes, no failures, no
    tokens, or a loss or gradient that is not finite.
    """
    parallel.same_weights(policy)
    generator = torch.Generator().manual_seed(seed)
    pairs = make_pairs(trajectories, generator, config.pairs)  # (n, 2)
    batch = batch_from_trajectories(trajectories)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    device = parameters[0].device
    base = policy if reference is None else reference
    ref = torch.zeros(len(trajectories), device=device)
    named = pairs.unique()
    with evaluating(base), torch.no_grad():
        for index in named[parallel.rows(len(named))].split(2 * config.batch):
            ref[index.to(device)] = trajectory_log_probs(base, batch, index, config, device)
    ref = parallel.add(ref)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr)
    history: list[dict[str, float]] = []
    with evaluating(policy):
        for _ in range(config.epochs):
            for rows in minibatches(torch.randperm(len(pairs), generator=generator), config.batch):
                optimizer.zero_grad(set_to_none=True)
                passes = parallel.passes(len(rows), config.micro_batch)
                share = lambda: _share_of_loss(policy, batch, pairs[rows], ref, config)
                loss, logs = backward(share, passes)
                if not math.isfinite(loss):
                    raise UserError(
                        f"The DPO loss is {loss} at step {len(history)}: lower lr (now"
                        f" {config.lr}), and check the policy's weights for NaN."
                    )
                parallel.add_gradients(parameters)
                logs["grad_norm"] = optimizer_step(
                    optimizer, config.grad_clip, f"DPO step {len(history)}"
                )
                history.append(logs)
                if on_step is not None and not parallel.rank():
                    on_step(len(history) - 1, logs)
    return history


def _share_of_loss(policy, batch: RolloutBatch, pairs: torch.Tensor, ref, config: DPOConfig):
    """What this process adds to `dpo_loss` and its logs on pairs (n, 2) of trajectories, whose
    log-probs under the reference are ref (N,).
    """
    own, share = pairs[parallel.rows(len(pairs))], parallel.share(len(pairs))
    if not len(own):
        return ref.new_zeros((), requires_grad=True), dict.fromkeys(LOGS, 0.0)
    # One forward pass a trajectory, however often the pairs of this step name it.
    index, place = own.unique(return_inverse=True)  # (m,), (own, 2)
    new = trajectory_log_probs(policy, batch, index, config, ref.device)  # (m,)
    old, place = ref[index.to(ref.device)], place.to(ref.device)
    loss, logs = dpo_loss(*new[place].unbind(1), *old[place].unbind(1), beta=config.beta)
    return loss * share, {name: value * share for name, value in logs.items()}
