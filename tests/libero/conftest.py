"""One environment of libero_object's first task for all tests that want one; without the extra the
tests that need it are skipped with a word.
"""

import importlib.util

import pytest


def installed() -> bool:
    try:
        return (
            importlib.util.find_spec("libero.libero") is not None
        )  # this very folder could pass for a package `libero`
    except ModuleNotFoundError:
        return False


needs_libero = [
    pytest.mark.libero,
    pytest.mark.skipif(not installed(), reason="needs the extra: pip install 'wmpo_lite[libero]'"),
]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name.startswith("test_libero_") and "tests/libero" in item.path.as_posix():
            for mark in needs_libero:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def env():
    from wmpo_lite.envs.libero.env import LiberoEnv
    from wmpo_lite.envs.libero.states import get_task

    with LiberoEnv(get_task("libero_object", 0), size=64, workers=2, wrist=True) as env:
        yield env
