"""What this plugin and its alternatives find in eighteen small trainings with one defect each.

    python benchmarks/comparison.py                    a table in Markdown; some minutes
    python benchmarks/comparison.py --tools detect_anomaly,nanstab --defects norm_at_zero --verbose

Tools that are not installed are left out (`pip install transformers pytest-torch torchtest2 numguard-ci chex`). Each is
used as its documentation says, on the same program (`defects.py`), with its defaults, and on the mended program.

    L   found, and the culprit's line is named      F   found: the test fails
    w   only a warning                              .   not found
    !   the mended program is accused as well       -   cannot be expressed with this tool
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import defects
import torch
from defects import DEFECTS, Program, build

HERE = Path(__file__).parent


@dataclass
class Seen:
    """What a tool said about one program: `failed`, only warned, or None where the tool cannot be asked."""

    failed: bool | None = False
    warned: bool = False
    text: str = ""


Tool = Callable[[Program], Seen]


def culprits(name: str) -> set[int]:
    """The lines of `defects.py` that may be named for a defect."""
    lines, _ = inspect.getsourcelines(DEFECTS[name])
    wanted = inspect.getsource(DEFECTS[name])
    found = set()
    parts = [DEFECTS[name], *(thing for key, thing in vars(defects).items() if key in _HELPERS and key in wanted)]
    for part in parts:
        lines, first = inspect.getsourcelines(part)
        found |= {number for number, line in enumerate(lines, first) if line.rstrip().endswith("# culprit")}
    return found


_HELPERS = ("stack", "Recurrent", "Attention", "Calibrated", "Energy", "Counting")


def named_lines(text: str) -> list[int]:
    """The lines of `defects.py` that a message names, in order."""
    return [int(number) for number in re.findall(r'defects\.py(?:", line |:)(\d+)', text)]


# -- the alternatives --------------------------------------------------------------------------------------------------


def by_hand(program: Program) -> Seen:
    """`isfinite` on the loss, every gradient and every parameter, after every step."""
    for step, loss in enumerate(program.losses()):
        tensors = [
            loss,
            *program.model.parameters(),
            *(p.grad for p in program.model.parameters() if p.grad is not None),
        ]
        if not all(tensor.isfinite().all() for tensor in tensors):
            return Seen(True, text=f"step {step}")
    return Seen()


def detect_anomaly(program: Program) -> Seen:
    """`torch.autograd.detect_anomaly` around the loop; the line is the last of the user's in its forward traceback."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                for _ in program.losses():
                    pass
        except RuntimeError as error:
            traced = "\n".join(str(warning.message) for warning in caught)
            last = named_lines(traced)[-1:]
            return Seen(True, text=f"{error} {''.join(f'defects.py:{line}' for line in last)}")
    return Seen()


def underflow_overflow(program: Program) -> Seen:
    """transformers' DebugUnderflowOverflow on the model; it names modules, and the line of none."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(program.model)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            for _ in program.losses():
                pass
    except ValueError as error:
        return Seen(True, text=f"{error}\n{out.getvalue()[-500:]}")
    return Seen()


def pytest_torch(program: Program) -> Seen:
    """pytest-torch's `run_training(...).assert_healthy()` with the program's own step."""
    from pytest_torch.training_loop import TrainingSetup, run_training

    def make() -> TrainingSetup:
        return TrainingSetup(program.model, program.optimizer)

    def step(_: object, batch: defects.Batch) -> torch.Tensor:
        return program.step(batch)

    try:
        run_training(make, program.batches, step, steps=program.steps).assert_healthy(max_skipped=program.steps)
    except AssertionError as error:
        return Seen(True, text=str(error))
    return Seen()


def torchtest2(program: Program) -> Seen:
    """torchtest2's `check_model` on the first batch, with the program's optimizer."""
    from torchtest2 import check_model

    if program.training_step is not None:
        return Seen(None)
    inputs, targets = program.batches[0]

    class Whole(torch.nn.Module):
        """The loss may be any function of model and batch."""

        def __init__(self) -> None:
            super().__init__()
            self.model = program.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    whole = Whole()

    def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        class Given(torch.nn.Module):
            def forward(self, _: torch.Tensor) -> torch.Tensor:
                return outputs

        return program.loss(Given(), (inputs, targets))

    report = check_model(whole, inputs, targets, loss_fn=loss_of, optimizer=program.optimizer)
    told = (*report.failures, *report.warnings)
    return Seen(bool(report.failures), bool(report.warnings), "\n".join(map(str, told)))


def numguard(program: Program) -> Seen:
    """numguard's `check` on the function with the defect, where the defect is a function of an array."""
    import numguard as library

    if program.function is None:
        return Seen(None)
    inputs = library.Array("n", 4, domain=program.domain)
    report = library.check(program.function, inputs, backend="torch", grad=True, dtypes=["float32"], nan="ignore")
    return Seen(not report.ok, text=report.summary())


def chex(program: Program) -> Seen:
    """chex's `assert_tree_all_finite` on loss, gradients and parameters as numpy arrays, after every step."""
    import chex as library

    for loss in program.losses():
        named = dict(program.model.named_parameters())
        tree = {
            "loss": loss.float().numpy(),
            "parameters": {name: p.detach().float().numpy() for name, p in named.items()},
            "gradients": {name: p.grad.float().numpy() for name, p in named.items() if p.grad is not None},
        }
        try:
            library.assert_tree_all_finite(tree)
        except AssertionError as error:
            return Seen(True, text=str(error)[:500])
    return Seen()


# -- this plugin, as a test session ------------------------------------------------------------------------------------

