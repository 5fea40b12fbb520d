"""Every loss, sampler, rollout and update on a device that is not the CPU: on `pretend.DEVICE`,
where a tensor made in the wrong place raises as it would on a GPU, and numbers are the CPU's.
"""

import numpy as np
import pytest
import tiny
import torch
from pretend import Pretend, numbers, pretending

from wmpo_lite.autoencoder import PerceptualLoss, autoencoder_loss, to_float
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import choose_device
from wmpo_lite.dpo import DPOConfig, train_dpo
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.recipes.pretrain_policy import clone
from wmpo_lite.reward import fit_threshold, reward_loss
from wmpo_lite.rollout import rollout
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize

FOUR = FitConfig(steps=4, warmup=1, ema=0.9, save_every=2)
GRPO = GRPOConfig(groups=3, group_size=4, minibatch=8, micro_batch=3)


@pytest.fixture
def on_both():
    """Call `train(move)` on the CPU and on the other device: what it returns has to be equal.

    `move` puts a module on the device. Nothing is learned that was not on it.
    """

    def run(train):
        here = train(lambda module: module)
        with pretending() as device:
            modules = []

            def move(module):
                modules.append(module.to(device))
                return module

            there = train(move)
            for module in modules:
                assert all(isinstance(p, Pretend) for p in module.parameters())
        assert_close(here, there)

    return run


def assert_close(here, there):
    assert type(here) is type(there) or isinstance(there, Pretend)
    if isinstance(here, dict):
        assert here.keys() == there.keys()
        for key in here.keys() - {"seconds"}:
            assert_close(here[key], there[key])
    elif isinstance(here, (list, tuple)):
        assert len(here) == len(there)
        for a, b in zip(here, there):
            assert_close(a, b)
    elif isinstance(here, (torch.Tensor, np.ndarray)):
        a, b = (torch.as_tensor(x).double() for x in (here, numbers(there)))
        if here.dtype in (torch.uint8, np.uint8):
            assert (a - b).abs().max() <= 1  # rounded to another level
            return
        assert torch.allclose(a, b, rtol=1e-3, atol=3e-4), (a - b).abs().max()
    else:
        assert here == (there if isinstance(here, str) else pytest.approx(there, 1e-2, 1e-3))


def weights(module) -> dict:
    return {name: value.detach() for name, value in module.named_parameters()}


def test_a_tensor_in_the_wrong_place_is_found():
    with pretending() as device:
        model = tiny.policy().to(device)
        tokens = torch.zeros(1, 4, 4, dtype=torch.long)
        with pytest.raises(RuntimeError, match="tensors of the CPU"):
            model.log_probs(torch.zeros(1, 16, 16, 3).byte(), [tiny.RED], tokens)
        with pytest.raises(RuntimeError, match="tensors of the CPU"):
            torch.ones(2, device=device) + torch.ones(2)
        with pytest.raises((RuntimeError, TypeError)):
            torch.ones(2, device=device).numpy()


@pytest.mark.parametrize("kind, pixels", [("unet", False), ("unet", True), ("stdit", False)])
def test_world_model(on_both, kind, pixels):
    frames = torch.from_numpy(tiny.noise_frames(4, 9))
    actions = torch.from_numpy(tiny.random_actions(4, 8, 4))

    def train(move):
        autoencoder = move(tiny.autoencoder())
        model = move(tiny.world_model(kind=kind, width=16, depth=1, heads=2, shift=2.0))
        encode = autoencoder.encode_uint8
        seen, encoded = (frames, encode) if pixels else (encode(frames), None)
        pool = Pool(Episodes(seen, actions, encode=encoded), model, WindowConfig(batch=4, ramp=2))
        records = fit(model, pool.loss, FOUR, seed=0, name="x")
        state, generator = model.init_state(encode(frames[:, 0])), torch.Generator().manual_seed(0)
        moves = actions.to(state.reference.device)
        imagined, after = model.next_frames(state, moves, generator, 3)
        return weights(model), records, imagined, list(after), autoencoder.decode_uint8(imagined)

    on_both(train)


