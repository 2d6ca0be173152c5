"""What a pipeline keeps: statistics that a bad batch must not poison, and statistics of the wrong rows."""

from __future__ import annotations

import linecache

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler
from torch import nn

from pytest_nanstab import NonFiniteError, StabilityError, assert_handles_nonfinite


def matrix(rows=8):
    return np.random.default_rng(0).normal(size=(rows, 3))


def failure(pipeline, sample, **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, sample, **kwargs)
    return caught.value


def words(error):
    return {row["outcome"] for row in error.findings[0].evidence["outcomes"]}


def leak(error):
    (finding,) = [finding for finding in error.findings if finding.kind == "leaked-statistics"]
    return finding


def line_of(finding):
    file, _, number = finding.source.rpartition(":")
    return linecache.getline(file, int(number)).strip()


def refuse(x):
    if not np.isfinite(x).all() or not len(x) or (np.abs(x) > 1e30).any():
        raise ValueError("not finite")


# --- poisoned by a bad batch


class Running:
    """A normaliser with a running mean; `early` updates it before it looks."""

    def __init__(self, *, early):
        self.early, self.mean = early, None

    def update(self, x):
        mean = x.mean(axis=0)
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean

    def __call__(self, x):
        if self.early:
            self.update(x)
        refuse(x)
        if not self.early:
            self.update(x)
        return x - self.mean


def test_running_statistics_updated_before_the_check():
    """The batch is refused, and every later one is NaN."""
    error = failure(Running(early=True), matrix(), policy="reject")
    assert isinstance(error, NonFiniteError)
    assert any(text.startswith("refused, but kept: good data then give NaN") for text in words(error))
    assert line_of(error.findings[0]) == "self.update(x)"
    assert error.findings[0].remedy == "check a batch before any statistics are updated with it"
    assert_handles_nonfinite(Running(early=False), matrix(), policy="reject")


def test_state_of_closures_and_globals_is_put_back():
    """A function keeps what it learns in the objects around it: each run starts from what they held before."""
    seen = {"mean": np.zeros(3)}
    history = []

    def poisoned(x):
        seen["mean"] = 0.9 * seen["mean"] + 0.1 * x.mean(axis=0)
        history.append(len(x))
        refuse(x)
        return x - seen["mean"]

    def sound(x):
        refuse(x)
        seen["mean"] = 0.9 * seen["mean"] + 0.1 * x.mean(axis=0)
        return x - seen["mean"]

    error = failure(poisoned, matrix(), policy="reject")
    assert any("but kept" in text for text in words(error))
    assert_handles_nonfinite(sound, matrix(), policy="reject")
    assert seen["mean"].tolist() == [0.0, 0.0, 0.0]
    assert history == []


def test_a_finite_trace_of_a_refused_batch():
    """A largest value that a refused batch has raised: later data come out smaller, and finite."""

    class Peak:
        def __init__(self):
            self.peak = 1.0

        def __call__(self, x):
            self.peak = max(self.peak, float(np.nan_to_num(np.abs(x), posinf=1e9).max()))
            refuse(x)
            return x / self.peak

    error = failure(Peak(), matrix(), policy="reject", corruptions="+Inf")
    assert words(error) == {"refused, but kept: good data then come out otherwise"}


def test_own_generators_are_no_state():
    """What a pipeline draws may have moved on before it refused."""

    class Jitter:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __call__(self, x):
            noise = self.rng.normal(size=x.shape)
            refuse(x)
            return x + noise

    assert_handles_nonfinite(Jitter(), matrix(), policy="reject")


class Normed(nn.Module):
    """A module of the pipeline that has running statistics."""

    def __init__(self, *, checked):
        super().__init__()
        self.norm, self.checked = nn.BatchNorm1d(3), checked

    def forward(self, x):
        if self.checked and (len(x) < 2 or not (x.abs() < 1e15).all()):
            raise ValueError("batch is not usable")
        return torch.nan_to_num(self.norm(x), posinf=0.0, neginf=0.0).clamp(-1e6, 1e6)


