"""The sample standard deviation of a single match is NaN, which clamping does not repair."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "spread = matches.std(dim=0)"


def sample():
    return torch.tensor(
        [[2.0, 55.0, 11.0], [0.0, 43.0, 6.0], [1.0, 50.0, 9.0], [3.0, 61.0, 15.0], [1.0, 47.0, 8.0], [4.0, 58.0, 13.0]]
    )


class FormTable:
    floor = 1e-6

    def spread(self, matches):
        spread = matches.std(dim=0)
        return spread.clamp_min(self.floor)

    def __call__(self, matches):
        if len(matches) == 0:
            raise ValueError("no matches")
        if not torch.isfinite(matches).all():
            raise ValueError("match statistics must be finite")
        wide = matches.double()
        return ((wide - wide.mean(dim=0)) / self.spread(wide)).float()


class SeasonFormTable(FormTable):
    def spread(self, matches):
        return matches.std(dim=0, correction=0).clamp_min(self.floor)


def build(fixed):
    return SeasonFormTable() if fixed else FormTable()
