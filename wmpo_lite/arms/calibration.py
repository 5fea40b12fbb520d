"""LeRobot's calibration file of an SO-101 follower: servo ticks on one side, the units of
`wmpo_lite.arms.interface` on the other.

The file is what `lerobot-calibrate` writes
(~/.cache/huggingface/lerobot/calibration/robots/so_follower/<id>.json): per joint `id`,
`drive_mode`, `homing_offset`, `range_min`, `range_max`. Servos add the homing offset by themselves
(position told = encoder - offset, so that the posture at the half turn reads 2047); ranges are in
the ticks that they tell. As with LeRobot's `use_degrees`, a joint is at 0 in the middle of its
range, a turn is 4095 ticks and `drive_mode` has no say; the gripper goes from 0 at `range_min`,
closed, to 1 at `range_max`, and `drive_mode` 1 turns that round.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmpo_lite.arms.control import home
from wmpo_lite.arms.interface import JOINTS, LIMITS
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import write_atomic

HIGHEST_TICK = 4095
TICKS_PER_RADIAN = HIGHEST_TICK / (2 * np.pi)
WIDER = 1.2  # times as wide as its limits a joint's range may be: arms and hands differ
# ticks between closed and open, at least and at most; an SO-101 has about 1450
GRIPPER = (400, 2047)
# What the numbers of a joint may be, (lowest, highest).
FIELDS = {
    "id": (0, 252),
    "drive_mode": (0, 1),
    "homing_offset": (-2047, 2047),
    "range_min": (0, HIGHEST_TICK),
    "range_max": (0, HIGHEST_TICK),
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """Six integers (6,) of each kind, in the order of `interface.JOINTS`. UserError where they
    cannot belong to an arm; `source` names it in that sentence.
    """

    id: np.ndarray
    drive_mode: np.ndarray
    homing_offset: np.ndarray
    range_min: np.ndarray
    range_max: np.ndarray
    source: str = "the calibration"

    def __post_init__(self):
        for field, (low, high) in FIELDS.items():
            # whole numbers of any size, until their range is known
            values = np.asarray(getattr(self, field), dtype=object)
            for joint, value in zip(JOINTS, values):
                if not low <= value <= high:
                    raise UserError(
                        f"{self.source}: {field} of {joint} is {str(value)[:24]}, expected {low} to"
                        f" {high}; {AGAIN}"
                    )
            object.__setattr__(self, field, values.astype(np.int64))
        for joint, low, high in zip(JOINTS, self.range_min, self.range_max):
            if low >= high:
                raise UserError(
                    f"{self.source}: range_min of {joint}, {low}, is not below its range_max,"
                    f" {high}; {AGAIN}"
                )
        for n, ident in enumerate(self.id):
            if ident in self.id[:n]:
                first = JOINTS[list(self.id).index(ident)]
                raise UserError(
                    f"{self.source}: {first} and {JOINTS[n]} both have the servo id {ident}; every"
                    " servo needs an id of its own"
                )

    def check_mechanics(self) -> None:
        """UserError for ranges that no SO-101 can have swept: wider than a joint turns, or so
        narrow that the first posture of an episode is outside.
        """
        widest = np.append(np.ptp(LIMITS[:5], axis=1) * WIDER * TICKS_PER_RADIAN, GRIPPER[1])
        # the only joint to which LeRobot gives the whole turn
        widest[JOINTS.index("wrist_roll")] = HIGHEST_TICK
        for n, joint in enumerate(JOINTS):
            low = self.range_min[n]
            high = self.range_max[n]
            width = self.range_max[n] - self.range_min[n]
            if width > widest[n]:
                raise UserError(
                    f"{self.source}: the range of {joint}, {low} to {high}, is wider than the joint"
                    f" can turn (about {widest[n]:.0f} ticks at most); move it through its whole"
                    f" range when you {AGAIN}"
                )
            narrow = not self.limits[n, 0] <= home()[n] <= self.limits[n, 1]
            if width < GRIPPER[0] if joint == "gripper" else narrow:
                raise UserError(
                    f"{self.source}: the range of {joint}, {low} to {high}, is too narrow for the"
                    " posture in which episodes begin; move it through its whole range when you"
                    f" {AGAIN}"
                )

    @property
    def middle(self) -> np.ndarray:
        return (self.range_min + self.range_max) / 2

    @property
    def ticks_per_unit(self) -> np.ndarray:
        """(6,) how many ticks a joint's unit has: a radian, or the whole way of the gripper."""
        return np.append(np.full(5, TICKS_PER_RADIAN), self.range_max[5] - self.range_min[5])

    @property
    def limits(self) -> np.ndarray:
        """(6, 2) lowest and highest value of each joint inside the calibrated range, in the units
        of the interface.
        """
        ends = np.stack([self.range_min - self.middle, self.range_max - self.middle], axis=1)
        return np.concatenate([ends[:5] / TICKS_PER_RADIAN, [[0.0, 1.0]]])

    def to_ticks(self, joints: np.ndarray) -> np.ndarray:
        """Joint values (6,) -> int64 ticks (6,), never outside the calibrated range."""
        joints = np.asarray(joints, dtype=np.float64)
        gripper = 1 - joints[5] if self.drive_mode[5] else joints[5]
        end = self.range_min[5] + gripper * (self.range_max[5] - self.range_min[5])
        ticks = np.append(self.middle[:5] + joints[:5] * TICKS_PER_RADIAN, end)
        return np.clip(np.rint(ticks), self.range_min, self.range_max).astype(np.int64)

    def from_ticks(self, ticks: np.ndarray) -> np.ndarray:
        """Ticks (6,) -> joint values float64 (6,). Outside the range joints go on and the gripper
        stays at its end, as in LeRobot.
        """
        ticks = np.asarray(ticks, dtype=np.float64)
        width = self.range_max[5] - self.range_min[5]
        gripper = np.clip((ticks[5] - self.range_min[5]) / width, 0, 1)
        gripper = 1 - gripper if self.drive_mode[5] else gripper
        return np.append((ticks[:5] - self.middle[:5]) / TICKS_PER_RADIAN, gripper)

    def save(self, path) -> None:
        """Write LeRobot's file."""
        table = {
            joint: {field: int(getattr(self, field)[n]) for field in FIELDS}
            for n, joint in enumerate(JOINTS)
        }
        write_atomic(Path(path), json.dumps(table, indent=4).encode())


