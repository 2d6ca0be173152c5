"""The loop over consecutive positions stops one short, so the last position is never checked."""

import math

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "range(len(track) - 1)"


def sample():
    return [[0.0, 53.54, 9.98], [1.0, 53.60, 9.71], [2.5, 53.88, 9.12], [4.0, 54.02, 8.33], [5.5, 54.10, 7.75]]


def check_point(point):
    hours, lat, lon = point
    if not all(math.isfinite(v) for v in (hours, lat, lon)):
        raise ValueError("position report is not finite")
    if abs(lat) > 90 or abs(lon) > 180 or abs(hours) > 10000:
        raise ValueError("position report is out of range")


def verify_v1(track):
    for i in range(len(track) - 1):
        check_point(track[i])


def verify_v2(track):
    for point in track:
        check_point(point)


def build(fixed):
    verify = verify_v2 if fixed else verify_v1

    def encode(track):
        verify(track)
        table = torch.tensor(track, dtype=torch.float64).reshape(-1, 3)
        angles = torch.deg2rad(table[:, 1:])
        return torch.cat([table[:, :1] / 24.0, angles.sin(), angles.cos()], dim=1)

    return encode
