#!/bin/bash
# torch 2.13.0: pixel_unshuffle of a batch of no pictures returns it in its old shape, (0, 3, 64, 64),
# where (0, 48, 16, 16) is the unshuffled one; a sum with a tensor of 48 channels then fails.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6
measure <<'PYTHON'
import torch
import torch.nn.functional as F

none, two = torch.zeros(0, 3, 64, 64), torch.zeros(2, 3, 64, 64)
shapes = {len(x): tuple(F.pixel_unshuffle(x, 4).shape) for x in (none, two)}
print("torch", torch.__version__, "pixel_unshuffle by 4:", shapes)
assert shapes == {0: (0, 3, 64, 64), 2: (2, 48, 16, 16)}
print("a batch of no pictures keeps its old shape")
PYTHON
