"""Fill nulls, NaN and Inf of a polars frame and clip to the plausible range."""

import polars as pl

POLICY = "sanitize"
KWARGS = {}

LIMITS = {"lat": (-90.0, 90.0, 0.0), "speed": (0.0, 400.0, 50.0)}


def sample():
    return pl.DataFrame({"lat": [52.1, 51.0, 48.9, 59.3, 40.4], "speed": [80.0, 50.0, 120.0, 30.0, 95.0]})


def clean(frame):
    columns = []
    for name, (low, high, default) in LIMITS.items():
        value = pl.col(name).cast(pl.Float64, strict=False)
        columns.append(pl.when(value.is_finite()).then(value).otherwise(default).clip(low, high).alias(name))
    return frame.select(columns)


def build():
    return clean
