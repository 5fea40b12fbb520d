"""What the policy learns before the kit's method begins: to see (vision tower), to listen
(`ground`), to reach (`reach`), and the task by cloning (`clone`).
"""

from pathlib import Path

import numpy as np

from wmpo_lite.common import parallel

HELD_OUT_SCENES = 1024

# ------------------------------------------------------------------------------------ vision tower


def train_vision(
    scenes: dict,
    tower,
    fit_config,
    *,
    seed: int,
    folder: Path,
    batch: int = 64,
    center=(0.19, 0.0, 0.05),
    scale=(0.04, 0.07, 0.04),
):
    """Pre-train a policy's vision `tower` on random scenes: where things are, which are there,
    which pixels they cover.

    scenes: arrays as `envs.tabletop.scenes.random_scenes` gives them; without masks nothing is
    asked of pixels. center, scale: meters, what places are measured from and in. Returns (records,
    held-out errors).
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from wmpo_lite.common.checkpoint import digest
    from wmpo_lite.train import fit

    torch.manual_seed(seed)
    made_from = {
        "scenes": digest(scenes),
        "batch": batch,
        "center": list(center),
        "scale": list(scale),
    }

    class Probe(nn.Module):
        """The tower with its throw-away heads: one query an object for positions, one linear map a
        patch for masks.
        """

        def __init__(self):
            super().__init__()
            width = tower.config.hidden_size
            self.tower = tower
            self.queries = nn.Parameter(torch.randn(5, width) * 0.02)
            self.read = nn.MultiheadAttention(width, 4, batch_first=True)
            self.place = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 5)
            )  # x y z, presence, opening
            self.masks = nn.Linear(width, 6 * 16)  # six classes on a 4 x 4 grid a patch

        def forward(self, frames):
            tokens = self.tower(
                pixel_values=frames.permute(0, 3, 1, 2).float() / 127.5 - 1
            ).last_hidden_state
            found, _ = self.read(
                self.queries.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False
            )
            return self.place(found), self.masks(tokens).unflatten(-1, (6, 4, 4))

    device = next(tower.parameters()).device
    probe = Probe().to(device)
    total = len(scenes["frames"])
    known = total - min(HELD_OUT_SCENES, total // 5)
    held_out = slice(known, total)
    there = lambda array: torch.from_numpy(array).to(device)
    center, scale = torch.tensor(center, device=device), torch.tensor(scale, device=device)
    grid = (
        scenes["masks"][:, 1::2, 1::2] if "masks" in scenes else None
    )  # (N, 32, 32): every other pixel
    patches = tower.config.image_size // tower.config.patch_size

    def errors(index):
        place, masks = probe(there(scenes["frames"][index]))
        present = there(scenes["present"][index])
        points = (there(scenes["points"][index]) - center) / scale
        distance = (
            F.smooth_l1_loss(place[..., :3], points, reduction="none", beta=0.2).mean(-1) * present
        ).sum() / present.sum()
        exists = F.binary_cross_entropy_with_logits(place[..., 3], present.float())
        opening = F.mse_loss(place[:, 4, 4], there(scenes["opening"][index]))
        found = {
            "centimeters": float(
                (
                    ((place[..., :2] - points[..., :2]) * scale[:2]).norm(dim=-1).detach() * present
                ).sum()
                / present.sum()
                * 100
            )
        }
        loss = 2 * distance + exists + opening
        if grid is None:
            return loss, found
        target = (
            there(grid[index])
            .long()
            .unflatten(1, (patches, 4))
            .unflatten(3, (patches, 4))
            .permute(0, 1, 3, 2, 4)
            .flatten(1, 2)
        )
        mask = F.cross_entropy(masks.transpose(1, 2), target)
        return loss + mask, {**found, "mask": float(mask.detach())}

    def loss_fn(generator, rng, step):
        return errors(np.sort(rng.integers(known, size=batch)))

    records = fit(
        probe, loss_fn, fit_config, seed=seed, name="vision", folder=folder, made_from=made_from
    )
    with torch.no_grad():
        _, held = errors(np.arange(total)[held_out])
    return records, held


def ground(
    policy, scenes: dict, sentence, fit_config, *, seed: int, folder: Path | None, batch: int = 64
):
    """Teach the untrained decoder what the words mean: `sentence('red')` -> where the red object,
    the target and the hand are.

    The grounded captions of a big VLM's pre-training, in miniature, on the random scenes (no
    motion, no goal relation). The head is thrown away.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from wmpo_lite.common.checkpoint import digest
    from wmpo_lite.envs.tabletop.scenes import CLASSES
    from wmpo_lite.train import fit

    torch.manual_seed(seed)
    device = next(policy.parameters()).device
    read = nn.Sequential(nn.LayerNorm(policy.config.width), nn.Linear(policy.config.width, 9))
    read = read.to(device)
    policy.vision.requires_grad_(False)
    with torch.no_grad():
        features = torch.cat(
            [policy.features(part).half() for part in torch.from_numpy(scenes["frames"]).split(256)]
        )
    center = torch.tensor([0.19, 0.0, 0.05], device=device)
    scale = torch.tensor([0.04, 0.07, 0.04], device=device)
    points = (torch.from_numpy(scenes["points"]).to(device) - center) / scale

    def loss_fn(generator, rng, step):
        index = np.sort(rng.integers(len(points), size=batch))
        named = np.array([rng.choice(np.flatnonzero(scenes["present"][i, :3])) for i in index])
        texts = [sentence(CLASSES[k]) for k in named]
        found = read(policy.hidden(features[index].float(), texts).mean(dim=(1, 2))).unflatten(
            1, (3, 3)
        )
        target = torch.stack([points[index, named], points[index, 3], points[index, 4]], dim=1)
        error = F.smooth_l1_loss(found, target, reduction="none", beta=0.2)
        error[:, 1, 2] = 0  # the target stands on the table
        return error.mean(), {
            "centimeters": float(
                ((found - target) * scale).detach()[:, 0, :2].norm(dim=-1).mean() * 100
            )
        }

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
    import torch

    from wmpo_lite.common.checkpoint import digest
    from wmpo_lite.envs.tabletop.env import MAX_STEP
    from wmpo_lite.envs.tabletop.expert import plan_grasp, plan_hover
    from wmpo_lite.envs.tabletop.scenes import CLASSES
    from wmpo_lite.envs.tabletop.tasks import pair
    from wmpo_lite.policy import cloning_loss
    from wmpo_lite.train import fit

    policy.vision.requires_grad_(False)
    with torch.no_grad():
        features = torch.cat(
            [policy.features(part).half() for part in torch.from_numpy(scenes["frames"]).split(256)]
        )
    target, hand = CLASSES.index("target"), CLASSES.index("hand")
    total = len(features) - HELD_OUT_SCENES

    def examples(index, rng):
        named = np.array(
            [rng.choice(np.flatnonzero(present[:target])) for present in scenes["present"][index]]
        )
        over = rng.random(len(index)) < hover
        points = scenes["points"][index]
        tip, goal = points[:, hand], points[np.arange(len(index)), np.where(over, target, named)]
        actions = np.where(
            over[:, None, None],
            plan_hover(tip, goal, policy.config.chunk),
            plan_grasp(tip, goal, policy.config.chunk),
        )
        texts = [
            pair.move_to(task) if above else pair.pick_up(task, CLASSES[k])
            for above, k in zip(over, named)
        ]
        return features[index].float(), texts, actions

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
        seen, texts, actions = examples(
            np.arange(total, len(features)), np.random.default_rng(seed)
        )
        chosen = policy.detokenize(policy.logits(None, texts, seen).argmax(-1)).cpu().numpy()
    off = np.linalg.norm((chosen - actions)[..., :2].sum(axis=1), axis=1) * MAX_STEP * 1000
    return records, {
        "reach_median_mm": float(np.median(off)),
        "reach_p80_mm": float(np.quantile(off, 0.8)),
    }


