"""What the policy learns before the kit's method begins: to see (vision tower), to listen
(`ground`), to reach (`reach`), and the task by cloning (`clone`).
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wmpo_lite.common import parallel
from wmpo_lite.common.checkpoint import digest
from wmpo_lite.policy import cloning_loss
from wmpo_lite.train import fit
from wmpo_lite.trajectory import outcomes

HELD_OUT_SCENES = 1024
CENTER, SCALE = (0.19, 0.0, 0.05), (0.04, 0.07, 0.04)  # m: what places are measured from and in

# ------------------------------------------------------------------------------------ vision tower


class Probe(nn.Module):
    """A vision tower with throw-away heads: one query a thing for positions, one linear map a patch
    for masks. things: how many, the hand the last; center, scale (3,): meters that places are
    measured from and in.
    """

    def __init__(self, tower, things: int = 5, center=CENTER, scale=SCALE):
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.center, self.scale = center, scale
        self.queries = nn.Parameter(torch.randn(things, width) * 0.02)
        self.read = nn.MultiheadAttention(width, 4, batch_first=True)
        self.place = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 5)
        )  # x y z, presence, opening
        self.masks = nn.Linear(width, 6 * 16)  # six classes on a 4 x 4 grid a patch
        self.patches = tower.config.image_size // tower.config.patch_size

    def forward(self, frames):
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = self.tower(pixel_values=pixels).last_hidden_state
        queries = self.queries.expand(len(tokens), -1, -1)
        found, _ = self.read(queries, tokens, tokens, need_weights=False)
        return self.place(found), self.masks(tokens).unflatten(-1, (6, 4, 4))

    def errors(self, scenes: dict, index):
        """(loss, what is logged) on the scenes `index`."""
        there = lambda array: torch.from_numpy(array).to(self.queries.device)
        place, masks = self(there(scenes["frames"][index]))
        present = there(scenes["present"][index])
        center, scale = (torch.tensor(x, device=present.device) for x in (self.center, self.scale))
        points = (there(scenes["points"][index]) - center) / scale
        mean = lambda errors: (errors * present).sum() / present.sum()  # over things that are there
        distance = F.smooth_l1_loss(place[..., :3], points, reduction="none", beta=0.2).mean(-1)
        off = ((place[..., :2] - points[..., :2]) * scale[:2]).norm(dim=-1).detach()
        exists = F.binary_cross_entropy_with_logits(place[..., 3], present.float())
        opening = F.mse_loss(place[:, -1, 4], there(scenes["opening"][index]))
        loss, record = (
            2 * mean(distance) + exists + opening,
            {"centimeters": float(mean(off) * 100)},
        )
        if "masks" not in scenes:
            return loss, record
        grid = there(scenes["masks"][:, 1::2, 1::2][index]).long()  # (B, 32, 32): every other pixel
        cells = grid.unflatten(1, (self.patches, 4)).unflatten(3, (self.patches, 4))
        target = cells.permute(0, 1, 3, 2, 4).flatten(1, 2)
        mask = F.cross_entropy(masks.transpose(1, 2), target)
        return loss + mask, {**record, "mask": float(mask.detach())}


def train_vision(scenes: dict, tower, fit_config, *, seed: int, folder: Path, batch: int = 64):
    """Pre-train a policy's vision `tower` on random scenes: where things are, which are there,
    which pixels they cover.

    scenes: arrays as `envs.tabletop.scenes.random_scenes` gives them; without masks nothing is
    asked of pixels, and places are measured in their own spread. Returns (records, held-out
    errors).
    """
    torch.manual_seed(seed)
    center, scale = CENTER, SCALE
    if "masks" not in scenes:
        known = scenes["points"][scenes["present"]]
        center, scale = (tuple(map(float, x)) for x in (known.mean(axis=0), known.std(axis=0)))
    probe = Probe(tower, scenes["points"].shape[1], center, scale)
    probe = probe.to(next(tower.parameters()).device)
    total = len(scenes["frames"])
    known = total - min(HELD_OUT_SCENES, total // 5)

    def loss_fn(generator, rng, step):
        return probe.errors(scenes, np.sort(rng.integers(known, size=batch)))

    made_from = {"scenes": digest(scenes), "batch": batch}
    made_from |= {"center": list(center), "scale": list(scale)}
    records = fit(
        probe, loss_fn, fit_config, seed=seed, name="vision", folder=folder, made_from=made_from
    )
    with torch.no_grad():
        _, held = probe.errors(scenes, np.arange(known, total))
    return records, held


def _features(policy, frames):
    """What the policy's tower makes of frames (N, H, W, 3), kept in 16 bits: half precision, unless
    features come as bfloat16, whose range half precision does not have.
    """
    with torch.no_grad():
        parts = (policy.features(part) for part in torch.as_tensor(frames).split(256))
        return torch.cat([part if part.itemsize == 2 else part.half() for part in parts])


def ground(
    policy, scenes: dict, sentence, fit_config, *, seed: int, folder: Path | None, batch: int = 64
):
    """Teach the untrained decoder what the words mean: `sentence('red')` -> where the red object,
    the target and the hand are.

    The grounded captions of a big VLM's pre-training, in miniature, on the random scenes (no
    motion, no goal relation). The head is thrown away.
    """
    from wmpo_lite.envs.tabletop.scenes import CLASSES

    torch.manual_seed(seed)
    device = next(policy.parameters()).device
    read = nn.Sequential(nn.LayerNorm(policy.config.width), nn.Linear(policy.config.width, 9))
    read = read.to(device)
    policy.vision.requires_grad_(False)
    features = _features(policy, scenes["frames"])
    center, scale = (torch.tensor(x, device=device) for x in (CENTER, SCALE))
    points = (torch.from_numpy(scenes["points"]).to(device) - center) / scale

    def loss_fn(generator, rng, step):
        index = np.sort(rng.integers(len(points), size=batch))
        named = np.array([rng.choice(np.flatnonzero(scenes["present"][i, :3])) for i in index])
        texts = [sentence(CLASSES[k]) for k in named]
        hidden = policy.hidden(features[index].float(), texts).mean(dim=(1, 2))
        found = read(hidden).unflatten(1, (3, 3))
        target = torch.stack([points[index, named], points[index, 3], points[index, 4]], dim=1)
        error = F.smooth_l1_loss(found, target, reduction="none", beta=0.2)
        error[:, 1, 2] = 0  # the target stands on the table
        off = ((found - target) * scale).detach()[:, 0, :2].norm(dim=-1)
        return error.mean(), {"centimeters": float(off.mean() * 100)}

    return fit(
        nn.ModuleList([policy, read]),
        loss_fn,
        fit_config,
        seed=seed,
        name="ground",
        folder=folder,
        made_from={"scenes": digest(scenes), "batch": batch, "sentence": sentence(CLASSES[0])},
    )


def reach(
    policy,
    scenes: dict,
    task,
    fit_config,
    *,
    seed: int,
    folder: Path | None,
    batch: int = 64,
    hover: float = 0.2,
):
    """Teach the decoder to act on words: 'pick up the red cube', 'move to the plate', each as the
    expert would from the hand's place in a still picture.

    The robot data of a big VLA's pre-training, in miniature: other scenes, other sentences, and
    never the task's goal. hover: share of 'move to'. A clone of few demonstrations then knows where
    things are and how to grasp, and has the task itself to learn. Returns (records, errors of a
    chunk's end on held-out scenes).
    """
    from wmpo_lite.envs.tabletop.env import MAX_STEP

    policy.vision.requires_grad_(False)
    features = _features(policy, scenes["frames"])
    total = len(features) - HELD_OUT_SCENES
    examples = lambda index, rng: (
        features[index].float(),
        *_told(scenes, task, index, rng, hover, policy.config.chunk),
    )

    def loss_fn(generator, rng, step):
        seen, texts, actions = examples(np.sort(rng.integers(total, size=batch)), rng)
        return cloning_loss(policy, None, texts, actions, None, seen)

    records = fit(
        policy,
        loss_fn,
        fit_config,
        seed=seed,
        name="reach",
        folder=folder,
        made_from={"scenes": digest(scenes), "task": task.name, "batch": batch, "hover": hover},
    )
    with torch.no_grad():
        held_out = np.arange(total, len(features))
        seen, texts, actions = examples(held_out, np.random.default_rng(seed))
        chosen = policy.detokenize(policy.logits(None, texts, seen).argmax(-1)).cpu().numpy()
    off = np.linalg.norm((chosen - actions)[..., :2].sum(axis=1), axis=1) * MAX_STEP * 1000
    return records, {
        "reach_median_mm": float(np.median(off)),
        "reach_p80_mm": float(np.quantile(off, 0.8)),
    }


def _told(scenes: dict, task, index, rng, hover: float, chunk: int):
    """Sentences about the scenes `index`, drawn, and the chunks (B, chunk, 4) that follow them."""
    from wmpo_lite.envs.tabletop.expert import plan_grasp, plan_hover
    from wmpo_lite.envs.tabletop.scenes import CLASSES
    from wmpo_lite.envs.tabletop.tasks import pair

    target, points = CLASSES.index("target"), scenes["points"][index]
    there = (np.flatnonzero(present[:target]) for present in scenes["present"][index])
    named = np.array([rng.choice(things) for things in there])
    over = rng.random(len(index)) < hover
    tip = points[:, CLASSES.index("hand")]
    goal = points[np.arange(len(index)), np.where(over, target, named)]
    plans = plan_hover(tip, goal, chunk), plan_grasp(tip, goal, chunk)
    texts = [
        pair.move_to(task) if above else pair.pick_up(task, CLASSES[k])
        for above, k in zip(over, named)
    ]
    return texts, np.where(over[:, None, None], *plans)


# ----------------------------------------------------------------------------------- cloned policy


def clone(
    policy,
    demos: dict,
    fit_config,
    *,
    seed: int,
    folder: Path | None,
    batch: int = 64,
    tune_vision: bool = False,
    early: float = 0.3,
    log_every: int = 50,
    passes: int = 1,
):
    """Behavior cloning on chunks from every frame of the demonstrations up to shortly after
    success, or to their end where there is none (the intended actions, never the noise).

    early: share of frames from the first three, where the instruction alone says which way to go;
    later the hand gives it away. tune_vision=False: the vision tower's features are computed once.
    A chunk's steps after a disturbance are masked: the expert's correction of a stroke that the
    frame does not show yet is noise to the policy.
    """
    episodes, steps = demos["intended"].shape[:2]
    chunk = policy.config.chunk
    pad = lambda x: np.concatenate([x, np.repeat(x[:, -1:], chunk, axis=1)], axis=1)
    intended = pad(demos["intended"])
    struck = pad(np.abs(demos["executed"] - demos["intended"]).max(axis=-1) > 1e-6)
    policy.train_vision(tune_vision)
    frames = torch.from_numpy(demos["frames"])
    success, finish = outcomes(demos["done"])
    last = np.where(success, np.minimum(finish + 4, steps), steps)  # then it stands still
    if not tune_vision:
        features = _features(policy, frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def loss_fn(generator, rng, step):
        e = rng.integers(episodes, size=batch)
        s = (rng.random(batch) * np.where(rng.random(batch) < early, 3, last[e])).astype(int)
        window = s[:, None] + np.arange(chunk)
        hit = struck[e[:, None], window]
        blind = np.cumsum(hit, axis=1) - hit > 0  # a stroke happened earlier in this chunk
        mask = torch.from_numpy(((window < steps) & ~blind).astype(np.float32))
        own = parallel.rows(batch)
        count = mask.sum().clamp(min=1).item()
        e, s, window, mask = e[own], s[own], window[own], mask[own]
        seen = policy.features(frames[e, s]) if tune_vision else features[e, s].float()
        texts, actions = list(demos["instruction"][e]), intended[e[:, None], window]
        return cloning_loss(policy, None, texts, actions, mask, seen, count)

    return fit(
        policy,
        loss_fn,
        fit_config,
        seed=seed,
        name="clone",
        folder=folder,
        log_every=log_every,
        made_from={"demonstrations": digest(demos), "batch": batch, "early": early},
        shared=True,
        passes=passes,
    )
