"""However `wmpo-lite deploy` ends in mid-motion, the arm stands still and the episode is kept."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import tiny

from wmpo_lite.arms import records
from wmpo_lite.trajectory import load_trajectories


@pytest.mark.parametrize("how", ["space", "terminated", "killed"])
def test_whoever_ends_the_command_line_finds_the_arm_stopped_and_the_episode_kept(
    tmp_path, monkeypatch, how
):
    monkeypatch.chdir(tmp_path)
    tiny.policy().save(tmp_path / "policy")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "wmpo_lite.cli",
            "deploy",
            "--checkpoint",
            "policy",
            "--episodes",
            "3",
        ],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(theirs)
    journal = tmp_path / "runs" / "deploy-sim-place" / "episodes" / "episode_0000.journal"
    deadline = time.monotonic() + 60
    while (
        not (journal.exists() and journal.stat().st_size > 4000)
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    begin = time.monotonic()
    if how == "space":
        os.write(ours, b" ")
    else:
        process.send_signal(signal.SIGTERM if how == "terminated" else signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    os.close(ours)
    assert (
        time.monotonic() - begin < 10
        and process.returncode == {"space": 1, "terminated": 130, "killed": -9}[how]
    ), said
    if how == "killed":
        assert records.recover(journal.parent, "place")
    ((path, reason),) = records.stopped(journal.parent)
    assert (
        reason
        == {
            "space": "stopped by the e-stop key",
            "terminated": "stopped by Ctrl-C or a signal",
            "killed": records.KILLED,
        }[how]
    )
    assert 3 <= len(load_trajectories(path)[0]) < 12 and not records.complete(journal.parent)
