"""Probabilistic models: densities, flows, regressions with a likelihood, diffusion, an HMM, a GP, mixtures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


@program("mixture density network")
def mixture_density_network_likelihood(fixed):
    """log of a sum of Gaussian densities that all underflow when the target is far from every component."""
    g = torch.Generator().manual_seed(101)
    t = torch.rand(6, 32, 1, generator=g)
    x = t + 0.3 * torch.sin(2 * math.pi * t) + 0.05 * torch.randn(6, 32, 1, generator=g)
    batches = list(zip(x, t, strict=True))

    class MDN(nn.Module):
        def __init__(self, hidden=20, k=5):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(1, hidden), nn.Tanh())
            self.z_pi, self.z_mu, self.z_sigma = (nn.Linear(hidden, k) for _ in range(3))

        def forward(self, x):
            h = self.body(x)
            return self.z_pi(h), self.z_mu(h), F.softplus(self.z_sigma(h)) + 0.01

    def mdn_loss(model, batch):
        x, y = batch
        logits, mu, sigma = model(x)
        z = (y - mu) / sigma
        if fixed:
            log_component = -0.5 * z**2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
            return -torch.logsumexp(F.log_softmax(logits, dim=1) + log_component, dim=1).mean()
        density = torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))
        likelihood = torch.sum(torch.softmax(logits, dim=1) * density, dim=1)
        return -torch.log(likelihood).mean()  # bug: mixture_density_network_likelihood

    mdn = MDN()
    return TrainingSetup(model=mdn, loss=mdn_loss, optimizer=torch.optim.Adam(mdn.parameters(), 5e-3), batches=batches)


@program("Glow")
def glow_invertible_conv_det(fixed):
    """log|det W| of the 1x1 convolution, whose weight may become singular or zero; the twin keeps it factored."""
    g = torch.Generator().manual_seed(102)
    mixing = torch.randn(4, 4, generator=g)
    batches = [torch.einsum("ij,bjhw->bihw", mixing, torch.randn(8, 4, 4, 4, generator=g)) for _ in range(5)]

    class InvConv1x1(nn.Module):
        def __init__(self, c):
            super().__init__()
            w = torch.linalg.qr(torch.randn(c, c))[0]
            self.weight = nn.Parameter(w)
            if fixed:
                perm, low, up = torch.linalg.lu(w)
                self.weight = nn.Parameter(low.tril(-1) + up.triu(1))
                self.log_s = nn.Parameter(up.diagonal().abs().log())
                self.register_buffer("perm", perm)
                self.register_buffer("sign", up.diagonal().sign())

        def forward(self, x):
            if fixed:
                log_s = self.log_s.clamp(-6.0, 6.0)
                upper = self.weight.triu(1) + torch.diag(self.sign * log_s.exp())
                w = self.perm @ (self.weight.tril(-1) + torch.eye(4)) @ upper
                return F.conv2d(x, w[:, :, None, None]), 16 * log_s.sum()
            log_det = torch.log(torch.abs(torch.det(self.weight)))  # bug: glow_invertible_conv_det
            return F.conv2d(x, self.weight[:, :, None, None]), 16 * log_det

    model = nn.ModuleDict(
        {
            "perm": nn.ModuleList([InvConv1x1(4), InvConv1x1(4)]),
            "net": nn.ModuleList(
                [nn.Sequential(nn.Conv2d(2, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)) for _ in "12"]
            ),
        }
    )

    def nll(model, x):
        log_det = x.new_zeros(len(x))
        for perm, net in zip(model["perm"], model["net"], strict=True):
            x, ld = perm(x)
            x_a, x_b = x.chunk(2, dim=1)
            log_scale, shift = net(x_a).chunk(2, dim=1)
            log_scale = torch.tanh(log_scale)
            x = torch.cat([x_a, x_b * log_scale.exp() + shift], dim=1)
            log_det = log_det + ld + log_scale.sum(dim=(1, 2, 3))
        return (0.5 * (x**2).sum(dim=(1, 2, 3)) - log_det).mean() / 64

    return TrainingSetup(model=model, loss=nll, optimizer=torch.optim.Adam(model.parameters(), 1e-3), batches=batches)


@program("normalising flow")
def realnvp_logit_preprocessing(fixed):
    """Inverse sigmoid of a pixel that is exactly 0 or 1; the twin squeezes the pixels as RealNVP does."""
    g = torch.Generator().manual_seed(103)
    base = torch.sigmoid(torch.randn(6, 24, 3, generator=g)) * 0.9 + 0.05
    batches = list(torch.cat([base, (base.flip(-1) + 0.04 * torch.randn(6, 24, 3, generator=g)).clamp(0.01, 0.99)], -1))

    class Coupling(nn.Module):
        def __init__(self, flip):
            super().__init__()
            self.net, self.flip = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 6)), flip

        def forward(self, y):
            a, b = y.flip(-1).chunk(2, -1) if self.flip else y.chunk(2, -1)
            s, t = self.net(a).chunk(2, -1)
            s = 2 * torch.tanh(s)
            return torch.cat([a, b * s.exp() + t], -1), s.sum(-1)

    flow = nn.ModuleList([Coupling(False), Coupling(True), Coupling(True)])

    def nll(model, x):
        if fixed:
            x = 0.005 + 0.99 * x
        y = torch.log(x) - torch.log(1 - x)  # bug: realnvp_logit_preprocessing
        log_det = (F.softplus(y) + F.softplus(-y)).sum(-1)
        for layer in model:
            y, ld = layer(y)
            log_det = log_det + ld
        return (0.5 * (y**2).sum(-1) + 3 * math.log(2 * math.pi) - log_det).mean()

    return TrainingSetup(
        model=flow,
        loss=nll,
        optimizer=torch.optim.AdamW(flow.parameters(), lr=1e-3),
        batches=batches,
        domain=TensorSpec(shape=("batch", 6), min_value=0.0, max_value=1.0),
        sizes={"batch": (1, 32)},
    )


@program("heteroscedastic regression")
def heteroscedastic_variance_underflow(fixed):
    """The square of a softplus sigma is 0 below about exp(-52), and log and division by the variance follow."""
    g = torch.Generator().manual_seed(104)
    x = 2 * torch.randn(6, 20, 5, generator=g)
    noise = 0.1 + 0.4 * torch.sigmoid(x[..., :1])
    y = x[..., 1:2].sin() + 0.3 * x[..., 2:3] + noise * torch.randn(6, 20, 1, generator=g)
    batches = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    trunk = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    def gaussian_nll(model, batch):
        mu, raw = model(batch["x"]).chunk(2, dim=1)
        var = F.softplus(raw) ** 2
        if fixed:
            var = var + 1e-4
        loss = 0.5 * torch.log(var) + 0.5 * (batch["y"] - mu) ** 2 / var  # bug: heteroscedastic_variance_underflow
        return loss.mean()

    optimizer = torch.optim.Adam(trunk.parameters(), lr=2e-3)
    return TrainingSetup(model=trunk, loss=gaussian_nll, optimizer=optimizer, batches=batches, clip_grad_norm=10.0)


@program("beta regression")
def beta_regression_saturated_mean(fixed):
    """(1 - mu) * phi is exactly 0 for a saturated mean: lgamma(0)."""
    g = torch.Generator().manual_seed(105)
    batches = []
    for _ in range(6):
        x = torch.randn(24, 4, generator=g).clamp(-3, 3)
        share = torch.sigmoid(x[:, 0] - 0.5 * x[:, 1] + 0.4 * torch.randn(24, generator=g))
        batches.append((x, share))
    model = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, 2))

    def beta_nll(model, batch):
        x, y = batch
        y = y.clamp(1e-4, 1 - 1e-4)
        eta, raw_phi = model(x).unbind(dim=1)
        mu, phi = torch.sigmoid(eta), F.softplus(raw_phi) + 0.01
        if fixed:
            mu = mu.clamp(1e-4, 1 - 1e-4)
        a, b = mu * phi, (1 - mu) * phi
        log_norm = torch.lgamma(phi) - torch.lgamma(a) - torch.lgamma(b)  # bug: beta_regression_saturated_mean
        return -(log_norm + (a - 1) * torch.log(y) + (b - 1) * torch.log1p(-y)).mean()

    x_spec = TensorSpec(shape=("batch", 4), min_value=-20.0, max_value=20.0)
    y_spec = TensorSpec(shape=("batch",), min_value=0.0, max_value=1.0)
    return TrainingSetup(
        model=model,
        loss=beta_nll,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        batches=batches,
        domain=(x_spec, y_spec),
        sizes={"batch": (2, 32)},
    )


@program("Poisson regression")
def poisson_deviance_where(fixed):
    """torch.where hides 0 * log(0) forward; backward still multiplies by the infinite slope of the other branch."""
    g = torch.Generator().manual_seed(106)
    effect = 0.3 * torch.randn(7, generator=g)
    batches = []
    for _ in range(6):
        x, ward = torch.rand(20, 3, generator=g), torch.randint(0, 7, (20,), generator=g)
        y = torch.poisson(torch.exp(2.3 + x[:, 0] + effect[ward]), generator=g).clamp(min=1)
        batches.append({"x": x, "ward": ward, "visits": y.long()})
    head = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 1))
    model = nn.ModuleDict({"ward": nn.Embedding(7, 4), "head": head})

    def deviance(model, batch):
        y = batch["visits"].float()
        features = torch.cat([batch["x"], model["ward"](batch["ward"])], dim=1)
        mu = F.softplus(model["head"](features).squeeze(1)) + 1e-2
        if fixed:
            y_log = torch.special.xlogy(y, y) - y * torch.log(mu)
        else:
            y_log = torch.where(y > 0, y * torch.log(y / mu), torch.zeros_like(y))  # bug: poisson_deviance_where
        return 2 * (y_log - (y - mu)).mean()

    domain = {
        "x": TensorSpec(shape=("batch", 3), min_value=0.0, max_value=1.0),
        "ward": TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=6),
        "visits": TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=200),
    }
    optimizer, sizes = torch.optim.RMSprop(model.parameters(), lr=1e-3), {"batch": (1, 32)}
    return TrainingSetup(model=model, loss=deviance, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("Student-t regression")
def student_t_station_scale(fixed):
    """The scale of a station is a free parameter, not a positive function of one: division by 0 and log(0)."""
    g = torch.Generator().manual_seed(107)
    batches = []
    for _ in range(6):
        x, station = torch.randn(24, 3, generator=g), torch.randint(0, 5, (24,), generator=g)
        noise = torch.randn(24, generator=g) / torch.rand(24, generator=g).clamp_min(0.1)
        batches.append((x, station, x[:, 0] * x[:, 1] + (0.2 + 0.1 * station) * noise))
    model = nn.ModuleDict({"f": nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)), "s": nn.Embedding(5, 1)})
    nn.init.ones_(model["s"].weight)
    nu = 4.0
    const = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)

    def student_nll(model, batch):
        x, station, y = batch
        scale = model["s"](station).squeeze(1)
        if fixed:
            scale = F.softplus(scale) + 1e-3
        z = (y - model["f"](x).squeeze(1)) / scale  # bug: student_t_station_scale
        log_scale = torch.log(scale)  # bug: student_t_station_scale
        return (log_scale + 0.5 * (nu + 1) * torch.log1p(z**2 / nu) - const).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return TrainingSetup(model=model, loss=student_nll, optimizer=optimizer, batches=batches)


@program("directional regression")
def von_mises_log_bessel(fixed):
    """I0(kappa) overflows above about 91: the more certain the direction, the nearer."""
    g = torch.Generator().manual_seed(108)
    batches = []
    for _ in range(6):
        x = torch.randn(24, 4, generator=g)
        batches.append((x, torch.atan2(x[:, 0] + 0.3 * x[:, 2], x[:, 1]) + 0.4 * torch.randn(24, generator=g)))
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))

    def von_mises_nll(model, batch):
        x, theta = batch
        out = model(x)
        direction = out[:, :2] / torch.sqrt((out[:, :2] ** 2).sum(dim=1, keepdim=True) + 1e-4)
        kappa = F.softplus(out[:, 2])
        cos_diff = direction[:, 0] * theta.cos() + direction[:, 1] * theta.sin()
        if fixed:
            log_i0 = torch.log(torch.special.i0e(kappa)) + kappa
        else:
            log_i0 = torch.log(torch.special.i0(kappa))  # bug: von_mises_log_bessel
        return (log_i0 + math.log(2 * math.pi) - kappa * cos_diff).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return TrainingSetup(model=model, loss=von_mises_nll, optimizer=optimizer, batches=batches)


@program("diffusion")
def diffusion_x0_zero_terminal_snr(fixed):
    """x0 from the predicted noise divides by sqrt(alpha_bar), which the rescaled schedule makes 0 at the last step."""
    g = torch.Generator().manual_seed(109)
    T = 40
    sqrt_ab = torch.cumprod(1 - torch.linspace(1e-3, 0.1, T), dim=0).sqrt()
    sqrt_ab = (sqrt_ab - sqrt_ab[-1]) * sqrt_ab[0] / (sqrt_ab[0] - sqrt_ab[-1])
    sqrt_1mab = torch.sqrt(1 - sqrt_ab**2)
    batches = []
    for _ in range(6):
        x0 = torch.sign(torch.randn(16, 1, generator=g)) * torch.linspace(-0.9, 0.9, 8)
        batches.append((x0, torch.randint(0, T - 1, (16,), generator=g), torch.randn(16, 8, generator=g)))
    t_emb, net = nn.Embedding(T, 8), nn.Sequential(nn.Linear(16, 48), nn.SiLU(), nn.Linear(48, 8))

    def loss(model, batch):
        x0, t, eps = batch
        a, s = sqrt_ab[t].unsqueeze(1), sqrt_1mab[t].unsqueeze(1)
        x_t = a * x0 + s * eps
        eps_hat = net(torch.cat([x_t, t_emb(t)], dim=1))
        if fixed:
            a = a.clamp_min(1e-2)
        x0_hat = (x_t - s * eps_hat) / a  # bug: diffusion_x0_zero_terminal_snr
        return F.mse_loss(eps_hat, eps) + 0.01 * F.smooth_l1_loss(x0_hat, x0)

    model = nn.ModuleList([t_emb, net])
    domain = (
        TensorSpec(shape=("batch", 8), min_value=-1.0, max_value=1.0),
        TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=T - 1),
        TensorSpec(shape=("batch", 8), min_value=-6.0, max_value=6.0),
    )
    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=batches,
        domain=domain,
        sizes={"batch": (1, 24)},
        clip_grad_norm=1.0,
    )
