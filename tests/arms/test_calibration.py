"""LeRobot's calibration file: its formulas, both ways, and one sentence for everything that can be
wrong with it.
"""

import json

import numpy as np
import pytest

from wmpo_lite.arms.calibration import Calibration, load_calibration
from wmpo_lite.arms.emulator import emulated_calibration
from wmpo_lite.arms.interface import JOINTS, LIMITS
from wmpo_lite.common.errors import UserError


def drawn(rng) -> Calibration:
    low = rng.integers(0, 2000, 6)
    return Calibration(
        id=rng.permutation(253)[:6],
        drive_mode=rng.integers(0, 2, 6),
        homing_offset=rng.integers(-2047, 2048, 6),
        range_min=low,
        range_max=low + rng.integers(1, 2096, 6),
    )


def table(**changes) -> dict:
    """A sound file with changes: {"joint.field": value}, or {"joint": None} to leave it out."""
    rows = {
        joint: {
            "id": n + 1,
            "drive_mode": 0,
            "homing_offset": -100 * n,
            "range_min": 800 + n,
            "range_max": 3200 + n,
        }
        for n, joint in enumerate(JOINTS)
    }
    for key, value in changes.items():
        joint, _, field = key.partition("__")
        if field:
            rows[joint][field] = value
        elif value is None:
            del rows[joint]
        else:
            rows[joint] = value
    return rows


def test_the_formulas_are_lerobots(tmp_path):
    """Degrees about the middle of the range with 4095 ticks a turn; the gripper in hundredths of
    its range.
    """
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(table(gripper__range_min=2000, gripper__range_max=3400)))
    calibration = load_calibration(path)
    ticks = np.array([2000, 2345, 900, 3100, 2004, 2350])
    joints = calibration.from_ticks(ticks)
    for n in range(5):
        middle = (800 + n + 3200 + n) / 2
        assert np.degrees(joints[n]) == pytest.approx((ticks[n] - middle) * 360 / 4095)
    assert joints[5] == pytest.approx(0.25)
    assert (
        calibration.from_ticks(np.full(6, 3500))[5] == 1
        and calibration.from_ticks(np.full(6, 100))[5] == 0
    )


def test_a_turned_gripper_is_turned_and_a_turned_joint_is_not():
    rng = np.random.default_rng(1)
    straight = drawn(rng)
    kinds = {
        field: getattr(straight, field)
        for field in ("id", "homing_offset", "range_min", "range_max")
    }
    plain, turned = (
        Calibration(drive_mode=np.zeros(6), **kinds),
        Calibration(drive_mode=np.ones(6), **kinds),
    )
    ticks = straight.range_min + 1
    assert (plain.from_ticks(ticks)[:5] == turned.from_ticks(ticks)[:5]).all()
    assert plain.from_ticks(ticks)[5] == pytest.approx(1 - turned.from_ticks(ticks)[5])


def test_ticks_come_back_exactly_and_joints_within_half_a_tick():
    rng = np.random.default_rng(2)
    for _ in range(300):
        calibration = drawn(rng)
        ticks = rng.integers(calibration.range_min, calibration.range_max + 1)
        assert (calibration.to_ticks(calibration.from_ticks(ticks)) == ticks).all()
        limits = calibration.limits
        joints = rng.uniform(limits[:, 0], limits[:, 1])
        error = np.abs(calibration.from_ticks(calibration.to_ticks(joints)) - joints)
        assert (error <= 0.5 / calibration.ticks_per_unit + 1e-9).all()


def test_no_target_leaves_the_range():
    rng = np.random.default_rng(3)
    for _ in range(100):
        calibration = drawn(rng)
        ticks = calibration.to_ticks(rng.normal(0, 10, 6))
        assert (ticks >= calibration.range_min).all() and (ticks <= calibration.range_max).all()


