"""Where an operation was called: one walk up the Python stack, from the innermost frame to the user's line."""

from __future__ import annotations

import ast
import linecache
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import FrameType

import torch

from pytest_nanstab.attribution.source import RUNNER, is_user_file

Spot = tuple[str, int]

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).resolve().parent.parent) + os.sep
_FUNCTIONAL = tuple(
    _TORCH + name.replace("/", os.sep) for name in ("nn/functional.py", "functional.py", "nn/utils/clip_grad.py")
)
_UTILS = str(Path(_TORCH, "nn", "utils")) + os.sep
# The frame that runs the autograd engine: what is above it belongs to the backward pass.
_ENGINE = ("_engine_run_backward", "run_backward")
_NAMELESS = ("<module>", "<lambda>", "<listcomp>", "<genexpr>", "<dictcomp>")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation was called.

    Attributes:
        spot: the innermost user line, as (file, line); None without any.
        function: the name of the user's function, None where it has none.
        functional: the outermost function of torch.nn.functional between that line and the operation.
        library: the innermost line of any other library, as (file, line).
        in_backward: whether the autograd engine ran it, and no user code inside the backward pass.
        in_module: whether a module of torch's own lies between that line and the operation.
        in_utils: whether a function of torch.nn.utils does (weight_norm, spectral_norm and other parametrizations).
    """

    spot: Spot | None
    function: str | None
    functional: str | None
    library: Spot | None
    in_backward: bool
    in_module: bool = False
    in_utils: bool = False


NOWHERE = Place(None, None, None, None, in_backward=False)


@lru_cache(maxsize=4096)
def kind_of(filename: str) -> str:
    """Whose a file is: "user", "functional", "torch", "ours", "runner", "stdlib" or "library"."""
    if filename.startswith(_OURS):
        return "ours"
    if filename in _FUNCTIONAL:
        return "functional"
    if filename.startswith((_TORCH, "<")):
        return "torch"
    if RUNNER in filename or f"{os.sep}pluggy{os.sep}" in filename:
        return "runner"
    if is_user_file(filename):
        return "user"
    return "stdlib" if is_stdlib(filename) else "library"


@lru_cache(maxsize=4096)
def is_stdlib(filename: str) -> bool:
    """Whether a file that is not the user's belongs to Python itself."""
    return not any(part in filename for part in (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"))


def place_of_call(depth: int = 1) -> tuple[Place, FrameType | None]:
    """The place of the call `depth` frames up, and the user's frame there."""
    frame: FrameType | None = sys._getframe(depth)
    functional, library, crossed, in_module, in_utils = None, None, False, False, False
    while frame is not None:
        code = frame.f_code
        kind = kind_of(code.co_filename)
        if kind == "user":
            function = None if code.co_name in _NAMELESS else code.co_name
            spot = (code.co_filename, frame.f_lineno)
            return Place(spot, function, functional, library, crossed, in_module, in_utils), frame
        if kind == "functional" and (functional is None or not code.co_name.startswith("_")):
            functional = code.co_name  # the outermost that has a name of its own, not the decorator around it
        elif kind == "torch" and code.co_name in _ENGINE:
            functional, library, crossed, in_module, in_utils = None, None, True, False, False
        elif kind == "torch" and code.co_name == "_call_impl":
            in_module = True
        elif kind == "torch" and code.co_filename.startswith(_UTILS):
            in_utils = True
        elif kind == "library" and library is None:
            library = (code.co_filename, frame.f_lineno)
        elif kind == "runner":
            break
        frame = frame.f_back
    return Place(None, None, functional, library, crossed, in_module, in_utils), None


def called_at(frame: FrameType | None) -> str | None:
    """The name of the torch function whose call a frame is in, read from its source.

    What aten does for `torch.logdet` or `torch.einsum` says little: the user's own word does. Before Python 3.11 a
    frame knows only its line, which must then hold a single such call and no operator.
    """
    if frame is None:
        return None
    positions = getattr(frame.f_code, "co_positions", None)
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if positions is None:
        names = {name for name in map(_called_in, _calls_in(text)) if name is not None}
        return names.pop() if len(names) == 1 else None
    line, last_line, start, end = next(islice(positions(), frame.f_lasti // 2, None), (None,) * 4)
    if line is None or line != last_line or start is None or end is None:
        return None
    piece = _parsed(text.encode()[start:end].decode(errors="replace"))
    outermost = piece.body[0] if piece is not None and piece.body else None
    call = outermost.value if isinstance(outermost, ast.Expr) else None
    return _called_in(call) if isinstance(call, ast.Call) else None


def _calls_in(text: str) -> list[ast.Call]:
    """The calls in a piece of code; none where it is no code by itself, or computes with operators as well."""
    tree = _parsed(text)
    nodes = [] if tree is None else list(ast.walk(tree))
    if any(isinstance(node, (ast.BinOp, ast.UnaryOp, ast.AugAssign, ast.Compare, ast.Subscript)) for node in nodes):
        return []
    return [node for node in nodes if isinstance(node, ast.Call)]


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text.strip().removesuffix(":"))
    except SyntaxError:
        return None


def _called_in(call: ast.Call) -> str | None:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    return name if name is not None and _is_torch_function(name) else None


@lru_cache(maxsize=1024)
def _is_torch_function(name: str) -> bool:
    homes = (torch, torch.Tensor, torch.nn.functional, torch.linalg, torch.special, torch.fft)
    return any(hasattr(home, name) for home in homes)
