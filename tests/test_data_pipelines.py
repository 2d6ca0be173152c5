"""Broken pipelines are found at their lines, their mended twins and sound ones that look dangerous are left alone."""

from __future__ import annotations

import importlib.util
import linecache
from pathlib import Path

import pytest

from pytest_nanstab.checks.pipelines import pipeline_findings

FOLDER = Path(__file__).parent / "data_pipelines"
PAIRS, SOUND = (sorted((FOLDER / kind).glob("*.py")) for kind in ("pairs", "sound"))
# Where another line than the declared one is named, which as well can be called the culprit: the line before or after
# it, the call around it, or the line of the test where none of the user's lines computed anything.
ELSEWHERE = {
    "ad_click_rate",
    "cargo_track",
    "decibel_floor",
    "dict_stats_both_parts",
    "fx_log_returns",
    "glucose_repair",
    "held_regression",
    "housing_split",
    "idf_counts_before_check",
    "leak_minmax_dict",
    "log_lines_surrogateescape",
    "nested_top_level_only",
    "node_repair",
    "normalise_titles",
    "order_packer",
    "order_records",
    "polars_std_one_row",
    "sk_log_negative",
    "stats_before_split",
    "stream_first_item_only",
    "survey_centering",
    "weather_records",
}
# Finite, and legal by all that is seen from outside: a cast that wraps around before a check, so that a number out of
# range becomes another in range; and a rounding that only parallel vectors meet.
NOT_SEEN = {"bond_angles", "vibration_counts", "weld_labels"}


def loaded(path):
    if "polars" in path.read_text(encoding="utf-8"):
        pytest.importorskip("polars")
    spec = importlib.util.spec_from_file_location(f"data_pipelines_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def findings(module, *fixed):
    sample = module.sample()
    holds = getattr(module, "HOLDS", False)
    pipeline = module.build(*fixed, sample) if holds else module.build(*fixed)
    return pipeline_findings(pipeline, sample, policy=module.POLICY, **module.KWARGS)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_broken_pipeline_is_found_at_its_line(path):
    """Something gets through, and the finding names the line that let it."""
    module = loaded(path)
    found = findings(module, False)
    assert bool(found) == (path.stem not in NOT_SEEN)
    lines = [linecache.getline(str(path), int(finding.source.rpartition(":")[2])) for finding in found]
    if found and path.stem not in ELSEWHERE:
        assert any(module.CULPRIT in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_mended_pipeline_is_left_alone(path):
    """The twin handles every corruption as its policy says."""
    assert findings(loaded(path), True) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.stem)
def test_sound_pipeline_is_left_alone(path):
    """It looks dangerous, and is not."""
    assert findings(loaded(path)) == []
