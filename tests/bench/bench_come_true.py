"""How often episodes that a policy goes through in imagination come true in the simulator.

    python tests/bench/bench_come_true.py runs/place-laptop-p128-s0 [base wmpo]

The policy acts on imagined frames, from the recorded first frames of the P rollouts, twice from
each; the same actions are then carried out in the simulator from the same initial states. An
imagination that a policy can practice in is one whose successes come true much more often than its
failures. The last column is the policy on the simulator's own frames.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.evaluate import success_rate
from wmpo_lite.recipes.workspace import Run, Workspace, imagined_env, initial_frames
from wmpo_lite.rollout import replay, rollout


def main(folder: str, *names: str) -> None:
    """Print one row for each of the run's policies."""
    config = checkpoint.read_json(Path(folder) / "config.json")
    known = {field.name for field in dataclasses.fields(Run)} - {"assets"}
    w = Workspace(Run(**{key: config[key] for key in known}), Path(folder))
    starts = initial_frames(w.rollouts()).repeat(2)
    options = dict(
        horizon=w.horizon,
        temperature=w.settings.temperature,
        seed=3,
        every_frame=False,
        batch=128,
    )
    print("| policy | imagined | replayed | of imagined successes | of failures | simulator |")
    print("|---|---|---|---|---|---|")
    for name in names or ("base", "wmpo"):
        policy = w.base() if name == "base" else w.policy(w.folder / "policies" / name)
        imagined = rollout(policy, imagined_env(w, seed=5, stop=False), starts, **options)
        came_true = replay(w.env, imagined, starts, every_frame=False)[1].any(axis=1)
        judged = np.array([t.success for t in imagined])
        real = np.array([t.success for t in rollout(policy, w.env, starts, **options)])
        parts = (judged, came_true, came_true[judged], came_true[~judged], real)
        cells = [str(success_rate(part)) if len(part) else "none" for part in parts]
        print(f"| {name} | {' | '.join(cells)} |")
    w.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
