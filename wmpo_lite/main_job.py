"""`wmpo-lite demo`: the whole method once, from P real rollouts to a report. Every stage leaves its result in the run folder and is not done twice."""
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.profiles import PROFILES, Profile

ASSETS = Path(__file__).resolve().parent.parent / "assets"
TRAINING_STATES, TRUST_STATES, SWAP_STATES = 10_000, 1_000, 50_000  # where each use begins inside its split


@dataclass(frozen=True)
class Run:
    """What one run is: enough to repeat it."""

    task: str = "place"
    profile: str = "laptop"
    seed: int = 0
    rollout_budget: int = 128
    assets: str = str(ASSETS)

    def settings(self) -> Profile:
        if self.profile not in PROFILES:
            raise UserError(f"profile '{self.profile}' is unknown; use one of {', '.join(PROFILES)}")
        settings = PROFILES[self.profile]
        if self.rollout_budget < settings.group_size:
            raise UserError(f"a rollout budget of {self.rollout_budget} is smaller than one group of {settings.group_size}; raise --rollout-budget")
        return settings


class Workspace:
    """The run folder and what is loaded for it. `stage(name, fn)` runs fn once ever and remembers its JSON result."""

    def __init__(self, run: Run, folder: Path):
        from wmpo_lite.envs.tabletop.env import TabletopEnv
        from wmpo_lite.envs.tabletop.tasks import get_task
        from wmpo_lite.train import MetricsLog, set_threads

        set_threads()
        self.run, self.folder, self.settings = run, Path(folder), run.settings()
        self.task = get_task(run.task)
        self.horizon = self.task.horizon
        self.assets = Path(run.assets) / run.task
        if not self.assets.exists():
            raise UserError(f"there are no trained assets for task '{run.task}' ({self.assets}); train them with --from-scratch, or choose another task")
        self._check_folder()
        self.log = MetricsLog(self.folder / "metrics.jsonl")
        self.env = TabletopEnv(self.task)
        self.started = time.time()

    def _check_folder(self):
        config = {**dataclasses.asdict(self.run), "assets": self._fingerprint(), **dataclasses.asdict(self.settings), "horizon": self.horizon}
        path = self.folder / "config.json"
        if path.exists():
            if (found := checkpoint.read_json(path)) != checkpoint.plain(config):
                changed = sorted(key for key in config if found.get(key) != checkpoint.plain(config)[key])
                raise UserError(f"{self.folder} holds a run with other settings ({', '.join(changed)}); choose another --name or delete the folder")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(path, config)

    def _fingerprint(self) -> dict:
        """Which trained assets the run starts from: the beginning of each weight file's checksum."""
        return {name: checkpoint.checksum(self.assets / name / "model.safetensors")[:12] for name in ("autoencoder", "policy", "world_model", "reward")}

    def stage(self, name: str, fn):
        path = self.folder / "stages" / f"{name}.json"
        if path.exists():
            return checkpoint.read_json(path)["result"]
        clock = time.time()
        print(f"[{name}]", flush=True)
        result = fn()
        checkpoint.write_json(path, {"result": result, "seconds": round(time.time() - clock, 1)})
        return checkpoint.read_json(path)["result"]

    def seconds(self) -> float:
        return sum(checkpoint.read_json(path)["seconds"] for path in (self.folder / "stages").glob("*.json"))

    # -- loaded when first needed ------------------------------------------------------------------------------------------------------------

    def autoencoder(self):
        from wmpo_lite.world_model import Autoencoder
        return self._once("autoencoder", lambda: Autoencoder.load(self.assets / "autoencoder"))

    def base(self):
        from wmpo_lite.policy import Policy
        return Policy.load(self.assets / "policy")

    def world_model(self):
        from wmpo_lite.world_model import WorldModel
        return self._once("world_model", lambda: WorldModel.load(self.folder / "world_model"))

    def reward_model(self):
        from wmpo_lite.reward import RewardModel
        return self._once("reward", lambda: RewardModel.load(self.folder / "reward"))

    def rollouts(self):
        from wmpo_lite.trajectory import load_trajectories
        return self._once("rollouts", lambda: load_trajectories(self.folder / "rollouts.hdf5"))

    def _once(self, name, load):
        if not hasattr(self, f"_{name}"):
            setattr(self, f"_{name}", load())
        return getattr(self, f"_{name}")

    def provenance(self, **more) -> dict:
        return {"run": dataclasses.asdict(self.run) | {"assets": Path(self.run.assets).name}, "settings": dataclasses.asdict(self.settings), **more}

    def states(self, split: str, first: int, count: int):
        from wmpo_lite.envs.tabletop.env import initial_states
        return initial_states(self.task, split, np.arange(first, first + count))


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

    from wmpo_lite.envs.tabletop.scene import object_map
    from wmpo_lite.train import FitConfig, WindowConfig, fit, world_model_loss
    from wmpo_lite.world_model import WorldModel

    s, trajectories = w.settings, w.rollouts()
    model = WorldModel.load(w.assets / "world_model")
    latents = w.autoencoder().encode_uint8(torch.from_numpy(np.stack([t.frames for t in trajectories])))
    actions = torch.from_numpy(np.stack([t.actions for t in trajectories]))
    objects = torch.from_numpy(object_map(np.stack([t.frames for t in trajectories]), latents.shape[-1]))
    windows = WindowConfig(batch=s.align_batch, own_from=0.0)
    if model.config.draft_width:  # first the draft alone, as in pre-training
        wide = WindowConfig(batch=4 * s.align_batch, own_from=0.0)
        fit(model.draft, world_model_loss(model, latents, actions, wide, s.align_draft_steps, part="draft", objects=objects), FitConfig(
            steps=s.align_draft_steps, lr=s.align_lr, warmup=10, decay=0.6, ema=0.98, save_every=100), seed=w.run.seed, name="align draft",
            folder=w.folder / "fit_align_draft", log_every=50, on_log=w.log)
    records = fit(model, world_model_loss(model, latents, actions, windows, s.align_steps, objects=objects), FitConfig(
        steps=s.align_steps, lr=s.align_lr, warmup=10, decay=0.6, ema=0.98, save_every=60), seed=w.run.seed, name="align", folder=w.folder / "fit_align",
        log_every=20, on_log=w.log)
    model.save(w.folder / "world_model", w.provenance(stage="align"))
    return records[-1]


