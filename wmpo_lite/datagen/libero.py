"""Recordings in LIBERO: play with all objects of a suite, for its one world model, and an expert's
demonstrations of single tasks, for their policies.

Play follows the rule of the table-top (`datagen.play`): take something (well, nearly or not at
all), bring it to a random relation with another thing or to a free spot, let go at any height, and
stay, leave or come back; in between push and wander. No task of the suite is singled out, no
instruction is given and nothing is sorted by its outcome.
"""

import os
from contextlib import contextmanager

import numpy as np

from wmpo_lite.envs.libero.expert import ABOVE, AWAY, FULL, GOALS, PickAndPlace, kind

SHARD = 32  # episodes that share a scene
HORIZON = 48  # policy steps of an episode of play
BOUT, PUSH, WANDER = range(3)  # pick and place, as the expert does it, or something else
STAY, LEAVE, RETURN = range(3)  # what the hand does after it let go
HIGH, LOW = 0.19, 0.04  # m above where a thing stood: carried, and let go over another thing
REACH = np.array([[-0.25, 0.2], [-0.3, 0.3]])  # m, the part of the table that the arm gets to


class PlayHand:
    """The hand of the B episodes of the environment's last reset. `act` gives the next actions (B,
    7) in [-1, 1] for its present state.
    """

    def __init__(self, env, rng: np.random.Generator):
        self.rng, batch = rng, len(env.now["tip"])
        self.places = np.array([kind(name) in GOALS for name in env.objects])
        self.things = np.flatnonzero(~self.places)
        self.other, self.how = np.zeros(batch, int), np.zeros(batch, int)
        self.offset, self.spot = np.zeros((batch, 2)), np.zeros((batch, 2))
        self.related, self.after = np.zeros(batch, bool), np.zeros(batch, int)
        self.patience, self.timer = np.zeros(batch, int), np.zeros(batch, int)
        self.leave, self.drift = np.zeros((batch, 3)), np.zeros((batch, 3))
        self.grip = np.full(batch, -1.0)
        self.noise = rng.choice((0.0, 0.15, 0.4), size=batch, p=(0.4, 0.35, 0.25))
        self.pace = rng.choice((1.0, 1.0, 0.7, 0.45), size=batch)
        self.flip = rng.choice((0.0, 0.0, 0.04), size=batch)
        nowhere = np.zeros((batch, 2))
        self.hand = PickAndPlace(env, things=np.zeros(batch, int), spots=nowhere)
        self.hand.carry, self.hand.low = np.zeros(batch), np.zeros(batch)
        self._begin(env, np.arange(batch))

    def _begin(self, env, rows: np.ndarray):
        """A new bout for the episodes `rows`: what to take, and what to do with it."""
        rng, n, total = self.rng, len(rows), len(self.places)
        if not n:
            return
        self.hand.things[rows] = rng.choice(self.things, n)
        # another thing: mostly one that holds things, else any
        holds = np.flatnonzero(self.places) if self.places.any() else np.arange(total)
        other = np.where(rng.random(n) < 0.6, rng.choice(holds, n), rng.integers(total, size=n))
        self.other[rows] = other
        self.related[rows] = (rng.random(n) < 0.75) & (other != self.hand.things[rows])
        radius = np.where(self.places[other], 0.09, 0.04)
        how = rng.choice(3, size=n, p=(0.45, 0.35, 0.2))  # well, nearly (about its rim), badly
        off = np.select(
            [how == 0, how == 1],
            [np.abs(rng.normal(size=n)) * 0.2 * radius, rng.uniform(0.4, 1.6, n) * radius],
            rng.uniform(0.0, 0.2, n),
        )
        turn = rng.uniform(0, 2 * np.pi, n)
        self.offset[rows] = np.stack([off * np.cos(turn), off * np.sin(turn)], axis=1)
        self.spot[rows] = rng.uniform(REACH[:, 0], REACH[:, 1], (n, 2))
        height = rng.uniform(0, HIGH - LOW, n) * (rng.random(n) < 0.5)
        self.hand.low[rows] = np.where(self.related[rows], LOW, 0.01) + height
        self.hand.carry[rows] = rng.choice((HIGH, 0.12), n, p=(0.7, 0.3))
        miss = rng.choice((0.002, 0.012, 0.035), size=(n, 1), p=(0.55, 0.25, 0.2))
        self.hand.pick_offset[rows] = miss * rng.normal(size=(n, 2))
        self.hand.restart(rows)
        self.after[rows] = rng.integers(3, size=n)
        self.leave[rows] = rng.uniform(-1, 1, (n, 3)) * (1, 1, 0.5)
        self.patience[rows], self.timer[rows] = rng.integers(2, 9, size=n), 0
        self.how[rows] = rng.choice((BOUT, PUSH, WANDER), size=n, p=(0.84, 0.1, 0.06))
        self.grip[rows] = rng.choice((-1, 1), size=n)
        self.drift[rows] = 0

    def act(self, env) -> np.ndarray:
        rng, tip, batch = self.rng, env.now["tip"], len(env.now["tip"])
        idle = (self.how != BOUT) | (self.hand.phase == AWAY)
        over = idle & (self.timer >= self.patience + 3 * (self.how != BOUT))
        self._begin(env, np.flatnonzero(over | (rng.random(batch) < 0.01)))
        objects, rows = env.now["objects"], np.arange(batch)
        about = objects[rows, self.other, :2]
        self.hand.spots = np.where(self.related[:, None], about, self.spot) + self.offset
        phase = self.hand.phase.copy()
        action = self.hand.act(env)
        thing = objects[rows, self.hand.things]
        self._afterwards((self.how == BOUT) & (phase == AWAY), tip, thing, action)
        self._push(self.how == PUSH, tip, thing, action)
        self._wander(self.how == WANDER, action)
        # what is not in the hand's script does not move its script on
        self.hand.phase = np.where(self.how == BOUT, self.hand.phase, ABOVE)
        self.timer += (self.how != BOUT) | (phase == AWAY)
        action[:, :3] *= self.pace[:, None]
        shake = (self.noise * (rng.random(batch) < 0.5))[:, None]
        action[:, :6] += shake * rng.normal(size=(batch, 6)) * [1, 1, 1, 0.3, 0.3, 0.3]
        struck = rng.random(batch) < 0.04
        action[struck, :3] += rng.normal(size=(int(struck.sum()), 3))
        action[:, 6] *= np.where(rng.random(batch) < self.flip, -1, 1)
        return np.clip(action, -1, 1)

    def _afterwards(self, rows, tip, thing, action):
        """Having let go: stay, leave, or come back and meddle."""
        stay, leave, back = (rows & (self.after == x) for x in (STAY, LEAVE, RETURN))
        action[stay, :3] = 0
        action[leave, :3] = self.leave[leave]
        n = int(back.sum())
        new = self.rng.random(n) < 0.4
        new |= np.abs(self.drift[back]).sum(axis=1) == 0
        near = thing[back] + self.rng.normal(size=(n, 3)) * 0.03
        near[:, 2] += self.rng.uniform(0, 0.1, n)
        self.drift[back] = np.where(new[:, None], near, self.drift[back])
        action[back, :3] = np.clip((self.drift[back] - tip[back]) / FULL, -1, 1)
        turn = self.rng.random(n) < 0.2
        self.grip[back] = np.where(turn, -self.grip[back], self.grip[back])
        action[back, 6] = self.grip[back]

    def _push(self, rows, tip, thing, action):
        """First down beside the thing, then through it."""
        side = self.leave[rows] * [1, 1, 0]
        side *= 0.09 / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
        down = (self.timer[rows] < 4)[:, None]
        aim = thing[rows] + np.where(down, side, -side) + [0, 0, 0.02]
        action[rows, :3] = np.clip((aim - tip[rows]) / FULL, -1, 1)
        action[rows, 6] = self.grip[rows]

    def _wander(self, rows, action):
        n = int(rows.sum())
        self.drift[rows] = 0.7 * np.clip(self.drift[rows], -2, 2)
        self.drift[rows] += 0.5 * self.rng.normal(size=(n, 3))
        action[rows, :3] = self.drift[rows]
        turn = self.rng.random(n) < 0.1
        self.grip[rows] = np.where(turn, -self.grip[rows], self.grip[rows])
        action[rows, 6] = self.grip[rows]


