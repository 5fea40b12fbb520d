"""Both denoisers: shapes, what they see and what they cannot see, the identity they begin as."""

import dataclasses
import math

import pytest
import torch

from wmpo_lite.common.errors import UserError
from wmpo_lite.conditioning import Context, DenoiserConfig, compose
from wmpo_lite.denoiser import build_denoiser

SMALL = dict(
    latent_channels=4,
    latent_size=8,
    action_dim=3,
    context=3,
    frames=2,
    widths=(16, 16),
    blocks=1,
    width=32,
    depth=1,
    heads=2,
)
KINDS = pytest.mark.parametrize("kind", ["unet", "stdit"])


def build(kind, shaken=0.2, **changes):
    torch.manual_seed(0)
    net = build_denoiser(DenoiserConfig(kind=kind, **{**SMALL, **changes}))
    if shaken:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(shaken * torch.randn(p.shape))
    return net.eval()


def inputs(batch=2, seed=0, c=SMALL, **changes):
    c = {**c, **changes}
    g = torch.Generator().manual_seed(seed)
    shape = (c["latent_channels"], c["latent_size"], c["latent_size"])
    rand = lambda *s: torch.randn(*s, generator=g)
    context = Context(
        rand(batch, *shape),
        rand(batch, c["context"], *shape),
        rand(batch, c["context"] - 1, c["action_dim"]),
        rand(batch, c["action_dim"]),
        torch.rand(batch, generator=g),
    )
    return (
        rand(batch, c["frames"], *shape),
        torch.tensor([0.4, 0.9][:batch]),
        context,
        rand(batch, c["frames"], c["action_dim"]),
    )


@KINDS
def test_a_new_denoiser_copies_the_newest_frame(kind):
    x_t, t, context, actions = inputs()
    found = build(kind, shaken=0, gate=False).predict_x0(x_t, t, context, actions)
    assert torch.equal(found, context.frames[:, -1:].expand_as(x_t))


@KINDS
def test_a_new_gate_is_nearly_closed(kind):
    x_t, t, context, actions = inputs()
    found = build(kind, shaken=0).predict_x0(x_t, t, context, actions)
    share = 1 / (1 + math.exp(3))
    expected = (1 - share) * context.frames[:, -1:] + share * context.reference[:, None]
    assert torch.allclose(found, expected.expand_as(x_t), atol=1e-6)


def test_an_open_gate_lets_the_reference_through_and_a_closed_one_what_is_drawn():
    x_t, _, context, _ = inputs()
    change, gate = torch.randn(x_t.shape), torch.full((*x_t.shape[:2], 1, *x_t.shape[3:]), -99.0)
    gate[:, 1, :, 2, 3] = 99.0  # of the second frame, one position
    found = compose(DenoiserConfig(latent_channels=4), context, torch.cat([change, gate], dim=2))
    drawn = context.frames[:, -1:] + change
    assert torch.equal(found[:, 1, :, 2, 3], context.reference[:, :, 2, 3])
    found[:, 1, :, 2, 3] = drawn[:, 1, :, 2, 3]
    assert torch.equal(found, drawn)


def test_every_pixel_of_a_folded_latent_has_a_gate_of_its_own():
    """48 channels are 16 pixels of three colors; gate 6 lets those of pixel 6 through."""
    x_t = torch.randn(2, 1, 48, 4, 4)
    reference, newest = torch.randn(2, 48, 4, 4), torch.randn(2, 1, 48, 4, 4)
    context = Context(reference, newest, None, None, None)
    gate = torch.full((2, 1, 16, 4, 4), -99.0)
    gate[:, :, 6] = 99.0
    config = DenoiserConfig(latent_channels=48, gates=16)
    found = compose(config, context, torch.cat([torch.zeros_like(x_t), gate], dim=2))
    for channel in range(48):
        wanted = reference[:, channel] if channel % 16 == 6 else newest[:, 0, channel]
        assert torch.equal(found[:, 0, channel], wanted)


@KINDS
def test_more_gates_cost_outputs_and_must_fit(kind):
    x_t, t, context, actions = inputs()
    assert build(kind, gates=4).predict_x0(x_t, t, context, actions).shape == x_t.shape
    with pytest.raises(UserError, match="3 gates cannot share 4 channels"):
        build(kind, gates=3)


