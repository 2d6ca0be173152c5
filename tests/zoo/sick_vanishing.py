"""Gradients that do not reach the first layers: deep saturating stacks, saturated units, long recurrences."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn import init

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, images, mse, regression, series

VANISHED = ("vanishing-gradient", "dead-unit")


def _sequential(activation, depth=8, width=32):
    layers = []
    for index in range(depth):
        layers += [nn.Linear(16 if index == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


@sick(check="gradient_bounds", kinds=VANISHED, says=("sigmoid",))
def eight_sigmoids(optimizer):
    """Eight sigmoid layers in torch's default."""
    model = _sequential(nn.Sigmoid)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@healthy(lr=0.01, optimizers=("adam", "adamw"), precisions=("32-true",))
def eight_sigmoids_fixed(optimizer):
    """Eight GELU layers, normalised."""
    model = _sequential(lambda: nn.Sequential(nn.LayerNorm(32), nn.GELU()))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


class Twelve(nn.Module):
    """Twelve layers with Xavier's weights and a functional activation; a residual if asked for."""

    def __init__(self, residual, width=40, depth=12):
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 1)
        self.residual = residual
        for layer in [self.embed, *self.layers, self.out]:
            init.xavier_uniform_(layer.weight)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            y = torch.sigmoid(layer(x))
            x = x + 0.3 * (y - 0.5) if self.residual else y
        return self.out(x)


@sick(check="gradient_bounds", kinds=VANISHED, says=("sigmoid",), lr=0.02)
def twelve_functional_sigmoids(optimizer):
    """`torch.sigmoid` after each of twelve layers with Xavier's weights."""
    model = Twelve(residual=False)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def twelve_functional_sigmoids_fixed(optimizer):
    """The same with residuals around each."""
    model = Twelve(residual=True)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


class ConvBlock(nn.Module):
    def __init__(self, n_in, n_out, act):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.act = act

    def forward(self, x):
        return self.act(self.conv(x))


def _conv_net(act):
    blocks = [ConvBlock(3 if index == 0 else 10, 10, act) for index in range(9)]
    return nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 4))


@sick(check="gradient_bounds", kinds=VANISHED, says=("sigmoid",), lr=0.02)
def sigmoid_convs(optimizer):
    """Nine convolutions with sigmoid between them, as LeNet would be in 1989."""
    model = _conv_net(nn.Sigmoid())
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(size=6)
    )


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def sigmoid_convs_fixed(optimizer):
    """ReLU and He's normal."""
    model = _conv_net(nn.ReLU())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=images(size=6)
    )


class AutoEncoder(nn.Module):
    """A stacked autoencoder of ten layers each way."""

    def __init__(self, norm):
        super().__init__()
        self.encoder = self._stack(16, norm)
        self.decoder = self._stack(24, norm)
        self.out = nn.Linear(24, 1)

    @staticmethod
    def _stack(n_in, norm, width=24, depth=10):
        layers = nn.Sequential()
        for index in range(depth):
            layers.add_module(f"fc{index}", nn.Linear(n_in if index == 0 else width, width))
            if norm:
                layers.add_module(f"norm{index}", nn.BatchNorm1d(width))
                layers.add_module(f"relu{index}", nn.ELU())
            else:
                layers.add_module(f"sigmoid{index}", nn.Sigmoid())
        return layers

    def forward(self, x):
        return self.out(self.decoder(self.encoder(x)))


@sick(check="gradient_bounds", kinds=VANISHED, says=("sigmoid",), module="encoder", lr=0.02)
def stacked_sigmoid_autoencoder(optimizer):
    """Twenty sigmoid layers: the encoder gets nothing."""
    model = AutoEncoder(norm=False)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.01, optimizers=("adam", "adamw"), precisions=("32-true",))
def stacked_sigmoid_autoencoder_fixed(optimizer):
    """Normalised ELU layers."""
    model = AutoEncoder(norm=True)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


class TanhHead(nn.Module):
    """Tanh layers over raw or scaled features."""

    def __init__(self, width=32, power=None):
        super().__init__()
        self.fc1 = nn.Linear(16, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, 1)
        if power is not None:
            for layer in (self.fc1, self.fc2):
                init.normal_(layer.weight, std=layer.in_features**power)
            init.normal_(self.fc3.weight, std=width**-0.5)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        x = torch.tanh(self.fc2(x))
        return self.fc3(x)


@sick(check="gradient_bounds", kinds=VANISHED, says=("saturat",), module="fc", lr=0.01)
def tanh_of_large_weights(optimizer):
    """A std of fan_in instead of its inverse root: every tanh is at -1 or 1."""
    model = TanhHead(power=1)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def tanh_of_large_weights_fixed(optimizer):
    """A std of 1 / sqrt(fan_in)."""
    model = TanhHead(power=-0.5)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=regression())


def _raw(factor, offset):
    """Features as they come from a table: thousands of something."""
    return [(x * factor + offset, y) for x, y in regression()]


@sick(check="gradient_bounds", kinds=VANISHED, says=("saturat",), module="fc1", lr=0.01)
def raw_features_into_tanh(optimizer):
    """Inputs of size 1e3 saturate the first tanh."""
    model = TanhHead()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_raw(1e3, 2e3))


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def raw_features_into_tanh_fixed(optimizer):
    """Scaled inputs."""
    model = TanhHead()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_raw(1.0, 0.0))


