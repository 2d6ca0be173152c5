"""Healthy programs whose loss need not fall: adversarial games, contrastive divergence, moving targets."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributions import Normal

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import pictures
from .healthy_generative import points


def fully_connected(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


class Pair(nn.Module):
    """A generator and a discriminator in one module."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent: int):
        super().__init__()
        self.generator, self.discriminator, self.latent = generator, discriminator, latent

    def fake(self, like: Tensor) -> Tensor:
        return self.generator(torch.randn(len(like), self.latent))


def play(model, optimizer, batches, *, judge, deceive, clip=None):
    """Alternate a step of the discriminator and one of the generator."""
    for_d = optimizer(model.discriminator.parameters())
    for_g = optimizer(model.generator.parameters())

    def loss(model, batch):
        return deceive(model.discriminator(model.fake(batch)))

    def training_step(batch):
        for_d.zero_grad()
        d_loss = judge(model.discriminator(batch), model.discriminator(model.fake(batch).detach()))
        d_loss.backward()
        for_d.step()
        if clip is not None:
            with torch.no_grad():
                for parameter in model.discriminator.parameters():
                    parameter.clamp_(-clip, clip)
        for_g.zero_grad()
        g_loss = loss(model, batch)
        g_loss.backward()
        for_g.step()
        return d_loss.detach() + g_loss.detach()

    return TrainingSetup(model=model, loss=loss, optimizer=[for_d, for_g], batches=batches, training_step=training_step)


@healthy(lr=0.02, optimizers=("adam", "rmsprop"))
def gan_non_saturating(optimizer):
    """Two optimizers; the discriminator's leftover gradients of the generator's turn are dropped."""
    model = Pair(fully_connected([8, 48, 48, 2]), fully_connected([2, 48, 48, 1]), 8)
    return play(
        model,
        optimizer,
        points(),
        judge=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        deceive=lambda fake: F.softplus(-fake).mean(),
    )


@healthy(lr=0.02, optimizers=("adam",))
def least_squares_gan(optimizer):
    """Squared errors instead of log odds."""
    model = Pair(fully_connected([8, 48, 48, 2]), fully_connected([2, 48, 48, 1]), 8)
    return play(
        model,
        optimizer,
        points(),
        judge=lambda real, fake: ((real - 1) ** 2).mean() + (fake**2).mean(),
        deceive=lambda fake: ((fake - 1) ** 2).mean(),
    )


@healthy(lr=0.03, optimizers=("rmsprop",), precisions=("32-true",))
def wasserstein_gan_clipped(optimizer):
    """Weights of the critic are clamped to 0.03, most lie on the bound and its gradients shrink by it."""
    model = Pair(fully_connected([8, 48, 48, 2]), fully_connected([2, 48, 48, 1]), 8)
    return play(
        model,
        optimizer,
        points(),
        judge=lambda real, fake: fake.mean() - real.mean(),
        deceive=lambda fake: -fake.mean(),
        clip=0.03,
    )


def dcgan_init(module: nn.Module) -> None:
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


@healthy(lr=0.002, optimizers=("adam",))
def dcgan(optimizer):
    """Normal 0.02 convolutions between batch norms, tanh output, betas (0.5, 0.999)."""
    generator = nn.Sequential(
        nn.Unflatten(1, (16, 1, 1)),
        nn.ConvTranspose2d(16, 32, 3, 1, 0, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 1, 3, 1, 0, bias=False),
        nn.Flatten(),
    )
    model = Pair(generator, discriminator, 16).apply(dcgan_init)

    def make(parameters):
        return optimizer(parameters, betas=(0.5, 0.999))

    return play(
        model,
        make,
        [2 * batch - 1 for batch in pictures()],
        judge=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        deceive=lambda fake: F.softplus(-fake).mean(),
    )


class RBM(nn.Module):
    """Weights normal 0.01, as Hinton's guide says; trained by the difference of free energies."""

    def __init__(self, visible: int = 144, hidden: int = 32):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, visible) * 0.01)
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def free_energy(self, v: Tensor) -> Tensor:
        return -(v @ self.visible_bias) - F.softplus(F.linear(v, self.weight, self.hidden_bias)).sum(dim=1)

    @torch.no_grad()
    def sample(self, v: Tensor) -> Tensor:
        h = torch.bernoulli(torch.sigmoid(F.linear(v, self.weight, self.hidden_bias)))
        return torch.bernoulli(torch.sigmoid(F.linear(h, self.weight.t(), self.visible_bias)))

    def forward(self, v: Tensor) -> Tensor:
        return self.free_energy(v).mean() - self.free_energy(self.sample(v)).mean()


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def contrastive_divergence(optimizer):
    """The loss is a difference around 0 that says nothing of progress."""
    model = RBM()
    batches = [(batch.flatten(1) > 0.5).float() for batch in pictures()]
    return TrainingSetup(
        model=model, loss=lambda model, batch: model(batch), optimizer=optimizer(model.parameters()), batches=batches
    )


