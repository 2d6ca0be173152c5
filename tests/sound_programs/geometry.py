"""Geometry, graphs, signals, tabular data, optimizers."""

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training


def power(z):
    """|z|^2 without abs, whose gradient z / |z| is not finite at complex subnormal numbers."""
    return z.real.square() + z.imag.square()


def adam(m, lr=1e-3):
    return torch.optim.Adam(m.parameters(), lr)


@sound
def haversine_clamped():
    """Great-circle loss: asin(sqrt(.)) of a value clamped to [1e-6, 1 - 1e-6]."""
    m = mlp(4, 12, 2)

    def loss(m, b):
        lat, lon = (1.2 * torch.tanh(m(b[0]))).unbind(-1)
        y, x = b[1].deg2rad().unbind(-1)
        h = ((lat - y) / 2).sin().square() + lat.cos() * y.cos() * ((lon - x) / 2).sin().square()
        return (2 * torch.asin(h.clamp(1e-6, 1 - 1e-6).sqrt())).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: (s.normal(8, 4), s.uniform(-60, 60, 8, 2))),
        domain=(T(("B", 4), min_value=-3, max_value=3), T(("B", 2), min_value=-89, max_value=89)),
    )


@sound
def quaternion_angle():
    """Rotation distance by atan2 of two terms, both positive: sqrt(|v|^2 + 1e-6) and |w| + 1e-3."""
    m = mlp(6, 12, 4)

    def loss(m, b):
        q, p = F.normalize(m(b[0]), dim=-1, eps=1e-3), F.normalize(b[1], dim=-1, eps=1e-3)
        w = (q * p).sum(-1)
        v = q[:, 1:] * p[:, :1] - p[:, 1:] * q[:, :1] - torch.cross(q[:, 1:], p[:, 1:], dim=-1)
        return 2 * torch.atan2((v.square().sum(-1) + 1e-6).sqrt(), w.abs() + 1e-3).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(8, 6), s.normal(8, 4))))


@sound
def arcface_margin():
    """Angular margin: acos of a cosine clamped to +-(1 - 1e-4)."""

    class Arc(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.w = mlp(5, 12, 6), nn.Parameter(torch.randn(4, 6))

        def forward(self, x, y):
            cos = F.normalize(self.net(x), dim=-1, eps=1e-2) @ F.normalize(self.w, dim=-1, eps=1e-2).T
            theta = cos.clamp(-1 + 1e-4, 1 - 1e-4).acos()
            return F.cross_entropy(8 * torch.cos(theta + 0.3 * F.one_hot(y, 4)), y)

    m = Arc()
    return training(
        m,
        lambda m, b: m(*b),
        adam(m),
        data(5, lambda s: (s.normal(8, 5), s.ints(0, 3, 8))),
        domain=(T(("B", 5), min_value=-3, max_value=3), T(("B",), "int64", 0, 3)),
    )


@sound
def poincare_ball():
    """Hyperbolic embeddings kept within radius 0.9; distance by log(x + sqrt(x^2 - 1)) with x >= 1 + 1e-4."""

    class Ball(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(10, 3)

        def forward(self, i):
            v = self.emb(i)
            return 0.9 * v / (1 + v.square().sum(-1, keepdim=True)).sqrt()

    def loss(m, b):
        u, v = m(b[0]), m(b[1])
        gap = (u - v).square().sum(-1)
        x = 1 + 1e-4 + 2 * gap / ((1 - u.square().sum(-1)) * (1 - v.square().sum(-1)))
        d = torch.log(x + torch.sqrt(x * x - 1))
        return F.binary_cross_entropy_with_logits(2 - d, b[2].float())

    m = Ball()
    return training(m, loss, adam(m, 1e-2), data(5, lambda s: (s.ints(0, 9, 8), s.ints(0, 9, 8), s.ints(0, 1, 8))))


@sound
def gcn_degree_clamp():
    """Graph convolution with degree^-1/2 of degrees clamped to one; isolated nodes are legal."""

    class GCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.l1, self.l2 = nn.Linear(4, 10), nn.Linear(10, 3)

        def forward(self, x, edges):
            src, dst = edges
            deg = torch.zeros(len(x)).index_add(0, dst, torch.ones(len(dst))).clamp(min=1).pow(-0.5)
            w = (deg[src] * deg[dst])[:, None]

            def spread(h):
                return h + torch.zeros_like(h).index_add(0, dst, h[src] * w)

            return self.l2(spread(F.relu(self.l1(spread(x)))))

    m = GCN()
    domain = {
        "x": T((7, 4), min_value=-3, max_value=3),
        "edges": T((2, "E"), "int64", 0, 6),
        "y": T((7,), "int64", 0, 2),
    }
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b["x"], b["edges"]), b["y"]),
        adam(m, 5e-3),
        domain=domain,
        batches=data(5, lambda s: {"x": s.normal(7, 4), "edges": s.ints(0, 6, 2, 12), "y": s.ints(0, 2, 7)}),
        sizes={"E": (0, 16)},
    )


