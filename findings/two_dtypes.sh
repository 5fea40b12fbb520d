#!/bin/bash
# transformers 5.23.0: a model of two parts that is saved with its text part in bfloat16 and its
# vision part in float32 comes back in one number type, and dtype="auto" does not keep both either.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu transformers==5.23.0 numpy==2.4.6
measure <<'PYTHON'
import collections
import torch
import transformers
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
text = dict(small, model_type="llama", vocab_size=100, num_key_value_heads=2, pad_token_id=0)
vision = dict(small, image_size=32, patch_size=8)
config = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=2, image_token_id=99)
kinds = lambda model: dict(collections.Counter(str(p.dtype)[6:] for p in model.parameters()))


def saved(low):
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    getattr(model.model, low).to(torch.bfloat16)
    model.save_pretrained(low)
    back = SmolVLMForConditionalGeneration.from_pretrained(low)
    auto = SmolVLMForConditionalGeneration.from_pretrained(low, dtype="auto")
    return kinds(model), kinds(back), kinds(auto)


for low in ("text_model", "vision_model"):
    before, back, auto = found = saved(low)
    print(f"{low} in bfloat16: saved {before}, read {back}, with dtype='auto' {auto}")
    assert len(before) == 2 and len(back) == len(auto) == 1
print(f"transformers {transformers.__version__}: two number types saved, one read: {back}")
PYTHON