def transitions(rows: int = 32, count: int = 6) -> list[tuple[Tensor, ...]]:
    drift = torch.randn(6) / 3
    batches = []
    for _ in range(count):
        state, action = torch.randn(rows, 6), torch.randint(3, (rows,))
        reward = (state @ drift) * (action - 1)
        done = (torch.rand(rows) < 0.1).float()
        batches.append((state, action, reward, state + 0.3 * torch.randn(rows, 6), done))
    return batches


class DQN(nn.Module):
    """Dueling heads and a frozen copy as target."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.value = nn.Linear(64, 1)
        self.advantage = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(dim=1, keepdim=True)


@healthy(lr=0.01)
def dqn_target_network(optimizer):
    """The target network is in the module, frozen, and copied every tenth call, so targets move."""
    online = DQN()
    model = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    count = itertools.count(1)

    def loss(model, batch):
        state, action, reward, following, done = batch
        if next(count) % 10 == 0:
            model["target"].load_state_dict(model["online"].state_dict())
        value = model["online"](state).gather(1, action[:, None]).squeeze(1)
        with torch.no_grad():
            best = model["target"](following).amax(dim=1)
        return F.smooth_l1_loss(value, reward + 0.9 * (1 - done) * best)

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(online.parameters()), batches=transitions())


class SquashedActor(nn.Module):
    """As in CleanRL's SAC: tanh-squashed Gaussian, log std squashed into [-5, 2]; a critic beside."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.fc_mean = nn.Linear(64, 2)
        self.fc_logstd = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        log_std = -5 + 0.5 * 7 * (torch.tanh(self.fc_logstd(h)) + 1)
        normal = Normal(self.fc_mean(h), log_std.exp())
        raw = normal.rsample()
        action = torch.tanh(raw)
        log_prob = normal.log_prob(raw) - torch.log(1 - action.square() + 1e-6)
        return action, log_prob.sum(dim=1)


@healthy(lr=0.02, optimizers=("adam", "adamw"), precisions=("32-true",))
def soft_actor(optimizer):
    """Gradients through a frozen critic; entropy weight 0.2."""
    critic = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).requires_grad_(False)
    actor = SquashedActor()
    model = nn.ModuleDict({"actor": actor, "critic": critic})

    def loss(model, batch):
        action, log_prob = model["actor"](batch)
        return (0.2 * log_prob - model["critic"](torch.cat([batch, action], dim=1)).squeeze(1)).mean()

    batches = [torch.randn(32, 6) for _ in range(6)]
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(actor.parameters()), batches=batches)


@healthy(lr=0.02)
def distributional_dqn(optimizer):
    """C51's projected targets: cross-entropy over fixed atoms; one action's head per row."""
    atoms = 11
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3 * atoms))

    def loss(model, batch):
        state, action, reward, *_ = batch
        log_probs = model(state).view(-1, 3, atoms)[torch.arange(len(state)), action].log_softmax(dim=1)
        place = (reward.float().clamp(-2, 2) + 2) / 4 * (atoms - 1)
        weights = (1 - (place[:, None] - torch.arange(atoms)).abs()).clamp(min=0).to(log_probs.dtype)
        return -(weights * log_probs).sum(dim=1).mean()

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=transitions())


@healthy(lr=0.01, optimizers=("adam", "sgd"))
def self_supervised_byol(optimizer):
    """A frozen slow copy, no negatives: representations may shrink a little before they grow."""
    online = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 16))
    predictor = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 16))
    model = nn.ModuleDict(
        {"online": online, "predictor": predictor, "slow": copy.deepcopy(online).requires_grad_(False)}
    )
    own = optimizer([*online.parameters(), *predictor.parameters()])

    def loss(model, batch):
        one, two = batch + 0.2 * torch.randn_like(batch), batch + 0.2 * torch.randn_like(batch)
        with torch.no_grad():
            target = model["slow"](two)
        return 2 - 2 * F.cosine_similarity(model["predictor"](model["online"](one)), target, dim=1).mean()

    def training_step(batch):
        own.zero_grad()
        value = loss(model, batch)
        value.backward()
        own.step()
        with torch.no_grad():
            for slow, fast in zip(model["slow"].parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return value.detach()

    batches = [torch.randn(32, 4) @ torch.randn(4, 16) / 2 for _ in range(4)]
    return TrainingSetup(model=model, loss=loss, optimizer=own, batches=batches, training_step=training_step)
