"""The plan's FLOP are those of small runs, and the paper's models step for real at a small size."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from wmpo_lite import cli
from wmpo_lite.autoencoder import Autoencoder, autoencoder_loss
from wmpo_lite.common.errors import UserError
from wmpo_lite.grpo import GRPOConfig
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.own_context import Episodes, Pool, WindowConfig
from wmpo_lite.recipes import plan
from wmpo_lite.recipes.pretrain_policy import clone
from wmpo_lite.reward import RewardModel, reward_loss
from wmpo_lite.train import FitConfig, fit
from wmpo_lite.train_grpo import optimize
from wmpo_lite.world_model import WorldModel

STEPS = 6
SIZES = plan.Sizes(
    tiny.autoencoder().config,
    dataclasses.replace(tiny.world_model().config, num_inference_steps=3),
    tiny.reward_model().config,
    tiny.policy().config,
    horizon=16,
    rollout_budget=8,
    autoencoder_steps=STEPS,
    world_model_steps=STEPS,
    clone_steps=STEPS,
    align_steps=STEPS,
    reward_steps=STEPS,
    iterations=3,
    groups=4,
    group_size=4,
    epochs=2,
    evaluation_states=4,
    autoencoder_batch=8,
    world_model_batch=5,
    clone_batch=7,
    reward_batch=8,
    reward_stride=2,
    freeze_vision=True,
)
SETTINGS = FitConfig(steps=STEPS, warmup=1)


@pytest.fixture(scope="module")
def planned():
    return {row["stage"]: row for row in plan.stages(SIZES)}


def measured(run) -> int:
    with FlopCounterMode(display=False) as flops:
        run()
    return flops.get_total_flops()


def world_model():
    latents, actions = torch.randn(4, 9, 4, 8, 8), torch.from_numpy(tiny.random_actions(4, 8, 4))
    model = tiny.world_model()
    pool = Pool(Episodes(latents, actions), model, WindowConfig(batch=5))
    fit(model, pool.loss, SETTINGS, seed=0, name="x", extra=pool.tensors)


def autoencoder():
    model = tiny.autoencoder()
    loss = autoencoder_loss(model, tiny.noise_frames(12), batch=8)
    fit(model, loss, SETTINGS, seed=0, name="x")


def columns():
    found = tiny.trajectories(8)
    names = ("frames", "success", "finish_step", "instruction", "actions")
    return {name: np.array([getattr(t, name) for t in found]) for name in names}


def reward_model():
    model = tiny.reward_model()
    loss = reward_loss(model, columns() | {"other": [""] * 8}, half=4)
    fit(model, loss, SETTINGS, seed=0, name="x")


def cloning():
    data, policy = columns(), tiny.policy()
    demos = {
        "intended": data["actions"][:1],
        "executed": data["actions"][:1],
        "done": np.zeros((1, 16), bool),
        "frames": data["frames"][:1],
        "instruction": data["instruction"][:1],
    }
    clone(policy, demos, SETTINGS, seed=0, folder=None, batch=7)


@pytest.mark.parametrize(
    "stage, run, more",
    [
        ("world model", world_model, 0),
        ("autoencoder", autoencoder, -3 * 16 * STEPS),  # its loss has no tower here
        ("cloning", cloning, 17),  # the frames' features, once
    ],
)
def test_a_training_costs_what_is_planned(planned, stage, run, more):
    see = plan.unit_costs(SIZES)["see"]
    assert planned[stage]["flop"] + more * see == pytest.approx(measured(run), rel=0.05)


def test_the_reward_model_costs_what_is_planned(planned):
    u = plan.unit_costs(SIZES)
    training = planned["reward"]["flop"] - 8 * 16 * (u["encode"] + u["decode"])
    assert training == pytest.approx(measured(reward_model), rel=0.1)


@pytest.mark.parametrize("threshold", [2.0, 0.5570])
def test_grpo_in_imagination_costs_what_is_planned(threshold):
    policy, reward, records = tiny.policy(), tiny.reward_model(), []
    policy.train_vision(False)

    def env(seed):
        models = tiny.autoencoder(), tiny.world_model()
        options = dict(num_inference_steps=3, reward_stride=2, stop=False)
        return ImaginedEnv(*models, reward, threshold=threshold, seed=seed, **options)

    def run():
        options = dict(iterations=3, horizon=16, seed=0, stage="x", refill=0)
        options |= dict(freeze_vision=True, tolerate_silence=True)
        config = GRPOConfig(groups=4, group_size=4, epochs=2)
        records.extend(optimize(policy, env, tiny.states(6), config, **options))

    found = measured(run)
    kept = sum(record["kept"] for record in records) / 12
    assert (kept > 0) == (threshold < 1)  # with and without updates
    valid = np.mean([r["valid_fraction"] for r in records if r["kept"]] or [1.0])
    rows = {row["stage"]: row["flop"] for row in plan.stages(SIZES)}
    updates = rows["updates"] * kept * float(valid)
    assert rows["imagination"] + updates == pytest.approx(found, rel=0.25)


def test_twice_the_batch_is_twice_the_work_and_a_bigger_model_more():
    rows = plan.stages(SIZES)
    doubled = plan.stages(dataclasses.replace(SIZES, world_model_batch=10, iterations=6))
    for a, b in zip(rows, doubled):
        factor = 2 if a["stage"] in ("world model", "imagination", "updates") else 1
        assert b["flop"] == pytest.approx(factor * a["flop"])
    wide = dataclasses.replace(SIZES.world_model, widths=(32, 32))
    bigger = plan.stages(dataclasses.replace(SIZES, world_model=wide))
    assert bigger[1]["flop"] > 2 * rows[1]["flop"]
    assert plan.memory(bigger[1], 2) > plan.memory(rows[1], 2) > plan.memory(rows[1], 1)


def test_what_is_kept_for_the_way_back_by_hand():
    layer = torch.nn.Linear(6, 5)
    x = torch.zeros(3, 6)
    one_way, both, kept = plan.count(lambda: layer(x).exp(), layer, True)
    assert (one_way, both) == (2 * 3 * 6 * 5, 4 * 3 * 6 * 5)  # x needs no gradient
    assert kept == 4 * (3 * 6 + 3 * 5)  # the input and the exponential; weights are counted apart


@pytest.mark.parametrize("part", ["world_model", "reward", "autoencoder"])
def test_the_papers_models_step_for_real_at_a_quarter_of_their_width(part):
    """A quarter of the width has a sixteenth of the parameters."""
    sizes, generator = plan.preset("paper"), torch.Generator().manual_seed(0)
    config = getattr(sizes, part)
    if part == "world_model":
        small = dataclasses.replace(config, width=288, heads=4, latent_size=4)
        model, full = WorldModel(small), WorldModel
        state = model.init_state(torch.randn(1, 4, 4, 4))
        actions, target = torch.zeros(1, 8, 7), torch.randn(1, 8, 4, 4, 4)
        loss = lambda: model.loss(state, actions, target, generator)[0]
    elif part == "reward":
        small = dataclasses.replace(config, width=192, heads=4, image=64)
        model, full = RewardModel(small), RewardModel
        clips = torch.from_numpy(tiny.noise_frames(1, 8, size=64))
        loss = lambda: torch.nn.functional.softplus(-model(clips, [tiny.RED])).sum()
    else:
        small = dataclasses.replace(config, channels=(32, 64, 128, 128), size=32)
        model, full = Autoencoder(small), Autoencoder
        frames = torch.rand(1, 3, 32, 32) * 2 - 1
        loss = lambda: (model.decode_raw(model.encode_raw(frames)) - frames).square().mean()
    with torch.device("meta"):
        share = sum(p.numel() for p in full(config).parameters())
    share /= sum(p.numel() for p in model.parameters())
    assert 12 < share < 20
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(2):
        generator.manual_seed(0)
        losses.append(loss())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]


def test_the_command_prints_a_row_a_stage(capsys, monkeypatch):
    monkeypatch.setattr(plan, "preset", lambda name: SIZES)
    cli.main(
        ["plan", "--preset", "laptop", "--cards", "2", "--tflops", "1", "--utilization", "0.5"]
    )
    out = capsys.readouterr().out
    rows = {row["stage"]: row for row in plan.stages(SIZES)}
    assert all(f"\n{stage}" in out for stage in [*rows, "all"])
    total = sum(row["flop"] for row in rows.values())
    assert f"{total:.1e}" in out and f"{total / 1e12 / 3600:.2f}" in out


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--preset", "huge"], "--preset is 'huge'; expected one of paper, gpu, laptop"),
        (["--preset", "laptop", "--utilization", "2"], "--utilization is 2.0; expected"),
        (["--preset", "laptop", "--cards", "0"], "--cards is 0; expected 1 to"),
    ],
)
def test_hardware_that_cannot_be_is_refused_at_once(wrong, words, capsys, monkeypatch):
    monkeypatch.setattr(plan, "stages", lambda sizes: pytest.fail("counted before it was checked"))
    with pytest.raises(SystemExit):
        cli.main(["plan", *wrong])
    assert words in capsys.readouterr().err


def test_names_of_presets():
    with pytest.raises(UserError, match="expected one of"):
        plan.preset("smoke")
    for name in plan.HARDWARE:
        assert plan.preset(name).horizon >= 40
