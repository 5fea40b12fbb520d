"""What an exercise is, how a student's function is run, and how its outcomes become a verdict.

Running and judging are apart: a sandbox runs the function on inputs that it is given, and whoever
grades compares what came back. A verdict names the likely mistake: wrong solutions that students
often write are run on the same inputs, and the one that agrees with the student's is named.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from types import CodeType
from typing import NamedTuple

import numpy as np

HIDDEN = "the answer itself"


class CheckFailed(Exception):
    """A check that did not pass; says what the likely mistake is."""

    def _render_traceback_(self) -> list[str]:  # notebooks show the sentence alone
        return [f"{type(self).__name__}: {self}"]


class Raised(NamedTuple):
    """An error that a student's function ended in."""

    kind: str
    message: str


@dataclass(frozen=True)
class Exercise:
    """name: as in `check(name)`. function: what the student defines. cases(rng): inputs, a list of
    tuples of numbers, text, arrays and tensors. reference(*arguments): the right answer, by the
    kit's core. mistakes: wrong answers by the sentence that names them.

    prepare(*inputs): the arguments, where they are more than data. call(function, *arguments): runs
    it. view(output, *arguments): what of an output is compared. withheld: functions of the core
    that are the answer, "module.name". limit: seconds of CPU time. given(inputs): what of a case a
    student's function gets. judge: another way to a verdict than by comparison.
    """

    name: str
    function: str
    cases: Callable
    reference: Callable
    mistakes: dict[str, Callable]
    prepare: Callable = lambda *inputs: inputs
    call: Callable = lambda function, *arguments: function(*arguments)
    view: Callable = lambda output, *arguments: output
    given: Callable = lambda inputs: inputs
    judge: Callable | None = None
    withheld: tuple[str, ...] = ()
    atol: float = 1e-5
    points: float = 1
    limit: float = 5


class Verdict(NamedTuple):
    """status: passed, wrong, error, not attempted, missing, out of time, out of memory or not
    graded. score: between 0 and 1; None where nobody can say.
    """

    status: str
    message: str
    score: float | None


def wrong(status: str, message: str) -> Verdict:
    """A verdict that scores nothing."""
    return Verdict(status, message, 0.0)


def attempt(exercise: Exercise, function: Callable, cases: list[tuple]) -> list:
    """What `function` returns for each case; an error becomes `Raised`, whatever it is."""
    answers = {name.rpartition(".")[2] for name in exercise.withheld}
    if used := answers & _names(getattr(function, "__code__", None)):
        said = f"`{sorted(used)[0]}` of the kit is {HIDDEN}; write it by hand"
        return [Raised("Withheld", said)] * len(cases)
    outcomes = []
    with withhold(exercise.withheld):
        for inputs in cases:
            outcomes.append(_run(exercise, function, exercise.given(inputs)))
            if isinstance(outcomes[-1], Raised) and out_of_memory(outcomes[-1]):
                return outcomes + outcomes[-1:] * (len(cases) - len(outcomes))
    return outcomes


