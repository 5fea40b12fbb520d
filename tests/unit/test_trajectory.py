"""Trajectories survive the disk bit for bit, official LIBERO files load, and broken files are named
in one sentence.
"""

import json
from dataclasses import fields

import h5py
import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.trajectory import (
    InitialStates,
    Trajectory,
    load_metadata,
    load_observations,
    load_trajectories,
    save_trajectories,
)

ENV_ARGS = {"env_name": "tabletop", "type": 1, "env_kwargs": {"size": 8}}


def make(rng, steps=5, dims=4, size=6, success=True, extras=True, **changes):
    values = dict(
        frames=rng.integers(0, 256, (steps + 1, size, size + 2, 3), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (steps, dims)).astype(np.float32),
        tokens=rng.integers(0, 256, (steps, dims)) if extras else None,
        log_probs=rng.normal(size=(steps, dims)).astype(np.float32) if extras else None,
        success=success,
        finish_step=int(rng.integers(1, steps + 1)) if success else steps,
        instruction="put the peg in the hôle",
        initial_state=rng.normal(size=3),
        split="rollouts",
        index=7,
        group=2,
        chunk=8,
    )
    return Trajectory(**(values | changes))


def assert_identical(a, b):
    for field in fields(Trajectory):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field.name
        else:
            assert x == y and type(x) is type(y), field.name


def write_official(path, *, demos=3, steps=4, data_attrs=None, drop=(), success=True, before=False):
    """A file as LIBERO publishes it: T frames for T actions, each from after its action like the
    joints beside it, `states` from before it; float64 actions, none of our extras. `before`
    re-makes it with frames and joints from before.
    """
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        default = {
            "env_args": json.dumps({"type": 1, "env_name": "Libero_Tabletop_Manipulation"}),
            "num_demos": demos,
            "problem_info": json.dumps({"language_instruction": "pick up the bowl"}),
            "total": demos * steps,
        }
        for key, value in (default if data_attrs is None else data_attrs).items():
            data.attrs[key] = value
        for k in range(demos):
            demo = data.create_group(f"demo_{k}")
            demo.attrs["num_samples"], demo.attrs["init_state"] = steps, np.full(5, float(k))
            counter = 10 * k + np.arange(steps + 1, dtype=np.uint8)
            demo["states"] = np.stack(
                [np.zeros(steps), counter[:-1], rng.normal(size=steps)], axis=1
            )
            counter = counter[:-1] if before else counter[1:]
            demo["obs/joint_states"] = counter[:, None] + np.array([0.0, 0.02])
            demo["obs/agentview_rgb"] = np.broadcast_to(
                counter[:, None, None, None], (steps, 8, 8, 3)
            )
            demo["obs/eye_in_hand_rgb"] = np.zeros((steps, 8, 8, 3), np.uint8)
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
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
    saved = [
        make(
            rng,
            steps=int(rng.integers(1, 40)),
            dims=int(rng.integers(1, 8)),
            success=bool(rng.integers(2)),
            extras=bool(rng.integers(2)),
            instruction=f"task {k % 2}",
            index=k,
            group=k // 4 - 1,
            chunk=1 + k,
        )
        for k in range(12)
    ]
    saved[3].log_probs = (
        None if saved[3].tokens is None else np.full_like(saved[3].actions, -np.inf)
    )
    path = tmp_path / "new" / "data.hdf5"
    save_trajectories(
        path, saved, env_args=ENV_ARGS, provenance={"seed": seed}, compression=compression
    )
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
        assert (
            data["demo_0/rewards"][()].tolist()
            == [0, 0, 1, 0, 0]
            == data["demo_0/dones"][()].tolist()
        )
        assert data["demo_1/rewards"][()].tolist() == [0, 0, 0, 0] and data["demo_1/dones"][
            ()
        ].tolist() == [0, 0, 0, 1]
        assert data["demo_0"].attrs["num_samples"] == 5
        frames = data["demo_0/obs/agentview_rgb"]
        assert frames.shape == (5, 6, 8, 3) and frames.compression == "gzip"
        assert np.array_equal(data["demo_0/next_obs_last/agentview_rgb"], won.frames[-1])
        assert "tokens" in data["demo_0"] and "tokens" not in data["demo_1"]


