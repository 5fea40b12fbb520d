"""`square`: put the named square nut over the square peg. A descent that is off by more than the
play collides.
"""

import numpy as np

from wmpo_lite.envs.tabletop import scene
from wmpo_lite.envs.tabletop.tasks import pair

name = "square"
horizon = 48  # control steps
num_parameters = pair.NUM_PARAMETERS
NUTS = objects = ("nut_a", "nut_b")
noun, target = "nut", "peg"  # as sentences call them
place_tolerance = 0.0025  # m, how well the expert aims before it lowers
OUTER, INNER, HALF_HEIGHT = 0.021, 0.0135, 0.008  # m, half sizes of the frame
PEG_HALF, PEG_HEIGHT = 0.009, 0.030  # m: a play of 4.5 mm on each side
AREA = np.array([[0.150, 0.225], [-0.090, 0.090]])  # m, where objects start
collides = True  # a descent beside the peg does, and the expert then tries again
RELEASE_HEIGHT = 0.055  # m, the hand has withdrawn
swap_instruction = pair.swap_instruction


def bodies() -> str:
    return "".join(
        scene.free_nut(nut, OUTER, INNER, HALF_HEIGHT) for nut in NUTS
    ) + scene.sliding_peg("peg", PEG_HALF, PEG_HEIGHT, (0.93, 0.93, 0.95))


def instruction(state: np.ndarray) -> str:
    return sentence(pair.named_color(state))


def sentence(color: str) -> str:
    return f"put the {color} nut over the peg"


def colors(parameters: np.ndarray) -> dict:
    return {
        f"{nut}{bar}": scene.COLORS[pair.COLORS[int(c)]]
        for nut, c in zip(NUTS, parameters)
        for bar in ("", "_b", "_c", "_d")
    }


def _apart(spots: np.ndarray) -> bool:
    """Whether nut_a, nut_b and the peg (3, 2) leave each other and the gripper room."""
    return min(np.linalg.norm(spots[i] - spots[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.075


def sample(rng: np.random.Generator, disturbance, split: str) -> np.ndarray:
    """One initial state: joint positions of the whole scene, then the parameters."""
    return pair.sample(rng, disturbance, AREA, ((0.135, -0.11), (0.235, 0.11)), HALF_HEIGHT, _apart)


def over_peg(env, nut: str) -> np.ndarray:
    """Which episodes (B,) have `nut` down on the table with the peg through it."""
    return _round_it(env.position(nut), env.position("peg"))


def _round_it(nut: np.ndarray, peg: np.ndarray) -> np.ndarray:
    return (nut[:, 2] < HALF_HEIGHT + 0.004) & (
        np.abs(nut[:, :2] - peg[:, :2]).max(axis=1) < INNER - PEG_HALF + 0.003
    )


def named_nut(env) -> np.ndarray:
    """Position (B, 3) of the nut that the instruction names."""
    return pair.of_named(env, *(env.position(nut) for nut in NUTS))


def success(env) -> np.ndarray:
    """Named nut over the peg, at rest, released, the hand withdrawn: bool (B,)."""
    return pair.of_named(env, *(over_peg(env, nut) for nut in NUTS)) & pair.released(
        env, NUTS, RELEASE_HEIGHT
    )


def goal(env) -> tuple[np.ndarray, np.ndarray]:
    """(pick, place) positions for the scripted expert, each (B, 3) in meters; a nut that hangs
    askew is steered by its own center.
    """
    pick = named_nut(env).copy()
    # one let go that leans on the peg is as high
    held = (pick[:, 2:3] > 0.02) & (env.opening[:, None] < 0.6 * scene.FINGER_TRAVEL)
    aim = env.position("peg") + np.where(held, env.tip[:, :2] - pick[:, :2], 0)
    return pick, np.concatenate([aim, np.full((len(aim), 1), 0.014)], axis=1)
