#!/bin/bash
# RLinf 0.3.0: the actor for robot policies does not pass clip_ratio_c, kl_beta and loss_agg_func on to
# the loss, whatever a recipe sets them to; not even a word that means nothing is noticed.
# The scheduler, models and other packages, which this does not use, are stand-ins.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6 omegaconf==2.3.0
"$folder/venv/bin/python" -m pip install -q --no-compile --no-deps rlinf==0.3.0 >> "$folder/log" 2>&1 || exit 75
measure <<'PYTHON'
import sys
from contextlib import nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from omegaconf import OmegaConf

REAL = ("", "algorithms", "workers", "workers.actor", "workers.actor.fsdp_actor_worker", "utils",
        "utils.utils", "utils.omega_resolver", "utils.metric_utils", "utils.nested_dict_process")
REAL = {f"rlinf.{name}".rstrip(".") for name in REAL}
OTHERS = ("ray", "transformers", "tensordict", "hydra", "tqdm", "PIL", "cv2", "gymnasium", "regex")


class StandIn(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        ours = name.startswith("rlinf.") and name not in REAL and not name.startswith("rlinf.algorithms.")
        if ours or name.partition(".")[0] in OTHERS:
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        on_cpu = {"torch_platform": MagicMock(current_device=lambda: "cpu"), "timer": lambda name: lambda f: f}
        module.Worker, module.FSDPModelManager = type("Worker", (), on_cpu), type("Manager", (), {})
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, StandIn())
import rlinf.workers.actor.fsdp_actor_worker as worker

worker.put_tensor_device = lambda batch, device: batch
worker.append_to_dict = lambda metrics, found: metrics.update(found)
torch.manual_seed(0)
NEW = torch.randn(6, 4, 2)
OLD = NEW - 1.5 * torch.rand(6, 4, 2)  # ratios from 1 to 4.5
BATCH = {
    "advantages": torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [1.0], [-1.0]]),
    "prev_logprobs": OLD,
    "loss_mask": torch.ones(6, 1, dtype=torch.bool),
}
ALGORITHM = {
    "loss_type": "actor", "logprob_type": "token_level", "reward_type": "chunk_level", "adv_type": "grpo",
    "clip_ratio_high": 0.28, "clip_ratio_low": 0.2, "entropy_bonus": 0.0,
}


class Actor(worker.EmbodiedFSDPActor):
    """RLinf's own `train_micro_batch`, around a policy of one parameter."""

    def __init__(self, algorithm):
        self.cfg = OmegaConf.create({
            "algorithm": ALGORITHM | algorithm, "runner": {"task_type": "embodied"},
            "actor": {"model": {"model_type": "mlp_policy", "action_dim": 2}},
            "env": {"train": {"max_episode_steps": 4}},
        })
        self.weight, self.device, self.amp_context = torch.zeros((), requires_grad=True), "cpu", nullcontext()
        self.optimizer_steps, self.critic_warmup_steps, self.enable_sft_co_train = 1, 0, False
        self.gradient_accumulation, self.grad_scaler = 1, SimpleNamespace(scale=lambda loss: loss)
        self.before_micro_batch = lambda model, is_last_micro_batch: nullcontext()
        self.model = lambda **given: {"logprobs": NEW + self.weight}


def loss(**algorithm):
    """Loss and gradient under these settings of the recipe."""
    actor, metrics = Actor(algorithm), {}
    actor.train_micro_batch(dict(BATCH), metrics, is_last=True)
    return round(metrics["actor/total_loss"], 4), round(float(actor.weight.grad), 4)


usual = loss()
tried = ({"clip_ratio_c": 1.1}, {"clip_ratio_c": 30.0}, {"kl_beta": 5.0}, {"loss_agg_func": "nonsense"})
for setting in tried:
    print(setting, "loss and gradient", loss(**setting))
other = loss(clip_ratio_high=3.0)
print("as usual", usual, "; clip_ratio_high=3", other)
assert all(loss(**setting) == usual for setting in tried) and other != usual
print(f"clip_ratio_c, kl_beta, loss_agg_func: {usual[0]} whatever they are; clip_ratio_high acts ({other[0]})")
PYTHON
