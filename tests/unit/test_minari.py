"""Minari data sets in and out, pictures bit for bit. `findings/minari_reads_the_kit.sh` has minari
itself read one.
"""

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from wmpo_lite.common.errors import UserError
from wmpo_lite.datagen import minari
from wmpo_lite.datagen.convert import convert
from wmpo_lite.trajectory import Trajectory, load_metadata, load_trajectories, save_trajectories


def episodes():
    rng = np.random.default_rng(0)
    for n in range(3):
        yield Trajectory(
            frames=rng.integers(0, 256, (7, 40, 40, 3), np.uint8),
            actions=rng.uniform(-1, 1, (6, 4)),
            success=n < 2,
            finish_step=(4, 6, 6)[n],
            instruction=f"put cube {n} away",
            initial_state=rng.normal(size=5),
            split="rollouts",
            index=10 + n,
            chunk=4,
        )


def test_there_and_back_everything_is_equal(tmp_path):
    about = {"env_args": {"task": "place", "mujoco": "3.17.0"}, "provenance": {"seed": 1}}
    save_trajectories(tmp_path / "a.hdf5", episodes(), **about)
    made = convert(tmp_path / "a.hdf5", tmp_path / "kit" / "a-v0")
    assert (
        made["episodes"] == 3
        and made["successes"] == 2
        and minari.is_dataset(tmp_path / "kit" / "a-v0")
    )
    convert(tmp_path / "kit" / "a-v0", tmp_path / "b.hdf5")
    for one, two in zip(episodes(), load_trajectories(tmp_path / "b.hdf5"), strict=True):
        for name in ("frames", "actions", "initial_state"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
        for name in ("success", "finish_step", "instruction", "split", "index", "chunk"):
            assert getattr(one, name) == getattr(two, name), name
    assert load_metadata(tmp_path / "b.hdf5")["env_args"] == about["env_args"]


def foreign(folder, coded=False, infos=True):
    """A data set as minari 0.5.4 writes it, of an environment with pictures and numbers."""
    (folder / "data").mkdir(parents=True)
    frames = next(episodes()).frames
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        if coded:
            parts = [io.BytesIO() for _ in frames]
            for frame, part in zip(frames, parts):
                Image.fromarray(frame).save(part, "JPEG")
            kind = h5py.vlen_dtype(np.uint8)
            seen = episode.create_dataset("observations/pixels", (len(frames),), kind)
            seen[:] = [np.frombuffer(part.getvalue(), np.uint8) for part in parts]
        else:
            episode["observations/pixels"] = frames
        episode["observations/agent_pos"] = np.zeros((len(frames), 2))
        episode["actions"], episode["rewards"] = np.zeros((6, 2), np.float32), np.zeros(6)
        episode["terminations"], episode["truncations"] = np.zeros(6, bool), np.arange(6) == 5
        if infos:
            episode["infos/is_success"] = np.arange(7) >= 5
    about = {"total_episodes": 1, "jpeg_encoding": coded}
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    return frames


def test_others_data_sets_are_read_and_what_they_do_not_tell_is_asked_for(tmp_path):
    frames = foreign(tmp_path / "push-v0")
    (found,), _ = minari.read(tmp_path / "push-v0")
    assert np.array_equal(found.frames, frames) and found.actions.shape == (6, 2)
    assert found.success and found.finish_step == 5
    foreign(tmp_path / "silent-v0", infos=False)
    with pytest.raises(UserError, match="does not tell whether it succeeded.*--success"):
        minari.read(tmp_path / "silent-v0")
    assert not minari.read(tmp_path / "silent-v0", success=False)[0][0].success


def test_jpeg_is_read_with_a_warning(tmp_path):
    frames = foreign(tmp_path / "push-v0", coded=True)
    with pytest.warns(UserWarning, match="JPEG: they are not what was recorded"):
        (found,), _ = minari.read(tmp_path / "push-v0")
    assert found.frames.shape == frames.shape and not np.array_equal(found.frames, frames)


def test_a_damaged_data_set_is_named(tmp_path):
    foreign(tmp_path / "push-v0")
    path = tmp_path / "push-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="Cannot read Minari episodes from .*push-v0"):
        minari.read(tmp_path / "push-v0")
