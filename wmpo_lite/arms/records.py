"""What a deployment leaves on disk: every episode in a file of its own, a journal that outlives a
killed process, and rollouts.hdf5 for the main job.
"""

import json
import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import make_folder, misfit, one_sentence, write_all
from wmpo_lite.trajectory import Trajectory, load_metadata, load_trajectories, save_trajectories

# The first line of a journal.
HEAD = {
    "instruction": str,
    "initial_state": [float],
    "split": str,
    "index": int,
    "chunk": int,
    "shape": [int],
}
KILLED = "the process ended in mid-motion"
COMPLETE = re.compile(r"episode_(\d+)\.hdf5")
STOPPED = re.compile(r"episode_(\d+)_stopped_(\d+)\.hdf5")


@dataclass
class Episode:
    """One deployed episode. reason: why the arm was stopped before the horizon, None where it was
    not; measures: see `wmpo_lite.arms.deploy.Pace`; error: what else than a stopped arm ended it
    (Ctrl-C, a fault in the policy's code), to be raised once the episode is safe.
    """

    trajectory: Trajectory
    reason: str | None = None
    measures: dict = field(default_factory=dict)
    error: BaseException | None = None


@dataclass
class Recording:
    """An episode while it grows. With `path`, every finished control step is also written there at
    once, for `recover`.
    """

    instruction: str
    initial_state: np.ndarray
    first: np.ndarray  # uint8 (H, W, 3)
    split: str = "desk"
    index: int = 0
    chunk: int = 8
    path: Path | None = None

    def __post_init__(self):
        self.frames, self.rows, self.done = [np.ascontiguousarray(self.first)], [], []
        self._file = None
        if self.path is None:
            return
        make_folder(Path(self.path).parent)
        head = {key: getattr(self, key) for key in HEAD if key not in ("initial_state", "shape")}
        head["initial_state"] = np.asarray(self.initial_state).tolist()
        head["shape"] = list(self.first.shape)
        try:
            with one_sentence(self.path):
                # what is written is out of the process's hands
                self._file = open(self.path, "wb", buffering=0)
                line = json.dumps(head).encode() + b"\n"
                write_all(self._file, line + self.frames[0].tobytes())
        except UserError:  # nothing has moved yet, so nothing is lost with it
            self.close()
            with suppress(OSError):
                Path(self.path).unlink(missing_ok=True)
            raise

    def step(self, frame, action, tokens, log_probs, done: bool) -> None:
        """A control step is over: frame uint8 (H, W, 3) after it, action, tokens and log_probs
        (D,), and whether the task's test held.
        """
        row = np.stack([np.asarray(part, dtype=np.float64) for part in (action, tokens, log_probs)])
        self.frames.append(np.ascontiguousarray(frame))
        self.rows.append(row)
        self.done.append(bool(done))
        if self._file is not None:
            with one_sentence(self.path):
                step = row.tobytes() + bytes([self.done[-1]]) + self.frames[-1].tobytes()
                write_all(self._file, step)

    def __len__(self) -> int:
        return len(self.rows)

    def trajectory(self, finish: int | None = None, tokens: bool = True) -> Trajectory:
        """finish: the frame from which on it is a success (1..T), if something else than the task's
        test tells; 0: a failure. tokens=False leaves tokens and log-probabilities out. An episode
        that was stopped in its first step is one step long, in which the arm held still.
        """
        frames, rows, done = self.frames, self.rows, self.done
        if not rows:
            frames = frames * 2
            rows = [np.array([[0.0, 0.0, 0.0, -1.0]] * 3)]
            done = [False]
            tokens = False
        actions, chosen, log_probs = np.moveaxis(np.stack(rows), 1, 0)
        if finish is None:
            finish = int(np.argmax(done)) + 1 if any(done) else 0
        return Trajectory(
            frames=np.stack(frames),
            actions=actions.astype(np.float32),
            tokens=chosen.astype(np.int64) if tokens else None,
            log_probs=log_probs.astype(np.float32) if tokens else None,
            success=finish > 0,
            finish_step=finish or len(rows),
            instruction=self.instruction,
            initial_state=self.initial_state,
            split=self.split,
            index=self.index,
            chunk=self.chunk,
        )

    def close(self) -> None:
        """Nothing more comes. The journal stays until somebody deletes it: the episode may not be
        saved yet.
        """
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def save_episode(folder, number: int, episode: Episode, *, task: str, about: dict) -> Path:
    """Write one episode into `folder`: episode_0007.hdf5, or episode_0007_stopped_0.hdf5 if the arm
    was stopped; with reason and measures in its provenance.
    """
    folder = Path(folder)
    path = folder / f"episode_{number:04d}.hdf5"
    if episode.reason is not None:
        stops = map(STOPPED.fullmatch, names(folder))
        tries = sum(bool(found) and int(found[1]) == number for found in stops)
        path = folder / f"episode_{number:04d}_stopped_{tries}.hdf5"
    save_trajectories(
        path,
        [episode.trajectory],
        env_args={"task": task, "size": int(episode.trajectory.frames.shape[1])},
        provenance={
            **about,
            "stopped": episode.reason,
            "measures": episode.measures,
            "versions": checkpoint.versions(),
        },
    )
    return path


