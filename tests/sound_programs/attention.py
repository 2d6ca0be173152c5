"""Attention, sequences, normalisation, images, sound; one optimiser of its own."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from . import T, data, mlp, sound, training, within


def adam(m, lr=1e-3):
    return torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr)


class Attention(nn.Module):
    """Embedding, RMS normalisation by hand, heads of width 4, `mix(q, k, v)`, head."""

    def __init__(self, mix, vocabulary=17):
        super().__init__()
        self.tok, self.qkv, self.head = nn.Embedding(vocabulary, 16), nn.Linear(16, 48), nn.Linear(16, vocabulary)
        self.gain, self.mix = nn.Parameter(torch.ones(16)), mix

    def forward(self, ids, *more):
        x = self.tok(ids)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.head(x + self.mix(q, k, v, *more).transpose(1, 2).flatten(2))


def next_token(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)


@sound
def alibi_lm():
    """ALiBi slopes on the scores, future masked with -inf, label smoothing."""
    slopes = 2.0 ** -torch.arange(1.0, 5.0)[:, None, None]

    def mix(q, k, v):
        step = torch.arange(q.shape[2])
        scores = q @ k.mT / 2 - slopes * (step[:, None] - step)
        return scores.masked_fill(step[:, None] < step, -torch.inf).softmax(-1) @ v

    m = Attention(mix)
    return training(
        m,
        lambda m, b: next_token(m(b), b),
        adam(m),
        data(5, lambda s: s.ints(0, 16, 4, 7)),
        domain=T(("B", "T"), "int64", 0, 16),
        sizes={"B": (1, 6), "T": (2, 9)},
    )


@sound
def rotary_padded():
    """Rotary positions, nn.RMSNorm on queries and keys, bool mask causal and valid: key 0 is always seen."""
    norm = nn.RMSNorm(4, elementwise_affine=False)

    def turn(x):
        angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def mix(q, k, v, lengths):
        t = q.shape[2]
        seen = torch.ones(t, t, dtype=torch.bool).tril() & within(lengths, t)[:, None, None, :]
        return F.scaled_dot_product_attention(turn(norm(q)), turn(norm(k)), v, attn_mask=seen)

    def loss(m, b):
        valid = within(b["n"], b["ids"].shape[1])[:, 1:].float()
        ce = F.cross_entropy(m(b["ids"], b["n"])[:, :-1].transpose(1, 2), b["ids"][:, 1:], reduction="none")
        return (ce * valid).sum() / valid.sum().clamp(min=1)

    m = Attention(mix)
    domain = {"ids": T(("B", "T"), "int64", 0, 16, lengths="n", pad_value=0), "n": T(("B",), "int64", kind="lengths")}
    batches = [{"ids": x * within(n, 8), "n": n} for x, n in data(5, lambda s: (s.ints(1, 16, 4, 8), s.ints(1, 8, 4)))]
    return training(m, loss, torch.optim.AdamW(m.parameters(), 1e-3), batches, domain=domain, clip_grad_norm=1.0)


@sound
def relative_bias_buckets():
    """T5's logarithmic distance buckets (distances from one on), additive float mask with finfo.min."""

    class Mix(nn.Embedding):
        def forward(self, q, k, v):
            step = torch.arange(q.shape[2])
            gap = (step[:, None] - step).clamp(min=0)
            far = 4 + (torch.log(gap.clamp(min=1) / 4) / math.log(4) * 4).long()
            places = super().forward(torch.where(gap < 4, gap, far.clamp(max=7))).permute(2, 0, 1)
            hidden = torch.where(step[:, None] < step, torch.finfo(q.dtype).min, 0.0)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=places + hidden)

    m = Attention(Mix(8, 4))
    return training(m, lambda m, b: next_token(m(b), b), adam(m), data(4, lambda s: s.ints(0, 16, 3, 12)))


@sound
def softmax_by_hand():
    """exp of scores less their greatest, over a sum that is at least 1; masked keys count as 0."""

    def mix(q, k, v, keep):
        scores = q @ k.mT / 2
        hidden = ~keep[:, None, None, :]
        top = scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True).detach()
        weight = torch.exp((scores - top).clamp(max=0)) * ~hidden
        return weight @ v / weight.sum(-1, keepdim=True)

    def make(s):
        keep = s.uniform(0, 1, 4, 6) < 0.5
        keep[:, 2] = True
        return s.ints(0, 16, 4, 6), keep, s.ints(0, 16, 4)

    m = Attention(mix)
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0], b[1]).mean(1), b[2]),
        adam(m),
        data(5, make),
        domain=(
            T(("B", "T"), "int64", 0, 16),
            T(("B", "T"), "bool", kind="mask", min_true=1),
            T(("B",), "int64", 0, 16),
        ),
    )


@sound
def logsumexp_by_hand_ignored():
    """Cross entropy by hand: detached maximum, -1 ignored through a clamped gather, count clamp(min=1)."""
    m = mlp(5, 16, 4)

    def loss(m, b):
        z = m(b["x"])
        top = z.amax(-1, keepdim=True).detach()
        log_z = (z - top).exp().sum(-1).log() + top[..., 0]
        known = b["y"] != -1
        nll = log_z - z.gather(-1, b["y"].clamp(min=0)[..., None])[..., 0]
        return torch.where(known, nll, 0.0).sum() / known.sum().clamp(min=1)

    def make(s):
        return {"x": s.normal(4, 6, 5), "y": s.ints(-1, 3, 4, 6)}

    return training(
        m,
        loss,
        torch.optim.SGD(m.parameters(), 0.05, momentum=0.9),
        data(6, make),
        domain={"x": T(("B", "T", 5), min_value=-4, max_value=4), "y": T(("B", "T"), "int64", 0, 3, ignore_index=-1)},
    )


