"""Exercises 01 to 04: cloning, the world model, the reward model, imagination.

In here `..._cases(rng)` draws inputs, `..._reference` asks the core, and the other functions are
answers by hand whose options are what students get wrong.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wmpo_lite.course.exercise import Exercise
from wmpo_lite.diffusion import euler_sample
from wmpo_lite.evaluate import agreement, best_threshold, f1_score, wilson_interval
from wmpo_lite.own_context import Episodes
from wmpo_lite.policy import ActionStatistics, TokenPolicy, cloning_loss
from wmpo_lite.rollout import rollout
from wmpo_lite.stdit import STBlock
from wmpo_lite.trajectory import InitialStates


def normal(rng, *shape) -> torch.Tensor:
    """Standard normal numbers, float32."""
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


# -- 01 --------------------------------------------------------------------------------------------


def logit_cases(rng):
    made = []
    for b, k in ((3, 4), (5, 8), (2, 6), (4, 4)):
        keep = rng.integers(1, k, size=b)
        mask = torch.from_numpy((np.arange(k) < keep[:, None]).astype(np.float32))
        tokens = torch.from_numpy(rng.integers(0, 7, size=(b, k, 4)))
        made.append((normal(rng, b, k, 4, 7), tokens, mask))
    return made + [(*made[0][:2], torch.zeros(3, 4))]  # a batch in which nothing counts


def cloning_reference(logits, tokens, mask):
    log_p = torch.log_softmax(logits, -1).gather(-1, tokens[..., None]).squeeze(-1)
    told = SimpleNamespace(tokenize=lambda a: a, log_probs=lambda *_, **__: (log_p, None))
    return cloning_loss(told, None, None, tokens, mask)[0]


def surprise(logits, tokens) -> torch.Tensor:
    """Mean over D of the cross-entropy, (B, K)."""
    return F.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none").mean(-1)


CLONING = Exercise(
    "01.cloning",
    "masked_cloning_loss",
    logit_cases,
    cloning_reference,
    {
        "you averaged over the padded steps, too: steps with mask 0 must not count": (
            lambda z, a, m: surprise(z, a).mean()
        ),
        "you zeroed the padded steps and then divided by all of them; divide by the number of"
        " steps that count": lambda z, a, m: (surprise(z, a) * m).mean(),
        "you summed over the D action dimensions; the kit takes their mean": (
            lambda z, a, m: 4 * (surprise(z, a) * m).sum() / m.sum().clamp(min=1)
        ),
        "the sign is wrong: the loss is the *negative* log-probability": (
            lambda z, a, m: -(surprise(z, a) * m).sum() / m.sum().clamp(min=1)
        ),
        "you averaged inside each episode first; every step that counts has the same weight": (
            lambda z, a, m: ((surprise(z, a) * m).sum(1) / m.sum(1).clamp(min=1)).mean()
        ),
        "where no step counts you divided 0 by 0; the loss is 0 there": (
            lambda z, a, m: (surprise(z, a) * m).sum() / m.sum()
        ),
    },
    withheld=("wmpo_lite.policy.cloning_loss",),
)


def wald(successes, n, z=1.959964):
    p, half = successes / n, z * math.sqrt(successes / n * (1 - successes / n) / n)
    return p - half, p + half


def wilson(successes, n, z=1.959964, shift=True, inner=True):
    p, d = successes / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / d if shift else p
    half = z / d * math.sqrt(p * (1 - p) / n + (z * z / (4 * n * n) if inner else 0))
    return middle - half, middle + half


WILSON = Exercise(
    "01.wilson",
    "wilson",
    lambda rng: (
        [(0, 10), (12, 12)]
        + [(int(rng.integers(0, n + 1)), int(n)) for n in rng.integers(5, 200, size=8)]
    ),
    wilson_interval,
    {
        "this is the naive interval p +- z sqrt(p (1 - p) / n), which has no width at 0 and n"
        " successes; Wilson's is asked for": wald,
        "z is 1.645, which leaves 10 % outside; 95 % needs 1.96": lambda s, n: wilson(
            s, n, 1.644854
        ),
        "your interval is centered on p; Wilson's center is drawn towards 1/2": (
            lambda s, n: wilson(s, n, shift=False)
        ),
        "the term z^2 / (4 n^2) under the root is missing": lambda s, n: wilson(s, n, inner=False),
    },
    withheld=("wmpo_lite.evaluate.wilson_interval",),
    atol=1e-4,
)

# -- 02 --------------------------------------------------------------------------------------------


def euler(predict, x, steps, *, sign=1, end=0.0, ahead=False, divide=True):
    grid = torch.linspace(1, end, steps + 1)
    for now, then in zip(grid[:-1], grid[1:]):
        x0 = predict(x, (then if ahead else now).expand(len(x)))
        x = x + sign * (then - now) / (now if divide else 1) * (x - x0)
    return x


def linear_denoiser(weight, noise, steps):
    """Arguments of the sampler: a stand-in for a network, noise and number of steps."""

    def predict_x0(x_t, t):
        t = t.view(-1, *[1] * (x_t.ndim - 1))
        return torch.tanh(x_t @ weight) * (1 - t / 2)

    return predict_x0, noise, steps


EULER = Exercise(
    "02.euler",
    "euler",
    lambda rng: [(normal(rng, 5, 5), normal(rng, 3, 2, 5), steps) for steps in (1, 2, 4, 9)],
    lambda predict, noise, steps: euler_sample(predict, noise, steps, shift=1.0),
    {
        "you walk away from the data: from t to t' < t the step is (t' - t), which is negative": (
            lambda *a: euler(*a, sign=-1)
        ),
        "your time grid stops before 0; it has steps + 1 times, from 1 to 0": (
            lambda f, x, n: euler(f, x, n, end=1 / (n + 1))
        ),
        "you ask the network at the time where the step ends; the velocity is that of its begin": (
            lambda *a: euler(*a, ahead=True)
        ),
        "the velocity is (x - x0) / t: you forgot to divide by t": (
            lambda *a: euler(*a, divide=False)
        ),
        "you return the network's last forecast instead of integrating": (
            lambda f, x, n: f(euler(f, x, n), torch.zeros(len(x)))
        ),
    },
    prepare=linear_denoiser,
    withheld=("wmpo_lite.diffusion.euler_sample",),
)


class Mlp:
    """The MLP of one of the kit's blocks, called on (B, T, N, W)."""

    def __init__(self, *weights):
        self.block = STBlock(8, 2, temporal=False)
        with torch.no_grad():
            layers = (self.block.mlp_in, self.block.mlp_out)
            for parameter, value in zip((p for m in layers for p in m.parameters()), weights):
                parameter.copy_(value)

    @torch.no_grad()
    def __call__(self, h):
        return self.block.mlp_out(F.gelu(self.block.mlp_in(h), approximate="tanh"))


