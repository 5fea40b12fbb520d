"""Tasks of the table-top simulator: one module a task, found by name."""

from importlib import import_module

from wmpo_lite.errors import UserError

NAMES = ("place", "square")


def get_task(name: str):
    """The task module called `name`."""
    if name not in NAMES:
        raise UserError(f"task '{name}' is unknown; use one of {', '.join(NAMES)}")
    return import_module(f"wmpo_lite.envs.tabletop.tasks.{name}")
