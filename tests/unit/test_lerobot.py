"""LeRobot's folders: what lerobot 0.6.1 wrote is read, what is written here comes back bit for bit
and has the layout that LeRobot reads.
"""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from wmpo_lite import cli
from wmpo_lite.common import lerobot
from wmpo_lite.common.errors import UserError
from wmpo_lite.datagen import lerobot as writer
from wmpo_lite.datagen.convert import convert
from wmpo_lite.trajectory import (
    Trajectory,
    load_metadata,
    load_observations,
    load_trajectories,
    save_trajectories,
)

DATA = Path(__file__).resolve().parents[1] / "data"
sys.path.insert(0, str(DATA))
import make_lerobot as made  # noqa: E402  how the folders in tests/data were made

NAMES = [f"{joint}.pos" for joint in made.JOINTS]
FIELDS = ("frames", "actions", "tokens", "log_probs", "initial_state")
FIELDS += ("success", "finish_step", "instruction", "split", "index", "group", "chunk")


def episodes(count=5, size=12, dims=4, tokens=True, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        steps = 3 + i
        found.append(
            Trajectory(
                frames=rng.integers(0, 256, (steps + 1, size, size, 3), np.uint8),
                actions=rng.normal(size=(steps, dims)).astype(np.float32),
                tokens=rng.integers(0, 21, (steps, dims)) if tokens else None,
                log_probs=rng.normal(size=(steps, dims)) if tokens else None,
                success=i % 2 == 0,
                finish_step=2 if i % 2 == 0 else steps,
                instruction=("put the red cube on the plate", "lift")[i % 2],
                initial_state=rng.normal(size=i),  # of other lengths, and none
                split="rollouts",
                index=10 + i,
                group=i // 2,
                chunk=4,
            )
        )
    return found


def arrays(trajectories, seed=1):
    """Another camera, and numbers of single and double precision, one and several a step."""
    rng = np.random.default_rng(seed)
    return [
        {
            "wrist_rgb": rng.integers(0, 256, (len(t), 8, 10, 3), np.uint8),
            "joints": rng.normal(size=(len(t), 6)).astype(np.float32),
            "pose": rng.normal(size=(len(t), 3)),
            "width": rng.normal(size=len(t)),
        }
        for t in trajectories
    ]


def info(folder):
    return json.loads((folder / "meta" / "info.json").read_text())


def same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        for name in FIELDS:
            a, b = getattr(one, name), getattr(other, name)
            assert np.array_equal(a, b) and type(a) is type(b), name
            assert not isinstance(a, np.ndarray) or a.dtype == b.dtype, name


def same_arrays(ones, others):
    assert [set(one) for one in ones] == [set(other) for other in others]
    for one, other in zip(ones, others):
        assert all(np.array_equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ what lerobot wrote


def test_images_that_lerobot_wrote_are_read_exactly():
    fields, more, about = lerobot.read(DATA / "lerobot_images", success=False)
    assert [len(f["actions"]) for f in fields] == list(made.LENGTHS)
    assert about["fps"] == made.FPS and about["camera"] == "front"
    assert about["action_names"] == about["state_names"] == NAMES
    assert about["robot_type"] == "so101_follower"
    for e, (f, arrays) in enumerate(zip(fields, more)):
        assert f["instruction"] == made.TASKS[e % 2] and f["index"] == e and f["split"] == "demos"
        for s in range(made.LENGTHS[e]):
            assert np.array_equal(f["frames"][s], made.picture(e, s))
            assert np.array_equal(f["actions"][s], made.numbers(e, s, 1))
            assert np.array_equal(arrays["state"][s], made.numbers(e, s, 0))
        assert np.array_equal(f["frames"][-1], f["frames"][-2])  # there is none after the last
        assert f["actions"].dtype == arrays["state"].dtype == np.float32


def test_videos_that_lerobot_wrote_are_read_and_their_lag_is_named():
    with pytest.warns(UserWarning, match="lerobot_video.*file-000.mp4.*a frame earlier.*g=1"):
        fields, _, _ = lerobot.read(DATA / "lerobot_video", success=False)
    assert [f["frames"].shape for f in fields] == [(n + 1, 64, 64, 3) for n in made.LENGTHS]
    for e, f in enumerate(fields):
        shown = f["frames"][:-1].astype(int)
        wanted = np.stack([made.picture(e, s) for s in range(made.LENGTHS[e])]).astype(int)
        error = np.abs(shown[:, None] - wanted).mean(axis=(2, 3, 4))  # shown against every frame
        assert (error.argmin(axis=1) == np.arange(made.LENGTHS[e])).all() and error.min() > 0


def test_a_recording_that_was_killed_is_named():
    with pytest.raises(UserError, match="counts 2 episodes and 0 can be read.*data/.*file-000"):
        lerobot.read(DATA / "lerobot_killed", success=False, partial=True)


def test_success_is_asked_for_where_nothing_tells_it():
    with pytest.raises(UserError, match="episode 0 has neither next.success.*--success"):
        load_trajectories(DATA / "lerobot_images")


def test_a_folder_of_lerobot_goes_through_hdf5_and_back(tmp_path):
    convert(DATA / "lerobot_images", tmp_path / "a.hdf5", success=True)
    with h5py.File(tmp_path / "a.hdf5") as file:
        state = file["data/demo_1/obs/state"][()]
        assert np.array_equal(state[3], made.numbers(1, 3, 0)) and state.dtype == np.float32
    convert(tmp_path / "a.hdf5", tmp_path / "b")
    one, two = info(DATA / "lerobot_images"), info(tmp_path / "b")
    for name, feature in one["features"].items():
        assert two["features"][name] == feature, name
    for name in ("codebase_version", "fps", "robot_type", "total_episodes", "total_frames"):
        assert one[name] == two[name]
    was = pq.read_table(DATA / "lerobot_images/data/chunk-000/file-000.parquet")
    now = pq.read_table(tmp_path / "b/data/chunk-000/file-000.parquet")
    for name in set(was.column_names) - {"observation.images.front"}:
        assert was[name].type == now[name].type and was[name].to_pylist() == now[name].to_pylist()


def test_statistics_are_those_that_lerobot_computes(tmp_path):
    convert(DATA / "lerobot_images", tmp_path / "a", success=True)
    theirs, ours = (
        json.loads((p / "meta/stats.json").read_text())
        for p in (DATA / "lerobot_images", tmp_path / "a")
    )
    for name, stats in theirs.items():
        for key in ("min", "max", "mean", "std"):
            assert np.shape(ours[name][key]) == np.shape(stats[key])
            assert np.allclose(ours[name][key], stats[key], rtol=1e-4, atol=1e-3), (name, key)
        assert set(ours[name]) == set(stats)


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("file_bytes", [10**8, 3000])
def test_a_round_trip_is_bit_exact(tmp_path, tokens, file_bytes):
    trajectories = episodes(tokens=tokens)
    more = arrays(trajectories)
    about = {"env_args": {"task": "place"}, "provenance": {"seed": 3}}
    writer.write(tmp_path / "a", trajectories, more, fps=5, metadata=about, file_bytes=file_bytes)
    files = sorted((tmp_path / "a" / "data").glob("*/*.parquet"))
    assert len(files) == (1 if file_bytes == 10**8 else 5)
    same(trajectories, load_trajectories(tmp_path / "a"))
    same_arrays(more, lerobot.read(tmp_path / "a")[1])
    assert load_metadata(tmp_path / "a") == about


def test_hdf5_to_lerobot_and_back_is_bit_exact(tmp_path):
    trajectories = episodes()
    more, about = arrays(trajectories), {"env_args": {"task": "place"}, "provenance": {"seed": 3}}
    save_trajectories(tmp_path / "a.hdf5", trajectories, observations=more, **about)
    same_arrays(more, load_observations(tmp_path / "a.hdf5"))
    convert(tmp_path / "a.hdf5", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.hdf5")
    same(trajectories, load_trajectories(tmp_path / "c.hdf5"))
    same_arrays(more, load_observations(tmp_path / "c.hdf5"))
    found = load_metadata(tmp_path / "c.hdf5")
    assert found["env_args"] == about["env_args"] and found["provenance"]["seed"] == 3
    assert found["provenance"]["lerobot"]["action_names"] == ["dx", "dy", "dz", "gripper"]
    convert(tmp_path / "b", tmp_path / "d", camera="wrist")
    other = load_trajectories(tmp_path / "d")
    assert all(np.array_equal(t.frames[:-1], a["wrist_rgb"]) for t, a in zip(other, more))


def test_single_precision_stays_where_it_is_exact(tmp_path):
    trajectories = episodes(tokens=False)
    kept = [{"joints": a["joints"]} for a in arrays(trajectories)]
    for name, more in (("a", kept), ("b", arrays(trajectories))):
        writer.write(tmp_path / name, trajectories, more, fps=5)
        kind = info(tmp_path / name)["features"]["observation.state"]
        assert kind["dtype"] == ("float32" if name == "a" else "float64")
        assert kind["shape"] == ([6] if name == "a" else [10])
        assert kind["names"][:2] == ["joints.0", "joints.1"]


def test_the_layout_is_lerobots(tmp_path):
    trajectories = episodes(3, tokens=False)
    writer.write(tmp_path / "a", trajectories, fps=5)
    data = pq.ParquetFile(tmp_path / "a/data/chunk-000/file-000.parquet")
    table = data.read()
    assert data.num_row_groups == 3  # an episode each
    assert table["index"].to_pylist() == list(range(12))
    assert table["frame_index"].to_pylist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert np.allclose(table["timestamp"], np.array(table["frame_index"]) / 5)
    assert table["task_index"].to_pylist() == [0] * 3 + [1] * 4 + [0] * 5
    assert table["next.success"].to_pylist()[:7] == [False, True, False] + [False] * 4
    assert table["next.done"].to_pylist()[:7] == [False, True, False] + [False] * 3 + [True]
    picture = table["observation.images.agentview"][4].as_py()
    assert picture["bytes"].startswith(b"\x89PNG") and picture["path"] is None
    rows = pq.read_table(tmp_path / "a/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 3, 7]
    assert [row["dataset_to_index"] for row in rows] == [3, 7, 12]
    assert [row["tasks"] for row in rows] == [[t.instruction] for t in trajectories]
    tasks = pq.read_schema(tmp_path / "a/meta/tasks.parquet")
    assert json.loads(tasks.metadata[b"pandas"])["index_columns"] == ["task"]


def test_official_recordings_lose_the_first_action_and_keep_their_states(tmp_path):
    import test_trajectory

    path = test_trajectory.write_official(tmp_path / "official.hdf5")
    with h5py.File(path) as file:
        joints = [file[f"data/demo_{k}/obs/joint_states"][()] for k in range(3)]
    convert(path, tmp_path / "a", fps=20)
    same_frames = load_trajectories(path), load_trajectories(tmp_path / "a")
    same(*same_frames)
    states = [more["joint_states"] for more in lerobot.read(tmp_path / "a")[1]]
    for whole, kept in zip(joints, states):
        assert np.array_equal(whole[:-1], kept)  # measured with the frame before each kept action


# ------------------------------------------------------------------ killed, damaged, foreign


@pytest.fixture
def folder(tmp_path):
    writer.write(tmp_path / "a", episodes(), arrays(episodes()), fps=5, file_bytes=3000)
    return tmp_path / "a"


def cut(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def test_what_has_a_footer_is_read_and_what_has_not_is_named(folder, tmp_path):
    cut(folder / "data/chunk-000/file-004.parquet")
    with pytest.raises(UserError, match="5 episodes and 4 can be read.*file-004.*--partial"):
        load_trajectories(folder)
    with pytest.warns(UserWarning, match="4 can be read.*file-004.parquet has no footer"):
        made = convert(folder, tmp_path / "b.hdf5", partial=True)
    assert made["episodes"] == 4
    same(episodes()[:4], load_trajectories(tmp_path / "b.hdf5"))


def test_without_the_rows_of_the_episodes_the_data_tells_what_it_can(folder):
    cut(folder / "meta/episodes/chunk-000/file-000.parquet")
    with pytest.raises(UserError, match="episodes/chunk-000/file-000.parquet has no footer"):
        lerobot.read(folder)
    with pytest.warns(UserWarning, match="has no footer"):
        fields, _, _ = lerobot.read(folder, partial=True)
    for f, t in zip(fields, episodes()):
        assert np.array_equal(f["actions"], t.actions) and f["success"] == t.success
        assert np.array_equal(f["frames"][:-1], t.frames[:-1]) and f["finish_step"] == t.finish_step


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("info.json", lambda x: x | {"codebase_version": "v2.1"}, "format v2.1, expected v3.0"),
        ("info.json", lambda x: x | {"fps": "fast"}, "info.json has text where a number"),
        ("info.json", lambda x: x | {"total_episodes": 7}, "counts 7 episodes and 5 can be read"),
        ("info.json", lambda x: x | {"features": {}}, "cannot be read as a LeRobot dataset"),
        ("info.json", lambda x: x | {"features": {"action": {}, "a": 3}}, "cannot be read as"),
    ],
)
def test_what_is_edited_is_refused(folder, name, change, message):
    path = folder / "meta" / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        lerobot.read(folder)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "data/chunk-000/file-001.parquet"])
def test_files_that_are_missing_are_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match="tasks.parquet" if "tasks" in name else "4 can be read"):
        lerobot.read(folder)


