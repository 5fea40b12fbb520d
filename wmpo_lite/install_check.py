"""Is this installation sound? Packages against their pins, a rendered frame, a known rollout.

What a run's files say is `report.diagnosis`'s to tell. Nothing is written, and no network is used.
"""

import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np

from wmpo_lite import setup_check
from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import ASSETS

# Known answers: the scripted expert without noise on the first 8 `demos` states of `place`, 40
# control steps, mujoco 3.17.0. Other processors round differently, hence the tolerances. After a
# wanted change of the simulator `known_rollout()` measures them anew.
KNOWN_FINISH = (23, 25, 20, 19, 19, 20, 22, 23)  # control step of the first successful frame
KNOWN_TIPS = (  # m, after the last step
    (0.1489, 0.0771, 0.0850),
    (0.1460, -0.0924, 0.0850),
    (0.1752, 0.0913, 0.0850),
    (0.2040, -0.0759, 0.0850),
    (0.2046, -0.0454, 0.0850),
    (0.1843, 0.0777, 0.0850),
    (0.2054, -0.0689, 0.0850),
    (0.1742, 0.0079, 0.0850),
)
FINISH_TOLERANCE, TIP_TOLERANCE = 1, 0.002  # control steps, m

# ------------------------------------------------------------------------------------ installation


def check_installation() -> list[tuple[str, bool, str]]:
    """(name, ok, message) for each check, in the order of repair. A check that breaks counts as
    failed; none raises.
    """
    checks = (
        ("Python", _check_python),
        ("packages", _check_packages),
        ("disk", _check_disk),
        ("OpenGL", _check_gl),
        ("rendering", _check_rendering),
        ("known answer", _check_known_answer),
        ("recorded", _check_recorded),
        ("splits", _check_splits),
    )
    results = []
    for name, check in checks:
        try:
            ok, message = check()
        except Exception as error:  # a doctor that dies of what it looks for helps nobody
            ok, message = False, f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        results.append((name, ok, message))
    return results


def _check_python():
    problems = setup_check.python_problems(sys.version_info)
    return not problems, problems[0].message if problems else sys.version.split()[0]


def _check_disk():
    import shutil

    free = shutil.disk_usage(".").free
    problems = setup_check.disk_problems(free, setup_check.GB_TO_RUN, os.getcwd())
    return not problems, problems[0].message if problems else f"{free / 1e9:.0f} GB free"


def pinned_versions() -> dict[str, tuple[str, bool]]:
    """name -> (pinned version, belongs to an extra), of the installed package or else of
    pyproject.toml.
    """
    try:
        lines = metadata.requires("wmpo_lite") or []
    except metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parent.parent / "pyproject.toml"
        if not path.is_file():
            raise UserError(
                "wmpo_lite is not installed, so its pins are unknown; run make, or pip install -e ."
            ) from None
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        lines = project["dependencies"] + [
            f"{line}; extra"
            for extra in project["optional-dependencies"].values()
            for line in extra
        ]
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*==\s*([^\s;]+)", line)
        if match:
            found.setdefault(match[1], (match[2], "extra" in line.partition(";")[2]))
    return found


def _check_packages():
    wrong, same, pins = [], 0, pinned_versions()
    for name, (pinned, optional) in pins.items():
        try:
            installed = metadata.version(name).partition("+")[0]  # 2.13.0+cpu satisfies 2.13.0
        except metadata.PackageNotFoundError:
            if not optional:
                wrong.append(f"{name} {pinned} is missing")
            continue
        if installed != pinned:
            wrong.append(f"{name} is {installed}, pinned {pinned}")
        same += installed == pinned
    if wrong:
        return (
            False,
            "; ".join(wrong)
            + ": run make again, since results were measured with the pinned versions",
        )
    return bool(pins), (
        f"{same} packages at their pinned versions" if pins else "no pins found: install with make"
    )


def _check_gl():
    problems = setup_check.gl_problems(setup_check.can_load)
    if problems:
        return False, problems[0].message
    from wmpo_lite.envs.drawing import import_mujoco

    try:
        import_mujoco()
    except UserError as error:
        return False, str(error)
    return True, f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"


