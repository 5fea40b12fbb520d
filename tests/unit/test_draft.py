"""The draft: reading points out of latents, moving them by actions, painting them back."""
import numpy as np
import pytest
import torch

import tiny
from wmpo_lite.draft import Draft
from wmpo_lite.draft_losses import disguise, following, letting_go, lettings_go, moving, painting, reading
from wmpo_lite.mover import Scene
from wmpo_lite.errors import UserError
from wmpo_lite.train import FitConfig, fit

B, K, S = 3, 4, 3


def draft(**changes) -> Draft:
    torch.manual_seed(0)
    return tiny.shake(Draft(**dict(channels=4, size=8, action_dim=2, width=16, memory=8, slots=S, looks=2) | changes), 0.1)


def scene(*lead, looks=0, seed=0) -> Scene:
    rng = torch.Generator().manual_seed(seed)
    return Scene(torch.rand(*lead, S, 3, generator=rng), torch.ones(*lead, S), torch.rand(*lead, generator=rng), torch.rand(*lead, S, looks, generator=rng))


def roll(net: Draft, now: Scene, actions) -> Scene:
    return net.mover.roll(now, actions, net.mover.start(now, now))[0]


# ------------------------------------------------------------------------------------------------------------------------- geometry


def test_lift_is_the_inverse_of_project():
    from wmpo_lite.envs.tabletop.scene import camera_matrix
    net = draft()
    net.calibrate(torch.from_numpy(camera_matrix()), (0.19, 0.0, 0.014), 0.1)
    points = torch.rand(50, S, 3) * 2 - 1
    assert torch.allclose(net._lift(net.project(points), points[..., 2]), points, atol=1e-4)


def test_the_camera_sees_objects_where_the_renderer_draws_them():
    from wmpo_lite.envs.tabletop import scene as tabletop
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import labels
    from wmpo_lite.envs.tabletop.tasks import get_task
    env = TabletopEnv(get_task("place"), threads=1)
    frames = env.reset(initial_states(get_task("place"), "pretraining", np.arange(12)))
    net, found = draft(slots=5), labels(env)
    env.close()
    net.calibrate(torch.from_numpy(tabletop.camera_matrix()), (0, 0, 0), 1.0)
    place = (net.project(torch.from_numpy(found["points"])) + 1) * 32 - 0.5  # pixels
    errors = []
    for frame, spots, present in zip(frames.astype(int), place, found["present"]):
        for channel in np.flatnonzero(present[:3]):  # red, green, blue
            others = np.delete(frame, channel, axis=-1).max(-1)
            rows, columns = np.nonzero((frame[..., channel] > 60) & (frame[..., channel] > 2 * others))
            if len(rows) > 12:  # in sight
                errors.append(np.hypot(columns.mean() - float(spots[channel, 0]), rows.mean() - float(spots[channel, 1])))
    assert len(errors) > 15 and np.median(errors) < 0.8


# ------------------------------------------------------------------------------------------------------------------------- read


def test_a_slot_is_where_its_attention_is():
    net = draft()
    logits = torch.zeros(2, S * 16, 8, 8)
    # slot 1 looks at cell (row 2, column 5), there at the second row and the fourth column of its 4 x 4 parts
    logits[:, 16 + 1 * 4 + 3, 2, 5] = 50.0
    net.reader.attend.forward = lambda features: logits
    place = net.reader(torch.randn(2, 16, 8, 8))[0]
    assert torch.allclose(place[:, 1], torch.tensor([(5 * 4 + 3.5) / 32 * 2 - 1, (2 * 4 + 1.5) / 32 * 2 - 1]), atol=1e-5)
    assert torch.allclose(place[:, 0], torch.zeros(2), atol=1e-5)  # looks everywhere: the middle


