"""Graphs, recommendation, geometry, statistics, linear algebra, compact numerics."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training


def adam(m, lr=1e-3):
    return torch.optim.Adam(m.parameters(), lr)


def real(size, limit=3, *rest):
    return T(("B", size, *rest) if size else ("B",), min_value=-limit, max_value=limit)


@sound
def bpr_hashed():
    """BPR by logsigmoid on hashed embeddings of users and items."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item = nn.Embedding(13, 6), nn.EmbeddingBag(11, 6, mode="mean")

        def forward(self, user, item):
            spread = torch.stack([item * 7 % 11, (item * 5 + 3) % 11], -1)
            return (self.user(user * 2654435761 % 13) * self.item(spread)).sum(-1)

    def loss(m, b):
        return -F.logsigmoid(m(b["u"], b["pos"]) - m(b["u"], b["neg"])).mean() + 1e-3 * m.user.weight.square().mean()

    m = Net()
    names = {"u": 999, "pos": 499, "neg": 499}
    return training(
        m,
        loss,
        torch.optim.Adagrad(m.parameters(), 0.05),
        data(6, lambda s: {k: s.ints(0, v, 8) for k, v in names.items()}),
        domain={k: T(("B",), "int64", 0, v) for k, v in names.items()},
    )


@sound
def hypergraph_degrees():
    """Hypergraph convolution: degrees of nodes and edges clamped at 1, isolated nodes allowed."""
    m = nn.ModuleList([nn.Linear(3, 10), nn.Linear(10, 2)])

    def loss(m, b):
        h = b["member"].float()
        node, edge = h.sum(1).clamp(min=1), h.sum(0).clamp(min=1)
        inverse = torch.where(h.sum(1) > 0, node.rsqrt(), 0.0)[:, None]
        x = b["x"]
        for layer in m:
            x = inverse * (h @ (h.T @ (inverse * layer(F.relu(x))) / edge[:, None]))
        return F.cross_entropy(x, b["y"])

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"x": s.normal(6, 3), "member": s.uniform(0, 1, 6, 4) < 0.4, "y": s.ints(0, 1, 6)}),
        domain={"x": real(3), "member": T(("B", "E"), "bool", kind="mask"), "y": T(("B",), "int64", 0, 1)},
    )


@sound
def schnet_positions():
    """Distances sqrt(|x - y|^2 + 1e-4), radial bases, cosine cutoff, forces by a second derivative."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter, self.kind, self.out = mlp(6, 12, 8, act=nn.SiLU), nn.Embedding(4, 8), mlp(8, 8, 1, act=nn.SiLU)
            self.register_buffer("centres", torch.linspace(0, 4, 6))

        def forward(self, x, kind):
            d = ((x[:, :, None] - x[:, None]).square().sum(-1) + 1e-4).sqrt()
            cut = 0.5 * (torch.cos(d.clamp(max=4) * math.pi / 4) + 1)
            near = self.filter(torch.exp(-2 * (d[..., None] - self.centres).square())) * cut[..., None]
            return self.out((near * self.kind(kind)[:, None]).sum(2)).sum((1, 2))

    def loss(m, b):
        x = b["x"].detach().clone().requires_grad_()
        energy = m(x, b["kind"])
        (force,) = torch.autograd.grad(-energy.sum(), x, create_graph=True)
        return F.huber_loss(energy, b["energy"]) + F.huber_loss(force, torch.zeros_like(force))

    m = Net()
    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"x": s.normal(2, 4, 3), "kind": s.ints(0, 3, 2, 4), "energy": s.normal(2)}),
        domain={"x": real("N", 3, 3), "kind": T(("B", "N"), "int64", 0, 3), "energy": real(0)},
        sizes={"N": (1, 5)},
    )


@sound
def pna_aggregators():
    """Mean, sqrt(relu(var) + 1e-5), guarded greatest neighbour, log(degree + 1) over its fixed mean."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.out = mlp(3, 8), nn.Linear(48, 1)

        def forward(self, x, edge):
            h, n = self.inp(x), x.shape[0]
            source, goal = edge[:, 0] % n, edge[:, 1] % n
            near = h[source]
            degree = torch.zeros(n).index_add(0, goal, torch.ones(len(edge)))[:, None]
            count = degree.clamp(min=1)
            mean = torch.zeros_like(h).index_add(0, goal, near) / count
            square = torch.zeros_like(h).index_add(0, goal, near.square()) / count
            std = (F.relu(square - mean.square()) + 1e-5).sqrt()
            top = torch.full_like(h, -torch.inf).scatter_reduce(0, goal[:, None].expand_as(near), near, "amax")
            parts = torch.cat([mean, std, torch.where(degree > 0, top, 0.0)], 1)
            return self.out(torch.cat([parts, parts * (degree + 1).log() / math.log(3)], 1))[:, 0]

    m = Net()
    return training(
        m,
        lambda m, b: F.l1_loss(m(b["x"], b["edge"]), b["y"]),
        adam(m),
        data(5, lambda s: {"x": s.normal(6, 3), "edge": s.ints(0, 5, 9, 2), "y": s.normal(6)}),
    )


