"""`wmpo-lite demo`: the whole method once, from P real rollouts to a report. Every stage leaves its
result in the run folder and is not done twice.
"""

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import Compute
from wmpo_lite.envs.splits import USES
from wmpo_lite.recipes.trust import describe_trust, trust
from wmpo_lite.recipes.workspace import (
    GREEDY_BATCH,
    REWARD_CLIPS,
    Run,
    Workspace,
    clip_scores,
    greedy,
    imagined_env,
    initial_frames,
    replay_in,
    save_arrays,
)

# ------------------------------------------------------------------------------------------ stages


def record_rollouts(w: Workspace) -> dict:
    """P real rollouts of the base policy at the sampling temperature: the whole real budget."""
    from wmpo_lite.envs.tabletop.replay import env_args
    from wmpo_lite.rollout import rollout
    from wmpo_lite.trajectory import save_trajectories

    states = w.states("rollouts", w.run.rollout_budget)
    found = rollout(
        w.base(),
        w.env,
        states,
        horizon=w.horizon,
        temperature=w.settings.temperature,
        seed=w.run.seed,
        desc="record rollouts",
    )
    require_outcomes(w.earlier_rollouts() + found)
    save_trajectories(
        w.folder / "rollouts.hdf5",
        found,
        env_args=env_args(w.run.task, w.env.size),
        provenance=w.provenance(),
    )
    return {"n": len(found), "successes": sum(t.success for t in found)}


def split_rollouts(outcomes, seed: int, part: int = 0) -> tuple[list[int], list[int]]:
    """Which rollouts a reward model is fitted to, and which quarter (`part`: 0 to 3) its thresholds
    are chosen on: every success rate keeps its share in both.
    """
    drawn = np.random.default_rng([seed, 5]).permutation(len(outcomes))
    order = sorted(drawn, key=lambda i: outcomes[i])
    held = set(order[part::4])
    return [i for i in range(len(outcomes)) if i not in held], sorted(held)


def require_outcomes(trajectories) -> None:
    """UserError unless every later stage finds the successes and failures that it needs among the
    rollouts.
    """
    outcomes = [t.success for t in trajectories]
    # how many of each kind are held out does not depend on the seed
    held = [outcomes[i] for i in split_rollouts(outcomes, 0)[1]]
    if all(held) or not any(held):
        raise UserError(
            f"the base policy succeeded in {sum(outcomes)} of {len(outcomes)} rollouts, too"
            f" {'many' if all(held) else 'few'} for a reward model: the quarter that is held out"
            " must hold successes and failures; raise --rollout-budget or take another --seed"
        )


def demonstrations(w: Workspace) -> list:
    """The demonstrations that the base policy was cloned from, or the first of them: beside the P
    rollouts every method may use them.
    """
    from wmpo_lite.trajectory import load_trajectories

    return load_trajectories(w.assets / "demos.hdf5")


