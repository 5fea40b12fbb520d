"""`place`: put the named cube on the plate. A second cube of another colour makes the instruction matter."""
import numpy as np

from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import HOME

name = "place"
horizon = 40  # control steps
num_parameters = 3  # colour of cube_a, colour of cube_b, which of the two is named
CUBES = objects = play_objects = ("cube_a", "cube_b")
target = "plate"
place_tolerance = 0.008  # m, how well the expert aims before it lowers
PLATE_RADIUS, PLATE_HEIGHT = 0.040, 0.006  # m
COLOURS = ("red", "green", "blue")
AREA = np.array([[0.145, 0.225], [-0.095, 0.095]])  # m, where objects start
RELEASE_HEIGHT = 0.055  # m, the hand has withdrawn


def bodies() -> str:
    return "".join(scene.free_cube(cube) for cube in CUBES) + scene.sliding_disc("plate", PLATE_RADIUS, PLATE_HEIGHT, (0.93, 0.93, 0.95))


def instruction(state: np.ndarray) -> str:
    colour_a, colour_b, named = state[-num_parameters:]
    return sentence(COLOURS[int(colour_b if named else colour_a)])


def sentence(colour: str) -> str:
    return f"put the {colour} cube on the plate"


def colours(parameters: np.ndarray) -> dict:
    return {cube: scene.COLOURS[COLOURS[int(c)]] for cube, c in zip(CUBES, parameters)}


def _apart(spots: np.ndarray) -> bool:
    """Whether cube_a, cube_b and the plate (3, 2) leave each other and the gripper room."""
    gaps = [np.linalg.norm(spots[i] - spots[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return gaps[0] > 0.062 and min(gaps[1:]) > 0.075


def sample(rng: np.random.Generator, disturbance, split: str) -> np.ndarray:
    """One initial state: joint positions of the whole scene, then the parameters."""
    while True:
        spots = rng.uniform(AREA[:, 0], AREA[:, 1], (3, 2))  # cube_a, cube_b, plate
        if _apart(spots):
            break
    if disturbance.object_shift or disturbance.target_shift:
        aside = rng.spawn(1)[0]  # a stream of its own: everything else of the state stays as it is without the disturbance
        reach = np.array([disturbance.object_shift, disturbance.object_shift, disturbance.target_shift])[:, None]
        moved = [np.clip(spots + aside.uniform(-1, 1, (3, 2)) * reach, (0.13, -0.115), (0.235, 0.115)) for _ in range(200)]
        spots = next((candidate for candidate in moved if _apart(candidate)), spots)
    tip = HOME + rng.uniform(-1, 1, 3) * (0.02, 0.03, 0.01)
    cubes = [np.concatenate([spot, [scene.CUBE_HALF + 5e-4, 1, 0, 0, 0]]) for spot in spots[:2]]
    colour_a, colour_b = rng.permutation(len(COLOURS))[:2]
    return np.concatenate([arm.inverse_kinematics(tip), [scene.FINGER_TRAVEL] * 2, *cubes, spots[2], [colour_a, colour_b, rng.integers(2)]])


def on_plate(env, cube: str) -> np.ndarray:
    """Which episodes (B,) have `cube` lying on the plate."""
    position, plate = env.position(cube), env.position("plate")
    level = np.abs(position[:, 2] - (PLATE_HEIGHT + scene.CUBE_HALF)) < 0.006
    return level & (np.linalg.norm(position[:, :2] - plate, axis=1) < PLATE_RADIUS)


def named_cube(env) -> np.ndarray:
    """Position (B, 3) of the cube that the instruction names."""
    return np.where(env.parameters[:, 2:3] > 0.5, env.position("cube_b"), env.position("cube_a"))


def success(env) -> np.ndarray:
    """Named cube on the plate, at rest, released, the hand withdrawn: bool (B,)."""
    named = env.parameters[:, 2] > 0.5
    lies = np.where(named, on_plate(env, "cube_b"), on_plate(env, "cube_a"))
    still = np.where(named, env.speed("cube_b"), env.speed("cube_a")) < 0.02
    return lies & still & (env.opening > 0.6 * scene.FINGER_TRAVEL) & (env.tip[:, 2] > RELEASE_HEIGHT)


def goal(env) -> tuple[np.ndarray, np.ndarray]:
    """(pick, place) positions for the scripted expert, each (B, 3) in metres: grasp point and release point of the finger tips."""
    pick = named_cube(env).copy()
    plate = env.position("plate")
    return pick, np.concatenate([plate, np.full((len(plate), 1), PLATE_HEIGHT + scene.CUBE_HALF + 0.006)], axis=1)


def play_spots(env, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where play lets go of things: anywhere (len(which), 2) in the work area but on the plate."""
    plate = env.position("plate")[which]
    spots = rng.uniform(AREA[:, 0] - 0.01, AREA[:, 1] + 0.01, (64, len(which), 2))
    free = np.linalg.norm(spots - plate, axis=-1) > PLATE_RADIUS + 0.012
    return spots[free.argmax(axis=0), np.arange(len(which))]


def goal_relation(env) -> np.ndarray:
    """Which episodes (B,) have any cube, named or not, on the plate: what play must never show."""
    return on_plate(env, "cube_a") | on_plate(env, "cube_b")


def swap_instruction(states: np.ndarray) -> np.ndarray:
    """The same scenes (B, S) with the other cube named."""
    swapped = states.copy()
    swapped[:, -1] = 1 - swapped[:, -1]
    return swapped
