"""Cost as the work grows, and two processes beside one: ratios in one table, all in scale.json.

    python tests/bench/bench_scale.py [--out FILE] [--dry-run]

Imagined frames a second against batch, horizon and world-model size, with the exponents that fit
them (1: cost grows as the work); two processes of one thread against one process of one thread,
measured by turns, for world-model training and GRPO iterations. Ratios mean something only on two
cores that nobody else uses. --dry-run: one tiny size of each, to see that everything works.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from wmpo_lite import parallel
from wmpo_lite.autoencoder import Autoencoder, AutoencoderConfig
from wmpo_lite.checkpoint import read_json, write_json
from wmpo_lite.files import ASSETS
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.machine import choose_device
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.policy import Policy
from wmpo_lite.recipes.pretrain import PRETRAINING
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize
from wmpo_lite.trajectory import InitialStates
from wmpo_lite.world_model import WorldModel

OUT = ASSETS / "results" / "scale.json"
TEXT = "put the red cube on the plate"
SCALE = {
    "batch": (16, 64, 256, 1024),
    "horizon": (40, 80, 160),
    "widths": ((96, 160), (192, 320), (384, 640)),  # 1, 4 and 16 times the parameters
    "budget": (32, 128, 512, 1280),
}
DRY = {"batch": (2, 4), "horizon": (8, 16), "widths": ((16, 16), (32, 32)), "budget": (2, 4)}


def world_model(widths, device) -> WorldModel:
    config = dict(vars(PRETRAINING["laptop"].world_model), widths=widths)
    return WorldModel(type(PRETRAINING["laptop"].world_model)(**config)).to(device).eval()


def start_states(count: int) -> InitialStates:
    frames = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return InitialStates(
        np.zeros((count, 1)), frames, (TEXT,) * count, "rollouts", np.arange(count)
    )


def seconds(run, device) -> float:
    """Of the second call: the first one is slow."""
    run()
    clock = time.monotonic()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - clock


def imagination(batch: int, horizon: int, widths, device) -> dict:
    """Imagined frames a second without a policy's or a reward model's work."""
    env = ImaginedEnv(
        Autoencoder(AutoencoderConfig()).to(device).eval(), world_model(widths, device)
    )
    states = start_states(batch)
    actions = np.zeros((batch, 8, 4), np.float32)

    def run():
        env.reset(states)
        for _ in range(horizon // 8):
            env.step_chunk(actions)

    took = seconds(run, device)
    parameters = sum(p.numel() for p in env.world_model.parameters())
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "what": "imagination",
        "batch": batch,
        "horizon": horizon,
        "parameters": parameters,
        "seconds": took,
        "frames_s": batch * horizon / took,
        "peak_bytes": peak,
    }


def real_budget(budget: int, device) -> dict:
    """Seconds that P imagined episodes of 40 steps take, with the policy: what P costs."""
    policy = Policy().to(device).eval()
    env = ImaginedEnv(
        Autoencoder(AutoencoderConfig()).to(device).eval(), world_model((96, 160), device)
    )
    run = lambda: rollout(policy, env, start_states(budget), horizon=40, every_frame=False)
    return {"what": "budget", "budget": budget, "seconds": seconds(run, device)}


def exponent(rows: list[dict], name: str) -> float | None:
    """k of seconds ~ work^k, fitted on a log-log scale."""
    if len(rows) < 2:
        return None
    x, y = (np.log([row[key] for row in rows]) for key in (name, "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def growth(sizes: dict, device) -> tuple[list[dict], dict]:
    """All measurements of one device, and the exponents."""
    least, middle = sizes["widths"][0], sizes["batch"][1]
    by = {
        "batch": [imagination(b, sizes["horizon"][0], least, device) for b in sizes["batch"]],
        "horizon": [imagination(middle, h, least, device) for h in sizes["horizon"]],
        "parameters": [
            imagination(middle, sizes["horizon"][0], w, device) for w in sizes["widths"]
        ],
        "budget": [real_budget(p, device) for p in sizes["budget"]],
    }
    return sum(by.values(), []), {name: exponent(rows, name) for name, rows in by.items()}


# -- two processes -----------------------------------------------------------------------------


def train_world_model(steps: int):
    torch.manual_seed(0)
    model = world_model((96, 160), "cpu")
    latents, actions = torch.randn(8, 49, 16, 8, 8), torch.rand(8, 48, 4) * 2 - 1
    pool = Pool(Episodes(latents, actions), model, WindowConfig())
    options = dict(seed=0, name="world model", extra=pool.tensors, shared=True)
    return model, fit(model, pool.loss, FitConfig(steps=steps), **options)


def train_policy(steps: int):
    torch.manual_seed(0)
    policy, models = Policy(), (Autoencoder(AutoencoderConfig()), world_model((96, 160), "cpu"))

    class Judged(ImaginedEnv):
        """Success by chance, so that most groups are kept without a trained model."""

        def step_chunk(self, actions, every_frame=True):
            frames, done, info = super().step_chunk(actions, every_frame)
            late = np.asarray(actions)[:, :, 0].mean(axis=1) > 0
            return frames, done | late[:, None], info

    config = GRPOConfig(groups=4, group_size=8, minibatch=16)
    options = dict(iterations=steps, horizon=16, seed=0, stage="x", tolerate_silence=True)
    env = lambda seed: Judged(*models, seed=seed)
    return policy, optimize(policy, env, start_states(16), config, **options)


TRAININGS = {"world model": train_world_model, "GRPO": train_policy}


def as_rank(name: str, steps: int, out: Path) -> None:
    """One process of a measurement; the first one writes seconds and the last loss."""
    torch.set_num_threads(1)
    parallel.start()
    TRAININGS[name](1)
    parallel.wait()
    clock = time.monotonic()
    _, records = TRAININGS[name](steps)
    parallel.wait()
    if not parallel.rank():
        loss = records[-1].get("loss")
        write_json(out, {"seconds": time.monotonic() - clock, "loss": loss})
    parallel.stop()


def launch(name: str, steps: int, processes: int, out: Path) -> dict:
    """Run a training with so many processes of one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names["OMP_NUM_THREADS"] = 1
    command = [
        sys.executable,
        __file__,
        "--rank-of",
        name,
        "--steps",
        str(steps),
        "--out",
        str(out),
    ]
    started = []
    for rank in range(processes):
        own = {
            key: str(value) for key, value in (names | {"RANK": rank, "LOCAL_RANK": rank}).items()
        }
        started.append(subprocess.Popen(command, env=os.environ | own))
    if any(process.wait() for process in started):
        raise SystemExit(f"{name} with {processes} processes failed; see above")
    return read_json(out, {"seconds": float})


