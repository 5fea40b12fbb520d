"""What a GPU is good for here, in two halves of five minutes or less: `tests/bench/gpu.sh` runs it.

    python tests/bench/bench_gpu.py HALF [--out FILE] [--device DEVICE] [--dry-run]

Half 1: one update on the CPU and on the device compared; frames a second and memory; cost as batch,
horizon, model and P grow; training in 16 bits. Half 2: `unet` and `stdit` trained at equal FLOP on
the shipped demonstrations and recorded rollouts, held-out error of both; a demo of `place`. A part
that FILE already has is not done again, so a half that was cut short goes on.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

import bench_scale  # noqa: E402

from wmpo_lite import grpo  # noqa: E402
from wmpo_lite.common.checkpoint import read_json, write_json  # noqa: E402
from wmpo_lite.common.files import ASSETS  # noqa: E402
from wmpo_lite.common.machine import choose_device  # noqa: E402
from wmpo_lite.own_context import Episodes, Pool, WindowConfig  # noqa: E402
from wmpo_lite.policy import Policy  # noqa: E402
from wmpo_lite.recipes.plan import count  # noqa: E402
from wmpo_lite.recipes.shipped import Shipped  # noqa: E402
from wmpo_lite.rollout import rollout  # noqa: E402
from wmpo_lite.train import FitConfig, fit  # noqa: E402
from wmpo_lite.world_model import WorldModel, WorldModelConfig  # noqa: E402


class Coin:
    """Frames of noise; success if the first numbers of the actions are positive on average."""

    action_dim, action_names = 4, ("dx", "dy", "dz", "gripper")

    def reset(self, states):
        self.instructions, self.rng = list(states.instructions), np.random.default_rng(0)
        return states.frames

    def step_chunk(self, actions, every_frame=True):
        shape = (len(actions), actions.shape[1] if every_frame else 1, 64, 64, 3)
        done = np.repeat(actions[:, :, 0].mean(axis=1, keepdims=True) > 0, actions.shape[1], axis=1)
        return self.rng.integers(0, 256, shape, dtype=np.uint8), done, {}


def agreement(device, dry: bool) -> dict:
    """One GRPO update of the same trajectories, and four steps of the world model, on both."""
    states = bench_scale.start_states(8).repeat(8)
    torch.manual_seed(0)
    policy, groups = Policy(), np.repeat(np.arange(8), 8)
    found = rollout(policy, Coin(), states, horizon=16, temperature=1.0, groups=groups)
    kept, _ = grpo.filter_groups(found)
    batch, weights = grpo.batch_from_trajectories(kept), policy.state_dict()
    frames = torch.from_numpy(states.frames[:8])
    outputs, losses = [], []
    for place in (torch.device("cpu"), device):
        policy = Policy().to(place)
        policy.load_state_dict(weights)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
        grpo.update(policy, optimizer, batch, grpo.GRPOConfig(), torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs.append(policy.logits(frames, [bench_scale.TEXT] * 8).cpu())
        torch.manual_seed(0)
        model = bench_scale.world_model((16, 16) if dry else (96, 160), place)
        latents = torch.randn(4, 17, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        actions = torch.rand(4, 16, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
        pool = Pool(Episodes(latents, actions), model, WindowConfig(batch=8))
        options = dict(seed=0, name="x", extra=pool.tensors)
        losses.append(fit(model, pool.loss, FitConfig(steps=4), **options)[-1]["loss"])
    return {
        "logit_error": float((outputs[0] - outputs[1]).abs().max()),
        "loss_error": abs(losses[0] - losses[1]) / losses[0],
        "trajectories": len(kept),
    }


def growth(device, dry: bool) -> dict:
    sizes = bench_scale.DRY if dry else bench_scale.GPU
    rows, exponents = bench_scale.growth(sizes, device)
    return {"rows": rows, "exponents": exponents}


def compute(device, dry: bool) -> dict:
    """Training in 16 bits, with recomputed blocks, compiled: beside none of it."""
    return {"rows": bench_scale.compute(bench_scale.DRY if dry else bench_scale.GPU, device)}


def equal_flop(device, dry: bool) -> dict:
    """Held-out flow loss of both denoisers after the same number of training FLOP."""
    shipped = Shipped("place")
    recorded = shipped.rollouts()[: 8 if dry else None]
    frames, actions = (
        torch.from_numpy(np.stack([getattr(t, name) for t in recorded]))
        for name in ("frames", "actions")
    )
    latents = shipped.autoencoder().to(device).encode_uint8(frames).cpu()
    held, budget, found = max(2, len(recorded) // 8), None, {}
    small = dict(widths=(16, 16), blocks=1, width=32, depth=1) if dry else {}
    for kind in ("unet", "stdit"):
        torch.manual_seed(0)
        model = WorldModel(WorldModelConfig(kind=kind, frames=2, **small)).to(device)
        pool = Pool(Episodes(latents[held:], actions[held:]), model, WindowConfig(batch=64))
        _, both, _ = count(lambda: pool.loss(*generators(), 0)[0], model, True)
        budget = budget or both * (2 if dry else 3000)
        steps, clock = max(1, round(budget / both)), time.monotonic()
        pool = Pool(Episodes(latents[held:], actions[held:]), model, WindowConfig(batch=64))
        config = FitConfig(steps=steps, lr=1e-3, ema=0.99)
        fit(model, pool.loss, config, seed=0, name=kind, extra=pool.tensors)
        test = Pool(
            Episodes(latents[:held], actions[:held]), model, WindowConfig(batch=64, noise=0, own=0)
        )
        with torch.no_grad():
            errors = [test.loss(*generators(i), i)[1]["mse"] for i in range(2 if dry else 20)]
        took = time.monotonic() - clock
        found[kind] = {"steps": steps, "seconds": took, "held_out_mse": float(np.mean(errors))}
    return found | {"flop": budget}


def generators(step: int = 0):
    return torch.Generator().manual_seed(step), np.random.default_rng(step)


def demo(device, dry: bool) -> dict:
    """The main job through the command line, stopped after four minutes; the same goes on later.
    A dry run tries its options only: the demo itself has a test.
    """
    command = [sys.executable, "-m", "wmpo_lite.cli", "demo", "--name", "gpu"]
    command += ["--evaluation-states", "256", "--device", device.type]
    clock = time.monotonic()
    done = subprocess.run(
        command + ["--help"] * dry, timeout=None if dry else 240, stdout=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see above")
    return {"seconds": time.monotonic() - clock}


HALVES = {
    1: {"agreement": agreement, "growth": growth, "compute": compute},
    2: {"equal_flop": equal_flop, "demo": demo},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", type=int, choices=HALVES)
    parser.add_argument("--out", type=Path, default=ASSETS / "results" / "scale.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry-run", action="store_true")
    a = parser.parse_args()
    device = choose_device(a.device)
    if device.type == "cpu" and not a.dry_run:
        raise SystemExit("there is no GPU here; --dry-run tries everything on the CPU")
    result = read_json(a.out) if a.out.exists() else {}
    done = result.setdefault("gpu", {})
    for name, run in HALVES[a.half].items():
        if name not in done:
            done[name] = run(device, a.dry_run)
            result["gpu_run"] = device.type == "cuda" and not a.dry_run
            write_json(a.out, result)
        print(f"{name}: {done[name] if name != 'growth' else done[name]['exponents']}", flush=True)


if __name__ == "__main__":
    main()
