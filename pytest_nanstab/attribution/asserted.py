"""Where the NaN comes from that a test's own assertion has met."""

from __future__ import annotations

import ast
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_nanstab.attribution import plan
from pytest_nanstab.attribution.origin import is_intended, origin_of
from pytest_nanstab.attribution.source import is_user_file, parsed, place, variables_of
from pytest_nanstab.findings import Finding
from pytest_nanstab.watching import measure

if TYPE_CHECKING:
    from pytest_nanstab.attribution.tracing import Tracing


def finding_behind(error: BaseException, tracing: Tracing) -> Finding | None:
    """A finding about the first bad tensor that the failed line names; None when it names none, or it is no fault."""
    frame, line = failed_line(error)
    if frame is None:
        return None
    for name, tensor, _ in bad_tensors(frame, line):
        made = tracing.behind_at_end(tensor)
        if made is None or is_intended(origin_of(made).guilty):
            continue
        finding = tracing.told_at_end(asserted(name, tensor, frame, line), made)
        if finding is not None and finding.op is not None:
            return finding
    return None


def asserted(name: str, tensor: Tensor, frame: FrameType, line: int) -> Finding:
    """What the assertion met, before its origin is known."""
    facts = measure.nonfinite_facts(tensor)
    word = "NaN" if facts.get("nan") else "Inf"
    return Finding(
        kind="nonfinite-output",
        message=f"{word} in {name}, which the test's own assertion met",
        phase="eval",
        source=place(frame.f_code.co_filename, line),
        evidence={"tensor": name, **facts},
    )


def with_origin(finding: Finding, tensor: Tensor) -> Finding:
    """What `assert_finite` has found, with the operation behind it where operations are traced."""
    tracing = plan.current()
    made = None if tracing is None else tracing.behind(tensor)
    if tracing is None or made is None or is_intended(origin_of(made).guilty):
        return finding
    told = tracing.told_at_end(finding, made)
    return finding if told is None or told.op is None else told


def asked_about(frame: FrameType, line: int) -> ast.expr | None:
    """What the call of `assert_finite` in the statement at a line is given."""
    statement = statement_at(frame.f_code.co_filename, line)
    calls = () if statement is None else (node for node in ast.walk(statement) if isinstance(node, ast.Call))
    given = (call.args[0] for call in calls if call.args and ast.unparse(call.func).endswith("assert_finite"))
    return next(given, None)


def failed_line(error: BaseException) -> tuple[FrameType | None, int]:
    """The innermost user frame of a traceback, and its line."""
    frame, line, tb = None, 0, error.__traceback__
    while tb is not None:
        if is_user_file(tb.tb_frame.f_code.co_filename):
            frame, line = tb.tb_frame, tb.tb_lineno
        tb = tb.tb_next
    return frame, line


def bad_tensors(frame: FrameType, line: int) -> list[tuple[str, Tensor, str]]:
    """(path, tensor, name) of the bad tensors in what a statement names, in order."""
    found = []
    for name in names_at(frame.f_code.co_filename, line):
        for path, tensor in measure.tensors_in(_value(frame, name), name):
            seen = measure.extent(tensor)
            if seen is not None and not seen.finite:
                found.append((path, tensor, name))
    return found


def names_at(filename: str, line: int) -> list[str]:
    """The names, and attributes of names, in the statement at a line."""
    statement = statement_at(filename, line)
    if statement is None:
        return []
    nodes = [node for node in ast.walk(statement) if isinstance(node, (ast.Name, ast.Attribute))]
    return list(dict.fromkeys(ast.unparse(node) for node in nodes if _is_dotted(node)))


def _is_dotted(node: ast.AST) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def statement_at(filename: str, line: int) -> ast.stmt | None:
    """The innermost statement that covers a line of a file."""
    tree = parsed(filename)
    if tree is None:
        return None
    covering = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or n.lineno)]
    return max(covering, key=lambda node: (node.lineno, -(node.end_lineno or 0)), default=None)


def _value(frame: FrameType, dotted: str) -> Any:
    first, *rest = dotted.split(".")
    value = variables_of(frame).get(first, frame.f_globals.get(first))
    for name in rest:
        value = getattr(value, "__dict__", {}).get(name) if not isinstance(value, Tensor) else None
    return value
