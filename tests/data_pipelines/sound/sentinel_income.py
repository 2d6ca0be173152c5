"""Survey numbers where a refusal becomes the sentinel -1 together with an indicator column."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
SENTINEL = -1.0


def sample():
    return pd.DataFrame(
        {
            "income": [2400.0, 3100.0, 1800.0, 5200.0, 2900.0],
            "household": [2.0, 4.0, 1.0, 3.0, 2.0],
        }
    )


def with_indicator(column, ceiling):
    values = pd.to_numeric(column, errors="coerce").astype("float64").to_numpy(dtype=np.float64, na_value=np.nan)
    known = np.isfinite(values) & (values >= 0)
    capped = np.minimum(np.where(known, values, 0.0), ceiling)
    return [np.where(known, np.log1p(capped), SENTINEL), known.astype(np.float64)]


def build():
    return lambda answers: np.column_stack(
        with_indicator(answers["income"], 1e7) + with_indicator(answers["household"], 30.0)
    )
