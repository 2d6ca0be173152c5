"""DNA k-mer frequencies with a pseudo count; letters other than ACGT end the k-mer."""

from itertools import product

import numpy as np

POLICY = "reject"
KWARGS = {}
K = 2
INDEX = {"".join(letters): i for i, letters in enumerate(product("ACGT", repeat=K))}


def sample():
    return ["ACGTACGT", "GGGCCA", "TTATAACG", "CAGTNNAC", "GATTACA"]


def frequencies(sequence):
    if not isinstance(sequence, str):
        raise TypeError("sequence must be text")
    sequence.encode("utf-8")
    upper = sequence.upper()
    hits = [INDEX[upper[i : i + K]] for i in range(len(upper) - K + 1) if upper[i : i + K] in INDEX]
    counts = np.bincount(np.array(hits, dtype=np.int64), minlength=len(INDEX)) + 0.5
    return np.log(counts / counts.sum())


def build():
    return lambda batch: np.array([frequencies(s) for s in batch], dtype=np.float64).reshape(-1, len(INDEX))
