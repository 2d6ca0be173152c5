"""Batches are legal, nasty, mostly distinct, shrink to something readable, and are the same for the same draw."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from legality import TRANSLATION, assert_legal_translation, outside

from pytest_nanstab.batches.boundary import boundary_batches
from pytest_nanstab.batches.build import describe, kinds_of, realise
from pytest_nanstab.batches.drawing import described_from_spec
from pytest_nanstab.batches.layout import plan
from pytest_nanstab.batches.recipe import LEVELS, REGIONS, Described, Description, Recipe
from pytest_nanstab.corruptions.catalogue import all_corruptions
from pytest_nanstab.corruptions.model import Corruption
from pytest_nanstab.strategies import TensorSpec, corruptions, from_batch, from_spec

QUICK = settings(max_examples=40, deadline=None, database=None, derandomize=True)
INT64 = 2**63


FLOAT_SPECS = [
    {},
    {"min_value": -1e4, "max_value": 1e4},
    {"min_value": 0.1, "max_value": 0.7},
    {"min_value": 0.0},
    {"max_value": -0.3},
    {"min_value": 1e-6, "max_value": 1e-3, "allow_subnormal": False},
    {"min_value": 3.0, "max_value": 3.0},
    {"min_value": -5e4, "max_value": 65504.0, "allow_nan": True, "allow_infinity": True},
]
SPECS = [
    *(
        TensorSpec(shape=("n", 5), dtype=dtype, **bounds)
        for dtype in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
        for bounds in FLOAT_SPECS
    ),
    TensorSpec(shape=(), min_value=0.1),
    TensorSpec(shape=("n",), dtype="float16", max_value=0.1),
    TensorSpec(shape=("n", 0)),
    TensorSpec(shape=("n", 2, 3), dtype="bfloat16", min_value=-0.1, max_value=1e38),
    *(TensorSpec(shape=("n", 3), dtype=dtype) for dtype in ("int8", "int16", "int32", "int64", "uint8", "bool")),
    TensorSpec(shape=("n", 3), dtype="int64", min_value=-INT64, max_value=1 - INT64),
    TensorSpec(shape=("n", 3), dtype="int64", min_value=INT64 - 2, max_value=INT64 - 1),
    TensorSpec(shape=("n", 3), dtype="int64", min_value=0, max_value=9, ignore_index=-100),
    TensorSpec(shape=(), dtype="int64", min_value=3, max_value=9, ignore_index=-1),
]


def spec_id(spec):
    return f"{spec.dtype}-{spec.shape}-{spec.min_value}-{spec.max_value}-{spec.allow_nan}-{spec.allow_subnormal}"


@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_no_value_leaves_the_domain(spec):
    """Whatever is drawn, every number is one the spec allows, in the dtype it names."""

    @QUICK
    @given(from_spec(spec, sizes={"n": (0, 6)} if "n" in spec.shape else None))
    def check(tensor):
        assert tensor.dtype is getattr(torch, spec.dtype)
        assert not outside(spec, tensor)

    check()


@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_every_kind_of_batch_is_legal(spec):
    """Each builder at each level and region stays inside the domain, also those that drawing rarely reaches."""
    checked = plan(spec, {"n": (7, 7)} if "n" in spec.shape else None)
    sizes = {name: low for name, (low, _) in checked.sizes.items()}
    levels = sorted({LEVELS[0], LEVELS[7], LEVELS[12], LEVELS[-1]})
    for kind, level, region in itertools.product(dict.fromkeys(kinds_of(spec)), levels, dict.fromkeys(REGIONS)):
        described = realise(checked, Description(sizes, (Recipe(kind, seed=3, level=level, region=region),)))
        assert not outside(spec, described.batch), described


def test_control_sees_a_value_outside():
    """The legality check of these tests does find a value that is off by one unit in the last place."""
    spec = TensorSpec(shape=(1,), dtype="float16", max_value=0.1)
    assert outside(spec, torch.tensor([0.1], dtype=torch.float16)) == []
    assert outside(spec, torch.tensor([0.1001], dtype=torch.float16)) != []
    assert outside(spec, torch.tensor([math.nan])) != []


@settings(QUICK, max_examples=60)
@given(from_spec(TRANSLATION, sizes={"n": (1, 4)}))
def test_sizes_lengths_padding_and_masks_hold_together(batch):
    """Equal names tie sizes, padding follows lengths, masks keep min_true, label rows sum to 1."""
    assert_legal_translation(batch)


def test_boundary_batches_are_legal_distinct_and_repeatable():
    """The fixed list stays inside the domain, holds no description twice and is the same for the same seed."""
    batches = list(boundary_batches(TRANSLATION, {"n": (2, 64)}, seed=1))
    for described in batches:
        assert_legal_translation(described.batch)
    assert 12 <= len(batches) <= 36
    assert [d.words for d in batches] == [d.words for d in boundary_batches(TRANSLATION, {"n": (2, 64)}, seed=1)]
    assert len({str(d.description) for d in batches}) == len(batches)
    assert {d.batch["src"].shape[0] for d in batches} == {2, 16, 64}


def test_fields_that_could_be_alike_are_once():
    """An anchor and its positive, within their own bounds; two lengths of different sequences stay what they are."""
    domain = {
        "anchor": TensorSpec(shape=("n", 3), min_value=-2, max_value=2),
        "positive": TensorSpec(shape=("n", 3), min_value=-1, max_value=3),
        "other": TensorSpec(shape=("n", 4), min_value=-2, max_value=2),
        "long": TensorSpec(shape=("n", 7), min_value=0, max_value=1, lengths="counts.0"),
        "short": TensorSpec(shape=("n", 5), min_value=0, max_value=1, lengths="counts.1"),
        "counts": [TensorSpec(shape=("n",), dtype="int64", kind="lengths") for _ in range(2)],
        "left": TensorSpec(shape=("n", 7), min_value=-2, max_value=2, lengths="counts.0", pad_value=-9),
        "right": TensorSpec(shape=("n", 7), min_value=-1, max_value=1, lengths="counts.0", pad_value=-9),
    }
    batches = list(boundary_batches(domain, {"n": (2, 4)}))
    same = [b.batch for b in batches if "the same as anchor" in b.words]
    assert same
    for batch in same:
        assert torch.equal(batch["positive"], batch["anchor"].clamp(-1, 2))
    checked = plan(domain, {"n": (4, 4)})
    recipes = tuple(Recipe("mixed" if f.spec.kind == "lengths" else "uniform", seed=1) for f in checked.fields)
    padded = realise(checked, Description({"n": 4}, recipes, alike=True)).batch
    beyond = torch.arange(7) >= padded["counts"][0][:, None]
    assert beyond.any()
    assert (padded["right"][beyond] == -9).all()
    assert torch.equal(padded["right"][~beyond], padded["left"][~beyond].clamp(-1, 1))
    for described in batches:
        assert described.batch["counts"][0].max() <= 7
        assert described.batch["counts"][1].max() <= 5
        assert described.batch["positive"].min() >= -1


def test_boundary_batches_reach_the_ends():
    """Both bounds, a constant column, ignored labels, fully masked rows and a batch of one are in the list."""
    domain = {
        "x": TensorSpec(shape=("n", 6), min_value=-1e4, max_value=1e4),
        "y": TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=9, ignore_index=-100),
        "m": TensorSpec(shape=("n", 6), dtype="bool", kind="mask"),
    }
    batches = [described.batch for described in boundary_batches(domain)]
    assert any((b["x"] == 1e4).all() for b in batches)
    assert any((b["x"] == -1e4).all() for b in batches)
    assert any((b["x"] == b["x"][:1]).all(0).sum() == 1 and len(b["x"]) > 1 for b in batches)
    assert any((b["y"] == -100).all() for b in batches)
    assert any(not b["m"].any() for b in batches)
    assert any((~b["m"]).all(-1).sum() == 1 and len(b["m"]) > 1 for b in batches)
    assert any(len(b["x"]) == 1 for b in batches)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_probability_rows_sum_to_one_in_every_dtype(dtype, classes):
    """Rounding to the dtype leaves rows of probabilities that are not negative and sum to 1 within one spacing."""
    spec = TensorSpec(shape=(4, classes), dtype=dtype, kind="probabilities")
    for kind in dict.fromkeys(kinds_of(spec)):
        rows = realise(plan(spec), Description({}, (Recipe(kind, seed=1),))).batch.double()
        assert (rows >= 0).all(), kind
        assert ((rows.sum(-1) - 1).abs() <= torch.finfo(getattr(torch, dtype)).eps).all(), kind


@pytest.mark.parametrize("kind", ["most", "one_row_fewest", "fewest", "one", "random"])
@pytest.mark.parametrize("min_true", [0, 1, 5])
def test_masks_have_min_true_in_every_row(kind, min_true):
    """Every kind of mask keeps min_true; without it some kind has an empty row."""
    spec = TensorSpec(shape=(3, 2, 5), dtype="bool", kind="mask", min_true=min_true)
    mask = realise(plan(spec), Description({}, (Recipe(kind, seed=1),))).batch
    assert (mask.sum(-1) >= min_true).all()
    assert mask.all() or min_true < 5
    if kind == "fewest":
        assert (mask.sum(-1) == min_true).all()


# --- shrinking, variety, repeatability

WIDE = TensorSpec(shape=("n", 128), min_value=-1e4, max_value=1e4)
SEARCH = settings(max_examples=2000, database=None, deadline=None)


@pytest.mark.parametrize("seed", range(4))
def test_failure_shrinks_to_one_bad_element(seed):
    """A batch that is too large somewhere shrinks to the smallest size and one value just above the bound, in zeros."""
    found = find(
        described_from_spec({"x": WIDE}, sizes={"n": (2, 32)}),
        lambda described: bool(described.batch["x"].max() > 88),
        settings=SEARCH,
        random=random.Random(seed),
    )
    x = found.batch["x"]
    assert x.shape == (2, 128)
    assert (x != 0).sum() == 1
    assert 88 < x.max() <= 128
    assert f"element {(x != 0).nonzero()[0].tolist()} set to" in repr(found)


def test_shrinking_of_a_fixed_shape_keeps_the_rest_plain():
    """With (32, 128) fixed and a range without zero the rest becomes the value nearest zero."""
    spec = TensorSpec(shape=(32, 128), min_value=2, max_value=1e4)
    x = find(from_spec(spec), lambda x: bool(x.max() > 88), settings=SEARCH, random=random.Random(0))
    assert (x != 2).sum() == 1


@pytest.mark.parametrize(
    ("condition", "smallest"),
    [
        (lambda b: not b["m"].any(-1).all(), (1, 1)),
        (lambda b: bool((b["y"] == -100).all()), (1, 1)),
        (lambda b: b["m"].shape[1] >= 4, (1, 4)),
        (lambda b: bool((b["y"] >= 3).any()), (1, 1)),
    ],
    ids=["empty mask row", "all ignored", "size 4", "class 3"],
)
def test_named_sizes_shrink_to_the_smallest(condition, smallest):
    """Faults of masks and labels are found, in the smallest batch that has them."""
    domain = {
        "m": TensorSpec(shape=("n", "k"), dtype="bool", kind="mask"),
        "y": TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=9, ignore_index=-100),
    }
    found = find(from_spec(domain), condition, settings=SEARCH, random=random.Random(1))
    assert found["m"].shape == smallest


X = TensorSpec(shape=("n", 6), min_value=-1e4, max_value=1e4)
FAULTS = {
    "softmax without the maximum": (X, lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
    "division by a standard deviation": (X, lambda x: (x - x.mean(0)) / x.std(0, unbiased=False)),
    "cosine with a zero row": (X, lambda x: x / x.norm(dim=-1, keepdim=True)),
    "variance by squares": (X, lambda x: ((x**2).mean(-1) - x.mean(-1) ** 2).sqrt()),
    "distance of equal rows": (X, lambda x: 1 / (x[:1] - x[-1:]).norm(dim=-1)),
    "log of a probability": (TensorSpec(shape=("n", 6), kind="probabilities"), torch.log),
    "1/x of what may be zero": (TensorSpec(shape=("n",), min_value=0.0, max_value=1.0), torch.reciprocal),
    "square in half precision": (TensorSpec(shape=("n", 6), dtype="float16", max_value=300), lambda x: x * x),
    "mean over an empty mask": (
        TensorSpec(shape=("n", 6), dtype="bool", kind="mask"),
        lambda mask: mask.sum(-1) / mask.sum(-1),
    ),
    "mean over ignored labels": (
        TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=5, ignore_index=-100),
        lambda y: torch.nn.functional.cross_entropy(torch.zeros(len(y), 6), y),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_common_faults_are_found_within_a_few_hundred_examples(name):
    """What a few runs of Hypothesis' default length must find; the fixed list of boundary batches finds it at once."""
    spec, function = FAULTS[name]

    def fails(batch):
        return not bool(torch.isfinite(function(batch)).all())

    budget = settings(max_examples=400, database=None, deadline=None, phases=[Phase.generate])
    find(from_spec(spec), fails, settings=budget, random=random.Random(0))
    assert any(fails(described.batch) for described in boundary_batches(spec, {"n": (2, 8)}))


