"""The closed loop with a simulated arm: what it records, what stops it, and what is kept whatever
happens.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from wmpo_lite.arms import records
from wmpo_lite.arms.control import home
from wmpo_lite.arms.deploy import Hold, deploy, go_home, run_episode
from wmpo_lite.arms.estop import Keys
from wmpo_lite.arms.interface import ArmStopped
from wmpo_lite.arms.simulated import SimulatedArm, SimulatedConfig
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import demonstrate
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.trajectory import load_metadata, load_trajectories

PLACE = get_task("place")
STATES = initial_states(PLACE, "demos", range(2))
STEPS = 8


class Script:
    """A 'policy' that says what it was told to, chunk by chunk; `spoil(n, actions)` may change what
    it says the n-th time, or raise.
    """

    def __init__(self, actions, chunk=4, delay=0.0, spoil=None):
        self.actions, self.config, self.delay, self.spoil, self.calls = (
            np.asarray(actions, np.float32),
            SimpleNamespace(chunk=chunk),
            delay,
            spoil,
            0,
        )

    def eval(self):
        return self

    def act(self, frames, instructions, temperature=None, generator=None):
        n, self.calls = self.calls, self.calls + 1
        time.sleep(self.delay)
        said = torch.zeros(1, self.config.chunk, 4)
        part = self.actions[n * self.config.chunk : (n + 1) * self.config.chunk]
        said[0, : len(part)] = torch.from_numpy(part)
        if self.spoil:
            self.spoil(n, said)
        return (
            torch.zeros(1, self.config.chunk, 4, dtype=torch.long),
            torch.zeros(1, self.config.chunk, 4),
            said,
        )


def swing(steps=STEPS, **options):
    """To the side and back."""
    actions = np.zeros((steps, 4))
    actions[:, 1], actions[:, 3] = np.where(np.arange(steps) % 8 < 4, 0.8, -0.8), -1
    return Script(actions, **options)


def make(**options):
    return SimulatedArm(PLACE, STATES, 0, SimulatedConfig(**{"size": tiny.SIZE, **options}))


@pytest.fixture
def arm():
    with make() as arm:
        yield arm


def only(folder):
    """The single episode of a folder, and its provenance."""
    paths = [path for path, _ in records.stopped(folder)] + list(records.complete(folder).values())
    assert len(paths) == 1 and not [
        name for name in os.listdir(folder) if name.endswith(".journal")
    ]
    return load_trajectories(paths[0])[0], load_metadata(paths[0])["provenance"]


def test_the_experts_actions_succeed_through_the_loop():
    env = TabletopEnv(PLACE, size=16, threads=1)
    recorded = demonstrate(env, STATES, np.random.default_rng(0))
    env.close()
    assert recorded["done"][0, -1]
    with make(speed=2.0) as arm:
        begin = time.monotonic()
        episode = run_episode(
            Script(recorded["executed"][0], chunk=8),
            arm,
            arm.instruction,
            horizon=40,
            success=arm.success,
            initial_state=STATES.states[0],
            split="demos",
        )
        took = time.monotonic() - begin
    t = episode.trajectory
    assert (
        t.success
        and abs(t.finish_step - int(recorded["done"][0].argmax()) - 1) <= 1
        and episode.reason is None
    )
    assert (
        3.9 < took < 5.5
        and t.frames.shape == (41, 16, 16, 3)
        and (t.actions == recorded["executed"][0]).all()
    )
    assert episode.measures["p99_jitter_s"] < 0.05 and episode.measures["steps"] == 40


def test_frames_and_tokens_belong_together(arm):
    """The recorded frame at the beginning of a chunk is the one that the policy chose it on:
    log-probabilities come out the same when computed again.
    """
    policy = tiny.policy()
    episode = run_episode(policy, arm, tiny.RED, horizon=STEPS, temperature=1.0, seed=5)
    t = episode.trajectory
    assert (
        t.frames.shape == (STEPS + 1, tiny.SIZE, tiny.SIZE, 3)
        and t.chunk == tiny.CHUNK
        and not t.success
        and t.finish_step == STEPS
    )
    begins = np.arange(0, STEPS, tiny.CHUNK)
    again, _ = policy.log_probs(
        torch.from_numpy(t.frames[begins]),
        [tiny.RED] * len(begins),
        torch.from_numpy(t.tokens).unflatten(0, (-1, tiny.CHUNK)),
    )
    assert np.allclose(again.detach().flatten(0, 1).numpy(), t.log_probs, atol=1e-5)
    assert np.allclose(policy.detokenize(torch.from_numpy(t.tokens)), t.actions)


def test_a_chunk_of_an_older_picture_has_no_tokens_to_learn_from(arm):
    episode = run_episode(tiny.policy(), arm, tiny.RED, horizon=STEPS, ahead=1)
    assert episode.trajectory.tokens is None and episode.trajectory.log_probs is None


def test_thinking_ahead_the_arm_never_waits_and_without_it_does(arm):
    waits = {}
    for ahead in (0.0, 0.5):
        arm.reset(STATES, 0)
        waits[ahead] = run_episode(swing(12, delay=0.06), arm, "", horizon=12, ahead=ahead).measures
    assert waits[0.5]["waits"] == 0 and waits[0.0]["waits"] == 2 and waits[0.0]["waited_s"] > 0.1
    assert waits[0.5]["inference_s"] > 0.055


def test_a_policy_slower_than_the_watchdog_does_not_stop_the_arm(arm):
    episode = run_episode(swing(delay=0.7), arm, "", horizon=STEPS)
    assert (
        episode.reason is None
        and episode.measures["waits"] == 1
        and len(episode.trajectory) == STEPS
    )


def test_a_fast_world_shortens_the_period():
    with make(speed=4.0) as arm:
        begin = time.monotonic()
        episode = run_episode(swing(20), arm, "", horizon=20)
    assert 0.95 < time.monotonic() - begin < 2 and episode.measures["period_s"] == pytest.approx(
        0.05
    )


def nan(n, said):
    said[0, 2, 1] = np.nan if n else 0


def far(n, said):
    said[0, 3, 0] = 1.5 if n else 0


def broken(n, said):
    if n:
        raise ZeroDivisionError("a fault in the policy")


@pytest.mark.parametrize(
    "spoil, reason", [(nan, "not 4 finite numbers"), (far, r"outside \[-1, 1\]")]
)
def test_a_policy_that_went_wrong_stops_the_arm_and_the_episode_is_kept(
    arm, tmp_path, spoil, reason
):
    trajectory = deploy(swing(spoil=spoil), arm, "", horizon=STEPS, folder=tmp_path)
    assert (
        arm.stopped and len(trajectory) == 4 and not trajectory.success
    )  # the whole chunk is refused, nothing of it is carried out
    saved, about = only(tmp_path)
    assert (saved.frames == trajectory.frames).all() and len(saved) == 4
    with pytest.raises(ArmStopped, match=reason):
        arm.observe()
    assert about["stopped"] == arm.stopped


def test_nan_at_once_is_an_episode_of_one_step_that_holds_still(arm, tmp_path):
    joints = arm.observe().joints
    trajectory = deploy(
        swing(spoil=lambda n, said: said.fill_(np.nan)), arm, "", horizon=STEPS, folder=tmp_path
    )
    assert (
        len(trajectory) == 1 and not trajectory.actions[0, :3].any() and trajectory.tokens is None
    )
    assert np.abs(arm._joints - joints).max() < 0.01 and only(tmp_path)[1]["stopped"]


def test_a_fault_in_the_policys_code_is_raised_after_the_episode_is_saved(arm, tmp_path):
    with pytest.raises(ZeroDivisionError):
        deploy(swing(spoil=broken), arm, "", horizon=STEPS, folder=tmp_path)
    assert arm.stopped == "ZeroDivisionError: a fault in the policy" and len(only(tmp_path)[0]) == 4


@pytest.mark.parametrize(
    "fault, reason", [("camera", "no new picture"), ("dropout", "does not answer")]
)
def test_what_breaks_in_mid_motion_ends_in_a_stop_and_a_saved_episode(arm, tmp_path, fault, reason):
    struck = []
    timer = threading.Timer(0.7, lambda: (struck.append(time.monotonic()), arm.fault(fault)))
    timer.start()
    trajectory = deploy(swing(40), arm, "", horizon=40, folder=tmp_path)
    assert time.monotonic() - struck[0] < 0.5 and 2 <= len(trajectory) <= 5
    assert reason in only(tmp_path)[1]["stopped"]


def test_ctrl_c_saves_the_episode_and_goes_on_up(arm, tmp_path):
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a suite that was started in the background ignores Ctrl-C
    try:
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            deploy(swing(40), arm, "", horizon=40, folder=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Ctrl-C" in arm.stopped and 2 <= len(only(tmp_path)[0]) <= 4


def test_the_e_stop_key_stops_within_a_control_step(arm, tmp_path):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal, Keys(arm.stop, terminal) as keys:
        assert keys.live
        pressed = []
        timer = threading.Timer(
            0.5, lambda: (pressed.append(time.monotonic()), os.write(ours, b"x "))
        )
        timer.start()
        deploy(swing(40), arm, "", horizon=40, folder=tmp_path)
        assert time.monotonic() - pressed[0] < 0.4 and keys.get(1) == "x"
    os.close(ours)
    assert only(tmp_path)[1]["stopped"] == "stopped by the e-stop key"


def test_a_closed_terminal_stops_the_arm(arm):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal, Keys(arm.stop, terminal):
        os.close(ours)
        time.sleep(0.3)
        assert "terminal was closed" in arm.stopped


def test_what_is_no_terminal_is_left_alone():
    read, write = os.pipe()
    with os.fdopen(read) as pipe, Keys(lambda reason: pytest.fail(reason), pipe) as keys:
        os.write(write, b" q")
        time.sleep(0.1)
        assert not keys.live and keys.get(0) is None
    os.close(write)


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_deploy as t
from pathlib import Path
with t.make() as arm:
    print("moving", flush=True)
    t.deploy(t.swing(40), arm, "put the red cube on the plate", horizon=40, folder=Path({folder!r}),
             split="demos", initial_state=t.STATES.states[0])
"""