def test_frames_after_their_action_lose_the_first_action(tmp_path):
    """LIBERO's own recorder: actions[s] leads from frames[s] to frames[s + 1], as everywhere in the
    kit.
    """
    path = write_official(tmp_path / "official.hdf5")
    loaded = load_trajectories(path)
    assert [trajectory.index for trajectory in loaded] == [0, 1, 2]
    second = loaded[1]
    assert second.frames[:, 0, 0, 0].tolist() == [11, 12, 13, 14] and len(second) == 3
    assert second.success and second.finish_step == 3 and second.instruction == "pick up the bowl"
    assert second.split == "demos" and second.group == -1
    assert second.actions.dtype == np.float32 and second.tokens is None and second.log_probs is None
    with h5py.File(path) as file:
        assert np.array_equal(second.actions, file["data/demo_1/actions"][1:].astype(np.float32))
        assert np.array_equal(
            second.initial_state, file["data/demo_1/states"][1]
        )  # of the first frame, not init_state


def test_frames_before_their_action_stay_and_the_last_is_repeated(tmp_path):
    """Files that were re-made by replay; where they keep next_obs, the last frame
    comes from there.
    """
    path = write_official(tmp_path / "official.hdf5", before=True)
    second = load_trajectories(path)[1]
    assert second.frames[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 13] and second.finish_step == 4
    assert second.initial_state.tolist() == [1.0] * 5
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            frames = demo["obs/agentview_rgb"][()]
            demo["next_obs/agentview_rgb"] = np.concatenate([frames[1:], frames[-1:] + 1])
            del demo["states"]
    second = load_trajectories(path)[1]
    assert second.frames[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14] and len(second) == 4
    with h5py.File(path, "a") as file:  # robomimic's name of the same pictures
        for demo in file["data"].values():
            for group in ("obs", "next_obs"):
                demo[group].move("agentview_rgb", "agentview_image")
    again = load_trajectories(path)[1]
    assert np.array_equal(again.frames, second.frames)
    assert set(load_observations(path)[1]) == {"eye_in_hand_rgb", "joint_states"}


@pytest.mark.parametrize("drop", [["obs/joint_states"], ["states"], ["obs/joint_states", "states"]])
def test_where_the_file_does_not_tell_the_user_is_asked(tmp_path, drop):
    path = write_official(tmp_path / "a.hdf5", drop=drop)
    with pytest.raises(
        UserError,
        match="a.hdf5: it does not tell.*before or after.*pictures='before' or pictures='after'",
    ):
        load_trajectories(path)
    after, before = (load_trajectories(path, pictures=said)[1] for said in ("after", "before"))
    assert after.frames[:, 0, 0, 0].tolist() == [11, 12, 13, 14] and len(after) == 3
    assert before.frames[:, 0, 0, 0].tolist() == [11, 12, 13, 14, 14] and len(before) == 4
    assert after.initial_state.tolist() == [] if "states" in drop else after.initial_state[1] == 11
    with pytest.raises(UserError, match="pictures is 'late'; expected 'before', 'after' or None"):
        load_trajectories(path, pictures="late")


def test_a_wrong_word_and_a_mixed_file_are_refused(tmp_path):
    for before, wrong in ((True, "after"), (False, "before")):
        with pytest.raises(UserError, match=f"a.hdf5.*pictures='{wrong}' is wrong"):
            load_trajectories(write_official(tmp_path / "a.hdf5", before=before), pictures=wrong)
    with h5py.File(write_official(tmp_path / "b.hdf5", demos=1, before=True)) as other:
        with h5py.File(write_official(tmp_path / "a.hdf5"), "a") as file:
            other.copy(other["data/demo_0"], file["data"], name="demo_9")
    with pytest.raises(UserError, match="a.hdf5.*some demonstrations"):
        load_trajectories(tmp_path / "a.hdf5")


def test_robot_states_and_slightly_older_joints_tell_as_well(tmp_path):
    """Files without proprioception keep robot_states; what is measured within a step is 2 ms of 50
    older than the state.
    """
    path = write_official(tmp_path / "a.hdf5", demos=1, steps=20)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        joints = demo["obs/joint_states"][()] - 0.04
        del demo["obs/joint_states"]
        demo["obs/ee_pos"] = np.sin(joints)  # another quantity
        demo["robot_states"] = np.concatenate([np.zeros((20, 1)), joints], axis=1)
    assert len(load_trajectories(path)[0]) == 19


