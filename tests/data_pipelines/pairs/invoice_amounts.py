"""float() accepts the words "nan" and "inf", so an amount column read as text yields non-finite amounts."""

import math

import numpy as np
import pandas as pd

POLICY = "reject"
KWARGS = {}
CULPRIT = "amount = float(text)"

RATES = {"EUR": 1.0, "USD": 0.92, "CHF": 1.05}


def sample():
    return pd.DataFrame(
        {
            "amount": ["12.50", "990", "43.10", "7.95", "120.00"],
            "currency": ["EUR", "USD", "EUR", "CHF", "USD"],
        }
    )


def rate_of(currency):
    if not isinstance(currency, str) or currency not in RATES:
        raise ValueError(f"unknown currency {currency!r}")
    return RATES[currency]


def read_v1(text):
    if not isinstance(text, str):
        raise TypeError("amount must be text")
    amount = float(text)
    return amount


def read_v2(text):
    if not isinstance(text, str):
        raise TypeError("amount must be text")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"amount {text[:20]!r} is not a number")
    return value


def build(fixed):
    read = read_v2 if fixed else read_v1

    def to_euro(frame):
        pairs = zip(frame["amount"], frame["currency"])
        return np.array([read(amount) * rate_of(currency) for amount, currency in pairs], dtype=np.float64)

    return to_euro
