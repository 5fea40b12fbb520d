#!/bin/bash
# OpenRLHF 0.11.2 (group_norm) and RLinf 0.3.0 (grpo): a group whose eight rewards are all 0.7 should
# teach nothing, and gets advantages of 0.92 and 0.056: the mean rounds, and what is left is divided
# by a deviation of next to nothing. ray and the like, which these functions do not use, are stand-ins.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6 omegaconf==2.3.0
"$folder/venv/bin/python" -m pip install -q --no-compile --no-deps openrlhf==0.11.2 rlinf==0.3.0 >> "$folder/log" 2>&1 || exit 75
measure <<'PYTHON'
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch

for name in ("ray", "deepspeed", "transformers", "transformers.integrations",
             "transformers.integrations.deepspeed", "openrlhf.models", "openrlhf.models.utils", "openrlhf.trainer.ray", "openrlhf.utils",
             "openrlhf.trainer.ray.launcher", "openrlhf.utils.logging_utils", "openrlhf.utils.seqlen_balancing",
             "openrlhf.trainer.ppo_utils", "openrlhf.trainer.ppo_utils.experience",
             "openrlhf.trainer.ppo_utils.length_penalty"):
    sys.modules[name] = MagicMock()
home = importlib.util.find_spec("openrlhf").submodule_search_locations[0]


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, f"{home}/{path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


utils = load("openrlhf.models.utils", "models/utils.py")
maker_class = load("maker", "trainer/ppo_utils/experience_maker.py").RemoteExperienceMaker


def openrlhf(rewards):
    maker = maker_class.__new__(maker_class)
    maker.advantage_estimator, maker.kl_ctl = "group_norm", SimpleNamespace(value=0.0)
    maker.strategy = SimpleNamespace(args=SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=len(rewards)), reward=SimpleNamespace(clip_range=None),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator="group_norm", gamma=1.0))))
    one = torch.ones(len(rewards), 1)
    episode = SimpleNamespace(index=list(range(len(rewards))), rewards=torch.tensor(rewards), action_mask=one,
                              kl=torch.zeros_like(one), info={})
    return float(maker.compute_advantages_and_returns([episode])[0].advantages[0, 0])


sys.modules["rlinf"] = package = ModuleType("rlinf")
package.__path__ = [home.replace("openrlhf", "rlinf")]
for name in ("rlinf.algorithms", "rlinf.algorithms.registry", "rlinf.algorithms.utils", "rlinf.utils",
             "rlinf.utils.utils"):
    sys.modules[name] = MagicMock()
sys.modules["rlinf.algorithms.registry"].register_advantage = lambda name: lambda function: function
home = package.__path__[0]
grpo = load("advantages", "algorithms/advantages.py").compute_grpo_advantages


def rlinf(rewards):
    table = torch.tensor(rewards)[None]
    return float(grpo(table, torch.ones_like(table), len(rewards))[0][0, 0])


equal, one = [0.7] * 8, [1.0, 0.0, 0.0, 0.0]
for function in (openrlhf, rlinf):
    print(f"{function.__name__}: one success of four {function(one):.4f}, eight times 0.7 {function(equal):+.4f}")
assert abs(openrlhf(one) - 1.5) < 1e-4 and abs(rlinf(one) - 1.5) < 1e-4
assert openrlhf(equal) > 0.9 and 0.05 < rlinf(equal) < 0.06
print(f"eight equal rewards of 0.7: advantage {openrlhf(equal):.3f} (OpenRLHF), {rlinf(equal):.3f} (RLinf)")
PYTHON
