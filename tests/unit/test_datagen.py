"""Recorded data: kits of things, what play does with them, and what of it is on disk."""

import dataclasses

import mujoco
import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.common.checkpoint import fingerprint, load_tensors
from wmpo_lite.common.errors import UserError
from wmpo_lite.datagen import collect
from wmpo_lite.datagen.kits import FIXED, FREE, Kit, draw_thing
from wmpo_lite.datagen.play import PlayHand, play
from wmpo_lite.envs.tabletop import scene
from wmpo_lite.envs.tabletop.env import WORKSPACE, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import PickAndPlace
from wmpo_lite.envs.tabletop.tasks import get_task, place, square
from wmpo_lite.recipes.pretrain import play_latents


@pytest.fixture
def make_env():
    """A factory of environments of 16 pixels, closed before the interpreter unloads OpenGL."""
    made = []

    def make(kit):
        made.append(TabletopEnv(kit, size=16, threads=1))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def few(monkeypatch):
    """Four episodes a shard of play."""
    monkeypatch.setattr(collect, "PLAY_SHARD", 4)


# -- kits ------------------------------------------------------------------------------------------


def test_the_seed_decides_a_kit():
    one, two = Kit(5), Kit(5)
    assert one.things == two.things and one.bodies() == two.bodies()
    assert len({Kit(seed).bodies() for seed in range(30)}) > 24  # a few have standard sizes only


@pytest.mark.parametrize("seed", range(8))
def test_a_kit_keeps_the_contract_of_a_task(make_env, seed):
    kit = Kit(seed)
    env = make_env(kit)
    state = kit.sample(np.random.default_rng(seed))
    assert state.shape == (env.model.nq + kit.num_parameters,) and np.isfinite(state).all()
    colors = kit.colors(state[env.model.nq :])
    names = {env.model.geom(i).name for i in range(env.model.ngeom)}
    of_things = {name for name in names if name.startswith("thing_")}
    assert set(colors) == of_things and len(of_things) >= len(kit.things)
    assert all(
        rgb.shape == (3,) and (rgb >= 0).all() and (rgb <= 1).all() for rgb in colors.values()
    )
    assert kit.instruction(state) == "" and kit.name == "play"
    states = collect.play_states(kit, seed)[np.arange(3)]
    assert env.reset(states).shape == (3, 16, 16, 3) and env.instructions == [""] * 3
    assert not kit.success(env).any()


def test_kits_are_broad_and_every_one_allows_a_relation():
    kits = [Kit(seed) for seed in range(300)]
    kinds = {
        kind: sum(any(t.kind == kind for t in kit.things) for kit in kits) for kind in FREE + FIXED
    }
    assert min(kinds.values()) > 15, kinds
    assert all(1 < len(kit.free) < len(kit.things) <= 5 for kit in kits)
    assert {t.kind for kit in kits for t in kit.free} == set(FREE)
    assert all((t.grip > 0) == t.free for kit in kits for t in kit.things)


@pytest.mark.parametrize("kind", FREE + FIXED)
def test_half_of_the_things_have_the_standard_size_and_all_fit_the_hand(kind):
    rng = np.random.default_rng(0)
    things = [draw_thing(rng, kind, "t") for _ in range(400)]
    sizes = [thing.geoms for thing in things]
    usual = max(sizes, key=sizes.count)
    assert 0.4 < sizes.count(usual) / len(sizes) < 0.6 and len(set(sizes)) > 150
    assert max(thing.grip for thing in things) < scene.FINGER_TRAVEL
    for thing in things:
        tops = [p[2] + (s[1] if shape == "cylinder" else s[2]) for shape, s, p in thing.geoms]
        assert max(tops) == pytest.approx(
            thing.height - thing.half
        )  # `half` is the center's height


def test_the_standard_things_are_those_of_the_tasks():
    rng = np.random.default_rng(0)
    geoms = {
        kind: [draw_thing(rng, kind, "t").geoms for _ in range(60)]
        for kind in ("cube", "nut", "disc", "peg")
    }
    standard = {kind: max(found, key=found.count) for kind, found in geoms.items()}
    assert standard["cube"][0][1] == (scene.CUBE_HALF,) * 3
    assert standard["disc"][0][1] == (place.PLATE_RADIUS, place.PLATE_HEIGHT / 2)
    assert standard["peg"][0][1] == (square.PEG_HALF, square.PEG_HALF, square.PEG_HEIGHT / 2)
    (x, y, z), _ = standard["nut"][0][1:]
    assert (x, z) == (square.OUTER, square.HALF_HEIGHT) and 2 * y == pytest.approx(
        square.OUTER - square.INNER
    )


