"""Whether a batch is legal, by code that has nothing in common with what makes batches."""

from __future__ import annotations

import math

import torch

from pytest_nanstab.strategies import TensorSpec


def numbers(tensor):
    """All numbers of a tensor as exact Python numbers; complex ones as their parts."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real.double() if real.is_floating_point() else real).reshape(-1).tolist()


def outside(spec, tensor):
    """The numbers of `tensor` that the arguments of `spec` do not allow."""
    info = torch.finfo(tensor.dtype) if tensor.is_floating_point() or tensor.is_complex() else None
    low = -math.inf if spec.min_value is None else spec.min_value
    high = math.inf if spec.max_value is None else spec.max_value
    bad = []
    for number in numbers(tensor):
        if isinstance(number, float) and not math.isfinite(number):
            legal = spec.allow_nan if math.isnan(number) else spec.allow_infinity
        else:
            legal = low <= number <= high or number in (spec.ignore_index, spec.pad_value)
        if info and not spec.allow_subnormal and 0 < abs(number) < info.tiny:
            legal = False
        if not legal:
            bad.append(number)
    return bad


TRANSLATION = {
    "src": TensorSpec(shape=("n", "time"), dtype="int64", min_value=1, max_value=50, lengths="meta.len", pad_value=0),
    "x": TensorSpec(shape=("n", "time", 2), min_value=-3, max_value=3, lengths="meta.len", pad_value=-7),
    "meta": {"len": TensorSpec(shape=("n",), dtype="int64", kind="lengths")},
    "keys": TensorSpec(shape=("n", "time"), dtype="bool", kind="mask", min_true=1, lengths="meta.len", pad_value=False),
    "mask": TensorSpec(shape=("n", "heads", "time"), dtype="bool", kind="mask", min_true=2),
    "labels": (TensorSpec(shape=("n", 4), kind="one_hot"), TensorSpec(shape=("n", "classes"), kind="probabilities")),
    "language": "de",
}


def assert_legal_translation(batch):
    lengths = batch["meta"]["len"]
    n, time = batch["src"].shape
    assert batch["x"].shape == (n, time, 2)
    assert batch["mask"].shape[::2] == (n, time)
    assert (lengths >= 1).all()
    assert (lengths <= time).all()
    beyond = torch.arange(time) >= lengths[:, None]
    assert (batch["src"][beyond] == 0).all()
    assert (batch["src"][~beyond] >= 1).all()
    assert (batch["x"][beyond] == -7).all()
    assert (batch["x"][~beyond].abs() <= 3).all()
    assert not batch["keys"][beyond].any()
    assert batch["keys"].any(-1).all()
    assert (batch["mask"].sum(-1) >= 2).all()
    one_hot, probabilities = batch["labels"]
    assert (one_hot.sum(-1) == 1).all()
    assert ((one_hot == 0) | (one_hot == 1)).all()
    assert (probabilities >= 0).all()
    assert torch.allclose(probabilities.sum(-1), torch.ones(n), atol=1e-6)
    assert batch["language"] == "de"
