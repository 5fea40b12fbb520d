"""The set-up files agree, importing the package is cheap, and a machine that lacks something is
told in one line.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import wmpo_lite
from wmpo_lite import setup_check

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NO_GL = "no OpenGL library"


def pins(requirements):
    """["name[extra]==1.2"] -> {"name[extra]": "1.2"}; fails without an exact version, or when two
    disagree.
    """
    versions = {}
    for requirement in requirements:
        name, separator, version = requirement.partition("==")
        assert separator and re.fullmatch(r"[0-9.]+", version), f"{requirement} is not pinned"
        assert versions.setdefault(name, version) == version, f"{name} is pinned twice"
    return versions


def test_environment_yml_repeats_the_pins_of_pyproject():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {
        "notebooks",
        "lerobot",
        "dev",
        "browser",
        "libero",
        "vla",
        "arm",
    }
    pins(PROJECT["dependencies"] + sum(extras.values(), []))  # all pinned, none contradictory
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    packages = [line for line in lines if not line.startswith("-")]
    assert pins(packages) == pins(PROJECT["dependencies"] + extras["notebooks"] + extras["dev"])
    assert "-e ." in lines and "python=3.11" in environment
    assert PROJECT["requires-python"] == ">=3.11" and setup_check.OLDEST_PYTHON == (3, 11)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_help_lists_every_target_on_one_screen():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    phony = re.search(r"\.PHONY: (.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL)[1]
    named = {line.split()[1] for line in lines} | {"check"}  # a part of every target
    assert named == set(phony.replace("\\", "").split())


def test_colab_gets_the_same_pins_except_what_it_brings():
    lines = [
        line
        for line in (ROOT / "notebooks" / "requirements-colab.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    ours = pins(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["notebooks"])
    assert pins(lines).items() <= ours.items()
    assert set(pins(PROJECT["dependencies"])) - set(pins(lines)) == {"torch", "numpy", "pillow"}


def test_binder_gets_the_libraries_that_setup_asks_for():
    assert set((ROOT / "apt.txt").read_text().split()) == set(setup_check.GL_PACKAGES)


def test_the_code_is_formatted_and_lints_clean():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (
            f"make style mends this:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {pin for hook in hooks for pin in hook.get("additional_dependencies", [])} == {
        f"ruff=={pins(PROJECT['optional-dependencies']['dev'])['ruff']}"
    }


@pytest.mark.slow
def test_the_types_of_the_core_are_sound():
    pytest.importorskip("basedpyright", reason="basedpyright, of the extra `dev`, is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"make types shows this:\n{done.stdout[-3000:]}"


def test_the_readme_is_short_and_its_map_of_the_code_is_true():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    plan = re.search(r"\nwmpo_lite/ .*?\n```", text, re.S)[0]
    named = {
        word
        for line in plan.splitlines()
        if line.startswith("  ")
        for word in re.findall(r"[\w*]+(?:\.py|/)", re.split(r"\s{2,}", line.strip())[0])
    }
    files = {path.name for path in (ROOT / "wmpo_lite").glob("[!_]*.py")}
    folders = {f"{path.parent.name}/" for path in (ROOT / "wmpo_lite").glob("*/__init__.py")}
    covered = {
        name
        for name in files | folders
        if any(re.fullmatch(word.replace("*", ".*"), name) for word in named)
    }
    assert covered == files | folders, sorted((files | folders) - covered)
    assert all(
        any(
            re.fullmatch(word.replace("*", ".*"), name)
            for name in files | folders | {"tabletop/", "libero/"}
        )
        for word in named
    ), named


def test_files_of_the_core_and_functions_are_short():
    core = [*(ROOT / "wmpo_lite").glob("*.py"), *(ROOT / "wmpo_lite" / "common").glob("*.py")]
    lines = {path.name: len(path.read_text().splitlines()) for path in core}
    assert max(lines.values()) <= 330, sorted(lines.items(), key=lambda item: item[1])[-3:]
    found = {}
    for path, nodes in code().items():
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                found[f"{path} {node.name}"] = node.end_lineno - node.lineno + 1
    assert not found, f"make parts of what these do: {found}"


# Who may import what beside common; the core is the modules that lie in wmpo_lite/ itself.
ALLOWED = {
    "common": set(),
    "core": {"core"},
    "policies": {"core", "policies"},
    "envs": {"core", "envs"},
    "datagen": {"core", "envs", "datagen"},
    "report": {"core", "envs", "report", "install_check"},
    "recipes": {"core", "policies", "envs", "datagen", "report", "recipes"},
    "arms": {"core", "policies", "envs", "datagen", "recipes", "report", "arms"},
    "course": {"core", "envs", "course"},
}
STARTS = ("__main__", "cli", "run_commands")  # the program; nobody imports it
TOP = (*STARTS, "install_check", "setup_check")  # belong to no room


def test_imports_go_one_way():
    edges = imports()
    wrong = []
    for module, names in edges.items():
        for name in names if room_of(module) not in TOP else ():
            allowed = ALLOWED[room_of(module)] | {"common"}
            if name.split(".")[0] in STARTS or room_of(name) not in allowed:
                wrong.append(f"{module} -> {name}")
    assert not wrong, wrong
    assert not circle(edges), circle(edges)


def test_four_floors_at_most_lie_between_the_program_and_the_core_and_it_has_five_itself():
    rooms, core = {}, {}
    for module, names in imports().items():
        room = "cli" if module in STARTS else room_of(module)
        rooms.setdefault(room, set()).update({room_of(name) for name in names} - {room, *TOP})
        if room == "core":
            core[module] = {name for name in names if room_of(name) == "core"}
    assert len(chain(rooms, "cli", {"common"})) - 2 <= 4, chain(rooms, "cli", {"common"})
    longest = max((chain(core, module) for module in core), key=len)
    assert len(longest) <= 5, longest


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, anywhere in its text."""
    return {
        name.removesuffix(".py").replace("/", "."): {n for node in nodes for n in imported(node)}
        for name, nodes in code().items()
    }


