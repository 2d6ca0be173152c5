"""What a domain may say, how a wrong one is refused, and what a sample proves."""

from __future__ import annotations

import re
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.batches.build import kinds_of
from pytest_nanstab.batches.infer import infer_spec
from pytest_nanstab.batches.layout import plan, with_dtype
from pytest_nanstab.batches.spec import SampledSpec
from pytest_nanstab.strategies import TensorSpec, from_spec

Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"shape": 3}, TypeError, "shape must be a tuple"),
        ({"shape": (3.0,)}, TypeError, "shape must hold ints and size names, got 3.0"),
        ({"shape": (True,)}, TypeError, "got True"),
        ({"shape": (-1,)}, ValueError, "0 or more"),
        ({"shape": ("",)}, ValueError, "non-empty names"),
        ({"dtype": "flot32"}, ValueError, 'dtype must be one of "float16"'),
        ({"dtype": torch.float32}, TypeError, 'dtype must be a string such as "float32", got torch.float32'),
        ({"kind": "labels"}, ValueError, 'kind must be one of "values", "one_hot"'),
        ({"kind": "mask", "dtype": "complex64"}, ValueError, 'kind="mask" needs dtype "float16"'),
        ({"kind": "probabilities", "dtype": "int64"}, ValueError, "got dtype 'int64'"),
        ({"kind": "lengths"}, ValueError, 'kind="lengths" needs dtype "int8"'),
        ({"kind": "one_hot", "shape": ()}, ValueError, "at least one dimension"),
        ({"kind": "one_hot", "shape": (3, 0)}, ValueError, "last dimension of 1 or more"),
        ({"kind": "one_hot", "min_value": 0}, ValueError, 'min_value must be None for kind="one_hot"'),
        ({"dtype": "bool", "max_value": 1}, ValueError, 'max_value must be None for dtype "bool"'),
        ({"min_value": "0"}, TypeError, "min_value must be a number or None, got '0'"),
        ({"min_value": True}, TypeError, "min_value must be a number"),
        ({"min_value": 2, "max_value": 1}, ValueError, "min_value must not exceed max_value, got 2 and 1"),
        ({"min_value": float("nan")}, ValueError, "min_value must be a finite number, got nan"),
        ({"max_value": float("inf")}, ValueError, "leave it out for an open side"),
        ({"max_value": 1e5, "dtype": "float16"}, ValueError, "range of float16, [-65504.0, 65504.0], got 100000.0"),
        ({"max_value": 10**400}, ValueError, "range of float32"),
        ({"min_value": -1, "dtype": "uint8"}, ValueError, "range of uint8, [0, 255], got -1"),
        ({"min_value": 0.5, "dtype": "int64"}, ValueError, "whole number for dtype int64, got 0.5"),
        ({"min_value": 0.1, "max_value": 0.1}, ValueError, "leave no number of dtype float32"),
        (
            {"min_value": 1e-40, "max_value": 1e-39, "allow_subnormal": False},
            ValueError,
            "leave no number of dtype float32 that is zero or normal",
        ),
        ({"allow_nan": 1}, TypeError, "allow_nan must be True or False, got 1"),
        ({"allow_nan": True, "dtype": "int64"}, ValueError, "allow_nan=True is for float and complex fields"),
        ({"allow_infinity": True, "kind": "probabilities"}, ValueError, "kind 'probabilities'"),
        ({"allow_subnormal": False, "dtype": "bool"}, ValueError, "allow_subnormal=False is for float"),
        ({"min_true": 1}, ValueError, 'min_true is for kind="mask"'),
        ({"min_true": 1.0}, TypeError, "min_true must be an int, got 1.0"),
        ({"min_true": -1}, ValueError, "min_true must be 0 or more"),
        ({"min_true": 4, "dtype": "bool", "kind": "mask"}, ValueError, "must not exceed the last dimension, 3, got 4"),
        ({"lengths": 0}, TypeError, "dotted path of a field"),
        ({"pad_value": 0}, ValueError, "pad_value needs lengths"),
        ({"pad_value": 1e39, "lengths": "n"}, ValueError, "pad_value must lie in the range of float32"),
        ({"pad_value": float("nan"), "lengths": "n"}, ValueError, "pad_value must be a finite number"),
        ({"ignore_index": -100}, ValueError, "ignore_index is for integer fields"),
        ({"ignore_index": -100, "dtype": "uint8"}, ValueError, "range of uint8"),
        ({"kind": "lengths", "dtype": "int64", "min_value": -1}, ValueError, "min_value must be 0 or more"),
        ({"kind": "lengths", "dtype": "int64", "max_value": 0}, ValueError, "at least the shortest length, 1, got 0"),
    ],
)
def test_wrong_field_is_refused(arguments, error, words):
    """A wrong argument raises at once and names itself, what was given and what is allowed."""
    with pytest.raises(error, match=re.escape(words)):
        TensorSpec(**{"shape": (2, 3), **arguments})


