"""Gradients that grow step after step, finite as yet: rates too large, wrong signs, objectives without a floor."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init
from torch.optim.lr_scheduler import LambdaLR

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, mse, regression, series


class LinearRegression(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 1)

    def forward(self, x):
        return self.fc(x)


@sick(check="gradient_bounds", kinds=("exploding-gradient",), says=("learning rate",), lr=0.95)
def rate_past_the_edge(optimizer):
    """Gradient descent on a quadratic with a rate above 2 / curvature."""
    model = LinearRegression(8)
    return TrainingSetup(
        model=model, loss=mse, optimizer=optimizer(model.parameters(), momentum=0.0), batches=regression(8, rows=64)
    )


@healthy(lr=0.1, optimizers=("sgd", "adam"), precisions=("32-true",))
def rate_past_the_edge_fixed(optimizer):
    """A rate below it."""
    model = LinearRegression(8)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(8, rows=64))


class Probe(nn.Module):
    """Frozen tanh features and a head that learns."""

    def __init__(self, width=64):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1)
        for parameter in self.features.parameters():
            parameter.requires_grad = False
        init.normal_(self.features[0].weight, std=0.25)
        init.kaiming_normal_(self.features[2].weight, nonlinearity="relu")

    def forward(self, x):
        return self.head(self.features(x))


def _probe(optimizer, **overrides):
    model = Probe()
    return TrainingSetup(
        model=model, loss=mse, optimizer=optimizer(model.head.parameters(), **overrides), batches=regression()
    )


@sick(check="gradient_bounds", kinds=("exploding-gradient",), says=("learning rate",), module="head", lr=0.14)
def probe_of_too_large_a_rate(optimizer):
    """Sixty-four features that are not normalised make the curvature large; the head oscillates and grows."""
    return _probe(optimizer, momentum=0.0)


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def probe_of_too_large_a_rate_fixed(optimizer):
    """A tenth of the rate."""
    return _probe(optimizer)


def ascending(model, batch):
    """The negative of what should fall."""
    x, y = batch
    return -((model(x) - y) ** 2).mean()


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.01)
def error_ascended(optimizer):
    """A minus in front of the squared error."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    return TrainingSetup(
        model=model, loss=ascending, optimizer=optimizer(model.parameters(), momentum=0.5), batches=regression()
    )


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def error_ascended_fixed(optimizer):
    """The squared error."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


class Critic(nn.Module):
    """Scores samples; a Wasserstein critic."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(12, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1, bias=False)
        )

    def forward(self, x):
        return self.main(x)


def wasserstein(model, batch):
    """E[critic(fake)] - E[critic(real)]."""
    real, fake = batch
    return model(fake).mean() - model(real).mean()


def wasserstein_with_penalty(model, batch):
    """The same with the gradient penalty."""
    real, fake = batch
    share = torch.rand(real.shape[0], 1, dtype=real.dtype)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return wasserstein(model, batch) + 10 * ((slope.pow(2).sum(1) + 1e-12).sqrt() - 1).pow(2).mean()


def _real_and_fake(count=4, rows=32):
    shift = torch.randn(12)
    return [(torch.randn(rows, 12) * 0.5 + shift, torch.randn(rows, 12)) for _ in range(count)]


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.012)
def critic_without_lipschitz(optimizer):
    """A Wasserstein critic with neither weight clipping nor a gradient penalty."""
    model = Critic()
    return TrainingSetup(
        model=model, loss=wasserstein, optimizer=optimizer(model.parameters(), momentum=0.0), batches=_real_and_fake()
    )


@healthy(lr=0.01, optimizers=("adam",), precisions=("32-true",))
def critic_without_lipschitz_fixed(optimizer):
    """With a gradient penalty."""
    model = Critic()
    return TrainingSetup(
        model=model,
        loss=wasserstein_with_penalty,
        optimizer=optimizer(model.parameters()),
        batches=_real_and_fake(),
    )


def penalised(sign):
    """Squared error plus or minus an L2 penalty."""

    def loss(model, batch):
        x, y = batch
        penalty = sum((parameter**2).sum() for parameter in model.parameters())
        return F.mse_loss(model(x), y) + sign * penalty

    return loss


def _decayed(optimizer, loss):
    model = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 1))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=regression())


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.01)
def weight_decay_of_the_wrong_sign(optimizer):
    """The L2 penalty is subtracted: the weights grow, and the error's gradient with them."""
    return _decayed(optimizer, penalised(-0.5))


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def weight_decay_of_the_wrong_sign_fixed(optimizer):
    """The penalty is added."""
    return _decayed(optimizer, penalised(1e-3))


class EchoRNN(nn.Module):
    """ReLU recurrence with identity start."""

    def __init__(self, hidden=16):
        super().__init__()
        self.inp = nn.Linear(8, hidden)
        self.rec = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)
        init.eye_(self.rec.weight)
        self.rec.weight.data *= 0.9

    def forward(self, x):
        h = torch.relu(self.inp(x[:, 0]))
        for step in x[:, 1:].unbind(1):
            h = torch.relu(self.inp(step) + self.rec(h))
        return self.out(h)


def growing(model, batch):
    """Targets a hundred times the input's scale: the recurrence has to sharpen."""
    x, y = batch
    return F.mse_loss(model(x), 100 + y) / 100


