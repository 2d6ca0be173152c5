"""Probabilistic models, losses, reinforcement learning."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training


@sound
def vae_clamped():
    """VAE: logvar clamped to [-8, 8] before every exp, Bernoulli likelihood on logits."""

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(12, 16, 8), mlp(4, 16, 12)

        def forward(self, x):
            mu, logvar = self.enc(x).chunk(2, -1)
            logvar = logvar.clamp(-8, 8)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(-1)
            return self.dec(z), kl

    def loss(m, x):
        z, kl = m(x)
        return (F.binary_cross_entropy_with_logits(z, x, reduction="none").sum(-1) + kl).mean()

    m = VAE()
    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(6, lambda s: s.uniform(0, 1, 8, 12)),
        domain=T(("B", 12), min_value=0, max_value=1),
        sizes={"B": (1, 8)},
    )


@sound
def vq_vae_perplexity():
    """Nearest code by cdist (argmin, no gradient), straight-through, entropy of the usage with p + 1e-10."""

    class VQ(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec, self.codes = mlp(6, 12, 4), mlp(4, 12, 6), nn.Parameter(torch.randn(5, 4))

        def forward(self, x):
            z = self.enc(x)
            index = torch.cdist(z.detach(), self.codes.detach()).argmin(1)
            q = self.codes[index]
            p = F.one_hot(index, 5).float().mean(0)
            perplexity = torch.exp(-(p * torch.log(p + 1e-10)).sum())
            commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            return self.dec(z + (q - z).detach()), commit, perplexity

    def loss(m, x):
        y, commit, perplexity = m(x)
        return F.mse_loss(y, x) + commit + 0.0 * perplexity

    m = VQ()
    return training(m, loss, torch.optim.Adam(m.parameters(), 1e-3), data(5, lambda s: s.normal(8, 6)))


@sound
def realnvp():
    """Affine couplings with log-scales 1.5 * tanh(.)."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList([mlp(2, 12, 4) for _ in range(4)])

        def forward(self, x):
            a, b = x.chunk(2, -1)
            logdet = 0.0
            for net in self.nets:
                s, t = net(a).chunk(2, -1)
                s = 1.5 * torch.tanh(s)
                a, b = b * s.exp() + t, a
                logdet = logdet + s.sum(-1)
            z = torch.cat([a, b], -1)
            return 0.5 * z.square().sum(-1) - logdet

    m = Flow()
    return training(
        m,
        lambda m, x: m(x).mean(),
        torch.optim.Adam(m.parameters(), 1e-3),
        clip_grad_norm=5.0,
        batches=data(6, lambda s: s.normal(8, 4)),
        domain=T(("B", 4), min_value=-4, max_value=4),
    )


@sound
def gan_logits():
    """Non-saturating GAN, two optimizers, binary_cross_entropy_with_logits; a redundant guard skips bad steps."""
    m = nn.ModuleDict({"G": mlp(3, 12, 4), "D": mlp(4, 12, 1, act=nn.SiLU)})
    og, od = torch.optim.Adam(m["G"].parameters(), 1e-3), torch.optim.Adam(m["D"].parameters(), 1e-3)
    bce = F.binary_cross_entropy_with_logits

    def d_loss(m, x, fake):
        real, gen = m["D"](x), m["D"](fake.detach())
        return bce(real, torch.ones_like(real)) + bce(gen, torch.zeros_like(gen))

    def g_loss(m, fake):
        z = m["D"](fake)
        return bce(z, torch.ones_like(z))

    def loss(m, x):
        fake = m["G"](torch.randn(len(x), 3))
        return d_loss(m, x, fake) + g_loss(m, fake)

    def step(x):
        fake = m["G"](torch.randn(len(x), 3))
        total = 0.0
        for opt, part in ((od, lambda: d_loss(m, x, fake)), (og, lambda: g_loss(m, fake))):
            opt.zero_grad()
            value = part()
            if torch.isfinite(value):
                value.backward()
                opt.step()
            total = total + value.detach()
        return total

    return training(m, loss, [od, og], data(6, lambda s: s.normal(8, 4)), training_step=step)


@sound
def spectral_norm_critic():
    """WGAN critic with torch's spectral_norm and hinge loss. Documented exception: zeroing a critic weight."""
    sn = nn.utils.parametrizations.spectral_norm
    m = nn.ModuleDict(
        {"G": mlp(2, 10, 3), "D": nn.Sequential(sn(nn.Linear(3, 10)), nn.LeakyReLU(0.2), sn(nn.Linear(10, 1)))}
    )

    def loss(m, x):
        fake = m["G"](torch.randn(len(x), 2))
        d = F.relu(1 - m["D"](x)).mean() + F.relu(1 + m["D"](fake.detach())).mean()
        return d - 0.1 * m["D"](fake).mean()

    return training(
        m,
        loss,
        [torch.optim.Adam(m["D"].parameters(), 1e-3), torch.optim.Adam(m["G"].parameters(), 1e-3)],
        data(5, lambda s: s.uniform(-1, 1, 8, 3)),
        domain=T(("B", 3), min_value=-1, max_value=1),
    )


