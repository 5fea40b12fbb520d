"""Trajectories survive the disk bit for bit, official LIBERO files load, and broken files are named in one sentence."""

import json
from dataclasses import fields

import h5py
import numpy as np
import pytest

from wmpo_lite.errors import UserError
from wmpo_lite.trajectory import InitialStates, Trajectory, load_metadata, load_trajectories, save_trajectories

ENV_ARGS = {"env_name": "tabletop", "type": 1, "env_kwargs": {"size": 8}}


def make(rng, steps=5, dims=4, size=6, success=True, extras=True, **changes):
    values = dict(
        frames=rng.integers(0, 256, (steps + 1, size, size + 2, 3), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (steps, dims)).astype(np.float32),
        tokens=rng.integers(0, 256, (steps, dims)) if extras else None,
        log_probs=rng.normal(size=(steps, dims)).astype(np.float32) if extras else None,
        success=success, finish_step=int(rng.integers(1, steps + 1)) if success else steps,
        instruction="put the peg in the hôle", initial_state=rng.normal(size=3), split="rollouts", index=7,
        group=2, chunk=8)
    return Trajectory(**(values | changes))


def assert_identical(a, b):
    for field in fields(Trajectory):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field.name
        else:
            assert x == y and type(x) is type(y), field.name


def write_official(path, *, demos=3, steps=4, data_attrs=None, drop=(), success=True):
    """A file as LIBERO publishes it: T frames for T actions, float64 actions, none of our extras."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        default = {"env_args": json.dumps({"type": 1, "env_name": "Libero_Tabletop_Manipulation"}), "num_demos": demos,
                   "problem_info": json.dumps({"language_instruction": "pick up the bowl"}), "total": demos * steps}
        for key, value in (default if data_attrs is None else data_attrs).items():
            data.attrs[key] = value
        for k in range(demos):
            demo = data.create_group(f"demo_{k}")
            demo.attrs["num_samples"], demo.attrs["init_state"] = steps, np.full(5, float(k))
            counter = k + np.arange(steps, dtype=np.uint8)
            demo["obs/agentview_rgb"] = np.broadcast_to(counter[:, None, None, None], (steps, 8, 8, 3))
            demo["obs/eye_in_hand_rgb"] = np.zeros((steps, 8, 8, 3), np.uint8)
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["states"] = np.full((steps, 5), 10.0 + k)
            signal = np.zeros(steps, np.uint8)
            signal[-1] = success
            demo["rewards"], demo["dones"] = signal, signal
            for key in drop:
                if key in demo.attrs:
                    del demo.attrs[key]
                else:
                    del demo[key]
    return path


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_is_bit_exact(tmp_path, seed, compression):
    rng = np.random.default_rng(seed)
    saved = [make(rng, steps=int(rng.integers(1, 40)), dims=int(rng.integers(1, 8)), success=bool(rng.integers(2)),
                  extras=bool(rng.integers(2)), instruction=f"task {k % 2}", index=k, group=k // 4 - 1, chunk=1 + k)
             for k in range(12)]
    saved[3].log_probs = None if saved[3].tokens is None else np.full_like(saved[3].actions, -np.inf)
    path = tmp_path / "new" / "data.hdf5"
    save_trajectories(path, saved, env_args=ENV_ARGS, provenance={"seed": seed}, compression=compression)
    loaded = load_trajectories(path)
    assert len(loaded) == 12  # demo_10 and demo_11 come last although HDF5 lists them before demo_2
    for a, b in zip(saved, loaded):
        assert_identical(a, b)
    assert load_metadata(path) == {"env_args": ENV_ARGS, "provenance": {"seed": seed}}
    assert [entry.name for entry in path.parent.iterdir()] == ["data.hdf5"]


def test_empty_state_and_lone_tokens_survive(tmp_path):
    rng = np.random.default_rng(0)
    trajectory = make(rng, initial_state=np.zeros(0), log_probs=None)
    save_trajectories(tmp_path / "a.hdf5", [trajectory], env_args={}, provenance={})
    assert_identical(trajectory, load_trajectories(tmp_path / "a.hdf5")[0])


def test_layout_is_the_one_of_libero(tmp_path):
    rng = np.random.default_rng(0)
    won, lost = make(rng, steps=5, finish_step=3), make(rng, steps=4, success=False, extras=False)
    save_trajectories(tmp_path / "a.hdf5", [won, lost], env_args=ENV_ARGS, provenance={})
    with h5py.File(tmp_path / "a.hdf5") as file:
        data = file["data"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 9)
        assert json.loads(data.attrs["env_args"]) == ENV_ARGS
        assert json.loads(data.attrs["problem_info"]) == {"language_instruction": won.instruction}
        assert data["demo_0/rewards"][()].tolist() == [0, 0, 1, 0, 0] == data["demo_0/dones"][()].tolist()
        assert data["demo_1/rewards"][()].tolist() == [0, 0, 0, 0] and data["demo_1/dones"][()].tolist() == [0, 0, 0, 1]
        assert data["demo_0"].attrs["num_samples"] == 5
        frames = data["demo_0/obs/agentview_rgb"]
        assert frames.shape == (5, 6, 8, 3) and frames.compression == "gzip"
        assert np.array_equal(data["demo_0/next_obs_last/agentview_rgb"], won.frames[-1])
        assert "tokens" in data["demo_0"] and "tokens" not in data["demo_1"]


def test_official_file_repeats_its_last_frame(tmp_path):
    loaded = load_trajectories(write_official(tmp_path / "official.hdf5"))
    assert [trajectory.index for trajectory in loaded] == [0, 1, 2]
    second = loaded[1]
    assert second.frames[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 4]
    assert second.success and second.finish_step == 4 and second.instruction == "pick up the bowl"
    assert second.initial_state.tolist() == [1.0] * 5 and second.split == "demos" and second.group == -1
    assert second.actions.dtype == np.float32 and second.tokens is None and second.log_probs is None


@pytest.mark.parametrize("data_attrs", [
    {"env_args": json.dumps({"language_instruction": "go"})},
    {"env_args": json.dumps({"env_kwargs": {"language_instruction": "go"}})},
    {"problem_info": json.dumps({"language_instruction": ["g", "o"]})},
    {"problem_info": np.bytes_(json.dumps({"language_instruction": '"go"'}))},
])
def test_instruction_is_found_where_files_keep_it(tmp_path, data_attrs):
    assert load_trajectories(write_official(tmp_path / "a.hdf5", data_attrs=data_attrs))[0].instruction == "go"


def test_official_variants(tmp_path):
    from_states = load_trajectories(write_official(tmp_path / "a.hdf5", drop=["init_state"]))[2]
    assert from_states.initial_state.tolist() == [12.0] * 5
    from_dones = load_trajectories(write_official(tmp_path / "b.hdf5", drop=["rewards"]))[0]
    assert from_dones.success and from_dones.finish_step == 4
    failed = load_trajectories(write_official(tmp_path / "c.hdf5", success=False))[0]
    assert not failed.success and failed.finish_step == 4


@pytest.mark.parametrize("drop", [["obs/agentview_rgb"], ["actions"], ["rewards", "dones"]])
def test_missing_parts_are_named(tmp_path, drop):
    with pytest.raises(UserError, match=f"broken.hdf5.*demo_0 has n.*{drop[0].split('/')[-1]}"):
        load_trajectories(write_official(tmp_path / "broken.hdf5", drop=drop))


def test_frames_that_do_not_match_the_actions_are_refused(tmp_path):
    path = write_official(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((3, 7))
    with pytest.raises(UserError, match="a.hdf5.*demo_1.*frames"):
        load_trajectories(path)


def test_no_instruction_is_refused(tmp_path):
    with pytest.raises(UserError, match="a.hdf5.*language_instruction"):
        load_trajectories(write_official(tmp_path / "a.hdf5", data_attrs={}))
    for text in ("[1]", "{not json", '"text"'):
        with pytest.raises(UserError, match="a.hdf5"):
            load_trajectories(write_official(tmp_path / "a.hdf5", data_attrs={"problem_info": text}))


def test_files_that_are_none_of_ours(tmp_path):
    path = tmp_path / "strange.hdf5"
    with pytest.raises(UserError, match="strange.hdf5 does not exist"):
        load_trajectories(path)
    with pytest.raises(UserError, match=tmp_path.name):
        load_trajectories(tmp_path)
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="strange.hdf5"):
            load_trajectories(path)
    for build in (lambda file: None, lambda file: file.create_dataset("data", data=[1]),
                  lambda file: file.create_group("data"), lambda file: file.create_dataset("data/demo_0", data=[1])):
        with h5py.File(path, "w") as file:
            build(file)
        with pytest.raises(UserError, match="strange.hdf5"):
            load_trajectories(path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "cut.hdf5"
    save_trajectories(path, [make(np.random.default_rng(0))], env_args=ENV_ARGS, provenance={})
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut.hdf5"):
            load_trajectories(path)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "damaged.hdf5"
    save_trajectories(path, [make(rng)], env_args=ENV_ARGS, provenance={})
    content, refused = path.read_bytes(), 0
    for start in rng.integers(0, len(content), 150):
        path.write_bytes(content[:start] + rng.bytes(32) + content[start + 32:])
        try:
            load_trajectories(path)
        except UserError as error:
            refused += 1
            assert "damaged.hdf5" in str(error)
    assert refused > 0


def test_a_failed_save_leaves_the_old_file_alone(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.hdf5"
    old = make(rng)
    save_trajectories(path, [old], env_args=ENV_ARGS, provenance={})
    broken = make(rng)
    broken.actions = broken.actions[:-1]
    for trajectories, env_args, error in (([make(rng), broken], {}, UserError), ([], {}, UserError),
                                          ([old], {"x": object()}, TypeError)):
        with pytest.raises(error):
            save_trajectories(path, trajectories, env_args=env_args, provenance={})
    with pytest.raises(UserError, match="compression"):
        save_trajectories(path, [old], env_args={}, provenance={}, compression="zip")
    assert_identical(load_trajectories(path)[0], old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


@pytest.mark.parametrize("name, value", [
    ("frames", np.zeros((5, 6, 6, 3), np.uint8)), ("frames", np.zeros((6, 6, 6, 3), np.float32)),
    ("frames", np.zeros((6, 6, 6, 4), np.uint8)), ("frames", np.zeros((6, 0, 6, 3), np.uint8)), ("frames", None),
    ("actions", np.zeros(5)), ("actions", np.zeros((0, 4))), ("actions", np.full((5, 4), np.nan)),
    ("tokens", np.zeros((5, 3), int)), ("tokens", np.zeros((5, 4))), ("log_probs", np.zeros(5)),
    ("initial_state", np.zeros((1, 3))), ("finish_step", 0), ("finish_step", 6), ("chunk", 0),
])
def test_wrong_trajectories_are_refused(name, value):
    with pytest.raises(UserError, match=f"Trajectory.{name}"):
        make(np.random.default_rng(0), **{name: value})


def test_a_failure_ends_at_its_last_step():
    with pytest.raises(UserError, match="finish_step"):
        make(np.random.default_rng(0), success=False, finish_step=3)
    assert len(make(np.random.default_rng(0), success=False)) == 5


def initial_states(rng, size, split="rollouts", frames=True):
    pixels = rng.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8) if frames else None
    return InitialStates(rng.normal(size=(size, 3)), pixels, tuple(f"task {k}" for k in range(size)), split,
                         rng.permutation(100)[:size])


@pytest.mark.parametrize("frames", [True, False])
def test_initial_states_index_like_arrays(frames):
    batch = initial_states(np.random.default_rng(0), 6, frames=frames)
    for index in (slice(1, 5, 2), [4, 0, 0], np.array([True, False] * 3), np.array([], int), slice(0, 0)):
        part = batch[index]
        assert len(part) == len(part.instructions) == len(batch.states[index])
        assert np.array_equal(part.states, batch.states[index]) and np.array_equal(part.indices, batch.indices[index])
        assert part.frames is None if not frames else np.array_equal(part.frames, batch.frames[index])
    assert batch[[4, 0]].instructions == ("task 4", "task 0") and batch[-1].instructions == ("task 5",)
    assert [one.instructions[0] for one in batch] == list(batch.instructions)
    with pytest.raises(IndexError):
        batch[6]


def test_repeat_puts_groups_in_a_row_and_concat_inverts_slicing():
    batch = initial_states(np.random.default_rng(0), 3)
    groups = batch.repeat(2)
    assert groups.instructions == ("task 0", "task 0", "task 1", "task 1", "task 2", "task 2")
    assert np.array_equal(groups.indices.reshape(3, 2), np.stack([batch.indices] * 2, axis=1))
    joined = InitialStates.concat([batch[:1], batch[1:]])
    assert np.array_equal(joined.states, batch.states) and np.array_equal(joined.frames, batch.frames)
    assert joined.instructions == batch.instructions and np.array_equal(joined.indices, batch.indices)


def test_wrong_initial_states_are_refused():
    rng = np.random.default_rng(0)
    batch = initial_states(rng, 3)
    for parts in ([], [batch, initial_states(rng, 2, "evaluation")], [batch, initial_states(rng, 2, frames=False)]):
        with pytest.raises(UserError, match="concat"):
            InitialStates.concat(parts)
    for changes in ({"states": np.zeros(3)}, {"frames": batch.frames[:2]}, {"instructions": ("a",)}, {"indices": [1]},
                    {"frames": batch.frames / 255}):
        values = {field.name: getattr(batch, field.name) for field in fields(InitialStates)}
        with pytest.raises(UserError, match="InitialStates"):
            InitialStates(**(values | changes))
