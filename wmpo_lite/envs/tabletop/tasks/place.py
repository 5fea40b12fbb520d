"""`place`: put the named cube on the plate. A second cube of another color makes the instruction
matter.
"""

import numpy as np

from wmpo_lite.envs.tabletop import scene
from wmpo_lite.envs.tabletop.tasks import pair

name = "place"
horizon = 40  # control steps
num_parameters = pair.NUM_PARAMETERS
CUBES = objects = ("cube_a", "cube_b")
noun, target = "cube", "plate"  # as sentences call them
place_tolerance = 0.008  # m, how well the expert aims before it lowers
PLATE_RADIUS, PLATE_HEIGHT = 0.040, 0.006  # m
AREA = np.array([[0.145, 0.225], [-0.095, 0.095]])  # m, where objects start
collides = False  # nothing stands in the way of a descent
RELEASE_HEIGHT = 0.055  # m, the hand has withdrawn
swap_instruction = pair.swap_instruction


def bodies() -> str:
    return "".join(scene.free_cube(cube) for cube in CUBES) + scene.sliding_disc(
        "plate", PLATE_RADIUS, PLATE_HEIGHT, (0.93, 0.93, 0.95)
    )


def instruction(state: np.ndarray) -> str:
    return sentence(pair.named_color(state))


def sentence(color: str) -> str:
    return f"put the {color} cube on the plate"


def colors(parameters: np.ndarray) -> dict:
    return {cube: scene.COLORS[pair.COLORS[int(c)]] for cube, c in zip(CUBES, parameters)}


def _apart(spots: np.ndarray) -> bool:
    """Whether cube_a, cube_b and the plate (3, 2) leave each other and the gripper room."""
    gaps = [np.linalg.norm(spots[i] - spots[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return gaps[0] > 0.062 and min(gaps[1:]) > 0.075


def sample(rng: np.random.Generator, disturbance, split: str) -> np.ndarray:
    """One initial state: joint positions of the whole scene, then the parameters."""
    return pair.sample(
        rng, disturbance, AREA, ((0.13, -0.115), (0.235, 0.115)), scene.CUBE_HALF, _apart
    )


def on_plate(env, cube: str) -> np.ndarray:
    """Which episodes (B,) have `cube` lying on the plate."""
    return _lies_on(env.position(cube), env.position("plate"))


def _lies_on(cube: np.ndarray, plate: np.ndarray) -> np.ndarray:
    level = np.abs(cube[:, 2] - (PLATE_HEIGHT + scene.CUBE_HALF)) < 0.006
    return level & (np.linalg.norm(cube[:, :2] - plate[:, :2], axis=1) < PLATE_RADIUS)


def named_cube(env) -> np.ndarray:
    """Position (B, 3) of the cube that the instruction names."""
    return pair.of_named(env, *(env.position(cube) for cube in CUBES))


def success(env) -> np.ndarray:
    """Named cube on the plate, at rest, released, the hand withdrawn: bool (B,)."""
    return pair.of_named(env, *(on_plate(env, cube) for cube in CUBES)) & pair.released(
        env, CUBES, RELEASE_HEIGHT
    )


def goal(env) -> tuple[np.ndarray, np.ndarray]:
    """(pick, place) positions for the scripted expert, each (B, 3) in meters: grasp point and
    release point of the finger tips.
    """
    pick = named_cube(env).copy()
    plate = env.position("plate")
    return pick, np.concatenate(
        [plate, np.full((len(plate), 1), PLATE_HEIGHT + scene.CUBE_HALF + 0.006)], axis=1
    )
