"""What the watch costs, as a ratio to the plain loop.

    python benchmarks/overhead.py                      everything, about half an hour
    python benchmarks/overhead.py --quick              a look, a few minutes
    python benchmarks/overhead.py --workloads mlp_adam,conv --detectors zero-change,max_grad_norm --json figures.json
    python benchmarks/overhead.py --memory             peak memory too, each figure in processes of its own

Method: one process, one torch thread. Every watched block of steps runs beside a plain one, in random order, so a
machine that slows down slows both. Hooks are set and taken away outside the timed part, and one region lives through
all blocks of its detector: figures are those of a long run. A figure is the median of the paired ratios of thread CPU
time, with the 90 % bootstrap interval of that median; beside it the ratio of the 15th percentiles and the median ratio
of wall time. "plain" against itself shows what the machine cannot resolve. What entering and leaving a region costs is
a table of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from workloads import WORKLOADS, Loop, Workload, build

from pytest_nanstab.config import Limit
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

# -- detectors ---------------------------------------------------------------------------------------------------------

# Never reached, so that every step is judged and none fails.
LIMITS = {
    "max_loss": 1e30,
    "max_grad_norm": 1e15,
    "min_grad_norm": 1e-30,
    "max_update_ratio": 1e9,
    "min_headroom_bits": 0.5,
}
PEERS = ("detect_anomaly", "isfinite", "DebugUnderflowOverflow")
DETECTORS = ("plain", "zero-change", "explicit", *LIMITS, *PEERS)


def options_of(detector: str) -> Options:
    """What the region of a detector is asked to do."""
    if detector == "zero-change":
        return Options(raises=False, dense=False)
    if detector == "explicit":
        return Options()
    return Options(limits={detector: Limit(LIMITS[detector], "call")})


@contextmanager
def kept(region: Region) -> Iterator[None]:
    """The region watches inside the block and lives on after it."""
    region.__enter__()
    try:
        yield
    finally:
        region.leave()


@contextmanager
def anomaly() -> Iterator[None]:
    """Torch's own detector; its warning that it is slow is not news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = torch.autograd.detect_anomaly()
    with mode:
        yield


