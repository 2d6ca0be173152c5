"""Programs that do what no program should, in a real session: the bug is found, its healthy twin passes.

The programs are in `hostile_programs`: every test there takes `bad`; what is neither "good" nor "bad" must pass.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from plugin_runs import run_inside, run_outside
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from pytest_nanstab import NonFiniteError, assert_finite, watch
from pytest_nanstab.watching import measure
from pytest_nanstab.watching.names import Names

PROGRAMS = Path(__file__).with_name("hostile_programs")
CONFTEST = """
import os
def pytest_collection_modifyitems(items):
    for item in items:
        if os.environ.get("EXPLICIT"):
            item.add_marker("nanstab")
"""
FILES = ("trees.py", "errors.py", "hooks.py", "states.py", "processes.py")
CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f]")


def session(folder, *arguments, explicit=False, env=()):
    """A session in a process of its own, in a copy of the programs: (exit status, output, records by test)."""
    if not folder.exists():
        shutil.copytree(PROGRAMS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "conftest.py").write_text(CONFTEST)
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "EXPLICIT": "1" if explicit else "",
        **dict(env),
    }
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-p",
        "nanstab",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--nanstab",
    ]
    result = subprocess.run(
        [*command, "--nanstab-report=report.json", *arguments], cwd=folder, env=environment, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert (folder / "report.json").exists(), (result.returncode, result.stdout.decode(errors="replace")[-9000:])
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return result.returncode, result.stdout, {record["id"]: record for record in report["tests"]}


def is_as_expected(test, record):
    """Whether a bug was found as what it is, and its twin left alone."""
    kinds = [finding["kind"] for finding in record["findings"]]
    if "bad" in re.split(r"[\[\]-]", test):
        return record["outcome"] == "failed" and bool(kinds) and kinds[0].startswith("nonfinite-")
    return record["outcome"] == "passed" and not kinds


def wrong(records):
    return {test: (record["outcome"], record["findings"]) for test, record in records.items()
            if not is_as_expected(test, record)}  # fmt: skip


def is_sound(code, output, records):
    assert code == 1, output.decode(errors="replace")[-3000:]
    assert b"INTERNALERROR" not in output
    # The frames of a traceback are pytest's own to print.
    assert not CONTROLS.search(re.sub(rb"(?m)^\S*a\x1b\[31m\.py:\d+: .*$", b"", output.replace(b"\r", b"")))
    assert wrong(records) == {}
    return True


def test_every_program_under_the_flag(tmp_path):
    """Watched as `pytest --nanstab` watches a test that asks for nothing."""
    code, output, records = session(tmp_path / "p", *FILES)
    assert is_sound(code, output, records)
    assert len(records) > 200
    assert {test.partition("::")[0] for test in records} == set(FILES)
    # After an error that was caught in forward the fault is still found where it is.
    found = records["errors.py::test_in_forward[ValueError-bad]"]["findings"][0]
    assert (found["step"], found["module"]) == (2, "1")
    named = records["trees.py::test_names[5-bad]"]["findings"][0]
    assert named["module"] == "n" * 100_000


FEW = (
    "ValueError or KeyboardInterrupt or recursion or cleared or cyclic or raise_in or pool or outlives or without_rows"
)


def test_some_programs_as_explicit_tests(tmp_path):
    """Checked densely, raised at the sink, and run once more with every operation traced."""
    assert is_sound(*session(tmp_path / "p", *FILES, "-k", FEW, explicit=True))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["errors.py", "processes.py", "spawned.py"])
def test_every_program_as_an_explicit_test(tmp_path, file):
    """As above."""
    assert is_sound(*session(tmp_path / "p", file, explicit=True))


def test_a_twin_that_is_not_healthy_is_noticed():
    """The control: the expectation above is not met by just any outcome."""
    found, clean = [{"kind": "nonfinite-loss"}], []
    assert is_as_expected("a.py::test_a[bad]", {"outcome": "failed", "findings": found})
    assert is_as_expected("a.py::test_a[3-good]", {"outcome": "passed", "findings": clean})
    for test, outcome, findings in (
        ("test_a[bad]", "passed", clean), ("test_a[bad]", "failed", clean), ("test_a[bad]", "passed", found),
        ("test_a[good]", "failed", found), ("test_a[good]", "failed", clean), ("test_a", "passed", found),
    ):  # fmt: skip
        assert not is_as_expected(f"a.py::{test}", {"outcome": outcome, "findings": findings})


# --- how sessions end

ENDS = """
@pytest.mark.parametrize("end", ["exit", "interrupt"])
def test_ends(end):
    class Model(nn.Module):
        def forward(self, x):
            if end == "exit":
                pytest.exit("enough", returncode=7)
            raise KeyboardInterrupt
    with torch.no_grad():
        Model()(torch.ones(2))

def test_never_runs():
    train(bad=2)
"""


@pytest.mark.parametrize("mark", ["", "pytestmark = pytest.mark.nanstab\n"], ids=["watched", "explicit"])
def test_sessions_that_end_in_the_middle_of_forward(pytester, monkeypatch, mark):
    """The exit status is pytest's own, and no hook stays on."""
    backward = torch.autograd.backward
    ran = run_inside(pytester, mark + ENDS, "--nanstab", "-k", "exit or never")
    assert ran.code == 7
    assert "INTERNALERROR" not in ran.text
    assert not nn.modules.module._global_forward_pre_hooks
    assert not _global_optimizer_pre_hooks
    assert torch.autograd.backward is backward
    if mark:
        ran = run_outside(pytester, monkeypatch, "--nanstab", "-k", "interrupt or never")
        assert ran.code == 2
        assert "INTERNALERROR" not in ran.text


