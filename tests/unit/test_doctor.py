"""The doctor: a sound installation passes, and each classic silent zero, planted in a run folder,
is found by name.
"""

import json

import numpy as np
import pytest

from wmpo_lite import install_check
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.report import diagnosis, doctor
from wmpo_lite.trajectory import Trajectory, save_trajectories


def rollouts(
    path,
    count=12,
    successes=5,
    split="rollouts",
    source="rollouts",
    first=0,
    finish=20,
    horizon=24,
    env_args={},  # noqa: B006
):
    states = initial_states(get_task("place"), source, np.arange(first, first + count))
    made = [
        Trajectory(
            frames=np.zeros((horizon + 1, 8, 8, 3), np.uint8),
            actions=np.zeros((horizon, 4)),
            success=i < successes,
            finish_step=finish if i < successes else horizon,
            instruction=states.instructions[i],
            initial_state=states.states[i],
            split=split,
            index=i,
        )
        for i in range(count)
    ]
    save_trajectories(path, made, env_args=env_args, provenance={})


def record(stage="wmpo", **changes):
    return {
        "stage": stage,
        "step": 1,
        "success": 0.5,
        "entropy": 1.0,
        "approx_kl": 0.01,
        "clip_fraction": 0.05,
        "kept": 10,
        "all_success": 3,
        "all_failure": 3,
        "out_of_range": 0,
        "valid_fraction": 0.8,
    } | changes


def trust(**changes):
    real = [True] * 5 + [False] * 7
    return {
        "n": 12,
        "psnr": {"horizons": [8, 16], "model": [30.0, 27.0], "copy_last": [22.0, 20.0]},
        "sensitivity": {"shuffled_cost": 5.0},
        "agreement": {"auc": 0.95, "success_agreement": 0.9, "failure_agreement": 0.9, "n": 12},
        "reward_f1_real": 0.97,
        "reward_f1_imagined": 0.9,
        "threshold": 0.5,
        "scores": [0.9] * 5 + [0.1] * 7,
        "real": real,
    } | changes


def evaluation(base, wmpo):
    policies = {
        name: {"success": [bool(x) for x in s], "finish_step": [20] * len(s)}
        for name, s in (("base", base), ("wmpo", wmpo))
    }
    return {"n": len(base), "policies": policies}


def outcomes(n, share):
    return np.arange(n) < share * n


