"""Broad play: what a hand does when it is given things and no goal.

One rule for all things: take something (well, nearly or not at all), bring it to a random relation
with another thing (on it, in it, round it, on its rim, beside it) or to a free spot, let go at any
height, and stay, leave or come back. In between it pushes things, wanders and drops what it
carries. No instruction is given and nothing is sorted by its outcome.
"""

import numpy as np

from wmpo_lite.envs.tabletop.env import MAX_STEP

APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, AFTER, PUSH, WANDER = range(10)
TRAVEL = 0.085  # m, height of the finger tips while carrying
HOVER = 0.075  # m, before descending


class PlayHand:
    """The hand of B episodes of one kit. `act` returns the next action (B, 4) in [-1, 1]."""

    def __init__(self, env, rng: np.random.Generator):
        self.env, self.kit, self.rng = env, env.task, rng
        batch = self.batch = len(env.tip)
        self.phase, self.timer = np.zeros(batch, int), np.zeros(batch, int)
        self.thing, self.other = np.zeros(batch, int), np.zeros(batch, int)
        self.pick_offset, self.place_offset = np.zeros((batch, 3)), np.zeros((batch, 3))
        self.spot = np.zeros((batch, 3))  # where to, when no other thing is meant
        self.related = np.zeros(batch, bool)
        self.after, self.patience = np.zeros(batch, int), np.zeros(batch, int)
        self.leave, self.drift = np.zeros((batch, 3)), np.zeros((batch, 3))
        self.grip = np.full(batch, -1.0)
        self.noise = rng.choice((0.0, 0.15, 0.4), size=batch, p=(0.4, 0.35, 0.25))
        self.pace = rng.choice((1.0, 1.0, 0.7, 0.45), size=batch)
        self.flip = rng.choice((0.0, 0.0, 0.04), size=batch)
        self.begin(np.arange(batch))
        held = self.position(self.thing)[:, 2] > 0.04  # a thing that is in the hand from the start
        for n in range(len(self.kit.free)):
            high = env.position(self.kit.things[n].name)[:, 2] > 0.04
            self.thing[high] = n
            held |= high
        self.phase[held] = LIFT

    def position(self, which: np.ndarray) -> np.ndarray:
        """Centers (B, 3) of thing number `which` (B,) of each episode."""
        places = []
        for t in self.kit.things:
            p = self.env.position(t.name)
            places.append(
                p if t.free else np.concatenate([p, np.full((len(p), 1), t.half)], axis=1)
            )
        return np.stack(places, axis=1)[np.arange(len(which)), which]

    def begin(self, rows: np.ndarray):
        """A new bout for the episodes `rows`: what to take, and what to do with it."""
        rng, kit, n = self.rng, self.kit, len(rows)
        free, total = len(kit.free), len(kit.things)
        self.thing[rows] = rng.integers(free, size=n)
        # Another thing: mostly one that stands, else another that can be carried.
        other = np.where(
            rng.random(n) < 0.75, rng.integers(free, total, size=n), rng.integers(total, size=n)
        )
        self.related[rows] = (rng.random(n) < 0.75) & (other != self.thing[rows])
        self.other[rows] = other
        radius = np.array([t.radius for t in kit.things])[other]
        how = rng.choice(3, size=n, p=(0.45, 0.35, 0.2))  # well, nearly (about its rim), badly
        turn = rng.uniform(0, 2 * np.pi, n)
        off = np.select(
            [how == 0, how == 1],
            [np.abs(rng.normal(size=n)) * 0.15 * radius, rng.uniform(0.35, 1.5, n) * radius],
            rng.uniform(0.0, 0.06, n),
        )
        self.place_offset[rows] = np.stack(
            [off * np.cos(turn), off * np.sin(turn), 0 * off], axis=1
        )
        # above where it would lie
        height = rng.uniform(0, TRAVEL - 0.015, n) * (rng.random(n) < 0.5)
        self.place_offset[rows, 2] = height
        self.spot[rows] = rng.uniform((0.135, -0.115, 0), (0.24, 0.115, 0), (n, 3))
        miss = rng.choice((0.001, 0.005, 0.016), size=(n, 1), p=(0.55, 0.25, 0.2))
        self.pick_offset[rows, :2] = miss * rng.normal(size=(n, 2))
        self.after[rows] = rng.integers(3, size=n)
        self.leave[rows] = rng.uniform(-1, 1, (n, 3)) * (1, 1, 0.3)
        self.patience[rows] = rng.integers(2, 11, size=n)
        kind = rng.choice((APPROACH, PUSH, WANDER), size=n, p=(0.84, 0.1, 0.06))
        self.phase[rows], self.timer[rows] = kind, 0
        self.grip[rows] = rng.choice((-1, 0, 1), size=n)

    def act(self) -> np.ndarray:
        rng, env, batch = self.rng, self.env, self.batch
        tip = env.tip
        over = (self.phase == AFTER) & (self.timer >= self.patience)
        over |= ((self.phase == PUSH) | (self.phase == WANDER)) & (self.timer >= self.patience + 3)
        over |= rng.random(batch) < 0.01
        self.begin(np.flatnonzero(over))
        pick = self.position(self.thing) + self.pick_offset
        place = self._place()
        phase = self._advance(tip, pick, place)
        flat = np.array([1, 1, 0])
        high = lambda p, z: p * flat + [0, 0, z]
        low = pick * flat + np.maximum(pick[:, 2:] - 0.002, 0.012) * [0, 0, 1]
        target = np.select(
            [(phase == p)[:, None] for p in range(8)],
            [
                high(pick, HOVER),
                low,
                tip,
                high(tip, TRAVEL),
                high(place, TRAVEL),
                place,
                tip,
                high(tip, TRAVEL),
            ],
            tip,
        )
        move = np.clip((target - tip) / MAX_STEP, -1, 1) * self.pace[:, None]
        grip = np.where((phase >= CLOSE) & (phase <= LOWER), 1.0, -1.0)
        self._afterwards(tip, move, grip)
        self._push_and_wander(tip, move, grip)
        shake = self.noise[:, None] * (rng.random((batch, 1)) < 0.5)
        action = np.concatenate([move + shake * rng.normal(size=(batch, 3)), grip[:, None]], axis=1)
        struck = rng.random(batch) < 0.04
        action[struck, :3] += rng.normal(size=(int(struck.sum()), 3))
        action[:, 3] *= np.where(rng.random(batch) < self.flip, -1, 1)
        self.timer += 1
        return np.clip(action, -1, 1)

    def _place(self) -> np.ndarray:
        """Where the finger tips let go, (B, 3): about the other thing's top, or over
        the free spot.
        """
        half = np.array([t.half for t in self.kit.things])
        top = np.array(
            [
                t.height if t.kind in ("disc", "block", "cube", "box", "cylinder") else 0.003
                for t in self.kit.things
            ]
        )
        on = self.position(self.other)
        level = np.where(self.related, top[self.other], 0.0) + half[self.thing] + 0.004
        base = np.where(self.related[:, None], on, self.spot) * [1, 1, 0]
        # What was taken askew is steered by its own center.
        hangs = np.clip(self.env.tip[:, :2] - self.position(self.thing)[:, :2], -0.02, 0.02)
        carried = (
            (self.phase >= LIFT) & (self.phase <= LOWER) & (self.position(self.thing)[:, 2] > 0.03)
        )
        base[:, :2] += hangs * carried[:, None]
        return base + self.place_offset + level[:, None] * [0, 0, 1]

    def _advance(self, tip, pick, place) -> np.ndarray:
        phase = self.phase
        at = lambda p, tolerance: np.linalg.norm((tip - p)[:, :2], axis=1) < tolerance
        late = self.timer > 7  # noise and the ends of the workspace may keep a hand from arriving
        tolerance = np.where(self.noise > 0.3, 0.008, 0.003)
        step = np.select(
            [phase == p for p in range(APPROACH, OPEN + 1)],
            [
                at(pick, 0.007) | late,
                (tip[:, 2] < np.maximum(pick[:, 2], 0.014) + 0.004) | late,
                self.timer >= 2,
                (tip[:, 2] > TRAVEL - 0.014) | late,
                at(place, tolerance) | late,
                (tip[:, 2] < place[:, 2] + 0.005) | late,
                self.timer >= 1,
            ],
            False,
        )
        wander = step & (phase == CARRY) & (self.rng.random(self.batch) < 0.08)  # never lets go
        self.phase = np.where(wander, WANDER, phase + step)
        self.grip[wander] = 1
        self.timer = np.where(step, 0, self.timer)
        return self.phase

    def _afterwards(self, tip, move, grip):
        """Having let go: stay above, leave, or come back and fiddle about."""
        rng, done = self.rng, self.phase == AFTER
        gone = done & (self.after == 1) & (tip[:, 2] > TRAVEL - 0.025)
        move[gone] = self.leave[gone]
        back = np.flatnonzero(done & (self.after == 2) & (self.timer > 1))
        if len(back):
            things = self.position(self.thing)[back]
            new = rng.random(len(back)) < 0.3
            self.drift[back[new]] = things[new] * [1, 1, 0] + np.concatenate(
                [
                    0.02 * rng.normal(size=(int(new.sum()), 2)),
                    rng.uniform(0.012, TRAVEL, (int(new.sum()), 1)),
                ],
                axis=1,
            )
            far = np.abs(self.drift[back]).sum(1) < 0.05  # none drawn yet
            self.drift[back[far]] = things[far]
            move[back] = np.clip((self.drift[back] - tip[back]) / MAX_STEP, -1, 1)
            self.grip[back] = np.where(
                rng.random(len(back)) < 0.2, -self.grip[back], self.grip[back]
            )
            grip[back] = np.where(self.grip[back] == 0, -1, self.grip[back])

    def _push_and_wander(self, tip, move, grip):
        rng = self.rng
        push = self.phase == PUSH
        if push.any():
            to = self.position(self.thing)
            beside = to + 0.05 * self.leave / np.linalg.norm(
                self.leave[:, :2], axis=1, keepdims=True
            )
            stage = self.timer < 5  # first down beside the thing, then through it
            aim = np.where(stage[:, None], beside, 2 * to - beside) * [1, 1, 0] + [0, 0, 0.018]
            aim[:, 2] = np.where(self.timer < 3, 0.06, aim[:, 2])
            move[push] = np.clip((aim - tip) / MAX_STEP, -1, 1)[push] * self.pace[push, None]
            grip[push] = self.grip[push]
        wander = self.phase == WANDER
        if wander.any():
            n = int(wander.sum())
            drift = 0.7 * np.clip(self.drift[wander], -2, 2) + 0.7 * rng.normal(size=(n, 3))
            self.drift[wander] = drift
            turn = (rng.random(n) < 0.1) & (self.timer[wander] > 3)
            self.grip[wander] = np.where(turn, -np.sign(self.grip[wander] + 0.1), self.grip[wander])
            move[wander], grip[wander] = drift, self.grip[wander]


def play(env, states, rng: np.random.Generator, horizon: int) -> dict:
    """`horizon` steps of play from `states`: frames uint8 (B, T + 1, H, W, 3), actions float32 (B,
    T, 4).

    Nothing else is recorded: a world model learns from pictures and actions.
    """
    frames, actions = [env.reset(states)], []
    hand = PlayHand(env, rng)
    for _ in range(horizon):
        action = hand.act()
        image, _, _ = env.step_chunk(action[:, None])
        frames.append(image[:, 0])
        actions.append(action.astype(np.float32))
    return {"frames": np.stack(frames, axis=1), "actions": np.stack(actions, axis=1)}
