"""Classifiers with hand-written losses: softmax and sigmoid regressions, text and sequence models, ordinal heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


def _blobs(seed, batches, size, features, classes, low=-3.0, high=3.0):
    """Gaussian blobs, cut off at `low` and `high`."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=g)
    out = []
    for _ in range(batches):
        y = torch.randint(classes, (size,), generator=g)
        y[:classes] = torch.arange(classes)  # every class is seen in every batch
        x = (centres[y] + torch.randn(size, features, generator=g)).clamp(low, high)
        out.append((x, y))
    return out


@program("softmax regression")
def softmax_cross_entropy_by_hand(fixed):
    """The log of a softmax output that underflows to 0 for a confident mistake."""
    data = [((x + 3) / 6, y) for x, y in _blobs(1, 6, 32, 64, 10)]
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def cross_entropy(logits, y):
        if fixed:
            return F.nll_loss(torch.log_softmax(logits, dim=1), y)
        probs = torch.softmax(logits, dim=1)
        picked = probs.gather(1, y.unsqueeze(1)).squeeze(1)
        return -torch.log(picked).mean()  # bug: softmax_cross_entropy_by_hand

    return TrainingSetup(
        model=model,
        loss=lambda net, batch: cross_entropy(net(batch[0]), batch[1]),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        batches=data,
        sizes={"batch": (1, 64)},
        domain=(
            TensorSpec(shape=("batch", 64), dtype="float32", min_value=0.0, max_value=1.0),
            TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=9),
        ),
    )


@program("sigmoid regression")
def keras_style_clip(fixed):
    """Clipping to 1 - 1e-8, which is 1.0 in float32, so log(1 - p) is -inf for a saturated sigmoid."""
    g = torch.Generator().manual_seed(2)
    truth = torch.randn(20, 6, generator=g)
    xs = [torch.randn(24, 20, generator=g).clamp(-2.5, 2.5) for _ in range(5)]
    data = [(x, (x @ truth + torch.randn(24, 6, generator=g) * 3 > 0).float()) for x in xs]
    model = nn.Linear(20, 6)
    pos_weight = torch.tensor([1.0, 2.0, 1.0, 1.5, 1.0, 0.5])
    epsilon = 1e-6 if fixed else 1e-8

    def binary_crossentropy(target, output):
        output = torch.clamp(output, epsilon, 1.0 - epsilon)
        bce = pos_weight * target * torch.log(output)
        bce = bce + (1 - target) * torch.log(1 - output)  # bug: keras_style_clip
        return -bce.sum(dim=1).mean()

    def loss(net, batch):
        x, tags = batch
        return binary_crossentropy(tags, torch.sigmoid(net(x)))

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


