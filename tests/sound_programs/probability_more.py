"""More probability and losses."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training


@sound
def poisson_counts():
    """PoissonNLLLoss(log_input, full): log-rate 6 * tanh(.), counts up to 50, Stirling on counts above one only."""
    m, criterion = mlp(4, 16, 1), nn.PoissonNLLLoss(log_input=True, full=True)

    def loss(m, b):
        return criterion(6 * torch.tanh(m(b["x"]).squeeze(-1) / 6), b["count"].float())

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: {"x": s.normal(8, 4), "count": s.ints(0, 50, 8)}),
    )


@sound
def mixture_density():
    """MDN: logsumexp of log_softmax weights and Gaussian terms, log-sigma clamped."""
    m = mlp(2, 16, 9, act=nn.Tanh)

    def loss(m, b):
        logit, mu, ls = m(b[0]).chunk(3, -1)
        ls = ls.clamp(-4, 4)
        log_n = -0.5 * ((b[1][:, None] - mu) * (-ls).exp()).square() - ls - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(logit.log_softmax(-1) + log_n, -1).mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        clip_grad_norm=10.0,
        batches=data(6, lambda s: (s.normal(8, 2), s.normal(8, scale=2))),
        domain=(T(("B", 2), min_value=-3, max_value=3), T(("B",), min_value=-6, max_value=6)),
    )


@sound
def cox_partial_likelihood():
    """Cox loss: logcumsumexp over descending time, divided by the number of events clamped to one."""
    m = mlp(5, 12, 1)

    def loss(m, b):
        order = b["time"].argsort(descending=True)
        risk, event = m(b["x"]).squeeze(-1)[order], b["event"][order].float()
        return ((risk.logcumsumexp(0) - risk) * event).sum() / event.sum().clamp(min=1)

    domain = {
        "x": T(("B", 5), min_value=-3, max_value=3),
        "time": T(("B",), min_value=0, max_value=100),
        "event": T(("B",), "bool"),
    }
    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        domain=domain,
        batches=data(
            5, lambda s: {"x": s.normal(8, 5), "time": s.uniform(0, 100, 8), "event": s.uniform(0, 1, 8) < 0.6}
        ),
    )


@sound
def discrete_hazard():
    """Discrete-time survival: log hazard and log survival as logsigmoid(+-z)."""
    m = mlp(4, 12, 6)

    def loss(m, b):
        z, t = m(b[0]), b[1][:, None]
        steps = torch.arange(6)
        alive = F.logsigmoid(-z).masked_fill(steps >= t, 0.0).sum(1)
        return -(alive + b[2] * F.logsigmoid(z.gather(1, t)).squeeze(1)).mean()

    return training(
        m,
        loss,
        torch.optim.Adagrad(m.parameters(), 1e-2),
        data(5, lambda s: (s.normal(8, 4), s.ints(0, 5, 8), s.ints(0, 1, 8).float())),
    )


@sound
def sinkhorn_log():
    """Entropic transport with potentials updated by logsumexp, never exp of the kernel."""
    m = mlp(3, 12, 2)

    def loss(m, b):
        x, y = m(b[0]), b[1]
        cost, n, k = (x[:, None] - y).square().sum(-1), len(x), len(y)
        f, g = x.new_zeros(n), x.new_zeros(k)
        for _ in range(5):
            f = -0.5 * torch.logsumexp((g - cost) / 0.5 - math.log(k), 1)
            g = -0.5 * torch.logsumexp((f[:, None] - cost) / 0.5 - math.log(n), 0)
        plan = ((f[:, None] + g - cost) / 0.5 - math.log(n * k)).exp()  # columns sum to 1 / k
        return (plan * cost).sum()

    return training(
        m, loss, torch.optim.Adam(m.parameters(), 1e-3), data(5, lambda s: (s.normal(6, 3), s.normal(5, 2)))
    )


@sound
def gp_cholesky_double():
    """Gaussian process evidence in double: kernel amplitude at most 4, noise softplus + 1e-2 on the diagonal."""

    class GP(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x, y):
            amp, noise = 4 * self.raw[0].sigmoid(), F.softplus(self.raw[1]) + 1e-2
            scale = F.softplus(self.raw[2]) + 0.1
            k = amp * torch.exp(-0.5 * ((x[:, None] - x) / scale).square().sum(-1))
            chol = torch.linalg.cholesky(k + noise * torch.eye(len(x), dtype=x.dtype))
            alpha = torch.cholesky_solve(y[:, None], chol).squeeze(-1)
            return (0.5 * y @ alpha + chol.diagonal().log().sum()) / len(x)

    m = GP()
    domain = (T(("B", 2), "float64", -3, 3), T(("B",), "float64", -3, 3))
    return training(
        m,
        lambda m, b: m(*b),
        torch.optim.Adam(m.parameters(), 1e-2),
        domain=domain,
        batches=data(5, lambda s: (s.normal(8, 2, dtype=torch.float64), s.normal(8, dtype=torch.float64))),
    )


@sound
def bounded_logdet():
    """logdet(I + A A^T) with A = tanh(.): eigenvalues between 1 and 1 + n."""
    m = mlp(4, 12, 6)

    def loss(m, x):
        a = torch.tanh(m(x))
        gram = torch.eye(len(x)) + a @ a.mT
        return -torch.logdet(gram) / len(x) + 0.01 * torch.linalg.eigvalsh(gram).amax() + 0.1 * a.square().mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: s.normal(6, 4)),
        domain=T(("B", 4), min_value=-5, max_value=5),
        sizes={"B": (1, 8)},
    )


@sound
def full_covariance():
    """MultivariateNormal from a Cholesky factor: diagonal softplus + 0.1, the rest within 2 * tanh(.)."""
    m = mlp(3, 12, 9, act=nn.Tanh)

    def loss(m, b):
        out = m(b[0])
        low = torch.zeros(len(out), 3, 3)
        i, j = torch.tril_indices(3, 3, -1)
        low[:, i, j] = 2 * torch.tanh(out[:, 6:])
        tril = low + torch.diag_embed(F.softplus(out[:, 3:6]) + 0.1)
        return -torch.distributions.MultivariateNormal(out[:, :3], scale_tril=tril).log_prob(b[1]).mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        clip_grad_norm=10.0,
        batches=data(5, lambda s: (s.normal(6, 3), s.normal(6, 3))),
    )


@sound
def evidential_dirichlet():
    """Evidence softplus + 1: expected cross-entropy by digamma and the KL to the flat Dirichlet by lgamma."""
    m = mlp(4, 12, 3)

    def loss(m, b):
        alpha = F.softplus(m(b[0])) + 1
        s = alpha.sum(-1, keepdim=True)
        y = b[1].float()
        nll = (y * (torch.digamma(s) - torch.digamma(alpha))).sum(-1)
        a = y + (1 - y) * alpha
        t = a.sum(-1, keepdim=True)
        kl = torch.lgamma(t).squeeze(-1) - torch.lgamma(a).sum(-1) - math.lgamma(3)
        kl = kl + ((a - 1) * (torch.digamma(a) - torch.digamma(t))).sum(-1)
        return (nll + 0.1 * kl).mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: (s.normal(8, 4), F.one_hot(s.ints(0, 2, 8), 3))),
        domain=(T(("B", 4), min_value=-3, max_value=3), T(("B", 3), "int64", kind="one_hot")),
    )


@sound
def beta_regression():
    """Beta likelihood: rates squeezed into [1e-3, 1 - 1e-3], concentrations softplus + 0.5."""
    m = mlp(3, 12, 2)

    def loss(m, b):
        a, c = (F.softplus(m(b[0])) + 0.5).unbind(-1)
        y = b[1].clamp(1e-3, 1 - 1e-3)
        return -((a - 1) * y.log() + (c - 1) * (1 - y).log() + torch.lgamma(a + c) - a.lgamma() - c.lgamma()).mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: (s.normal(8, 3), s.uniform(0, 1, 8))),
        domain=(T(("B", 3), min_value=-3, max_value=3), T(("B",), min_value=0, max_value=1)),
    )


@sound
def ordinal_thresholds():
    """Cumulative link: log(sig(a) - sig(b)) = logsig(a) + logsig(-b) + log(-expm1(b - a)) with gaps >= 0.05."""

    class Ordinal(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.gaps = mlp(4, 10, 1), nn.Parameter(torch.ones(2))
            self.first = nn.Parameter(torch.tensor(-1.0))

        def forward(self, x, y):
            gaps = F.softplus(self.gaps) + 0.05
            cuts = torch.cat([self.first[None], self.first + gaps.cumsum(0)])
            z = cuts - self.net(x)  # [B, 3] for four classes
            inner = F.logsigmoid(z[:, 1:]) + F.logsigmoid(-z[:, :-1]) + torch.log(-torch.expm1(-gaps))
            logp = torch.cat([F.logsigmoid(z[:, :1]), inner, F.logsigmoid(-z[:, 2:])], 1)
            return F.nll_loss(logp, y)

    m = Ordinal()
    return training(
        m,
        lambda m, b: m(*b),
        torch.optim.Adam(m.parameters(), 2e-3),
        data(5, lambda s: (s.normal(8, 4), s.ints(0, 3, 8))),
    )


@sound
def instance_norm_style():
    """InstanceNorm and Gram matrices divided by the number of positions."""
    m = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.ELU(), nn.Conv2d(6, 3, 1))

    def gram(x):
        f = x.flatten(2)
        return f @ f.mT / f.shape[-1]

    return training(
        m,
        lambda m, x: F.mse_loss(gram(m(x)), gram(x)) + F.l1_loss(m(x), x),
        torch.optim.NAdam(m.parameters(), 1e-3),
        data(5, lambda s: s.uniform(-1, 1, 3, 3, 6, 6)),
    )
