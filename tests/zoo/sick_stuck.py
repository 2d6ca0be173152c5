"""Parameters that no step changes: updates below the last bit, restored weights, steps that write elsewhere."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from pytest_nanstab import TrainingSetup

from . import healthy, sick
from .sick_data import classes, cross_entropy, mse, next_token, regression, tokens

STUCK = ("stuck-parameter", "vanishing-gradient")
ONE = ("32-true",)


class Gains(nn.Module):
    """Dense layers whose outputs are scaled by gains near one."""

    def __init__(self, width=32):
        super().__init__()
        self.inp = nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.mid = nn.Linear(width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        return self.out(F.gelu(self.mid(F.gelu(self.norm(self.inp(x))))))


def _gains(optimizer, **more):
    model = Gains()
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes(), **more
    )


@sick(check="gradient_bounds", kinds=STUCK, says=("learning rate",), lr=1e-14)
def rate_below_the_last_bit(optimizer):
    """A rate of 1e-14: no update reaches the last bit of any weight."""
    return _gains(optimizer)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=ONE)
def rate_below_the_last_bit_fixed(optimizer):
    """A rate of 0.02."""
    return _gains(optimizer)


def _noam(optimizer, power):
    model = Gains()
    made = optimizer(model.parameters())
    schedule = LambdaLR(made, lambda step: 512**power * min((step + 1) ** power, (step + 1) * 4000 ** (3 * power)))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=made, lr_scheduler=schedule, batches=classes())


@sick(check="gradient_bounds", kinds=STUCK, says=("learning rate",), lr=1e-3)
def schedule_of_the_wrong_power(optimizer):
    """Noam's schedule with powers of -2.5 instead of -0.5: rates of 1e-35."""
    return _noam(optimizer, -2.5)


@healthy(lr=30.0, optimizers=("adam",), precisions=ONE)
def schedule_of_the_wrong_power_fixed(optimizer):
    """Powers of -0.5, and a rate to match."""
    model = Gains()
    made = optimizer(model.parameters())
    schedule = LambdaLR(made, lambda step: 512**-0.5 * min((step + 1) ** -0.5, (step + 1) * 100**-1.5))
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=made, lr_scheduler=schedule, batches=classes())


@sick(
    check="gradient_bounds",
    kinds=STUCK,
    says=("bfloat16",),
    lr=1e-5,
    optimizers=("adam",),
    precisions=("bf16-true",),
)
def bf16_norm(optimizer):
    """Adam's steps of 1e-6 are lost on nearly all bf16 weights."""
    return _gains(optimizer)


@healthy(lr=0.1, optimizers=("adam",), precisions=("32-true",))
def bf16_norm_fixed(optimizer):
    """float32 weights, and a rate that moves them."""
    return _gains(optimizer)


