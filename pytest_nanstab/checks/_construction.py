"""The user's line that made a weight what it is: the init call, or what built the layer."""

from __future__ import annotations

import inspect
import re

import torch
from torch import Tensor, nn

from pytest_nanstab.attribution.constructions import built_at, written_at
from pytest_nanstab.attribution.source import is_user_file, place, shown, user_line


def construction_line(model: nn.Module, path: str, *, initialised: bool = False) -> str | None:
    """Where the layer of `model.path`, a module or a parameter, was built, as "models/net.py:12"; or, `initialised`,
    where its weight was last written.

    Where nobody looked while the model was made: where it is assigned in the class of its nearest parent that is the
    user's own; the calling line when that cannot be told.
    """
    weight = _weight(model, path)
    spot = None if weight is None else (written_at if initialised else built_at)(weight)
    if spot is not None:
        return shown(spot)
    parts = path.split(".") if path else []
    for depth in range(len(parts) - 1, -1, -1):
        if isinstance(model, torch.jit.ScriptModule):
            break
        owner = model.get_submodule(".".join(parts[:depth]))
        line = _assignment(type(owner), parts[depth])
        if line is not None:
            return line
    return user_line()


def _weight(model: nn.Module, path: str) -> Tensor | None:
    """The parameter at a path; of a module its first matrix."""
    owner, _, name = path.rpartition(".")
    try:
        parameter = getattr(model.get_submodule(owner), name, None) if path else None
        if isinstance(parameter, Tensor):
            return parameter
        module = model.get_submodule(path)
    except (AttributeError, RuntimeError):  # scripted modules have no get_submodule
        return None
    own = [p for p in module.parameters(recurse=False) if not nn.parameter.is_lazy(p)]
    return next((p for p in own if p.dim() > 1), own[0] if own else None)


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
