"""How far healthy programs stay from the thresholds of the heuristics, and which sick ones are found.

    python benchmarks/calibration.py            every program once
    python benchmarks/calibration.py --all      with all its optimizers and precisions (some ten minutes on 2 cores)

The programs are those of `tests/zoo/`. For each figure the most extreme healthy programs are shown beside the
threshold; accused healthy programs and missed sick ones are listed. The exit status is 1 when there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import zoo
from zoo.judged import init_verdicts, made, trained_by

from pytest_nanstab.checks import _propagation, _signal, _units, gradients
from pytest_nanstab.checks._stuck import Trained
from pytest_nanstab.checks.gradients import gradient_findings
from pytest_nanstab.propagation import depth
from pytest_nanstab.suite.batching import cycle

STEPS = 50
SHOWN = 4
FIGURES = {
    "gradient left at the first layers, fresh": depth.SMALLEST,
    "gradient left at the first layers, trained": depth.SMALLEST,
    "share of dead units": _units.DEAD,
    "share of saturated values": _units.SATURATED,
    "growth of the norm beside a loss grown fivefold": gradients.GROWN_WITH_LOSS,
    "leap of the norm in one step": gradients.LEAP,
}
LOW = {name for name in FIGURES if name.startswith("gradient")}


@contextlib.contextmanager
def everything_is_found() -> Iterator[None]:
    """Thresholds at which every program is told with its figure."""
    before = depth.SMALLEST, _units.DEAD, _units.SATURATED
    depth.SMALLEST, _units.DEAD, _units.SATURATED = 1.0, 0.0, 0.0
    try:
        yield
    finally:
        depth.SMALLEST, _units.DEAD, _units.SATURATED = before


def figures(trained: Trained, fresh: Any) -> dict[str, float]:
    """The figures of one training, as far as it has them."""
    seen = [one for one in trained.passes if one.failed is None]
    with everything_is_found():
        totals = [found.total for one in seen if (found := depth.gradient_depth(one)) is not None]
        first = depth.gradient_depth(fresh) if fresh.failed is None else None
        dead = [item.dead / item.units for item in _units.dead_units(seen)]
        flat = [item.share for item in _units.flat_activations(seen) if item.op.entropy is None]
    found = {
        "gradient left at the first layers, fresh": None if first is None else first.total,
        "gradient left at the first layers, trained": max(totals, default=None) if len(totals) == len(seen) else None,
        "share of dead units": max(dead, default=None),
        "share of saturated values": max(flat, default=None),
        "growth of the norm beside a loss grown fivefold": grown(trained),
        "leap of the norm in one step": leapt(trained),
    }
    return {name: value for name, value in found.items() if value is not None}


def grown(trained: Trained) -> float | None:
    run = trained.run
    norms, losses = ([value for value in values if value is not None] for values in (run.grad_norm, run.loss))
    quarter = len(norms) // 4
    if len(set(run.optimizer)) > 1 or quarter < 3:
        return None
    ends = [(statistics.median(v[:quarter]), statistics.median(v[-quarter:])) for v in (norms, losses)]
    (first, last), (before, after) = ends
    return last / first if first > 0 and abs(after) > gradients.LOSS_GROWN * abs(before) else None


def leapt(trained: Trained) -> float | None:
    norms = [value for value in trained.run.grad_norm if value is not None]
    if len(set(trained.run.optimizer)) > 1 or len(norms) <= gradients.LEAP_AFTER:
        return None
    before = (max(norms[:index]) for index in range(gradients.LEAP_AFTER, len(norms)))
    return max(n / max(b, 1.0) for n, b in zip(norms[gradients.LEAP_AFTER :], before, strict=True))


def judge(job: tuple[str, str, str, str]) -> dict[str, Any]:
    """One program with one optimizer and precision."""
    table, name, optimizer, precision = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    program = getattr(zoo, table)[name]
    with made(program, optimizer) as setup:
        fresh = _signal.first_pass(setup.model, next(cycle(setup.batches)), setup.loss)
    initial = init_verdicts(program)
    with made(program, optimizer) as setup:
        region, trained = trained_by(setup, precision, STEPS)
    found = [*region.findings, *gradient_findings(trained)]
    wanted = initial if program.check == "init_scale" else found
    return {
        "job": job,
        "figures": figures(trained, fresh),
        "accused": [finding.message for finding in (*initial, *found)],
        "named": bool(wanted) and wanted[0].kind in program.kinds,
    }


def jobs(*, every: bool) -> list[tuple[str, str, str, str]]:
    found = []
    for table in ("HEALTHY", "SICK"):
        for name, program in getattr(zoo, table).items():
            optimizers = program.optimizers if every else program.optimizers[:1]
            precisions = program.precisions if every else program.precisions[:1]
            found += [(table, name, optimizer, precision) for optimizer in optimizers for precision in precisions]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every optimizer and precision of every program")
    every = parser.parse_args().all
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool() as pool:
        results = pool.map(judge, jobs(every=every), chunksize=4)
    healthy = [result for result in results if result["job"][0] == "HEALTHY"]
    sick = [result for result in results if result["job"][0] == "SICK"]
    for name, threshold in FIGURES.items():
        rows = [(row["figures"][name], " ".join(row["job"][1:])) for row in healthy if name in row["figures"]]
        rows.sort(reverse=name not in LOW)
        side = "under" if name in LOW else "over"
        print(f"\n{name}: accused {side} {threshold:g}; the nearest of {len(rows)} healthy trainings")
        for value, program in rows[:SHOWN]:
            print(f"  {value:10.3g}  {program}")
    accused = [result for result in healthy if result["accused"]]
    missed = [result for result in sick if not result["named"]]
    print(f"\n{len(healthy)} healthy trainings, {len(accused)} accused; {len(sick)} sick ones, {len(missed)} missed")
    for result in (*accused, *missed):
        print("  ", *result["job"][1:], *result["accused"])
    print(f"{time.monotonic() - began:.0f} s; largest gain {_propagation.LARGE:g}, smallest {_propagation.SMALL:g}")
    return 1 if accused or missed else 0


if __name__ == "__main__":
    sys.exit(main())
