"""Culprit: bytes are decoded so that nothing can fail; what is broken becomes lone surrogates, and then odd ids.

Seen: nothing, until a loss rises at some sentences that nobody can print.
Finding: `assert_handles_nonfinite(policy="reject")`: undecodable bytes come through as token ids.
"""

from __future__ import annotations

import torch
from pytest_nanstab import assert_handles_nonfinite
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.names import PAD, Vocabulary, name_pairs

KIND = "accepted-nonfinite"
EXPLICIT = True
VOCABULARY = Vocabulary(text for pair in name_pairs() for text in pair)


def encode(texts: list[str]) -> Tensor:
    if not texts:
        raise ValueError("there is no line")
    return pad_sequence([VOCABULARY.encode(text)[:64] for text in texts], batch_first=True, padding_value=PAD)


def checked(lines: list[bytes]) -> list[bytes]:
    if not all(isinstance(line, bytes) for line in lines):
        raise TypeError("lines must be bytes")
    return lines


def load_escaping(lines: list[bytes]) -> Tensor:
    texts = [line.decode("utf-8", "surrogateescape") for line in checked(lines)]  # culprit
    return encode(texts)


def load_strictly(lines: list[bytes]) -> Tensor:
    texts = [line.decode("utf-8") for line in checked(lines)]
    return encode(texts)


def sample() -> list[bytes]:
    return [german.encode() for _, german in name_pairs()[:6]]


def test_broken() -> None:
    assert_handles_nonfinite(load_escaping, sample(), policy="reject")


def test_healthy() -> None:
    assert_handles_nonfinite(load_strictly, sample(), policy="reject")
    assert load_strictly(sample()).dtype == torch.int64
