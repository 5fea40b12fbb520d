"""The training loop: exact resume, averaged weights, refusals; and how world-model windows are cut."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from wmpo_lite.errors import UserError
from wmpo_lite.train import FitConfig, MetricsLog, WindowConfig, cut_windows, fit, generators, learning_rate, world_model_loss

CONFIG = FitConfig(steps=24, lr=1e-2, warmup=4, ema=0.9, save_every=5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))  # batch norm: a module with buffers


def regression(module, stop_at=None):
    """A loss that draws from both random sources; raises KeyboardInterrupt at step `stop_at`."""

    def loss_fn(generator, rng, step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=generator) + float(rng.normal())
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"double": 2 * float(loss.detach())}

    return loss_fn


def run(folder=None, stop_at=None, config=CONFIG, seed=0, **options):
    module = network()
    records = fit(module, regression(module, stop_at), config, seed=seed, name="stage", folder=folder, log_every=5, **options)
    return module, records


def equal(one, two):
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# ------------------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [3, 5, 12, 23])
def test_an_interrupted_run_ends_bit_identical(tmp_path, stop_at, ema):
    config = dataclasses.replace(CONFIG, ema=ema)
    whole, records = run(config=config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at, config)
    resumed, again = run(tmp_path, config=config)
    assert equal(whole, resumed) and without_time(records) == without_time(again)


def test_a_run_may_be_interrupted_again_and_again(tmp_path):
    for stop_at in (2, 7, 7, 13, 21):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop_at)
    assert equal(run()[0], run(tmp_path)[0])


def test_resume_starts_at_the_last_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 13)
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 10
    module, steps = network(), []
    loss_fn = regression(module)
    fit(module, lambda g, r, step: steps.append(step) or loss_fn(g, r, step), CONFIG, seed=0, name="stage", folder=tmp_path)
    assert steps == list(range(10, 24))


def test_a_finished_run_is_loaded_and_not_continued(tmp_path):
    whole, records = run(tmp_path)
    again, old = run(tmp_path, stop_at=0)  # would raise at any step
    assert equal(whole, again) and records == old


def test_one_checkpoint_is_kept_and_none_is_pickled(tmp_path):
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.json", "state_24.safetensors"]


def test_a_kill_between_the_two_files_falls_back_to_the_older_pair(tmp_path, monkeypatch):
    from wmpo_lite import train
    write, saves = train.checkpoint.write_json, []

    def fail_second(path, value):
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(train.checkpoint, "write_json", fail_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(train.checkpoint, "write_json", write)
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 5
    assert equal(run()[0], run(tmp_path)[0])


def test_truncated_checkpoints_are_user_errors(tmp_path):
    run(tmp_path)
    state = tmp_path / "state_24.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(UserError, match="state_24.safetensors cannot be read"):
        run(tmp_path)
    (tmp_path / "progress.json").write_text('{"step": 2')
    with pytest.raises(UserError, match="progress.json is not valid JSON"):
        run(tmp_path)


def test_a_checkpoint_of_another_model_is_a_user_error(tmp_path):
    run(tmp_path)
    module = nn.Linear(2, 2)
    with pytest.raises(UserError):
        fit(module, lambda *_: (module.weight.sum(), {}), CONFIG, seed=0, name="stage", folder=tmp_path)


# ----------------------------------------------------------------------------------------------------------------------- the loop


def test_the_seed_decides_the_weights():
    assert equal(run(seed=1)[0], run(seed=1)[0]) and not equal(run(seed=1)[0], run(seed=2)[0])


def test_every_step_has_its_own_random_numbers():
    draws = set()
    for seed in range(3):
        for step in range(20):
            generator, rng = generators(seed, step)
            draws.add((float(torch.rand(1, generator=generator)), float(rng.random())))
    assert len(draws) == 60 and len({a for a, _ in draws}) == 60
    one, two = generators(3, 4), generators(3, 4)
    assert torch.equal(torch.rand(4, generator=one[0]), torch.rand(4, generator=two[0])) and one[1].random() == two[1].random()


def test_it_learns_and_leaves_the_module_in_evaluation_mode():
    module = nn.Linear(3, 1)

    def loss_fn(generator, rng, step):
        x = torch.randn(16, 3, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    records = fit(module, loss_fn, FitConfig(steps=150, lr=3e-2, warmup=5, ema=0.9), seed=0, name="stage")
    assert records[-1]["loss"] < 0.01 * records[0]["loss"] and not module.training
    assert torch.allclose(module.weight, torch.ones(1, 3), atol=0.1)


def test_records_are_means_over_the_steps_between():
    losses, module = [], network()
    loss_fn = regression(module)

    def spy(generator, rng, step):
        loss, logs = loss_fn(generator, rng, step)
        losses.append(loss.item())
        return loss, logs

    seen = []
    records = fit(module, spy, CONFIG, seed=0, name="stage", log_every=5, on_log=seen.append)
    assert [record["step"] for record in records] == [5, 10, 15, 20, 24] and seen == records
    assert all(record["stage"] == "stage" and record["seconds"] >= 0 for record in records)
    assert records[0]["loss"] == pytest.approx(np.mean(losses[:5])) and records[-1]["loss"] == pytest.approx(np.mean(losses[20:]))
    assert records[2]["double"] == pytest.approx(2 * records[2]["loss"], rel=1e-5)


def test_the_average_by_hand():
    """decay_s = min(ema, (s + 1) / (s + 10)); average <- average + (1 - decay) (weight - average); the average is what is left in the module."""
    module = nn.Linear(1, 1, bias=False)
    weights = [float(module.weight.detach())]

    def loss_fn(generator, rng, step):
        if step:
            weights.append(float(module.weight.detach()))
        return module.weight.sum(), {}

    config = FitConfig(steps=6, lr=0.1, warmup=0, decay=0.0, weight_decay=0.0, ema=0.3)
    fit(module, loss_fn, config, seed=0, name="stage")
    weights.append(weights[-1] - 0.1)  # AdamW on a constant gradient moves by lr
    assert np.allclose(np.diff(weights), -0.1, atol=1e-5)
    average = weights[0]
    for step, weight in enumerate(weights[1:]):
        average += (1 - min(0.3, (step + 1) / (step + 10))) * (weight - average)
    assert float(module.weight.detach()) == pytest.approx(average, abs=1e-5)


def test_frozen_parameters_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    before = [module[0].weight.clone(), module[3].weight.detach().clone()]
    fit(module, regression(module), CONFIG, seed=0, name="stage")
    assert torch.equal(before[0], module[0].weight) and not torch.equal(before[1], module[3].weight)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_stage_and_step(value, tmp_path):
    module = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"the loss of 'world model' became (nan|-?inf) at step 7; lower its learning rate \(0.01\)"):
        fit(module, lambda g, r, step: (module.weight.sum() * (value if step == 7 else 1.0), {}), CONFIG, seed=0, name="world model", folder=tmp_path)
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 5


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    """sqrt at 0 has a finite value and an infinite slope."""
    module = nn.Linear(1, 1)
    with pytest.raises(UserError, match="'stage'.*step 7"):
        fit(module, lambda g, r, step: ((module.weight.sum() * 0).sqrt() if step == 7 else module.weight.sum(), {}), CONFIG, seed=0, name="stage", folder=tmp_path)
    assert torch.isfinite(module.weight).all()


def test_learning_rate_by_hand():
    """Ten steps of warm-up, then flat, then from step 70 linearly down to a twentieth."""
    c = FitConfig(steps=100, lr=2.0, warmup=10, decay=0.3)
    for step, factor in {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 50: 1.0, 70: 1.0, 85: 0.525, 99: 0.05 + 0.95 / 30, 100: 0.05}.items():
        assert learning_rate(step, c) == pytest.approx(2.0 * factor), step
    assert [learning_rate(step, FitConfig(steps=10, lr=1.0, warmup=0, decay=0.0)) for step in range(10)] == [1.0] * 10
    rates = [learning_rate(step, FitConfig(steps=10, lr=1.0, warmup=0, decay=1.0)) for step in range(11)]
    assert np.allclose(rates, np.linspace(1, 0.05, 11))


def test_metrics_are_one_json_object_a_line(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log({"stage": "a", "loss": math.nan, "kept": np.int64(3)}), log({"stage": "b", "rate": np.float32(0.5)})
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        {"stage": "a", "loss": None, "kept": 3}, {"stage": "b", "rate": 0.5}]


# ------------------------------------------------------------------------------------------------------------------------ windows


def numbered(episodes=3, steps=12):
    """latents whose value is 100 e + t, actions whose value is 100 e + s."""
    level = 100 * np.arange(episodes)[:, None] + np.arange(steps + 1)
    latents = torch.from_numpy(level).float()[..., None, None, None].repeat(1, 1, 4, 8, 8)
    return latents, torch.from_numpy(level[:, :-1]).float()[..., None].repeat(1, 1, tiny.ACTIONS)


def test_windows_by_hand():
    """Newest context frame `start`; before the first frame there is the first frame again; action[s] leads to frame s + 1."""
    latents, actions = numbered()
    context, future, acts = cut_windows(latents, actions, [0, 1, 2, 2], [0, 1, 5, 10], context=4, chunk=2)
    values = lambda x: x.flatten(2)[..., 0].tolist()  # noqa: E731
    assert values(context) == [[0, 0, 0, 0], [100, 100, 100, 101], [202, 203, 204, 205], [207, 208, 209, 210]]
    assert values(future) == [[1, 2], [102, 103], [206, 207], [211, 212]]
    assert values(acts) == [[0, 1], [101, 102], [205, 206], [210, 211]]
    assert context.shape == (4, 4, 4, 8, 8) and future.shape == (4, 2, 4, 8, 8) and acts.shape == (4, 2, tiny.ACTIONS)
    assert cut_windows(latents.half(), actions, [0], [3], 2, 2)[0].dtype == torch.float32


class Spy:
    """In place of a world model: keeps the windows it is given; imagines -1 everywhere."""

    def __init__(self):
        self.config, self.windows, self.imagined = tiny.world_model().config, [], []

    def loss(self, context, future, actions, generator, weight, past):
        assert past is None  # no draft, so nothing to recall
        pick = lambda x: x.flatten(2)[..., 0]  # noqa: E731
        self.windows.append((pick(context), pick(future), pick(actions), weight))
        return future.mean(), {}

    def go_on(self, context, actions, past, generator, steps):
        assert steps == 1 and past is None
        self.imagined.append((context[:, :, 0, 0, 0], actions[..., 0]))
        return torch.full((len(context), actions.shape[1], 4, 8, 8), -1.0), None


def cut(windows, last_frame, step=0, draws=40):
    spy, (latents, actions) = Spy(), numbered()
    loss_fn = world_model_loss(spy, latents, actions, windows, total_steps=100, last_frame=last_frame)
    for seed in range(draws):
        loss_fn(*generators(seed, step), step)
    context, future, acts, weight = (torch.cat(parts) for parts in zip(*spy.windows))
    return spy, context.int().numpy(), future.int().numpy(), acts.int().numpy(), weight


@pytest.mark.parametrize("step", [0, 99])
def test_windows_never_reach_past_the_last_frame(step):
    """Episodes end at frames 12, 7 and 3; the last is shorter than a chunk of 4 and never used. Every admissible window occurs."""
    last = np.array([12, 7, 3])
    _, context, future, acts, _ = cut(WindowConfig(batch=32), last, step)
    episode, end = future[:, -1] // 100, future[:, -1] % 100
    assert set(episode) == {0, 1}
    assert all(set(end[episode == e]) == set(range(4, last[e] + 1)) for e in (0, 1))
    assert (np.diff(future, axis=1) == 1).all() and (acts == future - 1).all()
    own = context[:, -1] == -1
    assert (context[~own, -1] == future[~own, 0] - 1).all()
    assert own.any() == (step == 99)


def test_without_last_frames_whole_episodes_are_used():
    _, _, future, _, _ = cut(WindowConfig(batch=32), None)
    assert set(future[:, -1] % 100) == set(range(4, 13)) and set(future[:, -1] // 100) == {0, 1, 2}


def test_own_contexts_come_from_the_chunk_before():
    """From `own_from` on, half of the windows that have a whole chunk behind them start from the model's own imagination of it."""
    spy, context, future, acts, _ = cut(WindowConfig(batch=32, own_rollout=0.5, own_chunks=1, own_from=0.4), None, step=40)
    own = (context == -1).all(axis=1)
    start = future[:, 0] % 100 - 1
    assert ((context == -1).any(axis=1) == own).all() and (start[own] >= tiny.CHUNK).all()
    assert abs(own.sum() / (start >= tiny.CHUNK).sum() - 0.5) < 0.1
    before, earlier = (torch.cat(parts).int().numpy() for parts in zip(*spy.imagined))
    assert (earlier[:, 0] == acts[own][:, 0] - tiny.CHUNK).all()
    assert (before[:, -1] == future[own][:, 0] - 1 - tiny.CHUNK).all()
    assert not (cut(WindowConfig(batch=32, own_rollout=0.5, own_from=0.4), None, step=39)[1] == -1).any()


