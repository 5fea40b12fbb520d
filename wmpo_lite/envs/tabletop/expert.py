"""Scripted experts: a pick-and-place state machine that looks at the true state, and play built from the same moves."""
from types import SimpleNamespace

import numpy as np

from wmpo_lite.envs.tabletop.env import MAX_STEP
from wmpo_lite.envs.tabletop.scene import FINGER_TRAVEL

APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, RETREAT = range(8)
HOVER, TRAVEL = 0.075, 0.085  # m, tip heights before descending and while carrying
COLLISION = 0.003  # m by which a lowered object is pushed up in the fingers when it has struck something


class PickAndPlace:
    """Closed-loop expert for B episodes. `act` returns the intended action (B, 4) for the current state.

    pick_offset: (B, 3) metres added to the grasp point (0 for an expert; play uses it to miss now and then); place_offset: to the release point.
    recover: notice a descent that collides, lift, and descend anew without place_offset; `collided` (B,) tells who had to.
    """

    def __init__(self, batch: int, pick_offset=0.0, place_offset=0.0, recover: bool = False):
        self.phase, self.timer = np.zeros(batch, dtype=int), np.zeros(batch, dtype=int)
        self.pick_offset, self.place_offset, self.recover = pick_offset, np.broadcast_to(place_offset, (batch, 3)).copy(), recover
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
        at = lambda target, tolerance: np.linalg.norm(tip[:, :2] - target[:, :2], axis=1) < tolerance  # noqa: E731
        advance = np.select(
            [phase == APPROACH, phase == DESCEND, phase == CLOSE, phase == LIFT, phase == CARRY, phase == LOWER, phase == OPEN],
            [at(pick, 0.006), tip[:, 2] < np.maximum(pick[:, 2], 0.014) + 0.004, self.timer >= 2, tip[:, 2] > TRAVEL - 0.012, at(place, env.task.place_tolerance),
             tip[:, 2] < place[:, 2] + 0.005, self.timer >= 1], False)
        self.phase = phase = phase + advance
        self.timer = np.where(advance, 0, self.timer + 1)
        low_pick, high_pick = pick * [1, 1, 0] + [0, 0, 0.012], pick * [1, 1, 0] + [0, 0, HOVER]
        high_place = place * [1, 1, 0] + [0, 0, TRAVEL]
        target = np.select(
            [(phase == p)[:, None] for p in range(8)],
            [high_pick, low_pick, tip, tip * [1, 1, 0] + [0, 0, TRAVEL], high_place, place, tip, high_place])
        action = np.zeros((len(tip), 4))
        action[:, :3] = np.clip((target - tip) / MAX_STEP, -1, 1)
        closed = (phase >= CLOSE) & (phase <= LOWER)
        action[:, 3] = np.where(closed, 1, -1)
        return action

    def restart(self, which: np.ndarray):
        self.phase[which], self.timer[which] = APPROACH, 0


def plan_grasp(tip: np.ndarray, point: np.ndarray, steps: int) -> np.ndarray:
    """What the expert would do (B, steps, 4) to grasp what lies at `point` (B, 3) and hold it up, from the hand's place `tip` (B, 3); metres."""
    ghost = SimpleNamespace(tip=tip.copy(), task=SimpleNamespace(place_tolerance=0))  # follows to the letter, and never arrives where it would let go
    expert, actions = PickAndPlace(len(tip)), []
    for _ in range(steps):
        actions.append(expert.act(ghost, point, point))
        ghost.tip = ghost.tip + MAX_STEP * actions[-1][:, :3]
    return np.stack(actions, axis=1)


def plan_hover(tip: np.ndarray, point: np.ndarray, steps: int) -> np.ndarray:
    """Straight to the place above `point` at travelling height, with an open gripper: actions (B, steps, 4)."""
    tip, above = tip.copy(), point * [1, 1, 0] + [0, 0, TRAVEL]
    actions = -np.ones((len(tip), steps, 4))
    for k in range(steps):
        actions[:, k, :3] = np.clip((above - tip) / MAX_STEP, -1, 1)
        tip = tip + MAX_STEP * actions[:, k, :3]
    return actions


