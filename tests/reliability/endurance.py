"""Many arm episodes and many GRPO iterations in one process: does memory grow, are files or threads
left over?
"""

import gc
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np


def resources() -> dict:
    """Resident memory in bytes, open files and threads of this process."""
    import psutil

    gc.collect()
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return {
        "memory": process.memory_info().rss,
        "files": files,
        "threads": threading.active_count(),
    }


def repeated(step, count: int) -> dict:
    """`step(n)` `count` times; memory at the end over memory after the first tenth, and what is
    left over since then.
    """
    for n in range(count // 10):
        step(n)
    early = resources()
    for n in range(count // 10, count):
        step(n)
    late = resources()
    return {
        "repetitions": count,
        "memory_ratio": round(late["memory"] / early["memory"], 4),
        "memory_mib": round(late["memory"] / 2**20, 1),
        "files_left": late["files"] - early["files"],
        "threads_left": late["threads"] - early["threads"],
    }


def arm_episodes(count: int) -> dict:
    """Episodes of two chunks on a simulated arm at twenty times real time, each recorded in a file;
    the arm is connected anew for every tenth.
    """
    import tiny

    from wmpo_lite.arms.deploy import record_episode
    from wmpo_lite.arms.simulated import SimulatedArm, SimulatedConfig
    from wmpo_lite.envs.tabletop.env import initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task

    task = get_task("place")
    states, policy, ends = initial_states(task, "demos", np.arange(8)), tiny.policy(), {}

    with tempfile.TemporaryDirectory() as folder:

        def step(n):
            if n % 10 == 0:
                if "arm" in ends:
                    ends["arm"].close()
                ends["arm"] = SimulatedArm(
                    task, states, n % 8, SimulatedConfig(size=tiny.SIZE, speed=20.0)
                )
                ends["arm"].connect()
            else:
                ends["arm"].reset(states, n % 8)
            episode, path = record_episode(
                policy,
                ends["arm"],
                tiny.RED,
                horizon=8,
                folder=folder,
                number=n,
                task="place",
                temperature=1.0,
                seed=n,
            )
            stopped = episode.reason is not None
            ends["stopped"] = ends.get("stopped", 0) + stopped
            path.unlink()
            if (
                stopped
            ):  # a machine that was busy elsewhere: an arm that has stopped is connected anew
                ends["arm"].close()
                ends["arm"].connect()

        found = repeated(step, count)
        ends["arm"].close()
    return found | {"stopped": ends["stopped"]}


def grpo_iterations(count: int) -> dict:
    """Iterations of GRPO with tiny models in the imagined and in the simulated environment, in
    turns.
    """
    import tiny
    import torch

    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task
    from wmpo_lite.grpo import GRPOConfig
    from wmpo_lite.imagined_env import ImaginedEnv
    from wmpo_lite.train_grpo import optimize

    torch.set_num_threads(1)
    task, config = get_task("place"), GRPOConfig(groups=4, group_size=4, minibatch=16)
    real, policy = TabletopEnv(task, size=tiny.SIZE, threads=1), tiny.policy()
    imagined_from, real_from = tiny.states(8), initial_states(task, "rollouts", np.arange(8))
    models = tiny.autoencoder(), tiny.world_model(), tiny.reward_model()

    def step(n):
        options = dict(
            iterations=1, horizon=8, seed=n, stage="endurance", tolerate_silence=True, refill=0
        )
        if n % 4:
            optimize(
                policy,
                lambda seed: ImaginedEnv(*models, threshold=0.5, seed=seed),
                imagined_from,
                config,
                **options,
            )
        else:
            optimize(policy, lambda seed: real, real_from, config, **options)

    try:
        return repeated(step, count)
    finally:
        real.close()


def measure(episodes: int = 2000, iterations: int = 200) -> dict:
    """Both, one after the other in this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ["TQDM_DISABLE"] = "1"
    return {"arm": arm_episodes(episodes), "grpo": grpo_iterations(iterations)}