def test_the_emulators_file_reaches_every_limit_of_the_arm(tmp_path):
    emulated_calibration().save(tmp_path / "a.json")
    calibration = load_calibration(tmp_path / "a.json")
    assert (calibration.limits[:, 0] <= LIMITS[:, 0] + 1e-3).all() and (
        calibration.limits[:, 1] >= LIMITS[:, 1] - 1e-3
    ).all()
    assert (calibration.homing_offset == emulated_calibration().homing_offset).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"elbow_flex": None}, "no joint 'elbow_flex'"),
        ({"wrist_yaw": {}}, "'wrist_yaw' that no SO-101 has"),
        ({"gripper__range_min": 3300}, "range_min of gripper, 3300, is not below"),
        ({"gripper__id": 1}, "shoulder_pan and gripper both have the servo id 1"),
        ({"wrist_roll__range_max": 4096}, "range_max of wrist_roll is 4096, expected 0 to 4095"),
        ({"wrist_roll__range_min": -1}, "range_min of wrist_roll is -1"),
        ({"shoulder_pan__drive_mode": 2}, "drive_mode of shoulder_pan is 2"),
        ({"shoulder_pan__homing_offset": 2048}, "homing_offset of shoulder_pan is 2048"),
        ({"shoulder_pan__id": "1"}, "id of shoulder_pan is '1', expected a whole number"),
        ({"shoulder_lift__range_max": 3000.5}, "range_max of shoulder_lift is 3000.5"),
        ({"shoulder_lift": [1]}, "id of shoulder_lift is None"),
        ({"shoulder_pan__range_max": 10**400}, "range_max of shoulder_pan is 1000000"),
    ],
)
def test_every_wrong_file_gets_one_sentence_with_its_name(tmp_path, changes, message):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(table(**changes)))
    with pytest.raises(UserError, match="wrong.json") as raised:
        load_calibration(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("joint", JOINTS[:4])
def test_a_joint_that_was_not_swept_is_refused(tmp_path, joint):
    """LeRobot writes 0 to 4095 for it, which none of these joints can turn."""
    sound = dict(gripper__range_min=2000, gripper__range_max=3450)
    for low, high, message in (
        (0, 4095, "wider than the joint can turn"),
        (500, 3600, "wider"),
        (2040, 2050, None),
        (100, 130, None),
    ):
        (tmp_path / "a.json").write_text(
            json.dumps(table(**sound, **{f"{joint}__range_min": low, f"{joint}__range_max": high}))
        )
        if message is None and joint == "shoulder_pan":
            load_calibration(
                tmp_path / "a.json"
            )  # straight ahead is in the middle of whatever was swept
            continue
        with pytest.raises(
            UserError,
            match=f"a.json: the range of {joint}, {low} to {high}, is {message or 'too narrow'}",
        ):
            load_calibration(tmp_path / "a.json")


def test_a_gripper_that_was_not_swept_is_refused_and_a_wrist_that_rolls_all_the_way_is_not(
    tmp_path,
):
    from wmpo_lite.arms.cameras import VideoCamera
    from wmpo_lite.arms.so101 import SO101

    for low, high, message in ((0, 4095, "wider"), (2000, 2050, "too narrow")):
        (tmp_path / "a.json").write_text(
            json.dumps(table(gripper__range_min=low, gripper__range_max=high))
        )
        with pytest.raises(UserError, match=f"the range of gripper.*{message}"):
            load_calibration(tmp_path / "a.json")
    sound = table(
        gripper__range_min=2000,
        gripper__range_max=3450,
        wrist_roll__range_min=0,
        wrist_roll__range_max=4095,
    )
    (tmp_path / "a.json").write_text(json.dumps(sound))
    calibration = load_calibration(tmp_path / "a.json")
    columns = {
        field: getattr(calibration, field).copy()
        for field in ("id", "drive_mode", "homing_offset", "range_min", "range_max")
    }
    columns["range_min"][1], columns["range_max"][1] = 0, 4095
    with pytest.raises(
        UserError, match="shoulder_lift"
    ):  # however it was made: no arm gets torque with it
        SO101("/dev/null", Calibration(**columns), VideoCamera())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a JSON file"),
        ("[1]", "holds list"),
        ("\x00\xff", "not a JSON file"),
        ("NaN", "holds float"),
    ],
)
def test_what_is_no_calibration_at_all(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        load_calibration(tmp_path / "x.json")
    with pytest.raises(UserError, match="no calibration file"):
        load_calibration(tmp_path / "none.json")
