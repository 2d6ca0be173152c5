"""Source lines split into tokens, unknown tokens map to UNK, rows padded to one length."""

import re

import torch

POLICY = "reject"
KWARGS = {}

TOKEN = re.compile(r"[A-Za-z_]+|\d+|\S")
PAD, UNK = 0, 1


def sample():
    return ["def f(x): return x", "for i in x: print(i)", "x = f(x) + 1", "return i"]


class Tokenizer:
    def __init__(self, words, length=10):
        self.table = {word: i + 2 for i, word in enumerate(words)}
        self.length = length

    def ids(self, line):
        line.encode("utf-8")
        found = (m.group() for m in TOKEN.finditer(line))
        ids = [self.table.get(token, UNK) for token, _ in zip(found, range(self.length))]
        return ids + [PAD] * (self.length - len(ids))

    def __call__(self, lines):
        if any(not isinstance(line, str) for line in lines):
            raise TypeError("lines must be text")
        return torch.tensor([self.ids(line) for line in lines], dtype=torch.long).reshape(-1, self.length)


def build():
    return Tokenizer(["def", "return", "for", "in", "(", ")", ":", "=", "x", "i"])
