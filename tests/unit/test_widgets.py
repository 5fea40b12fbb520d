"""Widgets without a front end: driving by hand, sliders over figures, and what stands in for a
widget that cannot be shown.
"""

import asyncio
import threading

import numpy as np
import pytest
import tiny

from wmpo_lite.common.errors import UserError
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.report import widgets
from wmpo_lite.report.notebooks import figure
from wmpo_lite.report.widgets import KEYS, MOVES, Driver


@pytest.fixture(autouse=True)
def front_end(monkeypatch):
    monkeypatch.delenv("WMPO_STATIC", raising=False)


def counter(goal=100.0, **options):
    return Driver(tiny.Counter(goal=goal), tiny.states(1), **options)


def test_every_button_gives_its_command_for_as_long_as_a_press_lasts():
    driver = counter(hold=3)
    for name, direction in MOVES.items():
        before = len(driver.actions)
        driver.press(name)
        assert len(driver.actions) == before + 3 and len(driver.frames) == len(driver.actions) + 1
        assert all((a == [*direction, -1]).all() for a in driver.actions[before:])


def test_the_gripper_stays_as_it_was_put():
    driver = counter()
    for name in ("grip", "up", "grip", "up"):
        driver.press(name)
    assert [a[3] for a in driver.actions[::2]] == [1, 1, -1, -1]


def test_success_and_the_horizon_end_an_episode_and_restart_begins_anew():
    driver = counter(goal=3.0, hold=2)
    while not driver.over:
        driver.press("near")
    assert driver.success and "success" in driver.caption() and len(driver.actions) < 40
    length = len(driver.actions)
    driver.press("near")
    assert len(driver.actions) == length
    trajectory = driver.trajectory()
    assert (
        trajectory.success
        and trajectory.finish_step == driver.done.index(True) + 1
        and len(trajectory) == length
    )
    driver.press("restart")
    assert not driver.actions and not driver.success and len(driver.frames) == 1
    slow = counter(hold=2, horizon=5)
    for _ in range(4):
        slow.press("wait")
    assert (
        len(slow.actions) == 4 and "time is up" in slow.caption() and not slow.trajectory().success
    )


def test_the_same_presses_drive_the_world_model():
    env = ImaginedEnv(tiny.autoencoder(), tiny.world_model())
    films = []
    for presses in (("left", "left"), ("right", "right")):
        env.generator.manual_seed(0)
        driver = Driver(env, tiny.states(1), hold=tiny.CHUNK)
        for name in presses:
            driver.press(name)
        films.append(np.stack(driver.frames))
    assert films[0].shape == (2 * tiny.CHUNK + 1, tiny.SIZE, tiny.SIZE, 3)
    assert (films[0][0] == films[1][0]).all() and (films[0] != films[1]).any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Driver(tiny.Counter(), tiny.states(2)), "one episode and got 2"),
        (lambda: counter(hold=0), "hold is 0"),
        (lambda: counter(hold=9, horizon=8), "horizon 8"),
        (lambda: counter().press("jump"), "no button 'jump'"),
        (lambda: counter().trajectory(), "nothing was driven"),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_every_key_is_a_button_and_every_button_is_on_the_pad():
    assert set(KEYS.values()) == {*MOVES, "grip", "restart"}
    for name in KEYS.values():
        assert f'"{name}"' in widgets.PAD_JS


def test_the_pad_follows_messages_of_its_front_end():
    driver = counter(goal=2.0)
    pad = widgets.drive(driver)
    first, caption = pad.picture, pad.caption
    assert first.startswith("data:image/png;base64,") and caption == driver.caption()
    pad._handle_custom_msg({"press": "near"}, [])
    assert len(driver.actions) == 2 and pad.picture != first and pad.caption != caption
    pad._handle_custom_msg({"press": "somersault"}, [])
    assert "no button" in pad.caption and len(driver.actions) == 2


def test_a_press_that_a_kernel_hears_elsewhere_is_done_where_the_pad_was_made():
    """Rendering belongs to the thread that made the environment, and recent kernels hear a front
    end in threads of their own.
    """

    class Noted(tiny.Counter):
        def step_chunk(self, actions, every_frame=True):
            threads.append(threading.current_thread())
            return super().step_chunk(actions, every_frame)

    async def session():
        pad = widgets.drive(driver)
        ear = threading.Thread(target=pad._handle_custom_msg, args=({"press": "near"}, []))
        ear.start(), ear.join()
        await asyncio.sleep(0.01)
        return pad.caption

    threads, driver = [], Driver(Noted(goal=100.0), tiny.states(1))
    assert "step 2 of" in asyncio.run(session()) and threads == [threading.current_thread()]


def test_without_a_front_end_the_presses_are_shown_as_a_strip(monkeypatch):
    monkeypatch.setenv("WMPO_STATIC", "1")
    driver = counter()
    shown = widgets.drive(driver, "near near grip")
    assert (
        len(driver.actions) == 6 and shown.data.startswith("<img") and "step 6 of 40" in shown.data
    )


def line(slope, kind="solid"):
    made, axes = figure()
    axes.plot([0, 1], [0, slope], linestyle=kind)
    return made


def test_sliders_redraw_their_figure(monkeypatch):
    box = widgets.explore(line, slope=(1.0, 0.0, 2.0, 0.1), kind=("solid", ["solid", "dashed"]))
    slope, kind, output = box.children
    assert (slope.value, slope.min, slope.max, kind.options) == (1.0, 0.0, 2.0, ("solid", "dashed"))
    drawn = []
    again = widgets.explore(
        lambda **chosen: drawn.append(chosen) or line(**chosen), slope=(1.0, 0.0, 2.0, 0.1)
    )
    again.children[0].value = 1.5
    assert drawn == [{"slope": 1.0}, {"slope": 1.5}]
    monkeypatch.setenv("WMPO_STATIC", "1")
    assert widgets.explore(line, slope=(1.0, 0.0, 2.0, 0.1)).data.startswith("<img")


def test_driving_the_simulator_moves_the_arm_where_the_button_says():
    """As the camera sees it: 'right' moves the arm's orange pixels to the right, 'up' away from the
    table's front edge.
    """
    from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
    from wmpo_lite.envs.tabletop.tasks import get_task

    task = get_task("place")
    env = TabletopEnv(task, size=32, threads=1)
    driver = Driver(env, initial_states(task, "demos", np.arange(1)))
    tips = {}
    for name in ("left", "right", "away", "near", "up", "down"):
        driver.press("restart")
        start = env.tip[0].copy()
        driver.press(name), driver.press(name)
        tips[name] = env.tip[0] - start
    env.close()
    assert tips["right"][1] > 0.02 > -0.02 > tips["left"][1]
    assert (
        tips["near"][0] > 0.01
        and tips["away"][0] < -0.01
        and tips["up"][2] > 0.01
        and tips["down"][2] < -0.01
    )
    assert driver.states.instructions[0] in driver.caption()