def test_most_batches_have_many_distinct_values():
    """More than 100 distinct values in many examples (most, with today's Hypothesis), constants among the others."""
    counts = []

    @settings(QUICK, max_examples=200, phases=[Phase.generate])
    @given(from_spec(WIDE, sizes={"n": (32, 32)}))
    def collect(x):
        counts.append(len(x.unique()))

    collect()
    assert sum(count > 100 for count in counts) > 0.35 * len(counts)
    assert min(counts) == 1


def test_modest_batches_are_common_in_an_open_range():
    """Without bounds a good share of the batches stays small, and some reach the end of the dtype."""
    tops = []

    @settings(QUICK, max_examples=200, phases=[Phase.generate])
    @given(from_spec(TensorSpec(shape=(8, 16))))
    def collect(x):
        tops.append(float(x.abs().max()))

    collect()
    assert sum(top <= 2**10 for top in tops) > 0.2 * len(tops)
    assert sum(top > 1e37 for top in tops) > 0.2 * len(tops)


def test_same_draw_gives_same_bits_and_no_global_random_state_moves():
    """Building is a function of the description; numpy's, torch's and Python's generators stay where they were."""
    spec = {"x": WIDE, "m": TensorSpec(shape=("n", 9), dtype="bool", kind="mask", min_true=1)}
    checked = plan(spec)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    for kind, mask in zip(dict.fromkeys(kinds_of(WIDE)), itertools.cycle(kinds_of(spec["m"])), strict=False):
        description = Description({"n": 5}, (Recipe(kind, seed=4), Recipe(mask, seed=9)))
        one, two = realise(checked, description), realise(checked, description)
        assert torch.equal(one.batch["x"].view(torch.int32), two.batch["x"].view(torch.int32))
        assert torch.equal(one.batch["m"], two.batch["m"])
        assert one.words == two.words
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()


