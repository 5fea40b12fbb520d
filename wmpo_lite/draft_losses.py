"""Losses of a draft's three parts: functions for `train.fit` that draw batches from labelled recordings."""
import numpy as np
import torch

from wmpo_lite.draft import Draft
from wmpo_lite.mover import Scene


def _pick(labels: Scene, episode, frame) -> Scene:
    return Scene(*(part[episode, frame] for part in labels))


def reading(draft: Draft, latents, labels: Scene, batch: int = 96, noise: float = 0.05):
    """`loss_fn` for `fit`: where things are in single frames. latents (E, T + 1, C, h, w), labels (E, T + 1, ...)."""
    def loss_fn(generator, rng, step):
        episode, frame = rng.integers(latents.shape[0], size=batch), rng.integers(latents.shape[1], size=batch)
        return draft.read_loss(latents[episode, frame].float(), _pick(labels, episode, frame), noise, generator)

    return loss_fn


def moving(draft: Draft, labels: Scene, actions, seen: Scene | None = None, batch: int = 192, length: int = 16, noise: float = 0.001):
    """`loss_fn` for `fit`: where things go, from labels alone. actions (E, T, D). length: control steps rolled out; noise: metres.

    seen: what the reader makes of the same frames. Three in four windows start from that: what hangs in the gripper is read worst, and a mover that
    trusts labels lets go of it.
    """
    def loss_fn(generator, rng, step):
        episode, frame = rng.integers(actions.shape[0], size=batch), rng.integers(actions.shape[1] + 1 - length, size=batch)
        frame[rng.random(batch) < 0.15] = 0  # every imagined episode begins at a first frame
        ahead = episode[:, None], frame[:, None] + np.arange(length)
        before, now = _pick(labels, episode, np.maximum(frame - 1, 0)), _pick(labels, episode, frame)
        if seen is not None:
            read, cut = torch.from_numpy(rng.random(batch) < 0.75), (np.maximum(frame - 1, 0), frame)
            before, now = (s._replace(points=torch.where(read[:, None, None], seen.points[episode, f], s.points),
                                      opening=torch.where(read, seen.opening[episode, f], s.opening)) for s, f in zip((before, now), cut))
        return draft.move_loss(before, now, _pick(labels, ahead[0], ahead[1] + 1), actions[ahead], noise, generator)

    return loss_fn


def following(draft: Draft, parts, batch: int = 96, noise: float = 0.001):
    """`loss_fn` for `fit`: where things go in a whole episode from nothing but its first frame, as imagination has to tell.

    parts: tuples (share of the batch, Scene (E, ...) read from first frames, labels (E, T + 1, ...), actions (E, T, D)), all with the same T.
    """
    def loss_fn(generator, rng, step):
        rows = [(first, labels, actions, rng.integers(len(actions), size=round(share * batch))) for share, first, labels, actions in parts]
        join = lambda scenes: Scene(*(torch.cat(part) for part in zip(*scenes)))  # noqa: E731
        now = join([Scene(*(part[e] for part in first)) for first, _, _, e in rows])
        labels = join([Scene(*(part[e, 1:] for part in labels)) for _, labels, _, e in rows])
        return draft.move_loss(now, now, labels, torch.cat([actions[e] for _, _, actions, e in rows]), noise, generator)

    return loss_fn


def lettings_go(draft: Draft, labels: Scene, near: float = 0.045, opens: float = 0.06) -> np.ndarray:
    """(N, 2), episode and frame: the gripper opens by the next frame, and within `near` metres of it is something that may fall. labels (E, T + 1, ...)."""
    points, opening = labels.points * draft.unit + draft.centre, labels.opening
    n = draft.slots - 2  # neither target nor hand
    held = ((points[:, :, :n] - points[:, :, -1:]).norm(dim=-1) < near) & (labels.present[:, :, :n] > 0.5)
    return (held.any(-1)[:, :-1] & (opening[:, 1:] > opening[:, :-1] + opens)).nonzero().numpy()


def letting_go(draft: Draft, parts, batch: int = 128, length: int = 16, noise: float = 0.0003, share_of_releases: float = 0.6, before: int = 8,
               well: float = 0.0, disguised: bool = False):
    """`loss_fn` for `fit`: where things go in `length` steps from labels; most windows begin up to `before` frames before the gripper opens on something.

    parts: tuples (share of the batch, labels (E, T + 1, ...), actions (E, T, D), which episodes (E,) came well or None). well: of the windows about releases of
    a part that says so, this share is from episodes that came well and the rest from all of them; what succeeds seldom is else told too seldom, since the mover
    gives the likelier answer. Over whole episodes (`following`) small errors of the grasp add up before anything falls, and what the mover learns of a fall is
    the middle of what may have happened. What it sees here it can tell. disguised: show the windows as `disguise` does.
    """
    releases = [lettings_go(draft, labels) for _, labels, _, _ in parts]
    came_well = [known[good.numpy()[known[:, 0]]] if good is not None else known[:0] for known, (_, _, _, good) in zip(releases, parts)]

    def loss_fn(generator, rng, step):
        drawn = []
        for (share, labels, actions, _), known, chosen in zip(parts, releases, came_well):
            count = round(share * batch)
            episode, frame = rng.integers(len(actions), size=count), rng.integers(actions.shape[1] + 1 - length, size=count)
            frame[rng.random(count) < 0.1] = 0
            if len(known):
                there = np.flatnonzero(rng.random(count) < share_of_releases)
                picked = known[rng.integers(len(known), size=len(there))]
                if len(chosen):
                    picked = np.where(rng.random((len(there), 1)) < well, chosen[rng.integers(len(chosen), size=len(there))], picked)
                episode[there], at = picked.T
                frame[there] = np.clip(at - rng.integers(before, size=len(there)), 0, actions.shape[1] - length)
            ahead = episode[:, None], frame[:, None] + np.arange(length)
            drawn.append((_pick(labels, episode, np.maximum(frame - 1, 0)), _pick(labels, episode, frame), _pick(labels, ahead[0], ahead[1] + 1), actions[ahead]))
        *scenes, actions = zip(*drawn)
        last, now, then = (Scene(*(torch.cat(part) for part in zip(*scene))) for scene in scenes)
        actions = torch.cat(actions)
        if disguised:
            (last, now, then), actions = disguise(draft, (last, now, then), actions, rng)
        return draft.move_loss(last, now, then, actions, noise, generator)

    return loss_fn


