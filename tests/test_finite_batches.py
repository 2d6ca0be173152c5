"""`assert_finite_batches`: what is wrong in which batch, field, row and column, and what is not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_nanstab import NonFiniteError, StabilityError, assert_finite_batches
from pytest_nanstab.checks.data import survey_batches, walk

NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a TensorSpec says about values."""

    min_value: float | None = None
    max_value: float | None = None
    allow_nan: bool = False
    allow_infinity: bool = False
    pad_value: float | None = None
    ignore_index: int | None = None


def rows(count=12, width=3):
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width)


def loader(x, y=None, batch_size=4):
    return DataLoader(TensorDataset(x, torch.zeros(len(x)) if y is None else y), batch_size=batch_size)


def failure(batches, **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_finite_batches(batches, **kwargs)
    return caught.value


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_value_is_named_by_batch_field_row_and_column(bad):
    """One bad value in a loader: the finding has its batch from 1 and its place from 0; the clean loader passes."""
    x = rows()
    assert_finite_batches(loader(x))
    x[9, 2] = bad
    error = failure(loader(x))
    assert isinstance(error, NonFiniteError)
    (finding,) = error.findings
    assert (finding.kind, finding.phase) == ("bad-data", "data")
    evidence = finding.evidence
    assert (evidence["batch"], evidence["field"]) == (3, "0")
    assert (evidence["rows"], evidence["columns"], evidence["first_index"]) == ([1], [2], [1, 2])
    word = "NaN" if math.isnan(bad) else "Inf"
    assert str(error).splitlines()[0] == f"{word} in batch 3, field 0 at [1, 2]"
    assert "test_finite_batches.py:" in str(finding.source)


def test_all_faults_are_found_in_one_pass():
    """Faults in several batches and fields come together, with totals per field."""
    x, y = rows(), torch.zeros(12)
    x[0, 0], x[11, 1], y[5] = NAN, INF, NAN
    findings = failure(loader(x, y)).findings
    assert [(f.evidence["batch"], f.evidence["field"]) for f in findings] == [(1, "0"), (2, "1"), (3, "0")]
    assert "0: bad in 2 of 3 batches" in findings[0].evidence["note"]


def test_faults_are_bounded_and_counted():
    """Only max_faults are described, all are counted, and the walk goes on to the end."""
    batches = [torch.tensor([NAN])] * 50
    findings = failure(batches, max_faults=5).findings
    assert len(findings) == 5
    assert "50 faults in all, the first 5 are described" in findings[0].evidence["note"]
    assert "batch: bad in 50 of 50 batches" in findings[0].evidence["note"]


def test_max_batches_bounds_the_walk():
    """Later batches are not looked at, nor fetched without end."""
    pulled = []

    def endless():
        while True:
            pulled.append(1)
            yield torch.ones(2) if len(pulled) < 5 else torch.tensor([NAN])

    assert_finite_batches(endless, max_batches=4)
    assert len(pulled) == 4
    pulled.clear()
    failure(endless, max_batches=5)


def test_time_bound_leaves_the_rest():
    """`walk` stops when its time is over, after at least one batch."""
    batches = [torch.tensor([NAN]), torch.tensor([NAN])]
    assert len(walk(batches, seconds=0.0)) == 1
    assert len(walk(batches)) == 2
    assert survey_batches(batches, seconds=0.0).complete is False
    assert survey_batches(batches).complete is True


@pytest.mark.parametrize(
    "empty", [[], iter(()), list, DataLoader(TensorDataset(torch.empty(0, 2)))], ids=lambda empty: type(empty).__name__
)
def test_empty_loader_is_an_error(empty):
    """A check of nothing does not pass."""
    with pytest.raises(ValueError, match="batches is empty: nothing was checked"):
        assert_finite_batches(empty)


def test_loader_without_numbers_is_an_error():
    """Batches of text alone are nothing to check."""
    with pytest.raises(ValueError, match="no number in any of 2 batches"):
        assert_finite_batches([["a"], ["b"]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": torch.ones(3)}, TypeError, "got one Tensor; put a single batch into a list"),
        ({"batches": {"x": torch.ones(3)}}, TypeError, "got one dict"),
        ({"batches": 3}, TypeError, "batches must be an iterable or a callable that returns one, got int"),
        ({"batches": [torch.ones(1)], "max_batches": 0}, ValueError, "max_batches must be 1 or more, got 0"),
        ({"batches": [torch.ones(1)], "max_faults": True}, TypeError, "max_faults must be a whole number, got True"),
        ({"batches": [torch.ones(1)], "domain": 3}, TypeError, "domain must hold TensorSpecs shaped like a batch"),
        ({"batches": [{"x": torch.ones(1)}], "domain": {"y": Spec()}}, ValueError, "domain names 'y', .* are x"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    """What was given and what is allowed, at once."""
    with pytest.raises(error, match=message):
        assert_finite_batches(**arguments)


def test_domain_range_is_checked_for_floats_and_integers():
    """A value outside its spec is a fault, a value on the bound is not."""
    domain = {"x": Spec(min_value=0.1, max_value=1.0), "token": Spec(min_value=0, max_value=9)}
    good = {"x": torch.tensor([0.1, 1.0]), "token": torch.tensor([0, 9])}
    assert_finite_batches([good], domain=domain)
    assert_finite_batches([{**good, "x": good["x"].bfloat16()}], domain=domain)
    assert_finite_batches([{**good, "x": good["x"].numpy()}], domain=domain)
    error = failure([good, {"x": torch.tensor([0.5, 3.0]), "token": torch.tensor([10, -1])}], domain=domain)
    assert not isinstance(error, NonFiniteError)
    seen = [
        (f.evidence["batch"], f.evidence["field"], f.evidence["count"], f.evidence["value"]) for f in error.findings
    ]
    assert seen == [(2, "x", 1, 3.0), (2, "token", 2, 10)]


def test_nan_comes_before_ranges():
    """A value out of range before a NaN does not hide that the failure is about NaN."""
    error = failure([torch.tensor([5.0]), torch.tensor([NAN])], domain=Spec(min_value=0, max_value=1))
    assert isinstance(error, NonFiniteError)
    assert [f.evidence["batch"] for f in error.findings] == [2, 1]


def test_domain_allows_what_it_says():
    """allow_nan and allow_infinity open their field, padding and ignored targets are inside."""
    batch = (torch.tensor([NAN, 0.5]), torch.tensor([-INF, 0.0]), torch.tensor([-100, 3, 7]), torch.tensor([-1.0, 2.0]))
    domain = (
        Spec(min_value=0, max_value=1, allow_nan=True),
        Spec(max_value=1, allow_infinity=True),
        Spec(min_value=0, max_value=9, ignore_index=-100),
        Spec(min_value=0, max_value=9, pad_value=-1.0),
    )
    assert_finite_batches([batch], domain=domain)
    assert len(failure([batch], domain=(Spec(), Spec(), Spec(min_value=0), Spec(min_value=0))).findings) == 4


def test_additive_mask_is_legal_and_other_infinities_are_not():
    """A field named as a mask may hold 0 and -inf only; log(0) in a feature is a fault."""
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -INF)
    assert_finite_batches([{"attn_mask": mask}])
    failure([{"features": mask}])
    failure([{"attn_mask": mask + 1}])
    failure([{"attn_mask": -mask}])


def test_object_arrays_and_missing_values_are_faults():
    """None in an object array is a gap; a clean object array is only a note."""
    clean = [np.array([1.0, 2.0], dtype=object)]
    assert survey_batches(clean).notes == ["batch has dtype object"]
    assert_finite_batches(clean)
    failure([np.array([1.0, None], dtype=object)])
    failure([pd.DataFrame({"when": pd.to_datetime(["2020-01-01", None]), "x": [1.0, 2.0]})])


def test_gaps_among_texts_are_no_numbers():
    """A missing text beside good numbers is left to the pipeline that encodes it."""
    assert_finite_batches([pd.DataFrame({"name": ["a", None], "x": [1.0, 2.0]})])
    assert_finite_batches([{"name": np.array(["a", None], dtype=object), "x": torch.ones(2)}])


def test_constant_columns_are_notes():
    """A column with one value in all batches is told and does not fail; others and repeated rows are silent."""
    x = rows()
    x[:, 1] = 7.0
    survey = survey_batches(loader(x))
    assert survey.findings == []
    assert survey.notes == ["0: constant in columns 1"]
    assert survey_batches(loader(rows())).notes == []
    assert survey_batches([torch.ones(4, 3)]).notes == []


def test_columns_of_changing_width_are_no_columns():
    """Padded widths differ from batch to batch and say nothing about columns."""
    assert survey_batches([torch.ones(2, 3), torch.tensor([[1.0, 2.0]])]).notes == []


def test_frames_are_read_by_column():
    """Chunks of a CSV file: the field is the column."""
    frame = pd.DataFrame({"age": [1.0, 2.0, 3.0, NAN], "name": list("abcd")})
    (finding,) = failure([frame.iloc[:2], frame.iloc[2:]]).findings
    assert (finding.evidence["batch"], finding.evidence["field"], finding.evidence["rows"]) == (2, "age", [1])


def test_z_score_of_a_constant_column_is_found():
    """0/0 in the usual normalisation: every row of that column is NaN, and with an epsilon it is not."""
    x = rows()
    x[:, 1] = 7.0
    deviation = x.std(0)
    (finding, *_) = failure(loader((x - x.mean(0)) / deviation)).findings
    assert finding.evidence["columns"] == [1]
    assert finding.evidence["rows"] == [0, 1, 2, 3]
    assert_finite_batches(loader((x - x.mean(0)) / deviation.clamp(min=1e-6)))
