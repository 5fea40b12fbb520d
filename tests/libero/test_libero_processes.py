"""Worker processes: what they say when something is missing, how they end, and that the simulation
in them is LIBERO's own, bit for bit.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.env import LiberoEnv
from wmpo_lite.envs.libero.look import Look, Painter
from wmpo_lite.envs.libero.states import evaluation_rows, get_task


def gone(pid, seconds=60):
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_a_dead_worker_is_replaced_once_and_close_ends_the_processes(monkeypatch):
    """The new one repeats the episode, to the bit; where it dies too, a sentence says so."""
    env = LiberoEnv(get_task("libero_object", 1), size=32, workers=2)
    states = env.initial_states("evaluation", [0, 1])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 7))

    def kill(number):
        os.kill(env._workers[number].process.pid, signal.SIGKILL)
        env._workers[number].process.wait()

    env.reset(states)
    undisturbed = [env.step_chunk(actions) for _ in range(2)][1]
    first = env.reset(states)
    env.step_chunk(actions)
    pids = [worker.process.pid for worker in env._workers]
    kill(0)
    with pytest.warns(RuntimeWarning, match="another takes its place"):
        frames, _, info = env.step_chunk(actions)
    assert (frames == undisturbed[0]).all() and (info["states"] == undisturbed[2]["states"]).all()
    kill(1)
    with pytest.warns(RuntimeWarning, match="another takes its place"):
        assert (env.reset(states) == first).all()
    pids += [worker.process.pid for worker in env._workers]
    kill(0)
    monkeypatch.setattr("wmpo_lite.envs.libero.env.Worker.ask", lambda self, *_, **__: self._gone())
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, *_: self.kill() or -9)
    with pytest.raises(UserError, match="ended by itself"), pytest.warns(RuntimeWarning):
        env.reset(states)
    monkeypatch.undo()
    assert all(gone(pid) for pid in pids)
    env.close()
    with pytest.raises(UserError, match="is closed"):
        env.pictures(np.zeros((1, env.row_size)))


@pytest.mark.slow
def test_workers_end_with_the_program_even_when_it_is_killed():
    code = (
        "from wmpo_lite.envs.libero.env import LiberoEnv\nfrom wmpo_lite.envs.libero.states import"
        " get_task\nimport time\nenv = LiberoEnv(get_task('libero_object', 0),"
        " workers=1)\nprint(env._workers[0].process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as program:
        pid = int(program.stdout.readline())
        program.kill()
    assert gone(pid)


def test_a_machine_that_cannot_draw_is_told_so(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "no-such-thing")
    with pytest.raises(UserError, match="cannot render here .*apt-get install libegl1"):
        LiberoEnv(get_task("libero_object", 0), workers=1)


@pytest.mark.slow
def test_physics_success_and_the_official_look_are_liberos_own():
    from libero.libero.envs import OffScreenRenderEnv

    from wmpo_lite.envs.libero.simulation import PLACEMENT_SEED, SETTLE, STILL, Simulation

    task = get_task("libero_goal", 7)  # the stove, whose burner glows
    row, actions = evaluation_rows(task)[4], np.random.default_rng(0).uniform(-1, 1, (15, 7))
    own = OffScreenRenderEnv(
        bddl_file_name=task.bddl, camera_heights=64, camera_widths=64, hard_reset=False
    )
    own.seed(PLACEMENT_SEED)
    own.reset()
    seen = own.set_init_state(row)["agentview_image"][::-1].astype(int)
    for _ in range(SETTLE):
        own.step(STILL)
    ours = Simulation(task.bddl, 64, Look.official(), wrist=False)
    ours.put(row)
    drawn = ours.frames()[0]
    # ten steps of LIBERO's own loop straighten the hand, and so do ours
    hand = ours.data.site_xpos[ours.robot.eef_site_id].copy()
    ours.settle(SETTLE)
    assert np.linalg.norm(ours.data.site_xpos[ours.robot.eef_site_id] - hand) > 1e-3
    assert np.abs(own.sim.data.qpos - ours.data.qpos).max() < 1e-4
    ours.put(row)
    difference = np.abs(seen - drawn)
    assert difference.mean() < 0.5 and (difference > 8).mean() < 0.01
    fast = Painter(ours.model, 64, Look())
    coarse = np.abs(fast.draw(ours.data, "agentview").astype(int) - drawn)
    assert (
        0.5 < coarse.mean() < 12 and (coarse.max(axis=-1) > 60).mean() < 0.1
    )  # another look of the same scene
    assert (
        own.sim.model.mesh_facenum == ours.model.mesh_facenum
    ).all()  # the meshes of the physics are whole
    fast.close(), own.close()
    travelled = []
    for step in (ours.step, ours.env.step):  # ours, and LIBERO's own on the same simulation
        ours.put(row)
        if step == ours.env.step:
            del ours.robot.controller.update
        qpos = []
        for action in actions:
            step(action)
            qpos.append(np.append(ours.data.qpos, ours.success()))
        travelled.append(np.array(qpos))
    assert (travelled[0] == travelled[1]).all() and np.abs(
        travelled[0][-1] - travelled[0][0]
    ).max() > 0.1
    ours.close()
