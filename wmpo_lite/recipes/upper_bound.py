"""`wmpo-lite upper-bound`: what the policy could learn if the world model were perfect."""

from contextlib import closing
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError, require_between
from wmpo_lite.recipes.baselines import practice_for_real
from wmpo_lite.recipes.workspace import Run, Workspace, greedy


def upper_bound(run: Run, folder: Path, iterations: int, device: str = "auto") -> dict:
    """WMPO's update with the simulator in place of the world model and no budget; greedy success on
    the evaluation states.
    """
    require_between("--iterations", iterations, 1, 1_000_000)
    done = Path(folder) / "stages" / "upper.json"
    if done.exists():
        found = checkpoint.read_json(done, {"result": {"iterations": int}})["result"]["iterations"]
        if found != iterations:
            raise UserError(
                f"{folder} holds an upper bound of {found} iterations and {iterations} are asked"
                " for; choose another --name, or remove the folder"
            )
    with closing(Workspace(run, folder, device)) as w:
        return _upper_bound(w, iterations)


def _upper_bound(w: Workspace, iterations: int) -> dict:
    from wmpo_lite.evaluate import success_rate

    run, s = w.run, w.settings

    def train():
        states = w.states("upper_bound", 4096)
        records = practice_for_real(w, w.base(), states, s.wmpo_update(), "upper", iterations)
        return {"iterations": len(records), "real_rollouts": sum(r["rollouts"] for r in records)}

    def measure():
        policy = w.policy(w.folder / "policies" / "upper")
        states = w.states("evaluation", s.evaluation_states, s.evaluation_from)
        return {"success": [t.success for t in greedy(w, policy, states, desc="evaluate upper")]}

    trained, measured = w.stage("upper", train), w.stage("evaluate_upper", measure)
    result = {
        "task": run.task,
        "seed": run.seed,
        "profile": run.profile,
        **trained,
        "n": len(measured["success"]),
        "upper_bound_success": float(np.mean(measured["success"])),
    }
    checkpoint.write_json(w.folder / "upper_bound.json", result)
    print(
        f"upper bound on {run.task} after {result['real_rollouts']} rollouts in the simulator:"
        f" {success_rate(np.array(measured['success']))}"
    )
    return result
