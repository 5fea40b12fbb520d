"""The result files: records are merged, never mixed, and the table says what they say."""

import json

import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.report import results


def finished(folder, task="place", seed=0, profile="laptop", wmpo=0.5, **more):
    folder.mkdir(parents=True)
    row = {
        "task": task,
        "seed": seed,
        "profile": profile,
        "rollout_budget": 128,
        "n": 64,
        "base_success": 0.25,
        "grpo_success": 0.25,
        "dpo_success": 0.25,
        "wmpo_success": wmpo,
        "gain": wmpo - 0.25,
        "gain_low": 0.125,
        "gain_high": 0.375,
        "agreement_auc": 0.9,
        **more,
    }
    (folder / "result.json").write_text(json.dumps(row))
    return folder


def read(path):
    return json.loads(path.read_text())


def test_a_newer_run_replaces_the_older_one_of_its_task_and_seed_and_keeps_what_was_measured_apart(
    tmp_path,
):
    out = tmp_path / "results"
    out.mkdir()
    results.collect([finished(tmp_path / "a"), finished(tmp_path / "b", seed=1)], out)
    bound = tmp_path / "bound"
    bound.mkdir()
    (bound / "upper_bound.json").write_text(
        json.dumps({"task": "place", "upper_bound_success": 0.75})
    )
    results.collect([bound], out)
    results.collect([finished(tmp_path / "c", wmpo=0.625)], out)
    rows = read(out / "main_job.json")
    assert [(r["seed"], r["wmpo_success"], r["upper_bound_success"]) for r in rows] == [
        (0, 0.625, 0.75),
        (1, 0.5, 0.75),
    ]
    assert not (out / "libero.json").exists()


def test_runs_with_another_budget_stand_beside_each_other(tmp_path):
    results.collect(
        [
            finished(tmp_path / "a"),
            finished(tmp_path / "b", rollout_budget=1280),
            finished(tmp_path / "c", seed=1),
        ],
        tmp_path,
    )
    assert [(r["rollout_budget"], r["seed"]) for r in read(tmp_path / "main_job.json")] == [
        (128, 0),
        (128, 1),
        (1280, 0),
    ]


def test_the_trust_panels_of_a_run_become_two_records_and_two_rows(tmp_path):
    import torch

    from wmpo_lite.common import checkpoint

    run = finished(tmp_path / "run")
    side = {
        "agreement": {"auc": 0.75, "success_agreement": 0.5, "failure_agreement": 0.875},
        "auc_interval": [0.625, 0.8125],
        "valid_frames": 12.5,
        "psnr": {"horizons": [8, 24, 40], "model": [24.0, 20.0, 19.0]},
        "sensitivity": {"shuffled_cost": 6.25},
    }
    after = {**side, "agreement": {**side["agreement"], "auc": 0.875}}
    (run / "trust.json").write_text(json.dumps({"n": 32, **after, "before_alignment": side}))
    config = {"task": "place", "seed": 0, "align_steps": 10, "align_batch": 4}
    config |= {"rollout_budget": 128}
    (run / "config.json").write_text(json.dumps(config))
    checkpoint.save_tensors(run / "world_model" / "model.safetensors", {"w": torch.zeros(3, 5)})
    results.collect_panels([run, tmp_path], tmp_path)  # a folder without a panel is passed over
    results.collect_panels([run], tmp_path)
    (run / "trust.json").write_text(json.dumps({"n": 32, **side, "before_alignment": side}))
    (run / "config.json").write_text(json.dumps(config | {"seed": 1}))
    results.collect_panels([run], tmp_path)  # another seed changes nothing
    (run / "config.json").write_text(json.dumps(config | {"rollout_budget": 1280}))
    results.collect_panels([run], tmp_path)
    larger, aligned, before = read(tmp_path / "world_model.json")
    assert (larger["variant"], larger["auc"]) == ("aligned on P = 1280 and demonstrations", 0.75)
    assert (aligned["variant"], aligned["auc"], aligned["frames"]) == (results.ALIGNED, 0.875, 80)
    assert (before["variant"], before["auc"], before["frames"]) == (results.NOT_ALIGNED, 0.75, 0)
    assert before["parameters"] == 15 and (
        before["psnr_8"],
        before["psnr_24"],
        before["psnr_end"],
    ) == (24, 20, 19)
    row = results.panel_table(tmp_path / "world_model.json").splitlines()[-1]
    assert (
        row
        == "| place | not aligned | 32 | 0.750 [0.625, 0.812] | 0.50 / 0.88 | 24.0 / 20.0 / 19.0 |"
        " 6.2 | 12.5 |"
    )


