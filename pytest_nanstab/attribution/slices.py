"""The statements of a running function that compute a value, so that just these can be run once more.

A backward slice: from the statement that used a value back to those that made what it names, as far as they lie in the
same turn of the loop. Whatever has an effect beyond its names (a step, a backward pass, drawing the next batch) is no
part of it; when it would have to be, there is no slice.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal

from pytest_nanstab.attribution.purity import Verdict, first_line, verdict_on
from pytest_nanstab.attribution.source import parsed, variables_of

# Contexts that only change how their block computes.
_CONTEXTS = frozenset(
    {"autocast", "no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "sdpa_kernel", "device"}
)
_LOOPS = (ast.For, ast.While, ast.AsyncFor)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


# What a name's present value is worth: "good" as it is; "bad" (it holds NaN or Inf, and is computed anew if it can be);
# "gone" (it belongs to a graph that is used up, or to a call that has returned, and must be computed anew).
State = Literal["good", "bad", "gone"]
StateOf = Callable[[Any], State]


@dataclass(frozen=True)
class Scope:
    """The names that statements of a function see, and where the function stands.

    Attributes:
        filename, function, first: which function it is; `first` is its first line.
        line: the statement it is in; 0 where it has returned.
        values: the names and what they hold.
        lost: names that were local to a call that has returned.
    """

    filename: str
    function: str
    first: int
    line: int
    values: Mapping[str, Any]
    lost: frozenset[str] = frozenset()

    def state(self, name: str, state_of: StateOf) -> State:
        """What the present value of a name is worth; builtins and globals are good."""
        if name in self.lost:
            return "gone"
        return state_of(self.values[name]) if name in self.values else "good"


def scope_of_frame(frame: FrameType) -> Scope:
    """The scope of a running function."""
    code = frame.f_code
    names = {**frame.f_globals, **variables_of(frame)}
    return Scope(code.co_filename, code.co_name, code.co_firstlineno, frame.f_lineno, names)


def scope_of_function(function: Any) -> Scope | None:
    """The scope of a function that has returned: what its locals held is lost."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    cells = zip(code.co_freevars, function.__closure__ or (), strict=False)
    values = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
    defaults = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    given = {
        **dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)),
        **(function.__kwdefaults__ or {}),
    }
    values.update(given)
    lost = (frozenset(code.co_varnames) | frozenset(code.co_cellvars)) - given.keys()
    return Scope(code.co_filename, code.co_name, code.co_firstlineno, 0, values, lost)


@dataclass(frozen=True)
class Slice:
    """Statements to run, and the expression whose value is wanted afterwards."""

    scope: Scope
    body: tuple[ast.stmt, ...]
    value: ast.expr

    def run(self) -> Any:
        """The value, computed anew with copies of the names."""
        names = dict(self.scope.values)
        module = ast.Module(body=list(self.body), type_ignores=[])
        exec(self._compiled(module, "exec"), names)  # the user's own statements
        return eval(self._compiled(ast.Expression(body=self.value), "eval"), names)

    def verdict(self) -> Verdict:
        """Whether running it can be undone, and whose attributes it may change."""
        return verdict_on([*self.body, self.value], self.scope.values)

    def given(self) -> list[Any]:
        """What the names in it hold now."""
        names = {"self"}.union(*(_names(node) for node in (*self.body, self.value)))
        return [self.scope.values[name] for name in names if name in self.scope.values]

    def _compiled(self, tree: ast.Module | ast.Expression, mode: str) -> CodeType:
        """Code whose frames look like the function's own."""
        code: CodeType = compile(tree, self.scope.filename, mode)
        return code.replace(co_name=self.scope.function)


def slice_of(scope: Scope, line: int, state_of: StateOf, value: ast.expr | None = None) -> Slice | None:
    """The slice that computes `value` as it stood at a line of a function; None where there is none.

    Args:
        scope: the function.
        line: the line of the statement that used the value.
        state_of: what the present value of a name is worth.
        value: the expression; None for what a call of `backward` at that line differentiates.
    """
    path = _path_to(scope, line)
    if path is None:
        return None
    wanted = value if value is not None else _differentiated(path[-1], scope)
    if wanted is None:
        return None
    body = _collect(path, wanted, scope, state_of)
    found = None if body is None else Slice(scope, tuple(body), wanted)
    return found if found is not None and found.verdict().pure else None