def reward_episodes(trajectories, frames=None) -> dict:
    """Trajectories as the arrays that `reward.sample_clips` wants."""
    other = [_swap_colour(t) for t in trajectories]
    return {"frames": np.stack([t.frames for t in trajectories]) if frames is None else frames, "success": np.array([t.success for t in trajectories]),
            "finish_step": np.array([t.finish_step for t in trajectories]), "instruction": [t.instruction for t in trajectories], "other": other}


def _swap_colour(trajectory) -> str:
    """The instruction with a colour that it does not name: what the same pictures are no success for."""
    from wmpo_lite.envs.tabletop.scene import COLOURS
    words = trajectory.instruction.split()
    named = next((word for word in words if word in COLOURS), None)
    others = [colour for colour in ("red", "green", "blue") if colour != named]
    return trajectory.instruction.replace(named, others[trajectory.index % len(others)]) if named else ""


def fit_reward(w: Workspace) -> dict:
    """Fit the success classifier on three quarters of the P rollouts, choose its threshold by F1 on the remaining quarter."""
    import torch

    from wmpo_lite.reward import RewardModel, fit_threshold, reward_loss
    from wmpo_lite.train import FitConfig, fit

    s, trajectories = w.settings, w.rollouts()
    order = np.random.default_rng([w.run.seed, 5]).permutation(len(trajectories))
    # every success rate keeps its share in both parts
    order = sorted(order, key=lambda i: trajectories[i].success)
    held = order[::4]
    train = [i for i in order if i not in set(held)]
    model = RewardModel.load(w.assets / "reward")
    autoencoder = w.autoencoder()
    recode = lambda frames: autoencoder.decode_uint8(autoencoder.encode_uint8(torch.from_numpy(frames))).numpy()  # noqa: E731
    part = [trajectories[i] for i in train]
    real = np.stack([t.frames for t in part])
    episodes = reward_episodes(part + part, np.concatenate([real, recode(real)]))  # camera pictures and what the decoder makes of them
    fit(model, reward_loss(model, episodes), FitConfig(steps=s.reward_steps, lr=s.reward_lr, warmup=10, decay=0.6, ema=0.98, save_every=100),
        seed=w.run.seed, name="reward", folder=w.folder / "fit_reward", log_every=20, on_log=w.log)
    rest = [trajectories[i] for i in held]
    frames = torch.from_numpy(np.stack([t.frames for t in rest]))
    threshold, f1 = fit_threshold(model, frames, [t.instruction for t in rest], [t.success for t in rest])
    model.save(w.folder / "reward", w.provenance(stage="reward", threshold=threshold, held_out_f1=f1))
    imagined, imagined_f1 = imagined_threshold(w, model)
    return {"threshold": threshold, "f1": f1, "held_out": len(held), "imagined_threshold": imagined, "imagined_f1": imagined_f1}


