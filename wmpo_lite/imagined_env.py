"""The imagined environment: the world model draws the frames, the reward model ends the episode
(paper section 3.4).
"""

import numpy as np
import torch

from wmpo_lite.actions import check_actions
from wmpo_lite.common import parallel
from wmpo_lite.common.errors import UserError, require
from wmpo_lite.reward_model import RewardModel, last_judged
from wmpo_lite.trajectory import InitialStates

PIECE = 64  # episodes that one pass moves: pieces that fit the cache run faster


def pieces(n: int) -> list[np.ndarray]:
    """n rows in equal parts (give or take one) of at most PIECE."""
    return np.array_split(np.arange(n), max(1, -(-n // PIECE)))


class ImaginedEnv:
    """`reset` / `step_chunk` like every environment of the kit, without a simulator: it needs one
    recorded frame.

    reward_model=None imagines without judging (`done` stays False). Latents are carried from chunk
    to chunk and never re-encoded. threshold: of the reward model's probability; None takes its own.
    reward_stride: the windows are judged that end at frame reward_stride, 2 reward_stride, ... of
    the episode, however it is cut into chunks. min_consecutive: judged windows in a row that must
    reach the threshold. `scores` (B,) is the largest probability so far that so many windows in a
    row reached. With stop=True episodes that succeeded stand still and cost nothing.
    """

    def __init__(
        self,
        autoencoder,
        world_model,
        reward_model=None,
        *,
        threshold: float | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        reward_stride: int = 1,
        min_consecutive: int = 1,
        stop: bool = True,
        action_names=("dx", "dy", "dz", "gripper"),
    ):
        for net in (autoencoder, world_model):
            net.to(memory_format=torch.channels_last)  # in which convolutions are fastest on a CPU
        self.autoencoder, self.world_model = autoencoder, world_model
        self.reward_model: RewardModel | None = reward_model
        self._threshold, self.num_inference_steps = threshold, num_inference_steps
        self.action_dim, self.action_names = world_model.config.action_dim, tuple(action_names)
        for name, value in (("reward_stride", reward_stride), ("min_consecutive", min_consecutive)):
            require(value >= 1, f"{name} is {value}: expected 1 or more.")
        self.reward_stride, self.min_consecutive, self.stop = reward_stride, min_consecutive, stop
        self.generator = torch.Generator().manual_seed(seed)
        self.instructions: list[str] = []

    @property
    def threshold(self) -> float:
        """What a window's success probability must reach."""
        if self._threshold is not None:
            return self._threshold
        if self.reward_model is None:
            raise UserError("without a reward model imagination has no threshold; give it either")
        return float(self.reward_model.threshold)

    def reset(self, states: InitialStates) -> np.ndarray:
        """Start one episode per recorded first frame; returns uint8 (B, H, W, 3)."""
        if states.frames is None:
            raise UserError(
                "imagination starts from recorded frames and these initial states have none; "
                "take them from recorded rollouts"
            )
        size = self.autoencoder.config.size
        if states.frames.shape[1:] != (size, size, 3):
            raise UserError(
                f"the world model imagines {size}x{size} frames, the initial states have "
                f"{states.frames.shape[1]}x{states.frames.shape[2]}; record them at that size"
            )
        first = torch.from_numpy(np.ascontiguousarray(states.frames))  # (B, H, W, 3)
        self.state = self.world_model.init_state(self.autoencoder.encode_uint8(first))
        self.done = np.zeros(len(states), dtype=bool)
        self.scores = np.zeros(len(states), dtype=np.float32)
        self.latest = np.zeros((len(states), self.min_consecutive - 1), dtype=np.float32)
        self.instructions = list(states.instructions)
        self.frame = 0  # number of the newest frame
        self.recent = first[:, None]  # frames that the next reward windows still need
        return first.numpy().copy()

    @torch.no_grad()
    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        """Imagine K control steps: actions (B, K, D) in [-1, 1] -> frames, done, info."""
        started = len(self.done) if hasattr(self, "done") else None
        checked = torch.from_numpy(check_actions(actions, started, self.action_dim)).float()
        moves = checked.clamp(-1, 1).to(self.state.reference.device)  # (B, K, D)
        batch, chunk, _ = moves.shape
        live = np.flatnonzero(~self.done) if self.stop else np.arange(batch)
        frames = self.recent[:, -1:].repeat(1, chunk, 1, 1, 1)
        done = np.repeat(self.done[:, None], chunk, axis=1)
        noise = parallel.draw(lambda n: self._noise(n, chunk), len(live))
        if len(live):
            for i in pieces(len(live)):
                part = live[i]
                new, after = self.world_model.next_frames(
                    self.state.rows(part), moves[part], noise[i], self.num_inference_steps
                )
                for whole, rows in zip(self.state, after):
                    whole[part] = rows
                frames[part] = self.autoencoder.decode_uint8(new).cpu()
            self._judge(live, frames, done)
        self.frame += chunk
        keep = self.reward_model.config.clip - 1 if self.reward_model is not None else 1
        self.recent = torch.cat([self.recent, frames], dim=1)[:, -keep:]
        self.done = done[:, -1].copy()
        shown = frames if every_frame else frames[:, -1:]
        return shown.numpy(), done, {"scores": self.scores.copy()}

    def _noise(self, n: int, chunk: int) -> torch.Tensor:
        """The noise of a chunk of n live episodes, drawn piece by piece."""
        noise = self.world_model.noise
        return torch.cat([noise(len(i), chunk, self.generator) for i in pieces(n)])

    def _judge(self, live, frames, done):
        """Slide the reward model over the windows that end in this chunk."""
        if self.reward_model is None:
            return
        newest = self.frame + frames.shape[1]
        # Frames that the next chunk's windows will judge.
        rest = newest - last_judged(newest, self.reward_stride)
        seen = torch.cat([self.recent[live], frames[live]], dim=1)
        seen, texts = seen[:, : seen.shape[1] - rest], [self.instructions[i] for i in live]
        scores = self.reward_model.slide(seen, texts, self.reward_stride)
        if not scores.shape[1]:
            return
        hold = self.min_consecutive
        scores = np.concatenate([self.latest[live], scores.cpu().numpy()], axis=1)
        self.latest[live] = scores[:, scores.shape[1] - hold + 1 :]
        scores = np.lib.stride_tricks.sliding_window_view(scores, hold, axis=1).min(axis=-1)
        self.scores[live] = np.maximum(self.scores[live], scores.max(axis=1))
        over = np.zeros((len(live), done.shape[1]), dtype=bool)
        stride = self.reward_stride
        ends = over[:, ::-1][:, rest : rest + stride * scores.shape[1] : stride]
        ends[...] = scores[:, ::-1] >= self.threshold
        done[live] |= np.maximum.accumulate(over, axis=1)
