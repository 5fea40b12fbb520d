#!/bin/bash
# torch 2.13.0: where torch.distributed.nn is first imported after init_process_group, its functions
# keep the group as a default argument: destroy_process_group ends nothing, and gloo's threads live
# on, without a word. Imported before, or never, they end.
source "$(dirname "$0")/common.sh"
packages torch==2.13.0+cpu numpy==2.4.6
cat > "$folder/rank.py" <<'PYTHON'
import gc
import os
import sys

import torch
import torch.distributed as dist

rank, when, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def threads():
    """Threads of this process that gloo has started."""
    tasks = "/proc/self/task"
    return sum("gloo" in open(f"{tasks}/{task}/comm").read() for task in os.listdir(tasks))


if when == "before":
    import torch.distributed.nn
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
if when == "after":
    import torch.distributed.nn
dist.all_reduce(torch.ones(3))
at_work = threads()
dist.destroy_process_group()
gc.collect()
print(at_work, threads(), flush=True)
os._exit(0)
PYTHON
measure <<'PYTHON'
import os
import subprocess
import sys

found = {}
for when in ("never", "before", "after"):
    command = lambda rank: [sys.executable, "rank.py", str(rank), when, os.path.abspath(when)]
    ranks = [subprocess.Popen(command(r), stdout=subprocess.PIPE, text=True) for r in (0, 1)]
    found[when] = [tuple(map(int, p.communicate(timeout=120)[0].split())) for p in ranks]
    print(f"torch.distributed.nn imported {when}: gloo's threads at work and after the end {found[when]}")
for when, ranks in found.items():
    for at_work, left in ranks:
        assert at_work > 0 and left == (at_work if when == "after" else 0), (when, ranks)
print("a group that torch.distributed.nn finds when it is imported is not ended by destroy_process_group")
PYTHON
