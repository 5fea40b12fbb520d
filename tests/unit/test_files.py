"""Files are complete or absent; a disk that refuses and JSON of another shape are one sentence."""

import errno
import os

import h5py
import numpy as np
import pytest
import tiny

from wmpo_lite.autoencoder import Autoencoder
from wmpo_lite.common import checkpoint, files
from wmpo_lite.common.errors import UserError
from wmpo_lite.reward import RewardModel
from wmpo_lite.train import MetricsLog
from wmpo_lite.trajectory import load_trajectories, save_trajectories


@pytest.fixture
def full(monkeypatch):
    """A disk without room: whatever is written through Python's files ends half-way."""
    real = open

    def refuse(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode="r", *more, **options):
        file = real(path, mode, *more, **options)
        if mode[0] not in "wa":
            return file
        return type(
            "Full",
            (),
            {
                "write": refuse,
                "__enter__": lambda self: self,
                "__exit__": lambda self, *e: file.close(),
                **{
                    name: (lambda n: lambda self, *a: getattr(file, n)(*a))(name)
                    for name in ("flush", "fileno", "seek", "read", "truncate", "close")
                },
            },
        )()

    monkeypatch.setattr(files, "open", opened, raising=False)


def writers(folder):
    return {
        "JSON": lambda: checkpoint.write_json(folder / "new" / "a.json", {"a": 1}),
        "tensors": lambda: checkpoint.save_tensors(
            folder / "new" / "a.safetensors", tiny.policy().state_dict()
        ),
        "HDF5": lambda: save_trajectories(
            folder / "new" / "a.hdf5", tiny.trajectories(2), env_args={}, provenance={}
        ),
        "a module": lambda: tiny.policy().save(folder / "new" / "policy"),
        "a log": lambda: MetricsLog(folder / "new" / "metrics.jsonl")({"stage": "a", "step": 1}),
    }


@pytest.mark.parametrize("what", list(writers(None)))
def test_a_full_disk_is_one_sentence_and_nothing_half_written_stays(tmp_path, full, what):
    with pytest.raises(
        UserError, match="cannot write .*No space left on device.*free some disk space"
    ) as raised:
        writers(tmp_path)[what]()
    assert str(tmp_path / "new") in str(raised.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("what", list(writers(None)))
def test_a_file_where_a_folder_is_wanted_is_one_sentence(tmp_path, what):
    (tmp_path / "new").write_text("mine")
    with pytest.raises(UserError, match="something else is in its way") as raised:
        writers(tmp_path)[what]()
    assert (
        str(tmp_path / "new") in str(raised.value)
        and (tmp_path / "new").read_text() == "mine"
        and len(list(tmp_path.iterdir())) == 1
    )


def test_a_folder_that_may_not_be_written_to_is_named(monkeypatch, tmp_path):
    def refuse(*a, **k):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "runs"))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied.*permissions or choose another folder"):
        files.make_folder(tmp_path / "runs" / "a")


def test_a_full_disk_leaves_the_old_file_and_the_old_model(tmp_path, monkeypatch, full):
    with monkeypatch.context() as roomy:
        roomy.delattr(files, "open")
        checkpoint.write_json(tmp_path / "a.json", {"old": True})
        tiny.reward_model().save(tmp_path / "reward")
        MetricsLog(tmp_path / "log")({"stage": "old", "step": 1})
        before = (tmp_path / "log").read_bytes()
    for change in (
        lambda: checkpoint.write_json(tmp_path / "a.json", {}),
        lambda: tiny.shake(tiny.reward_model()).save(tmp_path / "reward"),
        lambda: MetricsLog(tmp_path / "log")({"stage": "new", "step": 2}),
    ):
        with pytest.raises(UserError):
            change()
    assert (
        checkpoint.read_json(tmp_path / "a.json") == {"old": True}
        and (tmp_path / "log").read_bytes() == before
    )
    own = RewardModel.load(tmp_path / "reward").state_dict()
    assert all((own[key] == value).all() for key, value in tiny.reward_model().state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "reward", "log"}


def test_an_unbuffered_file_that_takes_a_part_is_given_the_rest():
    class Slow:
        taken = b""

        def write(self, data):
            self.taken += bytes(data[:3])
            return min(3, len(data))

    files.write_all(slow := Slow(), b"0123456789")
    assert slow.taken == b"0123456789"


