"""The GRPO loop: the same for imagination (WMPO) and for the simulator (online GRPO); only the
environment and its initial states differ.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from wmpo_lite import grpo
from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.progress import progress
from wmpo_lite.rollout import rollout
from wmpo_lite.train import load_progress, origin, save_progress
from wmpo_lite.trajectory import InitialStates


def optimize(
    policy,
    make_env: Callable,
    states: InitialStates,
    config: grpo.GRPOConfig,
    *,
    iterations: int,
    horizon: int,
    seed: int,
    stage: str,
    folder: Path | None = None,
    on_log: Callable | None = None,
    refill: int = 1,
    freeze_vision: bool = False,
    save_every: int = 5,
    tolerate_silence: bool = False,
    made_from: dict | None = None,
) -> list[dict]:
    """Improve `policy` in place by `iterations` rounds of rollouts and updates; returns one record
    a round.

    make_env(seed) gives the environment of one iteration (an imagined one draws its noise from that
    seed, through `parallel.draw`); states: pool of initial states, of which every iteration takes
    `config.groups` at random, each repeated `config.group_size` times (paper: 64 x 8). Groups
    without signal are dropped and drawn anew in up to `refill` further rounds (paper: until the
    batch is full). folder: checkpoint
    here and continue what is found, if it began with the same weights, settings, seed and states;
    made_from: what else the result depends on (the world model), as plain values by name.
    tolerate_silence: skip an iteration in which every group was dropped (a real rollout budget is
    spent all the same); otherwise UserError.

    Several processes share out the groups of an iteration, each a whole one, and keep the policy
    alike; the first one writes and logs. Up to 256 trajectories an iteration they sample what one
    process samples.
    """
    parallel.require_work(config.groups, "groups")
    parallel.same_weights(policy)
    if len(states) < 1:
        raise UserError(
            f"stage '{stage}' has no initial states to start from; record rollouts first"
        )
    policy.train_vision(not freeze_vision)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    made = origin(
        policy,
        folder,
        name=stage,
        seed=seed,
        steps=iterations,
        horizon=horizon,
        refill=refill,
        **dataclasses.asdict(dataclasses.replace(config, micro_batch=None)),  # changes no weight
        states=_digest(states) if folder is not None else "",
        **(made_from or {}),
    )
    records, start = [], 0
    if folder is not None and (Path(folder) / "progress.json").exists():
        start, records = load_progress(folder, policy, optimizer, None, made)
    bar = progress(
        range(start, iterations), initial=start, total=iterations, desc=stage, mininterval=1
    )
    for iteration in bar:
        clock = time.monotonic()
        rng = np.random.default_rng([seed, iteration])
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(
                1.0, (iteration + 1) / config.warmup, (iterations - iteration) / (config.decay + 1)
            )
        kept, all_rewards, stats = [], [], grpo.GroupStats(0, 0, 0)
        for attempt in range(1 + refill):
            missing = config.groups - stats.kept
            if missing <= 0:
                break
            batch = _sample(policy, make_env, states, config, rng, missing, attempt, horizon)
            good, found = (
                grpo.filter_groups(batch, config.dynamic_sampling)
                if batch
                else ([], grpo.GroupStats(0, 0, 0))
            )
            kept += good
            for rewards, counts in parallel.collect(([t.success for t in batch], found)):
                all_rewards += rewards
                stats = _both(stats, counts)
        record = {
            "stage": stage,
            "step": iteration + 1,
            "success": float(np.mean(all_rewards)),
            "rollouts": len(all_rewards),
            "kept": stats.kept,
            "all_success": stats.all_success,
            "all_failure": stats.all_failure,
            "out_of_range": stats.out_of_range,
        }
        if stats.kept:
            data = grpo.batch_from_trajectories(kept) if kept else None
            record["valid_fraction"] = _valid_fraction(data)
            record |= grpo.update(
                policy,
                optimizer,
                data,
                config,
                torch.Generator().manual_seed(int(rng.integers(2**31))),
            )
        elif not tolerate_silence:
            grpo.require_signal(stats)
        record["seconds"] = round(time.monotonic() - clock, 2)
        records.append(record)
        bar.set_postfix(success=f"{record['success']:.2f}", kept=stats.kept)
        if on_log and not parallel.rank():
            on_log(record)
        if folder is not None and (
            (iteration + 1) % save_every == 0 or iteration + 1 == iterations
        ):
            save_progress(folder, iteration + 1, policy, optimizer, None, records, made)
    policy.eval()
    return records


def _sample(policy, make_env, states, config, rng, missing: int, attempt: int, horizon: int):
    """This process's share of `missing` new groups, sampled: a list of trajectories."""
    chosen = rng.choice(len(states), size=missing, replace=len(states) < missing)
    env_seed, seed = (int(rng.integers(2**31)) for _ in range(2))
    own, shared = parallel.rows(missing), missing >= parallel.count()
    if own.start == own.stop:
        return []
    # Too few groups for all: whoever has one samples all, which takes no longer and needs nobody.
    sampled = own if shared else slice(0, missing)
    numbers = np.arange(missing) + config.groups * attempt  # unique in the iteration
    batch = 256
    if shared and parallel.count() > 1:  # in as many pieces as every other process
        largest = -(-missing // parallel.count()) * config.group_size
        batch = -(-(own.stop - own.start) * config.group_size // -(-largest // batch))
    with parallel.one_batch() if shared else nullcontext():
        found = rollout(
            policy,
            make_env(env_seed),
            states[chosen[sampled]].repeat(config.group_size),
            horizon=horizon,
            temperature=config.temperature,
            seed=seed,
            groups=np.repeat(numbers[sampled], config.group_size),
            every_frame=False,
            batch=batch,
        )
    return [t for t in found if t.group in numbers[own]]


def _valid_fraction(data: grpo.RolloutBatch | None) -> float:
    """Share of the tokens of all processes' trajectories that the loss sees."""
    own = (0.0, 0) if data is None else (float(data.mask.float().mean()), data.mask.numel())
    parts = [part for part in parallel.collect(own) if part[1]]
    if len(parts) == 1:
        return parts[0][0]
    return sum(mean * n for mean, n in parts) / sum(n for _, n in parts)


def _both(a: grpo.GroupStats, b: grpo.GroupStats) -> grpo.GroupStats:
    return grpo.GroupStats(
        a.kept + b.kept,
        a.all_success + b.all_success,
        a.all_failure + b.all_failure,
        a.out_of_range + b.out_of_range,
    )


def _digest(states: InitialStates) -> str:
    return checkpoint.digest(
        {
            "states": states.states,
            "instructions": states.instructions,
            **({} if states.frames is None else {"frames": states.frames}),
        }
    )


def save_policy_once(folder: Path, policy, provenance: dict):
    """Write the finished policy unless a complete one is there already."""
    if not (Path(folder) / "actions.json").exists():
        policy.save(folder, provenance)
    return checkpoint.checksum(Path(folder) / "model.safetensors")
