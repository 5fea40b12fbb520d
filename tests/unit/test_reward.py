"""The success classifier: where windows end, which clips count as what, its threshold, and that it can learn."""

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.errors import UserError
from wmpo_lite.reward import RewardConfig, RewardModel, fit_threshold, reward_loss, sample_clips
from wmpo_lite.train import FitConfig, fit

L = 4  # clip length of the tiny model


def episodes(count=12, steps=20, seed=0, other="", finish=None):
    """Frames whose every pixel is the frame's number (plus 100 in failures); even episodes are successes."""
    rng = np.random.default_rng(seed)
    success = np.arange(count) % 2 == 0
    finish_step = np.where(success, rng.integers(2 * L, steps + 1, count) if finish is None else finish, steps)
    level = np.arange(steps + 1) + 100 * ~success[:, None]
    frames = np.broadcast_to(level[..., None, None, None], (count, steps + 1, 16, 16, 3)).astype(np.uint8)
    return {"frames": frames, "success": success, "finish_step": finish_step, "instruction": np.array([f"task {e}" for e in range(count)]),
            "other": np.array([other and f"{other} {e}" for e in range(count)])}


# ---------------------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("steps", [L - 1, L, L + 1, 11])
def test_a_window_is_the_clip_that_ends_at_its_frame(steps):
    model = tiny.reward_model()
    frames, texts = torch.from_numpy(tiny.noise_frames(2, steps)), [tiny.RED, tiny.BLUE]
    scores = model.slide(frames, texts)
    assert scores.shape == (2, max(0, steps - L + 1))
    for window in range(scores.shape[1]):
        end = window + L - 1
        assert torch.allclose(scores[:, window], torch.sigmoid(model(frames[:, end - L + 1: end + 1], texts)), atol=1e-5)


def test_windows_on_a_stub_by_hand(monkeypatch):
    """A model that reads out the newest pixel of a clip shows which frame ends which window, for every stride."""
    model = tiny.reward_model()
    monkeypatch.setattr(RewardModel, "forward", lambda self, clips, texts: clips[:, -1, 0, 0, 0].float() + 1000 * torch.tensor([float(t) for t in texts]))
    monkeypatch.setattr(torch, "sigmoid", lambda x: x)
    frames = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1, 1).expand(2, 9, 16, 16, 3)
    assert model.slide(frames, ["0", "1"]).tolist() == [[3, 4, 5, 6, 7, 8], [1003, 1004, 1005, 1006, 1007, 1008]]
    assert model.slide(frames, ["0", "1"], stride=2).tolist() == [[4, 6, 8], [1004, 1006, 1008]]  # the newest is always judged


def test_order_of_frames_and_words_matter():
    model = tiny.reward_model()
    clips = torch.from_numpy(tiny.noise_frames(1, L))
    logit = model(clips, [tiny.RED])
    assert logit.shape == (1,)
    assert abs(logit - model(clips.flip(1), [tiny.RED])) > 1e-4 and abs(logit - model(clips, [tiny.BLUE])) > 1e-3


def test_shorter_instructions_in_a_batch_do_not_change_the_longer_ones():
    """Padding is not a word."""
    model = tiny.reward_model()
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    together = model(clips, ["lift", tiny.RED])
    assert torch.allclose(together[:1], model(clips[:1], ["lift"]), atol=1e-5)


def test_probabilities_in_pieces():
    model = tiny.reward_model()
    clips, texts = torch.from_numpy(tiny.noise_frames(7, L)), [tiny.RED, tiny.BLUE, "lift"] * 2 + [tiny.RED]
    whole = model.probabilities(clips, texts)
    assert torch.allclose(whole, model.probabilities(clips, texts, batch=3), atol=1e-5)
    assert whole.shape == (7,) and (whole > 0).all() and (whole < 1).all()
    assert model.probabilities(clips[:0], []).shape == (0,)


def test_score_is_the_best_window_and_needs_one():
    model = tiny.reward_model()
    frames, texts = torch.from_numpy(tiny.noise_frames(3, 9)), [tiny.RED] * 3
    assert torch.equal(model.score(frames, texts), model.slide(frames, texts).amax(dim=1))
    with pytest.raises(UserError, match="have 3 frames, fewer than the reward model's clip of 4"):
        model.score(frames[:, :3], texts)
    with pytest.raises(UserError, match="6 windows of the episodes are judged and 7 in a row must agree"):
        model.score(frames, texts, hold=7)


# -------------------------------------------------------------------------------------------------------------------------- clips


def draw(data, half=200, seed=0, **options):
    """Clips as (episode is a success, numbers of their frames, text, label)."""
    clips, texts, labels = sample_clips(data, RewardConfig(clip=L), np.random.default_rng(seed), half, **options)
    assert clips.shape == (2 * half, L, 16, 16, 3) and clips.dtype == torch.uint8 and len(texts) == 2 * half
    numbers = clips[:, :, 0, 0, 0].int().numpy()
    return numbers[:, 0] < 100, numbers % 100, texts, labels.numpy()


