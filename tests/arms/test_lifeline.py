"""When the process that powers the arm is killed, or hangs where no Python runs, another one
switches the torque off.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("scservo_sdk", reason="the extra `arm` is not installed")
pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="needs ports that two processes can open"
)

from wmpo_lite.arms.lifeline import PATIENCE, Lifeline  # noqa: E402

SCRIPT = """
import ctypes, sys, time
import numpy as np
from wmpo_lite.arms.emulator import emulated_calibration
from wmpo_lite.arms.so101 import SO101

class Camera:
    def open(self): pass
    def close(self): pass
    def read(self):
        return np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8), time.monotonic()

with SO101(sys.argv[1], emulated_calibration(), Camera()) as arm:
    print("powered", flush=True)
    home = arm.observe().joints
    if sys.argv[2] == "inference":
        # native code that keeps the interpreter's lock, as a broken extension does
        ctypes.PyDLL(None).sleep(60)
    while sys.argv[2] != "leave":
        arm.command(home)
        time.sleep(0.02)
"""


def torque(line) -> list:
    return [servo["torque_enable"] for servo in line.servos.all]


def until(test, seconds):
    deadline = time.monotonic() + seconds
    while not test() and time.monotonic() < deadline:
        time.sleep(0.02)
    return test()


def started(line, how):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, line.path, how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "powered\n" and torque(line) == [1] * 6
    return process


@pytest.mark.parametrize("how", ["killed", "inference"])
def test_a_process_that_is_killed_or_hangs_leaves_no_torque(line, how):
    process = started(line, how)
    begin = time.monotonic()
    if how == "killed":
        time.sleep(0.5)
        assert torque(line) == [1] * 6
        process.send_signal(signal.SIGKILL)
    assert until(lambda: torque(line) == [0] * 6, 10)
    assert (
        how == "killed" or time.monotonic() - begin > 0.7 * PATIENCE
    )  # a short silence is forgiven
    assert process.wait(timeout=10) == -signal.SIGKILL
    process.stdout.close()


def test_a_process_that_leaves_well_leaves_nobody_behind(line):
    process = started(line, "leave")
    assert process.wait(timeout=20) == 0 and torque(line) == [0] * 6
    process.stdout.close()


def test_one_that_beats_is_left_alone_and_an_end_ends_it(line):
    for servo in line.servos.all:
        servo["torque_enable"] = 1
    lifeline = Lifeline(line.path, line.calibration.id, patience=0.5)
    assert lifeline.start()
    watcher = lifeline._process
    for _ in range(12):
        lifeline.beat()
        time.sleep(0.1)
    lifeline.end()
    lifeline.end()
    lifeline.beat()
    assert watcher.returncode == 0 and torque(line) == [1] * 6
