"""More geometry and signals."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training
from .geometry import adam


@sound
def nearest_other_inf():
    """Own distance set to inf, then softmin over the others: batches of two at least, cdist is never 0 / 0."""
    m = mlp(3, 12, 4)

    def loss(m, x):
        z = torch.tanh(m(x))
        d = torch.cdist(z, z).masked_fill(torch.eye(len(x), dtype=torch.bool), float("inf"))
        return torch.logsumexp(-d, 1).mean() - d.min(1).values.clamp(max=1.0).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: s.normal(7, 3)),
        domain=T(("B", 3), min_value=-3, max_value=3),
        sizes={"B": (2, 8)},
    )


@sound
def soft_assignment():
    """Deep clustering: softmax of -distance^2, centroids as weighted means over mass + 1e-3."""
    m = mlp(4, 10, 2)

    def loss(m, x):
        z = torch.tanh(m(x))
        w = (-4 * (z[:, None] - torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])).square().sum(-1)).softmax(1)
        centre = (w.T @ z) / (w.sum(0)[:, None] + 1e-3)
        return (w * (z[:, None] - centre).square().sum(-1)).sum(1).mean() + F.kl_div(
            w.mean(0).clamp(min=1e-6).log(), torch.full((3,), 1 / 3), reduction="sum"
        )

    return training(m, loss, adam(m), data(5, lambda s: s.normal(8, 4)))


@sound
def lbfgs_logistic():
    """Ridge-penalised logistic regression in double with LBFGS, which calls the closure again."""
    m = nn.Linear(4, 1).double()

    def loss(m, b):
        ridge = 0.05 * m.weight.square().sum()
        return F.binary_cross_entropy_with_logits(m(b[0]).squeeze(-1), b[1]) + ridge

    opt = torch.optim.LBFGS(m.parameters(), lr=0.2, max_iter=4)
    return training(
        m,
        loss,
        opt,
        domain=(T(("B", 4), "float64", -2, 2), T(("B",), "float64", 0, 1)),
        batches=data(4, lambda s: (s.normal(8, 4, limit=2, dtype=torch.float64), s.ints(0, 1, 8).double())),
    )


@sound
def skipgram_sparse():
    """word2vec: logsigmoid scores, SparseAdam for the sparse tables and Adam for the bias."""

    class SGNS(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.v = nn.Embedding(20, 6, sparse=True), nn.Embedding(20, 6, sparse=True)
            self.bias = nn.Parameter(torch.zeros(20))

        def forward(self, i, j):
            return (self.u(i) * self.v(j)).sum(-1) + self.bias[j]

    def loss(m, b):
        return -(F.logsigmoid(m(b[0], b[1])) + F.logsigmoid(-m(b[0][:, None], b[2])).mean(1)).mean()

    m = SGNS()
    opts = [torch.optim.SparseAdam([m.u.weight, m.v.weight], 1e-2), torch.optim.Adam([m.bias], 1e-2)]
    return training(
        m,
        loss,
        opts,
        data(6, lambda s: (s.ints(0, 19, 8), s.ints(0, 19, 8), s.ints(0, 19, 8, 3))),
        domain=tuple(T(shape, "int64", 0, 19) for shape in (("B",), ("B",), ("B", "K"))),
    )


@sound
def missing_values():
    """NaN is legal: where(isnan) before the network, column means over counts clamped to one."""
    net = mlp(8, 12, 1)

    def loss(m, b):
        seen = ~b[0].isnan()
        x = torch.where(seen, b[0], torch.zeros_like(b[0]))
        mean = x.sum(0) / seen.sum(0).clamp(min=1)
        x = torch.where(seen, x, mean.expand_as(x))
        return F.huber_loss(m(torch.cat([x, seen.float()], 1)).squeeze(-1), b[1])

    def make(s):
        x = s.normal(8, 4)
        return torch.where(s.uniform(0, 1, 8, 4) < 0.2, torch.tensor(float("nan")), x), s.normal(8)

    return training(
        net,
        loss,
        adam(net),
        data(5, make),
        domain=(T(("B", 4), min_value=-5, max_value=5, allow_nan=True), T(("B",), min_value=-3, max_value=3)),
    )


@sound
def saturated_sensors():
    """Infinite readings are legal and clamped to [-10, 10] first."""
    net = mlp(3, 12, 2, act=nn.Tanh)
    return training(
        net,
        lambda m, b: F.cross_entropy(m(b[0].clamp(-10, 10)), b[1]),
        adam(net),
        data(5, lambda s: (s.normal(8, 3, scale=3), s.ints(0, 1, 8))),
        domain=(T(("B", 3), allow_infinity=True, min_value=-100, max_value=100), T(("B",), "int64", 0, 1)),
    )


@sound
def distil_probabilities():
    """KLDivLoss against probabilities (x log x is 0 at 0) and, in log space, against a frozen teacher."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = mlp(4, 10, 3), mlp(4, 10, 3).requires_grad_(False)

    def loss(m, b):
        logp = m.student(b["x"]).log_softmax(-1)
        teacher = (m.teacher(b["x"]) / 2).log_softmax(-1)
        return F.kl_div(logp, b["p"], reduction="batchmean") + F.kl_div(
            logp, teacher, log_target=True, reduction="batchmean"
        )

    m = Pair()
    return training(
        m,
        loss,
        torch.optim.Adam(m.student.parameters(), 1e-3),
        domain={"x": T(("B", 4), min_value=-3, max_value=3), "p": T(("B", 3), kind="probabilities")},
        batches=data(5, lambda s: {"x": s.normal(8, 4), "p": s.normal(8, 3).softmax(-1)}),
    )