def play(env, states, rng: np.random.Generator, horizon: int = HORIZON, watch=None) -> dict:
    """`horizon` steps of play from `states`: frames uint8 (B, T + 1, H, W, 3), actions float32 (B,
    T, 7). watch(now), if given, is called with `env.now` at every frame.
    """
    frames, actions = [env.reset(states)], []
    watch = watch or (lambda now: None)
    watch(env.now)
    hand = PlayHand(env, rng)
    for _ in range(horizon):
        # as it is recorded, so that a replay is exact
        action = hand.act(env).astype(np.float32)
        image, _, _ = env.step_chunk(action[:, None])
        frames.append(image[:, 0])
        actions.append(action)
        watch(env.now)
    return {"frames": np.stack(frames, axis=1), "actions": np.stack(actions, axis=1)}


@contextmanager
def _scene(task, size: int):
    """The environment of `task` with a single process, which draws with a single thread: others
    record beside it.
    """
    from wmpo_lite.envs.libero.env import LiberoEnv

    os.environ.setdefault("LP_NUM_THREADS", "0")
    with LiberoEnv(task, size=size, workers=1, stop=False) as env:
        yield env


def record_libero_play(
    suite: str, shard: int, size: int = 64, horizon: int = HORIZON, episodes: int = SHARD
) -> dict:
    """One shard of play in a scene of `suite`, the scenes in turn: the dict of `play`, and `labels`
    for a policy's image tower alone, which are kept in a file of their own (see `labels_of`).
    """
    from wmpo_lite.envs.libero.states import tasks

    scenes, seen = tasks(suite), []
    task = scenes[shard % len(scenes)]
    with _scene(task, size) as env:
        states = env.initial_states("play", np.arange(shard * episodes, (shard + 1) * episodes))
        data = play(env, states, np.random.default_rng([shard, 43]), horizon, seen.append)
        names = np.array(env.objects)
    read = lambda name: np.stack([now[name] for now in seen], axis=1).astype(np.float32)
    return data | {"labels": {n: read(n) for n in ("tip", "objects", "opening")} | {"names": names}}


