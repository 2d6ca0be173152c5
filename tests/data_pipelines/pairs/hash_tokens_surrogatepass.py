"""Tokens are hashed with surrogatepass, so text holding a lone surrogate is hashed as if it were valid."""

import zlib

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = '"surrogatepass"'

BUCKETS = 512


def sample():
    return ["red running shoes", "blue cotton shirt", "wool socks", "leather belt brown"]


def build(fixed):
    def bucket(token):
        if fixed:
            data = token.encode("utf-8")
        else:
            data = token.encode("utf-8", "surrogatepass")
        return 1 + zlib.crc32(data) % BUCKETS

    def encode(titles, length=6):
        rows = []
        for title in titles:
            if not isinstance(title, str):
                raise TypeError("titles must be strings")
            ids = [bucket(t) for t in title.split()]
            rows.append((ids + [0] * length)[:length] if len(ids) < length else ids[:length])
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)

    def strict_encode(titles):
        for title in titles:
            if isinstance(title, str):
                bucket(title)
        return encode(titles)

    return strict_encode
