"""Checks before anything is installed: Python, free disk, OpenGL libraries. One line for each thing
that is missing.

`make` runs this file with whatever Python it finds, so it uses the standard library only, imports
nothing of the package, and keeps to syntax that an old Python 3 can parse (to say that it is too
old). Each `*_problems` function takes its facts as arguments and returns a list of
`Problem(message, apt)`, empty when all is well; `find_problems` collects the facts of this machine.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import namedtuple

OLDEST_PYTHON = (3, 11)
EGL_PACKAGES = ["libegl1", "libegl-mesa0", "libgl1-mesa-dri"]
GL_PACKAGES = EGL_PACKAGES + ["libosmesa6"]
EGL_VENDORS = [
    "libEGL_mesa.so.0",
    "libEGL_nvidia.so.0",
]  # libEGL.so.1 alone only dispatches to one of these
OSMESA_NAMES = ["libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6"]
# Free space asked for, in GB (1e9 bytes). The environment takes about 2, several more with CUDA.
GB_TO_INSTALL, GB_TO_INSTALL_CUDA, GB_TO_RUN = 4, 12, 1

Problem = namedtuple(
    "Problem", "message apt"
)  # apt: Debian packages that solve it, [] when none does


def python_problems(version, has_venv=True):
    """`version`: (major, minor, ...). `has_venv`: whether `ensurepip` is there (Debian ships it
    apart).
    """
    found = "%d.%d" % tuple(version[:2])
    if tuple(version[:2]) < OLDEST_PYTHON:
        return [
            Problem(
                "Python %d.%d or newer is needed and this is %s: install it, or name it with "
                "make PYTHON=/path/to/python3.11" % (OLDEST_PYTHON + (found,)),
                [],
            )
        ]
    if not has_venv:
        package = "python%s-venv" % found
        return [
            Problem(
                "Python %s cannot make virtual environments (no ensurepip): sudo apt-get install"
                " -y %s" % (found, package),
                [package],
            )
        ]
    return []


def disk_problems(free_bytes, needed_gb, folder="."):
    if free_bytes < needed_gb * 1e9:
        return [
            Problem(
                "%.0f GB of free disk are needed in %s and %.1f are there: free some and run make"
                " again" % (needed_gb, folder, free_bytes / 1e9),
                [],
            )
        ]
    return []


def gl_problems(can_load, platform=sys.platform, has_apt=True):
    """MuJoCo draws without a screen through EGL or OSMesa, on Linux; elsewhere the system brings
    its own OpenGL.

    `can_load(name)`: whether the dynamic linker finds and loads the library `name`.
    """
    if not platform.startswith("linux"):
        return []
    egl = can_load("libEGL.so.1") and any(can_load(name) for name in EGL_VENDORS)
    if egl or any(can_load(name) for name in OSMESA_NAMES):
        return []
    remedy = (
        "sudo apt-get install -y " + " ".join(GL_PACKAGES)
        if has_apt
        else "install your distribution's packages for Mesa EGL and Mesa DRI drivers, or for OSMesa"
    )
    message = (
        "no OpenGL library that draws without a screen (libEGL.so.1 with a driver, or libOSMesa): "
        + remedy
    )
    return [Problem(message, list(GL_PACKAGES))]


def apt_install(packages, run=subprocess.call):
    """Install Debian packages as root; True on success. libosmesa6 is only a second way to draw: it
    may be missing.
    """
    command = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
    ]
    run(["apt-get", "update", "-qq"])  # a stale mirror must not stop an install that would work
    if run(command + packages) == 0:
        return True
    fewer = [package for package in packages if package != "libosmesa6"]
    return fewer != packages and run(command + fewer) == 0


def can_load(name):
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


def is_root_on_debian():
    return (
        hasattr(os, "geteuid")
        and os.geteuid() == 0
        and os.path.exists("/etc/debian_version")
        and shutil.which("apt-get") is not None
    )


def find_problems(installed):
    """The machine's problems. `installed`: the environment exists already, so that only runs need
    disk.
    """
    has_venv = installed or importlib.util.find_spec("ensurepip") is not None
    problems = python_problems(sys.version_info, has_venv)
    cuda = shutil.which("nvidia-smi") is not None
    needed_gb = GB_TO_RUN if installed else GB_TO_INSTALL_CUDA if cuda else GB_TO_INSTALL
    problems += disk_problems(shutil.disk_usage(".").free, needed_gb, os.getcwd())
    return problems + gl_problems(can_load, has_apt=shutil.which("apt-get") is not None)


def run_again(arguments):
    """Replace this process by a new one: its linker and import caches may still hold that the files
    are missing.
    """
    os.execv(sys.executable, [sys.executable, "-I", os.path.abspath(__file__)] + arguments)


def main(
    arguments,
    find=find_problems,
    on_debian_as_root=is_root_on_debian,
    install=apt_install,
    again=run_again,
):
    """Exit status: 0 when nothing is missing, else 1 after a line each. As root on Debian, apt-get
    is tried first.
    """
    problems = find("--installed" in arguments)
    packages = [package for problem in problems for package in problem.apt]
    if packages and "--after-apt" not in arguments and on_debian_as_root():
        print("wmpo-lite: installing " + " ".join(packages), flush=True)
        install(packages)
        return again(arguments + ["--after-apt"])
    for problem in problems:
        print("wmpo-lite: " + problem.message, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
