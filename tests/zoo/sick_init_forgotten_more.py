"""More layers that the initialisation never reached: replaced, filtered out, or skipped by a copied line."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, mse, series


class ResidualMLP(nn.Module):
    """Pre-activation residual blocks with an expansion."""

    def __init__(self, dim=48, depth=4):
        super().__init__()
        self.inp = nn.Linear(20, dim)
        self.up = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(dim, dim, bias=i != 2) for i in range(depth))
        self.cls = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.inp(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + 0.5 * down(F.relu(up(F.relu(x))))
        return self.cls(x)


def init_with_bias(module):
    """Xavier for dense layers that have a bias."""
    if isinstance(module, nn.Linear) and module.bias is not None:
        init.xavier_uniform_(module.weight)
        module.bias.data.fill_(0.0)


def init_all(module):
    """Xavier for all dense layers."""
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            module.bias.data.fill_(0.0)


def _residual(optimizer, init_weights):
    model = ResidualMLP()
    model.apply(init_weights)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="down.2", lr=0.01)
def layer_without_bias(optimizer):
    """`m.bias is not None` in the condition also skips the weight of a layer without bias."""
    return _residual(optimizer, init_with_bias)


@healthy(lr=0.01, optimizers=("sgd", "adam", "adamw"))
def layer_without_bias_fixed(optimizer):
    """The bias has its own condition."""
    return _residual(optimizer, init_all)


class WideNet(nn.Module):
    """A plain ReLU network with a helper that makes and initialises its layers."""

    def __init__(self, width=80):
        super().__init__()
        self.fc1 = self._dense(20, width)
        self.fc2 = self._dense(width, width)
        self.fc3 = self._dense(width, width)
        self.fc4 = self._dense(width, width)
        self.fc5 = self._dense(width, 5)

    @staticmethod
    def _dense(n_in, n_out):
        layer = nn.Linear(n_in, n_out)
        init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        init.zeros_(layer.bias)
        return layer

    def widen(self, width, *, dense=nn.Linear):
        """Make the middle wider, as for a larger run."""
        self.fc3 = dense(self.fc2.out_features, width)
        self.fc4 = dense(width, self.fc5.in_features)

    def forward(self, x):
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
            x = layer(x).relu()
        return self.fc5(x)


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="fc", lr=0.01)
def layers_replaced(optimizer):
    """Two layers are replaced by wider ones without the helper."""
    model = WideNet()
    model.widen(128)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


@healthy(lr=0.01)
def layers_replaced_fixed(optimizer):
    """The wider ones are made by the helper."""
    model = WideNet()
    model.widen(128, dense=model._dense)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


class TemporalBlock(nn.Module):
    """Two dilated convolutions and a skip."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.init_weights()

    def init_weights(self):
        self.conv1.weight.data.normal_(0, 0.01)
        self.conv2.weight.data.normal_(0, 0.01)
        self.conv1.bias.data.zero_()
        self.conv2.bias.data.zero_()

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class CopiedBlock(TemporalBlock):
    """The last block, with its own initialisation."""

    def init_weights(self):
        self.conv1.weight.data.normal_(0, 0.01)
        self.conv1.weight.data.normal_(0, 0.01)
        self.conv1.bias.data.zero_()
        self.conv2.bias.data.zero_()


class TCN(nn.Module):
    """A temporal convolutional network with the usual N(0, 0.01) in its residual branches."""

    def __init__(self, last=TemporalBlock, channels=32):
        super().__init__()
        self.inp = nn.Conv1d(8, channels, 1)
        self.network = nn.Sequential(
            TemporalBlock(channels, 1), TemporalBlock(channels, 2), TemporalBlock(channels, 4), last(channels, 4)
        )
        self.head = nn.Linear(channels, 1)
        self.inp.weight.data.normal_(0, 0.35)
        self.inp.bias.data.zero_()

    def forward(self, x):
        return self.head(self.network(self.inp(x.transpose(1, 2)))[..., -4:].mean(-1))


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="network.3.conv2", lr=0.01)
def copied_line(optimizer):
    """conv1 is initialised twice and conv2 never."""
    model = TCN(CopiedBlock)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=16))


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def copied_line_fixed(optimizer):
    """Each convolution is initialised once."""
    model = TCN()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=16))
