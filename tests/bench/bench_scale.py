"""Cost as the work grows, two processes beside one, memory and precision: all in scale.json.

    python tests/bench/bench_scale.py [--only PART ...] [--out FILE] [--device DEVICE] [--dry-run]

Parts: `batch`, `horizon`, `parameters`, `budget`: imagined frames a second as each grows, with the
exponents that fit them (1: cost grows as the work). `ranks`: two processes of one thread against
one of one thread, measured by turns, for world-model training and GRPO iterations; it means
something only on two cores that nobody else uses. `compute`: a step of world-model training and a
GRPO update in 16 bits, with recomputed blocks, in micro-batches, compiled. `backbone`: a GRPO
update of 8 trajectories by a random policy of SmolVLM-256M's shape with LoRA.

Everything runs on one thread. A part that FILE has from this commit and machine is not measured
again, so a bench that was stopped goes on. --dry-run: tiny sizes. assets/figures/scale.png
and the table of notebooks/at_scale.md are made anew each time; `wmpo-lite results` prints it, too.
"""

import argparse
import ctypes
import dataclasses
import gc
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from wmpo_lite import grpo
from wmpo_lite.autoencoder import Autoencoder, AutoencoderConfig
from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.checkpoint import read_json, write_json
from wmpo_lite.common.files import ASSETS
from wmpo_lite.common.machine import Compute, choose_device, cores
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.policies.backbone import BackboneConfig, BackbonePolicy
from wmpo_lite.policy import Policy, build_tokenizer
from wmpo_lite.recipes.pretrain import PRETRAINING
from wmpo_lite.report.results import scale_table
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize
from wmpo_lite.trajectory import InitialStates
from wmpo_lite.world_model import WorldModel

OUT, FIGURE = ASSETS / "results" / "scale.json", ASSETS / "figures" / "scale.png"
PAGE = Path(__file__).resolve().parents[2] / "notebooks" / "at_scale.md"
TEXT = "put the red cube on the plate"
# What grows, and the batch and the horizon of everything else.
SCALE = {
    "batch": (16, 64, 256, 1024),
    "horizon": (40, 80, 160),
    "widths": ((96, 160), (208, 352), (440, 728)),  # 1, 4 and 16 times the parameters
    "budget": (32, 128, 512, 1280),
    "episodes": 16,
    "steps": 8,
    "train_batch": 64,
}
GPU = SCALE | {"episodes": 64, "steps": 40}
DRY = {"batch": (2, 4), "horizon": (8, 16), "widths": ((16, 16), (32, 32)), "budget": (2, 4)}
DRY |= {"episodes": 2, "steps": 8, "train_batch": 4}


def world_model(widths, device) -> WorldModel:
    config = dataclasses.replace(PRETRAINING["laptop"].world_model, widths=widths)
    return WorldModel(config).to(device).eval()


def start_states(count: int, size: int = 64) -> InitialStates:
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return InitialStates(
        np.zeros((count, 1)), frames, (TEXT,) * count, "rollouts", np.arange(count)
    )


def measured(run, device) -> dict:
    """Seconds of `run()` (of the processor, which others may use meanwhile; on a GPU by the clock),
    and the most memory that was in use: of the GPU, else of this process, weights and libraries
    included (None where the system does not tell).
    """
    cuda, clear = device.type == "cuda", Path("/proc/self/clear_refs")
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    elif clear.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what earlier measurements have left
        clear.write_text("5")
    now = time.monotonic if cuda else time.process_time
    clock = now()
    run()
    if cuda:
        torch.cuda.synchronize()
    seconds = now() - clock
    peak = torch.cuda.max_memory_allocated() if cuda else None
    if not cuda and clear.exists():
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"seconds": seconds, "peak_bytes": peak}


