"""The table-top under gymnasium's own checker, and gymnasium's environments under the kit's."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.gymnasium_bridge import FromGymnasium, TabletopGym
from wmpo_lite.envs.tabletop.env import TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.tasks import get_task

NAMES = ("dx", "dy", "dz", "gripper")


@pytest.mark.parametrize("task", ["place", "square"])
@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_finds_nothing(task):
    env = gymnasium.make(f"wmpo_lite/{task}-v0", size=32, disable_env_checker=True)
    try:
        check_env(env.unwrapped)
    finally:
        env.close()


def test_the_face_changes_nothing_of_the_world():
    env, world = TabletopGym(size=32), TabletopEnv(get_task("place"), size=32, threads=1)
    try:
        frame, info = env.reset(options={"index": 7})
        states = initial_states(get_task("place"), "rollouts", [7])
        assert np.array_equal(frame, world.reset(states)[0])
        assert info["instruction"] == states.instructions[0]
        actions = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
        expected = world.step_chunk(actions[None])[0][0]
        for action, picture in zip(actions, expected):
            assert np.array_equal(env.step(action)[0], picture)
    finally:
        env.close(), world.close()


class Short(TabletopGym):
    """Ends after three steps."""

    def __init__(self, **options):
        super().__init__(size=16, **options)
        self.world.task = type("Task", (), {**vars(self.world.task), "horizon": 3})


@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP])
def test_a_vector_states_its_autoreset_mode_and_keeps_to_it(mode):
    gymnasium.register("wmpo_lite_test/short-v0", entry_point=Short)
    options = {"vector_kwargs": {"autoreset_mode": mode}} if mode else {}
    envs = gymnasium.make_vec("wmpo_lite_test/short-v0", num_envs=2, **options)
    try:
        assert envs.metadata["autoreset_mode"] == (mode or AutoresetMode.NEXT_STEP)
        first, _ = envs.reset(seed=3)
        seen = [envs.step(np.full((2, 4), 0.5, np.float32)) for _ in range(4)]
        assert [step[3].tolist() for step in seen] == [[s == 2] * 2 for s in range(4)]
        if mode is None:  # the step after the end ignores its action and begins anew
            assert "final_obs" not in seen[2][4] and (seen[3][1] == 0).all()
            assert not np.array_equal(seen[3][0], seen[2][0])
        else:  # the new episode has begun already
            assert not np.array_equal(seen[2][0], np.stack(seen[2][4]["final_obs"]))
            assert (seen[3][0] != seen[2][0]).any()
    finally:
        envs.close()
        del gymnasium.registry["wmpo_lite_test/short-v0"]


class Line(gymnasium.Env):
    """A point on a line of 96 pixels, whose actions are places from 0 to 512; ends at the right."""

    action_space = gymnasium.spaces.Box(0.0, 512.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(0.0, 512.0, (1,), np.float32)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(0, 200))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        assert self.place <= 500, "stepped after its end"
        self.place = float(action[0])
        ended = self.place > 500
        return np.array([self.place], np.float32), 0.0, ended, False, {"is_success": ended}

    def render(self):
        return np.full((96, 96, 3), int(self.place / 512 * 255), np.uint8)


def line(**options):
    return FromGymnasium(Line, "go right", ("x",), **{"size": 32, **options})


def test_the_range_of_actions_is_stretched_and_an_episode_stops_where_it_ended():
    env = line()
    states = env.initial_states("rollouts", range(2))
    first = env.reset(states)
    assert first.shape == (2, 32, 32, 3) and (first[0] != first[1]).any()
    actions = np.array([[-1.0, 0.0, 1.0, -1.0], [0.5, 0.5, 0.5, 0.5]])[..., None]
    frames, done, info = env.step_chunk(actions)
    assert frames[0, :, 0, 0, 0].tolist() == [0, 127, 255, 255]  # the final frame stays
    assert done.tolist() == [[False, False, True, True], [False] * 4] == info["ended"].tolist()
    assert np.array_equal(env.reset(states), first)  # one seed, one start


def test_splits_share_no_seed():
    env = line()
    seeds = [env.initial_states(s, range(3)).states.ravel() for s in ("demos", "validation")]
    assert not set(seeds[0]) & set(seeds[1])


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda: FromGymnasium(Line, "go", ("x", "y")), "2 action_names for the 1"),
        (lambda: line(picture=lambda env, seen: seen).reset(one()), "float32"),
        (lambda: line(picture=lambda env, seen: env.render()[:50]).reset(one()), "96 x 50"),
        (lambda: line().reset(initial_states(get_task("place"), "demos", [0])), "one seed"),
        (lambda: FromGymnasium(lambda: Boundless(), "go", ("x",)), "a Box with bounds"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(broken, message):
    with pytest.raises(UserError, match=message):
        broken()


class Boundless(Line):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def one():
    return line().initial_states("demos", [0])
