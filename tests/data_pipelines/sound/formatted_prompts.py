"""Turns rows of numbers into prompt strings for a language model."""

import math

POLICY = "reject"
KWARGS = {}


def sample():
    return [
        {"name": "pump A", "pressure": 2.4, "hours": 120},
        {"name": "pump B", "pressure": 1.9, "hours": 4010},
        {"name": "valve 7", "pressure": 3.3, "hours": 88},
        {"name": "fan", "pressure": 0.2, "hours": 9},
    ]


def build():
    def prompt(row):
        name, pressure, hours = row["name"], row["pressure"], row["hours"]
        if not isinstance(name, str) or isinstance(pressure, str) or isinstance(hours, str):
            raise TypeError("row has wrong types")
        name.encode("utf-8")
        if not math.isfinite(pressure) or not math.isfinite(hours):
            raise ValueError("row holds NaN or Inf")
        return f"machine: {name[:40]}; pressure {pressure:.2f} bar; running {int(hours)} h"

    def prompts(rows):
        return [prompt(r) for r in rows]

    return prompts
