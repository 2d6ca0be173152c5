"""`assert_finite_batches`: what is wrong in which batch, field, row and column, and what is not."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_nanstab import NonFiniteError, StabilityError, assert_finite_batches, progress
from pytest_nanstab.checks.data import notes_on_splits, survey_batches, walk
from pytest_nanstab.strategies import TensorSpec
from pytest_nanstab.suite import checks

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


def endless(bad=0):
    for number in itertools.count(1):
        yield torch.tensor([NAN]) if bad and number % bad == 0 else torch.ones(1)


def test_a_stream_without_end_is_not_walked_for_ever():
    """Nor is it called fine: the first 10,000 batches are looked at, and faults among them told."""
    with pytest.raises(ValueError, match=r"no len\(\) and no end within 10000 batches: say with max_batches=\.\.\."):
        assert_finite_batches(endless)
    first = failure(endless(bad=4000)).findings[0]
    assert first.evidence["batch"] == 4000
    told = "batches: walking was broken off after 10000, since they have no len() and no end"
    assert told in first.evidence["note"]
    assert_finite_batches(endless(bad=4000), max_batches=3999)
    assert_finite_batches(itertools.islice(endless(), 9_999))


def test_a_long_loader_with_a_length_is_walked_to_its_end():
    long = [torch.ones(1)] * 12_000
    assert_finite_batches(long)
    assert failure([*long, torch.tensor([NAN])]).findings[0].evidence["batch"] == 12_001


def test_rows_and_columns_that_are_not_listed_are_counted():
    bad = torch.zeros(30, 20)
    bad[2:] = NAN
    evidence = failure([bad]).findings[0].evidence
    assert (evidence["rows"], evidence["row_count"]) == (list(range(2, 12)), 28)
    assert (evidence["columns"], evidence["column_count"]) == (list(range(10)), 20)


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


# --- messages that say where


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ((slice(0, 3), 1), "rows 0-2, column 1 (3 of 18 values)"),
        ((slice(None), 1), "all rows, column 1 (6 of 18 values)"),
        ((2, slice(None)), "row 2, all columns (3 of 18 values)"),
        (([0, 1, 3], [0, 2, 2]), "rows 0-1, 3, columns 0, 2 (3 of 18 values)"),
        ((slice(None), slice(None)), "field 0 (18 of 18 values)"),
        ((4, 2), "field 0 at [4, 2]"),
    ],
)
def test_message_gives_rows_and_columns(bad, where):
    """Runs of rows and columns in few words, for NaN and for ranges alike."""
    x = rows(6)
    x[bad] = NAN
    assert str(failure([[x]])).splitlines()[0].endswith(where)
    x = rows(6)
    x[bad] = 1e6
    message = failure([[x]], domain=[Spec(max_value=100.0)]).findings[0].message
    assert message.startswith("out of range in batch 1, field 0")
    assert message.endswith(where)


def test_scattered_rows_are_cut():
    """Three runs are enough for a line; the evidence lists ten rows, and images have no columns."""
    x = torch.zeros(40, 2, 4, 4)
    x[::3, 0, 1, 1] = INF
    (finding,) = failure([[x]]).findings
    assert finding.message == "Inf in batch 1, field 0, rows 0, 3, 6, ... (14 of 1280 values)"
    assert finding.evidence["rows"] == [*range(0, 30, 3)]


def test_nan_does_not_hide_a_value_out_of_range():
    """Both faults of a field are told, and an allowed NaN is no reason to skip the rest."""
    x = torch.tensor([0.5, NAN, 3.0, INF])
    findings = failure([[x]], domain=[Spec(min_value=0, max_value=1)]).findings
    assert [finding.message for finding in findings] == [
        "NaN and Inf in batch 1, field 0, rows 1, 3 (2 of 4 values)",
        "out of range in batch 1, field 0 at [2]",
    ]
    assert "0: bad in 1 of 1 batches" in findings[0].evidence["note"]
    (finding,) = failure([[x]], domain=[Spec(max_value=1, allow_nan=True, allow_infinity=True)]).findings
    assert finding.evidence["count"] == 1


def test_large_finite_values_are_finite():
    """A sum that overflows is no infinity among the values; one infinity among as many is found."""
    x = torch.full((4, 3, 8, 8), 3e38)
    assert_finite_batches([[x]])
    x[3, 2, 1, 0] = INF
    assert failure([[x]]).findings[0].evidence["first_index"] == [3, 2, 1, 0]
    assert_finite_batches([[torch.full((64, 64), 6e4, dtype=torch.float16)]])


# --- budget and progress


def test_a_terminal_is_told_in_place_of_stderr(capsys, monkeypatch):
    """Where progress is shown, each batch is told to whoever shows it, and stderr stays empty."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    shown: list[list[str]] = []
    with progress.shown_by(lambda stages: shown.append(list(stages))):
        survey_batches([torch.ones(1)] * 9, clock=itertools.count().__next__)
    assert shown == [*([f"assert_finite_batches, batch {number}, faults 0"] for number in range(1, 10)), []]
    assert capsys.readouterr().err == ""


