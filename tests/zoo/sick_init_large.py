"""Weights far too large from the start: N(0, 1) matrices and U(0, 1) matrices where the fan-in should have counted."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, images, mse, next_token, regression, series, tokens


class Dense(nn.Module):
    """A dense layer written by hand."""

    def __init__(self, n_in, n_out, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * scale)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class HandMLP(nn.Module):
    """Three hidden layers of hand-written weights."""

    def __init__(self, sizes=(64, 64, 64, 64, 4), scaled=False):
        super().__init__()
        self.layers = nn.ModuleList()
        for n_in, n_out in pairwise(sizes):
            self.layers.append(Dense(n_in, n_out, math.sqrt(2 / n_in) if scaled else 1.0))

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x)


@sick(check="init_scale", kinds=("init-scale",), module="layers", lr=0.01, optimizers=("adam",))
def randn_mlp(optimizer):
    """All weights are `torch.randn(n_in, n_out)`."""
    model = HandMLP()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(64, 4)
    )


@healthy(lr=0.01)
def randn_mlp_fixed(optimizer):
    """He's factor is on the weights."""
    model = HandMLP(scaled=True)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(64, 4)
    )


class SelfAttention(nn.Module):
    """Single-head attention with its projections as bare parameters."""

    def __init__(self, dim, scale):
        super().__init__()
        self.wq = nn.Parameter(torch.randn(dim, dim) * scale)
        self.wk = nn.Parameter(torch.randn(dim, dim) * scale)
        self.wv = nn.Parameter(torch.randn(dim, dim) * scale)

    def forward(self, x):
        q, k, v = x @ self.wq, x @ self.wk, x @ self.wv
        scores = q @ k.transpose(-2, -1) / math.sqrt(x.shape[-1])
        return scores.softmax(-1) @ v


class AttentionClassifier(nn.Module):
    def __init__(self, scale, dim=32):
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.attention = SelfAttention(dim, scale)
        self.out = nn.Linear(dim, 1)

    def forward(self, x):
        x = self.embed(x)
        return self.out((x + self.attention(x)).mean(1))


@sick(check="init_scale", kinds=("init-scale",), module="attention", lr=1e-4, optimizers=("sgd", "adam"))
def randn_attention(optimizer):
    """Query, key and value are N(0, 1) matrices of fan-in 32."""
    model = AttentionClassifier(scale=1.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=10))


@healthy(lr=0.02, precisions=("32-true",))
def randn_attention_fixed(optimizer):
    """The projections have 1/sqrt(dim)."""
    model = AttentionClassifier(scale=32**-0.5)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=10))


class PlainConvNet(nn.Module):
    """VGG in small, without normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(32, 4)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@sick(check="init_scale", kinds=("init-scale",), module="features", lr=0.01, optimizers=("adam",))
def normal_convs(optimizer):
    """`init.normal_(weight)` without a std: N(0, 1) with fan-ins of 27 and 144."""
    model = PlainConvNet()
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight)
            init.zeros_(module.bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@healthy(lr=0.01, optimizers=("adam", "adamw"), precisions=("32-true",))
def normal_convs_fixed(optimizer):
    """He's normal instead."""
    model = PlainConvNet()
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


class ElmanCell(nn.Module):
    """h' = tanh(x U + h W + b)."""

    def __init__(self, n_in, hidden):
        super().__init__()
        self.u = nn.Parameter(torch.randn(n_in, hidden) / math.sqrt(n_in))
        self.w = nn.Parameter(torch.randn(hidden, hidden))
        self.b = nn.Parameter(torch.zeros(hidden))

    def forward(self, x, h):
        return torch.tanh(x @ self.u + h @ self.w + self.b)


class ElmanNet(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.hidden = hidden
        self.cell = ElmanCell(8, hidden)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], self.hidden)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.readout(h)


@sick(check="init_scale", kinds=("init-scale",), module="cell", lr=1e-5)
def randn_recurrent(optimizer):
    """The recurrent matrix is N(0, 1) of size 48: tanh saturates after the second step."""
    model = ElmanNet()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=10))


@healthy(lr=0.02, optimizers=("sgd", "adam", "adamw"), precisions=("32-true",))
def randn_recurrent_fixed(optimizer):
    """The recurrent matrix is orthogonal."""
    model = ElmanNet()
    init.orthogonal_(model.cell.w)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=10))


class Mixer(nn.Module):
    """Mixes features by one matrix."""

    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(dim, dim))

    def forward(self, x):
        return F.linear(x, self.mix)


def _with_mixer(optimizer, mixer):
    model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), mixer, nn.ReLU(), nn.Linear(128, 1))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(16))


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=1e-4)
def one_randn_among_defaults(optimizer):
    """One N(0, 1) matrix of fan-in 128 between layers of torch's default."""
    return _with_mixer(optimizer, Mixer(128))