def test_a_frame_more_than_actions_begins_the_episode(tmp_path):
    path = write_official(tmp_path / "a.hdf5", demos=1)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        del demo["obs/agentview_rgb"], demo["obs/joint_states"]
        demo["obs/agentview_rgb"] = np.broadcast_to(
            np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 8, 8, 3)
        )
    found = load_trajectories(path)[0]
    assert found.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and len(found) == 4


@pytest.mark.parametrize(
    "data_attrs",
    [
        {"env_args": json.dumps({"language_instruction": "go"})},
        {"env_args": json.dumps({"env_kwargs": {"language_instruction": "go"}})},
        {"problem_info": json.dumps({"language_instruction": ["g", "o"]})},
        {"problem_info": json.dumps({"language_instruction": ["go"]})},
        {"problem_info": np.bytes_(json.dumps({"language_instruction": '"go"'}))},
    ],
)
def test_instruction_is_found_where_files_keep_it(tmp_path, data_attrs):
    assert (
        load_trajectories(write_official(tmp_path / "a.hdf5", data_attrs=data_attrs))[0].instruction
        == "go"
    )


def test_official_variants(tmp_path):
    from_states = load_trajectories(
        write_official(tmp_path / "a.hdf5", drop=["init_state"], before=True)
    )[2]
    assert from_states.initial_state[1] == 20
    from_dones = load_trajectories(write_official(tmp_path / "b.hdf5", drop=["rewards"]))[0]
    assert from_dones.success and from_dones.finish_step == 3
    failed = load_trajectories(write_official(tmp_path / "c.hdf5", success=False))[0]
    assert not failed.success and failed.finish_step == 3


def rewrite(path, attrs=None, **datasets):
    """A file of one demonstration of 9 steps, frames before the actions, with other datasets (None:
    none) and attributes.
    """
    write_official(path, demos=1, steps=9, before=True)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        for key, value in datasets.items():
            if key in demo:
                del demo[key]
            if value is not None:
                demo[key] = value
        for key, value in (attrs or {}).items():
            demo.attrs[key] = value
    return path


END, NEVER, SHAPED = np.eye(9, dtype=np.uint8)[8], np.zeros(9, np.uint8), np.linspace(0.05, 0.6, 9)


@pytest.mark.parametrize(
    "attrs, datasets, expected",
    [
        ({}, {}, (True, 9)),
        ({}, {"rewards": np.eye(9)[4].astype(np.float32), "dones": END}, (True, 5)),
        ({}, {"rewards": np.eye(9)[4][:, None] > 0}, (True, 5)),
        ({}, {"rewards": NEVER}, (False, 9)),  # done at its end, like our own failures
        ({}, {"rewards": None, "dones": np.arange(9) >= 3}, (True, 4)),
        ({}, {"rewards": None, "dones": NEVER}, (False, 9)),
        ({}, {"rewards": SHAPED, "success": np.arange(9) >= 6}, (True, 7)),
        ({}, {"rewards": SHAPED, "success": False}, (False, 9)),
        ({"success": np.bool_(False)}, {"rewards": None, "dones": END}, (False, 9)),
        ({"success": np.array([0])}, {}, (False, 9)),
        ({"success": 1.0}, {"rewards": SHAPED, "dones": np.eye(9)[5]}, (True, 6)),
        (
            {"success": True},
            {"rewards": SHAPED, "dones": NEVER},
            (True, 9),
        ),  # nothing tells the step
        ({"success": True, "finish_step": np.float64(3)}, {}, (True, 3)),
        ({"finish_step": 2}, {}, (True, 2)),
    ],
)
def test_success_is_what_the_file_means(tmp_path, attrs, datasets, expected):
    found = load_trajectories(rewrite(tmp_path / "a.hdf5", attrs, **datasets))[0]
    assert (found.success, found.finish_step) == expected


