"""The imagined environment: the same contract as a simulator, latents carried and never re-encoded,
rewards that do not see chunk borders.
"""

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.imagined_env import ImaginedEnv

B, K, D, L = 3, tiny.CHUNK, tiny.ACTIONS, 4


def models(reward=True, clip=L):
    return tiny.autoencoder(), tiny.world_model(), tiny.reward_model(clip=clip) if reward else None


def play(env, chunks=3, count=B, **options):
    """Film (B, 1 + chunks * K, H, W, 3), done (B, chunks * K), scores after each chunk."""
    film, done, scores = [env.reset(tiny.states(count))[:, None]], [], []
    for chunk in range(chunks):
        frames, over, info = env.step_chunk(tiny.random_actions(count, K, D, seed=chunk), **options)
        film.append(frames), done.append(over), scores.append(info["scores"])
    return np.concatenate(film, axis=1), np.concatenate(done, axis=1), scores


def never(models):
    models[2].threshold.fill_(2.0)  # no probability reaches it
    return models


class Judge:
    """A reward model that is sure from the first window on, for the instructions in `pleased`."""

    def __init__(self, pleased, clip=L):
        self.pleased, self.threshold, self.config = (
            pleased,
            torch.tensor(0.5),
            type("Config", (), {"clip": clip}),
        )

    def slide(self, frames, instructions, stride=1):
        verdict = torch.tensor([float(text in self.pleased) for text in instructions])
        return verdict[:, None].expand(-1, frames.shape[1] - self.config.clip + 1)


@pytest.mark.parametrize("name", ["reward_stride", "min_consecutive"])
def test_windows_are_judged_one_at_least(name):
    with pytest.raises(UserError, match=f"{name} is 0: expected 1 or more"):
        ImaginedEnv(*models(), **{name: 0})


def test_shapes_and_types_are_those_of_every_environment():
    env = ImaginedEnv(*never(models()))
    states = tiny.states(B)
    first = env.reset(states)
    assert np.array_equal(first, states.frames) and env.instructions == list(states.instructions)
    assert env.action_dim == D and env.action_names == ("dx", "dy", "dz", "gripper")
    frames, done, info = env.step_chunk(tiny.random_actions(B, K, D))
    assert frames.shape == (B, K, 16, 16, 3) and frames.dtype == np.uint8
    assert done.shape == (B, K) and done.dtype == bool and not done.any()
    assert info["scores"].shape == (B,)
    last, done, _ = env.step_chunk(tiny.random_actions(B, K, D), every_frame=False)
    assert last.shape == (B, 1, 16, 16, 3) and done.shape == (B, K)


def test_every_frame_or_only_the_last_is_the_same_film():
    film, done, scores = play(ImaginedEnv(*models()))
    sparse, done_sparse, scores_sparse = play(ImaginedEnv(*models()), every_frame=False)
    assert (
        np.array_equal(sparse, film[:, ::K])
        and np.array_equal(done, done_sparse)
        and np.array_equal(scores, scores_sparse)
    )


def test_the_threshold_is_the_given_one_or_the_reward_models():
    assert ImaginedEnv(*never(models())).threshold == 2.0
    assert ImaginedEnv(*models(reward=False), threshold=0.7).threshold == pytest.approx(0.7)
    with pytest.raises(UserError, match="no threshold"):
        _ = ImaginedEnv(*models(reward=False)).threshold


def test_the_caller_may_write_into_what_it_got():
    def scribble(env):
        film = [env.reset(tiny.states(B))]
        for chunk in range(2):
            frames, done, info = env.step_chunk(tiny.random_actions(B, K, D, seed=chunk))
            film.append(frames.copy())
            frames[:], info["scores"][:] = 0, 9
        return film, info

    states = tiny.states(B)
    clean, _, _ = play(ImaginedEnv(*never(models())), chunks=2)
    film, _ = scribble(ImaginedEnv(*never(models())))
    assert np.array_equal(np.concatenate(film[1:], axis=1), clean[:, 1:]) and np.array_equal(
        states.frames, tiny.states(B).frames
    )