def _run(exercise: Exercise, function: Callable, inputs: tuple):
    try:
        arguments = exercise.prepare(*copied(inputs))
        return exercise.view(exercise.call(function, *arguments), *arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Raised(type(error).__name__, " ".join(str(error).split())[:300])


def _names(code) -> set[str]:
    """Names that a function's code mentions, inner functions included."""
    if not isinstance(code, CodeType):
        return set()
    return set(code.co_names).union(*(_names(part) for part in code.co_consts))


@contextmanager
def withhold(names: tuple[str, ...]):
    """Inside, the named functions refuse to be called, wherever the kit's modules hold them."""

    def refuse(*_, **__):
        raise RuntimeError(f"this function of the kit is {HIDDEN}; write it by hand")

    changed = []
    for module, _, name in (full.rpartition(".") for full in names):
        original = getattr(import_module(module), name)
        for holder in [m for key, m in list(sys.modules.items()) if key.startswith("wmpo_lite")]:
            if getattr(holder, name, None) is original:
                changed.append((holder, name, original))
                setattr(holder, name, refuse)
    try:
        yield
    finally:
        for holder, name, original in changed:
            setattr(holder, name, original)


def copied(value):
    """A copy that a student may write into."""
    if isinstance(value, (tuple, list)):
        return type(value)(copied(part) for part in value)
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if hasattr(value, "detach"):
        return value.detach().clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def plain(value):
    """Tensors as arrays, lists as tuples."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    if isinstance(value, (list, tuple)) and not isinstance(value, Raised):
        return tuple(plain(part) for part in value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value


def same(a, b, atol: float) -> bool:
    """Whether two outcomes agree: shapes, True/False against numbers, and values up to `atol`."""
    a, b = plain(a), plain(b)
    if isinstance(a, Raised) or isinstance(b, Raised):
        alike = {"UserError": "ValueError"}
        kinds = [alike.get(x.kind, x.kind) if isinstance(x, Raised) else None for x in (a, b)]
        return kinds[0] == kinds[1]
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], atol) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y, atol) for x, y in zip(a, b))
    if a is None or b is None or isinstance(a, (str, dict)) or isinstance(b, (str, dict)):
        return type(a) is type(b) and a == b
    with suppress(ValueError, TypeError):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape or (x.dtype == bool) != (y.dtype == bool):
            return False
        x, y = x.astype(np.float64), y.astype(np.float64)
        return bool(np.allclose(x, y, rtol=1e-4 if atol else 0, atol=atol, equal_nan=True))
    return False


def judge(exercise: Exercise, cases: list[tuple], outcomes: list) -> Verdict:
    """The verdict on what a function returned for `cases`."""
    if exercise.judge:
        return exercise.judge(exercise, cases, outcomes)
    right = attempt_reference(exercise, exercise.reference, cases)
    failing = [i for i, (a, b) in enumerate(zip(outcomes, right)) if not same(a, b, exercise.atol)]
    if not failing and len(outcomes) == len(cases):
        return Verdict("passed", f"right, on {len(cases)} random inputs", 1.0)
    first = outcomes[failing[0]]
    if isinstance(first, Raised) and first.kind == "NotImplementedError":
        return wrong("not attempted", "not written yet: replace the line that raises")
    if isinstance(first, Raised) and out_of_memory(first):
        return wrong("out of memory", f"`{exercise.function}` ran out of memory")
    if sentence := likely_mistake(exercise, cases, outcomes, failing):
        return wrong("wrong", sentence)
    if isinstance(first, Raised):
        said = f"{first.kind}: {first.message}"
        return wrong("error", f"`{exercise.function}` raised {said}")
    return wrong("wrong", difference(exercise, failing, len(cases), first, right[failing[0]]))


def attempt_reference(exercise: Exercise, function: Callable, cases: list[tuple]) -> list:
    """Outcomes of one of our own functions: it may use all of the core."""
    return [_run(exercise, function, inputs) for inputs in cases]


def out_of_memory(raised: Raised) -> bool:
    """Whether an error of Python or torch says that memory is used up."""
    return raised.kind == "MemoryError" or "allocate memory" in raised.message


def likely_mistake(exercise: Exercise, cases, outcomes, failing) -> str | None:
    """The sentence of the known mistake that gives the same wrong results, None if none does."""
    found = []
    for sentence, function in exercise.mistakes.items():
        theirs = attempt_reference(exercise, function, cases)
        agree = [same(a, b, exercise.atol) for a, b in zip(outcomes, theirs)]
        found.append((np.mean([agree[i] for i in failing]), np.mean(agree), sentence))
    share, _, sentence = max(found, key=lambda entry: entry[:2], default=(0, 0, None))
    return sentence if share > 0.5 else None


def difference(exercise: Exercise, failing, total: int, got, expected) -> str:
    """Where an outcome that nobody foresaw differs from the right one."""
    name, got, expected = exercise.function, plain(got), plain(expected)
    if got is None and expected is not None:
        return f"`{name}` returned None: is there a `return`?"
    if isinstance(expected, Raised):
        return (
            f"`{name}` had to raise {expected.kind} ({expected.message}) and returned {brief(got)}"
        )
    if isinstance(got, tuple) and isinstance(expected, tuple) and len(got) == len(expected):
        parts = [i for i, (a, b) in enumerate(zip(got, expected)) if not same(a, b, exercise.atol)]
        got, expected, name = got[parts[0]], expected[parts[0]], f"{name}, result {parts[0]},"
    else:
        name = f"{name}"
    where = f"{len(failing)} of {total} random inputs; at the first of them"
    return (
        f"{name} differs from the kit's on {where} it gave {brief(got)}, right is {brief(expected)}"
    )


def brief(value) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray) and value.size > 6:
        kind = "True/False" if value.dtype == bool else str(value.dtype)
        return f"an array {value.shape} of {kind} beginning with {value.flat[:4].tolist()}"
    return " ".join(repr(value.tolist() if isinstance(value, np.ndarray) else value).split())[:200]
