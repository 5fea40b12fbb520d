"""What a policy's eye makes of pictures: the perceptual loss and the two trainings that use it."""
import numpy as np
import pytest
import torch

import tiny
from wmpo_lite.draft_losses import painting
from wmpo_lite.mover import Scene
from wmpo_lite.perception import LatentPerception, Perception
from wmpo_lite.pretrain import train_autoencoder
from wmpo_lite.train import FitConfig
from wmpo_lite.world_model import to_float


def pictures(count, seed=0):
    return to_float(torch.from_numpy(tiny.noise_frames(count, seed=seed)))


def perception():
    return Perception(tiny.policy().vision, pictures(64))


def test_equal_pictures_differ_by_nothing_and_unrelated_ones_by_two():
    see, a, b = perception(), pictures(256, seed=1), pictures(256, seed=2)
    assert float(see.error(a, a)) == 0
    features = see(a)
    assert features.shape[0] == 256 and torch.allclose(see.error(a, b), ((features - see(b)) / see.spread).square().mean())
    # Random pictures are all alike but for noise: what a tower's places have in common is in the spread and not in the difference.
    within = features.var(dim=0).mean(0) / see.spread.square()
    assert float(see.error(a, b)) == pytest.approx(2 * float(within.mean()), rel=0.1)


def test_only_what_was_found_learns():
    see, found, wanted = perception(), pictures(4).requires_grad_(), pictures(4, seed=3).requires_grad_()
    see.error(found, wanted).backward()
    assert found.grad.abs().sum() > 0 and wanted.grad is None and all(not p.requires_grad for p in see.tower.parameters())


def test_latents_are_looked_at_as_pictures_and_not_too_many():
    autoencoder, latents, others = tiny.autoencoder(), torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8)
    see = LatentPerception(tiny.policy().vision, autoencoder, torch.randn(64, 4, 8, 8), most=2)
    assert float(see.error(latents, latents, np.random.default_rng(0))) == 0
    pick = np.random.default_rng(0).permutation(6)[:2]
    with torch.no_grad():
        expected = see.pictures.error(autoencoder.decode(others[pick]), autoencoder.decode(latents[pick]))
    found = others.clone().requires_grad_()
    error = see.error(found, latents, np.random.default_rng(0))
    error.backward()
    assert torch.allclose(error, expected) and sorted(found.grad.flatten(1).abs().sum(1).nonzero()[:, 0].tolist()) == sorted(pick.tolist())
    assert all(p.grad is None for p in autoencoder.parameters())


def test_the_decoder_learns_to_please_the_eye_and_latents_stay(tmp_path):
    """As many steps with the eye's word bring the pictures nearer to it than steps without; encoder and scale of the latents are untouched."""
    frames, unlike = tiny.noise_frames(4, 16), {}
    x = to_float(torch.from_numpy(frames.reshape(-1, *frames.shape[2:])))
    see = Perception(tiny.policy().vision, x)
    for perceived in (0.0, 100.0):
        model = tiny.autoencoder()
        model.mean.fill_(0.3), model.std.fill_(0.7)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        records = train_autoencoder(frames, model, FitConfig(steps=60, lr=3e-3, warmup=1), seed=0, folder=tmp_path / str(perceived), tower=tiny.policy().vision,
                                    perceived=perceived, name="decoder")
        after = model.state_dict()
        changed = {key for key in after if not torch.equal(before[key], after[key])}
        assert changed and all(key.startswith("net.decoder") for key in changed) and all(p.requires_grad for p in model.parameters())
        with torch.no_grad():
            unlike[perceived] = float(see.error(model.decode(model.encode(x)), x))
        assert records[-1]["stage"] == "decoder" and records[-1]["perception"] == pytest.approx(unlike[perceived], rel=0.3)
    assert unlike[100.0] < 0.92 * unlike[0.0], unlike


def test_painting_counts_what_the_eye_sees():
    model = tiny.world_model(draft_width=16, slots=3)
    draft, latents = model.draft, torch.randn(3, 7, 4, 8, 8)
    labels = Scene(torch.randn(3, 7, 3, 3) * 0.3, torch.ones(3, 7, 3), torch.ones(3, 7), torch.zeros(3, 7, 3, 0))
    see = LatentPerception(tiny.policy().vision, tiny.autoencoder(), torch.randn(64, 4, 8, 8))

    def loss(**options):
        value, logs = painting(draft, latents, labels, batch=4, own=0.0, **options)(torch.Generator().manual_seed(0), np.random.default_rng(0), 0)
        return float(value.detach()), logs

    blind, logs = loss()
    seeing, more = loss(perception=see, perceived=7.0)
    assert "perception" not in logs and more["perception"] > 0 and seeing == pytest.approx(blind + 7 * more["perception"], rel=1e-5)


def test_painting_from_first_frames_reaches_to_the_end(monkeypatch):
    """begin: that share of known frames is a first one; frames to paint lie anywhere after the known one, up to `reach` on."""
    model = tiny.world_model(draft_width=16, slots=3)
    draft, frames = model.draft, 21
    latents = torch.arange(frames).float().view(1, -1, 1, 1, 1).expand(2, -1, 4, 8, 8).contiguous()
    labels = Scene(torch.zeros(2, frames, 3, 3), torch.ones(2, frames, 3), torch.arange(frames).float().expand(2, -1).contiguous(), torch.zeros(2, frames, 3, 0))
    seen, paint = [], draft.paint
    monkeypatch.setattr(draft, "paint", lambda newest, new: seen.append((newest[:, 0, 0, 0].round().long(), new.opening.long())) or paint(newest, new))
    for step in range(40):
        painting(draft, latents, labels, batch=32, own=0.0, reach=20, begin=0.7, noise=0.0)(torch.Generator().manual_seed(step), np.random.default_rng(step), step)
    known, then = (torch.cat(part) for part in zip(*seen))
    assert 0.66 < float((known == 0).float().mean()) < 0.78 and (then > known[:, None]).all() and then.max() == 20
    ahead = then[known == 0].flatten()
    assert ahead.min() == 1 and ahead.float().mean() == pytest.approx(10.5, abs=0.5)