def test_latents_are_carried_and_the_camera_frame_is_encoded_once(monkeypatch):
    autoencoder, world_model, _ = models()
    encoded, given, made = [], [], []
    encode, next_frames = autoencoder.encode_uint8, world_model.next_frames
    monkeypatch.setattr(
        autoencoder, "encode_uint8", lambda frames: encoded.append(encode(frames)) or encoded[-1]
    )

    def spy(state, actions, generator=None, steps=None):
        given.append(state)
        made.append(next_frames(state, actions, generator, steps))
        return made[-1]

    monkeypatch.setattr(world_model, "next_frames", spy)
    film, _, _ = play(ImaginedEnv(autoencoder, world_model))
    assert len(encoded) == 1 and len(given) == 3
    expected = [world_model.init_state(encoded[0])] + [after for _, after in made]
    for state, wanted in zip(given, expected):
        assert all(torch.equal(a, b) for a, b in zip(state, wanted))
    decoded = [autoencoder.decode_uint8(frames).numpy() for frames, _ in made]
    assert np.array_equal(film[:, 1:], np.concatenate(decoded, axis=1))


def test_actions_move_the_picture_and_are_clipped():
    def end(actions):
        env = ImaginedEnv(*models(reward=False))
        env.reset(tiny.states(B))
        return env.step_chunk(actions)[0]

    still = end(np.zeros((B, K, D)))
    assert not np.array_equal(end(np.ones((B, K, D))), still)
    assert np.array_equal(end(np.full((B, K, D), 7.0)), end(np.ones((B, K, D))))
    one = np.zeros((B, K, D))
    one[1, 2] = 1
    moved = (end(one) != still).any(axis=(2, 3, 4))
    assert not moved[[0, 2]].any() and moved[1].tolist() == [False, False, True, True]


def test_the_seed_decides_the_film():
    one, two, other = (play(ImaginedEnv(*models(reward=False), seed=seed))[0] for seed in (0, 0, 1))
    assert (
        np.array_equal(one, two)
        and np.array_equal(one[:, 0], other[:, 0])
        and not np.array_equal(one[:, 1:], other[:, 1:])
    )


def test_more_rows_than_a_piece_are_all_imagined():
    film, done, _ = play(ImaginedEnv(*models(reward=False)), count=70, chunks=2)
    assert film.shape == (70, 9, 16, 16, 3) and not done.any()
    assert (film[:, 1:] != film[:, :1]).any(axis=(1, 2, 3, 4)).all()


def test_reset_forgets_the_last_episode():
    env = ImaginedEnv(*models()[:2], Judge({tiny.RED, tiny.BLUE}))
    assert play(env)[1].any()
    first = env.reset(tiny.states(B))
    assert np.array_equal(first, tiny.states(B).frames) and not env.scores.any()
    _, done, _ = env.step_chunk(tiny.random_actions(B, K, D))
    assert (
        not done[:, : L - 2].any() and done[:, L - 2 :].all()
    )  # judged from the new first frame on


@pytest.mark.parametrize("clip", [2, 4, 6, 8])
def test_rewards_do_not_see_chunk_borders(clip):
    """Windows judged chunk by chunk are those of one slide over the whole film, first frame
    included (K = 4; clips up to two chunks long).
    """
    film, done, scores = play(ImaginedEnv(*never(models(clip=clip)), stop=False))
    autoencoder, world_model, reward = models(clip=clip)
    windows = reward.slide(
        torch.from_numpy(film), list(tiny.states(B).instructions)
    ).numpy()  # (B, 13 - clip + 1)
    assert not done.any()
    for chunk in range(3):
        seen = windows[:, : max(0, 1 + (chunk + 1) * K - clip + 1)]
        assert np.allclose(scores[chunk], seen.max(axis=1, initial=0.0), atol=1e-5)
    levels = np.unique(windows)
    for low, high in zip(levels[:-1], levels[1:]):
        if high - low < 1e-5:
            continue
        reward.threshold.fill_((low + high) / 2)
        film_again, done, _ = play(ImaginedEnv(autoencoder, world_model, reward, stop=False))
        assert np.array_equal(film, film_again)
        over = np.maximum.accumulate(
            windows >= (low + high) / 2, axis=1
        )  # window w ends at frame w + L - 1 = action w + L - 2
        assert np.array_equal(done[:, clip - 2 :], over) and not done[:, : clip - 2].any()