@cache
def code() -> dict[str, list]:
    """All nodes of the syntax trees of the package's files, by path."""
    return {
        path.relative_to(ROOT / "wmpo_lite").as_posix(): list(
            ast.walk(ast.parse(path.read_text("utf-8")))
        )
        for path in (ROOT / "wmpo_lite").rglob("*.py")
    }


def room_of(module: str) -> str:
    """The folder of a module; "core" for those of wmpo_lite/ itself, a program by its name."""
    first = module.split(".")[0]
    return first if first in ALLOWED or first in TOP else "core"


def chain(edges: dict, start: str, without=()) -> list[str]:
    """The longest way down from `start`."""
    ways = [chain(edges, name, without) for name in edges.get(start, ()) if name not in without]
    return [start, *max(ways, key=len, default=[])]


def circle(edges: dict) -> list[str]:
    """Modules that import each other in a circle, [] if none do."""
    done = set()

    def walk(name, path):
        if name in path:
            return path[path.index(name) :] + [name]
        if name in done:
            return []
        done.add(name)
        return next((c for c in (walk(n, [*path, name]) for n in edges.get(name, ())) if c), [])

    return next((c for c in (walk(name, []) for name in edges) if c), [])


def imported(node) -> list[str]:
    """Modules of the package that an import statement names, without `wmpo_lite.`."""
    if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wmpo_lite"):
        return []
    inside = node.module.split(".")[1:]
    return [".".join(inside)] if inside else [alias.name for alias in node.names]


def test_a_copy_outside_a_checkout_finds_assets_by_name_or_says_that_it_has_none(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wmpo_lite", tmp_path / "site" / "wmpo_lite", ignore=ignore)
    script = (
        f"import wmpo_lite.cli as c; assert c.__file__.startswith({str(tmp_path)!r}), c.__file__; "
        "from wmpo_lite.recipes.shipped import Shipped; print(Shipped().thresholds()); "
        "c.main(['results'])"
    )

    def run(**names):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), **names}
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    found = run(WMPO_ASSETS=str(ROOT / "assets"))
    assert found.returncode == 0 and "| place | 0 | 128 |" in found.stdout, found.stderr
    lost = run(WMPO_ASSETS="")
    assert "let WMPO_ASSETS name the folder that holds them" in lost.stderr


def test_versions_agree_between_files():
    torch = pins(PROJECT["dependencies"])["torch"]
    assert f"TORCH := {torch}\n" in (ROOT / "Makefile").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert wmpo_lite.__version__ == PROJECT["version"] == citation["version"]
    assert "2511.09515" in citation["references"][0]["url"]


def test_installed_packages_are_the_pinned_ones():
    from importlib.metadata import version

    for name, pinned in pins(PROJECT["dependencies"]).items():
        installed = version(name.partition("[")[0]).partition("+")[0]  # 2.13.0+cpu satisfies 2.13.0
        assert installed == pinned, (
            f"{name} {installed} is installed and {pinned} is pinned: run make"
        )


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "transformers", "diffusers", "mujoco")
    code = f"import sys, wmpo_lite; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert out.strip() == "[]"


