"""The training loop: exact resume, averaged weights, what else belongs to
a checkpoint, refusals.
"""

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.train import FitConfig, MetricsLog, fit, generators, learning_rate

CONFIG = FitConfig(steps=24, lr=1e-2, warmup=4, ema=0.9, save_every=5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1)
    )  # batch norm: a module with buffers


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
    records = fit(
        module,
        regression(module, stop_at),
        config,
        seed=seed,
        name="stage",
        folder=folder,
        log_every=5,
        **options,
    )
    return module, records


def equal(one, two):
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# ------------------------------------------------------------------------------------------ resume


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
    fit(
        module,
        lambda g, r, step: steps.append(step) or loss_fn(g, r, step),
        CONFIG,
        seed=0,
        name="stage",
        folder=tmp_path,
    )
    assert steps == list(range(10, 24))


def test_a_finished_run_is_loaded_and_not_continued(tmp_path):
    whole, records = run(tmp_path)
    again, old = run(tmp_path, stop_at=0)  # would raise at any step
    assert equal(whole, again) and records == old


def test_one_checkpoint_is_kept_and_none_is_pickled(tmp_path):
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "progress.json",
        "state_24.safetensors",
    ]


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
        fit(
            module,
            lambda *_: (module.weight.sum(), {}),
            CONFIG,
            seed=0,
            name="stage",
            folder=tmp_path,
        )


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(seed=1), "seed: 0 there, 1 here"),
        (dict(name="other"), "name: stage there, other here"),
        (dict(lr=2e-2), "lr: 0.01 there, 0.02 here"),
        (dict(ema=0.5), "ema: 0.9 there, 0.5 here"),
        (dict(ema=0.0), "ema: 0.9 there, 0.0 here"),
        (dict(weight_decay=0.0), "weight_decay"),
        (dict(warmup=5), "warmup"),
        (dict(steps=30), "steps: 24 there, 30 here"),
        (dict(steps=12), "steps: 24 there, 12 here"),
        (dict(made_from={"data": "b"}), "data: a there, b here"),
        (dict(made_from={}), "data: a there, None here"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stop_at", [None, 13])
def test_a_training_made_from_something_else_is_refused_and_kept(tmp_path, change, said, stop_at):
    def attempt(stop_at=None, **change):
        options = dict(seed=0, name="stage", made_from={"data": "a"})
        options |= {key: change.pop(key) for key in options if key in change}
        module = network()
        return module, fit(
            module,
            regression(module, stop_at),
            dataclasses.replace(CONFIG, **change),
            folder=tmp_path,
            **options,
        )

    with contextlib.suppress(KeyboardInterrupt):
        attempt(stop_at)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        UserError, match=f"holds a training that was made from something else .{said}"
    ):
        attempt(**change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert equal(attempt(save_every=3)[0], run()[0])  # when to save is no part of the result


def test_other_weights_to_begin_with_are_refused_and_leave_the_module_as_it_was(tmp_path):
    run(tmp_path)
    module = network()
    with torch.no_grad():
        module[0].bias[0] += 1e-7
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError, match="initial weights: [0-9a-f]{12} there, [0-9a-f]{12} here"):
        fit(module, regression(module), CONFIG, seed=0, name="stage", folder=tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_buffers_that_are_not_saved_belong_to_what_a_training_began_with(tmp_path):
    """Such as a policy's action range: other tokens would be learnt."""

    def build(high):
        module = network()
        module.register_buffer("high", torch.tensor(high), persistent=False)
        return module

    fit(one := build(1.0), regression(one), CONFIG, seed=0, name="stage", folder=tmp_path)
    with pytest.raises(UserError, match="initial weights"):
        fit(two := build(0.5), regression(two), CONFIG, seed=0, name="stage", folder=tmp_path)


def test_more_steps_go_on_where_the_learning_rate_does_not_fall_to_the_last(tmp_path):
    flat = dataclasses.replace(CONFIG, decay=0.0)
    run(tmp_path, config=flat)
    longer = dataclasses.replace(flat, steps=40)
    assert equal(run(tmp_path, config=longer)[0], run(config=longer)[0])
    with pytest.raises(UserError, match="steps: 40 there, 24 here"):
        run(tmp_path, config=flat)


def freeze(module, *names):
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)
    return module