def test_fields_are_frozen_and_by_keyword():
    """A spec cannot be changed, and has no positional arguments."""
    spec = TensorSpec(shape=("n", 3))
    with pytest.raises(FrozenInstanceError):
        spec.dtype = "float64"
    with pytest.raises(TypeError):
        TensorSpec(("n", 3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bounds", [(0.1, 0.7), (-0.7, -0.1), (1e-7, 1e-3), (-300.3, 1000.1)])
def test_bounds_are_rounded_inward(dtype, bounds):
    """The bounds a field is generated in are numbers of its dtype inside the stated ones, and the nearest such."""
    low, high = TensorSpec(shape=(), dtype=dtype, min_value=bounds[0], max_value=bounds[1]).float_bounds()
    held = torch.tensor([low, high], dtype=torch.float64).to(getattr(torch, dtype)).double().tolist()
    assert held == [low, high]
    assert bounds[0] <= low <= high <= bounds[1]
    spacing = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype]
    floor = 2.0**-24 if dtype == "float16" else 0
    assert low - bounds[0] <= max(abs(low) * spacing, floor)
    assert bounds[1] - high <= max(abs(high) * spacing, floor)


LENGTHS = TensorSpec(shape=("n",), dtype="int64", kind="lengths")


@pytest.mark.parametrize(
    ("spec", "sizes", "error", "words"),
    [
        ({}, None, ValueError, "at least one TensorSpec"),
        ({"x": torch.zeros(3)}, None, TypeError, "at 'x' (or text, numbers, None), got Tensor"),
        (
            TensorSpec(shape=("n",)),
            {"m": (1, 2)},
            ValueError,
            "sizes names 'm', but the named sizes of the spec are: 'n'",
        ),
        (TensorSpec(shape=("n",)), {"n": 3}, TypeError, "sizes['n'] must be two ints, (least, most), got 3"),
        (TensorSpec(shape=("n",)), {"n": (3, 1)}, ValueError, "0 <= least <= most, got (3, 1)"),
        (TensorSpec(shape=("n",)), [("n", 1)], TypeError, "sizes must be a mapping"),
        (
            {"x": TensorSpec(shape=("n", "t"), lengths="len")},
            None,
            ValueError,
            "must be the path of a field ('x'), got 'len'",
        ),
        (
            {"x": TensorSpec(shape=("n", "t"), lengths="y"), "y": TensorSpec(shape=("n",), dtype="int64")},
            None,
            ValueError,
            "lengths of 'x' must name a field of kind=\"lengths\"; 'y' is 'values'",
        ),
        (
            {"x": TensorSpec(shape=("m", "t"), lengths="len"), "len": LENGTHS},
            None,
            ValueError,
            "shape of 'x' must start with the shape of its lengths, ('n',)",
        ),
        ({"len": LENGTHS}, None, ValueError, "'len' counts the positions of no field: give it max_value"),
        (
            {
                "m": TensorSpec(shape=("n", "t"), dtype="bool", kind="mask", min_true=2, lengths="len", pad_value=0),
                "len": LENGTHS,
            },
            None,
            ValueError,
            "min_true=2 of 'm' cannot hold where padding is False",
        ),
        (
            TensorSpec(shape=("n", "t"), dtype="bool", kind="mask", min_true=9),
            None,
            ValueError,
            "('t') must reach 9 for min_true, got 8 at most",
        ),
    ],
)
def test_wrong_domain_is_refused(spec, sizes, error, words):
    """A domain that contradicts itself raises when the strategy is made, naming the field."""
    with pytest.raises(error, match=re.escape(words)):
        from_spec(spec, sizes=sizes)


def test_sizes_leave_room_for_min_true_and_lengths():
    """The least size of a dimension follows from what the fields need."""
    domain = {
        "mask": TensorSpec(shape=("n", "keys"), dtype="bool", kind="mask", min_true=3),
        "x": TensorSpec(shape=("n", "time", 2), lengths="len"),
        "len": TensorSpec(shape=("n",), dtype="int64", kind="lengths", min_value=2),
    }
    assert plan(domain).sizes == {"n": (1, 8), "keys": (3, 8), "time": (2, 8)}


def test_with_dtype_clips_bounds_and_padding():
    """A float32 domain becomes a half one without leaving the range of half; integers stay."""
    domain = {
        "x": TensorSpec(shape=("n", "t"), min_value=-1e9, max_value=3, lengths="len", pad_value=-1e9),
        "len": LENGTHS,
        "name": "text",
    }
    half = with_dtype(domain, "float16")
    assert half["x"] == TensorSpec(
        shape=("n", "t"), dtype="float16", min_value=-65504.0, max_value=3, lengths="len", pad_value=-65504.0
    )
    assert half["len"] is LENGTHS
    assert half["name"] == "text"
    array = infer_spec(np.zeros(2)).spec
    assert with_dtype(array, "bfloat16") is array
    with pytest.raises(ValueError, match="dtype must be a float dtype, got 'int8'"):
        with_dtype(domain, "int8")


@pytest.mark.parametrize(
    "tree",
    [
        {"a": [1, (2, 3)], "b": {"c": 4}},
        OrderedDict(b=1, a=2),
        UserDict(x=1, y=[2]),
        Pair(1, {"z": 2}),
        [Pair(1, 2), ()],
    ],
    ids=["dict", "ordered", "userdict", "namedtuple", "list"],
)
def test_trees_are_rebuilt_in_kind(tree):
    """Containers come back as what they were, and the original keeps its leaves."""
    doubled = trees.mapped(lambda _path, leaf: leaf * 2, tree)
    assert type(doubled) is type(tree)
    assert [leaf for _, leaf in trees.leaves(doubled)] == [leaf * 2 for _, leaf in trees.leaves(tree)]
    assert trees.mapped(lambda _path, leaf: leaf, tree) == tree


# --- reading a domain off samples


def test_packed_and_sparse_fields_are_handed_through():
    """What a TensorSpec cannot say comes back as it was."""
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    sparse = torch.eye(2).to_sparse()
    inferred = infer_spec({"x": torch.zeros(2), "packed": packed, "sparse": sparse}).spec
    assert inferred["packed"].value is packed
    assert inferred["sparse"].value is sparse


def field(*batches):
    return infer_spec(*({"x": batch} for batch in batches)).spec["x"]


def test_values_lie_in_what_was_seen():
    """Floats and integers get the least and greatest value of all samples."""
    spec = field(torch.tensor([[0.5, -2.0]]), torch.tensor([[7.0, 1.0]]))
    assert (spec.kind, spec.min_value, spec.max_value, spec.allow_nan) == ("values", -2.0, 7.0, False)
    spec = field(torch.tensor([3, 2**62 + 1]))
    assert (spec.min_value, spec.max_value, spec.dtype) == (3, 2**62 + 1, "int64")


@pytest.mark.parametrize(
    ("values", "nan", "infinity"),
    [
        ([1.0, 2.0], False, False),
        ([1.0, 2.0, float("nan")], True, False),
        ([1.0, 2.0, float("-inf")], False, False),
        ([1.0, 2.0, float("-inf"), float("inf")], False, True),
    ],
)
def test_nonfinite_is_legal_only_when_seen(values, nan, infinity):
    """NaN is legal when the sample has it, infinities when it has both; bounds come from the finite values."""
    spec = field(torch.tensor(values))
    assert (spec.allow_nan, spec.allow_infinity, spec.min_value, spec.max_value) == (nan, infinity, 1.0, 2.0)


def test_bool_and_binary_fields_are_masks():
    """A mask has as few and as many True per row as were seen: an all-True row may be a fully masked one."""
    seen = torch.tensor([[True, True, False, False], [True, False, False, False]])
    for sample in (seen, seen.long(), seen.float()):
        spec = field(sample)
        assert (spec.kind, spec.min_true, spec.max_true) == ("mask", 1, 2)
    assert field(seen.float() * 2).kind == "values"
    assert field(torch.zeros(2, 4)).kind == "values"


def test_a_single_negative_label_is_one_that_losses_skip():
    """-100 among classes does not make -57 legal, nor a batch with nothing else unless one was seen."""
    spec = field(torch.tensor([[0, 3, -100], [-100, 2, 1]]))
    assert (spec.min_value, spec.max_value, spec.ignore_index, spec.all_ignored) == (0, 3, -100, False)
    assert "all_ignored" not in kinds_of(spec)
    assert "some_ignored" in kinds_of(spec)
    spec = field(torch.tensor([0, 3, -1]), torch.tensor([-1, -1, -1]))
    assert spec.all_ignored
    assert "all_ignored" in kinds_of(spec)
    spec = field(torch.tensor([-3, -1, 2]))
    assert (spec.min_value, spec.ignore_index) == (-3, None)


def test_one_hot_and_probability_rows_need_every_row():
    """One row that is not one-hot, or does not sum to 1, makes a field of plain values."""
    assert field(torch.eye(3)).kind == "one_hot"
    assert field(torch.eye(3), torch.zeros(3, 3)).kind == "mask"
    rows = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), -1)
    assert field(rows).kind == "probabilities"
    assert field(torch.cat([rows, rows * 1.01])).kind == "values"
    assert field(torch.ones(4, 1)).kind == "values"


