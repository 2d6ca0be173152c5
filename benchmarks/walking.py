"""What walking a whole loader costs, as a ratio to iterating it alone.

    OMP_NUM_THREADS=1 python benchmarks/walking.py

Method: one process, one torch thread. A pass over the loader alone and a pass with `survey_batches` take turns, so a
machine that slows down slows both. A figure is the median of the paired ratios of thread CPU time, with the smallest
and largest quartile beside it; "itself" is the loader against itself, what the machine cannot resolve. "with
statistics" is what a suite does when it has batches and eval_batches to compare. The bar is 1.3.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pytest_nanstab.checks.data import survey_batches
from pytest_nanstab.strategies import TensorSpec

ROUNDS = 41


class Images(Dataset[tuple[Tensor, int]]):
    """Stored bytes, turned into normalised floats one by one, as torchvision's ToTensor and Normalize do."""

    def __init__(self, count: int) -> None:
        self.bytes = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.bytes[index].float().div_(255).sub_(0.5).div_(0.25), index % 10


def table(columns: int, batch: int, *, constant: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    count = 40 * batch
    x = torch.randn(count, columns)
    if constant:
        x[:, 1] = 7.0
    return DataLoader(TensorDataset(x, torch.randint(0, 10, (count,))), batch_size=batch)


LOADERS: dict[str, Callable[[], Iterable[object]]] = {
    "20 columns, batch 64": lambda: table(20, 64),
    "50 columns, batch 64": lambda: table(50, 64),
    "20 columns, batch 256": lambda: table(20, 256),
    "50 columns, batch 256": lambda: table(50, 256),
    "one of 50 constant": lambda: table(50, 256, constant=True),
    "images 3x64x64, batch 32": lambda: DataLoader(Images(320), batch_size=32),
}


def seconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def iterate(loader: Iterable[object]) -> None:
    for _ in loader:
        pass


def domain_of(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[TensorSpec, TensorSpec]:
    """Bounds that nothing breaks."""
    x, _ = next(iter(loader))
    shape = ("batch", *x.shape[1:])
    values = TensorSpec(shape=shape, min_value=-100.0, max_value=100.0)
    return values, TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=9)


def ratios(loader: Iterable[object], call: Callable[[], object]) -> list[float]:
    """Sorted ratios of a call to the iteration beside it."""
    call()
    found = []
    for turn in range(ROUNDS):
        pair = [lambda: iterate(loader), call]
        times = [seconds(one) for one in (pair if turn % 2 else reversed(pair))]
        alone, walked = times if turn % 2 else reversed(times)
        found.append(walked / alone)
    return sorted(found)


def shown(found: list[float]) -> str:
    return f"{statistics.median(found):5.2f} ({found[ROUNDS // 4]:.2f}-{found[-ROUNDS // 4]:.2f})"


def row(name: str) -> str:
    loader = LOADERS[name]()
    domain = domain_of(loader)
    calls: list[Callable[[], object]] = [
        lambda: iterate(loader),
        lambda: survey_batches(loader),
        lambda: survey_batches(loader, domain=domain),
        lambda: survey_batches(loader, domain=domain, statistics=True),
    ]
    return f"{name:26}" + "".join(f"{shown(ratios(loader, call)):>20}" for call in calls)


def main() -> None:
    torch.set_num_threads(1)
    print(f"ratio to iterating the loader alone; median (quartiles) of {ROUNDS} pairs")
    titles = ("itself", "walked", "with a domain", "with statistics")
    print(f"{'loader':26}" + "".join(f"{title:>20}" for title in titles))
    for name in LOADERS:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
