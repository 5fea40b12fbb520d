"""The capstone: a world model of a small world, trained within a limit, scored on hidden episodes.

The world: on a board of 16 x 16 pixels a blue hand, moved by the actions, pushes a red puck. The
score is in valid frames (`evaluate.valid_frames`): how long hand and puck are imagined where they
truly are.
"""

import numpy as np

from wmpo_lite.course.exercise import Exercise, Raised, Verdict, wrong
from wmpo_lite.evaluate import valid_frames

SIZE, STEPS, RADIUS = 16, 20, 2.0  # pixels, frames after the first, pixels
TRAINING, HIDDEN = 192, 32  # episodes
SECONDS = 20  # of training, as a student's function is told; the process has LIMIT altogether
LIMIT = 40
BACKGROUND, HAND, PUCK = (np.array(c, float) for c in ((225,) * 3, (40, 60, 220), (220, 50, 40)))


def move(hand, puck, action):
    """The next places (E, 2) of hand and puck, pixels."""
    hand = np.clip(hand + action, RADIUS, SIZE - 1 - RADIUS)
    away = puck - hand
    distance = np.linalg.norm(away, axis=1, keepdims=True)
    touched = hand + away / np.maximum(distance, 1e-6) * 2 * RADIUS
    puck = np.where(distance < 2 * RADIUS, touched, puck)
    return hand, np.clip(puck, RADIUS, SIZE - 1 - RADIUS)


def draw(hand, puck) -> np.ndarray:
    """Pictures uint8 (E, 16, 16, 3), the hand above the puck."""
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=-1)
    image = np.broadcast_to(BACKGROUND, (len(hand), SIZE, SIZE, 3))
    for place, color in ((puck, PUCK), (hand, HAND)):
        distance = np.linalg.norm(grid - place[:, None, None], axis=-1)
        covered = np.clip(RADIUS + 0.5 - distance, 0, 1)[..., None]
        image = (1 - covered) * image + covered * color
    return image.round().astype(np.uint8)


def record(rng, episodes: int):
    """Frames uint8 (E, T + 1, 16, 16, 3) and actions float32 (E, T, 2) in [-1, 1], in pixels, of a
    hand that plays: it goes for the puck, past it, or anywhere.
    """
    hand, puck = (rng.uniform(RADIUS, SIZE - 1 - RADIUS, (episodes, 2)) for _ in range(2))
    hand, puck = move(hand, puck, np.zeros_like(hand))
    frames, actions, goal = [draw(hand, puck)], [], hand
    for step in range(STEPS):
        if step % 5 == 0:
            anywhere = rng.uniform(0, SIZE, (episodes, 2))
            goal = np.where(rng.random((episodes, 1)) < 0.7, puck, anywhere)
        action = np.clip((goal - hand) / 2 + rng.normal(size=hand.shape) / 3, -1, 1)
        hand, puck = move(hand, puck, action.astype(np.float32))
        frames.append(draw(hand, puck))
        actions.append(action)
    return np.stack(frames, axis=1), np.stack(actions, axis=1).astype(np.float32)


def cases(rng) -> list[tuple]:
    """One case: training episodes, then first frames and actions of hidden ones, then their truth,
    which no student sees.
    """
    frames, actions = record(rng, TRAINING)
    truth, hidden = record(rng, HIDDEN)
    return [(frames, actions, truth[:, 0], hidden, truth)]


def length(imagined, truth) -> float:
    """Valid frames, a mean over the episodes. imagined: without the first frame."""
    whole = np.concatenate([truth[:, :1], imagined], axis=1)
    return float(valid_frames(whole, truth, width=RADIUS, visible=3).mean())


def judge(exercise: Exercise, cases: list[tuple], outcomes: list) -> Verdict:
    """The share of the way from copying the first frame to the whole episode."""
    (got,), truth = outcomes, cases[0][-1]
    if isinstance(got, Raised):
        if got.kind == "NotImplementedError":
            return wrong("not attempted", "not written yet: replace the line that raises")
        return wrong("error", f"`{exercise.function}` raised {got.kind}: {got.message}")
    shape = truth[:, 1:].shape
    if not isinstance(got, np.ndarray) or got.dtype != np.uint8 or got.shape != shape:
        kind = f"{getattr(got, 'dtype', type(got).__name__)} {np.shape(got)}"
        return wrong("wrong", f"the imagined frames have to be a uint8 array {shape}; got {kind}")
    valid, copied = length(got, truth), length(np.repeat(truth[:, :1], STEPS, axis=1), truth)
    score = (valid - copied) / (STEPS - copied)
    said = f"{valid:.1f} of {STEPS} frames are valid; copying the first frame gives {copied:.1f}"
    if score <= 0:
        return wrong("wrong", f"no better than copying the first frame: {said}")
    return Verdict("passed", said, round(min(score, 1.0), 4))


CAPSTONE = Exercise(
    "capstone.world_model",
    "train_world_model",
    cases,
    lambda *_: None,
    {},
    given=lambda inputs: inputs[:4],
    call=lambda train, frames, actions, first, hidden: train(frames, actions, SECONDS)(
        first, hidden
    ),
    judge=judge,
    points=10,
    limit=LIMIT,
)
