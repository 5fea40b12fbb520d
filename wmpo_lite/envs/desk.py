"""What a desk adds to an environment: an old picture, a noisy camera, shaky joints, limits, and a
dry run in which nothing moves.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.actions import check_actions
from wmpo_lite.common.errors import UserError


@dataclass(frozen=True)
class DeskConfig:
    """latency: control steps by which the picture is old when the policy sees it; camera_noise:
    standard deviation of pixel noise, gray levels of 255; brightness: factor on all pixels; jitter:
    standard deviation of noise on executed actions, in action units; speed: largest command, 1 for
    the whole range; low, high: corners of the box that the finger tips may enter, meters, or None;
    dry_run: show what would be done and do nothing. seed: of all noise. Every initial state has
    noise of its own, by its split and index, whatever else is in the batch; the members of a group
    share it.
    """

    latency: int = 0
    camera_noise: float = 0.0
    brightness: float = 1.0
    jitter: float = 0.0
    speed: float = 1.0
    low: tuple | None = None
    high: tuple | None = None
    dry_run: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, bad, wanted in (
            ("latency", self.latency < 0, "0 or more control steps"),
            ("camera_noise", self.camera_noise < 0, "0 or more gray levels"),
            ("jitter", self.jitter < 0, "0 or more action units"),
            ("speed", not 0 < self.speed <= 1, "more than 0 and at most 1"),
            ("brightness", self.brightness <= 0, "more than 0"),
        ):
            if bad:
                raise UserError(f"DeskConfig.{name} is {getattr(self, name)}; expected {wanted}")
        if (
            (self.low is None) != (self.high is None)
            or self.low is not None
            and not np.all(np.less(self.low, self.high))
        ):
            raise UserError(
                "DeskConfig.low and high must both be given and every low below its high; got"
                f" {self.low} and {self.high}"
            )


class Desk:
    """An environment of the kit as it feels on a desk; the same `reset` / `step_chunk`, so
    `rollout` runs a policy on it unchanged.

    `log` holds one record a control step: what was commanded and executed (B, D), and which
    episodes (B,) a limit changed.
    """

    def __init__(self, env, config: DeskConfig = DeskConfig(), step: float | None = None):
        from wmpo_lite.envs.tabletop.env import MAX_STEP

        self._newest = None
        # meters that a command of 1 moves the tips
        self.env, self.config, self.step = env, config, MAX_STEP if step is None else step
        if config.low is not None and not hasattr(env, "tip"):
            raise UserError(
                "DeskConfig.low and high need an environment that knows where its finger tips are"
                " (`tip`); this one does not"
            )

    def __getattr__(self, name):
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, states) -> np.ndarray:
        self._noise, self.log = self._generators(states), []
        self._newest = self.env.reset(states)
        # (B, latency + 1, H, W, 3), oldest first
        self._recent = self._newest[:, None].repeat(self.config.latency + 1, axis=1)
        return self._camera(self._recent[:, 0])

    def step_chunk(self, actions: np.ndarray, every_frame: bool = True):
        """The chunk, one control step after the other through the limits. Frames (B, K, H, W, 3)
        are what the late and noisy camera gave; NaN stops the arm with a UserError before anything
        moves.
        """
        actions = check_actions(
            actions,
            None if self._newest is None else len(self._newest),
            self.env.action_dim,
            "the arm was not moved",
        )
        frames, done, info = [], [], {}
        for action in np.moveaxis(actions.clip(-1, 1), 1, 0):
            allowed, limited = self._limit(action)
            self.log.append(
                {
                    "commanded": action,
                    "executed": np.zeros_like(action) if self.config.dry_run else allowed,
                    "limited": limited,
                }
            )
            if self.config.dry_run:
                picture, finished = self._newest, np.zeros(len(action), dtype=bool)
            else:
                shown, ended, info = self.env.step_chunk(allowed[:, None], every_frame=False)
                picture, finished = shown[:, -1], ended[:, -1]
            self._newest = picture
            self._recent = np.concatenate([self._recent[:, 1:], picture[:, None]], axis=1)
            frames.append(self._camera(self._recent[:, 0]))
            done.append(finished)
        frames, done = np.stack(frames, axis=1), np.stack(done, axis=1)
        return (frames if every_frame else frames[:, -1:]), done, info

    def _generators(self, states) -> list:
        """For each episode the generators of its jitter and of its pictures' noise."""
        keys = [
            [self.config.seed, *states.split.encode(), index] for index in states.indices.tolist()
        ]
        return [[np.random.default_rng([*key, stream]) for stream in (0, 1)] for key in keys]

    def _limit(self, action):
        """The command (B, D) after jitter, speed limit and box, and whether (B,) a limit changed
        it.
        """
        c, wanted = self.config, action.copy()
        if c.jitter:
            wanted[:, :3] += c.jitter * np.stack(
                [jitter.normal(size=3) for jitter, _ in self._noise]
            )
        allowed = wanted.copy()
        allowed[:, :3] = np.clip(wanted[:, :3], -c.speed, c.speed)
        if c.low is not None:
            tip = self.env.tip
            inside = np.clip(tip + self.step * allowed[:, :3], c.low, c.high)
            outward = np.clip((inside - tip) / self.step, -c.speed, c.speed)
            allowed[:, :3] = np.where(
                np.abs(outward) < np.abs(allowed[:, :3]) - 1e-9, outward, allowed[:, :3]
            )
        return allowed, (np.abs(allowed - np.clip(wanted, -1, 1)) > 1e-6).any(axis=1)

    def _camera(self, frames):
        c = self.config
        if c.brightness == 1 and not c.camera_noise:
            return frames.copy()
        noise = 0
        if c.camera_noise:
            noise = c.camera_noise * np.stack(
                [grain.normal(size=frames.shape[1:]) for _, grain in self._noise]
            )
        return np.clip(frames * c.brightness + noise, 0, 255).round().astype(np.uint8)
