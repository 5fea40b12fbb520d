"""The simulated arm: real time, late and noisy pictures, shaky joints, and everything that can
break.
"""

import threading
import time

import numpy as np
import pytest

from wmpo_lite.arms.interface import ArmStopped
from wmpo_lite.arms.simulated import SimulatedArm, SimulatedConfig
from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop.env import Disturbance, initial_states
from wmpo_lite.envs.tabletop.tasks import get_task

PLACE = get_task("place")
STATES = initial_states(PLACE, "demos", range(3))


def arm(**options):
    return SimulatedArm(PLACE, STATES, 0, SimulatedConfig(**{"size": 32, **options}))


def lead(arm, joints, seconds, rate=50):
    """Command `joints` at `rate` Hz for so long."""
    for _ in range(round(seconds * rate)):
        arm.command(joints)
        time.sleep(1 / rate)


def elsewhere(arm, by=0.3):
    goal = arm.observe().joints
    goal[0] += by
    return goal


@pytest.fixture
def sim():
    with arm() as sim:
        yield sim


def test_it_holds_still_until_it_is_told_something_and_then_goes_there(sim):
    begin = sim.observe()
    time.sleep(0.3)
    later = sim.observe()
    assert np.abs(later.joints - begin.joints).max() < 1e-3 and begin.frame.shape == (32, 32, 3)
    assert later.frame_time > begin.frame_time and 0 <= time.monotonic() - later.frame_time < 0.3
    goal = elsewhere(sim)
    lead(sim, goal, 0.6)
    assert np.abs(sim.observe().joints - goal).max() < 0.02
    assert (sim.observe().frame != begin.frame).any()


@pytest.mark.parametrize("speed", [1.0, 3.0])
def test_the_world_keeps_up_with_the_clock_or_is_faster_by_the_factor(speed):
    """A joint that falls behind its target moves 'speed' times as far in the same time: measured by
    the world's own clock.
    """
    with arm(speed=speed) as sim:
        worlds = []
        sim._ask(lambda world: worlds.append(world))
        clock, begin = time.monotonic(), worlds[0].data.time
        time.sleep(0.8)
        passed, told = worlds[0].data.time - begin, time.monotonic() - clock
    assert 0.7 * speed < passed / told < 1.05 * speed


def test_pictures_are_as_old_as_said():
    with arm(latency=0.4) as late:
        time.sleep(0.6)
        ages = []
        for _ in range(20):
            ages.append(time.monotonic() - late.observe().frame_time)
            time.sleep(0.02)
    assert 0.4 <= min(ages) and max(ages) < 0.6
    with arm() as sharp:
        time.sleep(0.2)
        assert time.monotonic() - sharp.observe().frame_time < 0.15


def test_camera_noise_has_the_stated_size():
    with arm(camera_noise=6.0, seed=3) as noisy:
        first = noisy.observe()
        time.sleep(0.15)
        second = noisy.observe()
    with arm() as clean:
        truth = clean.observe().frame.astype(float)
    error = first.frame - truth
    inner = (truth > 30) & (truth < 225)  # where nothing is clipped
    assert (
        5 < error[inner].std() < 7
        and second.frame_time > first.frame_time
        and (first.frame != second.frame).mean() > 0.5
    )


def test_jitter_shakes_the_joints():
    spreads = []
    for jitter in (0.0, 0.05):
        with arm(jitter=jitter) as sim:
            goal = sim.observe().joints
            seen = []
            for _ in range(40):
                sim.command(goal)
                time.sleep(0.02)
                seen.append(sim.observe().joints)
            spreads.append(np.std(seen, axis=0)[:5].max())
    assert spreads[0] < 1e-3 < 0.003 < spreads[1]


def test_a_changed_look_is_seen():
    with arm() as plain, arm(disturbance=Disturbance(background=1.0, lighting=1.0)) as strange:
        assert np.abs(plain.observe().frame.astype(int) - strange.observe().frame).mean() > 3


def test_reset_sets_another_desk(sim):
    first = sim.observe().frame
    lead(sim, elsewhere(sim), 0.2)
    sim.reset(STATES, 2)
    assert (
        np.allclose(sim.observe().joints[:5], STATES.states[2, :5], atol=1e-3)
        and sim.instruction == STATES.instructions[2]
    )
    assert (sim.observe().frame != first).any() and not sim.success()
    time.sleep(0.8)  # the watchdog sleeps until the first command of the new episode
    sim.observe()


