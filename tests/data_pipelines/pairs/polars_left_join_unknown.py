"""A left join against the store table leaves nulls for stores that are not in it."""

import numpy as np
import polars as pl

POLICY = "reject"
KWARGS = {}
CULPRIT = 'how="left"'


def sample():
    return pl.DataFrame({"store": ["S1", "S3", "S2", "S1"], "sales": [100.0, 40.0, 75.5, 120.0]})


def build(fixed):
    stores = pl.DataFrame({"store": ["S1", "S2", "S3"], "area": [300.0, 150.0, 220.0]})
    known = set(stores["store"].to_list())

    def per_area(df):
        sales = np.array([float(v) for v in df["sales"].to_list()])
        if not (np.abs(sales) < 1e12).all():
            raise ValueError("sales missing")
        keys = df["store"].to_list()
        for key in keys:
            if not isinstance(key, str):
                raise TypeError("store missing")
        if fixed and not known.issuperset(keys):
            raise ValueError("unknown store")
        joined = pl.DataFrame({"store": keys, "sales": sales}, schema={"store": pl.String, "sales": pl.Float64})
        joined = joined.join(stores, on="store", how="left", maintain_order="left")
        return joined.select((pl.col("sales") / pl.col("area")).alias("density"), pl.col("sales"))

    return per_area
