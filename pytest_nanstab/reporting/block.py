"""The failure block: how findings read as text, whoever raises them and wherever they are printed."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_nanstab.reporting import text

if TYPE_CHECKING:
    from pytest_nanstab.findings import Finding

_CONTEXT = 2
_CONTINUED, _LINES_IN_FULL = "    ", 4
_KEY_WIDTH = (8, 16)
_FURTHER = 10
_ALSO = "also: "
_LONGEST = 2000  # columns of one text: a name without end would hide all else
_RUN = ("batch", "seed", "precision")
_Value: TypeAlias = "Callable[[int], list[str]]"  # the lines of a value in so many columns
_Pair: TypeAlias = "tuple[str, str | list[str] | None]"
# What a line of its own, or a part of another line, already says.
_SPOKEN_FOR = frozenset(
    {"step", "steps", "step_range", "batch", "seed", "precision", "device", "parameter", "module_class", "optimizer"}
    | {
        "tensor",
        "dtype",
        "shape",
        "count",
        "of",
        "nan",
        "inf",
        "negative_inf",
        "first_index",
        "detail",
        "range",
        "chain",
        "table",
        "outcomes",
        "backward",
    }
    | {
        "value",
        "limit",
        "limit_name",
        "limit_source",
        "rows",
        "columns",
        "row_count",
        "column_count",
        "field",
        "grade",
        "state",
        "batch_description",
    }
    | {"excerpt", "note", "trace", "accept", "again", "steps before"}
)


def split_source(source: str | None) -> tuple[str, int] | None:
    """`("models/attention.py", 31)` from "models/attention.py:31"; None where there is no path with a line number."""
    path, colon, line = (source or "").rpartition(":")
    return (path, int(line)) if colon and path and line.isdecimal() else None


def render(findings: Sequence[Finding], *, width: int = 80) -> str:
    """The failure block of `findings`, the root cause first: message, the user's line, measurements, cause, remedy.

    The first line is the first finding's message, never wrapped. Everything else fits `width` columns, except single
    words and the command to run next, which stay whole so they can be copied. Further findings, at most 10, follow in
    short. Control characters in names and data are escaped. No findings make an empty string, a missing source file no
    excerpt.
    """
    if not findings:
        return ""
    first, *others = findings
    parts = [
        [_told_whole(first.message)],
        _excerpt(first, width),
        _facts(first, width),
        _also(others, first.source, width),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _also(findings: Sequence[Finding], told: str | None, width: int) -> list[str]:
    """The other findings in short; the place that the first one has is known already."""
    lines: list[str] = []
    for finding in findings[:_FURTHER]:
        place = f" ({text.escape(finding.source)})" if finding.source and finding.source != told else ""
        wrapped = text.wrap(_told_whole(finding.message) + place, width - 2 - len(_ALSO))
        lines += [f"  {_ALSO if not index else ' ' * len(_ALSO)}{line}" for index, line in enumerate(wrapped)]
    hidden = len(findings) - _FURTHER
    return [*lines, f"  {text.ELLIPSIS} and {hidden} more"] if hidden > 0 else lines


def _told_whole(value: object) -> str:
    """A text on one line, whole unless it is far longer than anybody reads."""
    return text.cut_middle(text.escape(value), _LONGEST)


# --- the user's source


def _excerpt(finding: Finding, width: int) -> list[str]:
    shown = _given_excerpt(finding.evidence.get("excerpt")) or _read_excerpt(finding.source)
    if shown is None:
        return []
    path, numbered, guilty = shown
    digits = len(str(max(numbered)))
    lines = [f"    {text.escape(path)}"]
    for number, code in zip(numbered, _dedent(list(numbered.values())), strict=True):
        if number == guilty:
            lines += _in_full(f"    > {number:>{digits}} | ", code.rstrip(), width)
        else:
            lines.append(text.cut(f"      {number:>{digits}} | {code}".rstrip(), width))
    return lines


def _in_full(before: str, code: str, width: int) -> list[str]:
    """The line in question, on several lines where it is long: what went wrong may stand at its end."""
    bare = code.lstrip(" ")
    indent = " " * (len(code) - len(bare))
    if text.columns(before + code) <= width:
        return [before + code]
    parts = text.wrap(bare, width - len(before) - len(indent) - len(_CONTINUED))
    beside = f"{' ' * (len(before) - 2)}| {indent}{_CONTINUED}"
    if len(parts) > _LINES_IN_FULL:
        parts[_LINES_IN_FULL - 1 :] = [" ".join(parts[_LINES_IN_FULL - 1 :])]  # cut, and seen to be
    return [text.cut((beside if index else before + indent) + part, width) for index, part in enumerate(parts)]


def _given_excerpt(given: Any) -> tuple[str, dict[int, str], int] | None:
    """Path, numbered lines and guilty line of evidence["excerpt"]; None when it is absent or empty."""
    if not isinstance(given, Mapping) or not given.get("lines"):
        return None
    numbered = dict(enumerate(map(str, given["lines"]), start=int(given.get("first", 1))))
    return str(given.get("file", "")), numbered, int(given.get("guilty", 0))


def _read_excerpt(source: str | None) -> tuple[str, dict[int, str], int] | None:
    place = split_source(source)
    if place is None:
        return None
    path, guilty = place
    lines = _lines_of(path)
    if not 0 < guilty <= len(lines):
        return None
    first, last = max(1, guilty - _CONTEXT), min(len(lines), guilty + _CONTEXT)
    return path, {number: lines[number - 1] for number in range(first, last + 1)}, guilty


def _lines_of(path: str) -> list[str]:
    """The file's lines; none when it cannot be read. A relative path is looked for here and in the folders above."""
    try:
        folders = [Path.cwd(), *Path.cwd().parents]
        found = next((folder / path for folder in folders if (folder / path).is_file()), None)
    except (OSError, ValueError):  # the current folder is gone, or a name no file system can hold
        return []
    name = path if path in linecache.cache or found is None else str(found)
    if found is None and name not in linecache.cache:
        return []  # linecache would go on to search sys.path, and could show a file that only shares the name
    linecache.checkcache(name)
    return linecache.getlines(name)


