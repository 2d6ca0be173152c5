"""A batch enters the history of batch means before it is checked, so a refused NaN batch stays in the baseline."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "history.append(x.mean(0))"


def sample():
    g = torch.Generator().manual_seed(14)
    return torch.rand(5, 2, generator=g) + 10.0


def _check(x):
    if x.dim() != 2 or x.shape[0] == 0 or x.shape[1] != 2:
        raise ValueError("expected a non-empty (n, 2) batch")
    if not torch.isfinite(x.float()).all():
        raise ValueError("sensor batch has NaN or Inf")


def make_baseline(window=5):
    history = []

    def subtract(batch):
        x = torch.as_tensor(batch).double()
        history.append(x.mean(0))
        _check(x)
        del history[:-window]
        return x - torch.stack(history).mean(0)

    return subtract


def make_checked_baseline(window=5):
    history = []

    def subtract(batch):
        x = torch.as_tensor(batch).double()
        _check(x)
        history.append(x.mean(0))
        del history[:-window]
        return x - torch.stack(history).mean(0)

    return subtract


def build(fixed: bool):
    return make_checked_baseline() if fixed else make_baseline()
