"""The example project passes under the plugin; every broken program beside it fails for the reason it declares."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_nanstab.findings import KINDS

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "example_project"
BROKEN = sorted((EXAMPLE / "broken").glob("*.py"))
Outcomes = Mapping[tuple[str, str], str]  # (file's stem, test's name) -> passed, failed, skipped, error
Reports = Mapping[tuple[str, str], list[dict[str, Any]]]
# The culprits that one operation, layer, initialisation, optimizer or clip shows: the finding names their line.
# Those of the others lie in the data, in another step, or in what is missing from a line.
NAMED = {
    "accepted_nan",
    "adam_eps_zero",
    "batch_of_one",
    "cancelled_variance",
    "clip_before_backward",
    "clip_of_another_model",
    "corrupt_text",
    "eval_temperature",
    "frozen_by_precision",
    "half_sanitized",
    "half_scores",
    "ignored_targets",
    "log_of_softmax",
    "naive_softmax",
    "near_zero_weights",
    "norm_at_zero",
    "rate_too_large",
    "saturated_tanh",
    "poisoned_normaliser",
    "scaled_clip",
    "second_scaler",
    "sigmoid_depth",
    "suite_confident_classifier",
    "suite_constant_feature",
    "unit_normal_weights",
    "where_gradient",
}
each_broken = pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Declared:
    """What a broken file says about its own finding."""

    kind: str
    step: int | None
    module: str | None
    item: str | None
    explicit: bool
    culprit: int | None


def declared_in(path: Path) -> Declared:
    text = path.read_text(encoding="utf-8")
    constants = dict(filter(None, map(_constant, ast.parse(text).body)))
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if line.endswith("# culprit")]
    return Declared(
        kind=constants["KIND"],
        step=constants.get("STEP"),
        module=constants.get("MODULE"),
        item=constants.get("ITEM"),
        explicit=constants.get("EXPLICIT", False),
        culprit=lines[0] if lines else None,
    )


def _constant(node: ast.stmt) -> tuple[str, Any] | None:
    """(name, value) of a module constant that is written as a literal."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
            return name, value
    return None


