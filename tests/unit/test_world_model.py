"""The world model: its state, what it imagines from it, its loss by hand, a toy world to learn."""

import json
from dataclasses import asdict

import pytest
import tiny
import torch

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.common.errors import UserError
from wmpo_lite.diffusion import time_grid
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.world_model import State, WorldModel, WorldModelConfig

B, C, D = 3, tiny.CONTEXT, tiny.ACTIONS
SHAPE = (4, 8, 8)  # a latent
STDIT = dict(kind="stdit", patch=4, width=32, depth=1, heads=2)
KINDS = pytest.mark.parametrize("options", [dict(), STDIT], ids=["unet", "stdit"])

# What the first edition's world model of `place` was saved with.
OLD_CONFIG = """{
 "class": "WorldModel", "latent_channels": 16, "latent_size": 8, "patch": 2, "width": 128,
 "depth": 4, "heads": 4, "action_dim": 4, "context": 4, "chunk": 8, "conditioning": "gate",
 "action_blocks": "all", "draft_width": 128, "draft_memory": 64, "draft_fine": 10.0,
 "draft_controller": true, "draft_keyframe": true, "draft_rest": true, "slots": 5,
 "action_path": true, "prediction": "data", "context_noise": 0.05, "loss_cap": 2.0,
 "time_shift": 8.0, "sample_steps": 2
}"""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(*lead, seed=0):
    return torch.randn(*lead, *SHAPE, generator=seeded(seed))


def actions(batch=B, steps=4, seed=0):
    return torch.from_numpy(tiny.random_actions(batch, steps, D, seed=seed))


def same(one, two, atol=0.0):
    """Whether two states are equal in every part."""
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(one, two))


class Recorder:
    """Stands for the denoiser: answers with `answer` and keeps what it was given."""

    def __init__(self, model, answer):
        self.answer, self.calls = answer, []
        model.denoiser.predict_x0 = self

    def __call__(self, x_t, t, context, acts):
        self.calls.append((x_t, t, context, acts))
        return self.answer


# -- the state -------------------------------------------------------------------------------------


def test_imagination_begins_with_the_first_frame_again_and_again_and_no_action():
    first = latents(B)
    state = tiny.world_model(context=3).init_state(first)
    assert torch.equal(state.reference, first)
    assert torch.equal(state.frames, first[:, None].expand(-1, 3, -1, -1, -1))
    assert state.actions.shape == (B, 2, D) and not state.actions.any()
    assert state.path.shape == (B, D) and not state.path.any()


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (2, 4), (6,), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("context", [1, 2, 4])
def test_a_state_carried_along_is_the_recorded_one(context, pieces):
    """However an episode is cut, `append` leads to what `Episodes.state` reads."""
    film, moves = latents(B, 7), actions(steps=6)
    episodes = Episodes(film, moves)
    state, at = tiny.world_model(context=context).init_state(film[:, 0]), 0
    for k in pieces:
        state = state.append(film[:, at + 1 : at + 1 + k], moves[:, at : at + k])
        at += k
        expected = episodes.state(torch.arange(B), torch.full((B,), at), context)
        assert same(state, expected, atol=1e-6)
        assert [part.shape for part in state] == [part.shape for part in expected]


def test_append_by_hand():
    shapes = ((1, 1, 1, 1), 0.0), ((1, 3, 1, 1, 1), 7.0), ((1, 2, 1), 0.5), ((1, 1), 2.0)
    state = State(*(torch.full(shape, value) for shape, value in shapes))
    after = state.append(
        torch.tensor([8.0, 9.0]).view(1, 2, 1, 1, 1), torch.tensor([0.1, 0.2]).view(1, 2, 1)
    )
    assert after.frames.flatten().tolist() == [7, 8, 9] and after.reference.item() == 0
    assert after.actions.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert after.path.item() == pytest.approx(2.3)
    later = after.append(torch.full((1, 1, 1, 1, 1), 10.0), torch.full((1, 1, 1), 0.3))
    assert later.frames.flatten().tolist() == [8, 9, 10]
    assert later.actions.flatten().tolist() == pytest.approx([0.2, 0.3])
    assert state.frames.flatten().tolist() == [7, 7, 7]  # the old state stays as it was


def test_rows_take_episodes_out():
    model = tiny.world_model()
    _, state = model.next_frames(model.init_state(latents(B)), actions(), seeded())
    part = state.rows([2, 0])
    assert all(torch.equal(small, whole[[2, 0]]) for small, whole in zip(part, state))


