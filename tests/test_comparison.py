"""The programs that the comparison with other tools runs: broken ones break, mended ones are healthy."""

from __future__ import annotations

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