def test_several_cameras_and_none_named_agentview_have_to_be_chosen(tmp_path):
    trajectories = episodes(tokens=False)
    writer.write(tmp_path / "a", trajectories, arrays(trajectories), fps=5, about={"camera": "top"})
    assert np.array_equal(load_trajectories(tmp_path / "a")[0].frames, trajectories[0].frames)
    (tmp_path / "a" / "meta" / "wmpo_lite.json").unlink()
    with pytest.raises(UserError, match="cameras top, wrist; choose one of them with --camera"):
        lerobot.read(tmp_path / "a")
    with pytest.raises(UserError, match="cameras top, wrist and no side; choose"):
        lerobot.read(tmp_path / "a", camera="side")
    fields, more, _ = lerobot.read(tmp_path / "a", camera="top")
    assert np.array_equal(fields[0]["frames"][:-1], trajectories[0].frames[:-1])
    assert "wrist_rgb" in more[0]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"depth": np.zeros((3, 4, 4), np.float32)}, "'depth'.*has no place in LeRobot's columns"),
        ({"joints": np.zeros((2, 6))}, "'joints'.*has no place in LeRobot's columns for 3 steps"),
        ({"names": np.array(["a", "b", "c"])}, "'names'.*has no place"),
    ],
)
def test_arrays_without_a_place_are_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        writer.write(tmp_path / "a", episodes(1), [more], fps=5)
    assert not (tmp_path / "a").exists()


