"""The success classifier: where windows end, which clips count as what, its threshold, what it
takes over from the image tower, and that it can learn.
"""

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.language import build_tokenizer
from wmpo_lite.reward import (
    RewardConfig,
    RewardModel,
    best_probability,
    fit_threshold,
    matching_threshold,
    reward_loss,
    sample_clips,
    shifted,
)
from wmpo_lite.train import FitConfig, fit, generators

L = 4  # clip length of the tiny model


def episodes(count=12, steps=20, seed=0, other="", finish=None):
    """Frames whose every pixel is the frame's number (plus 100 in failures); even episodes are
    successes.
    """
    rng = np.random.default_rng(seed)
    success = np.arange(count) % 2 == 0
    finish_step = np.where(
        success, rng.integers(2 * L, steps + 1, count) if finish is None else finish, steps
    )
    level = np.arange(steps + 1) + 100 * ~success[:, None]
    frames = np.broadcast_to(level[..., None, None, None], (count, steps + 1, 16, 16, 3)).astype(
        np.uint8
    )
    return {
        "frames": frames,
        "success": success,
        "finish_step": finish_step,
        "instruction": np.array([f"task {e}" for e in range(count)]),
        "other": np.array([other and f"{other} {e}" for e in range(count)]),
    }


def spoken(**options):
    """The same with a sentence that the model knows."""
    return {**episodes(**options), "instruction": np.array([tiny.RED] * 12)}


# --------------------------------------------------------------------------------------- the model


def test_several_judge_by_the_mean_of_their_log_odds(tmp_path):
    alone = [tiny.reward_model(contrast=c) for c in (10, 20, 30)]
    clips = torch.from_numpy(tiny.noise_frames(5, L))[:, :L]
    texts = [tiny.RED, tiny.BLUE] * 2 + [tiny.RED]
    said = [model(clips, texts).detach() for model in alone]
    assert (said[0] - said[1]).abs().min() > 1e-4, "three that agree would show nothing"
    whole = RewardModel.together(alone)
    assert torch.equal(whole(clips, texts), torch.stack(said).mean(dim=0))
    assert RewardModel.together(alone[:1]) is alone[0]
    with pytest.raises(UserError, match="0 reward models cannot judge together"):
        RewardConfig(members=0)
    whole.save(tmp_path / "reward")
    assert torch.equal(RewardModel.load(tmp_path / "reward")(clips, texts), whole(clips, texts))


@pytest.mark.parametrize("steps", [L - 1, L, L + 1, 11])
def test_a_window_is_the_clip_that_ends_at_its_frame(steps):
    model = tiny.reward_model()
    frames, texts = torch.from_numpy(tiny.noise_frames(2, steps)), [tiny.RED, tiny.BLUE]
    scores = model.slide(frames, texts)
    assert scores.shape == (2, max(0, steps - L + 1))
    for window in range(scores.shape[1]):
        end = window + L - 1
        assert torch.allclose(
            scores[:, window],
            torch.sigmoid(model(frames[:, end - L + 1 : end + 1], texts)),
            atol=1e-5,
        )


def test_windows_on_a_stub_by_hand(monkeypatch):
    """A model that reads out the newest pixel of a clip shows which frame ends which window, for
    every stride.
    """
    model = tiny.reward_model()
    monkeypatch.setattr(
        RewardModel,
        "forward",
        lambda self, clips, texts: (
            clips[:, -1, 0, 0, 0].float() + 1000 * torch.tensor([float(t) for t in texts])
        ),
    )
    monkeypatch.setattr(torch, "sigmoid", lambda x: x)
    frames = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1, 1).expand(2, 9, 16, 16, 3)
    assert model.slide(frames, ["0", "1"]).tolist() == [
        [3, 4, 5, 6, 7, 8],
        [1003, 1004, 1005, 1006, 1007, 1008],
    ]
    assert model.slide(frames, ["0", "1"], stride=2).tolist() == [
        [4, 6, 8],
        [1004, 1006, 1008],
    ]  # the newest is always judged


