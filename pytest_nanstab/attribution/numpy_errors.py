"""What numpy complained of during a traced run, and where: it made values bad before they became tensors."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

from pytest_nanstab.attribution.places import Spot, kind_of

# numpy's words (numpy.seterr) for what gives a NaN, and for what gives an infinity.
_NAN, _INF = ("invalid value",), ("divide by zero", "overflow")
_SETTINGS = ("divide", "over", "invalid")


@dataclass
class NumpyErrors:
    """Takes down what numpy would only warn of; whoever has told it to be silent or to raise is not heard.

    Attributes:
        step: the training step that errors belong to.
    """

    step: int = 1
    _seen: dict[tuple[str, int, Spot], None] = field(default_factory=dict)
    _before: tuple[dict[str, str], Any] | None = None

    def listen(self) -> None:
        """Begin, where numpy is in use."""
        numpy = sys.modules.get("numpy")
        if numpy is None or self._before is not None:
            return
        self._before = (numpy.geterr(), numpy.geterrcall())
        warned = {name: "call" for name in _SETTINGS if self._before[0][name] == "warn"}
        numpy.seterrcall(self._note)
        numpy.seterr(**warned)

    def rest(self) -> None:
        """End; numpy does as it did before."""
        if self._before is not None:
            numpy = sys.modules["numpy"]
            numpy.seterr(**self._before[0])
            numpy.seterrcall(self._before[1])
            self._before = None

    def lines(self, *, nan: bool) -> list[tuple[str, Spot]]:
        """What may have made a NaN, or an infinity: the only line so far, or those of this step."""
        kinds = _NAN if nan else _INF
        found = [(word, step, spot) for word, step, spot in self._seen if word in kinds]
        if len({spot for _, _, spot in found}) > 1:
            found = [entry for entry in found if entry[1] == self.step]
        return list({spot: (word, spot) for word, _, spot in found}.values())

    def _note(self, word: str, _flag: int) -> None:
        frame, depth = sys._getframe(1), 2
        while kind_of(frame.f_code.co_filename) != "user":
            if frame.f_back is None:
                break
            frame, depth = frame.f_back, depth + 1
        else:
            self._seen[word, self.step, (frame.f_code.co_filename, frame.f_lineno)] = None
        warnings.warn(f"{word} encountered", RuntimeWarning, stacklevel=depth)
