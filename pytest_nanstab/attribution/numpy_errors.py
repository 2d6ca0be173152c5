"""What numpy warned of during a traced run, and where: it made values bad before they became tensors."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pytest_nanstab.attribution.places import Spot, kind_of
from pytest_nanstab.attribution.source import variables_of

# How numpy's warnings begin (numpy.seterr), for what gives a NaN and for what gives an infinity.
_NAN, _INF = ("invalid value",), ("divide by zero", "overflow")
_ENDING = " encountered"


@dataclass(frozen=True)
class Complaint:
    """A warning of numpy's.

    Attributes:
        word: what it met.
        spot: the user's line.
        step: the training step.
        frame: the identity of the call of the user's function that it came from.
    """

    word: str
    spot: Spot
    step: int
    frame: int


@dataclass
class NumpyErrors:
    """Listens to numpy's warnings; what the user ignores, records or makes an exception of is not heard.

    Attributes:
        step: the training step that warnings belong to.
    """

    step: int = 1
    _seen: dict[Complaint, None] = field(default_factory=dict)
    _before: Any = None

    def listen(self) -> None:
        """Begin, where numpy is in use."""
        if "numpy" not in sys.modules or self._before is not None:
            return
        with warnings.catch_warnings():
            pass  # what was shown once in the run before is shown again
        self._before = warnings.showwarning
        warnings.showwarning = self._show  # type: ignore[assignment]

    def rest(self) -> None:
        """End; warnings are shown as they were before."""
        if self._before is not None:
            if warnings.showwarning == self._show:
                warnings.showwarning = self._before
            self._before = None

    def behind(self, frame: FrameType | None, *, nan: bool) -> tuple[tuple[Complaint, ...], bool]:
        """What may have made a NaN, or an infinity, that became a tensor in a user's frame, and whether it did.

        It did where the same call of the same function met it, and holds an array that is bad.
        """
        known = [complaint for complaint in self._seen if complaint.word in (_NAN if nan else _INF)]
        here = [complaint for complaint in known if frame is not None and complaint.frame == id(frame)]
        if len({complaint.spot for complaint in here}) == 1 and frame is not None and _holds_bad_array(frame):
            return (here[-1],), True
        return tuple({complaint.spot: complaint for complaint in known if complaint.step == self.step}.values()), False

    def _show(self, message: Any, category: Any, *where: Any) -> None:
        word, ending, _ = str(message).partition(_ENDING)
        if ending and category is RuntimeWarning and word in (*_NAN, *_INF):
            self._note(word)  # the run before has shown it
        else:
            self._before(message, category, *where)

    def _note(self, word: str) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and kind_of(frame.f_code.co_filename) != "user":
            frame = frame.f_back
        if frame is not None:
            self._seen[Complaint(word, (frame.f_code.co_filename, frame.f_lineno), self.step, id(frame))] = None


def _holds_bad_array(frame: FrameType) -> bool:
    """Whether a variable of a frame is an array of numpy's that is not finite."""
    numpy = sys.modules["numpy"]
    arrays = [value for value in variables_of(frame).values() if type(value) is numpy.ndarray]
    return any(array.dtype.kind in "fc" and not numpy.isfinite(array).all() for array in arrays)
