"""The page that needs no installation: its numbers are the core's, and it loads nothing."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from wmpo_lite.common.files import ASSETS
from wmpo_lite.evaluate import wilson_interval
from wmpo_lite.grpo import group_advantages, policy_loss

PAGE = ASSETS.parent / "notebooks" / "sandbox.html"


def computed(calls: list) -> list:
    """What the page's functions give, [[name, arguments], ...], in Node."""
    script = re.search(r"<script>(.*?)// -- the page", PAGE.read_text(), re.S).group(1)
    script += f"console.log(JSON.stringify({json.dumps(calls)}.map(([f, a]) => eval(f)(...a))))"
    found = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_the_page_loads_nothing_from_elsewhere():
    text = PAGE.read_text().replace('"http://www.w3.org/2000/svg"', "")  # a name, never fetched
    assert not re.search(r"https?:|//cdn|<link|src=|import\s|fetch\(|XMLHttpRequest", text)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@needs_node
@pytest.mark.parametrize("std", ["population", "unbiased"])
def test_advantages_loss_and_gradient_are_the_cores(std):
    rng = np.random.default_rng(0)
    calls, wanted = [], []
    for successes in range(9):
        rewards = rng.permutation(np.arange(8) < successes).astype(float)
        log = torch.tensor(rng.normal(0, 0.4, 8), requires_grad=True)
        low, high = rng.uniform(0.05, 0.5, 2)
        a = group_advantages(torch.tensor(rewards)[None], std)[0]
        loss, _ = policy_loss(
            log.view(8, 1, 1, 1), torch.zeros(8, 1, 1, 1).double(), a, torch.ones(8, 1, 1, 1) > 0,
            clip_low=low, clip_high=high,
        )  # fmt: skip
        loss.backward()
        ratios = log.detach().exp().tolist()
        inputs = [rewards.tolist(), ratios, std, low, high]
        calls += [["advantages", inputs[:1] + [std]], ["loss", inputs], ["gradient", inputs]]
        wanted += [a.tolist(), loss.item(), log.grad.tolist()]
    for found, value in zip(computed(calls), wanted, strict=True):
        assert np.allclose(found, value, atol=1e-9)


@needs_node
def test_interval_and_test_are_the_cores():
    counts = [(0, 1), (5, 5), (59, 128), (1, 1024), (1000, 1024)]
    found = computed([["wilson", row] for row in counts])
    assert np.allclose(found, [wilson_interval(*row) for row in counts], atol=1e-12)
    pairs = [(0, 0), (0, 1), (23, 11), (11, 23), (7, 7), (235, 64), (0, 12)]
    found = computed([["mcnemar", row] for row in pairs])
    exact = [1.0 if not sum(p) else binomtest(p[0], sum(p)).pvalue for p in pairs]
    assert np.allclose(found, exact, rtol=1e-6)
