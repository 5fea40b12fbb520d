"""LIBERO's speed here beside its default settings on the same machine, and which of its initial
states hold their premise with the installed MuJoCo.

    python tests/bench/bench_libero.py
        rendered simulator steps a second, by suite, size and look
    python tests/bench/bench_libero.py --premises 10
        the table that ships for `wmpo-lite doctor --libero`, of the first 10 stored states
    python tests/bench/bench_libero.py --experts 20
        the scripted expert on 20 validation states of every task that it has a plan for
    python tests/bench/bench_libero.py --suites libero_goal
        one suite only

"default" is LIBERO's OffScreenRenderEnv as it comes: agent and wrist view of 128 pixels after every
simulator step. A rendered step is one simulator step (0.05 s) with its pictures; "per_policy_step"
draws once per control stride, as training does. Of each: steps a second, and processor seconds a
step, which say the same on a machine that has other work. "imagination" is the world model in the
simulator's place behind the same call: 64 episodes, chunks of 8 policy steps, every frame drawn,
and judged by the success classifier as the profile `libero` has it; "ratio" compares its frames a
second with those of the simulator with all its workers, fast and at 64 pixels, which draws the same
frames, measured by turns. Weights are untrained: the time does not depend on them. Results go to
assets/results/libero_speed.json, libero_premises.json and libero_experts.json, merged by suite.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parents[2] / "assets" / "results"
# name: (size, wrist, look options, stride or None for the task's, workers)
OPTIONS = {
    "fast_64": (64, False, {}, 1, 1),
    "fast_64_wrist": (64, True, {}, 1, 1),
    "fast_128": (128, False, {}, 1, 1),
    "fast_128_wrist": (128, True, {}, 1, 1),
    "smooth_64": (64, False, {"samples": 4, "reflections": True}, 1, 1),
    "official_128_wrist": (
        128,
        True,
        {"samples": 4, "reflections": True, "shadows": True, "grain": 0.0},
        1,
        1,
    ),
    "fast_64_two_workers": (64, False, {}, 1, 2),
    "per_policy_step_64": (64, False, {}, None, 1),
}


def actions(*shape: int) -> np.ndarray:
    return 0.5 * np.random.default_rng(0).uniform(-1, 1, (*shape, 7))


def default_speed(task, seconds: float) -> tuple[float, float]:
    """Rendered steps a second of LIBERO as it comes, and processor seconds of a step."""
    from libero.libero.envs import OffScreenRenderEnv

    from wmpo_lite.envs.libero.states import evaluation_rows

    env = OffScreenRenderEnv(bddl_file_name=task.bddl, camera_heights=128, camera_widths=128)
    env.seed(0)
    env.reset()
    env.set_init_state(evaluation_rows(task)[0])
    env.step(actions())
    count, begin, used = 0, time.monotonic(), time.process_time()
    while time.monotonic() - begin < seconds:
        env.step(actions())
        count += 1
    result = count / (time.monotonic() - begin), (time.process_time() - used) / count
    env.close()
    return result


def our_speed(task, option, seconds: float) -> tuple[float, float]:
    """Rendered steps a second of the environment, all workers together, and processor seconds of a
    step; simulator steps whatever the stride.
    """
    import psutil

    from wmpo_lite.envs.libero.env import LiberoEnv
    from wmpo_lite.envs.libero.look import Look

    size, wrist, look, stride, workers = option
    with LiberoEnv(
        task, size=size, wrist=wrist, look=Look(**look), stride=stride, workers=workers
    ) as env:
        env.reset(env.initial_states("evaluation", np.arange(workers)))
        env.step_chunk(actions(workers, 1))
        processes = [
            psutil.Process(),
            *(psutil.Process(worker.process.pid) for worker in env._workers),
        ]

        def processor():
            return sum(sum(process.cpu_times()[:2]) for process in processes)

        count, begin, used = 0, time.monotonic(), processor()
        while time.monotonic() - begin < seconds:
            env.step_chunk(actions(workers, 8))
            count += 8 * workers * env.stride
        return count / (time.monotonic() - begin), (processor() - used) / count


def imagination_speed(task, seconds: float) -> dict:
    """Frames a second of imagination and of the simulator at the same policy steps, by turns, and
    the median of their ratios.
    """
    import statistics

    import torch

    from wmpo_lite.autoencoder import Autoencoder
    from wmpo_lite.envs.libero.env import ACTION_DIM, LiberoEnv
    from wmpo_lite.imagined_env import ImaginedEnv
    from wmpo_lite.recipes.profiles import PROFILES
    from wmpo_lite.reward import RewardModel
    from wmpo_lite.train import set_threads
    from wmpo_lite.trajectory import InitialStates
    from wmpo_lite.world_model import WorldModel, WorldModelConfig

    set_threads()
    episodes, chunk, settings = 64, 8, PROFILES["laptop"]
    world_model = WorldModel(WorldModelConfig(action_dim=ACTION_DIM, frames=2)).to(
        memory_format=torch.channels_last
    )
    imagined = ImaginedEnv(
        Autoencoder().eval(),
        world_model.eval(),
        RewardModel().eval(),
        threshold=2.0,
        num_inference_steps=settings.num_inference_steps,
        reward_stride=settings.reward_stride,
        min_consecutive=settings.min_consecutive,
    )
    with LiberoEnv(task, size=64) as env:
        real_states = env.initial_states("evaluation", np.arange(2 * len(env._workers)))
        frames = env.reset(real_states)
        first = np.resize(frames, (episodes, *frames.shape[1:]))
        imagined.reset(
            InitialStates(
                states=np.zeros((episodes, 1)),
                frames=first,
                instructions=(task.instruction,) * episodes,
                split="evaluation",
                indices=np.arange(episodes),
            )
        )

        def rate(world, count):
            done, begin = 0, time.monotonic()
            while not done or time.monotonic() - begin < seconds / 2:
                world.step_chunk(actions(count, chunk))
                done += count * chunk
            return done / (time.monotonic() - begin)

        rate(imagined, episodes), rate(env, len(frames))
        pairs = [(rate(imagined, episodes), rate(env, len(frames))) for _ in range(5)]
    ratios = [a / b for a, b in pairs]
    return {
        "frames_s": statistics.median(a for a, _ in pairs),
        "simulator_frames_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def experts(task, count: int) -> dict | None:
    """Of the first `count` validation states, how many the scripted expert solves; None for goals
    that it has no plan for.
    """
    from wmpo_lite.common.errors import UserError
    from wmpo_lite.envs.libero.env import LiberoEnv
    from wmpo_lite.envs.libero.expert import demonstrate
    from wmpo_lite.evaluate import wilson_interval

    with LiberoEnv(task, size=16) as env:
        try:
            done = demonstrate(
                env, env.initial_states("validation", np.arange(count)), np.random.default_rng(0)
            )["done"]
        except UserError as error:
            return {"instruction": task.instruction, "states": 0, "why": str(error)}
    solved = int(done[:, -1].sum())
    low, high = wilson_interval(solved, count)
    return {
        "instruction": task.instruction,
        "states": count,
        "solved": solved,
        "low": round(low, 3),
        "high": round(high, 3),
        "steps": float(np.median(done[done[:, -1]].argmax(axis=1) + 1)) if solved else None,
    }


def merge(path: Path, new: dict):
    from wmpo_lite.common import checkpoint

    old = checkpoint.read_json(path) if path.exists() else {}
    checkpoint.write_json(path, dict(sorted({**old, **new}.items())))


def main():
    from wmpo_lite.envs.libero.premises import table
    from wmpo_lite.envs.libero.states import SUITES, tasks

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--premises", type=int, default=0, metavar="STATES")
    parser.add_argument("--experts", type=int, default=0, metavar="STATES")
    parser.add_argument(
        "--every", type=int, default=1, help="try the expert on every n-th task only"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    import mujoco

    for suite in a.suites:
        if a.premises:
            table([suite], a.premises, a.out / "libero_premises.json")
            continue
        if a.experts:
            found = {}
            for task in tasks(suite)[:: a.every]:
                found[str(task.number)] = experts(task, a.experts)
                print(suite, task.number, json.dumps(found[str(task.number)]), flush=True)
            merge(a.out / "libero_experts.json", {suite: found, "mujoco": mujoco.__version__})
            continue
        task = tasks(suite)[a.task]
        measured = {"default": default_speed(task, a.seconds)} | {
            name: our_speed(task, OPTIONS[name], a.seconds) for name in a.options
        }
        (base, cost), row = (
            measured["default"],
            {
                "task": a.task,
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            },
        )
        row |= {
            name: {
                "steps_s": rate,
                "cpu_s": used,
                "times_default": rate / base,
                "times_default_cpu": cost / used,
            }
            for name, (rate, used) in measured.items()
        }
        row["imagination"] = imagination_speed(task, a.seconds)
        print(suite, json.dumps(row), flush=True)
        merge(a.out / "libero_speed.json", {suite: row, "mujoco": mujoco.__version__})


if __name__ == "__main__":
    main()
