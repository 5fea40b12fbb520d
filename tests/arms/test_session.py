"""`wmpo-lite deploy`: policies, states and marks found by name, dry runs, films, collecting for the
main job.
"""

import os

import numpy as np
import pytest
import tiny

from wmpo_lite.arms import records
from wmpo_lite.arms.control import home
from wmpo_lite.arms.desks import desk_state, find_states, load_policy, mark_by_reward, sentences
from wmpo_lite.arms.session import Session, main
from wmpo_lite.arms.settings import Settings
from wmpo_lite.arms.simulated import SimulatedArm
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.trajectory import load_metadata, load_trajectories

PLACE = get_task("place")


def test_a_real_desks_state_tells_its_colors_and_the_other_sentence():
    row = desk_state(PLACE, "put the blue cube on the plate", "red", home())
    assert (
        sentences(PLACE, row) == ("put the blue cube on the plate", "put the red cube on the plate")
        and np.isnan(row).any()
    )
    for instruction, other in (
        ("fetch the blue cube", "red"),
        (tiny.BLUE, "blue"),
        (tiny.BLUE, ""),
    ):
        with pytest.raises(UserError, match="--other"):
            desk_state(PLACE, instruction, other, home())


def test_states_are_found_in_which_an_instruction_can_be_followed():
    found = find_states(PLACE, "put the green cube on the plate", "validation", 80_000, 4)
    assert (
        set(found.instructions) == {"put the green cube on the plate"}
        and (np.diff(found.indices) > 0).all()
    )
    assert all(PLACE.instruction(row) == "put the green cube on the plate" for row in found.states)
    with pytest.raises(UserError, match="never says 'dance'"):
        find_states(PLACE, "dance", "validation", 80_000, 1)


def test_the_reward_model_marks_recorded_episodes_as_the_task_did():
    from wmpo_lite.recipes.shipped import Shipped

    shipped = Shipped("place")
    judge, rollouts = shipped.reward_model(), shipped.rollouts()[:16]
    marks = [mark_by_reward(judge, t.frames, t.instruction) for t in rollouts]
    assert np.mean([(mark > 0) == t.success for mark, t in zip(marks, rollouts)]) > 0.8
    assert all(0 <= mark <= len(t) for mark, t in zip(marks, rollouts))
    assert (
        np.median(
            [abs(mark - t.finish_step) for mark, t in zip(marks, rollouts) if mark and t.success]
        )
        <= 3
    )


