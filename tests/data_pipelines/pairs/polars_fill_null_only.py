"""fill_null repairs nulls but leaves NaN where it is."""

import polars as pl

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "col = col.fill_null(default)"

DEFAULTS = {"temp": 18.0, "hum": 55.0}


def sample():
    return pl.DataFrame({"temp": [17.0, 19.5, 22.0, 16.0], "hum": [40.0, 52.0, 61.0, 58.0]})


def build(fixed):
    def repair(df):
        out = {}
        for name, default in DEFAULTS.items():
            col = df[name]
            if col.dtype != pl.Null and not col.dtype.is_numeric():
                raise TypeError(f"{name} is not numeric")
            col = col.cast(pl.Float64).clip(-1e4, 1e4)
            if fixed:
                col = col.fill_nan(None)
            col = col.fill_null(default)
            out[name] = col / 10.0
        return pl.DataFrame(out)

    return repair