def handed_by(caller: Scope, called: Scope, line: int) -> ast.expr | None:
    """The expression that a caller's current statement hands over as the loss that a function differentiates at a line.

    None where that is no argument of the function, or the call is not found.
    """
    path, home = _path_to(called, line), _home_of(called)
    wanted = None if path is None else _differentiated(path[-1], called)
    statement = _path_to(caller, caller.line) if caller.line else None
    if not isinstance(wanted, ast.Name) or statement is None or not isinstance(home, _FUNCTIONS[:2]):
        return None
    names = [argument.arg for argument in (*home.args.posonlyargs, *home.args.args)]
    calls = (n for n in ast.walk(statement[-1]) if isinstance(n, ast.Call) and _name_of(n) == called.function)
    call = next(calls, None)
    if call is None or wanted.id not in names:
        return None
    by_name = next((keyword.value for keyword in call.keywords if keyword.arg == wanted.id), None)
    place = names.index(wanted.id) - (names[0] in ("self", "cls") and isinstance(call.func, ast.Attribute))
    return by_name if by_name is not None or place >= len(call.args) else call.args[place]


def line_of_backward(scope: Scope) -> int | None:
    """The line of the last call of `backward` before where a function stands, in the same turn of the loop."""
    if not scope.line:
        home = _home_of(scope)
        return None if home is None else _backward_in(reversed(getattr(home, "body", [])))
    path = _path_to(scope, scope.line)
    if path is None:
        return None
    return path[-1].lineno if _has_backward(path[-1]) else _backward_in(_before(path))


def _backward_in(statements: Iterable[ast.stmt]) -> int | None:
    nodes = (node for statement in statements for node in ast.walk(statement))
    return next((node.lineno for node in nodes if isinstance(node, ast.Call) and _is_backward(node)), None)


# -- the syntax tree ---------------------------------------------------------------------------------------------------


def _home_of(scope: Scope) -> ast.AST | None:
    """The function's own node in its file, or the file's."""
    tree = parsed(scope.filename)
    if tree is None:
        return None
    if scope.function == "<module>":
        return tree
    functions = (n for n in ast.walk(tree) if isinstance(n, _FUNCTIONS[:2]) and n.name == scope.function)
    return next((node for node in functions if first_line(node) == scope.first), None)


def _path_to(scope: Scope, line: int) -> list[ast.stmt] | None:
    """The statements around a line, from the function's (or the module's) own body inwards."""
    home = node = _home_of(scope)
    if home is None:
        return None
    path: list[ast.stmt] = []
    while node is not None and (inner := _statement_in(node, line)) is not None:
        path.append(inner)
        node = inner
        if isinstance(inner, (*_FUNCTIONS, ast.ClassDef)):
            return None  # a function inside the function
    if path:
        path[0]._home = _block_of(home, path[0])  # type: ignore[attr-defined]
    return path or None


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body


def _statement_in(node: ast.AST, line: int) -> ast.stmt | None:
    """The last statement of a node's blocks that covers a line: several may share one."""
    found = None
    for block in _blocks(node):
        for statement in block:
            if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
                found = statement
                if found.lineno == line and _has_backward(found):
                    return found
    return found


