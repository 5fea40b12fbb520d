"""One thread and no progress bars: tiny models are faster that way, and equal bits are equal
whatever the machine.
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Weights are drawn from torch's global generator, so every test starts it afresh."""
    torch.manual_seed(0)
