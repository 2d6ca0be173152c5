"""The public API under mypy and pyright: right uses pass, wrong ones are refused at their line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
CASES = Path(__file__).parent / "typing" / "public_api.py"
EXPECTED = [
    number for number, line in enumerate(CASES.read_text("utf-8").splitlines(), 1) if line.rstrip().endswith("# error")
]
pytestmark = pytest.mark.slow


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_there_are_cases():
    assert len(EXPECTED) > 15


def test_mypy():
    pytest.importorskip("mypy")
    done = run(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--show-error-codes", CASES)
    lines = [int(found[1]) for found in re.finditer(rf"{CASES.name}:(\d+): error", done.stdout)]
    assert sorted(set(lines)) == EXPECTED, done.stdout + done.stderr


def test_pyright():
    pytest.importorskip("pyright")
    if run(sys.executable, "-m", "pyright", "--version").returncode != 0:
        pytest.skip("pyright needs Node.js, which is not here")
    done = run(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, CASES)
    errors = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    lines = {one["range"]["start"]["line"] + 1 for one in errors}
    assert sorted(lines) == EXPECTED, "\n".join(
        f"{one['range']['start']['line'] + 1}: {one['message']}" for one in errors
    )
