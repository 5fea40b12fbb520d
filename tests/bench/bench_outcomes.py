"""Where outcomes get lost on the way into imagination: the same rollouts, judged as filmed, as
copied and as imagined.

    python tests/bench/bench_outcomes.py runs/square-laptop-p128-s0 [episodes]

AUC of the run's reward model against real success, for fresh validation rollouts of the base policy
and of the policy that WMPO made of it: on the camera's frames, on the autoencoder's copies of them,
and on what the aligned world model makes of the first frame and the actions. Eight minutes for 384
episodes on one core.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.evaluate import agreement, auc_interval
from wmpo_lite.policies import load_policy
from wmpo_lite.recipes.workspace import (
    Run,
    Workspace,
    clip_scores,
    imagined_env,
    initial_frames,
    replay_in,
)
from wmpo_lite.rollout import rollout


def main(folder: str, episodes: str = "384"):
    """Print one line a policy and a kind of frames."""
    config = checkpoint.read_json(Path(folder) / "config.json")
    known = {field.name for field in dataclasses.fields(Run)} - {"assets"}
    w = Workspace(Run(**{key: config[key] for key in known}), Path(folder))
    states = w.states("outcomes", int(episodes))
    policies = {"base": w.base(), "wmpo": load_policy(w.folder / "policies" / "wmpo")}
    for name, policy in policies.items():
        real = rollout(
            policy, w.env, states, horizon=w.horizon, temperature=w.settings.temperature, seed=5
        )
        success, truth = np.array([t.success for t in real]), np.stack([t.frames for t in real])
        env = imagined_env(w, w.run.seed, stop=False)
        videos = {
            "camera": truth,
            "copied": w.autoencoder().reconstruct(truth),
            "imagined": replay_in(env, real),
        }
        for kind, frames in videos.items():
            scores = clip_scores(
                w.reward_model(),
                frames,
                initial_frames(real),
                w.settings.reward_stride,
                w.settings.min_consecutive,
            )
            found, (low, high) = (
                agreement(success, scores, env.threshold),
                auc_interval(success, scores),
            )
            print(
                f"{w.run.task} {name:4s} {kind:8s} n {len(success)}, success {success.mean():.3f},"
                f" AUC {found.auc:.3f} [{low:.3f}, {high:.3f}], true-positive rate"
                f" {found.success_agreement:.2f}, true-negative rate {found.failure_agreement:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