class EventDetector(nn.Module):
    """A 1-d convolution net that says for every time step whether an event happens."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 8, 5, padding=2), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv1d(8, 1, 1)
        nn.init.constant_(self.head.bias, -1.0)  # prior of a rare class

    def forward(self, x):
        return self.head(self.body(x)).squeeze(1)


@program("focal loss")
def focal_loss_gamma_half(fixed):
    """(1 - p_t) ** 0.5 has an infinite slope where p_t is exactly 1 (backward only)."""
    g = torch.Generator().manual_seed(3)
    data = []
    for _ in range(5):
        y = (torch.rand(8, 40, generator=g) < 0.15).float()
        x = torch.randn(8, 2, 40, generator=g)
        x[:, 0] += 1.5 * y
        data.append((x.clamp(-4, 4), y))
    model = EventDetector()

    def loss(net, batch, alpha=0.75, gamma=0.5):
        x, y = batch
        logits = net(x)
        a_t = alpha * y + (1 - alpha) * (1 - y)
        if fixed:
            ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
            return (a_t * (1 - torch.exp(-ce)).clamp(min=1e-6) ** gamma * ce).mean()
        p = torch.sigmoid(logits)
        p_t = torch.where(y > 0.5, p, 1 - p)
        modulator = (1 - p_t) ** gamma  # bug: focal_loss_gamma_half
        return (-a_t * modulator * torch.log(p_t.clamp(min=1e-7))).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


@program("soft labels")
def annotator_votes_kl(fixed):
    """q * log q for an option that no annotator chose: 0 * -inf."""
    g = torch.Generator().manual_seed(4)
    blobs = _blobs(4, 5, 20, 12, 5)
    data = [(x, torch.softmax(2.5 * F.one_hot(y, 5) + torch.randn(20, 5, generator=g), 1)) for x, y in blobs]
    model = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 5))

    def kl_to_votes(votes, log_p):
        if fixed:
            return (torch.xlogy(votes, votes) - votes * log_p).sum(-1).mean()
        return (votes * (torch.log(votes) - log_p)).sum(-1).mean()  # bug: annotator_votes_kl

    return TrainingSetup(
        model=model,
        loss=lambda net, batch: kl_to_votes(batch[1], F.log_softmax(net(batch[0]), dim=-1)),
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
        batches=data,
        sizes={"batch": (2, 32)},
        domain=(
            TensorSpec(shape=("batch", 12), dtype="float32", min_value=-3.0, max_value=3.0),
            TensorSpec(shape=("batch", 5), dtype="float32", kind="probabilities"),
        ),
    )


@program("consistency regulariser")
def jensen_shannon_views(fixed):
    """p * log(p / m) of two views, where a class probability underflows in one of them or in both."""
    g = torch.Generator().manual_seed(5)
    data = []
    for x, y in _blobs(5, 4, 32, 10, 4):
        view = (x + 0.3 * torch.randn(x.shape, generator=g)).clamp(-3, 3)
        data.append({"weak": x, "strong": view, "label": y})
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def js_divergence(a, b):
        if fixed:
            log_a, log_b = F.log_softmax(a, 1), F.log_softmax(b, 1)
            log_m = torch.logaddexp(log_a, log_b) - 0.6931472
            return 0.5 * (log_a.exp() * (log_a - log_m) + log_b.exp() * (log_b - log_m)).sum(1).mean()
        p, q = torch.softmax(a, 1), torch.softmax(b, 1)
        m = 0.5 * (p + q)
        kl_pm = (p * torch.log(p / m)).sum(1)  # bug: jensen_shannon_views
        kl_qm = (q * torch.log(q / m)).sum(1)  # bug: jensen_shannon_views
        return 0.5 * (kl_pm + kl_qm).mean()

    def loss(net, batch):
        weak, strong = net(batch["weak"]), net(batch["strong"])
        return F.cross_entropy(weak, batch["label"]) + 2.0 * js_divergence(weak, strong)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


class ExpertPool(nn.Module):
    """Three experts, each of which sees a part of the features and gives a probability."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.experts = nn.ModuleList([nn.Linear(5, 1) for _ in range(3)])
        self.trust = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        p = torch.cat([torch.sigmoid(e(part)) for e, part in zip(self.experts, x.split(5, dim=1), strict=True)], dim=1)
        if self.fixed:
            log_odds = torch.logit(p, eps=1e-6)
        else:
            log_odds = torch.log(p / (1 - p))  # bug: log_odds_pooling
        return (torch.softmax(self.trust, 0) * log_odds).sum(dim=1) * 3


@program("log-odds ensemble")
def log_odds_pooling(fixed):
    """log(p / (1 - p)) of an expert that is certain: division by 0, or the log of 0."""
    data = [(x, y.float()) for x, y in _blobs(6, 6, 32, 15, 2)]
    model = ExpertPool(fixed)
    return TrainingSetup(
        model=model,
        loss=lambda net, batch: F.binary_cross_entropy_with_logits(net(batch[0]), batch[1]),
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3),
        batches=data,
    )


class CharModel(nn.Module):
    """A character language model."""

    def __init__(self, vocab=14):
        super().__init__()
        self.embed = nn.Embedding(vocab, 8)
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, vocab)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


@program("language model")
def perplexity_objective(fixed):
    """exp of a sentence's mean cross entropy overflows above 88 nats."""
    g = torch.Generator().manual_seed(7)
    data = []
    for _ in range(4):
        start = torch.randint(14, (8, 1), generator=g)
        tokens = (start + 3 * torch.arange(10) + torch.randint(2, (8, 10), generator=g)) % 14
        data.append((tokens, torch.randint(4, 11, (8,), generator=g)))
    model = CharModel()

    def loss(net, batch):
        tokens, lengths = batch
        logits = net(tokens[:, :-1])
        ce = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        keep = torch.arange(1, tokens.shape[1]) < lengths.unsqueeze(1)
        nll = (ce * keep).sum(1) / keep.sum(1).clamp(min=1)
        if fixed:
            return torch.exp(nll.clamp(max=15.0)).mean()
        return torch.exp(nll).mean()  # bug: perplexity_objective

    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        batches=data,
        sizes={"batch": (1, 16)},
        domain=(
            TensorSpec(shape=("batch", 10), dtype="int64", min_value=0, max_value=13),
            TensorSpec(shape=("batch",), dtype="int64", min_value=2, max_value=10, kind="lengths"),
        ),
    )


