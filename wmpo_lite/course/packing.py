"""Inputs and outcomes as JSON: numbers, text, arrays, tensors, and tuples, lists and dicts of them.

Between a grader and a sandbox nothing is pickled: a pickle from a student could run code.
"""

import base64

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.course.exercise import Raised

KINDS = "biuf"  # of arrays: True/False, whole and floating-point numbers
LARGEST = 1 << 28  # bytes of an array


def pack(value):
    """A JSON value; what no exercise returns becomes `Raised`, which says so."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Raised):
        return {"raised": list(value)}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__ if type(value) is list else "tuple": [pack(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(part)] for key, part in value.items()]}
    tensor = hasattr(value, "detach")
    array = value.detach().cpu().numpy() if tensor else value
    if isinstance(array, (np.ndarray, np.generic)) and array.dtype.kind in KINDS:
        array = np.ascontiguousarray(array)
        data = base64.b64encode(array.tobytes()).decode()
        return {"tensor" if tensor else "array": [array.dtype.str, list(np.shape(value)), data]}
    return pack(Raised("TypeError", f"it returned a {type(value).__name__}"))


def unpack(value):
    """The inverse. UserError for anything that `pack` does not write."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise UserError("what the sandbox sent back is not an outcome")
        return value
    try:
        [(kind, parts)] = value.items()
        if kind == "raised":
            return Raised(str(parts[0]), str(parts[1]))
        if kind in ("tuple", "list"):
            made = [unpack(part) for part in parts]
            return tuple(made) if kind == "tuple" else made
        if kind == "dict":
            return {unpack(key): unpack(part) for key, part in parts}
        dtype, shape, data = np.dtype(parts[0]), tuple(map(int, parts[1])), parts[2]
        if kind not in ("array", "tensor") or dtype.kind not in KINDS or len(data) > 2 * LARGEST:
            raise ValueError(kind)
        array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
        if kind == "tensor":
            import torch

            return torch.from_numpy(array)
        return array
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError("what the sandbox sent back is not an outcome") from error
