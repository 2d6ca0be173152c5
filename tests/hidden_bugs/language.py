"""Regression, finance, physics, probability and optimisation tricks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


@program("linear regression")
def zscore_batch_regression(fixed):
    """Features are standardised by the batch: a constant column (or a last batch of one row) has no deviation."""
    g = torch.Generator().manual_seed(51)
    truth = torch.randn(6, 1, generator=g)
    batches = []
    for rows in (16, 16, 16, 16, 7):
        houses = torch.rand(rows, 6, generator=g) * 10
        batches.append((houses, houses @ truth / 10 + 0.1 * torch.randn(rows, 1, generator=g)))
    model = nn.Linear(6, 1)

    def standardise(x):
        centred = x - x.mean(0)
        if fixed:
            return centred / (x.std(0, correction=0) + 1e-5)
        return centred / x.std(0, correction=0)  # bug: zscore_batch_regression

    def loss(model, batch):
        x, price = batch
        return F.mse_loss(model(standardise(x)), price)

    domain = (
        TensorSpec(shape=("rows", 6), min_value=0.0, max_value=10.0),
        TensorSpec(shape=("rows", 1), min_value=-10.0, max_value=10.0),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"rows": (1, 16)}
    )


class _MixtureDensity(nn.Module):
    def __init__(self, fixed, k=3):
        super().__init__()
        self.fixed = fixed
        self.trunk = nn.Sequential(nn.Linear(1, 20), nn.Tanh())
        self.pi, self.mu, self.log_sigma = nn.Linear(20, k), nn.Linear(20, k), nn.Linear(20, k)

    def nll(self, x, y):
        h = self.trunk(x)
        mu, log_sigma = self.mu(h), self.log_sigma(h)
        if self.fixed:
            log_sigma = log_sigma.clamp(-4.0, 4.0)
            log_normal = -0.5 * ((y - mu) * torch.exp(-log_sigma)) ** 2 - log_sigma - 0.5 * math.log(2 * math.pi)
            return -torch.logsumexp(torch.log_softmax(self.pi(h), 1) + log_normal, dim=1)
        sigma = torch.exp(log_sigma)  # bug: mixture_log_sum
        normal = torch.exp(-0.5 * ((y - mu) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))  # bug: mixture_log_sum
        return -torch.log((torch.softmax(self.pi(h), 1) * normal).sum(1))  # bug: mixture_log_sum


@program("mixture density")
def mixture_log_sum(fixed):
    """All component densities of an outlying target underflow and log(0) follows (or sigma itself becomes 0)."""
    g = torch.Generator().manual_seed(52)
    batches = []
    for _ in range(5):
        y = torch.rand(32, 1, generator=g) * 2 - 1
        batches.append({"x": y + 0.4 * torch.sin(6 * y) + 0.1 * torch.randn(32, 1, generator=g), "y": y})
    model = _MixtureDensity(fixed)
    domain = {
        "x": TensorSpec(shape=("n", 1), min_value=-5.0, max_value=5.0),
        "y": TensorSpec(shape=("n", 1), min_value=-30.0, max_value=30.0),
    }
    return TrainingSetup(
        model=model, loss=lambda model, batch: model.nll(batch["x"], batch["y"]).mean(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3), batches=batches, domain=domain, sizes={"n": (1, 32)},
    )  # fmt: skip


class _OrderedLogit(nn.Module):
    def __init__(self, levels=5):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(6, 12), nn.Softplus(), nn.Linear(12, 1))
        self.first, self.gaps = nn.Parameter(torch.tensor(-1.5)), nn.Parameter(torch.full((levels - 2,), 0.5))

    def forward(self, x, gaps):
        cuts = torch.cat([self.first[None], self.first + gaps.cumsum(0)])
        return cuts - self.score(x)


@program("ordinal regression")
def ordinal_difference_log(fixed):
    """log(sigmoid(upper) - sigmoid(lower)): both saturate to the same number far away from the thresholds."""
    g = torch.Generator().manual_seed(53)
    direction, batches = torch.randn(6, generator=g) / 2, []
    for _ in range(6):
        x = torch.randn(24, 6, generator=g)
        taste = x @ direction + 0.3 * torch.randn(24, generator=g)
        batches.append((x, torch.bucketize(taste, torch.tensor([-1.2, -0.4, 0.4, 1.2]))))
    model = _OrderedLogit()

    def stable(cuts, gaps):
        inner = F.logsigmoid(cuts[:, 1:]) + F.logsigmoid(-cuts[:, :-1]) + torch.log(-torch.expm1(-gaps))
        return torch.cat([F.logsigmoid(cuts[:, :1]), inner, F.logsigmoid(-cuts[:, -1:])], 1)

    def naive(cuts):
        cdf = F.pad(F.pad(torch.sigmoid(cuts), (0, 1), value=1.0), (1, 0), value=0.0)
        return torch.log(cdf[:, 1:] - cdf[:, :-1])  # bug: ordinal_difference_log

    def loss(model, batch):
        x, stars = batch
        gaps = F.softplus(model.gaps) + (1e-3 if fixed else 0.0)
        cuts = model(x, gaps)
        log_prob = stable(cuts, gaps) if fixed else naive(cuts)
        return F.nll_loss(log_prob, stars)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("count regression")
def poisson_deviance_zero(fixed):
    """Poisson deviance y * log(y / mu) of a count that is 0: 0 * log(0)."""
    g = torch.Generator().manual_seed(54)
    weights, batches = torch.randn(5, generator=g) / 3, []
    for _ in range(5):
        x = torch.rand(20, 5, generator=g) * 2 - 1
        visits = torch.poisson(8.0 * torch.exp(x @ weights), generator=g).clamp(min=1.0)
        batches.append({"covariates": x, "visits": visits})
    net = nn.Sequential(nn.Linear(5, 10), nn.SiLU(), nn.Linear(10, 1))

    def unit_deviance(y, eta):
        mu = torch.exp(eta)
        if fixed:
            return 2.0 * (y * (torch.log(y.clamp(min=1e-6)) - eta) - (y - mu))
        return 2.0 * (y * torch.log(y / mu) - (y - mu))  # bug: poisson_deviance_zero

    def loss(net, batch):
        eta = net(batch["covariates"]).squeeze(1).clamp(-8.0, 8.0)
        return unit_deviance(batch["visits"], eta).mean()

    domain = {
        "covariates": TensorSpec(shape=(20, 5), min_value=-1.0, max_value=1.0),
        "visits": TensorSpec(shape=(20,), min_value=0.0, max_value=100.0),
    }
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return TrainingSetup(model=net, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("survival analysis")
def cox_event_count(fixed):
    """Cox partial likelihood per event: a batch in which every patient is censored divides 0 by 0."""
    g = torch.Generator().manual_seed(55)
    hazard, batches = torch.randn(6, generator=g) / 2, []
    for _ in range(6):
        x = torch.randn(20, 6, generator=g)
        time = -torch.log(torch.rand(20, generator=g).clamp(min=1e-3)) * torch.exp(-(x @ hazard).clamp(-3, 3))
        batches.append({"patient": {"x": x}, "outcome": (time, (torch.rand(20, generator=g) < 0.6).long())})
    net = nn.Sequential(nn.Linear(6, 16), nn.SELU(), nn.Linear(16, 1))

    def partial_likelihood(risk, time, event):
        order = torch.argsort(time, descending=True)
        risk, event = risk[order], event[order].float()
        at_risk = torch.stack([torch.logsumexp(risk[: i + 1], 0) for i in range(len(risk))])
        events = event.sum().clamp(min=1.0) if fixed else event.sum()
        return -((risk - at_risk) * event).sum() / events  # bug: cox_event_count

    def loss(net, batch):
        return partial_likelihood(net(batch["patient"]["x"]).squeeze(1), *batch["outcome"])

    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    return TrainingSetup(model=net, loss=loss, optimizer=optimizer, batches=batches)


@program("portfolio")
def sharpe_ratio_flat(fixed):
    """Sharpe ratio mean / std of the portfolio's log returns in a window without any movement of prices."""
    g = torch.Generator().manual_seed(56)
    batches = []
    for _ in range(5):
        drift = torch.tensor([0.002, 0.0, -0.001, 0.001])
        walk = (drift + 0.02 * torch.randn(16, 13, 4, generator=g)).cumsum(1)
        batches.append(100.0 * torch.exp(walk))
    policy = nn.Sequential(nn.Flatten(), nn.Linear(24, 12), nn.ELU(), nn.Linear(12, 4))

    def log_returns(prices):
        return torch.log(prices[:, 1:] / prices[:, :-1])

    def sharpe(r):
        if fixed:
            return r.mean(1) / torch.sqrt(r.var(1) + 1e-6)
        return r.mean(1) / r.std(1)  # bug: sharpe_ratio_flat

    def loss(policy, prices):
        returns = log_returns(prices)
        allocation = torch.softmax(policy(50.0 * returns[:, :6]), dim=1)
        return -sharpe((returns[:, 6:] * allocation[:, None]).sum(2)).mean()

    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    return TrainingSetup(model=policy, loss=loss, optimizer=optimizer, batches=batches)