@program("class-balanced loss")
def effective_number_weights(fixed):
    """(1 - beta) / (1 - beta ** n) is infinite for a class that is absent from the batch."""
    g = torch.Generator().manual_seed(8)
    data = []
    for _ in range(6):
        y = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 30, replacement=True, generator=g)
        y[:3] = torch.tensor([0, 1, 2])
        tokens = (torch.randint(12, (30, 9), generator=g) + 4 * y.unsqueeze(1)) % 24
        data.append((tokens, y))
    model = nn.Sequential(nn.EmbeddingBag(24, 12, mode="mean"), nn.Linear(12, 3))

    def class_weights(y, beta=0.99):
        samples_per_class = torch.bincount(y, minlength=3).float()
        if fixed:
            samples_per_class = samples_per_class.clamp(min=1)
        effective_num = 1.0 - beta**samples_per_class
        weights = (1.0 - beta) / effective_num  # bug: effective_number_weights
        return weights / weights.sum() * 3  # bug: effective_number_weights

    def loss(net, batch):
        tokens, y = batch
        return F.cross_entropy(net(tokens), y, weight=class_weights(y))

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


@program("F1 loss")
def soft_macro_f1(fixed):
    """The recall of a label that nothing in the batch carries: 0 / 0."""
    g = torch.Generator().manual_seed(9)
    truth = torch.randn(16, 4, generator=g)
    xs = [torch.rand(24, 16, generator=g) * 2 - 1 for _ in range(5)]
    data = [(x, (x @ truth > 0).float()) for x in xs]
    model = nn.Sequential(nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4), nn.Sigmoid())

    def loss(net, batch):
        x, y = batch
        y_hat = net(x)
        tp = (y_hat * y).sum(0)
        fp = (y_hat * (1 - y)).sum(0)
        fn = ((1 - y_hat) * y).sum(0)
        if fixed:
            f1 = 2 * tp / (2 * tp + fp + fn + 1e-6)
        else:
            precision = tp / (tp + fp)  # bug: soft_macro_f1
            recall = tp / (tp + fn)  # bug: soft_macro_f1
            f1 = 2 * precision * recall / (precision + recall)  # bug: soft_macro_f1
        return 1 - f1.mean()

    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        batches=data,
        sizes={"batch": (4, 48)},
        domain=(
            TensorSpec(shape=("batch", 16), dtype="float32", min_value=-1.0, max_value=1.0),
            TensorSpec(shape=("batch", 4), dtype="float32", min_value=0.0, max_value=1.0),
        ),
    )


@program("MCC loss")
def matthews_correlation(fixed):
    """A batch of one class makes the Matthews coefficient's denominator 0."""
    data = _blobs(10, 5, 40, 8, 2)
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 1))

    def mcc(prob, y):
        tp, tn = (prob * y).sum(), ((1 - prob) * (1 - y)).sum()
        fp, fn = (prob * (1 - y)).sum(), ((1 - prob) * y).sum()
        numerator = tp * tn - fp * fn
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        if fixed:
            return numerator / torch.sqrt(product + 1e-4)
        denominator = torch.sqrt(product)  # bug: matthews_correlation
        return numerator / denominator  # bug: matthews_correlation

    return TrainingSetup(
        model=model,
        loss=lambda net, batch: 1 - mcc(torch.sigmoid(net(batch[0]).squeeze(1)), batch[1].float()),
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3),
        batches=data,
        sizes={"batch": (2, 64)},
        domain=(
            TensorSpec(shape=("batch", 8), dtype="float32", min_value=-3.0, max_value=3.0),
            TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=1),
        ),
    )


