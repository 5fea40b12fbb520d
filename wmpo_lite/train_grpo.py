"""The GRPO loop: the same for imagination (WMPO) and for the simulator (online GRPO); only the
environment and its initial states differ.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from torch import Generator
from torch.optim import AdamW

from wmpo_lite import grpo
from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import require
from wmpo_lite.common.progress import progress
from wmpo_lite.rollout import rollout
from wmpo_lite.train import set_rate
from wmpo_lite.training_state import due, origin, resume, save_progress
from wmpo_lite.trajectory import InitialStates

SAVE_EVERY = 5  # iterations between checkpoints


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
    tolerate_silence: bool = False,
    made_from: dict | None = None,
) -> list[dict]:
    """Improve `policy` in place by rounds of rollouts and updates; returns one record a round.

    make_env(seed) gives the environment of one iteration (an imagined one draws its noise from that
    seed, through `parallel.draw`); states: pool of initial states, of which every iteration takes
    `config.groups` at random, each repeated `config.group_size` times (paper: 64 x 8). Groups
    without signal are dropped and drawn anew in up to `refill` further rounds (paper: until the
    batch is full). tolerate_silence: skip an iteration in which every group was dropped (a real
    rollout budget is spent all the same); otherwise UserError. folder: checkpoint here and continue
    what is found, if it was made from the same weights, settings, seed, states and `made_from` (the
    world model, say, as plain values by name).

    Several processes share out the groups of an iteration, each a whole one, and keep the policy
    alike; the first one writes and logs. Up to 256 trajectories an iteration they sample what one
    process samples.
    """
    parallel.require_work(config.groups, "groups")
    parallel.same_weights(policy)
    require(len(states) > 0, f"stage '{stage}' has no initial states; record rollouts first")
    policy.train_vision(not freeze_vision)
    optimizer = AdamW([p for p in policy.parameters() if p.requires_grad], weight_decay=0.0)
    run = {"name": stage, "seed": seed, "steps": iterations, "horizon": horizon, "refill": refill}
    made = _origin(policy, folder, states, config, run | (made_from or {}))
    done, records = resume(folder, policy, optimizer, made=made)
    sample = partial(_sample, policy, make_env, states, config, horizon)
    left = range(done, iterations)
    bar = progress(left, initial=done, total=iterations, desc=stage, mininterval=1)
    for step in bar:
        clock, rng = time.monotonic(), np.random.default_rng([seed, step])
        set_rate(optimizer, learning_rate(step, iterations, config))
        found = _iteration(policy, optimizer, sample, config, rng, refill, tolerate_silence)
        seconds = round(time.monotonic() - clock, 2)
        records.append({"stage": stage, "step": step + 1, **found, "seconds": seconds})
        bar.set_postfix(success=f"{found['success']:.2f}", kept=found["kept"])
        if on_log and not parallel.rank():
            on_log(records[-1])
        if folder is not None and due(step + 1, SAVE_EVERY, iterations):
            save_progress(folder, step + 1, policy, optimizer, None, records, made)
    policy.eval()
    return records


def learning_rate(iteration: int, iterations: int, config: grpo.GRPOConfig) -> float:
    """The rate of an iteration (0, 1, ...): it rises over `warmup` and falls over `decay` ones."""
    rises, falls = (iteration + 1) / config.warmup, (iterations - iteration) / (config.decay + 1)
    return config.lr * min(1.0, rises, falls)


def _iteration(policy, optimizer, sample, config, rng, refill, tolerate_silence) -> dict:
    """One round: groups sampled until there are enough with a signal, and an update by them."""
    kept, all_rewards, stats = [], [], grpo.GroupStats(0, 0, 0)
    for attempt in range(1 + refill):
        missing = config.groups - stats.kept
        if missing <= 0:
            break
        batch = sample(rng, missing, attempt)
        good, found = [], grpo.GroupStats(0, 0, 0)
        if batch:
            good, found = grpo.filter_groups(batch, config.dynamic_sampling)
        kept += good
        for rewards, counts in parallel.collect(([t.success for t in batch], found)):
            all_rewards += rewards
            stats += counts
    record = {"success": float(np.mean(all_rewards)), "rollouts": len(all_rewards)}
    record |= dataclasses.asdict(stats)
    if not stats.kept:
        if not tolerate_silence:
            grpo.require_signal(stats)
        return record
    data = grpo.batch_from_trajectories(kept) if kept else None
    record["valid_fraction"] = _valid_fraction(data)
    generator = Generator().manual_seed(int(rng.integers(2**31)))
    return record | grpo.update(policy, optimizer, data, config, generator)


def _sample(policy, make_env, states, config, horizon: int, rng, missing: int, attempt: int):
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


def _origin(policy, folder, states: InitialStates, config: grpo.GRPOConfig, run: dict) -> dict:
    """What this training is made from."""
    if folder is None:
        return {}
    arrays = {"states": states.states, "instructions": states.instructions}
    arrays |= {} if states.frames is None else {"frames": states.frames}
    settings = dataclasses.asdict(config)
    del settings["micro_batch"]  # changes no weight
    return origin(policy, folder, **settings, **run, states=checkpoint.digest(arrays))


def save_policy_once(folder: Path, policy, provenance: dict):
    """Write the finished policy unless a complete one is there already."""
    if not (Path(folder) / "actions.json").exists():
        policy.save(folder, provenance)
    return checkpoint.checksum(Path(folder) / "model.safetensors")
