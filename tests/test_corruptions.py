"""The catalogue of corruptions: what fits which sample, where it goes, and that the sample itself stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import find

from pytest_nanstab.corruptions.catalogue import all_corruptions, recipes
from pytest_nanstab.strategies import corruptions


def names(sample):
    return {recipe.name for recipe in recipes(sample)}


def made(sample, name, place=None):
    found = [recipe.made() for recipe in recipes(sample) if recipe.name == name and place in (None, recipe.place)]
    return found[0].value


def table():
    return np.array([[1.0, -2.0, 0.0], [3.0, 4.0, 1.0], [5.0, 6.0, 1.0], [2.0, 8.0, 0.0]])


def test_every_column_of_a_table_loses_a_value():
    """A defect in one column is met: NaN and infinities go to a value of each, NaN to each as a whole."""
    places = {(recipe.name, recipe.place) for recipe in recipes(table())}
    for column in range(3):
        assert {
            ("NaN", f"element [2, {column}]"),
            ("-Inf", f"element [2, {column}]"),
            ("NaN", f"column {column}"),
        } <= places
        assert ("NaN in all but one", f"column {column}") in places
        assert ("constant", f"column {column}") in places


def test_wide_tables_are_not_gone_through_column_by_column():
    """Of 400 columns the first, the middle and the last are enough."""
    assert len(recipes(np.ones((4, 400)) * np.arange(400))) < 80


def test_zero_and_negative_only_where_they_are_new():
    """Zero goes where all was positive, a negative value where nothing was negative; 0 and 1 are answers."""
    signs = {(recipe.name, recipe.place) for recipe in recipes(table()) if recipe.family == "sign"}
    assert signs == {("zero", "element [2, 0]"), ("negative", "element [2, 0]"), ("zero", "row 2")}
    signs = {(recipe.name, recipe.place) for recipe in recipes(np.array([3.0, 0.0, 2.0])) if recipe.family == "sign"}
    assert signs == {("negative", "element [1]"), ("zero", "everywhere")}


def test_a_row_of_zeros_among_amounts():
    """A whole record can be zero, or one value all along: a rate of it, or its own z-score, is 0 / 0."""
    assert made(table(), "zero", "row 2")[2].tolist() == [0.0, 0.0, 0.0]
    assert len(set(made(table(), "constant", "row 2")[2])) == 1


def test_all_but_one_value_missing():
    """One value is left in the column."""
    column = made(table(), "NaN in all but one", "column 1")[:, 1]
    assert np.isnan(column).sum() == 3
    assert column[-1] == 8.0


def test_whole_numbers_of_tables_overflow_and_small_codes_do_not():
    """A float32 does not hold 2**24 + 1; a label is one that nothing is allocated for; 0 and 1 are left alone."""
    counts = np.array([[1, 20], [3, 4]])
    assert {"2**24 + 1 (no float32)", "2**40 + 1 (beyond int32)", "2**63 - 1 (the largest int64)"} <= names(counts)
    assert "2**40 + 1 (beyond int32)" not in names(counts.astype(np.int32))
    assert [name for name in names({"y": np.array([0, 1, 2])}) if "2**" in name] == ["2**40 + 1 (beyond int32)"]
    assert not any("2**" in name for name in names({"mask": torch.tensor([0, 1, 1])}))
    assert not any("2**" in name for name in names({"lengths": torch.tensor([3, 1, 2])}))


def test_frames_hold_texts_among_numbers_unknown_categories_and_odd_indices():
    """What a file that was not read cleanly gives."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "kind": pd.Categorical(["u", "v", "u"])})
    assert made(frame, "text '1,5'")["a"].tolist() == [1.0, "1,5", 3.0]
    assert made(frame, "text 'nan'")["a"].dtype == object
    assert made(frame, "unknown category")["kind"].iloc[1] == "never seen before"
    assert made(frame, "duplicate index").index.tolist() == [0, 0, 1]
    assert made(frame, "index with gaps").index.tolist() == [1, 3, 5]
    assert frame.index.tolist() == [0, 1, 2]


def test_polars_columns_hold_null_beside_nan():
    """polars is strict about types: no text among numbers, no labels of rows, but null everywhere."""
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1.0, 2.0, 3.0], "k": [1, 2, 3], "t": ["x", "y", "z"]})
    found = {(recipe.name, recipe.place): recipe for recipe in recipes(frame)}
    assert found["null", "row 1 of column 'k'"].make()["k"].to_list() == [1, None, 3]
    assert math.isnan(found["NaN", "row 1 of column 'a'"].make()["a"].to_list()[1])
    assert found["2**40 + 1 (beyond int32)", "row 1 of column 'k'"].make()["k"].to_list() == [1, 2**40 + 1, 3]
    assert not {"duplicate index", "text 'nan'"} & {name for name, _ in found}
    assert made(frame, "empty batch").shape == (0, 3)
    assert made(frame, "single row")["a"].to_list() == [2.0]
    assert frame["a"].to_list() == [1.0, 2.0, 3.0]


def test_series_of_both_libraries():
    """A column alone is corrupted like one in a frame."""
    assert {"NaN", "constant", "negative", "single row"} <= names(pd.Series([1.0, 2.0, 3.0], name="x"))
    polars = pytest.importorskip("polars")
    assert {"NaN", "null", "constant"} <= names(polars.Series("x", [1.0, 2.0, 3.0]))