def test_setup_check_needs_the_standard_library_only():
    code = (
        "import sys; sys.path.insert(0, 'wmpo_lite'); import setup_check; "
        "print({m.partition('.')[0] for m in sys.modules} - {*sys.stdlib_module_names, '__main__'})"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "{'setup_check'}"


@pytest.mark.parametrize(
    "version, has_venv, words",
    [
        ((3, 10, 12), True, ["3.11 or newer", "3.10", "PYTHON="]),
        ((2, 7), True, ["3.11 or newer", "2.7"]),
        ((3, 12, 1), False, ["apt-get install -y python3.12-venv"]),
        ((3, 11, 0), True, None),
        ((3, 13), True, None),
        ((4, 0), True, None),
    ],
)
def test_python(version, has_venv, words):
    expect(setup_check.python_problems(version, has_venv), words)


@pytest.mark.parametrize(
    "free, words", [(3.9e9, ["4 GB", "3.9", "/home/ada"]), (4e9, None), (1e12, None)]
)
def test_disk(free, words):
    expect(setup_check.disk_problems(free, 4, "/home/ada"), words)


@pytest.mark.parametrize(
    "present, platform, has_apt, words",
    [
        (
            [],
            "linux",
            True,
            [NO_GL, "sudo apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6"],
        ),
        ([], "linux", False, [NO_GL, "your distribution's packages"]),
        (["libEGL.so.1"], "linux", True, [NO_GL]),  # a dispatcher without a driver draws nothing
        (["libEGL_mesa.so.0"], "linux", True, [NO_GL]),
        (["libEGL.so.1", "libEGL_mesa.so.0"], "linux", True, None),
        (["libEGL.so.1", "libEGL_nvidia.so.0"], "linux", True, None),
        (["libOSMesa.so.8"], "linux", True, None),
        ([], "darwin", False, None),
    ],
)
def test_gl(present, platform, has_apt, words):
    expect(setup_check.gl_problems(lambda name: name in present, platform, has_apt), words)


def expect(problems, words):
    """One problem, on one line, that holds all `words`; or none when `words` is None."""
    assert len(problems) == (0 if words is None else 1)
    for problem in problems:
        assert "\n" not in problem.message and len(problem.message) < 220
        assert all(word in problem.message for word in words), problem.message


def no_gl():
    return setup_check.gl_problems(lambda name: False, "linux")


def test_without_root_each_problem_is_one_line_and_nothing_is_installed(capsys):
    def find(installed):
        return setup_check.python_problems((3, 9)) + setup_check.disk_problems(0, 4) + no_gl()

    def forbidden(*args):
        raise AssertionError("must not install")

    assert setup_check.main([], find, lambda: False, forbidden, forbidden) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 3
    assert all(line.startswith("wmpo-lite: ") for line in printed.err.splitlines())


def test_as_root_on_debian_the_packages_are_installed_once_and_checked_again(capsys):
    installed, again = [], []
    setup_check.main(
        ["--installed"], lambda installed: no_gl(), lambda: True, installed.append, again.append
    )
    assert installed == [setup_check.GL_PACKAGES] and again == [["--installed", "--after-apt"]]
    # The second process finds them still missing: it says so and does not try for ever.
    assert (
        setup_check.main(
            again[0], lambda installed: no_gl(), lambda: True, installed.append, again.append
        )
        == 1
    )
    assert len(installed) == 1 and NO_GL in capsys.readouterr().err


def test_as_root_what_no_package_solves_is_only_said(capsys):
    assert (
        setup_check.main(
            [], lambda installed: setup_check.disk_problems(0, 4), lambda: True, None, None
        )
        == 1
    )
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_missing_is_silent(capsys):
    assert setup_check.main([], lambda installed: [], lambda: True, None, None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "missing, worked, installs", [(None, True, 1), ("libosmesa6", True, 2), ("libegl1", False, 2)]
)
def test_apt_install_drops_osmesa_where_a_release_has_none(missing, worked, installs):
    calls = []

    def run(command):
        calls.append(command)
        return 100 if missing in command else 0

    assert setup_check.apt_install(list(setup_check.GL_PACKAGES), run) is worked
    assert calls[0] == ["apt-get", "update", "-qq"] and len(calls) == 1 + installs


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_says_in_one_line_that_python_is_missing_or_too_old(tmp_path):
    def make(python):
        return subprocess.run(
            ["make", "check", f"PYTHON={python}"], capture_output=True, text=True, cwd=ROOT
        ).stderr

    assert len([line for line in make("").splitlines() if "no Python found" in line]) == 1
    old = tmp_path / "python3"  # runs the real check, told that it is Python 3.9
    code = (
        'import sys; sys.version_info = (3, 9, 2); sys.path.insert(0, "wmpo_lite"); '
        "import setup_check; "
        "sys.exit(setup_check.main([], on_debian_as_root=lambda: False))"
    )
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    old.chmod(0o755)
    assert (
        len(
            [
                line
                for line in make(old).splitlines()
                if "3.11 or newer is needed and this is 3.9" in line
            ]
        )
        == 1
    )