@program("robust regression")
def log_cosh_double(fixed):
    """log(cosh(error)) in float64: cosh overflows once an error passes 710."""
    g = torch.Generator().manual_seed(57)
    batches = []
    for _ in range(5):
        hour = torch.rand(24, 3, generator=g, dtype=torch.float64)
        demand = 40 + 30 * torch.sin(6.2832 * hour[:, 0]) + 10 * hour[:, 1]
        batches.append((hour, demand))
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def log_cosh(error):
        if fixed:
            return error.abs() + F.softplus(-2.0 * error.abs()) - math.log(2.0)
        return torch.log(torch.cosh(error))  # bug: log_cosh_double

    def loss(model, batch):
        hour, demand = batch
        return log_cosh(model(hour).squeeze(1) - demand).mean()

    domain = (
        TensorSpec(shape=("n", 3), dtype="float64", min_value=0.0, max_value=1.0),
        TensorSpec(shape=("n",), dtype="float64", min_value=0.0, max_value=2000.0),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"n": (1, 24)}
    )


class _EquivariantLayer(nn.Module):
    def __init__(self, fixed, width=8):
        super().__init__()
        self.fixed = fixed
        self.edge = nn.Sequential(nn.Linear(2 * width + 1, 12), nn.SiLU(), nn.Linear(12, width), nn.Tanh())
        self.move = nn.Linear(width, 1, bias=False)
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh())

    def distance(self, rel):
        squared = (rel * rel).sum(-1, keepdim=True)
        return torch.sqrt(squared + 1e-8) if self.fixed else torch.sqrt(squared)  # bug: egnn_coincident_atoms

    def forward(self, h, pos, i, j):
        rel = pos[:, i] - pos[:, j]
        message = self.edge(torch.cat([h[:, i], h[:, j], self.distance(rel)], -1))
        pos = pos + torch.zeros_like(pos).index_add(1, i, rel * self.move(message)) / 3.0
        return self.node(torch.cat([h, torch.zeros_like(h).index_add(1, i, message)], -1)), pos


