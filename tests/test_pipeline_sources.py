"""What a pipeline comes as: datasets, loaders, generators, frames of polars, bytes, images, modules, partials."""

from __future__ import annotations

import dataclasses
import linecache
from collections import namedtuple
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pytest_nanstab import NonFiniteError, StabilityError, assert_handles_nonfinite


def failure(pipeline, sample, **kwargs):
    with pytest.raises(StabilityError) as caught:
        assert_handles_nonfinite(pipeline, sample, **kwargs)
    return caught.value


def outcomes(error):
    return {(row["corruption"], row["place"]): row["outcome"] for row in error.findings[0].evidence["outcomes"]}


def line_of(finding):
    file, _, number = finding.source.rpartition(":")
    return linecache.getline(file, int(number)).strip()


def rows():
    return torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) + 0.5


def refuse(x):
    if not torch.isfinite(x).all():
        raise ValueError(f"rows {torch.nonzero(~torch.isfinite(x))[:, 0].tolist()} are not finite")
    return x


class Rows(Dataset):
    """A map-style data set."""

    def __init__(self, table, transform=lambda row: row):
        self.table, self.transform = table, transform

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        return self.transform(self.table[index]), index


class Stream(IterableDataset):
    """A data set that is only iterated."""

    def __init__(self, table, transform=lambda row: row):
        self.table, self.transform = table, transform

    def __iter__(self):
        yield from map(self.transform, self.table)


def checked(row):
    if not torch.isfinite(row).all() or row.abs().max() > 1e30:
        raise ValueError("not finite")
    return row


SOURCES = {
    "data set": lambda table, transform: Rows(table, transform),
    "stream": lambda table, transform: Stream(table, transform),
    "loader": lambda table, transform: DataLoader(Rows(table, transform), batch_size=3),
    "loader of a stream": lambda table, transform: DataLoader(Stream(table, transform), batch_size=3),
    "shuffling loader": lambda table, transform: DataLoader(Rows(table, transform), batch_size=3, shuffle=True),
    "collating loader": lambda table, transform: DataLoader(
        Rows(table), batch_size=3, collate_fn=lambda items: transform(torch.stack([item[0] for item in items]))
    ),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("held", [True, False], ids=["held", "made"])
def test_data_sets_and_loaders(make, held):
    """One that holds the sample is given other data; a function that makes one is called with them."""
    table = rows()
    broken = make(table, lambda row: row * 2) if held else lambda data: make(data, lambda row: row * 2)
    error = failure(broken, table, policy="reject")
    assert isinstance(error, NonFiniteError)
    assert outcomes(error)["NaN", "element [4, 0]"].startswith("let through: NaN")
    sound = make(table, checked) if held else lambda data: make(data, checked)
    assert_handles_nonfinite(sound, table, policy="reject")


def test_the_held_data_are_put_back():
    """The data set of the test is as it was."""
    table = rows()
    data = Rows(table, checked)
    assert_handles_nonfinite(DataLoader(data, batch_size=2), table, policy="reject")
    assert data.table is table
    assert torch.isfinite(table).all()


def test_a_data_set_that_keeps_its_own_copy():
    """It is found by its contents; what it keeps is what is corrupted."""

    class Converted(Dataset):
        def __init__(self, array):
            self.x = torch.tensor(array, dtype=torch.float32)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index]

    array = np.random.default_rng(0).random((6, 2))
    assert isinstance(failure(Converted(array), array, policy="reject"), NonFiniteError)


def test_a_data_set_without_the_sample_is_refused_by_name():
    """There is nothing to put corrupted data in place of."""
    with pytest.raises(TypeError, match="sample must be the data that the Rows holds"):
        assert_handles_nonfinite(Rows(rows()), torch.zeros(3, 2), policy="reject")


def test_tensor_data_set_of_two_tensors():
    """Features and labels are held, and corrupted, as a pair."""
    x, y = rows(), torch.arange(8)
    error = failure(DataLoader(TensorDataset(x, y), batch_size=4), (x, y), policy="reject")
    assert outcomes(error)["NaN", 'row 4 of "0"'].startswith("let through: NaN in field 0, row 4")


