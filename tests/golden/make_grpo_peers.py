"""How grpo_peers.json was made: the loss and advantage functions of public packages, called on
fixed random numbers. The tests install none of them: they read the JSON and take the inputs from
here.

    python3.11 -m venv peers, in it torch and transformers as the kit pins them, then
    pip install --no-deps trl==1.16.0 verl==0.9.1 openrlhf==0.11.2 rlinf==0.3.0
    and what they ask for when they are imported
    python make_grpo_peers.py grpo_peers.json

`wmpo` is WMPO's public code (github.com/WM-PO/WMPO, verl/trainer/ppo/core_algos.py at the commit
that it names): compute_grpo_outcome_advantage and compute_policy_loss, called by hand on the same
numbers. What the file holds of it is kept.

Everything is on one process and one device. flash_attn, deepspeed and vllm, which OpenRLHF imports
and these functions do not use, are stand-ins.
"""

import importlib.machinery
import json
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

SHAPE = (6, 3, 4, 2)  # trajectories, chunks, steps a chunk, action dimensions
FINISH = (12, 3, 8, 5, 12, 1)  # control steps that count, of 12
SEED, CLIP_LOW, CLIP_HIGH, DUAL = 1, 0.2, 0.28, 3.0
REWARDS = {
    "one success of four": [1.0, 0.0, 0.0, 0.0],
    "half of eight": [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    "eight equal 0.7": [0.7] * 8,
    "shaped": [0.1, 0.9, 0.35, 0.2, 0.8, 0.05],
}


def inputs(seed: int = SEED) -> dict:
    """new, old (N, chunks, K, D) log-probabilities, advantages (N,), mask (N, chunks, K, D)."""
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.5, 0.5, SHAPE)
    new = old + rng.normal(0, 0.6, SHAPE)  # ratios from 0.2 to 5: all clips act
    steps = np.arange(SHAPE[1] * SHAPE[2]).reshape(1, SHAPE[1], SHAPE[2], 1)
    mask = np.broadcast_to(steps < np.reshape(FINISH, (-1, 1, 1, 1)), SHAPE)
    advantages = rng.normal(0, 1, SHAPE[0])
    numbers = {"new": new, "old": old, "advantages": advantages}
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in numbers.items()} | {
        "mask": torch.tensor(mask)
    }


def stand_in(*names: str) -> None:
    from unittest.mock import MagicMock

    for name in names:
        module = MagicMock()
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        sys.modules[name] = module


def measured(loss_of, given: dict) -> dict:
    """Loss, and its gradient by the new log-probabilities, in seven decimals."""
    new = given["new"].clone().requires_grad_()
    loss = loss_of(new)
    loss.backward()
    return {"loss": round(float(loss), 7), "gradient": _digits(new.grad.flatten())}


def _digits(values) -> list:
    return [round(float(v), 7) for v in values]


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


# -- the packages ----------------------------------------------------------------------------------


def verl(given: dict) -> dict:
    from verl.trainer.ppo.core_algos import (
        compute_grpo_outcome_advantage,
        compute_policy_loss_vanilla,
    )
    from verl.workers.config import ActorConfig

    def loss(mode, c):
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio_low=CLIP_LOW,
            clip_ratio_high=CLIP_HIGH,
            clip_ratio_c=c,
        )
        mask = flat(given["mask"]).float()
        advantages = given["advantages"][:, None].expand_as(mask)
        return lambda new: compute_policy_loss_vanilla(
            flat(given["old"]), flat(new), advantages, mask, loss_agg_mode=mode, config=config
        )[0]

    def advantages(rewards):
        table = torch.tensor(rewards)[:, None]
        found = compute_grpo_outcome_advantage(table, torch.ones_like(table), [0] * len(rewards))
        return found[0][:, 0]

    return {
        "version": version("verl"),
        "losses": {
            "loss_agg_mode=token-mean, clip_ratio_c=3": measured(loss("token-mean", DUAL), given),
            "loss_agg_mode=token-mean, clip_ratio_c=1e9": measured(loss("token-mean", 1e9), given),
            "loss_agg_mode=seq-mean-token-mean, clip_ratio_c=1e9": measured(
                loss("seq-mean-token-mean", 1e9), given
            ),
        },
        "advantages": {name: _digits(advantages(r)) for name, r in REWARDS.items()},
    }