class ScaledBlock(nn.Module):
    """A residual block with LayerScale."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.layer_scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x + self.layer_scale * self.fc2(F.relu(self.fc1(x)))


class ScaledLM(nn.Module):
    def __init__(self, vocabulary=24, dim=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.Sequential(ScaledBlock(dim), ScaledBlock(dim))
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids)))


def _scaled_lm(optimizer):
    model = ScaledLM()
    return TrainingSetup(model=model, loss=next_token, optimizer=optimizer(model.parameters()), batches=tokens())


@healthy(lr=5e-3, optimizers=("adam",), precisions=("bf16-true",))
def bf16_layer_scale(optimizer):
    """LayerScale of one in bf16: steps of 5e-4 are below half its spacing, and everything else learns."""
    return _scaled_lm(optimizer)


@healthy(lr=0.05, optimizers=("adam",), precisions=ONE)
def bf16_layer_scale_fixed(optimizer):
    """In float32."""
    return _scaled_lm(optimizer)


def _decaying(optimizer, gamma):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    made = optimizer(model.parameters(), momentum=0.0)
    return TrainingSetup(
        model=model, loss=cross_entropy, optimizer=made, lr_scheduler=ExponentialLR(made, gamma), batches=classes()
    )


@sick(check="gradient_bounds", kinds=STUCK, says=("learning rate",), lr=0.1)
def decay_per_step(optimizer):
    """A gamma of 0.1, meant per epoch, is applied at each step: after fifteen nothing moves."""
    return _decaying(optimizer, 0.1)


@healthy(lr=0.1, optimizers=("sgd",), precisions=ONE)
def decay_per_step_fixed(optimizer):
    """A gamma of 0.99."""
    return _decaying(optimizer, 0.99)


def _with_eps(optimizer, eps):
    model = Gains()
    made = optimizer(model.parameters(), eps=eps)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=made, batches=classes())


@sick(check="gradient_bounds", kinds=STUCK, says=("eps",), lr=0.01, optimizers=("adam",))
def adam_of_huge_eps(optimizer):
    """`eps=1e8` for `eps=1e-8`."""
    return _with_eps(optimizer, 1e8)


@healthy(lr=0.05, optimizers=("adam", "adamw"), precisions=ONE)
def adam_of_huge_eps_fixed(optimizer):
    """`eps=1e-8`."""
    return _with_eps(optimizer, 1e-8)


def weighted(weight):
    """Squared error times a weight."""

    def loss(model, batch):
        x, y = batch
        return weight * F.mse_loss(model(x), y)

    return loss


def _weighted(optimizer, weight):
    model = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1))
    return TrainingSetup(
        model=model, loss=weighted(weight), optimizer=optimizer(model.parameters()), batches=regression()
    )


@sick(check="gradient_bounds", kinds=STUCK, lr=0.05)
def loss_of_tiny_weight(optimizer):
    """The loss is multiplied by 1e-16: gradients are there, updates are not."""
    return _weighted(optimizer, 1e-16)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def loss_of_tiny_weight_fixed(optimizer):
    """The loss is multiplied by one."""
    return _weighted(optimizer, 1.0)


def _mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def _keeping_best(optimizer, *, restores):
    model = _mlp()
    made = optimizer(model.parameters())
    best = copy.deepcopy(model.state_dict())

    def training_step(batch):
        made.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        made.step()
        if restores:
            model.load_state_dict(best)
        return loss

    return TrainingSetup(model=model, loss=mse, optimizer=made, training_step=training_step, batches=regression())


@sick(check="gradient_bounds", kinds=("stuck-parameter",), lr=0.05)
def best_restored_each_step(optimizer):
    """The best weights so far are loaded after every step, and never replaced."""
    return _keeping_best(optimizer, restores=True)


@healthy(lr=0.05, optimizers=("sgd", "adam"), precisions=ONE)
def best_restored_each_step_fixed(optimizer):
    """They are kept for the end."""
    return _keeping_best(optimizer, restores=False)


class PlainSGD(torch.optim.Optimizer):
    """Gradient descent by hand, as in an exercise."""

    def __init__(self, parameters, lr, in_place):
        super().__init__(parameters, {"lr": lr})
        self.in_place = in_place

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.in_place:
                    parameter -= group["lr"] * parameter.grad  # noqa: PLW2901
                else:
                    parameter = parameter - group["lr"] * parameter.grad  # noqa: PLW2901


def _by_hand(in_place):
    model = _mlp()
    made = PlainSGD(model.parameters(), 0.1, in_place)
    return TrainingSetup(model=model, loss=mse, optimizer=made, batches=regression())


@sick(check="gradient_bounds", kinds=("stuck-parameter",))
def update_bound_to_a_name(optimizer):
    """`p = p - lr * p.grad` binds a name and leaves the parameter as it is."""
    return _by_hand(in_place=False)


@healthy(optimizers=("sgd",), precisions=ONE)
def update_bound_to_a_name_fixed(optimizer):
    """`p -= lr * p.grad` writes."""
    return _by_hand(in_place=True)


def _masters(optimizer, *, copies_back):
    model = _mlp()
    masters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    made = optimizer(masters)

    def training_step(batch):
        model.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.detach().clone()
        made.step()
        if copies_back:
            with torch.no_grad():
                for master, parameter in zip(masters, model.parameters(), strict=True):
                    parameter.copy_(master)
        return loss

    return TrainingSetup(model=model, loss=mse, optimizer=made, training_step=training_step, batches=regression())


@sick(check="gradient_bounds", kinds=("stuck-parameter",), lr=0.02)
def masters_never_copied_back(optimizer):
    """The master weights are trained and the model's are not."""
    return _masters(optimizer, copies_back=False)


@healthy(lr=0.02, optimizers=("sgd", "adam"), precisions=ONE)
def masters_never_copied_back_fixed(optimizer):
    """Each step copies them back."""
    return _masters(optimizer, copies_back=True)


def _classifier():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def _cleared(optimizer, *, early):
    model = _classifier()
    made = optimizer(model.parameters())

    def step(batch):
        if early:
            made.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        if not early:
            made.zero_grad()
        made.step()
        return loss

    return TrainingSetup(model=model, loss=cross_entropy, optimizer=made, batches=classes(), training_step=step)


@sick(check="gradient_bounds", kinds=("stuck-parameter",), says=("zero_grad",))
def gradients_cleared_before_the_step(optimizer):
    """`backward(); zero_grad(); step()`: no step has anything to do."""
    return _cleared(optimizer, early=False)


@healthy(precisions=("32-true",))
def gradients_cleared_before_the_step_fixed(optimizer):
    """`zero_grad(); backward(); step()`."""
    return _cleared(optimizer, early=True)


@sick(check="gradient_bounds", kinds=("stuck-parameter",), says=("replaced",), module="2")
def head_replaced_after_the_optimizer(optimizer):
    """A new head for new classes, and an optimizer that still holds the old one."""
    model = _classifier()
    made = optimizer(model.parameters())
    model[2] = nn.Linear(32, 4)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=made, batches=classes())


@healthy(precisions=("32-true",))
def head_replaced_after_the_optimizer_fixed(optimizer):
    """The optimizer is made last."""
    model = _classifier()
    model[2] = nn.Linear(32, 4)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


class Masked(nn.Module):
    """A rectifier written as a product with a mask."""

    def forward(self, x):
        return x * (x > 0)


def _masked(optimizer, bias):
    model = nn.Sequential(nn.Linear(16, 32), Masked(), nn.Linear(32, 32), Masked(), nn.Linear(32, 4))
    nn.init.constant_(model[2].bias, bias)
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=optimizer(model.parameters()), batches=classes())


@sick(check="gradient_bounds", kinds=("vanishing-gradient",), module="0")
def mask_that_lets_nothing_through(optimizer):
    """A bias of -20 in front of x * (x > 0): no gradient reaches what is before it."""
    return _masked(optimizer, -20.0)


@healthy(precisions=("32-true",))
def mask_that_lets_nothing_through_fixed(optimizer):
    """A bias of 0."""
    return _masked(optimizer, 0.0)