# torch says that loading does nothing on `meta`; here it does, or the weights would differ
@pytest.mark.filterwarnings("ignore:.*is a no-op")
def test_training_goes_on_where_it_was(on_both, tmp_path):
    latents = torch.randn(4, 9, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    actions = torch.from_numpy(tiny.random_actions(4, 8, 4))

    def train(move):
        folder = tmp_path / ("cpu" if not list(tmp_path.iterdir()) else "other")
        for steps in (2, 4):
            model = move(tiny.world_model())
            pool = Pool(Episodes(latents, actions), model, WindowConfig(batch=4, ramp=2))
            config = FitConfig(steps=steps, warmup=1, decay=0, ema=0.9, save_every=2)
            options = dict(seed=0, name="x", folder=folder, extra=pool.tensors)
            records = fit(model, pool.loss, config, **options)
        assert [r["step"] for r in records] == [2, 4]
        return weights(model), records

    on_both(train)


def test_autoencoder(on_both):
    frames = tiny.noise_frames(12)

    def train(move):
        model, tower = move(tiny.autoencoder()), move(tiny.policy().vision)
        device = model.mean.device
        sample = to_float(torch.from_numpy(frames).to(device))
        loss = autoencoder_loss(model, frames, perceptual=PerceptualLoss(tower, sample), batch=4)
        records = fit(model, loss, FOUR, seed=0, name="x")
        model.measure_spread(sample)
        return weights(model), model.mean, model.std, records, model.reconstruct(frames)

    on_both(train)


def reward_data():
    found = tiny.trajectories(8)
    return {
        "frames": np.stack([t.frames for t in found]),
        "success": np.array([t.success for t in found]),
        "finish_step": np.array([t.finish_step for t in found]),
        "instruction": [t.instruction for t in found],
        "other": [tiny.BLUE if t.instruction == tiny.RED else tiny.RED for t in found],
    }


def test_reward_model(on_both):
    data = reward_data()
    frames = torch.from_numpy(data["frames"])

    def train(move):
        model = move(tiny.reward_model())
        records = fit(model, reward_loss(model, data, half=4), FOUR, seed=0, name="x")
        found = fit_threshold(model, frames, data["instruction"], data["success"], resamples=3)
        scores = model.slide(frames, data["instruction"], 2)
        none = model.slide(frames[:, :2], data["instruction"])
        return weights(model), records, found, scores, none, model.threshold

    on_both(train)


def demonstrations():
    found = tiny.trajectories(6)
    done = np.arange(1, 17) >= np.array([t.finish_step for t in found])[:, None]
    return {
        "frames": np.stack([t.frames for t in found]),
        "intended": np.stack([t.actions for t in found]),
        "executed": np.stack([t.actions for t in found]),
        "done": done & np.array([t.success for t in found])[:, None],
        "instruction": np.array([t.instruction for t in found]),
    }


@pytest.mark.parametrize("tune_vision", [False, True])
def test_cloning(on_both, tune_vision):
    def train(move):
        policy = move(tiny.policy())
        options = dict(seed=0, folder=None, batch=8, tune_vision=tune_vision)
        records = clone(policy, demonstrations(), FOUR, **options)
        return weights(policy), records

    on_both(train)


def test_dpo(on_both):
    recorded = rollout(tiny.policy(), tiny.Counter(0.5), tiny.states(12), horizon=8, temperature=1)

    def train(move):
        policy = move(tiny.policy())
        logs = train_dpo(policy, None, recorded, DPOConfig(pairs=8, batch=4))
        return weights(policy), logs

    on_both(train)


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_grpo_in_an_environment(on_both, ratio):
    config = GRPOConfig(groups=3, group_size=4, minibatch=8, micro_batch=3, ratio=ratio)

    def train(move):
        policy = move(tiny.policy())
        options = dict(iterations=2, horizon=8, seed=0, stage="x", refill=1)
        records = optimize(policy, lambda s: tiny.Counter(), tiny.states(6), config, **options)
        assert all(record["kept"] for record in records)
        return weights(policy), records

    on_both(train)


def test_grpo_in_imagination(on_both):
    def train(move):
        policy, reward = move(tiny.policy()), move(tiny.reward_model())
        models = move(tiny.autoencoder()), move(tiny.world_model())

        def env(seed):
            return ImaginedEnv(*models, reward, threshold=0.55706, seed=seed, reward_stride=2)

        options = dict(iterations=2, horizon=8, seed=0, stage="x", refill=2)
        records = optimize(policy, env, tiny.states(6), GRPO, **options)
        assert all(record["kept"] for record in records)
        return weights(policy), records

    on_both(train)


def test_auto_takes_the_first_device_that_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device().type == choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == "mps" and choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda" and choose_device("mps").type == "mps"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", ""])
def test_a_device_that_is_not_here_is_one_sentence(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device is '{name}'") as error:
        choose_device(name)
    assert "\n" not in str(error.value)
