"""An SO-101 without the SO-101: a process with a serial port (a pseudo-terminal) on which six
servos answer, and the MuJoCo arm moves behind them.

    with Emulator(get_task("place"), states) as desk, SO101(desk.port, desk.calibration,
    desk.camera()) as arm: ...

Emulated are ping, read, write, reg write and action, sync read and write, checksums, error bits,
position limits, homing offsets, positions that count turns, the speed limit and the time that bytes
take on the line. Not
emulated: the top speed, acceleration, gains and torque limit of a servo (its registers hold what is
written), and power cycles.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from wmpo_lite.arms.calibration import TICKS_PER_RADIAN, Calibration
from wmpo_lite.arms.cameras import SharedCamera
from wmpo_lite.arms.interface import JOINTS, LIMITS
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import Disturbance
from wmpo_lite.trajectory import InitialStates

START_SECONDS = 60  # a cold import of MuJoCo on a busy machine
FAULTS = ("drop", "corrupt", "slow", "error", "camera", "pull", "die", "none")


def emulated_calibration() -> Calibration:
    """What `lerobot-calibrate` could have found: ranges a little off the middle and just wide
    enough for `interface.LIMITS`.
    """
    half = np.ceil(np.abs(LIMITS[:5]).max(axis=1) * TICKS_PER_RADIAN).astype(int)
    middle = 2047 + np.array([12, -20, 35, -8, 0])
    low, high = middle - half, middle + half
    low[4], high[4] = 0, 4095  # LeRobot gives the wrist's roll the whole turn
    return Calibration(
        id=np.arange(1, 7),
        drive_mode=np.zeros(6),
        homing_offset=[-37, 812, -1190, 504, 1333, -260],
        range_min=np.append(low, 2035),
        range_max=np.append(high, 3485),
        source="the emulator's calibration",
    )


class Emulator:
    """The process and its serial port, from construction to `close`; a context manager.

    task, states, row, size, disturbance, seed: as in `World`. fps: pictures a second. port: path of
    the serial port, the same again after the cable was pulled and plugged in; calibration: path of
    a LeRobot calibration file. UserError, with what the process said, if it does not start.
    """

    def __init__(
        self,
        task,
        states: InitialStates,
        row: int = 0,
        size: int = 64,
        disturbance: Disturbance = Disturbance(),
        seed: int = 0,
        fps: float = 30,
    ):
        self._folder = Path(tempfile.mkdtemp(prefix="wmpo-arm-"))
        self.port = str(self._folder / "port")
        self.calibration = self._folder / "calibration.json"
        self.size = size
        self.pictures = self._folder / "pictures"
        SharedCamera.create(self.pictures, size)
        emulated_calibration().save(self.calibration)
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._log = open(self._folder / "log", "w+")
        # A session of its own: Ctrl-C in the terminal is for the program that holds the arm, not
        # for the arm.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wmpo_lite.arms.emulated", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        ours.settimeout(START_SECONDS)
        self._socket, self._answers = ours, ours.makefile("rb")
        try:
            scene = {"task": task.name, "size": size, "disturbance": asdict(disturbance)}
            scene |= {"folder": str(self._folder), "seed": seed, "fps": fps}
            self._ask("start", **scene, **_plain(states), row=row)
        except BaseException:
            self.close()
            raise
        ours.settimeout(10)

    def camera(self) -> SharedCamera:
        """A camera that shows the emulator's pictures."""
        return SharedCamera(self.pictures)

    def reset(self, states: InitialStates, row: int = 0) -> None:
        """Another initial state; servos hold where the arm then is, faults stay. Connect the arm
        after it: to one that is connected this would be a leap.
        """
        self._ask("reset", **_plain(states), row=row)

    def success(self) -> bool:
        """Whether the task's test holds now."""
        return self._ask("success")

    def joints(self) -> np.ndarray:
        """Where the arm truly is (6,)."""
        return np.array(self._ask("joints"))

    def moving(self) -> np.ndarray:
        """True joint speeds (6,): rad/s, and openings a second."""
        return np.array(self._ask("moving"))

    def last_motion(self, faster: float = 0.05) -> float:
        """Time (`time.monotonic`) when a joint last moved faster than `faster` (at least 0.02)
        rad/s or openings a second.
        """
        return self._ask("last_motion", faster=faster)

    def fault(self, name: str, **how) -> float:
        """Make something go wrong and return the time (`time.monotonic`) at which it did.

        drop, corrupt: of servos' answers the next `count`, or each with probability `share`; slow:
        the adapter holds what comes back from every question, or the next `count`, for `seconds`;
        error: the servo of `joint` reports the error `bits`; camera: `how` = "stop", no more
        pictures, or "repeat", the same one over and over; pull: the cable; die: the whole process;
        none: all is well again, cable included.
        """
        if name not in FAULTS:
            raise UserError(f"there is no fault '{name}'; use one of {', '.join(FAULTS)}")
        if "joint" in how:
            how["joint"] = JOINTS.index(how["joint"])
        if name == "die":
            self.process.kill()
            self.process.wait()
            return time.monotonic()
        return self._ask("fault", name=name, **how)

    def close(self) -> None:
        """End the process and remove everything that belonged to it. Safe to call twice."""
        self._answers.close()
        self._socket.close()  # at this the process ends by itself
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _ask(self, do: str, **what):
        try:
            self._socket.sendall(json.dumps({"do": do, **what}).encode() + b"\n")
            line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise UserError(f"the emulator does not answer ({error}); make a new one") from None
        if not line:
            log = Path(self._log.name)
            said = log.read_text().strip().splitlines() if log.exists() else []
            raise UserError(
                f"the emulator has ended{': ' + said[-1] if said else ''}; make a new one"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]


def _plain(states: InitialStates) -> dict:
    return {
        "states": states.states.tolist(),
        "instructions": list(states.instructions),
        "split": states.split,
        "indices": states.indices.tolist(),
    }
