"""What a test's code says about torch, for the count of tests that never used it."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from plugin_runs import TRAINING, run_inside
from torch import nn

from pytest_nanstab.references import refers_to_torch

WEIGHTS = torch.ones(2)


class Net(nn.Module):
    """A model of the user's own."""


def plain():
    return json.dumps({"torch": 1})


def directly():
    return torch.ones(1)


def imports():
    import torch as t

    return t.ones(1)


def through_a_helper():
    return directly


def by_a_class():
    return Net


def by_a_tensor():
    return WEIGHTS.sum


def in_a_lambda():
    return [lambda: torch.ones(1)]


def closing_over(model):
    def inner():
        return model

    return inner


def calls_itself():
    return calls_itself


@functools.wraps(directly)
def wrapped(*arguments):
    return arguments


def in_a_circle():
    return 1


in_a_circle.__wrapped__ = in_a_circle


class Test:
    def method(self):
        return torch.ones(1)

    def other(self):
        return 1


@pytest.mark.parametrize(
    ("function", "refers"),
    [
        (plain, False),
        (directly, True),
        (imports, True),
        (through_a_helper, True),
        (by_a_class, True),
        (by_a_tensor, True),
        (in_a_lambda, True),
        (closing_over(Net()), True),
        (closing_over(3), False),
        (calls_itself, False),
        (wrapped, True),
        (Test().method, True),
        (Test().other, False),
        (in_a_circle, False),
        (None, False),
        (len, False),
    ],
)
def test_what_a_function_names(function, refers):
    assert refers_to_torch(function) is refers


def test_a_test_that_computes_without_a_model_used_torch(pytester):
    """Nothing about it is judged, and still it is no test without torch."""
    body = f"""
{TRAINING}
def mean(x, mask): return x.sum() / mask.sum()
def test_pooling(): mean(torch.ones(2), torch.zeros(2))
def test_text(): assert "a" in "abc"
def test_trained(): train()
"""
    ran = run_inside(pytester, body, "--nanstab")
    assert "2 tests watched, 3 optimizer steps; 1 test never used torch" in ran.lines
