"""Healthy generative models that minimise one loss: autoencoders, flows, diffusion, densities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import curve, pictures


def points(rows: int = 64, count: int = 8) -> list[Tensor]:
    """Two moons, standardised."""
    batches = []
    for _ in range(count):
        angle, upper = math.pi * torch.rand(rows), torch.rand(rows) < 0.5
        x = torch.where(upper, angle.cos(), 1 - angle.cos())
        y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
        moons = torch.stack([x - 0.5, y - 0.25], dim=1) + 0.05 * torch.randn(rows, 2)
        batches.append(moons * 1.4)
    return batches


def flat_pictures() -> list[Tensor]:
    return [batch.flatten(1) for batch in pictures()]


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self, inputs: int = 144, code: int = 24):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(code, inputs))
        self.encoder_bias = nn.Parameter(torch.zeros(code))
        self.decoder_bias = nn.Parameter(torch.zeros(inputs))
        nn.init.xavier_uniform_(self.weight)

    def encode(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight, self.encoder_bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encode(x), self.weight.t(), self.decoder_bias)


@healthy(lr=0.05)
def tied_autoencoder(optimizer):
    """One matrix used twice: its gradient is a sum."""

    def loss(model, batch):
        return F.mse_loss(model(batch), batch)

    model = TiedAutoencoder()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=flat_pictures())


@healthy(lr=0.05)
def denoising_autoencoder(optimizer):
    """A third of the inputs is set to 0."""

    def loss(model, batch):
        return F.mse_loss(model(batch * (torch.rand_like(batch) > 0.3)), batch)

    model = nn.Sequential(nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU())
    model = nn.Sequential(*model, nn.Linear(64, 144))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=flat_pictures())


class SparseAutoencoder(nn.Module):
    """Overcomplete, with L1 on the code: most units are silent on a row, on purpose."""

    def __init__(self, inputs: int = 32, code: int = 128):
        super().__init__()
        self.encoder = nn.Linear(inputs, code)
        self.decoder = nn.Linear(code, inputs)
        with torch.no_grad():
            self.decoder.weight.copy_(F.normalize(torch.randn(inputs, code), dim=0))
            self.encoder.weight.copy_(self.decoder.weight.t())
            self.encoder.bias.fill_(-0.1)
            self.decoder.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.encoder(x - self.decoder.bias))
        return self.decoder(code), code


@healthy(lr=0.02)
def sparse_autoencoder(optimizer):
    """The dictionary learning of interpretability work: tied at the start, negative bias, L1."""

    def loss(model, batch):
        output, code = model(batch)
        return F.mse_loss(output, batch) + 1e-2 * code.sum(dim=1).mean() / 4

    dictionary = F.normalize(torch.randn(64, 32), dim=1)
    batches = [torch.rand(32, 64).mul(torch.rand(32, 64) < 0.06) @ dictionary * 3 for _ in range(6)]
    model = SparseAutoencoder()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class VAE(nn.Module):
    """The example of PyTorch: sigmoid output, summed losses."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(144, 64)
        self.fc21 = nn.Linear(64, 8)
        self.fc22 = nn.Linear(64, 8)
        self.fc3 = nn.Linear(8, 64)
        self.fc4 = nn.Linear(64, 144)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        mean, log_variance = self.fc21(h), self.fc22(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mean, log_variance


@healthy(lr=0.01, optimizers=("adam", "adamw", "rmsprop"))
def vae_summed_loss(optimizer):
    """The loss is a sum over pixels and rows, in thousands, with gradients to match: for Adam only."""

    def loss(model, batch):
        output, mean, log_variance = model(batch)
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return F.binary_cross_entropy(output, batch, reduction="sum") + kl

    model = VAE()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=flat_pictures())


class ConvVAE(nn.Module):
    def __init__(self, code: int = 6):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.to_code = nn.Linear(144, 2 * code)
        self.decoder = nn.Sequential(
            nn.Linear(code, 144),
            nn.ReLU(),
            nn.Unflatten(1, (16, 3, 3)),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.to_code(self.encoder(x)).chunk(2, dim=1)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp()), mean, log_variance


@healthy(lr=0.01)
def beta_vae_conv(optimizer):
    """Beta 4 pushes codes to the prior at first: posterior collapse that passes."""

    def loss(model, batch):
        logits, mean, log_variance = model(batch)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        error = F.binary_cross_entropy_with_logits(logits, batch, reduction="none").sum(dim=(1, 2, 3)).mean()
        return (error + 4 * kl) / 144

    model = ConvVAE()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=pictures())


