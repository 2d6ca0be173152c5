"""Corruptions of images: black, white, on another scale. Arrays, tensors, and images of PIL where they come along."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from pytest_nanstab.corruptions.frames import is_instance
from pytest_nanstab.corruptions.model import Recipe

_CHANNELS = (1, 3, 4)
_SMALLEST = 4  # pixels on a side; anything smaller is more likely a stack of small matrices
_WHITE = 255


def is_image(leaf: Any) -> bool:
    """Whether an array or a tensor looks like an image or a batch of them: channels first or last, 0..1 or bytes."""
    shape = tuple(getattr(leaf, "shape", ()))
    if len(shape) not in (3, 4) or not (_has_channels(shape[-3:])):
        return False
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype == torch.uint8 or leaf.is_floating_point()
    return isinstance(leaf, np.ndarray) and (leaf.dtype == np.uint8 or leaf.dtype.kind == "f")


def _has_channels(shape: tuple[int, ...]) -> bool:
    first, *middle, last = shape
    return (first in _CHANNELS and min(*middle, last) >= _SMALLEST) or (
        last in _CHANNELS and min(first, *middle) >= _SMALLEST
    )


def of_image(leaf: Any) -> Iterator[Recipe]:
    """Corruptions of an image that `is_image`; of a batch, the first image and all of them."""
    batched = len(leaf.shape) == 4
    whole = tuple(range(leaf.shape[0])) if batched else ()
    for place, rows in (("image 0", (0,)), ("everywhere", whole)) if batched else (("", ()),):
        for name, change in _changes(leaf):
            yield Recipe(name, place, False, partial(_with, leaf, rows, change), rows, "image")


def _changes(leaf: Any) -> list[tuple[str, Any]]:
    """(name, what becomes of an image): on another scale only where the one it has is known."""
    found: list[tuple[str, Any]] = [("all black", lambda image: image * 0)]
    if leaf.dtype in (torch.uint8, np.uint8):
        return [*found, ("all white", lambda image: image * 0 + _WHITE)]
    low, high = float(leaf.min()), float(leaf.max())
    if low >= 0 and 0 < high <= 1:
        # Times 255: what a reader gives that does not scale.
        found += [("all white", lambda image: image * 0 + 1), ("0..255 for 0..1", lambda image: image * _WHITE)]
    return found


def _with(leaf: Any, rows: tuple[int, ...], change: Any) -> Any:
    changed = leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf.copy()
    where: Any = list(rows) if rows else ...
    changed[where] = change(changed[where])
    return changed


# --- PIL


def is_pil(leaf: object) -> bool:
    """Whether `leaf` is an image of PIL, which is never imported here."""
    return is_instance(leaf, "PIL.Image", "Image")


def of_pil(image: Any) -> Iterator[Recipe]:
    """Black, white, and a single pixel."""
    bands = len(image.getbands())

    def filled(value: int) -> Any:
        changed = image.copy()
        changed.paste(value if bands == 1 else (value,) * bands, (0, 0, *image.size))
        return changed

    if image.mode in ("L", "RGB", "RGBA"):
        yield Recipe("all black", "", False, lambda: filled(0), (), "image")
        yield Recipe("all white", "", False, lambda: filled(_WHITE), (), "image")
