"""A process of its own for one simulation, and the line to it. Runs as `python -m
wmpo_lite.envs.libero.worker FD`, so no guard is needed around user code.

The line carries one message each way: a JSON header, then the arrays that it names as raw bytes. If
the line breaks, each end knows that the other is gone.
"""

import collections
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero import installed

NO_GL = (
    "LIBERO cannot draw here ({}); install the GL libraries (apt-get install libegl1 libegl-mesa0"
    " libgl1-mesa-dri libosmesa6) and unset MUJOCO_GL, or set it to egl or osmesa"
)


def send(line: Connection, head: dict, **arrays):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shapes = [[name, a.dtype.str, a.shape] for name, a in arrays.items()]
    line.send_bytes(json.dumps({"head": head, "arrays": shapes}).encode())
    for array in arrays.values():
        if array.nbytes:
            line.send_bytes(memoryview(array).cast("B"))


def receive(line: Connection) -> tuple[dict, dict]:
    message, arrays = json.loads(line.recv_bytes()), {}
    for name, kind, shape in message["arrays"]:
        arrays[name] = np.empty(shape, kind)
        if arrays[name].nbytes:
            arrays[name] = np.frombuffer(line.recv_bytes(), kind).reshape(shape).copy()
    return message["head"], arrays


class WorkerGone(UserError):
    """The process at the other end of the line has ended."""


class Worker:
    """The near end: starts the process; `ask`, then `answer`. threads: of its drawing."""

    def __init__(self, threads: int):
        ours, theirs = socket.socketpair()
        installed.prepare()  # its setting of LIBERO_CONFIG_PATH is inherited
        package = str(Path(__file__).resolve().parents[3])
        environment = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "LP_NUM_THREADS": str(threads),
            "MPLCONFIGDIR": str(installed.scratch()),  # LIBERO imports matplotlib
            **os.environ,
        }
        environment["PYTHONPATH"] = os.pathsep.join([package, *[p for p in sys.path if p]])
        self._log = tempfile.TemporaryFile("w+")
        # A session of its own: Ctrl-C in the terminal ends the program, and the broken line ends
        # the worker.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wmpo_lite.envs.libero.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.line = Connection(ours.detach())

    def ask(self, head: dict, **arrays):
        try:
            send(self.line, head, **arrays)
        except OSError:
            self._gone()

    def answer(self) -> tuple[dict, dict]:
        """The reply to the oldest question; UserError with the worker's sentence if it could not do
        it.
        """
        try:
            head, arrays = receive(self.line)
        except (EOFError, OSError):
            self._gone()
        if "error" in head:
            raise UserError(head["error"])
        if "bug" in head:
            raise RuntimeError(f"a LIBERO worker failed:\n{head['bug']}")
        return head, arrays

    def close(self):
        """End the process: politely first. Safe to call twice."""
        if not self.line.closed:
            self.line.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _gone(self):
        code = self.process.wait()
        self._log.seek(0)
        said = "; ".join(line.strip() for line in self._log.read().splitlines()[-3:]) or "nothing"
        raise WorkerGone(
            f"a LIBERO worker ended by itself (exit status {code}); the last it said was: {said}."
            " Build the environment again, with fewer workers if memory ran out"
        )