@pytest.mark.parametrize("seed", range(3))
def test_batches_are_balanced_and_cut_where_the_paper_says(seed):
    data = episodes(seed=seed)
    success, numbers, texts, labels = draw(data, seed=seed, ghosts=0.0)
    assert labels.sum() == len(labels) / 2
    episode = np.array([int(text.split()[1]) for text in texts])
    assert (np.diff(numbers, axis=1) == 1).all()  # consecutive frames
    assert (success == data["success"][episode]).all()  # every clip under the instruction of its own episode
    positive = labels == 1
    assert success[positive].all() and (numbers[positive, -1] == data["finish_step"][episode[positive]]).all()
    negative_success = ~positive & success
    assert negative_success.any() and (~positive & ~success).any()
    assert (numbers[negative_success, -1] <= data["finish_step"][episode[negative_success]] - L).all()
    assert (numbers[negative_success, -1] == data["finish_step"][episode[negative_success]] - L).any()  # the hardest ones are there
    assert set(episode[positive]) == set(np.flatnonzero(data["success"]))  # every success is used
    failures = numbers[~positive & ~success]
    assert failures[:, 0].min() == 0 and failures[:, -1].max() == 20  # any clip of a failure


def test_the_other_instruction_makes_a_terminal_clip_a_negative():
    data = episodes(other="other")
    success, numbers, texts, labels = draw(data, ghosts=0.0)
    swapped = np.array([text.startswith("other") for text in texts])
    episode = np.array([int(text.split()[1]) for text in texts])
    assert 0.2 < swapped.sum() / (labels == 0).sum() < 0.4
    assert (labels[swapped] == 0).all() and success[swapped].all() and (numbers[swapped, -1] == data["finish_step"][episode[swapped]]).all()


def test_ghosts_are_terminal_clips_blended_with_the_first_frame():
    data = episodes()
    data["frames"] = data["frames"] * np.uint8(10)  # room for mixtures; failures are not used here
    clips, texts, labels = sample_clips(data, RewardConfig(clip=L), np.random.default_rng(0), 100, ghosts=0.54)
    values = clips[:, :, 0, 0, 0].float().numpy()
    ghosts = 0
    for clip, text, label in zip(values, texts, labels):
        e = int(text.split()[1])
        if label or not data["success"][e]:
            continue
        mix = clip[-1] / (10 * data["finish_step"][e])
        if 0.28 < mix < 0.62 and np.allclose(clip, mix * 10 * np.arange(data["finish_step"][e] - L + 1, data["finish_step"][e] + 1), atol=2):
            ghosts += 1
    assert ghosts > 40


def test_early_successes_give_no_negatives_of_their_own():
    """A success at frame 5 has no clip of 4 frames that ends 4 frames earlier: a failure serves instead."""
    success, _, _, labels = draw(episodes(finish=5), ghosts=0.0)
    assert (success == (labels == 1)).all()
    success, numbers, _, labels = draw(episodes(finish=2 * L - 1), ghosts=0.0)  # exactly one such clip, frames 0..3
    assert (numbers[success & (labels == 0)] == np.arange(L)).all() and (success & (labels == 0)).any()


@pytest.mark.parametrize("change", [dict(success=np.ones(12, bool)), dict(success=np.zeros(12, bool)), dict(finish_step=np.full(12, L - 2))], ids=["all", "none", "short"])
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


# ----------------------------------------------------------------------------------------------------------------------- learning


def toy_films(count=16, steps=12, seed=0):
    """A square that turns bright for good at the finish of a success; failures stay dark. Instructions are the same sentence."""
    rng = np.random.default_rng(seed)
    success = np.arange(count) % 2 == 0
    finish = np.where(success, rng.integers(8, steps + 1, count), steps)
    frames = rng.integers(0, 40, (count, steps + 1, 16, 16, 3)).astype(np.uint8)
    for e in np.flatnonzero(success):
        frames[e, finish[e]:, 4:12, 4:12] = 220
    return {"frames": frames, "success": success, "finish_step": finish, "instruction": np.array([tiny.RED] * count), "other": np.array([""] * count)}


def test_it_learns_a_toy_world_and_its_threshold():
    model, films = tiny.reward_model(contrast=1.0), toy_films()
    records = fit(model, reward_loss(model, films, half=8), FitConfig(steps=80, lr=3e-3, warmup=5), seed=0, name="toy", log_every=40)
    assert records[-1]["accuracy"] > 0.9 and records[-1]["loss"] < 0.6 * records[0]["loss"]
    held_out = toy_films(seed=1)
    frames, texts = torch.from_numpy(held_out["frames"]), list(held_out["instruction"])
    threshold, f1 = fit_threshold(model, frames, texts, held_out["success"])
    assert f1 == 1.0 and float(model.threshold) == pytest.approx(threshold)
    over = (model.slide(frames, texts) >= model.threshold).numpy()
    for e in range(16):
        assert over[e].any() == held_out["success"][e]
        if over[e].any():  # the first window over the threshold ends at the finish or within a clip after it
            assert 0 <= over[e].argmax() + L - 1 - held_out["finish_step"][e] < L


