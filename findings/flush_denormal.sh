#!/bin/bash
# torch 2.13.0: set_flush_denormal(True) does not reach worker threads that already run. After the
# first parallel operation part of every result still holds denormal numbers.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6
cat > "$folder/share.py" <<'PYTHON'
import sys
import torch

torch.set_num_threads(2)
if sys.argv[1] == "late":
    torch.ones(1_000_000) + 1  # starts the workers
assert torch.set_flush_denormal(True)
tiny = torch.full((1_000_000,), 2e-38)  # normal
print(float((tiny * 0.01 != 0).float().mean()))  # 2e-40 is not: 0 where it is flushed
PYTHON
measure <<'PYTHON'
import subprocess
import sys

share = lambda when: float(subprocess.check_output([sys.executable, "share.py", when]))
early, late = share("early"), share("late")
print(f"share of results that is not flushed: set first {early}, set after an operation {late}")
assert early == 0 and 0.4 < late < 0.6
print(f"set after the first parallel operation, {late:.0%} of a result on two threads is not flushed")
PYTHON
