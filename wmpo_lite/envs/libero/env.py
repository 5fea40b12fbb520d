"""LIBERO as an environment of the kit: `reset` / `step_chunk` over a batch of episodes of one task,
simulated by worker processes.
"""

import warnings
import weakref
from dataclasses import asdict, dataclass

import numpy as np

from wmpo_lite.actions import check_actions
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import cores
from wmpo_lite.envs.libero.look import Look
from wmpo_lite.envs.libero.simulation import SETTLE
from wmpo_lite.envs.libero.states import (
    LiberoTask,
    as_states,
    evaluation_rows,
    instructions,
    of_the_benchmark,
    seed_of,
)
from wmpo_lite.envs.libero.worker import Worker, WorkerGone
from wmpo_lite.envs.tabletop.env import check_numbers
from wmpo_lite.trajectory import InitialStates

# robosuite's OSC_POSE: change of the hand's position (x, y, z) and orientation (axis-angle), and
# the gripper (-1 open, +1 closed)
ACTION_DIM = 7
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
ATTEMPTS = 20  # draws for one initial state before giving up


@dataclass(frozen=True)
class Premise:
    """Whether an initial state is what its task says: `broken` tells what is not, in words; a state
    counts only if that is empty.
    """

    index: int
    broken: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        return f"{self.index} ({'; '.join(self.broken) or 'holds'})"


