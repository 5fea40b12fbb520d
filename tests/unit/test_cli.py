"""The command line: what cannot work is refused in one line before anything begins, whatever the
terminal is.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from wmpo_lite import cli, run_commands
from wmpo_lite.arms.settings import Settings
from wmpo_lite.common.errors import UserError
from wmpo_lite.recipes.profiles import PROFILES, Profile
from wmpo_lite.recipes.workspace import Run, run_folder


def refused(capsys, *arguments) -> str:
    """The only line of a refused command, which has left nothing behind."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    said = capsys.readouterr().err.strip()
    assert (
        ended.value.code == 1
        and said.startswith("wmpo-lite: ")
        and "\n" not in said
        and os.listdir() == []
    )
    return said


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments, option, allowed",
    [
        (["demo", "--seed", "99999999999999999999"], "--seed", "0 to 4_294_967_295"),
        (["demo", "--seed", "-1"], "--seed", "0 to"),
        (["demo", "--from-scratch", "--seed", "-1"], "--seed", "0 to"),
        (["assets", "--seed", "-1"], "--seed", "0 to"),
        (["demo", "--evaluation-states", "0"], "--evaluation-states", "1 to"),
        (["config", "--align-steps", "0"], "--align-steps", "1 to"),
        (["config", "--wmpo-lr", "nan"], "--wmpo-lr", "1e-09 to"),
        (["demo", "--refill", "-1"], "--refill", "0 to"),
        (["demo", "--rollout-budget", "0"], "--rollout-budget", "1 to 10_000"),
        (["demo", "--rollout-budget", "10001"], "--rollout-budget", "1 to 10_000"),
        (["upper-bound", "--iterations", "-3"], "--iterations", "1 to"),
        (["upper-bound", "--iterations", "0"], "--iterations", "1 to"),
        (["upper-bound", "--seed", "-1"], "--seed", "0 to"),
        (["deploy", "--seed", "-1"], "--seed", "0 to"),
        (["deploy", "--episodes", "0"], "--episodes", "1 to"),
        (["deploy", "--state", "-1"], "--state", "0 to"),
        (["deploy", "--collect", "-1"], "--collect", "0 to"),
        (["deploy", "--temperature", "0"], "--temperature", "0.01 to"),
        (["deploy", "--temperature", "nan"], "--temperature", "0.01 to"),
        (["deploy", "--speed", "0"], "--speed", "0.01 to 20"),
        (["deploy", "--look", "2"], "--look", "0 to 1"),
        (["deploy", "--jitter", "inf"], "--jitter", "0 to 1"),
        (["deploy", "--ahead", "-1"], "--ahead", "0 to"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(capsys, arguments, option, allowed):
    said = refused(capsys, *arguments)
    assert f"{option} is " in said and allowed in said


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../esc",
        "a/b",
        "a\\b",
        "/tmp/x",
        " ",
        "a ",
        "a.",
        ".hidden",
        "a\nb",
        "a\0b",
        "c:x",
        "nul",
        "COM1.x",
        "-x",
        "x" * 101,
        "assets",
    ],
)
def test_a_run_name_is_one_plain_folder_name(capsys, name):
    with pytest.raises(UserError, match="--name is"):
        run_folder(name)
    if name in ("..", "../esc", "a/b"):
        for command in ("demo", "upper-bound", "deploy"):
            assert "--name is" in refused(capsys, command, "--name", name)
    with pytest.raises(UserError, match="--name is"):
        run_folder("")


@pytest.mark.parametrize(
    "name", ["a", "place-laptop-p128-s0", "Käse 2", "v1.5+x=3@home", "_x", "x" * 100, "console"]
)
def test_plain_names_are_taken(name):
    assert str(run_folder(name)) == os.path.join("runs", name)


def test_the_upper_bound_of_a_task_of_libero_has_a_folder_of_its_own(capsys):
    from wmpo_lite.envs.tasks import folder_name

    assert run_folder(f"{folder_name('libero_object/0')}-upper-s0").parent.name == "runs"


def test_every_number_of_a_profile_is_a_flag_and_config_prints_them_all(capsys):
    fields = {field.name: field for field in dataclasses.fields(Profile)}
    wanted = {name: 3 if field.type is int else 0.5 for name, field in fields.items()}
    flags = [(name, wanted[name]) for name in fields if fields[name].type in (int, float)]
    flags = [(name, value) for name, value in flags if name != "evaluation_states"]
    flags = [part for name, value in flags for part in (f"--{name.replace('_', '-')}", str(value))]
    cli.main(["config", "--profile", "smoke", "--freeze-vision", "False", *flags])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(fields) and found["freeze_vision"] is False
    assert all(
        found[name] == wanted[name] for name in fields if f"--{name.replace('_', '-')}" in flags
    )


