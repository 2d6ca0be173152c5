"""The process group of the programs that several ranks run, and what each rank tells about them."""

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session", autouse=True)
def group():
    dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()


def pytest_runtest_logreport(report):
    folder = os.environ.get("NANSTAB_RANKS")  # set where `tests/test_ranks.py` launches the ranks
    if folder is None:
        return
    if report.when == "call" or (report.when == "setup" and not report.passed):
        text = "" if report.passed else str(report.longrepr)
        told = {"test": report.nodeid.rpartition("::")[2], "outcome": report.outcome, "text": text}
        with Path(folder, f"rank-{os.environ['RANK']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