def test_order_of_frames_and_words_matter():
    model = tiny.reward_model()
    clips = torch.from_numpy(tiny.noise_frames(1, L))
    logit = model(clips, [tiny.RED])
    assert logit.shape == (1,)
    assert (
        abs(logit - model(clips.flip(1), [tiny.RED])) > 1e-4
        and abs(logit - model(clips, [tiny.BLUE])) > 1e-3
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("put the purple cube on the plate", "does not know the word purple of the instruction"),
        ("put the cyan cube on the magenta plate", "does not know the words cyan, magenta of"),
        ("", "an instruction is empty"),
        (" ?! ", "an instruction is empty"),
    ],
)
def test_sentences_that_the_model_cannot_read_are_refused(text, message):
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    with pytest.raises(UserError, match=message):
        tiny.reward_model()(clips, [tiny.RED, text])


def test_case_and_punctuation_do_not_count():
    model, clips = tiny.reward_model(), torch.from_numpy(tiny.noise_frames(1, L))
    assert torch.equal(model(clips, ["Put the RED cube, on the plate!"]), model(clips, [tiny.RED]))


def test_sentences_that_differ_in_the_order_of_words_alone_are_refused():
    """Their words are summed: both would be one question."""
    model, clips = tiny.reward_model(), torch.from_numpy(tiny.noise_frames(2, L))
    one, two = (
        "put the red block left of the white block",
        "put the white block left of the red block",
    )
    message = f"does not read the order of words, so '{one}' and '{two}' are the same to it"
    with pytest.raises(UserError, match="does not read the order of words"):
        model(clips, [one, two])
    other = tiny.reward_model()
    other(clips, [one, one.upper()])
    with pytest.raises(UserError, match=message):  # nor one call after the other
        other(clips, [two, two])


def test_one_instruction_for_each_clip_is_needed():
    with pytest.raises(UserError, match="2 pictures and 1 instructions"):
        tiny.reward_model()(torch.from_numpy(tiny.noise_frames(2, L)), [tiny.RED])


def test_shorter_instructions_in_a_batch_do_not_change_the_longer_ones():
    """Padding is not a word."""
    model = tiny.reward_model()
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    together = model(clips, ["lift", tiny.RED])
    assert torch.allclose(together[:1], model(clips[:1], ["lift"]), atol=1e-5)


def test_probabilities_in_pieces():
    model = tiny.reward_model()
    clips, texts = (
        torch.from_numpy(tiny.noise_frames(7, L)),
        [tiny.RED, tiny.BLUE, "lift"] * 2 + [tiny.RED],
    )
    whole = model.probabilities(clips, texts)
    assert torch.allclose(whole, model.probabilities(clips, texts, batch=3), atol=1e-5)
    assert whole.shape == (7,) and (whole > 0).all() and (whole < 1).all()
    assert model.probabilities(clips[:0], []).shape == (0,)


@pytest.mark.parametrize(
    "shape", [(2, 4, 8, 8, 3), (2, 4, 16, 32, 3), (2, 3, 16, 16, 3), (2, 4, 16, 16, 4), (4, 16, 16)]
)
def test_clips_of_another_size_are_refused(shape):
    clips = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(UserError, match="reads clips of 4 frames of 16x16 RGB, got"):
        tiny.reward_model()(clips, [tiny.RED] * len(clips))


def test_score_is_the_best_window_and_needs_one():
    model = tiny.reward_model()
    frames, texts = torch.from_numpy(tiny.noise_frames(3, 9)), [tiny.RED] * 3
    assert torch.equal(model.score(frames, texts), model.slide(frames, texts).amax(dim=1))
    with pytest.raises(UserError, match="have 3 frames, fewer than the reward model's clip of 4"):
        model.score(frames[:, :3], texts)
    with pytest.raises(
        UserError, match="6 windows of the episodes are judged and 7 in a row must agree"
    ):
        model.score(frames, texts, min_consecutive=7)


