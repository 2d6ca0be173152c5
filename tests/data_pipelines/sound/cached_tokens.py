"""Word ids through an lru_cache'd helper."""

from functools import lru_cache
from zlib import crc32

import numpy as np

POLICY = "reject"
KWARGS = {}

BUCKETS = 500


def sample():
    return ["to be or not", "to be", "that is", "the question whether", "tis nobler"]


@lru_cache(maxsize=1024)
def token_id(word):
    return 1 + crc32(word.encode("utf-8")) % BUCKETS


def encode(text, width=6):
    if not isinstance(text, str):
        raise TypeError("text expected")
    ids = [token_id(w) for w in text.casefold().split()[:width]]
    text.encode("utf-8")
    return ids + [0] * (width - len(ids))


def build():
    return lambda texts: np.array([encode(t) for t in texts], dtype=np.int32).reshape(len(texts), 6)
