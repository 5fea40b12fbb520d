"""All exercises by name, and `check`, which a student's cell calls."""

import sys

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.course import capstone, learning, models
from wmpo_lite.course.exercise import CheckFailed, Exercise, Verdict, attempt, judge

EXERCISES: dict[str, Exercise] = {
    e.name: e for e in (*models.EXERCISES, *learning.EXERCISES, capstone.CAPSTONE)
}


def find(name: str) -> Exercise:
    """The exercise of that name; UserError where there is none."""
    if name not in EXERCISES:
        raise UserError(f"there is no exercise '{name}'; use one of {', '.join(EXERCISES)}")
    return EXERCISES[name]


def verdict(name: str, function, seed=None) -> Verdict:
    """Run `function` on random inputs and judge it; another seed, other inputs."""
    exercise = find(name)
    cases = exercise.cases(np.random.default_rng(seed))
    return judge(exercise, cases, attempt(exercise, function, cases))


def check(name: str, function=None, seed=None) -> None:
    """Run a student's function beside the kit's core on random inputs. Prints "right", or raises
    CheckFailed with the likely mistake.

    function: by default what the caller has defined under the exercise's name for it.
    """
    exercise = find(name)
    if function is None:
        caller = sys._getframe(1)
        function = (caller.f_globals | caller.f_locals).get(exercise.function)
    if not callable(function):
        raise CheckFailed(f"{name}: there is no `{exercise.function}` yet; run its cell first")
    found = verdict(name, function, seed)
    if found.status != "passed":
        raise CheckFailed(f"{name}: {found.message}")
    print(f"{name}: {found.message}")
