"""The corpus reader promises to refuse broken bytes but silently skips them when decoding."""

import numpy as np

POLICY = "reject"
KWARGS = {}
CULPRIT = 'errors="ignore"'


def sample():
    return [b"alpha beta", "\u00fcber alles".encode("utf-8"), b"gamma", "na\u00efve text".encode("utf-8")]


class ByteTokenizer:
    max_len = 16

    def __init__(self, strict):
        self.strict = strict

    def to_text(self, raw):
        if not isinstance(raw, (bytes, bytearray)):
            raise TypeError("documents must be bytes")
        if self.strict:
            return raw.decode("utf-8")
        return raw.decode("utf-8", errors="ignore")

    def __call__(self, docs):
        ids = np.zeros((len(docs), self.max_len), dtype=np.int64)
        for i, raw in enumerate(docs):
            codes = [min(ord(c), 4000) for c in self.to_text(raw)][: self.max_len]
            ids[i, : len(codes)] = codes
        return ids


def build(fixed):
    return ByteTokenizer(strict=fixed)
