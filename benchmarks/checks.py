"""What the checks of gradients and initial scale cost, in training steps of the model they look at.

    python benchmarks/checks.py

Each row is a workload of `workloads.py`: the time of one plain training step, and in such steps the check `init_scale`
(one observed pass and all weights), an observed pass by itself (`gradient_bounds` makes up to four at the end of a
training), the judgement of what was observed, and one step of a suite's training with every parameter recorded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from workloads import WORKLOADS, build

from pytest_nanstab.checks._signal import first_pass
from pytest_nanstab.checks._stuck import Trained
from pytest_nanstab.checks.gradients import gradient_findings
from pytest_nanstab.checks.init_scale import init_scale_report
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

NAMES = ("mlp_adam", "conv", "lstm", "transformer", "big_adam")
ROUNDS = 5
SUITE = Options(
    raises=False, headroom=True, update_ratio=True, check_parameters=True, track_parameters=True, details=True
)


def seconds(call: Callable[[], object]) -> float:
    """The median of a few calls, after one that warms up."""
    call()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def row(name: str) -> str:
    """One workload's line."""
    many = WORKLOADS[name].steps
    loop = build(WORKLOADS[name])
    model, batch = loop.model, loop.batch

    def loss(m: nn.Module, b: Tensor) -> Tensor:
        return nn.functional.mse_loss(m(b), loop.target)

    def run() -> None:
        loop.run(many)

    step = seconds(run) / many
    initial = seconds(lambda: init_scale_report(model, batch=batch, loss=loss).findings)
    observed = seconds(lambda: first_pass(model, batch, loss))
    with Region(SUITE) as region:
        watched = seconds(run) / many
    trained = Trained(model, [], region.run, passes=[first_pass(model, batch, loss)] * 4)
    judging = seconds(lambda: gradient_findings(trained))
    figures = [value / step for value in (initial, observed, judging, watched)]
    return f"{name:12} {1e3 * step:7.2f} ms {figures[0]:11.1f} {figures[1]:9.1f} {figures[2]:8.1f} {figures[3]:11.1f}"


def main() -> None:
    torch.set_num_threads(1)
    print(f"in plain training steps; median of {ROUNDS}")
    print(f"{'workload':12} {'step':>10} {'init_scale':>11} {'one pass':>9} {'judging':>8} {'suite step':>11}")
    for name in NAMES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
