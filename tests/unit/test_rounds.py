"""A round goes on where a finished run ended: with its policy, on initial states that nothing has
used, with the rollouts of all rounds.
"""

import dataclasses
import shutil
from contextlib import closing

import numpy as np
import pytest
import tiny

from wmpo_lite import run_commands
from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS
from wmpo_lite.recipes import cells, main_job, reproduce
from wmpo_lite.recipes.cells import Book, enter, standing
from wmpo_lite.recipes.experiments import EXPERIMENTS, cost, keys
from wmpo_lite.recipes.rollouts import record_rollouts
from wmpo_lite.recipes.rounds import finished
from wmpo_lite.recipes.workspace import Run, Workspace
from wmpo_lite.report import ledger_figures, ledger_tables
from wmpo_lite.report.ledger import Key
from wmpo_lite.trajectory import load_trajectories, save_trajectories

SHIPPED = ASSETS / "place" / "run"
SECOND, THIRD = (Key("lifelong", "place", "wmpo", 128, 0, f"round-{n}") for n in (2, 3))


@pytest.fixture
def before(tmp_path):
    """A finished run of 12 rollouts, whose WMPO policy is another than the cloned one."""
    folder = tmp_path / "first"
    tiny.shake(tiny.policy(), 0.3).save(folder / "policies" / "wmpo")
    save_trajectories(folder / "rollouts.hdf5", tiny.trajectories(12), env_args={}, provenance={})
    checkpoint.write_json(folder / "config.json", {"task": "place", "rollout_budget": 12})
    return folder


@pytest.fixture
def second(before, tmp_path, monkeypatch):
    monkeypatch.setattr("wmpo_lite.train.set_threads", lambda: None)
    run = Run(
        profile="smoke",
        assets=str(tiny.assets(tmp_path / "assets")),
        rollout_budget=8,
        after=str(before),
        round=2,
        recorded_before=12,
    )
    with closing(Workspace(run, tmp_path / "second")) as made:
        yield made


def test_a_round_begins_with_the_policy_and_the_rollouts_of_the_one_before(
    second, before, monkeypatch
):
    begun = checkpoint.fingerprint(second.base())
    assert begun == checkpoint.fingerprint(finished(before, "place").policy())
    assert begun != checkpoint.fingerprint(second.policy(second.assets / "policy"))
    config = checkpoint.read_json(second.folder / "config.json")
    assert config["assets"]["policy"] == begun and config["round"] == 2
    asked = []

    def act(policy, env, states, **options):
        asked.append((checkpoint.fingerprint(policy), states.indices.tolist()))
        return tiny.trajectories(8, seed=3)

    monkeypatch.setattr("wmpo_lite.rollout.rollout", act)
    said = record_rollouts(second)
    assert asked == [(begun, list(range(12, 20)))] and said["n"] == 8
    kept, own = second.rollouts(), tiny.trajectories(8, seed=3)
    assert len(kept) == 20 and len(load_trajectories(second.folder / "rollouts.hdf5")) == 8
    for found, wanted in zip(kept, load_trajectories(before / "rollouts.hdf5") + own):
        assert np.array_equal(found.frames, wanted.frames) and found.index == wanted.index


def test_models_are_fitted_to_all_rounds_and_online_grpo_spends_its_own():
    first, later = Run(rollout_budget=128), Run(rollout_budget=128, round=3, recorded_before=256)
    a, b = first.settings(), later.settings()
    assert b.align_steps == 3 * a.align_steps and b.dpo_pairs == 3 * a.dpo_pairs
    assert b.online_lr == a.online_lr


def test_what_was_seen_before_counts_for_every_method_that_uses_it(second):
    found = main_job.seen(second, 8)
    rollouts = {name: (row["rollouts"] or [0])[0] for name, row in found.items()}
    assert rollouts == {"base": 12, "grpo": 8, "dpo": 20, "world_model": 20, "reward_model": 20}


def test_the_command_finds_out_which_round_it_is(before):
    run, folder = run_commands.Demo(rollout_budget=16, after=before)._checked()
    assert (run.after, run.round, run.recorded_before) == (str(before), 2, 12)
    assert folder.name == "place-laptop-p16-s0-round-2"
    later = shutil.copytree(before, before.with_name("later"))
    config = {"task": "place", "rollout_budget": 16, "after": str(before)}
    checkpoint.write_json(later / "config.json", config)
    run, folder = run_commands.Demo(rollout_budget=16, after=later)._checked()
    assert run.recorded_before == 28 and folder.name == "place-laptop-p16-s0-round-3"
    assert len(finished(later, "place").rollouts()) == 12 + 12
    shutil.rmtree(before)
    with pytest.raises(UserError, match=f"{before} is not a run that has ended"):
        run_commands.Demo(after=later)._checked()


def test_a_round_can_follow_the_shipped_run():
    found = finished(SHIPPED, "place")
    assert (found.round, found.recorded, len(found.rollouts())) == (1, 128, 128)
    weights = found.policy().state_dict()
    cloned = checkpoint.load_tensors(ASSETS / "place" / "policy" / "model.safetensors")
    assert any((weights[name] != cloned[name]).any() for name in cloned)


