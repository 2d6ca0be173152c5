"""Shared by all tests: a real pytest in a folder, whose output does not depend on where it runs."""

import os
import sys

pytest_plugins = ["pytester"]

# On a build server pytest does not shorten the lines of its summary.
for name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(name, None)

# Inner test files are rewritten within a second: cached byte code of the same size would pass for the new file.
sys.dont_write_bytecode = True
