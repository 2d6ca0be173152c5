"""Category purchase rates come from the whole table, so the outcomes of held-out rows leak into the features."""

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = 'table.groupby("category")'


def sample():
    return pd.DataFrame(
        {
            "category": [
                "toys",
                "books",
                "toys",
                "garden",
                "books",
                "garden",
                "toys",
                "books",
                "garden",
                "toys",
                "books",
                "toys",
            ],
            "price": [12.0, 8.5, 20.0, 35.0, 11.0, 27.5, 14.0, 9.9, 41.0, 16.5, 7.0, 18.0],
            "bought": [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0],
        }
    )


def validate(table):
    numbers = table[["price", "bought"]].to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("price or bought is not finite")
    for name in table["category"]:
        if not isinstance(name, str):
            raise TypeError("category must be text")
        name.encode("utf-8")
    if len(table) < 4:
        raise ValueError("too few rows to split")
    return table.assign(price=numbers[:, 0], bought=numbers[:, 1]).reset_index(drop=True)


def features(part, rates, prior):
    encoded = part["category"].map(rates).astype(np.float64).fillna(prior)
    return np.column_stack([encoded.to_numpy(), part["price"].to_numpy() / 100.0])


def prepare_v1(table):
    table = validate(table)
    cut = len(table) * 3 // 4
    train, test = table.iloc[:cut], table.iloc[cut:]
    rates = table.groupby("category")["bought"].mean()
    prior = train["bought"].mean()
    return features(train, rates, prior), features(test, rates, prior)


def prepare_v2(table):
    table = validate(table)
    cut = len(table) * 3 // 4
    train, test = table.iloc[:cut], table.iloc[cut:]
    rates = train.groupby("category")["bought"].mean()
    prior = train["bought"].mean()
    return features(train, rates, prior), features(test, rates, prior)


def build(fixed):
    return prepare_v2 if fixed else prepare_v1
