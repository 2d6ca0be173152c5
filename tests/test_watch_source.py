"""Which line is the user's."""

from __future__ import annotations

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import pytest_nanstab
from pytest_nanstab.attribution import source


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (__file__, True),
        (torch.__file__, False),
        (pytest.__file__, False),
        (pytest_nanstab.__file__, False),
        (str(Path(sysconfig.get_path("stdlib")) / "contextlib.py"), False),
        ("<string>", False),
        ("<frozen importlib._bootstrap>", False),
        ("/home/somebody/project/models/attention.py", True),
    ],
)
def test_user_files(filename, expected):
    """Libraries, the standard library, this package and code without a file are not the user's."""
    assert source.is_user_file(filename) is expected


def test_the_innermost_user_line():
    """The line is found from inside a library's own calls."""
    spots = []

    class Model(nn.Module):
        def forward(self, x):
            return x

    model = Model()
    model.register_forward_hook(lambda *_: spots.append(source.user_line(2)))
    model(torch.ones(1))  # here
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert "# here" in lines[int(spots[0].rpartition(":")[2]) - 1]


def test_no_user_line():
    """In a thread that no user code runs in there is none."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(source.user_line).result() is None
    assert source.shown(None) is None


def test_places_are_relative(tmp_path, monkeypatch):
    """Below the working directory a path is relative; elsewhere, or without such a directory, it is whole."""
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "models" / "a.py", tmp_path.parent / "b.py"
    assert source.place(str(inside), 3) == f"{Path('models/a.py')}:3"
    assert source.place(str(outside), 3) == f"{outside}:3"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a working directory that is in use")
def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    """A test may delete the directory it is in; lines can still be named."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert source.place("/home/somebody/a.py", 3) == "/home/somebody/a.py:3"


def test_files_that_python_does_not_parse(tmp_path, monkeypatch):
    """No syntax tree is no reason to fail: text that is no Python, too deep nesting, what CPython 3.11 says to it."""
    files = {"good.py": "x = 1\n", "bad.py": "x = = 1\n", "null.py": "x = '\0'\n", "deep.py": "(" * 10_000}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {name: source.parsed(str(tmp_path / name)) is not None for name in (*files, "missing.py")}
    assert found == {"good.py": True, "bad.py": False, "null.py": False, "deep.py": False, "missing.py": True}

    def refuse(text):
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(source.ast, "parse", refuse)
    assert source.parsed(str(tmp_path / "good.py")) is None
