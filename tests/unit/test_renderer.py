"""Pictures are bit-equal whatever else draws, is closed, dropped or collected, in one thread or in
many.
"""

import gc
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from wmpo_lite.envs import renderer as contexts
from wmpo_lite.envs.renderer import Renderer
from wmpo_lite.envs.tabletop.env import Disturbance, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.scenes import random_scenes
from wmpo_lite.envs.tabletop.tasks import get_task

PLACE = get_task("place")
STATES = initial_states(PLACE, "validation", np.arange(2))
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 1, 4))


@pytest.fixture
def make_env():
    made = []

    def make(task=PLACE, size=32, **options):
        made.append(TabletopEnv(task, size=size, threads=1, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def look(env, states=STATES):
    first = env.reset(states)
    return np.concatenate([first[:, None], env.step_chunk(ACTIONS[: len(states)])[0]], axis=1)


@pytest.mark.parametrize("ending", ["close", "drop", "collect"])
@pytest.mark.parametrize("drew_last", ["the one that ends", "the other", "a third"])
def test_the_end_of_one_environment_leaves_the_others_alone(make_env, ending, drew_last):
    """collect: the environment is part of a cycle, so that the garbage collector ends it."""
    ends, other, third = (
        TabletopEnv(PLACE, size=32, threads=1),
        make_env(),
        make_env(get_task("square"), 48),
    )
    square = initial_states(get_task("square"), "validation", np.arange(2))
    expected, of_third = look(other), look(third, square)
    assert (look(ends) == expected).all()
    {
        "the one that ends": lambda: None,
        "the other": lambda: look(other),
        "a third": lambda: look(third, square),
    }[drew_last]()
    if ending == "close":
        ends.close()
    elif ending == "collect":
        ends.itself = ends
    del ends
    gc.collect()
    assert (look(other) == expected).all() and (look(third, square) == of_third).all()
    assert (look(make_env()) == expected).all() and (
        look(other) == expected
    ).all()  # nor do new ones disturb


def test_orders_of_opening_drawing_and_closing(make_env):
    expected = look(make_env())
    for order in itertools.islice(itertools.permutations(range(3)), 0, None, 2):
        envs = [TabletopEnv(PLACE, size=32, threads=1) for _ in range(3)]
        for n in order:
            look(envs[n])
        for i, n in enumerate(order):
            envs[n].close()
            assert all((look(envs[left]) == expected).all() for left in order[i + 1 :])
    envs[0].close(), envs[0].close()
    assert (look(envs[0]) == expected).all()  # a closed environment opens anew
    envs[0].close()


def test_a_foreign_renderer_that_is_closed_takes_nothing(make_env):
    import mujoco

    env, model = make_env(), make_env().model
    expected = look(env)
    for end in ("close", "__del__"):
        foreign = mujoco.Renderer(model, 32, 32)
        foreign.update_scene(mujoco.MjData(model))
        foreign.render()
        look(env)
        getattr(foreign, end)()
        assert (look(env) == expected).all()


def test_environments_in_threads(make_env):
    """Each thread opens, draws, closes and drops; all of them draw with one more environment that
    they hand round.
    """
    expected, shared, turn, faults = look(make_env()), make_env(), threading.Lock(), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(2):
                env = TabletopEnv(PLACE, size=32, threads=1)
                right = [(look(env) == expected).all()]
                with turn:
                    right.append((look(shared) == expected).all())
                right.append((look(env) == expected).all())
                if rng.random() < 0.5:
                    env.close()
                faults.extend(["a picture changed"] * (not all(right)))
        except Exception as error:  # a thread's own would not be seen
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert (look(shared) == expected).all()


def test_a_renderer_that_is_collected_while_another_draws_waits(make_env):
    env, other = make_env(), TabletopEnv(PLACE, size=32, threads=1)
    expected = look(env)
    look(other)
    living = len(contexts._living)
    with contexts._drawing():
        env._renderer._mujoco._gl_context.make_current()
        del other  # in the middle of a drawing, in this very thread
        gc.collect()
        assert len(contexts._living) == living
        picture = env._renderer._mujoco.render()
    assert (picture == expected[-1, -1]).all() and len(contexts._living) == living - 1


def test_scenes_with_masks_between_two_looks(make_env):
    env = make_env()
    expected, scenes = look(env), random_scenes(PLACE, 3, 0, size=32)
    assert (look(env) == expected).all()
    again = random_scenes(PLACE, 3, 0, size=32)
    assert all((scenes[key] == again[key]).all() for key in scenes)


def test_the_first_state_that_is_drawn_leaves_no_trace(make_env):
    """Two instances that were drawn first after different states show the same state alike."""
    every = Disturbance(0.02, 0.02, 1.0, 1.0, 1.0, 0.02)
    for task, disturbance in (
        ("place", Disturbance()),
        ("square", Disturbance()),
        ("place", every),
    ):
        states = initial_states(get_task(task), "validation", np.arange(3), disturbance)
        for first in (0, 2):
            one, two = (
                make_env(get_task(task), disturbance=disturbance, shadows=task == "square")
                for _ in range(2)
            )
            one.reset(states[[0]]), two.reset(states[[first]])
            two.step_chunk(np.tile([[[1.0, 1, -1, 1]]], (1, 2, 1)))
            assert (look(one, states[1:]) == look(two, states[1:])).all()


def test_an_environment_left_open_ends_in_silence():
    code = (
        "import threading, numpy as np\nfrom wmpo_lite.envs.tabletop.env import TabletopEnv,"
        " initial_states\nfrom wmpo_lite.envs.tabletop.tasks import get_task\ntask ="
        " get_task('place'); envs = [TabletopEnv(task, size=16, threads=1) for _ in range(2)]\nlook"
        " = lambda env: env.reset(initial_states(task, 'demos', [0]))\nlook(envs[0]); thread ="
        " threading.Thread(target=look, args=envs[1:]); thread.start(); thread.join()\nprint('last"
        " line')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "last line\n", "")


def test_a_closed_renderer_is_freed_once(make_env):
    env = make_env()
    env.reset(STATES)
    renderer = Renderer(env.model, 32)
    living = len(contexts._living)
    picture = renderer.draw(env._render_data, "front")
    assert (renderer.draw_geoms(env._render_data, "front") >= -1).all()
    assert (renderer.draw(env._render_data, "front") == picture).all()
    renderer.close(), renderer.close()
    assert len(contexts._living) == living - 1
