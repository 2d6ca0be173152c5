"""What a line of source does, read from its syntax: which names it reads and sets, and whether it checks or repairs."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pytest_nanstab.attribution.source import parsed

# What these give says nothing about the values.
_SHAPES = re.compile(r"ndim|shape|size|dtypes?|columns|index|height|width|name|device")
_SHAPE_CALLS = re.compile(r"len|isinstance|hasattr|type|id|callable")
_REPAIRS = re.compile(
    r"fillna|[fb]fill|pad|interpolate|nan_to_num_?|where|clip_?|clamp_?|fill_null|fill_nan|dropna|masked_fill_?|replace"
    r"|mask|filled|putmask|copyto|minimum|maximum|to_numeric|impute|encode|decode"
)
_COPIES = re.compile(r"(deep)?copy|clone|detach|contiguous|reset_index|list|tuple|dict|iter|enumerate|zip|items")
_ASKS = re.compile(r"isnan|isna|isnull|isfinite|isinf|notna|notnull|is_nan|is_null|is_finite|is_infinite|abs")
_KEEPERS = re.compile(r"append|add_?|update|extend|insert|setdefault|partial_fit|fit|mul_|sub_|copy_|lerp_")


@dataclass(frozen=True)
class Line:
    """A statement, as far as it can matter.

    Attributes:
        start: the line it begins on.
        reads: names and attributes of `self` whose values it reads.
        sets: names it assigns.
        is_move: whether it only hands values on, without calling or computing anything.
        is_guard: whether it raises when a condition holds that it tests.
        is_loop: whether it is the head of a loop.
        is_return: whether it ends its function with a value.
        repairs: whether it calls something by which bad values are replaced.
        asks: whether it asks which values are bad.
        keeps: names of the objects that it changes, "." where it is an attribute of one.
        handles: whether it is part of an exception handler.
    """

    start: int = 0
    reads: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    is_move: bool = True
    is_guard: bool = False
    is_loop: bool = False
    is_return: bool = False
    repairs: bool = False
    asks: bool = False
    keeps: tuple[str, ...] = ()
    handles: bool = False


@lru_cache(maxsize=4096)
def line_at(filename: str, number: int) -> Line:
    """What the statement on a line does, its body left out."""
    tree = _tree(filename)
    statement = None if tree is None else _statement_at(tree, number)
    if statement is None:
        return Line()
    nodes = list(_own_nodes(statement))
    return Line(
        start=statement.lineno,
        reads=tuple(dict.fromkeys(_reads(statement))),
        sets=tuple(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
        is_move=not any(_computes(node) for node in nodes),
        is_guard=_is_guard(statement),
        is_loop=isinstance(statement, (ast.For, ast.AsyncFor, ast.While)),
        is_return=isinstance(statement, ast.Return) or any(isinstance(node, (ast.Yield, ast.Lambda)) for node in nodes),
        repairs=any(_REPAIRS.fullmatch(_called(node)) is not None for node in nodes),
        asks=any(_ASKS.fullmatch(_called(node)) for node in nodes),
        keeps=tuple(name for node in nodes for name in _kept(node)),
        handles=any(number in lines for lines in _handlers(tree)) if tree is not None else False,
    )


@lru_cache(maxsize=256)
def _tree(filename: str) -> ast.Module | None:
    linecache.checkcache(filename)
    return parsed(filename)


def _statement_at(tree: ast.Module, number: int) -> ast.stmt | None:
    """The innermost statement that covers a line; of those that begin on it the outermost, as in `if bad: raise`."""
    found: ast.stmt | None = None
    for node in ast.walk(tree):
        covers = isinstance(node, ast.stmt) and node.lineno <= number <= (node.end_lineno or node.lineno)
        if covers and (found is None or node.lineno > found.lineno):  # type: ignore[attr-defined]
            found = node  # type: ignore[assignment]
    return found


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement without the statements inside it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            yield from _own_nodes(child)


def _reads(node: ast.AST, *, augmented: bool = False) -> Iterator[str]:
    """Names whose values are looked at; asking for a shape, a length or a type is no look at values."""
    if isinstance(node, ast.Attribute):
        if _SHAPES.fullmatch(node.attr):
            return
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            yield f"self.{node.attr}"
    if _is_shape_call(node):
        return
    columns = _columns_of(node)
    if columns:
        yield from columns
        return
    if isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Load) or augmented):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            yield from _reads(child, augmented=augmented or isinstance(node, ast.AugAssign))


def _is_shape_call(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Name) and _SHAPE_CALLS.fullmatch(called.id) is not None


def _columns_of(node: ast.AST) -> list[str]:
    """ "frame['age']" for columns or a field by their names: the others' faults are not read there."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load)):
        return []
    parts = node.slice.elts if isinstance(node.slice, ast.List) else [node.slice]
    keys = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return [f"{node.value.id}[{key!r}]" for key in keys] if len(keys) == len(parts) else []


def _computes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return not _is_shape_call(node) and _COPIES.fullmatch(_called(node)) is None
    return isinstance(node, (ast.BinOp, ast.UnaryOp, ast.AugAssign))


def _handlers(tree: ast.Module) -> list[range]:
    """The lines of every exception handler."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in found]


def _is_guard(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assert):
        return True
    bodies = [*statement.body, *statement.orelse] if isinstance(statement, ast.If) else []
    return any(isinstance(inner, ast.Raise) for inner in bodies)


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _kept(node: ast.AST) -> Iterator[str]:
    """What is changed by setting an attribute or an item, or by a call that changes what it is made on."""
    target: ast.AST | None
    if isinstance(node, ast.Call):
        target = node.func.value if isinstance(node.func, ast.Attribute) and _KEEPERS.fullmatch(_called(node)) else None
    elif isinstance(getattr(node, "ctx", None), ast.Store) and not isinstance(node, ast.Name):
        target = node.value if isinstance(node, ast.Subscript) else node
    else:
        target = None
    if isinstance(target, ast.Attribute):
        yield "."
    elif isinstance(target, ast.Name):
        yield target.id
