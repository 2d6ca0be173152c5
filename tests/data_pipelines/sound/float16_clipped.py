"""Stores embeddings as float16, clipped to what the type can hold."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}


def sample():
    rng = np.random.default_rng(81)
    return rng.normal(scale=30.0, size=(5, 8)).astype(np.float32)


def to_float(x):
    x = np.asarray(x)
    if x.dtype == object:
        x = np.where(pd.isna(x), np.nan, x)
    return x.astype(np.float64)


def build():
    top = float(np.finfo(np.float16).max)

    def compress(emb):
        emb = np.nan_to_num(to_float(emb), nan=0.0, posinf=top, neginf=-top)
        return np.clip(emb, -top, top).astype(np.float16)

    return compress