def test_progress_is_told_on_long_walks(capsys):
    """First after 5 s, then every 10 s, with the faults so far; short walks are silent."""
    batches = [torch.tensor([NAN if number == 2 else 1.0]) for number in range(30)]
    with progress.shown_by(None):  # these tests may run on a terminal themselves
        survey_batches(batches, clock=itertools.count().__next__)
    assert capsys.readouterr().err == (
        "assert_finite_batches: 5 batches in 5 s, 1 fault so far\n"
        "assert_finite_batches: 15 batches in 15 s, 1 fault so far\n"
        "assert_finite_batches: 25 batches in 25 s, 1 fault so far\n"
    )
    survey_batches(batches[:4], clock=itertools.count().__next__)
    survey_batches(batches)
    assert capsys.readouterr().err == ""


def test_time_ends_a_walk():
    """No batch is asked for after the time is over; a source that says its length is known to be complete."""
    batches = [torch.ones(1)] * 10
    survey = survey_batches(batches, seconds=4.0, clock=itertools.count().__next__)
    assert (survey.batches, survey.complete) == (4, False)
    assert survey_batches(batches, seconds=10.0, clock=itertools.count().__next__).complete
    assert survey_batches(batches, max_batches=10).complete
    assert not survey_batches(batches, max_batches=9).complete
    assert not survey_batches(iter(batches), max_batches=10).complete


# --- columns


def test_nearly_constant_columns_are_notes():
    """A range of a few float32 steps is told with its ends; one that float32 can scale is not."""
    x = rows(40)
    x[:, 1] = 1e6 + 0.0625 * torch.arange(40)
    (note,) = survey_batches(loader(x)).notes
    assert note.startswith("0: nearly constant in columns 1 (1000000.0 to 1000002.4375): under 256 float32 steps")
    x[:, 1] = 1e6 + torch.arange(40)
    assert survey_batches(loader(x)).notes == []
    years = torch.randint(2019, 2025, (40,)).float()
    assert survey_batches(loader(torch.stack([x[:, 0], years], 1))).notes == []


def test_columns_settle_without_loss():
    """A column wide in its first batch stays wide; one that widens later is no longer constant."""
    x = rows(12)
    x[:8, 1] = 7.0
    assert survey_batches(loader(x)).notes == []
    x[8:, 1] = 7.0
    assert survey_batches(loader(x)).notes == ["0: constant in columns 1"]
    assert survey_batches(loader(x), statistics=True).notes == ["0: constant in columns 1"]


def test_constant_columns_are_found_beside_declared_gaps():
    """NaN that the domain allows is no value of its own."""
    x = rows(12)
    x[:, 1] = 7.0
    x[3, 1], x[4, 0] = NAN, NAN
    for statistics in (False, True):
        survey = survey_batches([[x[:6]], [x[6:]]], domain=[Spec(allow_nan=True)], statistics=statistics)
        assert (survey.findings, survey.notes) == ([], ["0: constant in columns 1"])


