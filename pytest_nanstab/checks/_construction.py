"""The user's line that built a layer: the assignment in the class of its nearest parent that is the user's own."""

from __future__ import annotations

import inspect
import re

from torch import nn

from pytest_nanstab.attribution.source import is_user_file, place, user_line


def construction_line(model: nn.Module, path: str) -> str | None:
    """Where `model.path` is assigned, as "models/net.py:12"; the calling line when that cannot be told."""
    parts = path.split(".") if path else []
    for depth in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule(".".join(parts[:depth]))
        line = _assignment(type(owner), parts[depth])
        if line is not None:
            return line
    return user_line()


def _assignment(cls: type, attribute: str) -> str | None:
    for base in cls.__mro__:
        try:
            filename = inspect.getsourcefile(base)
            if filename is None or not is_user_file(filename):
                continue
            lines, first = inspect.getsourcelines(base)
        except (OSError, TypeError):
            continue
        pattern = re.compile(rf"\bself\.{re.escape(attribute)}\s*(:[^=]+)?=[^=]")
        for offset, text in enumerate(lines):
            if pattern.search(text):
                return place(filename, first + offset)
    return None
