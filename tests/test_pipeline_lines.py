"""Whose line it was: a blind check, a repair that misses something, a formula, a cast, the line that kept something."""

from __future__ import annotations

import linecache
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from pytest_nanstab import StabilityError, assert_handles_nonfinite


def culprit(pipeline, sample, **kwargs):
    """The source line that the finding names, without its indentation."""
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, sample, **kwargs)
    file, _, number = caught.value.findings[0].source.rpartition(":")
    return linecache.getline(file, int(number)).strip()


def matrix():
    return np.random.default_rng(0).normal(5.0, 1.0, size=(6, 3))


def blind_check(x):
    x = np.asarray(x, dtype=float)
    if x.ndim != 2:
        raise ValueError("two dimensions are needed")
    if (x > 1e6).any():
        raise ValueError("too large")
    return x / 2


def blind_predicate(x):
    bad = np.isnan(x)
    message = "NaN"
    if bad.any():
        raise ValueError(message)
    return x * 2


def unchecked(x):
    copy = x
    shifted = copy - 1
    return shifted.astype(np.float32)


def leaky_repair(x):
    x = np.where(np.isnan(x), 0.0, x)
    x = x.clip(max=1e6)
    return x / 3


def formula(x):
    if not (np.abs(x) < 1e6).all():
        raise ValueError("not usable")
    kept = x.copy()
    logs = np.log(x)
    return logs + kept * 0


def with_block(x):
    if not (np.abs(x) < 1e6).all() or not len(x):
        raise ValueError("not usable")
    with np.errstate(all="ignore"):
        scale = x.std(axis=0)
        return (x - x.mean(axis=0)) / scale


def helper_divides(x):
    if not (np.abs(x) < 1e6).all() or not len(x):
        raise ValueError("not usable")
    return np.stack([divided(column) for column in x.T], axis=1)


def divided(column):
    lowest, highest = column.min(), column.max()
    with np.errstate(all="ignore"):
        return (column - lowest) / (highest - lowest)


def swallowing(x):
    mask = ~np.isfinite(x)
    cleaned = np.where(mask, 0.0, x)
    return cleaned * 2


def overflowing_cast(x):
    if not np.isfinite(x).all():
        raise ValueError("not finite")
    centred = x - x.mean(axis=0)
    with np.errstate(over="ignore"):
        return centred.astype(np.float32)


@pytest.mark.parametrize(
    ("pipeline", "policy", "line"),
    [
        (blind_check, "reject", "if (x > 1e6).any():"),
        (blind_predicate, "reject", "bad = np.isnan(x)"),
        (unchecked, "reject", "shifted = copy - 1"),
        (leaky_repair, "sanitize", "x = x.clip(max=1e6)"),
        (formula, "reject", "logs = np.log(x)"),
        (with_block, "reject", "return (x - x.mean(axis=0)) / scale"),
        (helper_divides, "reject", "return (column - lowest) / (highest - lowest)"),
        (swallowing, "reject", "cleaned = np.where(mask, 0.0, x)"),
        (overflowing_cast, "reject", "return centred.astype(np.float32)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_line_to_look_at(pipeline, policy, line):
    """The first of the user's lines that turned a bad input into a bad output, or let it pass."""
    assert culprit(pipeline, matrix(), policy=policy) == line


def test_lines_of_objects_and_lambdas():
    """Attributes of the object are followed like names; a lambda is one line."""

    class Scaler:
        scale = 0.0

        def __call__(self, x):
            self.centred = x - 5
            return self.centred / 2

    assert culprit(Scaler(), matrix(), policy="reject") == "self.centred = x - 5"
    halve = lambda x: x / 2  # noqa: E731
    assert culprit(halve, matrix(), policy="reject").startswith("halve = lambda x: x / 2")


def test_frames_and_tensors_are_followed():
    """Columns of a frame, then a tensor."""

    def load(frame):
        frame = frame.assign(ratio=frame["a"] / frame["b"])
        values = frame.to_numpy()
        return torch.from_numpy(values)

    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0]})
    line = culprit(load, frame, policy="reject", corruptions=["zero"])
    assert line == 'frame = frame.assign(ratio=frame["a"] / frame["b"])'


def test_a_library_stage_is_named():
    """Without a line of the user's: the object that gave the bad value back, and the line of the call."""
    pipeline = make_pipeline(FunctionTransformer(np.log), StandardScaler())
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, matrix(), policy="reject", corruptions=["negative"])
    finding = caught.value.findings[0]
    assert finding.evidence["stage"] == "FunctionTransformer"
    assert finding.source.startswith("tests/test_pipeline_lines.py:")


def test_an_exception_names_its_own_line():
    """What was raised, and where."""

    def crashing(x):
        table = {0: 1.0}
        return x * table[int(np.isnan(x).sum())]

    assert culprit(crashing, matrix(), policy="reject", corruptions=["NaN"]).startswith("return x * table[")


def test_other_tracers_are_put_back():
    """A debugger or a coverage tool that traces goes on tracing."""
    events = []

    def tracer(frame, event, _arg):
        events.append(event)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        culprit(blind_check, matrix(), policy="reject")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


REPORT = """\
    test_it.py
      4 | def load(x):
      5 |     x = np.asarray(x, dtype=float)
    > 6 |     if np.isnan(x).any():
      7 |         raise ValueError("missing")
      8 |     return (x - x.mean(0)) / x.std(0)

  phase     data
  tensor    output, float64[6, 3]: 6 of 18 values are NaN, first at [0, 0]
  rows      0, 1, 2, 3, 4, 5
  columns   0
  range     -1.634 to 2.108
  table     corruption             tried  outcome
            +Inf                       8  let through: NaN, row 0, column 0
            -Inf                       8  let through: NaN, row 0, column 0
            1e5 (beyond float16)       1  let through: NaN, row 0, column 1
            1e39 (beyond float32)      1  let through: NaN, row 0, column 1
            constant                   4  let through: NaN, row 0, column 0
            single row                 1  let through: NaN, row 0, column 0
            NaN and 1 more            13  refused
            1e5 and 6 more            10  finite
  policy    reject
  tried     46: 23 let through, 13 refused, 10 finite
  cause     +Inf in element [3, 0]: let through: NaN, row 0, column 0
  remedy    raise ValueError naming row and column where a value is not finite

test_it.py:6: NonFiniteError"""


def test_the_report_in_80_columns(pytester, monkeypatch):
    """The whole block, as a user sees it."""
    monkeypatch.setenv("COLUMNS", "80")
    pytester.makepyfile(
        test_it="""
        import numpy as np
        from pytest_nanstab import assert_handles_nonfinite

        def load(x):
            x = np.asarray(x, dtype=float)
            if np.isnan(x).any():
                raise ValueError("missing")
            return (x - x.mean(0)) / x.std(0)

        def test_load():
            sample = np.random.default_rng(0).normal(size=(6, 3))
            assert_handles_nonfinite(load, sample, policy="reject")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-Wignore")
    text = result.stdout.str()
    assert "NonFiniteError: 23 of 46 corruptions not refused: +Inf in element [3, 0]" in text
    assert REPORT in text
    assert max(map(len, REPORT.splitlines())) <= 80
