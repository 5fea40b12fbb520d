#!/bin/bash
# What a GPU is good for, measured in ten minutes or less: both halves, or one of them.
#
#     tests/bench/gpu.sh [1|2] [--dry-run] [--out FILE]
#
# Results go to assets/results/scale.json (`gpu`, and `gpu_run`: whether a GPU really ran). What is
# there is not measured again: the same command goes on after a stop. --dry-run: tiny, on the CPU.
set -e
cd "$(dirname "$0")/../.."
halves="1 2"
case "$1" in 1|2) halves="$1"; shift ;; esac
export TQDM_DISABLE=1 HF_HUB_OFFLINE=1 MUJOCO_GL="${MUJOCO_GL:-egl}" PYTHONPATH="$PWD"
python="${PYTHON:-python}"
[ -x .venv/bin/python ] && [ -z "$PYTHON" ] && python=.venv/bin/python
for half in $halves; do
    timeout 300 "$python" tests/bench/bench_gpu.py "$half" "$@" || {
        status=$?
        [ "$status" = 124 ] && echo "gpu.sh: half $half took five minutes; run it again to go on" >&2
        exit "$status"
    }
done
