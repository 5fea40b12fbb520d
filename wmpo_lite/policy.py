"""The policy: a miniature vision-language-action model on `transformers` parts (SigLIP-style tower,
Llama-style decoder, parallel action tokens).

It reads the newest frame and the instruction and scores a whole chunk of K x D action tokens in one
pass (paper section 3.1; OpenVLA-OFT). Left out of a full-size VLA, and why: pre-trained language
weights (the instructions of a table-top need a few words) and proprioception.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wmpo_lite.common import checkpoint, parallel
from wmpo_lite.common.errors import UserError

WORDS = (
    "put",
    "the",
    "on",
    "in",
    "over",
    "into",
    "onto",
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "black",
    "orange",
    "cube",
    "plate",
    "square",
    "round",
    "nut",
    "peg",
    "block",
    "ball",
    "bowl",
    "box",
    "tray",
    "left",
    "right",
    "of",
    "and",
    "stack",
    "push",
    "pick",
    "up",
    "place",
    "open",
    "close",
    "drawer",
    "cup",
    "mug",
    "lift",
    "insert",
    "hang",
    "ring",
    "to",
    "a",
    "next",
    "from",
    "move",
)


@dataclass(frozen=True)
class PolicyConfig:
    """image: pixels; merge: m x m vision tokens are folded into one (pixel shuffle) before the
    decoder; bins: tokens per action dimension.
    """

    image: int = 64
    patch: int = 8
    merge: int = 2
    vision_width: int = 96
    vision_depth: int = 4
    width: int = 128
    depth: int = 3
    heads: int = 4
    chunk: int = 8
    action_dim: int = 4
    bins: int = 21  # paper: 256
    text_length: int = 12

    def __post_init__(self):
        if self.bins < 2:
            raise UserError(
                f"PolicyConfig.bins is {self.bins}; expected 2 or more tokens for each action"
                " dimension"
            )


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
                usable = low < high and np.isfinite(
                    high - low
                )  # as the policy counts, in single precision
            if not usable:
                raise UserError(
                    f"action statistics of '{name}' have the range [{ends[0]}, {ends[1]}]; expected"
                    " finite numbers, low below high: leave a dimension that never moves a range"
                    " of its own, such as [-1, 1]"
                )


def build_vision(config: PolicyConfig) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.vision_width,
            intermediate_size=4 * config.vision_width,
            num_hidden_layers=config.vision_depth,
            num_attention_heads=4,
            image_size=config.image,
            patch_size=config.patch,
            vision_use_head=False,
        )
    )


def build_tokenizer(words=WORDS):
    """Word-level tokenizer over a fixed list, by default of table-top words; `word_ids` refuses
    sentences with others.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(("<pad>", "<unk>", *words))}, unk_token="<unk>"
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.Lowercase(),
        pre_tokenizers.Whitespace(),
    )
    return tokenizer


def word_ids(tokenizer, sentence: str, longest: int | None = None) -> list[int]:
    """Numbers of the words of `sentence` under a word-level tokenizer; case and punctuation do not
    count.

    UserError for a sentence without words, with words that the tokenizer does not know (they would
    all look the same) or with more than `longest`.
    """
    words = re.findall(r"\w+", sentence.lower())
    ids = [i for word in words for i in tokenizer.encode(word).ids]
    check_words(tokenizer, sentence, words)
    if longest is not None and len(ids) > longest:
        raise UserError(
            f"the instruction '{sentence}' has {len(ids)} words and the model reads {longest}; say"
            " it shorter"
        )
    return ids


def check_words(tokenizer, sentence: str, words: list[str]) -> None:
    """UserError where `words`, those of `sentence`, are none, or where the tokenizer has no name
    for one of them but 'unknown'.
    """
    if not words:
        raise UserError("an instruction is empty; say in words what is to be done")
    nameless = getattr(tokenizer.model, "unk_token", None)
    unknown = dict.fromkeys(
        word for word in words if nameless and nameless in tokenizer.encode(word).tokens
    )
    if unknown:
        raise UserError(
            f"the model does not know the word{'s' if len(unknown) > 1 else ''}"
            f" {', '.join(unknown)} of the instruction '{sentence}'; use the words that it was"
            " trained with"
        )


