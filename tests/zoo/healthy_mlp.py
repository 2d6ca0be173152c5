"""Healthy multilayer perceptrons: depths, activations, initialisations, normalisations."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import MakeOptimizer, healthy
from .healthy_data import clusters, cross_entropy, curve, mse


class MLP(nn.Module):
    """Linear layers with one activation between them, in torch's default initialisation unless one is given."""

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        init: Callable[[Tensor], object] | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        self.layers = nn.Sequential(*layers[:-1])
        if init is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    init(module.weight)
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def classify(model: nn.Module, optimizer: MakeOptimizer) -> TrainingSetup:
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters(4, 16)
    )


def regress(model: nn.Module, optimizer: MakeOptimizer) -> TrainingSetup:
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=curve(8))


@healthy()
def relu_depth_2(optimizer):
    """The first network of every tutorial."""
    return classify(MLP([16, 32, 4]), optimizer)


@healthy()
def relu_depth_4(optimizer):
    """Torch's default initialisation shrinks the signal by a third per layer, which four layers bear."""
    return classify(MLP([16, 64, 64, 64, 4]), optimizer)


@healthy(lr=0.05)
def relu_depth_6_default_init(optimizer):
    """Six layers in torch's default initialisation: small gradients below, and it still learns."""
    return classify(MLP([16, 64, 64, 64, 64, 64, 4]), optimizer)


@healthy(lr=0.05, optimizers=("adam", "adamw", "rmsprop"))
def relu_depth_8_default_init(optimizer):
    """Eight layers in torch's default initialisation: plain for Adam, though the logits start almost constant."""
    return classify(MLP([16, *[64] * 7, 4]), optimizer)


@healthy(lr=0.02)
def tanh_xavier_depth_5(optimizer):
    """Glorot's own setting."""
    return classify(MLP([16, 64, 64, 64, 64, 4], nn.Tanh, nn.init.xavier_uniform_), optimizer)


@healthy(lr=0.02)
def tanh_xavier_with_gain(optimizer):
    """The gain 5/3 that `calculate_gain` recommends for tanh saturates a few units from the start."""
    gain = nn.init.calculate_gain("tanh")
    return classify(MLP([16, 64, 64, 4], nn.Tanh, lambda w: nn.init.xavier_normal_(w, gain)), optimizer)


@healthy(lr=0.2, precisions=("32-true",))
def sigmoid_two_hidden(optimizer):
    """The network of the textbooks: sigmoid shrinks gradients by four per layer, which two layers bear."""
    return classify(MLP([16, 32, 32, 4], nn.Sigmoid), optimizer)


@healthy(lr=0.01)
def relu_he_depth_10(optimizer):
    """He's initialisation keeps the signal through ten layers."""
    return classify(MLP([16, *[48] * 9, 4], nn.ReLU, lambda w: nn.init.kaiming_normal_(w)), optimizer)


@healthy(lr=0.02)
def leaky_relu_he(optimizer):
    """Negative slope 0.2, as in GANs, with He's gain for it."""
    return classify(
        MLP([16, 64, 64, 64, 4], lambda: nn.LeakyReLU(0.2), lambda w: nn.init.kaiming_uniform_(w, a=0.2)), optimizer
    )


@healthy(lr=0.02)
def selu_lecun_depth_8(optimizer):
    """Self-normalising: LeCun's initialisation, SELU and alpha dropout."""

    def lecun(weight: Tensor) -> Tensor:
        return nn.init.kaiming_normal_(weight, nonlinearity="linear")

    return classify(MLP([16, *[48] * 7, 4], lambda: nn.Sequential(nn.SELU(), nn.AlphaDropout(0.05)), lecun), optimizer)


@healthy()
def gelu_depth_4(optimizer):
    """Smooth at 0, so no unit is ever quite dead."""
    return regress(MLP([8, 64, 64, 64, 1], nn.GELU), optimizer)


@healthy()
def silu_depth_4(optimizer):
    """Negative side bounded at -0.28."""
    return regress(MLP([8, 64, 64, 64, 1], nn.SiLU), optimizer)


@healthy()
def elu_depth_4(optimizer):
    """Negative side saturates at -1, often and harmlessly."""
    return regress(MLP([8, 64, 64, 64, 1], nn.ELU), optimizer)


@healthy(lr=0.01)
def softplus_depth_3(optimizer):
    """Softplus outputs have a mean far from 0; layers behind still learn."""
    return regress(MLP([8, 32, 32, 1], nn.Softplus), optimizer)


@healthy(lr=0.02)
def mish_depth_3(optimizer):
    """A negative side like SiLU's, three layers deep."""
    return regress(MLP([8, 32, 32, 1], nn.Mish), optimizer)


@healthy(lr=0.02)
def prelu_depth_4(optimizer):
    """One learnt slope per layer: a parameter of a single number."""
    return classify(MLP([16, 48, 48, 48, 4], nn.PReLU), optimizer)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@healthy(lr=0.02)
