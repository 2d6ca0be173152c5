"""Layers that kept torch's default because the initialisation that the rest follows never reached them."""

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


class ScoreNet(nn.Module):
    """Dense layers in a list, initialised by a loop; `project` came later, for an ablation."""

    def __init__(self, width=64, depth=5):
        super().__init__()
        sizes = [24, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.project = nn.Linear(width, width)
        self.out = nn.Linear(width, 4)
        for layer in [*self.layers, self.out]:
            init.kaiming_normal_(layer.weight, nonlinearity="relu")
            init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.out(F.relu(self.project(x)))


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="project", lr=0.01)
def layer_added_later(optimizer):
    """One hidden layer of seven is not in the loop."""
    model = ScoreNet()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(24, 4)
    )


@healthy(lr=0.01)
def layer_added_later_fixed(optimizer):
    """The late layer is initialised like the others."""
    model = ScoreNet()
    init.kaiming_normal_(model.project.weight, nonlinearity="relu")
    init.zeros_(model.project.bias)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(24, 4)
    )


class SameConv2d(nn.Conv2d):
    """A convolution that keeps the size of its input."""

    def __init__(self, channels, out, kernel=3):
        super().__init__(channels, out, kernel, padding=kernel // 2)


class ConvClassifier(nn.Module):
    """Five convolutions, one of them of a subclass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            SameConv2d(24, 24),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
        )
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def init_exact_type(module):
    """He's normal for convolutions, by exact type."""
    if type(module) == nn.Conv2d:  # noqa: E721
        init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        init.zeros_(module.bias)


def init_any_conv(module):
    """He's normal for convolutions and their subclasses."""
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        init.zeros_(module.bias)


def _conv_classifier(optimizer, init_weights):
    model = ConvClassifier()
    model.apply(init_weights)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images())


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="body.3", lr=0.01)
def conv_of_a_subclass(optimizer):
    """`type(m) == nn.Conv2d` misses the subclass."""
    return _conv_classifier(optimizer, init_exact_type)


@healthy(lr=0.01, precisions=("32-true",))
def conv_of_a_subclass_fixed(optimizer):
    """`isinstance` reaches all convolutions."""
    return _conv_classifier(optimizer, init_any_conv)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x):
        rows, time, dim = x.shape
        q, k, v = (
            layer(x).view(rows, time, self.heads, dim // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj_out(y.transpose(1, 2).reshape(rows, time, dim))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TinyGPT(nn.Module):
    """A pre-norm decoder with GPT-2's initialisation; `adapter` optionally sits before the head."""

    def __init__(self, vocabulary=24, dim=64, heads=4, depth=2, length=12):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, dim)
        self.wpe = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.adapter = None
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        if self.adapter is not None:
            x = x + self.adapter(x)
        return self.head(x)


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="adapter", optimizers=("adamw",))
def adapter_after_apply(optimizer):
    """The adapter is made after `self.apply` has run."""
    model = TinyGPT()
    model.adapter = nn.Linear(64, 64)
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


@healthy(optimizers=("adam", "adamw", "rmsprop"), precisions=("32-true",))
def adapter_after_apply_fixed(optimizer):
    """The adapter gets the model's own initialisation."""
    model = TinyGPT()
    model.adapter = nn.Linear(64, 64)
    model._init_weights(model.adapter)
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


class Encoder(nn.Module):
    """Blocks of attention and feed-forward, initialised by name."""

    def __init__(
        self, features=8, dim=64, depth=2, matched=("query", "key", "value", "out_proj", "mlp", "embed", "score")
    ):
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.blocks = nn.ModuleList(Block(dim, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and any(part in name for part in matched):
                init.xavier_normal_(parameter)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.score(self.norm(x)[:, -1])


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="attn.proj_out", optimizers=("adam",))
def name_that_does_not_match(optimizer):
    """The filter says `out_proj`, the layers are called `proj_out`."""
    model = Encoder()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


@healthy(optimizers=("adam", "adamw", "rmsprop"), lr=0.01, precisions=("32-true",))
def name_that_does_not_match_fixed(optimizer):
    """The filter has the layers' names."""
    model = Encoder(matched=("query", "key", "value", "proj_out", "mlp", "embed", "score"))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=12))


class Policy(nn.Module):
    """A value network with orthogonal weights, as reinforcement learning repositories have it."""

    def __init__(self, observation=12, hidden=64, stop=6):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(observation, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
        )
        self.value = nn.Linear(hidden, 1)
        for index in range(0, stop, 2):
            init.orthogonal_(self.trunk[index].weight, math.sqrt(2))
            init.zeros_(self.trunk[index].bias)
        init.orthogonal_(self.value.weight, 1.0)
        init.zeros_(self.value.bias)

    def forward(self, x):
        return self.value(self.trunk(x))


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="trunk.6", lr=0.01)
def loop_that_ends_early(optimizer):
    """`range(0, 6, 2)` leaves out the last hidden layer."""
    model = Policy()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(12))


@healthy(lr=0.01)
def loop_that_ends_early_fixed(optimizer):
    """The loop reaches all hidden layers."""
    model = Policy(stop=8)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression(12))


class Upsample(nn.ConvTranspose2d):
    """Doubles the size."""

    def __init__(self, channels, out):
        super().__init__(channels, out, 4, stride=2, padding=1, bias=False)


def dcgan_init(module, names=("Conv",)):
    """He's normal by the name of the class, as DCGAN's weights_init goes about it."""
    kind = module.__class__.__name__
    if any(name in kind for name in names):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif "BatchNorm" in kind:
        init.normal_(module.weight, 1.0, 0.02)
        init.zeros_(module.bias)


class Decoder(nn.Module):
    """Draws 8x8 images from codes of 16 numbers."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
            nn.ConvTranspose2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
            Upsample(32, 16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 1, 3, padding=1),
        )

    def forward(self, z):
        return self.main(z[:, :, None, None])


def _drawings(count=4, rows=16):
    basis = torch.randn(16, 64) / 4
    codes = [torch.randn(rows, 16) for _ in range(count)]
    return [(z, torch.tanh(z @ basis).view(rows, 1, 8, 8)) for z in codes]


@sick(check="init_scale", kinds=("init-scale",), says=("default",), module="main.9", lr=0.02)
def class_name_without_conv(optimizer):
    """`"Conv" in classname` misses a transposed convolution called Upsample."""
    model = Decoder()
    model.apply(dcgan_init)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_drawings())


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def class_name_without_conv_fixed(optimizer):
    """Both names are asked for."""
    model = Decoder()
    model.apply(lambda module: dcgan_init(module, names=("Conv", "Upsample")))
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_drawings())
