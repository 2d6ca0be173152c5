"""Whether the plugin changes any outcome of a test suite that nobody here wrote.

    python benchmarks/transparency.py [--cwd DIR] [--python VENV/bin/python] [--times N] -- test -k "not slow"

What follows ``--`` goes to pytest unchanged. The suite runs in `--cwd`, with the interpreter `--python` (torch, the
suite's library and pytest-nanstab installed), in three ways: without the plugin, with the plugin and no flag, with
`--nanstab`. The outcomes are compared test by test. A test whose outcome differs is run again without the plugin, alone
(`--times` times): where it then has another outcome or another fingerprint, it is unsteady by itself.

Every test starts with the same random numbers in each way, from a small plugin of this script (`--unseeded` leaves it
out), which also takes a fingerprint after each test: random states, default dtype, grad mode, threads, determinism,
torch's global hooks. It must be the same in each way.

Printed: exit codes, seconds of wall and CPU with their ratio to the plain run, every outcome that differs with the
plugin's finding, findings and other messages beside unchanged outcomes, fingerprints that differ, tracebacks through
pytest_nanstab. The exit status is 1 when an outcome or a fingerprint differs without a finding (unless the test is
unsteady by itself) or a traceback passes through the plugin, 2 when a run did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMON = ("-p", "no:randomly", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "junit_family=xunit1", "-q", "-rN")
PLAIN = "plain"
WAYS: dict[str, tuple[str, ...]] = {PLAIN: ("-p", "no:nanstab"), "plugin": (), "flag": ("--nanstab",)}
FRAME = re.compile(r"^.*pytest_nanstab/\S+\.py:\d+: (?!NonFiniteError|StabilityError).*$", re.MULTILINE)
SUMMARY = re.compile(r"^(?=.*\d+ (?:passed|failed|skipped|error|deselected))=*\s*(.*?) in [\d.]+s.*$", re.MULTILINE)
ADDRESS = re.compile(rf"0x[0-9a-f]+|{re.escape(tempfile.gettempdir())}/\S+|[\d.e-]+ ?m?s\b")
ENDED = (0, 1)
SHOWN = 300

SEEDING = """
import hashlib, json, os, random, sys, zlib
import pytest

random.seed(0)  # parameters may be drawn while tests are collected

def _sha(data):
    return hashlib.sha1(data).hexdigest()[:10]

def _fingerprint():
    state = {"random": _sha(repr(random.getstate()).encode())}
    if "numpy" in sys.modules:
        import numpy
        state["numpy"] = _sha(numpy.random.get_state()[1].tobytes())
    if "torch" in sys.modules:
        import torch
        from torch.nn.modules import module
        from torch.optim import optimizer
        state["torch"] = _sha(torch.random.default_generator.get_state().numpy().tobytes())
        state["switches"] = str([
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), torch.is_autocast_enabled("cpu"),
        ])
        state["hooks"] = str([
            len(getattr(place, name))
            for place in (module, optimizer) for name in sorted(vars(place))
            if name.startswith("_global") and hasattr(getattr(place, name), "__len__")
        ])
    return state

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    return (yield)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        with open(os.environ["TRANSPARENCY_STATES"], "a") as out:
            out.write(json.dumps([item.nodeid, _fingerprint()]) + "\\n")
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    word: str
    message: str


@dataclass(frozen=True)
class Way:
    """One run of the whole suite."""

    exit_code: int | None
    wall: float
    cpu: float
    summary: str
    outcomes: dict[str, Outcome]
    findings: dict[str, list[str]]
    crashes: list[str]
    states: dict[str, dict[str, str]]


def outcomes_of(junit: Path) -> dict[str, Outcome]:
    """The outcome of every test in a JUnit file; a test that failed and broke in teardown too has both words."""
    if not junit.exists():
        return {}
    found: dict[str, Outcome] = {}
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        marks = [child for child in case if child.tag in ("failure", "error", "skipped")]
        words = sorted({"xfailed" if m.get("type") == "pytest.xfail" else m.tag for m in marks}) or ["passed"]
        message = " / ".join((m.get("message") or "")[:SHOWN] for m in marks)
        if name in found:
            words = sorted({*found[name].word.split("+"), *words} - {"passed"}) or ["passed"]
            message = " / ".join(filter(None, (found[name].message, message)))
        found[name] = Outcome("+".join(words), message)
    return found


def findings_of(report: Path) -> dict[str, list[str]]:
    """What the plugin found, by the name a test has in JUnit."""
    if not report.exists():
        return {}
    found: dict[str, list[str]] = {}
    for test in json.loads(report.read_text())["tests"]:
        for finding in test["findings"]:
            line = f"{finding['kind']} at {finding.get('source')}: {finding['message']} [{finding.get('cause')}]"
            found.setdefault(junit_name(test["id"]), []).append(line)
    return found