def test_read_loss_is_least_for_what_is_read():
    net = draft()
    latents = torch.randn(B, 4, 8, 8)
    with torch.no_grad():
        found = net.read(latents)[0]
        there = found._replace(present=torch.ones(B, S))
        loss = lambda labels: float(net.read_loss(latents, labels, 0.0)[0].detach())  # noqa: E731
        best, logs = net.read_loss(latents, there, 0.0)
    assert logs["read_error_m"] == pytest.approx(0, abs=1e-5)
    assert loss(there._replace(points=there.points + 0.1)) > float(best) + 0.1
    assert loss(there._replace(opening=there.opening + 1)) == pytest.approx(float(best) + 0.95, abs=1e-4)
    # an absent slot's point does not count
    absent = there._replace(present=torch.tensor([[0.0, 1, 1]] * B))
    moved = absent._replace(points=absent.points + torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 0, 0]]))
    assert loss(absent) == pytest.approx(loss(moved), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------------------- move


@pytest.mark.parametrize("gate, share", [(20.0, 1.0), (-20.0, 0.0)])
def test_an_object_is_carried_with_the_hand_or_stays(gate, share):
    net = draft()
    with torch.no_grad():
        for last in (net.mover.object_out[-1], net.mover.hand_out[-1]):
            last.weight.zero_(), last.bias.zero_()
        net.mover.object_out[-1].bias[3] = gate
        net.mover.follow_command.weight.zero_(), net.mover.follow_command.bias.zero_()
        net.mover.follow_command.weight[0, 0] = 1.0  # the first action moves the hand along x
    now, actions = scene(B), torch.full((B, K, 2), 0.5)
    new = roll(net, now, actions)
    way = 0.3 * 0.5 * torch.arange(1, K + 1)
    assert torch.allclose(new.points[:, :, -1, 0], now.points[:, None, -1, 0] + way, atol=1e-5)
    assert torch.allclose(new.points[:, :, -1, 1:], now.points[:, None, -1, 1:].expand(-1, K, -1), atol=1e-5)
    for slot in range(S - 1):
        assert torch.allclose(new.points[:, :, slot, 0], now.points[:, None, slot, 0] + share * way, atol=1e-4)


def test_rolling_is_causal_and_ignores_absent_objects():
    net, now, actions = draft(), scene(B), torch.randn(B, K, 2)
    changed = actions.clone()
    changed[:, 2] += 1
    one, two = roll(net, now, actions), roll(net, now, changed)
    assert torch.equal(one.points[:, :2], two.points[:, :2]) and not torch.allclose(one.points[:, 2], two.points[:, 2])
    gone = now._replace(present=torch.tensor([[1.0, 0, 1]] * B))
    elsewhere = gone._replace(points=gone.points + torch.tensor([[0.0] * 3, [1.0] * 3, [0.0] * 3]))
    one, two = roll(net, gone, actions), roll(net, elsewhere, actions)
    assert torch.allclose(one.points[:, :, 0], two.points[:, :, 0]) and torch.allclose(one.points[:, :, 2], two.points[:, :, 2])


def test_small_distances_are_enlarged_cut_off_and_told_of_present_things_only():
    net = draft(fine=10.0)
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.05, -0.5, 0.0], [0.0, 0.01, 0.3]]])  # two objects and the hand
    found = net.mover._enlarged(points, torch.tensor([[1.0, 1.0, 1.0]])).unflatten(-1, (3, 3))
    assert torch.allclose(found[0, 0], torch.tensor([[0.0, 0.0, 0.0], [0.5, -2.0, 0.0], [0.0, 0.1, 2.0]]))
    assert torch.allclose(found[0, 1], torch.tensor([[-0.5, 2.0, 0.0], [0.0, 0.0, 0.0], [-0.5, 2.0, 2.0]]))
    without = net.mover._enlarged(points, torch.tensor([[1.0, 0.0, 1.0]])).unflatten(-1, (3, 3))
    assert (without[0, 0, 1] == 0).all() and (without[0, 0, 2] == found[0, 0, 2]).all()
    assert draft().mover._enlarged(points, torch.ones(1, 3)).shape == (1, 2, 0)


