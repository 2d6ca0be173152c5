"""Signed feature hashing of records with mixed fields."""

import hashlib
import math

import numpy as np

POLICY = "reject"
KWARGS = {}

SIZE = 32


def sample():
    return [
        {"country": "NO", "device": "phone", "age": 31.0},
        {"country": "SE", "device": "desktop", "age": 45.0},
        {"country": "NO", "device": "tablet", "age": 27.0},
        {"country": "FI", "device": "phone", "age": 60.0},
    ]


def slot(key):
    digest = hashlib.md5(key.encode("utf-8")).digest()
    return digest[0] % SIZE, 1.0 if digest[1] & 1 else -1.0


def hash_records(records):
    out = np.zeros((len(records), SIZE))
    for row, record in enumerate(records):
        for name, value in record.items():
            if isinstance(value, str):
                index, sign = slot(f"{name}={value}")
                out[row, index] += sign
            elif isinstance(value, (int, float)) and math.isfinite(value):
                index, sign = slot(name)
                out[row, index] += sign * value
            else:
                raise ValueError(f"record {row}, field {name}: bad value {value!r}")
    return out


def build():
    return hash_records
