"""Healthy programs with unusual optimisation: closures, groups, schedules, several backwards, inner loops."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_blocks import ResidualBlock
from .healthy_data import clusters, cross_entropy, curve, mse
from .healthy_mlp import MLP


@healthy(optimizers=("sgd",), precisions=("32-true",))
def lbfgs_with_closure(optimizer):
    """Full batch, strong Wolfe line search: the loss is computed many times per step."""
    model = MLP([8, 24, 1], nn.Tanh)
    own = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3, line_search_fn="strong_wolfe")
    return TrainingSetup(model=model, loss=mse, optimizer=own, batches=curve(8, rows=128, count=1))


@healthy(optimizers=("sgd",))
def adagrad(optimizer):
    """Adagrad with its default accumulator and a large rate."""
    model = MLP([16, 48, 48, 4])
    own = torch.optim.Adagrad(model.parameters(), lr=0.03)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=own, batches=clusters())


@healthy(lr=0.02)
def two_parameter_groups(optimizer):
    """Fine-tuning: the backbone has a hundredth of the head's rate and hardly moves."""
    backbone = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model = nn.Sequential(backbone, nn.Linear(64, 4))
    own = optimizer([{"params": backbone.parameters(), "lr": 2e-5}, {"params": model[1].parameters()}])
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=own, batches=clusters())


@healthy(lr=0.05)
def gradient_accumulation(optimizer):
    """Four micro-batches per step, each loss divided by four."""
    model = MLP([16, 48, 48, 4])
    own = optimizer(model.parameters())

    def training_step(batch):
        own.zero_grad()
        total = 0
        for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
            value = cross_entropy(model, (x, y)) / 4
            value.backward()
            total = total + value.detach()
        own.step()
        return total

    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=own, batches=clusters(), training_step=training_step
    )


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(ResidualBlock(32, 64) for _ in range(4))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


@healthy(lr=0.02)
def activation_checkpointing(optimizer):
    """Blocks run a second time in the backward pass."""
    model = Checkpointed()
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters())


@healthy(lr=0.1)
def warm_up_from_a_hundredth(optimizer):
    """The rate rises from a hundredth over thirty steps: parameters hardly move at first."""
    model = MLP([16, 64, 64, 4])
    own = optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda step: min(1.0, 0.01 + 0.99 * step / 30))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=own, batches=clusters(), lr_scheduler=schedule)


@healthy(lr=0.1)
def one_cycle_and_clipping(optimizer):
    """Cosine to almost zero within the fifty steps, norms clipped at 1."""
    model = MLP([8, 64, 64, 1], nn.SiLU)
    own = optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, T_max=50)
    return TrainingSetup(
        model=model, loss=mse, optimizer=own, batches=curve(8), lr_scheduler=schedule, clip_grad_norm=1.0
    )


@healthy(lr=0.05)
def exponential_moving_average(optimizer):
    """A slow copy beside the model, for evaluation only, frozen."""
    live = MLP([16, 48, 48, 4])
    model = nn.ModuleDict({"live": live, "ema": copy.deepcopy(live).requires_grad_(False)})
    own = optimizer(live.parameters())

    def loss(model, batch):
        return cross_entropy(model["live"], batch)

    def training_step(batch):
        own.zero_grad()
        value = loss(model, batch)
        value.backward()
        own.step()
        with torch.no_grad():
            for slow, fast in zip(model["ema"].parameters(), live.parameters(), strict=True):
                slow.mul_(0.99).add_(fast, alpha=0.01)
        return value.detach()

    return TrainingSetup(model=model, loss=loss, optimizer=own, batches=clusters(), training_step=training_step)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=("32-true",))
def sharpness_aware(optimizer):
    """Two backwards per step; the weights are moved uphill in between and back."""
    model = MLP([16, 48, 48, 4])
    own = optimizer(model.parameters())

    def training_step(batch):
        own.zero_grad()
        value = cross_entropy(model, batch)
        value.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
            moves = [0.05 * p.grad / norm for p in model.parameters()]
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.add_(move)
        own.zero_grad()
        cross_entropy(model, batch).backward()
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.sub_(move)
        own.step()
        return value.detach()

    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=own, batches=clusters(), training_step=training_step
    )


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=("32-true",))
def maml_inner_loop(optimizer):
    """Sinusoid regression: three inner steps by `autograd.grad` with their graph, then the outer loss."""
    model = MLP([1, 32, 32, 1], nn.Tanh)

    def loss(model, batch):
        total = 0
        for x, y in zip(*batch, strict=True):
            fast = dict(model.named_parameters())
            for _ in range(3):
                inner = F.mse_loss(torch.func.functional_call(model, fast, (x[:10],)), y[:10])
                gradients = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
                fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), gradients, strict=True)}
            total = total + F.mse_loss(torch.func.functional_call(model, fast, (x[10:],)), y[10:])
        return total / len(batch[0])

    batches = []
    for _ in range(4):
        x = torch.rand(4, 20, 1) * 4 - 2
        batches.append((x, (0.5 + torch.rand(4, 1, 1)) * torch.sin(x + 0.5 * torch.rand(4, 1, 1))))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.03, precisions=("32-true",))