def test_the_newest_frame_changes_or_the_reference_shows_through():
    context = Context(torch.randn(2, 48, 2, 2), torch.randn(2, 3, 48, 2, 2), None, None, None)
    config = DenoiserConfig(latent_channels=48, latent_size=2, frames=2, gates=16)
    change, gate = torch.randn(2, 2, 48, 2, 2), torch.full((2, 2, 16, 2, 2), -99.0)
    found = compose(config, context, torch.cat([change, gate], dim=2))
    assert torch.allclose(found, context.frames[:, -1:] + change)
    assert torch.equal(
        compose(config, context, torch.cat([change, gate + 198], dim=2)),
        context.reference[:, None].expand(-1, 2, -1, -1, -1),
    )


@KINDS
def test_there_is_no_gate_without_a_reference(kind):
    count = lambda **options: sum(p.numel() for p in build(kind, **options).parameters())
    assert count(gate=True) > count(gate=False)
    assert count(reference=False, gate=True) == count(reference=False, gate=False)


@KINDS
def test_episodes_of_a_batch_do_not_see_each_other(kind):
    net, (x_t, t, context, actions) = build(kind), inputs()
    both = net.predict_x0(x_t, t, context, actions)
    one = net.predict_x0(x_t[1:], t[1:], Context(*(part[1:] for part in context)), actions[1:])
    assert torch.allclose(both[1:], one, atol=1e-4)


@KINDS
@pytest.mark.parametrize(
    "part", ["x_t", "t", "reference", "frames", "past", "path", "level", "actions"]
)
def test_every_input_matters(kind, part):
    net, (x_t, t, context, actions) = build(kind), inputs()
    before = net.predict_x0(x_t, t, context, actions)
    if part in ("reference", "frames", "path", "level"):
        context = context._replace(**{part: getattr(context, part) + 0.5})
    elif part == "past":
        context = context._replace(actions=context.actions + 0.5)
    x_t, t, actions = (
        x_t + 0.5 * (part == "x_t"),
        t * (1 - 0.5 * (part == "t")),
        actions + 0.5 * (part == "actions"),
    )
    after = net.predict_x0(x_t, t, context, actions)
    if part == "frames":  # beyond the newest frame, which the change is added to
        before, after = before - 0.5 * 0, after - 0.5
    assert (after - before).abs().max() > 1e-3


@KINDS
def test_reference_and_path_are_not_seen_when_switched_off(kind):
    net, (x_t, t, context, actions) = build(kind, reference=False, path=False), inputs()
    other = context._replace(reference=context.reference * 0, path=context.path + 3)
    assert torch.equal(
        net.predict_x0(x_t, t, context, actions), net.predict_x0(x_t, t, other, actions)
    )


@KINDS
def test_pooled_actions_lose_their_order_and_frame_level_ones_do_not(kind):
    x_t, t, context, actions = inputs()
    context = context._replace(path=context.path * 0)
    for mode, same in (("pooled", True), ("frame", False)):
        net = build(kind, actions=mode, path=False)
        found = [net.predict_x0(x_t, t, context, a) for a in (actions, actions.flip(1))]
        assert torch.allclose(*found, atol=1e-5) is same


def test_the_transformer_is_causal_in_time():
    net, (x_t, t, context, actions) = build("stdit"), inputs()
    before = net.predict_x0(x_t, t, context, actions)
    later = x_t.clone()
    later[:, 1] += 1.0
    after = net.predict_x0(later, t, context, actions)
    assert (
        torch.equal(before[:, 0], after[:, 0]) and (before[:, 1] - after[:, 1]).abs().max() > 1e-3
    )


def test_the_papers_transformer_can_be_built():
    config = DenoiserConfig(
        kind="stdit",
        latent_channels=4,
        latent_size=32,
        action_dim=7,
        context=4,
        frames=8,
        width=1152,
        depth=28,
        heads=16,
    )
    with torch.device("meta"):
        net = build_denoiser(config)
    assert 1.2e9 < sum(p.numel() for p in net.parameters()) < 1.7e9


@pytest.mark.parametrize("field", ["kind", "actions"])
def test_unknown_options_are_refused(field):
    with pytest.raises(UserError, match=field):
        dataclasses.replace(DenoiserConfig(), **{field: "nonsense"})