def test_a_trained_world_model_stays_what_it_is_when_told_small_distances_too():
    from wmpo_lite.pretrain import with_fine_distances
    model = tiny.world_model(draft_width=16)
    finer = with_fine_distances(model, 10.0)
    context, actions = torch.randn(2, 2, 4, 8, 8), torch.rand(2, 4, tiny.ACTIONS) * 2 - 1
    for before, after in zip(model.draft(context, actions), finer.draft(context, actions)):
        assert torch.allclose(before, after, atol=1e-6)
    assert finer.config.draft_fine == 10 and with_fine_distances(finer, 10.0) is finer and with_fine_distances(finer, 0.0) is finer
    weight = finer.draft.mover.object_in[0].weight
    finer.draft(context, actions)[0].square().sum().backward()
    assert weight.grad[:, -15:].abs().sum() > 0  # and can learn from them


def test_the_controllers_command_moves_the_hand_by_hand():
    net = draft(action_dim=4, controller=True)
    for last in (net.mover.hand_out[-1], net.mover.follow_command):
        torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
    net.calibrate(torch.eye(3, 4), (0.0, 0.0, 0.0), 0.1)
    net.calibrate_controller(0.03, [[-0.05, 0.05], [-1, 1], [0.012, 0.125]])  # a full step is 0.3 units; the box +-0.5, +-10, 0.12 to 1.25
    now = scene(1)
    now.points[0, -1] = torch.tensor([0.0, 0.0, 1.0])
    actions = torch.tensor([[[1.0, 0.5, -1, 1], [1, 0.5, -1, 1], [1, 7, -1, 1], [-0.5, 0, -1, 1]]])  # 7 counts as 1
    hand = roll(net, now, actions).points[0, :, -1]
    assert torch.allclose(hand, torch.tensor([[0.3, 0.15, 0.7], [0.5, 0.3, 0.4], [0.5, 0.6, 0.12], [0.35, 0.6, 0.12]]), atol=1e-6)
    # the command leads a hand that is held back by a step and a half at the most
    command = net.mover._command(torch.zeros(1, 3), torch.tensor([[0.0, 0.4, 0.2]]), torch.tensor([[0.0, 1, 0, 0]]))
    assert torch.allclose(command, torch.tensor([[0.0, 0.45, 0.2]]))
    # a hand that moves is taken to be behind its command
    net.mover.lag.data.fill_(0.1)
    before = Scene(now.points - torch.tensor([0.2, 0, 0]), *now[1:])
    assert torch.allclose(net.mover.start(before, now)[0][:, -3:], torch.tensor([[0.02, 0.0, 1.0]]))


def test_an_untrained_mover_with_the_controller_knows_where_the_real_arm_goes():
    from wmpo_lite.envs.tabletop.env import MAX_STEP, WORKSPACE, TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.expert import labels
    from wmpo_lite.envs.tabletop.tasks import get_task
    env, n, steps = TabletopEnv(get_task("place"), size=32, threads=1), 8, 24
    env.reset(initial_states(get_task("place"), "pretraining", np.arange(n)))
    net = Draft(channels=4, size=8, action_dim=4, width=16, memory=8, slots=5, looks=2, controller=True)
    net.calibrate(torch.eye(3, 4), (0.19, 0.0, 0.05), 0.1), net.calibrate_controller(MAX_STEP, WORKSPACE)
    start = {key: torch.from_numpy(value) for key, value in labels(env).items()}
    now = net.scene(start["points"], start["present"].float(), start["opening"])
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (n, steps, 4)) * [0.8, 0.8, 0.4, 1]
    actions[..., 2] += 0.1  # stays above what stands about
    real = []
    for k in range(steps):
        env.step_chunk(actions[:, k: k + 1])
        real.append(env.tip)
    env.close()
    with torch.no_grad():
        hand = roll(net, now, torch.from_numpy(actions).float()).points[:, :, -1] * net.unit + net.centre
    error = np.linalg.norm(hand.numpy() - np.stack(real, axis=1), axis=-1)
    moved = np.linalg.norm(np.diff(np.stack(real, axis=1), axis=1), axis=-1)
    assert np.median(moved) > 0.01 and np.median(error[:, -1]) < 0.005 and error.max() < 0.02  # does not grow: it lags, and catches up


