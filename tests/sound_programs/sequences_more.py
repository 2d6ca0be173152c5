"""More sequences and images."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import T, data, mlp, sound, training
from .sequences import Block


@sound
def hmm_left_to_right():
    """Log-space forward algorithm; forbidden transitions are -1e9, not -inf, so unreachable states stay finite."""

    class HMM(nn.Module):
        def __init__(self):
            super().__init__()
            self.trans, self.emit = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 9))
            self.register_buffer("forbidden", torch.ones(4, 4).tril(-1).bool())

        def forward(self, x):
            a = self.trans.masked_fill(self.forbidden, -1e9).log_softmax(1)
            e = self.emit.log_softmax(1)[:, x].permute(1, 2, 0)
            alpha = torch.tensor([0.0, -1e9, -1e9, -1e9]) + e[:, 0]
            for t in range(1, x.shape[1]):
                alpha = torch.logsumexp(alpha[:, :, None] + a, 1) + e[:, t]
            return -alpha.logsumexp(1).mean() / x.shape[1]

    m = HMM()
    return training(m, lambda m, x: m(x), torch.optim.Adam(m.parameters(), 2e-2), data(5, lambda s: s.ints(0, 8, 6, 7)))


@sound
def unet_dice():
    """Small U-Net, BCE with logits and soft dice with smooth=1: empty masks are legal."""

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.d1, self.d2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
            self.n1, self.n2 = nn.GroupNorm(2, 6), nn.GroupNorm(2, 8)
            self.up, self.out = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(12, 1, 1)

        def forward(self, x):
            a = F.relu(self.n1(self.d1(x)))
            b = F.relu(self.n2(self.d2(F.max_pool2d(a, 2))))
            return self.out(torch.cat([a, self.up(b)], 1))

    def loss(m, b):
        z, y = m(b["image"]), b["mask"].float()
        p = z.sigmoid().flatten(1)
        dice = (2 * (p * y.flatten(1)).sum(1) + 1) / (p.sum(1) + y.flatten(1).sum(1) + 1)
        return F.binary_cross_entropy_with_logits(z, y) + (1 - dice).mean()

    m = UNet()
    domain = {"image": T(("B", 1, 8, 8), min_value=0, max_value=1), "mask": T(("B", 1, 8, 8), "bool")}
    opt = torch.optim.Adam(m.parameters(), 2e-3)
    return training(
        m,
        loss,
        opt,
        data(5, lambda s: {"image": s.uniform(0, 1, 3, 1, 8, 8), "mask": s.uniform(0, 1, 3, 1, 8, 8) < 0.3}),
        domain=domain,
        sizes={"B": (1, 4)},
        lr_scheduler=torch.optim.lr_scheduler.StepLR(opt, 50),
    )


@sound
def segmentation_ignore():
    """CrossEntropyLoss(ignore_index=255); `repair` labels one pixel, so a batch is never ignored as a whole."""

    def repair(b):
        y = b[1].clone()
        y[:, 0, 0] = torch.where(y[:, 0, 0] == 255, torch.zeros_like(y[:, 0, 0]), y[:, 0, 0])
        return b[0], y

    def make(s):
        y = s.ints(0, 3, 3, 6, 6)
        return s.normal(3, 2, 6, 6), torch.where(s.uniform(0, 1, 3, 6, 6) < 0.3, 255, y)

    m = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    ce = nn.CrossEntropyLoss(ignore_index=255)
    domain = (T(("B", 2, 6, 6), min_value=-3, max_value=3), T(("B", 6, 6), "int64", 0, 3, ignore_index=255))
    return training(
        m,
        lambda m, b: ce(m(b[0]), b[1]),
        torch.optim.SGD(m.parameters(), 0.05),
        [repair(b) for b in data(5, make)],
        domain=domain,
        sizes={"B": (1, 4)},
        repair=repair,
    )


@sound
def zero_init_resnet():
    """BatchNorm with a zero-initialised residual gamma, label smoothing; batches of two at least."""

    class Res(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.b1, self.b2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
            nn.init.zeros_(self.b2.weight)

        def forward(self, x):
            return F.relu(x + self.b2(self.c2(F.relu(self.b1(self.c1(x))))))

    m = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), Res(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3)
    )
    domain = (T(("B", 3, 6, 6), min_value=-2, max_value=2), T(("B",), "int64", 0, 2))
    batches = data(5, lambda s: (s.normal(4, 3, 6, 6, limit=2), s.ints(0, 2, 4)))
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
        torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, weight_decay=1e-4),
        batches,
        eval_batches=batches[:2],
        domain=domain,
        sizes={"B": (2, 6)},
    )


@sound
def weight_norm_tcn():
    """torch's own weight_norm (g * v / ||v||). Documented exception: zeroing v breaks it, nothing else does."""

    class TCN(nn.Module):
        def __init__(self):
            super().__init__()
            wn = nn.utils.parametrizations.weight_norm
            self.convs = nn.ModuleList([wn(nn.Conv1d(2, 8, 3, dilation=1)), wn(nn.Conv1d(8, 8, 3, dilation=2))])
            self.out = nn.Linear(8, 1)

        def forward(self, x):
            for i, conv in enumerate(self.convs):
                x = F.relu(conv(F.pad(x, (2 << i, 0))))
            return self.out(x[..., -1]).squeeze(-1)

    m = TCN()
    return training(
        m,
        lambda m, b: F.mse_loss(m(b[0]), b[1]),
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: (s.normal(6, 2, 9), s.normal(6))),
    )


