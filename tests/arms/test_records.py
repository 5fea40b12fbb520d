"""Nothing recorded is lost: journals of other versions, journals cut anywhere, disks that are full
in mid-motion; and systems without Linux's signals.
"""

import errno
import json
import os
import signal
import sys
import threading

import numpy as np
import pytest

from wmpo_lite.arms import deploy, records
from wmpo_lite.arms.estop import Keys, signals_interrupt
from wmpo_lite.common.errors import UserError
from wmpo_lite.trajectory import load_trajectories

PICTURE = np.full((8, 8, 3), 7, np.uint8)


def journal(folder, steps=20, number=0):
    path = folder / f"episode_{number:04d}.journal"
    recording = records.Recording("put the red cube on the plate", np.zeros(5), PICTURE, path=path)
    for _ in range(steps):
        recording.step(PICTURE, *np.zeros((3, 4)), False)
    recording.close()
    return path


def rewrite(path, change):
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(change(json.loads(head)) + b"\n" + body)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda head: json.dumps({**head, "camera": "front"}).encode(),
        lambda head: json.dumps({**head, "path": "x"}).encode(),
        lambda head: json.dumps([]).encode(),
        lambda head: json.dumps({k: v for k, v in head.items() if k != "chunk"}).encode(),
        lambda head: json.dumps({**head, "shape": [8, 8, 4]}).encode(),
        lambda head: json.dumps({**head, "initial_state": "zero"}).encode(),
        lambda head: b"what",
    ],
)
def test_a_journal_of_another_version_is_kept_and_said_so(tmp_path, change):
    before = rewrite(journal(tmp_path), change)
    with pytest.warns(
        UserWarning, match="episode_0000.journal.*kept as episode_0000.journal.unread"
    ):
        assert records.recover(tmp_path, "place") == []
    again = rewrite(
        journal(tmp_path), change
    )  # another episode of this number does not overwrite it
    with pytest.warns(UserWarning, match="unread1"):
        records.recover(tmp_path, "place")
    assert (tmp_path / "episode_0000.journal.unread").read_bytes() == before and (
        tmp_path / "episode_0000.journal.unread1"
    ).read_bytes() == again
    assert records.recover(tmp_path, "place") == [] and len(list(tmp_path.iterdir())) == 2


def test_a_journal_may_be_cut_anywhere(tmp_path):
    whole = journal(tmp_path, steps=3).read_bytes()
    row = 3 * 4 * 8 + 1 + PICTURE.size
    for lost, steps in ((0, 3), (1, 2), (row, 2), (2 * row + 5, 0)):
        (tmp_path / "episode_0000.journal").write_bytes(whole[: len(whole) - lost])
        (path,) = records.recover(tmp_path, "place")
        assert len(load_trajectories(path)[0]) == max(1, steps)
    for kept in (0, 10, whole.index(b"\n") + 20):  # nothing had moved yet
        (tmp_path / "episode_0000.journal").write_bytes(whole[:kept])
        assert (
            records.recover(tmp_path, "place") == []
            and not (tmp_path / "episode_0000.journal").exists()
        )


class Arm:
    """An arm that does what it is told, and says how it ended."""

    def __init__(self):
        self.reason = None

    def observe(self):
        from wmpo_lite.arms.control import home
        from wmpo_lite.arms.interface import ArmStopped, Observation

        if self.reason:
            raise ArmStopped(self.reason)
        return Observation(PICTURE, home(), 0.0, 0.0)

    def command(self, joints):
        pass

    def stop(self, reason):
        self.reason = self.reason or reason


class Still:
    config = type("C", (), {"chunk": 4})

    def eval(self):
        return self

    def act(self, frames, instructions, temperature=None, generator=None):
        import torch

        return torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)


@pytest.mark.parametrize("room", [0, 100, 2000])
def test_a_disk_that_fills_up_in_mid_motion_stops_the_arm_and_keeps_the_episode(
    tmp_path, monkeypatch, room
):
    taken = [0]

    def write_all(file, data):
        if taken[0] + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken[0] += len(data)
        file.write(data)

    def write_atomic(path, data):
        raise UserError(
            f"cannot write {path} (No space left on device); free some disk space or choose another"
            " folder"
        )

    arm = Arm()
    with monkeypatch.context() as full:
        full.setattr(records, "write_all", write_all)
        full.setattr("wmpo_lite.common.hdf5.write_atomic", write_atomic)
        with pytest.raises(
            UserError, match="No space left on device.*free some disk space"
        ) as raised:
            deploy.record_episode(
                Still(),
                arm,
                "put the red cube on the plate",
                horizon=8,
                folder=tmp_path,
                number=0,
                task="place",
            )
    assert "No space left" in arm.reason and "\n" not in str(raised.value)
    saved = records.recover(tmp_path, "place")  # once there is room again
    if room < 2000:
        assert not list(tmp_path.iterdir()) and not saved  # nothing had moved
    else:
        assert (
            "episode_0000.journal" in str(raised.value) and len(load_trajectories(saved[0])[0]) >= 1
        )


def test_a_system_without_sighup_can_still_deploy(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    before = signal.getsignal(signal.SIGTERM)
    with signals_interrupt():
        assert signal.getsignal(signal.SIGTERM) is not before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_system_without_termios_has_no_keys_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "termios", None)
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as stream, Keys(stream=stream) as keys:
        assert not keys.live
    os.close(ours)


def test_emulation_says_which_systems_it_needs(monkeypatch):
    from wmpo_lite.arms.session import Session
    from wmpo_lite.arms.settings import Settings

    monkeypatch.delattr(os, "openpty")
    with pytest.raises(
        UserError, match="--emulated needs pseudo-terminals, which Linux and macOS have"
    ):
        Session(Settings(arm="so101", emulated=True))