def labels(env) -> dict:
    """What a scene holds, for auxiliary targets of pre-training: points (B, 5, 3) of red, green, blue, target and hand in metres (zero where absent),
    present (B, 5), opening (B,) in [0, 1]."""
    batch = len(env.tip)
    points, present = np.zeros((batch, 5, 3), np.float32), np.zeros((batch, 5), bool)
    for name, colour in zip(env.task.objects, env.parameters.T):
        points[np.arange(batch), colour.astype(int)] = env.position(name)
        present[np.arange(batch), colour.astype(int)] = True
    points[:, 3, :2], points[:, 4], present[:, 3:] = env.position(env.task.target), env.tip, True
    return {"points": points, "present": present, "opening": (env.opening / FINGER_TRAVEL).astype(np.float32)}


def stack_labels(parts) -> dict:
    """Labels of T + 1 moments -> arrays with time second; what is present does not change."""
    return {"points": np.stack([part["points"] for part in parts], axis=1), "present": parts[0]["present"],
            "opening": np.stack([part["opening"] for part in parts], axis=1)}


def demonstrate(env, states, rng: np.random.Generator, noise: float = 0.0, burst: float = 1.0, horizon: int | None = None, offsets=(0.0, 0.0),
                recover: bool = False, every_frame: bool = True, flip: float = 0.0, leave=None, fiddle=None):
    """Run the task's expert, whose grasp and release points are off by `offsets`, each (B, 3) in metres.

    recover: see `PickAndPlace`; every_frame=False: the first frame is the only one rendered; flip: probability of a step's gripper command to be the other one;
    leave: motion (B, 2) across the table, in action units, of hands that have withdrawn (None: they stay). fiddle: which hands (B,), bool, go on to random places
    about what they let go instead, and close and open there (None: none). Gaussian noise (in action units) is added to what is
    executed, never to what is recorded as the expert's intention; each step of each episode is disturbed with probability `burst`.

    Returns dict: frames uint8 (B, T+1, H, W, 3), executed and intended actions float32 (B, T, 4), done bool (B, T), and `labels` of every frame.
    """
    frames, executed, intended, done = [env.reset(states)], [], [], []
    seen = [labels(env)]
    expert = PickAndPlace(len(states), *offsets, recover=recover)
    spot, grip = np.zeros((len(states), 3)), np.full(len(states), -1.0)
    for _ in range(horizon or env.task.horizon):
        pick, place = env.task.goal(env)
        wanted = expert.act(env, pick, place)
        action = wanted.copy()
        if leave is not None:
            gone = (expert.phase == RETREAT) & (env.tip[:, 2] > TRAVEL - 0.02)
            action[gone, :2] = leave[gone]
        if fiddle is not None:
            at = np.flatnonzero(fiddle & (expert.phase == RETREAT))
            new = at[(rng.random(len(at)) < 0.2) | (expert.timer[at] == 0)]
            spot[new] = pick[new] * [1, 1, 0] + np.concatenate([0.02 * rng.normal(size=(len(new), 2)), rng.uniform(0.012, TRAVEL, (len(new), 1))], axis=1)
            grip[new] = np.where(rng.random(len(new)) < 0.25, 1, -1)
            action[at] = np.concatenate([np.clip((spot[at] - env.tip[at]) / MAX_STEP, -1, 1), grip[at, None]], axis=1)
        struck = rng.random((len(wanted), 1)) < burst
        action[:, :3] = np.clip(action[:, :3] + noise * struck * rng.normal(size=(len(wanted), 3)), -1, 1)
        if flip:
            action[:, 3] *= np.where(rng.random(len(wanted)) < flip, -1, 1)
        image, finished, _ = env.step_chunk(action[:, None], every_frame or None)
        frames.extend(image.swapaxes(0, 1)), executed.append(action), intended.append(wanted), done.append(finished[:, 0])
        seen.append(labels(env))
    stack = lambda parts: np.stack(parts, axis=1)  # noqa: E731
    return {"frames": stack(frames), "executed": stack(executed).astype(np.float32), "intended": stack(intended).astype(np.float32), "done": stack(done),
            **stack_labels(seen)}


def attempt(env, states, rng: np.random.Generator) -> dict:
    """The expert, off by centimetres in a quarter of its grasps and three quarters of its placements: empty-handed releases over the target, and
    objects set down beside it. Where a bad descent collides, two of three placements are off by millimetres instead: what catches on the rim is seldom hit
    otherwise, and it is what a policy's failures look like. Returns the dict of `demonstrate`; `done` tells which came out well."""
    def off(spread, share):
        far = spread * (rng.random((len(states), 1)) < share)
        return np.concatenate([far * rng.normal(size=(len(states), 2)), np.zeros((len(states), 1))], axis=1)

    pick, place = off(0.016, 0.25), off(0.04, 0.75)
    if env.task.collides:
        place *= rng.choice([0.3, 0.3, 1.0], size=(len(states), 1))
    return demonstrate(env, states, rng, noise=0.4, burst=0.15, offsets=(pick, place))