def adaln_cases(rng):
    made = []
    for t, n in ((3, 5), (2, 6), (4, 4), (1, 3)):
        weights = (normal(rng, 32, 8), normal(rng, 32), normal(rng, 8, 32), normal(rng, 8))
        made.append((3 * normal(rng, 2, t, n, 8) + 1, *normal(rng, 3, 2, t, 8), *weights))
    return made


@torch.no_grad()
def adaln_reference(x, shift, scale, gate, mlp):
    """The kit's whole block with the gate of its attention closed."""
    block, still = mlp.block, torch.zeros(*shift.shape[:2], 3 * shift.shape[2])
    block.modulation = nn.Identity()
    return block(x, torch.cat([still, shift, scale, gate], dim=-1), None, None)


def adaln(x, shift, scale, gate, mlp, *, one=1, norm=True, residual=True, at=2):
    shift, scale, gate = (part.unsqueeze(at) for part in (shift, scale, gate))
    h = F.layer_norm(x, x.shape[-1:]) if norm else x
    out = gate * mlp(h * (one + scale) + shift)
    return x + out if residual else out


ADALN = Exercise(
    "02.adaln",
    "adaln_mlp",
    adaln_cases,
    adaln_reference,
    {
        "the scale multiplies by (1 + scale): a network that says 0 changes nothing": (
            lambda *a: adaln(*a, one=0)
        ),
        "x is not normalized; layer_norm comes before scale and shift": (
            lambda *a: adaln(*a, norm=False)
        ),
        "the residual is missing: the block returns x + gate * mlp(...)": (
            lambda *a: adaln(*a, residual=False)
        ),
        "each *frame* has its own condition: shift (B, T, W) becomes (B, T, 1, W)": (
            lambda *a: adaln(*a, at=1)
        ),
        "the gate multiplies the MLP's output alone, not the sum with x": (
            lambda x, s, c, g, f: g.unsqueeze(2) * (x + adaln(x, s, c, torch.ones_like(g), f) - x)
        ),
    },
    prepare=lambda x, shift, scale, gate, *weights: (x, shift, scale, gate, Mlp(*weights)),
    atol=1e-3,
)