@pytest.mark.slow
def test_loader_with_workers():
    """Its first batch comes from the workers, so what cannot cross a process fails; the rest runs in this one."""
    table = rows()
    assert_handles_nonfinite(DataLoader(Rows(table, checked), batch_size=3, num_workers=2), table, policy="reject")
    broken = DataLoader(Rows(table), batch_size=3, num_workers=2)
    assert isinstance(failure(broken, table, policy="reject"), NonFiniteError)


def test_generators_are_read_to_the_end():
    """The last batch of a generator is looked at too."""

    def batches(table):
        for part in table.split(3):
            yield part * 2

    def checked_batches(table):
        yield from batches(refuse(table))

    error = failure(batches, rows(), policy="reject")
    assert outcomes(error)["NaN", "element [7, 2]"] == "let through: NaN, row 7, column 2"
    assert_handles_nonfinite(checked_batches, rows(), policy="reject", corruptions=["NaN", "Inf", "batch", "row"])


def test_polars_pipelines():
    """null and NaN are different things there; a pipeline has to see both."""
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1.0, 2.0, 4.0, 3.0], "b": [5.0, 7.0, 6.0, 8.0]})

    def only_null(data):
        return data.with_columns(polars.all().fill_null(0.0))

    def both(data):
        return data.with_columns(polars.all().fill_nan(None).fill_null(0.0).clip(-1e6, 1e6))

    words = outcomes(failure(only_null, frame, policy="sanitize"))
    assert words["null", "row 2 of column 'a'"] == "repaired"
    assert words["NaN", "row 2 of column 'a'"] == "let through: NaN in field a, row 2"
    assert_handles_nonfinite(both, frame, policy="sanitize")


def test_bytes_pipelines():
    """A strict decoder refuses, one that replaces repairs, surrogateescape lets lone surrogates through."""
    lines = ["grün".encode(), b"hello", b"a b c"]

    def decode(errors):
        return lambda data: [line.decode("utf-8", errors) for line in data]

    assert_handles_nonfinite(decode("strict"), lines, policy="reject", raises=(ValueError, AttributeError))
    assert_handles_nonfinite(decode("replace"), lines, policy="sanitize", corruptions=["byte", "encod", "breaks"])
    escaped = outcomes(failure(decode("surrogateescape"), lines, policy="sanitize", corruptions=["byte 0xFF"]))
    assert escaped["byte 0xFF", "element [1]"] == "let through: text that cannot be encoded in field 1"
    ignored = outcomes(failure(decode("ignore"), lines, policy="reject", corruptions=["byte 0xFF"]))
    assert set(ignored.values()) == {"accepted: finite output"}
    unread = failure(lambda data: [line.strip() for line in data], lines, policy="sanitize", corruptions=["0xFF"])
    assert "text that cannot be encoded" in unread.findings[0].cause


class Normalise(nn.Module):
    """A transform in the manner of torchvision."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, image):
        if not ((image >= 0) & (image <= 1)).all():
            raise ValueError("pixels outside 0..1")
        return image / (image.mean() + self.eps)


class Compose:
    """As torchvision's."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


def test_image_transforms():
    """A black image has a mean of zero; 0..255 for 0..1 is refused."""
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    error = failure(Compose(Normalise(0.0), lambda x: x * 2), image, policy="reject")
    assert outcomes(error)["all black", ""].startswith("let through: NaN")
    assert line_of(error.findings[0]) == "return image / (image.mean() + self.eps)"
    assert_handles_nonfinite(Compose(Normalise(1e-6)), image, policy="reject")


def test_casts_to_bytes_that_wrap_around():
    """256 becomes 0 in an 8-bit image: finite, and wrong."""
    image = np.random.default_rng(0).random((4, 6, 6))

    def encode(x):
        if not np.isfinite(x).all():
            raise ValueError("not finite")
        return np.rint(x * 255).astype(np.uint8)

    def saturating(x):
        return encode(np.clip(x, 0, 1))

    error = failure(encode, image, policy="reject")
    assert any(words.startswith("let through: ") and "became" in words for words in outcomes(error).values())
    assert_handles_nonfinite(saturating, image, policy="reject", corruptions=["1e5", "outlier", "constant", "zero"])


def test_nan_cast_to_whole_numbers():
    """A cast makes the smallest integer of NaN: a repaired output must not hold it."""

    def cast(x):
        with np.errstate(invalid="ignore"):
            return x.astype(np.int64)

    sample = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    words = outcomes(failure(cast, sample, policy="sanitize"))
    assert words["NaN", "row 1"] == "let through: a cast made -9223372036854775808, row 1, column 0"
    assert_handles_nonfinite(
        lambda x: cast(np.nan_to_num(x, posinf=0, neginf=0).clip(-9, 9)), sample, policy="sanitize"
    )