@sound
def ppo_clamped():
    """PPO: log-ratio clamped before exp, advantages standardised with std + 1e-8, entropy from log_softmax."""

    class AC(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.pi, self.v = mlp(5, 16, act=nn.Tanh), nn.Linear(16, 3), nn.Linear(16, 1)

        def forward(self, o):
            h = torch.tanh(self.body(o))
            return self.pi(h).log_softmax(-1), self.v(h).squeeze(-1)

    def loss(m, b):
        logp, v = m(b["obs"])
        adv = (b["adv"] - b["adv"].mean()) / (b["adv"].std() + 1e-8)
        new = logp.gather(1, b["act"][:, None]).squeeze(1)
        ratio = (new - b["old"]).clamp(-10, 10).exp()
        surrogate = torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
        entropy = -(logp.exp() * logp).sum(-1)
        return (-surrogate + 0.5 * (v - b["ret"]).square() - 0.01 * entropy).mean()

    def step(b):
        opt.zero_grad()
        value = loss(m, b)
        value.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 0.5)
        opt.step()
        return value

    def make(s):
        return {
            "obs": s.normal(8, 5),
            "act": s.ints(0, 2, 8),
            "old": s.uniform(-4, -0.1, 8),
            "adv": s.normal(8),
            "ret": s.normal(8),
        }

    m = AC()
    opt = torch.optim.Adam(m.parameters(), 3e-4)
    real = T(("B",), min_value=-10, max_value=10)
    domain = {
        "obs": T(("B", 5), min_value=-5, max_value=5),
        "act": T(("B",), "int64", 0, 2),
        "old": T(("B",), min_value=-30, max_value=0),
        "adv": real,
        "ret": real,
    }
    return training(m, loss, opt, data(5, make), training_step=step, domain=domain, sizes={"B": (2, 8)})


@sound
def clip_infonce():
    """Symmetric InfoNCE: F.normalize(eps=1e-3), learned log-temperature clamped to log 100 before exp."""

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(6, 16, 8), mlp(4, 16, 8)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def forward(self, x, y):
            u, v = F.normalize(self.a(x), dim=-1, eps=1e-3), F.normalize(self.b(y), dim=-1, eps=1e-3)
            return self.log_scale.clamp(-5, math.log(100)).exp() * u @ v.T

    def loss(m, b):
        z, y = m(*b), torch.arange(len(b[0]))
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

    m = Clip()
    return training(
        m,
        loss,
        torch.optim.AdamW(m.parameters(), 1e-3),
        data(6, lambda s: (s.normal(6, 6), s.normal(6, 4))),
        clip_grad_norm=1.0,
        domain=(T(("B", 6), min_value=-4, max_value=4), T(("B", 4), min_value=-4, max_value=4)),
    )


@sound
def nt_xent_diagonal():
    """SimCLR: own similarity masked with -inf on the diagonal; the positive is never on it."""
    net = mlp(5, 12, 6)

    def loss(m, x):
        z = m(torch.cat([x, x + 0.1 * torch.randn_like(x)]))
        z = z / (z.square().sum(-1, keepdim=True) + 1e-4).sqrt()
        n = len(x)
        sim = (z @ z.T / 0.2).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
        return F.cross_entropy(sim, torch.arange(2 * n).roll(n))

    return training(net, loss, torch.optim.Adam(net.parameters(), 1e-3), data(5, lambda s: s.normal(5, 5)))


@sound
def triplet_margin():
    """TripletMarginLoss with swap: the pairwise distance adds 1e-6 before the norm."""
    m, criterion = mlp(4, 12, 5), nn.TripletMarginLoss(margin=0.5, swap=True)
    return training(
        m,
        lambda m, b: criterion(m(b[0]), m(b[1]), m(b[2])),
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: tuple(s.normal(6, 4) for _ in range(3))),
        domain=tuple(T(("B", 4), min_value=-3, max_value=3) for _ in range(3)),
    )


@sound
def cosine_embedding():
    """CosineEmbeddingLoss on a linear map plus cosine_similarity with eps=1e-4."""
    m, criterion = mlp(4, 10, 5, act=nn.Tanh), nn.CosineEmbeddingLoss(margin=0.2)

    def loss(m, b):
        u, v = m(b[0]), m(b[1])
        return criterion(u, v, b[2] * 2 - 1) + 0.1 * F.cosine_similarity(u, v.detach(), eps=1e-4).square().mean()

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        clip_grad_norm=1.0,
        batches=data(5, lambda s: (s.normal(6, 4), s.normal(6, 4), s.ints(0, 1, 6))),
    )


@sound
def heteroscedastic():
    """GaussianNLLLoss with variance softplus + 1e-2 on top of its own eps."""
    m, criterion = mlp(3, 16, 2), nn.GaussianNLLLoss(eps=1e-4)

    def loss(m, b):
        mu, raw = m(b[0]).unbind(-1)
        return criterion(mu, b[1], F.softplus(raw) + 1e-2)

    return training(
        m,
        loss,
        torch.optim.Adam(m.parameters(), 1e-3),
        data(6, lambda s: (s.normal(8, 3), s.normal(8))),
        domain=(T(("B", 3), min_value=-3, max_value=3), T(("B",), min_value=-3, max_value=3)),
    )
