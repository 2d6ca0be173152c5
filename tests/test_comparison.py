"""The programs that the comparison with other tools runs: broken ones break, mended ones are healthy."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import comparison  # noqa: E402
import defects  # noqa: E402

# What no number shows that is not finite, or not on this data, or only in evaluation.
SILENT = {
    "vanishing",
    "clip_too_early",
    "clip_scaled",
    "old_head",
    "unit_normal",
    "forgotten",
    "hidden_constant",
    "eval_branch",
    "lost_counter",
}


@pytest.mark.parametrize("name", defects.DEFECTS)
def test_programs(name):
    """Ten lines of `isfinite` find half of them, and accuse no mended one."""
    assert not comparison.by_hand(defects.build(name, fixed=True)).failed
    assert comparison.by_hand(defects.build(name, fixed=False)).failed is (name not in SILENT)


@pytest.mark.parametrize("name", defects.DEFECTS)
def test_culprits_are_marked(name):
    """Each program but that with bad data has a line to name."""
    assert bool(comparison.culprits(name)) is (name != "nan_row")


def test_the_page_has_a_row_of_every_program():
    page = (REPOSITORY / "docs" / "comparison.md").read_text("utf-8")
    assert not [make.__doc__ for make in defects.DEFECTS.values() if f"| {make.__doc__.rstrip('.')} |" not in page]


def rows_of(page, *, cells):
    """The rows of a page's tables by their first cell without its markup, the first of each; some cells of them."""
    rows = {}
    for line in (REPOSITORY / "docs" / page).read_text("utf-8").splitlines():
        if line.startswith("| "):
            first, *others = [cell.strip() for cell in line.strip("| ").split(" | ")]
            rows.setdefault(re.sub("[`*]", "", first), others[cells])
    return rows


def test_the_page_has_the_costs_that_were_measured():
    """Adam and SGD of the tiny MLP, as the page about costs has them."""
    measured, shown = rows_of("explanation/cost.md", cells=slice(0, 2)), rows_of("comparison.md", cells=slice(-1, None))
    for row, source in {
        "torch.autograd.detect_anomaly": "torch's detect_anomaly",
        "isfinite on every gradient, by hand": "isfinite on every gradient, by hand",
        "transformers' DebugUnderflowOverflow": "transformers' DebugUnderflowOverflow",
        "--nanstab on an ordinary test": "--nanstab on an ordinary test",
        "a marked test": "marked test, gradients judged at every step",
    }.items():
        assert shown[row] == [" / ".join(measured[source])], row


def test_marks():
    seen, line = comparison.Seen, min(comparison.culprits("adam_eps"))
    named = seen(True, text=f"NaN at defects.py:{line}")
    assert comparison.mark("adam_eps", named, seen()) == "L"
    assert comparison.mark("adam_eps", seen(True, text="NaN"), seen()) == "F"
    assert comparison.mark("adam_eps", named, seen(True)) == "!"
    assert comparison.mark("adam_eps", seen(), seen()) == "."
    assert comparison.mark("adam_eps", seen(warned=True), seen()) == "w"
    assert comparison.mark("adam_eps", seen(warned=True), seen(warned=True)) == "."
    assert comparison.mark("adam_eps", seen(None), seen(None)) == "-"
