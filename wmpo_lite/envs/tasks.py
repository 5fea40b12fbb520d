"""Tasks by name, whichever simulator they live in: "place" and "square" on the embedded table-top,
"libero_object/0" and the like of LIBERO's suites.

A task has `horizon` (control steps of an episode); those of the table-top have `swap_instruction`
and `instruction` besides.
"""

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.trajectory import InitialStates


def get_task(name: str):
    """The task called `name`; UserError for an unknown one."""
    if "/" not in name:
        from wmpo_lite.envs.tabletop import tasks

        return tasks.get_task(name)
    from wmpo_lite.envs.libero import states

    suite, _, number = name.partition("/")
    if not number.isdigit():
        raise UserError(
            f"task '{name}' is unknown; LIBERO's tasks are named by suite and number, such as"
            " libero_object/0"
        )
    return states.get_task(suite, int(number))


def folder_name(name: str) -> str:
    """What folders of this task are called: "libero_object/0" -> "libero_object-0"."""
    return name.replace("/", "-")


def shared_name(name: str) -> str:
    """The folder of what this task shares with others, its autoencoder and world model: the
    table-top's or that of its suite.
    """
    suite, slash, _ = name.partition("/")
    return suite if slash else "tabletop"


def make_env(task, **options):
    """The simulator of `task`: an environment with the contract that the README states. options: of
    its class.
    """
    if hasattr(task, "suite"):
        from wmpo_lite.envs.libero.env import LiberoEnv

        # the world goes on after success, as on the table-top, and a world model learns that it
        # does
        return LiberoEnv(task, **{"stop": False, **options})
    from wmpo_lite.envs.tabletop.env import TabletopEnv

    return TabletopEnv(task, **options)


def initial_states(task, env, split: str, indices) -> InitialStates:
    """States number `indices` of a named split. env: of `make_env`; LIBERO draws in it.

    Initial states of LIBERO whose premise does not hold are left out, and a line says which and
    why. UserError if none is left.
    """
    if hasattr(task, "suite"):
        from wmpo_lite.envs.libero.premises import leave_out

        return leave_out(env, env.initial_states(split, indices))
    from wmpo_lite.envs.tabletop.env import initial_states as draw

    return draw(task, split, indices)


def of_the_benchmark(task, states: InitialStates) -> np.ndarray:
    """Which of these states are a benchmark's own and not drawn by the kit, bool (B,)."""
    if hasattr(task, "suite"):
        from wmpo_lite.envs.libero.states import of_the_benchmark

        return of_the_benchmark(states)
    return np.zeros(len(states), bool)


def has_other_sentence(task) -> bool:
    """Whether the same scene may come with another sentence."""
    return hasattr(task, "swap_instruction")


def with_other_sentence(task, states: InitialStates) -> InitialStates:
    """The same scenes with the other object named."""
    import dataclasses

    rows = task.swap_instruction(states.states)
    return dataclasses.replace(
        states, states=rows, instructions=tuple(task.instruction(row) for row in rows)
    )