def _dedent(lines: list[str]) -> list[str]:
    """The lines without the indentation they share, down to one level of 4: deep methods keep room for their code."""
    expanded = [text.escape(line.rstrip("\r\n").expandtabs(4)) for line in lines]
    shared = min((len(line) - len(line.lstrip(" ")) for line in expanded if line.strip()), default=0)
    return [line[max(0, shared - 4) :] for line in expanded]


# --- the aligned keys


def _whole(content: str) -> _Value:
    return lambda _width: [content]


def _wrapped(content: str, separator: str = " ") -> _Value:
    return lambda width: text.wrap(content, width, separator=separator)


def _facts(finding: Finding, width: int) -> list[str]:
    facts = list(_rows(finding))
    column = min(max([_KEY_WIDTH[0], *(text.columns(key) for key, _ in facts)]), _KEY_WIDTH[1])
    lines: list[str] = []
    for key, values in facts:
        wrapped = [line for value in values for line in value(width - column - 4)]
        lines += [f"  {text.pad(key if not i else '', column)}  {line}".rstrip() for i, line in enumerate(wrapped)]
    return lines


def _rows(finding: Finding) -> Iterator[tuple[str, list[_Value]]]:
    """The keys of the block in their order; a key with no value is left out."""
    evidence = finding.evidence
    grade = ": ".join(str(evidence[key]) for key in ("grade", "state") if evidence.get(key))
    yield from _plain([("grade", grade or None), *_when(finding), *_where(finding), *_numbers(evidence)])
    if evidence.get("chain"):
        yield "chain", [_wrapped(" -> ".join(map(text.escape, evidence["chain"])), " -> ")]
    if evidence.get("table"):
        yield "table", [partial(text.table, evidence["table"])]
    yield from _plain([(key, _generic(value)) for key, value in evidence.items() if key not in _SPOKEN_FOR])
    if evidence.get("steps before"):
        yield "steps", [partial(text.table, evidence["steps before"])]
    yield from _told("note", evidence.get("note"))
    yield from _command("trace", evidence)
    yield from _told("cause", finding.cause)
    yield from _told("remedy", finding.remedy)
    yield from _told("accept", evidence.get("accept"))
    if not evidence.get("trace"):  # the same command, and more
        yield from _command("again", evidence)


def _told(key: str, value: Any) -> Iterator[tuple[str, list[_Value]]]:
    return _plain([(key, text.escape_lines(value) if value else None)])


def _command(key: str, evidence: Mapping[str, Any]) -> Iterator[tuple[str, list[_Value]]]:
    """A command of the evidence on a line of its own, whole so that it can be copied."""
    if evidence.get(key):
        yield key, [_whole(text.escape(evidence[key]))]


def _plain(pairs: Iterable[_Pair]) -> Iterator[tuple[str, list[_Value]]]:
    for key, value in pairs:
        if value:
            yield (
                text.escape(key),
                [_wrapped(_told_whole(line)) for line in ([value] if isinstance(value, str) else value)],
            )


