"""What torch, diffusers and their like really do where it touches the kit; the book's page *What
the libraries do* has the rest.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from wmpo_lite.diffusion import time_grid

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def test_whatever_the_page_names_is_there_and_every_finding_is_on_it():
    text = (ROOT / "notebooks" / "what_the_libraries_do.md").read_text()
    tests = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    named = set(re.findall(r"make findings ARGS=([a-z_0-9]+)", text))
    scripts = {path.stem for path in (ROOT / "findings").glob("*.sh")} - {"all", "common"}
    assert len(tests) > 10 and not [name for name in tests if not (ROOT / name).is_file()]
    assert named == scripts


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_grid_is_diffusers_where_it_is_given_the_even_one(steps):
    """Its own grid with shift=3 applies the shift twice to its end: two steps are 1, 0.009, 0."""
    even = np.linspace(1, 1 / steps, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=even.tolist())
    assert torch.allclose(time_grid(steps, 3.0), scheduler.sigmas.float(), atol=1e-6)
    scheduler.set_timesteps(steps)
    assert torch.allclose(time_grid(steps, 3.0), scheduler.sigmas, atol=1e-2) == (steps == 1)


FLUSHED = """
import importlib, pkgutil, sys
import torch
import wmpo_lite
for module in pkgutil.iter_modules(wmpo_lite.__path__, "wmpo_lite."):
    importlib.import_module(module.name)
import wmpo_lite.recipes.main_job, wmpo_lite.report.doctor, wmpo_lite.report.notebooks
from wmpo_lite.train import set_threads
if sys.argv[1] == "late":
    torch.set_num_threads(2)
    torch.ones(1_000_000) + 1
set_threads(2)
print(float((torch.full((1_000_000,), 2e-38) * 0.01 == 0).float().mean()))
"""


def flushed(when: str) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FLUSHED, when]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush")
def test_nothing_runs_in_parallel_before_denormal_numbers_are_flushed():
    """Worker threads that already run would go on keeping them: no import may start one."""
    assert flushed("early") == 1.0 > flushed("late")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:2])
def test_every_notebook_chooses_threads_in_its_first_cell(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    users = [n for n, text in enumerate(code) if "set_threads()" in text]
    before = "".join(code[: users[0]])
    assert users and "torch." not in before and "wmpo_lite" not in before


def test_a_policy_says_the_same_to_one_picture_and_to_many():
    """Not bit for bit (matrix products of other shapes round otherwise), but in what it would do:
    only the simulator promises bits.
    """
    policy, frames = tiny.policy(), torch.from_numpy(tiny.noise_frames(1, 64)[0])
    words = [tiny.RED, tiny.BLUE] * 32
    with torch.no_grad():
        many = policy.logits(frames, words)
        each = torch.cat([policy.logits(frames[i : i + 1], words[i : i + 1]) for i in range(64)])
    assert torch.allclose(many, each, atol=1e-5)
    assert torch.equal(many.argmax(-1), each.argmax(-1))
