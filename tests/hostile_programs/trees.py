"""Deep and cyclic data, odd names, nothing at all in a tensor."""

import pytest
import torch
from common import X, both, net, sgd, spoiled, step, train
from torch import nn

from pytest_nanstab import NonFiniteError, assert_finite, assert_finite_batches


def deep(leaf, levels=10_000):
    for level in range(levels):
        leaf = {"a": leaf} if level % 3 == 0 else (leaf,) if level % 3 == 1 else [leaf]
    return leaf


def cyclic(leaf):
    knot = {"first": []}
    knot["first"].append(knot)
    knot["last"] = leaf
    return knot


def innermost(tree):
    while not isinstance(tree, torch.Tensor):
        tree = tree["last" if "last" in tree else "a"] if isinstance(tree, dict) else tree[-1]
    return tree


class Returns(nn.Module):
    def __init__(self, wrap, bad):
        super().__init__()
        self.layer, self.wrap, self.bad = nn.Linear(2, 2), wrap, bad

    def forward(self, tree):
        return self.wrap(spoiled(self.layer(innermost(tree)), self.bad))


@both
@pytest.mark.parametrize("wrap", [deep, cyclic])
def test_evaluated(wrap, bad):
    model = Returns(wrap, bad).eval()
    with torch.no_grad():
        for _ in range(3):
            model(wrap(X))


@both
@pytest.mark.parametrize("wrap", [deep, cyclic])
def test_trained(wrap, bad):
    model = Returns(wrap, False)
    optimizer = sgd(model)
    for number in range(3):
        optimizer.zero_grad()
        innermost(model(wrap(spoiled(X, bad and number == 1)))).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("wrap", [deep, cyclic])
def test_assertions(wrap):
    assert_finite(wrap(X))
    assert_finite_batches([wrap(X)])
    for assertion in (assert_finite, lambda tree: assert_finite_batches([tree])):
        with pytest.raises(NonFiniteError):
            assertion(wrap(spoiled(X, True)))


NAMES = ['it\'s "quoted"', "\x1b[31mred", "a\nb", "中é\u202e", "<script>", "n" * 100_000, "%s{x}"]


@both
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names(name, bad):
    Odd = type(f"Odd{name}", (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module(name, Odd(2, 1))
    optimizer = sgd(model)
    for number in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        model.get_parameter(f"{name}.weight").grad.mul_(spoiled(1.0, bad and number == 1))
        optimizer.step()


@both
@pytest.mark.parametrize("value", ["\x1b[31m", "中é", "n" * 10_000, "'\"<b>"])
def test_ids_of_parameters(value, bad):
    train(bad)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        self.layer = nn.Linear(2, 3)
        self.register_buffer("none", torch.empty(0, 3))

    def forward(self, x):
        return self.layer(x), self.nothing, torch.empty(0, 5)


@both
def test_parameters_without_elements(bad):
    model = Empty()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for number in range(3):
        optimizer.zero_grad()
        output, nothing, more = model(X)
        spoiled(output.sum() + nothing.sum() + more.sum(), bad and number == 1).backward()
        optimizer.step()


@both
def test_batches_without_rows(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    optimizer.zero_grad()
    output = model(torch.empty(0, 2))
    (output.mean() if bad else output.sum()).backward()
    optimizer.step()


@both
def test_losses_without_elements(bad):
    model = net()
    optimizer = sgd(model)
    optimizer.zero_grad()
    model(torch.empty(0, 2)).backward(torch.empty(0, 1))
    optimizer.step()
    train(bad, model)
