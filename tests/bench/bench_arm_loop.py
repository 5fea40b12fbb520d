"""The closed loop with an arm beside the training environment: success of one policy from the same
held-out states, and how well the loop keeps time.

    python tests/bench/bench_arm_loop.py --arm sim --n 128          the simulated arm python
    tests/bench/bench_arm_loop.py --arm emulator --n 128     the SO-101's driver on emulated servos

Each call fills its part of assets/results/arm_loop.json; a part that was measured on other states
or with another policy is dropped. An episode lasts 8 s; --workers runs several at once, --speed
lets the simulated arm's world run faster than the clock (then its jitter says nothing, and is left
out).
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

PATH = Path(__file__).resolve().parents[2] / "assets" / "results" / "arm_loop.json"


def episodes(arguments) -> list[dict]:
    """The episodes of some states on one arm (runs in a worker process): success, why stopped, and
    timing of each.
    """
    kind, task_name, policy_name, first, count, ahead, speed = arguments
    import torch

    from wmpo_lite.arms.deploy import run_episode
    from wmpo_lite.arms.desks import load_policy
    from wmpo_lite.envs.tabletop.env import initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task

    torch.set_num_threads(1)
    task, policy = get_task(task_name), load_policy(policy_name, task_name)
    states, size = (
        initial_states(task, "validation", np.arange(first, first + count)),
        policy.config.image,
    )
    policy.act(torch.zeros(1, size, size, 3, dtype=torch.uint8), [states.instructions[0]])
    out = []

    def go(arm, test, row):
        begin = time.monotonic()
        episode = run_episode(
            policy,
            arm,
            states.instructions[row],
            horizon=task.horizon,
            ahead=ahead,
            success=test,
            initial_state=states.states[row],
            split=states.split,
            index=int(states.indices[row]),
        )
        out.append(
            {
                "success": episode.trajectory.success,
                "stopped": episode.reason,
                "seconds": time.monotonic() - begin,
                **episode.measures,
            }
        )

    if kind == "sim":
        from wmpo_lite.arms.simulated import SimulatedArm, SimulatedConfig

        with SimulatedArm(task, states, 0, SimulatedConfig(size=size, speed=speed)) as arm:
            for row in range(count):
                if arm.stopped:
                    arm.connect()
                arm.reset(states, row)
                go(arm, arm.success, row)
    else:
        from wmpo_lite.arms.emulator import Emulator
        from wmpo_lite.arms.so101 import SO101

        with Emulator(task, states, 0, size=size) as desk:
            for row in range(count):
                desk.reset(states, row)
                with SO101(desk.port, desk.calibration, desk.camera()) as arm:
                    go(arm, desk.success, row)
    return out


def trained(task_name: str, policy_name: str, first: int, count: int) -> list[bool]:
    """The same policy from the same states in the environment that it was trained in."""
    from wmpo_lite.arms.desks import load_policy
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task
    from wmpo_lite.rollout import rollout

    task = get_task(task_name)
    env = TabletopEnv(task)
    states = initial_states(task, "validation", np.arange(first, first + count))
    found = rollout(
        load_policy(policy_name, task_name),
        env,
        states,
        horizon=task.horizon,
        every_frame=False,
        batch=64,
    )
    env.close()
    return [t.success for t in found]


def measure(
    arm: str, task: str, policy: str, first: int, n: int, workers: int, ahead: float, speed: float
) -> dict:
    """All figures of one arm."""
    from wmpo_lite.evaluate import paired_comparison, wilson_interval

    pieces = [
        (arm, task, policy, first + int(part[0]), len(part), ahead, speed)
        for part in np.array_split(np.arange(n), workers)
        if len(part)
    ]
    if workers == 1:
        found = episodes(pieces[0])
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = [episode for part in pool.map(episodes, pieces) for episode in part]
    reference, success = trained(task, policy, first, n), [e["success"] for e in found]
    jitter = np.concatenate([e["jitter_s"] for e in found if e["jitter_s"]])
    low, high = wilson_interval(sum(reference), n)
    rate, pair = float(np.mean(success)), paired_comparison(np.array(reference), np.array(success))
    result = {
        f"{arm}_success": rate,
        f"{arm}_interval": list(wilson_interval(sum(success), n)),
        f"{arm}_within_training_interval": bool(low <= rate <= high),
        f"{arm}_minus_training": [pair.gain, pair.low, pair.high],
        f"{arm}_stopped": [e["stopped"] for e in found if e["stopped"]],
        f"{arm}_waits": sum(e["waits"] for e in found),
        f"{arm}_inference_s": float(np.median([e["inference_s"] for e in found])),
        f"{arm}_workers": workers,
        f"{arm}_speed": speed,
        "training_success": float(np.mean(reference)),
        "training_interval": [low, high],
        "period_s": found[0]["period_s"] * speed,
        "n": n,
        "first": first,
        "task": task,
        "policy": policy,
        "ahead": ahead,
        "load": os.getloadavg()[0],
    }
    if speed == 1:
        result |= {
            f"{arm}_p50_jitter_s": float(np.percentile(jitter, 50)),
            f"{arm}_p99_jitter_s": float(np.percentile(jitter, 99)),
        }
    bus = [e["bus_s"] for e in found if e["bus_s"] is not None]
    return result | ({f"{arm}_bus_s": float(np.mean(bus))} if bus else {})


def merge(new: dict, path: Path = PATH) -> dict:
    """Put the figures of one arm beside the other's, if those belong to the same states and policy.
    p99_jitter_s is the emulated bus's where there is one.
    """
    from wmpo_lite.common import checkpoint

    old = checkpoint.read_json(path) if path.exists() else {}
    arm = next(kind for kind in ("sim", "emulator") if f"{kind}_success" in new)
    same = all(old.get(key) == new[key] for key in ("n", "first", "task", "policy", "ahead"))
    kept = {key: value for key, value in old.items() if same and not key.startswith(f"{arm}_")}
    both = {"emulator_success": None, "sim_success": None, **kept, **new}
    both["p99_jitter_s"] = both.get("emulator_p99_jitter_s", both.get("sim_p99_jitter_s"))
    checkpoint.write_json(path, dict(sorted(both.items())))
    return both


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", choices=("sim", "emulator"), default="sim")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--ahead", type=float, default=0.3)
    parser.add_argument("--task", default="place")
    parser.add_argument("--policy", default="wmpo")
    parser.add_argument("--first", type=int, default=81_000, help="of the validation split")
    parser.add_argument("--out", type=Path, default=PATH)
    a = parser.parse_args()
    if a.arm == "emulator" and a.speed != 1:
        parser.error("--speed is for --arm sim")
    print(
        json.dumps(
            merge(
                measure(a.arm, a.task, a.policy, a.first, a.n, a.workers, a.ahead, a.speed), a.out
            )
        )
    )


if __name__ == "__main__":
    main()
