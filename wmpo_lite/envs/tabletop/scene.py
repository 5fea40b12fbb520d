"""The table, the arm and the camera as one MJCF text; a task adds its own bodies. Primitive geoms
only: they render fast and need no files.
"""

import math

from wmpo_lite.envs.tabletop import arm

TIMESTEP = 0.005  # s
FINGER_TRAVEL = 0.032  # m per finger; fully open the jaws are 2 x this apart
CUBE_HALF = 0.014  # m
COLORS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.62, 0.15),
    "blue": (0.12, 0.22, 0.85),
    "yellow": (0.92, 0.78, 0.08),
}
EYE, LOOK_AT, FIELD_OF_VIEW = (0.44, 0.0, 0.44), (0.170, 0.0, 0.040), 30  # m, m, degrees
TABLE_RGB, ARM_RGB, JAW_RGB = (0.62, 0.60, 0.58), (0.95, 0.55, 0.12), (0.13, 0.13, 0.14)


def _rgba(rgb):
    return " ".join(f"{v:.3f}" for v in rgb) + " 1"


def free_cube(name: str) -> str:
    half = CUBE_HALF
    return (
        f'<body name="{name}" pos="0 0 {half}"><freejoint name="{name}"/><geom name="{name}"'
        f' type="box" size="{half} {half} {half}" mass="0.03" friction="1.2 0.02 0.001" condim="4"'
        ' rgba="1 0 0 1"/></body>'
    )


def slides(name: str) -> str:
    """Joints on which an episode places a body anywhere on the table and nothing can push it: their
    dry friction is large.

    (A huge armature would do too, but MuJoCo scales its solver tolerance by the mean inertia and
    would stop iterating.)
    """
    return "".join(
        f'<joint name="{name}_{axis}" type="slide" axis="{vector}" frictionloss="50" damping="50"/>'
        for axis, vector in (("x", "1 0 0"), ("y", "0 1 0"))
    )


def sliding_disc(name: str, radius: float, thickness: float, rgb) -> str:
    return (
        f'<body name="{name}" pos="0 0 {thickness / 2}" gravcomp="1">{slides(name)}<geom'
        f' name="{name}" type="cylinder" size="{radius} {thickness / 2}" mass="0.3" friction="1'
        f' 0.02 0.001" rgba="{_rgba(rgb)}"/></body>'
    )


def free_nut(name: str, outer: float, inner: float, half_height: float) -> str:
    """A square frame of four bars (half sizes in meters) that the gripper can take from outside."""
    middle, bar = (outer + inner) / 2, (outer - inner) / 2
    bars = (
        ("", 0, middle, outer, bar),
        ("_b", 0, -middle, outer, bar),
        ("_c", middle, 0, bar, inner),
        ("_d", -middle, 0, bar, inner),
    )
    geoms = "".join(
        f'<geom name="{name}{tail}" type="box" size="{sx} {sy} {half_height}" pos="{x} {y} 0"'
        ' mass="0.008" friction="1.2 0.02 0.001" condim="4" rgba="1 0 0 1"/>'
        for tail, x, y, sx, sy in bars
    )
    return f'<body name="{name}" pos="0 0 {half_height}"><freejoint name="{name}"/>{geoms}</body>'


def sliding_peg(name: str, half: float, height: float, rgb) -> str:
    return (
        f'<body name="{name}" pos="0 0 {height / 2}" gravcomp="1">{slides(name)}<geom name="{name}"'
        f' type="box" size="{half} {half} {height / 2}" mass="0.3" friction="0.4 0.02 0.001"'
        f' rgba="{_rgba(rgb)}"/></body>'
    )


