"""The contract that every environment keeps: simulator, imagination, desk, and the tests' own."""

import numpy as np
import pytest
import tiny

from wmpo_lite.common.errors import UserError
from wmpo_lite.env import Env
from wmpo_lite.envs.desk import Desk, DeskConfig
from wmpo_lite.envs.gymnasium_bridge import FromGymnasium, TabletopGym
from wmpo_lite.envs.injected import InjectedErrors
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.imagined_env import ImaginedEnv
from wmpo_lite.policy import Policy

B, K = 3, 5


def simulator(task="place"):
    states = initial_states(get_task(task), "validation", range(2 * B))
    return TabletopEnv(get_task(task), size=tiny.SIZE, threads=1), states


def imagined():
    models = tiny.autoencoder(), tiny.world_model(), tiny.reward_model()
    return ImaginedEnv(*models, threshold=0.5, stop=False), tiny.states(2 * B)


def desk():
    env, states = simulator()
    return Desk(env, DeskConfig(latency=2, camera_noise=3.0, jitter=0.002), step=0.02), states


def gymnasium():
    make = lambda: TabletopGym(size=tiny.SIZE)
    env = FromGymnasium(make, "put it there", TabletopEnv.action_names, size=tiny.SIZE)
    return env, env.initial_states("validation", range(2 * B))


def after_an_error():
    env, states = simulator()
    return InjectedErrors(env, "slip"), states


@pytest.fixture(
    params=[simulator, lambda: simulator("square"), imagined, desk, gymnasium, after_an_error],
    ids=["place", "square", "imagined", "desk", "gymnasium", "injected"],
)
def world(request):
    env, states = request.param()
    yield env, states
    if hasattr(env, "close"):
        env.close()


def actions(seed=0, batch=B, steps=K):
    return tiny.random_actions(batch, steps, tiny.ACTIONS, seed=seed)


def test_it_is_an_environment_that_a_policy_accepts(world):
    env, states = world
    env.reset(states[np.arange(B)])
    assert isinstance(env, Env) and env.action_dim == len(env.action_names) == tiny.ACTIONS
    tiny.policy().check_environment(env)
    assert Policy.check_environment is type(tiny.policy()).check_environment
    assert list(env.instructions) == list(states.instructions[:B])


def test_shapes_and_types(world):
    env, states = world
    first = env.reset(states[np.arange(B)])
    size = first.shape[1]
    assert first.dtype == np.uint8 and first.shape == (B, size, size, 3)
    frames, done, info = env.step_chunk(actions())
    assert frames.dtype == np.uint8 and frames.shape == (B, K, size, size, 3)
    assert done.dtype == bool and done.shape == (B, K) and isinstance(info, dict)
    last, done, _ = env.step_chunk(actions(1, steps=1), every_frame=False)
    assert last.shape == (B, 1, size, size, 3) and done.shape == (B, 1)


def test_the_last_frame_does_not_depend_on_how_many_are_asked_for(world):
    env, states = world
    ends = []
    for every_frame in (True, False):
        env.reset(states[np.arange(B)])
        if hasattr(env, "generator"):
            env.generator.manual_seed(0)
        ends.append(env.step_chunk(actions(), every_frame=every_frame)[0][:, -1])
    assert np.array_equal(*ends)


def test_what_is_done_stays_done(world):
    env, states = world
    env.reset(states[np.arange(B)])
    done = np.concatenate([env.step_chunk(actions(n))[1] for n in range(6)], axis=1)
    assert (np.maximum.accumulate(done, axis=1) == done).all()


def test_a_reset_forgets_and_may_change_the_number_of_episodes(world):
    env, states = world
    env.reset(states[np.arange(2 * B)])
    env.step_chunk(actions(3, batch=2 * B))
    after = env.reset(states[np.arange(B)])
    assert after.shape[0] == B and np.array_equal(after, env.reset(states[np.arange(B)]))
    assert env.step_chunk(actions())[0].shape[0] == B


def test_numbers_out_of_range_are_clipped(world):
    env, states = world
    found = []
    for scale in (1.0, 7.0):
        env.reset(states[np.arange(B)])
        if hasattr(env, "generator"):
            env.generator.manual_seed(0)
        found.append(env.step_chunk(np.sign(actions()) * scale)[0])
    assert np.array_equal(*found)


@pytest.mark.parametrize("wrong", ["nan", "batch", "numbers", "dimensions"])
def test_actions_that_cannot_be_are_refused_before_anything_moves(world, wrong):
    env, states = world
    env.reset(states[np.arange(B)])
    bad = {
        "nan": np.where(np.arange(K)[None, :, None] == 2, np.nan, actions()),
        "batch": actions(batch=B + 1),
        "numbers": np.zeros((B, K, tiny.ACTIONS + 3)),
        "dimensions": np.zeros((B, tiny.ACTIONS)),
    }[wrong]
    with pytest.raises(UserError):
        env.step_chunk(bad)
    if hasattr(env, "generator"):
        env.generator.manual_seed(0)
    moved = env.step_chunk(actions())[0]
    env.reset(states[np.arange(B)])
    if hasattr(env, "generator"):
        env.generator.manual_seed(0)
    assert np.array_equal(moved, env.step_chunk(actions())[0])


def test_there_is_nothing_to_step_before_a_reset(world):
    with pytest.raises(UserError, match="reset"):
        world[0].step_chunk(actions())