@sound
def positive_ratios():
    """Quotient, logarithm and geometric mean of prices between 0.5 and 1e4; roots of counts; no domain."""
    net = mlp(5, 12, 1)

    def loss(m, b):
        price, count = b
        x = torch.cat([price[:, :1] / price[:, 1:], price.log(), count.float().sqrt()], 1)
        geometric = price.log().mean(1).exp()
        return F.smooth_l1_loss(m(x.clamp(-50, 50)).squeeze(-1), geometric.log1p())

    def make(s):
        return s.uniform(math.log(0.5), math.log(1e4), 8, 2).exp(), s.ints(0, 100, 8, 2)

    return training(net, loss, torch.optim.Adamax(net.parameters(), 2e-3), data(6, make))


@sound
def log_cosh_residual():
    """log cosh as r + softplus(-2 r) - log 2 with |r|; x / (1 + |x|) and sqrt(1 + x^2) features."""
    m = nn.Sequential(nn.Linear(9, 12), nn.Softsign(), nn.Linear(12, 1))

    def loss(m, b):
        x = b[0]
        h = torch.cat([x / (1 + x.abs()), (1 + x * x).sqrt() / 10, torch.exp(-x * x)], 1)
        r = (m(h).squeeze(-1) - b[1]).abs()
        return (r + F.softplus(-2 * r) - math.log(2)).mean()

    return training(
        m,
        loss,
        torch.optim.Adadelta(m.parameters()),
        domain=(T(("B", 3), min_value=-1e4, max_value=1e4), T(("B",), min_value=-10, max_value=10)),
        batches=data(5, lambda s: (s.normal(8, 3, scale=10), s.normal(8))),
    )


@sound
def tanh_policy():
    """SAC actor: log |d tanh| as 2 (log 2 - u - softplus(-2 u)), log-std clamped; a frozen critic."""

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.pi, self.q = mlp(3, 12, 4), mlp(5, 12, 1).requires_grad_(False)

    def loss(m, obs):
        mu, log_std = m.pi(obs).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        noise = torch.randn_like(mu)
        u = mu + log_std.exp() * noise
        logp = (-0.5 * noise.square() - log_std - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        return (0.2 * logp - m.q(torch.cat([obs, u.tanh()], -1)).squeeze(-1)).mean()

    m = Agent()
    return training(m, loss, torch.optim.Adam(m.pi.parameters(), 1e-3), data(5, lambda s: s.normal(8, 3)))


@sound
def gem_pooling_guarded():
    """Power-mean pooling of features clamped to 1e-3, exponent clamped to [1, 4]; step guarded by the norm."""

    class GeM(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.p, self.out = nn.Conv1d(2, 6, 3), nn.Parameter(torch.tensor(3.0)), nn.Linear(6, 3)

        def forward(self, x):
            p = self.p.clamp(1, 4)
            h = torch.sigmoid(self.conv(x)).clamp(min=1e-3)
            return self.out(h.pow(p).mean(-1).pow(1 / p))

    m = GeM()
    opt = torch.optim.SGD(m.parameters(), 0.05, momentum=0.9)

    def loss(m, b):
        return F.cross_entropy(m(b[0]), b[1])

    def step(b):
        opt.zero_grad(set_to_none=True)
        value = loss(m, b)
        value.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(m.parameters(), 1.0)):
            opt.step()
        return value.detach()

    return training(m, loss, opt, data(5, lambda s: (s.normal(6, 2, 9), s.ints(0, 2, 6))), training_step=step)


@sound
def barlow_vicreg():
    """Correlations of columns over std + 1e-2 and the hinge on sqrt(var + 1e-4); batches of two at least."""
    m = mlp(4, 12, 5)

    def loss(m, x):
        z = m(x)
        u = (z - z.mean(0)) / (z.std(0) + 1e-2)
        off = (u.T @ u / (len(x) - 1)).masked_fill(torch.eye(5, dtype=torch.bool), 0.0)
        return off.square().mean() + F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: s.normal(8, 4)),
        clip_grad_norm=1.0,
        domain=T(("B", 4), min_value=-3, max_value=3),
        sizes={"B": (2, 8)},
    )