def imagined_threshold(w: Workspace, model) -> tuple[float, float]:
    """The threshold for imagined video, (threshold, F1): imagination is blurred, so what the classifier makes of it is measured apart.

    The P rollouts are imagined again from their first frames and actions; the threshold is the one that tells their real outcomes best. No real
    episode beyond the budget is needed.
    """
    import torch

    from wmpo_lite.envs.imagined import ImaginedEnv
    from wmpo_lite.evaluate import best_threshold
    from wmpo_lite.rollout import replay
    trajectories = w.rollouts()
    starts = initial_frames(trajectories)
    films, _ = replay(ImaginedEnv(w.autoencoder(), w.world_model(), seed=w.run.seed, steps=w.settings.sample_steps), trajectories, starts)
    scores = np.concatenate([model.score(torch.from_numpy(films[i: i + 16]), list(starts.instructions[i: i + 16])).numpy() for i in range(0, len(films), 16)])
    return best_threshold(scores, np.array([t.success for t in trajectories]))


def initial_frames(trajectories):
    """Recorded first frames as initial states for imagination."""
    from wmpo_lite.trajectory import InitialStates
    return InitialStates(states=np.stack([t.initial_state for t in trajectories]), frames=np.stack([t.frames[0] for t in trajectories]),
                         instructions=tuple(t.instruction for t in trajectories), split=trajectories[0].split,
                         indices=np.array([t.index for t in trajectories]))


def imagined_env(w: Workspace, seed: int, stop: bool = True):
    from wmpo_lite.envs.imagined import ImaginedEnv
    threshold = checkpoint.read_json(w.folder / "stages" / "reward.json")["result"]["imagined_threshold"]
    return ImaginedEnv(w.autoencoder(), w.world_model(), w.reward_model(), threshold=threshold, seed=seed, steps=w.settings.sample_steps, stop=stop,
                       action_names=w.env.action_names)


def trust(w: Workspace) -> dict:
    """The trust panel, on fresh real rollouts of the base policy from the validation split."""
    from wmpo_lite.evaluate import agreement, f1_score, psnr
    from wmpo_lite.rollout import replay, rollout

    n = w.settings.trust_rollouts
    states = w.states("validation", TRUST_STATES + TRAINING_STATES * w.run.seed, n)
    real = rollout(w.base(), w.env, states, horizon=w.horizon, temperature=w.settings.temperature, seed=w.run.seed + 1, desc="trust: real rollouts")
    starts, success = initial_frames(real), np.array([t.success for t in real])
    env = imagined_env(w, w.run.seed, stop=False)
    imagined, _ = replay(env, real, starts)
    scores = _scores(w, imagined, starts)
    threshold, real_threshold = env.threshold, float(w.reward_model().threshold)
    truth = np.stack([t.frames for t in real])
    real_scores = _scores(w, truth, starts)
    horizons = sorted({h for h in (8, 16, 32, w.horizon) if h <= w.horizon})
    mean = lambda film, h: float(np.mean(psnr(film[:, h], truth[:, h])))  # noqa: E731
    copy = np.repeat(truth[:, :1], truth.shape[1], axis=1)
    few = min(n, 64)
    quality = {"true": float(np.mean(psnr(imagined[:few, 1:], truth[:few, 1:])))}
    for kind, actions in (("shuffled", np.roll(np.stack([t.actions for t in real[:few]]), 1, axis=0)), ("zero", np.zeros_like(np.stack([t.actions for t in real[:few]])))):
        wrong = [dataclasses.replace(t, actions=a, tokens=None, log_probs=None) for t, a in zip(real[:few], actions)]
        film, _ = replay(imagined_env(w, w.run.seed, stop=False), wrong, starts[:few])
        quality[kind] = float(np.mean(psnr(film[:, 1:], truth[:few, 1:])))
    quality |= {"shuffled_cost": quality["true"] - quality["shuffled"], "zero_cost": quality["true"] - quality["zero"]}
    verdict = agreement(success, scores, threshold)
    result = {"n": n, "psnr": {"horizons": horizons, "model": [mean(imagined, h) for h in horizons], "copy_last": [mean(copy, h) for h in horizons]},
              "sensitivity": quality, "agreement": dataclasses.asdict(verdict), "threshold": threshold,
              "real_threshold": real_threshold, "reward_f1_real": f1_score(real_scores >= real_threshold, success), "reward_f1_imagined": f1_score(scores >= threshold, success),
              "scores": [round(float(x), 4) for x in scores], "real": [bool(x) for x in success]}
    checkpoint.write_json(w.folder / "trust.json", result)
    pick = np.concatenate([np.flatnonzero(success)[:4], np.flatnonzero(~success)[:4]])
    _save_arrays(w.folder / "trust_films.npz", real=truth[pick], imagined=imagined[pick], real_success=success[pick], scores=scores[pick],
                 instructions=np.array([real[i].instruction for i in pick]))
    return {key: result[key] for key in ("n", "agreement", "reward_f1_real", "reward_f1_imagined", "sensitivity", "psnr")}


