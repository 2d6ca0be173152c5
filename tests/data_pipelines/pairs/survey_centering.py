"""groupby drops rows whose region is missing, so their group mean, and with it the centred score, is NaN."""

import numpy as np
import pandas as pd

POLICY = "sanitize"
KWARGS = {}
CULPRIT = 'groupby("region")["score"]'


def sample():
    return pd.DataFrame(
        {
            "region": ["north", "south", "north", "east", "south", "east", "north", "south"],
            "age": [34.0, 51.0, 28.0, 63.0, 45.0, 39.0, 70.0, 22.0],
            "score": [4.0, 2.0, 5.0, 3.0, 1.0, 4.0, 3.0, 5.0],
        }
    )


def numbers(column, low, high, neutral):
    return pd.to_numeric(column, errors="coerce").astype(np.float64).fillna(neutral).clip(low, high)


def tidy(answers):
    return pd.DataFrame(
        {
            "region": answers["region"].astype(object),
            "age": numbers(answers["age"], 0.0, 110.0, 45.0),
            "score": numbers(answers["score"], 1.0, 5.0, 3.0),
        }
    ).reset_index(drop=True)


def centre_v1(frame):
    return frame["score"] - frame.groupby("region")["score"].transform("mean")


def centre_v2(frame):
    region = frame["region"].where(frame["region"].notna(), "unknown")
    return frame["score"] - frame["score"].groupby(region).transform("mean")


def build(fixed):
    centre = centre_v2 if fixed else centre_v1

    def pipeline(answers):
        frame = tidy(answers)
        return np.column_stack([frame["age"].to_numpy() / 100.0, centre(frame).to_numpy()])

    return pipeline
