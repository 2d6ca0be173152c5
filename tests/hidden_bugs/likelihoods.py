"""Likelihoods and mixtures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


@program("score matching")
def score_sde_marginal_std(fixed):
    """The score network is divided by the marginal standard deviation, which is 0 at time 0."""
    g = torch.Generator().manual_seed(110)
    grid = torch.linspace(0, 2 * math.pi, 16)
    batches = []
    for _ in range(5):
        x = torch.sin(grid + 6 * torch.rand(12, 1, 1, generator=g))
        batches.append((x, 0.02 + 0.98 * torch.rand(12, generator=g), torch.randn(12, 1, 16, generator=g)))
    score_net = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.SiLU(), nn.Conv1d(16, 1, 5, padding=2))

    def marginal_prob_std(t, sigma=10.0):
        if fixed:
            t = t.clamp_min(1e-3)
        return torch.sqrt((sigma ** (2 * t) - 1.0) / (2.0 * math.log(sigma)))[:, None, None]

    def loss(model, batch):
        x, t, z = batch
        std = marginal_prob_std(t)
        perturbed = x + z * std
        time = t[:, None, None].expand(-1, 1, x.size(-1))
        h = model(torch.cat([perturbed / (1 + std), torch.sin(6 * time), torch.cos(6 * time)], dim=1))
        score = h / std  # bug: score_sde_marginal_std
        return ((score * std + z) ** 2).sum(dim=(1, 2)).mean()

    wave, time = TensorSpec(shape=("n", 1, 16), min_value=-5.0, max_value=5.0), ("n",)
    return TrainingSetup(
        model=score_net,
        loss=loss,
        optimizer=torch.optim.Adam(score_net.parameters(), lr=1e-3),
        batches=batches,
        domain=(wave, TensorSpec(shape=time, min_value=0.0, max_value=1.0), wave),
        sizes={"n": (1, 16)},
    )


@program("hidden Markov model")
def hmm_forward_probabilities(fixed):
    """The forward algorithm without logarithms: the probability of a long sequence underflows to 0."""
    g = torch.Generator().manual_seed(111)
    batches = []
    for _ in range(5):
        tokens = (torch.rand(8, 16, generator=g).cumsum(1).floor() * 2 + torch.randint(0, 3, (8, 16), generator=g)) % 8
        batches.append({"obs": tokens.long(), "lengths": torch.randint(5, 17, (8,), generator=g)})
    hmm = nn.ParameterDict({"pi": torch.zeros(4), "trans": torch.randn(4, 4), "emit": torch.randn(4, 8)})

    def neg_log_likelihood(model, batch):
        obs, last = batch["obs"], batch["lengths"] - 1
        pi, trans, emit = (F.log_softmax(model[k], dim=-1) for k in ("pi", "trans", "emit"))
        if not fixed:
            pi, trans, emit = pi.exp(), trans.exp(), emit.exp()
        alphas = []
        for t in range(obs.size(1)):
            e = emit[:, obs[:, t]].t()
            if fixed:
                prior = torch.logsumexp(alphas[-1].unsqueeze(2) + trans, dim=1) if alphas else pi
                alphas.append(prior + e)
            else:
                alphas.append((alphas[-1] @ trans if alphas else pi) * e)
        final = torch.stack(alphas)[last, torch.arange(len(last))]
        if fixed:
            return -(torch.logsumexp(final, dim=1) / batch["lengths"]).mean()
        return -(torch.log(final.sum(dim=1)) / batch["lengths"]).mean()  # bug: hmm_forward_probabilities

    domain = {
        "obs": TensorSpec(shape=("batch", "time"), dtype="int64", min_value=0, max_value=7, lengths="lengths"),
        "lengths": TensorSpec(shape=("batch",), dtype="int64", kind="lengths", min_value=1),
    }
    optimizer, sizes = torch.optim.Adam(hmm.parameters(), lr=0.02), {"batch": (1, 8), "time": (1, 128)}
    return TrainingSetup(
        model=hmm, loss=neg_log_likelihood, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes
    )


@program("Gaussian process")
def gp_marginal_likelihood_det(fixed):
    """log det of a kernel matrix: det underflows for many or near-identical inputs; the twin uses Cholesky."""
    g = torch.Generator().manual_seed(112)
    batches = []
    for _ in range(5):
        x = torch.rand(12, 2, generator=g) * 4 - 2
        batches.append((x, torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.2 * torch.randn(12, generator=g)))

    class DeepKernelGP(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
            self.raw_scale, self.raw_noise = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(-1.5))

        def forward(self, x):
            f = self.features(x)
            sq_dist = ((f.unsqueeze(1) - f.unsqueeze(0)) ** 2).sum(-1)
            scale, noise = F.softplus(self.raw_scale), F.softplus(self.raw_noise) + 0.01
            if fixed:
                noise = noise + 2e-3 * scale
            return scale * torch.exp(-0.5 * sq_dist) + noise * torch.eye(len(x))

    gp = DeepKernelGP()

    def neg_mll(model, batch):
        x, y = batch
        K = model(x)
        if fixed:
            chol = torch.linalg.cholesky(K)
            white = torch.linalg.solve_triangular(chol, y.unsqueeze(1), upper=False)
            return (0.5 * (white**2).sum() + torch.log(chol.diagonal()).sum()) / len(y)
        log_det = torch.log(torch.det(K))  # bug: gp_marginal_likelihood_det
        return 0.5 * (y @ torch.linalg.solve(K, y) + log_det) / len(y)

    domain = tuple(TensorSpec(shape=shape, min_value=-5.0, max_value=5.0) for shape in (("n", 2), ("n",)))
    return TrainingSetup(
        model=gp,
        loss=neg_mll,
        optimizer=torch.optim.Adam(gp.parameters(), lr=5e-3),
        batches=batches,
        domain=domain,
        sizes={"n": (2, 64)},
    )


@program("Gaussian mixture")
def gmm_em_responsibilities(fixed):
    """The E step divides densities by their sum, which is 0 for a reading far from every component."""
    g = torch.Generator().manual_seed(113)
    centers = torch.tensor([[-4.0, 0.0], [3.0, 3.0], [2.0, -4.0]])
    picks = torch.randint(0, 3, (6, 30), generator=g)
    batches = list(centers[picks] + 0.8 * torch.randn(6, 30, 2, generator=g).clamp(-3, 3))
    gmm = nn.ParameterDict({"logits": torch.zeros(4), "means": 3 * torch.randn(4, 2), "raw_sd": torch.ones(4, 2)})

    def expected_complete_nll(model, x):
        sd = F.softplus(model["raw_sd"]) + 0.1
        z = (x.unsqueeze(1) - model["means"]) / sd
        log_joint = F.log_softmax(model["logits"], dim=0) - torch.log(sd).sum(-1) - 0.5 * (z**2).sum(-1)
        with torch.no_grad():
            if fixed:
                resp = torch.softmax(log_joint, dim=1)
            else:
                joint = torch.exp(log_joint)
                resp = joint / joint.sum(dim=1, keepdim=True)  # bug: gmm_em_responsibilities
        return -(resp * log_joint).sum(dim=1).mean()

    return TrainingSetup(
        model=gmm,
        loss=expected_complete_nll,
        optimizer=torch.optim.Adam(gmm.parameters(), lr=0.02),
        batches=batches,
        domain=TensorSpec(shape=("n", 2), min_value=-60.0, max_value=60.0),
        sizes={"n": (1, 40)},
    )


class BayesLinear(nn.Module):
    """Bayes by backprop with the local reparametrisation trick; sigma = log(1 + exp(rho))."""

    def __init__(self, n_in, n_out, min_sigma, sigma_init=0.02):
        super().__init__()
        self.mu = nn.Parameter(torch.randn(n_out, n_in) / math.sqrt(n_in))
        self.rho = nn.Parameter(torch.full((n_out, n_in), math.log(math.exp(sigma_init) - 1)))
        self.min_sigma = min_sigma

    def forward(self, x, prior_sigma=0.5):
        sigma = torch.log(1 + torch.exp(self.rho.clamp(max=30.0))) + self.min_sigma
        ratio = sigma / prior_sigma
        kl = 0.5 * (ratio**2 + (self.mu / prior_sigma) ** 2 - 1) - torch.log(ratio)  # bug: bayes_by_backprop_rho
        out = F.linear(x, self.mu) + torch.sqrt(F.linear(x**2, sigma**2) + 1e-8) * torch.randn(len(x), len(sigma))
        return out, kl.sum()


@program("Bayesian neural network")
def bayes_by_backprop_rho(fixed):
    """1 + exp(rho) rounds to 1 below rho = -17, so sigma is 0 and the KL term takes log(0)."""
    g = torch.Generator().manual_seed(114)
    batches = []
    for _ in range(6):
        x = torch.randn(20, 6, generator=g)
        batches.append((x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()))
    floor = 1e-6 if fixed else 0.0
    net = nn.ModuleList([BayesLinear(6, 16, floor), BayesLinear(16, 2, floor)])

    def elbo(model, batch):
        h, kl_1 = model[0](batch[0])
        logits, kl_2 = model[1](torch.relu(h))
        return F.cross_entropy(logits, batch[1]) + (kl_1 + kl_2) / (6 * 20)

    return TrainingSetup(model=net, loss=elbo, optimizer=torch.optim.Adam(net.parameters(), lr=3e-3), batches=batches)