def test_constant_columns_of_frames_are_named():
    """Frames have one field per column; whole numbers count, flags, dates and texts do not."""
    frame = pd.DataFrame({"age": [1.0, 2.0, 3.0, 4.0], "site": 3, "ok": True, "name": list("abcd")})
    frame["day"] = pd.Timestamp("2020-01-01")
    assert survey_batches([frame.iloc[:2], frame.iloc[2:]]).notes == ["batch: constant in columns site"]
    frame["site"] = [1, 2, 1, 2]
    assert survey_batches([frame.iloc[:2], frame.iloc[2:]]).notes == []
    assert survey_batches([frame.iloc[:1]]).notes == []


# --- dtypes and labels


def test_dtype_that_changes_is_a_fault():
    """Each foreign dtype is described once, all its batches are counted; one dtype throughout is silent."""
    x = rows(4)
    error = failure([[x], [x], [x.double()], [x.double()]])
    assert not isinstance(error, NonFiniteError)
    (finding,) = error.findings
    assert (finding.kind, finding.message) == ("bad-data", "float64 in batch 3, field 0, float32 before")
    assert "0: bad in 2 of 4 batches" in finding.evidence["note"]
    assert_finite_batches([[x.double()], [x.double()]])
    failure([[x.numpy()], [x.numpy().astype(np.float64)]])
    assert "object in batch 2" in str(failure([[np.ones(2)], [np.ones(2, dtype=object)]]))


def test_dtypes_nobody_chose_may_change():
    """Empty tensors, chunks of a frame, lists of numbers; another number of dimensions is another kind of value."""
    labels = torch.tensor([1, 2])
    assert_finite_batches([[labels], [torch.tensor([])], [labels]])
    assert_finite_batches([pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [1.5, 2.0]})])
    assert_finite_batches([{"x": pd.Series([1, 2])}, {"x": pd.Series([1.5, 2.0])}])
    assert_finite_batches([{"x": [1, 2]}, {"x": [1.5, 2.0]}])
    survey = survey_batches([[labels], [rows(4)]])
    assert survey.findings == []
    assert survey.notes == ["0 is float32 with 2 dimensions in batch 2, int64 with 1 before"]


def test_dtype_beside_the_domain_is_a_note():
    """Only where a tensor or array has another floating dtype than was declared."""
    domain = [TensorSpec(shape=("n", 3))]
    assert survey_batches([[rows(4).double()]], domain=domain).notes == ["0 is float64, the domain says float32"]
    assert survey_batches([[rows(4).half()]], domain=domain).notes == ["0 is float16, the domain says float32"]
    assert survey_batches([[rows(4)]], domain=domain).notes == []
    assert survey_batches([{"x": 1.5}], domain={"x": TensorSpec(shape=())}).notes == []


@pytest.mark.parametrize("form", [torch.tensor, np.array, list])
def test_negative_labels_are_notes(form):
    """Without a domain -1 and -100 count as skipped labels, another negative integer is told; with one it fails."""
    good = {"x": torch.ones(3), "y": form([3, -1, -100])}
    bad = {"x": torch.ones(3), "y": form([3, -7, -100])}
    assert survey_batches([good]).notes == []
    survey = survey_batches([good, bad, bad])
    assert survey.findings == []
    assert survey.notes == ["y: negative integers other than -1 and -100, -7 in batch 2: bad as labels"]
    failure([bad], domain={"y": Spec(min_value=0, max_value=9, ignore_index=-100)})


def test_negative_integers_elsewhere_are_no_labels():
    """Tables of integers, frames and single numbers."""
    assert survey_batches([{"table": torch.tensor([[-7, 3]]), "one": torch.tensor(-7)}]).notes == []
    assert survey_batches([pd.DataFrame({"balance": [-7, 3]})]).notes == []


# --- statistics of two splits


