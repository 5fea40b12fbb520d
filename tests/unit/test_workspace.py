"""A run's folder and its stages up to the trust panel, on models that are built in milliseconds."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import Compute
from wmpo_lite.envs import tasks
from wmpo_lite.recipes.align import align_world_model, recorded_episodes
from wmpo_lite.recipes.fit_reward import fit_reward, reward_episodes
from wmpo_lite.recipes.rollouts import require_outcomes, split_rollouts
from wmpo_lite.recipes.trust import describe_trust, panel, trust
from wmpo_lite.recipes.workspace import Run, Workspace, imagined_env, initial_frames, replay_in
from wmpo_lite.reward import RewardModel
from wmpo_lite.train import FitConfig
from wmpo_lite.trajectory import save_trajectories
from wmpo_lite.world_model import WorldModel

SMALL = {
    "align_steps": 3,
    "align_batch": 4,
    "reward_steps": 3,
    "reward_frozen": 1,
    "after_success": 1,
    "reward_stride": 3,
    "min_consecutive": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A run takes all cores; tiny models are faster with one thread, and later files expect it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wmpo_lite.train.set_threads", lambda: None)
        yield


def make_run(folder, **changes) -> Run:
    """A smoke run of `place` with tiny assets, shorter stages and two layers of vision.

    The reward model keeps one of them as it is.
    """
    assets = tiny.assets(folder / "assets")
    tiny.policy(vision_depth=2).save(assets / "place" / "policy")
    return Run(profile="smoke", assets=str(assets), changes=SMALL | changes)


def make_recorded(folder, changes=None, **options) -> Workspace:
    """A workspace with 12 recorded rollouts of 8 steps, half of them successes."""
    made = Workspace(make_run(folder, **(changes or {})), folder / "run", **options)
    made.horizon = 8
    save_trajectories(
        made.folder / "rollouts.hdf5", tiny.trajectories(12), env_args={}, provenance={}
    )
    return made


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def workspace(run, tmp_path):
    made = Workspace(run, tmp_path / "run")
    yield made
    made.env.close()


@pytest.fixture
def recorded(tmp_path):
    made = make_recorded(tmp_path)
    yield made
    made.env.close()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Aligned, and with a reward model; the workspace and the reward stage's result."""
    made = make_recorded(tmp_path_factory.mktemp("judged"))
    made.stage("align", lambda: align_world_model(made))
    yield made, made.stage("reward", lambda: fit_reward(made))
    made.env.close()


def other(run, **changes):
    return dataclasses.replace(run, changes={**run.changes, **changes})


# -- the folder ------------------------------------------------------------------------------------


def test_a_stage_is_done_once_and_its_result_remembered(workspace, run):
    results = iter([{"loss": np.float32(0.5), "at": (1, 2)}])
    first = workspace.stage("align", lambda: next(results))
    assert first == {"loss": 0.5, "at": [1, 2]}
    again = Workspace(run, workspace.folder)
    again.env.close()
    assert again.stage("align", lambda: pytest.fail("this stage is done")) == first
    assert again.seconds() == pytest.approx(0, abs=1)


