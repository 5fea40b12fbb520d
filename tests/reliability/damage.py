"""Ways in which files get damaged: cut, bits turned, zeroed, emptied, lost, replaced by something
else, edited by hand.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np

ODD = (
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "what",
    "\u00e9\u4e16",
    [],
    {},
    [[1]],
    ["a", 2],
    {"a": None},
)


def keys_of(value, path=()):
    """Every place inside a JSON value, as a tuple of keys and indices; at most three elements of a
    list.
    """
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from keys_of(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(3, len(value))):
            yield from keys_of(value[index], (*path, index))


def edit(value, path, change):
    """`value` with `change(parent, key)` done at `path`; at the root, what change
    says of [value].
    """
    holder = [json.loads(json.dumps(value))]
    parent, key = holder, 0
    for step in path:
        parent, key = parent[key], step
    change(parent, key)
    return holder[0] if holder else None


def edited_json(value, rng) -> bytes:
    """One place of a JSON value replaced, removed or doubled."""
    places = list(keys_of(value))
    place, odd = places[rng.integers(len(places))], ODD[rng.integers(len(ODD))]
    how = rng.integers(4)

    def change(parent, key):
        if how == 0 and parent is not None:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[f"{key} "] = parent.pop(key)
        elif how == 1:
            parent.insert(0, odd)
        else:
            parent[key] = odd

    return json.dumps(edit(value, place, change)).encode()


def damaged_bytes(data: bytes, rng) -> bytes:
    """Cut, turned, zeroed, overwritten or lengthened."""
    how, array = rng.integers(6), np.frombuffer(data, np.uint8).copy()
    if how == 0 or not len(array):
        return data[: rng.integers(len(data) + 1)]
    if how == 1:
        where = rng.integers(len(array), size=rng.integers(1, 9))
        array[where] ^= (1 << rng.integers(8, size=len(where))).astype(np.uint8)
    elif how == 2:
        begin = rng.integers(len(array))
        array[begin : begin + rng.integers(1, 513)] = 0
    elif how == 3:  # near the front, where headers are
        where = rng.integers(min(len(array), 600), size=rng.integers(1, 9))
        array[where] = rng.integers(256, size=len(where))
    elif how == 4:
        return data + rng.bytes(rng.integers(1, 200))
    else:
        return rng.bytes(rng.integers(len(data) + 1)) if rng.random() < 0.3 else b"\xff\xfe" + data
    return array.tobytes()


def damage(path: Path, rng) -> str:
    """Damage one file in place; returns how, in a word."""
    draw = rng.random()
    if draw < 0.06:
        path.unlink()
        return "lost"
    if draw < 0.12:
        path.unlink()
        path.mkdir()
        return "a folder"
    if draw < 0.17:
        path.write_bytes(b"")
        return "emptied"
    if path.suffix in (".json", ".jsonl", ".journal") and draw < 0.75:
        lines = path.read_bytes().split(b"\n", 1)
        whole = path.suffix == ".json"
        try:
            text = b"\n".join(lines) if whole else lines[0]
            rest = b"" if whole or len(lines) < 2 else b"\n" + lines[1]
            path.write_bytes(edited_json(json.loads(text), rng) + rest)
            return "edited"
        except ValueError:  # damaged already
            pass
    path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    return "damaged"


def fingerprint(folder: Path) -> dict:
    """Every file below a folder with its bytes' hash."""
    return {
        str(path.relative_to(folder)): hash(path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def copy(source: Path, target: Path) -> None:
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=shutil.copyfile)
