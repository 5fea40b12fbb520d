"""Physics that outcomes hang on: recorded episodes come out again, and what is held stays held."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from wmpo_lite.common.files import ASSETS
from wmpo_lite.envs.tabletop import replay
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import plan_grasp
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.trajectory import InitialStates, load_trajectories, save_trajectories


@pytest.fixture(scope="module")
def shipped():
    return load_trajectories(ASSETS / "place" / "run" / "rollouts.hdf5")


@pytest.fixture(scope="module")
def recorded_here(shipped):
    """The shipped actions with what they lead to on this machine."""
    env = TabletopEnv(get_task("place"), size=16, threads=1)
    few = shipped[:24]
    states = np.stack([t.initial_state for t in few])
    words = tuple(t.instruction for t in few)
    env.reset(InitialStates(states, None, words, "replay", np.arange(len(few))))
    done = env.step_chunk(np.stack([t.actions for t in few]), every_frame=None)[1][:, -1]
    env.close()
    return [replace(t, success=bool(d)) for t, d in zip(few, done)]


def test_recorded_episodes_come_out_as_they_were_recorded(shipped, recorded_here):
    assert {t.success for t in recorded_here} == {True, False}
    assert replay.equal_outcomes(recorded_here, "place", count=24) == (24, 24)
    # where they were recorded a sine may have been rounded otherwise
    equal, count = replay.equal_outcomes(shipped, "place", count=128)
    assert count == 128 and equal >= 125 and replay.alike(equal, count)


def test_a_single_outcome_may_hang_by_a_thread():
    assert replay.alike(16, 16) and replay.alike(15, 16)
    assert not replay.alike(14, 16) and not replay.alike(105, 128)  # mujoco 3.2.7 against 3.17.0


def test_another_outcome_is_counted_and_what_cannot_be_repeated_left_out(shipped, recorded_here):
    failed = [t for t in recorded_here if not t.success][:5]
    claimed = [replace(t, success=True) for t in failed[:3]] + failed[3:]
    assert replay.equal_outcomes(claimed, "place") == (2, 5)
    stateless = [replace(t, initial_state=np.zeros(0)) for t in shipped[:3]]
    unknown = [replace(t, initial_state=np.full(26, np.nan)) for t in shipped[:3]]
    assert replay.equal_outcomes(stateless, "place") == (0, 0)
    assert replay.equal_outcomes(unknown, "place") == (0, 0)
    assert replay.equal_outcomes(shipped[:3], "libero_goal/1") == (0, 0)


def test_a_file_says_with_which_mujoco_it_was_recorded(shipped, tmp_path, monkeypatch, recwarn):
    path = tmp_path / "rollouts.hdf5"
    save_trajectories(path, shipped[:1], env_args=replay.env_args("place", 64), provenance={})
    assert replay.recorded_with(path) == mujoco.__version__
    replay.warn_of_version(path)
    assert not recwarn.list
    monkeypatch.setattr(replay.metadata, "version", lambda name: "9.9.9")
    with pytest.warns(UserWarning, match=f"recorded with mujoco {mujoco.__version__} and 9.9.9"):
        replay.warn_of_version(path)


@pytest.mark.parametrize(
    "cone, impratio, low, high",
    [
        (None, None, 0.0, 1.0),  # the scene's own
        (mujoco.mjtCone.mjCONE_ELLIPTIC, 1, 5.0, 12.0),
        (mujoco.mjtCone.mjCONE_PYRAMIDAL, 1, 40.0, 90.0),
    ],
)
def test_a_held_cube_stays_in_the_hand_thanks_to_the_cone(cone, impratio, low, high):
    """mm by which a cube sinks between the fingers in 8 s."""
    task = get_task("place")
    env = TabletopEnv(task, size=16, threads=1)
    try:
        if cone is not None:
            env.model.opt.cone, env.model.opt.impratio = cone, impratio
        env.reset(initial_states(task, "validation", [0]))
        env.step_chunk(plan_grasp(env.tip, task.named_cube(env), 16), every_frame=None)
        height = lambda: np.stack([env.position(name)[0, 2] for name in task.CUBES])
        held, begin = height().argmax(), height().max()
        assert begin > 0.05
        tip = env.tip[0, 2]
        env.step_chunk(np.tile([0.0, 0.0, 0.0, 1.0], (1, 40, 1)), every_frame=None)
        sunk = 1000 * ((begin - tip) - (height()[held] - env.tip[0, 2]))
    finally:
        env.close()
    assert low <= sunk <= high


def test_the_books_table_of_releases_is_the_measured_one():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("bench", root / "tests/bench/bench_mujoco.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = json.loads((root / "assets/results/mujoco.json").read_text())["rows"]
    assert bench.table(rows) in (root / "notebooks/what_the_libraries_do.md").read_text()
    for told in rows[mujoco.__version__].values():
        assert told["equal_finish_steps"] == told["n"] == bench.PER_TASK
