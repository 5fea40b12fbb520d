"""Scripted experts for LIBERO: pick-and-place by a state machine that looks at the true state, with a grasp for every kind of object."""
from dataclasses import dataclass

import numpy as np

from wmpo_lite.errors import UserError

ABOVE, DOWN, CLOSE, LIFT, CARRY, LOWER, OPEN, AWAY = range(8)
FULL = 0.10  # metres of error that ask for the full action
HOVER = 0.12  # m over the grasp before the hand goes down


@dataclass(frozen=True)
class Grasp:
    """Where the hand closes, seen from the object's origin: `aside` (x, y) and `height`, metres."""

    aside: tuple[float, float] = (0.0, 0.0)
    height: float = 0.0


GRASPS = {"akita_black_bowl": Grasp((0.0, 0.05), 0.03)}
# Metres by which the object is higher than where it stood: while it is carried there, and when it is let go.
GOALS = {"basket": (0.17, 0.09), "plate": (0.10, 0.03)}


def kind(name: str) -> str:
    """'akita_black_bowl_1' -> 'akita_black_bowl'; a region such as 'basket_1_contain_region' -> 'basket'."""
    words = name.split("_")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return "_".join(words[: numbers[0]] if numbers else words)


class PickAndPlace:
    """Closed-loop expert for the B episodes of the environment's last reset. `act` gives the intended action (B, 7) for its present state.

    Solves goals of the form "on" or "in" with one object. UserError for others.
    """

    def __init__(self, env):
        wanted = [part for part in env.goal if part[0] in ("on", "in")]
        if len(env.goal) != 1 or not wanted or kind(wanted[0][2]) not in GOALS:
            raise UserError(f"the scripted expert has no plan for the goal {env.goal}; it can put one object on a plate or into a basket")
        _, thing, place = wanted[0]
        place = next(name for name in env.objects if place.startswith(name))
        self.thing, self.place = env.objects.index(thing), env.objects.index(place)
        self.grasp, (self.carry, self.low) = GRASPS.get(kind(thing), Grasp()), GOALS[kind(place)]
        self.dwell = max(2, 12 // env.stride)
        batch = len(env.now["tip"])
        self.phase, self.timer = np.full(batch, ABOVE), np.zeros(batch, dtype=int)
        self.spot, self.held = env.now["objects"][:, self.thing].copy(), np.zeros((batch, 3))

    def act(self, env) -> np.ndarray:
        tip, objects = env.now["tip"], env.now["objects"]
        thing, place, phase = objects[:, self.thing], objects[:, self.place], self.phase
        self.spot = np.where((phase <= ABOVE)[:, None], thing, self.spot)
        grip = self.spot + [*self.grasp.aside, self.grasp.height]
        self.held = np.where((phase == LIFT)[:, None], tip - thing, self.held)
        aim = np.concatenate([place[:, :2], self.spot[:, 2:]], axis=1) + self.held
        up = [0, 0, self.carry]
        goals = np.select([(phase == p)[:, None] for p in range(8)], [
            grip + [0, 0, HOVER], grip, grip, self.spot + self.held + up, aim + up, aim + [0, 0, self.low], tip, aim + up])
        error = goals - tip
        reached = np.linalg.norm(error, axis=1) < np.select([phase == ABOVE, phase == DOWN, phase == LIFT], [0.008, 0.01, 0.04], 0.015)
        waited = self.timer >= np.select([phase == CLOSE, phase == OPEN], [self.dwell, 1], 8)
        dwells = (phase == CLOSE) | (phase == OPEN)
        advance = np.where(dwells, waited, reached | (waited & ((phase == DOWN) | (phase == LOWER)))) & (phase < AWAY)
        closed = (phase >= CLOSE) & (phase <= LOWER)
        action = np.concatenate([np.clip(error / FULL, -1, 1), np.zeros((len(tip), 3)), np.where(closed, 1.0, -1.0)[:, None]], axis=1)
        self.phase, self.timer = phase + advance, np.where(advance, 0, self.timer + 1)
        return action


def demonstrate(env, states, rng: np.random.Generator, noise: float = 0.0, burst: float = 1.0) -> dict:
    """Run the expert from `states` to the task's horizon. Gaussian noise (in action units) is added to the motion of what is executed, in each step with
    probability `burst`, never to what is recorded as the expert's intention.

    Returns dict: frames uint8 (B, T + 1, H, W, 3), executed and intended actions float32 (B, T, 7), done bool (B, T), `tip` (B, T + 1, 3) and `objects`
    (B, T + 1, n, 3) in metres.
    """
    frames, executed, intended, done = [env.reset(states)], [], [], []
    expert, seen = PickAndPlace(env), [env.now]
    for _ in range(env.task.horizon):
        wanted = expert.act(env)
        action, struck = wanted.astype(np.float32), rng.random((len(wanted), 1)) < burst  # single precision, as it is recorded: a replay is then exact
        action[:, :3] = np.clip(wanted[:, :3] + noise * struck * rng.normal(size=(len(wanted), 3)), -1, 1)
        image, finished, _ = env.step_chunk(action[:, None])
        frames.append(image[:, 0]), executed.append(action), intended.append(wanted), done.append(finished[:, 0]), seen.append(env.now)
    stack = lambda parts: np.stack(parts, axis=1)  # noqa: E731
    return {"frames": stack(frames), "executed": stack(executed), "intended": stack(intended).astype(np.float32), "done": stack(done),
            **{name: stack([now[name] for now in seen]) for name in ("tip", "objects")}}
