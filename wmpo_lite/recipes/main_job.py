"""`wmpo-lite demo`: the whole method once, from P real rollouts to a report. Every stage leaves its
result in the run folder and is not done twice. `train_wmpo` is here, the other stages in files of
their own.
"""

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.machine import Compute
from wmpo_lite.recipes.align import align_world_model
from wmpo_lite.recipes.baselines import train_offline, train_online
from wmpo_lite.recipes.evaluation import describe, evaluate
from wmpo_lite.recipes.fit_reward import fit_reward
from wmpo_lite.recipes.rollouts import demonstrations, record_rollouts
from wmpo_lite.recipes.trust import describe_trust, trust
from wmpo_lite.recipes.workspace import Run, Workspace, greedy, imagined_env, initial_frames


def main_job(run: Run, folder: Path, device: str = "auto", compute: Compute = Compute()) -> dict:
    """All stages in order; returns the record and leaves report.html. Killed and started again it
    goes on where it was.
    """
    with closing(Workspace(run, folder, device, compute)) as w:
        return _main_job(w)


def _main_job(w: Workspace) -> dict:
    steps = (  # and whether several processes share the work out
        ("rollouts", record_rollouts, False),
        ("align", align_world_model, True),
        ("reward", fit_reward, True),
        ("trust", trust, True),
        ("wmpo", train_wmpo, True),
        ("grpo", train_online, True),
        ("dpo", train_offline, True),
        ("evaluate", evaluate, True),
    )
    stages = {}
    for name, fn, shared in steps:
        stages[name] = w.stage(name, lambda: fn(w), shared)
        if name == "trust" and not parallel.rank():
            print(describe_trust(stages[name]), flush=True)
    return parallel.first(lambda: finish(w, stages))


def train_wmpo(w: Workspace) -> dict:
    """GRPO in imagination, from the P recorded first frames; no real environment is touched.

    With `track_real` the policy is also tried out in the real environment every few iterations, so
    that a reader sees both curves. Nothing is chosen by that.
    """
    from wmpo_lite.train_grpo import optimize, save_policy_once

    s = w.settings
    policy = w.compute.prepare(w.base())

    def watch(record):
        w.log(record)
        if s.track_real and (record["step"] % s.track_every == 0 or record["step"] == s.iterations):
            w.log({"stage": "real", "step": record["step"], **real_success(w, policy)})

    begun = (w.folder / "fit_wmpo" / "progress.json").exists()
    if s.track_real and not begun and not parallel.rank():
        w.log({"stage": "real", "step": 0, **real_success(w, policy)})
    records = optimize(
        policy,
        lambda seed: imagined_env(w, seed),
        initial_frames(w.rollouts()),
        dataclasses.replace(s.wmpo_update(), micro_batch=w.compute.micro_batch),
        iterations=s.iterations,
        horizon=w.horizon,
        seed=w.run.seed,
        stage="wmpo",
        folder=w.folder / "fit_wmpo",
        on_log=watch,
        refill=s.refill,
        freeze_vision=s.freeze_vision,
        tolerate_silence=s.tolerate_silence,
        made_from={
            "world model": checkpoint.fingerprint(w.world_model()),
            "reward model": checkpoint.fingerprint(w.reward_model()),
        },
    )
    about = w.provenance(stage="wmpo")
    parallel.first(lambda: save_policy_once(w.folder / "policies" / "wmpo", policy, about))
    return {
        "iterations": len(records),
        "first": records[0]["success"],
        "last": records[-1]["success"],
        "iteration_s": float(np.median([r["seconds"] for r in records])),
    }


def real_success(w: Workspace, policy) -> dict:
    """Greedy success of `policy` on validation states of the real environment."""
    found = greedy(w, policy, w.states("tracking", w.settings.track_states))
    return {"success": float(np.mean([t.success for t in found])), "n": len(found)}


def finish(w: Workspace, stages: dict) -> dict:
    """The record of all stages, the report, and both in words."""
    from wmpo_lite.report.write import write_report

    result = record(w, stages)
    checkpoint.write_json(w.folder / "result.json", result)
    checkpoint.write_json(w.folder / "seen.json", seen(w, stages["grpo"]["real_rollouts"]))
    path = write_report(w.folder)
    shape = {"policies": dict, "comparisons": dict}
    print(describe(result, checkpoint.read_json(w.folder / "evaluation.json", shape)))
    print(f"report: {path}   ({result['demo_s']:.0f} s)")
    return result


def record(w: Workspace, stages: dict) -> dict:
    """The flat record that assets/results/main_job.json collects."""
    e, t = stages["evaluate"], stages["trust"]
    gain = e["comparisons"]["wmpo_vs_base"]
    return {
        "task": w.run.task,
        "seed": w.run.seed,
        "profile": w.run.profile,
        "rollout_budget": w.run.rollout_budget,
        "round": w.run.round,
        "n": e["n"],
        **{f"{name}_success": e[f"{name}_success"] for name in ("base", "wmpo", "grpo", "dpo")},
        "gain": gain["gain"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        **{
            f"over_{other}{end}": e["comparisons"][f"wmpo_vs_{other}"][key]
            for other in ("grpo", "dpo")
            for end, key in (("", "gain"), ("_low", "low"), ("_high", "high"))
        },
        "reward_f1": t["reward_f1_real"],
        "agreement_auc": t["agreement"]["auc"],
        "agreement_success": t["agreement"]["success_agreement"],
        "agreement_failure": t["agreement"]["failure_agreement"],
        "agreement_n": t["n"],
        "shuffled_db": t["sensitivity"]["shuffled_cost"],
        "psnr_end": t["psnr"]["model"][-1],
        "psnr_end_copy": t["psnr"]["copy_last"][-1],
        "evaluation_from": w.settings.evaluation_from,
        "alignment_auc_before": t["before_alignment"]["agreement"]["auc"],
        "alignment_auc_after": t["agreement"]["auc"],
        "iteration_s": stages["wmpo"]["iteration_s"],
        "demo_s": round(w.seconds(), 1),
        "versions": checkpoint.versions(),
        "commit": checkpoint.commit(),
    }


def seen(w: Workspace, online: int) -> dict:
    """What each method has seen of the world, in [episodes, frames]; None: nothing. online: real
    rollouts that online GRPO has spent.
    """
    from wmpo_lite.trajectory import load_metadata

    count = lambda episodes, frames=w.horizon + 1: [episodes, episodes * frames]
    before = w.run.recorded_before
    demos, budget = demonstrations(w), before + w.run.rollout_budget
    about = load_metadata(w.assets / "demos.hdf5").get("provenance", {})
    cloned = count(about.get("of", len(demos)))
    made = checkpoint.read_json(w.shared / "world_model" / "provenance.json")
    play = [made.get("play_episodes"), made.get("play_frames")] if "play_frames" in made else None
    parts = {
        "base": (cloned, count(before) if before else None, play if before else None),
        "grpo": (None, count(online), None),
        "dpo": (None, count(budget), None),
        "world_model": (count(len(demos)), count(budget), play),
        "reward_model": (count(len(demos)), count(budget), None),
    }
    return {
        name: dict(zip(("demonstrations", "rollouts", "play"), row)) for name, row in parts.items()
    }