def test_a_training_of_other_parameters_is_refused(tmp_path):
    """Of equal shapes, so that by position one layer would start with another's
    moments in silence.
    """

    def attempt(*frozen):
        torch.manual_seed(0)
        module = freeze(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)), *frozen)
        fit(module, regression(module), CONFIG, seed=0, name="stage", folder=tmp_path)

    attempt("0.weight", "0.bias")
    with pytest.raises(UserError, match="holds a training of other parameters .0.bias and 3 more."):
        attempt("1.weight", "1.bias")
    with pytest.raises(UserError, match="holds a training of other parameters .0.bias and 1 more."):
        attempt()


def test_the_optimizers_state_goes_by_name(tmp_path):
    """The same parameters in another order of registration, as another version of a
    model may have.
    """

    def build(order):
        torch.manual_seed(0)
        layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
        module = nn.ModuleDict({key: layers[key] for key in order})
        loss = lambda g, r, step: (
            (module["b"](module["a"](x := torch.randn(8, 3, generator=g))) - x).square().mean(),
            {},
        )
        return module, loss

    def attempt(order, steps, folder=None):
        module, loss = build(order)
        fit(
            module,
            loss,
            dataclasses.replace(CONFIG, steps=steps, decay=0.0, ema=0.0, grad_clip=1e6),
            seed=0,
            name="stage",
            folder=folder,
        )
        return module

    attempt("ab", 10, tmp_path)
    resumed, whole = attempt("ba", 24, tmp_path), attempt("ab", 24)
    assert all(
        torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items()
    )


