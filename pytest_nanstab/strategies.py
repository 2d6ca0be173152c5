"""Hypothesis strategies for batches: legal and nasty ones from a domain or a sample, and corrupted ones.

@given(from_spec({"logits": TensorSpec(shape=("n", 10), min_value=-1e4, max_value=1e4),
                  "target": TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=9)}))
def test_focal_loss(batch): assert_finite(focal_loss(**batch))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from pytest_nanstab.batches.drawing import bare
from pytest_nanstab.batches.infer import infer_spec
from pytest_nanstab.batches.layout import plan
from pytest_nanstab.batches.spec import TensorSpec
from pytest_nanstab.corruptions.catalogue import recipes
from pytest_nanstab.corruptions.model import Corruption

__all__ = ["TensorSpec", "corruptions", "from_batch", "from_spec"]


def from_spec(spec: Any, *, sizes: Mapping[str, tuple[int, int]] | None = None) -> st.SearchStrategy[Any]:
    """Batches of torch tensors shaped like `spec`; every value is legal, and many are chosen to hurt.

    Args:
        spec: a TensorSpec, or nested mappings, lists, tuples and named tuples of them; text, numbers and None in it are
            handed through.
        sizes: the range of each named size, inclusive: {"batch": (2, 64)}; a size not named here is 1 to 8.

    A failing batch shrinks to the smallest sizes and the plainest values, most often a single bad element among zeros.

    Raises:
        TypeError, ValueError: at once, naming the field or argument, what was given and what is allowed.
    """
    return bare(plan(spec, sizes))


def from_batch(
    batch: Any, *, domain: Any = None, sizes: Mapping[str, tuple[int, int]] | None = None
) -> st.SearchStrategy[Any]:
    """Batches like a sample, within what the sample proves legal.

    Numbers lie between the least and the greatest seen. NaN is legal if it was seen, infinities if both were. Bool
    fields and those of 0 and 1 are masks; rows that are one-hot, or probabilities, stay so. A single negative integer
    beside others (-100, -1) is a label that losses skip.

    Args:
        batch: nested mappings, lists and tuples of tensors and numpy arrays; arrays come back as arrays, other leaves
            as they are.
        domain: TensorSpec for fields to widen or to tighten, shaped like the batch; None or a missing key: inferred.
        sizes: ranges of named sizes; the first dimension, where fields share it, is called "batch" and is as large as
            in the sample unless a range is given here.

    Raises:
        TypeError, ValueError: as `from_spec`, and when the batch holds no tensor.
    """
    inferred = infer_spec(batch, domain=domain)
    return from_spec(inferred.spec, sizes={**inferred.sizes, **(sizes or {})})


def corruptions(sample: Any) -> st.SearchStrategy[Corruption]:
    """Corrupted copies of a sample: arrays, tensors, nested containers, frames of pandas and polars, texts and bytes.

    Each example is a `Corruption` (name, place, invalid, value, rows, ...) with a sample of its own. They shrink
    towards the smallest: one value in the middle of the first field.

    Raises:
        ValueError: when nothing in the sample can be corrupted (only booleans, say).
    """
    found = recipes(sample)
    if not found:
        raise ValueError(
            f"sample must hold numbers, text, dates or objects to corrupt, in rows, got {type(sample).__name__}"
        )
    # The code under test may write into what it is given: every example is made for it alone.
    return st.sampled_from(found).map(lambda recipe: recipe.made())
