"""SMILES strings hashed to bit vectors; results are memoised, refused strings never enter the cache."""

import zlib

import numpy as np

POLICY = "reject"
KWARGS = {}
BITS = 16


def sample():
    return ["CCO", "c1ccccc1", "CC(=O)O", "CN1C=NC2=C1C(=O)N(C)C(=O)N2C", "CCO"]


def memoise(func):
    known = {}

    def wrapped(smiles):
        if not isinstance(smiles, str):
            raise TypeError("SMILES must be text")
        key = smiles.encode("utf-8")
        if key not in known:
            known[key] = func(key)
        return known[key].copy()

    return wrapped


def fingerprint(key):
    bits = np.zeros(BITS)
    for start in range(max(len(key) - 1, 0)):
        bits[zlib.crc32(key[start : start + 2]) % BITS] = 1.0
    return bits


def build():
    cached = memoise(fingerprint)
    return lambda batch: np.array([cached(s) for s in batch], dtype=np.float64).reshape(-1, BITS)