def test_derandomized_runs_repeat():
    """With `derandomize` two runs see the same batches."""
    runs = []
    for _ in range(2):
        seen = []

        @QUICK
        @given(from_spec({"x": WIDE}))
        def collect(batch):
            seen.append(describe(batch))  # noqa: B023 - called before the loop goes on

        collect()
        runs.append(seen)
    assert runs[0] == runs[1]


@pytest.mark.filterwarnings("error")
def test_large_batches_trip_no_health_check():
    """Big tensors and many fields pass under Hypothesis' default health checks."""
    domain = [TensorSpec(shape=(64, 1024)), *(TensorSpec(shape=("n", 64), dtype="bfloat16") for _ in range(12))]

    @settings(max_examples=15, database=None)
    @given(from_spec(domain))
    def check(batch):
        assert len(batch) == 13

    check()


# --- words


def test_words_of_how_a_batch_was_built():
    """A described batch names its fields, kinds and edits, and its repr is these words."""
    recipe = Recipe("constant_column", seed=1, level=4.0, edits=((4 * 8 + 7, 88.8),))
    spec = {"x": TensorSpec(shape=("n", 8), min_value=-100, max_value=100)}
    described = realise(plan(spec), Description({"n": 6}, (recipe,)))
    assert repr(described) == f"Described({described.words})"
    assert describe(described) == described.words
    assert described.words.startswith("x float32[6, 8]: uniform in [-4, 4], column ")
    assert described.words.endswith("; element [4, 7] set to 88.8")
    assert described.batch["x"][4, 7] == torch.tensor(88.8)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(2, 3), "float32[2, 3]: all 0"),
        ({"x": torch.tensor([[0.0, 0, 0], [0, 88.75, 0]])}, "x float32[2, 3]: all 0; element [1, 1] set to 88.75"),
        (torch.tensor([[1.0, 5], [2, 5]]), "float32[2, 2]: values in [1, 5]; column 1 constant at 5"),
        (torch.tensor([[1, 2, 3, 4]] * 2), "int64[2, 4]: values in [1, 4]; all rows equal"),
        (torch.tensor([1.0, math.nan, 2, 3]), "values in [1, 3]; 1 of 4 non-finite, the first at [1]"),
        (torch.tensor([[True, False]] * 2 + [[True, True]] * 2), "bool[4, 2]: all True; element [0, 1] set to False"),
        ((np.zeros((0, 3)), "text"), "[0] float64[0, 3]: empty"),
        ("text", "no tensors"),
        (torch.full((3,), math.nan), "float32[3]: all nan"),
        (torch.zeros(2, dtype=torch.bfloat16), "bfloat16[2]: all 0"),
        (torch.tensor(1 + 2j), "complex64[]: all 1+2j"),
    ],
)
def test_words_of_any_batch(batch, words):
    """A batch nobody described is looked at: constants, deviations, constant columns, non-finite values."""
    assert words in describe(batch)


