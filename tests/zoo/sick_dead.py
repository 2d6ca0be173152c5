"""Layers whose units are all switched off, or all saturated, for every row of the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init
from torch.optim.lr_scheduler import LambdaLR

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, images, mse, regression, series

DEAD = ("dead-unit",)


def _classifier():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def _classify(optimizer, model):
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="gradient_bounds", kinds=DEAD, says=("bias",), module="2", lr=0.01)
def bias_of_minus_ten(optimizer):
    """A bias of -10 where 0.1 was meant: no unit of the second ReLU is ever on."""
    model = _classifier()
    init.constant_(model[2].bias, -10.0)
    return _classify(optimizer, model)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def bias_of_minus_ten_fixed(optimizer):
    """A bias of 0.1."""
    model = _classifier()
    init.constant_(model[2].bias, 0.1)
    return _classify(optimizer, model)


class Regressor(nn.Module):
    """Two functional ReLU layers and a linear one."""

    def __init__(self, width=48):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.second(x))
        return self.last(x)


def _scheduled(optimizer, factor):
    model = Regressor()
    made = optimizer(model.parameters())
    batches = [(x, y + 20) for x, y in regression()]
    return TrainingSetup(model=model, loss=mse, optimizer=made, lr_scheduler=LambdaLR(made, factor), batches=batches)


@sick(check="gradient_bounds", kinds=DEAD, says=("learning rate",), module="second", lr=0.01, optimizers=("adam",))
def huge_first_steps(optimizer):
    """The warm-up is upside down: five steps of three hundred times the rate kill a layer for good."""
    return _scheduled(optimizer, lambda step: 300.0 if step < 5 else 1.0)


@healthy(lr=0.05, optimizers=("adam",), precisions=("32-true",))
def huge_first_steps_fixed(optimizer):
    """The warm-up rises."""
    return _scheduled(optimizer, lambda step: min(1.0, (step + 1) / 5))


class Prototypes(nn.Module):
    """Similarity to learned prototypes; the sign decides whether ReLU lets any through."""

    def __init__(self, sign, count=24):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(count, 16))
        self.radius = nn.Parameter(torch.full((count,), 0.0 if sign < 0 else 40.0))
        self.act = nn.ReLU()
        self.sign = sign

    def forward(self, x):
        distance = (x[:, None] - self.centres).pow(2).sum(-1)
        return self.act(self.radius - distance) / 10


def _prototypes(optimizer, sign):
    model = nn.Sequential()
    model.add_module("prototypes", Prototypes(sign))
    model.add_module("classify", nn.Linear(24, 4))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="gradient_bounds", kinds=DEAD, module="prototypes", lr=0.02)
def negative_distances_into_relu(optimizer):
    """ReLU of minus a distance is zero for every row."""
    return _prototypes(optimizer, -1)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def negative_distances_into_relu_fixed(optimizer):
    """ReLU of a radius minus the distance."""
    return _prototypes(optimizer, 1)


class TwoStage(nn.Module):
    """A first guess, squashed, that a second stage refines."""

    def __init__(self, squash):
        super().__init__()
        self.guess = nn.Linear(16, 12)
        self.squash = squash
        self.refine = nn.Linear(12, 4)

    def forward(self, x):
        return self.refine(F.relu(self.squash(self.guess(x), dim=-1)))


@sick(check="gradient_bounds", kinds=DEAD, says=("relu",), lr=0.02)
def relu_of_log_softmax(optimizer):
    """ReLU after log_softmax, which is never positive."""
    return _classify(optimizer, TwoStage(F.log_softmax))


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def relu_of_log_softmax_fixed(optimizer):
    """ReLU after layer normalisation."""
    return _classify(optimizer, TwoStage(lambda x, dim: F.layer_norm(x, x.shape[dim:])))


class ConvNormNet(nn.Module):
    """Convolution, batch norm and ReLU, three times."""

    def __init__(self):
        super().__init__()
        self.layer1 = self._unit(3, 12)
        self.layer2 = self._unit(12, 12)
        self.layer3 = self._unit(12, 12)
        self.fc = nn.Linear(12, 4)

    @staticmethod
    def _unit(n_in, n_out):
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(True))

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@sick(check="gradient_bounds", kinds=DEAD, module="layer2", lr=0.01)
def shift_of_the_norm(optimizer):
    """A batch norm's shift of -8 pushes what follows below zero, whatever comes in."""
    model = ConvNormNet()
    init.constant_(model.layer2[1].bias, -8.0)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def shift_of_the_norm_fixed(optimizer):
    """A shift of zero."""
    model = ConvNormNet()
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