def test_a_killed_process_leaves_a_journal_that_becomes_an_episode(tmp_path):
    here = os.path.dirname(__file__)
    program = KILLED.format(tests=here, root=os.path.dirname(here), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "moving\n"
    time.sleep(1.5)
    process.kill()
    process.wait()
    assert [name for name in os.listdir(tmp_path)] == ["episode_0000.journal"]
    saved = records.recover(tmp_path, "place")
    trajectory, about = only(tmp_path)
    assert len(saved) == 1 and 3 <= len(trajectory) <= 8 and about["stopped"] == records.KILLED
    assert (
        trajectory.instruction == "put the red cube on the plate"
        and (trajectory.initial_state == STATES.states[0]).all()
    )
    assert (
        np.allclose(trajectory.actions, swing(40).actions[: len(trajectory)])
        and trajectory.tokens.shape == trajectory.actions.shape
    )
    assert records.recover(tmp_path, "place") == []


def test_between_episodes_a_hold_keeps_the_watchdog_quiet(arm):
    arm.command(home())
    with Hold(arm, home()):
        time.sleep(0.8)
    arm.command(home())
    assert arm.stopped is None


def test_going_home_is_slow_and_ends_in_the_first_posture(arm):
    run_episode(swing(4), arm, "", horizon=4)
    speeds, begin = [], time.monotonic()
    watcher = threading.Thread(
        target=lambda: [(speeds.append(arm.moving), time.sleep(0.02)) for _ in range(40)]
    )
    watcher.start()
    go_home(arm)
    watcher.join()
    assert (
        np.abs(arm.observe().joints - home())[:5].max() < 0.1
        and np.percentile(speeds, 90) < 0.9
        and time.monotonic() - begin > 0.5
    )
