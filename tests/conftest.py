"""Shared by all tests: a real pytest in a folder, whose output does not depend on where it runs."""

import os
import sys

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# On a build server pytest does not shorten the lines of its summary.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)

# Inner test files are rewritten within a second: cached byte code of the same size would pass for the new file.
sys.dont_write_bytecode = True

# An example of an inner session in this process may wait for a collection of everything that is alive here, and older
# versions of Hypothesis count that against its deadline. Tests about deadlines state their own.
settings.register_profile("unhurried", deadline=None)

# Each adds a line to the header, an ini key or a warning: inner sessions load those they are about, with -p.
NEIGHBOURS = ("asyncio", "benchmark", "pytest_cov", "pytest_torch", "rerunfailures", "timeout")


@pytest.fixture(autouse=True)
def _own_profile():
    """What an inner session has loaded stays loaded in this process."""
    settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _without_neighbours(request, monkeypatch):
    """Inner sessions do not load what happens to be installed beside us."""
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # it clears the variable
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # they are no part of the session around them
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(f"-p no:{name}" for name in NEIGHBOURS))


def pytest_addoption(parser):
    """The matrix asks for less of what comes in large families."""
    parser.addoption("--every", type=int, default=1, help="of tests with more than 12 cases run every Nth case only")


def pytest_collection_modifyitems(config, items):
    """Every Nth case of a large family; which ones is the same in every process."""
    every = config.getoption("--every")
    families = {}
    for item in items:
        families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {
        id(item) for family in families.values() if len(family) > 12 for n, item in enumerate(family) if n % every
    }
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]
