"""What a deployment starts from and is judged by: a policy by its name, initial states for an
instruction, what is known of a real desk, the reward model's mark.
"""

from pathlib import Path

import numpy as np

from wmpo_lite.common.errors import UserError

SEARCH = 1_000  # states that are looked through for an instruction


def load_policy(name: str, task: str, collecting: bool = False):
    """The policy called `name`: a checkpoint folder, a folder that holds one (policy,
    policies/wmpo), a run's folder or its name under runs/, or one that ships: base, grpo, dpo,
    wmpo. By default wmpo, and base for collecting, because the main job starts from that one.
    """
    from wmpo_lite import policies
    from wmpo_lite.recipes.shipped import POLICIES, Shipped

    name = str(name or ("base" if collecting else "wmpo"))
    trained = Path("policies") / "wmpo"
    for folder in (
        Path(name),
        name / trained,
        Path(name) / "policy",
        Path("runs") / name / trained,
    ):
        if (folder / "actions.json").exists():
            return policies.load_policy(folder)
    if name in ("base", *POLICIES):
        return Shipped(task).policy(name)
    raise UserError(
        f"there is no policy at '{name}'; give a checkpoint folder, the name of a run under runs/,"
        f" or one of base, {', '.join(POLICIES)}"
    )


def sentences(task, row) -> tuple[str, str]:
    """What may be said of an initial state: its own instruction, and the one that names the other
    object.
    """
    return task.instruction(row), task.instruction(task.swap_instruction(row[None])[0])


def find_states(task, instruction: str, split: str, first: int, count: int):
    """`count` initial states from number `first` of a split on, in which `instruction` can be
    followed ('' for each state's own): (InitialStates).
    """
    from wmpo_lite.envs.tabletop.env import initial_states
    from wmpo_lite.trajectory import InitialStates

    if not instruction:
        return initial_states(task, split, np.arange(first, first + count))
    found = []
    for index in range(first, first + SEARCH + count):
        state = initial_states(task, split, [index])
        own, other = sentences(task, state.states[0])
        if instruction in (own, other):
            rows = state.states if instruction == own else task.swap_instruction(state.states)
            found.append(InitialStates(rows, None, (instruction,), split, state.indices))
        if len(found) == count:
            return InitialStates.concat(found)
    raise UserError(
        f"the task '{task.name}' never says '{instruction}'; say it like '{own}', or leave"
        " --instruction out"
    )


def desk_state(task, instruction: str, other: str, joints) -> np.ndarray:
    """What is known of the initial state of a real desk, in the layout of the simulator's: the
    arm's joints and the two colors, NaN for where things lie.

    The main job needs no more: it imagines from recorded pictures, and only makes the second
    sentence from the colors.
    """
    from wmpo_lite.envs.tabletop import scene
    from wmpo_lite.envs.tabletop.env import Disturbance
    from wmpo_lite.envs.tabletop.tasks.pair import COLORS

    rng = np.random.default_rng(0)
    state = np.full_like(task.sample(rng, Disturbance(), "demos"), np.nan)
    named = next((color for color in COLORS if task.sentence(color) == instruction), None)
    if named is None or other not in COLORS or other == named:
        raise UserError(
            f"to collect on a real desk give --instruction like '{task.sentence('red')}' and"
            f" --other, the color of the second object ({', '.join(COLORS)}); got '{instruction}'"
            f" and '{other}'"
        )
    state[:7] = np.append(joints[:5], np.full(2, joints[5] * scene.FINGER_TRAVEL))
    state[-3:] = COLORS.index(named), COLORS.index(other), 0
    return state


def mark_by_reward(model, frames: np.ndarray, instruction: str) -> int:
    """The first frame (1..T) of frames uint8 (T + 1, H, W, 3) at which the reward model's window
    reaches its threshold, or 0.
    """
    import torch

    frames = torch.from_numpy(np.ascontiguousarray(frames))[None]
    scores = model.slide(frames, [instruction])[0].cpu().numpy()
    over = np.flatnonzero(scores >= float(model.threshold))
    return int(over[0]) + model.config.clip - 1 if len(over) else 0