def _arm_bodies() -> str:
    (u1, u2), (f1, f2) = arm.UPPER_ARM, arm.FOREARM
    orange, dark = _rgba(ARM_RGB), _rgba(JAW_RGB)
    hinge = {
        name: (
            f'<joint name="{name}" type="hinge" axis="{axis}" range="{low} {high}" damping="0.6"'
            ' armature="0.028" frictionloss="0.02"/>'
        )
        for name, axis, (low, high) in zip(
            arm.JOINTS, ("0 0 1", "0 1 0", "0 1 0", "0 1 0", "1 0 0"), arm.LIMITS
        )
    }
    finger = "".join(
        f'<body name="finger_{side}" pos="{arm.HAND - 0.020} {sign * 0.0065} 0" gravcomp="1"><joint'
        f' name="finger_{side}" type="slide" axis="0 {sign} 0" range="0 {FINGER_TRAVEL}"'
        f' damping="4" armature="0.02"/><geom name="finger_{side}" type="box" size="0.024 0.0055'
        ' 0.011" pos="0 0 0" mass="0.02" friction="1.6 0.02 0.001" condim="4"'
        f' rgba="{dark}"/></body>'
        for side, sign in (("left", 1), ("right", -1))
    )
    return f"""
    <body name="base" pos="0 0 0">
      <geom name="riser" type="box" size="0.045 0.045 {arm.RISER / 2}"
          pos="-0.02 0 {arm.RISER / 2}" rgba="{dark}"/>
      <body name="shoulder" pos="0 0 {arm.RISER}" gravcomp="1">{hinge["shoulder_pan"]}
        <geom type="cylinder" size="0.032 0.045" pos="0 0 0.05" mass="0.2" contype="0"
            conaffinity="0" rgba="{orange}"/>
        <body name="upper_arm" pos="{arm.SHOULDER_FORWARD} 0 {arm.SHOULDER_UP}"
            gravcomp="1">{hinge["shoulder_lift"]}
          <geom type="capsule" fromto="0 0 0 {u2} 0 {u1}" size="0.016" mass="0.1" contype="0"
              conaffinity="0" rgba="{orange}"/>
          <body name="forearm" pos="{u2} 0 {u1}" gravcomp="1">{hinge["elbow_flex"]}
            <geom type="capsule" fromto="0 0 0 {f1} 0 {f2}" size="0.014" mass="0.1" contype="0"
                conaffinity="0" rgba="{orange}"/>
            <body name="wrist" pos="{f1} 0 {f2}" gravcomp="1">{hinge["wrist_flex"]}
              <geom type="capsule" fromto="0 0 0 0.07 0 0" size="0.013" mass="0.08" contype="0"
                  conaffinity="0" rgba="{orange}"/>
              <body name="hand" pos="0 0 0" gravcomp="1">{hinge["wrist_roll"]}
                <geom name="palm" type="box" size="0.012 0.040 0.012" pos="0.105 0 0" mass="0.08"
                    rgba="{orange}"/>
                <site name="tip" pos="{arm.HAND} 0 0" size="0.003" rgba="0 0 0 0"/>{finger}
              </body></body></body></body></body>
    </body>"""


def camera_axes():
    """Right, up and backward of the camera as unit vectors."""
    unit = lambda v: [a / math.sqrt(sum(b * b for b in v)) for a in v]
    cross = lambda a, b: [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
    back = unit([e - t for e, t in zip(EYE, LOOK_AT)])
    right = unit(cross((0, 0, 1), back))
    return right, cross(back, right), back


def camera_matrix():
    """Homogeneous point of the room -> homogeneous picture coordinates (right, down, 1), both in
    [-1, 1] inside the picture: float32 (3, 4).
    """
    import numpy as np

    right, up, back = np.array(camera_axes())
    zoom = 1 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    rows = np.stack([zoom * right, -zoom * up, -back])
    return np.concatenate([rows, -(rows @ EYE)[:, None]], axis=1).astype(np.float32)


def build_xml(task_bodies: str, size: int, *, shadows: bool = False) -> str:
    """MJCF of the whole scene. size: pixels of the square offscreen buffer. Shadows cost a factor
    of eight in rendering and are off.

    The elliptic cone with impratio 10 is what lets fingers hold something: a cube sinks between
    them by 0.8 mm in 8 s. With impratio 1 it is 8 mm, and with MuJoCo's default cone it falls to
    the table, however hard the fingers press.
    """
    motors = "".join(
        f'<position name="{name}" joint="{name}" kp="60" kv="3" ctrlrange="{low} {high}"'
        ' forcerange="-3.35 3.35"/>'
        for name, (low, high) in zip(arm.JOINTS, arm.LIMITS)
    )
    motors += "".join(
        f'<position name="finger_{side}" joint="finger_{side}" kp="200" kv="8" ctrlrange="0'
        f' {FINGER_TRAVEL}" forcerange="-6 6"/>'
        for side in ("left", "right")
    )
    x, y, _ = camera_axes()
    axes = " ".join(f"{v:.6f}" for v in (*x, *y))
    return f"""<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><global offwidth="{size}" offheight="{size}"/><quality
      shadowsize="{1024 if shadows else 0}" offsamples="4"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0 0 0"/></visual>
  <worldbody>
    <light name="lamp" pos="0.3 0.3 0.9" dir="-0.2 -0.3 -0.9" directional="true"
        castshadow="{str(shadows).lower()}" diffuse="0.35 0.35 0.35"/>
    <camera name="front" pos="{EYE[0]} {EYE[1]} {EYE[2]}" xyaxes="{axes}" fovy="{FIELD_OF_VIEW}"/>
    <geom name="table" type="plane" size="1 1 0.1" rgba="{_rgba(TABLE_RGB)}"/>
    {_arm_bodies()}
    {task_bodies}
  </worldbody>
  <contact><exclude body1="finger_left" body2="finger_right"/></contact>
  <actuator>{motors}</actuator>
</mujoco>"""
