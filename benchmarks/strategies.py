"""Cost of drawing a batch, against hypothesis.extra.numpy.arrays.

Microseconds of processor time per example, drawing and building, interleaved, medians. "floor" draws one integer and
builds nothing: Hypothesis' own share. "building" is the tensor alone, from its description.

Run: OMP_NUM_THREADS=1 python benchmarks/strategies.py [rounds]
Bars: at least 3 times as fast at (32, 128), 8 times at (64, 1024).
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pytest_nanstab.batches.build import realise
from pytest_nanstab.batches.drawing import described
from pytest_nanstab.batches.layout import plan
from pytest_nanstab.strategies import TensorSpec, from_spec

SHAPES = {(8, 16): None, (32, 128): 3.0, (16, 3, 32, 32): None, (64, 1024): 8.0}
EXAMPLES = 60
QUIET = settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def arrays(shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)).map(torch.from_numpy)


def spec(shape):
    return TensorSpec(shape=shape, min_value=-1e4, max_value=1e4)


def microseconds(strategy) -> float:
    """Processor time per example."""
    seen = 0

    @QUIET
    @given(strategy)
    def run(_value):
        nonlocal seen
        seen += 1

    start = time.thread_time()
    run()
    return (time.thread_time() - start) / seen * 1e6


def many_distinct(strategy) -> float:
    """The share of examples with more than 100 distinct values."""
    counts = []

    @settings(QUIET, max_examples=200)
    @given(strategy)
    def run(value):
        counts.append(len(torch.unique(value)) > 100)

    run()
    return sum(counts) / len(counts)


def building(shape, examples: int = 200) -> float:
    """Microseconds to build one tensor from its description, without Hypothesis' share."""
    checked = plan(spec(shape))
    descriptions = []

    @settings(QUIET, max_examples=examples)
    @given(described(checked))
    def collect(value):
        descriptions.append(value.description)

    collect()
    start = time.thread_time()
    for description in descriptions:
        realise(checked, description)
    return (time.thread_time() - start) / len(descriptions) * 1e6


def measure(strategies, rounds: int) -> tuple[dict[str, float], float]:
    """Median cost of each strategy, and the median of the ratios of neighbouring runs, equally disturbed."""
    times = {name: [] for name in strategies}
    for _ in range(rounds):
        for name, strategy in strategies.items():
            times[name].append(microseconds(strategy))
    ratio = statistics.median(slow / fast for slow, fast in zip(times["arrays"], times["from_spec"], strict=True))
    return {name: statistics.median(values) for name, values in times.items()}, ratio


def main(rounds: int) -> int:
    failed = 0
    print("             shape   floor  arrays from_spec  ratio   bar building  > 100 distinct")
    for shape, bar in SHAPES.items():
        strategies = {"floor": st.integers(0, 2**32), "arrays": arrays(shape), "from_spec": from_spec(spec(shape))}
        cost, ratio = measure(strategies, rounds)
        failed += bar is not None and not ratio >= bar
        many = [many_distinct(strategies[name]) for name in ("arrays", "from_spec")]
        print(
            f"{shape!s:>18} {cost['floor']:7.0f} {cost['arrays']:7.0f} {cost['from_spec']:9.0f}"
            f" {ratio:6.1f} {bar or '-':>5} {building(shape):8.0f}  {many[0]:.0%} -> {many[1]:.0%}"
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
