"""What alignment, own-context training, context noise and sampler steps are good for: one change at
a time.

    python tests/bench/bench_world_model.py runs/place-laptop-p128-s0 [variant ...]

Every aligned variant starts from the pre-trained world model and takes as many steps of alignment,
on the P rollouts and the demonstrations of that run. Measured on fresh validation rollouts of the
base policy, judged by the run's reward model. Records go to assets/results/world_model.json, one
per task and variant, and are printed. About five minutes a variant on one core. The rollouts are
those of the run's trust panel, so they were never trained on.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch

from wmpo_lite.common import checkpoint
from wmpo_lite.own_context import Pool, WindowConfig
from wmpo_lite.recipes.align import recorded_episodes
from wmpo_lite.recipes.rollouts import demonstrations
from wmpo_lite.recipes.trust import panel
from wmpo_lite.recipes.workspace import Run, Workspace
from wmpo_lite.report.results import ALIGNED, NOT_ALIGNED, RESULTS, panel_record
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.world_model import WorldModel

PATH = RESULTS / "world_model.json"
# variant: (episodes to align on, changes of the windows, Euler steps)
VARIANTS = {
    NOT_ALIGNED: (None, {}, 1),
    ALIGNED: ("all", {}, 1),
    "aligned on successes only": ("successes", {}, 1),
    "aligned on P without demonstrations": ("rollouts", {}, 1),
    "aligned without own context": ("all", {"own": 0}, 1),
    "aligned without context noise": ("all", {"noise": 0.0}, 1),
    "aligned, 2 Euler steps": ("all", {}, 2),
    "aligned, 4 Euler steps": ("all", {}, 4),
}


def aligned(w: Workspace, which: str, changes: dict) -> WorldModel:
    """The pre-trained world model after the run's number of alignment steps on `which` episodes."""
    s = w.settings
    episodes = w.rollouts() + (demonstrations(w) if which != "rollouts" else [])
    if which == "successes":
        episodes = [t for t in episodes if t.success]
    model = WorldModel.load(w.shared / "world_model").to(memory_format=torch.channels_last)
    windows = dataclasses.replace(
        WindowConfig(batch=s.align_batch, ramp=s.align_steps // 4), **changes
    )
    pool = Pool(recorded_episodes(w, episodes), model, windows)
    settings = FitConfig(steps=s.align_steps, lr=s.align_lr, warmup=20, decay=0.6, ema=0.99)
    fit(model, pool.loss, settings, seed=w.run.seed, name="align")
    return model.eval()


def main(run: str, *names: str):
    """Measure the named variants (all by default) and store their records."""
    config = checkpoint.read_json(Path(run) / "config.json")
    known = {field.name for field in dataclasses.fields(Run)} - {"assets"}
    w = Workspace(Run(**{key: config[key] for key in known}), Path(run))
    states = w.states("trust", w.settings.trust_rollouts)
    real = rollout(
        w.base(),
        w.env,
        states,
        horizon=w.horizon,
        temperature=w.settings.temperature,
        seed=w.run.seed + 1,
    )
    truth, made = np.stack([t.frames for t in real]), {}
    records = {
        (r["task"], r["variant"]): r
        for r in (checkpoint.read_json(PATH, [dict]) if PATH.exists() else [])
    }
    for name in names or VARIANTS:
        which, changes, steps = VARIANTS[name]
        clock = time.process_time()
        key = (which, tuple(changes.items()))
        if key not in made:
            model = w.world_model() if key == ("all", ()) else None  # the run's own alignment
            if which is None:
                model = WorldModel.load(w.shared / "world_model")
            made = {key: model or aligned(w, which, changes)}
        hours = (time.process_time() - clock) / 3600
        w.settings = dataclasses.replace(w.settings, num_inference_steps=steps)
        p = panel(w, real, truth, made[key])
        records[w.run.task, name] = record = {
            "task": w.run.task,
            "variant": name,
            "n": len(real),
            **panel_record(p),
            "parameters": sum(x.numel() for x in made[key].parameters()),
            "train_core_hours": round(hours, 3),
            "frames": 0 if which is None else w.settings.align_steps * w.settings.align_batch * 2,
        }
        print(record, flush=True)
        checkpoint.write_json(PATH, [records[key] for key in sorted(records)])
    w.env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