def test_states_of_play_differ_and_belong_to_their_shard():
    kit = Kit(2)
    one, two, other = (collect.play_states(kit, shard) for shard in (2, 2, 3))
    assert np.array_equal(one.states, two.states) and one.split == "play" and one.frames is None
    assert (
        len({row.tobytes() for part in (one, other) for row in part.states})
        == 2 * collect.PLAY_SHARD
    )
    assert one.indices.tolist() == list(range(64, 96)) and set(one.instructions) == {""}


def test_things_begin_apart_and_a_third_of_the_hands_hold_one(make_env):
    held = 0
    for seed in range(6):
        kit = Kit(seed)
        env = make_env(kit)
        env.reset(collect.play_states(kit, seed))
        heights = np.stack([env.position(t.name)[:, 2] for t in kit.free])
        up = heights > 0.04
        assert (up.sum(axis=0) <= 1).all()
        held += int(up.sum())
        places = np.stack([env.position(t.name)[:, :2] for t in kit.things])  # (things, B, 2)
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[
            np.triu_indices(len(places), 1)
        ]
        assert (apart[:, ~up.any(axis=0)] > 0.012).all()
    assert 0.2 < held / (6 * collect.PLAY_SHARD) < 0.5


# -- play ------------------------------------------------------------------------------------------


def test_the_seed_decides_play_and_only_pictures_and_actions_come_out(few):
    one, two, other = (collect.record_play(shard, size=16, horizon=5) for shard in (1, 1, 2))
    for data in (one, other):
        assert set(data) == {"frames", "actions"}
        assert data["frames"].shape == (4, 6, 16, 16, 3) and data["frames"].dtype == np.uint8
        assert data["actions"].shape == (4, 5, 4) and data["actions"].dtype == np.float32
        assert np.abs(data["actions"]).max() <= 1 and data["actions"].std() > 0.1
        assert all(film.std() > 10 for film in data["frames"])  # something is drawn
        assert (data["frames"][:, 1:] != data["frames"][:, :-1]).any(
            axis=(2, 3, 4)
        ).mean() > 0.5  # and moves
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert all(not np.array_equal(one[key], other[key]) for key in one)


def test_recorded_actions_lead_to_the_recorded_pictures(few, make_env):
    data = collect.record_play(3, size=16, horizon=4)
    kit = Kit(3)
    env = make_env(kit)
    first = env.reset(collect.play_states(kit, 3))
    assert np.array_equal(first, data["frames"][:, 0])
    assert np.array_equal(env.step_chunk(data["actions"])[0], data["frames"][:, 1:])


def test_hands_differ_and_leave_no_corner_out(make_env):
    """Grippers open and close, and the finger tips come to low and high, near and far places."""
    tips, grips = [], []
    for seed in range(3):
        kit = Kit(seed)
        env = make_env(kit)
        env.reset(collect.play_states(kit, seed)[np.arange(12)])
        hand = PlayHand(env, np.random.default_rng(seed))
        for _ in range(30):
            action = hand.act()
            env.step_chunk(action[:, None], every_frame=None)
            tips.append(env.tip), grips.append(action[:, 3])
    tips, grips = np.concatenate(tips), np.concatenate(grips)
    low, high = np.quantile(tips, (0.02, 0.98), axis=0)
    assert ((high - low) > 0.55 * (WORKSPACE[:, 1] - WORKSPACE[:, 0])).all()
    assert 0.2 < (grips > 0).mean() < 0.8


def related(env):
    """Which episodes (B,) have a free thing that touches another thing or is over or round it."""
    kit, model, data = env.task, env.model, mujoco.MjData(env.model)
    bodies = {model.body(t.name).id for t in kit.things}
    found = np.zeros(len(env.qpos), bool)
    for b, physics in enumerate(env._physics):
        mujoco.mj_setState(model, data, physics, env._spec)
        mujoco.mj_forward(model, data)
        touch = [
            {int(model.geom_bodyid[c.geom1]), int(model.geom_bodyid[c.geom2])}
            for c in data.contact[: data.ncon]
        ]
        found[b] = any(pair <= bodies for pair in touch)
        for free in kit.free:
            for t in kit.things:
                away = np.linalg.norm(env.position(free.name)[b, :2] - env.position(t.name)[b, :2])
                found[b] |= t is not free and away < max(free.radius, t.radius)
    return found


