"""Exercises 05 to 07: policy optimization, statistics, an arm.

In here `..._cases(rng)` draws inputs, `..._reference` asks the core, and the other functions are
answers by hand whose options are what students get wrong.
"""

import math

import numpy as np
import torch
from scipy import stats

from wmpo_lite.batch import valid_token_mask
from wmpo_lite.course.exercise import Exercise
from wmpo_lite.course.models import normal
from wmpo_lite.envs.desk import Desk, DeskConfig
from wmpo_lite.evaluate import paired_comparison
from wmpo_lite.grpo import group_advantages, keep_groups, policy_loss
from wmpo_lite.trajectory import InitialStates

# -- 05 --------------------------------------------------------------------------------------------


def reward_cases(rng):
    made = []
    for groups, size in ((4, 8), (3, 4), (6, 16), (2, 5)):
        rewards = (rng.random((groups, size)) < rng.random((groups, 1))).astype(np.float32)
        rewards[0, 0], rewards[0, 1:] = 1, 0  # a rare success
        made.append((torch.from_numpy(rewards),))
    equal = torch.tensor([[1.0] * 6, [0.0] * 6, [0, 1, 0, 1, 1, 1]])
    return made + [(equal,), (torch.full((2, 7), 0.1),)]


def advantages(r, *, unbiased=False, over=1, divide=True, center=True):
    keep = dict(keepdim=True)
    mean = r.mean(over, **keep) if over is not None else r.mean()
    std = r.std(over, unbiased=unbiased, **keep) if over is not None else r.std(unbiased=unbiased)
    out = (r - mean) if center else r
    out = out / std if divide else out
    return torch.where(r.amax(1, **keep) == r.amin(1, **keep), 0.0, out) if over == 1 else out


def careless(rewards):
    std = rewards.std(1, unbiased=False, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)) / std


ADVANTAGE = Exercise(
    "05.advantage",
    "advantages",
    reward_cases,
    group_advantages,
    {
        "you divided by the unbiased standard deviation; the paper's is the population's": (
            lambda r: advantages(r, unbiased=True)
        ),
        "you normalized over the whole batch; each group has its own mean and deviation": (
            lambda r: advantages(r, over=None)
        ),
        "you subtracted the mean and did not divide by the standard deviation": (
            lambda r: advantages(r, divide=False)
        ),
        "you normalized each column; a group is a row": lambda r: advantages(r, over=0),
        "you did not subtract the group's mean": lambda r: advantages(r, center=False),
        "a group of equal rewards made you divide by 0; its advantages are 0": careless,
    },
    withheld=("wmpo_lite.grpo.group_advantages",),
    atol=1e-4,
)

FILTER = Exercise(
    "05.filter",
    "groups_to_keep",
    reward_cases,
    keep_groups,
    {
        "this is inverted: True means that the group is kept": lambda r: ~keep_groups(r),
        "groups of successes only teach nothing either; all rewards equal, all advantages 0": (
            lambda r: r.amax(1) > 0
        ),
        "this is the rule of the paper's code, 0.1 <= mean <= 0.9, and drops a rare success in a"
        " large group; keep every group whose rewards differ": lambda r: keep_groups(r, "range"),
        "you keep groups that failed altogether; all rewards equal, all advantages 0": (
            lambda r: r.amin(1) < 1
        ),
        "True for each group (N_groups,) is expected, not for each trajectory": (
            lambda r: keep_groups(r)[:, None].expand_as(r)
        ),
    },
    withheld=("wmpo_lite.grpo.keep_groups",),
)


def token_mask(finish, chunks, k, d, *, more=0, whole=False):
    steps = torch.arange(chunks * k)
    valid = (steps < finish[:, None] + more).view(len(finish), chunks, k)
    valid = valid.any(-1, keepdim=True).expand_as(valid) if whole else valid
    return valid[..., None].expand(-1, -1, -1, d)


def finish_cases(rng):
    sizes = ((3, 4, 2), (2, 8, 4), (5, 2, 3))
    draw = lambda c, k: torch.from_numpy(rng.integers(1, c * k + 1, size=6))
    return [(draw(c, k), c, k, d) for c, k, d in sizes] + [(torch.tensor([0, 12, 4]), 3, 4, 2)]


