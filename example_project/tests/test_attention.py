"""The hand-written attention on generated batches, and a limit of it that is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from pytest_nanstab import NonFiniteError, assert_finite
from pytest_nanstab.strategies import TensorSpec, from_spec
from torch import Tensor

from models.attention import MultiHeadAttention, causal_mask

BATCHES = {
    "query": TensorSpec(shape=("batch", "queries", 8), min_value=-1e3, max_value=1e3),
    "memory": TensorSpec(shape=("batch", "keys", 8), min_value=-1e3, max_value=1e3),
    "open": TensorSpec(shape=("batch", 1, "queries", "keys"), dtype="bool", kind="mask", min_true=1),
}


def attention() -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(d_model=8, heads=2)


@pytest.mark.nanstab
@settings(max_examples=30, deadline=None)
@given(from_spec(BATCHES))
def test_any_mask_that_leaves_a_key(batch: dict[str, Tensor]) -> None:
    layer = attention()
    out = layer(batch["query"], batch["memory"], ~batch["open"])
    out.square().mean().backward()
    assert_finite(out, name="attention")
    assert_finite([p.grad for p in layer.parameters()], name="gradients")


def test_a_causal_mask_leaves_the_first_token_alone() -> None:
    layer, tokens = attention(), torch.randn(2, 5, 8)
    out = layer(tokens, tokens, causal_mask(5))
    alone = layer(tokens[:, :1], tokens[:, :1])
    assert_finite(out)
    assert torch.allclose(out[:, :1], alone, atol=1e-6)


@pytest.mark.nanstab
@pytest.mark.xfail(raises=NonFiniteError, strict=True, reason="a query that sees no key has no defined weights")
def test_a_query_without_keys() -> None:
    tokens = torch.randn(1, 4, 8)
    attention()(tokens, tokens, torch.ones(4, 4, dtype=torch.bool))