@healthy(lr=0.02, precisions=("32-true",))
def one_randn_among_defaults_fixed(optimizer):
    """The mixer follows He."""
    mixer = Mixer(128)
    init.kaiming_normal_(mixer.mix, nonlinearity="relu")
    return _with_mixer(optimizer, mixer)


class TiedLM(nn.Module):
    """A small language model whose head is its embedding."""

    def __init__(self, vocabulary=24, dim=128, std=None):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight
        if std is not None:
            init.normal_(self.embed.weight, std=std)

    def forward(self, ids):
        x = self.embed(ids)
        return self.lm_head(self.norm(x + self.mlp(x)))


@sick(check="init_scale", kinds=("init-scale",), lr=0.01, optimizers=("adam",))
def tied_unit_embedding(optimizer):
    """An embedding's default N(0, 1) is the head's weight too: logits of size sqrt(128) after the norm."""
    model = TiedLM()
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def tied_unit_embedding_fixed(optimizer):
    """The tied weight has std 0.02."""
    model = TiedLM(std=0.02)
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


class LSTMRegressor(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.rnn = nn.LSTM(8, hidden, num_layers=2, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@sick(check="init_scale", kinds=("init-scale",), module="rnn", lr=1e-3)
def lstm_all_normal(optimizer):
    """`init.normal_` over everything an LSTM owns: its gates are saturated."""
    model = LSTMRegressor()
    for parameter in model.rnn.parameters():
        init.normal_(parameter)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=("32-true",))
def lstm_all_normal_fixed(optimizer):
    """Xavier for what comes in, orthogonal for what recurs, zero biases."""
    model = LSTMRegressor()
    for name, parameter in model.rnn.named_parameters():
        if "weight_ih" in name:
            init.xavier_uniform_(parameter)
        elif "weight_hh" in name:
            init.orthogonal_(parameter)
        else:
            init.zeros_(parameter)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


class Experts(nn.Module):
    """A soft mixture of experts, all in one tensor."""

    def __init__(self, experts, n_in, n_out, make=torch.rand):
        super().__init__()
        self.router = nn.Linear(n_in, experts)
        self.weight = nn.Parameter(make(experts, n_in, n_out))

    def forward(self, x):
        share = self.router(x).softmax(-1)
        return torch.einsum("be,bi,eio->bo", share, x, self.weight)


def _scaled_randn(experts, n_in, n_out):
    return torch.randn(experts, n_in, n_out) / math.sqrt(n_in)


def _mixture(optimizer, make):
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), Experts(4, 64, 64, make), nn.Tanh(), nn.Linear(64, 3))
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(16, 3)
    )


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=1e-3)
def randn_experts(optimizer):
    """Expert weights from `torch.randn` of fan-in 64."""
    return _mixture(optimizer, torch.randn)


@healthy(lr=0.02)
def randn_experts_fixed(optimizer):
    """Each expert has its fan-in's scale."""
    return _mixture(optimizer, _scaled_randn)


@sick(check="init_scale", kinds=("init-scale",), module="2", lr=1e-5)
def rand_positive_hidden(optimizer):
    """`init.uniform_(weight)` is U(0, 1): every unit sums its inputs with mean 0.5."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    init.uniform_(model[2].weight)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


@healthy(lr=0.02)
def rand_positive_hidden_fixed(optimizer):
    """Bounds around zero."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    init.uniform_(model[2].weight, -(64**-0.5), 64**-0.5)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(20, 5)
    )


class GraphConv(nn.Module):
    """A X W with a row-normalised adjacency."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.reset_parameters()

    def reset_parameters(self):
        self.weight.data.normal_(0, 1)

    def forward(self, x, adjacency):
        return adjacency @ (x @ self.weight)


class GlorotGraphConv(GraphConv):
    def reset_parameters(self):
        init.xavier_uniform_(self.weight)


class GCN(nn.Module):
    """Three graph convolutions on a fixed ring of 12 nodes."""

    def __init__(self, conv, hidden=32):
        super().__init__()
        ring = torch.eye(12) + torch.eye(12).roll(1, 0) + torch.eye(12).roll(-1, 0)
        self.register_buffer("adjacency", ring / 3)
        self.convs = nn.ModuleList([conv(8, hidden), conv(hidden, hidden), conv(hidden, hidden)])
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x):
        for conv in self.convs:
            x = F.leaky_relu(conv(x, self.adjacency), 0.1)
        return self.readout(x.mean(1))


@sick(check="init_scale", kinds=("init-scale",), module="convs", lr=1e-6)
def normal_graph_convs(optimizer):
    """Graph convolutions whose reset_parameters is N(0, 1)."""
    model = GCN(GraphConv)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=("32-true",))
def normal_graph_convs_fixed(optimizer):
    """Graph convolutions with Glorot's scale."""
    model = GCN(GlorotGraphConv)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))
