"""Weights that are nearly nothing, all the same, or never written: no signal, no symmetry breaking, or NaN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, images, mse, regression, series


def _tanh_mlp(width=48):
    return nn.Sequential(
        nn.Linear(16, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 1),
    )


@sick(check="init_scale", kinds=("init-scale",), lr=0.05)
def tiny_hidden_normals(optimizer):
    """N(0, 1e-3) in every hidden layer of a tanh network."""
    model = _tanh_mlp()
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            init.normal_(layer.weight, std=1e-3)
            init.zeros_(layer.bias)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.05, precisions=("32-true",))
def tiny_hidden_normals_fixed(optimizer):
    """Xavier with tanh's gain."""
    model = _tanh_mlp()
    for layer in model:
        if isinstance(layer, nn.Linear):
            init.xavier_normal_(layer.weight, gain=init.calculate_gain("tanh"))
            init.zeros_(layer.bias)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


class SmallConvNet(nn.Module):
    def __init__(self, std=None):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 20, 3, padding=1) for c in (3, 20, 20, 20))
        self.fc = nn.Linear(20, 4)
        for conv in self.convs:
            if std is None:
                init.kaiming_normal_(conv.weight, nonlinearity="relu")
            else:
                init.normal_(conv.weight, 0, std)
            init.zeros_(conv.bias)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.mean((2, 3)))


@sick(check="init_scale", kinds=("init-scale",), module="convs", lr=0.05)
def tiny_convs(optimizer):
    """N(0, 1e-4) in every convolution."""
    model = SmallConvNet(std=1e-4)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def tiny_convs_fixed(optimizer):
    """He's normal."""
    model = SmallConvNet()
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


class FromScratch(nn.Module):
    """A four-layer network as in courses: matrices, biases and relu by hand."""

    def __init__(self, n_in=20, hidden=64, n_out=5, gain=None):
        super().__init__()

        def scale(fan_in):
            return 0.001 if gain is None else gain / math.sqrt(fan_in)

        self.w1 = nn.Parameter(torch.randn(n_in, hidden) * scale(n_in))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.randn(hidden, hidden) * scale(hidden))
        self.b2 = nn.Parameter(torch.zeros(hidden))
        self.w3 = nn.Parameter(torch.randn(hidden, hidden) * scale(hidden))
        self.b3 = nn.Parameter(torch.zeros(hidden))
        self.w4 = nn.Parameter(torch.randn(hidden, n_out) * scale(hidden))
        self.b4 = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        h = (x @ self.w1 + self.b1).clamp(min=0)
        h = (h @ self.w2 + self.b2).clamp(min=0)
        h = (h @ self.w3 + self.b3).clamp(min=0)
        return h @ self.w4 + self.b4


@sick(check="init_scale", kinds=("init-scale",), lr=0.05)
def randn_times_a_thousandth(optimizer):
    """`torch.randn(...) * 0.001` for all weights of a network written by hand."""
    model = FromScratch()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


@healthy(lr=0.02)
def randn_times_a_thousandth_fixed(optimizer):
    """The same with sqrt(2 / fan_in)."""
    model = FromScratch(gain=math.sqrt(2))
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


class GRUClassifier(nn.Module):
    def __init__(self, hidden=40):
        super().__init__()
        self.encoder = nn.GRU(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        _, h = self.encoder(x)
        return self.head(h[-1])


@sick(check="init_scale", kinds=("init-scale",), module="encoder", lr=0.05)
def tiny_gru(optimizer):
    """`uniform_(-1e-4, 1e-4)` over a GRU."""
    model = GRUClassifier()
    for parameter in model.encoder.parameters():
        init.uniform_(parameter, -1e-4, 1e-4)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=("32-true",))
def tiny_gru_fixed(optimizer):
    """`uniform_` with 1/sqrt(hidden)."""
    model = GRUClassifier()
    for parameter in model.encoder.parameters():
        init.uniform_(parameter, -(40**-0.5), 40**-0.5)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