def _before(path: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements before the last of a path, the nearest first, as far as the innermost loop's turn goes."""
    for depth in range(len(path) - 1, -1, -1):
        around: ast.AST | None = path[depth - 1] if depth else None
        block = _block_of(around, path[depth]) if around is not None else _siblings(path)
        yield from reversed(block[: block.index(path[depth])])
        if isinstance(around, _LOOPS):
            return


def _siblings(path: Sequence[ast.stmt]) -> list[ast.stmt]:
    home: Any = getattr(path[0], "_home", None)
    return list(home) if home is not None else [path[0]]


def _block_of(node: ast.AST, statement: ast.stmt) -> list[ast.stmt]:
    return next((block for block in _blocks(node) if statement in block), [statement])


def _name_of(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_backward(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name_of(node) in ("backward", "manual_backward")


def _has_backward(statement: ast.AST) -> bool:
    """Whether a statement that holds no others calls `backward`."""
    if isinstance(statement, (*_LOOPS, ast.If, ast.With, ast.Try, *_FUNCTIONS, ast.ClassDef)):
        return False
    return any(_is_backward(node) for node in ast.walk(statement))


def _differentiated(statement: ast.AST, scope: Scope) -> ast.expr | None:
    """What a call of `backward` in a statement differentiates: its receiver, or its first argument.

    `loss.backward(weights)` differentiates its receiver, `accelerator.backward(loss)` its argument: what the receiver
    is tells them apart.
    """
    call = next((node for node in ast.walk(statement) if _is_backward(node)), None)
    if not isinstance(call, ast.Call) or not _has_backward(statement):
        return None
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    receiver = None if owner is None else _value_of(owner, scope)
    if call.args and (owner is None or (receiver is not None and not hasattr(receiver, "grad_fn"))):
        return call.args[0]
    return owner


def _value_of(node: ast.expr, scope: Scope) -> Any:
    """What a dotted name holds; None for any other expression."""
    if isinstance(node, ast.Name):
        return scope.values.get(node.id)
    return getattr(_value_of(node.value, scope), node.attr, None) if isinstance(node, ast.Attribute) else None


# -- the slice ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turn:
    """The statements of a loop's turn before the one that used a value, in order, and the names rebound since."""

    parts: tuple[ast.stmt, ...]
    rebound: frozenset[str]

    def definition(self, name: str, before: int) -> int | None:
        """The last statement before a place that binds or changes a name."""
        return next((i for i in range(before - 1, -1, -1) if name in _assigned(self.parts[i])), None)

    def is_current(self, name: str, definition: int | None) -> bool:
        """Whether a name's present value is the one that a statement gave it, or that it had before the turn."""
        first = 0 if definition is None else definition + 1
        return name not in self.rebound and not any(name in _assigned(part) for part in self.parts[first:])


def _turn(path: list[ast.stmt], scope: Scope) -> _Turn:
    parts = [part for statement in _before(path) for part in _parts(statement)][::-1]
    rebound = set(_assigned(path[-1]))
    now = _path_to(scope, scope.line) if scope.line else None
    if now is not None and now[-1] is not path[-1]:
        known = {(part.lineno, part.col_offset) for part in parts} | {(path[-1].lineno, path[-1].col_offset)}
        since = [part for statement in _before(now) for part in _parts(statement)]
        rebound |= set().union(*(_assigned(p) for p in since if (p.lineno, p.col_offset) not in known), set())
    return _Turn(tuple(parts), frozenset(rebound))


def _collect(path: list[ast.stmt], wanted: ast.expr, scope: Scope, state_of: StateOf) -> list[ast.stmt] | None:
    """The statements that make the wanted names anew, in order; None where one of them cannot be had.

    A present value stands for what a statement reads only if nothing has bound or changed that name since.
    """
    turn = _turn(path, scope)
    included: set[int] = set()
    waiting = [(name, len(turn.parts), False) for name in _names(wanted)]
    seen: set[tuple[str, int]] = set()
    while waiting:
        name, use, is_optional = waiting.pop()
        if (name, use) in seen:
            continue
        seen.add((name, use))
        made = turn.definition(name, use)
        state, current = scope.state(name, state_of), turn.is_current(name, made)
        if made is None or (current and state == "good"):
            if is_optional or (current and state != "gone"):
                continue
            return None
        if not _can_repeat(turn.parts[made], scope):
            if current and state == "bad":
                continue
            return None
        included.add(made)
        reads, bound = _flow(turn.parts[made])
        waiting += [(read, made, False) for read in reads]
        if name not in bound:
            waiting.append((name, made, name not in reads))
    return _in_contexts(path, [turn.parts[index] for index in sorted(included)])


def _can_repeat(statement: ast.stmt, scope: Scope) -> bool:
    if any(isinstance(node, (ast.Return, ast.Break, ast.Continue)) for node in ast.walk(statement)):
        return False
    return verdict_on([statement], scope.values).pure


def _flow(statement: ast.AST) -> tuple[set[str], set[str]]:
    """(names read before the statement binds them, names it binds in any case)."""
    if isinstance(statement, _LOOPS):
        header = _names(statement.test if isinstance(statement, ast.While) else statement.iter)
        target = set() if isinstance(statement, ast.While) else _names(statement.target)
        reads, _ = _flow_of(statement.body)
        return header | (reads - target), set()
    if isinstance(statement, ast.If):
        (reads, bound), (others, bound_too) = _flow_of(statement.body), _flow_of(statement.orelse)
        return _names(statement.test) | reads | others, bound & bound_too
    if isinstance(statement, ast.With):
        header = {name for item in statement.items for name in _names(item.context_expr)}
        named = {name for item in statement.items if item.optional_vars for name in _names(item.optional_vars)}
        reads, bound = _flow_of(statement.body)
        return header | (reads - named), bound | named
    stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    read = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return (read | stored, set()) if isinstance(statement, ast.AugAssign) else (read - _inner(statement), stored)


def _flow_of(statements: Sequence[ast.stmt]) -> tuple[set[str], set[str]]:
    reads: set[str] = set()
    bound: set[str] = set()
    for statement in statements:
        more, newly = _flow(statement)
        reads |= more - bound
        bound |= newly
    return reads, bound


def _inner(statement: ast.AST) -> set[str]:
    """The variables of comprehensions and lambdas: they are bound where they are read."""
    targets = (g.target for n in ast.walk(statement) for g in getattr(n, "generators", ()))
    arguments = {a.arg for n in ast.walk(statement) if isinstance(n, ast.Lambda) for a in n.args.args}
    return {name for target in targets for name in _names(target)} | arguments


def _parts(statement: ast.stmt) -> list[ast.stmt]:
    """A statement; of a context that means nothing to the computation its block, the last statement first."""
    if isinstance(statement, ast.With) and not all(_is_harmless(item) for item in statement.items):
        return [part for inner in reversed(statement.body) for part in _parts(inner)]
    if isinstance(statement, ast.Try):
        return [part for inner in reversed(statement.body) for part in _parts(inner)]
    return [statement]


def _is_harmless(item: ast.withitem) -> bool:
    return isinstance(item.context_expr, ast.Call) and _name_of(item.context_expr) in _CONTEXTS


def _in_contexts(path: Sequence[ast.stmt], body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements inside the harmless contexts that were around them and are part of the same loop turn."""
    around: list[ast.With] = []
    for statement in reversed(path[:-1]):
        if isinstance(statement, _LOOPS):
            break
        if isinstance(statement, ast.With) and any(map(_is_harmless, statement.items)):
            around.append(statement)
    for statement in around:
        if body:
            items = [item for item in statement.items if _is_harmless(item)]
            wrapped = ast.With(items=items, body=body)
            body = [ast.copy_location(wrapped, statement)]
    return body


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _assigned(statement: ast.AST) -> set[str]:
    """The names a statement binds, or changes in place by an assignment or a method of theirs."""
    return {name for node in ast.walk(statement) for name in _assigned_by(node)}


def _assigned_by(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return {node.id}
    if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
        return _names(node.value)
    function = node.func if isinstance(node, ast.Call) else None
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return set()
    in_place = function.attr.endswith("_") and not function.attr.startswith("_")
    return {function.value.id} if in_place or function.attr in ("append", "extend") else set()


def covers(scope: Scope, line: int) -> bool:
    """Whether a line belongs to a function's body."""
    home = _home_of(scope)
    if home is None:
        return False
    return isinstance(home, ast.Module) or scope.first <= line <= (getattr(home, "end_lineno", None) or scope.first)