def align_world_model(w: Workspace) -> dict:
    """Policy behavior alignment (paper section 3.2): fine-tune the pre-trained world model on the P
    rollouts, failures included, and the cloning demonstrations.

    Windows end a few frames after `finish_step`: what a policy does once it is done is nobody's
    business.
    """
    import torch

    from wmpo_lite.own_context import Pool, WindowConfig
    from wmpo_lite.train import FitConfig, fit

    s = w.settings
    require_outcomes(w.rollouts())  # which a deployment may have recorded
    model = w.compute.prepare(w.pretrained_world_model().to(memory_format=torch.channels_last))
    shown = w.rollouts() + demonstrations(w)
    windows = WindowConfig(batch=s.align_batch, ramp=s.align_steps // 4)
    pool = Pool(recorded_episodes(w, shown), model, windows)
    records = fit(
        model,
        pool.loss,
        FitConfig(
            steps=s.align_steps, lr=s.align_lr, warmup=20, decay=0.6, ema=0.99, save_every=100
        ),
        seed=w.run.seed,
        name="align",
        folder=w.folder / "fit_align",
        log_every=20,
        on_log=w.log,
        extra=pool.tensors,
        shared=True,
        passes=parallel.passes(s.align_batch, w.compute.micro_batch),
        made_from={
            **recordings(shown),
            "autoencoder": checkpoint.fingerprint(w.autoencoder()),
            **dataclasses.asdict(windows),
            "after_success": s.after_success,
        },
    )
    about = w.provenance(stage="align", ema_decay=records[-1]["ema_decay"])
    parallel.first(lambda: model.save(w.folder / "world_model", about))
    return records[-1]


def recordings(trajectories) -> dict:
    """What was recorded, in a few digits, for `fit`'s made_from. Not what models make of it: those
    numbers change with the number of threads.
    """
    names = ("frames", "actions", "success", "finish_step", "instruction")
    columns = {name: np.stack([getattr(t, name) for t in trajectories]) for name in names}
    return {"recordings": checkpoint.digest(columns)}


def recorded_episodes(w: Workspace, trajectories):
    """Trajectories as the world model's episodes: latents, actions, and the last frame of each that
    it is trained on.
    """
    import torch

    from wmpo_lite.own_context import Episodes

    frames, actions = (
        torch.from_numpy(np.stack([getattr(t, name) for t in trajectories]))
        for name in ("frames", "actions")
    )
    after = w.settings.after_success
    last = [min(t.finish_step + after, len(t)) if t.success else len(t) for t in trajectories]
    return Episodes(w.autoencoder().encode_uint8(frames), actions, last)


def reward_episodes(trajectories, frames=None) -> dict:
    """Trajectories as the arrays that `reward.sample_clips` wants; frames (E, T + 1, H, W, 3):
    others than their own.
    """
    from wmpo_lite.envs.tabletop.tasks.pair import with_another_color

    other = [with_another_color(t.instruction, t.index) for t in trajectories]
    return {
        "frames": np.stack([t.frames for t in trajectories]) if frames is None else frames,
        "success": np.array([t.success for t in trajectories]),
        "finish_step": np.array([t.finish_step for t in trajectories]),
        "instruction": [t.instruction for t in trajectories],
        "other": other,
    }


def fit_reward(w: Workspace) -> dict:
    """Fit the reward model to the P rollouts and the cloning demonstrations: as filmed, as the
    autoencoder gives them back, and as the aligned world model imagines them, with the real outcome
    as the label of all three.

    The encoder begins with the weights of the policy's image tower (`RewardModel.inflate`), and its
    lower half keeps them. A quarter of the rollouts is held out; on it the threshold for camera
    video is chosen by F1 (median of bootstrap samples), and the one for imagined video so that as
    many imagined replays count as success as truly succeeded. With several members each holds out
    another quarter, and thresholds are chosen on the judgments that each gives of its own.
    """
    from wmpo_lite.reward import RewardModel

    s, trajectories = w.settings, w.rollouts()
    success = [t.success for t in trajectories]
    first, held = split_rollouts(success, w.run.seed)
    env = imagined_env(w, w.run.seed, stop=False, judged=False)
    seen = [trajectories[i] for i in first] + demonstrations(w)
    films = [replay_in(env, seen), replay_in(env, [trajectories[i] for i in held])]
    films = dict(zip([*first, *range(-len(seen) + len(first), 0), *held], np.concatenate(films)))
    members, judged = [], []
    for part in range(s.reward_members):
        fitted, held = split_rollouts(success, w.run.seed, part)
        model, trained = fit_member(w, part, fitted, films)
        members.append(model)
        judged.append(judge_held_out(w, model, held, np.stack([films[i] for i in held])))
    model = RewardModel.together(members)
    return parallel.first(lambda: choose_thresholds(w, model, judged, trained))


def fit_member(w: Workspace, part: int, fitted: list[int], films: dict):
    """One reward model, fitted to the rollouts of these numbers and to the demonstrations, which
    have the numbers below zero; and the last record of its training. films: imagined, by number.
    """
    import torch

    from wmpo_lite.reward import RewardModel, reward_loss
    from wmpo_lite.train import FitConfig, fit

    s, seed = w.settings, w.run.seed + 1000 * part
    torch.manual_seed(seed)
    model = RewardModel.from_tower(w.base()).to(w.device)
    w.compute.prepare(model).freeze_lower(s.reward_frozen)
    seen = [w.rollouts()[i] for i in fitted] + demonstrations(w)
    real = np.stack([t.frames for t in seen])
    imagined = np.stack([films[i] for i in [*fitted, *range(len(fitted) - len(seen), 0)]])
    parts = (real, w.autoencoder().reconstruct(real), imagined)
    episodes = reward_episodes(seen * len(parts), np.concatenate(parts))
    records = fit(
        model,
        reward_loss(model, episodes, half=REWARD_CLIPS // 2),
        FitConfig(
            steps=s.reward_steps,
            lr=s.reward_lr,
            warmup=30,
            decay=0.6,
            ema=0.99,
            save_every=100,
            weight_decay=0.05,
        ),
        seed=seed,
        name="reward",
        folder=w.folder / ("fit_reward" + f"_{part}" * (part > 0)),
        log_every=20,
        on_log=w.log,
        shared=True,
        passes=parallel.passes(REWARD_CLIPS, w.compute.micro_batch),
        made_from={**recordings(seen), "world model": checkpoint.fingerprint(w.world_model())},
    )
    return model, records[-1]


def judge_held_out(w: Workspace, model, held: list[int], imagined: np.ndarray):
    """Success of the rollouts of these numbers, and what the reward model says of their camera
    frames and of their imagined ones: three arrays (n,).
    """
    import torch

    chosen_on = [w.rollouts()[i] for i in held]
    real = torch.from_numpy(np.stack([t.frames for t in chosen_on]))
    starts = initial_frames(chosen_on)
    rule = (w.settings.reward_stride, w.settings.min_consecutive)
    return (
        np.array([t.success for t in chosen_on]),
        model.score(real, [t.instruction for t in chosen_on]).cpu().numpy(),
        clip_scores(model, imagined, starts, *rule),
    )


def choose_thresholds(w: Workspace, model, judged: list, trained: dict) -> dict:
    """Both thresholds, from what every member says of its held-out rollouts (`judge_held_out`);
    the reward model is saved with them. trained: the last record of its training.
    """
    from wmpo_lite.evaluate import f1_score
    from wmpo_lite.reward import best_probability, matching_threshold

    success, scores, imagined_scores = (np.concatenate(part) for part in zip(*judged))
    threshold, f1 = best_probability(scores, success, resamples=200)
    model.threshold.fill_(threshold)
    imagined_threshold = matching_threshold(imagined_scores, success)
    imagined_f1 = f1_score(imagined_scores >= imagined_threshold, success)
    about = {"threshold": threshold, "f1": f1, "ema_decay": trained["ema_decay"]}
    model.save(w.folder / "reward", w.provenance(stage="reward", **about))
    return {
        "threshold": threshold,
        "f1": f1,
        "chosen_on": len(success),
        "imagined_threshold": imagined_threshold,
        "imagined_f1": imagined_f1,
        "loss": trained["loss"],
    }


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


def train_online(w: Workspace) -> dict:
    """Baseline: the same GRPO in the real environment until P rollouts are spent, as far as they
    can be divided into equal iterations.
    """
    from wmpo_lite.grpo import GRPOConfig

    s = w.settings
    iterations, groups, size = online_iterations(s, w.run.rollout_budget)
    config = GRPOConfig(
        groups=groups,
        group_size=size,
        lr=s.online_lr,
        warmup=s.online_warmup,
        epochs=s.online_epochs,
        minibatch=s.minibatch,
        micro_batch=w.compute.micro_batch,
        temperature=s.temperature,
    )
    policy, states = w.compute.prepare(w.base()), w.states("rollouts", w.run.rollout_budget)
    records = practice_for_real(w, policy, states, config, "grpo", iterations)
    return {
        "iterations": len(records),
        "real_rollouts": sum(r["rollouts"] for r in records),
        "updates": sum("loss" in r for r in records),
    }


def online_iterations(settings, budget: int) -> tuple[int, int, int]:
    """How online GRPO spends P rollouts: (iterations, groups of each, rollouts of a group)."""
    size = min(settings.online_group_size, budget)
    affordable = budget // size  # groups in all
    iterations = max(1, round(affordable / settings.online_groups))
    return iterations, affordable // iterations, size


def practice_for_real(w: Workspace, policy, states, config, stage: str, iterations: int) -> list:
    """GRPO in the real environment; the policy is kept under the stage's name. The records."""
    from wmpo_lite.train_grpo import optimize, save_policy_once

    records = optimize(
        policy,
        lambda seed: w.env,
        states,
        config,
        iterations=iterations,
        horizon=w.horizon,
        seed=w.run.seed,
        stage=stage,
        folder=w.folder / f"fit_{stage}",
        on_log=w.log,
        refill=0,
        freeze_vision=w.settings.freeze_vision,
        tolerate_silence=True,
    )
    about, folder = w.provenance(stage=stage), w.folder / "policies" / stage
    parallel.first(lambda: save_policy_once(folder, policy, about))
    return records


def train_offline(w: Workspace) -> dict:
    """Baseline: DPO on success and failure pairs of the P recorded rollouts."""
    from wmpo_lite.dpo import DPOConfig, train_dpo
    from wmpo_lite.train_grpo import save_policy_once

    s = w.settings
    policy = w.compute.prepare(w.base())
    policy.train_vision(not s.freeze_vision)
    logs = train_dpo(
        policy,
        None,
        w.rollouts(),
        DPOConfig(
            beta=s.dpo_beta,
            lr=s.dpo_lr,
            epochs=s.dpo_epochs,
            pairs=s.dpo_pairs,
            micro_batch=w.compute.micro_batch,
            temperature=s.temperature,
        ),
        seed=w.run.seed,
        on_step=lambda step, record: w.log({"stage": "dpo", "step": step, **record}),
    )
    about, policy = w.provenance(stage="dpo"), policy.eval()
    parallel.first(lambda: save_policy_once(w.folder / "policies" / "dpo", policy, about))
    return {"steps": len(logs), **{key: logs[-1][key] for key in ("loss", "accuracy")}}


def evaluate(w: Workspace) -> dict:
    """Base, GRPO, DPO and WMPO, greedy, on the same held-out initial states."""
    from wmpo_lite.envs.tasks import of_the_benchmark
    from wmpo_lite.evaluate import paired_comparison, trajectory_length_ratio

    n = w.settings.evaluation_states
    states = w.states("evaluation", n, w.settings.evaluation_from)
    policies = {"base": w.base()}
    policies |= {name: w.policy(w.folder / "policies" / name) for name in ("grpo", "dpo", "wmpo")}
    table = {}
    for name, policy in policies.items():
        success, finish_step = outcomes(w, policy, states, desc=f"evaluate {name}")
        table[name] = {"success": success, "finish_step": finish_step}
    compare = {
        f"wmpo_vs_{other}": dataclasses.asdict(
            paired_comparison(np.array(table[other]["success"]), np.array(table["wmpo"]["success"]))
        )
        for other in ("base", "grpo", "dpo")
    }
    lengths = {}
    for name in ("grpo", "dpo", "wmpo"):
        both = np.logical_and(table["base"]["success"], table[name]["success"])
        if both.any():
            base, other = (np.array(table[who]["finish_step"])[both] for who in ("base", name))
            lengths[name] = trajectory_length_ratio(base, other)
    own = of_the_benchmark(w.task, states)
    result = {
        "n": len(states),
        "from": w.settings.evaluation_from,
        **({"of_the_benchmark": own.tolist()} if own.any() else {}),
        "policies": table,
        "comparisons": compare,
        "length_ratio": lengths,
        "instruction_swap": instruction_swap(w, policies["base"]),
    }
    parallel.first(lambda: show_episodes(w, policies, states[:8], result))
    return {
        "n": len(states),
        **{f"{name}_success": float(np.mean(row["success"])) for name, row in table.items()},
        "comparisons": compare,
    }


def outcomes(w: Workspace, policy, states, **options) -> tuple[list[bool], list[int]]:
    """Whether the greedy `policy` succeeds from each of the states, and when. Processes share out
    the batches of `greedy`, so that each is computed as one process computes it.
    """
    pairs = lambda found: np.array([[t.success, t.finish_step] for t in found], np.int64)
    run = lambda own: pairs(greedy(w, policy, states[own], **options))
    success, finish_step = parallel.whole(run, len(states), GREEDY_BATCH).T  # (n, 2)
    return success.astype(bool).tolist(), finish_step.tolist()


def show_episodes(w: Workspace, policies: dict, shown, result: dict) -> None:
    """Write the result of the evaluation, and episodes from the states `shown` as arrays."""
    checkpoint.write_json(w.folder / "evaluation.json", result)
    before = greedy(w, policies["base"], shown, every_frame=True)
    after = greedy(w, policies["wmpo"], shown, every_frame=True)
    save_arrays(
        w.folder / "episodes.npz",
        before=np.stack([t.frames for t in before]),
        after=np.stack([t.frames for t in after]),
        before_success=np.array([t.success for t in before]),
        after_success=np.array([t.success for t in after]),
        instructions=np.array([t.instruction for t in before]),
    )


def instruction_swap(w: Workspace, policy) -> dict:
    """The same pictures under the other sentence: a policy that listens follows it about as often.
    Empty for a task with one sentence.
    """
    from wmpo_lite.envs.tasks import has_other_sentence, with_other_sentence

    if not has_other_sentence(w.task):
        return {}
    count = min(USES["instruction_swap"].room, max(24, w.settings.evaluation_states // 4))
    states = w.states("instruction_swap", count)
    swapped = with_other_sentence(w.task, states)
    said, other = (outcomes(w, policy, told)[0] for told in (states, swapped))
    return {
        "n": count,
        "as_said": float(np.mean(said)),
        "swapped_follows_new": float(np.mean(other)),
    }


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


def describe(result: dict, evaluation: dict) -> str:
    from wmpo_lite.evaluate import success_rate

    lines = [
        f"{result['task']}, P = {result['rollout_budget']}, seed {result['seed']}"
        + (f", round {result['round']}" if result["round"] > 1 else "")
        + ": greedy success"
        f" on {result['n']} held-out initial states"
    ]
    for name, row in evaluation["policies"].items():
        lines.append(f"  {name:5s} {success_rate(np.array(row['success']))}")
    own = np.array(evaluation.get("of_the_benchmark", []), bool)
    for kind, which in (("the benchmark's own states", own), ("states drawn by the kit", ~own)):
        for name, row in evaluation["policies"].items() if which.any() else ():
            lines.append(f"  {name:5s} {success_rate(np.array(row['success'])[which])} of {kind}")
    for name, c in evaluation["comparisons"].items():
        lines.append(
            f"  {name.replace('_', ' ')}: {100 * c['gain']:+.1f} points [{100 * c['low']:+.1f},"
            f" {100 * c['high']:+.1f}], won {c['won']}, lost {c['lost']}"
        )
    return "\n".join(lines)
