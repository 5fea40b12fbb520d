"""The compositor takes from the first frame what still stands there, and nothing else."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.autoencoder import to_float
from wmpo_lite.compositor import Compositor, CompositorPool
from wmpo_lite.errors import UserError
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.own_context import Episodes, WindowConfig
from wmpo_lite.train import FitConfig, fit

B = 3


def pictures(seed: int):
    return 2 * torch.rand(B, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(seed))


def test_a_pixel_lies_between_the_two_pictures():
    decoded, first = pictures(0) - 1, pictures(1) - 1
    latents = torch.randn(B, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    found = tiny.compositor(1.0)(latents, decoded, first)
    low, high = torch.minimum(decoded, first), torch.maximum(decoded, first)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
    share = (found - decoded) / (first - decoded)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3)  # one for three colors
    assert share.std() > 0.01
    untrained = tiny.compositor(0.0)(latents, decoded, first)
    assert torch.allclose(untrained, (decoded + first) / 2, atol=1e-6)


def test_draw_is_one_frame_after_the_other():
    autoencoder, compositor = tiny.autoencoder(), tiny.compositor(1.0)
    first = torch.from_numpy(tiny.states(B).frames)
    latents = torch.randn(B, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    film = compositor.draw(autoencoder, latents, first)
    assert film.shape == (B, 3, tiny.SIZE, tiny.SIZE, 3) and film.dtype == torch.uint8
    with torch.no_grad():
        single = compositor(latents[:, 1], autoencoder.decode(latents[:, 1]), to_float(first))
    expected = single.add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert (film[:, 1].float() - expected).abs().max() <= 1


@pytest.mark.parametrize("changes", [dict(latent_channels=8), dict(size=32, fold=4)])
def test_another_autoencoder_is_refused(changes):
    with pytest.raises(UserError, match="the compositor works with .* load the autoencoder"):
        ImaginedEnv(tiny.autoencoder(), tiny.world_model(), compositor=tiny.compositor(**changes))


def world(things: int = 6, steps: int = 8):
    """Films of a dot that lies still where it wants and a bar that moves; latents that show the bar
    alone, as a denoiser's do once the dot has faded.
    """
    rng = np.random.default_rng(0)
    frames = np.full((things, steps + 1, tiny.SIZE, tiny.SIZE, 3), 128, dtype=np.uint8)
    for i in range(things):
        x, y = rng.integers(8, 14, size=2)
        for t in range(steps + 1):
            frames[i, t, y : y + 2, x : x + 2] = 255
            frames[i, t, :4, t : t + 3] = (255, 0, 0)
    faded = frames.copy()
    faded[(faded == 255).all(axis=-1)] = 128
    return frames, faded


class Copying(torch.nn.Module):
    """A world model that knows what comes next: the latents it was given."""

    def __init__(self, model, latents):
        super().__init__()
        self.config, self.inner, self.latents = model.config, model, latents
        self.noise, self.device, self.init_state = model.noise, torch.device("cpu"), None

    def next_frames(self, state, actions, noise):
        # the action says which frame of which film it leads to
        episode, frame = actions[..., 0].long(), actions[..., 1].long()
        new = self.latents[episode, frame]
        return new, state.append(new, actions)


def test_training_brings_back_what_the_latents_have_lost():
    frames, faded = world()
    autoencoder = tiny.autoencoder()
    latents = autoencoder.encode_uint8(torch.from_numpy(faded))
    actions = torch.zeros(len(frames), frames.shape[1] - 1, 4)
    actions[..., 0] = torch.arange(len(frames))[:, None]
    actions[..., 1] = torch.arange(1, frames.shape[1])
    model = Copying(tiny.world_model(), latents)
    compositor = tiny.compositor(0.0)
    # what is tested is the gate, so the autoencoder is one that gives the faded film back
    autoencoder.decode = lambda z: to_float(
        torch.from_numpy(faded).flatten(0, 1)[nearest(z, latents)]
    )
    pool = CompositorPool(
        Episodes(latents, actions),
        torch.from_numpy(frames),
        model,
        WindowConfig(batch=8, own=3, ramp=0, start=0.5),
        compositor,
        autoencoder,
    )
    records = fit(
        compositor, pool.loss, FitConfig(steps=150, lr=2e-2, ema=0.9), seed=0, name="compositor"
    )
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    film = compositor.eval().draw(autoencoder, latents[:, 1:], torch.from_numpy(frames[:, 0]))
    dot = (frames[:, 1:] == 255).all(axis=-1)
    assert film.numpy()[dot].mean() > 225  # 128 in the latents
    bar = (frames[:, 1:] == (255, 0, 0)).all(axis=-1)
    assert np.abs(film.numpy()[bar].astype(int) - (255, 0, 0)).mean() < 40


def nearest(z, latents):
    return torch.cdist(z.flatten(1), latents.flatten(0, 1).flatten(1)).argmin(dim=1)


def test_imagination_with_a_compositor_shows_the_first_frame_again():
    keep = tiny.compositor(0.0)
    torch.nn.init.constant_(keep.gate.bias, 20.0)  # everything from the first frame
    env = ImaginedEnv(tiny.autoencoder(), tiny.world_model(), compositor=keep)
    states = tiny.states(B)
    env.reset(states)
    film, _, _ = env.step_chunk(np.full((B, 4, 4), 0.5))
    assert np.array_equal(film, np.repeat(states.frames[:, None], 4, axis=1))
    env.reset(dataclasses.replace(states, frames=255 - states.frames))
    film, _, _ = env.step_chunk(np.full((B, 4, 4), 0.5))
    assert np.array_equal(film[:, -1], 255 - states.frames)


def test_saved_and_loaded(tmp_path):
    model = tiny.compositor(1.0)
    model.save(tmp_path / "compositor")
    again = Compositor.load(tmp_path / "compositor")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
