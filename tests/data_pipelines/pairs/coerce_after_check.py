"""Missing values are checked first, then text numbers are coerced, and unparsable ones become NaN after the check."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = 'errors="coerce"'


def sample():
    return pd.DataFrame(
        {"amount": ["12.50", "3", "99.9", "7.25"], "tax": ["0.19", "0.07", "0.19", "0.07"]}, dtype=object
    )


def build(fixed):
    def parse(df):
        if df.isna().to_numpy().any():
            raise ValueError("missing cells")
        cols = []
        for name in ("amount", "tax"):
            if fixed:
                col = pd.to_numeric(df[name]).to_numpy(dtype=float)
                if np.isnan(col).any():
                    raise ValueError(f"{name} is not a number")
            else:
                col = pd.to_numeric(df[name], errors="coerce").to_numpy(dtype=float)
            if np.isinf(col).any():
                raise ValueError("infinite amount")
            cols.append(col)
        return np.stack(cols, axis=1)

    return parse