def window_cases(rng):
    made = []
    for newest in (0, 1, 2, 3, 7):
        steps, c, k = int(rng.integers(12, 16)), int(rng.integers(3, 5)), int(rng.integers(1, 4))
        made.append((normal(rng, steps + 1, 2), normal(rng, steps, 3), newest, c, k))
    return made


def window_reference(frames, actions, newest, c, k):
    episode = Episodes(frames[None, ..., None, None], actions[None])
    state, (after, by) = episode.state([0], [newest], c), episode.future([0], [newest], k)
    return state.frames[0, ..., 0, 0], state.actions[0], after[0, ..., 0, 0], by[0]


def window(frames, actions, newest, c, k, *, zero=False, repeat=False, late=0, early=0):
    at = torch.arange(newest - c + 1, newest + 1)
    past = frames[at.clamp(min=0)]
    if zero:
        past = past * (at >= 0)[:, None]
    steps = at[:-1] - late
    led = actions[steps.clamp(min=0)]
    led = led if repeat else led * (steps >= 0)[:, None]
    after = torch.arange(newest, newest + k)
    return past, led, frames[after + 1 - early], actions[after - late * (after > 0)]


WINDOWS = Exercise(
    "02.windows",
    "cut_window",
    window_cases,
    window_reference,
    {
        "frames before the start are the *first frame* repeated, not zeros": (
            lambda *a: window(*a, zero=True)
        ),
        "before the start nothing moved: those actions are zero, not the first action": (
            lambda *a: window(*a, repeat=True)
        ),
        "your next frames begin with the newest frame, which is known already; begin one later": (
            lambda *a: window(*a, early=1)
        ),
        "your actions are one step late: action s leads from frame s to frame s + 1": (
            lambda *a: window(*a, late=1)
        ),
    },
    withheld=("wmpo_lite.own_context.Episodes",),
)


def pairs_reference(frames, actions):
    episodes, (count, steps) = Episodes(frames[..., None, None], actions), actions.shape[:2]
    e, s = torch.arange(count).repeat_interleave(steps), torch.arange(steps).repeat(count)
    after, by = episodes.future(e, s, 1)
    return episodes.at(e, s)[..., 0, 0], by[:, 0], after[:, 0, :, 0, 0]


def flat(*parts):
    return tuple(part.flatten(0, 1) for part in parts)


def across(frames, actions):
    frames = frames.flatten(0, 1)
    return frames[:-1], actions.flatten(0, 1), frames[1:]


