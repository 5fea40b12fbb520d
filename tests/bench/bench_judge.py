"""What an update in imagination can learn: the base policy's groups in the simulator beside the same actions in imagination, for several strengths of doubt.

    python tests/bench/bench_judge.py --task square --groups 48 --doubts 0 0.0005 0.002

Printed for each doubt: imagined against real success (correlation, successes and failures told); of the failures that look like successes, in how many the scene
behind the picture is one; and the cosine between the advantages that GRPO gets and those that it would get in the simulator. A cosine of c means that 1 / c^2
times as many rollouts teach as much as the simulator's.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

from bench_mover import record
from wmpo_lite.envs.imagined import ImaginedEnv
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tasks import get_task
from wmpo_lite.grpo import group_advantages
from wmpo_lite.policy import load_policy
from wmpo_lite.pretrain_reward import fulfilled
from wmpo_lite.profiles import PROFILES, TASK_SETTINGS
from wmpo_lite.reward import RewardModel
from wmpo_lite.train import set_threads
from wmpo_lite.trajectory import InitialStates
from wmpo_lite.workspace import ASSETS
from wmpo_lite.world_model import Autoencoder, WorldModel


@torch.no_grad()
def imagine(env, task, first, actions, instructions):
    """The actions (N, T, D) in imagination: judged a success (N,), and whether the scene behind the pictures ever was one (N,)."""
    told, scene, chunk = [], [], env.world_model.config.chunk
    for rows in np.array_split(np.arange(len(first)), -(-len(first) // 256)):
        texts = tuple(instructions[i] for i in rows)
        env.reset(InitialStates(states=np.zeros((len(rows), 1)), frames=first[rows], instructions=texts, split="validation", indices=rows))
        found = np.zeros(len(rows), dtype=bool)
        for k in range(0, actions.shape[1], chunk):
            points, opening = env.world_model.draft.foresee(env.context, torch.from_numpy(actions[rows, k: k + chunk]), env.past)
            for at, gap in zip(points.unbind(1), opening.unbind(1)):
                found |= fulfilled(task, at.numpy(), gap.numpy(), texts)
            env.step_chunk(actions[rows, k: k + chunk])
        told.append(env.scores >= env.threshold), scene.append(found)
    return np.concatenate(told), np.concatenate(scene)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="square"), parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--groups", type=int, default=48), parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--doubts", type=float, nargs="+", default=[0.0, 0.0005, 0.002])
    parser.add_argument("--first", type=int, default=28000, help="the first validation state")
    options = parser.parse_args()
    set_threads()
    task, home, profile = get_task(options.task), options.assets / options.task, PROFILES["laptop"]
    setting = lambda name: TASK_SETTINGS.get(options.task, {}).get(name, getattr(profile, name))  # noqa: E731
    simulator = TabletopEnv(task)
    states = initial_states(task, "validation", options.first + np.repeat(np.arange(options.groups), options.size))
    first, actions, seen = record(simulator, load_policy(home / "policy"), states, task.horizon, seed=3)
    simulator.close()
    real = np.zeros(len(first), dtype=bool)
    for t in range(seen["points"].shape[1]):
        real |= fulfilled(task, seen["points"][:, t], seen["opening"][:, t], states.instructions)
    advantages = lambda outcome: group_advantages(torch.from_numpy(outcome.reshape(options.groups, options.size).astype(np.float32))).numpy()  # noqa: E731
    wanted = advantages(real)
    print(f"{options.task}: {real.sum()} of {len(real)} rollouts succeed")
    for doubt in options.doubts:
        env = ImaginedEnv(Autoencoder.load(home / "autoencoder"), WorldModel.load(home / "world_model"), RewardModel.load(home / "reward"), seed=0, stop=False, doubt=doubt,
                          threshold=profile.imagined_threshold, steps=profile.sample_steps, stride=setting("judge_stride"), hold=setting("judge_hold"))
        told, scene = imagine(env, task, first, actions, states.instructions)
        given, wrong = advantages(told), told & ~real
        cosine = (given * wanted).sum() / np.sqrt((given**2).sum() * (wanted**2).sum())
        print(f"  doubt {1000 * doubt:.1f} mm: {told.sum()} told, {100 * told[real].mean():.0f} % of successes and {100 * (~told[~real]).mean():.0f} % of failures, correlation "
              f"{np.corrcoef(told, real)[0, 1]:.3f}; {(wrong & scene).sum()} of {wrong.sum()} false ones are successes in the scene; cosine of advantages {cosine:.3f}", flush=True)


if __name__ == "__main__":
    main()