def test_contexts_may_be_several_chunks_of_own_work():
    """own_chunks=2: some contexts come from two imagined chunks, the second of which starts from the first; none reaches before the episode."""
    spy, context, future, acts, _ = cut(WindowConfig(batch=32, own_rollout=1.0, own_chunks=2, own_from=0.0), None, draws=60)
    before = [part.int().numpy() for part, _ in spy.imagined]
    second = [part for part in before if (part == -1).all()]
    assert 0.25 < len(second) / len(before) < 0.42  # one batch in two takes two chunks: a third of the calls
    start, own = future[:, 0] % 100 - 1, (context == -1).all(axis=1)
    assert own[start >= 2 * tiny.CHUNK].all() and not own[start < tiny.CHUNK].any()
    assert all((part[:, -1] % 100 >= 0).all() for part in before if not (part == -1).all())


def test_own_contexts_bring_their_own_past(monkeypatch):
    """The draft is told how the imagined context was made, as it is in imagination; recorded contexts are read."""
    model, (latents, actions) = tiny.world_model(draft_width=16, shaken=0.1), numbered()
    given, loss = [], model.loss
    monkeypatch.setattr(model, "loss", lambda context, *rest, **more: given.append((context, more["past"])) or loss(context, *rest, **more))
    loss_fn = world_model_loss(model, latents / 1000, actions / 1000, WindowConfig(batch=32, own_rollout=0.5, own_chunks=1, own_from=0.0), total_steps=10)
    loss_fn(*generators(0, 0), 0)
    (context, past), = given
    with torch.no_grad():
        read = (model.draft.recall(context) - past).abs().amax(dim=1) < 1e-5
    recorded = ((context[:, -1] - context[:, -1, :1, :1, :1].expand_as(context[:, -1])).abs().amax(dim=(1, 2, 3)) == 0)  # one value in every frame
    assert 4 < int((~recorded).sum()) < 28 and torch.equal(read, recorded)