PAIRS = Exercise(
    "02.off_by_one",
    "training_pairs",
    lambda rng: [
        (normal(rng, e, t + 1, 2), normal(rng, e, t, 3)) for e, t in ((1, 5), (3, 4), (2, 7))
    ],
    pairs_reference,
    {
        "the action is the one that led *to* the frame; action s leads from frame s to s + 1": (
            lambda f, a: flat(f[:, 1:-1], a[:, :-1], f[:, 2:])
        ),
        "the action is one step too late; action s leads from frame s to s + 1": (
            lambda f, a: flat(f[:, :-2], a[:, 1:], f[:, 1:-1])
        ),
        "the pairs are right, but each episode's last step is missing": (
            lambda f, a: flat(f[:, :-2], a[:, :-1], f[:, 1:-1])
        ),
        "you joined the episodes before pairing, so the last frame of one is paired with the first"
        " of the next": across,
    },
    withheld=("wmpo_lite.own_context.Episodes",),
)

# -- 03 --------------------------------------------------------------------------------------------


def clip_cases(rng):
    made = [(True, 5, 20, 4), (True, 20, 20, 4), (False, 20, 20, 4), (True, 2, 20, 4)]
    for _ in range(6):
        last, success = int(rng.integers(15, 40)), bool(rng.random() < 0.7)
        finish = int(rng.integers(9, last + 1)) if success else last
        made.append((success, finish, last, int(rng.integers(2, 5))))
    return made


def clip_ends(success, finish, last, length, *, gap=0, first=None, open_end=0, failed=True):
    """Frames at which positive and negative clips of `length` frames may end."""
    begin = length - 1 if first is None else first
    positives = [finish] if success and finish >= length - 1 else []
    latest = finish - length + gap if success else (last if failed else last - length)
    return positives, list(range(begin, latest + 1 - open_end))


CLIPS = Exercise(
    "03.clips",
    "clip_ends",
    clip_cases,
    clip_ends,
    {
        "your negatives reach into the terminal clip; those of a success end at least L frames"
        " before it ends": lambda *a: clip_ends(*a, gap=3),
        "your negatives end one frame too late: a clip that ends at finish_step - L is the last": (
            lambda *a: clip_ends(*a, gap=1)
        ),
        "the last legal clip is missing: range(a, b) ends at b - 1": (
            lambda *a: clip_ends(*a, open_end=1)
        ),
        "a clip of L frames cannot end before frame L - 1; a negative index reads the end of the"
        " video in silence": lambda *a: clip_ends(*a, first=0),
        "of a failure every clip is a negative, its last one, too": (
            lambda *a: clip_ends(*a, failed=False)
        ),
    },
    view=lambda output, *_: tuple(tuple(int(end) for end in part) for part in output),
)


def score_cases(rng):
    made = []
    for n, low in ((40, 0.0), (60, 0.9), (50, 0.97), (30, 0.0), (80, 0.6)) * 2:
        labels = np.arange(n) < n // 4
        scores = rng.normal(size=n) + 1.7 * labels
        spread = low + (1 - low) / (1 + np.exp(-scores))
        order = rng.permutation(n)
        made.append((spread[order], labels[order]))
    return made


def pick(scores, labels, value, strict=False):
    """The candidate with the largest value(predictions, labels); candidates are the scores."""
    rule = np.greater if strict else np.greater_equal
    return max(np.unique(scores), key=lambda at: value(rule(scores, at), labels))


def grid_threshold(scores, labels):
    return max(np.arange(0.1, 1, 0.1), key=lambda at: f1_score(scores >= at, labels))


THRESHOLD = Exercise(
    "03.threshold",
    "search_threshold",
    score_cases,
    lambda scores, labels: best_threshold(scores, labels)[0],
    {
        "you search a fixed grid, which misses scores that lie close together; try the scores"
        " themselves": grid_threshold,
        "this threshold has the best accuracy; failures are more frequent, so F1 is asked for": (
            lambda s, y: pick(s, y, lambda p, y: (p == y).mean())
        ),
        "your search uses score > threshold; the rule is score >= threshold, so the same number"
        " means something else": lambda s, y: pick(s, y, f1_score, strict=True),
        "this threshold calls everything a success: you maximized recall": (lambda s, y: np.min(s)),
        "this threshold has the best precision; F1 weighs it against recall": (
            lambda s, y: pick(s, y, lambda p, y: y[p].mean())
        ),
    },
    view=lambda output, scores, labels: f1_score(scores >= float(output), labels),
    withheld=("wmpo_lite.evaluate.best_threshold",),
)