def test_texts_of_every_kind():
    """What no encoder accepts is invalid, what is odd is legal; a long text is as long as it says."""
    found = {corruption.name: corruption for corruption in all_corruptions("word")}
    assert [name for name, corruption in found.items() if corruption.invalid] == ["lone surrogate"]
    assert found["empty text"].value == ""
    assert found["only blanks"].value.strip() == ""
    assert len(found["text of 100000 characters"].value) >= 100_000
    assert "\u0301" in found["combining marks"].value
    assert "\u202e" in found["right-to-left marks"].value
    assert {"unknown characters", "NUL character", "byte order mark"} <= set(found)


def test_texts_that_are_numbers():
    """In a file read as text, "nan" and "inf" are what `float` takes for numbers."""
    record = {"age": "31", "name": "Ada"}
    found = {(recipe.name, recipe.place): recipe for recipe in recipes([record] * 3)}
    assert found["text 'nan'", '"1.age"'].make()[1] == {"age": "nan", "name": "Ada"}
    assert ("text 'nan'", '"1.name"') not in found
    assert {"text 'inf'", "text '1,5'"} <= names(["1.5", "2"])


def test_bytes_that_are_text_are_broken_between_their_characters():
    """Every invalid sequence is one that UTF-8 does not have; the rest still decodes."""
    sample = ["grün".encode(), "schön".encode()]
    for corruption in all_corruptions(sample):
        for item in [] if corruption.family != "text" else corruption.value:
            if corruption.invalid and item not in sample:
                with pytest.raises(UnicodeDecodeError):
                    item.decode("utf-8")
            else:
                item.decode("utf-8")
    assert {"byte 0xFF", "overlong encoding", "encoded surrogate", "sequence that breaks off"} <= names(sample)


def test_binary_bytes_are_no_text():
    """The bytes of an image file are not corrupted as a text."""
    assert names([b"\x89PNG\xff", b"\xff\xd8"]) == {"None", "empty batch", "single row"}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.rand(3, 8, 8), {"all black", "all white", "0..255 for 0..1"}),
        (np.random.default_rng(0).random((8, 8, 3)), {"all black", "all white", "0..255 for 0..1"}),
        (torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8), {"all black", "all white"}),
        (torch.randn(3, 8, 8), {"all black"}),
        (torch.rand(5, 6, 7), set()),
    ],
    ids=["tensor", "channels last", "bytes", "normalised", "no image"],
)
def test_images(image, expected):
    """Black, white, and another scale where the one it has is known; a stack of matrices is no image."""
    assert {recipe.name for recipe in recipes(image) if recipe.family == "image"} == expected


def test_one_image_has_no_rows():
    """Its first dimension is no batch."""
    assert "empty batch" not in names(torch.rand(3, 8, 8))
    assert "empty batch" in names(torch.rand(2, 3, 8, 8))


def test_sequences_of_length_zero():
    """In lists of unequal sequences, in fields of lengths, and in masks."""
    assert made([[1, 2], [3], [4, 5, 6]], "sequence of length 0") == [[1, 2], [], [4, 5, 6]]
    batch = {
        "x": torch.rand(4, 3, 2),
        "lengths": torch.tensor([3, 2, 1, 3]),
        "mask": torch.ones(4, 3, dtype=torch.bool),
    }
    assert made(batch, "sequence of length 0")["lengths"].tolist() == [3, 2, 0, 3]
    assert not made(batch, "mask all False")["mask"][2].any()
    assert "sequence of length 0" not in names([[1.0, 2.0], [3.0, 4.0]])


def test_empty_and_single_rows_of_shared_rows():
    """All parts of a sample lose the same rows; where they share none there are none to lose."""
    pair = (np.ones((4, 2)), torch.arange(4))
    empty, single = made(pair, "empty batch"), made(pair, "single row")
    assert (empty[0].shape, empty[1].shape) == ((0, 2), (0,))
    assert single[1].tolist() == [2]
    assert "single row" not in names({"image": torch.rand(3, 8, 8), "label": torch.tensor([1, 2])})


@dataclasses.dataclass(frozen=True)
class Graph:
    """A sample as people write them."""

    nodes: np.ndarray
    name: str


def test_dataclasses_are_opened():
    """Their fields are corrupted, and frozen ones are built again."""
    graph = Graph(np.ones((3, 2)), "g")
    before = copy.deepcopy(graph)
    found = {(recipe.name, recipe.place) for recipe in recipes(graph)}
    assert ("NaN", 'element [1, 1] of "nodes"') in found
    assert ("lone surrogate", '"name"') in found
    assert np.isnan(made(graph, "NaN").nodes).any()
    assert (graph.nodes == before.nodes).all()


def test_recipes_copy_nothing_until_they_are_asked():
    """A hundred corruptions of 80 MB are described without a hundred copies."""
    tracemalloc = pytest.importorskip("tracemalloc")
    sample = torch.rand(100_000, 4)
    recipes(sample)
    tracemalloc.start()
    found = recipes(np.ones((200_000, 4)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) > 40
    assert peak < 200_000 * 4 * 8 * 8  # masks of one byte each, no copies of eight


def test_the_strategy_shrinks_to_one_value():
    """What fails is shown in its smallest form."""
    smallest = find(corruptions({"x": np.ones((5, 3)), "t": ["a", "b"]}), lambda corruption: corruption.invalid)
    assert (smallest.name, smallest.place) == ("NaN", 'element [2, 1] of "x"')
    assert repr(recipes(np.ones(3))[0]) == "Recipe(name='NaN', place='element [1]', invalid=True)"
