"""Samples, pipelines and splits at the edges of what a check of pipelines can bear."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from torch.utils.data import DataLoader, Dataset, Subset

from pytest_nanstab.checks.pipelines import pipeline_findings

scipy_sparse = pytest.importorskip("scipy.sparse")
RNG = np.random.default_rng(0)


def matrix(rows=8):
    return np.random.default_rng(1).normal(size=(rows, 3))


def checked(x):
    x = np.asarray(x, dtype=float)
    if not len(x) or not np.isfinite(x).all():
        raise ValueError("not usable")
    return np.clip(x, -1e6, 1e6)


def holds(pipeline, sample, policy="reject", **kwargs):
    return pipeline_findings(pipeline, sample, policy=policy, **kwargs) == []


def kinds(pipeline, sample, policy="reject", **kwargs):
    return [finding.kind for finding in pipeline_findings(pipeline, sample, policy=policy, **kwargs)]


# --- samples


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "UInt8", "Sparse[float64]"])
def test_columns_that_cannot_be_negative_or_hold_anything(dtype):
    """They are corrupted as far as their dtype goes."""
    frame = pd.DataFrame({"a": pd.array([1, 2, 3], dtype=dtype), "b": [0.5, 1.5, 2.5]})
    assert holds(lambda df: checked(df.apply(pd.to_numeric).to_numpy(dtype=float, na_value=np.nan)), frame)


def test_interval_columns_are_left_alone():
    """Nothing goes into them one by one."""
    frame = pd.DataFrame({"i": pd.interval_range(0, 3), "b": [0.5, 1.5, 2.5]})
    assert holds(lambda df: checked(pd.to_numeric(df["b"])), frame)


def test_stored_values_of_sparse_matrices_go_bad():
    """Of scipy's matrices and torch's tensors."""
    sample = scipy_sparse.random(10, 6, density=0.4, format="csr", random_state=0)
    assert kinds(lambda m: m.toarray(), sample) == ["accepted-nonfinite"]
    assert holds(lambda m: checked(m.toarray()), sample)
    graph = {"adj": torch.eye(4).to_sparse(), "x": torch.rand(4, 2)}

    def guarded(batch):
        checked(batch["x"].numpy()), checked(batch["adj"].coalesce().values().numpy())
        return {name: value.to_dense().clamp(-1e6, 1e6) for name, value in batch.items()}

    assert holds(guarded, graph)
    assert kinds(lambda batch: {name: value.to_dense() for name, value in batch.items()}, graph)


def test_scalars_of_numpy_and_gaps_in_records():
    """They are numbers like Python's."""
    records = [{"v": np.float32(1.5), "id": "a"}, {"v": np.float32(2.5), "id": "b"}, {"v": np.float32(0.5), "id": "c"}]
    assert kinds(lambda rows: [float(row["v"]) * 2 for row in rows], records)
    assert holds(lambda rows: checked([float(row["v"]) for row in rows]), records)


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.rand(3, 4), "valid": torch.ones(3, 4, dtype=torch.bool)},
        (torch.rand(3, 4), torch.ones(3, 4, dtype=torch.bool)),
        {"x": torch.rand(3, 4, 5), "mask": torch.ones(3, 4, 5, dtype=torch.bool)},
    ],
    ids=["valid", "tuple", "images"],
)
def test_masks_by_any_name_can_be_empty(batch):
    """A mean over nothing is NaN."""

    def pooled(data, least):
        x, mask = data.values() if isinstance(data, dict) else data
        if not len(x) or not torch.isfinite(x).all() or x.abs().max() > 1e6:
            raise ValueError("not finite")
        return (x * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=least)

    assert kinds(lambda data: pooled(data, 0), batch) == ["accepted-nonfinite"]
    assert holds(lambda data: pooled(data, 1), batch)


def test_counts_are_no_huge_numbers():
    """A loop over 2**40 frames does not come back."""

    def frames(batch):
        return np.array([sum(1 for _ in range(int(n))) for n in batch["n_frames"]]), checked(batch["x"])

    assert holds(frames, {"x": matrix(4), "n_frames": np.array([3, 1, 2, 4])})


def test_many_fields_are_not_gone_through_one_by_one():
    """Thirty-two records of a hundred numbers."""
    from pytest_nanstab.corruptions.catalogue import recipes

    records = [{f"f{field}": float(field + row) for field in range(100)} for row in range(32)]
    assert len(recipes(records)) < 1000


# --- outputs


class Batch:
    """A batch of a class of its own, as torch's documentation has it."""

    def __init__(self, x):
        self.x = torch.as_tensor(x)


class Slotted:
    """The same in slots."""

    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("kind", [Batch, Slotted])
@pytest.mark.parametrize("policy", ["reject", "sanitize"])
def test_outputs_of_own_classes_are_opened(kind, policy):
    """NaN in an attribute is a NaN in the output."""
    assert kinds(kind, matrix(), policy) == ["accepted-nonfinite"]
    if policy == "reject":
        assert holds(lambda x: kind(checked(x)), matrix())


def test_all_rows_dropped_is_a_repair():
    """Where every row is bad nothing is left, whatever the container."""

    class Kept(Dataset):
        def __init__(self, x):
            self.rows = [np.clip(row, -1e6, 1e6) for row in x if np.isfinite(row).all()]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

    def generated(x):
        yield from (np.clip(row, -1e6, 1e6) for row in x if np.isfinite(row).all())

    assert holds(Kept, matrix(10), "sanitize")
    assert holds(generated, matrix(10), "sanitize")
    assert holds(lambda x: list(Kept(x).rows), matrix(10), "sanitize")


# --- data sets


