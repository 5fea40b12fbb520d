"""`wmpo-lite demo`: the whole method once, from P real rollouts to a report. Every stage leaves its result in the run folder and is not done twice."""
import dataclasses
from pathlib import Path

import numpy as np

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.trust import describe_trust, trust
from wmpo_lite.workspace import SWAP_STATES, TRAINING_STATES, Run, Workspace, greedy, imagined_env, save_arrays, starts_of_imagination

# ----------------------------------------------------------------------------------------------------------------------------- stages


def record_rollouts(w: Workspace) -> dict:
    """P real rollouts of the base policy at the sampling temperature: the whole real budget."""
    from wmpo_lite.rollout import rollout
    from wmpo_lite.trajectory import save_trajectories

    states = w.states("rollouts", TRAINING_STATES * w.run.seed, w.run.rollout_budget)
    found = rollout(w.base(), w.env, states, horizon=w.horizon, temperature=w.settings.temperature, seed=w.run.seed, desc="record rollouts")
    successes = sum(t.success for t in found)
    if successes in (0, len(found)):
        raise UserError(f"the base policy succeeded in {successes} of {len(found)} rollouts; nothing can be learnt from outcomes that are all alike: clone it from "
                        f"{'more' if successes == 0 else 'fewer'} demonstrations")
    save_trajectories(w.folder / "rollouts.hdf5", found, env_args={"task": w.run.task, "size": w.env.size}, provenance=w.provenance())
    return {"n": len(found), "successes": successes}


