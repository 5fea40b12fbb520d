"""The emulated desk: real time, the servos' limits, pictures, and nothing left behind however it
ends.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scservo_sdk", reason="the extra `arm` is not installed")

from wmpo_lite.arms.bus import FeetechBus  # noqa: E402
from wmpo_lite.arms.calibration import load_calibration  # noqa: E402
from wmpo_lite.arms.cameras import SharedCamera, VideoCamera, square  # noqa: E402
from wmpo_lite.arms.emulator import Emulator  # noqa: E402
from wmpo_lite.common.errors import UserError  # noqa: E402
from wmpo_lite.envs.tabletop.env import TabletopEnv  # noqa: E402
from wmpo_lite.envs.tabletop.tasks import get_task  # noqa: E402
from wmpo_lite.trajectory import InitialStates  # noqa: E402


@pytest.fixture
def bus(desk):
    bus = FeetechBus(desk.port, load_calibration(desk.calibration).id)
    bus.open()
    bus.configure(velocity=np.full(6, 2000), torque=np.full(6, 0.7), acceleration=254)
    bus.write_all("goal_position", bus.state().position)
    bus.torque(True)
    yield bus
    bus.torque(False), bus.close()


def settle(desk, seconds: float = 3.0):
    """Wait until the arm is at rest."""
    end = time.monotonic() + seconds
    while np.abs(desk.moving()).max() > 0.01 and time.monotonic() < end:
        time.sleep(0.02)


def test_servos_tell_where_the_joints_are_and_bring_them_where_told(desk, bus):
    calibration = load_calibration(desk.calibration)
    start = desk.joints()
    assert np.abs(calibration.from_ticks(bus.state().position) - start).max() < 2e-3
    goal = start + [0.3, -0.1, 0.1, -0.2, 0.4, -0.6]
    bus.write_all("goal_position", calibration.to_ticks(goal))
    time.sleep(0.4)
    moving = bus.state()
    settle(desk)
    assert (
        np.abs(desk.joints() - goal).max() < 0.01
        and np.abs(calibration.from_ticks(bus.state().position) - goal).max() < 0.01
    )
    assert moving.velocity[0] > 100 or moving.position[0] > calibration.to_ticks(start)[0] + 50
    assert abs(desk.last_motion(0.05) - time.monotonic()) < 5 and desk.last_motion(
        0.02
    ) >= desk.last_motion(0.1)


def test_the_speed_limit_and_the_position_limit_hold_in_the_servo(desk, bus):
    calibration = load_calibration(desk.calibration)
    bus.write("goal_velocity", 0, 200)  # ticks/s
    here = bus.state().position
    begin = time.monotonic()
    bus.write_all("goal_position", here + np.array([1000, 0, 0, 0, 0, 0]))
    time.sleep(1)
    state = bus.state()
    assert state.position[0] - here[0] == pytest.approx(200 * (state.time - begin), rel=0.25)
    bus.write("goal_velocity", 0, 2000)
    bus.write("max_position", 0, int(calibration.middle[0] + 100))
    bus.write_all("goal_position", [4095, *here[1:]])
    time.sleep(1)
    settle(desk)
    assert bus.state().position[0] == pytest.approx(calibration.middle[0] + 100, abs=8)
    bus.write("max_position", 0, int(calibration.range_max[0]))


def test_another_homing_offset_shifts_what_a_servo_tells(desk, bus):
    before, offset = bus.state().position[3], bus.read("homing_offset", 3)
    bus.torque(False)
    bus.write("homing_offset", 3, offset - 100)
    time.sleep(0.05)
    assert bus.state().position[3] == pytest.approx(before + 100, abs=3)
    bus.write("homing_offset", 3, offset)


def test_a_limp_servo_ignores_its_goal(desk, bus):
    bus.torque(False)
    here = desk.joints()
    bus.write_all("goal_position", bus.state().position + 300)
    time.sleep(0.3)
    assert np.abs(desk.joints() - here).max() < 0.01


def test_answers_come_quickly_and_time_is_real(desk, bus):
    times = []
    for _ in range(100):
        begin = time.perf_counter()
        bus.state()
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 0.008  # 108 bytes are 1.1 ms on the line


def test_the_picture_is_the_environments(desk, states):
    with Emulator(get_task("place"), states, row=1, size=64) as emulator:
        camera = emulator.camera()
        camera.open()
        picture, taken = camera.read()
        assert abs(time.monotonic() - taken) < 0.5
        env = TabletopEnv(get_task("place"), size=64, threads=1)
        assert np.abs(picture.astype(int) - env.reset(states[1])[0]).mean() < 0.5
        env.close()
        assert not emulator.success()
        time.sleep(0.3)
        assert camera.read()[1] > taken
        emulator.fault("camera", how="stop")
        time.sleep(0.1)
        stopped = camera.read()[1]
        time.sleep(0.2)
        assert camera.read()[1] == stopped
        emulator.fault("camera", how="repeat")
        time.sleep(0.2)
        assert camera.read()[1] > stopped
        camera.close(), camera.close()


def test_a_solved_scene_counts_as_success(desk, states):
    """The cube that the instruction names, put on the plate by hand."""
    task = get_task("place")
    env = TabletopEnv(task, size=32, threads=1)
    env.reset(states[0])
    rows, model = states.states[:1].copy(), env.model
    cube = next(
        name for name in task.CUBES if np.allclose(env.position(name), task.named_cube(env))
    )
    at = model.joint(cube).qposadr[0]
    rows[0, at : at + 3] = [*env.position("plate")[0], 0.006 + 0.014]
    env.close()
    desk.reset(InitialStates(rows, None, states[0].instructions, "evaluation", states[0].indices))
    time.sleep(0.5)
    assert desk.success()
    desk.reset(states, 0)
    assert not desk.success()


def test_nothing_is_left_of_it(states):
    descriptors, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    emulator = Emulator(get_task("place"), states, size=32)
    folder, process = Path(emulator.port).parent, emulator.process
    assert folder.is_dir()
    emulator.close(), emulator.close()
    assert process.returncode == 0 and not folder.exists()
    assert set(os.listdir("/proc/self/fd")) == descriptors and threading.active_count() == threads
    with pytest.raises(UserError, match="emulator does not answer"):
        emulator.joints()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "from wmpo_lite.arms.emulator import Emulator; from wmpo_lite.envs.tabletop.tasks import"
        " get_task; import time\nfrom wmpo_lite.envs.tabletop.env import initial_states\ne ="
        " Emulator(get_task('place'), initial_states(get_task('place'), 'demos', [0]), size=32);"
        " print(e.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait(), parent.stdout.close()
    end = time.monotonic() + 5
    while (
        Path(f"/proc/{child}").exists()
        and "State:\tZ" not in Path(f"/proc/{child}/status").read_text()
        and time.monotonic() < end
    ):
        time.sleep(0.05)
    assert time.monotonic() < end and not list(tmp_path.iterdir())


def test_what_it_is_asked_wrongly_gets_one_sentence(desk, states):
    with pytest.raises(UserError, match="no fault 'storm'"):
        desk.fault("storm")
    with pytest.raises(UserError, match="row 9 was asked for"):
        desk.reset(states, 9)
    assert desk.joints().shape == (6,)  # it lives on
    with pytest.raises(UserError, match="have .* numbers each"):
        Emulator(
            get_task("square"),
            InitialStates(
                states.states[:, :-1], None, states.instructions, "demos", states.indices
            ),
            size=32,
        )


def test_a_dead_emulator_says_so(states):
    with Emulator(get_task("place"), states, size=32) as emulator:
        emulator.fault("die")
        with pytest.raises(UserError, match="make a new one"):
            emulator.joints()


def test_a_video_stands_in_for_a_camera(tmp_path):
    """The middle square, shrunk; the newest picture with its time; and no more pictures when the
    film is over.
    """
    import imageio

    frames = np.zeros((12, 96, 160, 3), np.uint8)
    frames[:, :, 32:128, 0] = np.linspace(40, 240, 12)[
        :, None, None
    ]  # the middle square is red, its sides are black
    imageio.mimwrite(
        tmp_path / "film.mp4", frames, fps=5, codec="libx264", quality=9, macro_block_size=16
    )
    camera = VideoCamera(tmp_path / "film.mp4", size=32)
    camera.open()
    first, taken = camera.read()
    assert (
        first.shape == (32, 32, 3) and first.dtype == np.uint8 and abs(time.monotonic() - taken) < 2
    )
    time.sleep(2.6)  # the film is over; when first was read, a busy machine was still early in it
    last, later = camera.read()
    assert (
        last[..., 0].mean() > first[..., 0].mean() + 50
        and later > taken
        and last[:, 2:-2, 1:].mean() < 40
    )
    camera.close(), camera.close()
    with pytest.raises(UserError, match="gives no picture"):
        VideoCamera(tmp_path / "none.mp4").open()
    with pytest.raises(UserError, match="no pictures at"):
        SharedCamera(tmp_path / "none").open()


def test_square_cuts_the_middle_and_averages():
    frame = np.zeros((6, 10, 3), np.uint8)
    frame[:, 2:8] = np.arange(6)[:, None, None] * 40
    small = square(frame, 3)
    assert small.shape == (3, 3, 3) and small[:, 0, 0].tolist() == [20, 100, 180]
    assert (square(frame[:, 2:8], 6) == frame[:, 2:8]).all()
