"""Character trigram hashing with L2 normalisation; a text too short for a trigram gives a zero row."""

import zlib

import numpy as np

POLICY = "reject"
KWARGS = {}


def sample():
    return ["neural network", "gradient", "loss function", "epoch"]


class TrigramHasher:
    def __init__(self, width=64):
        self.width = width

    def row(self, text):
        if not isinstance(text, str):
            raise TypeError("need text")
        data = text.encode("utf-8")
        out = np.zeros(self.width)
        for k in range(len(data) - 2):
            out[zlib.crc32(data[k : k + 3]) % self.width] += 1.0
        norm = np.linalg.norm(out)
        return out / norm if norm > 0 else out

    def __call__(self, texts):
        out = np.zeros((len(texts), self.width))
        for i, text in enumerate(texts):
            out[i] = self.row(text)
        return out


def build():
    return TrigramHasher()
