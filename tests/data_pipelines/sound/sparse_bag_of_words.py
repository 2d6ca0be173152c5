"""A sparse bag of words over a fixed vocabulary; unknown words are counted in their own column."""

import numpy as np
from scipy import sparse

POLICY = "reject"
KWARGS = {}

VOCAB = {w: i for i, w in enumerate(["<unk>", "sun", "rain", "wind", "cold", "warm", "and"])}


def sample():
    return ["sun and wind", "cold rain", "warm sun", "rain rain and more rain"]


def build():
    def count(texts):
        rows, cols = [], []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"entry {i} is not text")
            text.encode("utf-8")
            for word in text.lower().split():
                rows.append(i)
                cols.append(VOCAB.get(word, 0))
        data = np.ones(len(rows), dtype=np.float32)
        return sparse.csr_matrix((data, (rows, cols)), shape=(len(texts), len(VOCAB)))

    return count
