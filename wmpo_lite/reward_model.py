"""The reward model (paper section 3.3): a VideoMAE encoder reads the last L frames, a head says
whether the instruction is fulfilled.

The head asks with the words of the instruction, because in a scene with two cubes the same picture
is a success for one sentence and a failure for the other; the paper trains one model a task, needs
no words and puts a linear head on the mean token. The words are summed, so their order is not read:
'the red cube left of the white one' and its reverse would be one question. The kit's tasks do
without; a model that is asked both refuses.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from wmpo_lite.common.checkpoint import Saved
from wmpo_lite.common.errors import UserError
from wmpo_lite.language import WORDS, build_tokenizer, check_count, known_words, word_ids


@dataclass(frozen=True)
class RewardConfig:
    """clip: frames L a window holds (paper: 8; here 4 frames at 5 Hz tell a still scene). The
    paper's encoder is VideoMAE-base at 224 pixels. members: networks that judge together (paper:
    1), see `RewardModel.together`. words: of the instructions; none: those of the table-top.
    """

    image: int = 64
    clip: int = 4
    patch: int = 8
    tubelet: int = 2
    width: int = 96
    depth: int = 4
    heads: int = 4
    members: int = 1
    words: tuple = ()

    def __post_init__(self):
        if self.clip < 2 or self.clip % self.tubelet:
            raise UserError(
                f"a reward clip of {self.clip} frames cannot be cut into tubelets of"
                f" {self.tubelet}; use an even number of at least 2"
            )
        if not 1 <= self.members <= 16:
            raise UserError(f"{self.members} reward models cannot judge together; use 1 to 16")


class RewardModel(Saved, nn.Module):
    """Probability that a clip uint8 (B, L, H, W, 3) ends in success for its instruction."""

    config_class = RewardConfig
    threshold: torch.Tensor  # from which on a clip counts as a success

    def __init__(self, config: RewardConfig = RewardConfig()):
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEModel

        self.config = config
        self.tokenizer = build_tokenizer(config.words or WORDS)
        self._asked: dict[tuple, str] = {}  # every sentence so far, by its words, sorted
        self.encoder = VideoMAEModel(
            VideoMAEConfig(
                image_size=config.image,
                patch_size=config.patch,
                num_frames=config.clip,
                tubelet_size=config.tubelet,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.width,
                use_mean_pooling=True,
                hidden_act="gelu_pytorch_tanh",
            )
        )
        places = self.encoder.embeddings.position_embeddings
        # A plain tensor there, which would not be saved; `inflate` writes it.
        del self.encoder.embeddings.position_embeddings
        self.encoder.embeddings.position_embeddings = nn.Parameter(places, requires_grad=False)
        self.norm = nn.LayerNorm(config.width)
        self.words = nn.EmbeddingBag(
            self.tokenizer.get_vocab_size(), config.width, mode="sum", padding_idx=0
        )
        self.ask = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.judge = nn.Sequential(
            nn.LayerNorm(2 * config.width),
            nn.Linear(2 * config.width, config.width),
            nn.GELU(),
            nn.Linear(config.width, 1),
        )
        nn.init.normal_(self.words.weight, std=0.3)
        self.register_buffer("threshold", torch.tensor(0.5))
        alone = replace(config, members=1)
        self.others = nn.ModuleList(RewardModel(alone) for _ in range(config.members - 1))

    def forward(self, clips: torch.Tensor, instructions) -> torch.Tensor:
        """Logits (B,). UserError for clips of another size, sentences with unknown words, and for
        two that differ in the order of their words alone.
        """
        check_count(clips, instructions)
        c = self.config
        if clips.shape[1:] != (c.clip, c.image, c.image, 3):
            raise UserError(
                f"the reward model reads clips of {c.clip} frames of {c.image}x{c.image} RGB, got"
                f" {tuple(clips.shape[1:])}; render at that size or fit another reward model"
            )
        clips = clips.to(self.threshold.device)
        pixels = clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # (B, L, 3, H, W)
        seen = self.norm(self.encoder(pixel_values=pixels).last_hidden_state)  # (B, tokens, width)
        question = self.words(self._words(instructions, seen.device))  # (B, width)
        found, _ = self.ask(question[:, None], seen, seen, need_weights=False)
        logits = self.judge(torch.cat([found[:, 0], question], dim=-1))[:, 0].float()
        if len(self.others):
            logits = torch.stack([logits, *(m(clips, instructions) for m in self.others)]).mean(0)
        return logits

    def _words(self, instructions, device) -> torch.Tensor:
        """Word numbers (B, longest) of the sentences, filled up with 0."""
        rows = {str(text): word_ids(self.tokenizer, text) for text in dict.fromkeys(instructions)}
        for text, row in rows.items():
            other = self._asked.setdefault(tuple(sorted(row)), text)
            if word_ids(self.tokenizer, other) != row:
                raise UserError(
                    f"the reward model does not read the order of words, so '{other}' and '{text}'"
                    " are the same to it; use one reward model for each, or say them in other"
                    " words"
                )
        longest = max(len(row) for row in rows.values())
        return torch.tensor(
            [rows[str(text)] + [0] * (longest - len(rows[str(text)])) for text in instructions],
            device=device,
        )

    @classmethod
    def from_tower(cls, policy) -> "RewardModel":
        """A new reward model whose encoder has the sizes and weights of `policy`'s image tower, and
        which knows the policy's words.
        """
        c, words = policy.config, known_words(policy.tokenizer)
        sizes = {"image": c.image, "patch": c.patch, "width": c.vision_width}
        sizes["depth"] = c.vision_depth
        model = cls(RewardConfig(**sizes, words=() if words == tuple(WORDS) else words))
        model.inflate(policy.vision.state_dict())
        return model

    @classmethod
    def together(cls, models: list) -> "RewardModel":
        """One reward model that judges by the mean of the log-odds of several of one size. Fitted
        to a hundred rollouts each of them has learned accidents of its own; the mean has fewer.
        """
        if len(models) == 1:
            return models[0]
        with torch.random.fork_rng():  # weights that are replaced at once
            whole = cls(replace(models[0].config, members=len(models)))
        whole.to(models[0].threshold.device).load_state_dict(
            models[0].state_dict()
            | {
                f"others.{i}.{k}": v
                for i, m in enumerate(models[1:])
                for k, v in m.state_dict().items()
            }
        )
        return whole.eval()

    @torch.no_grad()
    def inflate(self, tower: dict):
        """Start from the weights of an image tower (a SigLIP vision model's state dict of the same
        sizes), as I3D does for convolutions.

        The paper's VideoMAE was pre-trained by masked autoencoding on the world's videos. Tried
        here on broad play, it learns little of things that are a patch wide: fitted to the same 128
        rollouts, AUC 0.79 in place of 0.93.

        Of a still clip the encoder then sees exactly what the tower sees of the frame: every patch
        filter is spread over the tubelet's frames and every position is repeated in time. A key's
        bias moves all scores of a query alike, so VideoMAE does well without it.
        """
        c, encoder = self.config, self.encoder
        patches = encoder.embeddings.patch_embeddings.projection
        spread = tower["embeddings.patch_embedding.weight"][:, :, None] / c.tubelet
        patches.load_state_dict(
            {
                "weight": spread.expand_as(patches.weight),
                "bias": tower["embeddings.patch_embedding.bias"],
            }
        )
        encoder.embeddings.position_embeddings.copy_(
            tower["embeddings.position_embedding.weight"].repeat(c.clip // c.tubelet, 1)[None]
        )
        names = {
            "attention.attention.query": "self_attn.q_proj",
            "attention.attention.key": "self_attn.k_proj",
            "attention.attention.value": "self_attn.v_proj",
            "attention.output.dense": "self_attn.out_proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "layer_norm1",
            "layernorm_after": "layer_norm2",
        }
        for i, layer in enumerate(encoder.encoder.layer):
            for name, parameter in layer.named_parameters():
                module, _, kind = name.rpartition(".")
                parameter.copy_(tower[f"encoder.layers.{i}.{names[module]}.{kind}"])
        self.norm.load_state_dict(
            {kind: tower[f"post_layernorm.{kind}"] for kind in ("weight", "bias")}
        )

    def freeze_lower(self, layers: int):
        """Keep the embeddings and the first `layers` layers of the encoder as they are: a hundred
        rollouts are few to learn to see from.
        """
        self.encoder.embeddings.requires_grad_(layers == 0)
        self.encoder.embeddings.position_embeddings.requires_grad_(False)
        for i, layer in enumerate(self.encoder.encoder.layer):
            layer.requires_grad_(i >= layers)

    @torch.no_grad()
    def probabilities(self, clips: torch.Tensor, instructions, batch: int = 128) -> torch.Tensor:
        """Success probability (B,) of many clips, in pieces."""
        if not len(clips):
            return torch.zeros(0)
        parts = [
            torch.sigmoid(self(clips[i : i + batch], instructions[i : i + batch]))
            for i in range(0, len(clips), batch)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def slide(self, frames: torch.Tensor, instructions, stride: int = 1) -> torch.Tensor:
        """Success probability of every window of L frames: frames (B, T, H, W, 3) -> (B, T - L +
        1), window w ends at frame w + L - 1.

        stride: judge only every stride-th window, counted back from the one that ends at the newest
        frame.
        """
        length = self.config.clip
        if frames.shape[1] < length:
            return torch.zeros(len(frames), 0)
        windows = frames[:, (frames.shape[1] - length) % stride :].unfold(1, length, stride)
        windows = windows.permute(0, 1, 5, 2, 3, 4)  # (B, W, L, H, W, 3), a view
        scores, count = [], windows.shape[1]
        rows = max(1, 128 // count)  # of a few episodes at a time: every frame is copied L times
        for i in range(0, len(windows), rows):
            part = windows[i : i + rows]
            texts = [text for text in instructions[i : i + rows] for _ in range(count)]
            scores.append(
                self.probabilities(part.flatten(0, 1), texts).unflatten(0, part.shape[:2])
            )
        return torch.cat(scores)

    def score(
        self, frames: torch.Tensor, instructions, stride: int = 1, min_consecutive: int = 1
    ) -> torch.Tensor:
        """The largest probability (B,) that `min_consecutive` judged windows in a row reach in
        whole episodes: what the threshold is applied to.

        frames (B, T + 1, H, W, 3) from the first on. Judged are, as in imagination, the windows
        that end at frame `stride`, 2 `stride`, ...
        """
        newest = last_judged(frames.shape[1] - 1, stride)
        scores = self.slide(frames[:, : newest + 1], instructions, stride)
        if not scores.shape[1]:
            raise UserError(
                f"the episodes have {frames.shape[1]} frames, fewer than the reward model's clip of"
                f" {self.config.clip}: no window can be judged"
                if frames.shape[1] < self.config.clip
                else (
                    f"no window of {self.config.clip} frames ends at every {stride}th of the"
                    f" episodes' {frames.shape[1]} frames: none can be judged, choose a smaller"
                    " stride"
                )
            )
        if scores.shape[1] < min_consecutive:
            raise UserError(
                f"{scores.shape[1]} windows of the episodes are judged and {min_consecutive} in a"
                " row must agree, so no episode can succeed; lower min_consecutive"
            )
        return scores.unfold(1, min_consecutive, 1).amin(dim=-1).amax(dim=1)


def last_judged(frame: int, stride: int) -> int:
    """The newest frame up to `frame` at which a judged window ends. Counted from the episode's
    first frame, so that it does not matter how an episode is cut into chunks.
    """
    if stride < 1:
        raise UserError(f"the stride between judged windows is {stride}; expected 1 or more frames")
    return frame - frame % stride
