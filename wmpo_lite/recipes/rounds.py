"""Rounds: a run that goes on where a finished one ended (the paper's lifelong learning).

It begins with that run's WMPO policy, records P rollouts of it from initial states that no round
before has used, and fits the world model, as pre-trained, and the reward model to those of all
rounds.
"""

from dataclasses import dataclass
from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError

NEEDED = ("config.json", "rollouts.hdf5")
# its policy: a folder, of which this is written last, or as shipped
POLICY, SHIPPED = Path("policies") / "wmpo" / "actions.json", "wmpo.safetensors"


@dataclass(frozen=True)
class Earlier:
    """A run that has its WMPO policy, in its folder or as shipped in assets/<task>/run."""

    folder: Path
    round: int
    recorded: int  # real rollouts of all rounds up to this one
    before: "Earlier | None" = None

    def policy(self):
        """Its WMPO policy, anew at every call."""
        from wmpo_lite.policies import load_policy
        from wmpo_lite.recipes.shipped import Shipped

        if (self.folder / POLICY).exists():
            return load_policy((self.folder / POLICY).parent)
        config = checkpoint.read_json(self.folder / "config.json", {"task": str})
        return Shipped(config["task"], self.folder.resolve().parents[1]).policy("wmpo")

    def rollouts(self) -> list:
        """The real rollouts of all rounds up to this one."""
        from wmpo_lite.trajectory import load_trajectories

        before = self.before.rollouts() if self.before else []
        return before + load_trajectories(self.folder / "rollouts.hdf5")


def finished(folder: Path, task: str) -> Earlier:
    """The run in `folder`, for one of `task` to go on from; UserError if it cannot."""
    folder = Path(folder)
    absent = [name for name in NEEDED if not (folder / name).exists()]
    if not any((folder / name).exists() for name in (POLICY, SHIPPED)):
        absent.append(str(POLICY.parent))
    if absent:
        raise UserError(
            f"{folder} is not a run that has ended ({', '.join(absent)} missing), so no round can"
            " follow it; run its command again to finish it, or name another folder with --after"
        )
    config = checkpoint.read_json(folder / "config.json", {"task": str, "rollout_budget": int})
    if config["task"] != task:
        raise UserError(
            f"{folder} is a run of '{config['task']}' and --task is '{task}'; a round goes on with"
            " the task of the one before"
        )
    if "kept_rollouts" in config and config["kept_rollouts"] < config["rollout_budget"]:
        raise UserError(
            f"{folder} keeps {config['kept_rollouts']} of its {config['rollout_budget']} rollouts"
            " and a round needs them all; name another folder with --after"
        )
    after = config.get("after")
    before = finished(Path(after), task) if after else None
    recorded = config["rollout_budget"] + (before.recorded if before else 0)
    return Earlier(folder, before.round + 1 if before else 1, recorded, before)