def relu_squared(optimizer):
    """Squared ReLU, as in Primer: the square makes small activations smaller, and gradients with them."""
    return classify(MLP([16, 64, 64, 4], SquaredReLU), optimizer)


class Maxout(nn.Module):
    """The largest of several affine maps."""

    def __init__(self, fan_in: int, fan_out: int, pieces: int = 3):
        super().__init__()
        self.fan_out, self.pieces = fan_out, pieces
        self.linear = nn.Linear(fan_in, fan_out * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (self.fan_out, self.pieces)).amax(dim=-1)


@healthy(lr=0.03)
def maxout(optimizer):
    """Only one piece of each unit gets the gradient of a row."""
    return classify(nn.Sequential(Maxout(16, 24), Maxout(24, 24), nn.Linear(24, 4)), optimizer)


@healthy(lr=0.03)
def dropout_half(optimizer):
    """Half of the activations are zero on top of ReLU's."""
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4)
    )
    return classify(model, optimizer)


class BatchNormNet(nn.Module):
    """Linear without bias, batch norm, ReLU."""

    def __init__(self, depth: int):
        super().__init__()
        self.stem = nn.Linear(16, 48, bias=False)
        self.stem_norm = nn.BatchNorm1d(48)
        self.layers = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(48) for _ in range(depth))
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return self.head(x)


@healthy(lr=0.02)
def batch_norm_mlp(optimizer):
    """No bias before the norms."""
    return classify(BatchNormNet(4), optimizer)


@healthy(lr=0.02)
def bias_before_batch_norm(optimizer):
    """Biases before batch norm get no gradient but rounding: idle, and as common as not."""
    layers = [nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU()]
    return classify(nn.Sequential(*layers, nn.Linear(48, 4)), optimizer)


@healthy(lr=0.02)
def layer_norm_mlp(optimizer):
    """Norm, activation, linear, with an input norm."""
    layers: list[nn.Module] = [nn.LayerNorm(16)]
    for fan_in in (16, 48, 48):
        layers += [nn.Linear(fan_in, 48), nn.LayerNorm(48), nn.ReLU()]
    return classify(nn.Sequential(*layers, nn.Linear(48, 4)), optimizer)


@healthy(lr=0.02)
def layer_norm_without_affine(optimizer):
    """Norms that have no parameters."""
    layers: list[nn.Module] = []
    for fan_in in (16, 48, 48):
        layers += [nn.Linear(fan_in, 48), nn.LayerNorm(48, elementwise_affine=False), nn.GELU()]
    return classify(nn.Sequential(*layers, nn.Linear(48, 4)), optimizer)


@healthy(lr=0.03)
def weight_norm_parametrized(optimizer):
    """Weights are computed from direction and length; the length is a parameter of ones per row."""
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    model = MLP([16, 48, 48, 48, 4])
    for index in (0, 2, 4, 6):
        weight_norm(model.layers[index])
    return classify(model, optimizer)


@healthy(lr=0.03)
def weight_norm_of_old(optimizer):
    """The deprecated hook: `weight` is a plain attribute, `weight_g` and `weight_v` are the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm = torch.nn.utils.weight_norm
        model = nn.Sequential(
            weight_norm(nn.Linear(16, 48)), nn.ReLU(), weight_norm(nn.Linear(48, 48)), nn.ReLU(), nn.Linear(48, 4)
        )
    return classify(model, optimizer)


@healthy(lr=0.05, precisions=("32-true",))
def spectral_norm_mlp(optimizer):
    """Every layer is scaled to spectral norm 1, so gradients shrink a little with depth."""
    spectral_norm = torch.nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(
        spectral_norm(nn.Linear(16, 48)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Linear(48, 48)),
        nn.LeakyReLU(0.1),
        nn.Linear(48, 4),
    )
    return classify(model, optimizer)


@healthy(lr=0.02)
def orthogonal_weights(optimizer):
    """Orthogonal initialisation with gain sqrt(2), as in baselines for PPO."""
    return classify(MLP([16, 64, 64, 64, 4], nn.ReLU, lambda w: nn.init.orthogonal_(w, gain=math.sqrt(2))), optimizer)


@healthy(lr=0.02, precisions=("32-true",))
def orthogonal_parametrization(optimizer):
    """Weights are kept orthogonal by a matrix exponential or a Cayley map during training."""
    orthogonal = torch.nn.utils.parametrizations.orthogonal
    model = nn.Sequential(
        nn.Linear(16, 24), orthogonal(nn.Linear(24, 24)), nn.Tanh(), orthogonal(nn.Linear(24, 24)), nn.Tanh()
    )
    return classify(nn.Sequential(model, nn.Linear(24, 4)), optimizer)


@healthy(lr=0.03)
def truncated_normal_fan_in(optimizer):
    """Truncated normal of std 1/sqrt(fan in), as in JAX and TensorFlow."""

    def fan_in(weight: Tensor) -> Tensor:
        std = 1 / math.sqrt(weight.shape[1])
        return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    return classify(MLP([16, 96, 96, 96, 4], nn.GELU, fan_in), optimizer)