def test_a_score_judges_the_windows_that_end_at_multiples_of_the_stride():
    model, texts = tiny.reward_model(), [tiny.RED] * 3
    frames = torch.from_numpy(tiny.noise_frames(3, 11))  # numbers 0 to 10
    windows = model.slide(frames, texts)  # the first ends at frame 3
    assert torch.allclose(
        model.score(frames, texts, stride=4), windows[:, [1, 5]].amax(dim=1), atol=1e-6
    )
    assert torch.allclose(
        model.score(frames, texts, stride=3), windows[:, [0, 3, 6]].amax(dim=1), atol=1e-6
    )
    assert torch.allclose(
        model.score(frames, texts, stride=4, min_consecutive=2),
        windows[:, [1, 5]].amin(dim=1),
        atol=1e-6,
    )
    with pytest.raises(
        UserError, match="no window of 4 frames ends at every 11th of the episodes' 11 frames"
    ):
        model.score(frames, texts, stride=11)
    with pytest.raises(UserError, match="stride between judged windows is 0"):
        model.score(frames, texts, stride=0)


# ------------------------------------------------------------------------------------------- clips


def draw(data, half=200, seed=0, **options):
    """Clips as (episode is a success, numbers of their frames, text, label)."""
    clips, texts, labels = sample_clips(
        data, RewardConfig(clip=L), np.random.default_rng(seed), half, **options
    )
    assert (
        clips.shape == (2 * half, L, 16, 16, 3)
        and clips.dtype == torch.uint8
        and len(texts) == 2 * half
    )
    numbers = clips[:, :, 0, 0, 0].int().numpy()
    return numbers[:, 0] < 100, numbers % 100, texts, labels.numpy()


@pytest.mark.parametrize("seed", range(3))
def test_batches_are_balanced_and_cut_where_the_paper_says(seed):
    data = episodes(seed=seed)
    success, numbers, texts, labels = draw(data, seed=seed, after=0)
    assert labels.sum() == len(labels) / 2
    episode = np.array([int(text.split()[1]) for text in texts])
    assert (np.diff(numbers, axis=1) == 1).all()  # consecutive frames
    assert (
        success == data["success"][episode]
    ).all()  # every clip under the instruction of its own episode
    positive = labels == 1
    assert (
        success[positive].all()
        and (numbers[positive, -1] == data["finish_step"][episode[positive]]).all()
    )
    negative_success = ~positive & success
    assert negative_success.any() and (~positive & ~success).any()
    assert (
        numbers[negative_success, -1] <= data["finish_step"][episode[negative_success]] - L
    ).all()
    assert (
        numbers[negative_success, -1] == data["finish_step"][episode[negative_success]] - L
    ).any()  # the hardest ones are there
    assert set(episode[positive]) == set(np.flatnonzero(data["success"]))  # every success is used
    failures = numbers[~positive & ~success]
    assert failures[:, 0].min() == 0 and failures[:, -1].max() == 20  # any clip of a failure


def test_the_other_instruction_makes_a_terminal_clip_a_negative():
    data = episodes(other="other")
    success, numbers, texts, labels = draw(data, after=0)
    swapped = np.array([text.startswith("other") for text in texts])
    episode = np.array([int(text.split()[1]) for text in texts])
    assert 0.2 < swapped.sum() / (labels == 0).sum() < 0.4
    assert (
        (labels[swapped] == 0).all()
        and success[swapped].all()
        and (numbers[swapped, -1] == data["finish_step"][episode[swapped]]).all()
    )


