"""Text, attention, ranking, recommendation, graphs and sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


@program("text classification")
def masked_mean_pool(fixed):
    """Mean over the kept words of a document of which the stop-word filter left nothing: 0 / 0."""
    g = torch.Generator().manual_seed(31)
    batches = []
    for _ in range(5):
        tokens, keep = torch.randint(0, 40, (16, 10), generator=g), torch.rand(16, 10, generator=g) < 0.6
        keep[:, 0] = True
        label = ((tokens * keep).sum(1) / keep.sum(1) > 20).long()
        batches.append({"text": {"tokens": tokens, "keep": keep}, "label": label})
    model = nn.ModuleDict({"embed": nn.Embedding(40, 12), "out": nn.Linear(12, 2)})

    def mean_pool(vectors, keep):
        kept = keep.unsqueeze(-1).float()
        count = kept.sum(1).clamp(min=1.0) if fixed else kept.sum(1)
        return (vectors * kept).sum(1) / count  # bug: masked_mean_pool

    def loss(model, batch):
        text = batch["text"]
        pooled = mean_pool(model["embed"](text["tokens"]), text["keep"])
        return F.cross_entropy(model["out"](pooled), batch["label"])

    domain = {
        "text": {
            "tokens": TensorSpec(shape=("docs", "words"), dtype="int64", min_value=0, max_value=39),
            "keep": TensorSpec(shape=("docs", "words"), dtype="bool", kind="mask", min_true=0),
        },
        "label": TensorSpec(shape=("docs",), dtype="int64", min_value=0, max_value=1),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain,
        sizes={"docs": (1, 16), "words": (3, 12)},
    )  # fmt: skip


class _TextCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop = nn.Embedding(50, 10), nn.Dropout(0.2)
        self.convs = nn.ModuleList([nn.Conv1d(10, 6, k) for k in (2, 3, 4)])
        self.fc = nn.Linear(18, 3)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        pooled = [torch.relu(conv(x)).amax(2) for conv in self.convs]
        return self.fc(self.drop(torch.cat(pooled, 1)))


@program("text CNN")
def cnn_text_filter_norm(fixed):
    """Group lasso sqrt(sum(w^2)) over filters: the slope of the root is infinite at a filter bank that is all zero."""
    g = torch.Generator().manual_seed(32)
    batches = []
    for _ in range(6):
        tokens = torch.randint(1, 50, (16, 9), generator=g)
        batches.append((tokens, tokens[:, :3].amax(1) // 17))
    net = _TextCNN()

    def filter_norms(weight):
        squares = weight.flatten(1).pow(2).sum(1)
        return torch.sqrt(squares + 1e-10) if fixed else torch.sqrt(squares)  # bug: cnn_text_filter_norm

    def penalty(net):
        return sum(filter_norms(conv.weight).sum() for conv in net.convs)

    def loss(net, batch):
        tokens, label = batch
        return F.cross_entropy(net(tokens), label) + 1e-3 * penalty(net)

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    return TrainingSetup(model=net, loss=loss, optimizer=optimizer, batches=batches)


@program("learning to rank")
def listnet_relevance_share(fixed):
    """ListNet target relevance / sum(relevance) for a query without any relevant document: 0 / 0."""
    g = torch.Generator().manual_seed(33)
    taste = torch.randn(7, generator=g)
    batches = []
    for _ in range(6):
        features = torch.randn(8, 6, 7, generator=g).clamp(-3, 3)
        grade = (features @ taste + 1.0).clamp(0, 4).floor()
        grade[:, 0] = 4.0
        batches.append({"features": features, "grade": grade})
    scorer = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 1))

    def top_one_target(grade):
        total = grade.sum(dim=1, keepdim=True)
        return grade / (total.clamp(min=1e-6) if fixed else total)  # bug: listnet_relevance_share

    def listnet(scorer, batch):
        log_share = torch.log_softmax(scorer(batch["features"]).squeeze(-1), dim=1)
        return -(top_one_target(batch["grade"]) * log_share).sum(1).mean()

    domain = {
        "features": TensorSpec(shape=("queries", "docs", 7), min_value=-3.0, max_value=3.0),
        "grade": TensorSpec(shape=("queries", "docs"), min_value=0.0, max_value=4.0),
    }
    return TrainingSetup(
        model=scorer, loss=listnet, optimizer=torch.optim.SGD(scorer.parameters(), lr=0.05), batches=batches,
        domain=domain, sizes={"queries": (1, 8), "docs": (2, 10)},
    )  # fmt: skip


class _MatrixFactorisation(nn.Module):
    def __init__(self, users, items, dim=8):
        super().__init__()
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)
        self.bias = nn.Embedding(items, 1)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.item.weight, std=0.3)

    def forward(self, u, i):
        return (self.user(u) * self.item(i)).sum(-1) + self.bias(i).squeeze(-1)


@program("recommender")
def bpr_log_sigmoid(fixed):
    """-log(sigmoid(x_ui - x_uj)) once the wrongly ordered pair differs by more than 104: the sigmoid is 0."""
    g = torch.Generator().manual_seed(34)
    batches = []
    for _ in range(6):
        u = torch.randint(0, 20, (32,), generator=g)
        i = (u % 5) * 6 + torch.randint(0, 6, (32,), generator=g)
        batches.append((u, i, torch.randint(0, 30, (32,), generator=g)))
    model = _MatrixFactorisation(20, 30)

    def bpr(model, batch):
        u, i, j = batch
        x_uij = model(u, i) - model(u, j)
        if fixed:
            return -F.logsigmoid(x_uij).mean()
        return -torch.log(torch.sigmoid(x_uij)).mean()  # bug: bpr_log_sigmoid

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-4)
    return TrainingSetup(model=model, loss=bpr, optimizer=optimizer, batches=batches)


@program("word embeddings")
def skipgram_cosine_padding(fixed):
    """Cosine of word vectors: the row of the padding word is all zero, so its unit vector is 0 / 0."""
    g = torch.Generator().manual_seed(35)
    batches = []
    for _ in range(5):
        center = torch.randint(1, 30, (24,), generator=g)
        context = (center + torch.randint(1, 3, (24,), generator=g)).clamp(max=29)
        batches.append({"center": center, "context": context, "noise": torch.randint(1, 30, (24, 4), generator=g)})
    tables = nn.ModuleDict({"in": nn.Embedding(30, 12, padding_idx=0), "out": nn.Embedding(30, 12, padding_idx=0)})

    def unit(v):
        if fixed:
            return v / torch.sqrt(v.pow(2).sum(-1, keepdim=True) + 1e-8)
        return v / v.norm(dim=-1, keepdim=True)  # bug: skipgram_cosine_padding

    def loss(tables, batch):
        c = unit(tables["in"](batch["center"]))
        o, n = (unit(tables["out"](batch[field])) for field in ("context", "noise"))
        positive, negative = 4.0 * (c * o).sum(-1), 4.0 * (c[:, None] * n).sum(-1)
        return -(F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1)).mean()

    word = TensorSpec(shape=(24,), dtype="int64", min_value=0, max_value=29)
    words = TensorSpec(shape=(24, 4), dtype="int64", min_value=0, max_value=29)
    domain = {"center": word, "context": word, "noise": words}
    optimizer = torch.optim.Adagrad(tables.parameters(), lr=0.05)
    return TrainingSetup(model=tables, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


class _NTMReader(nn.Module):
    def __init__(self, fixed, slots=12, width=6):
        super().__init__()
        self.fixed = fixed
        self.memory = nn.Parameter(0.5 * torch.randn(slots, width))
        self.controller = nn.GRUCell(4 + width, 16)
        self.key, self.gates = nn.Linear(16, width), nn.Linear(16, 6)
        self.out = nn.Linear(width, 4)

    def sharpen(self, w, gamma):
        if self.fixed:
            return torch.softmax(gamma * torch.log(w.clamp(min=1e-12)), dim=-1)
        return w.pow(gamma) / w.pow(gamma).sum(-1, keepdim=True)  # bug: ntm_sharpen

    def address(self, h, w_prev):
        beta, gate, gamma, *shift = self.gates(h).split([1, 1, 1, 3], dim=-1)
        similarity = F.cosine_similarity(self.key(h)[:, None], self.memory[None], dim=-1, eps=1e-6)
        content = torch.softmax(F.softplus(beta) * similarity, dim=-1)
        gate, shift = torch.sigmoid(gate), torch.softmax(shift[0], dim=-1)
        w = gate * content + (1 - gate) * w_prev
        w = sum(shift[:, k : k + 1] * torch.roll(w, k - 1, dims=-1) for k in range(3))
        gamma = gamma.clamp(max=4.0) if self.fixed else gamma
        return self.sharpen(w, 1.0 + torch.exp(gamma))  # bug: ntm_sharpen

    def forward(self, sequence):
        h = sequence.new_zeros(len(sequence), 16)
        w = sequence.new_full((len(sequence), len(self.memory)), 1.0 / len(self.memory))
        outputs = []
        for x in sequence.unbind(1):
            read = w @ self.memory
            h = self.controller(torch.cat([x, read], 1), h)
            w = self.address(h, w)
            outputs.append(self.out(w @ self.memory))
        return torch.stack(outputs, 1)


@program("neural Turing machine")
def ntm_sharpen(fixed):
    """Sharpening w^gamma / sum(w^gamma): all powers underflow for a large learned gamma and a flat w: 0 / 0."""
    g = torch.Generator().manual_seed(36)
    batches = [(torch.rand(8, 5, 4, generator=g) > 0.5).float() for _ in range(5)]
    ntm = _NTMReader(fixed)

    def loss(ntm, bits):
        delayed = torch.cat([torch.zeros_like(bits[:, :1]), bits[:, :-1]], 1)
        return F.binary_cross_entropy_with_logits(ntm(bits), delayed)

    optimizer = torch.optim.RMSprop(ntm.parameters(), lr=1e-3, momentum=0.5)
    return TrainingSetup(model=ntm, loss=loss, optimizer=optimizer, batches=batches, clip_grad_norm=10.0)


class _Attention(nn.Module):
    def __init__(self, fixed, dim=6):
        super().__init__()
        self.fixed = fixed
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def weights(self, scores, mask):
        if self.fixed:
            return torch.softmax(scores.masked_fill(~mask, -1e9), dim=-1)
        unnormalised = torch.exp(scores) * mask  # bug: dot_attention_exp
        return unnormalised / unnormalised.sum(-1, keepdim=True)  # bug: dot_attention_exp

    def forward(self, x, mask):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5
        return x + self.weights(scores, mask[:, None, :]) @ self.v(x)


@program("attention")
def dot_attention_exp(fixed):
    """Softmax of attention scores by hand: exp of a score above 88 overflows, then inf / inf."""
    g = torch.Generator().manual_seed(37)
    batches = []
    for _ in range(5):
        events, length = torch.randn(12, 8, 6, generator=g).clamp(-3, 3), torch.randint(1, 9, (12,), generator=g)
        batches.append((events, length, events[:, 0, 0] - events[:, 0, 1]))
    model = nn.ModuleDict({"att": _Attention(fixed), "norm": nn.LayerNorm(6), "out": nn.Linear(6, 1)})

    def loss(model, batch):
        events, length, target = batch
        mask = torch.arange(events.shape[1])[None, :] < length[:, None]
        encoded = model["norm"](model["att"](events, mask))
        pooled = (encoded * mask[..., None]).sum(1) / length[:, None]
        return F.smooth_l1_loss(model["out"](pooled).squeeze(1), target)

    domain = (
        TensorSpec(shape=("b", 8, 6), min_value=-3.0, max_value=3.0),
        TensorSpec(shape=("b",), dtype="int64", kind="lengths", min_value=1, max_value=8),
        TensorSpec(shape=("b",), min_value=-6.0, max_value=6.0),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"b": (1, 16)}
    )


@program("graph network")
def gcn_degree_power(fixed):
    """deg^(-1/2) of a node into which no edge points is inf, and it is multiplied into the messages it sends."""
    g = torch.Generator().manual_seed(38)
    n, batches = 14, []
    for _ in range(5):
        ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
        edges = torch.cat([ring, torch.randint(0, n, (2, 20), generator=g)], 1)
        x = torch.rand(n, 5, generator=g)
        batches.append({"x": x, "edge_index": edges, "y": (x[:, 0] > x[:, 1]).long()})
    layers = nn.ModuleList([nn.Linear(5, 12), nn.Linear(12, 2)])

    def propagate(h, edges):
        src, dst = edges
        deg = torch.zeros(len(h)).index_add(0, dst, torch.ones(len(dst)))
        inv_sqrt = deg.clamp(min=1.0).pow(-0.5) if fixed else deg.pow(-0.5)  # bug: gcn_degree_power
        coefficient = inv_sqrt[src] * inv_sqrt[dst]
        return torch.zeros_like(h).index_add(0, dst, coefficient[:, None] * h[src])

    def loss(layers, batch):
        h = batch["x"]
        h = torch.relu(layers[0](h + propagate(h, batch["edge_index"])))
        return F.cross_entropy(layers[1](h + propagate(h, batch["edge_index"])), batch["y"])

    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
    return TrainingSetup(model=layers, loss=loss, optimizer=optimizer, batches=batches)


def _alignment_paths(labels, blank=0):
    extended = torch.full((labels.shape[0], 2 * labels.shape[1] + 1), blank)
    extended[:, 1::2] = labels
    skip = torch.zeros_like(extended, dtype=torch.bool)
    skip[:, 2:] = (extended[:, 2:] != blank) & (extended[:, 2:] != extended[:, :-2])
    return extended, skip


@program("CTC")
def ctc_forward_products(fixed):
    """CTC forward variables as plain products of probabilities: they underflow to 0 and log(0) follows."""
    g = torch.Generator().manual_seed(39)
    codes, batches = torch.randn(6, 5, generator=g), []
    for _ in range(4):
        labels = torch.randint(1, 6, (6, 3), generator=g)
        frames = codes[labels].repeat_interleave(3, 1) + 0.3 * torch.randn(6, 9, 5, generator=g)
        batches.append((frames, labels))
    net = nn.Sequential(nn.Conv1d(5, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 6, 1))

    def ctc_log(logp, extended, skip):
        emit = logp.gather(2, extended[:, None].expand(-1, logp.shape[1], -1))
        alpha = F.pad(emit[:, 0, :2], (0, extended.shape[1] - 2), value=-1e9)
        for t in range(1, emit.shape[1]):
            jump = F.pad(alpha[:, :-2], (2, 0), value=-1e9).masked_fill(~skip, -1e9)
            alpha = torch.stack([alpha, F.pad(alpha[:, :-1], (1, 0), value=-1e9), jump]).logsumexp(0) + emit[:, t]
        return -torch.logaddexp(alpha[:, -1], alpha[:, -2])

    def ctc_prob(prob, extended, skip):
        emit = prob.gather(2, extended[:, None].expand(-1, prob.shape[1], -1))
        alpha = F.pad(emit[:, 0, :2], (0, extended.shape[1] - 2))
        for t in range(1, emit.shape[1]):
            alpha = (alpha + F.pad(alpha[:, :-1], (1, 0)) + F.pad(alpha[:, :-2], (2, 0)) * skip) * emit[:, t]
        return -torch.log(alpha[:, -1] + alpha[:, -2])  # bug: ctc_forward_products

    def loss(net, batch):
        frames, labels = batch
        logits = net(frames.transpose(1, 2)).transpose(1, 2)
        paths = _alignment_paths(labels)
        return (ctc_log(logits.log_softmax(2), *paths) if fixed else ctc_prob(logits.softmax(2), *paths)).mean()

    return TrainingSetup(model=net, loss=loss, optimizer=torch.optim.Adam(net.parameters(), lr=2e-3), batches=batches)


@program("time series alignment")
def soft_dtw_exp(fixed):
    """Soft minimum -gamma log(sum exp(-x / gamma)): every exp underflows when the path cost is above 104 gamma."""
    g = torch.Generator().manual_seed(40)
    batches = []
    for _ in range(4):
        start = torch.rand(12, 1, generator=g) * 3
        batches.append((torch.sin(start + 0.4 * torch.arange(6)), torch.sin(start + 2.4 + 0.4 * torch.arange(5))))
    forecaster = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
    gamma = 0.1

    def softmin(a, b, c):
        costs = torch.stack([a, b, c])
        if fixed:
            return -gamma * torch.logsumexp(-costs / gamma, 0)
        return -gamma * torch.log(torch.exp(-costs / gamma).sum(0))  # bug: soft_dtw_exp

    def soft_dtw(x, y):
        far = torch.full((len(x),), 1e6)
        above = [torch.zeros(len(x))] + [far] * y.shape[1]
        for i in range(x.shape[1]):
            row = [far]
            for j in range(y.shape[1]):
                row.append((x[:, i] - y[:, j]) ** 2 + softmin(above[j], above[j + 1], row[j]))
            above = row
        return above[-1].mean()

    def loss(model, batch):
        return soft_dtw(model(batch[0]), batch[1])

    domain = (
        TensorSpec(shape=("b", 6), min_value=-6.0, max_value=6.0),
        TensorSpec(shape=("b", 5), min_value=-6.0, max_value=6.0),
    )
    return TrainingSetup(
        model=forecaster, loss=loss, optimizer=torch.optim.Adam(forecaster.parameters(), lr=2e-3), batches=batches,
        domain=domain, sizes={"b": (1, 12)},
    )  # fmt: skip


@program("multi-label tagging")
def soft_f1_absent_class(fixed):
    """Recall tp / (tp + fn) of a tag that no sample of the batch carries: 0 / 0."""
    g = torch.Generator().manual_seed(41)
    mixing, batches, eps = torch.randn(8, 4, generator=g), [], 1e-6
    for _ in range(5):
        x = torch.randn(24, 8, generator=g)
        batches.append({"x": x, "tags": (x @ mixing > 0.5).float()})
    tagger = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def f1_per_tag(p, y):
        tp, fp, fn = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
        if fixed:
            return (2 * tp + eps) / (2 * tp + fp + fn + eps)
        precision = tp / (tp + fp)  # bug: soft_f1_absent_class
        recall = tp / (tp + fn)  # bug: soft_f1_absent_class
        return 2 * precision * recall / (precision + recall)  # bug: soft_f1_absent_class

    def loss(tagger, batch):
        return 1.0 - f1_per_tag(torch.sigmoid(tagger(batch["x"])), batch["tags"]).mean()

    optimizer = torch.optim.SGD(tagger.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)
    return TrainingSetup(model=tagger, loss=loss, optimizer=optimizer, batches=batches, lr_scheduler=scheduler)


@program("metric learning")
def triplet_sqrt_identical(fixed):
    """Euclidean distance of an anchor to an identical positive: sqrt at 0 makes inf * 0 in the backward pass."""
    g = torch.Generator().manual_seed(42)
    identity, batches = torch.rand(10, 20, generator=g), []
    for _ in range(5):
        who = torch.randint(0, 10, (16,), generator=g)
        other = (who + torch.randint(1, 10, (16,), generator=g)) % 10
        views = [(identity[k] + 0.1 * torch.rand(16, 20, generator=g)) / 1.1 for k in (who, who, other)]
        batches.append(tuple(views))
    encoder = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 6))

    def distance(a, b):
        squared = ((a - b) ** 2).sum(1)
        return torch.sqrt(squared + 1e-8) if fixed else torch.sqrt(squared)  # bug: triplet_sqrt_identical

    def triplet(encoder, batch):
        anchor, positive, negative = (encoder(view) for view in batch)
        hinge = F.relu(distance(anchor, positive) - distance(anchor, negative) + 0.5)
        return hinge.mean() + 1e-3 * distance(anchor, positive).mean()

    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    return TrainingSetup(model=encoder, loss=triplet, optimizer=optimizer, batches=batches)
