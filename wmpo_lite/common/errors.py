"""The one exception that is meant for the person at the keyboard."""


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