@pytest.mark.parametrize(
    "attrs, datasets, message",
    [
        (
            {},
            {"rewards": SHAPED},
            "demo_0 has rewards other than 0 and 1.*add an attribute success",
        ),
        ({}, {"rewards": SHAPED, "dones": NEVER}, "rewards other than 0 and 1"),
        ({}, {"rewards": -1.0 + END}, "rewards other than 0 and 1"),
        ({}, {"rewards": np.where(END, np.nan, 0)}, "rewards other than 0 and 1"),
        ({}, {"rewards": np.array([b"no"] * 9)}, "rewards other than 0 and 1"),
        ({}, {"rewards": None, "dones": np.arange(9)}, "dones other than 0 and 1"),
        ({}, {"rewards": END[:6]}, "demo_0 has 6 rewards and 9 actions"),
        ({}, {"rewards": np.append(END, 0)}, "demo_0 has 10 rewards and 9 actions"),
        ({}, {"rewards": None, "dones": END[:4]}, "demo_0 has 4 dones and 9 actions"),
        ({"success": "False"}, {}, "success of demo_0 is 'False'; store it as a boolean"),
        ({"success": 0.6}, {}, "success of demo_0 is 0.6"),
        ({"success": np.array([0, 1])}, {}, "success of demo_0"),
        ({"finish_step": 2.5}, {}, "finish_step of demo_0 is 2.5; store it as an integer"),
        ({"finish_step": "7"}, {}, "finish_step of demo_0"),
        ({"success": False, "finish_step": 3}, {}, "demo_0.*finish_step is 3 with success False"),
        ({"index": "three"}, {}, "index of demo_0"),
        ({"chunk": True}, {}, "chunk of demo_0"),
        ({"num_samples": 7}, {}, "demo_0 has 9 actions, 9 frames and num_samples 7"),
        ({}, {"actions": np.array([[b"up"] * 7] * 9)}, "demo_0 has actions of .*expected numbers"),
        ({"instruction": 7}, {}, "instruction of demo_0 is .*7.*; store it as a string"),
        ({"instruction": np.bytes_(b"\xff\xfe")}, {}, "instruction of demo_0 is no text in UTF-8"),
        ({"init_state": "home"}, {}, "'home'"),
    ],
)
def test_what_has_no_clear_meaning_is_refused(tmp_path, attrs, datasets, message):
    with pytest.raises(UserError, match=f"a.hdf5.*{message}"):
        load_trajectories(rewrite(tmp_path / "a.hdf5", attrs, **datasets))


@pytest.mark.parametrize(
    "value, expected",
    [
        ("put it down", "put it down"),
        (np.bytes_("put it down"), "put it down"),
        (np.array([b"put it down"]), "put it down"),
        (np.array([b"put", b"it", b"down"]), "put it down"),
        (["put ", "it", "down"], "put it down"),
        (list("put it"), "put it"),
        ("", ""),
        ("  ours, as it is ", "  ours, as it is "),
        ("hôle".encode(), "hôle"),
    ],
)
def test_texts_of_every_kind(tmp_path, value, expected):
    for key in ("instruction", "language_instruction"):
        found = load_trajectories(
            rewrite(tmp_path / "a.hdf5", {key: value, "split": np.bytes_("rollouts")})
        )[0]
        assert (found.instruction, found.split) == (expected, "rollouts")