def test_objects_weigh_more():
    latents, actions = numbered()
    objects = torch.zeros(latents.shape[0], latents.shape[1], 8, 8)
    objects[:, 5, 2, 3] = 0.5  # an object covers half of one position in frame 5 of every episode
    spy = Spy()
    world_model_loss(spy, latents * 0, actions, WindowConfig(batch=64, objects=12.0), 100, objects=objects)(*generators(0, 0), 0)
    weight, moves = spy.windows[0][3], spy.windows[0][2]
    frame = moves.int() % 100 + 1  # number of each future frame
    assert (weight[:, :, 0, 2, 3] == torch.where(frame == 5, 7.0, 1.0)).all() and (frame == 5).any()
    weight[:, :, 0, 2, 3] = 1
    assert (weight == 1).all()


def test_weights_rise_where_the_picture_changes():
    """Numbered frames change by 1, 2, 3, 4 against the context: all clipped at 1. A still film has weight 1."""
    *_, weight = cut(WindowConfig(batch=8, emphasis=3.0), None, draws=1)
    assert weight.shape == (8, tiny.CHUNK, 1, 8, 8) and (weight == 4).all()
    spy, (latents, actions) = Spy(), numbered()
    world_model_loss(spy, latents * 0, actions, WindowConfig(batch=8), 100)(*generators(0, 0), 0)
    assert (spy.windows[0][3] == 1).all()