def test_a_stage_that_broke_is_done_again(workspace):
    with pytest.raises(KeyboardInterrupt):
        workspace.stage("align", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert workspace.stage("align", lambda: {"n": 1}) == {"n": 1}


def test_a_stage_that_was_stopped_counts_the_time_before(workspace, monkeypatch):
    times = iter([5.0, 15.0, 100.0, 102.5])
    monkeypatch.setattr("wmpo_lite.recipes.workspace.time.monotonic", lambda: next(times))
    with pytest.raises(KeyboardInterrupt):
        workspace.stage("align", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    workspace.stage("align", dict)
    assert workspace.seconds() == 12.5
    assert [path.name for path in (workspace.folder / "stages").iterdir()] == ["align.json"]


def test_rollouts_of_another_budget_are_refused(workspace, run):
    """`deploy --collect N` may have recorded any number."""
    workspace.stage("rollouts", lambda: {"n": run.rollout_budget - 1})
    said = f"holds {run.rollout_budget - 1} rollouts and --rollout-budget is {run.rollout_budget}"
    with pytest.raises(UserError, match=said):
        Workspace(run, workspace.folder)


def test_a_folder_of_other_settings_is_refused_and_the_difference_named(workspace, run):
    with pytest.raises(
        UserError,
        match=r"holds a run with other settings \(align_steps, changes\); choose another --name",
    ):
        Workspace(other(run, align_steps=4), workspace.folder)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        Workspace(dataclasses.replace(run, seed=3), workspace.folder)


def test_a_folder_of_other_weights_is_refused(workspace, run, tmp_path):
    tiny.shake(tiny.world_model()).save(tmp_path / "assets" / "tabletop" / "world_model")
    with pytest.raises(UserError, match=r"other settings \(assets\)"):
        Workspace(run, workspace.folder)


def test_the_folder_says_what_the_run_began_with(workspace, tmp_path):
    config = checkpoint.read_json(workspace.folder / "config.json")
    weights = {
        name: tmp_path / "assets" / "tabletop" / name for name in ("autoencoder", "world_model")
    }
    weights["policy"] = tmp_path / "assets" / "place" / "policy"
    assert config["assets"] == {
        k: checkpoint.checksum(v / "model.safetensors")[:12] for k, v in weights.items()
    }
    assert config["align_steps"] == 3 and config["horizon"] == 40 and config["task"] == "place"


def test_a_task_without_assets_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(UserError, match="no trained assets for task 'square'.*--from-scratch"):
        Workspace(dataclasses.replace(run, task="square"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_task_of_libero_without_assets_is_told_how_they_are_trained(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tasks, "get_task", lambda name: SimpleNamespace(suite="libero_object", horizon=56)
    )
    with pytest.raises(
        UserError,
        match="no trained assets for task 'libero_object/3'.*--suite libero_object --tasks 3",
    ):
        Workspace(dataclasses.replace(run, task="libero_object/3"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_on_libero_begins_with_the_benchmarks_states_and_learns_by_the_same_numbers():
    here, there = Run("place").settings(), Run("libero_object/0").settings()
    looked_at = {"evaluation_from": 0, "trust_rollouts": 128, "track_states": 64}
    assert vars(there) == vars(here) | looked_at
    asked = Run("libero_object/0", changes={"evaluation_from": 50}).settings()
    assert asked.evaluation_from == 50


def test_a_folder_that_another_process_works_in_is_refused_and_left_alone(workspace, run, tmp_path):
    script = (
        "import sys; from wmpo_lite.common.owner import Owner; held = Owner(sys.argv[1]);"
        " print(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "other")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        with pytest.raises(
            UserError, match=f"other is in use by another process .process {process.pid}"
        ):
            Workspace(run, tmp_path / "other")
        assert [path.name for path in (tmp_path / "other").iterdir()] == [".owner"]
        process.communicate(b"\n")
    Workspace(run, tmp_path / "other").close()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "broken",
    [
        "tabletop/world_model/model.safetensors",
        "tabletop/autoencoder/config.json",
        "place/demos.hdf5",
        "place/policy/actions.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_broken_assets_are_found_before_anything_is_written(run, tmp_path, broken, how):
    path = tmp_path / "assets" / broken
    path.write_bytes(path.read_bytes()[:20]) if how == "cut" else path.unlink()
    with pytest.raises(
        UserError, match=path.name if how == "cut" else "model.safetensors|missing|exist|weights"
    ):
        Workspace(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("stages/align.json", "[]"),
        ("stages/align.json", '{"result": 3}'),
    ],
)
def test_a_run_folder_with_files_of_another_shape_is_refused_by_name(workspace, run, name, text):
    workspace.stage("align", dict)
    (workspace.folder / name).write_text(text)
    with pytest.raises(UserError, match=name):
        Workspace(run, workspace.folder).stage("align", dict)


def test_a_clock_that_is_set_back_takes_no_time_away(workspace, monkeypatch):
    monkeypatch.setattr("time.time", lambda: -1e9)
    times = iter([5.0, 7.5])
    monkeypatch.setattr("wmpo_lite.recipes.workspace.time.monotonic", lambda: next(times))
    workspace.stage("align", dict)
    assert workspace.seconds() == 2.5


@pytest.mark.parametrize(
    "budget, successes, enough",
    [
        (5, 0, False),
        (5, 1, True),
        (8, 2, False),
        (8, 4, True),
        (8, 8, False),
        (9, 1, True),
        (32, 3, False),
        (32, 4, True),
        (128, 125, True),
        (128, 128, False),
    ],
)
def test_outcomes_that_no_reward_model_can_be_fitted_to_are_refused_at_once(
    budget, successes, enough
):
    rollouts = [SimpleNamespace(success=i < successes) for i in range(budget)]
    for seed in range(5):
        fitted, held = split_rollouts([t.success for t in rollouts], seed)
        assert sorted(fitted + held) == list(range(budget)) and len(held) == -(-budget // 4)
        assert enough == (0 < sum(rollouts[i].success for i in held) < len(held))
        quarters = [split_rollouts([t.success for t in rollouts], seed, k) for k in range(4)]
        assert sorted(i for _, held in quarters for i in held) == list(range(budget))
        rates = [np.mean([rollouts[i].success for i in held]) for _, held in quarters]
        assert max(rates) - min(rates) <= 1.01 / (budget // 4)
    if enough:
        require_outcomes(rollouts)
        return
    with pytest.raises(
        UserError,
        match=(
            f"succeeded in {successes} of {budget}.*raise --rollout-budget or take another --seed"
        ),
    ):
        require_outcomes(rollouts)


def test_recorded_first_frames_are_where_imagination_begins():
    rollouts = tiny.trajectories(5)
    starts = initial_frames(rollouts)
    assert all(np.array_equal(frame, t.frames[0]) for frame, t in zip(starts.frames, rollouts))
    assert (
        starts.instructions == tuple(t.instruction for t in rollouts) and starts.split == "rollouts"
    )
    assert starts.indices.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(starts.states, np.stack([t.initial_state for t in rollouts]))


# -- its stages ------------------------------------------------------------------------------------


def test_windows_end_a_few_frames_after_a_success(recorded):
    """after_success is 1: a success at step f is seen up to frame f + 1, a failure to its end."""
    rollouts = recorded.rollouts()
    episodes = recorded_episodes(recorded, rollouts)
    expected = [min(t.finish_step + 1, len(t)) if t.success else len(t) for t in rollouts]
    assert episodes.last.tolist() == expected and min(expected) < 8 == max(expected)
    latents = recorded.autoencoder().encode_uint8(
        torch.from_numpy(np.stack([t.frames for t in rollouts]))
    )
    assert torch.equal(episodes.latents, latents)
    assert np.array_equal(episodes.actions.numpy(), np.stack([t.actions for t in rollouts]))


def test_alignment_sees_rollouts_and_demonstrations_and_changes_the_world_model(
    recorded, monkeypatch
):
    from wmpo_lite import own_context

    seen, pool = [], own_context.Pool
    monkeypatch.setattr(
        own_context,
        "Pool",
        lambda episodes, *rest: seen.append(len(episodes)) or pool(episodes, *rest),
    )
    record = align_world_model(recorded)
    assert seen == [12 + 4] and record["step"] == 3 and np.isfinite(record["loss"])
    before, after = WorldModel.load(recorded.shared / "world_model"), recorded.world_model()
    gaps = [
        float((a - b).abs().max())
        for a, b in zip(before.state_dict().values(), after.state_dict().values())
    ]
    assert max(gaps) > 1e-5 and after.config == before.config
    note = checkpoint.read_json(recorded.folder / "world_model" / "provenance.json")
    assert note["stage"] == "align" and note["settings"]["align_steps"] == 3


def test_a_rewards_examples_know_a_sentence_that_they_do_not_fulfil():
    rollouts = tiny.trajectories(6)
    episodes = reward_episodes(rollouts)
    assert np.array_equal(episodes["frames"], np.stack([t.frames for t in rollouts]))
    assert episodes["success"].tolist() == [True, False] * 3
    assert episodes["finish_step"].tolist() == [t.finish_step for t in rollouts]
    for said, another in zip(episodes["instruction"], episodes["other"]):
        assert another != said and another.split()[3:] == said.split()[3:]
    shown = np.zeros_like(episodes["frames"])
    assert reward_episodes(rollouts, shown)["frames"] is shown


def test_the_reward_model_gets_two_thresholds_from_rollouts_that_it_was_not_fitted_to(judged):
    workspace, result = judged
    assert (
        result["chosen_on"] == 3
        and 0 < result["threshold"] < 1
        and 0 < result["imagined_threshold"] < 1
    )
    model = RewardModel.load(workspace.folder / "reward")
    assert float(model.threshold) == pytest.approx(result["threshold"])
    scores = model.score(
        torch.from_numpy(np.stack([t.frames for t in workspace.rollouts()])),
        [t.instruction for t in workspace.rollouts()],
    )
    assert scores.min() < result["threshold"] < scores.max()


def test_the_reward_model_begins_with_the_policys_tower_and_keeps_its_lower_layers(judged):
    workspace, _ = judged
    before = RewardModel.from_tower(workspace.base())
    after = RewardModel.load(workspace.folder / "reward")
    assert after.config == before.config
    old, new = before.encoder.state_dict(), after.encoder.state_dict()
    kept = {name for name, value in new.items() if torch.equal(value, old[name])}
    assert kept == {name for name in old if not name.startswith("encoder.layer.1.")}
    gaps = [float((new[name] - old[name]).abs().max()) for name in new if name not in kept]
    assert max(gaps) < 0.1  # fine-tuned, not built anew


def fitted_to(monkeypatch) -> list:
    """A list that gets the episodes which each reward model is fitted to."""
    from wmpo_lite import reward

    seen, loss = [], reward.reward_loss
    monkeypatch.setattr(
        reward,
        "reward_loss",
        lambda model, episodes, **more: seen.append(episodes) or loss(model, episodes, **more),
    )
    return seen


def test_the_reward_model_sees_every_film_as_filmed_as_given_back_and_as_imagined(
    recorded, monkeypatch
):
    recorded.stage("align", lambda: align_world_model(recorded))
    seen = fitted_to(monkeypatch)
    fit_reward(recorded)
    frames, success = seen[0]["frames"], seen[0]["success"]
    assert len(frames) == 3 * (9 + 4) and len(seen[0]["instruction"]) == len(
        frames
    )  # 9 rollouts that are not held out
    filmed, given_back, imagined = np.split(frames, 3)
    assert np.array_equal(given_back, recorded.autoencoder().reconstruct(filmed))
    assert np.array_equal(imagined[:, 0], filmed[:, 0]) and not np.array_equal(imagined, filmed)
    assert all(np.array_equal(part, success[:13]) for part in np.split(success, 3))


def test_four_members_hold_out_a_quarter_each_and_thresholds_come_from_all(tmp_path, monkeypatch):
    w = make_recorded(tmp_path, {"reward_members": 4})
    w.stage("align", lambda: align_world_model(w))
    seen = fitted_to(monkeypatch)
    result = w.stage("reward", lambda: fit_reward(w))
    w.env.close()
    rollouts = w.rollouts()
    assert result["chosen_on"] == len(rollouts) == 12 and len(seen) == 4
    shown = lambda t, films: any(np.array_equal(t.frames, film) for film in films)
    held = [[not shown(t, member["frames"]) for t in rollouts] for member in seen]
    assert (
        np.array_equal(np.sum(held, axis=0), np.ones(12))
        and np.sum(held, axis=1).tolist() == [3] * 4
    )
    for member in seen:  # what is imagined belongs to what was filmed
        filmed, _, imagined = np.split(member["frames"], 3)
        assert np.array_equal(imagined[:, 0], filmed[:, 0])
    model = RewardModel.load(w.folder / "reward")
    assert (
        model.config.members == 4
        and len({float(m.judge[-1].bias.detach()) for m in model.others}) == 3
    )


def test_demonstrations_without_a_simulator_state_are_imagined_beside_rollouts(judged):
    """Imagination needs first frames alone; `make_assets` stores no state with demonstrations."""
    from wmpo_lite.recipes.pretrain import demonstration_trajectories

    workspace, _ = judged
    demos = demonstration_trajectories(
        {
            "frames": tiny.noise_frames(2, 9),
            "executed": tiny.random_actions(2, 8, tiny.ACTIONS),
            "done": np.ones((2, 8), bool),
            "instruction": np.array([tiny.RED, tiny.BLUE]),
        }
    )
    films = replay_in(imagined_env(workspace, 0, judged=False), tiny.trajectories(2) + demos)
    assert films.shape == (4, 9, 16, 16, 3)


def test_imagination_is_set_as_the_run_is(judged):
    workspace, result = judged
    env = imagined_env(workspace, seed=1)
    assert env.threshold == result["imagined_threshold"]
    assert (env.reward_stride, env.min_consecutive, env.num_inference_steps, env.stop) == (
        3,
        2,
        1,
        True,
    )
    assert (
        env.world_model is workspace.world_model()
        and env.action_names == workspace.env.action_names
    )
    before = WorldModel.load(workspace.shared / "world_model")
    bare = imagined_env(workspace, seed=1, stop=False, judged=False, world_model=before)
    assert bare.reward_model is None and bare.world_model is before and not bare.stop


def test_the_trust_panel_measures_a_world_model_on_real_rollouts(judged):
    workspace, _ = judged
    real = tiny.trajectories(10, seed=3)
    truth = np.stack([t.frames for t in real])
    found = panel(workspace, real, truth, workspace.world_model(), few=4)
    assert found["frames"].shape == truth.shape and np.array_equal(
        found["frames"][:, 0], truth[:, 0]
    )
    assert found["imagined_scores"].shape == (10,)
    a, (low, high) = found["agreement"], found["auc_interval"]
    assert a["n"] == 10 and 0 <= low <= a["auc"] <= high <= 1
    assert found["psnr"]["horizons"] == found["latent_error"]["horizons"] == [8]
    copied = np.square(truth[:, 0].astype(float) - truth[:, 8]).mean(axis=(1, 2, 3))
    assert found["psnr"]["copy_last"] == [
        pytest.approx(float(np.mean(10 * np.log10(255**2 / copied))))
    ]
    s = found["sensitivity"]
    for kind in ("shuffled", "zero", "delayed"):
        assert s[f"{kind}_cost"] == pytest.approx(s["true"] - s[kind]) and s[kind] != s["true"]
    assert 0 <= found["valid_frames"] <= 8


def test_the_true_world_has_the_best_marks(judged, monkeypatch):
    """An imagination that shows what was filmed is off by nothing."""
    workspace, _ = judged
    real = tiny.trajectories(6, seed=4)
    truth = np.stack([t.frames for t in real])
    monkeypatch.setattr(
        "wmpo_lite.rollout.replay", lambda env, trajectories, states: (truth[: len(states)], None)
    )
    with np.errstate(invalid="ignore"):
        found = panel(workspace, real, truth, workspace.world_model(), few=2)
    assert found["psnr"]["model"] == [np.inf] and found["latent_error"]["model"] == [0.0]
    assert found["latent_error"]["copy_last"][0] > 0 and found["valid_frames"] == 8


def test_the_trust_stage_measures_before_and_after_alignment_on_fresh_rollouts(judged, monkeypatch):
    workspace, reward = judged
    real, asked = tiny.trajectories(12, seed=6), []
    monkeypatch.setattr(workspace, "states", lambda *which: asked.append(which))
    monkeypatch.setattr("wmpo_lite.rollout.rollout", lambda *_, **options: real)
    returned = trust(workspace)
    assert asked == [("trust", 24)]  # apart from what anything is trained or evaluated on
    found = checkpoint.read_json(workspace.folder / "trust.json")
    assert all(found[key] == value for key, value in checkpoint.plain(returned).items())
    truth = np.stack([t.frames for t in real])
    before = panel(workspace, real, truth, WorldModel.load(workspace.shared / "world_model"))
    after = panel(workspace, real, truth, workspace.world_model())
    films, scores = after.pop("frames"), after.pop("imagined_scores")
    before.pop("frames"), before.pop("imagined_scores")
    assert found["before_alignment"] == checkpoint.plain(before)
    assert {key: found[key] for key in after} == checkpoint.plain(after)
    assert before["psnr"]["model"] != after["psnr"]["model"]
    assert found["real"] == [t.success for t in real]
    assert found["scores"] == pytest.approx(scores, abs=1e-4)
    assert found["real_threshold"] == pytest.approx(reward["threshold"])
    with np.load(workspace.folder / "trust_films.npz") as shown:
        rows = [0, 2, 4, 6, 1, 3, 5, 7]  # four successes, four failures
        assert np.array_equal(shown["imagined"], films[rows])
        assert np.array_equal(shown["real"], truth[rows])
        assert shown["real_success"].tolist() == [True] * 4 + [False] * 4


def test_the_panel_in_words(judged):
    workspace, _ = judged
    real = tiny.trajectories(6, seed=5)
    truth = np.stack([t.frames for t in real])
    found = panel(workspace, real, truth, workspace.world_model(), few=2)
    said = describe_trust(
        {
            "n": 6,
            **found,
            "before_alignment": found,
            "reward_f1_real": 0.5,
            "reward_f1_imagined": 0.25,
        }
    )
    auc, (low, high) = found["agreement"]["auc"], found["auc_interval"]
    assert (
        f"AUC {auc:.3f} [{low:.3f}, {high:.3f}]" in said
        and f"before alignment: AUC {auc:.3f}" in said
    )
    assert (
        "trust panel on 6 fresh real rollouts" in said
        and "F1: 0.500 on real, 0.250 on imagined video" in said
    )
    assert f"after {found['valid_frames']:.1f} frames" in said


@pytest.mark.parametrize(
    "error",
    (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ),
)
def test_out_of_memory_names_what_to_lower_and_the_same_command_goes_on(
    tmp_path, monkeypatch, error
):
    """Alignment ends in its last step, with checkpoints before it; it goes on with blocks that
    are computed again, to the same weights.
    """
    made = make_recorded(tmp_path)
    often = lambda **numbers: FitConfig(**numbers | {"save_every": 1})
    monkeypatch.setattr("wmpo_lite.train.FitConfig", often)
    step, steps = torch.optim.AdamW.step, []

    def full(self, *rest):
        steps.append(1)
        if len(steps) == SMALL["align_steps"]:
            raise error
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    align = lambda w: w.stage("align", lambda: align_world_model(w), shared=True)
    advice = r"add --recompute or lower --micro-batch \(now 4\) and run the"
    with pytest.raises(UserError, match=f"'align' ran out of memory; {advice}"):
        align(made)
    made.close()
    again = Workspace(made.run, made.folder, compute=Compute(recompute=True))
    again.horizon = made.horizon
    align(again)
    assert len(steps) == SMALL["align_steps"] + 1
    whole = make_recorded(tmp_path / "whole")
    align(whole)
    for a, b in zip(again.world_model().parameters(), whole.world_model().parameters()):
        assert torch.equal(a, b)
    again.close(), whole.close()


def test_stages_in_16_bits_leave_weights_and_numbers_near_those_of_32(
    judged, tmp_path, monkeypatch
):
    exact = judged[0]
    made = make_recorded(tmp_path, compute=Compute("bf16", recompute=True, micro_batch=2))
    made.stage("align", lambda: align_world_model(made), shared=True)
    made.stage("reward", lambda: fit_reward(made), shared=True)
    real = tiny.trajectories(12, seed=6)
    monkeypatch.setattr(made, "states", lambda *which: None)
    monkeypatch.setattr("wmpo_lite.rollout.rollout", lambda *_, **options: real)
    found = made.stage("trust", lambda: trust(made))
    assert 5 < found["psnr"]["model"][0] < 60 and 0 <= found["agreement"]["auc"] <= 1
    pairs = zip(made.world_model().parameters(), exact.world_model().parameters())
    gaps = [(a - b).detach().abs().max() for a, b in pairs]
    # three steps of Adam move a weight by 3e-4 at most
    assert 0 < max(gaps) < 1e-3
    about = checkpoint.read_json(made.folder / "world_model" / "provenance.json")
    assert about["precision"] == "bf16"
    made.close()


def test_other_errors_stay_what_they_are(tmp_path):
    made = make_recorded(tmp_path)
    with pytest.raises(RuntimeError, match="mat1"):
        made.stage("wmpo", lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))
    made.close()
