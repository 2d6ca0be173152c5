"""A left merge with the table of time zones gives NaN offsets for airports the table does not know."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = 'how="left"'

ZONES = pd.DataFrame(
    {
        "airport": ["FRA", "JFK", "NRT", "DEL"],
        "offset_min": [60.0, -300.0, 540.0, 330.0],
    }
)


def sample():
    return pd.DataFrame(
        {
            "airport": ["FRA", "JFK", "DEL", "NRT", "FRA", "JFK"],
            "departs_min": [615.0, 1020.0, 75.0, 1310.0, 900.0, 480.0],
            "duration_min": [500.0, 455.0, 530.0, 700.0, 95.0, 370.0],
        }
    )


def numeric(flights):
    times = flights[["departs_min", "duration_min"]].to_numpy(dtype=np.float64)
    if not np.isfinite(times).all():
        raise ValueError("departure and duration must be finite")
    return times


def join_v1(flights):
    return flights.merge(ZONES, on="airport", how="left")["offset_min"]


def join_v2(flights):
    offsets = dict(zip(ZONES["airport"], ZONES["offset_min"]))
    unknown = [code for code in flights["airport"] if not isinstance(code, str) or code not in offsets]
    if unknown:
        raise ValueError(f"{len(unknown)} flights from airports without a time zone")
    return flights["airport"].map(offsets)


def build(fixed):
    join = join_v2 if fixed else join_v1

    def utc_features(flights):
        times = numeric(flights)
        offset = join(flights[["airport"]]).to_numpy(dtype=np.float64)
        departs = times[:, 0] - offset
        return np.column_stack([departs, departs + times[:, 1]]) / 1440.0

    return utc_features