# --- from_batch


def test_from_batch_stays_inside_the_sample():
    """Batches like a sample: same structure, values inside what was seen, arrays as arrays, other leaves untouched."""
    marker = object()
    sample = {
        "x": torch.tensor([[0.5, -2.0, 1.0], [0.0, 3.0, 1.5]]),
        "ids": np.array([[3, 9], [4, 4]]),
        "mask": torch.tensor([[True, True, False], [True, False, False]]),
        "p": torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
        "extra": ["text", None, 3, marker],
    }

    @QUICK
    @given(from_batch(sample))
    def check(batch):
        assert list(batch) == list(sample)
        assert batch["x"].shape == (2, 3)
        assert -2 <= batch["x"].min() <= batch["x"].max() <= 3
        assert isinstance(batch["ids"], np.ndarray)
        assert batch["ids"].dtype == np.int64
        assert batch["ids"].min() >= 3
        assert batch["ids"].max() <= 9
        assert set(batch["mask"].sum(-1).tolist()) <= {1, 2}
        assert torch.allclose(batch["p"].sum(-1), torch.ones(2))
        assert batch["extra"] == ["text", None, 3, marker]

    check()


def test_from_batch_takes_wider_sizes_and_fields():
    """The user may widen the batch size, by the name "batch", and a field, by `domain`."""
    widths, tops = set(), []

    @QUICK
    @given(
        from_batch(
            (torch.zeros(4, 2), torch.zeros(4)),
            domain=(TensorSpec(shape=("batch", 2), min_value=0, max_value=1e6), None),
            sizes={"batch": (1, 3)},
        )
    )
    def check(batch):
        x, y = batch
        assert len(x) == len(y)
        assert (y == 0).all()
        widths.add(len(x))
        tops.append(float(x.max()))

    check()
    assert widths == {1, 2, 3}
    assert 1e5 < max(tops) <= 1e6


