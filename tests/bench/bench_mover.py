"""Where the mover says things go, against where the simulator puts them, for the base policy's own actions.

    python tests/bench/bench_mover.py --task square --n 512

Two questions: does the imagined scene fulfil the task where the simulator does, from nothing but the first frame; and do things that end leaning (higher than
they lie, and at rest) lean in imagination too, from the first frame on and when the mover was told the truth up to frame 28.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import labels, stack_labels
from wmpo_lite.envs.tasks import get_task
from wmpo_lite.envs.tabletop.tasks import pair
from wmpo_lite.evaluate import success_rate
from wmpo_lite.pretrain_reward import fulfilled
from wmpo_lite.policy import load_policy
from wmpo_lite.train import set_threads
from wmpo_lite.workspace import ASSETS
from wmpo_lite.world_model import Autoencoder, WorldModel


def record(simulator, policy, states, horizon: int, seed: int):
    """The policy's sampled episodes: first frames, actions (N, T, D), labels of every frame."""
    first = frames = simulator.reset(states)
    generator, actions, seen = torch.Generator().manual_seed(seed), [], [labels(simulator)]
    for _ in range(horizon // policy.config.chunk):
        chunk = policy.act(torch.from_numpy(frames), simulator.instructions, 1.0, generator)[2].numpy()
        actions.append(chunk)
        for k in range(chunk.shape[1]):
            last = k == chunk.shape[1] - 1
            image = simulator.step_chunk(chunk[:, k: k + 1], every_frame=False if last else None)[0]
            seen.append(labels(simulator))
        frames = image[:, -1]
    return first, np.concatenate(actions, axis=1).clip(-1, 1), stack_labels(seen)


@torch.no_grad()
def foresee(draft, now, actions, truth=None, until: int = 0):
    """Points (N, T, S, 3) in metres and opening (N, T); `truth`, a Scene (N, T + 1, ...), takes the place of the mover's own up to frame `until`."""
    memory, points, opening = draft.mover.start(now, now), [], []
    for k, action in enumerate(actions.unbind(1), start=1):
        now, memory = draft.mover(now, memory, action)
        if k <= until:
            now = now._replace(points=truth.points[:, k], opening=truth.opening[:, k])
        points.append(now.points), opening.append(now.opening)
    return (torch.stack(points, 1) * draft.unit + draft.centre).numpy(), torch.stack(opening, 1).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="square"), parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--n", type=int, default=512), parser.add_argument("--first", type=int, default=3000, help="the first validation state")
    options = parser.parse_args()
    set_threads()
    task, home = get_task(options.task), options.assets / options.task
    simulator, states = TabletopEnv(task), initial_states(task, "validation", options.first + np.arange(options.n))
    first, actions, seen = record(simulator, load_policy(home / "policy"), states, task.horizon, seed=1)
    simulator.close()
    draft, texts, rows = WorldModel.load(home / "world_model").draft, states.instructions, np.arange(options.n)
    every = lambda points, opening: np.stack([fulfilled(task, points[:, k], opening[:, k], texts) for k in range(points.shape[1])], 1).any(1)  # noqa: E731
    real = every(seen["points"], seen["opening"])
    with torch.no_grad():
        now = draft.read(Autoencoder.load(home / "autoencoder").encode_uint8(torch.from_numpy(first)))[0]
    points, opening = foresee(draft, now, torch.from_numpy(actions))
    told = every(points, opening)
    print(f"{options.task}: {real.sum()} of {len(real)} episodes succeed; the imagined scene tells {success_rate(told[real])} of them and {success_rate(~told[~real])} of the failures")

    slot = np.array([pair.named_slot(text) for text in texts])
    height = seen["points"][rows, :, slot, 2]
    near = np.linalg.norm(seen["points"][rows, -1, slot, :2] - seen["points"][:, -1, 3, :2], axis=1) < 0.035
    lean = near & (height[:, -1] > 0.015) & (height[:, -1] < 0.022) & (np.abs(height[:, -8:] - height[:, -1:]).max(1) < 0.001)
    present = torch.from_numpy(seen["present"].astype(np.float32))
    truth = draft.scene(torch.from_numpy(seen["points"]), present[:, None].expand(-1, seen["points"].shape[1], -1), torch.from_numpy(seen["opening"]))
    begin = draft.scene(torch.from_numpy(seen["points"][:, 0]), present, torch.from_numpy(seen["opening"][:, 0]))
    for until in (0, 28):
        points, _ = foresee(draft, begin, torch.from_numpy(actions), truth, until)
        print(f"  {lean.sum()} end leaning; so they do in imagination, told the truth up to frame {until}: {success_rate(points[rows, -1, slot, 2][lean] > 0.014)}")


if __name__ == "__main__":
    main()
