"""What can be said to `wmpo-lite deploy`; the command line is made from this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wmpo_lite.common.errors import LARGEST_SEED, UserError, require_between

# Control steps before the end of a chunk at which the picture for the next one is taken: then the
# ramp is over and the arm settles, and 60 ms are left to think.
AHEAD = 0.3
RANGES = {
    "seed": (0, LARGEST_SEED),
    "state": (0, 10**9),
    "episodes": (1, 100_000),
    "collect": (0, 10_000),
    "temperature": (0.01, 100),
    "ahead": (0, 100),
    "latency": (0, 2),
    "camera_noise": (0, 255),
    "jitter": (0, 1),
    "look": (0, 1),
    "speed": (0.01, 20),
}


@dataclass(frozen=True)
class Settings:
    """One session at an arm. UserError for settings that do not go together."""

    arm: Literal["sim", "so101"] = "sim"
    checkpoint: str = ""
    """a folder, a run's name, or base, grpo, dpo, wmpo as shipped; by default wmpo, and base for
    --collect"""
    instruction: str = ""  # by default what the simulated desk asks for
    task: str = "place"
    state: int = 0  # number of the simulated desk's first initial state
    episodes: int = 1
    collect: int = 0
    """P: gather this many episodes into runs/<name>/rollouts.hdf5, for the main job to start from;
    goes on where it was"""
    lerobot: bool = False
    """with --collect: the episodes also as a LeRobot v3.0 folder, runs/<name>/lerobot"""
    other: str = ""
    """with --collect on a real desk: the color of the object that the instruction does not name"""
    name: str = ""  # folder under runs/
    dry_run: bool = False  # print and draw what the policy would do; nothing moves
    film: Path | None = None  # an MP4 of the episodes
    mark: Literal["auto", "task", "key", "reward"] = "auto"  # who says whether it was a success
    temperature: float | None = None
    """of sampling; by default the likeliest action, and for --collect the main job's temperature"""
    ahead: float = AHEAD
    """control steps before a chunk's end at which the next one's picture is taken; 0: afterwards,
    while the arm waits"""
    seed: int = 0
    port: str = ""  # so101: /dev/ttyACM0, COM3
    calibration: Path | None = None  # so101: LeRobot's calibration file of this arm
    camera: str = "0"  # so101: number or device of the camera
    emulated: bool = False
    """so101: servos on a pseudo-terminal with the simulated arm behind them"""
    latency: float = 0.0  # sim: seconds by which pictures are late
    camera_noise: float = 0.0  # sim: gray levels of 255
    jitter: float = 0.0  # sim: rad of noise on joint commands
    look: float = 0.0  # simulated desks: how strange the scene looks, 0 to 1
    speed: float = 1.0  # sim: how much faster than the clock the world runs

    def __post_init__(self):
        real = self.real
        for name, (low, high) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                require_between(f"--{name.replace('_', '-')}", value, low, high)
        pace = self.speed != 1 or self.latency or self.camera_noise or self.jitter
        wrong = {
            f"--arm is '{self.arm}'; expected sim or so101": self.arm not in ("sim", "so101"),
            f"--mark is '{self.mark}'; expected auto, task, key or reward": (
                self.mark not in ("auto", "task", "key", "reward")
            ),
            "--mark task needs a simulated desk; a real one is judged by key or by the reward model"
            " (--mark reward)": self.mark == "task" and real,
            "a real arm needs --port and --calibration (LeRobot's file for this arm), or try"
            " --emulated": real and not (self.port and self.calibration),
            "a real desk does not say what to do; give --instruction": real
            and not self.instruction,
            "--emulated emulates the bus of an SO-101; add --arm so101": (
                self.emulated and self.arm != "so101"
            ),
            "--speed, --latency, --camera-noise and --jitter are for --arm sim": (
                self.arm != "sim" and pace
            ),
            "--port and --calibration are for a real arm; add --arm so101, or leave them out": (
                not real and (self.port or self.calibration)
            ),
            "--lerobot is for --collect P; add it": self.lerobot and not self.collect,
            "--look changes a simulated scene; this desk is a real one": real and self.look,
        }
        for message, holds in wrong.items():
            if holds:
                raise UserError(message)

    @property
    def real(self) -> bool:
        return self.arm == "so101" and not self.emulated