@sound
def sparsemax_attention():
    """Sparsemax by sorting: the support holds one entry at least."""

    def mix(q, k, v):
        z = q @ k.mT / 2
        z = z - z.amax(-1, keepdim=True)
        ordered = z.sort(-1, descending=True).values
        ranks = torch.arange(1, z.shape[-1] + 1)
        total = ordered.cumsum(-1)
        size = (1 + ranks * ordered > total).sum(-1, keepdim=True).clamp(min=1)
        return (z - (total.gather(-1, size - 1) - 1) / size).clamp(min=0) @ v

    m = Attention(mix)
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0]).mean(1), b[1]),
        adam(m),
        data(5, lambda s: (s.ints(0, 16, 4, 6), s.ints(0, 16, 4))),
    )


class Entmax15(torch.autograd.Function):
    """1.5-entmax, exact by sorting, with its own backward: the roots in it sum to at least one."""

    @staticmethod
    def forward(ctx, x):
        x = (x - x.amax(-1, keepdim=True)) / 2
        ordered = x.sort(-1, descending=True).values
        rho = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        mean = ordered.cumsum(-1) / rho
        spread = rho * (ordered.square().cumsum(-1) / rho - mean.square())
        tau = mean - ((1 - spread) / rho).clamp(min=0).sqrt()
        size = (tau <= ordered).sum(-1, keepdim=True)
        y = (x - tau.gather(-1, size - 1)).clamp(min=0).square()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        root = ctx.saved_tensors[0].sqrt()
        inner = grad * root
        return inner - inner.sum(-1, keepdim=True) / root.sum(-1, keepdim=True) * root


@sound
def entmax_pooling():
    """Entmax over the positions; scores bounded by a soft clamp."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.score, self.out = mlp(4, 16, 8), nn.Linear(8, 1), nn.Linear(8, 3)

        def forward(self, x):
            h = self.body(x)
            weight = Entmax15.apply(20 * torch.tanh(self.score(h)[..., 0] / 20))
            return self.out((weight[..., None] * h).sum(1))

    m = Net()
    return training(
        m, lambda m, b: F.cross_entropy(m(b[0]), b[1]), adam(m), data(5, lambda s: (s.normal(5, 6, 4), s.ints(0, 2, 5)))
    )


@sound
def adaptive_softmax():
    """nn.AdaptiveLogSoftmaxWithLoss after a GRU."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.rnn = nn.Embedding(30, 8), nn.GRU(8, 16, batch_first=True)
            self.out = nn.AdaptiveLogSoftmaxWithLoss(16, 30, cutoffs=[6, 15], div_value=2.0)

        def forward(self, ids):
            return self.out(self.rnn(self.tok(ids[:, :-1]))[0].flatten(0, 1), ids[:, 1:].flatten()).loss

    m = Net()
    return training(
        m, lambda m, b: m(b), adam(m), data(5, lambda s: s.ints(0, 29, 4, 6)), domain=T(("B", 6), "int64", 0, 29)
    )


@sound
def one_channel_norms():
    """GroupNorm with one channel a group, InstanceNorm1d, LayerNorm without weights."""
    m = nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=1),
        nn.GroupNorm(6, 6),
        nn.GELU(),
        nn.Conv1d(6, 6, 3, padding=1),
        nn.InstanceNorm1d(6, affine=True),
        nn.SiLU(),
        nn.Flatten(),
        nn.LayerNorm(48, elementwise_affine=False),
        nn.Linear(48, 3),
    )
    return training(
        m, lambda m, b: F.cross_entropy(m(b[0]), b[1]), adam(m), data(5, lambda s: (s.normal(4, 2, 8), s.ints(0, 2, 4)))
    )


@sound
def response_norm_glu():
    """LocalResponseNorm (k=1 plus squares, power 0.75), GLU, SELU, Softplus."""
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.LocalResponseNorm(3, alpha=1e-2, k=1.0),
        nn.GLU(1),
        nn.Conv2d(4, 4, 3),
        nn.SELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Softplus(beta=2),
        nn.Linear(16, 2),
    )
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        adam(m),
        data(5, lambda s: (s.uniform(0, 1, 3, 1, 6, 6), s.ints(0, 1, 3))),
    )


@sound
def weight_norm_regressor():
    """torch's weight_norm on every layer, AlphaDropout between them."""
    m = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 12)),
        nn.SELU(),
        nn.AlphaDropout(0.1),
        parametrizations.weight_norm(nn.Linear(12, 1)),
    )
    return training(
        m, lambda m, b: F.huber_loss(m(b[0])[:, 0], b[1]), adam(m), data(5, lambda s: (s.normal(6, 4), s.normal(6)))
    )


@sound
def spectral_norm_energy():
    """Energy model with torch's spectral_norm: softplus contrast and squared energies."""
    m = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 12)),
        nn.LeakyReLU(0.1),
        parametrizations.spectral_norm(nn.Linear(12, 1)),
    )

    def loss(m, b):
        real, fake = m(b[0]), m(b[1])
        return F.softplus(real - fake).mean() + 0.01 * (real.square() + fake.square()).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(5, 4), s.uniform(-3, 3, 5, 4))))
