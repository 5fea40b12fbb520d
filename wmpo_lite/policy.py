"""The policy: a miniature vision-language-action model on `transformers` parts (SigLIP-style tower,
Llama-style decoder, parallel action tokens).

It reads the newest frame and the instruction and scores a whole chunk of K x D action tokens in one
pass (paper section 3.1; OpenVLA-OFT). Left out of a full-size VLA, and why: pre-trained language
weights (the instructions of a table-top need a few words) and proprioception.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wmpo_lite.action_tokens import ActionStatistics, TokenPolicy, check_frames
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.language import build_tokenizer, check_count, word_ids


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


def build_vision(config: PolicyConfig) -> nn.Module:
    """The vision tower: pixels in [-1, 1] -> features (B, side^2, vision_width)."""
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


def build_decoder(config: PolicyConfig) -> nn.Module:
    """The decoder over words, image and action slots, which it is given as embeddings."""
    from transformers import LlamaConfig, LlamaModel

    decoder = LlamaModel(
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
    decoder.set_input_embeddings(nn.Identity())
    return decoder


class Policy(TokenPolicy):
    """pi(action tokens int64 (B, K, D) in [0, bins) | frames uint8 (B, H, W, 3), instructions)."""

    def __init__(
        self,
        config: PolicyConfig = PolicyConfig(),
        statistics: ActionStatistics = ActionStatistics(),
        tokenizer=None,
    ):
        super().__init__()
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
        # One query per action token.
        self.slots = nn.Parameter(
            torch.randn(config.chunk * config.action_dim, config.width) * 0.02
        )
        self.decoder = build_decoder(config)
        # One head per action dimension: the bins of dx and of the gripper mean different things.
        self.head = nn.Parameter(
            torch.randn(config.action_dim, config.width, config.bins) * config.width**-0.5 * 0.1
        )

    # -- network -----------------------------------------------------------------------------------

    def _text(self, instructions) -> torch.Tensor:
        """Word numbers (B, text_length), filled up with 0."""
        longest = self.config.text_length
        rows = {
            text: word_ids(self.tokenizer, text, longest) for text in dict.fromkeys(instructions)
        }
        padded = [rows[text] + [0] * (longest - len(rows[text])) for text in instructions]
        return torch.tensor(padded, device=self.slots.device)

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
        folded = features.unflatten(1, (side // m, m, side // m, m)).permute(0, 1, 3, 2, 4, 5)
        folded = folded.flatten(3).flatten(1, 2)
        scale, shift = self.film(summary).chunk(2, dim=-1)
        return self.project(nn.functional.gelu(self.connector(folded) * (1 + scale) + shift))

    def logits(
        self, frames: torch.Tensor, instructions, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, K, D, bins). seen: kept vision features, instead of frames."""
        hidden = self.hidden(self.features(frames) if seen is None else seen, instructions)
        return torch.einsum("bkdw,dwv->bkdv", hidden, self.head)

    def hidden(self, features: torch.Tensor, instructions) -> torch.Tensor:
        """Decoder states (B, K, D, width) of the action slots, from vision features."""
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
