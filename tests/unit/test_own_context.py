"""Own-context training: recorded states, which windows are drawn, whose frames they stand on."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.train import FitConfig, fit, generators
from wmpo_lite.world_model import State

C, K, D = 3, 2, tiny.ACTIONS  # context, frames a pass, numbers of an action
PLAIN = dict(events=0.0, start=0.0, noise=0.0)


def numbered(count=3, steps=12, last=None):
    """Latents with the value 100 e + t; actions with that of the frame that they lead to."""
    level = 100 * torch.arange(count)[:, None] + torch.arange(steps + 1)
    latents = level.float()[..., None, None, None].repeat(1, 1, 4, 8, 8)
    return Episodes(latents, level[:, 1:].float()[..., None].repeat(1, 1, D), last)


class Dreamer:
    """In place of a world model: keeps what it is given and predicts -1 everywhere."""

    device = torch.device("cpu")

    def __init__(self, **changes):
        self.config = SimpleNamespace(context=C, frames=K, **changes)
        self.calls = []

    def loss(self, state, actions, target, generator, *, level, pure, weight, rows):
        state = State(
            *(part.clone() for part in state)
        )  # a pool writes new windows into its tensors
        self.calls.append((state, actions, target, level, weight))
        return target.mean(), torch.full_like(target, -1.0), torch.ones(len(target))


def values(x):
    """The number that fills each frame or action, as a list."""
    return x.flatten(2)[..., 0].tolist()


def run(pool, steps=40, step=None):
    """`steps` calls of the loss; step: the number that all are said to have."""
    for i in range(steps):
        pool.loss(*generators(0, i), i if step is None else step)


# -- episodes --------------------------------------------------------------------------------------


def test_states_by_hand():
    """Before the first frame there is the first frame again, and no action; path is a sum."""
    state = numbered().state([0, 1, 2, 2], [0, 1, 5, 12], context=4)
    assert values(state.frames) == [
        [0, 0, 0, 0],
        [100, 100, 100, 101],
        [202, 203, 204, 205],
        [209, 210, 211, 212],
    ]
    assert values(state.actions) == [[0, 0, 0], [0, 0, 101], [203, 204, 205], [210, 211, 212]]
    assert state.reference.flatten(1)[:, 0].tolist() == [0, 100, 200, 200]
    sums = [0, 101, 5 * 200 + 15, 12 * 200 + 78]
    assert state.path.tolist() == [[float(x)] * D for x in sums]
    assert state.frames.shape == (4, 4, 4, 8, 8) and state.actions.shape == (4, 3, D)


def test_futures_by_hand():
    """The action at place s leads to frame s + 1."""
    frames, actions = numbered().future([0, 2], [0, 9], 3)
    assert values(frames) == values(actions) == [[1, 2, 3], [210, 211, 212]]
    assert frames.shape == (2, 3, 4, 8, 8) and actions.shape == (2, 3, D)


def test_a_context_of_one_frame_has_no_past_actions():
    state = numbered().state([1], [4], context=1)
    assert values(state.frames) == [[104]] and state.actions.shape == (1, 0, D)


def test_half_precision_is_kept_as_such_and_read_as_single():
    latents, actions = torch.zeros(2, 4, 4, 8, 8).half(), torch.zeros(2, 3, D).half()
    episodes = Episodes(latents, actions)
    state, (frames, moves) = episodes.state([0], [2], 2), episodes.future([0], [0], 2)
    assert episodes.latents.dtype == torch.float16
    assert {part.dtype for part in (*state, frames, moves)} == {torch.float32}


def test_pictures_are_encoded_when_a_batch_wants_them():
    frames = torch.from_numpy(tiny.noise_frames(3, 9))
    actions = torch.from_numpy(tiny.random_actions(3, 8, D))
    model = tiny.autoencoder()
    lazy = Episodes(frames, actions, encode=model.encode_uint8)
    latents = Episodes(model.encode_uint8(frames), actions)
    for one, other in zip(lazy.state([0, 2], [1, 8], C), latents.state([0, 2], [1, 8], C)):
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(lazy.future([1], [2], K)[0], latents.future([1], [2], K)[0], atol=1e-5)
    lossy = Dreamer()
    run(Pool(lazy, lossy, WindowConfig(batch=4, **PLAIN)), steps=2)
    assert lossy.calls[0][2].shape == (4, K, 4, 8, 8)


@pytest.mark.parametrize("episodes, steps", [(2, 5), (2, 3), (3, 4)])
def test_latents_and_actions_that_do_not_fit_are_refused(episodes, steps):
    with pytest.raises(
        UserError, match=r"\(2, 5, 4, 8, 8\).*do not fit: expected T \+ 1 frames for T actions"
    ):
        Episodes(torch.zeros(2, 5, 4, 8, 8), torch.zeros(episodes, steps, D))


# -- which windows are drawn -----------------------------------------------------------------------


def test_every_window_up_to_the_last_frame_and_none_past_it():
    """Episodes end at frames 12, 7 and 1; the last is shorter than a pass and never used."""
    last = np.array([12, 7, 1])
    model = Dreamer()
    pool = Pool(
        numbered(last=last), model, WindowConfig(batch=32, own=2, ramp=0, **PLAIN | dict(start=0.1))
    )
    run(pool, 60)
    newest = {
        (int(v) // 100, int(v) % 100)
        for _, _, target, _, _ in model.calls
        for v in target.flatten(2)[:, 0, 0] - 1
    }
    assert newest == {(e, s) for e in (0, 1) for s in range(last[e] - K + 1)}
    ends = torch.cat([target for _, _, target, _, _ in model.calls])[:, -1, 0, 0, 0].int().numpy()
    assert (ends % 100 <= last[ends // 100]).all()


def test_targets_are_the_recording_whatever_a_slot_stands_on():
    model = Dreamer()
    pool = Pool(numbered(), model, WindowConfig(batch=16, own=4, ramp=0, **PLAIN))
    run(pool)
    owned = 0
    for state, actions, target, _, _ in model.calls:
        first = target[:, 0, 0, 0, 0]
        assert torch.equal(
            actions[:, :, 0], target[:, :, 0, 0, 0]
        )  # each action leads to the frame of its number
        assert (target[:, 1:, 0, 0, 0] == first[:, None] + 1).all()
        frame = (first - 1).long() % 100
        assert torch.equal(state.path, pool.episodes.path[(first - 1).long() // 100, frame])
        assert torch.equal(state.reference[:, 0, 0, 0], first - 1 - frame)
        owned += int((state.frames == -1).any())
    assert owned > 20


def test_grippers_about_to_open_or_close_are_seen_more_often():
    """Action 8 of 20 closes the gripper: windows with it among their next six weigh more."""
    actions = -torch.ones(2, 20, D)
    actions[0, 8:, -1] = 1
    episodes = Episodes(torch.zeros(2, 21, 4, 8, 8), actions)
    weights = episodes.weights(WindowConfig(events=4.0), K)
    assert weights[0].tolist() == [1.0] * 3 + [5.0] * 6 + [1.0] * 10 + [0.0]
    assert weights[1].tolist() == [1.0] * 19 + [0.0]
    pool = Pool(episodes, Dreamer(), WindowConfig(batch=20_000, own=0, events=4.0, start=0.0))
    pool.refill(np.random.default_rng(0), 0)
    drawn = np.zeros((2, 20))
    np.add.at(drawn, (pool.tensors["episode"].numpy(), pool.tensors["frame"].numpy()), 1)
    assert (
        np.allclose(drawn / 20_000, weights / weights.sum(), atol=0.01)
        and not drawn[weights == 0].any()
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_some_windows_begin_where_imagination_does(share):
    """That share begins at a first frame, of every episode as often; the others do so by chance."""
    windows = WindowConfig(batch=4000, own=0, events=0.0, start=share)
    pool = Pool(numbered(), Dreamer(), windows)
    pool.refill(np.random.default_rng(0), 0)
    first = pool.tensors["frame"] == 0
    expected = share + (1 - share) / (12 - K + 1)
    assert float(first.float().mean()) == pytest.approx(expected, abs=0.03)
    of_episodes = np.bincount(pool.tensors["episode"][first].numpy(), minlength=3) / int(
        first.sum()
    )
    assert of_episodes == pytest.approx([1 / 3] * 3, abs=0.07)


def test_positions_that_move_weigh_more():
    """Numbered frames change by 1 and more: both kinds of change count once at most."""
    windows = WindowConfig(batch=8, own=0, motion=8.0, change=2.0)
    model = Dreamer()
    run(Pool(numbered(), model, windows), 1)
    weight = model.calls[0][-1]
    assert weight.shape == (8, K, 1, 8, 8) and (weight == 11).all()
    still = numbered()
    still.latents[:] = 3.0
    # one position is another than in the first frame, and stays so
    still.latents[:, 1:, :, 2, 5] = 3.3
    model = Dreamer()
    run(Pool(still, model, WindowConfig(batch=64, own=0, motion=8.0, change=2.0, start=0.0)), 1)
    state, _, _, _, weight = model.calls[0]
    first_pass = state.frames[:, -1, 0, 2, 5] == 3.0
    assert first_pass.any() and not first_pass.all()
    assert torch.allclose(
        weight[~first_pass][:, :, 0, 2, 5], torch.tensor(1 + 0.3 * 2.0), atol=1e-5
    )
    assert torch.allclose(
        weight[first_pass][:, 0, 0, 2, 5], torch.tensor(1 + 0.3 * 10.0), atol=1e-5
    )
    weight[:, :, :, 2, 5] = 1
    assert (weight == 1).all()


def test_context_noise_has_a_level_of_its_own_for_every_window():
    model = Dreamer()
    run(Pool(numbered(), model, WindowConfig(batch=500, own=0, noise=0.2)), 2)
    levels = torch.cat([level for _, _, _, level, _ in model.calls])
    assert levels.min() >= 0 and levels.max() <= 0.2 and abs(levels.mean() - 0.1) < 0.01


@pytest.mark.parametrize("steps, last", [(12, [1, 0]), (1, None)])
def test_episodes_shorter_than_a_pass_are_a_user_error(steps, last):
    episodes = numbered(2, steps, last)
    with pytest.raises(
        UserError, match="no episode is at least 2 steps long, so no window can be cut"
    ):
        Pool(episodes, Dreamer(), WindowConfig())


# -- whose frames a slot stands on -----------------------------------------------------------------


def test_without_own_frames_every_context_is_recorded():
    model = Dreamer()
    pool = Pool(numbered(), model, WindowConfig(batch=16, own=0, ramp=0))
    for i in range(20):
        pool.loss(*generators(0, i), 5000)
        state, _, target, _, _ = model.calls[-1]
        newest = target[:, 0, 0, 0, 0].long() - 1
        expected = pool.episodes.state(newest // 100, newest % 100, C)
        assert all(torch.equal(a, b) for a, b in zip(state, expected))


def carried(own, ramp, step, steps=60, batch=64):
    """How many of each slot's context frames are the model's own: (calls, batch)."""
    model = Dreamer()
    run(
        Pool(numbered(steps=40), model, WindowConfig(batch=batch, own=own, ramp=ramp, **PLAIN)),
        steps,
        step,
    )
    return torch.stack(
        [(state.frames == -1).all(dim=(2, 3, 4)).sum(dim=1) for state, *_ in model.calls]
    )


def test_predictions_are_carried_on_as_the_next_context():
    """After one pass two of three frames are the model's own, from then on all."""
    found = carried(own=3, ramp=1, step=1)
    assert set(found.unique().tolist()) == {0, 2, 3}
    model = Dreamer()
    run(Pool(numbered(), model, WindowConfig(batch=16, own=3, ramp=1, **PLAIN)), 5)
    state = next(state for state, *_ in model.calls if (state.frames == -1).any())
    own = (state.frames == -1).all(dim=(2, 3, 4))
    assert own[own.any(dim=1)].tolist() == [[False, True, True]] * int(own.any(dim=1).sum())


