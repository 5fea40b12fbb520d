"""The world model: shapes and inverses, who may see what, rectified flow by hand, and a toy world that it has to learn."""

from dataclasses import asdict

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.errors import UserError
from wmpo_lite.train import FitConfig, WindowConfig, fit, world_model_loss
from wmpo_lite.world_model import Autoencoder, AutoencoderConfig, Block, WorldModel, WorldModelConfig, rotate, to_float, to_uint8

B, C, K = 3, tiny.CONTEXT, tiny.CHUNK
SHAPE = (4, 8, 8)  # a latent


def inputs(seed=0, batch=B, latent=SHAPE):
    """x_t (B, K, ...), t (B,), context (B, c, ...), actions (B, K, D)."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return draw(batch, K, *latent), torch.rand(batch, generator=g) * 0.9 + 0.1, draw(batch, C, *latent), draw(batch, K, tiny.ACTIONS)


def changed_frames(a, b):
    """Which of the K frames differ in any number, (K,)."""
    return ((a - b).abs().amax(dim=(0, 2, 3, 4)) > 1e-6).tolist()


# ------------------------------------------------------------------------------------------------------------------ autoencoder


def test_every_grey_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    floats = to_float(levels)
    assert floats.shape == (1, 3, 16, 16) and floats.min() == -1 and floats.max() == 1
    assert torch.equal(to_uint8(floats), levels)


def test_to_uint8_clips_rounds_and_keeps_the_channels_in_place():
    x = torch.tensor([-5.0, 0.0, 5.0]).view(1, 3, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 128, 255]
    assert to_uint8(torch.full((1, 3, 2, 5), 0.1)).shape == (1, 2, 5, 3)
    colour = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    assert torch.allclose(to_float(colour)[0, :, 0, 0], torch.tensor([10, 20, 30]) / 127.5 - 1)


@pytest.mark.parametrize("options", [dict(), dict(fold=4, channels=(16, 16), size=32), dict(kind="kl", fold=1, channels=(32, 32)), dict(fold=1)])
def test_autoencoder_shapes(options):
    model = tiny.autoencoder(**options)
    c = model.config
    frames = torch.from_numpy(tiny.noise_frames(2, 3, size=c.size))
    latents = model.encode_uint8(frames)
    assert latents.shape == (2, 3, c.latent_channels, c.latent_size, c.latent_size) and latents.dtype == torch.float32
    again = model.decode_uint8(latents)
    assert again.shape == frames.shape and again.dtype == torch.uint8


def test_autoencoder_latent_sizes_by_hand():
    assert AutoencoderConfig(size=64, fold=4, channels=(48, 48)).latent_size == 8
    assert AutoencoderConfig(size=256, fold=1, channels=(128, 256, 512, 512)).latent_size == 32  # the paper's SDXL autoencoder


def test_latents_are_normalised_by_the_measured_mean_and_spread():
    model = tiny.autoencoder()
    frames = to_float(torch.from_numpy(tiny.noise_frames(5)))
    raw = model.encode_raw(frames)
    model.mean.copy_(raw.mean(dim=(0, 2, 3)).view(1, -1, 1, 1)), model.std.copy_(raw.std(dim=(0, 2, 3)).view(1, -1, 1, 1))
    latents = model.encode(frames)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(model.decode(latents), model.decode_raw(raw), atol=1e-5)


def test_frames_are_encoded_and_decoded_one_by_one():
    model = tiny.autoencoder()
    frames = torch.from_numpy(tiny.noise_frames(6))
    latents = model.encode_uint8(frames)
    assert torch.allclose(latents, model.encode_uint8(frames, chunk=4), atol=1e-5)
    assert torch.allclose(latents[2:3], model.encode_uint8(frames[2:3]), atol=1e-5)
    other = frames.clone()
    other[0] = 0
    assert torch.allclose(model.encode_uint8(other)[1:], latents[1:], atol=1e-5)
    assert (model.decode_uint8(latents, chunk=4).int() - model.decode_uint8(latents).int()).abs().max() <= 1


def test_unknown_autoencoder_kind_is_refused():
    with pytest.raises(UserError, match="kind 'temporal' is unknown"):
        Autoencoder(AutoencoderConfig(kind="temporal"))


# ------------------------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_unpatchify_inverts_patchify(patch):
    model = tiny.world_model(patch=patch)
    z = torch.randn(2, 3, *SHAPE)
    tokens = model._patchify(z)
    assert tokens.shape == (2, 3, (8 // patch) ** 2, 4 * patch**2)
    assert torch.equal(model._unpatchify(tokens), z)


def test_patches_are_squares_in_reading_order():
    z = torch.arange(64.0).view(1, 1, 1, 8, 8)
    tokens = tiny.world_model(patch=4, latent_channels=1)._patchify(z)[0, 0]
    assert tokens[0].tolist() == [8 * row + column for row in range(4) for column in range(4)]
    assert tokens[1, 0] == 4 and tokens[2, 0] == 32


def test_an_untrained_model_copies_the_newest_context_frame():
    model = tiny.world_model(shaken=0)
    x_t, t, context, actions = inputs()
    assert torch.equal(model.clean(x_t, t, context, actions), context[:, -1:].expand_as(x_t))
    imagined = model.imagine(context, actions, torch.Generator().manual_seed(0))
    assert torch.allclose(imagined, context[:, -1:].expand_as(x_t), atol=1e-5)


def test_an_untrained_velocity_model_has_no_velocity():
    model = tiny.world_model(shaken=0, prediction="velocity")
    assert model.velocity(*inputs()).abs().max() == 0


def test_both_predictions_are_one_network_read_two_ways():
    """'velocity' gives the network's output o itself; 'data' gives (x_t - (newest context frame + o)) / t."""
    by_data, by_velocity = tiny.world_model(), tiny.world_model(prediction="velocity")
    by_velocity.load_state_dict(by_data.state_dict())
    x_t, t, context, actions = inputs()
    output = by_velocity.velocity(x_t, t, context, actions)
    assert output.abs().max() > 0.1
    expected = (x_t - context[:, -1:] - output) / t.view(-1, 1, 1, 1, 1)
    assert torch.allclose(by_data.velocity(x_t, t, context, actions), expected, atol=1e-4)


