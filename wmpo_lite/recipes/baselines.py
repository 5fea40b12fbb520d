"""What WMPO is compared with at the same real budget: online GRPO and offline DPO."""

from wmpo_lite.common import parallel
from wmpo_lite.recipes.workspace import Workspace


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