def test_ids_that_do_not_fit_are_seen():
    """An int32 makes 1 of 2**40 + 1; float32 rounds 2**24 + 1, which is legal and told."""
    ids = np.array([[1, 20], [3, 40], [7, 9]])
    words = outcomes(failure(lambda x: x.astype(np.int32), ids, policy="reject"))
    assert words["2**40 + 1 (beyond int32)", "element [1, 1]"] == (
        "let through: 1099511627777 became 1, row 1, column 1"
    )
    words = outcomes(failure(lambda x: x.astype(np.float16), ids, policy="reject"))
    assert words["2**24 + 1 (no float32)", "element [1, 1]"].startswith("let through: Inf")
    assert_handles_nonfinite(lambda x: x.astype(np.float32), ids, policy="reject")


def test_frames_with_text_columns():
    """scikit-learn's own transformers, column by column; unknown categories are refused."""
    frame = pd.DataFrame({"age": [20.0, 31.0, 42.0, 53.0], "city": ["a", "b", "a", "b"]})
    pipeline = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["city"]))
    words = outcomes(failure(pipeline, frame, policy="reject"))
    assert words["NaN (transform)", "row 2 of column 'age'"].startswith("let through: NaN")
    assert words["unknown characters (transform)", "row 2 of column 'city'"] == "refused"


def test_a_vectorizer_of_texts():
    """One of scikit-learn's, on a list of texts; None is no text, and it says so with AttributeError."""
    texts = ["a horse", "my kingdom", "for a horse"]
    error = failure(TfidfVectorizer(), texts, policy="reject")
    assert outcomes(error)["None (fit)", "element [1]"] == "raised AttributeError"
    assert_handles_nonfinite(
        TfidfVectorizer(), texts, policy="reject", raises=(ValueError, AttributeError), corruptions=["None", "batch"]
    )


def test_a_hand_written_tokenizer():
    """Characters that are not in its vocabulary must have a token of their own."""
    vocabulary = {character: number for number, character in enumerate("abcdefgh ", start=1)}

    def strict(texts):
        return [[vocabulary[character] for character in text] for text in texts]

    def tolerant(texts):
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be strings")
        return [[vocabulary.get(character, 0) for character in text.encode().decode()] for text in texts]

    words = outcomes(failure(strict, ["abc", "a head", "bad"], policy="reject"))
    assert words["unknown characters", "element [1]"] == "raised KeyError"
    assert_handles_nonfinite(tolerant, ["abc", "a head", "bad"], policy="reject")


