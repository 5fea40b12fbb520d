"""One thread and no progress bars: tiny models are faster that way, and equal bits are equal
whatever the machine. Of several workers (`make test`) each has a core of its own, with all the
processes that its tests start.
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, ...
if worker and hasattr(os, "sched_setaffinity"):
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {usable[int(worker.removeprefix("gw")) % len(usable)]})

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Weights are drawn from torch's global generator, so every test starts it afresh."""
    torch.manual_seed(0)
