"""The imagined environment: the world model moves the picture, the reward model ends the episode (paper section 3.4, steps 1 to 4)."""
import numpy as np
import torch

from wmpo_lite.errors import UserError
from wmpo_lite.trajectory import InitialStates


class ImaginedEnv:
    """`reset` / `step_chunk` like every environment of the kit, without a simulator: it needs one recorded frame and nothing else.

    reward_model=None imagines without judging (`done` stays False). Latents are carried from chunk to chunk and never re-encoded.
    threshold: of the reward model's probability; None takes the one it was saved with, which was chosen on camera pictures.
    stride: frames between judged windows, of which one always ends at a chunk's last frame. hold: judged windows in a row that must reach the threshold:
    a thing that is put somewhere stays there, what a world model paints for a moment does not. doubt: metres (standard deviation) by which things are taken
    to lie elsewhere than the first frame is read, anew in every episode, so that what only just works in imagination is not worth learning.
    `scores` (B,) is the largest success probability so far that `hold` windows in a row reached. Episodes already judged a success stand still and cost nothing.
    """

    def __init__(self, autoencoder, world_model, reward_model=None, *, threshold: float | None = None, seed: int = 0, steps: int | None = None,
                 stride: int = 1, hold: int = 1, stop: bool = True, doubt: float = 0.0, action_names=("dx", "dy", "dz", "gripper")):
        self.autoencoder, self.world_model, self.reward_model = autoencoder, world_model, reward_model
        self._threshold = threshold
        self.action_dim, self.action_names = world_model.config.action_dim, tuple(action_names)
        self.steps, self.stride, self.hold, self.stop, self.doubt = steps, stride, hold, stop, doubt
        self.generator = torch.Generator().manual_seed(seed)
        self.instructions: list[str] = []

    @property
    def threshold(self) -> float:
        """What a window's success probability must reach."""
        return float(self.reward_model.threshold) if self._threshold is None else self._threshold

    def reset(self, states: InitialStates) -> np.ndarray:
        if states.frames is None:
            raise UserError("imagination starts from recorded frames and these initial states have none; take them from recorded rollouts")
        size = self.autoencoder.config.size
        if states.frames.shape[1:] != (size, size, 3):
            raise UserError(f"the world model imagines {size}x{size} frames, the initial states have {states.frames.shape[1]}x{states.frames.shape[2]}; "
                            "record them at that size or load another world model")
        first = torch.from_numpy(np.ascontiguousarray(states.frames))  # (B, H, W, 3)
        latent = self.autoencoder.encode_uint8(first)
        self.context = latent[:, None].repeat(1, self.world_model.config.context, 1, 1, 1)  # (B, c, C, h, w)
        self.past = self.world_model.recall(self.context, self.doubt, self.generator)
        self.done = np.zeros(len(states), dtype=bool)
        self.scores = np.zeros(len(states), dtype=np.float32)
        self.latest = np.zeros((len(states), self.hold - 1), dtype=np.float32)  # of the windows judged last
        self.instructions = list(states.instructions)
        self.recent = first[:, None]  # frames that the next reward windows still need
        return first.numpy().copy()

    @torch.no_grad()
    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        actions = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        if not torch.isfinite(actions).all():
            raise UserError("actions hold NaN or infinity; the policy that made them has diverged")
        actions = actions.clamp(-1, 1)
        batch, chunk, _ = actions.shape
        live = np.flatnonzero(~self.done) if self.stop else np.arange(batch)
        frames = self.recent[:, -1:].repeat(1, chunk, 1, 1, 1)
        done = np.repeat(self.done[:, None], chunk, axis=1)
        if len(live):
            pieces = [self.world_model.go_on(self.context[part], actions[part], None if self.past is None else self.past[part], self.generator, self.steps)
                      for part in np.array_split(live, -(-len(live) // 32))]  # pieces that fit the cache run faster
            future = torch.cat([piece[0] for piece in pieces])
            if self.past is not None:
                self.past[live] = torch.cat([piece[1] for piece in pieces])
            self.context[live] = torch.cat([self.context[live], future], dim=1)[:, -self.context.shape[1]:]  # a last chunk may be short
            frames[live] = self.autoencoder.decode_uint8(future)
            self._judge(live, frames, done)
        keep = self.reward_model.config.clip - 1 if self.reward_model is not None else 1
        self.recent = torch.cat([self.recent, frames], dim=1)[:, -keep:]
        self.done = done[:, -1].copy()
        shown = frames if every_frame else frames[:, -1:]
        return shown.numpy(), done, {"scores": self.scores.copy()}

    def _judge(self, live, frames, done):
        """Slide the reward model over the windows that end in this chunk."""
        if self.reward_model is None:
            return
        seen = torch.cat([self.recent[live], frames[live]], dim=1)
        scores = self.reward_model.slide(seen, [self.instructions[i] for i in live], self.stride).numpy()  # (live, windows)
        if not scores.shape[1]:
            return
        scores = np.concatenate([self.latest[live], scores], axis=1)
        self.latest[live] = scores[:, scores.shape[1] - self.hold + 1:]
        scores = np.lib.stride_tricks.sliding_window_view(scores, self.hold, axis=1).min(axis=-1)  # one for each window judged now
        self.scores[live] = np.maximum(self.scores[live], scores.max(axis=1))
        over = np.zeros((len(live), done.shape[1]), dtype=bool)
        over[:, ::-1][:, : self.stride * scores.shape[1]: self.stride] = scores[:, ::-1] >= self.threshold
        done[live] |= np.maximum.accumulate(over, axis=1)
