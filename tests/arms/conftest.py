"""One emulated desk for a whole file, well again before every test; a line of servos without a
scene where the scene has no say.
"""

import os

os.environ.setdefault("MUJOCO_GL", "egl")

import pytest  # noqa: E402

from wmpo_lite.arms.emulated import Port, Servos  # noqa: E402
from wmpo_lite.arms.emulator import Emulator, emulated_calibration  # noqa: E402
from wmpo_lite.envs.tabletop.env import initial_states  # noqa: E402
from wmpo_lite.envs.tabletop.tasks import get_task  # noqa: E402


@pytest.fixture(scope="session")
def states():
    return initial_states(get_task("place"), "evaluation", range(3))


@pytest.fixture(scope="module")
def shared_desk(states):
    with Emulator(get_task("place"), states, size=32) as emulator:
        yield emulator


@pytest.fixture
def desk(shared_desk, states):
    """The emulator in its first state, without faults."""
    shared_desk.fault("none")
    shared_desk.reset(states, 0)
    return shared_desk


class Line:
    """Servos on a pseudo-terminal in this process, whose registers a test can look into."""

    def __init__(self, folder):
        self.calibration = emulated_calibration()
        self.servos = Servos(self.calibration)
        for servo, position in zip(self.servos.all, (2059, 2027, 2082, 2039, 2047, 2035)):
            servo["position"] = position
        self.port = Port(folder / "port", self.servos)
        self.port.plug()
        self.path = str(self.port.path)


@pytest.fixture
def line(tmp_path):
    line = Line(tmp_path)
    yield line
    line.port.pull()