def test_policies_are_found_by_folder_run_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.policy().save(tmp_path / "runs" / "mine" / "policies" / "wmpo")
    for name in ("mine", "runs/mine", "runs/mine/policies/wmpo"):
        assert load_policy(name, "place").config.chunk == tiny.CHUNK
    base, wmpo = load_policy("", "place", collecting=True), load_policy("", "place")
    assert any((a != b).any() for a, b in zip(base.parameters(), wmpo.parameters()))
    with pytest.raises(UserError, match="no policy at 'yours'"):
        load_policy("yours", "place")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arm": "hexapod"}, "hexapod"),
        ({"arm": "so101"}, "--port and --calibration"),
        ({"emulated": True}, "add --arm so101"),
        ({"mark": "oracle"}, "oracle"),
        ({"arm": "so101", "port": "/dev/null", "calibration": "x.json"}, "give --instruction"),
        ({"arm": "so101", "emulated": True, "speed": 2.0}, "--speed"),
        (
            {
                "arm": "so101",
                "port": "/dev/null",
                "calibration": "x.json",
                "instruction": "x",
                "mark": "task",
            },
            "by key or by the reward model",
        ),
        ({"episodes": 0}, "--episodes"),
        ({"port": "/dev/ttyACM0"}, "are for a real arm"),
    ],
)
def test_settings_that_make_no_sense_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        Settings(**options)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty working folder with a tiny base policy in it."""
    monkeypatch.chdir(tmp_path)
    tiny.policy(image=16).save(tmp_path / "policy")
    return tmp_path


def test_a_dry_run_prints_and_draws_and_moves_nothing(desk, capsys):
    from PIL import Image

    moved = []
    session = Session(Settings(checkpoint="policy", dry_run=True))
    original = SimulatedArm.command
    SimulatedArm.command = lambda self, joints: moved.append(joints)
    try:
        assert session.run() == 0
    finally:
        SimulatedArm.command = original
    printed = capsys.readouterr().out
    assert (
        not moved
        and "nothing moves" in printed
        and len([line for line in printed.splitlines() if line[:4].strip().isdigit()]) == tiny.CHUNK
    )
    assert Image.open("runs/deploy-sim-place/dry_run.png").size == (96, 96)


def test_deploy_films_marks_and_numbers_its_episodes(desk, capsys):
    settings = Settings(checkpoint="policy", episodes=2, speed=8.0, film="film.mp4")
    assert main(settings) == 0
    assert len(open("film.mp4", "rb").read()) > 2000 and "success 0.0 %" in capsys.readouterr().out
    assert sorted(records.complete("runs/deploy-sim-place/episodes")) == [0, 1]
    found = load_trajectories("runs/deploy-sim-place/episodes/episode_0001.hdf5")[0]
    assert found.split == "validation" and found.index == 80_001 and len(found) == PLACE.horizon


def test_collecting_goes_on_where_it_was_and_the_main_job_starts_from_it(desk, capsys, monkeypatch):
    from wmpo_lite.recipes.workspace import Run, Workspace, initial_frames

    monkeypatch.setattr("wmpo_lite.train.set_threads", lambda: None)  # a run takes all cores
    settings = Settings(
        checkpoint="policy", collect=5, name="desk", speed=10.0, look=0.5, lerobot=True
    )
    calls = []
    original = records.save_episode

    def save_and_tire(*arguments, **options):
        calls.append(original(*arguments, **options))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr("wmpo_lite.arms.deploy.save_episode", save_and_tire)
    with pytest.raises(KeyboardInterrupt):
        main(settings)
    assert sorted(records.complete("runs/desk/episodes")) == [0, 1] and not os.path.exists(
        "runs/desk/rollouts.hdf5"
    )
    first = os.path.getmtime("runs/desk/episodes/episode_0000.hdf5")
    assert main(settings) == 0 and len(calls) == 5
    assert os.path.getmtime("runs/desk/episodes/episode_0000.hdf5") == first
    rollouts = load_trajectories("runs/desk/rollouts.hdf5")
    theirs = initial_states(PLACE, "rollouts", range(5))
    assert all(
        (t.initial_state == state).all() and t.tokens is not None and len(t) == 40
        for t, state in zip(rollouts, theirs.states)
    )
    for t, same in zip(rollouts, load_trajectories("runs/desk/lerobot"), strict=True):
        assert np.array_equal(t.frames, same.frames) and np.array_equal(t.actions, same.actions)
        assert (t.success, t.instruction, t.index) == (same.success, same.instruction, same.index)
    workspace = Workspace(
        Run(
            task="place",
            profile="smoke",
            rollout_budget=5,
            assets=str(tiny.assets(desk / "assets")),
        ),
        desk / "runs" / "desk",
    )
    assert (
        workspace.stage("rollouts", lambda: pytest.fail("the rollouts are there already"))["n"] == 5
    )
    starts = initial_frames(workspace.rollouts())
    assert starts.frames.shape == (5, 16, 16, 3) and (starts.states == theirs.states).all()
    workspace.env.close()
    checkpoint.write_json(desk / "runs" / "desk" / "stages" / "align.json", {"result": {}})
    with pytest.raises(UserError, match="trained on already"):
        main(settings)


def test_an_emulated_arm_is_connected_anew_for_every_episode(desk, capsys):
    session = Session(Settings(arm="so101", emulated=True, checkpoint="policy", episodes=2))
    session.horizon = 4
    assert session.run() == 0
    about = [
        load_metadata(path)["provenance"]
        for path in records.complete("runs/deploy-so101-place/episodes").values()
    ]
    assert len(about) == 2 and all(
        a["arm"] == "so101 emulated" and a["stopped"] is None and 0 < a["measures"]["bus_s"] < 0.2
        for a in about
    )
    starts = [
        load_trajectories(path)[0].frames[0].astype(int)
        for path in records.complete("runs/deploy-so101-place/episodes").values()
    ]
    assert np.abs(starts[0] - starts[1]).max() > 20  # two desks


def test_no_desk_state_is_invented_for_an_instruction_that_the_desk_does_not_allow(desk):
    with pytest.raises(UserError, match="never says 'put the pink cube"):
        main(Settings(checkpoint="policy", instruction="put the pink cube on the plate"))


def test_a_real_desk_is_collected_from_homed_judged_and_learnt_from(tmp_path, monkeypatch, capsys):
    """The way of a physical arm, with emulated servos at the end of the line: nothing but port,
    calibration and camera is known of it.
    """
    from wmpo_lite.arms import cameras
    from wmpo_lite.arms.emulator import Emulator
    from wmpo_lite.recipes.workspace import initial_frames

    monkeypatch.chdir(tmp_path)
    with Emulator(PLACE, initial_states(PLACE, "demos", range(1)), size=64) as servos:
        monkeypatch.setattr(cameras, "VideoCamera", lambda source, size: servos.camera())
        session = Session(
            Settings(
                arm="so101",
                port=servos.port,
                calibration=servos.calibration,
                instruction=tiny.RED,
                other="blue",
                collect=2,
                name="mine",
            )
        )
        session.horizon = 8
        assert session.run() == 0
    printed = capsys.readouterr().out
    assert "2 episodes" in printed and "--name mine" in printed
    rollouts = load_trajectories("runs/mine/rollouts.hdf5")
    assert [t.index for t in rollouts] == [0, 1] and all(
        t.split == "desk" and t.instruction == tiny.RED and len(t) == 8 for t in rollouts
    )
    assert all(
        np.abs(t.initial_state[:5] - home()[:5]).max() < 0.1
        and np.isnan(t.initial_state[7:-3]).all()
        for t in rollouts
    )
    assert (
        load_metadata("runs/mine/episodes/episode_0000.hdf5")["provenance"]["marked_by"] == "reward"
    )
    starts = initial_frames(rollouts)
    assert {PLACE.instruction(row) for row in PLACE.swap_instruction(starts.states)} == {tiny.BLUE}
