"""Actions as tokens, and what every policy over them shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from wmpo_lite.common import parallel
from wmpo_lite.common.errors import UserError


@dataclass(frozen=True)
class ActionStatistics:
    """Range of each action dimension, saved with the weights. Tokens are uniform bins over [low,
    high]; names say what the numbers move.
    """

    names: tuple = ("dx", "dy", "dz", "gripper")
    low: tuple = (-1.0, -1.0, -1.0, -1.0)
    high: tuple = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self):
        if not len(self.names) == len(self.low) == len(self.high):
            raise UserError(
                f"action statistics name {len(self.names)} dimensions, but give {len(self.low)} low"
                f" and {len(self.high)} high ends; give one of each"
            )
        for name, *ends in zip(self.names, self.low, self.high):
            try:
                low, high = np.asarray(ends, dtype=np.float32)
            except (TypeError, ValueError):
                low = high = np.float32(np.nan)
            with np.errstate(over="ignore", invalid="ignore"):
                # as the policy counts, in single precision
                usable = low < high and np.isfinite(high - low)
            if not usable:
                raise UserError(
                    f"action statistics of '{name}' have the range [{ends[0]}, {ends[1]}]; expected"
                    " finite numbers, low below high: leave a dimension that never moves a range"
                    " of its own, such as [-1, 1]"
                )


def check_frames(frames: torch.Tensor, side: int) -> None:
    """UserError unless `frames` is uint8 (B, side, side, 3): [0, 1] would pass as nearly black."""
    if frames.shape[1:] != (side, side, 3):
        raise UserError(
            f"the policy reads {side}x{side} RGB frames, got {tuple(frames.shape[1:])}; render at"
            " that size or train another policy"
        )
    if frames.dtype != torch.uint8:
        raise UserError(
            f"the policy reads frames as uint8, 0 to 255, got {frames.dtype}; give the pictures as"
            " the camera made them, unscaled"
        )


class TokenPolicy(nn.Module):
    """What every policy over action tokens shares. A subclass has `config` (chunk, action_dim,
    bins, image), `statistics`, the buffers of `set_range`, and

    - `features(frames)`: uint8 (B, H, W, 3) -> vision features (B, N, width), which may be kept
    between passes;
    - `logits(frames, instructions, seen=None)`: scores (B, K, D, bins); seen: such features (frames
    is then not looked at);
    - `vision`: the tower, which cloning and GRPO may leave as it is.
    """

    config: Any
    statistics: ActionStatistics
    low: torch.Tensor
    high: torch.Tensor
    vision: nn.Module
    logits: Callable[..., torch.Tensor]

    def set_range(self, statistics: ActionStatistics, action_dim: int):
        if len(statistics.names) != action_dim:
            raise UserError(
                f"action statistics name {len(statistics.names)} dimensions, the policy has"
                f" {action_dim}; they belong to different robots"
            )
        self.statistics = statistics
        for name in ("low", "high"):
            ends = torch.tensor(getattr(statistics, name), dtype=torch.float32)
            self.register_buffer(name, ends, persistent=False)

    def train_vision(self, on: bool):
        """Whether the vision tower learns with the rest."""
        self.vision.requires_grad_(on)

    def log_probs(self, frames, instructions, tokens, temperature: float = 1.0, seen=None):
        """Log-probabilities and entropies of `tokens`, (B, K, D), at their sampling temperature."""
        logits = self.logits(frames, instructions, seen).float()
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        return log_p.gather(-1, tokens[..., None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)

    @torch.no_grad()
    def act(
        self,
        frames,
        instructions,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ):
        """Choose a chunk: sampled at `temperature`, or the likeliest token everywhere when it is
        None (evaluation).

        Returns tokens (B, K, D), log_probs (B, K, D), actions float32 (B, K, D). `no_grad`, not
        inference mode: the result meets autograd later.
        """
        if temperature is not None and not temperature > 0:
            raise UserError(
                f"the sampling temperature is {temperature}, expected a number above 0; leave it"
                " out for the greedy policy"
            )
        logits = self.logits(torch.as_tensor(frames), instructions).float()
        if temperature is None:
            tokens, log_p = logits.argmax(-1), torch.log_softmax(logits, -1)
        else:
            log_p = torch.log_softmax(logits / temperature, -1)
            # Gumbel-max: one draw of uniform noise a token, on the CPU generator so that a seed
            # means the same everywhere.
            uniform = lambda n: torch.rand((n, *logits.shape[1:]), generator=generator)
            noise = parallel.draw(uniform, len(logits)).clamp(1e-10, 1 - 1e-7).to(logits.device)
            tokens = (log_p - torch.log(-torch.log(noise))).argmax(-1)
        return tokens, log_p.gather(-1, tokens[..., None]).squeeze(-1), self.detokenize(tokens)

    # -- action tokens -----------------------------------------------------------------------------

    def tokenize(self, actions) -> torch.Tensor:
        """Actions (..., D) -> nearest bins (..., D), clipped; UserError for NaN and another D."""
        low, high = self._range()
        actions = torch.as_tensor(actions, dtype=torch.float32, device=low.device)
        if actions.shape[-1:] != low.shape:
            raise UserError(
                f"actions have shape {tuple(actions.shape)}; expected (..., {len(low)}), a number"
                f" for each of {', '.join(self.statistics.names)}"
            )
        if torch.isnan(actions).any():
            raise UserError(
                "actions hold NaN, for which there is no token; remove those steps from the"
                " recording"
            )
        unit = (actions - low) / (high - low)
        return (unit.clamp(0, 1) * (self.config.bins - 1)).round().long()

    def detokenize(self, tokens: torch.Tensor) -> torch.Tensor:
        low, high = self._range()
        return low + tokens.float() / (self.config.bins - 1) * (high - low)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ends of the action range (D,), in single precision whatever the policy's number type."""
        low, high = (
            torch.tensor(ends, dtype=torch.float32, device=self.low.device)
            for ends in (self.statistics.low, self.statistics.high)
        )
        return low, high

    def check_environment(self, env):
        """Refuse an environment whose actions mean something else than the policy's."""
        names = tuple(getattr(env, "action_names", self.statistics.names))
        if env.action_dim != self.config.action_dim or names != tuple(self.statistics.names):
            raise UserError(
                f"the policy's action statistics are for {', '.join(self.statistics.names)}, the"
                f" environment expects {', '.join(names)} ({env.action_dim} numbers); load the"
                " policy that was trained for it"
            )
