"""The per-frame autoencoder: shapes, scaled latents, what its loss weighs, that it learns."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    PerceptualLoss,
    autoencoder_loss,
    fold_pixels,
    to_float,
    to_uint8,
)
from wmpo_lite.common.errors import UserError
from wmpo_lite.train import FitConfig, fit, generators

KINDS = [
    dict(),
    dict(fold=4, channels=(16, 16), size=32),
    dict(kind="kl", fold=1, channels=(32, 32)),
    dict(fold=1),
]


def floats(*lead, seed=0):
    """Random pictures (B, 3, 16, 16) in [-1, 1]."""
    return to_float(torch.from_numpy(tiny.noise_frames(*lead, seed=seed)))


def squares(count=24, seed=0):
    """uint8 (N, 16, 16, 3): a gray table on which a red square of 4 pixels lies somewhere."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 16, 16, 3), 158, np.uint8)
    for frame, (y, x) in zip(frames, rng.integers(0, 12, (count, 2))):
        frame[y : y + 4, x : x + 4] = 220, 30, 30
    return frames


# -- pictures as numbers ---------------------------------------------------------------------------


def test_every_gray_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    found = to_float(levels)
    assert found.shape == (1, 3, 16, 16) and found.min() == -1 and found.max() == 1
    assert torch.equal(to_uint8(found), levels)


def test_to_uint8_clips_rounds_and_keeps_the_channels_in_place():
    x = torch.tensor([-5.0, 0.0, 5.0]).view(1, 3, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 128, 255]
    assert to_uint8(torch.full((1, 3, 2, 5), 0.1)).shape == (1, 2, 5, 3)
    color = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    assert torch.allclose(to_float(color)[0, :, 0, 0], torch.tensor([10, 20, 30]) / 127.5 - 1)


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_shapes(options):
    model = tiny.autoencoder(**options)
    c = model.config
    frames = torch.from_numpy(tiny.noise_frames(2, 3, size=c.size))
    latents = model.encode_uint8(frames)
    assert latents.shape == (2, 3, c.latent_channels, c.latent_size, c.latent_size)
    assert latents.dtype == torch.float32 and not latents.requires_grad
    again = model.decode_uint8(latents)
    assert again.shape == frames.shape and again.dtype == torch.uint8


def test_latent_sizes_by_hand():
    assert AutoencoderConfig(size=64, fold=4, channels=(48, 48)).latent_size == 8
    # the paper's SDXL autoencoder
    assert AutoencoderConfig(size=256, fold=1, channels=(128, 256, 512, 512)).latent_size == 32


def test_folded_pixels_lose_nothing_and_learn_nothing():
    model = Autoencoder(AutoencoderConfig(kind="pixels", size=16, fold=4, latent_channels=48))
    frames = torch.from_numpy(tiny.noise_frames(3, 2))
    latents = model.encode_uint8(frames)
    assert not list(model.parameters()) and model.config.latent_size == 4
    assert latents.shape == (3, 2, 48, 4, 4) and latents.min() >= -1 and latents.max() <= 1
    assert torch.equal(model.decode_uint8(latents), frames)
    # channel = color * 16 + row * 4 + column of the pixel within its square
    assert latents[1, 1, 16 * 2 + 4 * 3 + 1, 2, 0] == frames[1, 1, 8 + 3, 1, 2] / 127.5 - 1


@pytest.mark.parametrize("kind, fold, pixels", [("tiny", 4, 8), ("pixels", 8, 8)])
def test_frames_that_latents_do_not_tile_are_refused(kind, fold, pixels):
    said = f"frames of 20 x 20 pixels cannot be cut into latents of {pixels} x {pixels} pixels"
    with pytest.raises(UserError, match=said):
        AutoencoderConfig(kind=kind, fold=fold, size=20)


def test_folded_pixels_with_other_channels_are_refused():
    with pytest.raises(UserError, match="a latent of pixels has 48 channels, not 16"):
        Autoencoder(AutoencoderConfig(kind="pixels", fold=4))