def run_pytest(*arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


def outcomes_in(junit: Path) -> Outcomes:
    cases = ET.parse(junit).getroot().iter("testcase")
    return {(case.attrib["classname"].split(".")[1], case.attrib["name"]): _outcome(case) for case in cases}


def _outcome(case: ET.Element) -> str:
    words = {"error": "error", "failure": "failed", "skipped": "skipped"}
    return next((words[child.tag] for child in case if child.tag in words), "passed")


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every broken file in a run that did not ask for the plugin."""
    junit = tmp_path_factory.mktemp("without") / "junit.xml"
    run_pytest(*BROKEN, f"--junitxml={junit}")
    return outcomes_in(junit)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Reports]:
    """Every broken file in one run with the plugin."""
    folder = tmp_path_factory.mktemp("watched")
    result = run_pytest(*BROKEN, "--nanstab", f"--nanstab-report={folder / 'r.json'}", f"--junitxml={folder / 'j.xml'}")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    tests = json.loads((folder / "r.json").read_text(encoding="utf-8"))["tests"]
    findings = {(Path(test["id"].split("::")[0]).stem, test["id"].split("::")[-1]): test["findings"] for test in tests}
    return outcomes_in(folder / "j.xml"), findings


def of(path: Path, name: str, table: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """The entries of one test of one file, by item name (a suite has several items)."""
    return {test: value for (stem, test), value in table.items() if stem == path.stem and test.split("[")[0] == name}


def first_finding(path: Path, reports: Reports) -> dict[str, Any]:
    item = declared_in(path).item
    name = f"test_broken[{item}]" if item else "test_broken"
    findings = reports[path.stem, name]
    assert findings, f"{path.stem}::{name} reported no finding"
    return findings[0]


@pytest.fixture(scope="module")
def example_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the example project's own tests, started from the repository's root."""
    path = tmp_path_factory.mktemp("example") / "report.json"
    result = run_pytest("--nanstab", f"--nanstab-report={path}", "example_project")
    assert result.returncode == pytest.ExitCode.OK, result.stdout[-8000:] + result.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_example_passes(example_report: dict[str, Any]) -> None:
    """Nothing fails, and the two known instabilities are expected failures."""
    outcomes = [test["outcome"] for test in example_report["tests"]]
    assert set(outcomes) == {"passed", "xfailed"}
    assert outcomes.count("xfailed") == 2


def test_the_example_uses_every_mode(example_report: dict[str, Any]) -> None:
    """Explicit tests and tests that know nothing of the plugin are both there, and both were checked."""
    trained = [test["mode"] for test in example_report["tests"] if test["run"] and test["run"]["steps"]]
    assert {"explicit", "watched"} <= set(trained)


def test_healthy_tests_have_no_finding(example_report: dict[str, Any]) -> None:
    """Only the expected failures carry findings."""
    found = {test["id"] for test in example_report["tests"] if test["findings"] and test["outcome"] != "xfailed"}
    assert not found


def test_nothing_broken_is_collected_by_default(example_report: dict[str, Any]) -> None:
    """Neither from the repository nor from inside the project, where the same tests are found."""
    inside = run_pytest("--collect-only", cwd=EXAMPLE)
    collected = {line for line in inside.stdout.splitlines() if "::" in line}
    assert inside.returncode == pytest.ExitCode.OK
    assert collected == {test["id"] for test in example_report["tests"]}
    assert not any("broken" in name for name in collected)


@each_broken
def test_declaration(path: Path) -> None:
    """A docstring that says culprit, sight and finding, and a kind that exists."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert all(f"{word}:" in docstring for word in ("Culprit", "Seen", "Finding"))
    assert declared_in(path).kind in KINDS


@each_broken
def test_broken_program_fails(path: Path, watched: tuple[Outcomes, Reports]) -> None:
    """The finding has the declared kind, and the declared step and module where they are declared."""
    declared = declared_in(path)
    outcomes, reports = watched
    finding = first_finding(path, reports)
    assert "failed" in of(path, "test_broken", outcomes).values()
    assert finding["kind"] == declared.kind
    assert declared.step in (None, finding["step"])
    assert declared.module in (None, finding["module"])


@pytest.mark.parametrize("path", [path for path in BROKEN if path.stem in NAMED], ids=lambda path: path.stem)
def test_culprit_line_is_named(path: Path, watched: tuple[Outcomes, Reports]) -> None:
    """The source of the finding is the line marked with the comment "culprit"."""
    source = first_finding(path, watched[1])["source"]
    assert source.endswith(f"broken/{path.name}:{declared_in(path).culprit}")


@each_broken
def test_healthy_twin_passes(path: Path, watched: tuple[Outcomes, Reports]) -> None:
    """The same program without the culprit passes, without a finding."""
    outcomes, reports = watched
    healthy = of(path, "test_healthy", outcomes)
    assert healthy
    assert set(healthy.values()) == {"passed"}
    assert not any(of(path, "test_healthy", reports).values())


@each_broken
def test_only_the_plugin_sees_it(path: Path, without: Outcomes) -> None:
    """Without the flag a plain test passes as before; a test that uses the plugin's API fails all the same."""
    expected = {"passed", "failed"} if declared_in(path).explicit else {"passed"}
    broken = set(of(path, "test_broken", without).values())
    assert broken
    assert broken <= expected
    assert ("failed" in broken) is declared_in(path).explicit
    assert set(of(path, "test_healthy", without).values()) == {"passed"}


BY_HAND = """
import json, math, random, sys
import numpy, torch
from data.digits import loaders
from models.vision import ConvNet, digits_loss

random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
model, (batches, _), largest = ConvNet(), loaders(batch_size=32), {}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

def see(quantity, name, tensor):
    key = f"{quantity} {name}"
    largest[key] = max(largest.get(key, 0.0), tensor.detach().abs().max().item())

for path, module in model.named_modules():
    if not list(module.children()):
        module.register_forward_hook(lambda _m, _a, out, path=path: see("activation", path, out))
for step, batch in zip(range(15), batches):
    optimizer.zero_grad()
    loss = digits_loss(model, batch)
    see("loss", "loss", loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        see("parameter", name, parameter)
        see("gradient", name, parameter.grad)
    optimizer.step()
for name, parameter in model.named_parameters():
    see("parameter", name, parameter)
print(json.dumps({key: math.log2(torch.finfo(torch.float32).max / value) for key, value in largest.items()}))
"""


def test_the_headroom_is_that_computed_by_hand(example_report: dict[str, Any]) -> None:
    """The conv net's suite, trained once more by a plain loop with hooks of its own: every figure agrees."""
    told = next(test for test in example_report["tests"] if test["id"].endswith("test_convnet[headroom-32-true]"))
    found = {
        f"{quantity} {name.removesuffix(' float32')}": bits
        for quantity, rows in told["headroom"].items()
        for name, bits in rows.items()
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE)}
    command = [sys.executable, "-c", BY_HAND]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found == pytest.approx(json.loads(output), abs=0.01)