def test_metadata_that_is_no_object_is_refused(tmp_path):
    path = rewrite(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["provenance"] = "[]"
    with pytest.raises(
        UserError, match=r"a.hdf5.*the attribute provenance holds \[\]; store a JSON object"
    ):
        load_metadata(path)


def test_frames_that_never_move_need_no_word(tmp_path):
    path = write_official(tmp_path / "a.hdf5", drop=["states"], demos=1)
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/agentview_rgb"][...] = 7
    assert len(load_trajectories(path)[0]) == 4


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
    for text in (
        "[1]",
        "{not json",
        '"text"',
        '{"language_instruction": 5}',
        '{"language_instruction": {"a": 1}}',
    ):
        with pytest.raises(UserError, match="a.hdf5"):
            load_trajectories(
                write_official(tmp_path / "a.hdf5", data_attrs={"problem_info": text})
            )


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
    for build in (
        lambda file: None,
        lambda file: file.create_dataset("data", data=[1]),
        lambda file: file.create_group("data"),
        lambda file: file.create_dataset("data/demo_0", data=[1]),
    ):
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
        path.write_bytes(content[:start] + rng.bytes(32) + content[start + 32 :])
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
    for trajectories, env_args, error in (
        ([make(rng), broken], {}, UserError),
        ([], {}, UserError),
        ([old], {"x": object()}, TypeError),
    ):
        with pytest.raises(error):
            save_trajectories(path, trajectories, env_args=env_args, provenance={})
    with pytest.raises(UserError, match="compression"):
        save_trajectories(path, [old], env_args={}, provenance={}, compression="zip")
    assert_identical(load_trajectories(path)[0], old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("frames", np.zeros((5, 6, 6, 3), np.uint8)),
        ("frames", np.zeros((6, 6, 6, 3), np.float32)),
        ("frames", np.zeros((6, 6, 6, 4), np.uint8)),
        ("frames", np.zeros((6, 0, 6, 3), np.uint8)),
        ("frames", None),
        ("actions", np.zeros(5)),
        ("actions", np.zeros((0, 4))),
        ("actions", np.full((5, 4), np.nan)),
        ("tokens", np.zeros((5, 3), int)),
        ("tokens", np.zeros((5, 4))),
        ("log_probs", np.zeros(5)),
        ("initial_state", np.zeros((1, 3))),
        ("finish_step", 0),
        ("finish_step", 6),
        ("chunk", 0),
    ],
)
def test_wrong_trajectories_are_refused(name, value):
    with pytest.raises(UserError, match=f"Trajectory.{name}"):
        make(np.random.default_rng(0), **{name: value})


def test_a_failure_ends_at_its_last_step():
    with pytest.raises(UserError, match="finish_step"):
        make(np.random.default_rng(0), success=False, finish_step=3)
    assert len(make(np.random.default_rng(0), success=False)) == 5


def initial_states(rng, size, split="rollouts", frames=True):
    pixels = rng.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8) if frames else None
    return InitialStates(
        rng.normal(size=(size, 3)),
        pixels,
        tuple(f"task {k}" for k in range(size)),
        split,
        rng.permutation(100)[:size],
    )


@pytest.mark.parametrize("frames", [True, False])
def test_initial_states_index_like_arrays(frames):
    batch = initial_states(np.random.default_rng(0), 6, frames=frames)
    for index in (
        slice(1, 5, 2),
        [4, 0, 0],
        np.array([True, False] * 3),
        np.array([], int),
        slice(0, 0),
    ):
        part = batch[index]
        assert len(part) == len(part.instructions) == len(batch.states[index])
        assert np.array_equal(part.states, batch.states[index]) and np.array_equal(
            part.indices, batch.indices[index]
        )
        assert (
            part.frames is None if not frames else np.array_equal(part.frames, batch.frames[index])
        )
    assert batch[[4, 0]].instructions == ("task 4", "task 0") and batch[-1].instructions == (
        "task 5",
    )
    assert [one.instructions[0] for one in batch] == list(batch.instructions)
    with pytest.raises(IndexError):
        batch[6]


def test_repeat_puts_groups_in_a_row_and_concat_inverts_slicing():
    batch = initial_states(np.random.default_rng(0), 3)
    groups = batch.repeat(2)
    assert groups.instructions == ("task 0", "task 0", "task 1", "task 1", "task 2", "task 2")
    assert np.array_equal(groups.indices.reshape(3, 2), np.stack([batch.indices] * 2, axis=1))
    joined = InitialStates.concat([batch[:1], batch[1:]])
    assert np.array_equal(joined.states, batch.states) and np.array_equal(
        joined.frames, batch.frames
    )
    assert joined.instructions == batch.instructions and np.array_equal(
        joined.indices, batch.indices
    )


def test_wrong_initial_states_are_refused():
    rng = np.random.default_rng(0)
    batch = initial_states(rng, 3)
    for parts in (
        [],
        [batch, initial_states(rng, 2, "evaluation")],
        [batch, initial_states(rng, 2, frames=False)],
    ):
        with pytest.raises(UserError, match="concat"):
            InitialStates.concat(parts)
    for changes in (
        {"states": np.zeros(3)},
        {"frames": batch.frames[:2]},
        {"instructions": ("a",)},
        {"indices": [1]},
        {"frames": batch.frames / 255},
    ):
        values = {field.name: getattr(batch, field.name) for field in fields(InitialStates)}
        with pytest.raises(UserError, match="InitialStates"):
            InitialStates(**(values | changes))