def openrlhf(given: dict) -> dict:
    stand_in("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "vllm")
    stand_in("flash_attn.utils.distributed", "deepspeed", "deepspeed.ops", "deepspeed.ops.adam")
    stand_in("deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.utils", "deepspeed.comm")
    stand_in("deepspeed.runtime.zero.partition_parameters")
    stand_in("openrlhf.trainer.ray.launcher", "openrlhf.trainer.ray")
    from openrlhf.models.loss import PolicyLoss
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    def loss(token_level, dual):
        function = PolicyLoss(CLIP_LOW, CLIP_HIGH, dual_clip=dual, token_level_loss=token_level)
        mask = flat(given["mask"]).float()
        advantages = given["advantages"][:, None].expand_as(mask)
        return lambda new: function(flat(new), flat(given["old"]), advantages, mask)[0]

    def advantages(rewards):
        maker = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
        maker.advantage_estimator, maker.kl_ctl = "group_norm", SimpleNamespace(value=0.0)
        advantage = SimpleNamespace(estimator="group_norm", gamma=1.0)
        args = SimpleNamespace(
            rollout=SimpleNamespace(n_samples_per_prompt=len(rewards)),
            reward=SimpleNamespace(clip_range=None),
            algo=SimpleNamespace(advantage=advantage),
        )
        maker.strategy = SimpleNamespace(args=args)
        one = torch.ones(len(rewards), 1)
        episode = Experience(
            index=list(range(len(rewards))),
            rewards=torch.tensor(rewards),
            action_mask=one,
            kl=torch.zeros_like(one),
            info={},
        )
        return maker.compute_advantages_and_returns([episode])[0].advantages[:, 0]

    return {
        "version": version("openrlhf"),
        "losses": {
            "token_level_loss=True": measured(loss(True, None), given),
            "token_level_loss=True, dual_clip=3": measured(loss(True, DUAL), given),
            "token_level_loss=False": measured(loss(False, None), given),
        },
        "advantages": {name: _digits(advantages(r)) for name, r in REWARDS.items()},
    }


def rlinf(given: dict) -> dict:
    from rlinf.algorithms.advantages import compute_grpo_advantages
    from rlinf.algorithms.losses import compute_grpo_actor_loss_fn

    def loss(chunks: bool, c=None):
        mask = given["mask"]
        if chunks:  # a chunk's tokens join in one ratio, as its logprob_type "chunk_level"
            there = mask.flatten(2).any(-1)  # (N, chunks)
            join = lambda x: (x * mask).sum((-2, -1))
        else:
            there, join = flat(mask), flat
        advantages = given["advantages"][:, None].expand(there.shape).contiguous()
        return lambda new: compute_grpo_actor_loss_fn(
            logprobs=join(new),
            old_logprobs=join(given["old"]),
            advantages=advantages,
            clip_ratio_low=CLIP_LOW,
            clip_ratio_high=CLIP_HIGH,
            clip_ratio_c=c,
            loss_mask=there,
        )[0]

    def advantages(rewards):
        table = torch.tensor(rewards)[None]
        return compute_grpo_advantages(table, torch.ones_like(table), len(rewards))[0][0]

    return {
        "version": version("rlinf"),
        "losses": {
            "chunk level": measured(loss(True), given),
            "chunk level, clip_ratio_c=3": measured(loss(True, DUAL), given),
            "token level": measured(loss(False), given),
            "token level, clip_ratio_c=3": measured(loss(False, DUAL), given),
        },
        "advantages": {name: _digits(advantages(r)) for name, r in REWARDS.items()},
    }


def trl(given: dict) -> dict:
    from trl.trainer.grpo_trainer import GRPOTrainer

    def loss(kind, delta=None):
        mask = flat(given["mask"]).float()
        tokens = torch.zeros(mask.shape, dtype=torch.long)
        accelerator = SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        )
        trainer = SimpleNamespace(
            accelerator=accelerator,
            args=SimpleNamespace(delta=delta, steps_per_generation=1),
            current_gradient_accumulation_steps=1,
            epsilon_low=CLIP_LOW,
            epsilon_high=CLIP_HIGH,
            loss_type=kind,
            model=SimpleNamespace(training=True),
            _metrics={"train": defaultdict(list)},
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=0.0,
            use_vllm=False,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=False,
        )
        batch = {
            "prompt_ids": tokens[:, :1],
            "prompt_mask": tokens[:, :1] + 1,
            "completion_ids": tokens,
            "completion_mask": mask,
            "advantages": given["advantages"],
            "old_per_token_logps": flat(given["old"]),
            "num_items_in_batch": mask.sum(),
        }

        def of(new):
            trainer._get_per_token_logps_and_entropies = lambda *given, **more: (
                flat(new),
                torch.zeros_like(mask),
                None,
            )
            return GRPOTrainer._compute_loss(trainer, None, batch)

        return of

    return {
        "version": version("trl"),
        "losses": {
            "loss_type=dapo": measured(loss("dapo"), given),
            "loss_type=grpo": measured(loss("grpo"), given),
            "loss_type=dapo, delta=3": measured(loss("dapo", DUAL), given),
        },
        "advantages": {name: _digits(trl_advantages(r)) for name, r in REWARDS.items()},
    }


def trl_advantages(rewards) -> torch.Tensor:
    """Of a whole GRPOTrainer with a model of a few hundred weights, whose reward function says
    `rewards`.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    count = len(rewards)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=LlamaForCausalLM(config),
            reward_funcs=lambda completions, **more: list(rewards),
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=count,
                num_generations=count,
                max_completion_length=2,
                max_steps=1,
                report_to=[],
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a b"] * 8}),
            processing_class=tokenizer,
        )
        found, score = {}, trainer._generate_and_score_completions

        def keep(inputs):
            made = score(inputs)
            found["advantages"] = made["advantages"]
            return made

        trainer._generate_and_score_completions = keep
        trainer.train()
    return found["advantages"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = inputs()
    packages = {"trl": trl, "verl": verl, "openrlhf": openrlhf, "rlinf": rlinf}
    path = Path(sys.argv[1])
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k == "wmpo"}
    results = {name: function(given) for name, function in packages.items()} | kept
    about = {"torch": torch.__version__, "seed": SEED, "clip": [CLIP_LOW, CLIP_HIGH], "dual": DUAL}
    text = json.dumps({"about": about, **results}, separators=(",", ":"))
    path.write_text(text.replace('},"', '},\n"') + "\n")