def test_running_statistics_of_batch_norm():
    """In training mode its output hides that the buffers are NaN: the next evaluation shows it."""
    sample = torch.from_numpy(matrix()).float()
    error = failure(Normed(checked=False), sample, policy="sanitize", corruptions="NaN")
    assert any("but kept: norm.running_mean is not finite" in text for text in words(error))
    assert_handles_nonfinite(Normed(checked=True), sample, policy="reject")


def test_partial_fit():
    """A scaler that is fed in parts: NaN is passed over in its statistics, and passed on in its output."""
    error = failure(StandardScaler(), matrix(), policy="reject", corruptions="NaN")
    assert {row["corruption"] for row in error.findings[0].evidence["outcomes"]} == {
        f"{name} ({way})" for name in ("NaN", "NaN in all but one") for way in ("fit", "transform", "partial_fit")
    }


class Scaler(BaseEstimator, TransformerMixin):
    """A scaler of one's own, with the standard deviation as it is or guarded."""

    def __init__(self, *, guarded=True):
        self.guarded = guarded

    def fit(self, x, _y=None):
        refuse(x)
        self.mean_, self.scale_ = x.mean(axis=0), x.std(axis=0)
        if self.guarded:
            self.scale_ = np.where(self.scale_ > 0, self.scale_, 1.0)
        return self

    def transform(self, x):
        refuse(x)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (x - self.mean_) / self.scale_


def test_zero_variance_of_training_data():
    """A column that is constant where the scaler is fitted: 0 / 0 there, and x / 0 in serving."""
    error = failure(Scaler(guarded=False), matrix(), policy="reject")
    found = {
        row["corruption"]: row["outcome"] for row in error.findings[0].evidence["outcomes"] if ":" in row["outcome"]
    }
    assert {"constant (fit)", "single row (fit)"} <= set(found)
    assert not any("transform" in name for name in found)
    assert_handles_nonfinite(Scaler(), matrix(), policy="reject")


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), MinMaxScaler(), RobustScaler()], ids=lambda scaler: type(scaler).__name__
)
def test_scalers_of_the_library_bear_zero_variance_and_zero_range(scaler):
    """They divide by 1 there."""
    legal = ["constant", "single row", "outlier*", "zero", "negative", "empty batch"]
    fitting = [name for name in legal if name not in ("zero", "negative")]
    assert_handles_nonfinite(scaler, matrix(), policy="sanitize", corruptions=fitting)


# --- statistics of the wrong rows


class OwnMean(BaseEstimator, TransformerMixin):
    """Transforms with the mean of what it is given; `fitted` uses the one it has learned."""

    def __init__(self, *, fitted):
        self.fitted = fitted

    def fit(self, x, _y=None):
        self.mean_ = x.mean(axis=0)
        return self

    def transform(self, x):
        refuse(x)
        centre = self.mean_ if self.fitted else x.mean(axis=0)
        return x - centre


def test_a_transform_that_looks_at_its_own_split():
    """The same row alone and in company: it must have the same values."""
    finding = leak(failure(OwnMean(fitted=False).fit(matrix()), matrix(), policy="reject"))
    assert finding.message == "leaked statistics: 4 of 8 rows have other values without the others"
    assert finding.source.startswith("tests/test_pipeline_state.py:")
    assert_handles_nonfinite(OwnMean(fitted=True).fit(matrix()), matrix(), policy="reject")


@pytest.mark.parametrize(
    "pipeline",
    [
        make_pipeline(SimpleImputer(), StandardScaler()),
        make_pipeline(KNNImputer(n_neighbors=2), RobustScaler()),
        make_pipeline(SimpleImputer(), QuantileTransformer(n_quantiles=8)),
        make_pipeline(SimpleImputer(), PCA(2)),
    ],
    ids=["z-score", "neighbours", "quantiles", "components"],
)
def test_transforms_of_the_library_look_at_what_they_were_fitted_on(pipeline):
    """None of them depends on the other rows it transforms."""
    assert_handles_nonfinite(pipeline.fit(matrix(12)), matrix(12), policy="sanitize", corruptions="NaN in all but one")