@pytest.mark.parametrize(
    "options, after", [({"after": 0}, 0), ({"after": 2}, 2), ({}, 8)], ids=["0", "2", "default"]
)
def test_terminal_clips_end_at_the_finish_or_up_to_so_many_frames_later(options, after):
    data = episodes(other="other")
    success, numbers, texts, labels = draw(data, **options)
    episode = np.array([int(text.split()[1]) for text in texts])
    terminal = (labels == 1) | np.array([text.startswith("other") for text in texts])
    late = numbers[terminal, -1] - data["finish_step"][episode[terminal]]
    assert (
        set(late) == set(range(after + 1)) and numbers.max() <= 20
    )  # the film is over after frame 20
    ending = draw(episodes(finish=20), **options)[1]
    assert ending.max() == 20


def test_early_successes_give_no_negatives_of_their_own():
    """A success at frame 5 has no clip of 4 frames that ends 4 frames earlier: a failure serves
    instead.
    """
    success, _, _, labels = draw(episodes(finish=5), after=0)
    assert (success == (labels == 1)).all()
    success, numbers, _, labels = draw(
        episodes(finish=2 * L - 1), after=0
    )  # exactly one such clip, frames 0..3
    assert (numbers[success & (labels == 0)] == np.arange(L)).all() and (
        success & (labels == 0)
    ).any()


@pytest.mark.parametrize(
    "change",
    [
        dict(success=np.ones(12, bool)),
        dict(success=np.zeros(12, bool)),
        dict(finish_step=np.full(12, L - 2)),
    ],
    ids=["all", "none", "short"],
)
def test_both_classes_are_needed(change):
    with pytest.raises(UserError, match="needs both successes and failures"):
        draw({**episodes(), **change})


def test_episodes_shorter_than_a_clip_are_a_user_error():
    with pytest.raises(UserError, match="0 of those are at least 4 frames long"):
        draw(episodes(steps=2, finish=2))


def test_success_may_come_as_numbers():
    data = episodes()
    one = draw(data)
    two = draw({**data, "success": data["success"].astype(np.int64)})
    assert (one[1] == two[1]).all() and one[2] == two[2]


def test_clips_repeat_by_seed():
    one, two, other = (draw(episodes(), seed=seed) for seed in (0, 0, 1))
    assert (one[1] == two[1]).all() and one[2] == two[2] and (one[1] != other[1]).any()


# -- what an image tower has learnt ----------------------------------------------------------------


@pytest.fixture
def tower():
    """A policy with three layers of vision and something in every parameter."""
    return tiny.shake(tiny.policy(vision_depth=3), 0.3)


def encode(model, clips):
    """The encoder's normalized tokens of clips uint8 (B, L, H, W, 3)."""
    pixels = clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return model.norm(model.encoder(pixel_values=pixels).last_hidden_state)


