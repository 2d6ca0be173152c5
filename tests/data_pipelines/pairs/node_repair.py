"""The repair of a reading replaces bad latitude, longitude and voltage but forgets the battery temperature."""

import math
from dataclasses import dataclass

POLICY = "sanitize"
KWARGS = {}
CULPRIT = "temp=b.temp"


@dataclass
class Gps:
    lat: float
    lon: float


@dataclass
class Battery:
    volt: float
    temp: float


@dataclass
class Reading:
    gps: Gps
    battery: Battery


def sample():
    return [
        Reading(Gps(52.1, 4.3), Battery(3.7, 21.0)),
        Reading(Gps(51.9, 4.5), Battery(3.6, 23.5)),
        Reading(Gps(52.4, 4.9), Battery(3.9, 19.0)),
        Reading(Gps(53.2, 6.5), Battery(3.5, 25.0)),
    ]


def good(value, default):
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return default
    return float(value)


def repair(r):
    g, b = r.gps, r.battery
    return Reading(
        Gps(lat=good(g.lat, 52.0), lon=good(g.lon, 5.0)),
        Battery(volt=good(b.volt, 3.7), temp=b.temp),
    )


def repair_all(r):
    g, b = r.gps, r.battery
    return Reading(
        Gps(lat=good(g.lat, 52.0), lon=good(g.lon, 5.0)),
        Battery(volt=good(b.volt, 3.7), temp=good(b.temp, 20.0)),
    )


def build(fixed: bool):
    step = repair_all if fixed else repair
    return lambda readings: [step(r) for r in readings]