# --- corruptions

Record = namedtuple("Record", ["x", "name"])


def frame():
    return pd.DataFrame(
        {
            "a": [1.0, 2.0, 3.0],
            "count": [1, 2, 3],
            "day": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
            "word": pd.Series(["x", "yy", "z"], dtype=object, index=[10, 11, 12]),
            "size": pd.Categorical(["s", "m", "s"]),
            "maybe": pd.array([1, 2, 3], dtype="Int64"),
            "flag": [True, False, True],
        },
        index=[10, 11, 12],
    )


SAMPLES = [
    np.arange(12, dtype=np.float32).reshape(4, 3),
    {"x": torch.ones(4, 2, 3, dtype=torch.bfloat16), "y": torch.arange(4), "text": ["a", "bc"]},
    [{"x": 1.0, "n": 2, "s": "hey"}] * 9,
    Record(np.zeros(3), "name"),
    [[1.0, 2], [3, 4.5]],
    "some text",
    np.array(["a", "bcd"]),
    np.array(["2020-01-01", "2021-01-01"], dtype="M8[D]"),
    np.array(["a", 3, None], dtype=object),
    torch.tensor([1 + 2j, 0j]),
    2.5,
    frame(),
    frame()["a"],
]


def is_same(one, two):
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return type(one) is type(two) and one.equals(two) and str(one.dtypes) == str(two.dtypes)
    if isinstance(one, (np.ndarray, torch.Tensor)):
        return type(one) is type(two) and one.dtype == two.dtype and one.tolist() == two.tolist()
    if isinstance(one, dict):
        return set(one) == set(two) and all(is_same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(is_same, one, two))
    return one == two


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_corruptions_change_a_copy(sample):
    """Every corruption differs from the sample, the sample stays as it was, and no two have the same name and place."""
    original = copy.deepcopy(sample)
    found = all_corruptions(sample)
    assert found
    assert is_same(sample, original)
    assert not any(is_same(corruption.value, sample) for corruption in found)
    assert all(type(corruption.value) is type(sample) for corruption in found)
    assert len({(corruption.name, corruption.place) for corruption in found}) == len(found)


