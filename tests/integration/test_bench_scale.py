"""The bench can be stopped and goes on, part by part."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench_scale.py"


def bench(out, *parts) -> str:
    command = [sys.executable, str(BENCH), "--dry-run", "--out", str(out), "--only", *parts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parts_add_up_and_are_not_measured_again(tmp_path):
    out = tmp_path / "scale.json"
    said = bench(out, "batch", "backbone")
    assert "batch: 2 rows" in said and "two_rank_ratio | not measured" in said
    first = json.loads(out.read_text())
    assert first["gpu_run"] is False and set(first["exponents"]) == {"batch"}
    assert all(row["peak_bytes"] > 0 and row["threads"] == 1 for row in first["rows"])
    said = bench(out, "batch", "budget")
    assert "batch: measured already" in said and "budget: 2 rows" in said
    second = json.loads(out.read_text())
    assert [row["part"] for row in second["rows"]] == ["batch"] * 2 + ["budget"] * 2 + ["backbone"]
    assert [row for row in second["rows"] if row["part"] != "budget"] == first["rows"]