def between(scores) -> float:
    """A threshold near the median that is no score itself: the same window scores a few 1e-8 apart
    in another batch, so a tie would fall either way.
    """
    levels = np.sort(scores, axis=None)
    wide = np.flatnonzero(np.diff(levels) > 1e-5)
    low = wide[np.abs(wide - len(levels) // 2).argmin()]
    return float(levels[low] + levels[low + 1]) / 2


@pytest.mark.parametrize("stride", [2, 4])
def test_a_stride_judges_fewer_windows_and_marks_the_frames_after_them(stride):
    film, _, scores = play(ImaginedEnv(*never(models()), stop=False, reward_stride=stride))
    autoencoder, world_model, reward = models()
    windows = reward.slide(
        torch.from_numpy(film), list(tiny.states(B).instructions)
    ).numpy()  # window w ends at action w + L - 2
    judged = windows[:, (windows.shape[1] - 1) % stride :: stride]
    assert np.allclose(scores[-1], judged.max(axis=1), atol=1e-5)
    threshold = between(judged)
    reward.threshold.fill_(threshold)
    _, done, _ = play(
        ImaginedEnv(autoencoder, world_model, reward, stop=False, reward_stride=stride)
    )
    expected = np.zeros_like(done)
    for j, window in enumerate(range((windows.shape[1] - 1) % stride, windows.shape[1], stride)):
        expected[:, window + L - 2 :] |= (judged[:, j] >= threshold)[:, None]
    assert np.array_equal(done, expected) and done.any() and not done.all()


@pytest.mark.parametrize("stride, hold", [(1, 2), (1, 5), (2, 3)])
def test_windows_in_a_row_must_agree_across_chunks(stride, hold):
    film, _, scores = play(
        ImaginedEnv(*never(models()), stop=False, reward_stride=stride, min_consecutive=hold)
    )
    autoencoder, world_model, reward = models()
    texts = list(tiny.states(B).instructions)
    windows = reward.slide(torch.from_numpy(film), texts, stride).numpy()
    held = np.stack(
        [windows[:, j : j + hold].min(axis=1) for j in range(windows.shape[1] - hold + 1)], axis=1
    )
    assert np.allclose(scores[-1], held.max(axis=1), atol=1e-5)
    assert np.allclose(
        reward.score(torch.from_numpy(film), texts, stride, hold).numpy(),
        held.max(axis=1),
        atol=1e-5,
    )
    threshold = between(held.max(axis=1))
    reward.threshold.fill_(threshold)
    _, done, _ = play(
        ImaginedEnv(
            autoencoder, world_model, reward, stop=False, reward_stride=stride, min_consecutive=hold
        )
    )
    for row, good in zip(done, held >= threshold):
        first = (
            (L - 2) + (film.shape[1] - L) % stride + stride * (good.argmax() + hold - 1)
        )  # the action after which the run is long enough
        assert row.any() == good.any() and (not good.any() or row.argmax() == first)


def test_done_stays_true_and_finished_rows_stand_still(monkeypatch):
    autoencoder, world_model, _ = models()
    rows, next_frames = [], world_model.next_frames
    monkeypatch.setattr(
        world_model,
        "next_frames",
        lambda state, *rest: rows.append(len(state.path)) or next_frames(state, *rest),
    )
    env = ImaginedEnv(autoencoder, world_model, Judge({tiny.BLUE}))
    film, done, scores = play(env)  # rows 0 and 2 are red, row 1 is blue
    assert (
        done[1].tolist() == [False] * (L - 2) + [True] * (3 * K - L + 2) and not done[[0, 2]].any()
    )
    assert rows == [3, 2, 2]
    assert (film[1, K + 1 :] == film[1, K]).all() and (film[0, K + 1 :] != film[0, K]).any()
    assert scores[-1].tolist() == [0, 1, 0]


def deaf_to_noise():
    """A world model that does not look at the noise that it starts from: what it imagines is
    decided by state and actions.
    """
    model = tiny.world_model()
    c = model.config
    with (
        torch.no_grad()
    ):  # channels: 2 of position, the context's, the noisy frames', the reference's
        begin = 2 + c.context * c.latent_channels
        model.denoiser.input.weight[:, begin : begin + c.frames * c.latent_channels] = 0
    return model


def test_rows_that_go_on_keep_their_own_past():
    """Whether another episode is over changes nothing: the state behind each picture is carried on
    row by row.
    """

    def film(pleased):
        return play(ImaginedEnv(tiny.autoencoder(), deaf_to_noise(), Judge(pleased)), count=4)[
            0
        ].astype(int)

    together, apart = film(set()), film({tiny.BLUE})  # rows 1 and 3 are blue and end early
    assert (
        np.abs(together[[0, 2]] - apart[[0, 2]]).max() <= 1
    )  # sums in another order round differently
    assert np.abs(together[[1, 3], -1] - apart[[1, 3], -1]).max() > 1


def test_inference_steps_are_the_models_or_ones_own():
    def film(steps):
        return play(
            ImaginedEnv(
                tiny.autoencoder(),
                tiny.world_model(num_inference_steps=2),
                num_inference_steps=steps,
            )
        )[0]

    assert np.array_equal(film(None), film(2)) and not np.array_equal(film(None), film(1))


def test_all_rows_finished_costs_nothing(monkeypatch):
    autoencoder, world_model, _ = models()
    env = ImaginedEnv(autoencoder, world_model, Judge({tiny.RED, tiny.BLUE}))
    play(env, chunks=1)
    monkeypatch.setattr(
        world_model, "next_frames", lambda *_: pytest.fail("nothing is left to imagine")
    )
    frames, done, _ = env.step_chunk(tiny.random_actions(B, K, D))
    assert done.all() and frames.shape == (B, K, 16, 16, 3)


def test_stop_false_imagines_on_after_success_and_done_stays_true():
    film, done, _ = play(ImaginedEnv(*models()[:2], Judge({tiny.BLUE}), stop=False))
    assert done[1, L - 2 :].all() and not done[[0, 2]].any()
    assert (film[1, K + 1 :] != film[1, K]).any()


def test_without_a_reward_model_nothing_is_ever_done():
    film, done, scores = play(ImaginedEnv(*models(reward=False)))
    assert not done.any() and not np.any(scores)


def test_a_row_is_judged_by_its_own_instruction():
    judge = Judge({tiny.BLUE})
    env = ImaginedEnv(*models()[:2], judge)
    _, done, _ = play(env, count=6)
    assert done.any(axis=1).tolist() == [False, True] * 3


def test_states_without_frames_are_refused():
    with pytest.raises(UserError, match="imagination starts from recorded frames"):
        ImaginedEnv(*models()).reset(tiny.states(B, frames=False))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_numbers_are_refused(bad):
    env = ImaginedEnv(*models())
    env.reset(tiny.states(B))
    actions = tiny.random_actions(B, K, D)
    actions[1, 2, 3] = bad
    with pytest.raises(UserError, match="actions hold NaN or infinity"):
        env.step_chunk(actions)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_last_chunk_may_be_of_any_length(steps):
    env = ImaginedEnv(*never(models()))
    env.reset(tiny.states(B))
    env.step_chunk(tiny.random_actions(B, K, D))
    before, moves = env.state, tiny.random_actions(B, steps, D)
    newest, path = before.frames[:, -1].clone(), before.path.clone()
    frames, done, _ = env.step_chunk(moves)
    assert frames.shape == (B, steps, 16, 16, 3) and done.shape == (B, steps)
    assert env.state.frames.shape[1] == tiny.CONTEXT
    if steps < tiny.CONTEXT:
        assert torch.equal(env.state.frames[:, -1 - steps], newest)
    assert torch.allclose(env.state.path, path + torch.from_numpy(moves).sum(dim=1), atol=1e-6)


def test_frames_of_another_size_are_refused():
    states = tiny.states(B)
    object.__setattr__(states, "frames", tiny.noise_frames(B, size=32))
    env = ImaginedEnv(*models())
    with pytest.raises(UserError, match="16"):
        env.reset(states)


def test_a_threshold_of_its_own_overrides_the_reward_models():
    models = tiny.autoencoder(), tiny.world_model(), tiny.reward_model()
    assert ImaginedEnv(*models).threshold == float(models[2].threshold)
    for threshold, expected in ((0.0, True), (2.0, False)):
        env = ImaginedEnv(*models, threshold=threshold)
        env.reset(tiny.states(3))
        assert (
            env.step_chunk(tiny.random_actions(3, tiny.CHUNK, tiny.ACTIONS))[1][:, -1] == expected
        ).all() and env.threshold == threshold


@pytest.mark.parametrize(
    "shape", [(3, 4, 7), (3, 4, 3), (1, 4, 4), (4, 4, 4), (3, 4), (3, 0, 4), (4, 4)]
)
def test_actions_of_another_size_or_batch_are_refused_before_anything_moves(shape):
    """A row too few would be broadcast to all episodes, a number too many ignored."""
    env = ImaginedEnv(*models())
    env.reset(tiny.states(B))
    before = env.state.frames.clone()
    with pytest.raises(UserError, match=r"actions have shape .*; expected \(3, K, 4\)"):
        env.step_chunk(np.zeros(shape))
    assert torch.equal(env.state.frames, before)


def test_an_environment_is_reset_before_it_is_stepped():
    env = ImaginedEnv(*models())
    with pytest.raises(UserError, match="reset it to initial states first"):
        env.step_chunk(np.zeros((3, 4, 4)))
