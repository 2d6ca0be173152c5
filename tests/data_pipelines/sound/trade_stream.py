"""A stream of trades served as IterableDataset; the generator checks each trade before it yields."""

import math

import torch
from torch.utils.data import IterableDataset

POLICY = "reject"
KWARGS = {}


def sample():
    return [(101.2, 30.0), (101.5, 12.0), (100.9, 55.0), (101.1, 8.0), (101.8, 21.0)]


class TradeStream(IterableDataset):
    def __init__(self, trades):
        self.trades = trades

    def __iter__(self):
        previous = None
        for price, volume in self.trades:
            if not (math.isfinite(price) and math.isfinite(volume)):
                raise ValueError("trade with a missing price or volume")
            if not (1e-3 < price < 1e7 and 0 <= volume < 1e12):
                raise ValueError("trade with an impossible price or volume")
            move = 0.0 if previous is None else math.log(price / previous)
            previous = price
            yield torch.tensor([move, math.log1p(volume)], dtype=torch.float32)


def build():
    return TradeStream