MASK = Exercise(
    "05.mask",
    "valid_tokens",
    finish_cases,
    valid_token_mask,
    {
        "one step too many: the actions up to the first successful frame are those with"
        " s < finish_step": lambda *a: token_mask(*a, more=1),
        "one step too few: action finish_step - 1 led to success and counts": (
            lambda *a: token_mask(*a, more=-1)
        ),
        "you keep whole chunks; the mask ends inside a chunk, at finish_step": (
            lambda *a: token_mask(*a, whole=True)
        ),
        "this is inverted: True means that the loss sees the token": lambda *a: ~token_mask(*a),
    },
    withheld=("wmpo_lite.batch.valid_token_mask",),
)


def loss_cases(rng):
    made = []
    for n, chunks, k, d, size in ((4, 2, 3, 2, 0.3), (6, 3, 4, 1, 0.6), (3, 1, 8, 4, 0.1)):
        old, change = -normal(rng, n, chunks, k, d).abs(), size * normal(rng, n, chunks, k, d)
        finish = torch.from_numpy(rng.integers(1, chunks * k + 1, size=n))
        made.append((old + change, old, normal(rng, n), valid_token_mask(finish, chunks, k, d)))
    return made


def with_gradient(function, new, *others):
    """The loss and its gradient with respect to the new log-probabilities."""
    new.requires_grad_()
    loss = function(new, *others)
    return loss, torch.autograd.grad(loss, new)[0]


def clipped(
    new, old, a, mask, *, high=0.28, largest=False, clip_only=False, free=False, over="own"
):
    r = (new - old).masked_fill(~mask, 0.0).exp().flatten(1)
    m, a = mask.flatten(1), a[:, None]
    plain, cut = r * a, r.clamp(0.8, 1 + high) * a
    least = torch.maximum(plain, cut) if largest else torch.minimum(plain, cut)
    least = (cut if clip_only else plain if free else least).masked_fill(over != "pad" and ~m, 0.0)
    if over == "batch":
        return -least.sum() / m.sum()
    return -(least.sum(1) / (m.sum(1) if over == "own" else m.shape[1])).mean()


LOSS = Exercise(
    "05.clipped_loss",
    "clipped_loss",
    loss_cases,
    lambda *a: policy_loss(*a)[0],
    {
        "you take the larger of the two products; the objective is the smaller, before the sign": (
            lambda *a: clipped(*a, largest=True)
        ),
        "the upper clip is 1.2; DAPO and the paper clip at 1 - 0.20 and 1 + 0.28": (
            lambda *a: clipped(*a, high=0.2)
        ),
        "you average over all valid tokens of the batch, so long trajectories weigh more; average"
        " inside each trajectory, then over trajectories": lambda *a: clipped(*a, over="batch"),
        "tokens after finish_step take part; they must count neither above nor below the line": (
            lambda *a: clipped(*a, over="pad")
        ),
        "you divide by all tokens; divide by a trajectory's valid ones": (
            lambda *a: clipped(*a, over="all")
        ),
        "you use the clipped product alone, which also stops a gradient that would mend things;"
        " take the minimum of both": lambda *a: clipped(*a, clip_only=True),
        "nothing is clipped": lambda *a: clipped(*a, free=True),
        "the sign is wrong: an optimizer goes down, so the loss is the negative objective": (
            lambda *a: -clipped(*a)
        ),
        "the loss is cut off from the graph (detach, item or no_grad): no gradient": (
            lambda *a: clipped(*a).detach()
        ),
    },
    call=with_gradient,
    withheld=("wmpo_lite.grpo.policy_loss",),
    atol=1e-5,
    points=2,
)


def shares(new, old, a, mask, *, mean=False, padded=False, one_sided=True):
    """Shares of clipped ratios, per token and per chunk."""
    difference = new - old if padded else (new - old).masked_fill(~mask, 0.0)
    joined = difference.mean((-2, -1)) if mean else difference.sum((-2, -1))
    found = []
    for log_ratio, valid in (
        (difference.flatten(1), mask.flatten(1)),
        (joined, mask.amax((-2, -1))),
    ):
        r, sign = log_ratio.exp(), a[:, None]
        stopped = torch.where(sign > 0, r > 1.28, r < 0.8) if one_sided else (r > 1.28) | (r < 0.8)
        found.append(stopped[torch.ones_like(valid) if padded else valid].float().mean())
    return tuple(found)


def share_reference(new, old, a, mask):
    return tuple(
        policy_loss(new, old, a, mask, ratio=ratio)[1]["clip_fraction"]
        for ratio in ("token", "chunk")
    )