def finish_cases(rng):
    made = [(np.zeros(0), 0.5, 4)]
    for count in (3, 9, 17, 30, 64):
        p = rng.random(count)
        made += [(p, float(np.sort(p)[-2]), int(rng.integers(2, 6))), (p, 1.5, 4)]
    return made


def first_success(p, threshold, length, *, earliest=0, off=-1, last=False, silent=False):
    if not len(p) and not silent:
        raise ValueError("no window to judge")
    hits = [w for w in range(len(p)) if p[w] >= threshold and w + length - 1 >= earliest]
    return hits[-1 if last else 0] + length + off if hits else None


FIRST = Exercise(
    "03.earliest",
    "first_success",
    finish_cases,
    first_success,
    {
        "frames before a fixed number are never judged; in short episodes none is left, and every"
        " reward is 0 in silence": lambda *a: first_success(*a, earliest=20, silent=True),
        "frames before a fixed number are still never judged": (
            lambda *a: first_success(*a, earliest=20)
        ),
        "you return the window's number; its last frame is the finish step: w + L - 1": (
            lambda p, t, n: first_success(p, t, n, off=-n)
        ),
        "that is one frame too late: window w holds the frames w to w + L - 1": (
            lambda *a: first_success(*a, off=0)
        ),
        "the *first* window that reaches the threshold ends the episode, not the last": (
            lambda *a: first_success(*a, last=True)
        ),
        "without any window there is nothing to judge; raise a ValueError, or the reward is 0 in"
        " silence": lambda *a: first_success(*a, silent=True),
    },
)

# -- 04 --------------------------------------------------------------------------------------------


class Corridor:
    """An environment without physics: a number that actions add to, drawn as brightness. An episode
    succeeds once the number reaches 1.
    """

    action_dim, action_names = 2, ("right", "up")

    def _draw(self, total) -> np.ndarray:
        gray = np.clip(128 + 40 * total, 0, 255).astype(np.uint8)
        return gray[..., None, None, None].repeat(3, -1).repeat(2, -2).repeat(2, -3)

    def reset(self, states: InitialStates) -> np.ndarray:
        self.total, self.done = states.states[:, 0].copy(), np.zeros(len(states), dtype=bool)
        self.instructions = list(states.instructions)
        return self._draw(self.total)

    def step_chunk(self, actions, every_frame: bool = True):
        totals = self.total[:, None] + np.cumsum(np.asarray(actions)[..., 0], axis=1) / 2
        done = np.maximum.accumulate(totals >= 1, axis=1) | self.done[:, None]
        self.total, self.done = totals[:, -1], done[:, -1].copy()
        frames = self._draw(totals)
        return (frames if every_frame else frames[:, -1:]), done, {}


class Walker(TokenPolicy):
    """A policy of the kit's kind whose scores depend on the brightness of the frame."""

    def __init__(self, weights: torch.Tensor):
        super().__init__()
        self.config = SimpleNamespace(chunk=4, action_dim=2, bins=5, image=2)
        self.set_range(ActionStatistics(Corridor.action_names, (-1.0,) * 2, (1.0,) * 2), 2)
        self.weights = weights  # (2, K, D, bins)

    def logits(self, frames, instructions, seen=None):
        bright = frames.float().mean(dim=(1, 2, 3)) / 40 - 3.2  # (B,)
        return self.weights[0] + bright[:, None, None, None] * self.weights[1]


