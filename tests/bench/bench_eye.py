"""What a policy would do next, shown a camera's picture or another of the same scene: recoded by the autoencoder, or painted from the true scene.

    python tests/bench/bench_eye.py --task square [--assets assets] [--n 256]

PSNR does not tell whether a picture shows a policy what it has to see; this does. Rollouts of the base policy from validation states, frames at chunk ends.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.mover import Scene
from wmpo_lite.envs.tabletop.env import MAX_STEP, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import labels, stack_labels
from wmpo_lite.envs.tasks import get_task
from wmpo_lite.policy import load_policy
from wmpo_lite.train import set_threads
from wmpo_lite.workspace import ASSETS
from wmpo_lite.world_model import Autoencoder, WorldModel


def labelled_rollouts(policy, task, n: int) -> tuple:
    """Frames (n, C + 1, H, W, 3) at chunk ends of sampled rollouts, labels of those moments, sentences."""
    env, generator = TabletopEnv(task), torch.Generator().manual_seed(0)
    frames = [env.reset(initial_states(task, "validation", 9000 + np.arange(n)))]
    seen = [labels(env)]
    for _ in range(task.horizon // policy.config.chunk):
        actions = policy.act(torch.from_numpy(frames[-1]), env.instructions, 1.0, generator)[2]
        frames.append(env.step_chunk(actions.numpy(), every_frame=False)[0][:, -1]), seen.append(labels(env))
    texts = list(env.instructions)
    env.close()
    return np.stack(frames, axis=1), stack_labels(seen), texts


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="square"), parser.add_argument("--assets", type=Path, default=ASSETS), parser.add_argument("--n", type=int, default=256)
    options = parser.parse_args()
    set_threads()
    task, home = get_task(options.task), options.assets / options.task
    policy, autoencoder, model = load_policy(home / "policy"), Autoencoder.load(home / "autoencoder"), WorldModel.load(home / "world_model")
    frames, scene, texts = labelled_rollouts(policy, task, options.n)
    chunks = range(1, frames.shape[1] - 1)
    choose = lambda film: torch.stack([torch.log_softmax(policy.logits(torch.from_numpy(np.ascontiguousarray(film[:, k])), texts), -1) for k in chunks], dim=1)  # noqa: E731
    planned = lambda choice: (policy.low + (choice.exp() * torch.arange(choice.shape[-1])).sum(-1) / (choice.shape[-1] - 1) * (policy.high - policy.low))  # noqa: E731
    wanted = choose(frames)

    def report(name, film):
        found = choose(film)
        off = ((planned(found) - planned(wanted))[..., :3].sum(2) * MAX_STEP * 1000).norm(dim=-1)
        kl = (wanted.exp() * (wanted - found)).sum(-1).mean((0, 2, 3))
        psnr = 10 * np.log10(255**2 / np.square(film[:, 1:-1].astype(float) - frames[:, 1:-1]).mean())
        print(f"{name}: planned motion of a chunk off by {off.median():.1f} mm (median), {off.mean():.1f} (mean); KL an action token {kl.mean():.3f}, chunk by chunk "
              f"{', '.join(f'{x:.2f}' for x in kl)}; {psnr:.1f} dB", flush=True)

    report("recoded", autoencoder.recode(frames))
    draft, film = model.draft, frames.copy()
    present = torch.from_numpy(scene["present"]).float()[:, None].expand(-1, frames.shape[1], -1)
    true = draft.scene(torch.from_numpy(scene["points"]), present, torch.from_numpy(scene["opening"]))
    first = newest = autoencoder.encode_uint8(torch.from_numpy(frames[:, 0]))
    for k in chunks:
        newest = draft.paint(first if draft.keyframe else newest, Scene(*(part[:, k: k + 1] for part in true)))[:, 0]
        film[:, k] = autoencoder.decode_uint8(newest[:, None]).numpy()[:, 0]
    report("painted " + ("from the first frame" if draft.keyframe else "each from the one before"), film)


if __name__ == "__main__":
    main()