CHUNKS = Exercise(
    "05.per_chunk",
    "clip_fractions",
    loss_cases,
    share_reference,
    {
        "a chunk's ratio is the product of its tokens' ratios, so log-ratios are *summed*; you took"
        " their mean": lambda *a: shares(*a, mean=True),
        "tokens after finish_step take part": lambda *a: shares(*a, padded=True),
        "the clip stops the gradient on one side only: above 1.28 where the advantage is positive,"
        " below 0.8 where it is negative": lambda *a: shares(*a, one_sided=False),
        "the order is (share of tokens, share of chunks)": lambda *a: shares(*a)[::-1],
    },
    withheld=("wmpo_lite.grpo.policy_loss",),
)

# -- 06 --------------------------------------------------------------------------------------------


def outcome_cases(rng):
    made = []
    for base, flip in ((0.3, 0.2), (0.6, 0.3)):
        a = rng.random(2000) < base
        b = np.where(rng.random(2000) < flip, rng.random(2000) < base + 0.15, a)
        made.append((a, b, int(rng.integers(1 << 30))))
    return made


def bootstrap(a, b, seed, *, paired=True, tails=(2.5, 97.5), sign=1, error=False):
    rng, n = np.random.default_rng(seed), len(a)
    rows = rng.integers(n, size=(2000, n))
    others = rows if paired else rng.integers(n, size=(2000, n))
    gains = sign * (b[others].mean(axis=1) - a[rows].mean(axis=1))
    gain = sign * (b.mean() - a.mean())
    low, high = np.percentile(gains, tails)
    return (gain, gain - gains.std(), gain + gains.std()) if error else (gain, low, high)


def bootstrap_reference(a, b, seed):
    found = paired_comparison(a, b, seed=seed)
    return found.gain, found.low, found.high


BOOTSTRAP = Exercise(
    "06.bootstrap",
    "paired_bootstrap",
    outcome_cases,
    bootstrap_reference,
    {
        "you resample the two policies apart, which widens the interval; draw *states*, and take"
        " both policies' outcomes of each": lambda *a: bootstrap(*a, paired=False),
        "these are the 5 and 95 % points, a 90 % interval; 95 % needs 2.5 and 97.5": (
            lambda *a: bootstrap(*a, tails=(5, 95))
        ),
        "the gain is rate(b) - rate(a); you have it the other way round": (
            lambda *a: bootstrap(*a, sign=-1)
        ),
        "this is one standard error to each side, not a 95 % interval": (
            lambda *a: bootstrap(*a, error=True)
        ),
    },
    withheld=("wmpo_lite.evaluate.paired_comparison",),
    atol=2.2e-3,
    limit=20,
)


def states_needed(gain, differ, power=0.8, *, level=0.975, up=math.ceil, paired=True):
    z, beta = stats.norm.ppf(level), stats.norm.ppf(power)
    within = differ - gain**2 if paired else differ
    return up(((z * math.sqrt(differ) + beta * math.sqrt(within)) / gain) ** 2)


def plan_cases(rng):
    made = []
    for power in (0.8, 0.9, 0.7, 0.8, 0.95, 0.8):
        differ = float(rng.uniform(0.3, 0.7))
        made.append((float(rng.uniform(0.12, 0.28)), differ, power))
    return made


SIZE = Exercise(
    "06.sample_size",
    "states_needed",
    plan_cases,
    states_needed,
    {
        "this is a one-sided test (z = 1.645); a gain may turn out to be a loss, so z = 1.96": (
            lambda *a: states_needed(*a, level=0.95)
        ),
        "the power is missing: with z alone such a gain is found in half of all studies": (
            lambda gain, differ, power: states_needed(gain, differ, 0.5)
        ),
        "a number of states is whole and has to suffice: round up": (
            lambda *a: states_needed(*a, up=math.floor)
        ),
        "under the second root stands d - g^2, the variance where there *is* a gain": (
            lambda *a: states_needed(*a, paired=False)
        ),
        "you forgot to square": lambda *a: math.ceil(math.sqrt(states_needed(*a, up=float))),
    },
)

# -- 07 --------------------------------------------------------------------------------------------


class Playback:
    """An environment that plays frames; its tip stands where it is told to."""

    action_dim = 4

    def __init__(self, frames=None, tip=None):
        self.frames, self.tip, self.at = frames, tip, 0

    def reset(self, states):
        self.at = 0
        return self.frames[:, 0]

    def step_chunk(self, actions, every_frame=True):
        self.at += 1
        return self.frames[:, self.at : self.at + 1], np.zeros((len(actions), 1), dtype=bool), {}


def one_state() -> InitialStates:
    return InitialStates(np.zeros((1, 1)), None, ("",), "rollouts", np.arange(1))