class CosineClassifier(nn.Module):
    """Class scores are scaled cosines between a feature vector and a learned prototype."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.encoder = nn.Sequential(nn.Linear(10, 24), nn.ELU(), nn.Linear(24, 12))
        self.prototypes = nn.Parameter(torch.randn(6, 12) * 0.3)

    def forward(self, x):
        z = F.normalize(self.encoder(x), dim=1, eps=1e-3)
        if self.fixed:
            w = self.prototypes / self.prototypes.norm(dim=1, keepdim=True).clamp(min=1e-3)
        else:
            w = self.prototypes / self.prototypes.norm(dim=1, keepdim=True)  # bug: cosine_prototypes
        return 10.0 * z @ w.t()


@program("cosine classifier")
def cosine_prototypes(fixed):
    """A prototype that is exactly zero (pruned, or zero-initialised) is divided by its norm."""
    model = CosineClassifier(fixed)
    return TrainingSetup(
        model=model,
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1], label_smoothing=0.1),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        batches=_blobs(11, 6, 30, 10, 6),
        clip_grad_norm=5.0,
    )


class ResidualMLP(nn.Module):
    """Two residual blocks."""

    def __init__(self, width=20):
        super().__init__()
        self.stem = nn.Linear(9, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2)])
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return torch.softmax(self.out(h), dim=1)


@program("noisy labels")
def generalized_cross_entropy(fixed):
    """The slope of p ** q is infinite where the label's probability underflows to 0 (backward only)."""
    g = torch.Generator().manual_seed(12)
    data = []
    for x, y in _blobs(12, 5, 32, 9, 5):
        flip = torch.rand(32, generator=g) < 0.2
        data.append((x, torch.where(flip, torch.randint(5, (32,), generator=g), y)))
    model = ResidualMLP()

    def loss(net, batch, q=0.7):
        x, y = batch
        p_y = net(x)[torch.arange(len(y)), y]
        if fixed:
            p_y = p_y.clamp(min=1e-6)
        return ((1 - p_y**q) / q).mean()  # bug: generalized_cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


@program("evidential classifier")
def evidence_by_exp(fixed):
    """Evidence exp(logit) overflows, and the difference of two digammas is inf - inf."""
    model = nn.Sequential(nn.Linear(14, 20), nn.LeakyReLU(0.1), nn.Linear(20, 3))

    def loss(net, batch):
        x, y = batch
        logits = net(x)
        if fixed:
            evidence = torch.exp(logits.clamp(-10, 10))
        else:
            evidence = torch.exp(logits)  # bug: evidence_by_exp
        alpha = evidence + 1
        strength = alpha.sum(dim=1, keepdim=True)
        target = F.one_hot(y, 3).float()
        fit = (target * (torch.digamma(strength) - torch.digamma(alpha))).sum(1)
        misleading = ((1 - target) * evidence).sum(1) / strength.squeeze(1)
        return (fit + 0.1 * misleading).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=_blobs(13, 6, 30, 14, 3))


class CumulativeLink(nn.Module):
    """Ordinal regression: one score, four increasing thresholds."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(7, 12), nn.Softplus(), nn.Linear(12, 1))
        self.first = nn.Parameter(torch.tensor([-1.5]))
        self.steps = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        thresholds = torch.cat([self.first, self.first + torch.cumsum(F.softplus(self.steps), 0)])
        below = torch.sigmoid(thresholds - self.score(x))
        edge = torch.ones(len(x), 1)
        return torch.cat([below, edge], 1) - torch.cat([0 * edge, below], 1)


@program("ordinal regression")
def cumulative_link_likelihood(fixed):
    """The difference of two saturated sigmoids is exactly 0, and its log is taken."""
    g = torch.Generator().manual_seed(14)
    slope = torch.randn(7, generator=g)
    xs = [torch.rand(28, 7, generator=g) * 4 - 2 for _ in range(5)]
    cuts = torch.tensor([-2.0, -0.7, 0.7, 2.0])
    data = [(x, torch.bucketize(x @ slope + torch.randn(28, generator=g), cuts)) for x in xs]
    model = CumulativeLink()

    def loss(net, batch):
        x, grade = batch
        likelihood = net(x).gather(1, grade[:, None])
        if fixed:
            likelihood = likelihood.clamp(min=1e-7)
        return -torch.log(likelihood).mean()  # bug: cumulative_link_likelihood

    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        batches=data,
        sizes={"batch": (1, 40)},
        domain=(
            TensorSpec(shape=("batch", 7), dtype="float32", min_value=-2.0, max_value=2.0),
            TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=4),
        ),
    )