class LiberoEnv:
    """`reset` / `step_chunk` over a batch of episodes of one task (the chunk-level contract that
    every environment of the kit offers).

    task: from `states.get_task`; size: pixels of the square RGB image of the agent view; wrist: the
    wrist camera too, in `wrist` after a reset and in `info["wrist"]`; workers: processes (default:
    one a core, at most 8), each builds the scene once, resets it once and then only puts states
    into it. look: see `Look`. stride: simulator steps (0.05 s) that one action is held, the task's
    by default. settle: simulator steps before the first frame. stop: episodes already solved stand
    still; False: they go on, as what a world model is to learn from has to. After a reset
    `premises` says of every episode whether its initial state is what the task says. Construction
    takes 5 to 20 s. A context manager; `close` ends the processes, and so does the end of the
    program, however it comes. A worker that dies is started again once, and its episodes repeated
    up to where they were; if it dies again a UserError says so and the environment is closed.

    An episode starts as in LIBERO's loop for evaluation: the hand turns to its resting orientation
    and the gripper opens (LIBERO's own loop sends 0, which leaves the fingers half open; the -1
    here is what OpenVLA's and later ones send) while everything settles.
    """

    action_dim = ACTION_DIM
    action_names = ACTION_NAMES

    def __init__(
        self,
        task: LiberoTask,
        size: int = 64,
        workers: int | None = None,
        look: Look = Look(),
        wrist: bool = False,
        stride: int | None = None,
        settle: int = SETTLE,
        stop: bool = True,
    ):
        stride = task.stride if stride is None else stride
        for name, value, least in (
            ("size", size, 16),
            ("stride", stride, 1),
            ("settle", settle, 0),
            ("workers", 1 if workers is None else workers, 1),
        ):
            if value < least:
                raise UserError(f"LiberoEnv.{name} is {value}; expected at least {least}")
        self.task = task
        self.size = size
        self.look = look
        self.has_wrist = wrist
        self.stride = stride
        self.settle = settle
        count = workers or min(cores(), 8)
        self._workers: list[Worker] = []
        self._closer = weakref.finalize(self, _close, self._workers)
        self._settings = {
            "do": "build",
            "bddl": task.bddl,
            "size": size,
            "look": asdict(look),
            "wrist": wrist,
            "stride": stride,
            "stop": stop,
        }
        self._threads = max(1, cores() // count) if count < cores() else 0
        self._told: list[list] = [[] for _ in range(count)]  # since the last reset, a worker
        try:
            for _ in range(count):
                self._workers.append(Worker(self._threads))
            answers = self._exchange([(self._settings, {})] * count)
        except BaseException:
            self.close()
            raise
        self.row_size = answers[0][0]["row_size"]
        self.objects = tuple(answers[0][0]["objects"])
        self._placement = answers[0][1]["placement"]
        # (3, 4): point of the room -> picture, see `Simulation`
        self.camera = answers[0][1]["camera"]
        # such as ("on", "akita_black_bowl_1", "plate_1")
        self.goal = tuple(tuple(part) for part in answers[0][0]["goal"])
        self._other_tasks = set(instructions(task.suite)) - {task.instruction}
        self._batch, self.instructions, self.premises = 0, [], []
        self.initial, self.wrist, self.now = None, None, {}

    # -- initial states ----------------------------------------------------------------------------

    def initial_states(self, split: str, indices) -> InitialStates:
        """States number `indices` of a named split. The first 50 of "evaluation" are the
        benchmark's own, which no other split ever gives (`states.of_the_benchmark` tells them
        apart); the others are drawn by LIBERO's own reset, with the noise of the arm that the
        benchmark's have, each with a seed of its own, and kept only if their premise holds once
        they have settled. Of the benchmark's some may not: see `sound`.
        """
        indices = check_numbers(split, indices)
        bundled = evaluation_rows(self.task)
        width = self.row_size + len(self._placement)
        if split == "evaluation" and (own := indices < len(bundled)).any():
            rows = np.zeros((len(indices), width))
            placed = np.tile(self._placement, (own.sum(), 1))
            rows[own] = np.concatenate([bundled[indices[own]], placed], axis=1)
            if not own.all():
                rows[~own] = self.initial_states(split, indices[~own]).states
            return as_states(self.task, split, indices, rows)
        seeds = lambda i: [seed_of(self.task, split, int(i), n) for n in range(ATTEMPTS)]
        answers = self._exchange(
            [
                ({"do": "draw", "seeds": [seeds(i) for i in part]}, {"taken": bundled})
                for part in self._shares(indices)
            ]
        )
        rows = np.concatenate([np.zeros((0, width)), *(arrays["rows"] for _, arrays in answers)])
        return as_states(self.task, split, indices, rows)

    def premises_of(self, states: InitialStates) -> list[Premise]:
        """Whether each of these states is what the task says once it has settled, without starting
        an episode.
        """
        if not len(states):
            return []
        head = {"do": "premises", "settle": self.settle}
        shares = self._shares(states.states)
        return _premises(
            states.indices, self._exchange([(head, {"rows": part}) for part in shares])
        )

    def sound(self, states: InitialStates) -> tuple[InitialStates, list[Premise]]:
        """The states whose premise holds, to train on or to count, and the premises of the others.
        Only the benchmark's own are tried: drawn ones have been.
        """
        own = np.flatnonzero(of_the_benchmark(states))
        broken = {n: p for n, p in zip(own, self.premises_of(states[own])) if not p.holds}
        kept = np.array([n not in broken for n in range(len(states))], dtype=bool)
        return states[kept], list(broken.values())

    # -- contract ----------------------------------------------------------------------------------

    def reset(self, states: InitialStates) -> np.ndarray:
        """Start one episode per row of `states`; returns uint8 (B, H, W, 3) and sets `instructions`
        and `premises`.
        """
        if not len(states):
            raise UserError("there are no initial states to reset to; give at least one")
        self._refuse_others(states)
        self._batch = 0  # where a worker refuses its states, no episode is under way
        self._parts = self._shares(np.arange(len(states)))
        head = {"do": "reset", "settle": self.settle}
        answers = self._exchange([(head, {"rows": states.states[part]}) for part in self._parts])
        self.premises = _premises(states.indices, answers)
        self._batch = len(states)
        self.initial = states
        self.instructions = list(states.instructions)
        self.done = np.zeros(len(states), dtype=bool)
        self.now = _joined(answers)
        frames = self.now.pop("frames")
        self.wrist = frames[:, 1] if self.has_wrist else None
        return frames[:, 0]

    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        """Execute K policy steps, each held for `stride` simulator steps, in every episode. actions
        (B, K, 7) in [-1, 1] (clipped): 1 asks for 5 cm or 0.5 rad within a simulator step, of which
        the arm does a part. Returns frames, done, info of the contract; every_frame=False draws the
        newest only.

        info holds, after every step, `states` (B, K, nq), `tip` (B, K, 3) and `objects` (B, K, n,
        3) in meters, n as in `objects`, their orientations `turned` (B, K, n, 4), w x y z, and the
        `opening` (B, K) of the gripper in [0, 1]: only experts, tests and teleoperation may look at
        these; `now` has the newest of each, after a reset too; and `wrist`, like the frames, if
        that camera is on.
        """
        actions = np.clip(check_actions(actions, self._batch, ACTION_DIM), -1, 1)
        head = {"do": "step", "every_frame": every_frame}
        answers = self._exchange([(head, {"actions": actions[part]}) for part in self._parts])
        info = _joined(answers)
        frames, done = info.pop("frames"), info.pop("done")
        self.now = {name: values[:, -1] for name, values in info.items()}
        if self.has_wrist:
            info["wrist"] = frames[:, :, 1]
        self.done = done[:, -1].copy()
        return frames[:, :, 0], done, info

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """The agent view (N, H, W, 3) of recorded states (N, 1 + nq + nv); episodes under way are
        not touched.
        """
        shares = self._shares(np.asarray(rows, dtype=np.float64))
        answers = self._exchange([({"do": "pictures"}, {"rows": part}) for part in shares])
        return np.concatenate([arrays["frames"] for _, arrays in answers])

    def close(self):
        self._closer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def _crew(self) -> list:
        if not self._workers:
            raise UserError("this LIBERO environment is closed; build a new one")
        return self._workers

    def _shares(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in equal parts, one for each of the workers that get any."""
        return [part for part in np.array_split(rows, len(self._crew)) if len(part)]

    def _refuse_others(self, states: InitialStates):
        """States of a task of the same suite may have as many numbers; their instruction tells."""
        if others := self._other_tasks & set(states.instructions):
            raise UserError(
                f"these initial states are of '{sorted(others)[0]}' and the environment is for"
                f" '{self.task.instruction}'; take them from its own `initial_states`"
            )

    def _exchange(self, questions: list) -> list:
        """One question (head, arrays) for each of the first workers, all at work at once; their
        answers. Every worker is heard out before the first error is raised, or its answer would be
        taken for that to the next question; where that cannot be, all of them are ended.
        """
        answers, errors, gone = [], [], set()
        try:
            for n, (worker, (head, arrays)) in enumerate(zip(self._crew, questions)):
                try:
                    worker.ask(head, **arrays)
                except WorkerGone:
                    gone.add(n)
            for n, question in enumerate(questions):
                try:
                    if n not in gone:
                        try:
                            answers.append(self._crew[n].answer())
                            continue
                        except WorkerGone:
                            pass
                    answers.append(self._again(n, question))
                except WorkerGone:
                    raise
                except (UserError, RuntimeError) as error:
                    errors.append(error)
        except BaseException:  # a worker dead twice, or Ctrl-C while others are still at it
            self.close()
            raise
        if errors:
            raise errors[0]
        self._remember(questions)
        return answers

    def _again(self, number: int, question) -> tuple[dict, dict]:
        """The answer of a new worker in the place of one that has died. It repeats the episodes
        under way first: same states, same actions, same bits.
        """
        old, self._workers[number] = self._workers[number], Worker(self._threads)
        old.close()
        warnings.warn(
            "a LIBERO worker ended by itself; another takes its place and repeats its episodes",
            RuntimeWarning,
            stacklevel=4,
        )
        told = [(self._settings, {}), *self._told[number]]
        told = {"build": [], "reset": told[:1]}.get(question[0]["do"], told)
        for head, arrays in [*told, question]:
            self._workers[number].ask(head, **arrays)
            answer = self._workers[number].answer()
        return answer

    def _remember(self, questions: list):
        """What a new worker would have to be told to be where this one is."""
        for told, (head, arrays) in zip(self._told, questions):
            if head["do"] == "reset":
                told[:] = [(head, arrays)]
            elif head["do"] == "step":
                told.append(({**head, "every_frame": False}, arrays))


def _premises(indices: np.ndarray, answers: list) -> list[Premise]:
    found = [tuple(broken) for head, _ in answers for broken in head["broken"]]
    return [Premise(int(index), broken) for index, broken in zip(indices, found)]


def _joined(answers: list) -> dict:
    return {name: np.concatenate([arrays[name] for _, arrays in answers]) for name in answers[0][1]}


def _close(workers: list):
    for worker in workers:
        worker.line.close()  # all of them stop at the same time
    while workers:
        workers.pop().close()