class Guarded(Dataset):
    """A data set that checks each row it gives, and holds what cannot be copied."""

    def __init__(self, x):
        self.x, self.lock = x, threading.Lock()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        with self.lock:
            row = self.x[index]
        if not torch.isfinite(row).all():
            raise ValueError(f"row {index} is not finite")
        return row.clamp(-1e6, 1e6)


class InSlots(Guarded):
    """The same in slots."""

    __slots__ = ("x",)


@pytest.mark.parametrize("kind", [Guarded, InSlots])
def test_data_sets_with_locks_and_slots(kind):
    """What cannot be copied is shared; what is in slots is found."""
    x = torch.from_numpy(matrix())
    assert holds(kind(x), x)
    assert holds(DataLoader(kind(x), batch_size=3), x)


def test_rows_that_a_loader_never_reads_have_nothing_to_refuse():
    """The rest of an incomplete batch, and what a subset leaves out."""
    x = torch.from_numpy(matrix(10))
    assert holds(DataLoader(Guarded(x), batch_size=4, drop_last=True), x)
    assert holds(Subset(Guarded(x), range(0, 10, 2)), x)


# --- state


class Locked:
    """Keeps a mean beside a lock, and looks before it keeps."""

    def __init__(self):
        self.lock, self.mean, self.count = threading.Lock(), np.zeros(3), 0

    def __call__(self, x):
        x = checked(x)
        with self.lock:
            self.count += 1
            self.mean = self.mean + (x.mean(axis=0) - self.mean) / self.count
            return x - self.mean


WINDOW = deque([np.zeros(3)], maxlen=4)


def windowed(x):
    x = checked(x)
    WINDOW.append(x.mean(axis=0))
    return x - np.mean(WINDOW, axis=0)


class Shared:
    """Keeps its statistics for all of its objects."""

    stats = {"mean": np.zeros(3), "count": 0}  # noqa: RUF012 - that is the point

    def __call__(self, x):
        x = checked(x)
        self.stats["count"] += 1
        self.stats["mean"] = self.stats["mean"] + (x.mean(axis=0) - self.stats["mean"]) / self.stats["count"]
        return x - self.stats["mean"]


@pytest.mark.parametrize("pipeline", [Locked(), windowed, Shared()], ids=["lock", "deque", "class attribute"])
def test_state_in_every_place_is_put_back(pipeline):
    """It is correct, and afterwards everything is as it was."""
    assert holds(pipeline, matrix())
    assert len(WINDOW) == 1
    assert Shared.stats["count"] == 0
    assert getattr(pipeline, "count", 0) == 0


def test_a_fit_may_learn_another_width_and_other_codes():
    """A word that is missing in training data is one more category; a fitted encoder knows them all."""
    words = pd.DataFrame({"k": list("abcabcab"), "l": list("xxyyxxyy")})
    constant = SimpleImputer(strategy="constant", fill_value="missing", keep_empty_features=True)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    named = ["NA", "None", "NaN", "unknown characters"]
    for encoder in (one_hot, ordinal):
        wanted = [name for name in named if any(name in recipe for recipe in _names(words))]
        assert holds(make_pipeline(constant, encoder), words, "sanitize", corruptions=wanted)


def _names(sample):
    from pytest_nanstab.corruptions.catalogue import recipes

    return [recipe.name for recipe in recipes(sample)]


# --- splits


def scaled(train, test):
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def chronological(x):
    x = checked(x)
    x = x[np.argsort(x[:, 0])]
    cut = max(1, int(0.7 * len(x)))
    return scaled(x[:cut], x[cut:]) if len(x) > 1 else (x, x[:0])


def drawn(x):
    x = checked(x)
    order = RNG.permutation(len(x))
    cut = int(0.7 * len(x))
    return {"train": x[order[:cut]], "test": x[order[cut:]]}


def stratified(x):
    x = checked(x)
    if len(x) < 8:
        raise ValueError("too few rows")
    try:
        train, test = train_test_split(x, test_size=0.3, stratify=x[:, 0] > np.median(x[:, 0]), random_state=0)
    except ValueError as error:
        raise ValueError("cannot be divided") from error
    return scaled(train, test)


def inliers_and_outliers(x):
    x = checked(x)
    z = (x - x.mean(0)) / (x.std(0) + 1e-6)
    inside = (np.abs(z) < 1.5).all(axis=1)
    return z[inside], z[~inside]


@pytest.mark.parametrize("pipeline", [chronological, drawn, stratified, inliers_and_outliers])
def test_splits_that_depend_on_values_or_are_drawn_are_no_leaks(pipeline):
    """A row that moves may change where it belongs, and who stands beside it."""
    assert "leaked-statistics" not in kinds(pipeline, matrix(20))


def test_three_parts_scaled_together_leak():
    """Training, validation and test data."""

    def together(x):
        x = checked(x)
        if len(x) < 10:
            raise ValueError("too few rows")
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        return {"train": x[:12], "val": x[12:16], "test": x[16:]}

    assert kinds(together, matrix(20)) == ["leaked-statistics"]


# --- declared gaps


def test_a_whole_row_and_an_infinity_in_a_declared_column():
    """NaN stays where it is allowed; an infinity there may become NaN."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0, 3.0, 5.0], "lab": [5.0, 7.0, 6.0, 8.0, 9.0]})

    def tidy(df):
        numbers = df.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan).clip(-1e6, 1e6)
        return numbers.fillna({"a": 2.5})

    assert holds(tidy, frame, "sanitize", allow_nan=["lab"])
    assert kinds(tidy, frame, "sanitize", allow_nan=["a"]) == ["accepted-nonfinite"]