def test_trajectories_still_come_back_bit_for_bit(tmp_path):
    made = tiny.trajectories(3)
    save_trajectories(tmp_path / "a.hdf5", made, env_args={"task": "place"}, provenance={})
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["data"].attrs["num_demos"] == 3
    assert all(
        np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        for a, b in zip(made, load_trajectories(tmp_path / "a.hdf5"))
    )


def test_a_line_goes_after_half_a_line_that_a_kill_has_left(tmp_path):
    (tmp_path / "log").write_bytes(b'{"a": 1}\n{"b"')
    files.append(tmp_path / "log", b'{"c": 3}')
    assert (tmp_path / "log").read_bytes() == b'{"a": 1}\n{"b"\n{"c": 3}\n'


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with files.whole_folder(tmp_path / "a") as staging:
            (staging / "new").write_text("half")
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]
    with files.whole_folder(tmp_path / "a") as staging:
        (staging / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]


@pytest.mark.parametrize(
    "use", [lambda folder: Autoencoder.load(folder), lambda folder: tiny.autoencoder().save(folder)]
)
def test_what_a_kill_between_two_renames_has_put_aside_comes_back(tmp_path, use):
    tiny.autoencoder().save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.old")
    (tmp_path / "a.part").mkdir()
    use(tmp_path / "a")
    assert (tmp_path / "a" / "model.safetensors").is_file() and not (tmp_path / "a.old").exists()


# -- arrays ----------------------------------------------------------------------------------------


def test_arrays_come_back_and_damage_is_one_sentence(tmp_path):
    path, wanted = (
        tmp_path / "a.npz",
        {
            "frames": tiny.noise_frames(3),
            "words": np.array(["a", "b"]),
        },
    )
    np.savez_compressed(path, **wanted)
    found = files.read_arrays(path)
    assert set(found) == set(wanted) and all((found[key] == wanted[key]).all() for key in wanted)
    whole = bytearray(path.read_bytes())
    for broken in (
        whole[: len(whole) // 2],
        whole[:60] + bytes(30) + whole[90:],
        b"",
        b"\x93NUMPY",
    ):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="a.npz cannot be read as arrays .*move it away"):
            files.read_arrays(path)
    np.savez(path, objects=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="cannot be read as arrays"):
        files.read_arrays(path)
    with pytest.raises(UserError, match="a.npz is missing"):
        files.read_arrays(path.with_name("b") / "a.npz")


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, shape, message",
    [
        ("[]", dict, "a list where an object is expected"),
        ("null", dict, "null where"),
        ("3", dict, "a whole number where"),
        ('"x"', [dict], "text where a list"),
        ("{}", {"a": int}, "no 'a'"),
        ('{"a": true}', {"a": int}, r"true or false where a whole number is expected \('a'\)"),
        ('{"a": 1.5}', {"a": int}, "a number where"),
        ('{"a": {"b": []}}', {"a": {"b": float}}, r"a list where a number is expected \('b'\)"),
        ('[{"a": 1}, {}]', [{"a": float}], r"no 'a' \(element 1"),
        ("[" * 100_000, dict, "not valid JSON"),
        ("\xff", dict, "not valid JSON"),
        ("", dict, "not valid JSON"),
    ],
)
def test_json_of_another_shape_is_refused_with_the_files_name(tmp_path, text, shape, message):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as raised:
        files.read_json(tmp_path / "a.json", shape)
    assert str(tmp_path / "a.json") in str(raised.value) and "\n" not in str(raised.value)


def test_json_that_fits_is_returned_as_it_is(tmp_path):
    value = {"a": 1, "b": [{"c": 2.5}], "d": None, "e": "ä"}
    files.write_json(tmp_path / "a.json", value)
    assert (
        files.read_json(tmp_path / "a.json")
        == files.read_json(tmp_path / "a.json", {"a": float, "b": [{"c": float}], "d": None})
        == value
    )


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            files.read_json(path)
    with pytest.raises(UserError, match="cannot read"):
        checkpoint.checksum(tmp_path / "none")


@pytest.mark.parametrize(
    "change", [[], {"clip": "four"}, {"clip": True}, {"width": [1]}, {"class": 3}]
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, change):
    tiny.reward_model().save(tmp_path / "reward")
    path = tmp_path / "reward" / "config.json"
    checkpoint.write_json(
        path, change if isinstance(change, list) else checkpoint.read_json(path) | change
    )
    with pytest.raises(UserError, match="reward"):
        RewardModel.load(tmp_path / "reward")
    (tmp_path / "reward" / "model.safetensors").unlink()
    with pytest.raises(UserError):
        RewardModel.load(tmp_path / "reward")
