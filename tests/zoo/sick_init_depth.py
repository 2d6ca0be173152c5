"""Networks whose layers look fine one by one, and whose signal or gradient is lost or explodes over the depth."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, images, mse, regression, series


class SigmoidTower(nn.Module):
    """Twenty dense layers, an activation after each."""

    def __init__(self, activation, width=32, depth=20, init_=None):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16 if i == 0 else width, width) for i in range(depth))
        self.activation = activation
        self.out = nn.Linear(width, 4)
        if init_ is not None:
            for layer in [*self.blocks, self.out]:
                init_(layer.weight)
                init.zeros_(layer.bias)

    def forward(self, x):
        for block in self.blocks:
            x = self.activation(block(x))
        return self.out(x)


def _tower(optimizer, model):
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="init_scale", kinds=("init-scale",), says=("sigmoid",))
def twenty_sigmoids(optimizer):
    """Sigmoid passes on at most a quarter of the gradient, twenty times over."""
    return _tower(optimizer, SigmoidTower(nn.Sigmoid()))


@healthy(lr=0.005, optimizers=("adam", "adamw"), precisions=("32-true",))
def twenty_sigmoids_fixed(optimizer):
    """SELU with LeCun's normal keeps both."""
    return _tower(
        optimizer, SigmoidTower(nn.SELU(), init_=lambda weight: init.kaiming_normal_(weight, nonlinearity="linear"))
    )


class DeepTanh(nn.Module):
    """Thirty tanh layers of equal width."""

    def __init__(self, gain=None, width=48, depth=30):
        super().__init__()
        layers = [nn.Linear(16, width), nn.Tanh()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))
        if gain is not None:
            self.net.apply(lambda module: self._xavier(module, gain))

    @staticmethod
    def _xavier(module, gain):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=gain)
            init.zeros_(module.bias)

    def forward(self, x):
        return self.net(x)


@sick(check="init_scale", kinds=("init-scale",), module="net")
def thirty_default_tanhs(optimizer):
    """torch's default shrinks the gradient by 0.58 per tanh layer: 1e-7 after thirty."""
    model = DeepTanh()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.003, optimizers=("adam", "adamw"), precisions=("32-true",))
def thirty_default_tanhs_fixed(optimizer):
    """Xavier keeps it."""
    model = DeepTanh(gain=1.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


def _relu_stack(depth, width=40, gain=None):
    layers = []
    for index in range(depth):
        layer = nn.Linear(20 if index == 0 else width, width)
        if gain is not None:
            init.kaiming_normal_(layer.weight, nonlinearity="relu")
            init.zeros_(layer.bias)
            layer.weight.data *= gain
        layers.append(nn.Sequential(layer, nn.ReLU()))
    last = nn.Linear(width, 5)
    if gain is not None:
        init.kaiming_normal_(last.weight, nonlinearity="relu")
        init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _classify(optimizer, model):
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


@sick(check="init_scale", kinds=("init-scale",))
def twenty_five_default_relus(optimizer):
    """torch's default passes on 0.41 per ReLU layer."""
    return _classify(optimizer, _relu_stack(25))


@healthy(lr=0.002, optimizers=("adam", "adamw"), precisions=("32-true",))
def twenty_five_default_relus_fixed(optimizer):
    """He's normal keeps the scale."""
    return _classify(optimizer, _relu_stack(25, gain=1.0, width=96))


@sick(check="init_scale", kinds=("init-scale",), lr=0.01, optimizers=("adam",))
def fifteen_relus_of_gain_three(optimizer):
    """Three times He's std in fifteen layers: 1e7."""
    return _classify(optimizer, _relu_stack(15, gain=3.0))


@healthy(lr=0.005, optimizers=("sgd", "adam", "adamw"), precisions=("32-true",))
def fifteen_relus_of_gain_three_fixed(optimizer):
    """He's std in fifteen layers."""
    return _classify(optimizer, _relu_stack(15, gain=1.0))


class ConvStack(nn.Module):
    """Eighteen convolutions of equal width, then the mean."""

    def __init__(self, he, width=12, depth=18):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(depth))
        self.head = nn.Linear(width, 4)
        if he:
            for conv in self.convs:
                init.kaiming_normal_(conv.weight, nonlinearity="relu")
                init.zeros_(conv.bias)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu_()
        return self.head(x.mean((2, 3)))


