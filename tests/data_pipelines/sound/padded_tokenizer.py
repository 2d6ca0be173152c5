"""Whitespace tokenizer with a frozen vocabulary, unknown token, truncation, padding and mask."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    return ["to be or not to be", "that is the question", "whether tis nobler", "in the mind"]


class Tokenizer:
    pad, unk = 0, 1

    def __init__(self, corpus, max_len=5):
        words = sorted({w for line in corpus for w in line.split()})
        self.vocab = {w: i + 2 for i, w in enumerate(words)}
        self.max_len = max_len

    def encode(self, text):
        if type(text) is not str:
            raise TypeError(f"cannot tokenise {type(text).__name__}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("text holds a lone surrogate")
        ids = [self.vocab.get(w, self.unk) for w in text.lower().split()][: self.max_len]
        return ids + [self.pad] * (self.max_len - len(ids))

    def __call__(self, batch):
        ids = torch.tensor([self.encode(t) for t in batch], dtype=torch.long).reshape(-1, self.max_len)
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long()}


def build():
    return Tokenizer(sample())
