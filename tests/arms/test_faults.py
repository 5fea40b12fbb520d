"""One try of the fault table where it is hardest: the process that holds the arm is killed in
mid-motion.
"""

import sys
from pathlib import Path

import pytest

pytest.importorskip("scservo_sdk", reason="the extra `arm` is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import bench_arm_faults  # noqa: E402


def test_a_killed_process_leaves_an_arm_at_rest_and_its_episode():
    table = bench_arm_faults.measure(1, workers=1, faults=("process_killed", "policy_nan"))
    killed, diverged = table["faults"]["process_killed"], table["faults"]["policy_nan"]
    assert (
        killed["stopped"] == killed["saved"] == killed["tries"] == 1
        and killed["worst_stop_s"] < 0.5
    )
    assert (
        diverged["stopped"] == diverged["saved"] == 1
        and "finite numbers" in diverged["reason"]
        and "mid-motion" in killed["reason"]
    )