def disguise(draft: Draft, scenes, actions: torch.Tensor, rng: np.random.Generator):
    """The same physics in other clothes: Scenes (B, ..., S, 3) and actions (B, K, D), half of the rows seen in a mirror, the objects of each in another order.

    The arm, its gripper and all things are alike on both sides of the plane y = 0, where the arm's base is, and no colour weighs more than another; so of every
    episode twelve are known. For the mover alone: in pictures a camera stands at one side and lamps at another.
    """
    batch, n = len(actions), draft.slots - 2
    mirrored = torch.from_numpy(rng.random(batch) < 0.5)
    order = torch.from_numpy(np.concatenate([rng.permuted(np.tile(np.arange(n), (batch, 1)), axis=1), np.tile([n, n + 1], (batch, 1))], axis=1))
    side = torch.tensor([1.0, -1.0, 1.0])
    plane = 2 * draft.centre[1] / draft.unit * torch.tensor([0.0, 1.0, 0.0])
    found = []
    for scene in scenes:
        points, present = scene.points, scene.present
        rows = order.view(batch, *[1] * (points.dim() - 3), -1).expand(points.shape[:-1])
        points = torch.where(mirrored.view(batch, *[1] * (points.dim() - 1)), points * side - plane, points)
        found.append(scene._replace(points=points.gather(-2, rows[..., None].expand(points.shape)), present=present.gather(-1, rows)))
    return found, torch.where(mirrored[:, None, None], actions * torch.tensor([1.0, -1.0] + [1.0] * (actions.shape[-1] - 2)), actions)


def painting(draft: Draft, latents, labels: Scene, objects=None, batch: int = 96, reach: int = 8, emphasis: float = 3.0, weight: float = 12.0,
             noise: float = 0.05, own: float = 0.4, read: float = 0.0, first: int = 0, begin: float = 0.0,
             perception=None, perceived: float = 5.0):
    """`loss_fn` for `fit`: how frames look, up to `reach` frames after a known one. objects (E, T + 1, h, w): cover of each latent position.

    begin: share of known frames that are an episode's first. perception: a `perception.LatentPerception`, whose error counts `perceived` times, or None.
    own: share of known frames that are the painter's own work, as all are in imagination but the first. read: weight of reading those frames, for
    training the reader too, which must find its way in them. first: so many episodes at the beginning make up a quarter of the batch.
    """
    def loss_fn(generator, rng, step):
        episode, frame = rng.integers(latents.shape[0], size=batch), rng.integers(latents.shape[1] - 1, size=batch)
        if first:
            episode[: batch // 4] %= first
        if begin:
            frame[rng.random(batch) < begin] = 0
        ahead = np.minimum(reach, latents.shape[1] - 1 - frame)[:, None]
        then = frame[:, None] + 1 + (rng.random((batch, 2)) * ahead).astype(int)
        newest, future = latents[episode, frame].float(), latents[episode[:, None], then].float()
        mine = np.flatnonzero((rng.random(batch) < own) & (frame > 0))
        if len(mine):
            older = np.maximum(frame[mine] - rng.integers(1, reach + 1, size=len(mine)), 0)
            with torch.no_grad():
                newest[mine] = draft.paint(latents[episode[mine], older].float(), _pick(labels, episode[mine][:, None], frame[mine][:, None]))[:, 0]
        painted = draft.paint(newest + noise * torch.randn(newest.shape, generator=generator), _pick(labels, episode[:, None], then))
        error = (painted - future).square()
        importance = 1 + emphasis * (future - newest[:, None]).square().mean(2, keepdim=True).sqrt().clamp(max=1)
        if objects is not None:
            importance = importance + weight * objects[episode[:, None], then].float().unsqueeze(2)
        loss, logs = (error * importance).mean(), {"paint_mse": float(error.detach().mean())}
        if perception is not None:
            unlike = perception.error(painted.flatten(0, 1), future.flatten(0, 1), rng)
            loss, logs = loss + perceived * unlike, logs | {"perception": float(unlike.detach())}
        if read:
            found, more = draft.read_loss(newest, _pick(labels, episode, frame), noise, generator)
            loss, logs = loss + read * found, logs | more
        return loss, logs

    return loss_fn
