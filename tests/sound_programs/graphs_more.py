"""More graphs and numerics."""

import math

import torch
from torch import distributions as D
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import T, data, mlp, sound, training
from .graphs import adam, real


@sound
def rotation_6d():
    """Gram-Schmidt with eps, geodesic angle by atan2(sqrt(. + eps), .) and by a clamped acos."""
    m = mlp(4, 16, 6)

    def unit(v):
        return v / (v.square().sum(-1, keepdim=True) + 1e-4).sqrt()

    def frame(v):
        a = unit(v[:, :3])
        c = unit(v[:, 3:] - (a * v[:, 3:]).sum(-1, keepdim=True) * a)
        return torch.stack([a, c, torch.linalg.cross(a, c)], -1)

    def loss(m, b):
        r, q = frame(m(b[0])), frame(b[1])
        cos = ((r * q).sum((1, 2)) - 1) / 2
        sine = (torch.linalg.cross(r[..., 0], q[..., 0]).square().sum(-1) + 1e-6).sqrt()
        return (cos.clamp(-1 + 1e-3, 1 - 1e-3).acos() + torch.atan2(sine, (r[..., 0] * q[..., 0]).sum(-1))).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(5, 4), s.normal(5, 6))))


@sound
def log1p_counts():
    """Counts up to 10^6 through log1p, predictions back through expm1 of a soft-clamped value, RMSLE."""
    m = nn.Sequential(nn.BatchNorm1d(3, momentum=0.05), mlp(3, 12, 1))

    def loss(m, b):
        guess = torch.expm1(8 + 7 * torch.tanh((m(torch.log1p(b[0].float()))[:, 0] - 8) / 7))
        gap = torch.log1p(guess.clamp(min=0)) - torch.log1p(b[1].float())
        return (gap.square().mean() + 1e-6).sqrt()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: (s.ints(0, 2000, 6, 3), s.ints(0, 2000, 6))),
        domain=(T(("B", 3), "int64", 0, 10**6), T(("B",), "int64", 0, 10**6)),
        sizes={"B": (2, 8)},
    )


@sound
def complex_mod_relu():
    """complex64 weights, modReLU over (magnitude + eps), phase compared without angle()."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Linear(4, 4, dtype=torch.complex64) for _ in range(2))
            self.bias = nn.Parameter(torch.full((4,), 0.1))

        def forward(self, x):
            z = self.a(x)
            size = (z.real.square() + z.imag.square() + 1e-4).sqrt()
            return self.b(F.relu(size + self.bias) / (size + 1e-2) * z)

    def loss(m, b):
        d = m(b[0]) - b[1]
        return torch.log1p(d.real.square() + d.imag.square()).mean()

    def make(s):
        return tuple(torch.complex(s.normal(5, 4), s.normal(5, 4)) for _ in range(2))

    m = Net()
    return training(m, loss, torch.optim.SGD(m.parameters(), 0.05), data(5, make))


@sound
def kalman_joseph():
    """float64 Kalman filter: noises with floors, Joseph form, Cholesky of the innovation covariance."""

    class Filter(nn.Module):
        def __init__(self):
            super().__init__()
            kind = {"dtype": torch.float64}
            self.move, self.see = (nn.Parameter(torch.eye(2, **kind) * 0.5) for _ in range(2))
            self.q, self.r = (nn.Parameter(torch.zeros(2, **kind)) for _ in range(2))

        def forward(self, y):
            eye = torch.eye(2, dtype=y.dtype)
            f, h = 0.9 * torch.tanh(self.move), self.see
            q, r = torch.diag(F.softplus(self.q) + 0.01), torch.diag(F.softplus(self.r) + 0.1)
            mean, cov, total = y.new_zeros(len(y), 2, 1), eye, 0.0
            for t in range(y.shape[1]):
                mean, cov = f @ mean, f @ cov @ f.T + q
                root = torch.linalg.cholesky(h @ cov @ h.T + r)
                gap = y[:, t, :, None] - h @ mean
                white = torch.linalg.solve_triangular(root, gap, upper=False)
                total = total + white.square().sum((1, 2)) / 2 + root.diagonal().log().sum()
                gain = torch.cholesky_solve(h @ cov, root).T
                rest = eye - gain @ h
                mean, cov = mean + gain @ gap, rest @ cov @ rest.T + gain @ r @ gain.T
            return total.mean()

    m = Filter()
    return training(
        m,
        lambda m, y: m(y),
        adam(m, 1e-2),
        data(4, lambda s: s.normal(4, 3, 2, dtype=torch.float64)),
        domain=T(("B", 3, 2), "float64", -10, 10),
    )


@sound
def ldl_precision():
    """Gaussian with precision L D L^T: unit triangular L, D from softplus + 0.1; no solve."""
    m = mlp(3, 16, 9, act=nn.Tanh)

    def loss(m, b):
        mu, raw, low = m(b[0]).split([3, 3, 3], -1)
        d, gap = F.softplus(raw) + 0.1, b[1] - mu
        below = low.new_zeros(len(low), 3, 3)
        i, j = torch.tril_indices(3, 3, -1)
        below = below.index_put((torch.arange(len(low))[:, None], i, j), 3 * torch.tanh(low / 3))
        white = gap + (below.mT @ gap[..., None])[..., 0]
        return 0.5 * (d * white.square() - d.log()).sum(1).mean()

    return training(
        m,
        loss,
        torch.optim.AdamW(m.parameters(), 1e-3),
        clip_grad_norm=1.0,
        batches=data(5, lambda s: (s.normal(6, 3), s.normal(6, 3))),
    )


@sound
def skew_exponential_rnn():
    """Orthogonal recurrence: matrix exponential of a bounded skew-symmetric matrix; Cayley output map."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.skew, self.inp, self.out = nn.Parameter(torch.randn(6, 6)), nn.Linear(2, 6), nn.Linear(6, 3)
            self.turn = nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            bounded, eye = torch.tanh(self.skew), torch.eye(6)
            a, c = torch.matrix_exp(bounded - bounded.T), torch.tanh(self.turn).triu(1)
            h = x.new_zeros(len(x), 6)
            for t in range(x.shape[1]):
                h = F.softsign(h @ a + self.inp(x[:, t]))
            return self.out(h @ torch.linalg.solve(eye + (c - c.T), eye - (c - c.T)))

    m = Net()
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        adam(m),
        data(4, lambda s: (s.normal(4, 6, 2), s.ints(0, 2, 4))),
        domain=(real("T", 5, 2), T(("B",), "int64", 0, 2)),
    )


