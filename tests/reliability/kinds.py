"""Thirty-three kinds of trouble, and the tests that try each of them: a kind is mended when all of
its tests pass.
"""

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Kind: (what goes wrong, files of tests with the names, or beginnings of names, of those that try
# it).
KINDS = {
    "T1": (
        "no picture can be drawn",
        {"unit/test_drawing.py": ("test_without_a_way_to_draw", "test_the_doctor_fails_where")},
    ),
    "T2": (
        "the disk is full",
        {
            "unit/test_files.py": ("test_a_full_disk",),
            "arms/test_records.py": ("test_a_disk_that_fills_up",),
            "unit/test_cli.py": ("test_whatever_a_disk_refuses",),
        },
    ),
    "T3": (
        "a place cannot be written to",
        {
            "unit/test_cli.py": ("test_a_place_that_cannot",),
            "unit/test_files.py": ("test_a_file_where_a_folder", "test_a_folder_that_may_not"),
            "unit/test_owner.py": ("test_a_file_in_the_place_of_runs",),
        },
    ),
    "T4": (
        "data are read with another meaning",
        {
            "unit/test_trajectory.py": (
                "test_success_is_what",
                "test_what_has_no_clear_meaning",
                "test_texts_of_every_kind",
                "test_instruction_is_found",
                "test_official_variants",
            )
        },
    ),
    "T5": (
        "two processes work in one run folder",
        {
            "unit/test_owner.py": ("test_the_second_process", "test_a_killed_owner"),
            "unit/test_workspace.py": ("test_a_folder_that_another_process",),
        },
    ),
    "T6": (
        "accepted, but cannot work",
        {
            "unit/test_cli.py": ("test_what_cannot_work",),
            "unit/test_workspace.py": ("test_outcomes_that_no_reward_model", "test_broken_assets"),
        },
    ),
    "T7": ("numbers out of range", {"unit/test_cli.py": ("test_numbers_out_of_range",)}),
    "T8": (
        "names of runs that lead elsewhere",
        {"unit/test_cli.py": ("test_a_run_name", "test_plain_names")},
    ),
    "T9": (
        "calibrations that cannot be",
        {
            "arms/test_calibration.py": (
                "test_a_joint_that_was_not_swept",
                "test_a_gripper_that_was_not_swept",
                "test_what_is_no_calibration",
                "test_every_wrong_file",
            )
        },
    ),
    "T10": (
        "systems without Linux's signals",
        {"arms/test_records.py": ("test_a_system_without", "test_emulation_says")},
    ),
    "T11": (
        "files that are foreign or partial",
        {
            "unit/test_files.py": (
                "test_json_of_another_shape",
                "test_a_missing_or_unreadable",
                "test_a_checkpoint_of_another_shape",
            ),
            "unit/test_workspace.py": ("test_a_run_folder_with_files",),
            "unit/test_doctor.py": ("test_files_of_another_shape",),
        },
    ),
    "T12": (
        "encodings, closed pipes, clocks, group numbers, ends",
        {
            "unit/test_cli.py": ("test_help_is_shown", "test_a_reader_that_has_seen"),
            "unit/test_workspace.py": ("test_a_clock_that_is_set_back",),
            "unit/test_train_grpo.py": ("test_groups_drawn_anew",),
            "unit/test_renderer.py": ("test_an_environment_left_open",),
        },
    ),
    "T13": (
        "replaced before it is checked",
        {
            "unit/test_shipped.py": (
                "test_what_cannot_be_shipped",
                "test_a_run_that_is_shipped_anew",
            ),
            "unit/test_files.py": ("test_a_folder_is_replaced_whole",),
        },
    ),
    "T14": ("a recording is thrown away", {"arms/test_records.py": ("test_a_journal",)}),
    "T15": (
        "settings are forgotten on resume",
        {
            "unit/test_train.py": (
                "test_a_training_made_from",
                "test_other_weights_to_begin",
                "test_a_training_that_does_not_say",
            )
        },
    ),
    "T16": (
        "NaN in the log is hidden",
        {
            "unit/test_train.py": ("test_numbers_that_are_none",),
            "unit/test_doctor.py": ("test_a_planted_training_fault",),
        },
    ),
    "T17": (
        "pictures beside the wrong action",
        {
            "unit/test_trajectory.py": (
                "test_frames_after_their_action",
                "test_frames_before_their_action",
                "test_where_the_file_does_not_tell",
                "test_a_wrong_word",
                "test_robot_states",
            )
        },
    ),
    "T18": (
        "what lies there is taken for what was asked for",
        {
            "unit/test_datagen.py": (
                "test_a_shard_of_another",
                "test_latents_are_encoded",
                "test_latents_of_other",
            ),
            "unit/test_pretrain.py": (
                "test_a_finished_policy",
                "test_a_policy_that_began",
                "test_autoencoder_and_world_model_of_other",
                "test_an_unfinished_training",
            ),
        },
    ),
    "T19": (
        "words that cannot be told apart",
        {
            "unit/test_policy.py": ("test_sentences_that_the_policy", "test_case_and_punctuation"),
            "unit/test_reward.py": (
                "test_sentences_that",
                "test_case_and_punctuation",
                "test_order_of_frames",
            ),
            "unit/test_backbone.py": ("test_sentences_that",),
        },
    ),
    "T20": (
        "a failed demonstration counts as a success",
        {"unit/test_pretrain.py": ("test_a_demonstration_that_never", "test_cloning_reads")},
    ),
    "T21": ("noise that repeats", {"unit/test_desk.py": ("test_noise_belongs",)}),
    "T22": (
        "a horizon that is no multiple of the chunk",
        {
            "unit/test_rollout.py": (
                "test_rollout_replay_and",
                "test_the_last_frame_of",
                "test_no_step_is_carried",
                "test_horizons_need",
            )
        },
    ),
    "T23": (
        "actions of another size or batch",
        {
            "unit/test_desk.py": ("test_actions_of_another",),
            "unit/test_imagined.py": ("test_actions_of_another",),
            "unit/test_rollout.py": ("test_a_replay_needs",),
        },
    ),
    "T24": (
        "dropout in the update only",
        {
            "unit/test_grpo.py": ("test_dropout_is_off",),
            "unit/test_backbone.py": ("test_a_backbone_with_dropout",),
        },
    ),
    "T25": (
        "optimizer state by position",
        {
            "unit/test_train.py": (
                "test_a_training_of_other_parameters",
                "test_the_optimizers_state",
            )
        },
    ),
    "T26": (
        "action ranges that are none",
        {"unit/test_policy.py": ("test_a_range_that_is_none", "test_actions_without_a_token")},
    ),
    "T27": (
        "mujoco imported first, without a screen",
        {"unit/test_drawing.py": ("test_mujoco_may_be",)},
    ),
    "T28": (
        "a backbone in sixteen bits",
        {"unit/test_backbone.py": ("test_a_backbone_in_sixteen", "test_a_policy_turned")},
    ),
    "T29": ("logs that depend on the micro-batch", {"unit/test_grpo.py": ("test_logs_",)}),
    "T30": (
        "rollouts of another temperature",
        {"unit/test_grpo.py": ("test_rollouts_that_another", "test_first_update")},
    ),
    "T31": (
        "rewards that are no numbers, a small last minibatch",
        {"unit/test_grpo.py": ("test_rewards_", "test_no_step_is_taken", "test_an_update_joins")},
    ),
    "T32": (
        "closing one environment spoils another's pictures",
        {
            "unit/test_renderer.py": (
                "test_the_end_of",
                "test_orders_of",
                "test_a_foreign",
                "test_environments_in",
                "test_a_renderer_that",
            )
        },
    ),
    "T33": (
        "a picture depends on who looked first",
        {"unit/test_renderer.py": ("test_the_first_state",)},
    ),
}


class Outcomes:
    """Collects what pytest says of every case."""

    def __init__(self):
        self.cases = {}

    def pytest_runtest_logreport(self, report):
        """Called by pytest for each phase of a case; the worst of them counts."""
        order = ("passed", "skipped", "failed")
        self.cases[report.nodeid] = max(
            self.cases.get(report.nodeid, "passed"), report.outcome, key=order.index
        )


def cases_of(kind: str, found: dict) -> dict:
    """Case -> outcome of one kind."""
    tests = KINDS[kind][1]
    wanted = [(f"tests/{file}::", names) for file, names in tests.items()]
    return {
        case: how
        for case, how in found.items()
        for file, names in wanted
        if case.startswith(file) and case.split("::")[1].startswith(names)
    }


def measure() -> dict:
    """Run the tests of all kinds: kind -> {"trouble", "tried", "mended", "failed"}; tried counts
    cases that were not skipped.
    """
    import pytest

    outcomes = Outcomes()
    names = sorted(
        {name for _, tests in KINDS.values() for group in tests.values() for name in group}
    )
    files = sorted({str(ROOT / "tests" / file) for _, tests in KINDS.values() for file in tests})
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        with redirect_stdout(io.StringIO()):
            pytest.main(
                ["-q", "-p", "no:cacheprovider", "-k", " or ".join(names), *files],
                plugins=[outcomes],
            )
    finally:
        os.chdir(before)
    table = {}
    for kind, (trouble, _) in KINDS.items():
        cases = {
            case: how for case, how in cases_of(kind, outcomes.cases).items() if how != "skipped"
        }
        failed = sorted(case for case, how in cases.items() if how == "failed")
        table[kind] = {
            "trouble": trouble,
            "tried": len(cases),
            "mended": len(cases) - len(failed),
            "failed": failed,
        }
    return table


if __name__ == "__main__":
    for kind, row in measure().items():
        print(kind, row, file=sys.stderr)