def features(seed=0, count=500, width=4):
    """Skewed columns of different sizes, as tables have them."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    return drawn.exp() * torch.arange(1, width + 1) + 100


def split_notes(train, evaluation, batch_size=32):
    surveys = [survey_batches(loader(x.float(), batch_size=batch_size), statistics=True) for x in (train, evaluation)]
    return notes_on_splits(*surveys)


def standardised(x, by, correction=0):
    return (x - by.mean(0)) / by.std(0, correction=correction)


def spanned(x, by):
    return (x - by.amin(0)) / (by.amax(0) - by.amin(0))


@pytest.mark.parametrize("correction", [0, 1])
def test_split_scaled_by_its_own_statistics_is_noted(correction):
    """The evaluation split standardised by itself is noted; by the training split's statistics it is not."""
    train, evaluation = features()[:400], features()[400:]
    (note,) = split_notes(standardised(train, train, correction), standardised(evaluation, evaluation, correction))
    assert note == (
        "eval_batches: every column of 0 has mean 0 and standard deviation 1 by itself: "
        "scaled by its own statistics, not by the training split's"
    )
    assert split_notes(train, standardised(evaluation, evaluation, correction)) == [note]
    assert split_notes(standardised(train, train, correction), standardised(evaluation, train, correction)) == []
    assert split_notes(train, evaluation) == []


def test_split_spanned_by_its_own_range_is_noted():
    """Exactly 0 to 1, or -1 to 1, in every column of the evaluation split is no chance; within the range it is."""
    train, evaluation = features()[:400], features()[400:]
    (note,) = split_notes(spanned(train, train), spanned(evaluation, evaluation))
    assert "every column of 0 spans exactly 0 to 1 by itself" in note
    (note,) = split_notes(2 * spanned(train, train) - 1, 2 * spanned(evaluation, evaluation) - 1)
    assert "spans exactly -1 to 1 by itself" in note
    assert split_notes(spanned(train, train), spanned(evaluation, train)) == []
    assert split_notes(spanned(train, train), spanned(evaluation, train).clamp(0, 1)) == []


def test_scaling_before_splitting_is_noted():
    """Statistics of both splits together show in both together, and in neither alone."""
    whole = features()
    scaled = standardised(whole, whole)
    (note,) = split_notes(scaled[:400], scaled[400:])
    assert note == (
        "batches and eval_batches: every column of 0 has mean 0 and standard deviation 1 over both, "
        "in neither alone: fitted before splitting"
    )
    order = whole.sum(1).argsort()  # the largest values in one split, the smallest in the other
    scaled = spanned(whole, whole)[order]
    (note,) = split_notes(scaled[:400], scaled[400:])
    assert "spans exactly 0 to 1 over both, in neither alone: fitted before splitting" in note


def test_healthy_splits_that_look_scaled_are_silent():
    """Evaluation on the training data, flags, designs of +-1, pixels, few rows, one column, and a split cut short."""
    train = standardised(features(), features())
    assert split_notes(train, train) == []
    assert split_notes(train[:480], train) == []  # the training loader drops its last batch
    unit = spanned(features(), features())
    assert split_notes(unit[:480], unit) == []
    generator = torch.Generator().manual_seed(1)
    flags = torch.randint(0, 2, (600, 6), generator=generator)
    assert split_notes(flags[:400], flags[400:]) == []
    design = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    assert split_notes(design.repeat(3, 1), design) == []
    pixels = torch.randint(0, 17, (600, 8), generator=generator) / 16
    assert split_notes(pixels[:400], pixels[400:]) == []
    shares = torch.randperm(101, generator=generator)[:, None].expand(101, 4) / 100  # both ends once in each column
    assert split_notes(shares[:60], shares) == []
    assert split_notes(shares[:60], shares[60:]) == []
    own = standardised(features()[400:407], features()[400:407])
    assert split_notes(train, own) == []
    single = features(width=1)
    assert split_notes(single[:400], standardised(single[400:], single[400:])) == []


