"""How long a failure takes to explain, beside the test's own run.

    python benchmarks/explaining.py                every program of the gallery, and a few larger models

Every failing test is timed in one run with the marker (explained by a rerun) and in one under --nanstab (explained on
the spot): seconds of its own call phase, seconds between the failure and its report. The bar is five times the test's
own run plus a second.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

GALLERY = Path(__file__).parent.parent / "tests" / "gallery"
LARGER = """
import torch
from torch import nn

def train(model, batch, steps, bad):
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for step in range(1, steps + 1):
        out = model(batch)
        loss = torch.sqrt(out.pow(2).sum(-1) * (0.0 if step == bad else 1.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

def layers(width, depth):
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())])

def test_mlp_300_steps(): train(layers(64, 3), torch.randn(32, 64), 300, 295)
def test_mlp_3000_steps(): train(layers(64, 3), torch.randn(32, 64), 3000, 2995)
def test_wide_10_steps(): train(layers(1024, 10), torch.randn(16, 1024), 10, 8)
def test_transformer():
    layer = nn.TransformerEncoderLayer(128, 4, batch_first=True)
    train(nn.TransformerEncoder(layer, 4), torch.randn(8, 32, 128), 20, 18)
def test_conv():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(2))
    train(model, torch.randn(16, 3, 32, 32), 20, 18)
"""


class Stopwatch:
    """The seconds of each failing test's call phase, and those between its end and its report."""

    def __init__(self, *, mark: bool) -> None:
        self.mark = mark
        self.seconds: dict[str, tuple[float, float]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        if self.mark:
            item.add_marker("nanstab")

    # Inside the plugin's own wrapper, which explains before it hands on.
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call) -> Generator[None, object, object]:
        explained = time.time() - call.stop
        report = yield
        if call.when == "call" and report.failed:
            self.seconds[item.nodeid.rpartition("/")[2]] = call.duration, explained
        return report


def timed(files: list[str], *options: str, mark: bool = False) -> dict[str, tuple[float, float]]:
    watch = Stopwatch(mark=mark)
    usual = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=no", "--no-header", "-o", "testpaths="]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main([*usual, *options, *files], plugins=[watch])
    return watch.seconds


def show(title: str, rows: list[tuple[str, float, float]]) -> None:
    over = [row for row in rows if row[2] > 5 * row[1] + 1]
    print(f"\n{title}: {len(rows)} failures, {len(over)} over five times the run plus a second")
    print(f"  median {statistics.median(e for _, _, e in rows) * 1e3:.0f} ms, the longest:")
    for name, run, explained in sorted(rows, key=lambda row: -row[2])[:8]:
        print(f"  {name:60.60} run {run:7.3f} s  explained in {explained:7.3f} s  x{explained / max(run, 1e-9):.1f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        larger = Path(folder) / "test_larger.py"
        larger.write_text(LARGER, encoding="utf-8")
        files = [str(path) for path in sorted(GALLERY.glob("*_*.py"))] + [str(larger)]
        timed(files, "--nanstab")  # everything is imported and warm afterwards
        rerun = timed(files, mark=True)
        plain = timed(files, "--nanstab", "-o", "nanstab_explain=off")
        local = timed(files, "--nanstab")
    show("marked, explained by a rerun", [(name, run, explained) for name, (run, explained) in rerun.items()])
    on_the_spot = [(name, plain[name][0], max(run - plain[name][0], 0.0)) for name, (run, _) in local.items()]
    show("under --nanstab, explained on the spot", on_the_spot)


if __name__ == "__main__":
    main()