def test_a_trained_world_model_is_given_the_controller_and_keeps_all_but_the_hand(tmp_path):
    from wmpo_lite.pretrain import with_controller
    model = tiny.world_model(draft_width=16, draft_fine=10.0)
    known = with_controller(model, 0.03, [[0, 1], [0, 1], [0, 1]])
    assert known.config.draft_controller and with_controller(known, 1.0, None) is known
    before, after = model.state_dict(), known.state_dict()
    changed = {key for key in after if key not in before or before[key].shape != after[key].shape or not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith(("draft.mover.hand", "draft.mover.follow_command", "draft.mover.step", "draft.mover.low", "draft.mover.high", "draft.mover.lag"))
                           for key in changed)
    assert set(before) <= set(after)
    known.save(tmp_path / "w", {})
    context, actions = torch.randn(2, 2, 4, 8, 8), torch.rand(2, 4, tiny.ACTIONS) * 2 - 1
    for a, b in zip(known.eval().draft(context, actions), type(known).load(tmp_path / "w").draft(context, actions)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keyframe", [False, True])
@pytest.mark.parametrize("controller", [False, True])
def test_chunk_after_chunk_is_one_long_chunk(controller, keyframe):
    """Of where things go; and with a keyframe of the pictures too, for each of them is painted from the same recorded one."""
    net, context, actions = draft(action_dim=4, controller=controller, keyframe=keyframe), torch.randn(B, 2, 4, 8, 8), torch.randn(B, 3 * K, 4)
    pictures, whole, _ = net(context, actions)
    past, parts, films = None, [], []
    for piece in actions.split(K, dim=1):
        painted, vectors, past = net(context, piece, past)
        context = torch.cat([context, painted], dim=1)[:, -2:]
        parts.append(vectors), films.append(painted)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert torch.allclose(torch.cat(films, dim=1), pictures, atol=1e-5) == keyframe
    fresh = net(context, piece)[1]
    assert (fresh - parts[-1]).abs().max() > 1e-2  # reading the newest frame anew is something else


def test_doubt_shifts_things_across_the_table_and_not_the_hand():
    net, context = draft(), torch.randn(1, 2, 4, 8, 8).repeat(400, 1, 1, 1, 1)
    net.unit.fill_(0.1)
    with torch.no_grad():
        sure, unsure = (net.recall(context, doubt=doubt, generator=torch.Generator().manual_seed(0)) for doubt in (0.0, 0.005))
    shift = (unsure - sure)[:, : 3 * S].unflatten(-1, (S, 3))
    assert not shift[:, -1].abs().max() and not shift[..., 2].abs().max()
    spread = shift[:, : S - 1, :2].flatten(0, 1).std(dim=0)
    assert torch.allclose(spread, torch.full((2,), 0.05), rtol=0.1)  # 5 mm in units of 10 cm, each thing its own way
    assert abs(float(torch.corrcoef(shift[:, : S - 1, 0].T)[0, 1])) < 0.2
    assert torch.equal(sure[0], sure[1])


def test_a_keyframe_is_an_older_frame_to_paint_from():
    """Where things are is read off the newest frames; what nothing touches is copied from the keyframe; doubt shifts old and new alike."""
    net, context, first, actions = draft(keyframe=True), torch.randn(B, 2, 4, 8, 8), torch.randn(B, 4, 8, 8), torch.randn(B, K, 2)
    with torch.no_grad():
        net.painter.out.weight[4:].zero_(), net.painter.out.bias[4:].fill_(-50)
        kept, vectors, past = net(context, actions, net.recall(context, keyframe=first))
        again, _, _ = net(torch.randn_like(context), actions, past)
        sure, unsure = (net._split_keyframe(net.recall(context, doubt, torch.Generator().manual_seed(0), first)) for doubt in (0.0, 0.005))
    assert torch.allclose(kept, first[:, None].expand_as(kept), atol=1e-6) and torch.allclose(again, kept, atol=1e-6)
    assert torch.allclose(vectors, net(context, actions)[1], atol=1e-5)
    assert torch.equal(sure[1], first) and torch.equal(unsure[1], first) and torch.allclose(sure[2], net.read(first)[0].points, atol=1e-5)
    (now, _), (elsewhere, _) = (net._unpack(part[0], part[0][:, :0]) for part in (sure, unsure))
    assert torch.allclose(elsewhere.points - now.points, unsure[2] - sure[2], atol=1e-6) and (unsure[2] - sure[2]).abs().max() > 1e-3
    points, opening = net.scene_of(past)
    assert torch.allclose(points, vectors[:, -1, : 3 * S].unflatten(-1, (S, 3)) * net.unit + net.centre, atol=1e-6) and torch.equal(opening, vectors[:, -1, -1])


def test_following_takes_its_shares_and_starts_from_what_was_read(monkeypatch):
    net, given = draft(), []
    labels = [scene(6, K + 1, seed=s) for s in (1, 2)]
    first = [labels[0]._replace(**{key: getattr(labels[0], key)[:, 0] for key in Scene._fields}), scene(6, seed=3)]
    actions = [torch.zeros(6, K, 2), torch.ones(6, K, 2)]
    monkeypatch.setattr(net, "move_loss", lambda *args: given.append(args) or (torch.zeros(()), {}))
    following(net, [(0.25, first[0], labels[0], actions[0]), (0.75, first[1], labels[1], actions[1])], batch=8)(None, np.random.default_rng(0), 0)
    before, now, after, acts, noise, _ = given[0]
    assert before is now and acts[:2].eq(0).all() and acts[2:].eq(1).all() and len(acts) == 8 and noise == 0.001
    for row in range(2, 8):
        e = int((first[1].points == now.points[row]).flatten(1).all(1).nonzero())
        assert torch.equal(after.points[row], labels[1].points[e, 1:]) and torch.equal(after.opening[row], labels[1].opening[e, 1:])


def test_move_loss_by_hand():
    net, now, actions = draft(), scene(B), torch.randn(B, K, 2)
    with torch.no_grad():
        exact = roll(net, now, actions)
        labels = exact._replace(points=exact.points + torch.tensor([0.2, 0, 0]), opening=exact.opening + 1)
        loss, logs = net.move_loss(now, now, labels, actions)
    # Huber with beta 0.01 of 0.2 on one of three coordinates, ten times; Huber with beta 0.1 of 1
    assert float(loss) == pytest.approx(10 * (0.2 - 0.005) / 3 + 0.95, rel=1e-4)
    assert logs["move_error_m"] == pytest.approx(0.2, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------------------- paint


def test_the_painter_keeps_what_its_mask_leaves_out():
    net = draft()
    context, actions = torch.randn(B, 2, 4, 8, 8), torch.randn(B, K, 2)
    with torch.no_grad():
        net.painter.out.weight[4:].zero_(), net.painter.out.bias[4:].fill_(-50)
        kept, vector, _ = net(context, actions)
        net.painter.out.bias[4:].fill_(50)
        painted, _, _ = net(context, actions)
    assert kept.shape == (B, K, 4, 8, 8) and vector.shape == (B, K, 4 * S + 1)
    assert torch.allclose(kept, context[:, -1:].expand(-1, K, -1, -1, -1), atol=1e-6)
    assert (painted - context[:, -1:]).abs().min(dim=2).values.max() > 0.01


def test_a_slot_paints_around_itself():
    """Without the whole-frame branches, moving one slot a little changes cells near it, not those far off; an absent slot changes nothing."""
    net = draft()
    with torch.no_grad():
        net.painter.whole.weight.zero_(), net.painter.from_frame.weight.zero_()
    newest = torch.randn(1, 4, 8, 8)
    labels = scene(1, 1)._replace(points=torch.tensor([[[[-0.8, -0.8, 0.0], [0.5, 0.5, 0], [0.6, -0.4, 0]]]]))
    moved = labels._replace(points=labels.points + torch.tensor([[0.05, 0.02, 0], [0.0, 0, 0], [0, 0, 0]]))
    gone = torch.tensor([[[0.0, 1, 1]]])
    with torch.no_grad():
        change = (net.paint(newest, moved) - net.paint(newest, labels))[0, 0].abs().amax(0)
        nothing = net.paint(newest, moved._replace(present=gone)) - net.paint(newest, labels._replace(present=gone))
    assert change[:2, :2].max() > 1e-4 and change[6:, 6:].max() < 0.02 * change[:2, :2].max()
    assert nothing.abs().max() == 0


# ------------------------------------------------------------------------------------------------------------------------- training


def test_without_labels_the_reader_labels():
    net, latents = draft(), torch.randn(3, 5, 4, 8, 8)
    found = net.label(latents, chunk=4)
    assert torch.allclose(found.points[1, 2], net.read(latents[1, 2:3])[0].points[0], atol=1e-5)
    assert found.present.unique().tolist() in ([0.0], [1.0], [0.0, 1.0]) and (found.present == found.present[:, :1]).all()
    assert torch.allclose(found.present[2, 0], (net.read(latents[2])[0].present.mean(0) > 0.5).float())
    assert not found.points.requires_grad


def test_painting_trains_painter_and_looks_only():
    net = draft()
    latents, labels = torch.randn(4, 6, 4, 8, 8), scene(4, 6)
    loss, logs = painting(net, latents, labels, batch=8)(torch.Generator().manual_seed(0), np.random.default_rng(0), 0)
    loss.backward()
    trained = {name.rsplit(".", 1)[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in trained} == {"painter", "reader"}
    assert [name for name in trained if name.startswith("reader")] == ["reader.look"] and set(logs) == {"paint_mse"}
    _, logs = painting(net, latents, labels, batch=8, read=1.0, first=2)(torch.Generator().manual_seed(0), np.random.default_rng(0), 0)
    assert set(logs) == {"paint_mse", "read_error_m"}


def toy(episodes: int, seed: int):
    """The dot of `tiny.moving_dot` with where it is: one slot, the hand."""
    latents, actions = tiny.moving_dot(episodes, 4, seed=seed)
    field = latents[:, :, 0].clamp(min=0)
    grid = (torch.arange(8) + 0.5) / 8 * 2 - 1
    mass = field.sum((-1, -2))
    points = torch.stack([(field.sum(-2) * grid).sum(-1) / mass, (field.sum(-1) * grid).sum(-1) / mass, torch.zeros_like(mass)], dim=-1)
    lead = points.shape[:2]
    return latents, actions, Scene(points[:, :, None], torch.ones(*lead, 1), torch.zeros(lead), torch.zeros(*lead, 1, 0))


def test_the_three_parts_learn_a_toy_world():
    latents, actions, labels = toy(256, seed=0)
    torch.manual_seed(0)
    net = Draft(1, 8, 2, width=32, memory=16, slots=1, looks=2)
    learn = lambda module, loss_fn, steps: fit(module, loss_fn, FitConfig(steps=steps, lr=5e-3, warmup=10), seed=0, name="toy")  # noqa: E731
    learn(net.reader, reading(net, latents, labels, batch=32), 200)
    learn(net.mover, moving(net, labels, actions, batch=64, length=3, noise=0.0), 200)
    learn(torch.nn.ModuleList([net.painter, net.reader.look]), painting(net, latents, labels, batch=32, reach=3), 200)
    latents, actions, labels = toy(64, seed=1)
    with torch.no_grad():
        read = (net.read(latents[:, 0])[0].points - labels.points[:, 0]).norm(dim=-1).mean()
        context = latents[:, :1].repeat(1, 2, 1, 1, 1)
        errors = [float((net(context, moves)[0] - latents[:, 1:]).square().mean()) for moves in (actions, actions.roll(1, dims=0))]
    assert read < 0.06  # a quarter of a cell
    assert errors[0] < 0.3 * float((context[:, -1:] - latents[:, 1:]).square().mean()) and errors[1] > 3 * errors[0]


def test_what_is_out_of_reach_for_a_step_stays():
    """An untrained mover pushes everything about; with `rest` only what the hand is near, comes near or has just been near."""
    net = draft(action_dim=4, controller=True, rest=True)
    mover, n = net.mover, S - 1
    mover.step.fill_(0.3)  # 3 cm where 1 is 10 cm
    with torch.no_grad():
        mover.object_out[-1].bias[:3].fill_(1.0)
    hand = torch.tensor([0.0, 0.0, 1.0])
    below, aside, near = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([1.2, 0.0, 0.9]), torch.tensor([0.1, 0.0, 0.9])

    def shift(thing, came_from=0.0, goes=0.0):
        """By how much `thing` moves under a hand that was `came_from` higher a step ago and is told to move by `goes` full steps in height."""
        points = torch.stack([thing.expand(3) for _ in range(n)] + [hand])[None]
        now = Scene(points, torch.ones(1, S), torch.ones(1), points[..., :0])
        before = now._replace(points=points + torch.tensor([0, 0, came_from]) * torch.cat([torch.zeros(n, 1), torch.ones(1, 1)]))
        with torch.no_grad():
            after, memory = mover(now, mover.start(before, now), torch.tensor([[0.0, 0, goes, 0]]))
        assert memory[1].shape[-1] == mover.object.hidden_size + 1
        return (after.points[0, :n] - points[0, :n]).norm(dim=-1).max()

    assert shift(below) < 1e-3 and shift(aside) < 1e-3 and shift(near) > 0.05
    just_reached, just_below = torch.tensor([0.0, 0.0, 0.6]), torch.tensor([0.0, 0.0, 0.55])
    assert shift(just_below, came_from=-0.4) > 0.05, "what the hand left a step ago may still fall"
    assert shift(just_reached) < 0.05 < shift(just_reached, goes=-1.0), "what the hand comes down on moves"
    with pytest.raises(UserError, match="controller"):
        draft(rest=True)


def test_what_the_hand_left_rests_from_the_second_step_on():
    net = draft(action_dim=4, controller=True, rest=True)
    mover, n = net.mover, S - 1
    mover.step.fill_(0.3)
    with torch.no_grad():
        mover.object_out[-1].bias[:3].fill_(-1.0)
    points = torch.zeros(1, S, 3)
    points[:, -1, 2] = 0.1
    scene = Scene(points, torch.ones(1, S), torch.ones(1), points[..., :0])
    with torch.no_grad():
        rolled, _ = mover.roll(scene, torch.tensor([0.0, 0, 1, 0]).expand(1, 12, 4), mover.start(scene, scene))
    moved = (rolled.points[0, 1:, :n] - rolled.points[0, :-1, :n]).norm(dim=-1).amax(-1)
    far = (rolled.points[0, :, -1, 2] - rolled.points[0, :, :n, 2].max(-1).values) / 0.3 > 1.5
    assert moved[0] > 0.05 and far[-4:].all() and moved[-2:].max() < 1e-3


def test_windows_about_releases():
    """`lettings_go` finds the frame before the fingers open on something near, and `letting_go` shows the mover windows that hold it."""
    net = draft(action_dim=4, controller=True, rest=True)
    points = torch.zeros(3, 25, S, 3)
    points[:, :, :-2, 0] = 5.0  # all far from the hand, but
    points[0, :, 0] = points[1, :, 0] = 0.0
    opening = torch.ones(3, 25)
    opening[:, 5:18] = 0.3
    opening[1] = 1.0  # never closed; in the third episode nothing is near
    labels = Scene(points, torch.ones(3, 25, S), opening, points[..., :0])
    assert lettings_go(net, labels).tolist() == [[0, 17]]

    actions, seen = torch.arange(24.0)[None, :, None].repeat(3, 1, 4), []
    net.move_loss = lambda last, now, then, acts, noise, generator: seen.append((now, then, acts))
    letting_go(net, [(1.0, labels, actions, None)], batch=200, length=6, share_of_releases=1.0, before=4)(None, np.random.default_rng(0), 0)
    now, then, acts = seen[0]
    first = acts[:, 0, 0]
    assert set(first.tolist()) == {14.0, 15.0, 16.0, 17.0} and (now.opening == 0.3).all()
    assert then.points.shape == (200, 6, S, 3) and (then.opening[:, -1] == 1).all()
    assert torch.equal(acts[:, :, 0], first[:, None] + torch.arange(6.0))

    points[1], opening[1] = points[0], opening[0]  # two releases, of which the second came well
    actions[1] += 100
    part = (1.0, Scene(points, torch.ones(3, 25, S), opening, points[..., :0]), actions, torch.tensor([False, True, False]))
    share = []
    for well in (0.0, 0.5, 1.0):
        letting_go(net, [part], batch=400, length=6, share_of_releases=1.0, well=well)(None, np.random.default_rng(0), 0)
        share.append(float((seen[-1][2][:, 0, 0] > 100).float().mean()))
    assert abs(share[0] - 0.5) < 0.1 and abs(share[1] - 0.75) < 0.1 and share[2] == 1


def test_a_disguise_is_a_mirror_and_another_order_of_the_objects():
    slots = 5
    net = draft(action_dim=4, slots=slots)
    net.centre.copy_(torch.tensor([0.19, 0.02, 0.014])), net.unit.fill_(0.1)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 6, slots, 3, generator=generator)
    present = (torch.rand(400, 1, slots, generator=generator) > 0.3).float().expand(-1, 6, -1)
    then = Scene(points, present, torch.rand(400, 6, generator=generator), points[..., :0])
    now = then._replace(points=points[:, 0], present=present[:, 0], opening=then.opening[:, 0], look=points[:, 0, :, :0])
    actions = torch.rand(400, 6, 4, generator=generator) - 0.5
    (late, early), acts = disguise(net, (then, now), actions, np.random.default_rng(0))

    assert torch.equal(early.points, late.points[:, 0]) and torch.equal(early.present, late.present[:, 0])  # one disguise for the whole window
    assert torch.equal(late.opening, then.opening) and torch.equal(acts[..., [0, 2, 3]], actions[..., [0, 2, 3]])
    mirrored = acts[:, 0, 1] != actions[:, 0, 1]
    assert 0.4 < mirrored.float().mean() < 0.6 and torch.equal(acts[mirrored][..., 1], -actions[mirrored][..., 1])
    metres = lambda scene: scene.points * net.unit + net.centre  # noqa: E731
    sides = torch.where(mirrored[:, None], -1.0, 1.0)
    assert torch.allclose(metres(late)[..., 3:, 1], metres(then)[..., 3:, 1] * sides[..., None], atol=1e-6)  # target and hand keep their slots
    x = lambda scene: torch.where(scene.present > 0, scene.points[..., 0], -1.0)[:, 0, :3]  # noqa: E731
    assert torch.equal(x(late).sort(dim=1).values, x(then).sort(dim=1).values)
    orders = {tuple(row) for row in (x(late)[..., None] == x(then)[:, None]).float().argmax(-1)[(x(then) >= 0).all(1)].tolist()}
    assert len(orders) == 6