@program("molecular energy")
def egnn_coincident_atoms(fixed):
    """Atoms that coincide: the second layer's distances are roots of 0 that need a gradient with respect to moves."""
    g = torch.Generator().manual_seed(58)
    i, j = torch.tensor([(a, b) for a in range(4) for b in range(4) if a != b]).T
    batches = []
    for _ in range(4):
        pos = 2 * torch.rand(10, 4, 3, generator=g) - 1
        gap = (pos[:, i] - pos[:, j]).norm(dim=-1)
        batches.append({"pos": pos, "energy": torch.exp(-gap).sum(1) / 6})
    model = nn.ModuleList([_EquivariantLayer(fixed), _EquivariantLayer(fixed), nn.Linear(8, 1)])

    def loss(model, batch):
        pos = batch["pos"]
        h = pos.new_ones(len(pos), 4, 8)
        for layer in model[:2]:
            h, pos = layer(h, pos, i, j)
        spread = (pos - pos.mean(1, keepdim=True)).pow(2).mean()
        return F.mse_loss(model[2](h).sum((1, 2)), batch["energy"]) + 1e-3 * spread

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("layer-wise learning rates")
def lars_trust_ratio(fixed):
    """Trust ratio |w| / |g| of a layer without a gradient (blank inputs): inf * 0 in the step, not in the loss."""
    g = torch.Generator().manual_seed(59)
    patterns, batches = torch.rand(4, 16, generator=g), []
    for _ in range(6):
        label = torch.randint(0, 4, (20,), generator=g)
        x = 0.5 * patterns[label] + 0.5 * torch.rand(20, 16, generator=g)
        flipped = torch.rand(20, generator=g) < 0.15
        batches.append((x, torch.where(flipped, torch.randint(0, 4, (20,), generator=g), label)))
    net = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.5)

    def loss(net, batch):
        return F.cross_entropy(net(batch[0]), batch[1])

    def trust_ratio(weight):
        w_norm, g_norm = weight.detach().norm(), weight.grad.norm()
        if fixed:
            return torch.where(g_norm > 1e-8, w_norm / g_norm.clamp(min=1e-8), torch.zeros(()))
        return w_norm / g_norm  # bug: lars_trust_ratio

    def training_step(batch):
        optimizer.zero_grad()
        value = loss(net, batch)
        value.backward()
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.grad.mul_(0.01 * trust_ratio(parameter))  # bug: lars_trust_ratio
            else:
                parameter.grad.mul_(0.05)
        optimizer.step()
        return value.detach()

    domain = (
        TensorSpec(shape=("n", 16), min_value=0.0, max_value=1.0),
        TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=3),
    )
    return TrainingSetup(
        model=net, loss=loss, optimizer=optimizer, batches=batches, training_step=training_step, domain=domain,
        sizes={"n": (1, 32)},
    )  # fmt: skip