@sound
def parallel_resistors():
    """Division by the input: the domain starts at 0.1; relative error against targets from 0.1 on."""
    m = mlp(4, 12, 1)

    def loss(m, b):
        r, y = b
        total = 1 / (1 / r).sum(1, keepdim=True)
        guess = total[:, 0] * F.softplus(m(r.log()))[:, 0]
        return ((guess - y) / y).abs().mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: (s.uniform(0.1, 10, 6, 4), s.uniform(0.1, 5, 6))),
        domain=(T(("B", 4), min_value=0.1, max_value=10), T(("B",), min_value=0.1, max_value=5)),
    )


@sound
def multi_positive_nce():
    """Contrast with several positives: `repair` marks one per row at least; the log-softmax mean divides by them."""
    m = nn.ModuleList([mlp(4, 12, 5), mlp(3, 12, 5)])

    def repair(b):
        keep = b["same"].clone()
        keep[:, 0] |= ~keep.any(1)
        return {**b, "same": keep}

    def loss(m, b):
        u, v = (F.normalize(net(b[k]), dim=-1, eps=1e-4) for net, k in zip(m, "xy"))
        log_p = (u @ v.T / 0.1).log_softmax(-1)
        return -(torch.where(b["same"], log_p, 0.0).sum(1) / b["same"].sum(1)).mean()

    return training(
        m,
        loss,
        adam(m),
        [
            repair(b)
            for b in data(5, lambda s: {"x": s.normal(5, 4), "y": s.normal(6, 3), "same": s.uniform(0, 1, 5, 6) < 0.3})
        ],
        repair=repair,
        domain={"x": real(4), "y": T(("K", 3), min_value=-3, max_value=3), "same": T(("B", "K"), "bool", kind="mask")},
    )


@sound
def batchnorm_deviation():
    """BatchNorm and a plain deviation over the batch, which has two rows at least; eps inside the root."""
    net = nn.Sequential(nn.Linear(4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))

    def loss(m, b):
        z = m(b[0])
        spread = (z.var(0) + 1e-4).sqrt()
        return F.cross_entropy((z - z.mean(0)) / spread, b[1]) + F.relu(1 - spread).mean()

    return training(
        net,
        loss,
        adam(net),
        data(5, lambda s: (s.normal(6, 4), s.ints(0, 2, 6))),
        domain=(real(4, 50), T(("B",), "int64", 0, 2)),
        sizes={"B": (2, 8)},
    )


@sound
def soft_targets_kl():
    """KLDivLoss against probabilities that may hold zeros, and BCE on clamped probabilities by log and log1p."""
    m = mlp(4, 14, 4)

    def loss(m, b):
        z = m(b["x"])
        p = torch.sigmoid(z[:, 3]).clamp(1e-5, 1 - 1e-5)
        y = b["y"].float()
        bce = -(y * p.log() + (1 - y) * torch.log1p(-p)).mean()
        return nn.KLDivLoss(reduction="batchmean")(z[:, :3].log_softmax(-1), b["p"]) + bce

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"x": s.normal(6, 4), "y": s.ints(0, 1, 6), "p": s.normal(6, 3, scale=2.0).softmax(-1)}),
        domain={"x": real(4), "y": T(("B",), "int64", 0, 1), "p": T(("B", 3), kind="probabilities")},
    )


