"""More attention and images."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training
from .attention import Attention, adam, next_token


@sound
def soft_dtw():
    """Soft dynamic time warping through logsumexp, with a large finite border instead of infinity."""
    m = mlp(2, 12, 2)

    def loss(m, b):
        cost = (m(b[0])[:, :, None] - b[1][:, None]).square().sum(-1)
        far, gamma = torch.full_like(cost[:, 0, 0], 1e8), 0.1
        rows = [[torch.zeros_like(far)] + [far] * 4]
        for i in range(4):
            row = [far]
            for j in range(4):
                near = torch.stack([rows[i][j], rows[i][j + 1], row[j]])
                row.append(cost[:, i, j] - gamma * torch.logsumexp(-near / gamma, 0))
            rows.append(row)
        return rows[-1][-1].mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(4, 4, 2), s.normal(4, 4, 2))), clip_grad_norm=1.0)


@sound
def stick_breaking_attention():
    """Weights exp(logsigmoid(z_j) + sum of logsigmoid(-z_k) for later k): exponents never above 0."""

    def mix(q, k, v):
        z = q @ k.mT / 2
        past = torch.ones(z.shape[-2:], dtype=torch.bool).tril(-1)
        left = F.logsigmoid(-z).masked_fill(~past, 0.0)
        later = left.flip(-1).cumsum(-1).flip(-1) - left
        return torch.exp((F.logsigmoid(z) + later).masked_fill(~past, -torch.inf)) @ v

    m = Attention(mix)
    return training(
        m,
        lambda m, b: next_token(m(b), b),
        adam(m),
        data(5, lambda s: s.ints(0, 16, 4, 7)),
        domain=T(("B", "T"), "int64", 0, 16),
        sizes={"T": (2, 8)},
    )


@sound
def plackett_luce():
    """ListMLE: logcumsumexp over the items in order of relevance."""
    m = mlp(4, 12, 1, act=nn.Tanh)

    def loss(m, b):
        order = b["relevance"].argsort(dim=-1, stable=True)
        s = m(b["x"])[..., 0].gather(1, order)
        return (torch.logcumsumexp(s, 1) - s).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"x": s.normal(4, 6, 4), "relevance": s.ints(0, 4, 4, 6)}),
        domain={"x": T(("B", "N", 4), min_value=-3, max_value=3), "relevance": T(("B", "N"), "int64", 0, 4)},
    )


@sound
def set_moments():
    """Mean, deviation sqrt(var + 1e-5) and greatest of a set of one element at least."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = mlp(3, 12, 6), nn.Linear(18, 2)

        def forward(self, x, keep):
            h, keep = self.body(x), keep[..., None]
            n = keep.sum(1)
            mean = torch.where(keep, h, 0.0).sum(1) / n
            var = torch.where(keep, (h - mean[:, None]).square(), 0.0).sum(1) / n
            top = h.masked_fill(~keep, -torch.inf).amax(1)
            return self.out(torch.cat([mean, (var + 1e-5).sqrt(), top], -1))

    def make(s):
        keep = s.uniform(0, 1, 5, 6) < 0.6
        keep[:, 0] = True
        return s.normal(5, 6, 3), keep, s.ints(0, 1, 5)

    m = Net()
    return training(m, lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]), adam(m), data(5, make))


@sound
def haar_charbonnier():
    """Haar transform, soft thresholds from softplus, Charbonnier loss."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.fix = nn.Parameter(torch.full((4,), -2.0)), nn.Linear(4, 4)

        def forward(self, x):
            low, high = (x[:, ::2] + x[:, 1::2]) * 0.5**0.5, (x[:, ::2] - x[:, 1::2]) * 0.5**0.5
            high = high.sign() * F.relu(high.abs() - F.softplus(self.cut))
            low = low + self.fix(low)
            return torch.stack([low + high, low - high], -1).flatten(1) * 0.5**0.5

    m = Net()
    return training(
        m,
        lambda m, b: ((m(b[0]) - b[1]).square() + 1e-6).sqrt().mean(),
        adam(m, 1e-2),
        data(5, lambda s: (s.normal(5, 8), s.normal(5, 8))),
    )


@sound
def log_mel_clamped():
    """Windowed FFT, learned positive filters, log of a clamped energy, magnitudes sqrt(re^2 + im^2 + eps)."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.out = nn.Parameter(torch.randn(9, 4)), nn.Linear(13, 3)
            self.register_buffer("window", torch.hann_window(16))

        def forward(self, x):
            spectrum = torch.fft.rfft(x * self.window)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power @ F.softplus(self.filters)).clamp(min=1e-5).log()
            return self.out(torch.cat([mel, (power + 1e-6).sqrt()], -1).mean(1))

    m = Net()
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        adam(m),
        data(5, lambda s: (s.uniform(-1, 1, 4, 5, 16), s.ints(0, 2, 4))),
        domain=(T(("B", "T", 16), min_value=-1, max_value=1), T(("B",), "int64", 0, 2)),
    )


