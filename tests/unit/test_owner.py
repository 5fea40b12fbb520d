"""A run folder has one owner at a time, and a killed one leaves nothing behind that would keep
others out.
"""

import gc
import os
import signal
import subprocess
import sys

import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.owner import NAME, Owner

HOLD = (
    "import sys, time; from wmpo_lite.common.owner import Owner; held = Owner(sys.argv[1]);"
    " print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path, other):
    with pytest.raises(
        UserError,
        match=f"run is in use by another process \\(process {other.pid}: .*choose another --name",
    ):
        Owner(tmp_path / "run")
    Owner(tmp_path / "another")


def test_a_killed_owner_keeps_nobody_out(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with Owner(tmp_path / "run"):
        assert f"process {os.getpid()}" in (tmp_path / "run" / NAME).read_text()


def test_one_process_may_hold_it_twice_and_leaves_no_trace(tmp_path):
    first, second = Owner(tmp_path / "run"), Owner(tmp_path / "." / "run")
    del first
    gc.collect()
    assert (tmp_path / "run" / NAME).exists()
    blocked = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert "in use by another process" in blocked.stderr
    del second
    gc.collect()
    assert not (tmp_path / "run").exists()  # nothing was written into it
    held = Owner(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    del held
    gc.collect()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_file_in_the_place_of_runs_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="runs/a .*something else is in its way"):
        Owner(tmp_path / "runs" / "a")
