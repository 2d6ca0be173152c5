"""A text without tokens has every position masked, and the softmax over -inf alone is NaN."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "torch.softmax(scores, dim=1)"


def sample():
    return ["how do i reset it", "the lamp is broken", "thanks", "where is my order now"]


def build(fixed):
    length = 6

    def token_id(word):
        return 1 + sum(word.encode("utf-8")) % 97

    def pool(texts):
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError("expected text")
            found = [token_id(w) for w in text.split()]
            if fixed and not found:
                raise ValueError(f"text {i} holds no tokens")
            found = found[:length]
            ids[i, : len(found)] = torch.tensor(found, dtype=torch.long)
        mask = ids > 0
        scores = torch.cos(ids.float()).masked_fill(~mask, float("-inf"))
        attention = torch.softmax(scores, dim=1)
        return {"ids": ids, "mask": mask, "attention": attention}

    return pool
