"""Every program of the gallery is explained: the operation, the module and the line; its healthy twin is left alone."""

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

import pytest

REPOSITORY = Path(__file__).parent.parent
PROGRAMS = sorted((REPOSITORY / "tests" / "gallery").glob("*_*.py"))
Findings = Mapping[tuple[str, str], Mapping[str, Any]]  # (file's stem, test's name) -> the test's record
# What the spot of the failure cannot show: the fault lies in an earlier step, in another micro-batch, in the
# optimizer's own step, or where the batch was made. The finding then says which command shows it.
OUT_OF_SIGHT = {
    "bwd_accum_where_log",
    "run_batchnorm_poisoned_stats",
    "run_collate_mean_pool",
    "run_ema_debias",
    "run_embedding_renorm",
    "run_gradscaler_log_counts",
    "run_lambdalr_zero_warmup",
    "run_lars_trust_ratio",
    "run_memory_bank",
    "run_rmsprop_centered",
    "run_sgd_decay_to_zero_steps",
    "run_uninitialised_gain",
}
SEEN = [path for path in PROGRAMS if path.stem not in OUT_OF_SIGHT]


@dataclass(frozen=True)
class Declared:
    """What a program says about its own culprit."""

    op: tuple[str, ...]
    phase: str
    module: str | None
    cause: tuple[str, ...]
    line: int


def declared_in(path: Path) -> Declared:
    text = path.read_text(encoding="utf-8")
    known = {}
    for node in ast.parse(text).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="OP" | "PHASE" | "MODULE" | "CAUSE" as name)], value=value):
                known[name] = ast.literal_eval(value)
    (line,) = [number for number, line in enumerate(text.splitlines(), start=1) if line.endswith("# culprit")]
    return Declared(known["OP"], known["PHASE"], known["MODULE"], known["CAUSE"], line)


def run_all(folder: Path, way: str, *options: str) -> Findings:
    report = folder / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *options]
    command += ["-W", "ignore::FutureWarning"]  # torch 2.4 uses in a checkpoint what it has deprecated itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [*command, f"--nanstab-report={report}", *map(str, PROGRAMS)],
        cwd=REPOSITORY,
        env={**environment, "OMP_NUM_THREADS": "1", "GALLERY_WAY": way},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout[-2000:] + result.stderr[-2000:]
    tests = json.loads(report.read_text(encoding="utf-8"))["tests"]
    return {(Path(test["id"].split("::")[0]).stem, test["id"].split("::")[-1]): test for test in tests}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Every program as a test that carries the marker: explained by a rerun."""
    return run_all(tmp_path_factory.mktemp("marked"), "marker")


@pytest.fixture(scope="module")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Every program as it is, under --nanstab: explained on the spot."""
    return run_all(tmp_path_factory.mktemp("unmarked"), "none", "--nanstab")


def check(path: Path, finding: Mapping[str, Any]) -> None:
    """The finding names what the program declares."""
    declared = declared_in(path)
    assert finding["source"] == f"{path.relative_to(REPOSITORY).as_posix()}:{declared.line}"
    if finding["phase"] != "data":
        assert any(name.split("(")[0].strip("_ ").lower() in finding["op"].lower() for name in declared.op)
    if declared.module:
        assert finding["module"] == declared.module
    if declared.cause:
        explained = f"{finding['cause']} {finding['remedy']}".lower()
        assert any(word.lower() in explained for word in declared.cause)
    assert finding["op"] is None or "trace" not in finding["evidence"] or "drew other" in finding["evidence"]["note"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_marked_program_is_explained(marked, path):
    """Operation, module, line and cause are those that a good engineer would name."""
    check(path, marked[path.stem, "test_broken"]["findings"][0])


@pytest.mark.parametrize("path", SEEN, ids=lambda path: path.stem)
def test_unmarked_program_is_explained(unmarked, path):
    """The same without running anything again, wherever the spot of the failure shows it."""
    check(path, unmarked[path.stem, "test_broken"]["findings"][0])


@pytest.mark.parametrize("name", sorted(OUT_OF_SIGHT))
def test_what_cannot_be_seen_is_not_guessed(unmarked, name):
    """Without the operation the finding gives a cause that its own evidence supports, or the command that shows it."""
    finding = unmarked[name, "test_broken"]["findings"][0]
    assert finding["cause"] or "nanstab_explain=rerun" in finding["evidence"]["trace"]
    assert finding["source"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_healthy_twin_is_left_alone(marked, unmarked, path):
    """Neither way says anything about the repaired program."""
    for tests in (marked, unmarked):
        twin = tests[path.stem, "test_healthy"]
        assert (twin["outcome"], twin["findings"]) == ("passed", [])
