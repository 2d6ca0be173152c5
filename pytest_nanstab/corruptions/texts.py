"""Corruptions of texts and of bytes that are texts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_nanstab.corruptions.model import Family, Recipe
from pytest_nanstab.corruptions.places import Place, places

LONG = 100_000
_BOM = "\ufeff"
# (name, what is put in, whether no encoder accepts it)
TEXTS = (
    ("lone surrogate", "\ud800", True),
    ("NUL character", "\x00", False),
    ("byte order mark", _BOM, False),
    ("combining marks", "e\u0301\u0323\u0489", False),
    ("right-to-left marks", "\u202eabc\u202c\u200f", False),
    ("unknown characters", "\U0010fffd\U0001f9ea\u16a0", False),
)
# Bytes that no UTF-8 decoder accepts: a byte that never occurs, an overlong slash, a sequence that breaks off.
# (The Unicode Standard, table 3-7.)
BYTES = (
    ("byte 0xFF", b"\xff", True),
    ("overlong encoding", b"\xc0\xaf", True),
    ("encoded surrogate", b"\xed\xa0\x80", True),
    ("sequence that breaks off", b"\xe2\x82", True),
    ("NUL byte", b"\x00", False),
    ("byte order mark", _BOM.encode(), False),
)
# What stands where a number should: `float` takes the first two for numbers.
NUMBERS = ("nan", "inf", "1,5")
_Change = tuple[str, bool, Callable[[Any], Any]]  # (name, whether it is invalid, what it makes of a text)


def with_text(original: str, text: str) -> str:
    """`original` with `text` inside; a byte order mark goes to the front, where files have it."""
    middle = 0 if text == _BOM else len(original) // 2
    return original[:middle] + text + original[middle:]


def changes(sample: str | bytes) -> list[_Change]:
    """What can be done to a text like `sample`; bytes that are no UTF-8 are no text."""
    if isinstance(sample, str):
        inside = [(name, invalid, _putting(text)) for name, text, invalid in TEXTS]
        numbers = [(f"text {text!r}", False, partial(_instead, text)) for text in NUMBERS if _is_number(sample)]
        return [*numbers, *inside, ("empty text", False, _emptied), ("only blanks", False, _blanks), *_LONG_TEXT]
    return _of_bytes if is_utf8(sample) else []


def family_of(name: str) -> Family:
    """The family of a change."""
    return "number text" if name.startswith("text '") else "text"


def is_utf8(data: bytes) -> bool:
    """Whether bytes are a text."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _putting(text: str) -> Callable[[str], str]:
    return lambda original: with_text(original, text)


def _putting_bytes(part: bytes) -> Callable[[bytes], bytes]:
    def put(original: bytes) -> bytes:
        # Between two characters: a broken neighbour would be a second fault. One that breaks off stands at the end.
        if part == b"\xe2\x82":
            return original + part
        text = original.decode("utf-8")
        middle = 0 if part == _BOM.encode() else len(text) // 2
        return text[:middle].encode() + part + text[middle:].encode()

    return put


def _lengthened(original: Any) -> Any:
    """The text over and over: at most a short rest longer than `LONG`."""
    return original * (LONG // max(len(original), 1) + 1) if original else original


def _is_number(text: str) -> bool:
    """Whether a text is a number, as in a file that is read as text."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _instead(text: str, _original: str) -> str:
    return text


def _emptied(original: Any) -> Any:
    return original[:0]


def _blanks(_original: str) -> str:
    return " \t\n "


_LONG_TEXT: list[_Change] = [(f"text of {LONG} characters", False, _lengthened)]
_of_bytes: list[_Change] = [
    *((name, invalid, _putting_bytes(part)) for name, part, invalid in BYTES),
    ("empty text", False, _emptied),
    (f"text of {LONG} bytes", False, _lengthened),
]


def of_text(leaf: str | bytes) -> Iterator[Recipe]:
    """Corruptions of one text."""
    for name, invalid, change in changes(leaf):
        if change(leaf) != leaf:
            yield Recipe(name, "", invalid, partial(change, leaf), (), family_of(name))


def of_texts(leaf: list[Any]) -> Iterator[Recipe]:
    """Corruptions of a list of texts, which are rows."""
    yield from _Texts(leaf, (len(leaf),), lambda items: items).recipes(gaps=True)


def of_text_array(array: npt.NDArray[Any]) -> Iterator[Recipe]:
    """Corruptions of an array of texts, of fixed width or of objects; other objects can be missing only."""
    fixed = array.dtype.kind in "UT"

    def whole(changed: list[Any]) -> npt.NDArray[Any]:
        flat = np.empty(len(changed), dtype=object)
        flat[:] = changed
        shaped = flat.reshape(array.shape)
        # The fixed width of a numpy text array would cut the longer text off again.
        return shaped.astype(str if array.dtype.kind == "U" else array.dtype) if fixed else shaped

    for recipe in _Texts(array.ravel().tolist(), array.shape, whole).recipes(gaps=not fixed):
        if array.dtype.kind != "T" or not recipe.invalid:  # numpy's StringDType is UTF-8: it holds no lone surrogate
            yield recipe


@dataclass(frozen=True)
class _Texts:
    """The items of a list or an array, and how it is built of them."""

    items: list[Any]
    shape: tuple[int, ...]
    whole: Callable[[list[Any]], Any]

    def recipes(self, *, gaps: bool) -> Iterator[Recipe]:
        """A gap at every place where it fits, and every change where there are texts."""
        for number, place in enumerate(places(self.shape)):
            hit = [item for item, bad in zip(self.items, self._mask(place), strict=True) if bad]
            if gaps and any(item is not None for item in hit):
                yield self.changed("None", _gap, place, "missing")
            if not all(isinstance(item, (str, bytes)) for item in hit):
                continue
            for name, invalid, change in changes(hit[0]):
                # One place is enough for what is legal, and all at once where that is another case: all empty.
                legal = number == 0 or (name == "empty text" and len(hit) == len(self.items))
                if (invalid or legal) and any(change(item) != item for item in hit):
                    yield self.changed(name, change, place, family_of(name), invalid=invalid)

    def changed(
        self, name: str, change: Callable[[Any], Any], place: Place, family: Any, *, invalid: bool = True
    ) -> Recipe:
        """The items at a place changed, the others copied."""
        return Recipe(name, place.words, invalid, partial(self._made, change, place), place.rows, family)

    def _mask(self, place: Place) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self.shape, dtype=bool)
        mask[place.index] = True
        return mask.ravel()

    def _made(self, change: Callable[[Any], Any], place: Place) -> Any:
        pairs = zip(self.items, self._mask(place), strict=True)
        return self.whole([change(item) if bad else copy.deepcopy(item) for item, bad in pairs])


def _gap(_item: Any) -> None:
    return None