def test_silence_stops_it_within_half_a_second(sim):
    goal = elsewhere(sim, 1.0)
    lead(sim, goal, 0.2)
    last = time.monotonic()
    while sim.stopped is None and time.monotonic() - last < 2:
        time.sleep(0.005)
    assert time.monotonic() - last < 0.56 and "no command" in sim.stopped
    with pytest.raises(ArmStopped, match="no command"):
        sim.command(goal)


def test_stop_holds_it_where_it_is_and_the_first_reason_stays(sim):
    goal = elsewhere(sim, 1.0)
    lead(sim, goal, 0.15)
    assert sim.moving > 0.3
    worlds = []
    sim._ask(lambda world: worlds.append(world))
    sim.stop("somebody pressed a key")
    where = worlds[0].joints
    time.sleep(0.4)
    assert (
        np.abs(worlds[0].joints - where).max() < 0.3
        and sim.moving < 0.05
        and np.abs(worlds[0].joints - goal)[0] > 0.3
    )
    sim.stop("something else")
    for use in (lambda: sim.command(goal), sim.observe, lambda: sim.reset(STATES)):
        with pytest.raises(ArmStopped, match="somebody pressed a key"):
            use()


def test_nan_stops_it(sim):
    with pytest.raises(ArmStopped, match="finite"):
        sim.command([0, 0, np.nan, 0, 0, 0])
    with pytest.raises(ArmStopped, match="finite"):
        sim.observe()


def test_a_stuck_camera_stops_it(sim):
    goal = elsewhere(sim)
    sim.fault("camera")
    begin = time.monotonic()
    with pytest.raises(ArmStopped, match="no new picture for 0.3 s"):
        lead(sim, goal, 2)
    assert time.monotonic() - begin < 0.5


def test_an_arm_that_drops_out_stops_and_can_be_connected_again(sim):
    sim.fault("dropout")
    with pytest.raises(ArmStopped, match="does not answer"):
        sim.command(sim._joints)
    sim.connect()
    lead(sim, elsewhere(sim), 0.1)
    assert sim.stopped is None


def test_a_broken_simulation_stops_it_with_the_cause(sim):
    def explode(world):
        world.data.qpos[:] = np.nan

    sim._ask(explode)
    with pytest.raises(ArmStopped, match="diverged"):
        for _ in range(100):
            sim.observe()
            time.sleep(0.02)


def test_closing_switches_the_torque_off_and_ends_the_threads():
    before = threading.active_count()
    sim = arm()
    with pytest.raises(ArmStopped, match="not connected"):
        sim.observe()
    try:
        with sim:
            worlds = []
            sim._ask(lambda world: worlds.append(world))
            lead(sim, elsewhere(sim), 0.1)
            raise RuntimeError("in the middle of a motion")
    except RuntimeError:
        pass
    assert worlds[0].model.opt.disableflags and threading.active_count() == before
    sim.close()
    with pytest.raises(ArmStopped):
        sim.command(np.zeros(6))


def test_two_arms_live_side_by_side():
    with arm() as a, arm() as b:
        goal = elsewhere(a)
        still = b.observe().joints
        for _ in range(20):
            a.command(goal), b.command(still)
            time.sleep(0.02)
        assert (
            abs(a.observe().joints[0] - goal[0]) < 0.05
            and np.abs(b.observe().joints - still).max() < 0.01
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"latency": -1}, "latency is -1"),
        ({"camera_noise": -2}, "camera_noise"),
        ({"jitter": float("nan")}, "jitter"),
        ({"speed": 0}, "speed"),
        ({"camera_rate": 0}, "camera_rate"),
        ({"stuck": 0.01}, "stuck"),
    ],
)
def test_bad_settings_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        SimulatedConfig(**options)


def test_unknown_faults_and_states_are_refused(sim):
    with pytest.raises(UserError, match="'earthquake'"):
        sim.fault("earthquake")
    with pytest.raises(UserError, match="row 7"):
        sim.reset(STATES, 7)
