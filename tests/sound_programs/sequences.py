"""Sequences, attention, images."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training, within


class Block(nn.Module):
    """Pre-norm transformer block; `mask` is True where attention is forbidden."""

    def __init__(self, d, norm=nn.LayerNorm):
        super().__init__()
        self.n1, self.n2 = norm(d), norm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = mlp(d, 2 * d, d, act=nn.GELU)

    def forward(self, x, mask):
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(x.shape[-1])
        x = x + self.out(scores.masked_fill(mask, float("-inf")).softmax(-1) @ v)
        return x + self.ff(self.n2(x))


def causal(t):
    return torch.ones(t, t, dtype=torch.bool).triu(1)


@sound
def causal_lm_padded():
    """-inf causal and padding masks: key 0 is always valid, so no row is fully masked."""

    class LM(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.pos = nn.Embedding(20, 16), nn.Embedding(10, 16)
            self.blocks = nn.ModuleList([Block(16), Block(16)])
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)

        def forward(self, tokens, lengths):
            t = tokens.shape[1]
            x = self.tok(tokens) + self.pos(torch.arange(t))
            mask = causal(t) | ~within(lengths, t)[:, None, :]
            for block in self.blocks:
                x = block(x, mask)
            return self.head(self.norm(x))

    def loss(m, b):
        logits = m(b["tokens"], b["lengths"])[:, :-1]
        valid = within(b["lengths"], b["tokens"].shape[1])[:, 1:].float()
        ce = F.cross_entropy(logits.transpose(1, 2), b["tokens"][:, 1:], reduction="none")
        return (ce * valid).sum() / valid.sum()  # lengths >= 2

    m = LM()
    batches = [
        {"tokens": x * within(n, 8), "lengths": n} for x, n in data(6, lambda s: (s.ints(1, 19, 4, 8), s.ints(2, 8, 4)))
    ]
    domain = {
        "tokens": T(("B", "T"), "int64", 0, 19, lengths="lengths", pad_value=0),
        "lengths": T(("B",), "int64", 2, 8, kind="lengths"),
    }
    return training(
        m,
        loss,
        torch.optim.AdamW(m.parameters(), 1e-3),
        batches,
        clip_grad_norm=1.0,
        domain=domain,
        sizes={"B": (1, 6), "T": (2, 8)},
    )


@sound
def mha_pooled():
    """nn.MultiheadAttention with a key padding mask that leaves one key at least; masked mean."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.att = nn.Linear(5, 16), nn.MultiheadAttention(16, 2, batch_first=True)
            self.out = nn.Linear(16, 3)

        def forward(self, x, keep):
            h = self.inp(x)
            h = h + self.att(h, h, h, key_padding_mask=~keep, need_weights=False)[0]
            return self.out((h * keep[..., None]).sum(1) / keep.sum(1, keepdim=True))

    def make(s):
        keep = s.uniform(0, 1, 6, 7) < 0.6
        keep[:, 0] = True
        return s.normal(6, 7, 5), keep, s.ints(0, 2, 6)

    m = Net()
    domain = (
        T(("B", "T", 5), min_value=-4, max_value=4),
        T(("B", "T"), "bool", kind="mask", min_true=1),
        T(("B",), "int64", 0, 2),
    )
    return training(
        m,
        lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]),
        torch.optim.Adam(m.parameters(), 1e-3),
        data(5, make),
        domain=domain,
        sizes={"B": (1, 8), "T": (1, 8)},
    )


@sound
def encoder_causal_fixed():
    """nn.TransformerEncoder with torch's own -inf square mask, dropout, post-norm; fixed length."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.enc, self.out = nn.Linear(3, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

        def forward(self, x):
            return self.out(self.enc(self.inp(x), mask=self.mask, is_causal=True))

    m = Net()
    return training(
        m,
        lambda m, x: F.smooth_l1_loss(m(x)[:, :-1], x[:, 1:]),
        torch.optim.AdamW(m.parameters(), 1e-3),
        data(6, lambda s: s.normal(5, 6, 3).cumsum(1)),
    )


@sound
def tied_lm_sdpa():
    """Rotary positions, RMSNorm, scaled_dot_product_attention(is_causal), tied output weights; integers only."""

    class LM(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.qkv, self.out = nn.Embedding(16, 16), nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
            self.n1, self.n2 = nn.RMSNorm(16, eps=1e-5), nn.RMSNorm(16, eps=1e-5)
            self.head = nn.Linear(16, 16, bias=False)
            self.head.weight = self.tok.weight
            nn.init.normal_(self.tok.weight, std=0.1)
            angle = torch.arange(8)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
            self.register_buffer("rot", torch.polar(torch.ones(8, 8), angle))

        def turn(self, x):
            z = torch.view_as_complex(x.reshape(*x.shape[:-1], 8, 2)) * self.rot[: x.shape[1]]
            return torch.view_as_real(z).flatten(-2)

        def forward(self, ids):
            x = self.tok(ids)
            q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
            x = x + self.out(F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True))
            return self.head(self.n2(x))

    m = LM()
    return training(
        m,
        lambda m, ids: F.cross_entropy(m(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()),
        torch.optim.Adam(m.parameters(), 1e-3),
        data(6, lambda s: s.ints(0, 15, 4, 8)),
    )


@sound
def additive_finfo_mask():
    """finfo.min added to the scores of padded keys, the way BERT does; lengths >= 1."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.qkv, self.norm = nn.Embedding(12, 12), nn.Linear(12, 36), nn.LayerNorm(12)
            self.head = nn.Linear(12, 1)

        def forward(self, ids, lengths):
            x = self.emb(ids)
            q, k, v = self.qkv(x).chunk(3, -1)
            extended = (1.0 - within(lengths, ids.shape[1]).float())[:, None, :] * torch.finfo(x.dtype).min
            x = self.norm(x + (q @ k.mT / 12**0.5 + extended).softmax(-1) @ v)
            return self.head(x[:, 0]).squeeze(-1)

    m = Net()
    domain = (
        T(("B", "T"), "int64", 0, 11, lengths="1", pad_value=0),
        T(("B",), "int64", 1, 6, kind="lengths"),
        T(("B",), min_value=0, max_value=1),
    )
    batches = [
        (x * within(n, 6), n, y)
        for x, n, y in data(6, lambda s: (s.ints(0, 11, 6, 6), s.ints(1, 6, 6), s.ints(0, 1, 6).float()))
    ]
    return training(
        m,
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0], b[1]), b[2]),
        torch.optim.Adam(m.parameters(), 2e-3),
        batches,
        domain=domain,
        sizes={"T": (1, 6)},
    )


