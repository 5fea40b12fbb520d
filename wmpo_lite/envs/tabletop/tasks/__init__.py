"""Tasks of the table-top simulator: one module a task, found by name."""

from importlib import import_module
from typing import Protocol

import numpy as np

from wmpo_lite.common.errors import UserError

NAMES = ("place", "square")


class Task(Protocol):
    """What a module in this folder says of its task. `place.py` is the shortest."""

    name: str
    horizon: int  # control steps of an episode
    num_parameters: int  # numbers at the end of an initial state, after the joint positions
    objects: tuple  # names of the bodies that may be picked up
    noun: str  # what instructions call an object,
    target: str  # and where it is to go; also the name of its body
    place_tolerance: float  # m, how well the expert aims before it lowers
    collides: bool  # whether a bad descent hits something, from which the expert has to recover

    def bodies(self) -> str:
        """MJCF of the objects and the target."""

    def sample(self, rng: np.random.Generator, disturbance, split: str) -> np.ndarray:
        """One initial state: joint positions of the whole scene, then the parameters."""

    def instruction(self, state: np.ndarray) -> str:
        """What the policy is asked for in this initial state."""

    def sentence(self, color: str) -> str:
        """The instruction for the object of that color."""

    def swap_instruction(self, states: np.ndarray) -> np.ndarray:
        """Initial states (N, ...) with the other object asked for."""

    def colors(self, parameters: np.ndarray) -> dict:
        """RGBA of each body whose color the parameters choose."""

    def success(self, env) -> np.ndarray:
        """Which episodes (B,) of `env` have reached the goal, by the simulator's state."""

    def goal(self, env):
        """For the scripted expert: where to pick up, where to let go, and more; see `expert`."""


def get_task(name: str) -> Task:
    """The task module called `name`."""
    if name not in NAMES:
        raise UserError(f"task '{name}' is unknown; use one of {', '.join(NAMES)}")
    return import_module(f"wmpo_lite.envs.tabletop.tasks.{name}")
