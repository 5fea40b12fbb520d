"""What LIBERO's pre-training computes from recordings, by hand; the training itself is in tests/libero."""
import numpy as np
import pytest

from wmpo_lite.errors import UserError
from wmpo_lite.pretrain_libero import cover, goal_zone, in_zone, make_libero_assets, stills_of, zone_clips

ABOVE = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]], np.float32)  # straight from above: x right, y down


def test_cells_around_a_thing_are_covered():
    points = np.array([[[-0.75, 0.25, 0.3]], [[5.0, 5.0, 0.0]]], np.float32)  # the centre of cell (row 2, column 0) of 4 x 4, and a point outside
    found = cover(points, ABOVE, 4)
    assert found.shape == (2, 4, 4) and found[0, 2, 0] == 1.0
    assert found[0, 2, 1] == found[0, 1, 0] == pytest.approx(np.exp(-0.5), rel=1e-5) and found[0, 1, 1] == pytest.approx(np.exp(-1.0), rel=1e-5)
    assert found[1].max() < 1e-6


def test_of_two_things_the_nearer_one_counts():
    both = cover(np.array([[-0.75, -0.75, 0], [0.75, 0.75, 0]], np.float32), ABOVE, 4)
    single = [cover(np.array([point], np.float32), ABOVE, 4) for point in ((-0.75, -0.75, 0), (0.75, 0.75, 0))]
    assert (both == np.maximum(*single)).all()


def test_stills_keep_their_labels():
    rng = np.random.default_rng(0)
    numbers = np.arange(6).reshape(2, 3)
    episodes = {"frames": np.broadcast_to(numbers[..., None, None, None], (2, 3, 4, 4, 3)).astype(np.uint8),
                "points": np.broadcast_to(numbers[..., None, None], (2, 3, 5, 3)).astype(np.float32), "present": rng.random((2, 5)) > 0.3,
                "opening": numbers.astype(np.float32)}
    found = stills_of(episodes, seed=0)
    assert sorted(found["opening"]) == list(range(6)) and (found["opening"] != np.arange(6)).any()
    for i, number in enumerate(found["opening"].astype(int)):
        assert (found["frames"][i] == number).all() and (found["points"][i] == number).all() and (found["present"][i] == episodes["present"][number // 3]).all()
    assert len(stills_of(episodes, seed=0, count=4)["frames"]) == 4


def test_the_goal_zone_is_where_solved_episodes_came_to_their_goal():
    points, done = np.zeros((3, 4, 5, 3), np.float32), np.zeros((3, 3), bool)
    points[:, :, 3] = 1.0, 2.0, 0.0  # the place
    points[0, 2, 0], points[1, 3, 0], points[2, 3, 0] = (1.03, 2.04, 0.1), (1.0, 2.0, 0.2), (1.5, 2.0, 0.9)
    done[0, 1:], done[1, 2] = True, True  # after the second and the third step; the third episode fails
    radius, top = zone = goal_zone({"points": points, "done": done})
    assert radius == pytest.approx(0.05) and top == pytest.approx(0.198)
    scenes = np.repeat(points[:1, 0], 4, axis=0)
    scenes[:, 0] = (1.03, 2.03, 0.1), (1.03, 2.05, 0.1), (1.0, 2.0, 0.21), (1.0, 2.0, -0.1)
    assert list(in_zone(scenes, zone)) == [True, False, False, True]


def test_clips_are_labelled_by_where_the_object_is_in_their_last_frame():
    from types import SimpleNamespace
    frames = np.broadcast_to(np.arange(2 * 8).reshape(2, 8, 1, 1, 1), (2, 8, 4, 4, 3)).astype(np.uint8)  # frame t of episode e is all 8 e + t
    points = np.zeros((2, 8, 5, 3))
    points[0, 5:, 0, 2], points[0, :5, 0, 2], points[1, :, 0, 2] = 0.1, 0.3, 0.3  # the first episode's object comes down at frame 5
    found = zone_clips({"frames": frames, "points": points, "instruction": np.array(["a", "b"])}, (0.05, 0.2), SimpleNamespace(recode=lambda x: x + 100), length=4, every=2)
    # ends at frames 3, 5, 7, of both episodes each; then the same recoded
    assert found["frames"].shape == (12, 4, 4, 4, 3) and list(found["frames"][:6, -1, 0, 0, 0]) == [3, 11, 5, 13, 7, 15] and list(found["frames"][0, :, 0, 0, 0]) == [0, 1, 2, 3]
    assert (found["frames"][6:] == found["frames"][:6] + 100).all()
    assert list(found["success"]) == [False, False, True, False, True, False] * 2 and list(found["instruction"]) == ["a", "b"] * 6


def test_an_unknown_profile_is_named():
    with pytest.raises(UserError, match="'huge' is unknown; use one of laptop, libero, gpu, smoke"):
        make_libero_assets("libero_object/0", "nowhere", profile="huge")