def test_measured_latents_have_zero_mean_and_unit_variance_per_channel():
    model, frames = tiny.autoencoder(), floats(5)
    raw = model.encode_raw(frames)
    assert (raw.std(dim=(0, 2, 3)) - 1).abs().max() > 0.05  # otherwise there is nothing to measure
    model.measure_spread(frames)
    latents = model.encode(frames)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(model.decode(latents), model.decode_raw(raw), atol=1e-5)


def test_the_spread_is_measured_over_all_pieces():
    """More frames than one pass takes: the last ones count, too."""
    model, frames = tiny.autoencoder(), floats(300)
    frames[256:] = 0.9
    model.measure_spread(frames)
    z = model.encode_raw(frames)
    assert torch.allclose(model.mean.flatten(), z.mean(dim=(0, 2, 3)), atol=1e-4)
    assert torch.allclose(model.std.flatten(), z.std(dim=(0, 2, 3)), atol=1e-4)


def test_frames_are_encoded_and_decoded_one_by_one():
    model = tiny.autoencoder()
    frames = torch.from_numpy(tiny.noise_frames(6))
    latents = model.encode_uint8(frames)
    assert torch.allclose(latents, model.encode_uint8(frames, chunk=4), atol=1e-5)
    assert torch.allclose(latents[2:3], model.encode_uint8(frames[2:3]), atol=1e-5)
    other = frames.clone()
    other[0] = 0
    assert torch.allclose(model.encode_uint8(other)[1:], latents[1:], atol=1e-5)
    pieces, whole = model.decode_uint8(latents, chunk=4).int(), model.decode_uint8(latents).int()
    assert (pieces - whole).abs().max() <= 1


def test_reconstruct_encodes_and_decodes():
    model, frames = tiny.autoencoder(), tiny.noise_frames(2, 3)
    found = model.reconstruct(frames)
    expected = model.decode_uint8(model.encode_uint8(torch.from_numpy(frames))).numpy()
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_unknown_kinds_are_refused_with_the_choices():
    with pytest.raises(UserError, match="kind 'temporal' is unknown; use 'tiny', 'kl' or 'pixels'"):
        Autoencoder(AutoencoderConfig(kind="temporal"))


@pytest.mark.parametrize("options", KINDS[::2], ids=str)
def test_a_saved_model_comes_back_bit_exact(options, tmp_path):
    model = tiny.shake(tiny.autoencoder(**options))
    model.measure_spread(floats(8))
    model.save(tmp_path / "model", {"note": "a test"})
    again = Autoencoder.load(tmp_path / "model")
    assert asdict(again.config) == asdict(model.config) and not again.training
    own, other = model.state_dict(), again.state_dict()
    assert {"mean", "std"} < own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "provenance.json"}  # no pickle
    assert '"note": "a test"' in (tmp_path / "model" / "provenance.json").read_text()
    frames = tiny.noise_frames(2)
    assert np.array_equal(model.reconstruct(frames), again.reconstruct(frames))


# -- how it is trained -----------------------------------------------------------------------------


@pytest.fixture
def perceptual():
    return PerceptualLoss(tiny.policy().vision, floats(64))


def test_equal_pictures_have_no_perceptual_loss_and_other_ones_do(perceptual):
    a, b = floats(4), floats(4, seed=1)
    assert perceptual(a, a) == 0 and perceptual(a, b) > 0.01
    near, far = (
        perceptual((a + step * torch.ones(3, 1, 1)).clamp(-1, 1), a) for step in (0.05, 0.5)
    )
    assert 0 < near < far