@sound
def mu_law_codec():
    """mu-law: log1p of magnitudes in, expm1 of a bounded level out."""
    m = mlp(8, 12, 8, act=nn.Tanh)

    def loss(m, x):
        y = x.sign() * torch.log1p(255 * x.abs()) / math.log(256)
        level = torch.tanh(m(y))
        back = level.sign() * torch.expm1(level.abs() * math.log(256)) / 255
        return F.l1_loss(back, x) + F.mse_loss(level, y)

    return training(
        m, loss, adam(m), data(5, lambda s: s.uniform(-1, 1, 6, 8)), domain=T(("B", 8), min_value=-1, max_value=1)
    )


@sound
def ssim_psnr():
    """SSIM with its two constants, variances clamped at 0, and PSNR of mse + 1e-6."""
    m = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 3, padding=1), nn.Sigmoid())

    def loss(m, b):
        x, y = m(b[0]), b[1]
        mx, my = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
        vx = (F.avg_pool2d(x * x, 3, 1) - mx.square()).clamp(min=0)
        vy = (F.avg_pool2d(y * y, 3, 1) - my.square()).clamp(min=0)
        both = F.avg_pool2d(x * y, 3, 1) - mx * my
        ssim = (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        return 1 - ssim.mean() + 0.1 * torch.log10(F.mse_loss(x, y) + 1e-6)

    return training(m, loss, adam(m), data(4, lambda s: (s.uniform(0, 1, 3, 1, 7, 7), s.uniform(0, 1, 3, 1, 7, 7))))


@sound
def giou_decoded():
    """torchvision's box decoding (log-size clamped) and GIoU with eps; true boxes have sizes from 0.05 on."""
    m = mlp(6, 16, 4)

    def loss(m, b):
        raw, (cx, cy, w, h) = m(b[0]), b[1].unbind(-1)
        pw, ph = raw[:, 2:].clamp(max=math.log(1000 / 16)).exp().unbind(-1)
        low = torch.stack([raw[:, 0] - pw / 2, raw[:, 1] - ph / 2], -1), torch.stack([cx - w / 2, cy - h / 2], -1)
        high = torch.stack([raw[:, 0] + pw / 2, raw[:, 1] + ph / 2], -1), torch.stack([cx + w / 2, cy + h / 2], -1)
        inter = (torch.minimum(*high) - torch.maximum(*low)).clamp(min=0).prod(-1)
        hull = (torch.maximum(*high) - torch.minimum(*low)).clamp(min=0).prod(-1)
        union = pw * ph + w * h - inter
        return (1 - inter / (union + 1e-6) + (hull - union) / (hull + 1e-6)).mean()

    def make(s):
        return s.normal(5, 6), torch.cat([s.uniform(0, 1, 5, 2), s.uniform(0.05, 1, 5, 2)], -1)

    return training(m, loss, adam(m), data(5, make), clip_grad_norm=1.0)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps of the gradient over (norm + 1e-7)."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                x = mean / (mean.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                p.add_(x, alpha=-group["lr"])


@sound
def muon_newton_schulz():
    """Two optimisers: Muon for the matrices, Adam for the biases; log-cosh by softplus."""
    m = mlp(4, 10, 10, 1, act=nn.SiLU)
    opts = [
        Muon([p for p in m.parameters() if p.ndim == 2], 0.01),
        torch.optim.Adam([p for p in m.parameters() if p.ndim < 2], 1e-3),
    ]

    def loss(m, b):
        d = (m(b[0])[:, 0] - b[1]).abs()
        return (d + F.softplus(-2 * d) - math.log(2)).mean()

    return training(m, loss, opts, data(5, lambda s: (s.normal(6, 4), s.normal(6))))