# -- imagination -----------------------------------------------------------------------------------


@KINDS
def test_an_untrained_model_shows_the_first_frame_forever(options):
    model = tiny.world_model(shaken=0, **options)
    first = latents(B)
    found, _ = model.next_frames(model.init_state(first), actions(steps=8), seeded())
    assert torch.allclose(found, first[:, None].expand_as(found), atol=1e-5)


@KINDS
def test_the_generator_decides_what_is_imagined(options):
    model = tiny.world_model(**options)
    state = model.init_state(latents(B))
    run = lambda seed: model.next_frames(state, actions(), seeded(seed))
    (one, end), (two, same_end), (other, _) = run(0), run(0), run(1)
    assert one.shape == (B, 4, *SHAPE) and not one.requires_grad
    assert torch.equal(one, two) and same(end, same_end) and not torch.equal(one, other)


@KINDS
@pytest.mark.parametrize("cut", [2, 4, 6])
def test_one_long_chunk_is_two_short_ones_carried_by_the_state(options, cut):
    model = tiny.world_model(**options)
    state, moves, generator = model.init_state(latents(B)), actions(steps=8), seeded()
    whole, end = model.next_frames(state, moves, seeded())
    first, middle = model.next_frames(state, moves[:, :cut], generator)
    second, after = model.next_frames(middle, moves[:, cut:], generator)
    assert torch.equal(whole, torch.cat([first, second], dim=1)) and same(end, after)
    assert torch.equal(after.frames, whole[:, -C:]) and torch.equal(
        after.reference, state.reference
    )
    assert torch.allclose(after.path, moves.sum(dim=1), atol=1e-5)


def test_of_a_last_short_piece_only_what_was_asked_for_is_kept():
    model = tiny.world_model()
    state, moves = model.init_state(latents(B)), actions(steps=3)
    longer = torch.cat([moves, moves[:, -1:]], dim=1)  # a pass always predicts two frames
    found, after = model.next_frames(state, moves, seeded())
    expected, _ = model.next_frames(state, longer, seeded())
    assert found.shape[1] == 3 and torch.equal(found, expected[:, :3])
    assert torch.equal(after.frames, found[:, -C:]) and torch.equal(after.actions, moves[:, -1:])
    assert torch.allclose(after.path, moves.sum(dim=1))


def test_actions_move_later_frames_and_never_earlier_ones():
    model = tiny.world_model(**STDIT)
    state, moves = model.init_state(latents(B)), actions(steps=6)
    before, _ = model.next_frames(state, moves, seeded())
    for step in range(6):
        other = moves.clone()
        other[:, step] += 0.5
        changed = (model.next_frames(state, other, seeded())[0] - before).abs().amax(
            dim=(0, 2, 3, 4)
        ) > 1e-5
        assert changed.tolist() == [False] * step + [True] * (6 - step)


def test_episodes_of_a_batch_do_not_see_each_other():
    model = tiny.world_model()
    state, moves = model.init_state(latents(B)), actions()
    whole, _ = model.next_frames(state, moves, seeded())
    other = State(*(part.clone() for part in state))
    other.reference[1:], other.frames[1:] = 0, 0
    alone, _ = model.next_frames(other, moves, seeded())
    assert torch.allclose(whole[0], alone[0], atol=1e-5) and not torch.allclose(
        whole[1], alone[1], atol=1e-2
    )