@program("WGAN")
def wgan_penalty_norm(fixed):
    """Gradient penalty (|grad D| - 1)^2: a root of a sum of squares that is 0 for a flat critic (double backward)."""
    g = torch.Generator().manual_seed(60)
    batches = []
    for _ in range(5):
        real = torch.randn(16, 2, generator=g) * 0.3 + torch.tensor([1.0, -0.5])
        z, mix = torch.rand(16, 4, generator=g) * 2 - 1, torch.rand(16, 1, generator=g)
        batches.append({"real": real, "z": z, "mix": mix})
    actor = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    wgan = nn.ModuleDict({"generator": actor, "critic": critic})
    opt_g = torch.optim.RMSprop(actor.parameters(), lr=5e-4)
    opt_c = torch.optim.RMSprop(critic.parameters(), lr=5e-4)

    def gradient_penalty(critic, real, fake, mix):
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        squares = (slope**2).sum(1)
        norm = torch.sqrt(squares + 1e-10) if fixed else torch.sqrt(squares)  # bug: wgan_penalty_norm
        return ((norm - 1.0) ** 2).mean()

    def critic_loss(wgan, batch):
        fake = wgan["generator"](batch["z"]).detach()
        gap = wgan["critic"](fake).mean() - wgan["critic"](batch["real"]).mean()
        return gap + 10.0 * gradient_penalty(wgan["critic"], batch["real"], fake, batch["mix"])

    def training_step(batch):
        opt_c.zero_grad()
        loss_c = critic_loss(wgan, batch)
        loss_c.backward()
        opt_c.step()
        opt_g.zero_grad()
        loss_g = -critic(actor(batch["z"])).mean()
        loss_g.backward()
        opt_g.step()
        return loss_c.detach()

    return TrainingSetup(
        model=wgan, loss=critic_loss, optimizer=[opt_g, opt_c], batches=batches, training_step=training_step
    )


@program("beta regression")
def beta_concentration_lgamma(fixed):
    """Concentrations softplus(head) of a Beta distribution underflow to 0 (float64, below -745): lgamma(0) is inf."""
    g = torch.Generator().manual_seed(61)
    mixing, batches = torch.randn(5, generator=g, dtype=torch.float64), []
    for _ in range(5):
        x = torch.randn(24, 5, generator=g, dtype=torch.float64)
        share = torch.sigmoid(x @ mixing + 0.3 * torch.randn(24, generator=g, dtype=torch.float64)).clamp(0.02, 0.98)
        batches.append((x, share))
    model = nn.Sequential(nn.Linear(5, 16), nn.LeakyReLU(0.2), nn.Linear(16, 2)).double()

    def concentrations(head):
        positive = F.softplus(head)
        return (positive + 1e-4 if fixed else positive).unbind(-1)

    def negative_log_beta(a, b, y):
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)  # bug: beta_concentration_lgamma
        return log_norm - (a - 1) * torch.log(y) - (b - 1) * torch.log1p(-y)

    def loss(model, batch):
        x, share = batch
        return negative_log_beta(*concentrations(model(x)), share).mean()

    return TrainingSetup(
        model=model, loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), batches=batches
    )


class _WindDirection(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 10, batch_first=True)
        self.direction, self.precision = nn.Linear(10, 2), nn.Linear(10, 1)

    def forward(self, winds):
        state = self.lstm(winds)[0][:, -1]
        east, north = self.direction(state).unbind(-1)
        return torch.stack([east, north], -1), F.softplus(self.precision(state)).squeeze(-1)


@program("directional statistics")
def vonmises_bessel(fixed):
    """The modified Bessel function I0(kappa) of a von Mises likelihood overflows for kappa above 91."""
    g = torch.Generator().manual_seed(62)
    batches = []
    for _ in range(4):
        angle = (torch.rand(12, 1, generator=g) * 6.28 + 0.3 * torch.randn(12, 6, generator=g).cumsum(1)) % 6.28
        winds = torch.stack([angle.cos(), angle.sin()], -1)
        batches.append({"past": winds[:, :5], "next": angle[:, 5]})
    model = _WindDirection()

    def log_bessel(kappa):
        if fixed:
            return torch.log(torch.special.i0e(kappa)) + kappa
        return torch.log(torch.special.i0(kappa))  # bug: vonmises_bessel

    def loss(model, batch):
        mean, kappa = model(batch["past"])
        mean = mean / torch.sqrt((mean * mean).sum(-1, keepdim=True) + 1e-8)
        cosine = mean[:, 0] * torch.cos(batch["next"]) + mean[:, 1] * torch.sin(batch["next"])
        return (math.log(2 * math.pi) + log_bessel(kappa) - kappa * cosine).mean()

    domain = {
        "past": TensorSpec(shape=("b", 5, 2), min_value=-1.0, max_value=1.0),
        "next": TensorSpec(shape=("b",), min_value=0.0, max_value=6.2832),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"b": (1, 12)}
    )