def align_world_model(w: Workspace) -> dict:
    """Policy behaviour alignment (paper section 3.2): fine-tune the pre-trained world model on the P rollouts, failures included."""
    import torch

    from wmpo_lite.envs.tasks import object_map
    from wmpo_lite.perception import LatentPerception
    from wmpo_lite.train import FitConfig, WindowConfig, fit, world_model_loss
    from wmpo_lite.world_model import WorldModel

    s, trajectories = w.settings, w.rollouts()
    model = WorldModel.load(w.assets / "world_model")
    latents = w.autoencoder().encode_uint8(torch.from_numpy(np.stack([t.frames for t in trajectories])))
    actions = torch.from_numpy(np.stack([t.actions for t in trajectories]))
    objects = object_map(w.task, np.stack([t.frames for t in trajectories]), latents.shape[-1])
    # The draft stays as pre-trained: on labels that the reader makes of the P rollouts it learns to let go of what it holds (figures in the README).
    if model.config.draft_width:
        model.draft.requires_grad_(False)
    windows = WindowConfig(batch=s.align_batch, own_from=0.0)
    perception = LatentPerception(w.base().vision, w.autoencoder(), latents[:, latents.shape[1] // 2]) if s.align_perceived else None
    records = fit(model, world_model_loss(model, latents, actions, windows, s.align_steps, objects=objects, perception=perception, perceived=s.align_perceived), FitConfig(
        steps=s.align_steps, lr=s.align_lr, warmup=10, decay=0.6, ema=0.98, save_every=60), seed=w.run.seed, name="align", folder=w.folder / "fit_align",
        log_every=20, on_log=w.log)
    model.save(w.folder / "world_model", w.provenance(stage="align"))
    return records[-1]


def reward_episodes(trajectories, frames=None) -> dict:
    """Trajectories as the arrays that `reward.sample_clips` wants."""
    from wmpo_lite.envs.tabletop.tasks.pair import with_another_colour
    other = [with_another_colour(t.instruction, t.index) for t in trajectories]
    return {"frames": np.stack([t.frames for t in trajectories]) if frames is None else frames, "success": np.array([t.success for t in trajectories]),
            "finish_step": np.array([t.finish_step for t in trajectories]), "instruction": [t.instruction for t in trajectories], "other": other}


def fit_reward(w: Workspace) -> dict:
    """Fit the success classifier to the P rollouts: its threshold by F1 and, with reward_steps, its weights too.

    Weights are then fitted on three quarters of the rollouts and the threshold is chosen on the remaining quarter. reward_steps=0 leaves the weights
    as shipped and chooses on all: a hundred rollouts are few to learn from and many to choose one number on.
    """
    import torch

    from wmpo_lite.reward import RewardModel, fit_threshold, reward_loss
    from wmpo_lite.train import FitConfig, fit

    s, trajectories = w.settings, w.rollouts()
    order = np.random.default_rng([w.run.seed, 5]).permutation(len(trajectories))
    # every success rate keeps its share in both parts
    order = sorted(order, key=lambda i: trajectories[i].success)
    held = order[::4] if s.reward_steps else order
    model = RewardModel.load(w.assets / "reward")
    if s.reward_steps:
        autoencoder, part = w.autoencoder(), [trajectories[i] for i in order if i not in set(held)]
        real = np.stack([t.frames for t in part])
        episodes = reward_episodes(part + part, np.concatenate([real, autoencoder.recode(real)]))  # camera pictures and what the decoder makes of them
        fit(model, reward_loss(model, episodes), FitConfig(steps=s.reward_steps, lr=s.reward_lr, warmup=10, decay=0.6, ema=0.98, save_every=100),
            seed=w.run.seed, name="reward", folder=w.folder / "fit_reward", log_every=20, on_log=w.log)
    chosen_on = [trajectories[i] for i in held]
    frames = torch.from_numpy(np.stack([t.frames for t in chosen_on]))
    threshold, f1 = fit_threshold(model, frames, [t.instruction for t in chosen_on], [t.success for t in chosen_on])
    model.save(w.folder / "reward", w.provenance(stage="reward", threshold=threshold, f1=f1))
    return {"threshold": threshold, "f1": f1, "chosen_on": len(held), "imagined_threshold": s.imagined_threshold}


def train_wmpo(w: Workspace) -> dict:
    """GRPO in imagination, from the P recorded first frames; no real environment is touched."""
    from wmpo_lite.optimise import optimise, save_policy_once

    s = w.settings
    policy = w.base()
    config = s.wmpo_update()
    records = optimise(policy, lambda seed: imagined_env(w, seed, doubt=s.doubt), starts_of_imagination(w), config, iterations=s.iterations, horizon=w.horizon,
                       seed=w.run.seed, stage="wmpo", folder=w.folder / "fit_wmpo", on_log=w.log, refill=s.refill, freeze_vision=s.freeze_vision, tolerate_silence=s.tolerate_silence)
    save_policy_once(w.folder / "policies" / "wmpo", policy, w.provenance(stage="wmpo"))
    return {"iterations": len(records), "first": records[0]["success"], "last": records[-1]["success"],
            "iteration_s": float(np.median([r["seconds"] for r in records]))}


def train_online(w: Workspace) -> dict:
    """Baseline: the same GRPO in the real environment until P rollouts are spent."""
    from wmpo_lite.grpo import GRPOConfig
    from wmpo_lite.optimise import optimise, save_policy_once

    s = w.settings
    policy = w.base()
    size = min(s.online_group_size, w.run.rollout_budget)
    groups = min(s.online_groups, w.run.rollout_budget // size)
    per_iteration = groups * size
    config = GRPOConfig(groups=groups, group_size=size, lr=s.online_lr, warmup=s.online_warmup, epochs=s.online_epochs, minibatch=s.minibatch, temperature=s.temperature)
    states = w.states("rollouts", TRAINING_STATES * w.run.seed, w.run.rollout_budget)
    records = optimise(policy, lambda seed: w.env, states, config, iterations=w.run.rollout_budget // per_iteration, horizon=w.horizon,
                       seed=w.run.seed, stage="grpo", folder=w.folder / "fit_grpo", on_log=w.log, refill=0, freeze_vision=s.freeze_vision, tolerate_silence=True)
    save_policy_once(w.folder / "policies" / "grpo", policy, w.provenance(stage="grpo"))
    return {"iterations": len(records), "real_rollouts": sum(r["rollouts"] for r in records), "updates": sum("loss" in r for r in records)}


def train_offline(w: Workspace) -> dict:
    """Baseline: DPO on success and failure pairs of the P recorded rollouts."""
    from wmpo_lite.dpo import DPOConfig, train_dpo
    from wmpo_lite.optimise import save_policy_once

    s = w.settings
    policy = w.base()
    policy.train_vision(not s.freeze_vision)
    logs = train_dpo(policy, None, w.rollouts(), DPOConfig(beta=s.dpo_beta, lr=s.dpo_lr, epochs=s.dpo_epochs, pairs=s.dpo_pairs, temperature=s.temperature),
                     seed=w.run.seed, on_step=lambda step, record: w.log({"stage": "dpo", "step": step, **record}))
    save_policy_once(w.folder / "policies" / "dpo", policy.eval(), w.provenance(stage="dpo"))
    return {"steps": len(logs), **{key: logs[-1][key] for key in ("loss", "accuracy")}}


def evaluate(w: Workspace) -> dict:
    """Base, GRPO, DPO and WMPO, greedy, on the same held-out initial states."""
    from wmpo_lite.evaluate import paired_comparison, successful_lengths, trajectory_length_ratio
    from wmpo_lite.policy import load_policy

    n = w.settings.evaluation_states
    states = w.states("evaluation", 0, n)
    policies, trajectories = {"base": w.base()}, {}
    policies |= {name: load_policy(w.folder / "policies" / name) for name in ("grpo", "dpo", "wmpo")}
    table = {}
    for name, policy in policies.items():
        trajectories[name] = greedy(w, policy, states, desc=f"evaluate {name}")
        table[name] = {"success": [t.success for t in trajectories[name]], "finish_step": [t.finish_step for t in trajectories[name]]}
    compare = {f"wmpo_vs_{other}": dataclasses.asdict(paired_comparison(np.array(table[other]["success"]), np.array(table["wmpo"]["success"])))
               for other in ("base", "grpo", "dpo")}
    lengths = {}
    for name in ("grpo", "dpo", "wmpo"):
        both = [(a, b) for a, b in zip(trajectories["base"], trajectories[name]) if a.success and b.success]
        if both:
            lengths[name] = trajectory_length_ratio(successful_lengths([a for a, _ in both]), successful_lengths([b for _, b in both]))
    result = {"n": n, "policies": table, "comparisons": compare, "length_ratio": lengths, "instruction_swap": instruction_swap(w, policies["base"])}
    checkpoint.write_json(w.folder / "evaluation.json", result)
    shown = states[np.arange(min(n, 8))]
    before = greedy(w, policies["base"], shown, every_frame=True)
    after = greedy(w, policies["wmpo"], shown, every_frame=True)
    save_arrays(w.folder / "episodes.npz", before=np.stack([t.frames for t in before]), after=np.stack([t.frames for t in after]),
                 before_success=np.array([t.success for t in before]), after_success=np.array([t.success for t in after]),
                 instructions=np.array([t.instruction for t in before]))
    return {"n": n, **{f"{name}_success": float(np.mean(row["success"])) for name, row in table.items()}, "comparisons": compare}


def instruction_swap(w: Workspace, policy) -> dict:
    """The same pictures under the other sentence: a policy that listens follows it about as often. Empty for a task with one sentence."""
    from wmpo_lite.envs.tasks import has_other_sentence, with_other_sentence
    if not has_other_sentence(w.task):
        return {}
    count = max(24, w.settings.evaluation_states // 4)
    states = w.states("validation", SWAP_STATES, count)
    swapped = with_other_sentence(w.task, states)
    said, other = greedy(w, policy, states), greedy(w, policy, swapped)
    return {"n": count, "as_said": float(np.mean([t.success for t in said])), "swapped_follows_new": float(np.mean([t.success for t in other]))}


def record(w: Workspace, stages: dict) -> dict:
    """The flat record that assets/results/main_job.json collects."""
    e, t = stages["evaluate"], stages["trust"]
    gain = e["comparisons"]["wmpo_vs_base"]
    return {"task": w.run.task, "seed": w.run.seed, "profile": w.run.profile, "rollout_budget": w.run.rollout_budget, "n": e["n"],
            "base_success": e["base_success"], "wmpo_success": e["wmpo_success"], "grpo_success": e["grpo_success"], "dpo_success": e["dpo_success"],
            "gain": gain["gain"], "gain_low": gain["low"], "gain_high": gain["high"],
            **{f"over_{other}{end}": e["comparisons"][f"wmpo_vs_{other}"][key] for other in ("grpo", "dpo")
               for end, key in (("", "gain"), ("_low", "low"), ("_high", "high"))},
            "reward_f1": t["reward_f1_real"], "agreement_auc": t["agreement"]["auc"], "agreement_success": t["agreement"]["success_agreement"],
            "agreement_failure": t["agreement"]["failure_agreement"], "agreement_n": t["n"], "shuffled_db": t["sensitivity"]["shuffled_cost"],
            "psnr_end": t["psnr"]["model"][-1], "psnr_end_copy": t["psnr"]["copy_last"][-1],
            "iteration_s": stages["wmpo"]["iteration_s"], "demo_s": round(w.seconds(), 1), "versions": checkpoint.versions(), "commit": checkpoint.commit()}


def main_job(run: Run, folder: Path) -> dict:
    """All stages in order; returns the record and leaves report.html. Killed and started again it goes on where it was."""
    from wmpo_lite.report import write_report

    w = Workspace(run, folder)
    steps = (("rollouts", record_rollouts), ("align", align_world_model), ("reward", fit_reward), ("trust", trust), ("wmpo", train_wmpo),
             ("grpo", train_online), ("dpo", train_offline), ("evaluate", evaluate))
    stages = {}
    for name, fn in steps:
        stages[name] = w.stage(name, lambda: fn(w))
        if name == "trust":
            print(describe_trust(stages[name]), flush=True)
    result = record(w, stages)
    checkpoint.write_json(w.folder / "result.json", result)
    w.env.close()
    path = write_report(w.folder)
    print(describe(result, checkpoint.read_json(w.folder / "evaluation.json")))
    print(f"report: {path}   ({result['demo_s']:.0f} s)")
    return result


def describe(result: dict, evaluation: dict) -> str:
    from wmpo_lite.evaluate import success_rate
    lines = [f"{result['task']}, P = {result['rollout_budget']}, seed {result['seed']}: greedy success on {result['n']} held-out initial states"]
    for name, row in evaluation["policies"].items():
        lines.append(f"  {name:5s} {success_rate(np.array(row['success']))}")
    for name, c in evaluation["comparisons"].items():
        lines.append(f"  {name.replace('_', ' ')}: {100 * c['gain']:+.1f} points [{100 * c['low']:+.1f}, {100 * c['high']:+.1f}], won {c['won']}, lost {c['lost']}")
    return "\n".join(lines)