def by_place(found, name):
    return {corruption.place: corruption for corruption in found if corruption.name == name}


def test_array_corruptions_name_places_and_rows():
    """NaN and infinities go to values, a row, a column and everywhere; large magnitudes are legal."""
    found = all_corruptions(np.zeros((4, 3), np.float32))
    assert list(by_place(found, "-Inf")) == [
        "element [2, 0]",
        "element [0, 0]",
        "element [3, 2]",
        "element [2, 1]",
        "element [2, 2]",
        "row 2",
        "column 1",
        "everywhere",
    ]
    row = by_place(found, "NaN")["row 2"]
    assert row.rows == (2,)
    assert row.invalid
    assert np.isnan(row.value[2]).all()
    assert np.isfinite(np.delete(row.value, 2, axis=0)).all()
    assert by_place(found, "NaN")["column 1"].rows == (0, 1, 2, 3)
    large = by_place(found, "1e5 (beyond float16)")["element [2, 0]"]
    assert not large.invalid
    assert large.value[2, 0] == 1e5
    assert "1e39 (beyond float32)" not in {corruption.name for corruption in found}
    assert "1e39 (beyond float32)" in {corruption.name for corruption in all_corruptions(np.zeros(3))}


def test_frame_corruptions_fit_each_column():
    """Floats take numbers, dates NaT, text None and bad text, integers become floats with a gap; bool is left alone."""
    found = all_corruptions(frame())
    middle = {(c.name, c.place): c for c in found if c.rows == (1,)}
    assert middle["+Inf", "row 1 of column 'a'"].value["a"].tolist() == [1.0, math.inf, 3.0]
    assert pd.isna(middle["NaT", "row 1 of column 'day'"].value["day"].iloc[1])
    assert middle["None", "row 1 of column 'word'"].value["word"].iloc[1] is None
    assert middle["lone surrogate", "row 1 of column 'word'"].value["word"].iloc[1] == "y\ud800y"
    assert pd.isna(middle["NA", "row 1 of column 'maybe'"].value["maybe"].iloc[1])
    gap = middle["NaN", "row 1 of column 'count'"].value
    assert gap["count"].dtype == np.float64
    assert gap["day"].dtype == frame()["day"].dtype
    assert not any("'flag'" in place for _, place in middle)
    assert all(list(c.value.index) == [10, 11, 12] for c in found if c.family not in ("rows", "index"))