def test_the_perceptual_loss_counts_in_units_of_the_features_variance():
    """A tower that gives pixels back: errors of 0.3 where features spread by 0.1 count 9."""
    tower = torch.nn.Module()
    tower.forward = lambda pixel_values: SimpleNamespace(last_hidden_state=pixel_values.flatten(2))
    sample = 0.1 * torch.randn(2000, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    a = torch.zeros(5, 3, 2, 2)
    assert float(PerceptualLoss(tower, sample)(a + 0.3, a)) == pytest.approx(9, rel=0.05)


def test_the_perceptual_loss_trains_the_picture_and_not_the_tower(perceptual):
    before = [p.clone() for p in perceptual.tower.parameters()]
    picture = floats(2, seed=1).requires_grad_()
    wanted = floats(2).requires_grad_()
    perceptual(picture, wanted).backward()
    assert picture.grad.abs().sum() > 0 and wanted.grad is None
    assert all(p.grad is None and not p.requires_grad for p in perceptual.parameters())
    model = tiny.autoencoder()
    loss_fn = autoencoder_loss(model, squares(), perceptual=perceptual, batch=4, looked_at=2)
    fit(model, loss_fn, FitConfig(steps=2, lr=1e-2, warmup=0), seed=0, name="autoencoder")
    assert all(torch.equal(a, b) for a, b in zip(before, perceptual.tower.parameters()))


class Mirror:
    """In place of an autoencoder: gives every picture back, `off` brighter."""

    def __init__(self, off=0.0):
        self.off, self.mean = off, torch.zeros(1)

    def encode_raw(self, frames):
        return frames

    def decode_raw(self, latents):
        return latents + self.off


def test_the_loss_by_hand():
    """Every pixel is 0.5 too bright: |e| + 2 e^2 = 1; what lies there weighs 1 + emphasis."""
    frames = squares(40)
    loss_fn = autoencoder_loss(Mirror(0.5), frames, batch=10, emphasis=6.0, latent_noise=0.0)
    loss, logs = loss_fn(*generators(0, 0), 0)
    seen = to_float(torch.from_numpy(frames[generators(0, 0)[1].integers(40, size=10)]))
    expected = 1 + 6 * 16 / 256 + 1e-4 * float(seen.square().mean())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert logs == {"psnr": pytest.approx(10 * np.log10(4 / 0.25), abs=1e-3)}


def test_latents_are_disturbed_in_units_of_their_spread():
    """A decoder that gives latents back shows the noise, of a level from 0 to 1."""
    frames = tiny.noise_frames(32)
    spread = to_float(torch.from_numpy(frames)).std()
    still, _ = autoencoder_loss(Mirror(), frames, batch=32, latent_noise=0.0)(*generators(0, 0), 0)
    assert float(still) < 1e-4
    _, logs = autoencoder_loss(Mirror(), frames, batch=256, latent_noise=0.1)(*generators(0, 0), 0)
    expected = 10 * np.log10(4 / ((0.1 * float(spread)) ** 2 / 3))
    assert logs["psnr"] == pytest.approx(expected, abs=0.5)


def test_it_learns_in_a_few_steps_with_and_without_the_tower(perceptual):
    for look, names in ((None, set()), (perceptual, {"perceptual"})):
        model = tiny.autoencoder()
        loss_fn = autoencoder_loss(model, squares(200), perceptual=look, batch=16, looked_at=4)
        settings = FitConfig(steps=60, lr=1e-2, warmup=5)
        records = fit(model, loss_fn, settings, seed=0, name="autoencoder", log_every=10)
        assert records[-1]["loss"] < 0.6 * records[0]["loss"]
        assert records[-1]["psnr"] > records[0]["psnr"] + 2
        assert names == set(records[0]) - {"stage", "step", "loss", "psnr", "seconds"}


@pytest.mark.parametrize("kind, channels", [("tiny", 16), ("pixels", 48)])
def test_no_frames_are_no_latents_of_the_right_shape(kind, channels):
    """A batch in which no slot needs a new window is encoded like any other."""
    model = Autoencoder(AutoencoderConfig(kind=kind, latent_channels=channels))
    side = model.config.latent_size
    none = torch.zeros(0, 64, 64, 3, dtype=torch.uint8)
    assert model.encode_uint8(none).shape == (0, channels, side, side)
    two = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    folded = fold_pixels(to_float(two), 4)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(to_float(two), 4))