@sick(check="init_scale", kinds=("init-scale",), module="convs")
def eighteen_default_convs(optimizer):
    """A deep stack of convolutions in torch's default, without normalisation or skips."""
    model = ConvStack(he=False)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(size=6)
    )


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def eighteen_default_convs_fixed(optimizer):
    """He's normal in each."""
    model = ConvStack(he=True)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(size=6)
    )


class DeepLinear(nn.Module):
    """A product of twenty matrices."""

    def __init__(self, factor, width=32, depth=20):
        super().__init__()
        self.factors = nn.ParameterList(torch.randn(width, width) * factor / math.sqrt(width) for _ in range(depth))
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        for matrix in self.factors:
            x = x @ matrix
        return self.out(x)


@sick(check="init_scale", kinds=("init-scale",), lr=0.01, optimizers=("adam",))
def deep_linear_doubling(optimizer):
    """N(0, 2/sqrt(n)) doubles the signal in each of twenty matrices."""
    model = DeepLinear(2.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(32))


@healthy(lr=0.002, optimizers=("adam", "adamw"), precisions=("32-true",))
def deep_linear_doubling_fixed(optimizer):
    """N(0, 1/sqrt(n)) keeps it."""
    model = DeepLinear(1.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(32))


class ResidualBlock(nn.Module):
    """x + f(x); `doubled` adds the skip once more outside."""

    def __init__(self, dim, doubled, branch):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.doubled = doubled
        self.branch = branch

    def forward(self, x):
        y = x + self.fc2(F.gelu(self.fc1(x))) * self.branch
        return x + y if self.doubled else y


class ResidualNet(nn.Module):
    """Twenty-four residual blocks without normalisation."""

    def __init__(self, doubled, dim=24, depth=24, branch=1.0):
        super().__init__()
        self.stem = nn.Linear(16, dim)
        self.blocks = nn.Sequential(*[ResidualBlock(dim, doubled, branch) for _ in range(depth)])
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


@sick(check="init_scale", kinds=("init-scale",), module="blocks", lr=0.01, optimizers=("adam",))
def skip_added_twice(optimizer):
    """The skip is added inside and outside the block: the stream doubles 24 times."""
    model = ResidualNet(doubled=True)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@healthy(lr=0.01, optimizers=("adam", "adamw"), precisions=("32-true",))
def skip_added_twice_fixed(optimizer):
    """One skip, and branches scaled by the depth."""
    model = ResidualNet(doubled=False, branch=24**-0.5)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


class LinearRecurrence(nn.Module):
    """s' = A s + B x, read out at the end."""

    def __init__(self, radius, state=24):
        super().__init__()
        self.b = nn.Linear(8, state, bias=False)
        self.a = nn.Linear(state, state, bias=False)
        self.c = nn.Linear(state, 1)
        init.orthogonal_(self.a.weight, gain=radius)

    def forward(self, x):
        state = self.b(x[:, 0])
        for step in range(1, x.shape[1]):
            state = self.a(state) + self.b(x[:, step])
        return self.c(state)


@sick(check="init_scale", kinds=("init-scale",), lr=0.01, optimizers=("adam",))
def recurrence_of_radius_two(optimizer):
    """A state matrix of spectral radius 2 over thirty steps: 1e9."""
    model = LinearRecurrence(2.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=30))


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def recurrence_of_radius_two_fixed(optimizer):
    """A radius just under one."""
    model = LinearRecurrence(0.95)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=30))


class UnrolledRNN(nn.Module):
    """A plain RNN over forty steps whose sequence comes first in the state, as a question."""

    def __init__(self, std, hidden=32):
        super().__init__()
        self.question = nn.Linear(8, hidden)
        self.inp = nn.Linear(8, hidden)
        self.rec = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)
        if std is None:
            init.orthogonal_(self.rec.weight)
        else:
            init.normal_(self.rec.weight, std=std)

    def forward(self, x):
        h = torch.tanh(self.question(x[:, 0]))
        for step in x[:, 1:].unbind(1):
            h = torch.tanh(self.rec(h) + 0.1 * self.inp(step))
        return self.out(h)


@sick(check="init_scale", kinds=("init-scale",), module="rec")
def rnn_of_small_recurrence(optimizer):
    """N(0, 0.005) between forty steps: the question in the first state is gone after three."""
    model = UnrolledRNN(0.005)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=40))


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def rnn_of_small_recurrence_fixed(optimizer):
    """An orthogonal recurrence."""
    model = UnrolledRNN(None)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=40))
