"""The embedded simulator, on real MuJoCo physics: kinematics, splits, the environment contract,
success.
"""

import numpy as np
import pytest

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.tabletop import arm, scene
from wmpo_lite.envs.tabletop.env import (
    ACTION_DIM,
    HOME,
    SPLITS,
    WORKSPACE,
    Disturbance,
    TabletopEnv,
    initial_states,
)
from wmpo_lite.envs.tabletop.expert import OPEN, PickAndPlace, demonstrate, labels
from wmpo_lite.envs.tabletop.scenes import random_scenes
from wmpo_lite.envs.tabletop.tasks import NAMES, get_task, pair

PLACE = get_task("place")
# m from the pan axis: up to here a gripper that points straight down gets everywhere in the
# workspace
REACH = 0.247
SO101 = {  # degrees, from the arm's published model (joint ranges in rad there)
    "shoulder_pan": (-110, 110),
    "shoulder_lift": (-100, 100),
    "elbow_flex": (-96.83, 96.83),
    "wrist_flex": (-95, 95),
    "wrist_roll": (-157.21, 162.79),
}


@pytest.fixture
def make_env():
    """A factory of environments (32 x 32 pixels, one thread), closed before the interpreter unloads
    OpenGL.
    """
    made = []

    def make(**options):
        made.append(TabletopEnv(PLACE, **{"size": 32, "threads": 1, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def env(make_env):
    return make_env()


def states(count, split="demos", start=0, **disturbance):
    return initial_states(PLACE, split, np.arange(start, start + count), Disturbance(**disturbance))


def random_actions(batch, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, steps, ACTION_DIM)).astype(np.float32)


def run_expert(env, batch, steps=40, change=lambda expert, action: action, goal=None):
    """Drive the expert; `change` may alter its actions. Returns done (B,) and success judged now
    (B,).
    """
    expert, done = PickAndPlace(batch), np.zeros(batch, bool)
    for _ in range(steps):
        action = change(expert, expert.act(env, *(goal or env.task.goal)(env)))
        done = env.step_chunk(action[:, None], every_frame=False)[1][:, -1]
    return done, env.task.success(env)


# -------------------------------------------------------------------------------------- kinematics


def test_inverse_kinematics_and_back_on_reachable_points():
    points = np.random.default_rng(0).uniform(WORKSPACE[:, 0], WORKSPACE[:, 1], (4000, 3))
    points = points[np.hypot(points[:, 0], points[:, 1]) < REACH]
    assert len(points) > 2500 and REACH > np.hypot(
        *PLACE.AREA[:, 1]
    )  # most of the workspace, and all that tasks use
    joints = arm.inverse_kinematics(points)
    assert np.abs(arm.forward_kinematics(joints) - points).max() < 1e-9
    np.testing.assert_allclose(
        joints[:, 1:4].sum(axis=1), np.pi / 2
    )  # the gripper points straight down
    np.testing.assert_allclose(joints[:, 4], joints[:, 0])  # and its jaws stay along world y
    assert ((joints > arm.LIMITS[:, 0]) & (joints < arm.LIMITS[:, 1])).all()


def test_out_of_reach_is_pulled_back_and_stays_finite():
    far = np.array([[2.0, 0, 0.1], [0, 0, 3.0], [-1.0, -1.0, -1.0], [0, 0, 0]])
    joints = arm.inverse_kinematics(far)
    assert np.isfinite(joints).all()
    assert (joints >= arm.LIMITS[:, 0]).all() and (joints <= arm.LIMITS[:, 1]).all()


def test_forward_kinematics_is_mujocos(env):
    import mujoco

    data, rng = mujoco.MjData(env.model), np.random.default_rng(1)
    columns = [env.model.joint(name).qposadr[0] for name in arm.JOINTS]
    joints = rng.uniform(
        arm.LIMITS[:, 0], arm.LIMITS[:, 1], (200, 5)
    )  # anywhere, not only straight down
    for row in joints:
        data.qpos[columns] = row
        mujoco.mj_forward(env.model, data)
        np.testing.assert_allclose(data.site("tip").xpos, arm.forward_kinematics(row), atol=1e-9)


def test_joint_limits_are_the_so101s(env):
    assert arm.JOINTS == tuple(SO101)
    for name, limits in SO101.items():
        np.testing.assert_allclose(np.degrees(env.model.joint(name).range), limits, atol=0.05)
        actuator = env.model.actuator(name)
        np.testing.assert_allclose(actuator.ctrlrange, env.model.joint(name).range)
        assert np.abs(actuator.forcerange).max() < 3.5  # N m: a hobby servo


def test_commands_move_the_tip_as_they_say(env):
    """A unit action in dx moves the tip by MAX_STEP along x after settling, and nothing else."""
    env.reset(states(1))
    start = env.tip.copy()
    env.step_chunk(np.array([[[1, 0, 0, -1], [0, 0, 0, -1], [0, 0, 0, -1]]], dtype=np.float32))
    np.testing.assert_allclose(env.tip - start, [[0.030, 0, 0]], atol=0.002)


# ------------------------------------------------------------------------------------------ splits


def test_splits_share_no_state_and_repeat_themselves():
    every = {split: initial_states(PLACE, split, np.arange(300)) for split in SPLITS}
    rows = [row.tobytes() for part in every.values() for row in part.states]
    assert len(set(rows)) == len(rows) == 300 * len(SPLITS)
    positions = np.concatenate(
        [part.states[:, 7:9] for part in every.values()]
    )  # first cube: not only the bits differ
    assert len(np.unique(positions.round(9), axis=0)) == len(positions)
    for split, part in every.items():
        again = initial_states(PLACE, split, [7, 250, 3])
        np.testing.assert_array_equal(again.states, part.states[[7, 250, 3]])
        assert (
            again.instructions == tuple(part.instructions[i] for i in (7, 250, 3))
            and again.split == split
        )


def test_initial_states_are_fair():
    """Names, colors and the goal vary; no state is solved, and objects start apart and within
    reach.
    """
    part = initial_states(PLACE, "evaluation", np.arange(400))
    colors, named = part.states[:, -3:-1].astype(int), part.states[:, -1]
    assert (
        (colors[:, 0] != colors[:, 1]).all()
        and len(np.unique(colors, axis=0)) == 6
        and 0.4 < named.mean() < 0.6
    )
    for text, row in zip(part.instructions, part.states):
        assert text == f"put the {pair.COLORS[int(row[-2 if row[-1] else -3])]} cube on the plate"
    a, b, plate = part.states[:, 7:9], part.states[:, 14:16], part.states[:, 21:23]
    distance = lambda x, y: np.linalg.norm(x - y, axis=1).min()
    assert (
        distance(a, b) > 2 * np.sqrt(2) * scene.CUBE_HALF
        and min(distance(a, plate), distance(b, plate)) > PLACE.PLATE_RADIUS + scene.CUBE_HALF
    )
    for spots in (a, b, plate):
        assert (spots > WORKSPACE[:2, 0]).all() and (spots < WORKSPACE[:2, 1]).all()


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="split 'test' is unknown.*demos.*evaluation"):
        initial_states(PLACE, "test", [0])
    with pytest.raises(UserError, match="task 'fold' is unknown.*place"):
        get_task("fold")
    assert all(get_task(name).name == name for name in NAMES)


# ---------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("size", [32, 64])
def test_contract(make_env, size):
    env = make_env(size=size)
    assert env.action_dim == len(env.action_names) == ACTION_DIM == 4
    part = states(3)
    frames = env.reset(part)
    assert (
        frames.shape == (3, size, size, 3)
        and frames.dtype == np.uint8
        and env.instructions == list(part.instructions)
    )
    assert all(picture.std() > 10 for picture in frames)  # something is drawn
    for steps in (1, 8):
        frames, done, info = env.step_chunk(random_actions(3, steps))
        assert frames.shape == (3, steps, size, size, 3) and frames.dtype == np.uint8
        assert done.shape == (3, steps) and done.dtype == bool and not done.any()
        assert info["states"].shape == (3, steps, env.model.nq)
    frames[:] = 0
    assert env.step_chunk(random_actions(3, 1))[0].std() > 10  # what was handed out is the caller's


def test_a_state_of_its_own_colors_and_place(env):
    """Each episode of a batch is drawn in its own colors: the named cube shows up where the state
    says.
    """
    part = states(12)
    frames = env.reset(part).astype(int)
    for picture, row in zip(frames, part.states):
        dominant = [
            (picture[..., c] > picture[..., [i for i in range(3) if i != c]].max(-1) + 50)
            for c in range(3)
        ]
        present = {int(color) for color in row[-3:-1]}
        for color in (1, 2):  # green and blue; the arm itself is reddish
            assert bool(dominant[color].sum() > 3) == (color in present)


def test_batch_composition_and_threads_change_no_bit(make_env):
    part, actions = states(5), random_actions(5, 12)
    reference = None
    for threads, rows in (
        (1, np.arange(5)),
        (2, np.arange(5)),
        (1, np.array([3, 1])),
        (2, np.array([4, 0, 4])),
        (3, np.array([2])),
    ):
        env = make_env(threads=threads)
        first = env.reset(part[rows])
        frames, done, info = env.step_chunk(actions[rows])
        if reference is None:
            reference = first, frames, done, info["states"], env.tip
        for ours, all_rows in zip((first, frames, done, info["states"], env.tip), reference):
            np.testing.assert_array_equal(ours, all_rows[rows])


def test_chunking_and_a_second_reset_change_no_bit(env):
    part, actions = states(2), random_actions(2, 8)
    env.reset(part)
    whole, done, _ = env.step_chunk(actions)
    first = env.reset(part)
    pieces = [env.step_chunk(actions[:, k : k + 2]) for k in range(0, 8, 2)]
    np.testing.assert_array_equal(
        whole, np.concatenate([frames for frames, _, _ in pieces], axis=1)
    )
    np.testing.assert_array_equal(done, np.concatenate([flags for _, flags, _ in pieces], axis=1))
    np.testing.assert_array_equal(first, env.reset(part))


def test_newest_frame_only_is_the_last_of_all(make_env):
    full, quick, blind, part, actions = (
        make_env(),
        make_env(),
        make_env(),
        states(3),
        random_actions(3, 8),
    )
    full.reset(part), quick.reset(part), blind.reset(part)
    for k in (0, 4):
        frames, done, info = full.step_chunk(actions[:, k : k + 4])
        newest, flags, quick_info = quick.step_chunk(actions[:, k : k + 4], every_frame=False)
        blind_frames, blind_flags, blind_info = blind.step_chunk(
            actions[:, k : k + 4], every_frame=None
        )
        assert (
            blind_frames.shape == (3, 0, 32, 32, 3)
            and (blind_flags == flags).all()
            and (blind_info["states"] == quick_info["states"]).all()
        )
        assert newest.shape == (3, 1, 32, 32, 3)
        np.testing.assert_array_equal(newest[:, 0], frames[:, -1])
        np.testing.assert_array_equal(flags, done)
        np.testing.assert_array_equal(quick_info["states"], info["states"])


def test_actions_are_clipped_to_the_unit_range(make_env):
    a, b, part, actions = make_env(), make_env(), states(2), 3 * random_actions(2, 4)
    a.reset(part), b.reset(part)
    np.testing.assert_array_equal(a.step_chunk(actions)[0], b.step_chunk(actions.clip(-1, 1))[0])


def test_the_tip_stays_in_the_workspace_and_a_press_does_not_wind_up(env):
    env.reset(states(2))
    env.step_chunk(
        np.tile(np.float32([0, 0, -1, 1]), (2, 20, 1)), every_frame=False
    )  # press on the table
    assert (env.tip[:, 2] > 0).all()
    low = env.tip[:, 2].copy()
    env.step_chunk(np.tile(np.float32([0, 0, 1, 1]), (2, 2, 1)), every_frame=False)
    assert (env.tip[:, 2] > low + 0.03).all()  # two steps up lift at once
    for corner in ([-1, 1, -1, 1], [-1, -1, 1, -1]):  # near ones
        env.step_chunk(np.tile(np.float32(corner), (2, 20, 1)), every_frame=False)
        assert (env.tip < WORKSPACE[:, 1] + 0.004).all() and (
            env.tip > WORKSPACE[:, 0] - 0.004
        ).all()


def test_the_hand_points_down_in_the_far_corners_too(env):
    env.reset(states(2))
    env.step_chunk(
        np.tile(np.float32([[[1, 1, 1, 1]], [[1, -1, 1, 1]]]), (1, 20, 1)), every_frame=False
    )
    assert (env.tip < WORKSPACE[:, 1] + 0.004).all() and (env.tip > WORKSPACE[:, 0] - 0.004).all()
    np.testing.assert_allclose(env.qpos[:, 1:4].sum(axis=1), np.pi / 2, atol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_no_numbers_are_user_errors(env, value):
    env.reset(states(2))
    actions = random_actions(2, 4)
    actions[1, 2, 3] = value
    before = env.qpos.copy()
    with pytest.raises(UserError, match="NaN or infinity"):
        env.step_chunk(actions)
    np.testing.assert_array_equal(env.qpos, before)  # refused before anything moved


@pytest.mark.parametrize(
    "change", [lambda s: s[:, :-1], lambda s: np.concatenate([s, s[:, :1]], axis=1)]
)
def test_states_of_another_width_are_user_errors(env, change):
    part = states(2)
    wrong = type(part)(change(part.states), None, part.instructions, part.split, part.indices)
    with pytest.raises(UserError, match="'place' have 26 numbers each, got"):
        env.reset(wrong)


# ------------------------------------------------------------------------------------------ expert


def test_expert_solves_at_least_95_per_cent(env):
    env.reset(states(40))
    done, _ = run_expert(env, 40)
    assert done.mean() >= 0.95


def test_noise_is_executed_but_not_recorded_as_intended(env):
    quiet, noisy = (
        demonstrate(env, states(2), np.random.default_rng(0), noise=noise, horizon=6)
        for noise in (0.0, 0.3)
    )
    np.testing.assert_array_equal(quiet["executed"], quiet["intended"])
    assert np.abs(noisy["executed"] - noisy["intended"])[..., :3].mean() > 0.05
    np.testing.assert_array_equal(noisy["executed"][..., 3], noisy["intended"][..., 3])
    assert noisy["frames"].shape == (2, 7, 32, 32, 3) and noisy["done"].shape == (2, 6)
    again = demonstrate(env, states(2), np.random.default_rng(0), noise=0.3, horizon=6)
    assert all(np.array_equal(noisy[key], again[key]) for key in noisy)


def test_success_needs_release_and_withdrawal(env):
    """Cube held on the plate: no. Released with the hand still there: no. Hand lifted: yes, and it
    stays so.
    """
    env.reset(states(4))

    def hold(expert, action):
        waiting = expert.phase >= OPEN
        action[waiting] = 0, 0, 0, 1
        return action

    done, now = run_expert(env, 4, change=hold)
    named = np.where(
        env.parameters[:, 2] > 0.5, PLACE.on_plate(env, "cube_b"), PLACE.on_plate(env, "cube_a")
    )
    height = PLACE.named_cube(env)[:, 2] - (PLACE.PLATE_HEIGHT + scene.CUBE_HALF)
    assert (np.abs(height) < 0.02).all() and named.any() and not done.any() and not now.any()
    release, up = np.float32([0, 0, 0, -1]), np.float32([0, 0, 1, -1])
    done = env.step_chunk(np.tile(release, (4, 5, 1)), every_frame=False)[1]
    lies = np.where(
        env.parameters[:, 2] > 0.5, PLACE.on_plate(env, "cube_b"), PLACE.on_plate(env, "cube_a")
    )
    assert lies.all() and not done.any()  # on the plate and let go, but the hand is still around it
    done = env.step_chunk(np.tile(up, (4, 4, 1)), every_frame=False)[1]
    assert done[:, -1].all() and not done[:, 0].any()
    assert (np.diff(done.astype(int), axis=1) >= 0).all()


def test_done_stays_after_the_cube_is_gone_again(env):
    env.reset(states(1))
    assert run_expert(env, 1)[0].all()
    expert, away = PickAndPlace(1), np.array([[0.20, 0.0, 0.05]])
    for _ in range(25):
        action = expert.act(
            env,
            PLACE.named_cube(env),
            away + [[0, np.sign(-env.position("plate")[0, 1]) * 0.07, 0]],
        )
        done = env.step_chunk(action[:, None], every_frame=False)[1]
        assert done.all()
    assert not PLACE.success(env).any()


def test_the_wrong_cube_on_the_plate_is_no_success(env):
    env.reset(states(6))

    def wrong(env):
        pick, place = PLACE.goal(env)
        return (
            np.where(env.parameters[:, 2:3] > 0.5, env.position("cube_a"), env.position("cube_b")),
            place,
        )

    done, now = run_expert(env, 6, goal=wrong)
    other = np.where(
        env.parameters[:, 2] > 0.5, PLACE.on_plate(env, "cube_a"), PLACE.on_plate(env, "cube_b")
    )
    assert other.sum() >= 5 and not done.any() and not now.any()


def test_objects_rest_and_the_plate_cannot_be_pushed(env):
    part = states(8)
    env.reset(part)
    still = np.tile(np.float32([0, 0, 0, -1]), (8, 10, 1))
    env.step_chunk(still, every_frame=False)
    start = part.states[:, 7 : env.model.nq]
    assert (
        np.abs(env.qpos[:, 7:][:, [0, 1, 7, 8, 14, 15]] - start[:, [0, 1, 7, 8, 14, 15]]).max()
        < 1e-3
    )
    assert max(env.speed("cube_a").max(), env.speed("cube_b").max()) < 0.01
    plate = env.position("plate").copy()
    for _ in range(12):  # drive the closed fingers against its rim
        action = np.zeros((8, 4), np.float32)
        action[:, :2] = np.clip((plate - env.tip[:, :2]) / 0.03, -1, 1)
        action[:, 2:] = -1, 1
        env.step_chunk(action[:, None], every_frame=False)
    assert np.abs(env.position("plate") - plate).max() < 0.004


# ------------------------------------------------------------------------------------ disturbances


@pytest.mark.parametrize("switch", ["background", "texture", "lighting", "camera"])
def test_a_disturbance_changes_the_picture_and_nothing_else(make_env, switch):
    part, actions = states(4), random_actions(4, 2)
    plain = make_env()
    before = plain.reset(part)
    disturbed = make_env(disturbance=Disturbance(**{switch: 0.05 if switch == "camera" else 1.0}))
    changed = disturbed.reset(part)
    assert all((a != b).mean() > 0.01 for a, b in zip(before, changed))
    moved = plain.step_chunk(actions)[2]["states"]
    np.testing.assert_array_equal(
        disturbed.step_chunk(actions)[2]["states"], moved
    )  # physics is the same
    np.testing.assert_array_equal(plain.reset(part), before)  # the plain scene is what it was,
    np.testing.assert_array_equal(
        make_env().reset(part), before
    )  # also in an environment made later


@pytest.mark.parametrize("switch", ["background", "texture", "lighting", "camera"])
def test_a_disturbance_belongs_to_the_state_not_to_its_neighbors(make_env, switch):
    part = states(4)
    env = make_env(disturbance=Disturbance(**{switch: 0.05 if switch == "camera" else 1.0}))
    together = env.reset(part)
    np.testing.assert_array_equal(env.reset(part), together)
    np.testing.assert_array_equal(env.reset(part[[2, 0]]), together[[2, 0]])
    different = [np.abs(together[0].astype(int) - other).mean() for other in together[1:]]
    assert min(different) > 0.5


def test_shifted_objects(make_env):
    plain, shifted = states(50), states(50, object_shift=0.02, target_shift=0.02)
    difference = np.abs(shifted.states - plain.states)
    cubes, plate = difference[:, [7, 8, 14, 15]], difference[:, 21:23]
    assert 0 < cubes.max() <= 0.02 and cubes.mean() > 0.005 and plate.mean() > 0.005
    assert make_env().reset(shifted[:2]).shape == (2, 32, 32, 3)


def test_home_is_reachable_and_inside_the_workspace():
    assert (HOME > WORKSPACE[:, 0]).all() and (HOME < WORKSPACE[:, 1]).all()


def test_labels_say_what_lies_where(env):
    """Points of red, green, blue, target and hand; a color that is not in the scene is absent and
    zero.
    """
    env.reset(states(6))
    found = labels(env)
    assert (found["points"][:, 4] == env.tip.astype(np.float32)).all()
    assert np.allclose(found["points"][:, 3, :2], env.position("plate")) and np.allclose(
        found["opening"], 1
    )
    for b, colors in enumerate(env.parameters[:, :2].astype(int)):
        assert found["present"][b].tolist() == [color in colors for color in range(3)] + [
            True,
            True,
        ]
        for cube, color in zip(PLACE.CUBES, colors):
            assert np.allclose(found["points"][b, color], env.position(cube)[b])
        (missing,) = {0, 1, 2} - set(colors)
        assert not found["points"][b, missing].any()


def test_labeled_scenes_show_what_they_say():
    found, again, other = (random_scenes(PLACE, 12, seed, size=32) for seed in (0, 0, 1))
    assert all(np.array_equal(found[key], again[key]) for key in found)
    assert not np.array_equal(found["frames"], other["frames"])
    assert found["frames"].shape == (12, 32, 32, 3) and found["masks"].shape == (12, 32, 32)
    for channel in (1, 2):  # green and blue things; the arm is reddish
        shown = found["frames"][found["masks"] == 1 + channel].astype(int)
        assert len(shown) > 20
        assert (shown[:, channel] > np.delete(shown, channel, axis=1).max(axis=1)).mean() > 0.9
        scenes = (found["masks"] == 1 + channel).any(axis=(1, 2))
        assert not (scenes & ~found["present"][:, channel]).any()


def test_another_color_is_another_one_and_both_occur():
    found = {
        pair.with_another_color("put the red cube on the plate", number) for number in range(4)
    }
    assert found == {"put the green cube on the plate", "put the blue cube on the plate"}
    assert pair.with_another_color("open the drawer", 0) == ""


@pytest.mark.parametrize(
    "shape", [(3, 4, 7), (3, 4, 3), (1, 4, 4), (4, 4, 4), (3, 4), (3, 0, 4), (4, 4)]
)
def test_actions_of_another_size_or_batch_are_refused_before_anything_moves(env, shape):
    """A row too few would be broadcast to all episodes, a number too many ignored."""
    env.reset(states(3))
    before = env.qpos.copy()
    with pytest.raises(UserError, match=r"actions have shape .*; expected \(3, K, 4\)"):
        env.step_chunk(np.zeros(shape))
    assert np.array_equal(env.qpos, before)


def test_an_environment_is_reset_before_it_is_stepped(env):
    with pytest.raises(UserError, match="reset it to initial states first"):
        env.step_chunk(np.zeros((3, 4, 4)))