def names(folder) -> list[str]:
    return sorted(os.listdir(folder)) if Path(folder).is_dir() else []


def complete(folder) -> dict[int, Path]:
    """The finished episodes of `folder` by their number."""
    return {
        int(found[1]): Path(folder) / name
        for name in names(folder)
        if (found := COMPLETE.fullmatch(name))
    }


def stopped(folder) -> list[tuple[Path, str]]:
    """The episodes of `folder` in which the arm was stopped, each with the reason."""
    paths = [Path(folder) / name for name in names(folder) if STOPPED.fullmatch(name)]
    return [(path, load_metadata(path)["provenance"]["stopped"]) for path in paths]


def recover(folder, task: str) -> list[Path]:
    """Save what processes that were killed had recorded: every journal in `folder` becomes a
    stopped episode of as many steps as were finished.

    A journal of another version is kept under another name, with a warning.
    """
    saved = []
    for name in names(folder):
        if not name.endswith(".journal"):
            continue
        path, number = Path(folder) / name, int(re.search(r"\d+", name)[0])
        # killed when the episode was safe and the journal not yet gone
        recording = None if number in complete(folder) else _read_journal(path)
        if recording is not None:
            episode = Episode(recording.trajectory(finish=0), KILLED)
            about = {"recovered": True}
            saved.append(save_episode(folder, number, episode, task=task, about=about))
        path.unlink(missing_ok=True)
    return saved


def _read_journal(path: Path) -> Recording | None:
    """What a journal holds; None where it ends before its first picture, or is of another version
    and was set aside.
    """
    with one_sentence(path, "read"):
        head, end, body = path.read_bytes().partition(b"\n")
    if not end:  # killed while it wrote its first line: nothing had moved yet
        return None
    problem, head = _journal_head(head)
    if problem:
        kept = _set_aside(path)
        warnings.warn(
            f"{path} cannot be turned into an episode ({problem}); it is kept as {kept.name},"
            " for the version of the kit that wrote it",
            stacklevel=3,
        )
        return None
    shape = tuple(head.pop("shape"))
    size, width = int(np.prod(shape)), 3 * 4 * 8
    if len(body) < size:  # killed before the first picture was whole
        return None
    picture = lambda at: np.frombuffer(body[at : at + size], np.uint8).reshape(shape)
    head["initial_state"] = np.array(head["initial_state"])
    recording = Recording(**head, first=picture(0))
    for begin in range(size, len(body) - (width + 1 + size) + 1, width + 1 + size):
        rows = np.frombuffer(body[begin : begin + width], np.float64).reshape(3, 4)
        recording.step(picture(begin + width + 1), *rows, bool(body[begin + width]))
    return recording


def _journal_head(line: bytes) -> tuple[str | None, dict]:
    """What is wrong with a journal's first line, None if nothing, and what it says."""
    try:
        head = json.loads(line)
    except ValueError:
        return "its first line is not JSON", {}
    if (problem := misfit(head, HEAD, "its first line")) is not None:
        return problem, {}
    if more := sorted(set(head) - set(HEAD)):
        return f"its first line holds '{more[0]}', which this version does not know", {}
    if len(head["shape"]) != 3 or min(head["shape"]) < 1 or head["shape"][2] != 3:
        return f"its pictures have the shape {head['shape']}", {}
    return None, head


def _set_aside(path: Path) -> Path:
    """Rename a journal so that neither `recover` nor a new episode touches it."""
    kept = next(
        name
        for n in range(1_000_000)
        if not (name := path.with_name(f"{path.name}.unread{n or ''}")).exists()
    )
    with one_sentence(path):
        os.replace(path, kept)
    return kept


def merge(run, episodes, count: int, *, task: str, provenance: dict) -> dict:
    """rollouts.hdf5 of the run folder `run` from the first `count` finished episodes of the folder
    `episodes`, as the main job reads it, and the record of its first stage, so that `wmpo-lite demo
    --name` goes on with these rollouts. Returns {"n", "successes"}.
    """
    run = Path(run)
    found = [path for _, path in sorted(complete(episodes).items())][:count]
    trajectories = [trajectory for path in found for trajectory in load_trajectories(path)]
    if len({trajectory.frames.shape for trajectory in trajectories}) > 1:
        raise UserError(
            f"the episodes in {episodes} differ in length or picture size; they belong to different"
            " tasks or cameras, collect them under separate names"
        )
    save_trajectories(
        run / "rollouts.hdf5",
        trajectories,
        env_args={"task": task, "size": int(trajectories[0].frames.shape[1])},
        provenance=provenance,
    )
    result = {"n": len(trajectories), "successes": sum(t.success for t in trajectories)}
    if len(trajectories) == count:
        checkpoint.write_json(run / "stages" / "rollouts.json", {"result": result, "seconds": 0.0})
    return result
