#!/bin/bash
# mujoco 3.17.0 (Linux wheel, x86-64): sines come from the C library, which picks a variant by what
# the processor can do, and they differ in the last bit. So one wheel repeats the same steps bit for
# bit on one processor and not on another: a four-link arm that swings among boxes ends elsewhere.
# Here glibc's own switch makes the choice, on one machine.
source "$(dirname "$0")/common.sh"
[ "$(uname -sm)" = "Linux x86_64" ] && getconf GNU_LIBC_VERSION > /dev/null 2>&1 &&
    grep -qw fma /proc/cpuinfo || { echo "needs glibc on an x86-64 processor with FMA" >&2; exit 75; }
packages mujoco==3.17.0 numpy==2.4.6
measure <<'PYTHON'
import os
import subprocess
import sys

STEPS = """
import mujoco
box = '<freejoint/><geom type="box" size="0.05 0.04 0.03" mass="0.1"/>'
boxes = "".join(
    f'<body pos="{0.25 * (1 + i % 3) * (-1) ** i} {0.12 * (i - 5.5)} {0.06 + 0.1 * (i % 3)}">{box}</body>'
    for i in range(12)
)
arm = ""
for i in range(4):
    joint = f'<joint name="j{i}" axis="0 {i % 2} {1 - i % 2}" damping="0.05"/>'
    arm = f'<body pos="0.2 0 0">{joint}<geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03"/>{arm}</body>'
motors = "".join(f'<motor joint="j{i}"/>' for i in range(4))
model = mujoco.MjModel.from_xml_string(
    f'<mujoco><worldbody><geom type="plane" size="2 2 1"/><body pos="-0.2 0 0.3">{arm}</body>{boxes}</worldbody>'
    f"<actuator>{motors}</actuator></mujoco>"
)
data = mujoco.MjData(model)
for step in range(3000):
    data.ctrl[:] = 6.0 if step // 300 % 2 else -6.0
    mujoco.mj_step(model, data)
print(" ".join(float(x).hex() for x in data.qpos))
"""


def ends(*without):
    env = os.environ | ({"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={','.join(without)}"} if without else {})
    run = subprocess.run([sys.executable, "-c", STEPS], env=env, capture_output=True, text=True, check=True)
    return [float.fromhex(x) for x in run.stdout.split()]


usual, again, other = ends(), ends(), ends("-FMA", "-AVX2")
off = max(abs(a - b) for a, b in zip(usual, other))
assert usual == again and off > 1e-3, off
print(f"after 3,000 steps: bit-equal with the same sines, {off:.2g} off (m or rad) with another processor's")
PYTHON