def test_play_brings_things_into_relations(make_env):
    begin, end = [], []
    for seed in range(4):
        kit = Kit(seed)
        env = make_env(kit)
        env.reset(collect.play_states(kit, seed)[np.arange(12)])
        begin.append(related(env))
        hand = PlayHand(env, np.random.default_rng([seed, 43]))
        for _ in range(collect.PLAY_HORIZON):
            env.step_chunk(hand.act()[:, None], every_frame=None)
        end.append(related(env))
    assert np.mean(begin) < 0.1 and np.mean(end) >= 1 / 3
    assert all(part.any() for part in end)  # with every kit


@pytest.mark.parametrize("which", ["last", "first"])
def test_a_disturbed_drawing_is_refused(few, monkeypatch, which):
    """First and last pictures are drawn twice; one pixel that is not the same is enough."""
    horizon, render, drawn = 3, TabletopEnv.render, []
    disturbed = 4 * (1 + horizon) + (2 if which == "last" else 4 + 3)

    def draw(env, b):
        drawn.append(render(env, b).copy())
        if len(drawn) == disturbed + 1:
            drawn[-1][5, 5, 1] ^= 1
        return drawn[-1]

    monkeypatch.setattr(TabletopEnv, "render", draw)
    with pytest.raises(
        UserError,
        match="shard 1 of play was drawn twice and the pictures differ; the OpenGL driver",
    ):
        collect.record_play(1, size=16, horizon=horizon)
    assert len(drawn) == 4 * (1 + horizon) + 8  # nothing else is drawn
    drawn.clear()
    disturbed = 10**6
    assert set(collect.record_play(1, size=16, horizon=horizon)) == {"frames", "actions"}


# -- on disk ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of play: workers recorded two, the middle one was there before."""
    folder = tmp_path_factory.mktemp("play")
    kept = folder / "play_16px_2steps_0001.npz"
    earlier = {
        "frames": np.zeros((32, 3, 16, 16, 3), np.uint8),
        "actions": np.zeros((32, 2, 4), np.float32),
    }
    collect.write_shard(kept, earlier, collect.recipe(collect.record_play, (1, 16, 2)))
    return folder, kept, collect.collect_play(3, folder, size=16, horizon=2, workers=1)


def test_shards_that_exist_are_kept_and_missing_ones_recorded(shards):
    folder, kept, paths = shards
    assert [path.name for path in paths] == [f"play_16px_2steps_000{i}.npz" for i in range(3)]
    with np.load(kept) as shard:
        assert not shard["frames"].any() and set(shard.files) == {"frames", "actions"}
    assert sorted(folder.iterdir()) == sorted(paths)  # no half-written files
    assert paths[2].read_bytes() != paths[0].read_bytes()
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert collect.collect_play(3, folder, size=16, horizon=2) == paths
    assert stamps == [path.stat().st_mtime_ns for path in paths]


def test_shards_say_what_they_were_made_from(shards):
    assert collect.made_from(shards[2][2]) == {
        "recording": "play",
        "shard": 2,
        "size": 16,
        "horizon": 2,
        "shard_size": 32,
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": 0.8000001}, "noise: 0.8000001 there, 0.8 here"),  # the same in the file's name
        ({"shard": 3}, "shard: 3 there, 0 here"),
        ({"shard_size": 8}, "shard_size: 8 there, 64 here"),
        ({"recording": "play"}, "recording: play there, demonstrations here"),
        (None, "does not say what it was made from"),
        (b"torn", "is not a recording of this kit"),
    ],
)
def test_a_shard_of_another_recording_is_refused_and_left_alone(tmp_path, change, message):
    path, asked = (
        tmp_path / "demos_place_0.8_0.1_0000.npz",
        collect.recipe(collect.record_demonstrations, ("place", 0, 0.8, 0.1)),
    )
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change is None:
        np.savez(path, frames=np.zeros(1))
    else:
        collect.write_shard(path, {"frames": np.zeros(1)}, asked | change)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"demos_place_0.8_0.1_0000.npz .*{message}.*move it away"):
        collect.collect_demonstrations("place", 2, tmp_path, noise=0.8, burst=0.1)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_latents_of_other_shards_with_the_same_name_are_encoded_anew(tmp_path):
    autoencoder, first = tiny.autoencoder(), None
    for seed in (0, 1):
        data = {
            "frames": tiny.noise_frames(2, 3, seed=seed),
            "actions": tiny.random_actions(2, 2, 4, seed=seed),
        }
        path = tmp_path / str(seed) / "play.npz"
        collect.write_shard(path, data, {})
        latents, actions = play_latents(autoencoder, [path], tmp_path / "latents")
        assert torch.equal(
            latents, autoencoder.encode_uint8(torch.from_numpy(data["frames"])).half()
        )
        assert torch.equal(actions, torch.from_numpy(data["actions"]))
        assert first is None or not torch.equal(latents, first)
        first = latents
    (cache,) = (path for path in (tmp_path / "latents").rglob("*") if path.is_file())
    cache.write_bytes(b"torn")
    assert torch.equal(play_latents(autoencoder, [path], tmp_path / "latents")[0], first)