SESSION = """
import sys
sys.path.insert(0, {here!r})
import pytest
from defects import DEFECTS, build
from pytest_nanstab import TrainingSetup, stability_suite


def loop(name, fixed):
    def test():
        for _ in build(name, fixed=fixed).losses():
            pass
    return test


def suite(name, fixed):
    @stability_suite(steps=20, precision=build(name, fixed=fixed).precision)
    def test():
        program = DEFECTS[name](fixed)
        return TrainingSetup(
            model=program.model,
            loss=program.loss,
            optimizer=program.optimizer,
            batches=program.batches,
            training_step=program.training_step,
        )
    return test


for name in {names!r}:
    for fixed in (False, True):
        globals()[f"test_watched__{{name}}__{{fixed}}"] = loop(name, fixed)
        globals()[f"test_marked__{{name}}__{{fixed}}"] = pytest.mark.nanstab(loop(name, fixed))
        globals()[f"test_suite__{{name}}__{{fixed}}"] = suite(name, fixed)
"""


def sessions(names: list[str]) -> dict[str, dict[tuple[str, bool], Seen]]:
    """What `pytest --nanstab` says about the plain loop, and what a marked loop and a suite say: from one report."""
    found: dict[str, dict[tuple[str, bool], Seen]] = {title: {} for title in OURS}
    with tempfile.TemporaryDirectory() as folder:
        test, report = Path(folder, "test_defects.py"), Path(folder, "report.json")
        test.write_text(SESSION.format(here=str(HERE), names=names), "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--nanstab", f"--nanstab-report={report}", "-p", "no:randomly"]
        subprocess.run([*command, str(test)], capture_output=True, check=False, cwd=folder)
        records = json.loads(report.read_text("utf-8"))["tests"]
    for record in records:
        way, name, fixed = record["id"].partition("::test_")[2].partition("[")[0].split("__")
        seen = found[OURS[way != "watched"]].setdefault((name, fixed == "True"), Seen())
        if record["outcome"] == "failed":
            seen.failed = True
            seen.text += "".join(f"{one['kind']} {one['source']}\n" for one in record["findings"])
    return found


# -- the table ---------------------------------------------------------------------------------------------------------

TOOLS: dict[str, tuple[Tool, str | None]] = {
    "isfinite by hand": (by_hand, None),
    "detect_anomaly": (detect_anomaly, None),
    "DebugUnderflowOverflow": (underflow_overflow, "transformers"),
    "pytest-torch": (pytest_torch, "pytest_torch"),
    "torchtest2": (torchtest2, "torchtest2"),
    "numguard": (numguard, "numguard"),
    "chex": (chex, "chex"),
}
PACKAGES = ("torch", "transformers", "pytest-torch", "torchtest2", "numguard-ci", "chex")
OURS = ("--nanstab", "marker and suite")


def installed(package: str) -> bool:
    """Whether a distribution is here."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def mark(name: str, broken: Seen, mended: Seen) -> str:
    """The cell of one defect and one tool."""
    if broken.failed is None:
        return "-"
    if mended.failed:
        return "!"
    if broken.failed:
        lines = named_lines(broken.text)
        return "L" if culprits(name) & set(lines) else "F"
    return "w" if broken.warned and not mended.warned else "."


def ask(tool: Tool, name: str, *, fixed: bool) -> Seen:
    """One tool about one program; what it breaks on by itself counts as nothing found."""
    try:
        return tool(build(name, fixed=fixed))
    except Exception as error:  # noqa: BLE001 - of somebody else's tool, on purpose
        return Seen(text=f"{type(error).__name__}: {error}")


def columns(wanted: list[str], names: list[str], *, verbose: bool) -> Iterator[tuple[str, list[str]]]:
    """The cells of each tool, in order of the defects."""
    for title, (tool, module) in TOOLS.items():
        if title not in wanted:
            continue
        if module is not None and importlib.util.find_spec(module) is None:
            print(f"{title} is not installed and left out", file=sys.stderr)
            continue
        cells = []
        for name in names:
            broken, mended = (ask(tool, name, fixed=fixed) for fixed in (False, True))
            cells.append(mark(name, broken, mended))
            if verbose:
                print(f"--- {title}, {name}: {cells[-1]}\n{broken.text}\n(mended) {mended.text}", file=sys.stderr)
        yield title, cells
    ours = sessions(names) if set(OURS) & set(wanted) else {}
    for title in (title for title in OURS if title in wanted):
        cells = []
        for name in names:
            broken, mended = (ours[title].get((name, fixed), Seen()) for fixed in (False, True))
            cells.append(mark(name, broken, mended))
            if verbose:
                print(f"--- {title}, {name}: {cells[-1]}\n{broken.text}\n(mended) {mended.text}", file=sys.stderr)
        yield title, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join([*TOOLS, *OURS]))
    parser.add_argument("--defects", default=",".join(DEFECTS))
    parser.add_argument("--verbose", action="store_true", help="what each tool said, on standard error")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = arguments.defects.split(",")
    began = time.monotonic()
    table = dict(columns(arguments.tools.split(","), names, verbose=arguments.verbose))
    print(f"| defect | {' | '.join(table)} |\n|{' --- |' * (len(table) + 1)}")
    for number, name in enumerate(names):
        about = (DEFECTS[name].__doc__ or "").rstrip(".")
        print(f"| {about} | {' | '.join(cells[number] for cells in table.values())} |")
    for title, marks in (("found", "LF"), ("of these, with the line", "L"), ("mended program accused", "!")):
        counts = [sum(cell in marks for cell in cells) for cells in table.values()]
        print(f"| **{title}** | {' | '.join(map(str, counts))} |")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES if installed(package))
    print(f"\n{len(names)} defects, {versions}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