class Coupling(nn.Module):
    """An affine coupling of RealNVP; zeros in the last layer make it the identity at first."""

    def __init__(self, flip: bool):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.flip(1).chunk(2, dim=1) if self.flip else x.chunk(2, dim=1)
        log_scale, shift = self.net(kept).chunk(2, dim=1)
        log_scale = torch.tanh(log_scale)
        changed = changed * log_scale.exp() + shift
        joined = torch.cat([kept, changed], dim=1)
        return (joined.flip(1) if self.flip else joined), log_scale.squeeze(1)


class RealNVP(nn.Module):
    def __init__(self, depth: int = 6):
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(bool(i % 2)) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for coupling in self.couplings:
            x, log_scale = coupling(x)
            total = total + log_scale
        return -0.5 * (x.square() + math.log(2 * math.pi)).sum(dim=1) + total


def negative_likelihood(model, batch):
    return -model(batch).mean()


@healthy(lr=0.01, precisions=("32-true",))
def real_nvp(optimizer):
    """Identity at first: all layers but the last get no gradient in the first step."""
    model = RealNVP()
    return TrainingSetup(
        model=model, loss=negative_likelihood, optimizer=optimizer(model.parameters()), batches=points()
    )


class TimeBlock(nn.Module):
    def __init__(self, channels: int, time_dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, channels), nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_dim, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class Denoiser(nn.Module):
    """Sinusoidal time embedding; zero last convolutions in the blocks and at the end."""

    def __init__(self, channels: int = 16, time_dim: int = 32):
        super().__init__()
        self.time_dim = time_dim
        self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(TimeBlock(channels, time_dim) for _ in range(2))
        self.norm_out = nn.GroupNorm(4, channels)
        self.conv_out = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        half = self.time_dim // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half).float() / half)
        angles = time[:, None].float() * frequency
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype))
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, embedding)
        return self.conv_out(F.silu(self.norm_out(x)))


@healthy(lr=0.05)
def tiny_ddpm(optimizer):
    """The output is 0 at first, the loss 1; gradients reach the blocks step by step."""
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 200), dim=0)

    def loss(model, batch):
        time = torch.randint(200, (len(batch),))
        signal = bar[time][:, None, None, None].to(batch.dtype)
        noise = torch.randn_like(batch)
        return F.mse_loss(model(signal.sqrt() * batch + (1 - signal).sqrt() * noise, time), noise)

    model = Denoiser()
    batches = [2 * batch - 1 for batch in pictures(size=8, rows=12)]
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class VectorQuantizer(nn.Module):
    """Nearest code with a straight-through gradient; codes uniform within 1/K."""

    def __init__(self, codes: int = 32, dim: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        distance = (z.detach()[:, None] - self.embedding.weight.detach()).square().sum(dim=-1)
        code = self.embedding(distance.argmin(dim=1))
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return z + (code - z).detach(), loss


class VQVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, 8))
        self.quantizer = VectorQuantizer()
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 144))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code, loss = self.quantizer(self.encoder(x))
        return self.decoder(code), loss


@healthy(lr=0.05, precisions=("32-true",))
def vq_vae(optimizer):
    """Only the chosen codes move; many are never chosen."""

    def loss(model, batch):
        output, commitment = model(batch)
        return F.mse_loss(output, batch) + commitment

    model = VQVAE()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=flat_pictures())


class MaskedLinear(nn.Linear):
    """Weights under a fixed mask: half of them never get a gradient."""

    def __init__(self, inputs: int, outputs: int, mask: Tensor):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


@healthy(lr=0.1, optimizers=("adam", "adamw", "rmsprop"))
def made_masked_linear(optimizer):
    """Autoregressive bits: the first output depends on no input but has a bias."""

    def loss(model, batch):
        return F.binary_cross_entropy_with_logits(model(batch), batch)

    inputs, hidden = torch.arange(1, 17), torch.arange(64) % 15 + 1
    model = nn.Sequential(
        MaskedLinear(16, 64, (hidden[:, None] >= inputs).float()),
        nn.ReLU(),
        MaskedLinear(64, 64, (hidden[:, None] >= hidden).float()),
        nn.ReLU(),
        MaskedLinear(64, 16, (inputs[:, None] > hidden).float()),
    )
    batches = []
    for _ in range(6):
        first = (torch.rand(32, 8) < 0.5).float()
        batches.append(torch.stack([first, (first + (torch.rand(32, 8) < 0.1)) % 2], dim=2).flatten(1))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.02, precisions=("32-true",))
def mixture_density(optimizer):
    """Five components with log standard deviations by the network, in a logsumexp."""

    def loss(model, batch):
        x, y = batch
        logits, mean, log_std = model(x).chunk(3, dim=1)
        log_density = -0.5 * ((y - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(logits.log_softmax(dim=1) + log_density, dim=1).mean()

    model = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 15))
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8), clip_grad_norm=5.0
    )