@sound
def gru_mean_by_length():
    """Packed GRU, mean over the valid steps: a division by lengths >= 1."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            h, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
            return self.out(h.sum(1) / lengths[:, None]).squeeze(-1)

    def make(s):
        n = s.ints(1, 7, 5)
        return {"src": {"x": s.normal(5, 7, 4) * within(n, 7)[..., None], "lengths": n}, "y": s.normal(5)}

    m = Net()
    domain = {
        "src": {
            "x": T(("B", "T", 4), min_value=-5, max_value=5, lengths="src.lengths", pad_value=0.0),
            "lengths": T(("B",), "int64", 1, 7, kind="lengths"),
        },
        "y": T(("B",), min_value=-3, max_value=3),
    }
    return training(
        m,
        lambda m, b: F.huber_loss(m(b["src"]["x"], b["src"]["lengths"]), b["y"]),
        torch.optim.RMSprop(m.parameters(), 1e-3),
        data(5, make),
        domain=domain,
        sizes={"B": (1, 6), "T": (1, 7)},
        clip_grad_norm=5.0,
    )


class Acoustic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(4, 12, 3, padding=1), nn.Linear(12, 6)

    def forward(self, x):
        return self.out(F.relu(self.conv(x.mT)).mT).log_softmax(-1).transpose(0, 1)


@sound
def ctc_lengths():
    """CTC with T=12 frames and at most 4 labels: an alignment always exists, so no infinite loss."""

    def loss(m, b):
        return F.ctc_loss(m(b["x"]), b["y"], torch.full((len(b["x"]),), 12), b["n"])

    m = Acoustic()
    domain = {
        "x": T(("B", 12, 4), min_value=-4, max_value=4),
        "y": T(("B", 4), "int64", 1, 5, lengths="n"),
        "n": T(("B",), "int64", 1, 4, kind="lengths"),
    }
    batches = data(6, lambda s: {"x": s.normal(4, 12, 4), "y": s.ints(1, 5, 4, 4), "n": s.ints(1, 4, 4)})
    return training(m, loss, torch.optim.Adam(m.parameters(), 1e-3), batches, domain=domain)


@sound
def ctc_varying_frames():
    """CTC with zero_infinity and 7..12 frames for 3 labels, per-sample sum over target lengths >= 1."""

    def loss(m, b):
        x, y, frames, n = b
        each = F.ctc_loss(m(x), y, frames, n, reduction="none", zero_infinity=True)
        return (each / n).mean()

    m = Acoustic()
    return training(
        m,
        loss,
        torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9),
        clip_grad_norm=1.0,
        batches=data(6, lambda s: (s.normal(4, 12, 4), s.ints(1, 5, 4, 3), s.ints(7, 12, 4), s.ints(1, 3, 4))),
    )


@sound
def crf_tagger():
    """Linear-chain CRF: the partition function by logsumexp over finite scores."""

    class CRF(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.lin = nn.Embedding(15, 8), nn.Linear(8, 4)
            self.trans, self.start = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))

        def forward(self, ids, tags, lengths):
            e = self.lin(self.emb(ids))
            keep = within(lengths, ids.shape[1])
            alpha = self.start + e[:, 0]
            for t in range(1, ids.shape[1]):
                new = torch.logsumexp(alpha[:, :, None] + self.trans, 1) + e[:, t]
                alpha = torch.where(keep[:, t, None], new, alpha)
            gold = self.start[tags[:, 0]] + (e.gather(2, tags[..., None]).squeeze(-1) * keep).sum(1)
            gold = gold + (self.trans[tags[:, :-1], tags[:, 1:]] * keep[:, 1:]).sum(1)
            return (alpha.logsumexp(1) - gold).mean()

    m = CRF()
    domain = (
        T(("B", "T"), "int64", 0, 14, lengths="2"),
        T(("B", "T"), "int64", 0, 3),
        T(("B",), "int64", kind="lengths"),
    )
    return training(
        m,
        lambda m, b: m(*b),
        torch.optim.Adam(m.parameters(), 5e-3),
        data(6, lambda s: (s.ints(0, 14, 4, 6), s.ints(0, 3, 4, 6), s.ints(1, 6, 4))),
        domain=domain,
        sizes={"B": (1, 5), "T": (1, 6)},
    )
