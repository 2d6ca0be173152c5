"""Graphs, breaks and seconds of `torch.compile`, with and without the watch.

    python benchmarks/compiling.py                    eager and aot_eager
    python benchmarks/compiling.py eager inductor     these backends; inductor needs a C++ compiler

Counted by dynamo itself: a recompile is a graph more. The exit status is 1 when a watch adds any.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from overhead import options_of
from torch import nn
from workloads import WORKLOADS, Loop, build

from pytest_nanstab.watching.region import Region

STEPS = 6
Step = Callable[[], object]


def loss_of(loop: Loop, model: Callable[..., torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(loop.batch), loop.target)


def compiled_model(loop: Loop, backend: str) -> Step:
    model = torch.compile(loop.model, backend=backend)

    def step() -> None:
        loop.optimizer.zero_grad()
        loss_of(loop, model).backward()
        loop.optimizer.step()

    return step


def compiled_loss(loop: Loop, backend: str) -> Step:
    loss = torch.compile(lambda: loss_of(loop, loop.model), backend=backend)

    def step() -> None:
        loop.optimizer.zero_grad()
        loss().backward()
        loop.optimizer.step()

    return step


def compiled_step(loop: Loop, backend: str) -> Step:
    @torch.compile(backend=backend)
    def stepping() -> None:
        loop.optimizer.step()

    def step() -> None:
        loop.optimizer.zero_grad()
        loss_of(loop, loop.model).backward()
        stepping()

    return step


def everything(loop: Loop, backend: str) -> Step:
    def step() -> None:
        loop.optimizer.zero_grad()
        loss_of(loop, loop.model).backward()
        loop.optimizer.step()

    return torch.compile(step, backend=backend)


FORMS = {"model": compiled_model, "model and loss": compiled_loss, "optimizer step": compiled_step, "all": everything}
DETECTORS = ("plain", "zero-change", "explicit", "min_headroom_bits")


def counted(form: str, backend: str, detector: str) -> tuple[int, int, float]:
    """(graphs, breaks, seconds) of a few steps, compilation included."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    step = FORMS[form](build(WORKLOADS["mlp_adam"]), backend)
    with nullcontext() if detector == "plain" else Region(options_of(detector)):
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        spent = time.perf_counter() - began
    return counters["stats"].get("unique_graphs", 0), sum(counters["graph_break"].values()), spent


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    added = 0
    for backend in sys.argv[1:] or ["eager", "aot_eager"]:
        for form in FORMS:
            counted(form, backend, "plain")  # what is loaded once
            plain = counted(form, backend, "plain")
            for detector in DETECTORS:
                graphs, breaks, spent = counted(form, backend, detector)
                more = max(graphs - plain[0], 0) + max(breaks - plain[1], 0)
                added += more
                verdict = f"ADDED {more}" if more else ""
                print(
                    f"{backend:10} {form:15} {detector:18} {graphs} graphs, {breaks} breaks, {spent:5.1f} s {verdict}"
                )
    return 1 if added else 0


if __name__ == "__main__":
    sys.exit(main())
