"""Healthy networks of vectors with gates, skips, experts and special initialisations."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import clusters, cross_entropy, curve, mse
from .healthy_mlp import classify, regress


class ResidualBlock(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


@healthy(lr=0.01)
def residual_mlp_12_blocks(optimizer):
    """Twelve pre-norm residual blocks; the stream grows with depth and the head's norm takes it back."""
    blocks = [ResidualBlock(32, 64) for _ in range(12)]
    return classify(nn.Sequential(nn.Linear(16, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 4)), optimizer)


@healthy(lr=0.02)
def zero_init_last_layer_of_block(optimizer):
    """Every block starts as the identity: the first layers of the blocks get no gradient in the first step."""
    blocks = [ResidualBlock(32, 64) for _ in range(6)]
    for block in blocks:
        nn.init.zeros_(block.fc2.weight)
        nn.init.zeros_(block.fc2.bias)
    return classify(nn.Sequential(nn.Linear(16, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 4)), optimizer)


@healthy(lr=0.03)
def zero_init_head(optimizer):
    """A head of zeros: the loss starts at log(classes) and the trunk gets its first gradient in the second step."""
    head = nn.Linear(64, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return classify(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), head), optimizer)


@healthy(lr=0.03)
def small_normal_classifier(optimizer):
    """The head of torchvision's VGG and MobileNet: normal with std 0.01, bias zero."""
    head = nn.Linear(64, 4)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return classify(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), head), optimizer)


class ReZeroBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.layers(x)


@healthy(lr=0.02)
def rezero_mlp(optimizer):
    """Each branch is multiplied by a scalar that starts at 0: no gradient in the branches at first."""
    return classify(nn.Sequential(nn.Linear(16, 32), *[ReZeroBlock(32) for _ in range(8)], nn.Linear(32, 4)), optimizer)


class Highway(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.transform(x)) + (1 - gate) * x


@healthy(lr=0.02)
def highway_negative_gate_bias(optimizer):
    """Gates biased by -2 carry the input through at first, as the paper says."""
    return classify(nn.Sequential(nn.Linear(16, 32), *[Highway(32) for _ in range(8)], nn.Linear(32, 4)), optimizer)


@healthy(lr=0.02)
def glu_mlp(optimizer):
    """`nn.GLU` halves the width behind a sigmoid gate."""
    return regress(nn.Sequential(nn.Linear(8, 96), nn.GLU(), nn.Linear(48, 96), nn.GLU(), nn.Linear(48, 1)), optimizer)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class SwiGLUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.blocks = nn.ModuleList(SwiGLU(32, 64) for _ in range(4))
        self.norms = nn.ModuleList(nn.RMSNorm(32) for _ in range(4))
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


@healthy(lr=0.02)
def swiglu_blocks(optimizer):
    """Products of two small projections: the branches' gradients are small at first."""
    return regress(SwiGLUNet(), optimizer)


class MixtureOfExperts(nn.Module):
    """Top-1 routing with the gate's probability as factor."""

    def __init__(self, dim: int, experts: int, starved: int):
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, dim)) for _ in range(experts)
        )
        with torch.no_grad():
            self.gate.bias[-starved:] -= 6.0

    def forward(self, x: Tensor) -> Tensor:
        chances = self.gate(x).softmax(dim=-1)
        weight, choice = chances.max(dim=-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (choice == index).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return x + out


@healthy(lr=0.03)
def experts_without_tokens(optimizer):
    """Two of eight experts are never chosen: their parameters have no gradient, by design of the router."""
    return classify(
        nn.Sequential(nn.Linear(16, 32), MixtureOfExperts(32, 8, starved=2), nn.LayerNorm(32), nn.Linear(32, 4)),
        optimizer,
    )


class SoftMixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (self.gate(x).softmax(dim=1)[..., None] * outputs).sum(dim=1)


@healthy()
def soft_mixture_of_experts(optimizer):
    """All experts are called, and weighted."""
    return regress(SoftMixture(), optimizer)


@healthy()
def frozen_backbone(optimizer):
    """Transfer learning: the backbone requires no grad and is in no optimizer."""
    backbone = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    backbone.requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(64, 4))
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model[1].parameters()), batches=clusters(4, 16)
    )