@healthy(lr=0.01, optimizers=("adam",), precisions=("32-true",))
def recurrence_that_sharpens_fixed(optimizer):
    """Targets in range."""
    model = EchoRNN()
    return TrainingSetup(
        model=model,
        loss=mse,
        optimizer=optimizer(model.parameters()),
        clip_grad_norm=1.0,
        batches=series(length=20),
    )


def _warming(optimizer, factor):
    model = nn.Linear(10, 1)
    made = optimizer(model.parameters(), momentum=0.0)
    schedule = LambdaLR(made, factor)
    return TrainingSetup(model=model, loss=mse, optimizer=made, lr_scheduler=schedule, batches=regression(10, rows=64))


@sick(check="gradient_bounds", kinds=("exploding-gradient",), says=("learning rate",), lr=0.01)
def warm_up_without_end(optimizer):
    """A rate-range test left in: the rate grows by 12 % a step past the stable one."""
    return _warming(optimizer, lambda step: 1.12**step)


@healthy(lr=0.2, optimizers=("sgd",), precisions=("32-true",))
def warm_up_without_end_fixed(optimizer):
    """Ten steps of warm-up, then constant."""
    return _warming(optimizer, lambda step: min(1.0, (step + 1) / 10))


def _accumulating(optimizer, *, clears):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    made = optimizer(model.parameters())

    def training_step(batch):
        if clears:
            made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        made.step()
        return loss

    return TrainingSetup(model=model, loss=mse, optimizer=made, training_step=training_step, batches=regression())


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.005)
def gradients_never_cleared(optimizer):
    """No zero_grad: every step adds to all gradients before it."""
    return _accumulating(optimizer, clears=False)


@healthy(lr=0.02, optimizers=("sgd",), precisions=("32-true",))
def gradients_never_cleared_fixed(optimizer):
    """zero_grad comes first."""
    return _accumulating(optimizer, clears=True)


class Embedder(nn.Module):
    """A learned linear metric."""

    def __init__(self):
        super().__init__()
        self.metric = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.metric(x)


def _distances(model, batch):
    x, y = batch
    anchor, other = model(x), model(x.roll(1, 0))
    same = (y == y.roll(1, 0)).to(anchor.dtype)
    return (anchor - other).pow(2).sum(1), same


def contrast_without_margin(model, batch):
    """Distances of equals minus distances of others, without a floor."""
    distance, same = _distances(model, batch)
    return (same * distance - (1 - same) * distance).mean()


def contrast_with_margin(model, batch):
    """Others are pushed apart only up to the margin."""
    distance, same = _distances(model, batch)
    return (same * distance + (1 - same) * F.relu(1 - (distance + 1e-6).sqrt()).pow(2)).mean()


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.015)
def contrast_without_a_margin(optimizer):
    """A contrastive loss without margin pushes the embeddings apart for ever."""
    model = Embedder()
    return TrainingSetup(
        model=model,
        loss=contrast_without_margin,
        optimizer=optimizer(model.parameters(), momentum=0.5),
        batches=classes(16, 3),
    )


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def contrast_without_a_margin_fixed(optimizer):
    """With a margin."""
    model = Embedder()
    return TrainingSetup(
        model=model,
        loss=contrast_with_margin,
        optimizer=optimizer(model.parameters()),
        batches=classes(16, 3),
    )


class TanhTower(nn.Module):
    """Tanh layers with a free gain; large ones are chaotic: the gradient grows towards the input."""

    def __init__(self, gain, depth=24, width=64):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 4)
        for layer in [self.first, *self.layers, self.last]:
            init.xavier_normal_(layer.weight, gain=gain if layer in self.layers else 1.0)
            init.zeros_(layer.bias)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for layer in self.layers:
            x = layer(x).tanh()
        return self.last(x)


def _tanh_tower(optimizer, gain):
    model = TanhTower(gain)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="gradient_bounds", kinds=("exploding-gradient",), module="", lr=0.001, optimizers=("adam",))
def chaotic_tanh_tower(optimizer):
    """Tanh layers of gain 3: bounded forward, growing backward, the first layer has the largest gradient."""
    return _tanh_tower(optimizer, 3.0)


@healthy(lr=0.005, optimizers=("adam", "adamw"), precisions=("32-true",))
def chaotic_tanh_tower_fixed(optimizer):
    """At the edge of chaos."""
    return _tanh_tower(optimizer, 1.0)


class TanhRNN(nn.Module):
    def __init__(self, gain, hidden=48):
        super().__init__()
        self.rnn = nn.RNN(8, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 1)
        init.orthogonal_(self.rnn.weight_hh_l0, gain=gain)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def _tanh_rnn(optimizer, gain):
    model = TanhRNN(gain)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=40))


@sick(check="gradient_bounds", kinds=("exploding-gradient",), lr=0.001, optimizers=("adam",))
def chaotic_rnn(optimizer):
    """A tanh recurrence of gain 3 over forty steps: the gradient grows back through time."""
    return _tanh_rnn(optimizer, 3.0)


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def chaotic_rnn_fixed(optimizer):
    """An orthogonal recurrence of gain one."""
    return _tanh_rnn(optimizer, 1.0)