def test_a_tokenizer_that_people_use():
    """Hugging Face's: unknown words have a token, a lone surrogate is refused; a mean over no token is NaN."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    texts = ["a horse", "my kingdom", "for a horse"]
    tokenizer.train_from_iterator(texts, tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]))
    tokenizer.enable_padding(pad_id=1)

    def encode(data):
        return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(data)])

    def share_of_unknown(data):
        ids = encode(data)
        return (ids == 0).sum(dim=1) / (ids != 1).sum(dim=1)

    assert_handles_nonfinite(encode, texts, policy="reject")
    words = outcomes(failure(share_of_unknown, texts, policy="reject"))
    assert words["empty text", "element [1]"] == "let through: NaN, row 1"
    assert words["lone surrogate", "element [1]"] == "refused"


Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Sample:
    """A sample with a name and a table."""

    name: str
    x: torch.Tensor


@pytest.mark.parametrize(
    "make", [lambda x: Sample("s", x), lambda x: Pair(x, torch.arange(8)), lambda x: [x, {"y": x}]]
)
def test_nested_samples(make):
    """Dataclasses, named tuples and lists are taken apart and put together again."""

    def double(sample):
        return (
            torch.utils._pytree.tree_map(lambda leaf: leaf * 2, sample)
            if not isinstance(sample, Sample)
            else (dataclasses.replace(sample, x=sample.x * 2))
        )

    error = failure(double, make(rows()), policy="reject", corruptions="NaN")
    assert isinstance(error, NonFiniteError)


def test_records_read_as_text():
    """`float("nan")` is a number to Python: what is parsed has to be looked at."""
    records = [{"age": "31", "name": "Ada"}, {"age": "42", "name": "Bob"}, {"age": "25", "name": "Cy"}]

    def parse(rows):
        return np.array([float(row["age"]) for row in rows])

    def parse_finite(rows):
        ages = parse(rows)
        if not np.isfinite(ages).all():
            raise ValueError(f"age of row {int(np.argmin(np.isfinite(ages)))} is not finite")
        return ages

    words = outcomes(failure(parse, records, policy="reject"))
    assert words["text 'nan'", '"1.age"'] == "let through: NaN, row 1"
    assert words["text '1,5'", '"1.age"'] == "refused"
    assert_handles_nonfinite(parse_finite, records, policy="reject")


def test_partials_and_bound_methods():
    """They are called like any function."""

    def scaled(x, factor):
        return refuse(x) * factor

    class Scaler:
        factor = 2.0

        def scale(self, x):
            return refuse(x) * self.factor

    for pipeline in (partial(scaled, factor=0.5), Scaler().scale):
        assert_handles_nonfinite(pipeline, rows(), policy="reject", corruptions=["NaN", "Inf"])


def test_columns_that_are_not_read_have_nothing_to_refuse():
    """A pipeline of two columns says nothing about a third one; a column that it reads must be checked."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0, 3.0], "b": [5.0, 7.0, 6.0, 8.0], "note": ["x", "y", "z", "w"]})

    def of_one(data):
        values = pd.to_numeric(data["a"]).to_numpy(dtype=float)
        if not (np.abs(values) < 1e30).all():
            raise ValueError("column a is not finite")
        return values.astype(np.float32)

    assert_handles_nonfinite(of_one, frame, policy="reject")
    words = outcomes(failure(lambda data: of_one(data) + data["b"].to_numpy(dtype=float), frame, policy="reject"))
    assert words["NaN", "row 2 of column 'b'"].startswith("let through")
    assert words["lone surrogate", "row 2 of column 'note'"] == "not used"


def test_declared_missing_values_may_come_through():
    """Of one column NaN may come, of another not; an infinity never."""
    frame = pd.DataFrame({"age": [20.0, 31.0, 42.0, 53.0], "height": [1.0, 2.0, 1.5, 1.2]})

    def finite_but_nan(data):
        values = data.to_numpy(dtype=float)
        if np.isinf(values).any() or (np.abs(values) > 1e30).any():
            raise ValueError("Inf")
        return values

    def without_nan_in_age(data):
        if data["age"].isna().any():
            raise ValueError("column age has gaps")
        return finite_but_nan(data)

    error = failure(finite_but_nan, frame, policy="reject", allow_nan=["height"], corruptions=["NaN"])
    words = outcomes(error)
    assert words["NaN", "row 2 of column 'age'"].startswith("let through: NaN")
    assert words["NaN", "row 2 of column 'height'"] == "finite, missing values allowed"
    assert_handles_nonfinite(
        without_nan_in_age, frame, policy="reject", allow_nan="height", corruptions=["NaN*", "*Inf"]
    )
    named = ["NaN", "[+-]Inf"]
    error = failure(lambda data: data.to_numpy(), frame, policy="reject", allow_nan=True, corruptions=named)
    assert {words.partition(":")[0] for words in outcomes(error).values()} == {
        "finite, missing values allowed",
        "let through",
    }
    with pytest.raises(TypeError, match="allow_nan must be True, False or names of fields, got 3"):
        assert_handles_nonfinite(finite_but_nan, frame, policy="reject", allow_nan=[3])


def test_a_domain_declares_missing_values_too():
    """TensorSpecs shaped like the sample."""
    from pytest_nanstab.strategies import TensorSpec

    sample = {"x": rows(), "gaps": rows()}
    domain = {"gaps": TensorSpec(shape=(8, 3), min_value=0.0, max_value=9.0, allow_nan=True)}

    def guarded(batch):
        if torch.isinf(batch["gaps"]).any():
            raise ValueError("Inf in gaps")
        return {"x": refuse(batch["x"]), "gaps": batch["gaps"]}

    assert_handles_nonfinite(guarded, sample, policy="reject", domain=domain, corruptions=["NaN", "+Inf", "-Inf"])
    assert isinstance(failure(guarded, sample, policy="reject", corruptions=["NaN"]), NonFiniteError)