def test_a_worker_records_what_this_process_records(shards):
    expected = collect.record_play(2, size=16, horizon=2)
    with np.load(shards[2][2]) as found:
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_nothing_but_pictures_and_actions_reaches_the_world_model(shards, tmp_path):
    """No state, label, outcome or instruction is in a shard or in the latents made of it."""
    paths = [shards[2][0], shards[2][2]]
    for path in paths:
        with np.load(path) as shard:
            assert set(shard.files) == {"frames", "actions"}
            assert shard["frames"].dtype == np.uint8 and shard["actions"].shape == (32, 2, 4)
    autoencoder = tiny.autoencoder()
    latents, actions = play_latents(autoencoder, paths, tmp_path)
    assert latents.shape == (64, 3, 4, 8, 8) and latents.dtype == torch.float16
    assert actions.shape == (64, 2, 4) and actions.dtype == torch.float32
    caches = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in caches] == [path.stem + ".safetensors" for path in paths]
    for cache, path in zip(caches, paths):
        stored = load_tensors(cache)
        assert set(stored) == {"latents", "actions"}
        with np.load(path) as shard:
            assert torch.equal(stored["actions"], torch.from_numpy(shard["actions"]))
            encoded = autoencoder.encode_uint8(torch.from_numpy(shard["frames"])).half()
            assert torch.equal(stored["latents"], encoded)


def test_latents_are_encoded_once_and_never_taken_for_another_autoencoders(
    shards, tmp_path, monkeypatch
):
    one, other, path = tiny.autoencoder(), tiny.shake(tiny.autoencoder()), shards[2][:1]
    first, _ = play_latents(one, path, tmp_path)
    second, _ = play_latents(other, path, tmp_path)
    assert not torch.equal(first, second)
    assert {folder.name for folder in tmp_path.iterdir()} == {fingerprint(one), fingerprint(other)}
    monkeypatch.setattr(
        one, "encode_uint8", lambda frames: pytest.fail("these latents are there already")
    )
    assert torch.equal(play_latents(one, path, tmp_path)[0], first)


def test_demonstrations_are_those_that_succeeded(monkeypatch):
    """The expert fails one episode of four: the others are kept with their instructions."""
    monkeypatch.setattr(collect, "DEMO_SHARD", 4)
    act = PickAndPlace.act

    def idle(expert, env, *goal):
        action = act(expert, env, *goal)
        action[2] = 0
        return action

    monkeypatch.setattr(PickAndPlace, "act", idle)
    data = collect.record_demonstrations("place", 1, 0.0, 1.0)
    expected = initial_states(get_task("place"), "demos", [4, 5, 7]).instructions
    assert tuple(data["instruction"]) == expected and data["done"][:, -1].all()
    assert set(data) == {"frames", "executed", "intended", "done", "instruction"}
    assert data["frames"].shape == (3, 41, 64, 64, 3) and data["executed"].shape == (3, 40, 4)


def test_too_few_demonstrations_are_a_user_error(tmp_path, monkeypatch):
    data = {
        "frames": np.zeros((3, 2, 4, 4, 3), np.uint8),
        "done": np.ones((3, 1), bool),
        "instruction": np.array(["x"] * 3),
    }
    made_from = collect.recipe(collect.record_demonstrations, ("place", 0, 0.8, 0.1))
    collect.write_shard(tmp_path / "demos_place_0.8_0.1_0000.npz", data, made_from)
    found = collect.collect_demonstrations("place", 2, tmp_path, noise=0.8, burst=0.1)
    assert {key: len(value) for key, value in found.items()} == {
        "frames": 2,
        "done": 2,
        "instruction": 2,
    }
    with pytest.raises(
        UserError,
        match="5 demonstrations of place were asked for and 3 of those recorded succeeded",
    ):
        collect.collect_demonstrations("place", 5, tmp_path, noise=0.8, burst=0.1)


def test_play_may_begin_from_any_states(make_env):
    """`play` itself asks for an environment of a kit, states, a generator and a length."""
    kit = Kit(0)
    env = make_env(kit)
    states = dataclasses.replace(collect.play_states(kit, 9)[np.arange(2)], split="pretraining")
    data = play(env, states, np.random.default_rng(0), 2)
    assert {key: value.shape for key, value in data.items()} == {
        "frames": (2, 3, 16, 16, 3),
        "actions": (2, 2, 4),
    }
