"""More distributions and optimisers."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training
from .distributions import adam, follow, frozen, real


@sound
def denoising_scores():
    """Score matching for noise levels from 0.01 on; the network predicts sigma times the score."""
    m = mlp(4, 24, 3, act=nn.SiLU)

    def loss(m, b):
        sigma = b["sigma"][:, None]
        noisy = b["x"] + sigma * b["z"]
        score = m(torch.cat([noisy / (1 + sigma.square()).sqrt(), sigma.log() / 4], 1)) / sigma
        return ((sigma * score + b["z"]).square().sum(1) / 2).mean()

    return training(
        m, loss, adam(m), data(5, lambda s: {"x": s.normal(6, 3), "z": s.normal(6, 3), "sigma": s.uniform(0.01, 2, 6)})
    )


def spline(x, raw, bins=4, bound=3.0, least=0.02):
    """Monotone rational-quadratic spline: widths, heights and slopes have floors; the identity outside."""
    w, h, d = raw.split([bins, bins, bins + 1], -1)
    w, h = (least + (1 - least * bins) * t.softmax(-1) for t in (w, h))
    d = 0.02 + F.softplus(d)
    edge, floor = (F.pad(t.cumsum(-1), (1, 0)) * 2 * bound - bound for t in (w, h))
    inside, x_in = x.abs() < bound, x.clamp(-bound, bound)
    i = (x_in[..., None] >= edge[..., 1:-1]).sum(-1, keepdim=True)

    def pick(t):
        return t.gather(-1, i)[..., 0]

    width, height, d0, d1 = pick(w) * 2 * bound, pick(h) * 2 * bound, pick(d[..., :-1]), pick(d[..., 1:])
    t = ((x_in - pick(edge[..., :-1])) / width).clamp(0, 1)
    slope, both = height / width, t * (1 - t)
    below = slope * (1 - 2 * both) + (d0 + d1) * both
    y = pick(floor[..., :-1]) + height * (slope * t * t + d0 * both) / below
    above = d1 * t * t + 2 * slope * both + d0 * (1 - t).square()
    log_slope = 2 * slope.log() + above.log() - 2 * below.log()
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


@sound
def spline_flow():
    """Coupling flow of rational-quadratic splines on two coordinates."""
    m = nn.ModuleList([mlp(1, 12, 13, act=nn.Tanh) for _ in range(2)])

    def loss(m, x):
        a, b, total = x[:, 0], x[:, 1], 0.0
        for net in m:
            b, logdet = spline(b, net(a[:, None]))
            a, b, total = b, a, total + logdet
        return (0.5 * (a * a + b * b) - total).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: s.normal(6, 2, scale=1.5, limit=2.5)),
        domain=T(("B", 2), min_value=-5, max_value=5),
    )


@sound
def wgan_gp_eps():
    """WGAN-GP: gradient norm sqrt(sum of squares + 1e-6), two optimisers, smooth activations."""
    m = nn.ModuleDict({"G": mlp(2, 10, 3), "D": mlp(3, 12, 1, act=nn.SiLU)})
    opts = [torch.optim.Adam(m[k].parameters(), 1e-3, betas=(0.5, 0.9)) for k in "DG"]

    def critic(m, x, fake):
        mix = torch.lerp(x, fake, torch.rand(len(x), 1)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(m["D"](mix).sum(), mix, create_graph=True)
        norm = (slope.square().sum(1) + 1e-6).sqrt()
        return (m["D"](fake.detach()) - m["D"](x)).mean() + 10 * (norm - 1).square().mean()

    def loss(m, x):
        fake = m["G"](torch.randn(len(x), 2))
        return critic(m, x, fake) - m["D"](fake).mean()

    def step(x):
        fake, total = m["G"](torch.randn(len(x), 2)), 0.0
        for opt, part in zip(opts, (lambda: critic(m, x, fake), lambda: -m["D"](fake).mean())):
            opt.zero_grad()
            value = part()
            value.backward()
            opt.step()
            total = total + value.detach()
        return total

    return training(m, loss, opts, data(6, lambda s: s.uniform(-1, 1, 6, 3)), training_step=step)


@sound
def mean_teacher():
    """EMA teacher: Jensen-Shannon consistency by logaddexp, labels -1 skipped with a clamped count."""
    m = nn.ModuleDict({"student": nn.Sequential(mlp(5, 16), nn.Dropout(0.2), nn.ReLU(), mlp(16, 3))})
    m["teacher"] = frozen(m["student"])
    opt = adam(m["student"])

    def loss(m, b):
        p = m["student"](b["x"]).log_softmax(-1)
        with torch.no_grad():
            q = m["teacher"](b["x"] + 0.05 * torch.randn_like(b["x"])).log_softmax(-1)
        mid = torch.logaddexp(p, q) - math.log(2)
        js = 0.5 * (p.exp() * (p - mid) + q.exp() * (q - mid)).sum(-1).mean()
        nll = F.nll_loss(p, b["y"], ignore_index=-1, reduction="sum") / (b["y"] != -1).sum().clamp(min=1)
        return js + nll

    def step(b):
        opt.zero_grad()
        value = loss(m, b)
        value.backward()
        opt.step()
        follow(m["teacher"], m["student"], 0.02)
        return value

    return training(
        m,
        loss,
        opt,
        data(5, lambda s: {"x": s.normal(6, 5), "y": s.ints(-1, 2, 6)}),
        training_step=step,
        domain={"x": real(5, 4), "y": T(("B",), "int64", 0, 2, ignore_index=-1)},
    )


@sound
def byol_cosine():
    """BYOL: cosine_similarity with eps=1e-3 against a slow target, batch normalisation, two rows at least."""
    m = nn.ModuleDict(
        {"net": nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)), "head": mlp(4, 8, 4)}
    )
    m["slow"] = frozen(m["net"])
    opt = torch.optim.SGD([*m["net"].parameters(), *m["head"].parameters()], 0.02, momentum=0.9)

    def loss(m, x):
        p, z = m["head"](m["net"](x)), m["slow"](x + 0.1 * torch.randn_like(x))
        return 2 - 2 * F.cosine_similarity(p, z, eps=1e-3).mean()

    def step(x):
        opt.zero_grad()
        value = loss(m, x)
        value.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        follow(m["slow"], m["net"], 0.05)
        return value

    return training(
        m, loss, opt, data(5, lambda s: s.normal(6, 5)), training_step=step, domain=real(5, 10), sizes={"B": (2, 8)}
    )


@sound
def unbalanced_transport():
    """Entropic unbalanced transport in log space: six damped updates, costs through log1p."""
    m = mlp(2, 12, 2)

    def loss(m, b):
        cost = torch.log1p((m(b[0])[:, :, None] - b[1][:, None]).square().sum(-1))
        eps, damp = 0.2, 1 / 1.2
        f, g = cost.new_zeros(cost.shape[:2]), cost.new_zeros(cost.shape[0], cost.shape[2])
        for _ in range(6):
            f = -damp * eps * (torch.logsumexp((g[:, None] - cost) / eps, 2) - math.log(cost.shape[2]))
            g = -damp * eps * (torch.logsumexp((f[:, :, None] - cost) / eps, 1) - math.log(cost.shape[1]))
        plan = ((f[:, :, None] + g[:, None] - cost) / eps).clamp(max=20).exp()
        return (plan * cost).sum((1, 2)).mean() + 0.1 * cost.mean()

    return training(
        m,
        loss,
        adam(m),
        data(4, lambda s: (s.normal(3, 5, 2), s.normal(3, 4, 2))),
        domain=(real("N", 3, 2), real("M", 3, 2)),
    )


@sound
def siglip_clamped():
    """Sigmoid contrastive loss: F.normalize, log-scale clamped before exp, logsigmoid."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(4, 12, 5), mlp(6, 12, 5)
            self.log_scale, self.shift = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-5.0))

        def forward(self, x, y):
            u, v = F.normalize(self.a(x), dim=-1, eps=1e-6), F.normalize(self.b(y), dim=-1, eps=1e-6)
            return u @ v.T * self.log_scale.clamp(-2, math.log(100)).exp() + self.shift

    def loss(m, b):
        z = m(*b)
        return -F.logsigmoid(z * (2 * torch.eye(len(z)) - 1)).sum() / len(z)

    m = Net()
    return training(m, loss, adam(m), data(5, lambda s: (s.normal(5, 4), s.normal(5, 6))))
