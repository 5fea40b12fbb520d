"""What the policy learns before it is cloned: grasping and moving where words and a still picture say."""
import numpy as np
import pytest
import torch

import tiny
from wmpo_lite import pretrain_policy
from wmpo_lite.envs.tabletop.env import MAX_STEP, TabletopEnv, initial_states
from wmpo_lite.envs.tabletop.expert import TRAVEL, plan_grasp, plan_hover
from wmpo_lite.envs.tabletop.scenes import random_scenes
from wmpo_lite.envs.tabletop.tasks import get_task
from wmpo_lite.train import FitConfig


def test_a_planned_grasp_lifts_the_cube_in_the_simulator():
    task = get_task("place")
    env, states = TabletopEnv(task, threads=1), initial_states(task, "pretraining", np.arange(16))
    env.reset(states)
    actions = plan_grasp(env.tip, task.named_cube(env), 16)
    assert np.abs(actions).max() <= 1 and (actions[:, 0, 3] == -1).all() and (actions[:, -1, 3] == 1).all()
    env.step_chunk(actions, every_frame=False)
    assert (task.named_cube(env)[:, 2] > 0.05).mean() > 0.8  # planned on the first picture alone, carried out blindly
    env.close()


def test_a_planned_hover_ends_above_the_point_with_an_open_gripper():
    rng = np.random.default_rng(0)
    tip, point = rng.uniform(-0.1, 0.1, (20, 3)), rng.uniform(-0.1, 0.1, (20, 3))
    actions = plan_hover(tip, point, 12)
    end = tip + MAX_STEP * actions[..., :3].sum(axis=1)
    assert np.allclose(end[:, :2], point[:, :2]) and np.allclose(end[:, 2], TRAVEL) and (actions[..., 3] == -1).all() and np.abs(actions).max() <= 1


def test_reach_teaches_the_decoder_and_leaves_the_tower_alone(monkeypatch):
    monkeypatch.setattr(pretrain_policy, "HELD_OUT_SCENES", 8)
    task, asked = get_task("place"), []
    scenes, policy = random_scenes(task, 40, 0, size=tiny.SIZE), tiny.policy(contrast=1.0)
    log_probs = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda frames, texts, *rest, **more: asked.extend(texts) or log_probs(frames, texts, *rest, **more))
    tower = [p.clone() for p in policy.vision.parameters()]
    records, errors = pretrain_policy.reach(policy, scenes, task, FitConfig(steps=60, lr=3e-3, warmup=5, decay=0.3), seed=0, folder=None, batch=16)
    assert all(torch.equal(a, b) for a, b in zip(tower, policy.vision.parameters()))
    assert records[-1]["loss"] < np.log(7) * 0.7  # seven bins
    assert 0 <= errors["reach_median_mm"] <= errors["reach_p80_mm"] < 200
    said = set(asked)
    assert "move to the plate" in said and said <= {"move to the plate", *(f"pick up the {c} cube" for c in ("red", "green", "blue"))}
    assert 0.1 < np.mean([text == "move to the plate" for text in asked]) < 0.3


