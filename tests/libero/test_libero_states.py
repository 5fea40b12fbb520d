"""Splits: the benchmark's states stay for evaluation; others are drawn, settled, and each has its
premise checked.
"""

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.states import SUITES, evaluation_rows, get_task, seed_of, tasks
from wmpo_lite.trajectory import InitialStates


@pytest.mark.parametrize(
    "suite, count",
    [
        ("libero_spatial", 10),
        ("libero_object", 10),
        ("libero_goal", 10),
        ("libero_90", 90),
        ("libero_10", 10),
    ],
)
def test_all_five_suites_by_name(suite, count):
    found = tasks(suite)
    assert (
        len(found) == count
        and len({t.name for t in found}) == count
        and all(t.instruction for t in found)
    )
    assert 40 <= found[0].horizon <= 80 and found[0].horizon % 8 == 0
    rows = evaluation_rows(found[count // 2])
    assert rows.shape[0] == 50 and rows.dtype == np.float64 and np.isfinite(rows).all()


def test_horizons_cover_the_longest_demonstrations():
    longest = {
        "libero_spatial": 193,
        "libero_object": 254,
        "libero_goal": 270,
        "libero_90": 373,
        "libero_10": 505,
    }
    assert all(stride * horizon > longest[suite] for suite, (stride, horizon) in SUITES.items())


def test_evaluation_states_are_the_benchmarks_and_nobody_elses(env):
    bundled = evaluation_rows(env.task)
    found = env.initial_states("evaluation", np.arange(50))
    assert (found.states[:, : env.row_size] == bundled).all() and found.split == "evaluation"
    further = env.initial_states("evaluation", [49, 50, 51])
    assert (further.states[0] == found.states[49]).all()
    both = np.concatenate([further.states[1:, : env.row_size], bundled])[:, 10 : 1 + 58]
    assert (np.abs(both[:2, None] - both[None]).max(axis=-1) + np.eye(2, 52) > 1e-3).all()
    ours = {
        split: env.initial_states(split, np.arange(2))
        for split in ("demos", "rollouts", "validation")
    }
    rows = np.concatenate([states.states[:, : env.row_size] for states in ours.values()])
    both = np.concatenate([rows, bundled])[:, 1 : 1 + 58]
    apart = np.abs(both[:, None, 9:] - both[None, :, 9:]).max(
        axis=-1
    )  # objects, beyond the arm's nine joints
    assert (apart[:6] + np.eye(6, 56) > 1e-3).all()


def test_a_state_is_the_same_whenever_and_wherever_it_is_drawn(env):
    whole = env.initial_states("play", np.arange(3)).states
    assert (env.initial_states("play", [2]).states[0] == whole[2]).all() and (
        env.initial_states("play", [0]).states[0] == whole[0]
    ).all()
    assert (
        len(
            {
                seed_of(env.task, split, i, n)
                for split in ("demos", "play")
                for i in range(50)
                for n in range(3)
            }
        )
        == 300
    )


def test_drawn_states_are_at_rest(env):
    states = env.initial_states("rollouts", np.arange(2))
    env.reset(states)
    still = np.zeros((2, 2, 7))
    still[..., 6] = -1
    objects = env.step_chunk(still, every_frame=False)[2]["objects"]
    assert (
        all(p.holds for p in env.premises) and np.abs(objects[:, -1] - objects[:, 0]).max() < 1e-3
    )


def test_a_broken_premise_is_reported(env):
    states = env.initial_states("evaluation", [3, 4])
    env.reset(states)
    assert all(p.holds for p in env.premises)
    places = env.step_chunk(np.zeros((2, 1, 7)))[2]["objects"][0, 0]
    soup = places[env.objects.index("alphabet_soup_1")]
    column = next(
        c for c in range(10, 58) if np.abs(states.states[0, c : c + 2] - soup[:2]).max() < 2e-3
    )  # its x in the state
    for height, angle, word in (
        (0.2, np.pi / 8, "alphabet_soup_1 slid"),
        (4.0, 0.0, "alphabet_soup_1 still moves"),
    ):
        rows = states.states.copy()
        rows[0, column + 2], rows[0, column + 3 : column + 7] = (
            height,
            np.array([np.cos(angle), np.sin(angle), 0, 0]),
        )
        print(rows[0, column : column + 7], states.states[0, column : column + 7], soup)
        env.reset(InitialStates(rows, None, states.instructions, "evaluation", states.indices))
        assert (
            env.premises[0].broken[0].startswith(word)
            and env.premises[0].index == 3
            and env.premises[1].holds
        )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda env: env.initial_states("test", [0]), "split 'test' is unknown"),
        (lambda env: env.initial_states("demos", [-1]), "numbered from 0"),
        (lambda env: get_task("libero_11", 0), "no suite 'libero_11'"),
        (lambda env: get_task("libero_goal", 10), "tasks 0 to 9"),
    ],
)
def test_bad_input_gets_one_sentence(env, make, message):
    with pytest.raises(UserError, match=message):
        make(env)


@pytest.mark.slow
def test_mujocos_known_effect_on_the_bowl_on_the_ramekin_is_seen():
    """Newer versions of MuJoCo let the bowl of libero_spatial's task 5 slide off: the report must
    say so, and no training state is made of it.
    """
    from wmpo_lite.envs.libero.env import LiberoEnv

    with LiberoEnv(get_task("libero_spatial", 5), workers=1) as env:
        env.reset(env.initial_states("evaluation", [0, 1]))
        if all(p.holds for p in env.premises):
            pytest.skip("this version of MuJoCo holds the premise")
        assert all("akita_black_bowl_1" in p.broken[0] for p in env.premises)
        with pytest.raises(UserError, match="cannot hold its premise"):
            env.initial_states("rollouts", [0])