def test_first_dimension_is_tied_as_batch():
    """The shared first dimension is one size; it is as large as seen, because a batch of one may be illegal."""
    inferred = infer_spec({"x": torch.randn(6, 3), "y": torch.randint(0, 9, (6,)), "scale": torch.tensor(2.0)})
    assert inferred.spec["x"].shape == ("batch", 3)
    assert inferred.spec["y"].shape == ("batch",)
    assert inferred.spec["scale"].shape == ()
    assert inferred.sizes == {"batch": (6, 6)}


def test_sizes_that_vary_together_share_a_name():
    """Several batches prove ranges of sizes, and which dimensions go together."""
    batches = [{"src": torch.randn(n, t, 2), "mask": torch.ones(n, t).bool()} for n, t in ((4, 7), (3, 9))]
    inferred = infer_spec(*batches)
    assert inferred.spec["src"].shape == ("batch", "size1", 2)
    assert inferred.spec["mask"].shape == ("batch", "size1")
    assert inferred.sizes == {"batch": (3, 4), "size1": (7, 9)}


def test_domain_overrides_a_field():
    """A spec in `domain` replaces the inferred one; None and missing keys are inferred."""
    wide = TensorSpec(shape=("batch", 2), min_value=-9, max_value=9)
    batch = {"x": torch.zeros(4, 2), "y": torch.zeros(4), "z": np.zeros((4, 2), np.float32)}
    inferred = infer_spec(batch, domain={"x": wide, "y": None, "z": wide})
    assert inferred.spec["x"] is wide
    assert inferred.spec["y"].shape == ("batch",)
    assert isinstance(inferred.spec["z"], SampledSpec)
    assert inferred.spec["z"].as_numpy
    assert inferred.spec["z"].max_value == 9