def _scores(w, films, starts) -> np.ndarray:
    import torch
    model = w.reward_model()
    return np.concatenate([model.score(torch.from_numpy(films[i: i + 16]), list(starts.instructions[i: i + 16])).numpy() for i in range(0, len(films), 16)])


def _save_arrays(path: Path, **arrays):
    import io
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    checkpoint.write_atomic(path, buffer.getvalue())


def train_wmpo(w: Workspace) -> dict:
    """GRPO in imagination, from the P recorded first frames; no real environment is touched."""
    from wmpo_lite.grpo import GRPOConfig
    from wmpo_lite.optimise import optimise, save_policy_once

    s = w.settings
    policy = w.base()
    config = GRPOConfig(groups=s.groups, group_size=s.group_size, lr=s.wmpo_lr, epochs=s.wmpo_epochs, minibatch=s.minibatch, temperature=s.temperature)
    records = optimise(policy, lambda seed: imagined_env(w, seed), initial_frames(w.rollouts()), config, iterations=s.iterations, horizon=w.horizon,
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
    groups = min(s.online_groups, w.run.rollout_budget // s.group_size)
    per_iteration = groups * s.group_size
    config = GRPOConfig(groups=groups, group_size=s.group_size, lr=s.online_lr, epochs=s.online_epochs, minibatch=s.minibatch, temperature=s.temperature)
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
    logs = train_dpo(policy, None, w.rollouts(), DPOConfig(beta=s.dpo_beta, lr=s.dpo_lr, epochs=s.dpo_epochs, pairs=s.dpo_pairs, temperature=s.temperature),
                     seed=w.run.seed, on_step=lambda step, record: w.log({"stage": "dpo", "step": step, **record}))
    save_policy_once(w.folder / "policies" / "dpo", policy.eval(), w.provenance(stage="dpo"))
    return {"steps": len(logs), **{key: logs[-1][key] for key in ("loss", "accuracy")}}


def greedy(w: Workspace, policy, states, **options):
    from wmpo_lite.rollout import rollout
    return rollout(policy, w.env, states, horizon=w.horizon, every_frame=options.pop("every_frame", False), batch=64, **options)


def evaluate(w: Workspace) -> dict:
    """Base, GRPO, DPO and WMPO, greedy, on the same held-out initial states."""
    from wmpo_lite.evaluate import paired_comparison, successful_lengths, trajectory_length_ratio
    from wmpo_lite.policy import Policy

    n = w.settings.evaluation_states
    states = w.states("evaluation", 0, n)
    policies, trajectories = {"base": w.base()}, {}
    policies |= {name: Policy.load(w.folder / "policies" / name) for name in ("grpo", "dpo", "wmpo")}
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
    _save_arrays(w.folder / "episodes.npz", before=np.stack([t.frames for t in before]), after=np.stack([t.frames for t in after]),
                 before_success=np.array([t.success for t in before]), after_success=np.array([t.success for t in after]),
                 instructions=np.array([t.instruction for t in before]))
    return {"n": n, **{f"{name}_success": float(np.mean(row["success"])) for name, row in table.items()}, "comparisons": compare}


def instruction_swap(w: Workspace, policy) -> dict:
    """The same pictures under the other sentence: a policy that listens follows it about as often."""
    count = max(24, w.settings.evaluation_states // 4)
    states = w.states("validation", SWAP_STATES, count)
    swapped_rows = w.task.swap_instruction(states.states)
    swapped = dataclasses.replace(states, states=swapped_rows, instructions=tuple(w.task.instruction(row) for row in swapped_rows))
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


def upper_bound(run: Run, folder: Path, iterations: int) -> dict:
    """WMPO's update with the simulator in place of the world model and no budget; greedy success on the evaluation states."""
    from wmpo_lite.evaluate import success_rate
    from wmpo_lite.grpo import GRPOConfig
    from wmpo_lite.optimise import optimise, save_policy_once

    w = Workspace(run, folder)
    s = w.settings

    def train():
        policy = w.base()
        config = GRPOConfig(groups=s.groups, group_size=s.group_size, lr=s.wmpo_lr, epochs=s.wmpo_epochs, minibatch=s.minibatch, temperature=s.temperature)
        records = optimise(policy, lambda seed: w.env, w.states("rollouts", 500_000 + TRAINING_STATES * run.seed, 4096), config, iterations=iterations,
                           horizon=w.horizon, seed=run.seed, stage="upper", folder=w.folder / "fit_upper", on_log=w.log, refill=0,
                           freeze_vision=s.freeze_vision, tolerate_silence=True)
        save_policy_once(w.folder / "policies" / "upper", policy, w.provenance(stage="upper"))
        return {"iterations": len(records), "real_rollouts": sum(r["rollouts"] for r in records)}

    def measure():
        from wmpo_lite.policy import Policy
        found = greedy(w, Policy.load(w.folder / "policies" / "upper"), w.states("evaluation", 0, s.evaluation_states), desc="evaluate upper")
        return {"success": [t.success for t in found]}

    trained, measured = w.stage("upper", train), w.stage("evaluate_upper", measure)
    result = {"task": run.task, "seed": run.seed, "profile": run.profile, **trained, "n": len(measured["success"]),
              "upper_bound_success": float(np.mean(measured["success"]))}
    checkpoint.write_json(w.folder / "upper_bound.json", result)
    w.env.close()
    print(f"upper bound on {run.task} after {result['real_rollouts']} rollouts in the simulator: {success_rate(np.array(measured['success']))}")
    return result


def describe_trust(t: dict) -> str:
    a, p, s = t["agreement"], t["psnr"], t["sensitivity"]
    lines = [f"trust panel on {t['n']} fresh real rollouts",
             "  PSNR after " + ", ".join(f"{h} frames {m:.1f} dB (copy {c:.1f})" for h, m, c in zip(p["horizons"], p["model"], p["copy_last"])),
             f"  shuffled actions cost {s['shuffled_cost']:.1f} dB, zero actions {s['zero_cost']:.1f} dB",
             f"  imagined against real success: AUC {a['auc']:.3f}, agrees on {100 * a['success_agreement']:.0f} % of successes and "
             f"{100 * a['failure_agreement']:.0f} % of failures; confusion {a['confusion']}",
             f"  reward model F1: {t['reward_f1_real']:.3f} on real, {t['reward_f1_imagined']:.3f} on imagined video"]
    return "\n".join(lines)


def describe(result: dict, evaluation: dict) -> str:
    from wmpo_lite.evaluate import success_rate
    lines = [f"{result['task']}, P = {result['rollout_budget']}, seed {result['seed']}: greedy success on {result['n']} held-out initial states"]
    for name, row in evaluation["policies"].items():
        lines.append(f"  {name:5s} {success_rate(np.array(row['success']))}")
    for name, c in evaluation["comparisons"].items():
        lines.append(f"  {name.replace('_', ' ')}: {100 * c['gain']:+.1f} points [{100 * c['low']:+.1f}, {100 * c['high']:+.1f}], won {c['won']}, lost {c['lost']}")
    return "\n".join(lines)
