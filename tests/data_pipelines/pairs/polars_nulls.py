"""null_count() counts missing values only; in polars NaN and Inf are ordinary floats and pass."""

import polars as pl

POLICY = "reject"
KWARGS = {}
CULPRIT = ".null_count()"

COLUMNS = ["temp", "humidity", "count"]


def sample():
    return pl.DataFrame(
        {
            "temp": [19.5, 20.1, 22.3, 18.7, 21.0],
            "humidity": [0.41, 0.44, 0.52, 0.39, 0.47],
            "count": [3, 8, 5, 2, 9],
        }
    )


def numeric(frame):
    try:
        return frame.select(pl.col(COLUMNS).cast(pl.Float64))
    except pl.exceptions.PolarsError as err:
        raise ValueError(str(err)) from None


def to_matrix(frame):
    table = numeric(frame)
    if sum(table.null_count().row(0)) > 0:
        raise ValueError("table has missing values")
    return table.to_numpy()


def to_matrix_finite(frame):
    table = numeric(frame)
    for name in COLUMNS:
        if not table[name].is_finite().fill_null(False).all():
            raise ValueError(f"column {name} has missing or non-finite values")
    return table.to_numpy()


def build(fixed: bool):
    return to_matrix_finite if fixed else to_matrix
