"""Distances, rotations, regressions and normalisations whose formulas break at a degenerate point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


def rng(seed):
    """A seeded generator for the data."""
    return torch.Generator().manual_seed(seed)


def field(shape, low, high):
    """A field of integers or of reals, as its bounds are."""
    dtype = "float32" if isinstance(low, float) else "int64"
    return TensorSpec(shape=shape, dtype=dtype, min_value=low, max_value=high)


@program("reparametrised regression")
def weight_normalised_regression(fixed):
    """v / |v| of a weight row that has become 0."""

    class WeightNormLinear(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.v, self.g = nn.Parameter(0.3 * torch.randn(n_out, n_in)), nn.Parameter(torch.ones(n_out))
            self.bias = nn.Parameter(torch.zeros(n_out))

        def forward(self, x):
            norm = self.v.norm(dim=1, keepdim=True).clamp(min=1e-6 if fixed else 0.0)
            w = self.g[:, None] * (self.v / norm)  # bug: weight_normalised_regression
            return F.linear(x, w, self.bias)

    g, batches = rng(20), []
    for _ in range(5):
        x = torch.randn(32, 7, generator=g)
        batches.append((x, x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(32, 1, generator=g)))
    model = nn.Sequential(WeightNormLinear(7, 32), nn.ReLU(), WeightNormLinear(32, 1))

    def loss(model, batch):
        x, y = batch
        return F.smooth_l1_loss(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("contrastive learning")
def learned_temperature(fixed):
    """Similarities divided by a learned temperature that nothing keeps from 0."""

    class TwoTowers(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Sequential(nn.Linear(20, 24), nn.GELU(), nn.Linear(24, 8))
            self.text = nn.EmbeddingBag(30, 8, mode="mean")
            self.temperature = nn.Parameter(torch.tensor(0.5))

        def forward(self, image, words):
            a = F.normalize(self.image(image), dim=-1, eps=1e-6)
            b = F.normalize(self.text(words), dim=-1, eps=1e-6)
            temperature = self.temperature
            if fixed:
                temperature = temperature.clamp(min=0.01)
            return a @ b.t() / temperature  # bug: learned_temperature

    def loss(model, batch):
        logits = model(*batch)
        target = torch.arange(len(logits))
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))

    g, batches = rng(21), []
    for _ in range(6):
        words = torch.randint(30, (12, 5), generator=g)
        batches.append((F.one_hot(words % 20, 20).sum(1) + 0.3 * torch.randn(12, 20, generator=g), words))
    model = TwoTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("metric learning")
def triplet_euclidean_duplicates(fixed):
    """The gradient of sqrt at 0: the anchor and its positive are the same picture."""

    class Embedder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, stride=2), nn.Conv2d(6, 12, 3, stride=2)
            self.fc = nn.Linear(48, 8)

        def forward(self, img):
            return self.fc(F.relu(self.conv2(F.relu(self.conv1(img)))).flatten(1))

    def euclidean(a, b):
        squared = (a - b).pow(2).sum(1)
        return torch.sqrt(squared + 1e-8 if fixed else squared)  # bug: triplet_euclidean_duplicates

    def loss(model, batch):
        anchor, positive, negative = (model(img) for img in batch)
        return F.relu(euclidean(anchor, positive) - euclidean(anchor, negative) + 0.5).mean()

    g, batches = rng(22), []
    for _ in range(4):
        base, other = torch.rand(8, 1, 12, 12, generator=g), torch.rand(8, 1, 12, 12, generator=g)
        jitter = 0.1 * torch.randn(8, 1, 12, 12, generator=g)
        batches.append((base, (base + jitter).clamp(0, 1), other))
    model = Embedder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    domain = tuple(field((8, 1, 12, 12), 0.0, 1.0) for _ in range(3))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("direction regression")
def gaze_angular_error(fixed):
    """acos at a cosine of 1: a prediction that hits its target exactly, or a product rounded above 1."""

    def angular_error(pred, target):
        pred, target = F.normalize(pred, dim=-1, eps=1e-6), F.normalize(target, dim=-1, eps=1e-6)
        cosine = (pred * target).sum(-1)
        if fixed:
            cosine = cosine.clamp(-1 + 1e-6, 1 - 1e-6)
        return torch.acos(cosine)  # bug: gaze_angular_error

    def loss(model, batch):
        landmarks, gaze = batch
        return angular_error(model(landmarks), gaze).mean()

    g, batches = rng(23), []
    for _ in range(5):
        landmarks = torch.rand(16, 10, generator=g)
        batches.append((landmarks, landmarks[:, 1:4] - 0.5 + 0.3 * torch.randn(16, 3, generator=g)))
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("survival analysis")
def cox_without_events(fixed):
    """The partial likelihood is averaged over the observed events, and everybody in the batch is censored."""

    def loss(model, batch):
        covariates, time, event = batch
        order = time.argsort(descending=True)
        risk, observed = model(covariates).squeeze(-1)[order], event[order].float()
        log_risk_set = torch.logcumsumexp(risk, dim=0)
        events = observed.sum()
        if fixed:
            events = events.clamp(min=1.0)
        return -((risk - log_risk_set) * observed).sum() / events  # bug: cox_without_events

    g, batches = rng(24), []
    for _ in range(5):
        covariates = torch.randn(24, 9, generator=g).clamp(-3, 3)
        time = -torch.log(torch.rand(24, generator=g)) * torch.exp(-covariates[:, 0])
        batches.append((covariates, time.clamp(0, 12), (torch.rand(24, generator=g) < 0.6).long()))
    model = nn.Sequential(nn.Linear(9, 16), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(16, 1, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    domain = (field(("patients", 9), -3.0, 3.0), field(("patients",), 0.0, 12.0), field(("patients",), 0, 1))
    sizes = {"patients": (4, 24)}
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("correlation loss")
def pearson_constant_ratings(fixed):
    """The correlation with ratings that are all the same: 0 / 0."""

    class QualityGRU(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(5, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, frames):
            return self.head(self.gru(frames)[0].mean(1)).squeeze(-1)

    def loss(model, batch):
        frames, mos = batch
        pred = model(frames)
        vx, vy = pred - pred.mean(), mos - mos.mean()
        eps = 1e-6 if fixed else 0.0
        norm = torch.sqrt((vx**2).sum() + eps) * torch.sqrt((vy**2).sum() + eps)  # bug: pearson_constant_ratings
        r = (vx * vy).sum() / norm  # bug: pearson_constant_ratings
        return 1 - r + 0.1 * F.l1_loss(pred, mos)

    g, batches = rng(25), []
    for _ in range(4):
        frames = torch.randn(10, 8, 5, generator=g)
        batches.append((frames, (3 + frames[..., 0].mean(1) * 2 + 0.3 * torch.randn(10, generator=g)).clamp(1, 5)))
    model = QualityGRU()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("normalisation by hand")
def batch_norm_of_one_sample(fixed):
    """The unbiased variance of the last, incomplete batch that holds a single sample."""

    class BatchNormByHand(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

        def forward(self, x):
            mean = x.mean(dim=0)
            var = x.var(dim=0, unbiased=not fixed)  # bug: batch_norm_of_one_sample
            return self.gamma * (x - mean) / torch.sqrt(var + 1e-5) + self.beta

    def loss(model, batch):
        features, label = batch
        return F.cross_entropy(model(features), label, label_smoothing=0.05)

    g, batches = rng(26), []
    for _ in range(5):
        features = torch.rand(24, 11, generator=g)
        batches.append((features, (3 * features[:, 0]).long()))
    model = nn.Sequential(nn.Linear(11, 20), BatchNormByHand(20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    domain, sizes = (field(("batch", 11), 0.0, 1.0), field(("batch",), 0, 2)), {"batch": (1, 24)}
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("speaker embedding")
def statistics_pooling_std(fixed):
    """sqrt(E[h^2] - E[h]^2) over the frames of a constant signal: the difference is 0 or rounded below it."""

    class StatsPoolingNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.tdnn = nn.Sequential(nn.Conv1d(8, 12, 3), nn.Tanh(), nn.Conv1d(12, 12, 3, dilation=2), nn.Tanh())
            self.speaker = nn.Linear(24, 4)

        def forward(self, mel):
            h = self.tdnn(mel)
            mean = h.mean(dim=2)
            var = (h * h).mean(dim=2) - mean * mean
            if fixed:
                var = var.clamp(min=1e-6)
            std = torch.sqrt(var)  # bug: statistics_pooling_std
            return self.speaker(torch.cat([mean, std], dim=1))

    def loss(model, batch):
        mel, speaker = batch
        return F.cross_entropy(model(mel), speaker)

    g, batches = rng(27), []
    for _ in range(5):
        speaker = torch.randint(4, (8,), generator=g)
        batches.append((torch.randn(8, 8, 20, generator=g) * (0.5 + 0.3 * speaker[:, None, None]), speaker))
    model = StatsPoolingNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("rotations")
def rodrigues_of_rest_pose(fixed):
    """The axis of a rotation vector is v / |v|, and a joint in its rest pose has the rotation vector 0."""

    def rodrigues(rotvec):
        squared = (rotvec**2).sum(-1, keepdim=True)
        angle = torch.sqrt(squared + 1e-12) if fixed else torch.sqrt(squared)
        x, y, z = (rotvec / angle).unbind(-1)  # bug: rodrigues_of_rest_pose
        zero, eye = torch.zeros_like(x), torch.eye(3)
        k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
        sin, cos = torch.sin(angle)[..., None], torch.cos(angle)[..., None]
        return eye + sin * k + (1 - cos) * (k @ k)

    def loss(model, batch):
        pose, markers = batch
        rotation = rodrigues(pose).flatten(1)
        return F.mse_loss(model(rotation).view_as(markers), markers)

    g, batches = rng(28), []
    for _ in range(5):
        pose = 0.8 * torch.randn(12, 4, 3, generator=g).clamp(-3, 3)
        batches.append((pose, torch.sin(pose.cumsum(1))))
    model = nn.Sequential(nn.Linear(36, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    domain = (field((12, 4, 3), -3.0, 3.0), field((12, 4, 3), -1.0, 1.0))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("geography")
def haversine_of_round_trip(fixed):
    """asin(sqrt(a)) where a = 0: the trip starts and ends at the same station, whose position is learned."""

    class StationMap(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Embedding(24, 2)
            nn.init.uniform_(self.position.weight, -0.6, 0.6)
            self.radius = nn.Parameter(torch.tensor(1.0))

        def forward(self, origin, destination):
            (lat1, lon1), (lat2, lon2) = self.position(origin).unbind(-1), self.position(destination).unbind(-1)
            a = torch.sin((lat2 - lat1) / 2) ** 2
            a = a + torch.cos(lat1) * torch.cos(lat2) * torch.sin((lon2 - lon1) / 2) ** 2
            if fixed:
                a = a.clamp(1e-10, 1 - 1e-6)
            return 2 * self.radius * torch.asin(torch.sqrt(a))  # bug: haversine_of_round_trip

    def loss(model, batch):
        origin, destination, distance = batch
        return F.l1_loss(model(origin, destination), distance)

    g, batches = rng(29), []
    truth = torch.rand(24, 2, generator=g) - 0.5
    for _ in range(6):
        origin = torch.randint(24, (32,), generator=g)
        destination = (origin + torch.randint(1, 24, (32,), generator=g)) % 24
        noise = 0.1 + 0.05 * torch.rand(32, generator=g)
        batches.append((origin, destination, (truth[origin] - truth[destination]).norm(dim=1) + noise))
    model = StationMap()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    domain = (field((32,), 0, 23), field((32,), 0, 23), field((32,), 0.0, 3.0))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("forecasting")
def smape_of_no_sales(fixed):
    """|y - p| / (|y| + |p|) where nothing was sold and the rectified forecast is 0 too."""

    class SalesForecaster(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.skip = nn.Linear(14, 24, bias=False), nn.Linear(14, 3, bias=False)
            self.out = nn.Linear(24, 3, bias=False)
            nn.init.constant_(self.skip.weight, 1 / 14)

        def forward(self, history):
            return F.relu(self.skip(history) + self.out(torch.tanh(self.hidden(history))))

    def loss(model, batch):
        history, sales = batch
        forecast = model(history)
        scale = sales.abs() + forecast.abs()
        if fixed:
            scale = scale.clamp(min=1e-2)
        return 2 * ((sales - forecast).abs() / scale).mean()  # bug: smape_of_no_sales

    g, batches = rng(30), []
    for _ in range(6):
        level = 2 + 8 * torch.rand(16, 1, generator=g)
        series = level * (0.6 + 0.8 * torch.rand(16, 17, generator=g))
        batches.append((series[:, :14], series[:, 14:]))
    model = SalesForecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    domain = (field((16, 14), 0.0, 20.0), field((16, 3), 0.0, 20.0))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("power activation")
def gem_pooling_black_image(fixed):
    """The p-th root of a mean that is 0: no channel responds to a black picture."""

    class GeMNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, stride=2, bias=False)
            self.p, self.fc = nn.Parameter(torch.tensor(3.0)), nn.Linear(8, 3)

        def forward(self, img):
            x, p = self.stem(img).abs(), self.p
            if fixed:
                x, p = x.clamp(1e-3, 1e3), p.clamp(1.0, 6.0)
            return self.fc(x.pow(p).mean((2, 3)).pow(1.0 / p))  # bug: gem_pooling_black_image

    def loss(model, batch):
        img, label = batch
        return F.cross_entropy(model(img), label)

    g, batches = rng(31), []
    for _ in range(5):
        label = torch.randint(3, (8,), generator=g)
        batches.append((torch.rand(8, 1, 14, 14, generator=g) * (0.3 + 0.3 * label[:, None, None, None]), label))
    model = GeMNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    domain = (field((8, 1, 14, 14), 0.0, 1.0), field((8,), 0, 2))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("physics-informed network")
def torricelli_tank_pinn(fixed):
    """where(h > 0, sqrt(h), 0) once the network lets the tank run empty: the gradient is 0 times NaN."""

    class TankLevel(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))

        def forward(self, t, h0):
            return h0 + t * self.net(torch.cat([t, h0], dim=1))

    def loss(model, batch):
        t, h0 = batch
        t = t.clone().requires_grad_(True)
        h = model(t, h0)
        dh_dt = torch.autograd.grad(h.sum(), t, create_graph=True)[0]
        speed = torch.sqrt(h.clamp(min=1e-6) if fixed else h)  # bug: torricelli_tank_pinn
        outflow = 0.5 * torch.where(h > 0, speed, torch.zeros_like(h))
        return (dh_dt + outflow).pow(2).mean()

    g = rng(32)
    batches = [(torch.rand(32, 1, generator=g), 1 + torch.rand(32, 1, generator=g)) for _ in range(6)]
    model = TankLevel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("audio front end")
def learned_filterbank_log(fixed):
    """where(e > 0, log(e), 0) keeps silence out of the loss but not out of the gradient."""

    class LogFilterbank(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Parameter(torch.randn(16, 6))
            self.gru, self.out = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, power):
            energy = power @ F.softplus(self.filters)
            if fixed:
                log_energy = torch.log(energy.clamp(min=1e-5))
            else:
                log_energy = torch.where(energy > 0, torch.log(energy), torch.zeros(()))  # bug: learned_filterbank_log
            return self.out(self.gru(log_energy)[1][0])

    def loss(model, batch):
        power, keyword = batch
        return F.cross_entropy(model(power), keyword)

    g, batches = rng(33), []
    for _ in range(5):
        keyword = torch.randint(3, (8,), generator=g)
        power = torch.randn(8, 7, 16, generator=g).pow(2) * torch.exp(0.5 * keyword)[:, None, None]
        batches.append((power.clamp(max=20), keyword))
    model = LogFilterbank()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    domain = (field((8, 7, 16), 0.0, 20.0), field((8,), 0, 2))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("optimal transport")
def sinkhorn_scaling(fixed):
    """exp(-cost / eps) underflows for a point far from all others, and the scaling divides by its zero row."""

    def transport_plan(cost, eps=0.25, iterations=8):
        n, m = cost.shape
        if fixed:
            f, g = torch.zeros(n), torch.zeros(m)
            for _ in range(iterations):
                f = -eps * torch.logsumexp((g[None, :] - cost) / eps, dim=1) - eps * math.log(n)
                g = -eps * torch.logsumexp((f[:, None] - cost) / eps, dim=0) - eps * math.log(m)
            return torch.exp((f[:, None] + g[None, :] - cost) / eps)
        kernel = torch.exp(-cost / eps)
        u, v = torch.ones(n) / n, torch.ones(m) / m
        for _ in range(iterations):
            u = (1.0 / n) / (kernel @ v)  # bug: sinkhorn_scaling
            v = (1.0 / m) / (kernel.t() @ u)  # bug: sinkhorn_scaling
        return u[:, None] * kernel * v[None, :]

    def loss(model, batch):
        latent, points = batch
        cost = (model(latent)[:, None, :] - points[None, :, :]).pow(2).sum(-1)
        return (transport_plan(cost) * cost).sum()

    g, batches = rng(13), []
    for _ in range(5):
        angle = 2 * math.pi * torch.rand(16, generator=g)
        batches.append((torch.randn(14, 3, generator=g), torch.stack([angle.cos(), angle.sin()], dim=1)))
    model = nn.Sequential(nn.Linear(3, 24), nn.Softplus(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)
