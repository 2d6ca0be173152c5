"""Water gauge heights turned into alert names; text is returned instead of numbers."""

import math

POLICY = "reject"
KWARGS = {}

LEVELS = [(150.0, "normal"), (300.0, "raised"), (450.0, "warning")]


def sample():
    return [
        {"gauge": "koeln", "cm": 212.0},
        {"gauge": "bonn", "cm": 140.5},
        {"gauge": "mainz", "cm": 333.0},
        {"gauge": "worms", "cm": 501.2},
    ]


def level(cm):
    return next((name for limit, name in LEVELS if cm < limit), "flood")


def name_of(gauge):
    if not isinstance(gauge, str):
        raise TypeError("gauge: a name is needed")
    gauge.encode("utf-8")
    return gauge[:40].strip().upper() or "UNNAMED"


def build():
    def alerts(readings):
        result = []
        for reading in readings:
            cm = reading["cm"]
            if cm is None or not math.isfinite(cm):
                raise ValueError(f"cm: no reading ({cm})")
            result.append(f"{name_of(reading['gauge'])}:{level(cm)}")
        return result

    return alerts