def test_terminals_of_few_characters(tmp_path):
    """What the terminal cannot show is escaped, not lost."""
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}.items()
    code, output, records = session(tmp_path / "p", "trees.py", "-k", "test_names", "--nanstab-headroom=0", env=env)
    assert is_sound(code, output, records)
    assert output.isascii()
    assert rb"\u4e2d" in output


def test_folders_that_cannot_be_written(pytester):
    """A report that cannot be written is told at the end; the verdicts stand."""
    (pytester.path / "file").write_text("")
    ran = run_inside(pytester, "def test_a(): train(bad=2)", "--nanstab", "--nanstab-report=file/x.json",
                     "--nanstab-report=x.md")  # fmt: skip
    assert ran.code == 1
    assert "could not write nanstab report" in ran.text
    assert (pytester.path / "x.md").is_file()


# --- threads


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("where", ["before", "between"])
def test_another_thread_in_its_backward(where, bad):
    """A backward that begins, or ends, while another thread's is running is no part of that one."""
    entered, go_on = threading.Event(), threading.Event()

    def other():
        weight = torch.ones(1, requires_grad=True)
        product = weight * 2

        def waits(_):
            entered.set()
            go_on.wait(10)

        product.register_hook(waits)
        product.backward()

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    thread = threading.Thread(target=other)
    with watch(on_instability="record") as run:
        output = model(torch.ones(1, 1))
        if where == "before":
            thread.start()
            entered.wait(10)
        else:  # the other thread's whole backward falls into this one

            def lets_it_run(_):
                go_on.set()
                thread.start()
                thread.join()

            output.register_hook(lets_it_run)
        (output.sum() * (math.nan if bad else 1.0)).backward()
        go_on.set()
        thread.join()
        optimizer.step()
    assert [finding.kind for finding in run.findings] == (["nonfinite-loss"] if bad else [])


# --- size: what is counted here are calls, not seconds

MANY = 3000


class Many(nn.Module):
    """As many parameters as wanted."""

    def __init__(self, count):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.full((1,), 0.5)) for _ in range(count)])

    def forward(self, x):
        return torch.cat(list(self.parts)).mean() * x


def train(model, spoil=None):
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(())).backward()
        if spoil is not None:
            spoil(list(model.parameters())[-1])
        optimizer.step()


def listings(monkeypatch, count, body):
    """How many members of modules are listed while a model of so many parameters is watched."""
    listed = 0
    for name in ("named_parameters", "named_modules"):
        original = getattr(nn.Module, name)

        def counting(self, *args, original=original, **kwargs):
            nonlocal listed
            for member in original(self, *args, **kwargs):
                listed += 1
                yield member

        monkeypatch.setattr(nn.Module, name, counting)
    body(Many(count))
    monkeypatch.undo()
    return listed


def everything(model):
    with watch(min_headroom_bits=0.0, max_update_ratio=1e30, max_grad_norm=1e30):
        train(model)


def bad_gradient(model):
    with pytest.raises(NonFiniteError, match=f"parts.{len(model.parts) - 1}"), watch():
        train(model, lambda parameter: parameter.grad.fill_(float("nan")))


@pytest.mark.parametrize("body", [everything, bad_gradient])
def test_large_models_are_listed_a_few_times(monkeypatch, body):
    """Work grows with the number of parameters, not with its square."""
    small, large = (listings(monkeypatch, count, body) for count in (MANY // 10, MANY))
    assert large < 20 * small
    assert large < 40 * MANY


def test_names_of_many_strangers():
    """Tensors that no module has are looked for a bounded number of times; members that come later are found."""
    names, model = Names(), Many(100)
    names.add(model)
    assert names.path(model.parts[7]) == "parts.7"
    for _ in range(1000):
        assert names.path(nn.Parameter(torch.ones(1))) == "Parameter"
    model.late = nn.Parameter(torch.ones(1))
    assert names.path(model.late) == "late"
    assert names.path(model) == "Many"


def test_a_large_model_is_finite_or_not():
    """Of three thousand tensors the bad one is named."""
    model = Many(MANY)
    assert_finite(model)
    with torch.no_grad():
        model.parts[-1].fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=f"value.parts.{MANY - 1}"):
        assert_finite(model)


# --- walking


def test_walks_end_and_are_in_order():
    """Depth first, each container once; paths as Python writes them."""
    leaf = torch.ones(1)
    knot = {"a": [leaf, (leaf,)], "b": {}}
    knot["b"]["self"] = knot
    assert [path for path, _ in measure.tensors_in(knot)] == ["a[0]", "a[1][0]"]
    assert [path for path, _ in measure.tensors_in([leaf], "out")] == ["out[0]"]
    assert [path for path, _ in measure.tensors_in(leaf)] == [""]

    class Batch:
        def __init__(self):
            self.x, self.me = leaf, self

    assert [path for path, _ in measure.all_tensors_in({"b": Batch()}, "input 0")] == ["input 0.b.x"]
    assert list(measure.tensors_in(Batch())) == []
