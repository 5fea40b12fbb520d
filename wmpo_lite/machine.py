"""What this machine offers."""
import os


def cores() -> int:
    """Processor cores that this process may use: fewer than the machine has where it is pinned to some (taskset, a container)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