def test_what_a_checkpoint_holds_beyond_the_training_is_named(tmp_path):
    """An optimizer's state under names of another version would be forgotten in silence."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    fit(module, regression(module), CONFIG, seed=0, name="stage", folder=tmp_path)
    path = next(tmp_path.glob("state_*"))
    tensors = checkpoint.load_tensors(path)
    checkpoint.save_tensors(path, {**tensors, "adam.weight.step": torch.zeros(())})
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    with pytest.raises(UserError, match="another kind .it holds 'adam.weight.step'."):
        fit(module, regression(module), CONFIG, seed=0, name="stage", folder=tmp_path)


def test_a_training_that_does_not_say_what_it_was_made_from_is_refused(tmp_path):
    run(tmp_path)
    path = tmp_path / "progress.json"
    found = json.loads(path.read_text())
    del found["made_from"]
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="does not say what it was made from"):
        run(tmp_path)
    path.write_text("[]")
    with pytest.raises(UserError, match="progress.json"):
        run(tmp_path)


def walk(extra, stop_at=None, folder=None):
    """A loss that depends on a tensor it moves as it goes, as a pool of windows does."""
    module = network()
    inner = regression(module)

    def loss_fn(generator, rng, step):
        if step == stop_at:
            raise KeyboardInterrupt
        extra["place"] = extra["place"] + rng.normal()  # a new tensor under the old name
        extra["count"] += 1  # and one changed in place
        loss, logs = inner(generator, rng, step)
        return loss * extra["place"].square().mean(), logs

    fit(module, loss_fn, CONFIG, seed=0, name="stage", folder=folder, extra=extra)
    return module


@pytest.mark.parametrize("stop_at", [5, 13])
def test_what_a_loss_carries_along_belongs_to_the_checkpoint(tmp_path, stop_at):
    start = lambda: {
        "place": torch.ones(3),
        "count": torch.zeros(1, dtype=torch.long),
    }
    whole, resumed = start(), start()
    expected = walk(whole)
    with pytest.raises(KeyboardInterrupt):
        walk(start(), stop_at, tmp_path)
    assert equal(expected, walk(resumed, folder=tmp_path))
    assert (
        torch.equal(whole["place"], resumed["place"]) and whole["count"] == resumed["count"] == 24
    )


def test_a_checkpoint_without_what_the_loss_carries_is_a_user_error(tmp_path):
    run(tmp_path)
    with pytest.raises(
        UserError, match="unfinished training of another kind \\(it lacks 'place'\\)"
    ):
        walk({"place": torch.ones(3), "count": torch.zeros(1)}, folder=tmp_path)


# ---------------------------------------------------------------------------------------- the loop


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
    assert (
        torch.equal(torch.rand(4, generator=one[0]), torch.rand(4, generator=two[0]))
        and one[1].random() == two[1].random()
    )


def test_it_learns_and_leaves_the_module_in_evaluation_mode():
    module = nn.Linear(3, 1)

    def loss_fn(generator, rng, step):
        x = torch.randn(16, 3, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    records = fit(
        module, loss_fn, FitConfig(steps=150, lr=3e-2, warmup=5, ema=0.9), seed=0, name="stage"
    )
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
    assert records[0]["loss"] == pytest.approx(np.mean(losses[:5])) and records[-1][
        "loss"
    ] == pytest.approx(np.mean(losses[20:]))
    assert records[2]["double"] == pytest.approx(2 * records[2]["loss"], rel=1e-5)


def test_the_average_by_hand():
    """decay_s = min(ema, (s + 1) / (s + 10)); average <- average + (1 - decay) (weight - average);
    the average is what is left in the module.
    """
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


@pytest.mark.parametrize(
    "steps, ema, acts", [(80, 0.98, 0.899), (400, 0.998, 0.978), (24, 0.3, 0.3)]
)
def test_records_say_which_decay_acts(steps, ema, acts):
    config = dataclasses.replace(CONFIG, steps=steps, ema=ema)
    _, records = run(config=config)
    assert records[-1]["ema_decay"] == pytest.approx(acts, abs=1e-3)
    assert records[0]["ema_decay"] == min(ema, 5 / 14)
    assert "ema_decay" not in run(config=dataclasses.replace(CONFIG, ema=0.0))[1][-1]


def test_frozen_parameters_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    before = [module[0].weight.clone(), module[3].weight.detach().clone()]
    fit(module, regression(module), CONFIG, seed=0, name="stage")
    assert torch.equal(before[0], module[0].weight) and not torch.equal(before[1], module[3].weight)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_stage_and_step(value, tmp_path):
    module = nn.Linear(1, 1)
    with pytest.raises(
        UserError,
        match=(
            r"the loss of 'world model' became (nan|-?inf) at step 7; lower its learning rate"
            r" \(0.01\)"
        ),
    ):
        fit(
            module,
            lambda g, r, step: (module.weight.sum() * (value if step == 7 else 1.0), {}),
            CONFIG,
            seed=0,
            name="world model",
            folder=tmp_path,
        )
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 5


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    """sqrt at 0 has a finite value and an infinite slope."""
    module = nn.Linear(1, 1)
    with pytest.raises(UserError, match="'stage'.*step 7"):
        fit(
            module,
            lambda g, r, step: (
                (module.weight.sum() * 0).sqrt() if step == 7 else module.weight.sum(),
                {},
            ),
            CONFIG,
            seed=0,
            name="stage",
            folder=tmp_path,
        )
    assert torch.isfinite(module.weight).all()


def test_learning_rate_by_hand():
    """Ten steps of warm-up, then flat, then from step 70 linearly down to a twentieth."""
    c = FitConfig(steps=100, lr=2.0, warmup=10, decay=0.3)
    for step, factor in {
        0: 0.1,
        4: 0.5,
        9: 1.0,
        10: 1.0,
        50: 1.0,
        70: 1.0,
        85: 0.525,
        99: 0.05 + 0.95 / 30,
        100: 0.05,
    }.items():
        assert learning_rate(step, c) == pytest.approx(2.0 * factor), step
    assert [
        learning_rate(step, FitConfig(steps=10, lr=1.0, warmup=0, decay=0.0)) for step in range(10)
    ] == [1.0] * 10
    rates = [
        learning_rate(step, FitConfig(steps=10, lr=1.0, warmup=0, decay=1.0)) for step in range(11)
    ]
    assert np.allclose(rates, np.linspace(1, 0.05, 11))


def test_metrics_are_one_json_object_a_line(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    (
        log({"stage": "a", "loss": math.nan, "kept": np.int64(3)}),
        log({"stage": "b", "rate": np.float32(0.5)}),
    )
    assert [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ] == [{"stage": "a", "loss": None, "kept": 3}, {"stage": "b", "rate": 0.5}]


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        np.float32("inf"),
        np.float64("nan"),
        [0.5, math.nan],
        {"x": [-math.inf]},
        np.array([math.nan]),
    ],
)
def test_numbers_that_are_none_are_valid_json_and_found_by_the_doctor(tmp_path, value):
    from wmpo_lite.report.diagnosis import diagnose

    log = MetricsLog(tmp_path / "metrics.jsonl")
    (
        log({"stage": "align", "step": 1, "loss": value}),
        log({"stage": "reward", "step": 1, "loss": 0.5}),
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and "null" in text
    found = [f for f in diagnose(tmp_path) if f.name == "metrics"]
    assert [f.level for f in found] == ["problem"]
    assert "logged NaN or infinity: align (aim: none)" in str(found[0])