def test_of_a_still_clip_the_inflated_encoder_sees_what_the_tower_sees(tower):
    model, frames = RewardModel.from_tower(tower), torch.from_numpy(tiny.noise_frames(3))
    still = frames[:, None].repeat(1, L, 1, 1, 1)
    with torch.no_grad():
        seen, expected = encode(model, still), tower.features(frames)
    assert expected.std() > 0.5 and not torch.allclose(expected[:1], expected[1:], atol=0.1)
    expected = expected.repeat(1, L // 2, 1)  # once for each tubelet of two frames
    assert torch.allclose(seen, expected, atol=1e-4)


def test_a_reward_model_knows_the_words_of_the_policy_whose_eyes_it_gets(tmp_path):
    policy = tiny.policy()
    policy.tokenizer = build_tokenizer(["soup", "basket", "alphabet"])
    model = RewardModel.from_tower(policy)
    assert model.config.words == ("soup", "basket", "alphabet")
    model.save(tmp_path)
    clips = torch.from_numpy(tiny.noise_frames(L))[None]
    told = [found(clips, ["Alphabet soup"]) for found in (model.eval(), RewardModel.load(tmp_path))]
    assert torch.equal(*told)
    with pytest.raises(UserError, match="does not know the word cube"):
        model(clips, ["soup cube"])


def test_of_two_frames_the_inflated_encoder_takes_the_mean(tower):
    model, frames = RewardModel.from_tower(tower), torch.from_numpy(tiny.noise_frames(L))
    pixels = (frames.permute(0, 3, 1, 2).float() / 127.5 - 1)[None]
    with torch.no_grad():
        embedded = model.encoder.embeddings(pixels, None)[0]  # (32, width)
        each = tower.vision.embeddings(pixels[0])  # (4, 16, width)
    assert torch.allclose(embedded, each.unflatten(0, (2, 2)).mean(dim=1).flatten(0, 1), atol=1e-5)


def train_one_step(model):
    loss = reward_loss(model, spoken(), half=4)
    fit(model, loss, FitConfig(steps=1, lr=1e-2, warmup=0), seed=0, name="one")


def test_sizes_come_from_the_tower_and_its_weights_stay_the_policys(tower):
    assert RewardModel.from_tower(tiny.policy()).config == tiny.reward_model().config
    model = RewardModel.from_tower(tower)
    assert model.config == RewardConfig(image=16, patch=4, width=16, depth=3)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    train_one_step(model)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_frozen_layers_keep_what_they_know_while_the_others_learn(tower, layers):
    model = RewardModel.from_tower(tower)
    model.freeze_lower(2)
    model.freeze_lower(layers)  # the last word counts
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_one_step(model)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    frozen = tuple(f"encoder.encoder.layer.{i}." for i in range(layers))
    frozen += ("encoder.embeddings.",) if layers else ("encoder.embeddings.position_embeddings",)
    assert same == {name for name in before if name.startswith(frozen)} | {"threshold"}


# ---------------------------------------------------------------------------------------- learning


def test_shifted_moves_a_clip_as_a_whole_by_up_to_two_pixels_and_repeats_its_border():
    clips = torch.from_numpy(tiny.noise_frames(200, L)).float()
    moved = shifted(clips, np.random.default_rng(0))
    assert moved.shape == clips.shape
    padded = np.pad(clips.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    places = set()
    for clip, wide in zip(moved.numpy(), padded):
        shifts = [(y, x) for y in range(5) for x in range(5)]
        found = [(y, x) for y, x in shifts if np.array_equal(clip, wide[:, y : y + 16, x : x + 16])]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 25  # both ways, each apart
    assert torch.equal(shifted(clips, np.random.default_rng(0)), moved)
    assert not torch.equal(shifted(clips, np.random.default_rng(1)), moved)
    assert torch.equal(shifted(clips, np.random.default_rng(0), most=0), clips)


def test_shifted_keeps_a_constant_picture():
    clips = torch.arange(24.0).view(8, 1, 1, 1, 3).expand(8, L, 16, 16, 3)
    assert torch.equal(shifted(clips, np.random.default_rng(0)), clips)


def test_clips_for_training_are_mirrored_and_of_other_brightness():
    """Pictures that rise from left to right: a slope's sign tells mirrored ones, its size how
    bright.
    """
    model, data = tiny.reward_model(), spoken()
    ramp = (8 * np.arange(16) + 40).astype(np.uint8)[:, None]  # (W, 1)
    data["frames"] = np.broadcast_to(ramp, (12, 21, 16, 16, 3))
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss_fn = reward_loss(model, data, half=100)
    losses = [float(loss_fn(*generators(seed, 0), 0)[0].detach()) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and torch.equal(seen[0], seen[1])
    row = seen[0][:, 0, 8, :, 0]
    slope = (row[:, 11] - row[:, 4]) / 7
    assert 60 < (slope < 0).sum() < 140
    brightness = slope.abs() / 8
    assert 0.95 <= brightness.min() < 0.96 and 1.04 < brightness.max() <= 1.05
    assert (seen[0] == seen[0][:, :1]).all()  # a still clip stays one


def test_no_clip_for_training_is_brighter_than_white():
    model, data, seen = tiny.reward_model(), spoken(), []
    data["frames"] = np.full_like(data["frames"], 255)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    reward_loss(model, data, half=20)(*generators(0, 0), 0)
    assert seen[0].max() == 255 and seen[0].min() < 250


@pytest.mark.parametrize("smooth, logit", [(0.0, 2.0), (0.1, 2.0), (0.1, -1.0)])
def test_the_loss_by_hand(monkeypatch, smooth, logit):
    """Positives come first: their labels are 1 - smooth, those of the others smooth."""
    model = tiny.reward_model()
    logits = torch.tensor([logit] * 8 + [-logit] * 8)
    monkeypatch.setattr(RewardModel, "forward", lambda self, clips, texts: logits)
    loss, logs = reward_loss(model, episodes(), half=8, smooth=smooth)(*generators(0, 0), 0)
    p = 1 / (1 + np.exp(-logit))
    expected = -(1 - smooth) * np.log(p) - smooth * np.log(1 - p)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert logs["accuracy"] == float(logit > 0)  # of the labels as they are


def toy_films(count=16, steps=12, seed=0):
    """A square that turns bright for good at the finish of a success; failures stay dark.
    Instructions are the same sentence.
    """
    rng = np.random.default_rng(seed)
    success = np.arange(count) % 2 == 0
    finish = np.where(success, rng.integers(8, steps + 1, count), steps)
    frames = rng.integers(0, 40, (count, steps + 1, 16, 16, 3)).astype(np.uint8)
    for e in np.flatnonzero(success):
        frames[e, finish[e] :, 4:12, 4:12] = 220
    return {
        "frames": frames,
        "success": success,
        "finish_step": finish,
        "instruction": np.array([tiny.RED] * count),
        "other": np.array([""] * count),
    }


def test_it_learns_a_toy_world_and_its_threshold():
    model, films = tiny.reward_model(contrast=1.0), toy_films()
    records = fit(
        model,
        reward_loss(model, films, half=8),
        FitConfig(steps=80, lr=3e-3, warmup=5),
        seed=0,
        name="toy",
        log_every=40,
    )
    assert records[-1]["accuracy"] > 0.9 and records[-1]["loss"] < 0.6 * records[0]["loss"]
    held_out = toy_films(seed=1)
    frames, texts = torch.from_numpy(held_out["frames"]), list(held_out["instruction"])
    threshold, f1 = fit_threshold(model, frames, texts, held_out["success"])
    assert f1 == 1.0 and float(model.threshold) == pytest.approx(threshold)
    over = (model.slide(frames, texts) >= model.threshold).numpy()
    for e in range(16):
        assert over[e].any() == held_out["success"][e]
        if over[
            e
        ].any():  # the first window over the threshold ends at the finish or within a clip after it
            assert 0 <= over[e].argmax() + L - 1 - held_out["finish_step"][e] < L


def test_it_overfits_two_clips():
    model = tiny.reward_model(contrast=1.0)
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(clips, [tiny.RED] * 2), torch.tensor([1.0, 0.0])
        )
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    p = model.probabilities(clips, [tiny.RED] * 2)
    assert p[0] > 0.95 and p[1] < 0.05


def test_the_same_picture_can_be_a_success_for_one_sentence_only():
    model = tiny.reward_model(contrast=1.0)
    clips, texts = (
        torch.from_numpy(tiny.noise_frames(1, L)).expand(2, -1, -1, -1, -1),
        [
            tiny.RED,
            tiny.BLUE,
        ],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(clips, texts), torch.tensor([1.0, 0.0])
        )
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    p = model.probabilities(clips, texts)
    assert p[0] > 0.9 and p[1] < 0.1


def test_fit_threshold_by_hand(monkeypatch):
    """Scores .9 .6 | .4 .2 with truth yes yes | no no: any threshold in (.4, .6] is perfect."""
    model = tiny.reward_model()
    monkeypatch.setattr(model, "score", lambda frames, texts: torch.tensor([0.9, 0.2, 0.6, 0.4]))
    threshold, f1 = fit_threshold(model, None, None, [True, False, True, False])
    assert (
        f1 == 1.0 and 0.4 < threshold <= 0.6 and float(model.threshold) == pytest.approx(threshold)
    )


def test_the_best_probability_lies_in_the_widest_gap_of_log_odds():
    """Between 0.9 and 0.99 lie 2.4 log-odds, between 0.99 and 0.99999 nearly 7: the middle of those
    is chosen where both are perfect.
    """
    scores, success = np.array([0.5, 0.9, 0.99, 0.99999]), [False, True, False, True]
    threshold, f1 = best_probability(scores, success)
    odds = np.log(scores / (1 - scores))
    assert f1 == pytest.approx(0.8) and np.log(threshold / (1 - threshold)) == pytest.approx(
        (odds[0] + odds[1]) / 2
    )  # two right of three
    threshold, f1 = best_probability(scores, [False, False, False, True])
    assert f1 == 1 and np.log(threshold / (1 - threshold)) == pytest.approx((odds[2] + odds[3]) / 2)


def test_the_median_of_bootstrap_samples_jumps_less_from_draw_to_draw():
    """40 times 32 rollouts whose scores overlap."""
    success, found = np.arange(32) % 2 == 0, {0: [], 50: []}
    for seed in range(40):
        rng = np.random.default_rng([1, seed])
        scores = 1 / (1 + np.exp(-3 * (rng.normal(size=32) + success)))
        for resamples, odds in found.items():
            threshold, f1 = best_probability(scores, success, resamples)
            called = scores >= threshold
            hits = (called & success).sum()
            assert f1 == pytest.approx(2 * hits / (called.sum() + success.sum()))
            odds.append(np.log(threshold / (1 - threshold)))
    assert np.std(found[50]) < 0.8 * np.std(found[0])
    assert best_probability(scores, success, 50) == (threshold, f1)


# ------------------------------------------------------------------------------------------- files


def test_a_saved_model_comes_back_bit_exact_with_its_threshold(tmp_path):
    model = tiny.reward_model()
    model.threshold.fill_(0.37)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert (
        float(again.threshold) == pytest.approx(0.37)
        and again.config == model.config
        and not again.training
    )
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    assert torch.equal(
        model.probabilities(clips, [tiny.RED] * 2), again.probabilities(clips, [tiny.RED] * 2)
    )
    assert {path.suffix for path in (tmp_path / "reward").iterdir()} == {".json", ".safetensors"}
    path = tmp_path / "reward" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        RewardModel.load(tmp_path / "reward")


def test_positions_are_saved(tmp_path):
    model = tiny.reward_model()
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.add_(1.0)
    model.save(tmp_path)
    assert torch.equal(
        RewardModel.load(tmp_path).encoder.embeddings.position_embeddings,
        model.encoder.embeddings.position_embeddings,
    )


def test_the_matching_threshold_calls_as_many_a_success_as_truly_are():
    scores = np.array([0.99, 0.2, 0.7, 0.01, 0.6, 0.999999])
    for count in range(1, 6):
        success = np.arange(6) < count  # which ones they are does not matter
        threshold = matching_threshold(scores, success)
        assert (scores >= threshold).sum() == count
    # Half-way in log-odds between the second and the third: logit(0.7) = 0.847, logit(0.99) =
    # 4.595.
    assert matching_threshold(scores, [True, True, False, False, False, False]) == pytest.approx(
        1 / (1 + np.exp(-2.721)), abs=1e-3
    )


@pytest.mark.parametrize("success", [[True, True], [False, False]])
def test_outcomes_of_one_kind_give_no_matching_threshold(success):
    with pytest.raises(UserError, match="both kinds"):
        matching_threshold([0.2, 0.8], success)