@pytest.fixture
def run(tmp_path):
    """A run folder without fault."""
    pins = {name: install_check.pinned_versions()[name][0] for name in ("mujoco", "torch")}
    checkpoint.write_json(
        tmp_path / "config.json", {"task": "place", "rollout_budget": 12, "horizon": 24, "chunk": 8}
    )
    checkpoint.write_json(tmp_path / "trust.json", trust())
    checkpoint.write_json(
        tmp_path / "evaluation.json", evaluation(outcomes(256, 0.3), outcomes(256, 0.5))
    )
    checkpoint.write_json(tmp_path / "result.json", {"versions": pins})
    rows = [record(step=i, success=0.3 + 0.04 * i, entropy=1 - 0.05 * i) for i in range(6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rollouts(tmp_path / "rollouts.hdf5")
    return tmp_path


def levels(run, topic):
    return {f.level for f in diagnosis.diagnose(run) if f.name == topic}


def test_this_installation_is_sound():
    checks = install_check.check_installation()
    assert [name for name, _, _ in checks] == [
        "Python",
        "packages",
        "disk",
        "OpenGL",
        "rendering",
        "known answer",
        "recorded",
        "splits",
    ]
    assert all(ok for _, ok, _ in checks), [c for c in checks if not c[1]]


def test_a_simulator_that_moves_otherwise_is_found(monkeypatch):
    finish, tips = np.array(install_check.KNOWN_FINISH), np.array(install_check.KNOWN_TIPS)
    for answer, expected in (
        ((finish, tips), True),
        ((finish + 2, tips), False),
        ((finish, tips + 0.004), False),
        ((np.where(np.arange(8) == 3, 0, finish), tips), False),
    ):
        monkeypatch.setattr(install_check, "known_rollout", lambda answer=answer: answer)
        ok, message = install_check._check_known_answer()
        assert ok == expected and ("pinned mujoco" in message) != expected


def test_a_check_that_breaks_is_a_failed_check(monkeypatch):
    def broken():
        raise OSError("libEGL is gone")

    monkeypatch.setattr(install_check, "known_rollout", broken)
    found = {name: (ok, message) for name, ok, message in install_check.check_installation()}
    assert found["known answer"] == (False, "OSError: libEGL is gone") and found["splits"][0]


def test_another_package_version_is_named(monkeypatch):
    monkeypatch.setattr(
        install_check,
        "pinned_versions",
        lambda: {"mujoco": ("0.0.1", False), "numpy-gone": ("1", False), "extra-gone": ("1", True)},
    )
    ok, message = install_check._check_packages()
    assert (
        not ok
        and "pinned 0.0.1" in message
        and "numpy-gone 1 is missing" in message
        and "extra-gone" not in message
    )


def test_a_good_run_has_no_problem(run):
    findings = diagnosis.diagnose(run)
    assert {f.level for f in findings} == {"ok"}, [f for f in findings if f.level != "ok"]
    assert {
        "rollouts",
        "clips",
        "reward windows",
        "threshold",
        "wmpo groups",
        "wmpo clip fraction",
        "wmpo KL",
        "wmpo entropy",
        "actions",
        "agreement",
        "gain",
        "leakage",
        "versions",
    } <= {f.name for f in findings}


@pytest.mark.parametrize(
    "name, change, topic, level",
    [
        ("trust.json", {"sensitivity": {"shuffled_cost": 1.0}}, "actions", "problem"),
        # 2 of 3 dB over a copied frame: the episodes are alike; 1 of 3 dB is too little even so
        (
            "trust.json",
            {
                "sensitivity": {"shuffled_cost": 2.0},
                "psnr": {"horizons": [8, 16], "model": [25.0, 23.0], "copy_last": [21.0, 21.0]},
            },
            "actions",
            "note",
        ),
        (
            "trust.json",
            {
                "sensitivity": {"shuffled_cost": 1.0},
                "psnr": {"horizons": [8, 16], "model": [25.0, 23.0], "copy_last": [21.0, 21.0]},
            },
            "actions",
            "problem",
        ),
        ("trust.json", {"agreement": {"auc": 0.8, "n": 12}}, "agreement", "problem"),
        ("trust.json", {"scores": [0.1] * 12}, "threshold", "problem"),
        ("trust.json", {"threshold": 1.5}, "threshold", "problem"),
        (
            "trust.json",
            {"psnr": {"horizons": [8], "model": [20.0], "copy_last": [21.0]}},
            "prediction",
            "problem",
        ),
        ("trust.json", {"reward_f1_real": 0.8}, "reward F1", "note"),
        ("config.json", {"horizon": 6}, "reward windows", "problem"),
        ("config.json", {"rollout_budget": 64}, "budget", "problem"),
        ("config.json", {"clip": 30}, "clips", "problem"),
        ("result.json", {"versions": {"mujoco": "3.3.0"}}, "versions", "problem"),
    ],
)
def test_a_planted_fault_is_found(run, name, change, topic, level):
    checkpoint.write_json(run / name, checkpoint.read_json(run / name) | change)
    assert level in levels(run, topic)


@pytest.mark.parametrize(
    "change, topic, level",
    [
        ({"kept": 0, "all_failure": 13}, "wmpo groups", "problem"),
        ({"kept": 1, "all_success": 15}, "wmpo groups", "note"),
        ({"approx_kl": 0.0}, "wmpo KL", "problem"),
        ({"approx_kl": 0.5}, "wmpo KL", "note"),
        ({"clip_fraction": 0.0}, "wmpo clip fraction", "note"),
        ({"clip_fraction": 0.6}, "wmpo clip fraction", "note"),
        ({"success": 0.0}, "wmpo reward", "problem"),
        ({"entropy": float("nan")}, "metrics", "problem"),
        ({"valid_fraction": 0.0}, "wmpo mask", "problem"),
        ({"stage": "grpo", "kept": 0}, "grpo groups", "problem"),
        ({"stage": "grpo", "rollouts": 8}, "budget", "problem"),
    ],
)
def test_a_planted_training_fault_is_found(run, change, topic, level):
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(record(step=i, **change)) + "\n" for i in range(4))
    )
    assert level in levels(run, topic)