def two_processes(steps: dict, pairs: int, scratch: Path) -> dict:
    """Medians over pairs measured one after the other; the error is of the world model's loss,
    which two processes share batch by batch (what GRPO samples differs).
    """
    found = {}
    for name, count in steps.items():
        ones, twos = [], []
        for _ in range(pairs):
            ones.append(launch(name, count, 1, scratch))
            twos.append(launch(name, count, 2, scratch))
        found[name] = {
            "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ones, twos)),
            "one_s": [a["seconds"] for a in ones],
            "two_s": [b["seconds"] for b in twos],
        }
        if name == "world model":
            found[name]["error"] = abs(ones[0]["loss"] - twos[0]["loss"]) / abs(ones[0]["loss"])
    scratch.unlink(missing_ok=True)
    return found


def table(result: dict) -> str:
    lines = [f"{'measured':44s}{'value':>12s}"]
    for name, k in result["exponents"].items():
        lines.append(f"{'seconds grow as ' + name + ' to the power':44s}{k:12.2f}")
    for row in result["rows"]:
        if row["what"] == "imagination":
            millions = row["parameters"] / 1e6
            what = f"frames/s, batch {row['batch']}, horizon {row['horizon']}, {millions:.1f} M"
            lines.append(f"{what:44s}{row['frames_s']:12.0f}")
    for name, found in result["two_processes"].items():
        lines.append(f"{'two processes against one, ' + name:44s}{found['ratio']:12.2f}")
    lines.append(f"{'relative error of the loss':44s}{result['two_rank_error']:12.1e}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--rank-of", choices=TRAININGS)
    parser.add_argument("--steps", type=int, default=1)
    a = parser.parse_args()
    if a.rank_of:
        return as_rank(a.rank_of, a.steps, a.out)
    torch.set_num_threads(1)
    device = choose_device(a.device)
    rows, exponents = growth(DRY if a.dry_run else SCALE, device)
    steps = {"world model": 1, "GRPO": 1} if a.dry_run else {"world model": 20, "GRPO": 4}
    pairs = two_processes(steps, 1 if a.dry_run else 3, a.out.with_suffix(".part.json"))
    before = read_json(a.out) if a.out.exists() else {}
    result = before | {  # beside what gpu.sh has measured
        "dry_run": a.dry_run,
        "gpu_run": before.get("gpu_run", False),
        "device": device.type,
        "two_rank_ratio": min(found["ratio"] for found in pairs.values()),
        "two_rank_error": pairs["world model"]["error"],
        "two_processes": pairs,
        "exponents": exponents,
        "rows": rows,
    }
    write_json(a.out, result)
    print(table(result))
    print(json.dumps({key: result[key] for key in ("two_rank_ratio", "two_rank_error", "gpu_run")}))


if __name__ == "__main__":
    main()
