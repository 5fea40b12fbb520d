"""The success classifier (paper section 3.3): a VideoMAE encoder reads the last L frames, a head says whether the instruction is fulfilled.

The head asks with the words of the instruction, because in a scene with two cubes the same picture is a success for one sentence and a failure for
the other; the paper trains one model a task, needs no words and puts a linear head on the mean token.
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wmpo_lite import checkpoint
from wmpo_lite.errors import UserError
from wmpo_lite.policy import build_tokenizer


@dataclass(frozen=True)
class RewardConfig:
    """clip: frames L a window holds (paper: 8; here 4 frames at 5 Hz tell a still scene). The paper's encoder is VideoMAE-base at 224 pixels."""

    image: int = 64
    clip: int = 4
    patch: int = 8
    tubelet: int = 2
    width: int = 96
    depth: int = 4
    heads: int = 4

    def __post_init__(self):
        if self.clip < 2 or self.clip % self.tubelet:
            raise UserError(f"a reward clip of {self.clip} frames cannot be cut into tubelets of {self.tubelet}; use an even number of at least 2")


class RewardModel(nn.Module):
    """Probability that a clip uint8 (B, L, H, W, 3) ends in success for its instruction."""

    def __init__(self, config: RewardConfig = RewardConfig()):
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEModel
        self.config = config
        self.tokenizer = build_tokenizer()
        self.encoder = VideoMAEModel(VideoMAEConfig(
            image_size=config.image, patch_size=config.patch, num_frames=config.clip, tubelet_size=config.tubelet, hidden_size=config.width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, intermediate_size=4 * config.width, use_mean_pooling=True, hidden_act="gelu_pytorch_tanh"))
        places = self.encoder.embeddings.position_embeddings
        del self.encoder.embeddings.position_embeddings  # a plain tensor there, which would not be saved; `inflate` writes it
        self.encoder.embeddings.position_embeddings = nn.Parameter(places, requires_grad=False)
        self.norm = nn.LayerNorm(config.width)
        self.words = nn.EmbeddingBag(self.tokenizer.get_vocab_size(), config.width, mode="sum", padding_idx=0)
        self.ask = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.judge = nn.Sequential(nn.LayerNorm(2 * config.width), nn.Linear(2 * config.width, config.width), nn.GELU(), nn.Linear(config.width, 1))
        nn.init.normal_(self.words.weight, std=0.3)
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, clips: torch.Tensor, instructions) -> torch.Tensor:
        """Logits (B,)."""
        pixels = clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # (B, L, 3, H, W)
        seen = self.norm(self.encoder(pixel_values=pixels).last_hidden_state)  # (B, tokens, width)
        rows = [self.tokenizer.encode(text).ids for text in instructions]
        longest = max(len(row) for row in rows)
        question = self.words(torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=seen.device))  # (B, width)
        found, _ = self.ask(question[:, None], seen, seen, need_weights=False)
        return self.judge(torch.cat([found[:, 0], question], dim=-1))[:, 0]

    @torch.no_grad()
    def inflate(self, tower: dict):
        """Start from the weights of an image tower (a SigLIP vision model's state dict of the same sizes), as I3D does for convolutions.

        Of a still clip the encoder then sees exactly what the tower sees of the frame: every patch filter is spread over the tubelet's frames and
        every position is repeated in time. A key's bias moves all scores of a query alike, so VideoMAE does well without it.
        """
        c, encoder = self.config, self.encoder
        patches = encoder.embeddings.patch_embeddings.projection
        patches.weight.copy_(tower["embeddings.patch_embedding.weight"][:, :, None] / c.tubelet), patches.bias.copy_(tower["embeddings.patch_embedding.bias"])
        encoder.embeddings.position_embeddings.copy_(tower["embeddings.position_embedding.weight"].repeat(c.clip // c.tubelet, 1)[None])
        names = {"attention.attention.query": "self_attn.q_proj", "attention.attention.key": "self_attn.k_proj", "attention.attention.value": "self_attn.v_proj",
                 "attention.output.dense": "self_attn.out_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
                 "layernorm_before": "layer_norm1", "layernorm_after": "layer_norm2"}
        for i, layer in enumerate(encoder.encoder.layer):
            for name, parameter in layer.named_parameters():
                module, _, kind = name.rpartition(".")
                parameter.copy_(tower[f"encoder.layers.{i}.{names[module]}.{kind}"])
        self.norm.weight.copy_(tower["post_layernorm.weight"]), self.norm.bias.copy_(tower["post_layernorm.bias"])

    @torch.no_grad()
    def probabilities(self, clips: torch.Tensor, instructions, batch: int = 128) -> torch.Tensor:
        """Success probability (B,) of many clips, in pieces."""
        if not len(clips):
            return torch.zeros(0)
        parts = [torch.sigmoid(self(clips[i: i + batch], instructions[i: i + batch])) for i in range(0, len(clips), batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def slide(self, frames: torch.Tensor, instructions, stride: int = 1) -> torch.Tensor:
        """Success probability of every window of L frames: frames (B, T, H, W, 3) -> (B, T - L + 1), window w ends at frame w + L - 1.

        stride: judge only every stride-th window, counted back from the one that ends at the newest frame.
        """
        length = self.config.clip
        if frames.shape[1] < length:
            return torch.zeros(len(frames), 0)
        windows = frames[:, (frames.shape[1] - length) % stride:].unfold(1, length, stride).permute(0, 1, 5, 2, 3, 4)  # (B, W, L, H, W, 3), a view
        scores, count = [], windows.shape[1]
        rows = max(1, 128 // count)  # flattening copies every frame L times, so a few episodes at a time
        for i in range(0, len(windows), rows):
            part = windows[i: i + rows]
            texts = [text for text in instructions[i: i + rows] for _ in range(count)]
            scores.append(self.probabilities(part.flatten(0, 1), texts).unflatten(0, part.shape[:2]))
        return torch.cat(scores)

    def score(self, frames: torch.Tensor, instructions, stride: int = 1, hold: int = 1) -> torch.Tensor:
        """The largest probability (B,) that `hold` judged windows in a row reach in whole episodes: what the threshold is applied to."""
        scores = self.slide(frames, instructions, stride)
        if not scores.shape[1]:
            raise UserError(f"the episodes have {frames.shape[1]} frames, fewer than the reward model's clip of {self.config.clip}: no window can be judged")
        if scores.shape[1] < hold:
            raise UserError(f"{scores.shape[1]} windows of the episodes are judged and {hold} in a row must agree, so no episode can succeed; lower judge_hold")
        return scores.unfold(1, hold, 1).amin(dim=-1).amax(dim=1)

    def save(self, folder, provenance=None):
        checkpoint.save_module(folder, self, self.config, provenance)

    @classmethod
    def load(cls, folder):
        return checkpoint.load_state(folder, cls(checkpoint.load_config(folder, RewardConfig, cls.__name__))).eval()


def sample_clips(episodes: dict, config: RewardConfig, rng: np.random.Generator, half: int, ghosts: float = 0.15):
    """A balanced batch of 2 x half clips with labels.

    episodes: frames uint8 (E, T + 1, H, W, 3), success bool (E,), finish_step int (E,), instruction (E,), other (E,) (an instruction that the same
    pictures do not fulfil, or '').
    Positives are the terminal clips of successes. Negatives are clips of failures, clips of successes that end at least L frames before the end,
    terminal clips under the other instruction, and `ghosts`: terminal clips blended with the episode's start, the smear that a poor world model
    leaves behind, so that a doubtful picture is not paid for.
    """
    length, frames = config.clip, episodes["frames"]
    success, finish = np.asarray(episodes["success"], dtype=bool), np.asarray(episodes["finish_step"])
    good = np.flatnonzero(success & (finish + 1 >= length))
    if not len(good) or success.all():
        raise UserError(f"{int(success.sum())} of {len(success)} episodes are successes and {len(good)} of those are at least {length} frames long; a "
                        "success classifier needs both successes and failures: record more rollouts or start from another base policy")
    cut = lambda e, end: frames[e, end - length + 1: end + 1]  # noqa: E731
    clips, texts, labels = [], [], []
    for e in rng.choice(good, half):
        clips.append(cut(e, finish[e])), texts.append(episodes["instruction"][e]), labels.append(1.0)
    for kind in rng.random(half):
        e = rng.choice(good) if kind < 0.55 else rng.choice(np.flatnonzero(~success))
        text = episodes["instruction"][e]
        if kind < ghosts:
            mix = rng.uniform(0.3, 0.6)
            clip = (mix * cut(e, finish[e]).astype(np.float32) + (1 - mix) * frames[e, :1]).round().astype(np.uint8)
        elif kind < 0.3 and episodes["other"][e]:
            clip, text = cut(e, finish[e]), episodes["other"][e]
        else:
            latest = finish[e] - length if success[e] else frames.shape[1] - 1
            if latest < length - 1:
                e = rng.choice(np.flatnonzero(~success))
                text, latest = episodes["instruction"][e], frames.shape[1] - 1
            # often the latest admissible clip: an unfinished placement is the hardest negative
            clip = cut(e, latest if rng.random() < 0.3 else rng.integers(length - 1, latest + 1))
        clips.append(clip), texts.append(text), labels.append(0.0)
    return torch.from_numpy(np.stack(clips)), texts, torch.tensor(labels)


def reward_loss(model: RewardModel, episodes: dict, half: int = 16, still=()):
    """The `loss_fn` for `train.fit`: binary cross-entropy on balanced clips, with a little brightness jitter.

    still: sets of further labelled clips, each with frames uint8 (N, L, H, W, 3), success bool (N,) and instruction (N,); every batch gets another
    2 x half of each set. Where a set says of which failures it is nearly true that they are none, `nearly` bool (N,), every other failure is of those.
    """
    both = [[np.flatnonzero(np.asarray(part["success"]) == wanted) for wanted in (True, False)] for part in still]
    hard = [np.flatnonzero(part["nearly"]) if "nearly" in part else [] for part in still]
    for part, (good, bad) in zip(still, both):
        if not len(good) or not len(bad):
            raise UserError(f"{len(good)} of {len(part['success'])} further clips are successes; a success classifier needs both, make more of them")

    def loss_fn(generator, rng, step):
        clips, texts, labels = sample_clips(episodes, model.config, rng, half)
        for part, kinds, close in zip(still, both, hard):
            rows = np.concatenate([rng.choice(kind, half) for kind in kinds])
            if len(close):
                rows[half::2] = rng.choice(close, half - half // 2)
            clips = torch.cat([clips, torch.from_numpy(part["frames"][rows][:, -model.config.clip:])])
            texts, labels = texts + [str(part["instruction"][row]) for row in rows], torch.cat([labels, torch.from_numpy(part["success"][rows]).float()])
        jitter = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) * 0.1 + 0.95
        logits = model((clips.float() * jitter).clamp(0, 255), texts)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        return loss, {"accuracy": float(((logits > 0) == (labels > 0.5)).float().mean())}

    return loss_fn


def fit_threshold(model: RewardModel, frames: torch.Tensor, instructions, success) -> tuple[float, float]:
    """Set the model's threshold to the best F1 on held-out rollouts (paper) and return (threshold, F1)."""
    threshold, f1 = best_probability(model.score(frames, instructions).numpy(), success)
    model.threshold.fill_(threshold)
    return threshold, f1


def best_probability(scores: np.ndarray, success) -> tuple[float, float]:
    """`evaluate.best_threshold` for probabilities (N,), with gaps measured in log-odds: near 1 a wide gap is a small number."""
    from wmpo_lite.evaluate import best_threshold
    scores = np.clip(np.asarray(scores, dtype=np.float64), 1e-7, 1 - 1e-7)
    threshold, f1 = best_threshold(np.log(scores / (1 - scores)), np.asarray(success))
    return float(1 / (1 + np.exp(-threshold))), float(f1)


def masked_autoencoding_loss(model: RewardModel, frames: np.ndarray, *, batch: int = 32, masked: float = 0.75, width: int = 64, depth: int = 2):
    """VideoMAE's own pre-training (Tong et al. 2022, arXiv 2203.12602): the encoder sees a quarter of a clip's patches, a decoder fills in the rest.

    frames: uint8 (E, T + 1, H, W, 3) of any video, without labels. The mask is the same in all of a clip's frames (a tube), so what is hidden
    cannot be copied from a neighboring frame. Returns (module, loss_fn) for `fit`; the decoder is thrown away.
    """
    from transformers import VideoMAEForPreTraining
    c = model.config
    config = model.encoder.config.__class__(**{**model.encoder.config.to_dict(), "decoder_hidden_size": width, "decoder_num_hidden_layers": depth,
                                               "decoder_num_attention_heads": 4, "decoder_intermediate_size": 4 * width, "norm_pix_loss": True})
    whole = VideoMAEForPreTraining(config)
    whole.videomae = model.encoder
    patches, hidden = (c.image // c.patch) ** 2, round(masked * (c.image // c.patch) ** 2)

    def loss_fn(generator, rng, step):
        e, end = rng.integers(len(frames), size=batch), rng.integers(c.clip, frames.shape[1] + 1, size=batch)
        clips = torch.from_numpy(np.stack([frames[i, j - c.clip: j] for i, j in zip(e, end)]))
        hide = torch.zeros(batch, patches, dtype=torch.bool)
        hide.scatter_(1, torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :hidden], True)
        pixels = clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        return whole(pixel_values=pixels, bool_masked_pos=hide.repeat(1, c.clip // c.tubelet)).loss, {}

    return whole, loss_fn