class Tabular(nn.Module):
    """Sigmoid units over columns of a table."""

    def __init__(self, scaled):
        super().__init__()
        self.scale = nn.BatchNorm1d(16) if scaled else nn.Identity()
        self.hidden = nn.Linear(16, 24)
        self.score = nn.Linear(24, 1)

    def forward(self, x):
        return self.score(self.hidden(self.scale(x)).sigmoid())


@sick(check="gradient_bounds", kinds=VANISHED, says=("saturat",), module="hidden", lr=0.01)
def raw_columns_into_sigmoid(optimizer):
    """Years and prices go into sigmoid units as they are."""
    model = Tabular(scaled=False)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_raw(50.0, 2e3))


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def raw_columns_into_sigmoid_fixed(optimizer):
    """A batch norm scales the columns."""
    model = Tabular(scaled=True)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=_raw(50.0, 2e3))


class QuestionAnswer(nn.Module):
    """A question encoder whose vector starts a recurrence over a long context."""

    def __init__(self, recurrence, hidden=32):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, hidden), nn.Tanh())
        self.reader = recurrence(8, hidden, batch_first=True)
        self.answer = nn.Linear(hidden, 1)

    def forward(self, x):
        start = self.encoder(x[:, 0]).unsqueeze(0)
        out, _ = self.reader(x[:, 1:], start)
        return self.answer(out[:, -1])


@sick(check="gradient_bounds", kinds=VANISHED, module="encoder")
def long_context_rnn(optimizer):
    """A plain RNN over a hundred steps: what started it gets no gradient."""
    model = QuestionAnswer(nn.RNN)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=101))


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=("32-true",))
def long_context_rnn_fixed(optimizer):
    """A context of five."""
    model = QuestionAnswer(nn.GRU)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=series(length=6))


class SoftmaxHidden(nn.Module):
    """Softmax or ReLU as the activation of a hidden layer."""

    def __init__(self, activation):
        super().__init__()
        self.project = nn.Linear(16, 32)
        self.activation = activation
        self.classify = nn.Linear(32, 4)

    def forward(self, x):
        return self.classify(self.activation(self.project(x)))


@sick(check="gradient_bounds", kinds=VANISHED, says=("softmax",), module="project", lr=0.02)
def softmax_as_an_activation(optimizer):
    """Softmax in the middle over unscaled inputs: one-hot, no gradient."""
    model = SoftmaxHidden(nn.Softmax(dim=1))
    batches = [(x * 1e4, y) for x, y in classes()]
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def softmax_as_an_activation_fixed(optimizer):
    """ReLU over scaled ones."""
    model = SoftmaxHidden(nn.ReLU())
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


class Pooling(nn.Module):
    """Attention pooling over unscaled or normalised frames."""

    def __init__(self, norm):
        super().__init__()
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.energy = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 1, bias=False))
        self.value = nn.Linear(8, 1)

    def forward(self, x):
        weights = F.softmax(self.energy(self.norm(x)), dim=1)
        return (weights * self.value(x / 32768)).sum(1)


@sick(check="gradient_bounds", kinds=VANISHED, says=("softmax",), module="energy", lr=0.05)
def pooling_of_raw_frames(optimizer):
    """Frames of 16-bit samples make the attention one-hot: its energies get no gradient."""
    model = Pooling(norm=False)
    batches = [(x * 3e4, y) for x, y in series(length=12)]
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.1, optimizers=("sgd", "adam"), precisions=("32-true",))
def pooling_of_raw_frames_fixed(optimizer):
    """Normalised frames."""
    model = Pooling(norm=True)
    batches = [(x * 3e4, y) for x, y in series(length=12)]
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches)


class ShrunkenEmbedding(nn.Module):
    """Shrinks the gradient of what it embeds, as large models do to keep their embeddings calm."""

    def __init__(self, alpha, width=32):
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.body = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.alpha = alpha

    def forward(self, x):
        x = self.embed(x)
        x = x * self.alpha + x.detach() * (1 - self.alpha)
        return self.body(x)


def _shrunken(optimizer, alpha):
    model = ShrunkenEmbedding(alpha)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="gradient_bounds", kinds=("vanishing-gradient", "stuck-parameter"), module="embed", lr=0.02)
def gradient_shrunk_to_nothing(optimizer):
    """A gradient factor of 1e-10 where 0.1 was meant."""
    return _shrunken(optimizer, 1e-10)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def gradient_shrunk_to_nothing_fixed(optimizer):
    """A factor of 0.1."""
    return _shrunken(optimizer, 0.1)


def reconstruction(weight):
    """The mean squared error of every pixel, weighted."""

    def loss(model, batch):
        return weight * F.mse_loss(model(batch), batch)

    return loss


def _pictures(optimizer, weight):
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 64)
    )
    basis = torch.randn(6, 64) / 6**0.5
    batches = [torch.randn(64, 6) @ basis for _ in range(4)]
    return TrainingSetup(
        model=model, loss=reconstruction(weight), optimizer=optimizer(model.parameters()), batches=batches
    )


@sick(
    check="gradient_bounds",
    kinds=("vanishing-gradient", "stuck-parameter", "lost-precision"),
    lr=0.05,
    precisions=("16-true",),
)
def fp16_underflow(optimizer):
    """A mean over thousands of pixels times 1e-4 in float16: the gradients are below its smallest number."""
    return _pictures(optimizer, 1e-4)


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=("32-true",))
def fp16_underflow_fixed(optimizer):
    """float32, and a weight of one."""
    return _pictures(optimizer, 1.0)