def check_frames(frames: torch.Tensor, side: int) -> None:
    """UserError unless `frames` is uint8 (B, side, side, 3): pictures in [0, 1] would pass as
    nearly black ones.
    """
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


def check_count(pictures, instructions) -> None:
    if len(pictures) != len(instructions):
        raise UserError(
            f"there are {len(pictures)} pictures and {len(instructions)} instructions; give one"
            " instruction for each"
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
        if not len(statistics.names) == len(statistics.low) == len(statistics.high) == action_dim:
            raise UserError(
                f"action statistics name {len(statistics.names)} dimensions (low"
                f" {len(statistics.low)}, high {len(statistics.high)}), the policy has"
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
        """Log-probabilities and entropies, each (B, K, D), of `tokens` at the temperature they were
        sampled with.
        """
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
        """Actions (..., D) -> nearest bin (..., D), clipped to the statistics' range; UserError for
        NaN and another D.
        """
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
        """Ends of the action range (D,), in single precision even where the policy has been turned
        into another number type.
        """
        low, high = (
            torch.tensor(ends, dtype=torch.float32, device=self.low.device)
            for ends in (self.statistics.low, self.statistics.high)
        )
        return low, high

    def check_environment(self, env):
        """Refuse an environment whose actions mean something else than the ones this policy was
        trained on.
        """
        names = tuple(getattr(env, "action_names", self.statistics.names))
        if env.action_dim != self.config.action_dim or names != tuple(self.statistics.names):
            raise UserError(
                f"the policy's action statistics are for {', '.join(self.statistics.names)}, the"
                f" environment expects {', '.join(names)} ({env.action_dim} numbers); load the"
                " policy that was trained for it"
            )


class Policy(TokenPolicy):
    """pi(action tokens | frame, instruction). Frames uint8 (B, H, W, 3); tokens int64 (B, K, D) in
    [0, bins).
    """

    def __init__(
        self,
        config: PolicyConfig = PolicyConfig(),
        statistics: ActionStatistics = ActionStatistics(),
        tokenizer=None,
    ):
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        self.set_range(statistics, config.action_dim)
        self.config = config
        self.tokenizer = tokenizer or build_tokenizer()
        self.vision = build_vision(config)
        # The connector is told the instruction (FiLM, as in RT-1): binding 'red' to the red cube by
        # attention alone takes a small decoder very long.
        self.connector = nn.Linear(config.vision_width * config.merge**2, 2 * config.width)
        self.film = nn.Linear(config.width, 4 * config.width)
        self.project = nn.Linear(2 * config.width, config.width)
        self.words = nn.Embedding(self.tokenizer.get_vocab_size(), config.width)
        nn.init.normal_(self.words.weight, std=0.2)
        self.slots = nn.Parameter(
            torch.randn(config.chunk * config.action_dim, config.width) * 0.02
        )  # one query per action token
        self.decoder = LlamaModel(
            LlamaConfig(
                vocab_size=1,
                hidden_size=config.width,
                intermediate_size=3 * config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=512,
                attention_dropout=0.0,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.decoder.set_input_embeddings(nn.Identity())  # inputs come as embeddings
        # One head per action dimension: the bins of dx and of the gripper mean different things.
        self.head = nn.Parameter(
            torch.randn(config.action_dim, config.width, config.bins) * config.width**-0.5 * 0.1
        )

    # -- network -----------------------------------------------------------------------------------

    def _text(self, instructions) -> torch.Tensor:
        longest = self.config.text_length
        rows = {
            text: word_ids(self.tokenizer, text, longest) for text in dict.fromkeys(instructions)
        }
        return torch.tensor(
            [rows[text] + [0] * (longest - len(rows[text])) for text in instructions],
            device=self.slots.device,
        )  # (B, L)

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Output of the vision tower (B, side^2, vision_width) for uint8 frames (B, H, W, 3)."""
        check_frames(frames, self.config.image)
        pixels = frames.to(self.slots.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.vision(pixel_values=pixels).last_hidden_state

    def connect(self, features: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        """Vision features (B, side^2, vision_width) -> decoder tokens (B, N, width) under the
        instruction's mean embedding `summary` (B, 1, width).
        """
        c = self.config
        side, m = c.image // c.patch, c.merge
        folded = (
            features.unflatten(1, (side // m, m, side // m, m))
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        scale, shift = self.film(summary).chunk(2, dim=-1)
        return self.project(nn.functional.gelu(self.connector(folded) * (1 + scale) + shift))

    def logits(
        self, frames: torch.Tensor, instructions, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, K, D, bins). seen: vision features from `features`, when they are kept between
        passes (frames is then not looked at).
        """
        hidden = self.hidden(self.features(frames) if seen is None else seen, instructions)
        return torch.einsum("bkdw,dwv->bkdv", hidden, self.head)

    def hidden(self, features: torch.Tensor, instructions) -> torch.Tensor:
        """Decoder states (B, K, D, width) of the action slots, from vision features (B, side^2,
        vision_width).
        """
        c = self.config
        check_count(features, instructions)
        ids = self._text(instructions)
        text = self.words(ids)
        present = (ids != 0)[..., None].float()
        summary = (text * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        image = self.connect(features, summary)
        slots = self.slots.expand(len(image), -1, -1)
        # Words first: under causal attention every image token then knows what is being asked for.
        hidden = self.decoder(
            inputs_embeds=torch.cat([text, image, slots], dim=1), use_cache=False
        ).last_hidden_state[:, -slots.shape[1] :]
        return hidden.unflatten(1, (c.chunk, c.action_dim))

    # -- files -------------------------------------------------------------------------------------

    def save(self, folder, provenance=None):
        checkpoint.save_module(folder, self, self.config, provenance, language_files(self))

    @classmethod
    def load(cls, folder):
        config = checkpoint.load_config(folder, PolicyConfig, cls.__name__)
        language = load_language(folder)
        return checkpoint.load_model(folder, lambda: cls(config, *language)).eval()


def language_files(policy) -> dict:
    """Action statistics and tokenizer of a policy, as further files of its checkpoint."""
    actions = {
        "names": policy.statistics.names,
        "low": policy.statistics.low,
        "high": policy.statistics.high,
    }
    return {"actions.json": json.dumps(actions), "tokenizer.json": policy.tokenizer.to_str()}


def load_language(folder) -> tuple:
    """ActionStatistics and tokenizer of a policy's checkpoint."""
    from tokenizers import Tokenizer

    actions = checkpoint.read_json(Path(folder) / "actions.json")
    if not isinstance(actions, dict) or set(actions) != {"names", "low", "high"}:
        raise UserError(
            f"{folder}/actions.json must hold names, low and high; without action statistics a"
            " policy moves wrongly"
        )
    try:
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"{folder}/tokenizer.json cannot be read ({error}); it is missing or truncated, fetch"
            " or train the policy again"
        ) from error
    try:
        return ActionStatistics(**{key: tuple(value) for key, value in actions.items()}), tokenizer
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder}/actions.json cannot be used: {error}; it was edited, fetch or train the"
            " policy again"
        ) from error


def cloning_loss(policy: Policy, frames, instructions, actions, mask=None, seen=None, count=None):
    """Behavior cloning: mean cross-entropy of the demonstrated chunk's tokens. actions (B, K, D);
    mask (B, K) marks steps that count; count: their number where these rows are a share of a batch.
    """
    log_p, _ = policy.log_probs(frames, instructions, policy.tokenize(actions), seen=seen)
    mask = log_p.new_ones(log_p.shape[:2]) if mask is None else mask.to(log_p.device)
    loss = -(log_p.mean(-1) * mask).sum() / (mask.sum().clamp(min=1) if count is None else count)
    return loss, {}


def as_frames(frames) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames))