def test_trajectories_that_differ_are_refused(tmp_path):
    with pytest.raises(UserError, match="trajectory 1 has other columns"):
        writer.write(tmp_path / "a", [*episodes(1), *episodes(1, dims=7)], fps=5)
    with pytest.raises(UserError, match="0 trajectories at 5"):
        writer.write(tmp_path / "a", [], fps=5)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_what_cannot_be_told_is_asked(tmp_path):
    save_trajectories(tmp_path / "a.hdf5", episodes(), env_args={}, provenance={})
    with pytest.raises(UserError, match="a.hdf5 exists; choose another name"):
        convert(tmp_path / "a.hdf5", tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="control steps a second has; say --fps"):
        convert(tmp_path / "a.hdf5", tmp_path / "b")
    with pytest.raises(UserError, match="there is no obs/joints; choose from none"):
        convert(tmp_path / "a.hdf5", tmp_path / "b", fps=5, observations=("joints",))
    with pytest.raises(UserError, match="has no meta/info.json"):
        convert(tmp_path, tmp_path / "b", fps=5)


def test_the_command_converts_and_says_what(tmp_path, capsys):
    source = str(DATA / "lerobot_images")
    cli.main(["convert", source, str(tmp_path / "a.hdf5"), "--success", "False"])
    assert "a.hdf5: 3 episodes, 19 steps, 0 successes; arrays beside the frames: state" in (
        capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", source, str(tmp_path / "b.hdf5")])
    assert ended.value.code == 1 and "--success" in capsys.readouterr().err


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None; from wmpo_lite import cli; "
        f"cli.main(['convert', {str(DATA / 'lerobot_images')!r}, {str(tmp_path / 'a.hdf5')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'wmpo_lite[lerobot]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_kill_leaves_no_half_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_info", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "a", episodes(), fps=5)
    assert not list(tmp_path.iterdir())


def test_the_fixtures_stay_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 300_000