class Pixels(nn.Module):
    """Dense layers over pixel values."""

    def __init__(self, low, high):
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 4)
        init.uniform_(self.fc1.weight, low, high)

    def forward(self, x):
        return self.fc2(self.fc1(self.flatten(x)).relu())


def _pixels(optimizer, low, high, shift=0.0):
    model = Pixels(low, high)
    batches = [(torch.sigmoid(x) - shift, y) for x, y in images(channels=1)]
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=batches)


@sick(check="gradient_bounds", kinds=DEAD, module="fc1", lr=0.02)
def negative_weights_on_pixels(optimizer):
    """U(-0.2, 0) over positive inputs: every sum is negative."""
    return _pixels(optimizer, -0.2, 0.0)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def negative_weights_on_pixels_fixed(optimizer):
    """U(-0.125, 0.125) over centred pixels."""
    return _pixels(optimizer, -0.125, 0.125, shift=0.5)


class Highway(nn.Module):
    """A highway layer: g * f(x) + (1 - g) * x."""

    def __init__(self, dim, bias):
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        init.constant_(self.gate.bias, bias)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return g * F.relu(self.transform(x)) + (1 - g) * x


def _highway(optimizer, bias):
    model = nn.Sequential(nn.Linear(16, 24), Highway(24, bias), Highway(24, bias), nn.Linear(24, 1))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@sick(check="gradient_bounds", kinds=("dead-unit", "vanishing-gradient"), says=("sigmoid",), lr=0.02)
def closed_gates(optimizer):
    """Gate biases of -20 instead of -2: the gates are shut and get no gradient."""
    return _highway(optimizer, -20.0)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def closed_gates_fixed(optimizer):
    """Gate biases of -2."""
    return _highway(optimizer, -2.0)


class SqueezeExcite(nn.Module):
    """Channel weights from the mean of each channel."""

    def __init__(self, channels, gain):
        super().__init__()
        self.reduce = nn.Linear(channels, 8)
        self.expand = nn.Linear(8, channels)
        self.gain = gain

    def forward(self, x):
        weights = self.expand(F.silu(self.reduce(x.mean((2, 3)))))
        return x * torch.sigmoid(self.gain * weights)[:, :, None, None]


def _squeeze(optimizer, gain, bias):
    conv, se = nn.Conv2d(3, 16, 3, padding=1), SqueezeExcite(16, gain)
    init.constant_(se.expand.bias, bias)
    model = nn.Sequential(conv, nn.ReLU(), se, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@sick(check="gradient_bounds", kinds=("dead-unit", "vanishing-gradient"), says=("saturat",), module="2", lr=0.02)
def saturated_excitation(optimizer):
    """The gate's input has a factor of 100: every sigmoid is at one."""
    return _squeeze(optimizer, 100.0, 1.0)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def saturated_excitation_fixed(optimizer):
    """No factor."""
    return _squeeze(optimizer, 1.0, 0.0)


class ClippedRNN(nn.Module):
    """A recurrence with hardtanh and an input gain."""

    def __init__(self, gain, hidden=24):
        super().__init__()
        self.inp = nn.Linear(8, hidden)
        self.rec = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)
        init.orthogonal_(self.rec.weight)
        self.gain = gain

    def forward(self, x):
        h = F.hardtanh(self.gain * self.inp(x[:, 0]))
        for step in x[:, 1:].unbind(1):
            h = F.hardtanh(self.gain * self.inp(step) + self.rec(h))
        return self.out(h)


def _clipped(optimizer, gain):
    model = ClippedRNN(gain)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


@sick(check="gradient_bounds", kinds=("dead-unit", "vanishing-gradient"), says=("saturat",), lr=0.02)
def saturated_hardtanh(optimizer):
    """An input gain of 1e5 keeps hardtanh at its ends, where its slope is exactly zero."""
    return _clipped(optimizer, 1e5)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def saturated_hardtanh_fixed(optimizer):
    """A gain of one."""
    return _clipped(optimizer, 1.0)