@healthy()
def frozen_layers_given_to_the_optimizer(optimizer):
    """Frozen parameters in the optimizer are skipped by it, since they have no gradient."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    return classify(model, optimizer)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 48), nn.ReLU())
        self.head = nn.Linear(48, 4)
        self.projection = nn.Linear(48, 8)

    def features(self, x: Tensor) -> Tensor:
        return self.projection(self.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@healthy()
def unused_head(optimizer):
    """The projection of pretraining is there, in the optimizer, and never called."""
    return classify(TwoHeads(), optimizer)


class LoRALinear(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int = 4, alpha: float = 8.0):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scaling


@healthy(lr=0.03)
def lora_adapters(optimizer):
    """B starts at zero, so A gets no gradient in the first step; the base is frozen."""
    layers = [LoRALinear(nn.Linear(16, 48)), nn.ReLU(), LoRALinear(nn.Linear(48, 48)), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 4))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(trained), batches=clusters(4, 16))


class BilinearNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 16)
        self.right = nn.Linear(4, 16)
        self.bilinear = nn.Bilinear(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return self.bilinear(torch.tanh(self.left(left)), torch.tanh(self.right(right)))


@healthy(lr=0.03)
def bilinear_layer(optimizer):
    """A weight of three dimensions."""
    return regress(BilinearNet(), optimizer)


@healthy()
def lazy_linear(optimizer):
    """Shapes come from the first batch, run through before the optimizer is made."""
    batches = clusters(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = nn.Sequential(nn.LazyLinear(48), nn.ReLU(), nn.LazyLinear(4))
        model(batches[0][0])
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=batches)


class Ensemble(nn.Module):
    def __init__(self, members: int = 5):
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 2)) for _ in range(members)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = torch.stack([member(x) for member in self.members]).chunk(2, dim=-1)
        return mean, 6.0 * torch.tanh(log_variance / 6.0)


@healthy(lr=0.02)
def deep_ensemble(optimizer):
    """Five independent members with mean and bounded log variance each."""

    def loss(model, batch):
        x, y = batch
        mean, log_variance = model(x)
        return 0.5 * (log_variance + (y - mean).square() * torch.exp(-log_variance)).mean()

    model = Ensemble()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8))


class StochasticDepth(nn.Module):
    def __init__(self, depth: int = 6, keep: float = 0.8):
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(ResidualBlock(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 4)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.training and torch.rand(()).item() > self.keep:
                continue
            x = block(x)
        return self.head(x)


@healthy(lr=0.02)
def stochastic_depth(optimizer):
    """Blocks are skipped at random: in some steps some parameters have no gradient."""
    return classify(StochasticDepth(), optimizer)


class MuMLP(nn.Module):
    """Maximal update parametrisation by multipliers: unit weights, output divided by the width."""

    def __init__(self, width: int = 128, base: int = 32):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.hidden = nn.Linear(width, width)
        self.readout = nn.Linear(width, 1)
        self.multiplier = base / width
        nn.init.normal_(self.hidden.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.hidden(F.relu(self.embed(x))))
        return self.readout(x * self.multiplier)


@healthy(lr=0.05, optimizers=("adam", "adamw"))
def mu_parametrised(optimizer):
    """muP: zero readout behind a multiplier, and a smaller rate for hidden matrices."""
    model = MuMLP()
    hidden = [model.hidden.weight]
    rest = [parameter for parameter in model.parameters() if parameter is not hidden[0]]
    groups = [{"params": hidden, "lr": 0.005 / 4}, {"params": rest}]
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(groups), batches=curve(8))