@contextmanager
def isfinite(loop: Loop) -> Iterator[None]:
    """What people write by hand: every gradient, before every step."""
    assert loop.optimizer is not None
    parameters = list(loop.model.parameters())

    def check(*_: object) -> None:
        for parameter in parameters:
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise FloatingPointError("non-finite gradient")

    handle = loop.optimizer.register_step_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def underflow_overflow(loop: Loop) -> Iterator[None]:
    """The detector of transformers, which cannot be taken away again by itself: its hooks are the model's only ones."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(loop.model)
    try:
        yield
    finally:
        for module in loop.model.modules():
            module._forward_hooks.clear()


def around(detector: str, loop: Loop, region: Region | None) -> AbstractContextManager[object]:
    """The context in which a block of this detector runs."""
    if region is not None:
        return kept(region)
    if detector == "detect_anomaly":
        return anomaly()
    if detector == "DebugUnderflowOverflow":
        return underflow_overflow(loop)
    return isfinite(loop) if detector == "isfinite" else nullcontext()


def applies(detector: str, workload: Workload) -> bool:
    """Whether there is anything for the detector to do; a forward pass alone has no gradients."""
    if detector == "DebugUnderflowOverflow" and importlib.util.find_spec("transformers") is None:
        return False
    return workload.trains or detector in ("plain", "zero-change", "explicit")


def bar_of(detector: str, name: str, step_us: float) -> float | None:
    """The ratio that a figure must not exceed, or None where nothing is promised."""
    if detector == "zero-change":
        return {"mlp_eval": 1.10, "conv_eval": 1.02}.get(name, 1.05) if step_us >= 150 or "eval" in name else None
    if detector in ("max_loss", "max_grad_norm", "min_grad_norm"):
        return {"big_sgd": 1.10, "mlp_sgd": 1.16}.get(name, 1.05)
    if detector == "max_update_ratio":
        return 1.6 if name.startswith("big") else None
    return 1.15 if detector == "min_headroom_bits" and step_us >= 10_000 else None


# -- time --------------------------------------------------------------------------------------------------------------


Times = tuple[float, float]  # thread CPU and wall seconds of one block
Pair = tuple[Times, Times]  # a plain block and a watched one beside it


@dataclass
class Figure:
    """One detector on one workload."""

    workload: str
    detector: str
    step_us: float
    ratio: float
    low: float
    high: float
    ratio_p15: float
    ratio_wall: float
    blocks: int
    bar: float | None = None
    verdict: str = field(default="")

    def judge(self) -> None:
        """Compare with the bar; a tilde says that the interval holds the bar."""
        if self.bar is None:
            return
        resolved = "" if self.high <= self.bar or self.low > self.bar else "~"
        self.verdict = ("pass" if self.ratio <= self.bar else "MISS") + resolved


def timed(loop: Loop, steps: int, context: AbstractContextManager[object], warm: int = 0) -> Times:
    """Thread CPU and wall seconds of a block."""
    with context:
        loop.run(warm)
        wall, cpu = time.perf_counter(), time.thread_time()
        loop.run(steps)
        return time.thread_time() - cpu, time.perf_counter() - wall


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def interval(values: list[float], draws: int = 1000) -> tuple[float, float]:
    """The 90 % bootstrap interval of the median."""
    chance = random.Random(0)
    medians = [statistics.median(chance.choices(values, k=len(values))) for _ in range(draws)]
    return percentile(medians, 0.05), percentile(medians, 0.95)


def pairs_of(workload: Workload, detectors: list[str], rounds: int) -> dict[str, list[Pair]]:
    """For every detector, (plain, watched) times of neighbouring blocks."""
    loop = build(workload)
    regions = {d: Region(options_of(d)) for d in detectors if d != "plain" and d not in PEERS}
    pairs: dict[str, list[Pair]] = {d: [] for d in detectors}
    chance = random.Random(1)
    for turn in range(rounds + 1):
        for detector in chance.sample(detectors, len(detectors)):
            times: dict[bool, Times] = {}
            for watched in chance.sample((False, True), 2):
                context = around(detector, loop, regions.get(detector)) if watched else nullcontext()
                times[watched] = timed(loop, workload.steps, context, workload.warm)
            if turn:  # the first round warms up
                pairs[detector].append((times[False], times[True]))
    for detector, region in regions.items():
        region.finish()
        if region.findings or (workload.trains and region.run.steps != (workload.steps + workload.warm) * (rounds + 1)):
            raise RuntimeError(f"{detector}: {region.findings}, {region.run.steps} steps seen")
    return pairs


def figures_of(name: str, detectors: list[str], rounds: int) -> list[Figure]:
    """All figures of one workload."""
    workload = WORKLOADS[name]
    figures = []
    for detector, pairs in pairs_of(workload, [d for d in detectors if applies(d, workload)], rounds).items():
        plain, watched = [p[0] for p, _ in pairs], [w[0] for _, w in pairs]
        ratios = [w / p for p, w in zip(plain, watched, strict=True)]
        figure = Figure(
            name,
            detector,
            statistics.median(plain) / workload.steps * 1e6,
            statistics.median(ratios),
            *interval(ratios),
            percentile(watched, 0.15) / percentile(plain, 0.15),
            statistics.median(w[1] / p[1] for p, w in pairs),
            len(pairs),
        )
        figure.bar = bar_of(detector, name, figure.step_us)
        figure.judge()
        figures.append(figure)
    return figures


# -- entering and leaving ----------------------------------------------------------------------------------------------


@dataclass
class Passage:
    """What a region costs once, in microseconds: with nothing in it, and around one step (judged at its end)."""

    workload: str
    detector: str
    empty_us: float
    around_step_us: float


def passage_of(name: str, detector: str, rounds: int) -> Passage:
    """Median cost of entering and leaving one region."""
    loop = build(WORKLOADS[name])
    empty, extra = [], []
    for _ in range(rounds + 1):
        plain = timed(loop, 1, nullcontext())[0]
        began = time.thread_time()
        with Region(options_of(detector)):
            pass
        middle = time.thread_time()
        with Region(options_of(detector)):
            loop.run(1)
        ended = time.thread_time()
        empty.append(middle - began)
        extra.append(ended - middle - plain)
    return Passage(name, detector, statistics.median(empty[1:]) * 1e6, statistics.median(extra[1:]) * 1e6)


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY_BAR = 1.02
# Large tensors straight from the kernel and back: without it glibc keeps one or two of them, as chance will have it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


@dataclass
class Memory:
    """Peak resident memory of a process that runs the loop, watched and plain."""

    workload: str
    detector: str
    plain_mib: float
    watched_mib: float
    ratio: float
    verdict: str


def peak_mib() -> float:
    """The high-water mark of this process (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run_for_memory(name: str, detector: str) -> None:
    """In a process of its own: some steps of the loop, then the peak on stdout."""
    loop = build(WORKLOADS[name])
    region = None if detector == "plain" else Region(options_of(detector))
    with region or nullcontext():
        loop.run(6)
    print(peak_mib())


def memory_of(name: str, detectors: list[str], repeats: int) -> list[Memory]:
    """Medians over processes, plain and watched in turn."""
    peaks: dict[str, list[float]] = {d: [] for d in ("plain", *detectors)}
    for _ in range(repeats):
        for detector, values in peaks.items():
            command = [sys.executable, __file__, "--peak-of", name, detector]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
            values.append(float(done.stdout))
    plain = statistics.median(peaks.pop("plain"))
    rows = []
    for detector, values in peaks.items():
        ratio = statistics.median(values) / plain
        verdict = "pass" if ratio <= MEMORY_BAR else "MISS"
        rows.append(Memory(name, detector, plain, statistics.median(values), ratio, verdict))
    return rows


# -- report ------------------------------------------------------------------------------------------------------------


def print_figures(figures: list[Figure]) -> None:
    for f in figures:
        unit = f"{f.step_us:8.0f} us" if f.step_us < 10_000 else f"{f.step_us / 1000:8.1f} ms"
        bar = "" if f.bar is None else f"<= {f.bar:.2f}  {f.verdict}"
        print(
            f"{f.workload:12} {unit}  {f.detector:18} {f.ratio:6.3f}  [{f.low:.3f}, {f.high:.3f}]"
            f"  p15 {f.ratio_p15:6.3f}  wall {f.ratio_wall:6.3f}  {bar}",
            flush=True,
        )


def print_memory(rows: list[Memory]) -> None:
    for m in rows:
        print(f"{m.workload:12} {m.detector:18} {m.plain_mib:8.0f} {m.watched_mib:8.0f}  {m.ratio:.3f}  {m.verdict}")


def environment() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def names(text: str, allowed: list[str]) -> list[str]:
    """A comma-separated list of known names."""
    given = [name.strip() for name in text.split(",")]
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(allowed)}")
    return given


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The cost of the watch, as a ratio to the plain loop.")
    parser.add_argument("--workloads", type=lambda text: names(text, list(WORKLOADS)), default=list(WORKLOADS))
    parser.add_argument("--detectors", type=lambda text: names(text, list(DETECTORS)), default=list(DETECTORS))
    parser.add_argument("--quick", action="store_true", help="a fifth of the blocks")
    parser.add_argument("--memory", action="store_true", help="peak memory too (Linux)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--peak-of", nargs=2, metavar=("WORKLOAD", "DETECTOR"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    if given.peak_of:
        run_for_memory(*given.peak_of)
        return
    watched = [d for d in given.detectors if d != "plain" and d not in PEERS]
    figures: list[Figure] = []
    passages: list[Passage] = []
    memory: list[Memory] = []
    print(json.dumps(environment()))
    print("\nratio to the plain loop: median [90 % interval]")
    for name in given.workloads:
        workload = WORKLOADS[name]
        rounds = max(workload.rounds // 5, 7) if given.quick else workload.rounds
        fresh = figures_of(name, given.detectors, rounds)
        print_figures(fresh)
        figures += fresh
        passages += [passage_of(name, d, 7 if given.quick else 15) for d in watched if applies(d, workload)]
    print("\nonce per region, us: entered and left empty; around one step, without the step")
    for p in passages:
        print(f"{p.workload:12} {p.detector:18} {p.empty_us:8.0f} {p.around_step_us:10.0f}")
    if given.memory:
        print(f"\npeak memory, MiB: plain, watched, <= {MEMORY_BAR:.2f}")
        for name in given.workloads:
            rows = memory_of(name, [d for d in watched if applies(d, WORKLOADS[name])], 1 if given.quick else 3)
            print_memory(rows)
            memory += rows
    missed = sum(f.verdict.startswith("MISS") for f in figures) + sum(m.verdict == "MISS" for m in memory)
    print(f"\n{missed} of {sum(f.bar is not None for f in figures) + len(memory)} figures over their bar")
    if given.json:
        tables: dict[str, Sequence[Figure | Passage | Memory]] = {
            "figures": figures,
            "passages": passages,
            "memory": memory,
        }
        report = {"environment": environment(), **{name: [asdict(r) for r in rows] for name, rows in tables.items()}}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
