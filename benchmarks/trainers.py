"""What the watch costs inside Lightning's Trainer, beside Lightning's own `detect_anomaly=True`.

    python benchmarks/trainers.py             every workload, some minutes
    python benchmarks/trainers.py --quick     a look

Each figure is the median of the ratios of thread CPU time of one `Trainer.fit`, detector and plain fit side by side in
random order; what a fit costs before its first step is in both.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import lightning
import torch
from overhead import interval, options_of
from torch import nn
from torch.utils.data import DataLoader
from workloads import WORKLOADS, Loop, build

from pytest_nanstab.watching.region import Region

STEPS = {"mlp_adam": 150, "conv": 8, "lstm": 8, "transformer": 4}


class Training(lightning.LightningModule):
    """A workload's loop as Lightning has it."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = [loop]  # hidden from the module tree, which has the model once
        self.model = loop.model

    def training_step(self, _batch, _index):
        loop = self.loop[0]
        return nn.functional.mse_loss(self.model(loop.batch), loop.target)

    def configure_optimizers(self):
        return self.loop[0].optimizer


def seconds(training: Training, steps: int, context: AbstractContextManager[object], *, anomaly: bool) -> float:
    """Thread CPU time of one fit."""
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "barebones"), False
    )
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, detect_anomaly=anomaly, **quiet)
    data = DataLoader(range(steps), batch_size=1)
    with context:
        began = time.thread_time()
        trainer.fit(training, data)
        return time.thread_time() - began


def ways() -> dict[str, tuple[Callable[[], AbstractContextManager[object]], bool]]:
    return {
        "plain": (nullcontext, False),
        "zero-change": (lambda: Region(options_of("zero-change")), False),
        "explicit": (lambda: Region(options_of("explicit")), False),
        "detect_anomaly=True": (nullcontext, True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the watch inside Lightning, as a ratio.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the fits")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    chance, rounds = random.Random(0), 3 if quick else 20
    for name, steps in STEPS.items():
        training = Training(build(WORKLOADS[name]))
        ratios: dict[str, list[float]] = {way: [] for way in ways()}
        for turn in range(rounds + 1):
            for way, (context, anomaly) in chance.sample(sorted(ways().items()), len(ways())):
                pair = {}
                for watched in chance.sample((False, True), 2):
                    here = context() if watched else nullcontext()
                    pair[watched] = seconds(training, steps, here, anomaly=anomaly and watched)
                if turn:
                    ratios[way].append(pair[True] / pair[False])
        for way, values in ratios.items():
            low, high = interval(values)
            print(f"{name:12} {way:20} {statistics.median(values):6.3f}  [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