@pytest.mark.parametrize(
    "name, message",
    [
        ("config.json", r"is not a run that has ended \(config.json missing\), so no round can"),
        ("rollouts.hdf5", r"\(rollouts.hdf5 missing\)"),
        ("policies/wmpo/actions.json", r"\(policies/wmpo missing\)"),
    ],
)
def test_a_run_that_did_not_end_is_refused(before, name, message):
    (before / name).unlink()
    with pytest.raises(UserError, match=message):
        run_commands.Demo(after=before)._checked()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"task": "square"}, "is a run of 'square' and --task is 'place'"),
        ({"kept_rollouts": 4}, "keeps 4 of its 12 rollouts and a round needs them all"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(before, config, message):
    whole = {"task": "place", "rollout_budget": 12} | config
    checkpoint.write_json(before / "config.json", whole)
    with pytest.raises(UserError, match=message):
        run_commands.Demo(after=before)._checked()


def test_rounds_that_ask_for_more_states_than_there_are_are_refused():
    with pytest.raises(UserError, match="--rollout-budget is 128; expected 1 to 100"):
        Run(rollout_budget=128, round=9, recorded_before=9_900).settings()


def test_a_run_from_before_a_setting_was_there_goes_on(second):
    path = second.folder / "config.json"
    config = checkpoint.read_json(path)
    second.close()
    old = {name: value for name, value in config.items() if name != "reward_members"}
    checkpoint.write_json(path, old)
    Workspace(second.run, second.folder).close()
    checkpoint.write_json(path, {k: v for k, v in old.items() if k != "align_steps"})
    with pytest.raises(UserError, match=r"other settings \(align_steps\)"):
        Workspace(second.run, second.folder)  # a smoke run's are not the default


# -- in the ledger ---------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path):
    found = Book(folder=tmp_path / "ledger", runs=tmp_path / "runs")
    enter(SHIPPED, found)
    return found


def pretend_round(book, key, before) -> None:
    """The folder of a finished round, with what the shipped run measured as its own."""
    folder = shutil.copytree(SHIPPED, book.run_folder(key))
    run = dataclasses.replace(book.run(key), after=str(before))
    made = cells.inputs(key, book, standing(book).cells)
    config = checkpoint.read_json(folder / "config.json") | cells.plain_settings(run)
    config |= {"changes": run.changes, "after": run.after, "round": run.round}
    config |= {"recorded_before": run.recorded_before}
    config["assets"] = {name: made[name] for name in ("policy", "autoencoder", "world_model")}
    checkpoint.write_json(folder / "config.json", config)
    for name in ("grpo", "dpo", "wmpo"):
        policy = tiny.shake(tiny.policy(), 0.1, seed=len(name) + 10 * run.round)
        policy.save(folder / "policies" / name)
        (folder / f"{name}.safetensors").unlink()


def test_a_round_becomes_four_cells_of_which_base_is_where_it_began(book):
    pretend_round(book, SECOND, SHIPPED)
    made = enter(book.run_folder(SECOND), book)
    assert {key.method for key in made} == {"base", "grpo", "dpo", "wmpo"}
    assert {(key.experiment, key.variant) for key in made} == {("lifelong", "round-2")}
    found = standing(book)
    first = found.cells[cells.trained(SECOND)].record["weights"]
    base = found.cells[dataclasses.replace(SECOND, method="base")].record
    assert base["weights"] == first == base["inputs"]["policy"] and not found.bad
    # and the third goes on from there
    assert cells.trained(THIRD) == SECOND
    pretend_round(book, THIRD, book.run_folder(SECOND))
    assert len(enter(book.run_folder(THIRD), book)) == 4 and not standing(book).bad
    (line,) = [x for x in ledger_tables.lines(standing(book).cells, "lifelong")][1:]
    assert line.variant == "round-3" and ledger_tables.gain(line, "wmpo", "base") is not None
    (panel,) = ledger_figures.rounds(standing(book).cells).axes
    wmpo = next(line for line in panel.containers if line.get_label() == "WMPO")[0]
    assert wmpo.get_xdata().tolist() == [1, 2, 3]
    assert wmpo.get_ydata()[0] == pytest.approx(
        100 * found.cells[cells.trained(SECOND)].success.mean()
    )


def test_a_round_is_stale_when_the_one_before_is_another(book):
    pretend_round(book, SECOND, SHIPPED)
    enter(book.run_folder(SECOND), book)
    path = cells.trained(SECOND).path(book.folder)
    path.unlink()
    found = standing(book)
    assert SECOND not in found.cells
    assert "takes the policy of table_1/place-wmpo-p128-s0" in found.bad[str(SECOND)]


def test_rounds_are_made_one_after_the_other_from_the_run_before(book, monkeypatch):
    begun = []

    def job(run, folder, device):
        begun.append((run.round, run.after, str(folder)))
        pretend_round(book, SECOND if run.round == 2 else THIRD, run.after)

    monkeypatch.setattr("wmpo_lite.recipes.main_job.main_job", job)
    reproduce.reproduce([f"lifelong/place-{m}-p128-s0" for m in ("wmpo", "dpo")], book)
    two, three = (str(book.run_folder(key)) for key in (SECOND, THIRD))
    assert begun == [(2, str(SHIPPED), two), (3, two, three)]
    assert not standing(book).bad and cost(SECOND) < cost(THIRD)
    assert len(keys("lifelong")) == 4 * 3 * len(EXPERIMENTS["lifelong"].variants)