def imagination(batch: int, horizon: int, widths, device) -> dict:
    """Imagined frames a second without a policy's or a reward model's work."""
    env = ImaginedEnv(
        Autoencoder(AutoencoderConfig()).to(device).eval(), world_model(widths, device)
    )

    def run(batch=batch, horizon=horizon):
        env.reset(start_states(batch))
        for _ in range(horizon // 8):
            env.step_chunk(np.zeros((batch, 8, 4), np.float32))

    run(min(batch, 64), 8)  # the first one is slow
    found = measured(run, device)
    return {
        "what": "imagination",
        "batch": batch,
        "horizon": horizon,
        "parameters": sum(p.numel() for p in env.world_model.parameters()),
        "frames_s": batch * horizon / found["seconds"],
        **found,
    }


def real_budget(budget: int, horizon: int, device) -> dict:
    """Seconds that P imagined episodes take, with the policy: what P costs."""
    policy = Policy().to(device).eval()
    env = ImaginedEnv(
        Autoencoder(AutoencoderConfig()).to(device).eval(), world_model((96, 160), device)
    )
    run = lambda n=budget: rollout(policy, env, start_states(n), horizon=horizon, every_frame=False)
    run(min(budget, 32))
    found = measured(run, device)
    rate = budget * horizon / found["seconds"]
    return {"what": "budget", "budget": budget, "horizon": horizon, "frames_s": rate, **found}


def by_batch(s: dict, device) -> list[dict]:
    return [imagination(b, s["steps"], s["widths"][0], device) for b in s["batch"]]


def by_horizon(s: dict, device) -> list[dict]:
    return [imagination(s["episodes"], h, s["widths"][0], device) for h in s["horizon"]]


def by_parameters(s: dict, device) -> list[dict]:
    return [imagination(s["episodes"], s["steps"], w, device) for w in s["widths"]]


def by_budget(s: dict, device) -> list[dict]:
    return [real_budget(p, s["steps"], device) for p in s["budget"]]


GROWTH = {"batch": by_batch, "horizon": by_horizon}
GROWTH |= {"parameters": by_parameters, "budget": by_budget}


def exponent(rows: list[dict], name: str) -> float | None:
    """k of seconds ~ work^k, fitted on a log-log scale."""
    if len(rows) < 2:
        return None
    x, y = (np.log([row[key] for row in rows]) for key in (name, "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def growth(sizes: dict, device) -> tuple[list[dict], dict]:
    """All measurements of growth on one device, and the exponents."""
    by = {name: run(sizes, device) for name, run in GROWTH.items()}
    return sum(by.values(), []), {name: exponent(rows, name) for name, rows in by.items()}


# -- memory and precision ----------------------------------------------------------------------


def training_step(batch: int, device, compute: Compute, compiled: bool = False) -> dict:
    """A step of world-model training, after two that warm up."""
    torch.manual_seed(0)
    model = compute.prepare(world_model((96, 160) if batch > 8 else (16, 16), device).train())
    episodes = Episodes(torch.randn(8, 49, 16, 8, 8), torch.rand(8, 48, 4) * 2 - 1)
    pool, step = Pool(episodes, model, WindowConfig(batch=batch)), iter(range(100))
    if compiled:
        model.denoiser.predict_x0 = torch.compile(model.denoiser.predict_x0)

    def run(count=3):
        for _ in range(count):
            with compute.autocast(device):
                n = next(step)
                draw = torch.Generator().manual_seed(n), np.random.default_rng(n)
                pool.loss(*draw, n)[0].backward()

    clock = time.monotonic()
    run(2)
    warm = time.monotonic() - clock
    return measured(run, device) | {"warm_up_s": warm}


def policy_update(count: int, device, compute: Compute) -> dict:
    """A GRPO update of one minibatch of trajectories of two chunks."""
    torch.manual_seed(0)
    policy = compute.prepare(Policy().to(device))
    with compute.autocast(device):
        batch = sampled(policy, count, 16, 64)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)
        config = GRPOConfig(group_size=count, epochs=1, micro_batch=compute.micro_batch)
        return measured(lambda: grpo.update(policy, optimizer, batch, config), device)


def sampled(policy, count: int, horizon: int, size: int) -> grpo.RolloutBatch:
    """One group of trajectories on frames of noise, every other one a success."""
    states, found = start_states(count, size), []
    for i in range(count):  # one by one: sampling is not what is measured
        found += rollout(policy, Noise(policy), states[i : i + 1], horizon=horizon, temperature=1.0)
    found = [
        dataclasses.replace(t, success=i % 2 == 0, finish_step=horizon, group=0)
        for i, t in enumerate(found)
    ]
    return grpo.batch_from_trajectories(found)


class Noise:
    """Frames of noise, whatever is done; nothing succeeds."""

    def __init__(self, policy):
        self.action_dim, self.action_names = policy.config.action_dim, policy.statistics.names

    def reset(self, states):
        self.instructions, self.rng = list(states.instructions), np.random.default_rng(0)
        self.shape = states.frames.shape[1:]
        return states.frames

    def step_chunk(self, actions, every_frame=True):
        frames = self.rng.integers(0, 256, (len(actions), *self.shape), dtype=np.uint8)
        frames = np.repeat(frames[:, None], actions.shape[1] if every_frame else 1, axis=1)
        return frames, np.zeros(actions.shape[:2], bool), {}


def compute(s: dict, device) -> list[dict]:
    """What each choice costs and saves beside none, in turn."""
    n, rows = s["train_batch"], []
    for choice, made, compiled in (
        ("fp32", Compute(), False),
        ("bf16", Compute("bf16"), False),
        ("recompute", Compute(recompute=True), False),
        ("torch.compile", Compute(), True),
    ):
        found = training_step(n, device, made, compiled)
        rows.append({"what": "world-model steps", "choice": choice, **found})
    for choice, made in (
        ("fp32", Compute()),
        ("bf16", Compute("bf16")),
        ("recompute", Compute(recompute=True)),
        ("micro-batch 8", Compute(micro_batch=8)),
    ):
        rows.append({"what": "GRPO update", "choice": choice, **policy_update(n, device, made)})
    for row in rows:
        plain = next(r for r in rows if r["what"] == row["what"])
        row["times_as_fast"] = plain["seconds"] / row["seconds"]
    return rows


def backbone(s: dict, device) -> list[dict]:
    """Random weights of SmolVLM-256M's shape: a SigLIP base tower for 512 pixels, SmolLM2-135M.
    Trajectories of one chunk, all 8 in one pass: what a micro-batch of one takes is 5 chunks.
    """
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    dry = s is DRY
    size = lambda width, inner, layers, heads: {
        "hidden_size": 32 if dry else width,
        "intermediate_size": 64 if dry else inner,
        "num_hidden_layers": 2 if dry else layers,
        "num_attention_heads": 2 if dry else heads,
    }
    torch.manual_seed(0)
    words = {"model_type": "llama", "vocab_size": 300 if dry else 49280, "pad_token_id": 0}
    text = {**size(576, 1536, 30, 9), **words, "num_key_value_heads": 2 if dry else 3}
    vision = {**size(768, 3072, 12, 12), "image_size": 64 if dry else 512, "patch_size": 16}
    shape = dict(vision_config=vision, text_config=text, scale_factor=2 if dry else 4)
    shape |= {"image_token_id": 299 if dry else 49190, "pad_token_id": 0}
    model = SmolVLMForConditionalGeneration(SmolVLMConfig(**shape, tie_word_embeddings=True))
    config = BackboneConfig(image=64 if dry else 256, lora_rank=4 if dry else 16)
    policy = BackbonePolicy(model.eval(), build_tokenizer(), config).to(device)
    batch = sampled(policy, 8, 8, config.image)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    settings = GRPOConfig(group_size=8, epochs=1, minibatch=8)
    found = measured(lambda: grpo.update(policy, optimizer, batch, settings), device)
    return [
        {
            "what": "backbone update",
            "parameters": sum(p.numel() for p in policy.parameters()),
            "trained": sum(p.numel() for p in trained),
            "trajectories": 8,
            "chunks": 1,
            **found,
        }
    ]


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
    if any([process.wait() for process in started]):
        raise SystemExit(f"{name} with {processes} processes failed; see above")
    return read_json(out, {"seconds": float})


def ranks(s: dict, device) -> list[dict]:
    """Medians over pairs measured one after the other; the error is that of the loss."""
    rows, pairs = [], 1 if s is DRY else 3
    for name, count in {"world model": 20, "GRPO": 4}.items():
        ones, twos = [], []
        for _ in range(pairs):
            for found, processes in ((ones, 1), (twos, 2)):
                with tempfile.TemporaryDirectory() as folder:
                    steps, out = 1 if s is DRY else count, Path(folder) / "out.json"
                    found.append(launch(name, steps, processes, out))
        loss = [found[0]["loss"] for found in (ones, twos)]
        rows.append(
            {
                "what": "two processes",
                "training": name,
                "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ones, twos)),
                "error": None if None in loss else abs(loss[0] - loss[1]) / abs(loss[0]),
                "one_s": [a["seconds"] for a in ones],
                "two_s": [b["seconds"] for b in twos],
            }
        )
    return rows


# -- the file ----------------------------------------------------------------------------------

PARTS = GROWTH | {"compute": compute, "backbone": backbone, "ranks": ranks}


def machine() -> str:
    """The processor and how many of its cores there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


def summary(rows: list[dict]) -> dict:
    """What the rows say together."""
    part = lambda name: [row for row in rows if row["part"] == name]
    pairs = part("ranks")
    return {
        "two_rank_ratio": min((row["ratio"] for row in pairs), default=None),
        "two_rank_error": max((row["error"] for row in pairs), default=None),
        "exponents": {name: exponent(part(name), name) for name in GROWTH if part(name)},
        "rows": rows,
    }


def draw(result: dict, path: Path) -> None:
    """Seconds against the work, a panel for each thing that grows, with the fitted exponent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained", sharey=True)
    for ax, (name, k) in zip(axes, result["exponents"].items()):
        rows = [row for row in result["rows"] if row["part"] == name]
        x, y = ([row[key] for row in rows] for key in (name, "seconds"))
        ax.loglog(x, y, "o-")
        ax.loglog(x, [y[0] * value / x[0] for value in x], ":", color="gray")
        ax.set(xlabel="P" if name == "budget" else name, title=f"exponent {k:.2f}", xticks=x)
        ax.set_xticklabels([f"{value / 1e6:.1f} M" if value > 9999 else str(value) for value in x])
        ax.minorticks_off()
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
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
    sizes = DRY if a.dry_run else GPU if device.type == "cuda" else SCALE
    about = {"machine": machine(), "commit": checkpoint.commit().rstrip("+")}
    about |= {"device": device.type, "dry_run": a.dry_run, "threads": 1, "cores": cores()}
    result = {"gpu_run": False} | (read_json(a.out) if a.out.exists() else {})
    for name in a.only:
        rows = result.get("rows", [])
        own = ("machine", "commit", "device", "dry_run")
        if any(row["part"] == name and all(row[k] == about[k] for k in own) for row in rows):
            print(f"{name}: measured already")
            continue
        found = [{"part": name, **row, **about} for row in PARTS[name](sizes, device)]
        order = list(PARTS)
        rows = [row for row in rows if row["part"] != name] + found
        result |= summary(sorted(rows, key=lambda row: order.index(row["part"])))
        write_json(a.out, result)
        print(f"{name}: {len(found)} rows", flush=True)
    if a.out == OUT:
        draw(result, FIGURE)
        before = PAGE.read_text().split("| measured |")[0]  # the table is the end of the page
        PAGE.write_text(before + scale_table(a.out) + "\n")
    print(scale_table(a.out))


if __name__ == "__main__":
    main()