@pytest.mark.parametrize(
    "options, topic",
    [
        ({"successes": 0}, "rollouts"),
        ({"successes": 12}, "rollouts"),
        ({"source": "evaluation"}, "leakage"),
        ({"source": "evaluation", "split": "evaluation"}, "leakage"),
        ({"finish": 2}, "clips"),
    ],
)
def test_planted_rollout_faults_are_found(run, options, topic):
    rollouts(run / "rollouts.hdf5", **options)
    assert levels(run, topic) & {"problem", "note"}


@pytest.mark.parametrize("first, shared", [(0, 0), (985, 0), (995, 7), (1250, 6)])
def test_leakage_is_looked_for_where_the_evaluation_began(run, first, shared):
    """256 states of the evaluation from number 1000 on, and 12 rollouts from `first` on."""
    found = checkpoint.read_json(run / "evaluation.json")
    checkpoint.write_json(run / "evaluation.json", found | {"from": 1000})
    rollouts(run / "rollouts.hdf5", source="evaluation", first=first)
    said = next(f for f in diagnosis.diagnose(run) if f.name == "leakage")
    assert said.level == ("problem" if shared else "ok")
    assert str(said).startswith(f"{shared} of 256 evaluation states also occur among the 12 ")


def test_clips_are_as_long_as_the_classifier_takes_them(run):
    def windows():
        return next(str(f) for f in diagnosis.diagnose(run) if f.name == "reward windows")

    assert windows().startswith(
        "22 windows of 4 frames"
    )  # of 25; the kit's own clips, where nothing else is said
    checkpoint.write_json(run / "reward" / "config.json", {"class": "RewardModel", "clip": 6})
    assert windows().startswith("20 windows of 6 frames")


def test_a_step_logged_twice_counts_once(run):
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(record(step=1, kept=kept)) + "\n" for kept in (0, 10))
    )
    assert levels(run, "wmpo groups") == {"ok"}


def test_noise_is_not_read_as_signal(run):
    base = outcomes(64, 0.3)
    other = base.copy()
    other[[0, 1, 40, 41, 42]] ^= True
    checkpoint.write_json(run / "evaluation.json", evaluation(base, other))
    assert levels(run, "gain") == {"note"} and levels(run, "episodes") == {"note"}
    checkpoint.write_json(run / "evaluation.json", evaluation(base, base))
    assert levels(run, "gain") == {"note"}
    checkpoint.write_json(
        run / "evaluation.json", evaluation(outcomes(256, 0.6), outcomes(256, 0.3))
    )
    assert levels(run, "gain") == {"problem"}
    checkpoint.write_json(run / "evaluation.json", evaluation(outcomes(256, 0), outcomes(256, 0.3)))
    assert levels(run, "base policy") == {"problem"}


def test_a_policy_without_action_statistics_is_found(run):
    folder = run / "weights" / "wmpo"
    checkpoint.write_json(folder / "config.json", {"class": "Policy"})
    assert levels(run, "action statistics") == {"problem"}
    values = {"names": ["dx"], "low": [-1.0], "high": [1.0]}
    checkpoint.write_json(folder / "actions.json", values)
    assert levels(run, "action statistics") == {"ok"}
    checkpoint.write_json(folder / "actions.json", values | {"high": [-1.0]})
    assert levels(run, "action statistics") == {"problem"}


