"""What a thing on disk was made from is kept with it, so that it is never taken
for something else.
"""

from pathlib import Path

from wmpo_lite.common import checkpoint
from wmpo_lite.common.errors import UserError


def require_same(path, found: dict | None, asked: dict) -> None:
    """UserError where what is at `path` was made from something else than `asked`, or does not say
    from what.

    Only the entries of `asked` are compared; both are plain values, as JSON gives them back.
    """
    if not isinstance(found, dict):
        raise UserError(
            f"{path} does not say what it was made from (another version of the kit wrote it, or"
            " another program); move it away to have it made anew, or choose another folder"
        )
    changed = _changes(found, checkpoint.plain(asked))
    if changed:
        raise UserError(
            f"{path} was made from something else than what is asked for now"
            f" ({', '.join(changed)}); move it away to have it made anew, choose another folder, or"
            " ask for the same"
        )


def claim(path, asked: dict, begun: bool) -> None:
    """Write `asked` to the JSON file `path` before something is made that takes several steps, or
    compare with it.

    begun: whether a part of it is there already. UserError as in `require_same`.
    """
    if Path(path).exists() or begun:
        require_same(path, checkpoint.read_json(path) if Path(path).exists() else None, asked)
    else:
        checkpoint.write_json(path, asked)


def _changes(found: dict, asked: dict, prefix: str = "") -> list[str]:
    changes = []
    for key, value in asked.items():
        there = found.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            changes += _changes(there, value, f"{prefix}{key}.")
        elif there != value:
            changes.append(f"{prefix}{key}: {there} there, {value} here")
    return changes
