"""The one exception that is meant for the person at the keyboard, and checks that raise it."""

import math


class UserError(Exception):
    """Bad input or a broken file, said in one sentence: what is wrong, where, what was expected and
    what to do.

    The command line prints it as a single line and exits with status 1; everything else is a bug
    and keeps its traceback.
    """


LARGEST_SEED = 2**32 - 1


def require(condition: bool, message: str) -> None:
    """UserError with this message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_between(name: str, value, low, high) -> None:
    """UserError unless low <= value <= high (NaN is not)."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; expected {low:,} to {high:,}".replace(",", "_"))


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    """UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")


def check_range(where: str, config, **minimum: int) -> None:
    """UserError unless the named fields of `config` are at least so large."""
    for name, least in minimum.items():
        if getattr(config, name) < least:
            raise UserError(f"{where}.{name} is {getattr(config, name)}: expected {least} or more.")


def check_positive(where: str, config, *names: str) -> None:
    """UserError unless the named fields of `config` are finite and above 0."""
    for name in names:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise UserError(
                f"{where}.{name} is {getattr(config, name)}: expected a finite number above 0."
            )