def _place_env(count: int):
    """The simulator of `place` at 64 pixels with one thread, and the first `count` states of split
    `demos`.
    """
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task

    task = get_task("place")
    return TabletopEnv(task, size=64, threads=1), initial_states(task, "demos", np.arange(count))


def _check_rendering():
    env, states = _place_env(1)
    try:
        picture = env.reset(states)[0].astype(int)  # (64, 64, 3)
    finally:
        env.close()
    # A broken driver draws black, noise or nothing: look for the orange arm and for the gray table
    # around it.
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    orange = ((red > 120) & (red - blue > 80) & (green > 40) & (green < red)).mean()
    gray = ((picture.max(-1) - picture.min(-1) < 25) & (red > 60) & (red < 230)).mean()
    ok = orange > 0.01 and gray > 0.3
    message = (
        f"a frame shows the arm on {100 * orange:.0f} % and the table on {100 * gray:.0f} % of its"
        " pixels"
    )
    return ok, (
        message
        if ok
        else f"{message}, not the scene: update the OpenGL driver, or try MUJOCO_GL=osmesa"
    )


def known_rollout() -> tuple[np.ndarray, np.ndarray]:
    """(finish steps int (8,), 0 without success; finger tips (8, 3) in m) of the rollout behind
    `KNOWN_FINISH`.
    """
    from wmpo_lite.envs.tabletop.expert import PickAndPlace

    env, states = _place_env(8)
    try:
        env.reset(states)
        expert, done = PickAndPlace(len(states)), []
        for _ in range(40):
            action = expert.act(env, *env.task.goal(env))
            done.append(env.step_chunk(action[:, None], every_frame=False)[1][:, 0])
        done, tips = np.stack(done, axis=1), env.tip  # (B, T), (B, 3)
    finally:
        env.close()
    return np.where(done.any(axis=1), done.argmax(axis=1) + 1, 0), tips


def _check_known_answer():
    finish, tips = known_rollout()
    solved, late = int((finish > 0).sum()), int(np.abs(finish - KNOWN_FINISH).max())
    off = float(np.abs(tips - np.array(KNOWN_TIPS)).max())
    ok = solved == len(KNOWN_FINISH) and late <= FINISH_TOLERANCE and off <= TIP_TOLERANCE
    message = (
        f"the expert solves {solved} of {len(KNOWN_FINISH)} states, finish steps within {late},"
        f" finger tips within {1000 * off:.2f} mm of the stored ones"
    )
    advice = (
        ": this simulator moves otherwise than the one that the weights were trained on (mujoco"
        f" {metadata.version('mujoco')}); install the pinned mujoco and take the simulator's files"
        " unchanged"
    )
    return ok, message if ok else message + advice


def _check_recorded():
    from wmpo_lite.envs.tabletop.replay import alike, equal_outcomes
    from wmpo_lite.trajectory import load_trajectories

    path = ASSETS / "place" / "run" / "rollouts.hdf5"
    if not path.is_file():
        return True, "no shipped run here, nothing to carry out again"
    equal, count = equal_outcomes(load_trajectories(path), "place")
    message = f"{equal} of {count} recorded episodes come out again as they were recorded"
    good = alike(equal, count)
    return good, message if good else message + (
        f" (mujoco {metadata.version('mujoco')}): success rates do not compare with the stored"
        " ones; install the pinned mujoco"
    )


def _check_splits():
    from wmpo_lite.envs.tabletop import tasks
    from wmpo_lite.envs.tabletop.env import SPLITS, initial_states

    seen, count, doubles = {}, 64, []
    for name in tasks.NAMES:
        for split in SPLITS:
            states = initial_states(tasks.get_task(name), split, np.arange(count)).states
            doubles += [
                f"{name}/{split}/{i} = {seen[row.tobytes()]}"
                for i, row in enumerate(states)
                if row.tobytes() in seen
            ]
            seen |= {row.tobytes(): f"{name}/{split}/{i}" for i, row in enumerate(states)}
    message = f"{len(seen)} states of {len(SPLITS)} splits, none twice"
    shared = (
        f"shared initial states ({'; '.join(doubles[:3])}): a gain may be memory; repair the splits"
    )
    return not doubles, shared if doubles else message


# ------------------------------------------------------------------------------------------ report
