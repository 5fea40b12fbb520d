# Sourced by every finding. `packages NAME==VERSION ...` makes an environment in a temporary folder,
# `measure` runs the Python on standard input there, without the kit.
# Exit status: 0 the behavior is as stated, 1 it has changed, 75 it cannot be tried on this machine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

packages() {
    "${PYTHON:-python3}" -m venv "$folder/venv"
    # Where there is no CPU build of torch, the default one will do.
    "$folder/venv/bin/python" -m pip install -q --no-compile "$@" > "$folder/log" 2>&1 ||
        "$folder/venv/bin/python" -m pip install -q --no-compile "${@/+cpu/}" >> "$folder/log" 2>&1 || {
        grep ERROR "$folder/log" | tail -n 1 >&2
        exit 75
    }
}

measure() {
    (cd "$folder" && env -u PYTHONPATH HOME="$folder" HF_HUB_OFFLINE=1 TQDM_DISABLE=1 CUDA_VISIBLE_DEVICES= \
        "$folder/venv/bin/python" -W ignore -)
}