def test_episodes_shorter_than_a_chunk_are_a_user_error():
    latents, actions = numbered(steps=3)
    with pytest.raises(UserError, match="no episode is at least 4 steps long"):
        world_model_loss(tiny.world_model(), latents, actions, WindowConfig(), 10)
    latents, actions = numbered()
    with pytest.raises(UserError, match="no episode is at least 4 steps long"):
        world_model_loss(tiny.world_model(), latents, actions, WindowConfig(), 10, last_frame=np.array([3, 2, 1]))


def test_a_world_model_resumes_bit_identical(tmp_path):
    """The real loss, with its own roll-outs, through the real loop."""
    latents, actions = tiny.moving_dot(8, 12, seed=0)
    config = FitConfig(steps=12, lr=1e-3, warmup=2, ema=0.99, save_every=4)

    def train(folder, stop_at=None):
        torch.manual_seed(0)
        model = tiny.world_model(shaken=0, latent_channels=1, action_dim=2)
        loss_fn = world_model_loss(model, latents, actions, WindowConfig(batch=8), 12)

        def interrupted(generator, rng, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return loss_fn(generator, rng, step)

        fit(model, interrupted, config, seed=0, name="world model", folder=folder)
        return model

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 10)
    assert equal(train(None), train(tmp_path))