OPTIONS = [dict(), dict(action_blocks="spatial"), dict(conditioning="scale"), dict(prediction="velocity"), dict(depth=2), dict(draft_width=16)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("later", range(K))
def test_a_frame_sees_its_own_action_and_the_past_but_never_the_future(options, later):
    model = tiny.world_model(**options)
    x_t, t, context, actions = inputs()
    before = model.velocity(x_t, t, context, actions)
    expected = [False] * later + [True] * (K - later)
    other = actions.clone()
    other[:, later] += 1
    assert changed_frames(before, model.velocity(x_t, t, context, other)) == expected
    other = x_t.clone()
    other[:, later] += 1
    assert changed_frames(before, model.velocity(other, t, context, actions)) == expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_frame_sees_the_whole_context_and_its_position(options):
    model = tiny.world_model(**options)
    x_t, t, context, actions = inputs()
    before = model.velocity(x_t, t, context, actions)
    for frame in range(C):
        other = context.clone()
        other[:, frame] += 1
        assert changed_frames(before, model.velocity(x_t, t, other, actions)) == [True] * K
    same = x_t[:, :1].expand_as(x_t)
    out = model.velocity(same, t, context, actions[:, :1].expand_as(actions))
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-4  # rotary positions and the past tell equal frames apart


def test_batch_rows_do_not_see_each_other():
    model = tiny.world_model()
    x_t, t, context, actions = inputs()
    whole = model.velocity(x_t, t, context, actions)
    for row in range(B):
        one = slice(row, row + 1)
        assert torch.allclose(whole[one], model.velocity(x_t[one], t[one], context[one], actions[one]), atol=1e-5)


def conditions(model, *args):
    """The condition (B, T, D) that every block got."""
    seen, hooks = [], []
    for block in model.blocks:
        hooks.append(block.register_forward_pre_hook(lambda _, got: seen.append(got[1].detach())))
    model.velocity(*args)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("path, seen_by", [(False, [False, True, False, False]), (True, [False, True, True, True])])
def test_context_frames_get_the_null_action_and_future_frame_j_gets_action_j(path, seen_by):
    """With the action path, later frames see the action too, as part of the sum."""
    model = tiny.world_model(action_path=path)
    x_t, t, context, actions = inputs()
    other = actions.clone()
    other[:, 1] += 1
    for one, two in zip(conditions(model, x_t, t, context, actions), conditions(model, x_t, t, context, other)):
        assert one.shape == (B, C + K, 32)
        differs = ((one - two).abs().amax(dim=(0, 2)) > 0).tolist()
        assert differs == [False] * C + seen_by
    time = torch.full((B,), 0.3)
    first = conditions(model, x_t, time, context, actions)[0]
    with torch.no_grad():
        model.null_action.add_(1)
    moved = (conditions(model, x_t, time, context, actions)[0] - first).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [True] * C + [False] * K


def test_context_frames_carry_the_training_noise_level_whatever_the_time():
    model = tiny.world_model()
    x_t, t, context, actions = inputs()
    one, two = (conditions(model, x_t, torch.full((B,), time), context, actions)[0] for time in (0.2, 0.9))
    assert torch.equal(one[:, :C], two[:, :C])
    assert ((one - two)[:, C:].abs().amax(dim=(0, 2)) > 0).all()
    at_level = conditions(model, x_t, torch.full((B,), model.config.context_noise), context, actions * 0)[0]
    with torch.no_grad():  # an action that embeds to the null action shows that the time labels are equal, too
        model.null_action.copy_(model.embed_action(torch.zeros(1, 2 * tiny.ACTIONS))[0])
    level = conditions(model, x_t, torch.full((B,), model.config.context_noise), context, actions * 0)[0]
    assert torch.allclose(level[:, 0], at_level[:, C], atol=1e-6)


def test_action_blocks_spatial_blinds_the_temporal_blocks():
    x_t, t, context, actions = inputs()
    for option, blind in (("all", False), ("spatial", True)):
        model = tiny.world_model(depth=2, action_blocks=option)
        one, two = conditions(model, x_t, t, context, actions), conditions(model, x_t, t, context, actions + 1)
        assert [block.temporal for block in model.blocks] == [False, True, False, True]
        assert [torch.equal(a, b) for a, b in zip(one, two)] == [False, blind, False, blind]


@pytest.mark.parametrize("temporal", [False, True])
def test_gate_blocks_start_as_the_identity_and_scale_blocks_do_not(temporal):
    x, condition = torch.randn(2, 6, 4, 32), torch.randn(2, 6, 32)
    model = tiny.world_model(shaken=0)
    run = lambda kind: Block(WorldModelConfig(width=32, heads=2, conditioning=kind), temporal)(x, condition, model.cos, model.sin)  # noqa: E731
    assert torch.equal(run("gate"), x)
    assert (run("scale") - x).abs().max() > 0.01


def test_scale_blocks_add_the_residual_times_one_plus_alpha():
    """alpha = -1 silences a 'scale' block just as gate = 0 silences a 'gate' block."""
    block = Block(WorldModelConfig(width=32, heads=2, conditioning="scale"), temporal=False)
    with torch.no_grad():
        for part in (2, 5):  # the gates of (shift, scale, gate) x (attention, MLP)
            block.modulation.bias[32 * part: 32 * (part + 1)] = -1
    x = torch.randn(2, 6, 4, 32)
    assert torch.allclose(block(x, torch.randn(2, 6, 32), None, None), x)


def test_rotary_positions_keep_lengths_and_see_only_distances():
    model = tiny.world_model(context=8, chunk=8)
    d = 2 * model.cos.shape[1]
    q, k = torch.randn(1, d).expand(16, d), torch.randn(1, d).expand(16, d)
    a, b = rotate(q, model.cos, model.sin), rotate(k, model.cos, model.sin)
    assert torch.allclose(a.norm(dim=-1), q.norm(dim=-1), atol=1e-5) and torch.equal(a[0], q[0])
    products = a @ b.T  # (16, 16)
    for distance in range(-5, 6):
        line = products.diagonal(distance)
        assert torch.allclose(line, line[0].expand_as(line), atol=1e-4)
    assert (products[0, 0] - products[0, 1]).abs() > 1e-3


@pytest.mark.parametrize("name", ["conditioning", "action_blocks", "prediction"])
def test_unknown_options_are_refused_with_the_choices(name):
    with pytest.raises(UserError, match=f"{name}='other' is unknown; use one of"):
        WorldModelConfig(**{name: "other"})


# --------------------------------------------------------------------------------------------------------------- rectified flow


class Recorder:
    """Stands for the network: returns `answer` as its estimate of the clean future and keeps what it was given."""

    def __init__(self, model, answer):
        self.answer, self.calls = answer, []
        model.clean = self

    def __call__(self, x_t, t, context, actions, draft=None):
        self.calls.append((x_t, t, context, actions))
        return self.answer


def test_loss_by_hand():
    """x_t = (1 - t) x + t n on the future, noise added to the context without shrinking it, and the squared velocity error."""
    model = tiny.world_model(time_shift=1.0, context_noise=0.05, loss_cap=10.0)
    _, _, context, actions = inputs(batch=64)
    future, answer = torch.full((64, K, *SHAPE), 2.0), torch.full((64, K, *SHAPE), 1.5)
    network = Recorder(model, answer)
    loss, logs = model.loss(context, future, actions, torch.Generator().manual_seed(0))
    x_t, t, noisy, seen_actions = network.calls[0]
    column = t.view(-1, 1, 1, 1, 1)
    noise, context_noise = (x_t - (1 - column) * future) / column, (noisy - context) / 0.05
    for drawn in (noise, context_noise):
        assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert torch.equal(seen_actions, actions)
    velocity_error = ((x_t - answer) / column - (noise - future)).square().mean(dim=(1, 2, 3, 4))  # = (0.5 / t)^2
    assert torch.allclose(velocity_error, (0.5 / t) ** 2, rtol=1e-3)
    large = t**2 >= 0.1  # below, the weight 1 / t^2 is held at 10
    expected = torch.where(large, velocity_error, torch.full_like(t, 0.25 * 10))
    assert large.any() and not large.all()
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert logs == {"data_mse": 0.25}


def test_loss_weight_multiplies_the_error_position_by_position():
    model = tiny.world_model()
    _, _, context, actions = inputs()
    future = torch.zeros(B, K, *SHAPE)
    answer = torch.zeros_like(future)
    answer[..., 0, 0] = 1  # wrong in one corner
    Recorder(model, answer)
    weight = torch.ones(B, K, 1, 8, 8)
    run = lambda: float(model.loss(context, future, actions, torch.Generator().manual_seed(0), weight=weight)[0])  # noqa: E731
    plain = run()
    weight[..., 0, 0] = 3
    assert run() == pytest.approx(3 * plain, rel=1e-5)
    weight[..., 0, 0], weight[..., 1, 1] = 0, 100
    assert run() == 0


@pytest.mark.parametrize("shift,median", [(1.0, 1 / 2), (2.0, 2 / 3), (3.0, 3 / 4)])
def test_time_shift_moves_training_towards_noise(shift, median):
    """The median of s u / (1 + (s - 1) u), u uniform, is s / (1 + s); times stay in [0.1, 1]."""
    model = tiny.world_model(time_shift=shift)
    future = torch.zeros(4000, 1, 4, 1, 1)
    network = Recorder(model, future)
    model.loss(torch.zeros(4000, C, 4, 1, 1), future, torch.zeros(4000, 1, tiny.ACTIONS), torch.Generator().manual_seed(0))
    t = network.calls[0][1]
    assert float(t.median()) == pytest.approx(median, abs=0.03)
    assert t.min() >= 0.1 and t.max() <= 1


def test_loss_is_reproducible_and_trains_every_parameter():
    model = tiny.world_model(draft_width=16)
    _, _, context, actions = inputs()
    run = lambda seed: model.loss(context, context[:, -1:].expand(-1, K, -1, -1, -1) + 1, actions, torch.Generator().manual_seed(seed))[0]  # noqa: E731
    loss = run(3)
    assert torch.equal(loss, run(3)) and not torch.equal(loss, run(4))
    loss.backward()
    assert [name for name, p in model.named_parameters() if not name.startswith("draft.") and (p.grad is None or not p.grad.abs().sum())] == []


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_sampling_with_an_oracle_recovers_the_future_exactly(steps, shift):
    model = tiny.world_model(time_shift=shift)
    _, _, context, actions = inputs()
    truth = torch.randn(B, K, *SHAPE)
    network = Recorder(model, truth)
    imagined = model.imagine(context, actions, torch.Generator().manual_seed(0), steps=steps)
    assert torch.allclose(imagined, truth, atol=1e-5)
    assert len(network.calls) == steps
    uniform = 1 - np.arange(steps) / steps
    times = [float(t[0]) for _, t, _, _ in network.calls]
    assert times == pytest.approx(list(shift * uniform / (1 + (shift - 1) * uniform)))
    assert all(torch.equal(seen, context) for _, _, seen, _ in network.calls)  # clean in sampling


def test_euler_steps_by_hand():
    """A network that always answers zero has velocity x / t: two steps of shift 1 leave x(1) = n, x(1/2) = n / 2, x(0) = 0."""
    model = tiny.world_model(time_shift=1.0)
    _, _, context, actions = inputs()
    network = Recorder(model, torch.zeros(B, K, *SHAPE))
    end = model.imagine(context, actions, torch.Generator().manual_seed(0), steps=2)
    (first, _, _, _), (second, _, _, _) = network.calls
    assert torch.allclose(second, first / 2, atol=1e-6) and end.abs().max() < 1e-6
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1


def test_imagination_repeats_by_seed_and_defaults_to_the_configured_steps():
    model = tiny.world_model(sample_steps=3)
    _, _, context, actions = inputs()
    run = lambda seed, steps=None: model.imagine(context, actions, torch.Generator().manual_seed(seed), steps)  # noqa: E731
    assert run(0).shape == (B, K, *SHAPE) and not run(0).requires_grad
    assert torch.equal(run(0), run(0, 3)) and not torch.equal(run(0), run(1)) and not torch.equal(run(0), run(0, 1))
    short = model.imagine(context, actions[:, :2], torch.Generator().manual_seed(0))
    assert short.shape == (B, 2, *SHAPE)


# ------------------------------------------------------------------------------------------------------------------------- draft


def test_without_transformer_training_the_model_is_its_draft():
    model = tiny.world_model(shaken=0, draft_width=16)
    tiny.shake(model.draft, 0.3)
    x_t, t, context, actions = inputs()
    draft, scene, _ = model.draft(context, actions)
    assert draft.shape == x_t.shape and scene.shape == (B, K, 4 * 5 + 1)
    assert (draft - context[:, -1:]).abs().max() > 0.1
    assert torch.allclose(model.clean(x_t, t, context, actions), draft, atol=1e-5)
    assert torch.allclose(model.imagine(context, actions, torch.Generator().manual_seed(0)), draft, atol=1e-4)


def test_the_draft_is_not_trained_by_the_transformer():
    model = tiny.world_model(draft_width=16)
    _, _, context, actions = inputs()
    model.loss(context, torch.randn(B, K, *SHAPE), actions, torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None for p in model.draft.parameters())
    assert [name for name, p in model.named_parameters() if not name.startswith("draft.") and (p.grad is None or not p.grad.abs().sum())] == []


# -------------------------------------------------------------------------------------------------------------------- a toy world


def test_a_trained_model_follows_the_action():
    """150 steps on a dot that moves by its action: better than standing still, and bad when actions are exchanged between episodes."""
    model = WorldModel(WorldModelConfig(latent_channels=1, latent_size=8, patch=4, width=32, depth=1, heads=2, action_dim=2, context=2, chunk=4,
                                        draft_width=0))
    latents, actions = tiny.moving_dot(256, 4, seed=0)
    records = fit(model, world_model_loss(model, latents, actions, WindowConfig(batch=32), 150), FitConfig(steps=150, lr=1e-2, warmup=10),
                  seed=0, name="toy")
    model.eval()
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    latents, actions = tiny.moving_dot(64, 4, seed=1)
    context, future = latents[:, :1].repeat(1, 2, 1, 1, 1), latents[:, 1:]

    def error(moves):
        return float((model.imagine(context, moves, torch.Generator().manual_seed(0)) - future).square().mean())

    copy_last = float((context[:, -1:] - future).square().mean())
    assert error(actions) < 0.6 * copy_last
    assert error(actions.roll(1, dims=0)) > 2 * error(actions)
    assert error(torch.zeros_like(actions)) > 1.5 * error(actions)


# ------------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("build", [tiny.autoencoder, tiny.world_model], ids=["autoencoder", "world_model"])
def test_saved_models_come_back_bit_exact(build, tmp_path):
    model = tiny.shake(build())
    model.save(tmp_path / "model", {"note": "a test"})
    again = type(model).load(tmp_path / "model")
    assert asdict(again.config) == asdict(model.config) and not again.training
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "provenance.json"}  # no pickle
    assert '"note": "a test"' in (tmp_path / "model" / "provenance.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_loaded_world_model_imagines_the_same(tmp_path):
    model = tiny.world_model()
    model.save(tmp_path / "model")
    _, _, context, actions = inputs()
    one, two = (m.imagine(context, actions, torch.Generator().manual_seed(0)) for m in (model, WorldModel.load(tmp_path / "model")))
    assert torch.equal(one, two)


def test_saving_again_replaces_the_folder(tmp_path):
    tiny.world_model().save(tmp_path / "model")
    second = tiny.world_model(width=16)
    second.save(tmp_path / "model")
    assert WorldModel.load(tmp_path / "model").config.width == 16


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_a_user_error(keep, tmp_path):
    tiny.world_model().save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="model.safetensors cannot be read as safetensors"):
        WorldModel.load(tmp_path / "model")


def test_foreign_and_damaged_folders_are_user_errors(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="config.json is missing"):
        WorldModel.load(folder)
    tiny.world_model().save(folder)
    with pytest.raises(UserError, match="holds a 'WorldModel', expected a 'Autoencoder'"):
        Autoencoder.load(folder)
    edit(folder / "config.json", '"width": 32', '"width": 64')
    with pytest.raises(UserError, match="does not fit its config.json"):
        WorldModel.load(folder)
    edit(folder / "config.json", '"width": 64', '"width": 32, "dropout": 0.1')
    with pytest.raises(UserError, match=r"unknown fields \['dropout'\]"):
        WorldModel.load(folder)
    edit(folder / "config.json", '"width"', "width")
    with pytest.raises(UserError, match="not valid JSON"):
        WorldModel.load(folder)
    (folder / "model.safetensors").unlink()
    tiny.world_model().save(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        WorldModel.load(folder)