@pytest.mark.parametrize(
    ("domain", "error", "words"),
    [
        ({"X": TensorSpec(shape=(2,))}, ValueError, "domain has 'X', but the batch has only 'x', 'pair'"),
        ({"x": {"y": None}}, TypeError, "domain at 'x' is dict, but the batch has Tensor there"),
        ({"pair": TensorSpec(shape=(2,))}, TypeError, "domain at 'pair' is one TensorSpec, but the batch has list"),
        ({"pair": [None]}, ValueError, "domain at 'pair' must have 2 items like the batch, got 1"),
        ({"x": 3}, TypeError, "domain at 'x' must be TensorSpec, None or nested like the batch, got 3"),
    ],
)
def test_domain_that_does_not_fit_is_refused(domain, error, words):
    """A domain not shaped like the batch raises, naming the place."""
    with pytest.raises(error, match=re.escape(words)):
        infer_spec({"x": torch.zeros(2), "pair": [torch.zeros(2), torch.zeros(2)]}, domain=domain)


def test_samples_must_agree():
    """Samples with other fields, dtypes or dimensions, none at all, and samples without tensors are refused."""
    with pytest.raises(ValueError, match="batch 1 and batch 2 differ in 'b'"):
        infer_spec({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="dtype of 'x'"):
        field(torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="dimensions of 'x'"):
        field(torch.zeros(2), torch.zeros(2, 2))
    with pytest.raises(TypeError, match="at least one batch"):
        infer_spec()
    with pytest.raises(ValueError, match="at least one tensor"):
        infer_spec({"name": "text", "object": SimpleNamespace()})
