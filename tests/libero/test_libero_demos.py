"""Demonstrations drawn anew by the environment: its look and size, from the recorded states."""

import numpy as np
import pytest
from test_demos import official

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.demos import load_demonstrations
from wmpo_lite.envs.libero.expert import demonstrate


def test_recorded_states_are_drawn_in_the_environments_own_look(env, tmp_path):
    env.reset(env.initial_states("demos", [0]))
    rows, shown = [], []
    for n in range(12):
        action = np.zeros((1, 1, 7))
        action[..., n % 3] = 0.4
        frames, _, info = env.step_chunk(action)
        (
            rows.append(np.concatenate([[0], info["states"][0, 0], np.zeros(51)])),
            shown.append(frames[0, 0]),
        )
    found = load_demonstrations(
        official(tmp_path / "a.hdf5", lengths=(12,), states=np.array(rows)), stride=4, env=env
    )[0]
    assert found.frames.shape == (4, 64, 64, 3)
    for drawn, seen in zip(found.frames, np.array(shown)[[1, 5, 9, 11]]):
        # In an episode the picture is one physics step (2 ms) behind the state, as in LIBERO.
        assert np.abs(drawn.astype(int) - seen).mean() < 1.0
    assert np.abs(found.frames[0].astype(int) - shown[-1]).mean() > 1.0


def test_the_file_of_another_task_is_refused(env, tmp_path):
    path = official(tmp_path / "a.hdf5", instruction="pick up the milk and place it in the basket")
    with pytest.raises(UserError, match="take the file of its task"):
        load_demonstrations(path, stride=5, env=env)


def test_a_recording_of_our_own_replays_to_success(env):
    """A solved episode, held action by held action from the same initial state, is solved at the
    same step.
    """
    states = env.initial_states("demos", [2])
    found = demonstrate(env, states, np.random.default_rng(0))
    first = env.reset(states)
    frames, again, _ = env.step_chunk(found["executed"])
    assert (
        found["done"][0, -1]
        and (again == found["done"]).all()
        and (first == found["frames"][:, 0]).all()
        and (frames == found["frames"][:, 1:]).all()
    )
