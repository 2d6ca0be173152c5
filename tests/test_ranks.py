"""Runs of several processes: every rank is watched, and what one of them finds fails the test on all."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "ranks"
SIZE = 2

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="no process groups here"
)


def _expectations() -> dict[str, str]:
    """The docstring of each program: what it must find."""
    tree = ast.parse((FOLDER / "programs.py").read_text(encoding="utf-8"))
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {test.name: ast.get_docstring(test) or "" for test in tests}


EXPECTED = _expectations()
HEALTHY = [name for name, text in EXPECTED.items() if text.startswith("healthy")]
BROKEN = [name for name, text in EXPECTED.items() if not text.startswith(("healthy", "xfailed"))]


@dataclass
class Session:
    """What a session of several ranks has told."""

    output: str
    ranks: list[list[dict[str, str]]]
    report: dict
    written: list[str]

    def of(self, name: str, rank: int) -> list[dict[str, str]]:
        return [told for told in self.ranks[rank] if told["test"].partition("[")[0] == name]

    def findings(self, name: str) -> list[dict]:
        tests = [test for test in self.report["tests"] if test["id"].partition("::")[2].partition("[")[0] == name]
        return [finding for test in tests for finding in test["findings"]]


def launch(folder: Path, *arguments: str) -> Session:
    """Run programs on two ranks and gather what they tell."""
    environment = {**os.environ, "NANSTAB_RANKS": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    report = folder / "report.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}", "-m", "pytest"]
    options = [
        "-o",
        "filterwarnings=default",
        "-p",
        "nanstab",
        "--nanstab",
        f"--nanstab-report={report}",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    done = subprocess.run(
        [sys.executable, *torchrun, *options, "programs.py"],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    lines = [(folder / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in range(SIZE)]
    written = sorted(path.name for path in folder.iterdir() if not path.name.startswith("rank-"))
    return Session(
        done.stdout + done.stderr,
        [[json.loads(line) for line in told] for told in lines],
        json.loads(report.read_text(encoding="utf-8")),
        written,
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    return launch(tmp_path_factory.mktemp("ranks"))


def test_every_program_ran_on_both_ranks(session):
    """Nothing hung, nothing was lost."""
    for rank in range(SIZE):
        assert {told["test"].partition("[")[0] for told in session.ranks[rank]} == set(EXPECTED)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(session, name):
    """A sound program passes on every rank, and nothing is reported about it."""
    assert session.findings(name) == []
    for rank in range(SIZE):
        assert {told["outcome"] for told in session.of(name, rank)} <= {"passed", "skipped"}, session.of(name, rank)


@pytest.mark.parametrize("name", BROKEN)
def test_found_on_all_ranks(session, name):
    """The test fails on both ranks, and the finding names the rank it is on."""
    kind, _, where = re.split("[,:]", EXPECTED[name])[0].partition(" rank ")
    consumed = name == "test_driver_nan"  # by `pytest.raises`, on both ranks
    outcomes = {told["outcome"] for rank in range(SIZE) for told in session.of(name, rank)}
    if outcomes == {"skipped"}:
        pytest.skip("this torch cannot run it")
    assert outcomes == ({"passed"} if consumed else outcomes - {"passed"})
    found = session.findings(name)
    assert consumed or [finding["kind"] for finding in found[:1]] == [kind]
    if where and not consumed:
        assert found[0]["evidence"]["rank"] == f"{where} of {SIZE}"
        assert found[0]["message"].startswith(f"rank {where}: ")
        for rank in range(SIZE):
            texts = [told["text"] for told in session.of(name, rank) if told["outcome"] == "failed"]
            assert any(f"rank {where}: " in text for text in texts) or "assertion" in EXPECTED[name]


def test_the_operation_is_known_on_all_ranks(session):
    """Rank 0 tells the operation and the line of what only rank 1 has computed."""
    (found,) = session.findings("test_ddp_nan_on_one_rank")
    assert (found["op"], found["step"]) == ("log", 3)
    line = int(found["source"].rpartition(":")[2])
    assert "torch.log" in (FOLDER / "programs.py").read_text(encoding="utf-8").splitlines()[line - 1]
    assert found["evidence"]["again"].startswith(f"torchrun --nproc-per-node={SIZE} -m pytest --nanstab ")


def test_stories_of_drift(session):
    """Why ranks part is told from when they did."""
    causes = {name: session.findings(name)[0]["cause"] for name in BROKEN if EXPECTED[name] == "rank-drift"}
    assert "`model.module`" in causes["test_ddp_passed_by"]
    assert "`no_sync()`" in causes["test_ddp_without_sync"]
    assert "differs later" in causes["test_ddp_learning_rates_differ"]
    assert "differs later" in causes["test_step_skipped_on_one_rank"]
    assert "began with different numbers" in causes["test_by_hand_never_broadcast"]
    assert "those of the other parameters are" in causes["test_by_hand_one_left_out"]


def test_names_are_those_of_the_model(session):
    """Without the wrapper's "module."."""
    assert session.findings("test_ddp_passed_by")[0]["module"] == "0.weight"


def test_known_instability(session):
    """An expected failure is one on both ranks."""
    for rank in range(SIZE):
        assert [told["outcome"] for told in session.of("test_known_instability", rank)] == ["skipped"]


def test_rank_0_alone_reports(session):
    """One summary, one report."""
    assert session.output.count(" optimizer steps, ") == 1
    assert session.written == ["report.json"]
