"""Missing topics get the category code -1, which silently picks the last row of the table."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "pd.Categorical(tickets"

TOPICS = ["billing", "login", "shipping", "other"]
VECTORS = np.array([[0.1, 0.9], [0.7, 0.2], [0.4, 0.4], [0.0, 0.0]])


def sample():
    return pd.DataFrame(
        {
            "topic": ["login", "billing", "shipping", "other", "login", "billing"],
            "hours_open": [3.0, 26.0, 12.5, 8.0, 1.5, 40.0],
        }
    )


def codes_v1(tickets):
    return pd.Categorical(tickets["topic"], categories=TOPICS).codes


def codes_v2(tickets):
    place = {name: i for i, name in enumerate(TOPICS)}
    names = list(tickets["topic"])
    if not all(isinstance(name, str) and name in place for name in names):
        raise ValueError("topic: missing or unknown")
    return np.array([place[name] for name in names], dtype=np.int64)


def build(fixed):
    codes = codes_v2 if fixed else codes_v1

    def embed(tickets):
        hours = tickets["hours_open"].to_numpy(dtype=np.float64)
        if not (np.isfinite(hours) & (hours >= 0)).all():
            raise ValueError("hours_open: must be finite and not negative")
        return np.hstack([VECTORS[codes(tickets)], np.log1p(hours)[:, None]])

    return embed
