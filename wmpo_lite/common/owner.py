"""A run folder belongs to one process at a time: a lock of the operating system, which ends with
the process however that ends.
"""

import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import one_sentence

NAME = ".owner"
_held: "weakref.WeakValueDictionary[str, Owner]" = weakref.WeakValueDictionary()  # of this process


class Owner:
    """Holds `folder`, which is made if need be, until `release`, or until nobody in this process
    refers to it. One process may hold it several times.

    UserError, with the other's process number, where another process holds it.
    """

    release: weakref.finalize

    def __new__(cls, folder):
        key = str(Path(folder).resolve())
        if (owner := _held.get(key)) is None:
            owner = super().__new__(cls)
            owner.release = weakref.finalize(owner, _release, *_acquire(Path(folder)), key)
            _held[key] = owner
        return owner

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass  # the last reference ends it: somebody else in this process may hold it, too


def _acquire(folder: Path) -> tuple[int, Path]:
    path = folder / NAME
    while True:
        with one_sentence(folder, "use the run folder"):
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(file):
            who = os.pread(file, 200, 0) if hasattr(os, "pread") else b""
            os.close(file)
            by = who.decode(errors="replace").strip()
            raise UserError(
                f"{folder} is in use by another process ({by or 'which has not said its name'});"
                " wait until it ends, or choose another --name"
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)  # its last owner removed it just now
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(file, 0)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:120]
        os.write(file, f"process {os.getpid()}: {command}\n".encode(errors="replace"))
    return file, path


def _lock(file: int) -> bool:
    """Whether this process has the file now. True, too, on a file system that has no locks."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            os.lseek(file, 1000, os.SEEK_SET)  # behind the text, which others may read
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(file, 0, os.SEEK_SET)
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _release(file: int, path: Path, key: str) -> None:
    _held.pop(key, None)
    with suppress(OSError):
        if os.path.samestat(os.fstat(file), os.stat(path)):
            path.unlink()
            path.parent.rmdir()  # only if nothing has been written
    os.close(file)