class Lags(BaseEstimator, TransformerMixin):
    """A transform about neighbours, not statistics."""

    def fit(self, x, _y=None):
        self.columns_ = x.shape[1]
        return self

    def transform(self, x):
        refuse(x)
        return np.concatenate([x[:1] * 0, np.diff(x, axis=0)])


def test_windows_and_lags_are_no_leak():
    """A row depends on the one before it: on the order, so it is asked for nothing."""
    assert_handles_nonfinite(Lags().fit(matrix()), matrix(), policy="reject")


def table():
    rng = np.random.default_rng(3)
    return pd.DataFrame({"a": rng.normal(5, 2, 20), "b": rng.uniform(0, 9, 20), "label": np.arange(20) % 2})


def usable(data):
    values = data.to_numpy(dtype=float)
    if len(values) < 4 or not (np.abs(values) < 1e12).all():
        raise ValueError("table is not usable")
    return values[:, :2]


def fit_then_split(data):
    scaled = StandardScaler().fit_transform(usable(data))
    return train_test_split(scaled, test_size=0.25, random_state=1)


def split_then_fit(data):
    train, test = train_test_split(usable(data), test_size=0.25, random_state=1)
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def second_scaler(data):
    train, test = train_test_split(usable(data), test_size=0.25, random_state=1)
    return StandardScaler().fit_transform(train), StandardScaler().fit_transform(test)


def four_parts(data):
    scaled = MinMaxScaler().fit_transform(usable(data))
    return train_test_split(scaled, data["label"].to_numpy(), test_size=0.25, random_state=1)


@pytest.mark.parametrize(
    ("pipeline", "line", "message"),
    [
        (fit_then_split, "scaled = StandardScaler().fit_transform(usable(data))", "15 of 15 training rows"),
        (second_scaler, "return StandardScaler().fit_transform(train)", "4 other test rows"),
        (four_parts, "scaled = MinMaxScaler().fit_transform(usable(data))", "training rows"),
    ],
)
def test_scalers_fitted_on_the_wrong_split(pipeline, line, message):
    """Fitting before the split, and a second scaler for the test data."""
    error = failure(pipeline, table(), policy="reject", corruptions=["NaN", "Inf"])
    finding = leak(error)
    assert message in finding.message
    assert line in line_of(finding)
    assert not finding.is_nonfinite


def test_a_split_before_the_fit_is_no_leak():
    """Training rows change all others, test rows only themselves."""
    assert_handles_nonfinite(split_then_fit, table(), policy="reject", corruptions=["NaN", "Inf"])


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_parts_that_come_divided(kind):
    """A function of both parts: scaled by the training part, or by each part's own range."""
    values = table()[["a", "b"]].to_numpy()
    train, test = values[:14], values[14:]
    sample = {"train": train, "test": test} if kind == "dict" else (train, test)

    def parts(data):
        first, second = data.values() if kind == "dict" else data
        if min(len(first), len(second)) < 2 or not all((np.abs(part) < 1e12).all() for part in (first, second)):
            raise ValueError("not usable")
        return first, second

    def scaled(data, fitted_on):
        both = parts(data)
        out = tuple(
            (part - source.min(axis=0)) / max(np.ptp(source), 1e-9)
            for part, source in zip(both, fitted_on(*both), strict=True)
        )
        return dict(zip(data, out, strict=True)) if kind == "dict" else out

    def by_training(data):
        return scaled(data, lambda first, _: (first, first))

    def by_each_own(data):
        return scaled(data, lambda first, second: (first, second))

    assert_handles_nonfinite(by_training, sample, policy="reject", corruptions=["NaN", "Inf"])
    assert "other test rows" in leak(failure(by_each_own, sample, policy="reject", corruptions=["NaN", "Inf"])).message


def test_features_and_labels_are_no_splits():
    """Two parts with a row for every row, or a filtered and a rejected part, divide nothing that was fitted."""

    def features_and_labels(data):
        values = usable(data)
        return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9), data["label"].to_numpy()

    assert_handles_nonfinite(features_and_labels, table(), policy="reject", corruptions=["NaN", "Inf"])
