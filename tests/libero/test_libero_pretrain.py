"""Recordings and training for one task of LIBERO, at smoke size."""
import numpy as np
import pytest

from wmpo_lite.checkpoint import read_json
from wmpo_lite.envs.libero.expert import attempt, goal_of, play
from wmpo_lite.policy import load_policy
from wmpo_lite.pretrain import make_assets
from wmpo_lite.pretrain_libero import record, slots
from wmpo_lite.world_model import WorldModel


def test_the_camera_sees_the_hand_where_the_projection_says(env):
    """The hand moves; the pixels that change lie around the projected places of its tip before and after."""
    env.reset(env.initial_states("rollouts", [0]))
    action = np.zeros((1, 1, 7))
    shown, where = [], []
    for _ in range(2):
        frames, _, info = env.step_chunk(action)
        seen = env.camera @ np.append(info["tip"][0, -1], 1)
        shown.append(frames[0, -1].astype(int)), where.append((seen[:2] / seen[2] + 1) / 2 * 64)
        action[..., 2] = -0.6
    changed = np.argwhere(np.abs(shown[1] - shown[0]).max(axis=-1) > 40)[:, ::-1] + 0.5
    assert where[1][1] > where[0][1] + 1  # downwards
    distance = np.linalg.norm(changed[:, None] - np.array(where), axis=-1).min(axis=1)
    assert len(changed) > 10 and distance.min() < 2 and np.median(distance) < 16


def test_play_moves_things_and_stays_away_from_the_goal(env):
    states = env.initial_states("play", np.arange(4))
    found = play(env, states, np.random.default_rng(0))
    moved = np.linalg.norm(found["objects"][:, -1] - found["objects"][:, 0], axis=-1)
    assert not found["done"].any() and (moved.max(axis=1) > 0.1).sum() >= 2
    assert found["tip"][..., 2].max() < 0.6  # a hand that missed does not fly away


def test_some_attempts_fail(env):
    done = attempt(env, env.initial_states("play", np.arange(8)), np.random.default_rng(1))["done"][:, -1]
    assert 0 < (~done).sum()


def test_some_attempts_keep_what_they_carry_and_go_on():
    from wmpo_lite.envs.libero.env import LiberoEnv
    from wmpo_lite.envs.libero.states import get_task
    with LiberoEnv(get_task("libero_object", 0), size=16, stop=False) as free:
        found = attempt(free, free.initial_states("play", np.arange(12)), np.random.default_rng(0))
        can = found["objects"][:, :, goal_of(free)[0]]
    closed = found["executed"][:, -1, 6] > 0
    held = np.linalg.norm(can[:, -1] - found["tip"][:, -1], axis=-1) < 0.03
    assert 2 <= closed.sum() <= 8 and held[closed].sum() >= 2 and not held[~closed].any() and not found["done"][closed & held, -1].all()
    assert (np.ptp(can[closed & held][:, -12:], axis=1).max(axis=-1) > 0.05).any()  # they do not just stand there


def test_shards_are_kept_and_hold_only_what_is_of_use(env, tmp_path):
    paths = record(env, "demos", 2, tmp_path, noise=0.4, burst=0.15)
    shard = np.load(paths[0])
    assert shard["done"][:, -1].all() and shard["points"].shape == (2, env.task.horizon + 1, 5, 3) and shard["present"].all()
    assert slots(env)[0] == goal_of(env)[0] and slots(env)[-1] == goal_of(env)[1] and len(set(slots(env))) == 4
    changed = paths[0].stat().st_mtime_ns
    assert record(env, "demos", 2, tmp_path, noise=0.4, burst=0.15) == paths and paths[0].stat().st_mtime_ns == changed


@pytest.mark.slow
def test_everything_is_trained_and_loads_into_the_kits_classes(tmp_path, env):
    home = make_assets("libero_object/0", tmp_path, profile="smoke")
    assert home.name == "libero_object-0" and read_json(home / "policy" / "provenance.json")["slots"][0] == "alphabet_soup_1"
    policy, model = load_policy(home / "policy"), WorldModel.load(home / "world_model")
    policy.check_environment(env)
    frames = env.reset(env.initial_states("validation", [0]))
    import torch
    actions = policy.act(torch.from_numpy(frames), env.instructions)[2]
    assert actions.shape == (1, 8, 7) and torch.allclose(model.draft.camera, torch.as_tensor(env.camera))