class Bottleneck(nn.Module):
    """Encoder, code and decoder; the code layer is initialised apart."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(32, 64), nn.LeakyReLU(0.1))
        self.code = nn.Linear(64, 24)
        self.decode = nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(24, 64), nn.LeakyReLU(0.1), nn.Linear(64, 1))

    def forward(self, x):
        return self.decode(self.code(self.encode(x)))


@sick(check="init_scale", kinds=("init-scale",), module="code", lr=0.02)
def tiny_code_layer(optimizer):
    """One layer of U(-1e-3, 1e-3) among defaults."""
    model = Bottleneck()
    init.uniform_(model.code.weight, -0.001, 0.001)
    init.zeros_(model.code.bias)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(32))


@healthy(lr=0.02, precisions=("32-true",))
def tiny_code_layer_fixed(optimizer):
    """The code layer is Xavier's."""
    model = Bottleneck()
    init.xavier_uniform_(model.code.weight)
    init.zeros_(model.code.bias)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(32))


def _relu_mlp():
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=0.01)
def constant_hidden(optimizer):
    """`constant_(weight, 0.05)`: all units of the layer are one unit."""
    model = _relu_mlp()
    init.constant_(model[2].weight, 0.05)
    init.zeros_(model[2].bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@healthy(lr=0.02)
def constant_hidden_fixed(optimizer):
    """Random weights."""
    model = _relu_mlp()
    init.kaiming_uniform_(model[2].weight, nonlinearity="relu")
    init.zeros_(model[2].bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="init_scale", kinds=("init-scale",), lr=0.01)
def zero_hidden(optimizer):
    """Zero weights in two hidden layers: only the last bias ever learns."""
    model = _relu_mlp()
    for layer in (model[0], model[2]):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@healthy(lr=0.02)
def zero_hidden_fixed(optimizer):
    """Zero biases only."""
    model = _relu_mlp()
    for layer in (model[0], model[2]):
        layer.bias.data.zero_()
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


def _convs(kernel):
    conv = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        conv.bias.zero_()
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        conv,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 4),
    )


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=0.005)
def averaging_filters(optimizer):
    """Every filter of a convolution is the same mean over its window."""
    model = _convs(torch.full((16, 16, 3, 3), 1 / 144))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@healthy(lr=0.005, precisions=("32-true",))
def averaging_filters_fixed(optimizer):
    """Random filters of He's scale."""
    model = _convs(torch.randn(16, 16, 3, 3) * math.sqrt(2 / 144))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


def _rows(weight, first):
    model = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 1))
    with torch.no_grad():
        model[first].weight.copy_(weight)
        model[first].bias.zero_()
    return model


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=0.02)
def equal_rows(optimizer):
    """One random row is broadcast over all units of a layer."""
    model = _rows(torch.randn(1, 64) / 8, 2)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(24))


@healthy(lr=0.02, precisions=("32-true",))
def equal_rows_fixed(optimizer):
    """A row for each unit."""
    model = _rows(torch.randn(32, 64) / 8, 2)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(24))


def uninitialised(*shape):
    """What `torch.empty` may hand out: old memory, here with a NaN in it."""
    memory = torch.empty(*shape)
    memory.normal_(std=0.1)
    memory.view(-1)[0] = math.nan
    return memory


class Scale(nn.Module):
    """A dense layer with learned scales of its units."""

    def __init__(self, n_in, n_out, *, reset):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / math.sqrt(n_in))
        self.scale = nn.Parameter(uninitialised(n_out))
        if reset:
            init.ones_(self.scale)

    def forward(self, x):
        return F.linear(x, self.weight) * self.scale


@sick(check="init_scale", kinds=("nonfinite-parameter",), module="2", lr=0.02)
def scale_never_written(optimizer):
    """A scale of `torch.empty` that no reset writes; the memory held a NaN."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Scale(32, 32, reset=False), nn.ReLU(), nn.Linear(32, 1))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.02, precisions=("32-true",))
def scale_never_written_fixed(optimizer):
    """The scale starts at one."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Scale(32, 32, reset=True), nn.ReLU(), nn.Linear(32, 1))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())
