"""Text numbers are cast leniently, so unparsable cells turn into nulls after the check."""

import polars as pl

POLICY = "reject"
KWARGS = {}
CULPRIT = "strict=False"


def sample():
    return pl.DataFrame({"price": ["1.5", "22", "3.75", "10"], "stock": ["4", "0", "12", "7"]})


def build(fixed):
    def parse(df):
        out = {}
        for name in ("price", "stock"):
            if df[name].null_count():
                raise ValueError("missing cell")
            if fixed:
                col = pl.Series(name, [float(v) for v in df[name].to_list()], dtype=pl.Float64)
            else:
                col = df[name].cast(pl.Float64, strict=False)
            if col.is_nan().any() or col.is_infinite().any():
                raise ValueError("not a finite number")
            out[name] = col
        return pl.DataFrame(out)

    return parse