@sound
def margin_losses():
    """SoftMarginLoss (its exp is not stable) on logits bounded by 20 tanh(z / 20), MultiLabelSoftMarginLoss on all."""
    m = mlp(5, 12, 3)

    def loss(m, b):
        z, sign = m(b[0]), b[1].float() * 2 - 1
        return nn.SoftMarginLoss()(20 * torch.tanh(z / 20), sign) + nn.MultiLabelSoftMarginLoss()(z, b[1].float())

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 5), s.uniform(0, 1, 6, 3) < 0.5)))


@sound
def poisson_rates():
    """PoissonNLLLoss(log_input=False, eps=1e-6) on softplus rates, counts up to 1000."""
    m, criterion = mlp(4, 14, 1), nn.PoissonNLLLoss(log_input=False, eps=1e-6)
    return training(
        m,
        lambda m, b: criterion(F.softplus(m(torch.asinh(b[0])))[:, 0], b[1].float()),
        adam(m),
        data(5, lambda s: (s.normal(6, 4, scale=100.0, limit=3), s.ints(0, 30, 6))),
        domain=(real(4, 1e4), T(("B",), "int64", 0, 1000)),
        clip_grad_norm=10.0,
    )


@sound
def ctc_impossible():
    """CTCLoss(zero_infinity=True): targets may be longer than their input."""
    net = mlp(3, 12, 5)

    def loss(m, b):
        log_p = m(b["x"]).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_p, b["y"], b["nx"], b["ny"], zero_infinity=True)

    def make(s):
        return {"x": s.normal(4, 7, 3), "y": s.ints(1, 4, 4, 5), "nx": s.ints(1, 7, 4), "ny": s.ints(1, 5, 4)}

    return training(
        net,
        loss,
        adam(net),
        data(4, make),
        domain={
            "x": T(("B", 7, 3), min_value=-3, max_value=3, lengths="nx"),
            "y": T(("B", 5), "int64", 1, 4, lengths="ny"),
            "nx": T(("B",), "int64", kind="lengths"),
            "ny": T(("B",), "int64", kind="lengths"),
        },
    )


@sound
def heading_wrapped():
    """Angles: differences wrapped by atan2(sin, cos); direction by atan2 on a double where."""
    m = mlp(3, 16, 2, act=nn.Tanh)

    def loss(m, b):
        x, y = m(b[0]).unbind(-1)
        clear = x.square() + y.square() > 1e-4
        angle = torch.atan2(torch.where(clear, y, 0.0), torch.where(clear, x, 1.0))
        d = angle - b[1]
        pull = F.relu(1 - (x.square() + y.square() + 1e-6).sqrt()).mean()
        return F.huber_loss(torch.atan2(d.sin(), d.cos()), torch.zeros_like(d)) + pull

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 3), s.uniform(-3.1, 3.1, 6))))


@sound
def rodrigues_taylor():
    """Rotation vectors: sin(t)/t and (1 - cos(t))/t^2 with their series near 0 behind a double where."""
    m = mlp(3, 14, 3, act=nn.Tanh)

    def loss(m, b):
        w, p = m(b[0]), b[0]
        t2 = w.square().sum(-1, keepdim=True)
        small = t2 < 1e-3
        t = torch.where(small, 1.0, t2).sqrt()
        first = torch.where(small, 1 - t2 / 6, t.sin() / t)
        second = torch.where(small, 0.5 - t2 / 24, (1 - t.cos()) / t.square())
        wp = torch.linalg.cross(w, p)
        return F.mse_loss(p + first * wp + second * torch.linalg.cross(w, wp), b[1])

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 3), s.normal(6, 3))))
