"""The tasks of LIBERO's five suites and where their episodes start: the benchmark's own states for
evaluation, states drawn by us for everything else.
"""

import contextlib
import io
import sys
from dataclasses import dataclass

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero import installed
from wmpo_lite.envs.tabletop.env import SPLITS
from wmpo_lite.trajectory import InitialStates

# Control stride (simulator steps at 20 Hz that one action is held) and horizon in policy steps: the
# longest demonstrations of the suites have 193, 254, 270, 373 and 505 simulator steps; each horizon
# covers them with a margin in 56 to 72 policy steps, whole chunks of 8.
SUITES = {
    "libero_spatial": (4, 56),
    "libero_object": (5, 56),
    "libero_goal": (5, 64),
    "libero_90": (6, 72),
    "libero_10": (8, 72),
}
STORED = 50  # initial states that the benchmark stores of every task


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite. bddl: path of its definition; stride: simulator steps (0.05 s each) an
    action is held; horizon: policy steps of an episode.
    """

    suite: str
    number: int
    name: str
    instruction: str
    bddl: str
    stride: int
    horizon: int


def get_task(suite: str, number: int) -> LiberoTask:
    """Task `number` (from 0, the benchmark's default order) of a suite by name. UserError for
    unknown ones, for one whose files are not installed, or without LIBERO.
    """
    found = _suite(suite)
    if not 0 <= number < found.n_tasks:
        raise UserError(
            f"suite '{suite}' has the tasks 0 to {found.n_tasks - 1}, got number {number}; choose"
            " one of these"
        )
    if absent := installed.missing_files(found, number):
        raise UserError(
            f"{suite}/{number} has no files in the installed LIBERO ({installed.distribution()}):"
            f" {absent[0]} is missing; install it again, or choose another task"
        )
    task, bddl = found.get_task(number), str(found.get_task_bddl_file_path(number))
    return LiberoTask(suite, number, task.name, task.language, bddl, *SUITES[suite])


def tasks(suite: str) -> list[LiberoTask]:
    """All tasks of a suite, in the benchmark's order."""
    return [get_task(suite, number) for number in range(_suite(suite).n_tasks)]


def instructions(suite: str) -> list[str]:
    """The instruction of every task of a suite."""
    found = _suite(suite)
    return [found.get_task(number).language for number in range(found.n_tasks)]


def of_the_benchmark(states: InitialStates) -> np.ndarray:
    """Which of these states are the benchmark's own, bool (B,): the first 50 of "evaluation". All
    others were drawn by the kit.
    """
    return (states.indices < STORED) & (states.split == "evaluation")


def evaluation_rows(task: LiberoTask) -> np.ndarray:
    """The benchmark's initial states (50, 1 + nq + nv): time, qpos, qvel. They are for evaluation
    and never appear in another split.
    """
    import pickle

    found = _suite(task.suite)
    try:
        rows = found.get_task_init_states(task.number)
    # an original checkout keeps them in torch files, whose arrays a recent torch loads only when
    # told that arrays are safe
    except pickle.UnpicklingError:
        import torch

        with torch.serialization.safe_globals(_array_parts()):
            rows = found.get_task_init_states(task.number)
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != STORED:
        raise UserError(
            f"the stored initial states of {task.suite}/{task.number} have shape {rows.shape};"
            f" expected {STORED} rows: install LIBERO again"
        )
    return rows


def seed_of(task: LiberoTask, split: str, index: int, attempt: int) -> int:
    """The seed with which state `index` of a split is drawn; every (task, split, index, attempt)
    has its own.
    """
    parts = [SPLITS[split], index, attempt, *task.name.encode()]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def as_states(task: LiberoTask, split: str, indices: np.ndarray, rows: np.ndarray) -> InitialStates:
    return InitialStates(rows, None, (task.instruction,) * len(indices), split, indices)


def all_suites() -> dict:
    """Every suite that the installed LIBERO lists, as its class by name."""
    with _quiet() as benchmark:
        return dict(benchmark.get_benchmark_dict())


def files_of_suites() -> dict[str, tuple[int, int]]:
    """Of every suite that the installed LIBERO lists: how many tasks it names, and how many of
    these have their files.
    """
    counts = {}
    for name, make in all_suites().items():
        with _quiet():
            found = make()
        whole = sum(not installed.missing_files(found, n) for n in range(found.n_tasks))
        counts[name] = (found.n_tasks, whole)
    return counts


def _suite(name: str):
    if name not in SUITES:
        raise UserError(f"LIBERO has no suite '{name}'; use one of {', '.join(SUITES)}")
    with _quiet() as benchmark:
        return benchmark.get_benchmark(name)()


@contextlib.contextmanager
def _quiet():
    """LIBERO's module of suites, for use while its own reports are swallowed and its questions
    meet the end of their input.
    """
    installed.prepare()
    stdin = sys.stdin
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            sys.stdin = io.StringIO()
            from libero.libero import benchmark

            yield benchmark
        except ImportError as error:
            raise UserError(installed.MISSING.format(error)) from error
        finally:
            sys.stdin = stdin


def _array_parts() -> list:
    from numpy._core.multiarray import _reconstruct

    old = (_reconstruct, "numpy.core.multiarray._reconstruct")  # the name that NumPy 1 wrote
    return [_reconstruct, old, np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
