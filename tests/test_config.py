"""Limits: how they are checked and how those who state them are merged."""

from __future__ import annotations

import math

import pytest

from pytest_nanstab.config import LIMIT_NAMES, Limit, Limits, check_limit, check_limits, limits_from_call, merge_limits


def test_every_limit_of_the_type_is_known():
    """The TypedDict that users see and the table behind ini keys and markers name the same limits."""
    assert tuple(Limits.__annotations__) == LIMIT_NAMES


@pytest.mark.parametrize(("given", "number"), [(3, 3.0), (0, 0.0), (1e-9, 1e-9), (None, None)])
def test_numbers_are_taken(given, number):
    """Whole numbers, floats, 0 and None are limits."""
    assert check_limit("max_loss", given) == number


@pytest.mark.parametrize("given", ["3", True, [3], 3j])
def test_other_types_are_refused(given):
    """Anything but a number is a TypeError that names the limit and the value."""
    with pytest.raises(TypeError) as caught:
        check_limit("max_loss", given)
    assert str(caught.value) == f"max_loss must be a number or None, got {given!r}"


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf, -1e-9])
def test_useless_numbers_are_refused(given):
    """A limit of NaN or infinity would bless what it bounds; a negative one could never hold."""
    with pytest.raises(ValueError, match="max_loss must be a finite number, 0 or more, got"):
        check_limit("max_loss", given)


def test_unknown_limits_are_refused():
    """A misspelt limit is named, with those that exist."""
    with pytest.raises(TypeError) as caught:
        check_limits({"max_los": 3, "max_loss": 3})
    limits = ", ".join(LIMIT_NAMES)
    assert str(caught.value) == f"unknown argument 'max_los'; the limits are {limits}; did you mean 'max_loss'?"
    with pytest.raises(
        TypeError, match=rf"'step'; allowed are steps, seed and the limits {limits}; did you mean 'steps'"
    ):
        check_limits({"step": 3}, besides=("steps", "seed"))


def test_merge_is_field_by_field():
    """The last layer that names a field wins, None takes it away, a later layer may bring it back."""
    layers = [
        ("file", {"max_loss": 1.0, "max_grad_norm": 2.0, "min_grad_norm": 3.0}),
        ("module marker", {"max_loss": None, "max_grad_norm": None, "max_update_ratio": None}),
        ("function marker", {"max_loss": 4.0}),
    ]
    assert merge_limits(layers) == {"max_loss": Limit(4.0, "function marker"), "min_grad_norm": Limit(3.0, "file")}


def test_merged_limits_keep_the_documented_order():
    """Reports list limits in one order, whoever states them first."""
    merged = merge_limits([("a", dict.fromkeys(reversed(LIMIT_NAMES), 1.0))])
    assert tuple(merged) == LIMIT_NAMES


def test_a_call_goes_on_top():
    """What a call states beats what it inherits and keeps the rest with its source."""
    inherited = {"max_loss": Limit(1.0, "file"), "max_grad_norm": Limit(2.0, "class marker")}
    assert limits_from_call({"max_loss": 5}, inherited) == {
        "max_loss": Limit(5.0, "call"),
        "max_grad_norm": Limit(2.0, "class marker"),
    }
    assert limits_from_call({"max_loss": None}, inherited) == {"max_grad_norm": Limit(2.0, "class marker")}
    assert limits_from_call({}) == {}