def test_more_inference_steps_change_what_is_imagined():
    model = tiny.world_model(num_inference_steps=3)
    state = model.init_state(latents(B))
    run = lambda steps=None: model.next_frames(state, actions(), seeded(), steps)[0]
    assert torch.equal(run(), run(3)) and not torch.allclose(run(), run(1), atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_with_an_oracle_the_frames_are_exact_after_any_number_of_steps(steps, shift):
    model, truth = tiny.world_model(shift=shift), latents(B, 2, seed=5)
    network, state, moves = Recorder(model, truth), model.init_state(latents(B)), actions()
    found, _ = model.next_frames(state, moves, seeded(), steps)
    assert torch.allclose(found, truth.repeat(1, 2, 1, 1, 1), atol=1e-5)
    times = [float(t[0]) for _, t, _, _ in network.calls]
    assert times == pytest.approx(2 * time_grid(steps, shift)[:-1].tolist())  # two passes
    assert torch.equal(network.calls[0][2].frames, state.frames)  # nothing is added to the context
    assert torch.equal(network.calls[-1][2].frames, found[:, :2])
    assert torch.equal(network.calls[0][3], moves[:, :2]) and torch.equal(
        network.calls[-1][3], moves[:, 2:]
    )
    noise = network.calls[0][0]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_the_context_is_taken_to_carry_the_configured_noise():
    for level in (0.0, 0.3):
        model = tiny.world_model(context_noise=level)
        network = Recorder(model, latents(B, 2))
        model.next_frames(model.init_state(latents(B)), actions(), seeded())
        assert all(
            torch.equal(context.level, torch.full((B,), level))
            for _, _, context, _ in network.calls
        )


@pytest.mark.parametrize("shape", [(B, 4, 4, 4), (B, 3, 8, 8), (B, 4, 8, 4)])
def test_latents_of_another_autoencoder_are_refused(shape):
    with pytest.raises(
        UserError, match=r"moves latents of shape \(4, 8, 8\), got .*; load the autoencoder"
    ):
        tiny.world_model().init_state(torch.zeros(shape))


def test_actions_of_another_robot_are_refused():
    model = tiny.world_model()
    with pytest.raises(UserError, match="knows actions of 4 numbers, got 7"):
        model.next_frames(model.init_state(latents(B)), torch.zeros(B, 4, 7))


def test_fewer_than_one_step_of_the_sampler_are_refused():
    model = tiny.world_model()
    actions = torch.zeros(B, 4, tiny.ACTIONS)
    with pytest.raises(UserError, match="num_inference_steps is -1: expected 1 or more"):
        model.next_frames(model.init_state(latents(B)), actions, num_inference_steps=-1)


@pytest.mark.parametrize("name", ["context", "frames", "blocks", "heads", "patch"])
def test_sizes_of_nothing_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0: expected 1 or more"):
        WorldModelConfig(**{name: 0})


@pytest.mark.parametrize("sizes", [{"latent_size": 7}, {"kind": "stdit", "patch": 3}])
def test_latents_that_cannot_be_cut_into_pieces_are_refused(sizes):
    with pytest.raises(UserError, match="cannot be cut into pieces"):
        WorldModelConfig(**sizes)


@pytest.mark.parametrize("name", ["kind", "actions"])
def test_unknown_options_are_refused_with_the_choices(name):
    with pytest.raises(UserError, match=f"{name}='other' is unknown; use one of"):
        WorldModelConfig(**{name: "other"})


# -- training --------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """x_t = (1 - t) x + t n, noise of its level on the context, the velocity's squared error."""
    n = 64
    model = tiny.world_model(shift=1.0)
    target, answer = torch.full((n, 2, *SHAPE), 2.0), torch.full((n, 2, *SHAPE), 1.5)
    network, state, moves = Recorder(model, answer), model.init_state(latents(n)), actions(n, 2)
    level = torch.linspace(0.1, 0.5, n)
    loss, x0, times = model.loss(state, moves, target, seeded(), level=level, pure=0.25)
    x_t, t, context, seen = network.calls[0]
    column = t.view(-1, 1, 1, 1, 1)
    noise = (x_t - (1 - column) * target) / column
    context_noise = (context.frames - state.frames) / level.view(-1, 1, 1, 1, 1)
    for drawn in (noise, context_noise):
        assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert torch.equal(context.level, level) and torch.equal(context.reference, state.reference)
    assert torch.equal(seen, moves) and torch.equal(t, times) and torch.equal(x0, answer)
    assert 0.1 < (t == 1).float().mean() < 0.45
    velocity_error = ((x_t - answer) / column - (noise - target)).square().mean(dim=(1, 2, 3, 4))
    assert torch.allclose(velocity_error, 0.25 / t.square(), rtol=1e-3)
    capped = torch.minimum(velocity_error, torch.tensor(0.25 * 4))
    assert (capped < velocity_error).any() and float(loss) == pytest.approx(
        float(capped.mean()), rel=1e-3
    )


def test_weights_multiply_the_error_position_by_position():
    model = tiny.world_model()
    answer = torch.zeros(B, 2, *SHAPE)
    answer[..., 0, 0] = 1  # wrong in one corner
    Recorder(model, answer)
    state, weight = model.init_state(latents(B)), torch.ones(B, 2, 1, 8, 8)
    still = torch.zeros_like(answer)

    def run():
        return float(model.loss(state, actions(B, 2), still, seeded(), weight=weight)[0])

    plain = run()
    weight[..., 0, 0] = 3
    assert plain > 0 and run() == pytest.approx(3 * plain, rel=1e-5)
    weight[..., 0, 0], weight[..., 1, 1] = 0, 100
    assert run() == 0


@KINDS
def test_the_loss_is_reproducible_and_trains_every_parameter(options):
    model = tiny.world_model(**options).train()
    state, target = model.init_state(latents(B)), latents(B, 2, seed=1)
    level = torch.full((B,), 0.1)
    run = lambda seed: model.loss(state, actions(B, 2), target, seeded(seed), level=level)
    loss, x0, _ = run(3)
    assert torch.equal(loss, run(3)[0]) and not torch.equal(loss, run(4)[0])
    assert not x0.requires_grad
    loss.backward()
    idle = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()
    ]
    assert idle == []