def test_it_overfits_two_clips():
    model = tiny.reward_model(contrast=1.0)
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(clips, [tiny.RED] * 2), torch.tensor([1.0, 0.0]))
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    p = model.probabilities(clips, [tiny.RED] * 2)
    assert p[0] > 0.95 and p[1] < 0.05


def test_the_same_picture_can_be_a_success_for_one_sentence_only():
    model = tiny.reward_model(contrast=1.0)
    clips, texts = torch.from_numpy(tiny.noise_frames(1, L)).expand(2, -1, -1, -1, -1), [tiny.RED, tiny.BLUE]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(clips, texts), torch.tensor([1.0, 0.0]))
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    p = model.probabilities(clips, texts)
    assert p[0] > 0.9 and p[1] < 0.1


def test_fit_threshold_by_hand(monkeypatch):
    """Scores .9 .6 | .4 .2 with truth yes yes | no no: any threshold in (.4, .6] is perfect."""
    model = tiny.reward_model()
    monkeypatch.setattr(model, "score", lambda frames, texts: torch.tensor([0.9, 0.2, 0.6, 0.4]))
    threshold, f1 = fit_threshold(model, None, None, [True, False, True, False])
    assert f1 == 1.0 and 0.4 < threshold <= 0.6 and float(model.threshold) == pytest.approx(threshold)


# -------------------------------------------------------------------------------------------------------------------------- files


def test_a_saved_model_comes_back_bit_exact_with_its_threshold(tmp_path):
    model = tiny.reward_model()
    model.threshold.fill_(0.37)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert float(again.threshold) == pytest.approx(0.37) and again.config == model.config and not again.training
    clips = torch.from_numpy(tiny.noise_frames(2, L))
    assert torch.equal(model.probabilities(clips, [tiny.RED] * 2), again.probabilities(clips, [tiny.RED] * 2))
    assert {path.suffix for path in (tmp_path / "reward").iterdir()} == {".json", ".safetensors"}
    path = tmp_path / "reward" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        RewardModel.load(tmp_path / "reward")


def test_inflated_from_an_image_tower_a_still_clip_looks_like_its_frame():
    from wmpo_lite.policy import PolicyConfig, build_vision
    config = RewardConfig(image=tiny.SIZE, clip=4, patch=4, tubelet=2, width=16, depth=2, heads=4)
    tower = tiny.shake(build_vision(PolicyConfig(image=tiny.SIZE, patch=4, vision_width=16, vision_depth=2)), 0.3)
    model = RewardModel(config).eval()
    model.inflate(tower.state_dict())
    frames = torch.from_numpy(tiny.noise_frames(3))
    pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = tower(pixel_values=pixels).last_hidden_state  # (3, patches, width)
    clips = pixels[:, None].repeat(1, 4, 1, 1, 1)
    seen = model.norm(model.encoder(pixel_values=clips).last_hidden_state).unflatten(1, (2, -1))
    for moment in range(2):
        assert torch.allclose(seen[:, moment], expected, atol=1e-3)
    assert expected.std() > 0.1


def test_inflated_positions_are_saved(tmp_path):
    model = tiny.reward_model()
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.add_(1.0)
    model.save(tmp_path)
    assert torch.equal(RewardModel.load(tmp_path).encoder.embeddings.position_embeddings, model.encoder.embeddings.position_embeddings)


def test_further_clips_join_every_batch_and_need_both_outcomes(monkeypatch):
    model, data = tiny.reward_model(), episodes()
    length = model.config.clip
    still = {"frames": np.full((6, length + 1, tiny.SIZE, tiny.SIZE, 3), 77, np.uint8), "success": np.array([1, 0, 0, 0, 0, 0], bool),
             "instruction": np.array([tiny.RED] * 6)}
    seen = []
    monkeypatch.setattr(model, "forward", lambda clips, texts: seen.append((clips, texts)) or torch.zeros(len(clips), requires_grad=True))
    loss, logs = reward_loss(model, data, half=3, still=[still])(torch.Generator().manual_seed(0), np.random.default_rng(0), 0)
    clips, texts = seen[0]
    assert clips.shape[:2] == (12, length) and texts[6:] == [tiny.RED] * 6 and logs["accuracy"] == 0.5  # as many successes as failures
    assert all(clip.unique().numel() == 1 for clip in clips[6:])
    marked = still | {"frames": still["frames"] * (1 - 0.1 * np.arange(6)[:, None, None, None, None]).astype(np.float32), "nearly": np.arange(6) == 5}
    for step in range(4):  # half of the failures, rounded up, are of those that nearly are none
        reward_loss(model, data, half=3, still=[marked])(torch.Generator().manual_seed(step), np.random.default_rng(step), step)
        brightness = seen[-1][0][6:].flatten(1).mean(1) / 77
        assert {3, 5} <= set(((brightness - 0.5).abs() < 0.04).nonzero().flatten().tolist()) and (brightness[:3] > 0.9).all()
    with pytest.raises(UserError, match="0 of 6 further clips"):
        reward_loss(model, data, still=[still, {**still, "success": np.zeros(6, bool)}])