# ----------------------------------------------------------------------------------- cloned policy


def _short(features):
    """Features in 16 bits, to be kept: half precision, unless they come as bfloat16, whose range
    half precision does not have.
    """
    return features if features.itemsize == 2 else features.half()


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
    later the hand gives it away, and a policy that learns from those unlearns the words.
    tune_vision=False: the vision tower stays as pre-trained and its features are computed once;
    True: everything learns, slower. log_every: steps between records; passes: see `fit`. A chunk's
    steps after a disturbance are masked: the expert's correction of a stroke that the frame does
    not show yet is noise to the policy.
    """
    import torch

    from wmpo_lite.common.checkpoint import digest
    from wmpo_lite.policy import cloning_loss
    from wmpo_lite.train import fit
    from wmpo_lite.trajectory import outcomes

    episodes, steps = demos["intended"].shape[:2]
    chunk = policy.config.chunk
    pad = lambda x: np.concatenate([x, np.repeat(x[:, -1:], chunk, axis=1)], axis=1)
    intended = pad(demos["intended"])
    struck = pad(np.abs(demos["executed"] - demos["intended"]).max(axis=-1) > 1e-6)
    policy.train_vision(tune_vision)
    frames = torch.from_numpy(demos["frames"])
    success, finish = outcomes(demos["done"])
    last = np.where(
        success, np.minimum(finish + 4, steps), steps
    )  # what follows success is standing still
    if not tune_vision:
        with torch.no_grad():
            features = torch.cat(
                [_short(policy.features(part)) for part in frames.flatten(0, 1).split(256)]
            ).unflatten(0, frames.shape[:2])

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
