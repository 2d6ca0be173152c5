"""Whether the user's code can be run once more without anybody noticing.

Read from the source of what would be called: a call that draws the next batch, writes a file or changes a list that
others see has an effect that cannot be undone. What a method stores on its own object can be: such owners are listed,
to be put back afterwards. What is not the user's own (torch, numpy) is known by the names of its calls only.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CellType
from typing import Any

from torch import nn

from pytest_nanstab.attribution.source import is_user_file, parsed

# Calls whose effect is seen elsewhere, whoever they belong to.
_EFFECTS = frozenset(
    {"backward", "manual_backward", "zero_grad", "unscale_", "clip_grad_norm_", "clip_grad_value_", "load_state_dict"}
    | {"__next__"}
)
_BUILTINS = frozenset({"next", "anext", "open", "input", "exec", "eval", "setattr", "delattr"})
# Methods that change their receiver: harmless only on what the function has made itself.
_CHANGES = frozenset(
    {"append", "appendleft", "extend", "insert", "remove", "clear", "update", "add", "discard", "pop", "popleft"}
    | {"popitem", "setdefault", "sort", "reverse", "write", "writelines", "writerow", "save", "dump", "put", "send"}
    | {"step", "fit", "commit", "execute", "mkdir", "unlink", "rename", "touch", "write_text", "log_metrics"}
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEPTH = 6


@dataclass
class Verdict:
    """What running some code again would touch.

    Attributes:
        pure: whether all of it can be undone.
        owners: the objects whose own attributes it may change.
    """

    pure: bool = True
    owners: list[Any] = field(default_factory=list)


def verdict_on(statements: Sequence[ast.AST], values: Mapping[str, Any]) -> Verdict:
    """The verdict on statements of a running function, which see these values."""
    verdict = Verdict()
    scan = _Scan(verdict, values, _assigned_names(statements), owner=values.get("self"))
    for statement in statements:
        scan.visit(statement)
    return verdict


def verdict_on_call(target: Any) -> Verdict:
    """The verdict on calling a function, a bound method or a module."""
    verdict = Verdict()
    _follow(target, verdict, set(), 0)
    return verdict


class _Scan(ast.NodeVisitor):
    """Reads one function's statements; what they call is followed into the user's own code."""

    def __init__(
        self,
        verdict: Verdict,
        values: Mapping[str, Any],
        fresh: set[str],
        *,
        owner: Any = None,
        seen: set[int] | None = None,
        depth: int = 0,
    ) -> None:
        self._verdict = verdict
        self._values = values
        self._fresh = fresh
        self._owner = owner
        self._seen = set() if seen is None else seen
        self._depth = depth

    def visit_Global(self, _: ast.Global) -> None:
        """A global that is written to is seen by everybody."""
        self._verdict.pure = False

    def visit_Nonlocal(self, _: ast.Nonlocal) -> None:
        """So is a variable of the function around."""
        self._verdict.pure = False

    def visit_Await(self, _: ast.Await) -> None:
        """Nothing can be awaited from here."""
        self._verdict.pure = False

    visit_Yield = visit_YieldFrom = visit_Await  # type: ignore[assignment]  # noqa: N815

    def visit_For(self, node: ast.For) -> None:
        """A loop over an iterator uses it up."""
        self._used_up(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """So does a comprehension."""
        self._used_up(node.iter)
        self.generic_visit(node)

    def _used_up(self, source: ast.expr) -> None:
        values = (self._value_of(node) for node in ast.walk(source) if isinstance(node, (ast.Name, ast.Attribute)))
        if any(hasattr(type(value), "__next__") for value in values):
            self._verdict.pure = False

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A store on an object."""
        if isinstance(node.ctx, ast.Store):
            self._changed(node.value)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """A store into a container."""
        if isinstance(node.ctx, ast.Store):
            self._changed(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call: of the user's own code, which is read, or of a name that is known to have an effect."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        target = self._value_of(node.func)
        if target is not None and _is_users(target):
            _follow(target, self._verdict, self._seen, self._depth + 1)
        elif name in _EFFECTS or (name in _BUILTINS and isinstance(node.func, ast.Name)):
            self._verdict.pure = False
        elif name in _CHANGES and isinstance(node.func, ast.Attribute):
            self._changed(node.func.value)
        self.generic_visit(node)

    def _changed(self, receiver: ast.expr) -> None:
        root = receiver
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        name = root.id if isinstance(root, ast.Name) else ""
        if name == "self" and self._owner is not None and name not in self._fresh:
            self._verdict.owners.append(self._owner)
        elif name not in self._fresh and isinstance(root, ast.Name):
            self._verdict.pure = False

    def _value_of(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return None if node.id in self._fresh else self._values.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._owner if isinstance(node.value, ast.Name) and node.value.id == "self" else None
            owner = self._value_of(node.value) if owner is None else owner
            return None if owner is None else _attribute(owner, node.attr)
        return None


def _attribute(owner: Any, name: str) -> Any:
    """An attribute, unless asking for it would run the user's code."""
    found = inspect.getattr_static(owner, name, None)
    if isinstance(found, property) or (found is None and not isinstance(owner, nn.Module)):
        return None
    return getattr(owner, name, None)


def _is_users(target: Any) -> bool:
    if isinstance(target, nn.Module):
        return True
    code = getattr(inspect.unwrap(target) if callable(target) else None, "__code__", None)
    return code is not None and is_user_file(code.co_filename)


def _follow(target: Any, verdict: Verdict, seen: set[int], depth: int) -> None:
    if id(target) in seen or not verdict.pure:
        return
    seen.add(id(target))
    if depth > _DEPTH:
        verdict.pure = False
        return
    if isinstance(target, nn.Module):
        for function in _functions_of(target):
            _follow(function, verdict, seen, depth)
        return
    function = inspect.unwrap(target)
    owner = getattr(target, "__self__", None)
    home = source_of(getattr(function, "__func__", function))
    if home is None:
        verdict.pure = verdict.pure and not _is_users(function)
        return
    values = _values_seen_by(getattr(function, "__func__", function))
    # Arguments belong to the caller: what is stored in them is seen outside.
    body = [home.body] if isinstance(home, ast.Lambda) else home.body
    scan = _Scan(verdict, values, _assigned_names(body), owner=owner, seen=seen, depth=depth)
    for statement in body:
        scan.visit(statement)


def _functions_of(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The user's own code that a call of a module runs: forwards and hooks of all its parts."""
    for part in module.modules():
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values(), *part._backward_hooks.values()]
        for function in (part.forward, *hooks):
            if not isinstance(function, nn.Module) and callable(function) and _is_users(function):
                yield function


def source_of(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """The syntax tree of a function written in a file of the user's; of a lambda, if it is the only one on its line."""
    code = getattr(function, "__code__", None)
    if code is None or not is_user_file(code.co_filename):
        return None
    tree = parsed(code.co_filename)
    if tree is None:
        return None
    if code.co_name == "<lambda>":
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.lineno == code.co_firstlineno]
        return found[0] if len(found) == 1 else None
    functions = (node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) and node.name == code.co_name)
    return next((node for node in functions if first_line(node) == code.co_firstlineno), None)


def first_line(node: Any) -> int:
    """The first line of a function, with its decorators: what its code object calls the first."""
    return int(min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]))


def _values_seen_by(function: Any) -> dict[str, Any]:
    code = getattr(function, "__code__", None)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=False) if code is not None else ()
    values = dict(getattr(function, "__globals__", {}))
    return {**values, **dict(_contents(cells))}


def _contents(cells: Iterable[tuple[str, CellType]]) -> Iterator[tuple[str, Any]]:
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # not assigned yet
            yield name, cell.cell_contents


def _assigned_names(statements: Sequence[ast.AST]) -> set[str]:
    """The names that statements bind: what they hold was made here."""
    nodes = (node for statement in statements for node in ast.walk(statement))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
