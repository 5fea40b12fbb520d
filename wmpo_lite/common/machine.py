"""What this machine offers."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wmpo_lite.common.errors import UserError, require_between

PRECISIONS = ("fp32", "bf16")
DEVICES = ("cuda", "mps", "cpu")  # in the order in which `auto` looks for them


def choose_device(name: str = "auto"):
    """The `torch.device` that a setting names: cuda, mps, cpu, or auto for the first of them that
    this machine has. UserError for another name and for a device that is not here.
    """
    import torch

    if name not in ("auto", *DEVICES):
        raise UserError(f"--device is '{name}'; expected one of auto, {', '.join(DEVICES)}")
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in DEVICES if here.get(kind, True))
    if not here.get(name, True):
        raise UserError(
            f"--device is '{name}', and PyTorch {torch.__version__} finds no such device on this"
            " machine; install a build of PyTorch for it, or choose auto or cpu"
        )
    return torch.device(name)


@dataclass(frozen=True)
class Compute:
    """What a run may save memory and time by; its result changes by rounding, no more."""

    precision: str = "fp32"
    """bf16: matrix products and convolutions in 16 bits (weights, averages, losses in 32)"""
    recompute: bool = False  # a network's blocks once more on the way back, not kept in memory
    micro_batch: int | None = None
    """how much of a batch a stage that learns looks at in one pass: windows, clips, pairs of
    trajectories, in GRPO trajectories"""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise UserError(
                f"--precision is '{self.precision}'; expected one of {', '.join(PRECISIONS)}"
            )
        if self.micro_batch is not None:
            require_between("--micro-batch", self.micro_batch, 1, 1_000_000)

    def autocast(self, device):
        """The context in which everything is computed on `device`. Rounded weights are not kept:
        optimizer steps are taken inside, and would not be seen.
        """
        import torch

        bf16 = self.precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def prepare(self, model):
        """`model`, ready to learn: with `recompute`, what happens inside its repeated blocks is not
        kept for the way back, but computed again (Chen et al. 2016, arXiv 1604.06174).
        """
        import torch
        from torch.utils.checkpoint import checkpoint

        if self.recompute:
            lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
            inner = {id(m) for blocks in lists for m in blocks.modules() if m is not blocks}
            for block in (b for blocks in lists if id(blocks) not in inner for b in blocks):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        return model


def processes() -> int:
    """How many processes this program was started as, by `accelerate launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one_process(what: str) -> None:
    """UserError where several processes were started: each would do, and write, the same."""
    if processes() > 1:
        raise UserError(
            f"{what} runs as one process and {processes()} were started; start it without a"
            " launcher"
        )


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use: fewer than the machine has where it is pinned to
    some (taskset), has a quota (a container) or was started as one of several.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (quota := cpu_quota(root)) is not None:
        seen = min(seen, int(quota))
    return max(1, seen // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that control groups allow (cpu.max of version 2, cpu.cfs_quota_us of
    version 1), None for no limit. root: of the file system.
    """
    groups = [
        line.split(":", 2)[1:]
        for line in _text(root / "proc/self/cgroup").splitlines()
        if line.count(":") >= 2
    ]
    found = []
    for controllers, group in groups:
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # A quota of a group that is farther up counts as well; inside a container the mount begins
        # at the group itself.
        inside = base / group.strip("/")
        for folder in {base, *(f for f in (inside, *inside.parents) if f.is_relative_to(base))}:
            words = " ".join(_text(folder / name) for name in names).split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
                found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
