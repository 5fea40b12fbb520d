"""`square`: put the named square nut over the square peg. A descent that is off by more than the play collides."""
import numpy as np

from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import HOME

name = "square"
horizon = 48  # control steps
num_parameters = 3  # colour of nut_a, colour of nut_b, which of the two is named
NUTS = objects = play_objects = ("nut_a", "nut_b")
target = "peg"
place_tolerance = 0.0025  # m, how well the expert aims before it lowers
OUTER, INNER, HALF_HEIGHT = 0.021, 0.0135, 0.008  # m, half sizes of the frame
PEG_HALF, PEG_HEIGHT = 0.009, 0.030  # m: a play of 4.5 mm on each side
COLOURS = ("red", "green", "blue")
AREA = np.array([[0.150, 0.225], [-0.090, 0.090]])  # m, where objects start
RELEASE_HEIGHT = 0.055  # m, the hand has withdrawn


def bodies() -> str:
    return "".join(scene.free_nut(nut, OUTER, INNER, HALF_HEIGHT) for nut in NUTS) + scene.sliding_peg("peg", PEG_HALF, PEG_HEIGHT, (0.93, 0.93, 0.95))


def instruction(state: np.ndarray) -> str:
    colour_a, colour_b, named = state[-num_parameters:]
    return sentence(COLOURS[int(colour_b if named else colour_a)])


def sentence(colour: str) -> str:
    return f"put the {colour} nut over the peg"


def colours(parameters: np.ndarray) -> dict:
    return {f"{nut}{bar}": scene.COLOURS[COLOURS[int(c)]] for nut, c in zip(NUTS, parameters) for bar in ("", "_b", "_c", "_d")}


def _apart(spots: np.ndarray) -> bool:
    """Whether nut_a, nut_b and the peg (3, 2) leave each other and the gripper room."""
    return min(np.linalg.norm(spots[i] - spots[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.075


def sample(rng: np.random.Generator, disturbance, split: str) -> np.ndarray:
    """One initial state: joint positions of the whole scene, then the parameters."""
    while True:
        spots = rng.uniform(AREA[:, 0], AREA[:, 1], (3, 2))  # nut_a, nut_b, peg
        if _apart(spots):
            break
    if disturbance.object_shift or disturbance.target_shift:
        aside = rng.spawn(1)[0]  # a stream of its own: everything else of the state stays as it is without the disturbance
        reach = np.array([disturbance.object_shift, disturbance.object_shift, disturbance.target_shift])[:, None]
        moved = [np.clip(spots + aside.uniform(-1, 1, (3, 2)) * reach, (0.135, -0.11), (0.235, 0.11)) for _ in range(200)]
        spots = next((candidate for candidate in moved if _apart(candidate)), spots)
    tip = HOME + rng.uniform(-1, 1, 3) * (0.02, 0.03, 0.01)
    nuts = [np.concatenate([spot, [HALF_HEIGHT + 5e-4, 1, 0, 0, 0]]) for spot in spots[:2]]
    colour_a, colour_b = rng.permutation(len(COLOURS))[:2]
    return np.concatenate([arm.inverse_kinematics(tip), [scene.FINGER_TRAVEL] * 2, *nuts, spots[2], [colour_a, colour_b, rng.integers(2)]])


def over_peg(env, nut: str) -> np.ndarray:
    """Which episodes (B,) have `nut` down on the table with the peg through it."""
    position, peg = env.position(nut), env.position("peg")
    return (position[:, 2] < HALF_HEIGHT + 0.004) & (np.abs(position[:, :2] - peg).max(axis=1) < INNER - PEG_HALF + 0.003)


def named_nut(env) -> np.ndarray:
    """Position (B, 3) of the nut that the instruction names."""
    return np.where(env.parameters[:, 2:3] > 0.5, env.position("nut_b"), env.position("nut_a"))


def success(env) -> np.ndarray:
    """Named nut over the peg, at rest, released, the hand withdrawn: bool (B,)."""
    named = env.parameters[:, 2] > 0.5
    lies = np.where(named, over_peg(env, "nut_b"), over_peg(env, "nut_a"))
    still = np.where(named, env.speed("nut_b"), env.speed("nut_a")) < 0.02
    return lies & still & (env.opening > 0.6 * scene.FINGER_TRAVEL) & (env.tip[:, 2] > RELEASE_HEIGHT)


def goal(env) -> tuple[np.ndarray, np.ndarray]:
    """(pick, place) positions for the scripted expert, each (B, 3) in metres; a nut that hangs askew is steered by its own centre."""
    pick = named_nut(env).copy()
    held = pick[:, 2:3] > 0.02
    aim = env.position("peg") + np.where(held, env.tip[:, :2] - pick[:, :2], 0)
    return pick, np.concatenate([aim, np.full((len(aim), 1), 0.014)], axis=1)


def play_spots(env, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where play lets go of things: anywhere (len(which), 2) in the work area but over the peg; beside it often enough to collide."""
    peg = env.position("peg")[which]
    spots = rng.uniform(AREA[:, 0] - 0.01, AREA[:, 1] + 0.01, (64, len(which), 2))
    near = rng.random(len(which)) < 0.3
    spots[:, near] = peg[near] + rng.uniform(-0.035, 0.035, (64, int(near.sum()), 2))
    free = np.abs(spots - peg).max(axis=-1) > INNER - PEG_HALF + 0.005
    return spots[free.argmax(axis=0), np.arange(len(which))]


def goal_relation(env) -> np.ndarray:
    """Which episodes (B,) have any nut, named or not, round the peg: what play must never show."""
    peg = env.position("peg")
    near = lambda nut: (np.abs(env.position(nut)[:, :2] - peg).max(axis=1) < INNER) & (env.position(nut)[:, 2] < PEG_HEIGHT)  # noqa: E731
    return near("nut_a") | near("nut_b")


def swap_instruction(states: np.ndarray) -> np.ndarray:
    """The same scenes (B, S) with the other nut named."""
    swapped = states.copy()
    swapped[:, -1] = 1 - swapped[:, -1]
    return swapped
