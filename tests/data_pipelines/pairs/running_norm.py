"""Running normalisation takes a batch into its mean before it checks it, so a refused batch poisons the rest."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "self.mean = torch.lerp("


def sample():
    g = torch.Generator().manual_seed(5)
    return torch.randn(8, 4, generator=g) * 2 + 1


class RunningNorm:
    """Exponential running mean and variance of a stream of feature batches."""

    def __init__(self, n_features=4, momentum=0.1):
        self.mean = torch.zeros(n_features, dtype=torch.float64)
        self.var = torch.ones(n_features, dtype=torch.float64)
        self.momentum = momentum

    def __call__(self, batch):
        x = torch.as_tensor(batch, dtype=torch.float64)
        if x.shape[0] == 0:
            raise ValueError("empty batch")
        self.mean = torch.lerp(self.mean, x.mean(0), self.momentum)
        self.var = torch.lerp(self.var, x.var(0, unbiased=False), self.momentum)
        if not torch.isfinite(x).all():
            raise ValueError("batch contains NaN or Inf")
        return ((x - self.mean) / (self.var + 1e-6).sqrt()).float()


class CheckedRunningNorm(RunningNorm):
    def __call__(self, batch):
        x = torch.as_tensor(batch, dtype=torch.float64)
        if x.shape[0] == 0:
            raise ValueError("empty batch")
        if not torch.isfinite(x.float()).all():
            raise ValueError("batch contains NaN or Inf")
        self.mean = torch.lerp(self.mean, x.mean(0), self.momentum)
        self.var = torch.lerp(self.var, x.var(0, unbiased=False), self.momentum)
        return ((x - self.mean) / (self.var + 1e-6).sqrt()).float()


def build(fixed: bool):
    return CheckedRunningNorm() if fixed else RunningNorm()
