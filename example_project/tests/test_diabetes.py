"""The table, its pipeline and the regressor behind it, which is known to fail in float16."""

from __future__ import annotations

import pandas as pd
import pytest
from pytest_nanstab import (
    NonFiniteError,
    TrainingSetup,
    assert_finite,
    assert_finite_batches,
    assert_handles_nonfinite,
    stability_suite,
)
from pytest_nanstab.strategies import TensorSpec
from torch.optim import AdamW

from data.diabetes import TARGET, Preprocessor, raw_table, split, to_tensor, train_and_test
from models.tabular import TabularRegressor, regression_loss

HALF = pytest.param(
    "16-true",
    marks=pytest.mark.xfail(raises=NonFiniteError, strict=True, reason="Adam's eps of 1e-8 is 0 in float16"),
)


@pytest.fixture(scope="module")
def features() -> pd.DataFrame:
    return split(raw_table())[0].drop(columns=TARGET)


def test_the_raw_table_has_gaps(features: pd.DataFrame) -> None:
    with pytest.raises(NonFiniteError):
        assert_finite(features)


@pytest.mark.parametrize("scaler", ["z-score", "min-max"])
def test_every_batch_is_finite(scaler: str) -> None:
    for batches in train_and_test(scaler):
        assert_finite_batches(batches)


@pytest.mark.parametrize("scaler", ["z-score", "min-max"])
def test_preprocessing_repairs_bad_cells(scaler: str, features: pd.DataFrame) -> None:
    assert_handles_nonfinite(Preprocessor(scaler).fit(features), features.dropna().head(6), policy="sanitize")


def test_tensors_refuse_bad_cells(features: pd.DataFrame) -> None:
    sample = features.dropna().head(6).to_numpy()
    assert_handles_nonfinite(to_tensor, sample, policy="reject")


@stability_suite(steps=20)
def test_regressor() -> TrainingSetup:
    model = TabularRegressor(features=10)
    train_batches, test_batches = train_and_test()
    return TrainingSetup(
        model=model,
        loss=regression_loss,
        optimizer=AdamW(model.parameters(), lr=3e-3),
        batches=train_batches,
        eval_batches=test_batches,
        domain=(
            TensorSpec(shape=("batch", 10), min_value=-5.0, max_value=5.0),
            TensorSpec(shape=("batch",), min_value=0.0, max_value=4.0),
        ),
        sizes={"batch": (1, 32)},
    )


@stability_suite(steps=10, precision=["bf16-true", HALF], checks="finite_steps")
def test_regressor_in_half_precision() -> TrainingSetup:
    model = TabularRegressor(features=10)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=regression_loss, optimizer=optimizer, batches=train_and_test()[0])
