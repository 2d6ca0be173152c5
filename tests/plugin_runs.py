"""What the tests of the plugin share: a training to write into test files, and a pytest run in this process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

# pytester forgets what an inner run has imported, and torch, like whatever refers to its classes, cannot be loaded
# twice in one process: so it is loaded here.
for _name in (
    "_hypothesis_pytestplugin",
    "hypothesis",
    "hypothesis.strategies",
    "pytest_html.plugin",
    "pytest_nanstab.batches.drawing",
    "pytest_nanstab.checks.finite",
    "pytest_nanstab.checks.init_scale",
    "pytest_nanstab.reporting.failure",
    "pytest_nanstab.reporting.terminal",
    "pytest_nanstab.strategies",
    "pytest_nanstab.suite.checks",
    "pytest_nanstab.suite.fixture",
    "pytest_nanstab.search.hunts",
    "pytest_nanstab.watching.api",
):
    importlib.import_module(_name)
_weight = torch.nn.Parameter(torch.ones(1))
torch.optim.SGD([_weight]).step(lambda: _weight.detach().sum())

TRAINING = """
import pytest, torch, unittest
from torch import nn
import pytest_nanstab
from pytest_nanstab import NonFiniteError, StabilityError, TrainingSetup, stability_suite

def train(bad=None, steps=3, scale=1.0):
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(0.5), model.bias.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 2)).pow(2).mean() * (float("nan") if step == bad else scale)
        loss.backward()
        optimizer.step()

def setup(bad=None):
    model = nn.Linear(2, 1)
    batches = [torch.ones(4, 2), torch.full((4, 2), 0.5), torch.full((4, 2), float("nan") if bad else 0.25)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return TrainingSetup(model=model, loss=lambda m, b: m(b).pow(2).mean(), optimizer=optimizer, batches=batches)
"""
WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS")
PLAIN = ("-p", "no:randomly", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Ran:
    """A finished inner session."""

    result: pytest.RunResult

    @property
    def code(self) -> int:
        return int(self.result.ret)

    @property
    def lines(self) -> list[str]:
        return self.result.outlines

    @property
    def text(self) -> str:
        return self.result.stdout.str()

    @property
    def errors(self) -> list[str]:
        """Standard error without blank lines."""
        return [line for line in self.result.errlines if line]

    @property
    def outcomes(self) -> Mapping[str, str]:
        """The outcome of every item of test_it.py by its name, skipped ones by "test_it.py:line"."""
        found = {}
        for line in self.lines:
            word, _, rest = line.partition(" ")
            if word in WORDS and "::" in rest:
                found[rest.split("::", 1)[1].split(" - ")[0]] = word.lower()
        return found

    def block(self, start: str, end: str) -> str:
        """The lines from the first that contains `start` up to the first after it that contains `end`."""
        first = next(number for number, line in enumerate(self.lines) if start in line)
        last = next(number for number, line in enumerate(self.lines) if number > first and end in line)
        return "\n".join(self.lines[first:last])


def run_inside(pytester: pytest.Pytester, body: str, *arguments: str, **files: str) -> Ran:
    """Write test_it.py with the training in front and run it in this process, in 80 columns."""
    pytester.makepyfile(test_it=TRAINING + body, **files)
    return again(pytester, *arguments)


def again(pytester: pytest.Pytester, *arguments: str) -> Ran:
    """Run the same files with other arguments."""
    return Ran(pytester.runpytest_inprocess(*PLAIN, "-rA", "-W", "error", *arguments))


def kinds_in(pytester: pytest.Pytester, report: str = "r.json") -> dict[str, list[str]]:
    """The kinds of the findings of every test of a JSON report, by the test's name."""
    tests = json.loads((pytester.path / report).read_text(encoding="utf-8"))["tests"]
    return {test["id"].rpartition("::")[2]: [finding["kind"] for finding in test["findings"]] for test in tests}


def run_outside(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Ran:
    """Run the files in a process of its own, with no plugins but ours and those named with -p: a quick start."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return Ran(pytester.runpytest_subprocess("-p", "nanstab", "-W", "error", *arguments))