def test_text_corruptions_that_no_encoder_accepts_are_invalid():
    """A lone surrogate cannot be encoded and is invalid; NUL and a byte order mark are legal but odd."""
    found = {corruption.name: corruption for corruption in all_corruptions("word")}
    assert found["lone surrogate"].invalid
    with pytest.raises(UnicodeEncodeError):
        found["lone surrogate"].value.encode()
    assert found["byte order mark"].value == "\ufeffword"
    assert found["NUL character"].value == "wo\x00rd"
    assert not found["NUL character"].invalid
    assert max(map(len, all_corruptions(np.array(["ab"]))[0].value)) == 3


def test_records_count_as_rows():
    """In a list of records the first, middle and last are corrupted, and the record is the row."""
    found = all_corruptions([{"x": 1.0}] * 9)
    assert {corruption.rows for corruption in found if corruption.family != "rows"} == {(0,), (4,), (8,)}
    assert by_place(found, "NaN")['"4.x"'].value[4] != {"x": 1.0}


def test_tensors_with_history_are_copied():
    """Neighbours of the corrupted field may require gradients or have a history."""
    leaf = torch.ones(2, requires_grad=True)
    found = all_corruptions({"a": leaf * 2, "b": np.zeros(1), "c": leaf})
    assert found
    assert torch.equal(leaf, torch.ones(2))
    assert all(corruption.value["c"].requires_grad for corruption in found)


@pytest.mark.parametrize("sample", [np.array([True]), 3, None, {}, [], np.zeros((0, 3))], ids=repr)
def test_samples_that_cannot_be_corrupted(sample):
    """A boolean, a number that is whole and empty samples give no corruption, and the strategy says so."""
    assert all_corruptions(sample) == []
    with pytest.raises(ValueError, match="sample must hold numbers, text, dates or objects to corrupt"):
        corruptions(sample)


def test_corruption_strategy_gives_fresh_copies():
    """Code under test may write into a corrupted sample without changing the next example."""
    names = set()

    @settings(QUICK, max_examples=80)
    @given(corruptions({"x": np.zeros((2, 2))}))
    def check(corruption):
        assert isinstance(corruption, Corruption)
        assert not (corruption.value["x"] == 7).any()
        names.add(corruption.name)
        corruption.value["x"][:] = 7

    check()
    assert {"NaN", "+Inf", "-Inf"} <= names


@given(st.data())
@settings(QUICK, max_examples=10)
def test_described_is_the_same_batch_with_words(data):
    """The suite's strategy yields the batch together with its words."""
    described = data.draw(described_from_spec((WIDE,), sizes={"n": (1, 2)}))
    assert isinstance(described, Described)
    assert described.batch[0].shape[1] == 128
    assert described.words.startswith("[0] float32[")