def test_a_run_on_libero_goes_into_a_file_of_its_own_with_the_measures_of_its_suite(tmp_path):
    out = tmp_path / "results"
    out.mkdir()
    (out / "libero_experts.json").write_text(
        json.dumps({"libero_object": {"3": {"states": 16, "solved": 12}}})
    )
    (out / "libero_speed.json").write_text(
        json.dumps(
            {"libero_object": {"fast_64": {"times_default": 7.5}, "imagination": {"ratio": 20.0}}}
        )
    )
    results.collect(
        [
            finished(tmp_path / "a", "libero_object/3", profile="libero"),
            finished(tmp_path / "b", "libero_goal/0", profile="libero"),
        ],
        out,
    )
    other, row = read(out / "libero.json")
    assert (
        row["suite"],
        row["task_number"],
        row["expert_success"],
        row["renderer_speedup"],
        row["imagination_ratio"],
    ) == ("libero_object", 3, 0.75, 7.5, 20.0)
    assert other["suite"] == "libero_goal" and not {
        "expert_success",
        "renderer_speedup",
        "imagination_ratio",
    } & set(other)  # not measured is not zero
    assert not (out / "main_job.json").exists()


@pytest.mark.parametrize(
    "task, profile", [("place", "smoke"), ("libero_object/0", "laptop"), ("place", "libero")]
)
def test_runs_with_another_profile_are_refused_and_nothing_is_written(tmp_path, task, profile):
    with pytest.raises(UserError, match=f"'{profile}'"):
        results.collect(
            [finished(tmp_path / "good"), finished(tmp_path / "a", task, profile=profile)], tmp_path
        )
    assert not (tmp_path / "main_job.json").exists() and not (tmp_path / "libero.json").exists()


def test_a_run_with_other_settings_is_no_row(tmp_path):
    changed = finished(tmp_path / "a")
    write = lambda changes: (changed / "config.json").write_text(json.dumps({"changes": changes}))
    write({"align_steps": 1, "evaluation_states": 64})
    with pytest.raises(UserError, match=r"other settings than its profile's \(align_steps\)"):
        results.collect([changed], tmp_path)
    write({"evaluation_states": 64, "track_real": False})
    results.collect([changed], tmp_path)
    assert len(read(tmp_path / "main_job.json")) == 1


def test_an_upper_bound_reaches_runs_that_are_collected_later(tmp_path):
    bound = tmp_path / "bound"
    bound.mkdir()
    row = {"task": "place", "upper_bound_success": 0.75, "profile": "laptop"}
    (bound / "upper_bound.json").write_text(json.dumps(row))
    results.collect([finished(tmp_path / "a"), bound], tmp_path)
    results.collect([finished(tmp_path / "b", seed=1)], tmp_path)
    assert [r["upper_bound_success"] for r in read(tmp_path / "main_job.json")] == [0.75, 0.75]
    (bound / "upper_bound.json").write_text(json.dumps(row | {"profile": "smoke"}))
    with pytest.raises(UserError, match="a smoke run proves nothing"):
        results.collect([bound], tmp_path)


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.*run the same demo again"):
        results.collect([tmp_path / "nowhere"], tmp_path)


def test_the_table_gives_percent_with_wilson_intervals(tmp_path):
    results.collect([finished(tmp_path / "a")], tmp_path)
    # 16 of 64: Wilson (0.160, 0.368); 32 of 64: (0.381, 0.619)
    assert (
        results.table(tmp_path / "main_job.json").splitlines()[-1]
        == "| place | 0 | 128 | 64 | 25.0 [16, 37] | 25.0 [16, 37] | 25.0 [16, 37] | 50.0 [38, 62]"
        " | +25.0 [+12.5, +37.5] | 0.900 |"
    )


def test_the_speed_table_has_a_row_a_look_and_a_column_a_suite(tmp_path):
    row = lambda x: {
        **{name: {"steps_s": 10.0 * x, "times_default": 1.0 * x} for name in results.SPEEDS},
        "imagination": {"simulator_frames_s": 80.0, "frames_s": 800.0 * x, "ratio": 10.0 * x},
    }
    (tmp_path / "speed.json").write_text(
        json.dumps({"libero_goal": row(1), "libero_object": row(2), "mujoco": "3.17.0"})
    )
    lines = results.speed_table(tmp_path / "speed.json").splitlines()
    assert (
        lines[0].endswith("| libero_goal | libero_object |")
        and len(lines) == 2 + len(results.SPEEDS) + 3
    )
    assert "| 64 px | 10 (1.0 x) | 20 (2.0 x) |" in lines and lines[-1].endswith("| 10 | 20 |")


@pytest.mark.parametrize(
    "task, name",
    [
        ("place", "real_and_imagined.png"),
        ("square", "real_and_imagined_square.png"),
        ("libero_object/0", "real_and_imagined_libero.png"),
    ],
)
def test_the_picture_has_two_rows_an_episode(tmp_path, task, name):
    import numpy as np
    from PIL import Image

    real, imagined = (np.full((8, 9, 16, 16, 3), value, np.uint8) for value in (200, 50))
    np.savez(tmp_path / "trust_films.npz", real=real, imagined=imagined)
    (tmp_path / "config.json").write_text(json.dumps({"task": task}))
    results.picture(tmp_path, tmp_path)
    grid = np.asarray(Image.open(tmp_path / name))
    assert (
        grid.shape == (8 * 24, 3 * 24, 3) and (grid[:24] == 200).all() and (grid[24:48] == 50).all()
    )  # frames 0, 4 and 8, enlarged by half