AGAIN = "calibrate the arm again with `lerobot-calibrate`"


def load_calibration(path) -> Calibration:
    """Read LeRobot's file of an SO-101 follower. UserError with the file's name and one thing that
    is wrong with it.
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no calibration file {path}; write one with `lerobot-calibrate"
            " --robot.type=so101_follower`, which keeps it in"
            " ~/.cache/huggingface/lerobot/calibration/robots"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file that can be read ({error}); {AGAIN}") from None
    if not isinstance(table, dict):
        raise UserError(
            f"{path} holds {type(table).__name__} where an object with the joints"
            f" {', '.join(JOINTS)} is expected; {AGAIN}"
        )
    for joint in JOINTS:
        if joint not in table:
            raise UserError(
                f"{path} has no joint '{joint}'; expected {', '.join(JOINTS)} as LeRobot writes"
                " them for an SO-101 follower"
            )
    if extra := sorted(set(table) - set(JOINTS)):
        raise UserError(
            f"{path} has a joint '{extra[0]}' that no SO-101 has; is it the file of another robot?"
        )
    for joint in JOINTS:
        for field in FIELDS:
            value = table[joint].get(field) if isinstance(table[joint], dict) else None
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(
                    f"{path}: {field} of {joint} is {value!r}, expected a whole number; {AGAIN}"
                )
    columns = {
        field: np.array([table[joint][field] for joint in JOINTS], dtype=object) for field in FIELDS
    }
    calibration = Calibration(**columns, source=str(path))
    calibration.check_mechanics()
    return calibration