def test_a_slot_is_carried_from_none_to_so_many_passes_each_as_often():
    """own=3: 0, 1, 2 or 3 passes on own frames follow a recorded context, each as often."""
    found = carried(own=3, ramp=1, step=1, steps=120, batch=200)
    runs = []
    for slot in found.T.tolist():
        begins = [i for i, count in enumerate(slot) if count == 0]
        runs += [b - a - 1 for a, b in zip(begins, begins[1:])]
    share = np.bincount(runs, minlength=4) / len(runs)
    assert len(share) == 4 and share == pytest.approx([0.25] * 4, abs=0.05)


def test_own_frames_come_in_slowly():
    """No pass on own frames at first, half of them half-way, all at the ramp's end."""

    def longest(step):
        best = streak = torch.zeros(64, dtype=torch.long)
        for row in carried(own=4, ramp=100, step=step, steps=80):
            streak = torch.where(row > 0, streak + 1, 0)
            best = torch.maximum(best, streak)
        return int(best.max())

    assert [longest(step) for step in (0, 10, 50, 100, 10_000)] == [0, 0, 2, 4, 4]


def test_a_pool_of_a_real_model_carries_its_predictions():
    """The next context's newest frames are the clean frames that the pass before predicted."""
    model = tiny.world_model(context=C)
    latents = torch.randn(4, 21, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pool = Pool(
        Episodes(latents, torch.from_numpy(tiny.random_actions(4, 20, D))),
        model,
        WindowConfig(batch=8, own=50, ramp=0),
    )
    predicted, loss = [], model.loss
    model.loss = lambda *given, **more: predicted.append(loss(*given, **more)) or predicted[-1]
    before = {name: pool.tensors[name].clone() for name in State._fields}
    run(pool, 1)
    t = pool.tensors
    assert torch.equal(t["frames"][:, -K:], predicted[0][1]) and not t["frames"].requires_grad
    assert not torch.equal(t["frames"], before["frames"])
    newest = pool.episodes.state(t["episode"], t["frame"], C)
    assert torch.equal(t["actions"], newest.actions) and torch.allclose(
        t["path"], newest.path, atol=1e-5
    )
    assert not torch.allclose(t["frames"][:, -1], newest.frames[:, -1], atol=1e-2)


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [5, 10, 11])
def test_training_resumes_bit_identical(tmp_path, stop_at):
    """The pool belongs to a checkpoint: slots go on where and on what they stood."""
    latents, actions = tiny.moving_dot(8, 12, seed=0)
    config = FitConfig(steps=12, lr=1e-3, warmup=2, ema=0.99, save_every=4)

    def train(folder, stop_at=None):
        model = tiny.world_model(shaken=0, latent_channels=1, action_dim=2)
        pool = Pool(Episodes(latents, actions), model, WindowConfig(batch=8, own=6, ramp=2))

        def interrupted(generator, rng, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return pool.loss(generator, rng, step)

        fit(
            model,
            interrupted,
            config,
            seed=0,
            name="world model",
            folder=folder,
            extra=pool.tensors,
        )
        return model.state_dict(), pool.tensors

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_at)
    (whole, slots), (resumed, again) = train(None), train(tmp_path)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert all(torch.equal(slots[key], again[key]) for key in slots)
    assert (slots["left"] >= 0).any()  # some slots were in the middle of their way
