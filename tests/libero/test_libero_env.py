"""The contract on a real LIBERO task: episodes, chunks, strides, the wrist camera, success, and
that nothing leaks from one episode into another.
"""

import numpy as np
import pytest
import tiny

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.env import ACTION_NAMES
from wmpo_lite.envs.libero.expert import demonstrate
from wmpo_lite.rollout import rollout
from wmpo_lite.trajectory import InitialStates, load_trajectories, save_trajectories


@pytest.fixture(scope="module")
def states(env):
    return env.initial_states("rollouts", np.arange(3))


def motions(batch, steps, seed=0):
    actions = 0.5 * tiny.random_actions(batch, steps, 7, seed=seed)
    return actions


def test_the_contract(env, states):
    first = env.reset(states)
    assert (
        first.shape == (3, 64, 64, 3)
        and first.dtype == np.uint8
        and env.wrist.shape == first.shape
        and (env.wrist != first).any()
    )
    assert (
        env.instructions == ["pick up the alphabet soup and place it in the basket"] * 3
        and env.action_names == ACTION_NAMES
        and env.action_dim == 7
    )
    frames, done, info = env.step_chunk(motions(3, 4))
    assert (
        frames.shape == (3, 4, 64, 64, 3)
        and frames.dtype == np.uint8
        and info["wrist"].shape == frames.shape
        and done.shape == (3, 4)
        and not done.any()
    )
    assert (frames[:, 0] != first).any() and (frames[:, 1:] != frames[:, :-1]).any(
        axis=(1, 2, 3, 4)
    ).all()
    assert info["tip"].shape == (3, 4, 3) and info["objects"].shape == (3, 4, len(env.objects), 3)
    env.reset(states)
    newest, again, _ = env.step_chunk(motions(3, 4), every_frame=False)
    assert (newest[:, 0] == frames[:, -1]).all() and (again == done).all()


def test_an_episode_knows_nothing_of_others(env, states):
    """The same state and actions give the same bits alone, in company, on the other worker, after
    other episodes and in chunks of another length.
    """
    actions = motions(3, 6)
    env.reset(states)
    frames, _, info = env.step_chunk(actions)
    env.reset(states[[2]])  # now on the first worker, and alone
    alone = [
        env.step_chunk(actions[2:, part], every_frame=True) for part in (slice(0, 1), slice(1, 6))
    ]
    assert (np.concatenate([a[0] for a in alone], axis=1)[0] == frames[2]).all()
    assert (np.concatenate([a[2]["states"] for a in alone], axis=1)[0] == info["states"][2]).all()


def test_the_hand_goes_where_the_actions_say(env, states):
    for axis in range(3):
        for sign in (-1, 1):
            env.reset(states[:1])
            start = env.step_chunk(np.zeros((1, 1, 7)))[2]["tip"][0, -1]
            action = np.zeros((1, 3, 7))
            action[..., axis] = 0.3 * sign
            moved = env.step_chunk(action, every_frame=False)[2]["tip"][0, -1] - start
            assert moved[axis] * sign > 0.04 and np.abs(np.delete(moved, axis)).max() < 0.5 * abs(
                moved[axis]
            )


def test_the_expert_solves_the_task_in_few_policy_steps(env):
    """From a state of the benchmark and from one of ours; once solved, the episode stands still."""
    for split in ("evaluation", "demos"):
        found = demonstrate(env, env.initial_states(split, [1]), np.random.default_rng(0))
        assert (
            env.premises[0].holds and found["done"][0, -1] and 10 < found["done"][0].argmax() <= 40
        )
        frames, finished, info = env.step_chunk(motions(1, 3))
        assert (
            finished.all()
            and (frames[0] == found["frames"][0, -1]).all()
            and (info["states"] == info["states"][:, :1]).all()
        )


def test_what_is_now_is_known_after_a_reset_and_after_steps(env, states):
    env.reset(states)
    assert env.goal == (("in", "alphabet_soup_1", "basket_1_contain_region"),)
    assert (
        env.now["tip"].shape == (3, 3)
        and env.now["objects"].shape == (3, len(env.objects), 3)
        and env.now["turned"].shape == (3, len(env.objects), 4)
    )
    before = env.now["objects"].copy()
    info = env.step_chunk(motions(3, 2))[2]
    assert (
        all(
            (env.now[name] == info[name][:, -1]).all()
            for name in ("tip", "objects", "turned", "states")
        )
        and np.abs(env.now["objects"] - before).max() < 0.01
    )


