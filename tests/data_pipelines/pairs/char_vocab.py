"""A lone surrogate is looked up like any other character and becomes an UNK id instead of being refused."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = "VOCAB.get(ch, UNK)"

PAD, UNK = 0, 1
VOCAB = {ch: i + 2 for i, ch in enumerate("abcdefghijklmnopqrstuvwxyz .,'")}
WIDTH = 24


def sample():
    return ["the cat sat", "on the mat.", "it's late", "hello, world", "ok"]


def _string(text):
    if not isinstance(text, str):
        raise TypeError(f"expected str, got {type(text).__name__}")
    return text


def encode(text):
    return [VOCAB.get(ch, UNK) for ch in _string(text)][:WIDTH]


def encode_valid(text):
    text = _string(text)
    text.encode("utf-8")  # refuses lone surrogates
    return [VOCAB.get(ch, UNK) for ch in text][:WIDTH]


def make_batch(texts, encoder):
    out = np.full((len(texts), WIDTH), PAD, dtype=np.int64)
    for row, text in enumerate(texts):
        ids = encoder(text)
        out[row, : len(ids)] = ids
    return out


def build(fixed: bool):
    encoder = encode_valid if fixed else encode
    return lambda texts: make_batch(texts, encoder)
