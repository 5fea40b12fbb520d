"""One rollout function: what a Trajectory holds agrees with what the environment did, and can be
done again.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.rollout import replay, rollout
from wmpo_lite.trajectory import InitialStates

K, D, HORIZON = tiny.CHUNK, tiny.ACTIONS, 12


def roll(env=None, count=6, model=None, **options):
    options = dict(horizon=HORIZON, temperature=1.6, seed=0) | options
    return rollout(
        model or tiny.policy(contrast=1.0), env or tiny.Counter(), tiny.states(count), **options
    )


def same(one, two, names=("frames", "actions", "tokens", "log_probs")):
    return len(one) == len(two) and all(
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
        and a.success == b.success
        and a.finish_step == b.finish_step
        for a, b in zip(one, two)
    )


def test_trajectories_hold_what_happened():
    env, model, states = tiny.Counter(), tiny.policy(contrast=1.0), tiny.states(6)
    trajectories = roll(env, model=model)
    assert len(trajectories) == 6 and {t.success for t in trajectories} == {True, False}
    for b, t in enumerate(trajectories):
        assert (
            len(t) == HORIZON
            and t.frames.shape == (HORIZON + 1, 16, 16, 3)
            and t.actions.shape == t.tokens.shape == t.log_probs.shape == (HORIZON, D)
        )
        assert (
            t.frames.dtype == np.uint8
            and t.actions.dtype == t.log_probs.dtype == np.float32
            and t.tokens.dtype == np.int64
        )
        assert (
            t.instruction == states.instructions[b]
            and t.split == "rollouts"
            and t.index == 10 + b
            and t.group == -1
            and t.chunk == K
        )
        assert np.array_equal(t.initial_state, states.states[b])
        totals = t.initial_state[0] + np.concatenate(
            [[0], np.cumsum(t.actions[:, 0], dtype=np.float64)]
        )
        assert np.array_equal(t.frames, env.picture(totals))  # action[s] leads to frame s + 1
        reached = np.flatnonzero(totals[1:] >= env.goal)
        assert t.success == bool(len(reached)) and t.finish_step == (
            reached[0] + 1 if len(reached) else HORIZON
        )
        assert np.allclose(t.actions, model.detokenize(torch.from_numpy(t.tokens)).numpy())


def test_log_probs_are_those_of_the_frames_at_chunk_starts():
    model = tiny.policy(contrast=1.0)
    for t in roll(model=model, count=3):
        for s in range(0, HORIZON, K):
            expected, _ = model.log_probs(
                torch.from_numpy(t.frames[s : s + 1]),
                [t.instruction],
                torch.from_numpy(t.tokens[s : s + K])[None],
                1.6,
            )
            assert np.allclose(t.log_probs[s : s + K], expected[0].detach().numpy(), atol=1e-4)


def test_success_at_the_first_and_at_the_last_frame():
    class Script(tiny.Counter):
        def step_chunk(self, actions, every_frame=True):
            self.calls = getattr(self, "calls", -1) + 1
            frames, _, info = super().step_chunk(actions, every_frame)
            done = np.zeros(actions.shape[:2], bool)
            done[0] = True
            done[1] = self.calls == 2 and np.arange(K) == K - 1
            return frames, done, info

    first, last, never = roll(Script(), count=3)
    assert (first.success, first.finish_step) == (True, 1)
    assert (last.success, last.finish_step) == (True, HORIZON)
    assert (never.success, never.finish_step) == (False, HORIZON)


def test_groups_are_written_down_in_order():
    states = tiny.states(3).repeat(2)
    trajectories = rollout(
        tiny.policy(contrast=1.0),
        tiny.Counter(),
        states,
        horizon=K,
        temperature=1.6,
        groups=np.repeat(np.arange(3), 2) + 5,
        batch=4,
    )
    assert [t.group for t in trajectories] == [5, 5, 6, 6, 7, 7] and [
        t.index for t in trajectories
    ] == [10, 10, 11, 11, 12, 12]
    for one, two in zip(trajectories[::2], trajectories[1::2]):
        assert np.array_equal(one.frames[0], two.frames[0]) and not np.array_equal(
            one.tokens, two.tokens
        )


def test_the_seed_decides_a_sampled_rollout_and_greedy_needs_none():
    assert same(roll(seed=3), roll(seed=3)) and not same(roll(seed=3), roll(seed=4))
    assert same(roll(seed=3, temperature=None), roll(seed=4, temperature=None))


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 128])
def test_splitting_into_batches_loses_no_row_and_changes_no_greedy_result(batch):
    env = tiny.Counter()
    whole, parts = roll(temperature=None), roll(env, temperature=None, batch=batch)
    assert sum(env.resets) == 6 and max(env.resets) <= batch
    assert [t.index for t in parts] == [t.index for t in whole]
    assert same(whole, parts, ("frames", "actions", "tokens"))
    assert all(np.allclose(a.log_probs, b.log_probs, atol=1e-4) for a, b in zip(whole, parts))


def test_a_sampled_rollout_draws_batch_after_batch():
    """The first batch of a split rollout is the rollout of its states alone; later ones go on with
    the same generator.
    """
    split, alone, again = roll(batch=3), roll(count=3), roll(batch=3)
    assert same(split[:3], alone) and same(split, again)
    assert not np.array_equal(split[0].tokens, split[3].tokens)


def test_chunk_ends_only_repeats_the_older_frames_between():
    full, sparse = roll(), roll(every_frame=False)
    assert same(full, sparse, ("actions", "tokens", "log_probs"))
    for a, b in zip(full, sparse):
        for frame in range(HORIZON + 1):
            assert np.array_equal(b.frames[frame], a.frames[frame // K * K])


@pytest.mark.parametrize("horizon", [1, 3, 4, 6, 12])
def test_horizons_need_not_be_whole_chunks(horizon):
    long = roll()
    for a, b in zip(roll(horizon=horizon), long):
        assert (
            len(a) == horizon
            and np.array_equal(a.frames, b.frames[: horizon + 1])
            and np.array_equal(a.tokens, b.tokens[:horizon])
        )
        assert a.success == (b.success and b.finish_step <= horizon) and a.finish_step == (
            b.finish_step if a.success else horizon
        )


def test_a_policy_in_training_mode_is_switched_to_evaluation():
    model = tiny.policy(contrast=1.0).train()
    roll(model=model)
    assert not model.training


def test_an_environment_with_other_actions_is_refused_before_it_moves():
    env = tiny.Counter()
    env.action_names = ("joint 1", "joint 2", "joint 3", "gripper")
    with pytest.raises(UserError, match="the environment expects joint 1"):
        roll(env)
    assert env.resets == []


@pytest.mark.parametrize("batch", [2, 128])
def test_replay_reproduces_a_rollout(batch):
    trajectories, states = roll(), tiny.states(6)
    frames, done = replay(tiny.Counter(), trajectories, states, batch=batch)
    assert frames.shape == (6, HORIZON + 1, 16, 16, 3) and done.shape == (6, HORIZON)
    for t, film, over in zip(trajectories, frames, done):
        assert np.array_equal(film, t.frames)
        assert over.any() == t.success and (
            not t.success or over.argmax() + 1 == t.finish_step and over[t.finish_step :].all()
        )


def test_replay_of_an_odd_number_of_steps():
    frames, done = replay(tiny.Counter(), roll(horizon=6), tiny.states(6))
    assert frames.shape[1] == 7 and done.shape == (6, 6)
    assert all(np.array_equal(film, t.frames) for film, t in zip(frames, roll(horizon=6)))


def test_replay_without_the_frames_between():
    trajectories = roll()
    frames, _ = replay(tiny.Counter(), trajectories, tiny.states(6), every_frame=False)
    assert np.array_equal(frames[:, -1], np.stack([t.frames[-1] for t in trajectories]))


def test_imagination_runs_under_the_same_function():
    def imagine(every_frame=True):
        env = ImaginedEnv(tiny.autoencoder(), tiny.world_model(), tiny.reward_model())
        return rollout(
            tiny.policy(contrast=1.0),
            env,
            tiny.states(3),
            horizon=8,
            temperature=1.6,
            every_frame=every_frame,
        )

    one, two = imagine(), imagine(every_frame=False)
    assert same(one, two, ("actions", "tokens")) and all(
        t.frames.shape == (9, 16, 16, 3) for t in one
    )
    assert all(np.array_equal(t.frames[0], frame) for t, frame in zip(one, tiny.states(3).frames))


class Judge(torch.nn.Module):
    """A reward model whose verdict on a window is written in its last frame: as good as random, and
    the same for all who ask.
    """

    config = SimpleNamespace(clip=4)
    slide, score = tiny.RewardModel.slide, tiny.RewardModel.score

    def probabilities(self, clips, texts, batch=128):
        return clips[:, -1].float().mean((1, 2, 3)) * 7919 % 1.0


@pytest.mark.parametrize("hold", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("horizon", [12, 10, 9, 7])
def test_rollout_replay_and_the_score_of_the_film_agree_for_every_horizon(horizon, stride, hold):
    judge, states = Judge(), tiny.states(24, texts=(tiny.RED,))
    imagine = lambda threshold: ImaginedEnv(
        tiny.autoencoder(),
        tiny.world_model(),
        judge,
        threshold=threshold,
        seed=3,
        reward_stride=stride,
        min_consecutive=hold,
        stop=False,
    )
    roll_with = lambda threshold: rollout(
        tiny.policy(), imagine(threshold), states, horizon=horizon, temperature=1.0, seed=1
    )
    judged = len([end for end in range(stride, horizon + 1, stride) if end >= 3])
    threshold = 0.5
    if judged >= hold:  # the median of the scores: some films succeed on every processor
        films = torch.from_numpy(np.stack([t.frames for t in roll_with(threshold)]))
        scores = judge.score(films, list(states.instructions), stride, hold).sort().values
        threshold = float(scores[12])
    trajectories = roll_with(threshold)
    films, done = replay(imagine(threshold), trajectories, states)
    assert np.array_equal(films, np.stack([t.frames for t in trajectories])) and done.shape == (
        24,
        horizon,
    )
    success = [t.success for t in trajectories]
    assert done.any(axis=1).tolist() == success
    assert 0 < sum(success) < 24 if judged >= hold else not any(success)
    assert [t.finish_step for t in trajectories] == [
        int(d.argmax()) + 1 if d.any() else horizon for d in done
    ]
    if judged >= hold:
        assert (
            judge.score(torch.from_numpy(films), list(states.instructions), stride, hold)
            >= threshold
        ).tolist() == success


def test_the_last_frame_of_an_odd_horizon_is_the_newest():
    """Also where only the frames at chunk ends are drawn."""
    for whole, sparse in zip(roll(horizon=6), roll(horizon=6, every_frame=False)):
        assert np.array_equal(whole.frames[6], sparse.frames[6]) and np.array_equal(
            whole.frames[4], sparse.frames[5]
        )


def test_no_step_is_carried_out_beyond_the_horizon():
    env = tiny.Counter()
    trajectories = roll(env, horizon=6)
    assert np.allclose(
        env.total, [t.initial_state[0] + t.actions[:, 0].sum() for t in trajectories], atol=1e-5
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(horizon=0), "horizon is 0"),
        (dict(horizon=-4), "horizon is -4"),
        (dict(batch=0), "batch 0"),
        (dict(groups=[0, 0, 1]), "3 group numbers for 6 initial states"),
    ],
)
def test_rollouts_that_cannot_be_are_refused(options, message):
    env = tiny.Counter()
    with pytest.raises(UserError, match=message):
        roll(env, **options)
    assert env.resets == []


def test_a_replay_needs_a_state_for_each_trajectory_and_trajectories_of_one_kind():
    trajectories = roll(count=3)
    for some, states in (
        (trajectories, tiny.states(1)),
        (trajectories[:1], tiny.states(3)),
        ([], tiny.states(3)),
        (trajectories, tiny.states(3)[:0]),
    ):
        with pytest.raises(
            UserError, match=f"{len(some)} trajectories to replay and {len(states)} initial states"
        ):
            replay(tiny.Counter(), some, states)
    with pytest.raises(
        UserError, match=r"trajectories differ in .steps, action dimensions.: \[.8, 4., .12, 4.\]"
    ):
        replay(tiny.Counter(), trajectories[:2] + roll(count=1, horizon=8), tiny.states(3))


def test_one_state_is_a_batch_of_one():
    states = tiny.states(1)
    assert isinstance(states, InitialStates)
    assert len(rollout(tiny.policy(), tiny.Counter(), states, horizon=K)) == 1


def test_the_learning_rate_rises_at_first_and_falls_at_last(monkeypatch):
    from wmpo_lite import grpo
    from wmpo_lite.train_grpo import optimize

    rates = []
    monkeypatch.setattr(
        grpo,
        "update",
        lambda policy, optimizer, *more: rates.append(optimizer.param_groups[0]["lr"]) or {},
    )
    learn = lambda **more: optimize(
        tiny.policy(),
        lambda seed: tiny.Counter(),
        tiny.states(8),
        grpo.GRPOConfig(groups=4, group_size=8, lr=0.8, warmup=2, **more),
        iterations=6,
        horizon=4,
        seed=0,
        stage="test",
        refill=2,
    )
    learn(decay=3)
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])
    rates.clear()
    learn()
    assert rates == pytest.approx([0.4] + 5 * [0.8])