def test_imagined_clips_end_with_their_chunk_and_are_labelled_by_the_scene_they_were_painted_from():
    from wmpo_lite.pretrain_reward import imagined_clips
    asked = []

    def fulfilled(points, opening, instructions):
        asked.append((points, opening, instructions))
        return points[:, 0, 0] > np.median(points[:, 0, 0])

    autoencoder, model, policy = tiny.autoencoder(), tiny.world_model(draft_width=16, slots=5), tiny.policy()
    frames = np.random.default_rng(0).integers(0, 256, (5, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    texts = [tiny.RED, tiny.BLUE, tiny.RED, tiny.BLUE, tiny.RED]
    make = lambda **more: imagined_clips(autoencoder, model, policy, 3 * tiny.CHUNK, fulfilled, frames, texts, seed=3, length=2, batch=4, **more)  # noqa: E731
    found = make()
    # chunks of 4 frames: clips end with the 4th and the 1st, in all three chunks
    assert found["frames"].shape == (30, 2, tiny.SIZE, tiny.SIZE, 3) and found["frames"].dtype == np.uint8
    assert list(found["instruction"]) == 6 * texts[:4] + 6 * texts[4:]
    expected = np.concatenate([points[:, 0, 0] > np.median(points[:, 0, 0]) for points, *_ in asked])
    assert (found["success"] == expected).all() and 0 < expected.sum() < 30
    assert [len(points) for points, *_ in asked] == [4] * 6 + [1] * 6
    assert asked[0][0].shape == (4, 5, 3) and asked[0][1].shape == (4,) and list(asked[0][2]) == texts[:4]
    again = make()
    assert all((found[key] == again[key]).all() for key in found)
    other = make(meddle=0.3)
    assert (other["frames"] != found["frames"]).any()
    nearly = make(nearly=lambda points, *_: np.ones(len(points), bool))
    assert (nearly["nearly"] == ~expected).all() and "nearly" not in found  # a success is not nearly one


def test_what_is_let_go_beside_the_target():
    from types import SimpleNamespace

    from wmpo_lite.pretrain_reward import let_go_beside
    points = np.zeros((4, 5, 3))
    points[:, 0, 0], points[:, 1, 0] = 0.5, [0.039, 0.041, 0.039, 0.0]  # metres: the red thing far off, the green one near
    points[:, 3, 1], points[:, 1, 2] = 0.0, [0.0, 0.0, 0.2, 0.0]  # height does not count
    assert let_go_beside(SimpleNamespace(beside=0.04), points, np.array([1.0, 1.0, 1.0, 0.4]), ["put the green nut over the peg"] * 4).tolist() == [True, False, True, False]


def test_what_was_recorded_is_imagined_in_order():
    """Five episodes of three chunks in batches of two: every chunk of actions reaches imagination once, at its place."""
    from wmpo_lite.envs.imagined import ImaginedEnv
    from wmpo_lite.pretrain_reward import Recorded, imagined_clips
    actions = np.random.default_rng(0).uniform(-0.9, 0.9, (5, 3 * tiny.CHUNK, tiny.ACTIONS)).astype(np.float32)
    told, step = [], ImaginedEnv.step_chunk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImaginedEnv, "step_chunk", lambda env, chunk: told.append(chunk) or step(env, chunk))
        imagined_clips(tiny.autoencoder(), tiny.world_model(draft_width=16, slots=5), Recorded(actions, tiny.CHUNK), 3 * tiny.CHUNK, lambda points, *_: points[:, 0, 0] > 0,
                       np.zeros((5, tiny.SIZE, tiny.SIZE, 3), np.uint8), [tiny.RED] * 5, seed=0, length=2, batch=2)
    done = [np.concatenate(told[i: i + 3], axis=1) for i in range(0, 9, 3)]
    assert [len(part) for part in done] == [2, 2, 1] and (np.concatenate(done) == actions).all()


def test_release_clips_show_both_sides_of_success(tmp_path):
    """Four filmed episodes of 9 frames, numbered by their grey: success at frame 5; never, and always let go beside; never, and always far; success at the last frame."""
    from types import SimpleNamespace

    from wmpo_lite.pretrain_reward import release_clips
    grey = (np.arange(9)[None] + 20 * np.arange(4)[:, None]).astype(np.uint8)
    frames = np.broadcast_to(grey[..., None, None, None], (4, 9, 8, 8, 3))
    done = np.zeros((4, 8), bool)
    done[0, 4:], done[3, 7] = True, True
    points = np.zeros((4, 9, 5, 3), np.float32)
    points[2, :, 0, 0] = 0.5  # metres from the target
    np.savez(tmp_path / "a.npz", frames=frames, done=done, points=points, opening=np.ones((4, 9), np.float32), instruction=np.array(["put the red cube on the plate"] * 4))
    clips = release_clips(SimpleNamespace(beside=0.06), [tmp_path / "a.npz"], SimpleNamespace(recode=lambda x: x + 100), seed=0, length=3, close=2)
    n = len(clips["success"]) // 2
    ends, camera = clips["frames"][:, :, 0, 0, 0].astype(int), slice(0, n)
    assert (ends[n:] == ends[:n] + 100).all() and (clips["success"][n:] == clips["success"][:n]).all()  # as filmed, and as the autoencoder gives it back
    assert (np.diff(ends, axis=1) == 1).all() and set(clips["instruction"]) == {"put the red cube on the plate"}
    episode, frame = ends[camera, -1] // 20, ends[camera, -1] % 20
    good, nearly = clips["success"][camera], clips["nearly"][camera]
    assert sorted(frame[(episode == 0) & good]) == [5, 6, 7] and list(frame[(episode == 3) & good]) == [8] and not good[(episode == 1) | (episode == 2)].any()
    assert (frame[(episode == 0) & ~good] < 5).all() and (frame[~good] >= 2).all()
    assert [int(nearly[episode == e].sum()) for e in range(4)] == [2, 2, 0, 2] and not (nearly & good).any()
    assert [int((~nearly & ~good)[episode == e].sum()) for e in range(4)] == [1, 1, 1, 1]


def test_meddling_holds_grippers_and_swaps_motions():
    """Of 400 imagined chunks a tenth each has its gripper closed, its gripper opened and another episode's motion; the rest are the policy's."""
    import torch

    from wmpo_lite.envs.imagined import ImaginedEnv
    from wmpo_lite.pretrain_reward import imagined_clips
    told, own, act, step = [], [], tiny.policy().act, ImaginedEnv.step_chunk
    policy = tiny.policy()
    policy.act = lambda *given: own.append(found := act(*given)) or (*found[:2], found[2].clone())
    frames = np.zeros((100, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImaginedEnv, "step_chunk", lambda env, actions: told.append(actions) or step(env, actions))
        imagined_clips(tiny.autoencoder(), tiny.world_model(draft_width=16, slots=5), policy, 4 * tiny.CHUNK, lambda points, *_: points[:, 0, 0] > 0, frames,
                       [tiny.RED] * 100, seed=0, length=2, meddle=0.1)
    own, told = (torch.cat([torch.as_tensor(part) for part in parts]) for parts in ([found[2] for found in own], told))
    same_motion, same_grip = (own == told)[..., :-1].all(-1).all(-1), (own == told)[..., -1].all(-1)
    opened, closed = ((told[..., -1] == value).all(-1) & ~same_grip for value in (-1.0, 1.0))
    assert 20 <= int(opened.sum()) <= 60 and 20 <= int(closed.sum()) <= 60 and 20 <= int((~same_motion).sum()) <= 60
    assert (same_grip | opened | closed).all() and (same_motion | same_grip).all()


def test_fulfilled_asks_the_task_about_the_thing_that_is_named():
    from types import SimpleNamespace

    from wmpo_lite.pretrain_reward import fulfilled
    points = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    task = SimpleNamespace(fulfilled=lambda thing, target, hand, opening: [thing, target, hand, opening])
    thing, target, hand, opening = fulfilled(task, points, np.array([0.1, 0.9]), [tiny.RED, tiny.BLUE])
    assert (thing == points[[0, 1], [0, 2]]).all() and (target == points[:, 3]).all() and (hand == points[:, 4]).all() and list(opening) == [0.1, 0.9]


def test_what_is_foreseen_is_what_is_painted_in_metres():
    import torch
    draft = tiny.world_model(draft_width=16, slots=5).draft
    draft.calibrate(torch.eye(3, 4), (0.1, 0.2, 0.3), 0.05)
    context, actions = torch.randn(3, 2, 4, 8, 8), torch.rand(3, 4, tiny.ACTIONS)
    points, opening = draft.foresee(context, actions)
    last, gripper = draft.scene_of(draft(context, actions)[2])
    assert points.shape == (3, 4, 5, 3) and torch.allclose(points[:, -1], last, atol=1e-6) and torch.allclose(opening[:, -1], gripper, atol=1e-6)
    new, _ = draft._unpack(draft(context, actions)[2], draft.read(context[:, -1])[0].look)
    assert torch.allclose(last, new.points * 0.05 + torch.tensor([0.1, 0.2, 0.3]), atol=1e-6)


def test_options_without_weights_change_a_model_and_not_its_weights(tmp_path):
    from wmpo_lite.pretrain import with_controller, with_options
    model = with_controller(tiny.world_model(draft_width=16, slots=5), 0.03, [[0, 1], [0, 1], [0, 1]])
    other = with_options(model, draft_keyframe=True, draft_rest=True)
    assert with_options(model, draft_keyframe=False) is model and with_options(other, draft_keyframe=True, draft_rest=True) is other
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    other.save(tmp_path / "w", {})
    again = type(other).load(tmp_path / "w")
    assert again.draft.keyframe and again.draft.mover.rest
    context, actions = torch.randn(2, 2, 4, 8, 8), torch.rand(2, 4, tiny.ACTIONS) * 2 - 1
    for a, b in zip(other.eval().draft(context, actions), again.draft(context, actions)):
        assert torch.equal(a, b)
