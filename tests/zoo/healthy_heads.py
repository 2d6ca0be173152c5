"""Healthy programs whose particularity is the loss, the head or the scale of the targets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import clusters, cross_entropy, curve, mse


def orthogonal(layer: nn.Linear, gain: float = math.sqrt(2)) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class ActorCritic(nn.Module):
    """As in CleanRL: orthogonal trunks, policy head of gain 0.01, value head of gain 1."""

    def __init__(self, observations: int = 8, actions: int = 4):
        super().__init__()
        self.critic = nn.Sequential(
            orthogonal(nn.Linear(observations, 64)),
            nn.Tanh(),
            orthogonal(nn.Linear(64, 64)),
            nn.Tanh(),
            orthogonal(nn.Linear(64, 1), 1.0),
        )
        self.actor = nn.Sequential(
            orthogonal(nn.Linear(observations, 64)),
            nn.Tanh(),
            orthogonal(nn.Linear(64, 64)),
            nn.Tanh(),
            orthogonal(nn.Linear(64, actions), 0.01),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x).squeeze(-1)


def rollouts(rows: int = 64, count: int = 6) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Observations, actions of a uniform policy, their log probability, advantages, returns."""
    best = torch.randn(8, 4)
    batches = []
    for _ in range(count):
        x, actions = torch.randn(rows, 8), torch.randint(4, (rows,))
        gains = (x @ best).softmax(dim=1).gather(1, actions[:, None]).squeeze(1)
        advantages = (gains - gains.mean()) / (gains.std() + 1e-8)
        batches.append((x, actions, torch.full((rows,), -math.log(4)), advantages, gains))
    return batches


@healthy(lr=0.01)
def actor_critic_ppo(optimizer):
    """The small gain of the policy head makes the actor's gradients a hundredth of the critic's."""

    def loss(model, batch):
        x, actions, old, advantages, returns = batch
        logits, value = model(x)
        log_probs = logits.log_softmax(dim=-1)
        ratio = (log_probs.gather(1, actions[:, None]).squeeze(1) - old).exp()
        policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        return policy + 0.5 * F.mse_loss(value, returns) - 0.01 * entropy

    model = ActorCritic()
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=rollouts(), clip_grad_norm=0.5
    )


@healthy(lr=0.02, precisions=("32-true",))
def reinforce(optimizer):
    """Policy gradient with normalised returns: the loss is near 0 by construction and only its gradient counts."""

    def loss(model, batch):
        x, actions, _, advantages, _ = batch
        return -(model(x).log_softmax(dim=-1).gather(1, actions[:, None]).squeeze(1) * advantages).mean()

    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=rollouts())


def rare_positives(rows: int = 64, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    direction = torch.randn(16) / 4
    batches = []
    for _ in range(count):
        x = torch.randn(rows, 16)
        batches.append((x, (x @ direction + 0.3 * torch.randn(rows) > 1.35).float()))
    return batches


@healthy()
def binary_one_in_ten(optimizer):
    """One positive in ten: the bias moves first."""

    def loss(model, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(model(x).squeeze(-1), y)

    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=rare_positives())


@healthy(lr=0.1)
def prior_bias_head_focal(optimizer):
    """RetinaNet's head: normal 0.01 weights and a bias of -4.6, so every probability starts at 0.01."""

    def loss(model, batch):
        x, y = batch
        logits = model(x).squeeze(-1)
        chance = torch.sigmoid(logits)
        plain = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        right = chance * y + (1 - chance) * (1 - y)
        weight = 0.25 * y + 0.75 * (1 - y)
        return (weight * (1 - right) ** 2 * plain).sum() / y.sum().clamp(min=1)

    head = nn.Linear(64, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), head)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=rare_positives())


@healthy()
def probabilities_and_bce(optimizer):
    """Sigmoid output and BCELoss, as beginners' examples do it."""

    def loss(model, batch):
        x, y = batch
        return F.binary_cross_entropy(model(x).squeeze(-1), y)

    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=rare_positives())