@sound
def linear_attention():
    """Kernel attention with the positive feature map softplus(x) + 0.1: the denominator cannot vanish."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.qkv, self.norm = nn.Linear(4, 8), nn.Linear(8, 24), nn.LayerNorm(8)
            self.out = nn.Linear(8, 4)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(self.emb(x))).chunk(3, -1)
            q, k = F.softplus(q) + 0.1, F.softplus(k) + 0.1
            s = (k[..., :, None] * v[..., None, :]).cumsum(1)
            return self.out((q[..., None, :] @ s).squeeze(-2) / (q * k.cumsum(1)).sum(-1, keepdim=True))

    m = Net()
    return training(
        m,
        lambda m, x: F.mse_loss(m(x)[:, :-1], x[:, 1:]),
        torch.optim.Adam(m.parameters(), 2e-3),
        data(6, lambda s: s.normal(4, 8, 4)),
        domain=T(("B", "T", 4), min_value=-5, max_value=5),
        sizes={"B": (1, 5), "T": (2, 8)},
    )


@sound
def pointer_network():
    """Decoder that masks visited points with -inf; the teacher order is a permutation, so it never points there."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.cell, self.q = mlp(2, 12, 12), nn.GRUCell(12, 12), nn.Linear(12, 12)

        def forward(self, p):
            e, h, total = self.enc(p), p.new_zeros(len(p), 12), 0.0
            order, rows = p[..., 0].argsort(1), torch.arange(len(p))
            seen = torch.zeros(p.shape[:2], dtype=torch.bool)
            inp = e.mean(1)
            for t in range(p.shape[1]):
                h = self.cell(inp, h)
                score = 5 * torch.tanh((e @ self.q(h)[..., None]).squeeze(-1))
                logp = score.masked_fill(seen, float("-inf")).log_softmax(1)
                total = total - logp[rows, order[:, t]].mean()
                seen = seen.index_put((rows, order[:, t]), torch.tensor(True))
                inp = e[rows, order[:, t]]
            return total / p.shape[1]

    m = Net()
    return training(
        m,
        lambda m, p: m(p),
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, lambda s: s.uniform(0, 1, 5, 6, 2)),
        clip_grad_norm=2.0,
        domain=T(("B", "N", 2), min_value=0, max_value=1),
        sizes={"B": (1, 6), "N": (1, 7)},
    )


@sound
def mixture_of_experts():
    """Top-2 gate with -inf for the rest, renormalised by softmax; squared coefficient of variation with eps."""

    class MoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList([mlp(6, 8, 3) for _ in range(4)])

        def forward(self, x):
            z = self.gate(x)
            top = z.topk(2, -1).indices
            w = torch.full_like(z, float("-inf")).scatter(-1, top, z.gather(-1, top)).softmax(-1)
            y = torch.stack([f(x) for f in self.experts], -1)
            load = w.sum(0)
            return (y * w[:, None, :]).sum(-1), load.var() / (load.mean() ** 2 + 1e-6)

    def loss(m, b):
        z, balance = m(b[0])
        return F.cross_entropy(z, b[1]) + 0.01 * balance

    m = MoE()
    return training(
        m, loss, torch.optim.AdamW(m.parameters(), 1e-3), data(6, lambda s: (s.normal(8, 6), s.ints(0, 2, 8)))
    )


@sound
def checkpointed_frozen():
    """Checkpointed blocks on frozen embeddings; -1e9 in the self-attention of the padding mask."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(10, 12).requires_grad_(False)
            self.blocks, self.head = nn.ModuleList([Block(12), Block(12)]), nn.Linear(12, 2)
            self.score = nn.Linear(12, 1)

        def forward(self, ids, pad):
            x, eye = self.emb(ids), torch.eye(ids.shape[1], dtype=torch.bool)
            mask = pad[:, None, :] & ~eye  # a padded position still sees itself
            for block in self.blocks:
                x = checkpoint(block, x, mask, use_reentrant=False)
            w = self.score(x).squeeze(-1).masked_fill(pad, -1e9).softmax(-1)  # all padded: uniform
            return self.head((x * w[..., None]).sum(1))

    m = Net()
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]),
        torch.optim.Adam([p for p in m.parameters() if p.requires_grad], 1e-3),
        data(5, lambda s: (s.ints(0, 9, 4, 6), s.uniform(0, 1, 4, 6) < 0.4, s.ints(0, 1, 4))),
    )