def states_of(path: Path) -> dict[str, dict[str, str]]:
    """The last fingerprint after each test."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {junit_name(node): state for node, state in map(json.loads, lines)}


def junit_name(node: str) -> str:
    """`a/test_b.py::C::test_d[x]` as JUnit writes it: `a.test_b.C::test_d[x]`."""
    plain, bracket, parameters = node.partition("[")
    path, *rest = plain.split("::")
    classes = [path.removesuffix(".py").replace("/", "."), *rest[:-1]]
    return f"{'.'.join(classes)}::{rest[-1] if rest else ''}{bracket}{parameters}"


def run(name: str, options: argparse.Namespace, arguments: Sequence[str], folder: Path) -> Way:
    """Run the suite in one way."""
    junit, report = folder / f"{name}.xml", folder / f"{name}.json"
    more = (f"--nanstab-report={report}",) if name != PLAIN else ()
    states = folder / f"{name}.states"
    states.unlink(missing_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if not options.unseeded:
        (folder / "transparency_seeding.py").write_text(SEEDING)
        paths = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
        environment.update(PYTHONPATH=paths, TRANSPARENCY_STATES=str(states))
        more = (*more, "-p", "transparency_seeding")
    command = [options.python, "-m", "pytest", *arguments, *COMMON, *WAYS[name], *more, f"--junitxml={junit}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code: int | None
    log = folder / f"{name}.log"
    with log.open("w") as out:
        try:
            code = subprocess.run(
                command,
                cwd=options.cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=options.timeout,
                env=environment,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text = log.read_text(errors="replace")
    crashes = [*(m.group(0) for m in FRAME.finditer(text)), *re.findall(r"^INTERNALERROR.*$", text, re.MULTILINE)]
    summary = SUMMARY.findall(text)
    return Way(
        exit_code=code,
        wall=wall,
        cpu=cpu,
        summary=summary[-1] if summary else text[-SHOWN:],
        outcomes=outcomes_of(junit),
        findings=findings_of(report),
        crashes=crashes,
        states=states_of(states),
    )


def steady(test: str, word: str, options: argparse.Namespace, arguments: Sequence[str], folder: Path) -> bool:
    """Whether a test, alone and without the plugin, has the outcome that it had in the plain run each time."""
    name = test.rpartition("::")[2]
    words: Counter[str] = Counter()
    states: set[str] = set()
    for _ in range(options.times):
        only = [*arguments, "-k", re.split(r"\W", name)[0]]
        way = run(PLAIN, options, only, folder)
        words[way.outcomes.get(test, Outcome("missing", "")).word] += 1
        states.add(str(way.states.get(test)))
    print(f"      alone, without the plugin: {dict(words)}, {len(states)} fingerprints")
    return set(words) == {word} and len(states) == 1


def compare(ways: dict[str, Way], options: argparse.Namespace, arguments: Sequence[str], folder: Path) -> bool:
    """Print what differs; True when every difference has a finding and nothing passed through the plugin."""
    plain, good = ways[PLAIN], True
    for name, way in ways.items():
        ratio = f"x{way.wall / plain.wall:.2f} wall, x{way.cpu / max(plain.cpu, 0.01):.2f} CPU"
        counts = dict(sorted(Counter(o.word for o in way.outcomes.values()).items()))
        print(f"{name:10} exit {way.exit_code}  {way.wall:7.1f} s  {way.cpu:7.1f} s CPU  {ratio}  {counts}")
        print(f"           {way.summary}")
        for crash in dict.fromkeys(way.crashes):
            good = False
            print(f"  CRASH    {crash}")
    nothing = Outcome("missing", "")
    for name, way in ways.items():
        for test in sorted(plain.outcomes.keys() | way.outcomes.keys()):
            was, now = plain.outcomes.get(test, nothing), way.outcomes.get(test, nothing)
            found = way.findings.get(test, [])
            if was.word == now.word:
                if ADDRESS.sub("", was.message) != ADDRESS.sub("", now.message):
                    print(f"  MESSAGE  {name}: {test}\n      {was.message}\n      {now.message}")
                if found:
                    print(f"  beside   {name}: {test} ({now.word})\n      " + "\n      ".join(found))
                continue
            print(f"  DIFFERS  {name}: {test}: {was.word} -> {now.word}")
            print("      " + "\n      ".join(found or [now.message]))
            if not found and now is not nothing:
                good = not steady(test, was.word, options, arguments, folder) and good
        for test, state in plain.states.items():
            other = way.states.get(test, state)
            if other != state:
                print(f"  STATE    {name}: {test}: {', '.join(k for k in state if state[k] != other.get(k))}")
                good = not steady(test, plain.outcomes.get(test, nothing).word, options, arguments, folder) and good
    return good


def main() -> int:
    """Run the suite in the three ways."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], usage="%(prog)s [options] -- pytest arguments"
    )
    parser.add_argument("--cwd", type=Path, default=Path.cwd(), help="folder the suite runs in")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the plugin and the library")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per run (default 600)")
    parser.add_argument("--times", type=int, default=3, help="how often a differing test is repeated (default 3)")
    parser.add_argument("--unseeded", action="store_true", help="leave random numbers as the suite has them")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="leave one out to save time")
    parser.add_argument("--keep", type=Path, help="folder for logs, JUnit files and reports")
    parser.add_argument("arguments", nargs="*", help="of pytest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        ways = {
            name: run(name, options, options.arguments, folder) for name in {PLAIN: 0, **dict.fromkeys(options.ways)}
        }
        (folder / "again").mkdir(exist_ok=True)
        good = compare(ways, options, options.arguments, folder / "again")
    if any(way.exit_code not in ENDED for way in ways.values()):
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