def test_flags_beside_scaled_columns_do_not_hide_them():
    """One-hot columns are left as they are by most pipelines."""
    train, evaluation = features()[:400], features()[400:]
    flags = torch.randint(0, 2, (500, 2), generator=torch.Generator().manual_seed(2)).double()

    def table(x, part):
        return torch.cat([x, part], 1)

    own = table(standardised(evaluation, evaluation), flags[400:])
    assert len(split_notes(table(standardised(train, train), flags[:400]), own)) == 1


def test_statistics_are_those_of_all_rows():
    """Against numpy over everything: many batches, a shift in between, gaps, an offset that cancels digits."""
    x = features(count=5000, width=30).numpy()
    x[:, 1] += 1e9
    x[2500:, 2] += 1e4
    x[7, 3] = NAN
    survey = survey_batches([[part] for part in np.array_split(x, 37)], domain=[Spec(allow_nan=True)], statistics=True)
    moments = survey.statistics["0"].moments()
    assert moments.count.tolist() == [5000 - (column == 3) for column in range(30)]
    np.testing.assert_allclose(moments.mean, np.nanmean(x, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.squares / moments.count, np.nanvar(x, 0), rtol=1e-7)
    assert (moments.low == np.nanmin(x, 0)).all()
    assert (moments.high == np.nanmax(x, 0)).all()


def test_wide_fields_are_compared_by_some_columns():
    """More than 256 columns: statistics of evenly spread ones, constant columns are found among all."""
    x = features(width=600)
    own = standardised(x[400:], x[400:])
    assert len(split_notes(standardised(x[:400], x[:400]), own)) == 1
    own[:, 1] = 7.0
    assert survey_batches([[own]], statistics=True).notes == ["0: constant in columns 1"]


# --- the suite's item


def finite_data(batches, eval_batches=None, domain=None):
    """The verdict of a suite's item for these sources."""
    setup = SimpleNamespace(batches=batches, eval_batches=eval_batches, domain=domain)
    return checks._finite_data(SimpleNamespace(make_setup=lambda: setup), 0)


def test_item_says_that_it_did_not_see_all(monkeypatch):
    """Beyond 10 000 batches, or 60 s, a note says how far it came; a walk to the end says nothing."""
    batches = [[torch.ones(1)]] * 10_001
    verdict = finite_data(batches, batches[:3])
    assert verdict.failing == []
    assert verdict.notes == ["batches: the first 10000 batches were looked at, not all"]
    assert finite_data(batches[:10_000]).notes == []
    monkeypatch.setattr(checks, "MAX_SECONDS", 0.0)
    assert finite_data(batches[:2], batches[:1]).notes == ["batches: the first batch was looked at, not all"]


def test_item_notes_statistics_of_the_wrong_split():
    """A note and no failure; the same loader for both, and a walk that was cut short, have nothing to compare."""
    x = features().float()
    train, own = loader(standardised(x[:400], x[:400])), loader(standardised(x[400:], x[400:]))
    verdict = finite_data(train, own)
    assert verdict.failing == []
    assert len(verdict.notes) == 1
    assert verdict.notes[0].endswith("scaled by its own statistics, not by the training split's")
    assert finite_data(train, loader(standardised(x[400:], x[:400]))).notes == []
    assert finite_data(own, own).notes == []
    endless = finite_data(itertools.cycle([[torch.ones(1)]]), own)
    assert endless.notes == ["batches: the first 10000 batches were looked at, not all"]


def test_item_walks_one_loader_once():
    """The faults of a loader that serves both are told once, those of two loaders each."""
    bad = [[torch.tensor([NAN, 1.0])]]
    assert len(finite_data(bad, bad).failing) == 1
    assert len(finite_data(bad, [[torch.tensor([1.0, INF])]]).failing) == 2


def test_a_value_out_of_range_is_not_called_infinite():
    """The block says what is wrong with the values it counts."""
    text = str(failure([[torch.tensor([0.5, 3.0])]], domain=[Spec(min_value=0, max_value=1)]))
    assert "1 of 2 values is out of range" in text
    assert "not finite" not in text
