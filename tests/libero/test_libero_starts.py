"""How episodes start: drawn states are distributed as the benchmark's own, objects settle before
the first frame, fixtures stay where a state has them, and one state gives one episode anywhere.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from wmpo_lite.envs.libero.env import LiberoEnv
from wmpo_lite.envs.libero.simulation import ARM_NOISE, SETTLE
from wmpo_lite.envs.libero.states import evaluation_rows, get_task
from wmpo_lite.trajectory import InitialStates

ARM = slice(1, 8)  # columns of the arm's joints in a state, behind the time
AT_REST = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])


def bowls(workers=2, settle=SETTLE):
    """A table with a cabinet and a stove, whose places are no part of the benchmark's states."""
    task = get_task("libero_spatial", 2)
    return LiberoEnv(task, size=32, workers=workers, stride=2, settle=settle)


@pytest.fixture(scope="module")
def table():
    with bowls() as env:
        yield env


def differences(stored, drawn) -> list[str]:
    """Columns in which two samples of states differ: a Kolmogorov-Smirnov test of each column that
    varies, 1 % over all of them together (Bonferroni); the others must have one value.
    """
    both = np.concatenate([stored, drawn])
    varies = np.ptp(both, axis=0) > 1e-6
    constant = (np.ptp(stored, axis=0) <= 1e-6) & (np.ptp(drawn, axis=0) <= 1e-6)
    found = [f"column {c}: another constant" for c in np.flatnonzero(varies & constant)]
    tested = np.flatnonzero(varies & ~constant)
    for c in tested:
        if (p := ks_2samp(stored[:, c], drawn[:, c]).pvalue) < 0.01 / len(tested):
            found.append(
                f"column {c}: p = {p:.1g}, stored {stored[:, c].mean():.4f} +-"
                f" {stored[:, c].std():.4f}, drawn {drawn[:, c].mean():.4f} +-"
                f" {drawn[:, c].std():.4f}"
            )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("which", ["env", "table"])
def test_drawn_states_are_distributed_as_the_benchmarks(which, request):
    """Joint by joint and object by object, of a task on the floor and one with fixtures."""
    env = request.getfixturevalue(which)
    stored = evaluation_rows(env.task)
    drawn = env.initial_states("rollouts", np.arange(50)).states[:, : env.row_size]
    assert differences(stored, drawn) == []
    for rows in (stored, drawn):
        assert np.abs(rows[:, ARM].mean(axis=0) - AT_REST).max() < 4 * ARM_NOISE / np.sqrt(50)
        assert (0.7 * ARM_NOISE < rows[:, ARM].std(axis=0)).all()
        assert (rows[:, ARM].std(axis=0) < 1.4 * ARM_NOISE).all()
    one_pose = drawn.copy()
    one_pose[:, ARM] = AT_REST
    assert len(differences(stored, one_pose)) == 7  # the test sees the joints of the arm
    shifted = drawn.copy()
    shifted[:, 10:12] += 0.05
    assert differences(stored, shifted)  # and the place of the first object


def test_every_split_has_the_noise_of_the_arm(env):
    poses = np.concatenate(
        [
            env.initial_states(split, [index]).states[:, ARM]
            for split, index in (
                ("demos", 60),
                ("rollouts", 60),
                ("validation", 60),
                ("evaluation", 60),
                ("play", 60),
                ("pretraining", 60),
            )
        ]
    )
    assert (np.abs(poses - AT_REST) > 1e-5).all() and (np.ptp(poses, axis=0) > 0.01).all()


def test_objects_settle_before_the_first_frame(table):
    """Benchmark states and drawn ones have things in the air; at the first frame they lie."""
    still = np.zeros((2, 1, 7))
    still[..., 6] = -1
    for split, indices in (("evaluation", [0, 1]), ("demos", [0, 1])):
        states = table.initial_states(split, indices)
        table.reset(states)
        first = table.now["objects"].copy()
        heights = np.array(
            [
                [row[c + 2] for c in range(10, 10 + 7 * len(table.objects), 7)]
                for row in states.states
            ]
        )
        fell = np.sort(heights, axis=1) - np.sort(first[..., 2], axis=1)
        assert (np.median(fell, axis=1) > 0.03).all()
        table.step_chunk(still, every_frame=False)
        assert np.abs(table.now["objects"] - first).max() < 1e-3


def test_fixtures_are_part_of_a_state(table):
    drawn = table.initial_states("demos", [0, 1])
    placed = drawn.states[:, table.row_size :]
    assert placed.shape == (2, 14) and np.abs(placed[0] - placed[1]).max() > 1e-3
    stored = table.initial_states("evaluation", [0, 1])
    assert np.array_equal(*stored.states[:, table.row_size :])
    first = table.reset(drawn[0])[0]
    moved = drawn.states[:1].copy()
    moved[:, table.row_size + 1] -= 0.03  # 3 cm
    other = InitialStates(moved, None, drawn.instructions[:1], "demos", drawn.indices[:1])
    assert (table.reset(other)[0] != first).any()
    table.reset(stored)  # other fixtures in both workers
    assert (table.reset(drawn[0])[0] == first).all()


def episode(env, order=(0, 1)) -> str:
    """Fifty random actions from a stored state and a drawn one: a digest of all states and frames.
    order: which of them comes first, and so to the first worker.
    """
    stored, drawn = env.initial_states("evaluation", [3]), env.initial_states("evaluation", [70])
    states = InitialStates.concat([stored, drawn])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 50, 7))
    first = env.reset(states[list(order)])
    frames, _, info = env.step_chunk(actions[list(order)])
    back = np.argsort(order)
    digest = hashlib.sha256()
    for array in (states.states, first[back], frames[back], info["states"][back]):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert np.ptp(info["states"], axis=1).max() > 0.1 and (frames[:, 0] != frames[:, -1]).any()
    return digest.hexdigest()


@pytest.mark.slow
def test_one_state_gives_one_episode_everywhere(table, tmp_path):
    """In a used environment, on the other worker, and in a new environment in another process: the
    same bits of states and pictures. Nothing is written into HOME on the way, or asked.
    """
    found = episode(table)
    table.initial_states("play", [7, 8])  # drawing makes a new controller for another arm pose
    table.reset(table.initial_states("demos", [5, 6]))
    table.step_chunk(np.random.default_rng(1).uniform(-1, 1, (2, 4, 7)))
    assert episode(table) == found
    assert episode(table, order=(1, 0)) == found
    code = (
        "from test_libero_starts import bowls, episode\nwith bowls(workers=1) as env:\n   "
        " print(episode(env))"
    )
    here = Path(__file__).parent
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=here,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(here), *[p for p in sys.path if p]]),
        },
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == found and not list(tmp_path.rglob("*"))
