"""The page on scale says what was measured and what is planned."""

import json
from pathlib import Path

import pytest

from wmpo_lite.recipes import plan
from wmpo_lite.report.results import RESULTS, scale_table

PAGE = Path(__file__).resolve().parents[2] / "notebooks" / "at_scale.md"


def test_its_table_is_that_of_the_measurements():
    assert PAGE.read_text().endswith(scale_table() + "\n")


@pytest.mark.slow
def test_its_plan_is_that_of_the_command():
    text = plan.describe(plan.stages(plan.preset("paper")), plan.HARDWARE["paper"])
    assert f"```\n{text}\n```" in PAGE.read_text()


def test_it_claims_a_gpu_run_only_if_there_was_one():
    found = json.loads((RESULTS / "scale.json").read_text())
    assert ("No GPU run has been made yet" in PAGE.read_text()) == (not found["gpu_run"])
    assert all(row["threads"] == 1 and not row["dry_run"] for row in found["rows"])


@pytest.mark.parametrize("ratio, said", [(None, "not measured"), (1.875, "1.88")])
def test_what_was_not_measured_is_said(tmp_path, ratio, said):
    found = {"rows": [], "exponents": {}, "gpu_run": False, "two_rank_ratio": ratio}
    (tmp_path / "scale.json").write_text(json.dumps(found))
    assert f"| two_rank_ratio | {said} |" in scale_table(tmp_path / "scale.json")
