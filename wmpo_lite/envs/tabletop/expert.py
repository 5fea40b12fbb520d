"""The scripted expert: a pick-and-place state machine that looks at the true state."""

from types import SimpleNamespace

import numpy as np

from wmpo_lite.envs.tabletop.env import MAX_STEP
from wmpo_lite.envs.tabletop.scene import FINGER_TRAVEL

APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, RETREAT = range(8)
HOVER, TRAVEL = 0.075, 0.085  # m, tip heights before descending and while carrying
# m by which a lowered object is pushed up in the fingers when it has struck something
COLLISION = 0.003


class PickAndPlace:
    """Closed-loop expert for B episodes. `act` returns the intended action (B, 4) for the current
    state.

    pick_offset: (B, 3) meters added to the grasp point (0 for an expert); place_offset: to the
    release point. recover: notice a descent that collides, lift, and descend anew without
    place_offset; `collided` (B,) tells who had to.
    """

    def __init__(self, batch: int, pick_offset=0.0, place_offset=0.0, recover: bool = False):
        self.phase, self.timer = np.zeros(batch, dtype=int), np.zeros(batch, dtype=int)
        self.pick_offset = pick_offset
        self.place_offset = np.broadcast_to(place_offset, (batch, 3)).copy()
        self.recover = recover
        self.held, self.collided = np.zeros(batch), np.zeros(batch, dtype=bool)

    def act(self, env, pick: np.ndarray, place: np.ndarray) -> np.ndarray:
        tip, phase = env.tip, self.phase
        if self.recover:
            above = pick[:, 2] - tip[:, 2]  # of the object over the finger tips
            self.held = np.where(phase == CARRY, above, self.held)
            struck = (phase == LOWER) & (above - self.held > COLLISION)
            phase[struck], self.timer[struck], self.place_offset[struck] = LIFT, 0, 0
            self.collided |= struck
        pick, place = pick + self.pick_offset, place + self.place_offset
        at = lambda target, tolerance: (
            np.linalg.norm(tip[:, :2] - target[:, :2], axis=1) < tolerance
        )
        advance = np.select(
            [phase == p for p in range(APPROACH, OPEN + 1)],
            [
                at(pick, 0.006),
                tip[:, 2] < np.maximum(pick[:, 2], 0.014) + 0.004,
                self.timer >= 2,
                tip[:, 2] > TRAVEL - 0.012,
                at(place, env.task.place_tolerance),
                tip[:, 2] < place[:, 2] + 0.005,
                self.timer >= 1,
            ],
            False,
        )
        self.phase = phase = phase + advance
        self.timer = np.where(advance, 0, self.timer + 1)
        low_pick, high_pick = pick * [1, 1, 0] + [0, 0, 0.012], pick * [1, 1, 0] + [0, 0, HOVER]
        high_place = place * [1, 1, 0] + [0, 0, TRAVEL]
        target = np.select(
            [(phase == p)[:, None] for p in range(8)],
            [
                high_pick,
                low_pick,
                tip,
                tip * [1, 1, 0] + [0, 0, TRAVEL],
                high_place,
                place,
                tip,
                high_place,
            ],
        )
        action = np.zeros((len(tip), 4))
        action[:, :3] = np.clip((target - tip) / MAX_STEP, -1, 1)
        closed = (phase >= CLOSE) & (phase <= LOWER)
        action[:, 3] = np.where(closed, 1, -1)
        return action

    def restart(self, which: np.ndarray):
        self.phase[which], self.timer[which] = APPROACH, 0


def plan_grasp(tip: np.ndarray, point: np.ndarray, steps: int) -> np.ndarray:
    """What the expert would do (B, steps, 4) to grasp what lies at `point` (B, 3) and hold it up,
    from the hand's place `tip` (B, 3); meters.
    """
    # follows to the letter, and never arrives where it would let go
    ghost = SimpleNamespace(tip=tip.copy(), task=SimpleNamespace(place_tolerance=0))
    expert, actions = PickAndPlace(len(tip)), []
    for _ in range(steps):
        actions.append(expert.act(ghost, point, point))
        ghost.tip = ghost.tip + MAX_STEP * actions[-1][:, :3]
    return np.stack(actions, axis=1)


def plan_hover(tip: np.ndarray, point: np.ndarray, steps: int) -> np.ndarray:
    """Straight to the place above `point` at traveling height, with an open gripper: actions (B,
    steps, 4).
    """
    tip, above = tip.copy(), point * [1, 1, 0] + [0, 0, TRAVEL]
    actions = -np.ones((len(tip), steps, 4))
    for k in range(steps):
        actions[:, k, :3] = np.clip((above - tip) / MAX_STEP, -1, 1)
        tip = tip + MAX_STEP * actions[:, k, :3]
    return actions


def labels(env) -> dict:
    """What a scene holds, for auxiliary targets of pre-training: points (B, 5, 3) of red, green,
    blue, target and hand in meters (zero where absent), present (B, 5), opening (B,) in [0, 1].
    """
    batch = len(env.tip)
    points, present = np.zeros((batch, 5, 3), np.float32), np.zeros((batch, 5), bool)
    for name, color in zip(env.task.objects, env.parameters.T):
        points[np.arange(batch), color.astype(int)] = env.position(name)
        present[np.arange(batch), color.astype(int)] = True
    points[:, 3, :2], points[:, 4], present[:, 3:] = env.position(env.task.target), env.tip, True
    return {
        "points": points,
        "present": present,
        "opening": (env.opening / FINGER_TRAVEL).astype(np.float32),
    }


def demonstrate(
    env,
    states,
    rng: np.random.Generator,
    noise: float = 0.0,
    burst: float = 1.0,
    horizon: int | None = None,
    offsets=(0.0, 0.0),
    recover: bool = False,
):
    """Run the task's expert, whose grasp and release points are off by `offsets`, each (B, 3) in
    meters.

    recover: see `PickAndPlace`. Gaussian noise (in action units) is added to what is executed,
    never to what is recorded as the expert's intention; each step of each episode is disturbed with
    probability `burst`.

    Returns dict: frames uint8 (B, T + 1, H, W, 3), executed and intended actions float32 (B, T, 4),
    done bool (B, T).
    """

    def begin():
        expert = PickAndPlace(len(states), *offsets, recover=recover)
        return lambda: expert.act(env, *env.task.goal(env))

    return record(env, states, begin, rng, noise, burst, horizon or env.task.horizon)


def record(env, states, begin, rng, noise, burst, horizon: int, executed=np.float64) -> dict:
    """Episodes of an expert in any environment: the dict of `demonstrate`. begin(), called after
    the reset, returns act(), which gives the actions (B, D) that it wants. executed: the number
    type in which they are carried out.
    """
    frames, actions, intended, done = [env.reset(states)], [], [], []
    act = begin()
    for _ in range(horizon):
        wanted = act()
        action, struck = wanted.astype(executed), rng.random((len(wanted), 1)) < burst
        off = noise * struck * rng.normal(size=(len(wanted), 3))
        action[:, :3] = np.clip(wanted[:, :3] + off, -1, 1)
        image, finished, _ = env.step_chunk(action[:, None])
        frames.append(image[:, 0])
        actions.append(action)
        intended.append(wanted)
        done.append(finished[:, 0])
    stack = lambda parts: np.stack(parts, axis=1)
    return {
        "frames": stack(frames),
        "executed": stack(actions).astype(np.float32),
        "intended": stack(intended).astype(np.float32),
        "done": stack(done),
    }
