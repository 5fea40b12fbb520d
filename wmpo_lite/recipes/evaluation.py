"""What a run is measured by: all its policies on the same held-out initial states."""

import dataclasses

import numpy as np

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.envs.splits import USES
from wmpo_lite.recipes.workspace import GREEDY_BATCH, Workspace, greedy, save_arrays


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
