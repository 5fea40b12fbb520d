"""What tasks with two colored objects and one target share: the instruction names one object by
its color, the other makes the words matter.
"""

import numpy as np

from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import HOME

NUM_PARAMETERS = 3  # color of the first object, color of the second, which of the two is named
COLORS = ("red", "green", "blue")


def named_color(state: np.ndarray) -> str:
    first, second, named = state[-NUM_PARAMETERS:]
    return COLORS[int(second if named else first)]


def pick_up(task, color: str) -> str:
    """What a policy is told before it knows the task; `move_to` is the other sentence."""
    return f"pick up the {color} {task.noun}"


def move_to(task) -> str:
    return f"move to the {task.target}"


def with_another_color(instruction: str, number: int) -> str:
    """The sentence with a color that it does not name (`number` chooses which), or '' where it
    names none: the same pictures do not fulfil it.
    """
    named = next((word for word in instruction.split() if word in COLORS), None)
    others = [color for color in COLORS if color != named]
    return instruction.replace(named, others[number % len(others)]) if named else ""


def sample(rng: np.random.Generator, disturbance, area, limits, height: float, apart) -> np.ndarray:
    """One initial state: joint positions of the whole scene, then the parameters.

    area (2, 2): where objects and target start, in meters; limits: (low, high) corners that a
    shifted start stays in; height: of a resting object's center; apart: of places (3, 2) of both
    objects and the target, whether they leave each other room.
    """
    while True:
        spots = rng.uniform(area[:, 0], area[:, 1], (3, 2))
        if apart(spots):
            break
    if disturbance.object_shift or disturbance.target_shift:
        # a stream of its own: everything else of the state stays as it is without the disturbance
        aside = rng.spawn(1)[0]
        reach = np.array(
            [disturbance.object_shift, disturbance.object_shift, disturbance.target_shift]
        )[:, None]
        moved = [np.clip(spots + aside.uniform(-1, 1, (3, 2)) * reach, *limits) for _ in range(200)]
        spots = next((candidate for candidate in moved if apart(candidate)), spots)
    tip = HOME + rng.uniform(-1, 1, 3) * (0.02, 0.03, 0.01)
    objects = [np.concatenate([spot, [height + 5e-4, 1, 0, 0, 0]]) for spot in spots[:2]]
    first, second = rng.permutation(len(COLORS))[:2]
    return np.concatenate(
        [
            arm.inverse_kinematics(tip),
            [scene.FINGER_TRAVEL] * 2,
            *objects,
            spots[2],
            [first, second, rng.integers(2)],
        ]
    )


def of_named(env, of_first: np.ndarray, of_second: np.ndarray) -> np.ndarray:
    """Row by row what belongs to the object that the instruction names; arrays (B, ...)."""
    second = env.parameters[:, 2] > 0.5
    return np.where(second.reshape(-1, *[1] * (of_first.ndim - 1)), of_second, of_first)


def released(env, objects, height: float) -> np.ndarray:
    """Which episodes (B,) have the named object at rest, the gripper open and the hand above
    `height` meters.
    """
    still = of_named(env, *(env.speed(name) for name in objects)) < 0.02
    return still & (env.opening > 0.6 * scene.FINGER_TRAVEL) & (env.tip[:, 2] > height)


def swap_instruction(states: np.ndarray) -> np.ndarray:
    """The same scenes (B, S) with the other object named."""
    swapped = states.copy()
    swapped[:, -1] = 1 - swapped[:, -1]
    return swapped
