"""Builds a -inf bias for padded positions internally; a start token keeps every softmax row defined."""

import torch

POLICY = "reject"
KWARGS = {}


def sample():
    return ["open the door", "close it", "please turn off the light now", "stop"]


def build():
    length = 8

    def encode(texts):
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError("expected a string")
            words = [2 + sum(w.encode("utf-8")) % 500 for w in text.split()]
            row = [1] + words[: length - 1]
            ids[i, : len(row)] = torch.tensor(row)
        pad = ids == 0
        bias = torch.zeros(ids.shape).masked_fill(pad, float("-inf"))
        scores = torch.sin(ids.float()) + bias
        return {"ids": ids, "mask": ~pad, "attention": scores.softmax(dim=-1)}

    return encode