def record_libero_demonstrations(
    task: str, shard: int, noise: float, burst: float, size: int = 64, episodes: int = SHARD
) -> dict:
    """The expert on one shard of states, those that succeeded: frames, executed and intended
    actions, done, as `expert.demonstrate`; instruction (N,).
    """
    from wmpo_lite.envs.libero.expert import demonstrate
    from wmpo_lite.envs.tasks import get_task

    rows = np.arange(shard * episodes, (shard + 1) * episodes)
    with _scene(get_task(task), size) as env:
        states = env.initial_states("demos", rows)
        data = demonstrate(env, states, np.random.default_rng([shard, 11]), noise, burst)
    keep = data["done"][:, -1]
    found = {name: data[name][keep] for name in ("frames", "executed", "intended", "done")}
    return found | {"instruction": np.array(states.instructions)[keep]}


def stills(shards: list[tuple[dict, dict]], every: int = 4) -> dict:
    """Single frames of play with their labels, as `pretrain_policy.train_vision` takes them.
    shards: (play, labels) of each.

    frames uint8 (N, H, W, 3); points float32 (N, K, 3), meters, of every kind of thing in the suite
    and of the hand, the last; present bool (N, K); opening float32 (N,). Of several things of one
    kind, which look alike, the leftmost comes first.
    """
    numbered = [_numbered(labels["names"]) for _, labels in shards]
    columns = sorted({name for names in numbered for name in names})
    parts = []
    for (shard, labels), names in zip(shards, numbered):
        frames, objects = shard["frames"][:, ::every], labels["objects"][:, ::every]
        count = frames.shape[0] * frames.shape[1]
        objects = objects.reshape(count, -1, 3)
        points = np.zeros((count, len(columns) + 1, 3), np.float32)
        present = np.zeros(points.shape[:2], bool)
        for name in {kind(name) for name in labels["names"]}:
            of = [i for i, other in enumerate(labels["names"]) if kind(other) == name]
            order = objects[:, of, 1].argsort(axis=1)
            to = [columns.index(names[i]) for i in of]
            points[:, to] = np.take_along_axis(objects[:, of], order[..., None], axis=1)
            present[:, to] = True
        points[:, -1], present[:, -1] = labels["tip"][:, ::every].reshape(count, 3), True
        opening = labels["opening"][:, ::every].reshape(count)
        frames = frames.reshape(count, *frames.shape[2:])
        parts.append({"frames": frames, "points": points, "present": present, "opening": opening})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _numbered(names) -> list[str]:
    """Kinds of the things `names`, and where one comes again its number: 'plate', 'bowl', 'bowl
    2'.
    """
    found: list[str] = []
    for name in names:
        many = 1 + sum(other.split(" ")[0] == kind(name) for other in found)
        found.append(kind(name) if many == 1 else f"{kind(name)} {many}")
    return found
