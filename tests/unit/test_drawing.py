"""Where nothing can be drawn one sentence says so before anything is begun, and whoever imports
MuJoCo first does not blind us.
"""

import os
import subprocess
import sys

import pytest

LOOK = """
import numpy as np
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
env = TabletopEnv(get_task("place"), threads=1)
picture = env.reset(initial_states(env.task, "demos", np.arange(1)))
assert picture.std() > 10
other = TabletopEnv(get_task("place"), threads=1)
other.reset(env.initial)
print("drawn")
"""


def run(*command, folder, **environment):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "backend, command",
    [
        ("bogus", ["demo", "--profile", "smoke"]),
        ("glfw", ["demo", "--profile", "smoke"]),
        ("disabled", ["upper-bound", "--iterations", "1"]),
        ("bogus", ["deploy"]),
        ("disabled", ["deploy", "--arm", "so101", "--emulated"]),
    ],
)
def test_without_a_way_to_draw_there_is_one_sentence_and_no_run_folder(tmp_path, backend, command):
    done = run("-m", "wmpo_lite.cli", *command, folder=tmp_path, MUJOCO_GL=backend)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    said = [line for line in done.stderr.splitlines() if line.startswith("wmpo-lite:")]
    assert (
        len(said) == 1
        and "MuJoCo cannot render here" in said[0]
        and backend in said[0]
        and "Traceback" not in done.stderr
    )


def test_the_doctor_fails_where_nothing_can_be_drawn():
    script = "from wmpo_lite import install_check; print(install_check._check_gl())"
    done = run("-c", script, folder=".", MUJOCO_GL="bogus")
    assert "(False, " in done.stdout and "cannot render here" in done.stdout
    assert "(True, " in run("-c", script, folder=".", MUJOCO_GL="").stdout


@pytest.mark.parametrize(
    "before",
    [
        "import mujoco",
        "import mujoco; mujoco.Renderer",
        "import os, mujoco; os.environ['MUJOCO_GL'] = 'egl'",
        "",
    ],
)
def test_mujoco_may_be_imported_first(tmp_path, before):
    done = run("-c", f"{before}\n{LOOK}", folder=tmp_path)
    assert done.stdout == "drawn\n" and done.returncode == 0, done.stderr
    assert (
        done.stderr == ""
    )  # neither a warning nor a traceback of an environment that was left open
