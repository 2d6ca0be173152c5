"""What the tests share: the data, read once, and small fresh models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from data.names import NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer


@pytest.fixture(scope="session")
def names() -> NamePairs:
    return NamePairs(batch_size=16)


@pytest.fixture
def make_translator(names: NamePairs) -> Callable[[], Seq2SeqTransformer]:
    """A factory: the same untrained model on every call."""

    def make() -> Seq2SeqTransformer:
        torch.manual_seed(0)
        return Seq2SeqTransformer(Seq2SeqConfig(len(names.source), len(names.target)))

    return make