def gradient_penalty(optimizer):
    """Double backward through the input's gradient; the output bias gets none of the penalty's."""

    def loss(model, batch):
        x = batch[0].clone().requires_grad_()
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return F.mse_loss(output, batch[1]) + 0.1 * slope.square().sum(dim=1).mean()

    model = MLP([8, 48, 48, 1], nn.Softplus)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8))


@healthy(lr=0.03, optimizers=("sgd", "adam"), precisions=("32-true",))
def adversarial_training(optimizer):
    """FGSM: the attack's backward leaves gradients in the parameters, which zero_grad clears."""
    model = MLP([16, 64, 64, 4])

    def loss(model, batch):
        x, y = batch
        attacked = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(attacked), y), attacked)
        return F.cross_entropy(model(x + 0.1 * slope.sign()), y)

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


class ComplexLinear(nn.Module):
    """Complex Glorot initialisation: the variance is split between the parts."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, dtype=torch.cfloat) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class SpectralMixer(nn.Module):
    """An FFT, a complex linear layer on the low frequencies, and back, beside a pointwise path (Fourier operator)."""

    def __init__(self, modes: int = 6, width: int = 12):
        super().__init__()
        self.lift = nn.Linear(1, width)
        self.spectral = nn.ModuleList(ComplexLinear(width, width) for _ in range(2))
        self.local = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 1)
        self.modes = modes

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, local in zip(self.spectral, self.local, strict=True):
            low = torch.fft.rfft(x, dim=1)[:, : self.modes]
            x = F.gelu(torch.fft.irfft(spectral(low), n=x.shape[1], dim=1) + local(x))
        return self.head(x)


@healthy(lr=0.03, optimizers=("sgd", "adam", "adamw"), precisions=("32-true",))
def complex_fourier_layer(optimizer):
    """Complex parameters; the imaginary part of frequency 0 never matters."""
    batches = []
    for _ in range(6):
        x = torch.randn(16, 4, 1) @ torch.sin(torch.arange(1, 3)[:, None] * torch.linspace(0, 6.28, 24))[:1]
        wave = x.sum(dim=1)[..., None] / 2
        batches.append((wave, wave.cumsum(dim=1) / 6))
    model = SpectralMixer()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches)


class Sign(torch.autograd.Function):
    """The sign, with the gradient of hard tanh."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class BinaryLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Sign.apply(self.weight), self.bias)


class Binarise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


@healthy(lr=0.03, precisions=("32-true",))
def binarised_straight_through(optimizer):
    """Weights and activations of -1 and 1 between batch norms; many activations are beyond the gradient's window."""
    model = nn.Sequential(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64),
        Binarise(),
        BinaryLinear(64, 64),
        nn.BatchNorm1d(64),
        Binarise(),
        BinaryLinear(64, 4),
        nn.BatchNorm1d(4),
    )
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters())


class FakeQuantised(nn.Linear):
    """Eight bits by rounding with a straight-through gradient; one scale per tensor from the largest weight."""

    def quantise(self, x: Tensor) -> Tensor:
        scale = x.detach().abs().amax() / 127 + 1e-8
        rounded = (x / scale).round().clamp(-128, 127) * scale
        return x + (rounded - x).detach()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantise(x), self.quantise(self.weight), self.bias)


@healthy(lr=0.05)
def quantisation_aware(optimizer):
    """Rounding in the forward pass, identity in the backward one."""
    model = nn.Sequential(FakeQuantised(16, 48), nn.ReLU6(), FakeQuantised(48, 48), nn.ReLU6(), FakeQuantised(48, 4))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters())


@healthy(lr=0.05)
def pruned_half_of_the_weights(optimizer):
    """`torch.nn.utils.prune` masks half of each matrix: zero gradients there, for good."""
    from torch.nn.utils import prune

    model = MLP([16, 64, 64, 4])
    for index in (0, 2):
        prune.l1_unstructured(model.layers[index], "weight", amount=0.5)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters())


class HyperNetwork(nn.Module):
    """A small network makes the weights of another; its last layer is scaled down so that they start right."""

    def __init__(self, code: int = 4, hidden: int = 16):
        super().__init__()
        self.hidden = hidden
        self.code = nn.Parameter(torch.randn(code))
        self.maker = nn.Sequential(nn.Linear(code, 32), nn.Tanh(), nn.Linear(32, 8 * hidden + hidden))
        nn.init.normal_(self.maker[2].weight, std=math.sqrt(2 / 8 / 32) * 1.5)
        nn.init.zeros_(self.maker[2].bias)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.maker(self.code).split([8 * self.hidden, self.hidden])
        return self.head(F.relu(F.linear(x, weight.view(self.hidden, 8), bias)))


@healthy(lr=0.02)
def hypernetwork(optimizer):
    """One code for all rows: the maker sees one input, ever."""
    model = HyperNetwork()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=curve(8))


class Film(nn.Module):
    """Scales and shifts from a condition, identity at first (zero layer, 1 + gamma)."""

    def __init__(self):
        super().__init__()
        self.trunk1, self.trunk2 = nn.Linear(8, 48), nn.Linear(48, 48)
        self.film = nn.Linear(4, 96)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.film(x[:, :4]).chunk(2, dim=1)
        h = F.relu(self.trunk1(x))
        return self.head(F.relu((1 + gamma) * self.trunk2(h) + beta))


@healthy(lr=0.03)
def film_identity_init(optimizer):
    """The condition has no influence at first."""
    model = Film()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=curve(8))
