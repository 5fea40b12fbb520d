"""The script that waits for a GPU works, as far as a CPU can tell, and goes on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu.sh"


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_its_dry_run_in_two_halves(tmp_path):
    out = tmp_path / "scale.json"
    dry = ("--dry-run", "--device", "cpu", "--out", out)
    done = run("1", *dry)
    assert done.returncode == 0, done.stderr
    first = json.loads(out.read_text())
    assert first["gpu_run"] is False and set(first["gpu"]) == {"agreement", "growth", "compute"}
    assert first["gpu"]["agreement"]["logit_error"] < 1e-5
    assert all(row["seconds"] > 0 for row in first["gpu"]["growth"]["rows"])
    done = run(*dry)  # both halves; the first one is there already
    assert done.returncode == 0, done.stderr
    both = json.loads(out.read_text())
    assert both["gpu"].items() >= first["gpu"].items()
    assert both["gpu"]["equal_flop"]["unet"]["steps"] > 0 and "demo" in both["gpu"]


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    done = run("1", "--device", "cpu", "--out", tmp_path / "scale.json")
    assert done.returncode == 1 and "there is no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())