class Host:
    """The far end: a simulation and the episodes that it is in."""

    def build(self, head: dict, arrays: dict) -> dict:
        from wmpo_lite.envs.drawing import import_mujoco
        from wmpo_lite.envs.libero.look import Look

        import_mujoco()  # chooses the back end for drawing
        try:
            from wmpo_lite.envs.libero.simulation import Simulation

            installed.check_meshes()
            importlib.import_module("libero.libero.envs.env_wrapper")  # and robosuite
            look = Look(**head["look"])
            self.simulation = Simulation(head["bddl"], head["size"], look, head["wrist"])
        except ModuleNotFoundError as error:
            raise UserError(installed.MISSING.format(error)) from error
        except UserError:
            raise
        except Exception as error:  # what an unsuitable version raises can be anything
            said = f"{error!r}{traceback.format_exc()}".lower()
            if any(word in said for word in ("egl", "opengl", "osmesa", "framebuffer", "glfw")):
                raise UserError(NO_GL.format(_first(error))) from error
            if installed.is_tested():
                raise  # no fault of the versions
            raise UserError(installed.cannot(_first(error))) from error
        self.stride, self.stop, self.cache = head["stride"], head["stop"], collections.OrderedDict()
        made = self.simulation
        about = {name: getattr(made, name) for name in ("row_size", "objects", "goal")}
        return {"head": about, "placement": made.placement, "camera": made.camera}

    def draw(self, head: dict, arrays: dict) -> dict:
        rows = [self.simulation.draw(seeds, arrays["taken"]) for seeds in head["seeds"]]
        return {"head": {}, "rows": np.stack(rows)}

    def pictures(self, head: dict, arrays: dict) -> dict:
        frames = []
        for row in arrays["rows"]:
            self.simulation.put(row)
            frames.append(self.simulation.frames()[0])
        return {"head": {}, "frames": np.array(frames)}

    def reset(self, head: dict, arrays: dict) -> dict:
        """One episode for each of `rows`; equal rows (a group) are settled once."""
        settled = [self._settled(row, head["settle"]) for row in arrays["rows"]]
        self.episodes, self.shown, broken, now = map(list, zip(*settled))
        self.done = [False] * len(settled)
        return {
            "head": {"broken": broken},
            "frames": np.array(self.shown),
            **{name: np.array([m[name] for m in now]) for name in now[0]},
        }

    def premises(self, head: dict, arrays: dict) -> dict:
        """What is broken in each of `rows` once it has settled; episodes under way go on as they
        are.
        """
        return {"head": {"broken": [self._settled(r, head["settle"])[2] for r in arrays["rows"]]}}

    def _settled(self, row: np.ndarray, steps: int) -> tuple:
        """(saved state, frames, broken premises, measures) of an initial state after `steps`."""
        key = row.tobytes()
        if key not in self.cache:
            sim = self.simulation
            sim.put(row)
            broken = sim.settle(steps)
            self.cache[key] = (sim.save(), sim.frames(), broken, sim.measures())
            if len(self.cache) > 64:
                self.cache.popitem(last=False)
        return self.cache[key]

    def step(self, head: dict, arrays: dict) -> dict:
        """actions (b, K, 7) -> frames (b, K or 1, cameras, H, W, 3), done (b, K) and the measures
        after every step.
        """
        actions, every, out = arrays["actions"], head["every_frame"], collections.defaultdict(list)
        for b, episode in enumerate(self.episodes):
            self.simulation.load(episode)
            if self.done[b] and self.stop:
                self.simulation._mujoco.mj_forward(self.simulation.model, self.simulation.data)
            frames, done, measures = [], [], []
            for k, action in enumerate(actions[b]):
                moved = not (self.done[b] and self.stop)
                if moved:
                    self.done[b] |= self.simulation.hold(action, self.stride, self.stop)
                done.append(self.done[b])
                measures.append(self.simulation.measures())
                if moved and (every or k == len(actions[b]) - 1 or self.done[b] and self.stop):
                    self.shown[b] = self.simulation.frames()
                frames.append(self.shown[b])
            self.episodes[b] = self.simulation.save()
            out["frames"].append(frames if every else frames[-1:])
            out["done"].append(done)
            for name in measures[0]:
                out[name].append([measure[name] for measure in measures])
        return {"head": {}, **{name: np.array(value) for name, value in out.items()}}


def _first(error) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(".")


def main(descriptor: int):
    line, host = Connection(descriptor), Host()
    while True:
        try:
            head, arrays = receive(line)
        except (EOFError, OSError):
            break  # the other end is gone
        try:
            answer = getattr(host, head["do"])(head, arrays)
        except UserError as error:
            answer = {"head": {"error": str(error)}}
        except Exception:  # whatever it is, the program at the other end must hear of it
            answer = {"head": {"bug": traceback.format_exc()}}
        try:
            send(line, answer.pop("head"), **answer)
        except OSError:
            break
    if hasattr(host, "simulation"):
        host.simulation.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
