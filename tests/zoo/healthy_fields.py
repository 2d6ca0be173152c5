"""Healthy networks of coordinates and dynamics: physics-informed, sinusoidal, radiance-like, differential equations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import mse


def image_field(rows: int = 128, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Coordinates in [-1, 1]^2 and the value of a wavy picture there."""
    batches = []
    for _ in range(count):
        x = torch.rand(rows, 2) * 2 - 1
        batches.append((x, torch.sin(6 * x[:, :1]) * torch.cos(5 * x[:, 1:])))
    return batches


class PINN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((1, 32), (32, 32), (32, 32), (32, 1)))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def physics_informed(optimizer):
    """The residual of u'' = -pi^2 sin(pi x) with double backward; the output bias cancels out of the equation."""

    def loss(model, batch):
        x = batch.clone().requires_grad_()
        u = model(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        residual = second + math.pi**2 * torch.sin(math.pi * x)
        edges = model(torch.tensor([[-1.0], [1.0]]))
        return residual.square().mean() / 10 + 10 * edges.square().mean()

    model = PINN()
    batches = [torch.rand(64, 1) * 2 - 1 for _ in range(6)]
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class Sine(nn.Module):
    """A layer of SIREN with the uniform initialisation of the paper."""

    def __init__(self, inputs: int, outputs: int, first: bool = False, omega: float = 30.0):
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


@healthy(lr=0.003, precisions=("32-true",))
def siren(optimizer):
    """Weights thirty times smaller than usual behind a factor of thirty; gradients grow by it."""
    last = nn.Linear(48, 1)
    with torch.no_grad():
        last.weight.uniform_(-math.sqrt(6 / 48) / 30, math.sqrt(6 / 48) / 30)
    model = nn.Sequential(Sine(2, 48, first=True), Sine(48, 48), Sine(48, 48), last)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=image_field())


class FourierFeatures(nn.Module):
    """A fixed random matrix of a large std, as a buffer or as a frozen parameter."""

    def __init__(self, features: int, std: float, frozen_parameter: bool):
        super().__init__()
        matrix = torch.randn(features, 2) * std
        if frozen_parameter:
            self.matrix = nn.Parameter(matrix, requires_grad=False)
        else:
            self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * F.linear(x, self.matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


@healthy(lr=0.05, precisions=("32-true",))
def fourier_features_buffer(optimizer):
    """Std 10, in a buffer."""
    model = nn.Sequential(
        FourierFeatures(64, 10.0, frozen_parameter=False), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=image_field())


@healthy(lr=0.05, precisions=("32-true",))
def fourier_features_frozen_parameter(optimizer):
    """The same matrix as a parameter that requires no grad, given to the optimizer with all others."""
    model = nn.Sequential(
        FourierFeatures(64, 1.0, frozen_parameter=True), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=image_field())


class NeRF(nn.Module):
    """Octave encoding, a skip that concatenates the input again, a density and a colour branch."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.early = nn.ModuleList([nn.Linear(18, width), *[nn.Linear(width, width) for _ in range(2)]])
        self.late = nn.ModuleList([nn.Linear(width + 18, width), nn.Linear(width, width)])
        self.density = nn.Linear(width, 1)
        self.colour = nn.Sequential(nn.Linear(width + 2, 32), nn.ReLU(), nn.Linear(32, 3))

    def encode(self, x: Tensor) -> Tensor:
        scaled = [x * 2.0**i * math.pi for i in range(4)]
        return torch.cat([x, *[f(s) for s in scaled for f in (torch.sin, torch.cos)]], dim=-1)

    def forward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.encode(x)
        h = encoded
        for layer in self.early:
            h = F.relu(layer(h))
        h = torch.cat([h, encoded], dim=-1)
        for layer in self.late:
            h = F.relu(layer(h))
        return F.relu(self.density(h)), torch.sigmoid(self.colour(torch.cat([h, direction], dim=-1)))


@healthy(lr=0.01, optimizers=("adam", "adamw"), precisions=("32-true",))
def nerf_like(optimizer):
    """Volume rendering along rays; the density's ReLU is off for many samples, which the bias of 0.1 bounds."""

    def loss(model, batch):
        x, direction, colour = batch
        density, emitted = model(x, direction)
        alpha = 1 - torch.exp(-density.squeeze(-1) * 0.5)
        passed = torch.cumprod(torch.cat([torch.ones(len(x), 1), 1 - alpha + 1e-10], dim=1), dim=1)[:, :-1]
        return F.mse_loss(((passed * alpha)[..., None] * emitted).sum(dim=1), colour)

    batches = []
    for _ in range(6):
        origin = torch.rand(24, 1, 2) * 2 - 1
        direction = F.normalize(torch.randn(24, 1, 2), dim=-1).expand(-1, 8, -1)
        colour = torch.sigmoid(2 * torch.cat([origin[:, 0], origin[:, 0, :1]], dim=1))
        batches.append((origin + direction * torch.linspace(0, 1, 8)[:, None], direction, colour))
    model = NeRF()
    nn.init.constant_(model.density.bias, 0.1)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class NeuralODE(nn.Module):
    """Ten Euler steps of one small field, whose weights start at normal 0.1."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for _ in range(10):
            x = x + 0.1 * self.net(x)
            states.append(x)
        return torch.stack(states, dim=1)


@healthy(lr=0.05)
def neural_ode_euler(optimizer):
    """The spiral of torchdiffeq's example."""
    times = torch.arange(1, 11) * 0.1
    batches = []
    for _ in range(6):
        x = torch.randn(32, 2)
        decay, sine, cosine = torch.exp(-0.3 * times), torch.sin(2 * times), torch.cos(2 * times)
        turned = [x[:, :1] * cosine + x[:, 1:] * sine, x[:, 1:] * cosine - x[:, :1] * sine]
        batches.append((x, torch.stack(turned, dim=-1) * decay[:, None]))
    model = NeuralODE()
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches)


class SignedDistance(nn.Module):
    """DeepSDF's shape: latent code per object, weight norm, skip, tanh output."""

    def __init__(self, objects: int = 8):
        super().__init__()
        weight_norm = torch.nn.utils.parametrizations.weight_norm
        self.codes = nn.Embedding(objects, 8)
        nn.init.normal_(self.codes.weight, std=0.01)
        self.fc1 = weight_norm(nn.Linear(10, 48))
        self.fc2 = weight_norm(nn.Linear(48, 38))
        self.fc3 = weight_norm(nn.Linear(48, 48))
        self.fc4 = nn.Linear(48, 1)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        joined = torch.cat([self.codes(index), x], dim=1)
        h = F.relu(self.fc2(F.relu(self.fc1(joined))))
        return torch.tanh(self.fc4(F.relu(self.fc3(torch.cat([h, joined], dim=1)))))


@healthy(lr=0.03, precisions=("32-true",))
def signed_distance_codes(optimizer):
    """Codes of normal 0.01, clamped L1."""

    def loss(model, batch):
        x, index, distance = batch
        return F.l1_loss(model(x, index).squeeze(1).clamp(-0.5, 0.5), distance.clamp(-0.5, 0.5))

    radii = torch.rand(8) * 0.6 + 0.2
    batches = []
    for _ in range(6):
        x, index = torch.rand(64, 2) * 2 - 1, torch.randint(8, (64,))
        batches.append((x, index, x.norm(dim=1) - radii[index]))
    model = SignedDistance()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)
