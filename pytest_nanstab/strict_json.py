"""JSON from a stranger: parsed, never run, and whatever is no strict JSON is a `ValueError`. Standard library only."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn


def read(path: Path) -> Any:
    """What a file holds.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe would be waited for without end.
        ValueError: it is no UTF-8 (a byte order mark is passed over), or no strict JSON: says where.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(f"{path.name} is no regular file")
    return loads(path.read_text(encoding="utf-8-sig"))


def loads(text: str) -> Any:
    """What a text says; `ValueError` where it is no strict JSON, names a key twice, or is nested without end."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deep to be read") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: a merge may leave two of a kind, and the last would win in silence."""
    result = dict(pairs)
    if len(result) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} appears twice")
    return result