def test_rollout_runs_a_policy_and_its_trajectories_are_saved(env, states, tmp_path):
    from wmpo_lite.policy import ActionStatistics

    statistics = ActionStatistics(names=ACTION_NAMES, low=(-1.0,) * 7, high=(1.0,) * 7)
    policy = tiny.policy(image=64, patch=16, action_dim=7, statistics=statistics)
    act = policy.act
    policy.act = lambda frames, texts, *more: act(
        frames, [tiny.RED] * len(texts), *more
    )  # it does not know LIBERO's words
    found = rollout(policy, env, states[:2], horizon=8, temperature=1.0, every_frame=False)
    assert (
        [len(t) for t in found] == [8, 8]
        and found[0].frames.shape == (9, 64, 64, 3)
        and not found[0].success
    )
    save_trajectories(
        tmp_path / "a.hdf5", found, env_args={"suite": "libero_object"}, provenance={}
    )
    assert (load_trajectories(tmp_path / "a.hdf5")[1].frames == found[1].frames).all()


def test_a_group_starts_from_one_picture(env, states):
    first = env.reset(states[:2].repeat(3))
    assert (
        (first[1] == first[0]).all()
        and (first[2] == first[0]).all()
        and (first[3] != first[0]).any()
    )


@pytest.mark.parametrize(
    "actions, message",
    [
        (np.full((3, 2, 7), np.nan), "NaN or infinity"),
        (np.zeros((2, 2, 7)), r"expected \(3, K, 7\)"),
        (np.zeros((3, 2, 4)), r"expected \(3, K, 7\)"),
        (np.zeros((3, 0, 7)), r"expected \(3, K, 7\)"),
    ],
)
def test_bad_actions_get_one_sentence_and_change_nothing(env, states, actions, message):
    env.reset(states)
    with pytest.raises(UserError, match=message):
        env.step_chunk(actions)
    frames = env.step_chunk(motions(3, 1))[0]
    env.reset(states)
    assert (env.step_chunk(motions(3, 1))[0] == frames).all()


def test_a_foreign_state_is_refused_and_the_workers_go_on(env, states):
    foreign = InitialStates(np.zeros((2, 9)), None, ("x",) * 2, "demos", np.arange(2))
    with pytest.raises(UserError, match="has 110 numbers"):
        env.reset(foreign)
    assert env.reset(states).shape == (3, 64, 64, 3)


def test_actions_out_of_range_are_clipped(env, states):
    results = []
    for scale in (1.0, 7.0):
        env.reset(states[:1])
        action = scale * np.ones((1, 2, 7))
        results.append(env.step_chunk(action)[2]["states"])
    assert (results[0] == results[1]).all()


def test_a_world_that_goes_on_after_success(env, states):
    """With stop=False the can falls into the basket and the hand goes away, and `done` stays; up to
    then both episodes are the same.
    """
    from wmpo_lite.envs.libero.env import LiberoEnv
    from wmpo_lite.envs.libero.expert import demonstrate

    stood = demonstrate(env, states[:1], np.random.default_rng(0))
    with LiberoEnv(env.task, workers=1, stop=False) as free:
        went_on = demonstrate(free, states[:1], np.random.default_rng(0))
        can = free.objects.index("alphabet_soup_1")
    solved = int(stood["done"][0].argmax())
    assert (stood["done"] == went_on["done"]).all() and stood["done"][0, -1] and solved < 50
    assert (stood["frames"][0, : solved + 1] == went_on["frames"][0, : solved + 1]).all()
    assert (stood["frames"][0, solved + 2 :] == stood["frames"][0, solved + 1]).all()
    assert went_on["objects"][0, -1, can, 2] < stood["objects"][0, -1, can, 2] - 0.03
    assert np.linalg.norm(went_on["tip"][0, -1] - went_on["tip"][0, solved + 1]) > 0.05