@sound
def gat_self_loops():
    """Edge softmax by scatter: self loops make every group non-empty, its largest term is exp(0)."""

    class GAT(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.a, self.out = nn.Linear(3, 8), nn.Linear(16, 1), nn.Linear(8, 2)

        def forward(self, x, edges):
            loop = torch.arange(6)
            src, dst = torch.cat([edges[0], loop]), torch.cat([edges[1], loop])
            h = self.lin(x)
            e = F.leaky_relu(self.a(torch.cat([h[src], h[dst]], 1)).squeeze(1))
            top = torch.full((6,), float("-inf")).scatter_reduce(0, dst, e.detach(), "amax")
            w = (e - top[dst]).exp()
            total = torch.zeros(6).index_add(0, dst, w)
            return self.out(F.elu(torch.zeros(6, 8).index_add(0, dst, h[src] * (w / total[dst])[:, None])))

    m = GAT()
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]),
        adam(m),
        data(5, lambda s: (s.normal(6, 3), s.ints(0, 5, 2, 10), s.ints(0, 1, 6))),
    )


@sound
def pinn_second_derivative():
    """u'' = -sin(x) with derivatives by autograd.grad(create_graph=True) through tanh."""
    m = mlp(1, 12, 12, 1, act=nn.Tanh)

    def loss(m, x):
        x = x.detach().clone().requires_grad_()
        u = m(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return (ddu + x.sin()).square().mean() + m(torch.zeros(1, 1)).square().mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: s.uniform(0, 3, 8, 1)),
        clip_grad_norm=1.0,
        domain=T(("B", 1), min_value=0, max_value=3),
    )


@sound
def neural_ode_double():
    """Explicit Euler on a tanh field, double precision."""
    m = mlp(2, 12, 2, act=nn.Tanh).double()

    def loss(m, x):
        y, total = x[:, 0], 0.0
        for t in range(1, x.shape[1]):
            y = y + 0.2 * torch.tanh(m(y))
            total = total + F.mse_loss(y, x[:, t])
        return total / (x.shape[1] - 1)

    return training(
        m,
        loss,
        torch.optim.RAdam(m.parameters(), 1e-3),
        data(5, lambda s: s.normal(4, 5, 2, dtype=torch.float64)),
        domain=T(("B", "T", 2), "float64", -4, 4),
        sizes={"T": (2, 6)},
    )


@sound
def log_spectrum():
    """Spectral loss: log1p of the power of an FFT and sqrt(power + 1e-6)."""
    m = nn.Conv1d(1, 1, 5, padding=2)

    def loss(m, b):
        p, q = torch.fft.rfft(m(b[0][:, None]).squeeze(1)), torch.fft.rfft(b[1])
        logs = (torch.log1p(power(p)) - torch.log1p(power(q))).abs().mean()
        return logs + 0.1 * ((power(p) + 1e-6).sqrt() - (power(q) + 1e-6).sqrt()).square().mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: (s.normal(4, 16), s.normal(4, 16))),
        domain=(T(("B", 16), min_value=-10, max_value=10), T(("B", 16), min_value=-10, max_value=10)),
    )


@sound
def complex_equalizer():
    """Complex weights; phase error normalised by |y| |x| + 1e-2."""

    class Eq(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.eye(4, dtype=torch.complex64))

        def forward(self, x):
            return x @ self.w

    def loss(m, b):
        y, x = m(b[0]), b[1]
        size = (power(y) + 1e-4).sqrt() * (power(x) + 1e-4).sqrt() + 1e-2
        return (1 - (y * x.conj()).real / size).mean() + 0.1 * power(y - x).mean()

    m = Eq()
    spec = T(("B", 4), "complex64", -2, 2)
    return training(
        m,
        loss,
        adam(m),
        domain=(spec, spec),
        batches=data(
            5, lambda s: tuple(torch.complex(s.normal(5, 4, limit=2), s.normal(5, 4, limit=2)) for _ in range(2))
        ),
    )


@sound
def si_sdr():
    """Scale-invariant SDR with 1e-3 added in every quotient and logarithm; silence is legal."""
    m = nn.Sequential(nn.Conv1d(1, 6, 5, padding=2), nn.PReLU(), nn.Conv1d(6, 1, 5, padding=2))

    def loss(m, b):
        y, t = m(b[0][:, None]).squeeze(1), b[1]
        scaled = (y * t).sum(1, keepdim=True) / (t.square().sum(1, keepdim=True) + 1e-3) * t
        ratio = (scaled.square().sum(1) + 1e-3) / ((y - scaled).square().sum(1) + 1e-3)
        return -10 * torch.log10(ratio).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.uniform(-1, 1, 4, 16), s.uniform(-1, 1, 4, 16))))


@sound
def standardised_inside():
    """Columns up to 1e4 standardised in the model by biased std + 1e-3: constant columns are legal."""
    net = mlp(4, 12, 1)

    def loss(m, b):
        x = (b[0] - b[0].mean(0)) / (b[0].std(0, unbiased=False) + 1e-3)
        return F.mse_loss(m(x).squeeze(-1), b[1] / 1e4)

    return training(
        net,
        loss,
        adam(net),
        data(5, lambda s: (s.uniform(0, 1e4, 8, 4), s.uniform(0, 1e4, 8))),
        domain=(T(("B", 4), min_value=0, max_value=1e4), T(("B",), min_value=0, max_value=1e4)),
    )


@sound
def large_linear_mse():
    """Plain linear layers and squared error on data up to 1e3: large, not unsafe."""
    m = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    return training(
        m,
        lambda m, b: F.mse_loss(m(b[0]).squeeze(-1), b[1]),
        adam(m),
        data(5, lambda s: (s.uniform(-1e3, 1e3, 8, 4), s.uniform(-1e3, 1e3, 8))),
    )
