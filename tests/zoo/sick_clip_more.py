"""More clips gone wrong: under a loss scale, inside a closure, by value, and of another module's parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, mse, regression

NO_EFFECT, SCALED = ("ineffective-clip",), ("scaled-clip",)
ONE = ("32-true",)


def _mlp(n_in=16, n_out=1, width=32):
    return nn.Sequential(nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, n_out))


def _setup(model, optimizer, training_step, batches, loss=mse):
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, training_step=training_step, batches=batches)


def _scaled(optimizer, *, unscales):
    model = _mlp(16, 4)
    made = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)

    def training_step(batch):
        made.zero_grad()
        loss = cross_entropy(model, batch)
        scaler.scale(loss).backward()
        if unscales:
            scaler.unscale_(made)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(made)
        scaler.update()
        return loss

    return _setup(model, made, training_step, classes(), cross_entropy)


@sick(check="", kinds=SCALED, says=("unscale_",), lr=0.02)
def clip_of_scaled_gradients(optimizer):
    """A norm of one is meant, and one over 2**14 is what the step gets."""
    return _scaled(optimizer, unscales=False)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_scaled_gradients_fixed(optimizer):
    """`unscale_` comes first."""
    return _scaled(optimizer, unscales=True)


def _swapped(optimizer, *, clips_first):
    model = _mlp()
    made = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu")

    def training_step(batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mse(model, batch)
        made.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if clips_first:
            clip_grad_norm_(model.parameters(), max_norm=5.0)
            scaler.unscale_(made)
        else:
            scaler.unscale_(made)
            clip_grad_norm_(model.parameters(), max_norm=5.0)
        scaler.step(made)
        scaler.update()
        return loss

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=SCALED, says=("unscale_",), lr=0.02)
def clip_before_unscale(optimizer):
    """`unscale_` is there, one line too late."""
    return _swapped(optimizer, clips_first=True)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_before_unscale_fixed(optimizer):
    """Unscale, clip, step."""
    return _swapped(optimizer, clips_first=False)


def _scaled_value(optimizer, *, unscales):
    model = _mlp(16, 4)
    made = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def training_step(batch):
        made.zero_grad()
        loss = cross_entropy(model, batch)
        scaler.scale(loss).backward()
        if unscales:
            scaler.unscale_(made)
        clip_grad_value_(model.parameters(), 0.1)
        scaler.step(made)
        scaler.update()
        return loss

    return _setup(model, made, training_step, classes(), cross_entropy)


@sick(check="", kinds=SCALED, says=("unscale_",), lr=0.02)
def value_clip_of_scaled_gradients(optimizer):
    """The same with a clip by value."""
    return _scaled_value(optimizer, unscales=False)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def value_clip_of_scaled_gradients_fixed(optimizer):
    """`unscale_` comes first."""
    return _scaled_value(optimizer, unscales=True)


def _closure(optimizer, *, clips_first):
    model = _mlp()
    made = optimizer(model.parameters())

    def training_step(batch):
        def closure():
            made.zero_grad()
            loss = mse(model, batch)
            if clips_first:
                clip_grad_norm_(model.parameters(), 0.5)
                loss.backward()
            else:
                loss.backward()
                clip_grad_norm_(model.parameters(), 0.5)
            return loss

        return made.step(closure)

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=NO_EFFECT, says=("backward",), lr=0.02)
def clip_misplaced_in_closure(optimizer):
    """Inside the closure, but before its backward."""
    return _closure(optimizer, clips_first=True)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_misplaced_in_closure_fixed(optimizer):
    """After it."""
    return _closure(optimizer, clips_first=False)


def _outside(optimizer, *, outside):
    model = _mlp()
    made = optimizer(model.parameters())

    def training_step(batch):
        def closure():
            made.zero_grad()
            loss = mse(model, batch)
            loss.backward()
            if not outside:
                clip_grad_norm_(model.parameters(), 0.5)
            return loss

        if outside:
            clip_grad_norm_(model.parameters(), 0.5)
        return made.step(closure)

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_outside_the_closure(optimizer):
    """Before the step whose closure makes the gradients anew."""
    return _outside(optimizer, outside=True)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_outside_the_closure_fixed(optimizer):
    """Inside it."""
    return _outside(optimizer, outside=False)


class Trainer:
    """A loop in a class, its clip in a method of its own."""

    def __init__(self, model, optimizer, loss, *, early):
        self.model, self.optimizer, self.loss, self.early = model, optimizer, loss, early

    def prepare(self):
        self.optimizer.zero_grad(set_to_none=False)
        if self.early:
            self.clip()

    def clip(self):
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if trained:
            clip_grad_value_(trained, clip_value=0.01)

    def fit(self, batch):
        self.prepare()
        loss = self.loss(self.model, batch)
        loss.backward()
        if not self.early:
            self.clip()
        self.optimizer.step()
        return loss.detach()


def _trained(optimizer, *, early):
    model = _mlp(16, 4)
    made = optimizer(model.parameters())
    return _setup(model, made, Trainer(model, made, cross_entropy, early=early).fit, classes(), cross_entropy)


@sick(check="", kinds=NO_EFFECT, says=("backward",), lr=0.02)
def value_clip_before_backward(optimizer):
    """A hook that runs before each step's backward clips by value."""
    return _trained(optimizer, early=True)


@healthy(lr=0.1, optimizers=("sgd", "adam"), precisions=ONE)
def value_clip_before_backward_fixed(optimizer):
    """It runs after it."""
    return _trained(optimizer, early=False)


class TwoTowers(nn.Module):
    """A generator of features and a scorer that alone is trained in this phase."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 24), nn.LeakyReLU())
        self.scorer = nn.Sequential(nn.Linear(24, 24), nn.LeakyReLU(), nn.Linear(24, 1))

    def forward(self, x):
        return self.scorer(self.generator(x))


def _scoring(optimizer, clipped):
    model = TwoTowers()
    made = optimizer(model.scorer.parameters())

    def training_step(batch):
        model.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        clip_grad_norm_(getattr(model, clipped).parameters(), 0.25)
        made.step()
        return loss

    return _setup(model, made, training_step, regression())


@sick(check="", kinds=NO_EFFECT, lr=0.02)
def clip_of_the_other_tower(optimizer):
    """Clips the generator, whose gradients nobody uses; the scorer is stepped unclipped."""
    return _scoring(optimizer, "generator")


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def clip_of_the_other_tower_fixed(optimizer):
    """Clips the scorer."""
    return _scoring(optimizer, "scorer")
