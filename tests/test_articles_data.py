"""The data snippets of two much-read articles on NaN losses: what each lets through, and what becomes of lost rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from pytest_nanstab import NonFiniteError, StabilityError, assert_finite_batches, assert_handles_nonfinite

COLUMN = "your_column"


def frame():
    values = np.random.default_rng(0).normal(10.0, 2.0, 12)
    return pd.DataFrame({COLUMN: values, "other": values[::-1] / 2})


def failure(pipeline, sample, **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, sample, **kwargs)
    return caught.value


def outcomes(error):
    return {(row["corruption"], row["place"]): row["outcome"] for row in error.findings[0].evidence["outcomes"]}


def filled(df):
    df = df.copy()
    df.fillna(0, inplace=True)
    return df


def iqr_filtered(df):
    q1, q3 = df[COLUMN].quantile(0.25), df[COLUMN].quantile(0.75)
    iqr = q3 - q1
    return df[(df[COLUMN] >= q1 - 1.5 * iqr) & (df[COLUMN] <= q3 + 1.5 * iqr)]


def min_max(df):
    df = df.copy()
    df[COLUMN] = MinMaxScaler().fit_transform(df[[COLUMN]]).ravel()
    return df


def test_fillna_repairs_gaps_and_nothing_else():
    """Infinities stay, and so do numbers that float32 cannot hold."""
    words = outcomes(failure(filled, frame(), policy="sanitize"))
    assert words["NaN", f"row 6 of column '{COLUMN}'"] == "repaired"
    assert words["+Inf", f"row 6 of column '{COLUMN}'"].startswith("let through: Inf in field your_column, row 6")
    words = outcomes(failure(lambda df: torch.tensor(filled(df).to_numpy()).float(), frame(), policy="sanitize"))
    assert words["1e39 (beyond float32)", f"row 6 of column '{COLUMN}'"].startswith("let through: Inf, row 6")


def test_the_iqr_filter_drops_bad_rows_of_its_column_only():
    """NaN is in no range, so its row goes; in another column it stays."""
    words = outcomes(failure(iqr_filtered, frame(), policy="sanitize"))
    assert words["NaN", f"row 6 of column '{COLUMN}'"] == "repaired"
    assert words["NaN", "row 6 of column 'other'"] == "let through: NaN in field other, row 6"


def test_the_iqr_filter_and_the_labels():
    """Features lose a row, labels do not: from there on every pair is wrong. Filtered together they stay pairs."""

    def features_only(pair):
        df, labels = pair
        return iqr_filtered(df).to_numpy(), labels

    def together(pair):
        df, labels = pair
        df = df[np.isfinite(df).all(axis=1) & (df.abs() < 1e6).all(axis=1)]
        return df.to_numpy(), labels[df.index]

    sample = (frame(), np.arange(12))
    assert outcomes(failure(features_only, sample, policy="sanitize"))[
        "NaN", f"row 6 of column '{COLUMN}' of \"0\""
    ].startswith("changed the output from float64[")
    gone = ["NaN", "+Inf", "-Inf", "outlier*"]
    assert_handles_nonfinite(together, sample, policy="sanitize", corruptions=gone)


def test_min_max_of_the_article_passes_gaps_on_and_refuses_infinities():
    """scikit-learn's scaler takes NaN for a missing value."""
    words = outcomes(failure(min_max, frame(), policy="reject", corruptions=["NaN", "[+-]Inf"]))
    assert words["NaN", f"row 6 of column '{COLUMN}'"].startswith("let through: NaN")
    assert words["+Inf", f"row 6 of column '{COLUMN}'"] == "refused"
    constant = ["constant", "single row"]
    assert_handles_nonfinite(min_max, frame(), policy="reject", corruptions=constant)


def test_min_max_by_hand_divides_by_a_range_of_zero():
    """A constant column has none."""

    def by_hand(df):
        return (df - df.min()) / (df.max() - df.min())

    words = outcomes(failure(by_hand, frame(), policy="reject", corruptions=["constant", "single row"]))
    assert all(text.startswith("let through: NaN") for text in words.values())


def test_the_snippets_together_with_a_check_hold():
    """Gaps filled, infinities and outliers gone, zero range borne: what is left is finite."""

    def prepared(df):
        df = df.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
        df = df.clip(-1e6, 1e6).fillna(0)
        low, high = df.min(), df.max()
        return ((df - low) / (high - low).replace(0, 1)).fillna(0).to_numpy(dtype="float32")

    assert_handles_nonfinite(prepared, frame(), policy="sanitize")


def test_tensor_data_set_and_loader_pass_everything_on():
    """They check nothing: `assert_finite_batches` on the loader finds the row and the column."""
    values = frame().to_numpy(copy=True)

    def loader(data):
        return DataLoader(TensorDataset(torch.tensor(data, dtype=torch.float32)), batch_size=4)

    error = failure(loader, values, policy="reject")
    assert isinstance(error, NonFiniteError)
    values[7, 1] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        assert_finite_batches(loader(values))
    assert str(caught.value).splitlines()[0] == "NaN in batch 2, field 0 at [3, 1]"


def test_one_scaler_for_both_splits():
    """As the second article has it; with a second one for the test data, or one fitted on both, it leaks."""

    def usable(data):
        if min(len(data["train"]), len(data["test"])) < 2 or not all((np.abs(x) < 1e9).all() for x in data.values()):
            raise ValueError("not usable")
        return data["train"], data["test"]

    def as_written(data):
        train, test = usable(data)
        scaler = StandardScaler()
        train = scaler.fit_transform(train)
        return {"train": train, "test": scaler.transform(test)}

    def second(data):
        train, test = usable(data)
        return {"train": StandardScaler().fit_transform(train), "test": StandardScaler().fit_transform(test)}

    def on_both(data):
        train, test = usable(data)
        scaler = StandardScaler().fit(np.concatenate([train, test]))
        return {"train": scaler.transform(train), "test": scaler.transform(test)}

    rng = np.random.default_rng(0)
    sample = {"train": rng.normal(size=(10, 2)), "test": rng.normal(size=(5, 2))}
    assert_handles_nonfinite(as_written, sample, policy="reject")
    assert "other test rows" in str(failure(second, sample, policy="reject"))
    assert "training rows" in str(failure(on_both, sample, policy="reject"))
