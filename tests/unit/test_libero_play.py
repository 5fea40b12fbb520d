"""Play in LIBERO without LIBERO: a hand among things that obey it, and labels of frames."""

from types import SimpleNamespace

import numpy as np

from wmpo_lite.datagen.libero import PlayHand, stills
from wmpo_lite.envs.libero.expert import kind

OBJECTS = ("basket_1", "milk_1", "butter_1")
STEPS = 60


class Table:
    """Things on a table that a closed hand near them takes along, and a hand that goes where it is
    told; the part of `LiberoEnv` that an expert looks at.
    """

    objects, stride = OBJECTS, 5

    def __init__(self, batch: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        places = rng.uniform((-0.15, -0.2, 0.0), (0.15, 0.2, 0.0), (batch, len(OBJECTS), 3))
        self.held = np.full(batch, -1)
        self.now = {"tip": np.tile([0.0, 0.0, 0.25], (batch, 1)), "objects": places}

    def step(self, action):
        tip, things = self.now["tip"] + 0.1 * action[:, :3], self.now["objects"].copy()
        tip[:, 2] = np.maximum(tip[:, 2], 0.0)
        for b in range(len(tip)):
            away = np.linalg.norm(things[b, 1:] - self.now["tip"][b], axis=-1)
            if action[b, 6] < 0:
                things[b, 1:, 2] = 0
                self.held[b] = -1
            elif self.held[b] < 0 and away.min() < 0.02:
                self.held[b] = 1 + away.argmin()
            if self.held[b] > 0:
                things[b, self.held[b]] = tip[b]
        self.now = {"tip": tip, "objects": things}


def played(batch: int = 64):
    """Actions (B, T, 7) of play and where things were, (B, T + 1, n, 3)."""
    env, rng = Table(batch), np.random.default_rng(1)
    hand, actions, things = PlayHand(env, rng), [], [env.now["objects"]]
    for _ in range(STEPS):
        actions.append(hand.act(env))
        env.step(actions[-1])
        things.append(env.now["objects"])
    return np.stack(actions, axis=1), np.stack(things, axis=1)


def test_play_moves_everything_but_what_stands_and_brings_it_everywhere():
    actions, things = played()
    assert np.abs(actions).max() <= 1 and not np.isnan(actions).any()
    assert {-1.0, 1.0} == set(np.sign(actions[..., 6].ravel()))
    moved = np.linalg.norm(things[:, -1] - things[:, 0], axis=-1)[..., 1:] > 0.05
    assert moved.any(axis=0).all() and 0.3 < moved.any(axis=1).mean() < 1
    basket = things[:, -1, :1, :2]
    near = np.linalg.norm(things[:, -1, 1:, :2] - basket, axis=-1) < 0.1
    began = np.linalg.norm(things[:, 0, 1:, :2] - things[:, 0, :1, :2], axis=-1) < 0.1
    arrived = (near & moved & ~began).any(axis=1).mean()
    assert 0.08 < arrived < 0.6  # on or beside what holds things, and often elsewhere


def test_play_is_drawn_from_its_generator_alone():
    first, again = played(8), played(8)
    assert all((a == b).all() for a, b in zip(first, again))


def test_stills_have_a_column_for_each_kind_of_thing_and_the_hand():
    """Two scenes with a thing in common; of two bowls the leftmost comes first."""

    def shard(names, seed):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (2, 9, 4, 4, 3)).astype(np.uint8)
        labels = {"tip": rng.random((2, 9, 3)), "objects": rng.random((2, 9, len(names), 3))}
        return {"frames": frames}, labels | {"opening": rng.random((2, 9)), "names": names}

    bowls = np.array(["bowl_1", "bowl_2", "plate_1"])
    one, two = shard(bowls, 0), shard(np.array(["plate_1", "milk_1"]), 1)
    found = stills([one, two], every=4)
    assert {len(value) for value in found.values()} == {12}  # 2 scenes, 2 episodes, 3 frames
    assert (found["frames"][:3] == one[0]["frames"][0, ::4]).all()
    # bowl, bowl 2, milk, plate, hand
    assert found["present"][:6].all(axis=0).tolist() == [True, True, False, True, True]
    assert found["present"][6:].all(axis=0).tolist() == [False, False, True, True, True]
    points, objects = found["points"][:6], one[1]["objects"][:, ::4].reshape(6, 3, 3)
    assert (points[:, 0, 1] < points[:, 1, 1]).all()
    assert np.allclose(np.sort(points[:, :2, 1]), np.sort(objects[:, :2, 1]))
    assert np.allclose(points[:, 3], objects[:, 2])
    assert np.allclose(found["points"][6:, 2], two[1]["objects"][:, ::4].reshape(6, 2, 3)[:, 1])
    assert np.allclose(points[:, 4], one[1]["tip"][:, ::4].reshape(6, 3))


def test_the_hand_knows_what_can_be_taken_by_its_kind():
    env = SimpleNamespace(objects=OBJECTS, stride=5, now=Table(3).now)
    hand = PlayHand(env, np.random.default_rng(0))
    assert {kind(OBJECTS[i]) for i in hand.things} == {"milk", "butter"}