def rollout_arguments(weights, start, horizon, temperature, seed):
    texts = ("go right",) * len(start)
    states = InitialStates(start[:, None], None, texts, "rollouts", np.arange(len(start)))
    return Walker(weights), Corridor(), states, horizon, temperature, seed


def rollout_reference(policy, env, states, horizon, temperature, seed):
    made = rollout(policy, env, states, horizon=horizon, temperature=temperature, seed=seed)
    stack = lambda name: np.stack([getattr(trajectory, name) for trajectory in made])
    return stack("frames"), stack("tokens"), stack("success"), stack("finish_step")


def roll(policy, env, states, horizon, temperature, seed, *, stale=0, reseed=0, late=1, whole=0):
    g, chunk = torch.Generator().manual_seed(seed), policy.config.chunk
    current = env.reset(states)
    frames, tokens, done = [current[:, None]], [], []
    for step in range(0, horizon, chunk):
        g = torch.Generator().manual_seed(seed) if reseed else g
        some = chunk if whole else horizon - step
        seen = frames[0][:, 0] if stale else current
        chosen, _, acts = policy.act(torch.from_numpy(seen), env.instructions, temperature, g)
        images, ended, _ = env.step_chunk(acts[:, :some].numpy())
        frames.append(images)
        tokens.append(chosen[:, :some].numpy())
        done.append(ended)
        current = images[:, -1]
    done, length = np.concatenate(done, axis=1), sum(part.shape[1] for part in done)
    success = done.any(axis=1)
    finish = np.where(success, done.argmax(axis=1) + late, length)
    return np.concatenate(frames, axis=1), np.concatenate(tokens, axis=1), success, finish


ROLLOUT = Exercise(
    "04.rollout",
    "roll_out",
    lambda rng: [
        (normal(rng, 2, 4, 2, 5), rng.normal(size=6) / 4, horizon, temperature, horizon)
        for horizon, temperature in ((8, 1.0), (12, 1.6), (10, 1.0), (7, 0.7))
    ],
    rollout_reference,
    {
        "your policy always sees the first frame; it has to see the newest one": (
            lambda *a: roll(*a, stale=1)
        ),
        "you begin the generator anew in every chunk, so each chunk draws the same noise": (
            lambda *a: roll(*a, reseed=1)
        ),
        "finish_step is one too small: action s leads to frame s + 1": lambda *a: roll(*a, late=0),
        "the last chunk runs past the horizon; cut it": lambda *a: roll(*a, whole=1),
    },
    prepare=rollout_arguments,
    withheld=("wmpo_lite.rollout.rollout",),
    atol=0,
    points=2,
)


def auc_cases(rng):
    made = []
    for n, levels in ((20, 4), (60, 3), (30, 100), (9, 2)):
        real = rng.permutation(np.arange(n) < n // 3)
        made.append((real, (rng.integers(0, levels, size=n) + real * (levels // 3)) / levels))
    return made


def auc(real, scores, tie):
    good, bad = scores[real][:, None], scores[~real][None]
    return float(((good > bad) + tie * (good == bad)).mean())


AUC = Exercise(
    "04.auc",
    "auc",
    auc_cases,
    lambda real, scores: agreement(real, scores, 0.5).auc,
    {
        "a tie counts one half; you count it as a failure that scored higher": (
            lambda y, s: auc(y, s, 0.0)
        ),
        "a tie counts one half; you count it in full": lambda y, s: auc(y, s, 1.0),
        "you ask how often a *failure* scores above a success": lambda y, s: 1 - auc(y, s, 0.5),
        "this is the accuracy at a threshold of 0.5; the AUC needs no threshold": (
            lambda y, s: float(((s >= 0.5) == y).mean())
        ),
    },
    withheld=("wmpo_lite.evaluate.agreement", "wmpo_lite.evaluate.auc_interval"),
)

EXERCISES = (
    CLONING, WILSON, EULER, ADALN, WINDOWS, PAIRS, CLIPS, THRESHOLD, FIRST, ROLLOUT, AUC,
)  # fmt: skip
