"""A dry run: what the policy would do with the arm from here, in words and over the camera's
picture. Nothing moves.
"""

from pathlib import Path

import numpy as np

from wmpo_lite.arms.control import check_action, lead
from wmpo_lite.envs.tabletop import arm as kinematics
from wmpo_lite.envs.tabletop import scene

SCALE = 6  # pixels of the drawing for one of the picture
OPEN, CLOSED, INK = (30, 110, 220), (205, 62, 70), (35, 38, 43)  # RGB


def plan(policy, arm, instruction: str, temperature: float | None = None, seed: int = 0) -> dict:
    """The next chunk from what the arm sees now: frame uint8 (H, W, 3), actions (K, 4), tips (K +
    1, 3) in meters as they would be commanded if the arm followed to the letter, the first one
    being where the tips are. Raises ArmStopped where `deploy` would stop the arm.
    """
    import torch

    seen = arm.observe()
    frames = torch.from_numpy(np.ascontiguousarray(seen.frame))[None]
    generator = torch.Generator().manual_seed(seed)
    actions = policy.act(frames, [instruction], temperature, generator)[2][0].cpu().numpy()
    tips = [kinematics.forward_kinematics(seen.joints[:5])]
    for action in actions:
        tips.append(lead(tips[-1], tips[-1], check_action(action)))
    return {"frame": seen.frame, "actions": actions, "tips": np.stack(tips)}


def describe(planned: dict, instruction: str) -> str:
    """The plan as lines of text."""
    lines = [
        f"dry run, nothing moves: '{instruction}'",
        "step   dx     dy     dz  gripper   tip commanded to (mm)",
    ]
    for k, (action, tip) in enumerate(zip(planned["actions"], planned["tips"][1:]), start=1):
        dx, dy, dz, grip = action
        lines.append(
            f"{k:4d} {dx:+6.2f} {dy:+6.2f} {dz:+6.2f}  {'close' if grip > 0 else 'open ':6s}  "
            + " ".join(f"{1000 * v:7.1f}" for v in tip)
        )
    return "\n".join(lines)


def draw(planned: dict, path) -> Path:
    """The path of the tips over the camera's picture as a PNG: a ring where they are, a dot a step,
    blue with the gripper open and red with it closed, and its shadow on the table. Drawn for a
    camera that stands where the simulator's does.
    """
    from PIL import Image, ImageDraw

    from wmpo_lite.report.show import write_png

    frame = planned["frame"]
    picture = Image.fromarray(frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1))
    pen = ImageDraw.Draw(picture)
    spots, shadow = (
        _pixels(points, frame.shape) for points in (planned["tips"], planned["tips"] * [1, 1, 0])
    )
    pen.line([tuple(p) for p in shadow], fill=INK, width=1)
    pen.line([tuple(p) for p in spots], fill=OPEN, width=2)
    for k, (x, y) in enumerate(spots):
        color = CLOSED if k and planned["actions"][k - 1][3] > 0 else OPEN
        if k:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        else:
            pen.ellipse((x - 7, y - 7, x + 7, y + 7), outline=color, width=2)
    return write_png(picture, path)


def _pixels(points, shape) -> np.ndarray:
    """Points (N, 3) of the room in meters -> places (N, 2) in the drawing, right and down."""
    points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    seen = points @ scene.camera_matrix().T.astype(np.float64)
    return (seen[:, :2] / seen[:, 2:] + 1) / 2 * np.array([shape[1], shape[0]]) * SCALE
