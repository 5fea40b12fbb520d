"""Several processes that train one model: gloo on CPUs, nccl on GPUs.

    torchrun --nproc-per-node 2 -m wmpo_lite demo
    accelerate launch --num_processes 8 -m wmpo_lite demo

A script of one's own calls `parallel.start()`, then `fit` and `optimize` as ever. Without GPUs
`accelerate launch` starts one process, whatever it is asked for, unless told `--multi_gpu`.

Every process draws the random numbers of the whole batch and computes its own rows of it, and
gradients are summed. So they learn what one process learns from the same batch, up to rounding,
and a checkpoint goes on with any number of them. What learns nothing is shared out as well
(`whole`), or the first process does it while the others wait (`first`); it alone writes files,
which the others must be able to read.
With one process nothing here does anything.
"""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.machine import processes

# How long a process waits for the first one, which may be simulating. One that has ended is noticed
# at once, by its connection.
PATIENCE = timedelta(hours=12)
_one_batch = False  # see `one_batch`
_pass = (0, 1)  # see `one_pass`


def start(device: str = "cpu") -> None:
    """Join the other processes, if there are any; on a GPU each takes its own."""
    if processes() > 1 and not dist.is_initialized():
        # Its functions have the group of all processes as a default argument. Imported later, as
        # AdamW does, they would keep it, and gloo's threads abort when they outlive Python.
        import torch.distributed.nn  # noqa: F401
        from accelerate import PartialState

        with _together():
            PartialState(cpu=device == "cpu", timeout=PATIENCE)
        if dist.get_backend() == "gloo":  # whatever ends this process; NCCL would wait for others
            atexit.register(stop)
        if rank():
            os.environ["TQDM_DISABLE"] = "1"  # one progress bar is enough


def stop() -> None:
    """Part from the others; the end of what `start` began."""
    if dist.is_initialized():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def rows(n: int) -> slice:
    """This process's part of n things, in `one_pass` a part of that; parts differ by one at most
    and may be empty.
    """
    number, passes = _pass
    part, parts = rank() * passes + number, count() * passes
    return slice(n * part // parts, n * (part + 1) // parts)


def share(n: int) -> float:
    """The size of `rows(n)` over n: what turns a mean over them into a part of the whole mean."""
    own = rows(n)
    return (own.stop - own.start) / n


def passes(n: int, micro_batch: int | None) -> int:
    """How often a process has to look at a batch of n to see `micro_batch` of them at a time. No
    pass is empty where there are as many as processes.
    """
    if micro_batch is None:
        return 1
    return max(1, min(-(-n // (micro_batch * count())), n // count()))


@contextmanager
def one_pass(number: int, passes: int):
    """Inside, pass `number` (from 0) of `passes` over one batch: its gradients add up to those of
    all rows at once, in less memory.
    """
    global _pass
    _pass = number, passes
    try:
        yield
    finally:
        _pass = 0, 1


def is_pass(number: int) -> bool:
    """Whether this is pass `number` over the batch, where -1 is the last one."""
    return _pass[0] == number % _pass[1]


@contextmanager
def one_batch():
    """Inside, all processes' things are rows of one batch, and all call `draw` equally often."""
    global _one_batch
    _one_batch = count() > 1
    try:
        yield
    finally:
        _one_batch = False


def draw(make: Callable, n: int) -> torch.Tensor:
    """`make(n)`, n random rows; in `one_batch` those that they are among all processes' rows."""
    if not _one_batch:
        return make(n)
    *before, total = np.cumsum([0, *collect(n)]).tolist()
    return make(total)[before[rank()] :][:n]


def first(run: Callable):
    """What `run()`, called in the first process alone, returns there: plain Python, for all. Its
    UserError ends all of them, and the first one says it.
    """
    if count() == 1:
        return run()
    found, failed = None, None
    if not rank():
        try:
            found = run()
        except UserError as error:
            failed = error
    found, good = collect((found, failed is None))[0]
    if failed:
        raise failed
    if not good:
        sys.exit(1)
    return found


def require_work(n: int, what: str) -> None:
    """UserError where there are fewer things than processes."""
    if n < count():
        raise UserError(
            f"{count()} processes cannot share {n} {what}; start {n} or fewer, or raise the number"
            f" of {what}"
        )


def collect(value) -> list:
    """The plain Python `value` of every process, by rank."""
    if count() == 1:
        return [value]
    found = [None] * count()
    with _together():
        dist.all_gather_object(found, value)
    return found


def add(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, the same bits in each."""
    if count() > 1:
        here, nccl = values.device, dist.get_backend() == "nccl"
        values = values.detach().to("cuda" if nccl else here, copy=True)
        with _together():
            dist.all_reduce(values)
        return values.to(here)
    return values


def add_gradients(parameters) -> None:
    """Sum all processes' gradients in place; one that is missing counts as zero, if any has it."""
    parameters = list(parameters)
    if count() == 1 or not parameters:
        return
    zero = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    some = torch.tensor([float(p.grad is not None) for p in parameters])
    flat = torch.cat([zero(p).flatten().float() for p in parameters])
    some, flat = add(some.to(flat.device)).tolist(), add(flat)
    for p, part, known in zip(parameters, flat.split([p.numel() for p in parameters]), some):
        if known:
            p.grad = part.view_as(p).to(p.dtype)


def places(keys: list[int]) -> tuple[torch.Tensor, int]:
    """Where the things of all processes, sorted by their `keys`, are in this one (-1: in another):
    (total,), total. keys: of the things here. One process keeps its order.
    """
    found = collect(keys)
    *before, total = np.cumsum([0, *map(len, found)]).tolist()
    order = torch.arange(total)
    if count() > 1:
        order = torch.argsort(torch.tensor(sum(found, []), dtype=torch.long), stable=True)
    order = order - before[rank()]
    return order.masked_fill((order < 0) | (order >= len(keys)), -1), total


def whole(compute: Callable, n: int, piece: int = 1) -> np.ndarray:
    """The array (n, ...) of which `compute(slice)` gives rows; each process computes its share, cut
    at multiples of `piece`. Numbers, not bools.
    """
    if count() == 1:
        return compute(slice(0, n))
    own = rows(-(-n // piece))
    own = slice(own.start * piece, min(n, own.stop * piece))
    part = compute(own) if own.start < own.stop else None
    kinds = collect(None if part is None else (part.shape[1:], part.dtype.str))
    shape, kind = next(found for found in kinds if found)
    found = np.zeros((n, *shape), kind)
    if part is not None:
        found[own] = part
    return add(torch.from_numpy(found)).numpy()


def merge_rows(tensors: dict) -> dict:
    """Tensors (n, ...) of which each process has kept its `rows` up to date, made whole."""
    if count() == 1:
        return tensors
    found = {}
    for name, value in tensors.items():
        own = torch.zeros_like(value)
        own[rows(len(value))] = value[rows(len(value))]
        found[name] = add(own)
    return found


def same_weights(module) -> None:
    """Give every process the weights and buffers of the first one."""
    if count() > 1:
        with _together(), torch.no_grad():
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value, 0)


def wait() -> None:
    """Return when all processes have come here."""
    collect(None)


@contextmanager
def _together():
    """Where others have ended, one sentence takes the place of their connection's complaint."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise UserError(
            f"process {rank() if dist.is_initialized() else '?'} waited in vain for the others"
            f" ({str(error).splitlines()[0][:120]}); see what they said, and run the same command"
            " again to go on from the last checkpoint"
        ) from error
