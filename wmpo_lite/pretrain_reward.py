"""What the shipped success classifier is trained on: episodes, and clips of what falls, of what is let go about the target and of imagination."""
from types import SimpleNamespace

import numpy as np
import torch

from wmpo_lite.progress import progress
from wmpo_lite.recordings import load_frames


def reward_data(demos: dict, attempts: dict, play: dict, autoencoder) -> dict:
    """Episodes for the shipped success classifier, each as filmed and as the autoencoder gives it back: demonstrations
    (successes), failed attempts and play.

    Without failed attempts a classifier learns the gesture of letting go, whether there is something to let go or not.
    """
    from wmpo_lite.envs.tabletop.tasks.pair import with_another_colour
    frames = np.concatenate([part["frames"] for part in (demos, attempts, play)])
    failures = len(frames) - len(demos["frames"])
    success = np.concatenate([np.ones(len(demos["frames"]), bool), np.zeros(failures, bool)])
    finish = np.concatenate([demos["done"].argmax(axis=1) + 1, np.full(failures, frames.shape[1] - 1)])
    texts = [str(text) for part in (demos, attempts, play) for text in part["instruction"]]
    other = [with_another_colour(text, i) for i, text in enumerate(texts)]
    twice = lambda x: np.concatenate([x, x])  # noqa: E731
    return {"frames": np.concatenate([frames, autoencoder.recode(frames)]), "success": twice(success), "finish_step": twice(finish), "instruction": texts * 2,
            "other": other * 2}


def still_clips(paths, autoencoder) -> dict:
    """Shards of dropped objects, each clip as filmed and as the autoencoder gives it back."""
    clips = {key: load_frames(paths, key) for key in ("frames", "success", "instruction")}
    return {key: np.concatenate([value, autoencoder.recode(value) if key == "frames" else value]) for key, value in clips.items()}


class Recorded:
    """A policy for `imagined_clips` that does what was recorded, in order: actions float32 (N, T, D), `chunk` of them at a time. It serves one call."""

    def __init__(self, actions: np.ndarray, chunk: int):
        self.actions, self.config, self.done = actions, SimpleNamespace(chunk=chunk), (0, 0)  # episodes finished, steps of those under way

    def act(self, frames, instructions, temperature, generator):
        first, step = self.done
        chunk = self.actions[first: first + len(frames), step: step + self.config.chunk]
        step += self.config.chunk
        self.done = (first, step) if step < self.actions.shape[1] else (first + len(frames), 0)
        return None, None, torch.from_numpy(chunk.copy())


