"""A device that is not there: tensors that say they lie on `meta` and carry numbers all the same.

Mixing them with the CPU's raises as on a GPU, so whatever runs here runs there. What CUDA allows
is allowed: moving, numbers without dimensions from the CPU in arithmetic, indices from the CPU.
Since the CPU computes, results can be compared bit by bit with those of tensors that admit it.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
# One argument may be a number without dimensions on the CPU.
ARITHMETIC = ("add", "sub", "mul", "div", "where", "eq", "lt", "le", "gt", "ge", "rsub", "maximum")


class Pretend(torch.Tensor):
    """A tensor on the device that is not there; `numbers` has them."""

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.numbers = real
        return made

    def __repr__(self):
        return f"Pretend({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class PretendMode(TorchDispatchMode):
    """While it is on, tensors can be made on the device and moved to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def dispatch(func, args, kwargs):
    """Do `func` with the numbers; its results are on the device if an argument is, or as asked."""
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    tensors = []
    plain = each((args, kwargs), lambda x: tensors.append(x) or numbers(x))
    away = {id(x.numbers): x for x in tensors if isinstance(x, Pretend)}
    if away and not all(isinstance(x, Pretend) for x in tensors):
        require_allowed(func, name, args, tensors)
    here = bool(away)
    if (target := kwargs.get("device")) is not None:
        here = torch.device(target) == DEVICE
        plain[1]["device"] = torch.device("cpu")
    out = func(*plain[0], **plain[1])
    if name == "copy":
        return args[0]
    # operations in place return what they were given
    return each(out, lambda x: away[id(x)] if id(x) in away else Pretend(x)) if here else out


def each(tree, change):
    """`tree` of lists, tuples and dicts with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([each(part, change) for part in tree])
    if isinstance(tree, dict):
        return {key: each(part, change) for key, part in tree.items()}
    return tree


def require_allowed(func, name, args, tensors):
    """RuntimeError where CUDA would raise it for tensors of two devices."""
    if name in ("_to_copy", "copy"):
        return
    if name in ("index", "index_put", "_index_put_impl"):
        values = args[2:3] if name != "index" else ()
        fits = all(isinstance(v, Pretend) or v.ndim == 0 for v in values)
        if isinstance(args[0], Pretend) and fits:
            return
    cpu = [x for x in tensors if not isinstance(x, Pretend)]
    if name in ARITHMETIC and all(x.ndim == 0 for x in cpu):
        return
    raise RuntimeError(
        f"{func} got tensors of the CPU {[tuple(x.shape) for x in cpu]} and of another device"
    )


@contextmanager
def pretending():
    """Inside, `meta` is a device like others: `x.to('meta')` keeps the numbers."""
    swap, tensor = torch.__future__.get_swap_module_params_on_conversion(), torch.tensor
    torch.__future__.set_swap_module_params_on_conversion(True)
    # torch.tensor fills nothing on `meta`, and no mode is asked
    torch.tensor = lambda data, device=None, **more: tensor(data, **more).to(device or "cpu")
    try:
        with PretendMode():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
        torch.tensor = tensor


def numbers(x: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor, wherever it lies."""
    return x.numbers if isinstance(x, Pretend) else x
