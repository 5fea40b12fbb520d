"""Files that are complete or not there, JSON that has the shape it should have, and one sentence
for whatever a disk refuses.
"""

import errno
import json
import os
import shutil
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from wmpo_lite.common.errors import UserError

# What ships: beside the package in a checkout, elsewhere in the folder that WMPO_ASSETS names.
ASSETS = Path(os.environ.get("WMPO_ASSETS") or Path(__file__).resolve().parents[2] / "assets")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What reading a damaged zip archive, or an array inside it, raises.
BROKEN_ARCHIVE = (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, RuntimeError)
BROKEN_ARCHIVE += (MemoryError, OverflowError, zipfile.BadZipFile, zlib.error)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
BLOCKED = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def explain(error: OSError, path=None, doing: str = "use") -> str:
    """One sentence about an OSError: the file (`path`, or its own), what is wrong, what to do."""
    named = error.filename if isinstance(error.filename, (str, bytes, os.PathLike)) else None
    place, what = path or named or "a file", error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        advice = "free some disk space or choose another folder"
    elif error.errno in CLOSED:
        advice = "change its permissions or choose another folder"
    elif error.errno in BLOCKED:
        advice = "something else is in its way: rename that or choose another folder"
    else:
        advice = "check the path and the disk"
    return f"cannot {doing} {place} ({what}); {advice}"


@contextmanager
def one_sentence(path, doing: str = "write"):
    """Inside, an OSError becomes a UserError about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(explain(error, path, doing)) from error


def make_folder(path) -> Path:
    with one_sentence(path, "make the folder"):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def write_all(file, data: bytes):
    """All of `data` into an unbuffered file, whose `write` may stop half-way without an error."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def write_atomic(path: Path, data: bytes | memoryview):
    """Write a file that nobody ever meets half of. UserError, and nothing left, if it fails."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with one_sentence(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append(path: Path, line: bytes):
    """Add a line (without its end), all or nothing; half a line that a kill has left is ended."""
    path = Path(path)
    with one_sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
            try:
                write_all(file, begin + line + b"\n")
            except OSError:
                file.truncate(size)
                raise


def swap(staging: Path, folder: Path):
    """Put the finished folder `staging` in the place of `folder`, whose content goes last."""
    staging, folder = Path(staging), Path(folder)
    old = folder.with_name(folder.name + ".old")
    with one_sentence(folder):
        if folder.exists():
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        try:
            os.replace(staging, folder)
        except OSError:
            with suppress(OSError):
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> Path:
    """`folder`, put back first if a kill inside `swap` has left only its old content beside it."""
    folder = Path(folder)
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.is_dir():
        with one_sentence(folder):
            os.replace(old, folder)
    return folder


@contextmanager
def whole_folder(folder: Path):
    """An empty folder to write into, which takes the place of `folder` once all went well."""
    folder = restore(folder)
    staging = folder.with_name(folder.name + ".part")
    try:
        with one_sentence(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
        swap(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


# -- arrays ----------------------------------------------------------------------------------------


def read_arrays(path: Path) -> dict:
    """All arrays of an npz file by name, each checked against its checksum. UserError with the
    file's name where that cannot be; nothing is unpickled.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as part:
                    found[name.removesuffix(".npy")] = np.lib.format.read_array(
                        part, allow_pickle=False
                    )
            return found
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; make it again, or fetch it") from error
    except BROKEN_ARCHIVE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as arrays ({said}); it is damaged, move it away to have it made"
            " anew"
        ) from error


# -- JSON ------------------------------------------------------------------------------------------


def write_json(path: Path, value):
    write_atomic(path, (json.dumps(value, indent=1, default=_plain) + "\n").encode())


def read_json(path: Path, shape: Any = dict):
    """The JSON in a file, which must have `shape`: a type (float takes whole numbers, too), None
    for anything, {key: shape of what must be there}, or [shape of each element]. UserError with the
    file's name otherwise.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; the folder is not a checkpoint of this kit or was only partly"
            " copied"
        ) from error
    except OSError as error:
        raise UserError(explain(error, path, "read")) from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise UserError(
            f"{path} is not valid JSON ({error}); it was truncated or edited, fetch or train it"
            " again"
        ) from error
    if problem := misfit(value, shape):
        raise UserError(
            f"{path} has {problem}; it was edited or belongs to another program or version, fetch"
            " or make it again"
        )
    return value


def misfit(value, shape, where: str = "its content") -> str | None:
    """What is wrong with a JSON value in words, None where it fits `shape` (see `read_json`)."""
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    if kind is not None and not is_a(value, kind):
        return f"{_name(type(value))} where {_name(kind)} is expected ({where})"
    parts = []
    if isinstance(shape, dict):
        if absent := [key for key in shape if key not in value]:
            return f"no '{absent[0]}' ({where})"
        parts = [(value[key], part, f"'{key}'") for key, part in shape.items()]
    elif isinstance(shape, list):
        parts = [(item, shape[0], f"element {n} of {where}") for n, item in enumerate(value)]
    return next((problem for part in parts if (problem := misfit(*part))), None)


def is_a(value, kind) -> bool:
    """Whether a JSON value is of a type: true is no number, and a whole number is a float, too."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {float: (int, float), list: (list, tuple)}.get(kind, kind))


def _name(kind: type) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(kind, kind.__name__)


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def plain(value):
    """`value` as it looks after a round trip through JSON, to be compared with stored ones."""
    return json.loads(json.dumps(value, default=_plain))