def test_a_trained_model_follows_the_actions():
    """A dot that moves by its action: better than standing still, bad with others' actions."""
    model = tiny.world_model(shaken=0, latent_channels=1, action_dim=2)
    episodes = Episodes(*tiny.moving_dot(256, 8, seed=0))
    pool = Pool(episodes, model, WindowConfig(batch=32, own=2, ramp=50))
    settings = FitConfig(steps=150, lr=5e-3, warmup=10)
    records = fit(model, pool.loss, settings, seed=0, name="toy", extra=pool.tensors)
    assert records[-1]["mse"] < 0.7 * records[0]["mse"]
    film, moves = tiny.moving_dot(64, 8, seed=1)

    def error(told):
        found, _ = model.next_frames(model.init_state(film[:, 0]), told, seeded())
        return float((found - film[:, 1:]).square().mean())

    copied = float((film[:, :1] - film[:, 1:]).square().mean())
    assert error(moves) < 0.25 * copied
    assert error(moves.roll(1, dims=0)) > 4 * error(moves)
    assert error(torch.zeros_like(moves)) > 3 * error(moves)


# -- files -----------------------------------------------------------------------------------------


@KINDS
def test_a_saved_model_comes_back_bit_exact_and_imagines_the_same(options, tmp_path):
    model = tiny.world_model(**options)
    model.save(tmp_path / "model", {"note": "a test"})
    again = WorldModel.load(tmp_path / "model")
    assert asdict(again.config) == asdict(model.config) and not again.training
    own, other = model.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "provenance.json"}  # no pickle
    assert '"note": "a test"' in (tmp_path / "model" / "provenance.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    one, two = (
        m.next_frames(m.init_state(latents(B)), actions(), seeded())[0] for m in (model, again)
    )
    assert torch.equal(one, two)


def test_saving_again_replaces_the_folder(tmp_path):
    tiny.world_model().save(tmp_path / "model")
    tiny.world_model(widths=(8, 16)).save(tmp_path / "model")
    assert WorldModel.load(tmp_path / "model").config.widths == (8, 16)


def test_weights_of_the_first_edition_are_refused_in_one_sentence(tmp_path):
    tiny.world_model().save(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(OLD_CONFIG)
    with pytest.raises(
        UserError, match="unknown fields .*'draft_width'.*written by another version of the kit"
    ) as refused:
        WorldModel.load(tmp_path / "model")
    assert len(str(refused.value).splitlines()) == 1


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
    config = folder / "config.json"

    def edit(**changes):
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))

    with pytest.raises(UserError, match="config.json is missing"):
        WorldModel.load(folder)
    tiny.world_model().save(folder)
    with pytest.raises(UserError, match="holds a 'WorldModel', expected a 'Autoencoder'"):
        Autoencoder.load(folder)
    edit(blocks=2)
    with pytest.raises(UserError, match="does not fit its config.json"):
        WorldModel.load(folder)
    edit(blocks=1, dropout=0.1)
    with pytest.raises(UserError, match=r"unknown fields \['dropout'\]"):
        WorldModel.load(folder)
    config.write_text(config.read_text()[:-2])
    with pytest.raises(UserError, match="not valid JSON"):
        WorldModel.load(folder)
    (folder / "model.safetensors").unlink()
    tiny.world_model().save(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        WorldModel.load(folder)
