"""Clips that touch none of the gradients their optimizer uses: too early, too late, or of other parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, mse, regression, series

NO_EFFECT = ("ineffective-clip",)
ONE = ("32-true",)


def _mlp(n_in=16, n_out=1):
    return nn.Sequential(nn.Linear(n_in, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n_out))


def _setup(model, optimizer, training_step, batches, loss=mse):
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, training_step=training_step, batches=batches)


@sick(check="", kinds=NO_EFFECT, says=("backward",), lr=0.02)
def clip_before_backward(optimizer):
    """Clips between zero_grad and backward."""
    model = _mlp()
    made = optimizer(model.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        clip_grad_norm_(model.parameters(), 0.5)
        loss.backward()
        made.step()
        return loss

    return _setup(model, made, training_step, regression())


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_before_backward_fixed(optimizer):
    """Clips between backward and step."""
    model = _mlp()
    made = optimizer(model.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        clip_grad_norm_(model.parameters(), 0.5)
        made.step()
        return loss

    return _setup(model, made, training_step, regression())


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 24, batch_first=True)
        self.score = nn.Linear(24, 1)

    def forward(self, x):
        return self.score(self.lstm(x)[0][:, -1])


@sick(check="", kinds=NO_EFFECT, says=("step",), lr=0.02)
def clip_after_step(optimizer):
    """Clips what the step has used already; zero_grad comes next."""
    model = Tagger()
    made = optimizer(model.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        made.step()
        clip_grad_norm_(model.parameters(), max_norm=0.25)
        return loss

    return _setup(model, made, training_step, series(length=12))


@healthy(lr=0.05, optimizers=("adam",), precisions=ONE)
def clip_after_step_fixed(optimizer):
    """Clips before the step."""
    model = Tagger()
    made = optimizer(model.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        clip_grad_norm_(model.parameters(), max_norm=0.25)
        made.step()
        return loss

    return _setup(model, made, training_step, series(length=12))


class Agent(nn.Module):
    """An online network and the slow copy that its targets come from."""

    def __init__(self):
        super().__init__()
        self.online = _mlp(8, 3)
        self.target = copy.deepcopy(self.online)

    def forward(self, x):
        return self.online(x)


def _transitions(count=4, rows=32):
    batches = []
    for _ in range(count):
        state, action = torch.randn(rows, 8), torch.randint(3, (rows, 1))
        batches.append((state, action, state.mean(1, keepdim=True), torch.randn(rows, 8)))
    return batches


def bellman(model, batch):
    """The error of one-step targets."""
    state, action, reward, following = batch
    with torch.no_grad():
        goal = reward + 0.9 * model.target(following).max(1, keepdim=True).values
    return (model(state).gather(1, action) - goal).pow(2).mean()


def _q_learning(optimizer, clipped):
    model = Agent()
    made = optimizer(model.online.parameters())

    def training_step(batch):
        loss = bellman(model, batch)
        made.zero_grad()
        loss.backward()
        clip_grad_norm_(getattr(model, clipped).parameters(), 0.1)
        made.step()
        with torch.no_grad():
            for slow, fast in zip(model.target.parameters(), model.online.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return loss

    return _setup(model, made, training_step, _transitions(), bellman)


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_of_the_target_network(optimizer):
    """Clips the target network, which has no gradients; the online one is stepped."""
    return _q_learning(optimizer, "target")


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_the_target_network_fixed(optimizer):
    """Clips the online network."""
    return _q_learning(optimizer, "online")


def _from_variable(optimizer, collect):
    model = _mlp(16, 4)
    parameters = collect(p for p in model.parameters() if p.requires_grad)
    made = optimizer(parameters)

    def training_step(batch):
        made.zero_grad(set_to_none=True)
        loss = cross_entropy(model, batch)
        loss.backward()
        clip_grad_norm_(parameters, 0.1, error_if_nonfinite=False)
        made.step()
        return loss

    return _setup(model, made, training_step, classes(), cross_entropy)


@sick(check="", kinds=NO_EFFECT, says=("generator",), lr=0.02)
def clip_of_a_used_generator(optimizer):
    """The optimizer has used up the generator of trainable parameters."""
    return _from_variable(optimizer, iter)


@healthy(lr=0.1, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_a_used_generator_fixed(optimizer):
    """A list can be read twice."""
    return _from_variable(optimizer, list)


class FineTuned(nn.Module):
    """A frozen backbone under a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))
        self.backbone.requires_grad_(False)

    def forward(self, x):
        return self.head(self.backbone(x))


def _fine_tuning(optimizer, clipped):
    model = FineTuned()
    made = optimizer(model.head.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        clip_grad_norm_(getattr(model, clipped).parameters(), 0.1)
        made.step()
        return loss

    return _setup(model, made, training_step, classes(), cross_entropy)


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_of_the_frozen_part(optimizer):
    """Clips the frozen backbone; only the head learns."""
    return _fine_tuning(optimizer, "backbone")


@healthy(lr=0.1, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_the_frozen_part_fixed(optimizer):
    """Clips the head."""
    return _fine_tuning(optimizer, "head")


def _with_backup(optimizer, *, clips_backup):
    model = _mlp()
    backup = copy.deepcopy(model)
    made = optimizer(model.parameters())
    clipped = list((backup if clips_backup else model).parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        clip_grad_norm_(clipped, 0.5)
        made.step()
        return loss

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_of_a_deepcopy(optimizer):
    """Clips the parameters of a backup of the model."""
    return _with_backup(optimizer, clips_backup=True)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_a_deepcopy_fixed(optimizer):
    """Clips those of the model."""
    return _with_backup(optimizer, clips_backup=False)


def _gradients_given(optimizer, pick):
    model = _mlp()
    made = optimizer(model.parameters())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        clip_grad_norm_([pick(parameter) for parameter in model.parameters()], 0.5)
        made.step()
        return loss

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_of_the_gradients_themselves(optimizer):
    """Hands over `p.grad` instead of `p`: gradients have no gradients."""
    return _gradients_given(optimizer, lambda parameter: parameter.grad)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_the_gradients_themselves_fixed(optimizer):
    """Hands over the parameters."""
    return _gradients_given(optimizer, lambda parameter: parameter)
