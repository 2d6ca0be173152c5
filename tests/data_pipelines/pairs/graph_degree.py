"""An isolated node has degree 0 and deg ** -0.5 is Inf, the propagated features become NaN."""

import torch

POLICY = "reject"
KWARGS = {}
CULPRIT = "deg.pow(-0.5)"


def sample():
    adj = torch.zeros(5, 5, dtype=torch.float64)
    for a, b, w in [(0, 1, 1.0), (1, 2, 2.0), (2, 3, 1.0), (3, 4, 0.5), (4, 0, 1.5)]:
        adj[a, b] = adj[b, a] = w
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    return {"adj": adj, "x": x}


class Propagate:
    def inverse_sqrt(self, deg):
        return deg.pow(-0.5)

    def __call__(self, graph):
        adj, x = graph["adj"], graph["x"]
        if adj.dim() != 2 or adj.shape[0] != adj.shape[1] or x.shape[0] != adj.shape[0]:
            raise ValueError("adjacency and features do not fit")
        if not (torch.isfinite(adj).all() and torch.isfinite(x).all()):
            raise ValueError("graph has NaN or Inf")
        if (adj < 0).any():
            raise ValueError("negative edge weight")
        d = self.inverse_sqrt(adj.sum(1))
        return d[:, None] * (adj @ (d[:, None] * x))


class PropagateIsolated(Propagate):
    def inverse_sqrt(self, deg):
        return torch.where(deg > 0, deg.clamp(min=1e-12).pow(-0.5), torch.zeros_like(deg))


def build(fixed: bool):
    return PropagateIsolated() if fixed else Propagate()
