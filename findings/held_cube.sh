#!/bin/bash
# mujoco 3.17.0: a cube between two light fingers sinks with the default friction cone, and pressing
# twice as hard does not slow it by 1 %; the elliptic cone with impratio=10 does, by a factor of 36.
source "$(dirname "$0")/common.sh"
packages mujoco==3.17.0 numpy==2.4.6
measure <<'PYTHON'
import mujoco

SCENE = """<mujoco><option timestep="0.002" {options}/><worldbody>
  <body pos="-0.02 0 0.5"><joint name="a" type="slide" axis="1 0 0" damping="5"/>
    <geom type="box" size="0.005 0.01 0.01" mass="0.02" friction="1.6"/></body>
  <body pos="0.02 0 0.5"><joint name="b" type="slide" axis="-1 0 0" damping="5"/>
    <geom type="box" size="0.005 0.01 0.01" mass="0.02" friction="1.6"/></body>
  <body name="cube" pos="0 0 0.5"><freejoint/>
    <geom type="box" size="0.015 0.015 0.015" mass="0.1" friction="1.6"/></body>
</worldbody><actuator><motor joint="a"/><motor joint="b"/></actuator></mujoco>"""


def sunk(force, options=""):
    """mm by which the cube sinks in 0.4 s, once the fingers press."""
    model = mujoco.MjModel.from_xml_string(SCENE.format(options=options))
    data = mujoco.MjData(model)
    data.ctrl[:] = force
    heights = []
    for step in range(400):
        mujoco.mj_step(model, data)
        heights.append(float(data.body("cube").xpos[2]))
    return 1000 * (heights[199] - heights[-1])


usual, harder = sunk(5), sunk(10)
elliptic, held = sunk(5, 'cone="elliptic"'), sunk(5, 'cone="elliptic" impratio="10"')
print(f"default cone: 5 N {usual:.2f} mm, 10 N {harder:.2f}; elliptic {elliptic:.2f}, impratio 10 {held:.2f}")
assert usual > 4 and abs(harder / usual - 1) < 0.01 and held < usual / 20
print(f"in 0.4 s a held cube sinks by {usual:.2f} mm at 5 N, {harder:.2f} at 10 N, {held:.2f} with impratio 10")
PYTHON