@healthy(lr=0.01, optimizers=("sgd", "adam"), precisions=("32-true",))
def targets_offset_100(optimizer):
    """Targets around 100: a large loss at first, all in the mean, which the output bias starts at."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    batches = [(x, 100 + 5 * y) for x, y in curve(8)]
    nn.init.constant_(model[-1].bias, 97.0)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.002, optimizers=("sgd",), precisions=("32-true",))
def raw_targets_offset_20(optimizer):
    """Unscaled targets around 20 and a default bias: big first gradients, clipped, and it converges."""
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    batches = [(x, 20 + 3 * y) for x, y in curve(8)]
    return TrainingSetup(
        model=model, loss=mse, optimizer=optimizer(model.parameters()), batches=batches, clip_grad_norm=50.0
    )


class MeanAndVariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.mean = nn.Linear(48, 1)
        self.variance = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.mean(features), F.softplus(self.variance(features)) + 1e-3


@healthy(lr=0.01)
def gaussian_nll_heads(optimizer):
    """Mean and variance by two heads; softplus keeps the variance off 0."""

    def loss(model, batch):
        x, y = batch
        mean, variance = model(x)
        return F.gaussian_nll_loss(mean, y, variance)

    model = MeanAndVariance()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8))


@healthy(lr=0.05)
def quantile_regression(optimizer):
    """Pinball loss: gradients are constants, never small near the solution."""

    def loss(model, batch):
        x, y = batch
        levels = torch.tensor([0.1, 0.5, 0.9])
        error = y - model(x)
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8))


@healthy(lr=0.03)
def huber_multi_output(optimizer):
    """Six outputs; gradients of far errors are clipped by the loss."""

    def loss(model, batch):
        x, y = batch
        return F.smooth_l1_loss(model(x), y)

    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=curve(8, 6))


class MultiTask(nn.Module):
    """A shared trunk, a classifier, a regressor; learnt log variances weigh the losses."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 4)
        self.regressor = nn.Linear(64, 1)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.classifier(features), self.regressor(features).squeeze(-1)


@healthy(lr=0.02)
def multi_task_uncertainty(optimizer):
    """Kendall's uncertainty weighting: the weights start at zero, as log variances."""

    def loss(model, batch):
        x, y, value = batch
        logits, estimate = model(x)
        losses = torch.stack([F.cross_entropy(logits, y), F.mse_loss(estimate, value)])
        return (losses * torch.exp(-model.log_variances) + model.log_variances).sum()

    model = MultiTask()
    batches = [(x, y, (x.square().mean(dim=1) - 1) / 0.4) for x, y in clusters(4, 16)]
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches, clip_grad_norm=1.0
    )


@healthy()
def label_smoothing(optimizer):
    """The loss has a floor well above 0."""

    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


@healthy()
def mixup(optimizer):
    """Inputs and losses are mixed with a permutation of the batch."""

    def loss(model, batch):
        x, y = batch
        share, order = 0.5 + 0.5 * torch.rand(()), torch.randperm(len(x))
        logits = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])

    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


class DeepSupervision(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(n, 32), nn.ReLU()) for n in (16, 32, 32))
        self.heads = nn.ModuleList(nn.Linear(32, 4) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(head(x))
        return logits


@healthy()
def auxiliary_heads(optimizer):
    """Deep supervision with weight 0.3, as in GoogLeNet."""

    def loss(model, batch):
        x, y = batch
        *auxiliary, last = [F.cross_entropy(logits, y) for logits in model(x)]
        return last + 0.3 * sum(auxiliary)

    model = DeepSupervision()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


@healthy(lr=0.03)
def knowledge_distillation(optimizer):
    """A frozen teacher inside the module; temperature 4 and its square."""
    teacher = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).requires_grad_(False)
    student = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model = nn.ModuleDict({"teacher": teacher, "student": student})

    def loss(model, batch):
        x, y = batch
        logits = model["student"](x)
        soft = F.kl_div(
            F.log_softmax(logits / 4, dim=1), F.softmax(model["teacher"](x) / 4, dim=1), reduction="batchmean"
        )
        return 16 * soft + F.cross_entropy(logits, y)

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(student.parameters()), batches=clusters())


@healthy(lr=0.1)
def softmax_regression(optimizer):
    """One linear layer of zeros is convex: no symmetry to break."""
    model = nn.Linear(16, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=clusters())