def imagined_clips(autoencoder, world_model, policy, horizon: int, fulfilled, frames: np.ndarray, instructions, *, seed: int, temperature: float = 1.0,
                   meddle: float = 0.0, nearly=None, length: int = 4, batch: int = 128) -> dict:
    """Clips of what `policy` does in imagination from first frames (N, H, W, 3): frames (M, length, H, W, 3), instruction (M,), and success (M,) of the
    scene that the last frame was painted from. Of each chunk they end with the last frame, the third last but that, and so on.

    fulfilled: of points (B, S, 3) in metres, the gripper's opening (B,) and B sentences, which of these scenes are successes, bool (B,). meddle: share of
    the chunks whose gripper is held closed, of those whose gripper is held open and of those whose motion is another episode's: a policy that learns in
    imagination will try all of it, its clone does not. nearly: of the same as `fulfilled`, which scenes are no success by a little; then the clips have
    `nearly` (M,) too, and `reward.reward_loss` shows more of those.

    What a world model is unsure of it paints in between, such as a nut half over its peg. No camera ever sees that, and a classifier of camera pictures
    calls it as it likes; here it learns to.
    """
    from wmpo_lite.envs.imagined import ImaginedEnv
    from wmpo_lite.trajectory import InitialStates
    env, generator = ImaginedEnv(autoencoder, world_model, stop=False, seed=seed, steps=1), torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 13])
    found, chunk = {"frames": [], "instruction": [], "success": []} | ({"nearly": []} if nearly else {}), policy.config.chunk
    for i in progress(range(0, len(frames), batch), desc="imagine clips"):
        texts = [str(text) for text in instructions[i: i + batch]]
        rows = np.arange(len(texts))
        film = env.reset(InitialStates(states=np.zeros((len(texts), 1)), frames=frames[i: i + batch], instructions=tuple(texts), split="demos", indices=rows))[:, None]
        for _ in range(horizon // chunk):
            actions = policy.act(torch.from_numpy(film[:, -1]), texts, temperature, generator)[2]
            if meddle:
                kind = torch.from_numpy(rng.choice(4, p=[1 - 3 * meddle, meddle, meddle, meddle], size=len(texts)))
                actions[kind == 1, :, -1], actions[kind == 2, :, -1] = -1.0, 1.0
                actions[kind == 3, :, :-1] = actions.roll(1, 0)[kind == 3, :, :-1]
            points, opening = (part.numpy() for part in world_model.draft.foresee(env.context, actions.clamp(-1, 1), env.past))
            film = np.concatenate([film[:, -length:], env.step_chunk(actions.numpy())[0]], axis=1)
            for back in range(0, min(chunk, film.shape[1] - length + 1), 3):
                end, k = film.shape[1] - back, chunk - 1 - back
                found["frames"].append(film[:, end - length: end]), found["instruction"].append(np.array(texts))
                found["success"].append(fulfilled(points[:, k], opening[:, k], texts))
                if nearly:
                    found["nearly"].append(nearly(points[:, k], opening[:, k], texts) & ~found["success"][-1])
    return {key: np.concatenate(value) for key, value in found.items()}


def release_clips(task, paths, autoencoder, *, seed: int, length: int = 4, close: int = 5) -> dict:
    """Clips of filmed releases (`recordings.collect`), each as filmed and as the autoencoder gives it back: frames (M, length, H, W, 3), instruction (M,),
    success (M,) and `nearly` (M,), as in `imagined_clips`.

    Of each episode: the moment of success and the two frames after it; up to `close` moments before it, or of a failure, at which the named thing lies let go
    about the target; and any other moment. Demonstrations succeed in the middle of the target; where the line is only what is let go about it shows.
    """
    rng = np.random.default_rng([seed, 17])
    found = {"frames": [], "instruction": [], "success": [], "nearly": []}
    for shard in map(np.load, paths):
        frames, horizon = shard["frames"], shard["frames"].shape[1] - 1
        texts = [str(text) for text in shard["instruction"]]
        finish = np.where(shard["done"][:, -1], shard["done"].argmax(axis=1) + 1, horizon + 1)
        beside = np.stack([let_go_beside(task, shard["points"][:, t], shard["opening"][:, t], texts) for t in range(horizon + 1)], axis=1)
        for e, text in enumerate(texts):
            before = np.arange(length - 1, min(finish[e], horizon + 1))
            near = before[beside[e, before]]
            ends = [(t, True, False) for t in range(finish[e], min(finish[e] + 3, horizon + 1)) if t >= length - 1]
            ends += [(t, False, True) for t in rng.choice(near, min(close, len(near)), replace=False)]
            ends += [(t, False, False) for t in rng.choice(before, 1 if len(before) else 0)]
            for t, good, nearly in ends:
                found["frames"].append(frames[e, t - length + 1: t + 1]), found["instruction"].append(text), found["success"].append(good), found["nearly"].append(nearly)
    found = {key: np.array(value) for key, value in found.items()}
    return {key: np.concatenate([value, autoencoder.recode(value) if key == "frames" else value]) for key, value in found.items()}


def fulfilled(task, points: np.ndarray, opening: np.ndarray, instructions) -> np.ndarray:
    """`task.fulfilled` of scenes as the draft has them: points (B, S, 3), opening (B,), and the sentences that name one of the things."""
    from wmpo_lite.envs.tabletop.tasks import pair
    named = points[np.arange(len(points)), [pair.named_slot(text) for text in instructions]]
    return task.fulfilled(named, points[:, -2], points[:, -1], opening)


def let_go_beside(task, points: np.ndarray, opening: np.ndarray, instructions) -> np.ndarray:
    """Which scenes, as in `fulfilled`, have the named thing let go and less than `task.beside` metres from the target, seen from above: bool (B,)."""
    from wmpo_lite.envs.tabletop.tasks import pair
    named = points[np.arange(len(points)), [pair.named_slot(text) for text in instructions]]
    return (np.linalg.norm((named - points[:, -2])[:, :2], axis=1) < task.beside) & (opening > 0.5)