def latency_reference(latency, videos):
    shown = []
    for video in videos:
        desk = Desk(Playback(video[None]), DeskConfig(latency=latency))
        first = desk.reset(one_state())
        later, _, _ = desk.step_chunk(np.zeros((1, len(video) - 1, 4)))
        shown.append(np.concatenate([first, later[0]]))
    return np.stack(shown)


def drive(buffer_class, latency, videos):
    """What a buffer shows of some episodes; the camera writes every frame into the same memory.
    (The reference and the known mistakes are functions of the videos.)
    """
    if not isinstance(buffer_class, type):
        return buffer_class(latency, videos)
    buffer, shown, camera = buffer_class(latency), [], videos[0, 0].copy()
    for video in videos:
        for number, frame in enumerate(video):
            camera[:] = frame
            shown.append(np.array((buffer.push if number else buffer.reset)(camera)))
    return np.stack(shown).reshape(videos.shape)


def delayed(latency, videos, *, more=0, fresh=False, carry=False, alias=False):
    if alias:  # every entry of the buffer is the camera's memory, so the newest frame is seen
        return videos
    shown, past = [], []
    for video in videos:
        past = past if carry and past else [video[0]] * (latency + more)
        for number, frame in enumerate(video):
            past.append(frame)
            late = number < latency + more
            shown.append(frame if fresh and late else past[-1 - latency - more])
    return np.stack(shown).reshape(videos.shape)


LATENCY = Exercise(
    "07.latency",
    "LatencyBuffer",
    lambda rng: [
        (latency, rng.integers(0, 256, size=(2, 7, 3, 3, 3), dtype=np.uint8))
        for latency in (0, 1, 2, 4)
    ],
    latency_reference,
    {
        "your picture is one step too old: with latency 0 the newest frame is shown": (
            lambda n, v: delayed(n, v, more=1)
        ),
        "you keep the camera's array itself, which the driver overwrites; keep a copy": (
            lambda n, v: delayed(n, v, alias=True)
        ),
        "`reset` has to forget the last episode's frames": lambda n, v: delayed(n, v, carry=True),
        "until enough frames have come, the *first* one is shown, not the newest": (
            lambda n, v: delayed(n, v, fresh=True)
        ),
    },
    call=drive,
)


def limit_cases(rng):
    low, high = np.array([0.12, -0.12, 0.01]), np.array([0.26, 0.12, 0.13])
    made = []
    for speed in (1.0, 0.6, 0.3, 1.0, 0.8, 0.5):
        action = rng.uniform(-1, 1, size=4)
        action[rng.integers(3)] = rng.choice([-1, 1])
        tip = rng.uniform(low, high)
        near = rng.integers(3)
        tip[near] = rng.choice([low[near], high[near]])
        made.append((action, tip, low, high, speed, 0.03))
    return made


def limit_reference(action, tip, low, high, speed, step):
    desk = Desk(
        Playback(np.zeros((1, 2, 2, 2, 3), np.uint8), tip[None]),
        DeskConfig(speed=speed, low=tuple(low), high=tuple(high)),
        step=step,
    )
    desk.reset(one_state())
    desk.step_chunk(action[None, None])
    return desk.log[0]["executed"][0]


def limited(action, tip, low, high, speed, step, *, cap=True, meters=False, grip=False, box=True):
    out = action.copy()
    ends = slice(None) if grip else slice(3)
    out[ends] = np.clip(out[ends], -speed, speed) if cap else out[ends]
    if box:
        out[:3] = np.clip(tip + step * out[:3], low, high) - (0 if meters else tip)
        out[:3] /= 1 if meters else step
    return out


LIMITER = Exercise(
    "07.workspace",
    "limit",
    limit_cases,
    limit_reference,
    {
        "the speed limit is missing: no command may exceed `speed`": (
            lambda *a: limited(*a, cap=False)
        ),
        "the box is missing: the finger tips may not leave [low, high]": (
            lambda *a: limited(*a, box=False)
        ),
        "you return where the tips go, in meters; return the command, in [-1, 1]": (
            lambda *a: limited(*a, meters=True)
        ),
        "the gripper's number, the last one, is not a motion: leave it as it is": (
            lambda *a: limited(*a, grip=True)
        ),
        "the box is in meters and the command is not: a command of 1 moves the tips by `step`": (
            lambda action, tip, low, high, speed, step: limited(action, tip, low, high, speed, 1.0)
        ),
    },
    atol=1e-6,
)

EXERCISES = (
    ADVANTAGE, FILTER, MASK, LOSS, CHUNKS, BOOTSTRAP, SIZE, LATENCY, LIMITER,
)  # fmt: skip
