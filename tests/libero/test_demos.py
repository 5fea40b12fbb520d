"""Official demonstrations: a file in LIBERO's layout becomes trajectories that are upright, of the
asked size and of the control stride.
"""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tiny

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.libero.demos import load_demonstrations, thin

SOUP = "pick up the alphabet soup and place it in the basket"


def official(path, lengths=(23, 40), states=None, convention="opengl", instruction=SOUP, size=128):
    """A file as LIBERO's own script writes them: `states` from before every action, pictures
    (upside down) and joints from after it, success at the last step.
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"], data.attrs["num_demos"], data.attrs["total"] = (
            "Libero_Floor_Manipulation",
            len(lengths),
            sum(lengths),
        )
        data.attrs["problem_info"] = json.dumps(
            {
                "problem_name": "libero_floor_manipulation",
                "domain_name": "robosuite",
                "language_instruction": instruction,
            }
        )
        data.attrs["env_args"] = json.dumps(
            {
                "type": 1,
                "env_name": "Libero_Floor_Manipulation",
                "env_kwargs": {"controller": "OSC_POSE", "control_freq": 20},
            }
        )
        data.attrs["macros_image_convention"], data.attrs["tag"] = convention, "libero-v1"
        for k, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{k}")
            rows = (
                np.cumsum(0.01 * tiny.random_actions(steps, 110, seed=k + 50), axis=0)
                if states is None
                else states[:steps]
            )
            demo.attrs["num_samples"], demo.attrs["init_state"], demo.attrs["model_file"] = (
                steps,
                rows[0],
                "<mujoco/>",
            )
            frames = np.zeros((steps, size, size, 3), np.uint8)
            frames[:, : size // 2, :, 0], frames[:, size // 2 :, :, 2] = (
                200,
                1 + np.arange(steps)[:, None, None],
            )  # red above, time in blue below
            obs = demo.create_group("obs")
            stored = frames[:, ::-1] if convention == "opengl" else frames
            obs["agentview_rgb"], obs["eye_in_hand_rgb"] = stored, stored
            for name, width in (
                ("ee_ori", 3),
                ("ee_pos", 3),
                ("ee_states", 6),
                ("gripper_states", 2),
            ):
                obs[name] = np.zeros((steps, width))
            obs["joint_states"] = np.concatenate([rows[1:, 1:8], rows[-1:, 1:8] + 0.01])
            actions = 0.5 * tiny.random_actions(steps, 7, seed=k).astype(np.float64)
            actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
            demo["actions"], demo["states"], demo["robot_states"] = (
                actions,
                rows,
                np.zeros((steps, 9)),
            )
            demo["rewards"] = demo["dones"] = (np.arange(steps) == steps - 1).astype(np.uint8)
    return path


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_an_official_file_becomes_trajectories(tmp_path, convention):
    found = load_demonstrations(
        official(tmp_path / "a.hdf5", convention=convention), stride=5, size=64
    )
    assert [len(t) for t in found] == [5, 8] and all(
        t.success and t.finish_step == len(t) for t in found
    )
    first = found[0]
    assert (
        first.frames.shape == (6, 64, 64, 3)
        and first.instruction == SOUP
        and first.split == "demos"
        and first.initial_state.shape == (110,)
    )
    assert (first.frames[:, :32, :, 0] == 200).all() and not first.frames[
        :, 32:, :, 0
    ].any()  # upright
    assert first.frames[:, -1, 0, 2].tolist() == [
        1,
        6,
        11,
        16,
        21,
        23,
    ]  # the picture before the first action is missing


def test_held_actions_ask_for_the_same_way(tmp_path):
    actions = np.random.default_rng(0).uniform(-1, 1, (13, 7))
    thinned = thin(actions, 4)
    assert thinned.shape == (4, 7) and np.allclose(
        4 * thinned[:, :6].sum(axis=0), actions[:, :6].sum(axis=0), atol=1e-6
    )
    assert np.allclose(thinned[:, 6], actions[[3, 7, 11, 12], 6]) and np.abs(thinned).max() <= 1
    assert np.allclose(thin(actions, 1), actions)


def test_stride_one_and_no_size_keep_the_recording(tmp_path):
    path = official(tmp_path / "a.hdf5")
    found = load_demonstrations(path, stride=1)[1]
    assert len(found) == 39 and found.frames.shape == (40, 128, 128, 3) and found.finish_step == 39
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        assert np.array_equal(found.frames[:, ::-1], demo["obs/agentview_rgb"])
        assert np.allclose(found.actions, demo["actions"][1:]) and np.array_equal(
            found.initial_state, demo["states"][1]
        )


class Recorded:
    """Draws recorded states: the first number's bit pattern is the picture."""

    class task:
        instruction = SOUP

    def pictures(self, rows):
        return np.round(np.asarray(rows)[:, 1, None, None, None] * np.ones((8, 8, 3))).astype(
            np.uint8
        )


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("stride", [1, 4])
def test_states_and_pictures_tell_the_same_story(tmp_path, after, stride):
    """Frames drawn anew from `states` are the recorded ones, as far as the states go, with the same
    actions and end.
    """
    states = np.zeros((30, 110))
    states[:, 1] = np.cumsum(np.random.default_rng(0).integers(1, 9, 30))
    path = official(tmp_path / "a.hdf5", lengths=(30,), states=states, convention="opencv", size=8)
    following = np.append(states[1:, 1], states[-1, 1] + 3)
    with h5py.File(path, "a") as file:
        obs, shown = file["data/demo_0/obs"], following if after else states[:, 1]
        del obs["agentview_rgb"], obs["joint_states"]
        obs["joint_states"] = np.repeat(shown[:, None], 7, axis=1)
        obs["agentview_rgb"] = np.broadcast_to(shown[:, None, None, None], (30, 8, 8, 3)).astype(
            np.uint8
        )
    seen, drawn = (
        load_demonstrations(path, stride)[0],
        load_demonstrations(path, stride, env=Recorded())[0],
    )
    assert np.array_equal(seen.actions, drawn.actions) and seen.finish_step == drawn.finish_step
    assert np.array_equal(seen.frames[:-1], drawn.frames[:-1])
    assert (
        drawn.frames[-1] == states[-1, 1]
    ).all()  # the state after the last action is not in the file
    assert (seen.frames[0] == states[int(after), 1]).all() and seen.initial_state[1] == states[
        int(after), 1
    ]