def release(env, states, rng: np.random.Generator, every_frame: bool = False) -> dict:
    """`attempt`, shakier, that lets go from any height up to that of the lift, and three times in four within two centimetres of the target, or where the task has
    a `release_ring`, in it: how things fall and what they catch on. The gripper opens or closes for a step now and then, as a sampled policy's does. A third of the hands stay above what they let go, a
    third move off and a third come back to it: from hands that stay only above what came well, a mover learns that a nut sinks over its peg because a hand waits
    there. every_frame=False: only the first frame is rendered."""
    n = len(states)
    often, ring = rng.random((n, 1)) < 0.75, getattr(env.task, "release_ring", None)
    near = np.where(often & (ring is None), 0.010, 0.04) * rng.normal(size=(n, 2))
    if ring is not None:
        turn, radius = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(*ring, (n, 1))
        near = np.where(often, radius * np.concatenate([np.cos(turn), np.sin(turn)], axis=1), near)
    height = rng.uniform(0, HOVER - 0.014, (n, 1)) * (rng.random((n, 1)) < 0.7)
    what = rng.integers(3, size=n)
    pick = np.concatenate([0.012 * (rng.random((n, 1)) < 0.3) * rng.normal(size=(n, 2)), np.zeros((n, 1))], axis=1)
    return demonstrate(env, states, rng, noise=0.5, burst=0.3, offsets=(pick, np.concatenate([near, height], axis=1)), every_frame=every_frame, flip=0.05,
                       leave=rng.uniform(-1, 1, (n, 2)) * (what == 1)[:, None], fiddle=what == 2)


def play(env, states, rng: np.random.Generator, horizon: int):
    """Scripted play: grasps that hit and miss, pushes, drops and aimless motion, which never leave an object in the task's goal relation.

    Each episode draws its own mixture; a finished pick-and-place starts over with another object and another spot. Returns the dict of
    `demonstrate` without `intended`, plus `clean` bool (B,): False where an object ended up on the target by accident, to be thrown away.
    """
    batch = len(states)
    frames, executed, clean = [env.reset(states)], [], np.ones(batch, dtype=bool)
    seen = [labels(env)]
    expert = PickAndPlace(batch, np.zeros((batch, 3)), np.zeros((batch, 3)))
    objects = env.task.play_objects
    chosen, spot = np.zeros(batch, dtype=int), np.zeros((batch, 3))
    aimless = rng.random(batch) < 0.2
    noise = rng.choice([0.0, 0.15, 0.4], size=batch)
    drift, grip = np.zeros((batch, 3)), np.full(batch, -1.0)

    def draw(which):
        """A new object, grasp offset and spot for the episodes `which`."""
        count = len(which)
        chosen[which] = rng.integers(len(objects), size=count)
        expert.pick_offset[which, :2] = rng.normal(size=(count, 2)) * rng.choice([0.0, 0.005, 0.016], size=(count, 1))
        spot[which] = np.concatenate([env.task.play_spots(env, which, rng), rng.uniform(0.014, 0.07, (count, 1))], axis=1)
        expert.restart(which)

    draw(np.arange(batch))
    for _ in range(horizon):
        draw(np.flatnonzero(((expert.phase == RETREAT) & (expert.timer >= rng.integers(1, 5, batch))) | (rng.random(batch) < 0.01)))
        positions = np.stack([env.position(name) for name in objects], axis=1)  # (B, objects, 3)
        action = expert.act(env, positions[np.arange(batch), chosen], spot)
        drift = 0.7 * drift + 0.7 * rng.normal(size=(batch, 3)) * (0.7, 0.7, 0.6)
        grip = np.where(rng.random(batch) < 0.12, -grip, grip)
        wander = np.concatenate([drift - [0, 0, 0.08], grip[:, None]], axis=1)
        action = np.where(aimless[:, None], wander, action)
        action[:, :3] += noise[:, None] * rng.normal(size=(batch, 3))
        action = np.clip(action, -1, 1)
        image, _, _ = env.step_chunk(action[:, None])
        clean &= ~env.task.goal_relation(env)
        frames.append(image[:, 0]), executed.append(action), seen.append(labels(env))
    return {"frames": np.stack(frames, axis=1), "executed": np.stack(executed, axis=1).astype(np.float32), "clean": clean, **stack_labels(seen)}
