"""A policy on a pre-trained image-text model of `transformers`: SmolVLM, PaliGemma and their like,
loaded by name, trained on action tokens.

Its tokens are OpenVLA's (arXiv 2406.09246): every action dimension in 256 bins, which take the
places of the last 256 entries of the vocabulary, the lowest bin the very last. A chunk is read off
in one pass (OpenVLA-OFT, arXiv 2502.19645; the paper's policy): after picture and sentence stand K
x D learned queries, and each one's output is compared with those 256 embeddings only.

In place of `Policy` wherever the kit takes one: `rollout`, `optimize`, `clone`. A model of billions
of parameters wants a GPU and `lora_rank`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wmpo_lite.action_tokens import ActionStatistics, TokenPolicy, check_frames
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.language import check_count, check_words
from wmpo_lite.policy import language_files, load_language

# What LoRA adapts, by the names that SmolVLM's, PaliGemma's and most other decoders give their
# linear maps.
LORA_TARGETS = (
    r".*(text_model|language_model).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
)


@dataclass(frozen=True)
class BackboneConfig:
    """image: pixels of the frames that it is given, which are enlarged to the backbone's own size;
    bins: tokens an action dimension; prompt: what the model reads, with the instruction in it;
    lora_rank: 0 trains everything, else the decoder is adapted by matrices of this rank and the
    vision tower stays.
    """

    image: int = 256
    chunk: int = 8
    action_dim: int = 7
    bins: int = 256
    prompt: str = "In: What action should the robot take to {instruction}?\nOut:"
    lora_rank: int = 0


class BackbonePolicy(TokenPolicy):
    """pi(action tokens | frame, instruction) on `model`, an image-text model of transformers with
    `get_image_features` (any `AutoModelForImageTextToText` whose pictures become rows of one
    width), and `tokenizer`, a `tokenizers.Tokenizer`.

    Frames uint8 (B, H, W, 3); tokens int64 (B, K, D) in [0, bins). See `from_name` for pre-trained
    models.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        config: BackboneConfig = BackboneConfig(),
        statistics: ActionStatistics | None = None,
    ):
        super().__init__()
        dims = config.action_dim
        names = tuple(f"a{i}" for i in range(dims))
        statistics = statistics or ActionStatistics(names, (-1.0,) * dims, (1.0,) * dims)
        self.set_range(statistics, config.action_dim)
        if "{instruction}" not in config.prompt:
            raise UserError(
                f"the prompt '{config.prompt}' has no place for the instruction; write"
                " {instruction} where it belongs"
            )
        self.config, self.tokenizer, self.family = config, tokenizer, model.config.model_type
        words = model.get_output_embeddings().weight
        if not 1 < config.bins <= len(words):
            raise UserError(
                f"bins is {config.bins}; expected 2 to {len(words)}, the size of the backbone's"
                " vocabulary"
            )
        # Row t belongs to bin t and starts as entry (last - t) of the vocabulary. A copy: what
        # these words mean in sentences stays as it was.
        self.head = nn.Parameter(words[-config.bins :].flip(0).detach().clone().float())
        width = words.shape[1]
        scale = float(words.detach().float().std())
        self.slots = nn.Parameter(torch.randn(config.chunk * dims, width) * scale)
        self.body = model.model  # without the head over all words, which nobody asks here
        if config.lora_rank:
            self._adapt(config.lora_rank)

    def _adapt(self, rank: int):
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise UserError(
                f"lora_rank is {rank}, but peft is not installed ({error}); pip install"
                " 'wmpo_lite[vla]', or leave it at 0"
            ) from error
        self.body.requires_grad_(False)
        how = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0}
        try:
            inject_adapter_in_model(LoraConfig(**how, target_modules=LORA_TARGETS), self.body)
        except ValueError as error:
            raise UserError(
                "LoRA finds none of the linear maps that it knows in a model of type"
                f" '{self.family}'; use lora_rank 0"
            ) from error

    # -- network -----------------------------------------------------------------------------------

    @property
    def vision(self) -> nn.Module:
        for name in ("vision_model", "vision_tower", "visual"):
            if hasattr(self.body, name):
                return getattr(self.body, name)
        raise UserError(
            f"a model of type '{self.family}' has no vision tower that the kit can find; use a"
            " SmolVLM or PaliGemma"
        )

    def train_vision(self, on: bool):
        if not self.config.lora_rank:  # with LoRA it stays as it is, whatever is asked
            self.vision.requires_grad_(on)

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens of the pictures (B, N, width), as the decoder reads them, for uint8 frames (B, H,
        W, 3).
        """
        check_frames(frames, self.config.image)
        side = self.body.config.vision_config.image_size
        # mean and deviation one half, as both families were trained
        pixels = frames.to(self.slots.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if side != self.config.image:
            pixels = nn.functional.interpolate(
                pixels, size=(side, side), mode="bicubic", antialias=True
            ).clamp(-1, 1)
        pixels = pixels.to(self.body.dtype)
        several = hasattr(self.body, "connector")  # SmolVLM takes a list of pictures an example
        found = self.body.get_image_features(
            pixel_values=pixels[:, None] if several else pixels
        ).pooler_output
        return torch.stack(list(found)) if isinstance(found, (list, tuple)) else found

    def logits(self, frames, instructions, seen=None) -> torch.Tensor:
        hidden = self.hidden(self.features(frames) if seen is None else seen, instructions)
        return hidden.float() @ self.head.float().T

    def hidden(self, features: torch.Tensor, instructions) -> torch.Tensor:
        """Decoder states (B, K, D, width) of the action queries, from picture tokens
        (B, N, width).
        """
        c, device = self.config, self.slots.device
        check_count(features, instructions)
        for text in dict.fromkeys(instructions):
            check_words(self.tokenizer, text, re.findall(r"\w+", text))
        features = features.to(self.body.dtype)  # kept ones may come in another number type
        ids = lambda text: self.tokenizer.encode(c.prompt.format(instruction=text)).ids
        rows = [torch.tensor(ids(text), device=device) for text in instructions]
        embed, slots = self.body.get_input_embeddings(), self.slots.to(features.dtype)
        # Shorter sentences are filled up on the left, before everything: positions count from one
        # another, so filling changes nothing.
        longest = max(len(row) for row in rows)
        filling = lambda row: features.new_zeros(longest - len(row), features.shape[-1])
        parts = [
            torch.cat([filling(row), picture, embed(row).to(features.dtype), slots])
            for picture, row in zip(features, rows)
        ]
        present = torch.stack(
            [torch.arange(len(parts[0]), device=device) >= longest - len(row) for row in rows]
        )
        # PaliGemma reads what carries type 0 in both directions; all of it is given, nothing is
        # generated.
        more = {}
        if self.family.startswith("paligemma"):
            more["token_type_ids"] = torch.zeros_like(present, dtype=torch.long)
        states = self.body(
            inputs_embeds=torch.stack(parts), attention_mask=present.long(), use_cache=False, **more
        ).last_hidden_state
        return states[:, -len(slots) :].unflatten(1, (c.chunk, c.action_dim))

    def vocabulary_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """OpenVLA's numbers for action tokens: the lowest bin is the last word
        of the vocabulary.
        """
        return self.body.config.get_text_config().vocab_size - 1 - tokens

    # -- files -------------------------------------------------------------------------------------

    def save(self, folder, provenance=None):
        """Everything, so that nothing has to be fetched to load it again."""
        # Buffers that are computed anew on loading (rotary frequencies, the scale of Gemma's
        # embeddings) are rounded where the whole model was in 16 bits once, and stay so.
        buffers = {n: v for n, v in self.body.named_buffers() if v.is_floating_point()}
        kinds = {n: str(v.dtype).removeprefix("torch.") for n, v in buffers.items()}
        few = {n: v for n, v in buffers.items() if v.numel() <= 4096 and v.isfinite().all()}
        values = {n: v.double().tolist() for n, v in few.items()}
        own = {"buffer_types": kinds, "buffer_values": values}
        described = json.dumps({**self.body.config.to_dict(), **own}, default=str)
        files = {**language_files(self), "backbone.json": described}
        checkpoint.save_module(folder, self, self.config, provenance, files)

    @classmethod
    def load(cls, folder):
        from transformers import AutoConfig, AutoModelForImageTextToText

        config = checkpoint.load_config(folder, BackboneConfig, cls.__name__)
        statistics, tokenizer = load_language(folder)
        described = checkpoint.read_json(Path(folder) / "backbone.json")
        types, values = described.pop("buffer_types", {}), described.pop("buffer_values", {})
        try:
            body = AutoConfig.for_model(described.pop("model_type"), **described)
            model = AutoModelForImageTextToText.from_config(
                body, trust_remote_code=False, dtype=torch.float32
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder}/backbone.json describes no image-text model of this version of"
                f" transformers ({error}); train the policy again"
            ) from error
        policy = cls(model, tokenizer, config, statistics)
        policy = checkpoint.load_state(folder, policy, keep_dtype=True)
        for name, value in policy.body.named_buffers():
            value.data = value.data.to(getattr(torch, types.get(name, ""), value.dtype))
            try:
                stored = torch.tensor(values.get(name, []), dtype=torch.float64)
            except (ValueError, TypeError):
                stored = None
            if name in values and (stored is None or stored.shape != value.shape):
                raise UserError(
                    f"{folder}/backbone.json has another shape of '{name}' than the model; it was"
                    " edited, fetch or train the policy again"
                )
            if name in values:
                value.data.copy_(stored)
        return policy.eval()

    @classmethod
    def from_name(
        cls,
        name: str,
        config: BackboneConfig = BackboneConfig(),
        statistics: ActionStatistics | None = None,
        *,
        download: bool = False,
        dtype=torch.float32,
    ):
        """On the pre-trained model `name`: a folder, or a name of the Hugging Face hub such as
        'HuggingFaceTB/SmolVLM-256M-Instruct' or 'google/paligemma-3b-pt-224'. Only safetensors are
        read and no code is run. download: fetch what is not on this machine yet.
        """
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        options = {"local_files_only": not download, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options).backend_tokenizer
            model = AutoModelForImageTextToText.from_pretrained(
                name, use_safetensors=True, dtype=dtype, **options
            )
        except OSError as error:
            raise UserError(
                f"the model '{name}' is not complete on this machine; give download=True to fetch"
                " it, or name a folder that holds its config, tokenizer and safetensors"
                f" ({str(error).splitlines()[0]})"
            ) from error
        except (ValueError, KeyError) as error:
            raise UserError(
                f"'{name}' is not an image-text model that this version of transformers knows"
                f" ({str(error).splitlines()[0]})"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(model, tokenizer, config, statistics)