def test_presets_have_two_names(capsys):
    printed = []
    for flag in ("--preset", "--profile"):
        cli.main(["config", flag, "smoke"])
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] == dataclasses.asdict(PROFILES["smoke"])


def test_the_numbers_of_a_run_with_more_rollouts(capsys):
    cli.main(["config", "--rollout-budget", "256"])
    found = json.loads(capsys.readouterr().out)
    assert (found["align_steps"], found["reward_steps"]) == (600, 707)


def test_an_upper_bound_of_other_iterations_is_not_given_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "up" / "stages").mkdir(parents=True)
    (tmp_path / "runs" / "up" / "stages" / "upper.json").write_text(
        '{"result": {"iterations": 40}}'
    )
    with pytest.raises(SystemExit):
        cli.main(["upper-bound", "--name", "up", "--iterations", "3"])
    assert (
        "runs/up holds an upper bound of 40 iterations and 3 are asked for"
        in capsys.readouterr().err
    )


def test_what_cannot_work_is_refused_before_hours_of_training(capsys, monkeypatch):
    monkeypatch.setattr(run_commands, "train_assets", lambda *a: pytest.fail("training has begun"))
    assert "smaller than one group" in refused(
        capsys, "demo", "--from-scratch", "--rollout-budget", "4"
    )
    assert "--rollout-budget" in refused(
        capsys, "demo", "--profile", "smoke", "--rollout-budget", "4"
    )
    assert "unknown" in refused(capsys, "demo", "--from-scratch", "--task", "juggle")
    assert "--name" in refused(capsys, "demo", "--from-scratch", "--name", "../x")
    said = refused(capsys, "demo", "--from-scratch", "--task", "libero_object/3")
    assert "assets --suite libero_object --tasks 3" in said
    assert "--tasks" in refused(capsys, "assets", "--suite", "libero_object", "--only", "place")
    Run(profile="smoke", rollout_budget=5).settings()


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("--trust-rollouts", 1024, "1 to 1_000"),
        ("--track-states", 1024, "1 to 1_000"),
        ("--evaluation-states", 999_001, "1 to 999_000"),
        ("--group-size", 1, "2 to"),
        ("--online-group-size", 1, "2 to"),
    ],
)
def test_sizes_that_a_later_stage_would_refuse_are_refused_at_once(capsys, flag, value, expected):
    said = refused(capsys, "demo", flag, str(value))
    assert said.startswith(f"wmpo-lite: {flag} is {value}; expected {expected}")


def test_a_number_that_the_budget_gives_anyway_is_no_change():
    numbers = run_commands.Overrides(align_steps=3000, reward_steps=500)
    run, folder = run_commands.Demo(rollout_budget=1280, settings=numbers)._checked()
    assert run.changes == {"reward_steps": 500} and folder.name == "place-laptop-p1280-s0"


def test_whatever_a_disk_refuses_is_one_line(capsys, monkeypatch):
    def refuse(self):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(cli.Results, "__call__", refuse)
    assert (
        refused(capsys, "results")
        == "wmpo-lite: cannot use runs/x (No space left on device); free some disk space or choose"
        " another folder"
    )


def run(command: str, **environment):
    whole = f"{sys.executable} -m wmpo_lite.cli {command}"
    return subprocess.run(
        ["bash", "-c", whole],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )


def test_help_is_shown_on_a_terminal_that_knows_ascii_only():
    done = run("demo --help", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and "--rollout-budget" in done.stdout and not done.stderr


def test_a_reader_that_has_seen_enough_and_a_full_disk():
    done = run("results | true; exit ${PIPESTATUS[0]}")
    assert done.stderr == "" and done.returncode in (0, 1)
    done = run("results > /dev/full")
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "No space left on device" in done.stderr
    )


@pytest.mark.parametrize("command", [["demo", "--profile", "smoke"], ["deploy", "--dry-run"]])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr("wmpo_lite.train.set_threads", lambda: None)
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--name", "a"])
    said = capsys.readouterr().err.strip()
    assert (
        ended.value.code == 1
        and "\n" not in said
        and "runs/a" in said
        and "in its way" in said
        and (tmp_path / "runs").read_text() == "mine"
    )


@pytest.mark.parametrize(
    "command, main",
    [("doctor", "wmpo_lite.report.doctor.main"), ("deploy", "wmpo_lite.arms.session.main")],
)
def test_commands_that_train_nothing_choose_threads_too(command, main, monkeypatch):
    calls = []
    monkeypatch.setattr("wmpo_lite.train.set_threads", lambda: calls.append("threads"))
    monkeypatch.setattr(main, lambda *given: calls.append("work") or 0)
    with pytest.raises(SystemExit) as ended:
        cli.main([command])
    assert ended.value.code == 0 and calls == ["threads", "work"]


def test_settings_of_a_deployment_are_checked_in_python_too():
    with pytest.raises(UserError, match="--seed is -1"):
        Settings(seed=-1)