def test_an_unknown_convention_and_other_names_are_no_traceback(tmp_path):
    path = official(tmp_path / "a.hdf5", lengths=(9,), size=8)
    with h5py.File(path, "a") as file:
        file["data"].create_group("demo_of_old")
        file["data"].attrs["macros_image_convention"] = np.bytes_("opengl")
    assert len(load_demonstrations(path, stride=1)) == 1
    with h5py.File(path, "a") as file:
        file["data"].attrs["macros_image_convention"] = "sideways"
    with pytest.raises(UserError, match="a.hdf5.*'sideways'; expected 'opengl'"):
        load_demonstrations(path, stride=1)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.write_bytes(b"no"), "a.hdf5"),
        (lambda p: p.unlink(), "does not exist"),
    ],
)
def test_a_bad_file_is_named(tmp_path, spoil, message):
    path = official(tmp_path / "a.hdf5")
    spoil(path)
    with pytest.raises(UserError, match=message):
        load_demonstrations(path, stride=4)


def test_another_environments_file_and_a_bad_stride_are_refused(tmp_path):
    path = official(tmp_path / "a.hdf5", lengths=(9,))
    with h5py.File(path, "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = np.zeros((9, 4))
    with pytest.raises(UserError, match="actions of 4 numbers"):
        load_demonstrations(path, stride=4)
    with pytest.raises(UserError, match="stride is 0"):
        load_demonstrations(path, stride=0)


def test_without_the_extra_the_message_says_how_to_get_it():
    code = (
        "import sys; sys.modules['libero'] = None\nfrom wmpo_lite.envs.libero.states import"
        " get_task\nfrom wmpo_lite.common.errors import UserError\ntry:\n   "
        " get_task('libero_object', 0)\nexcept UserError as error:\n    print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "pip install 'wmpo_lite[libero]'" in said and said.count("\n") == 1


@pytest.mark.parametrize("numpy_1", [False, True])
def test_state_files_of_an_original_checkout_open(tmp_path, numpy_1):
    """They hold pickled arrays, written by NumPy 1, which torch opens only if told that arrays are
    safe; anything else in them stays refused.
    """
    import pickle
    import zipfile

    import torch

    from wmpo_lite.envs.libero.states import _array_parts

    rows, path = np.random.default_rng(0).normal(size=(50, 110)), tmp_path / "task.pruned_init"
    torch.save(rows, path)
    if numpy_1:
        with zipfile.ZipFile(path) as old:
            parts = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, content in parts.items():
                new.writestr(
                    name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with torch.serialization.safe_globals(_array_parts()):
        assert (torch.load(path) == rows).all()
