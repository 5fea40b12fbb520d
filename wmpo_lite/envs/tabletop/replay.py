"""Recorded episodes and the MuJoCo they were recorded with: what happens in a scene, and now and
then whether an episode succeeds, differs from release to release.
"""

import warnings
from importlib import metadata

import numpy as np

from wmpo_lite.envs.tabletop import tasks
from wmpo_lite.envs.tabletop.env import TabletopEnv
from wmpo_lite.trajectory import InitialStates, load_metadata

# of the episodes that are carried out again, how many must end as recorded: one in a hundred hangs
# by the last bit of a sine, which depends on the processor (findings/sine_by_processor.sh), while
# another MuJoCo may change one in five
ALIKE = 0.9


def env_args(task: str, size: int | None = None) -> dict:
    """What a file of episodes of `task` says about its environment (pictures of `size` pixels)."""
    return {"task": task, "mujoco": metadata.version("mujoco")} | ({"size": size} if size else {})


def recorded_with(path) -> str | None:
    """The MuJoCo that the episodes at `path` were recorded with, None if the file does not say."""
    return load_metadata(path)["env_args"].get("mujoco")


def warn_of_version(path) -> None:
    """A warning if the episodes at `path` were recorded with another MuJoCo than is installed."""
    recorded, here = recorded_with(path), metadata.version("mujoco")
    if recorded not in (None, here):
        warnings.warn(
            f"{path} was recorded with mujoco {recorded} and {here} is installed: the same actions"
            " may end otherwise, so compare no success rates across the two; install mujoco"
            f" {recorded}, or record anew",
            stacklevel=3,
        )


def equal_outcomes(trajectories, task: str, count: int = 16) -> tuple[int, int]:
    """(how many came out as recorded, of how many): carries out the recorded actions of the first
    `count` episodes again. Those without an initial state, or of another task, are left out.
    """
    if task not in tasks.NAMES:
        return 0, 0
    env = TabletopEnv(tasks.get_task(task), size=16, threads=1)
    try:
        size = env.model.nq + env.task.num_parameters
        some = [t for t in trajectories if t.initial_state.shape == (size,)][:count]
        some = [t for t in some if t.actions.shape == some[0].actions.shape]
        if not some or not all(np.isfinite(t.initial_state).all() for t in some):
            return 0, 0
        states = np.stack([t.initial_state for t in some])
        words = tuple(t.instruction for t in some)
        env.reset(InitialStates(states, None, words, "replay", np.arange(len(some))))
        done = env.step_chunk(np.stack([t.actions for t in some]), every_frame=None)[1][:, -1]
    finally:
        env.close()
    return int((done == [t.success for t in some]).sum()), len(some)


def alike(equal: int, count: int) -> bool:
    """Whether outcomes here compare with the recorded ones, by what `equal_outcomes` says."""
    return equal >= ALIKE * count
