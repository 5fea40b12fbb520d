"""The real data of a run: P rollouts, and the demonstrations that its policy was cloned from."""

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.recipes.workspace import Workspace


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


def recordings(trajectories) -> dict:
    """What was recorded, in a few digits, for `fit`'s made_from. Not what models make of it: those
    numbers change with the number of threads.
    """
    names = ("frames", "actions", "success", "finish_step", "instruction")
    columns = {name: np.stack([getattr(t, name) for t in trajectories]) for name in names}
    return {"recordings": checkpoint.digest(columns)}