def _generic(value: object) -> str | None:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text.number(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return text.listed(value)
    return None if value is None else text.number(value)


def _when(finding: Finding) -> list[_Pair]:
    """One line: step, phase, batch, seed, precision and device, as far as they are known."""
    evidence = finding.evidence
    circumstances = [(name, f"{name} {evidence[name]}") for name in _RUN if evidence.get(name) is not None]
    parts = [("step", _step(finding)), ("phase", finding.phase), *circumstances, ("device", evidence.get("device"))]
    known = [(name, str(value)) for name, value in parts if value is not None]
    if not known:
        return []
    key = known[0][0] if known[0][0] in ("step", "phase", "device") else "run"
    return [(key, ", ".join(value for _, value in known))]


def _step(finding: Finding) -> str | None:
    evidence = finding.evidence
    planned = f" of {evidence['steps']}" if evidence.get("steps") else ""
    if evidence.get("step_range"):
        first, last = evidence["step_range"]
        return f"{first} to {last}{planned} (sampled)"
    return None if finding.step is None else f"{finding.step}{planned}"


def _where(finding: Finding) -> list[_Pair]:
    """Module, parameter, operation, tensor, place in the data. A nameless tensor is the operation's own output."""
    evidence = finding.evidence
    numbers = _tensor_numbers(evidence, became=bool(finding.op) and not evidence.get("tensor"))
    detail = text.escape_lines(evidence["detail"]) if evidence.get("detail") else []
    op, tensor = finding.op, evidence.get("tensor")
    if op and not tensor:
        op, numbers = ", ".join(filter(None, (op, numbers))), ""
    told = tensor in (evidence.get("parameter"), evidence.get("buffer"), evidence.get("field"))
    described = ", ".join(filter(None, ("" if told else tensor, numbers)))
    lines: list[_Pair] = [
        ("module", _module(finding)),
        ("parameter", evidence.get("parameter")),
        ("optimizer", evidence.get("optimizer")),
        ("op", [op, *detail] if op else None),
        ("tensor", [described, *([] if op else detail)] if described else None),
        ("detail", None if op or described else detail),
    ]
    return [*lines, *_place_in_data(evidence)]


def _place_in_data(evidence: Mapping[str, Any]) -> list[_Pair]:
    shape = evidence.get("shape")
    sizes = (shape[0], shape[-1]) if isinstance(shape, (list, tuple)) and shape else (0, 0)
    return [
        ("data", evidence.get("batch_description")),
        ("field", evidence.get("field")),
        ("rows", _indices(evidence, "row", sizes[0])),
        ("columns", _indices(evidence, "column", sizes[1])),
    ]


def _indices(evidence: Mapping[str, Any], name: str, size: object) -> str | None:
    """The rows or columns in which something is bad: "3, 17", or "all 48" of a long dimension."""
    listed, count = evidence.get(f"{name}s"), evidence.get(f"{name}_count", 0)
    if not listed:
        return None
    return f"all {count}" if count and count == size else text.listed(listed, count=count)


def _module(finding: Finding) -> str | None:
    kind = finding.evidence.get("module_class")
    return f"{finding.module} ({kind})" if finding.module and kind else finding.module


def _tensor_numbers(evidence: Mapping[str, Any], *, became: bool) -> str:
    """`float32[2, 6, 6]: 8 of 72 values are NaN, first at [0, 1, 2]`, as far as it is known."""
    shape = evidence.get("shape")
    kind = f"{evidence.get('dtype', '')}{list(shape) if shape is not None else ''}"
    counted = _counted(evidence, became=became)
    if counted and evidence.get("first_index"):
        counted += f", first at {list(evidence['first_index'])}"
    return ": ".join(filter(None, (kind, counted)))


def _counted(evidence: Mapping[str, Any], *, became: bool) -> str:
    nan, inf = evidence.get("nan") or 0, evidence.get("inf") or 0
    count = evidence.get("count") or nan + inf
    if not count:
        return ""
    other = "out of range" if "domain" in evidence else "not finite"
    infinite = "-inf" if inf and evidence.get("negative_inf") == inf else "inf"
    what = {(True, False): "NaN", (False, True): infinite}.get((bool(nan), bool(inf)), other)
    which = f" ({nan} NaN, {inf} inf)" if nan and inf else ""
    total = evidence.get("of")
    if total == 1:
        return f"the value {'became' if became else 'is'} {what}"
    values = f"{count} of {total} values" if total is not None else text.plural(count, "value")
    return f"{values} {'became' if became else 'is' if count == 1 else 'are'} {what}{which}"


def _numbers(evidence: Mapping[str, Any]) -> list[_Pair]:
    """What was measured, what is allowed and where that was stated, and the range of the finite values."""
    limits = evidence.get("range")
    return [
        ("measured", text.number(evidence["value"]) if evidence.get("value") is not None else None),
        ("allowed", _allowed(evidence)),
        ("range", f"{text.number(limits[0])} to {text.number(limits[1])}" if limits else None),
    ]


def _allowed(evidence: Mapping[str, Any]) -> str | None:
    limit, name = evidence.get("limit"), str(evidence.get("limit_name") or "")
    if limit is None:
        return None
    bound = {"max": "at most ", "min": "at least "}.get(name.partition("_")[0], "")
    stated = ", ".join(filter(None, (name, evidence.get("limit_source"))))
    return f"{bound}{text.number(limit)}{f' ({stated})' if stated else ''}"