@sound
def whitening_newton():
    """IterNorm: covariance + 0.01 I over its trace, five Newton steps to the inverse root; Newton square root."""
    m = nn.ModuleList([mlp(4, 10, 4), nn.Linear(4, 2)])

    def loss(m, b):
        h = m[0](b[0])
        h = h - h.mean(0)
        cov = h.T @ h / len(h) + 0.01 * torch.eye(4)
        size = cov.diagonal().sum()
        cov, p = cov / size, torch.eye(4)
        for _ in range(5):
            p = 1.5 * p - 0.5 * p @ p @ p @ cov
        root = (1 + size) / 2
        for _ in range(8):
            root = 0.5 * (root + size / root)
        return F.cross_entropy(m[1](h @ p / root), b[1])

    return training(m, loss, adam(m), data(4, lambda s: (s.normal(6, 4), s.ints(0, 1, 6))))


@sound
def welford_normaliser():
    """Streaming mean and variance (Welford, in buffers); inputs over sqrt(var + 1e-3), clamped; checkpointing."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(4, 12, 1)
            for name, value in (("n", 0.0), ("mean", [0.0] * 4), ("m2", [0.0] * 4)):
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    for row in x:
                        self.n += 1
                        gap = row - self.mean
                        self.mean += gap / self.n
                        self.m2 += gap * (row - self.mean)
            x = (x - self.mean) / (self.m2 / self.n.clamp(min=1) + 1e-3).sqrt()
            return checkpoint(self.net, x.clamp(-8, 8), use_reentrant=False)[:, 0]

    m = Net()
    return training(
        m,
        lambda m, b: F.smooth_l1_loss(m(b[0]), b[1]),
        adam(m),
        data(5, lambda s: (s.uniform(-50, 80, 6, 4), s.normal(6))),
        domain=(real(4, 1000), real(0)),
    )


@sound
def tobit_log_ndtr():
    """Regression censored at 0: log_ndtr for the censored, Normal for the rest, both finite; scale floor 0.1."""
    m = mlp(4, 14, 2, act=nn.Tanh)

    def loss(m, b):
        mu, raw = m(b["x"]).unbind(-1)
        scale = F.softplus(raw) + 0.1
        seen = D.Normal(mu, scale).log_prob(b["y"])
        return -torch.where(b["y"] > 0, seen, torch.special.log_ndtr(-mu / scale)).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"x": s.normal(6, 4), "y": s.normal(6).clamp(min=0)}),
        domain={"x": real(4), "y": T(("B",), min_value=0, max_value=5)},
    )


@sound
def cloglog_hazard():
    """log(1 - exp(-t)) with t = exp of a clamped value, by expm1 or log1p behind a double where."""
    m = mlp(4, 14, 1)

    def loss(m, b):
        t = m(b[0])[:, 0].clamp(-10, 4).exp()
        near = t < math.log(2)
        log1mexp = torch.where(
            near, (-torch.expm1(-torch.where(near, t, 0.5))).log(), torch.log1p(-torch.exp(-torch.where(near, 1.0, t)))
        )
        return torch.where(b[1] == 1, -log1mexp, t).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 4), s.ints(0, 1, 6))))