def test_rollouts_that_the_simulator_does_not_confirm_are_found(run):
    """No arm that never moves succeeds."""
    assert levels(run, "replay") == set()  # the file does not say which MuJoCo it was
    rollouts(run / "rollouts.hdf5", env_args={"task": "place", "mujoco": "3.12.0"})
    assert levels(run, "replay") == {"problem"}
    (row,) = [row for row in diagnosis.diagnose(run) if row.name == "replay"]
    assert "7 of 12 rollouts" in str(row) and "install mujoco 3.12.0" in str(row)


def test_killed_runs_and_broken_files(run, tmp_path_factory, capsys):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"stage": "wm')  # killed in mid-write
    assert not [f for f in diagnosis.diagnose(run) if f.name == "files"]
    (run / "evaluation.json").unlink()
    assert levels(run, "files") == {"note"}
    (run / "trust.json").write_text('{"n": 12,')
    (run / "rollouts.hdf5").write_bytes((run / "rollouts.hdf5").read_bytes()[:500])
    messages = [str(f) for f in diagnosis.diagnose(run) if f.name == "files"]
    assert len(messages) == 3
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"stage": "wmpo", "step": 9}\n')  # so the cut line is no longer the last
    assert any("1 lines that are not JSON objects" in str(f) for f in diagnosis.diagnose(run))
    assert all(
        any(name in m for m in messages)
        for name in ("trust.json", "rollouts.hdf5", "evaluation.json")
    )
    for folder in (tmp_path_factory.mktemp("empty"), run / "nowhere"):
        with pytest.raises(UserError, match="name "):
            diagnosis.diagnose(folder)


def test_main_prints_and_returns_a_status(run, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_installation", lambda: [("Python", True, "3.11")])
    assert doctor.main() == 0 and doctor.main(run) == 0
    assert "No problems found" in capsys.readouterr().out
    checkpoint.write_json(run / "trust.json", trust(agreement={"auc": 0.7}))
    assert doctor.main(run) == 1
    out = capsys.readouterr().out
    assert "AUC 0.700" in out and "1 problem found" in out
    monkeypatch.setattr(doctor, "check_installation", lambda: [("OpenGL", False, "no library")])
    assert doctor.main() == 1 and "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    "auc, cost, warnings",
    [(0.95, 9.0, []), (0.79, 9.0, ["AUC 0.790"]), (0.79, 0.5, ["0.5 dB", "AUC 0.790"])],
)
def test_the_trust_panel_warns_before_grpo_begins(auc, cost, warnings):
    from wmpo_lite.recipes.trust import describe_trust

    agreement = {
        "auc": auc,
        "success_agreement": 0.5,
        "failure_agreement": 0.9,
        "confusion": [[1, 1], [1, 9]],
    }
    said = describe_trust(
        {
            "n": 64,
            "psnr": {"horizons": [8], "model": [27.0], "copy_last": [15.0]},
            "sensitivity": {"shuffled_cost": cost, "zero_cost": 9.0, "delayed_cost": 2.0},
            "agreement": agreement,
            "auc_interval": [0.7, 0.99],
            "valid_frames": 21.0,
            "before_alignment": {"agreement": {**agreement, "auc": 0.625}},
            "reward_f1_real": 0.9,
            "reward_f1_imagined": 0.8,
        }
    ).splitlines()
    assert any("before alignment: AUC 0.625" in line for line in said) and any(
        f"AUC {auc:.3f} [0.700, 0.990]" in line for line in said
    )
    found = [line for line in said if "warning" in line]
    assert len(found) == len(warnings) and all(
        words in line for words, line in zip(warnings, found)
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("config.json", []),
        ("trust.json", {"agreement": 3, "n": "x"}),
        ("evaluation.json", {"policies": [1]}),
        ("result.json", {"versions": 5}),
        ("config.json", {"horizon": "long", "rollout_budget": [], "clip": "four"}),
    ],
)
def test_files_of_another_shape_are_a_problem_and_not_the_doctors_end(run, name, value):
    checkpoint.write_json(run / name, value)
    findings = diagnosis.diagnose(run)
    assert {f.level for f in findings} >= {"ok"} and (
        name == "result.json" or any(f.level == "problem" and name in str(f) for f in findings)
    ), findings
