"""Text that fits: escaping, display width, wrapping, shortening, numbers and tables. Standard library only."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

ELLIPSIS = "…"
_LEAST = 4  # columns for the rest of an id
_TABLE_ROWS = 20
_NARROWEST = 6
_PATHS = frozenset({"layer"})  # columns of dotted paths

# Bidirectional controls are printable by category and can make a terminal show another text than the file holds.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def escape(value: object) -> str:
    r"""`str(value)` on one line: control characters, newlines and lone surrogates as `\x1b`, `\n`, `\ud800`."""
    text = str(value)
    return text if text.isascii() and text.isprintable() else "".join(map(_escape_char, text))


def _escape_char(char: str) -> str:
    if char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
        return char.encode("unicode_escape").decode("ascii")
    return char


def escape_lines(value: object) -> list[str]:
    """The lines of a text (or of a list of texts), each one escaped; a text may break its lines itself."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return [escape(line) for text in texts for line in str(text).split("\n")]


def columns(text: str) -> int:
    """Terminal columns of `text`: two for wide characters, none for combining marks."""
    return len(text) if text.isascii() else sum(map(_char_columns, text))


def _char_columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def pad(text: str, width: int, *, right: bool = False) -> str:
    """`text` filled with blanks to `width` columns; `right` aligns it to the right."""
    blanks = " " * (width - columns(text))
    return blanks + text if right else text + blanks


def cut(text: str, width: int) -> str:
    """`text`, or as much of its start as fits `width` columns with an ellipsis."""
    return text if columns(text) <= width else _head(text, width - 1) + ELLIPSIS


def cut_middle(text: str, width: int) -> str:
    """`text`, or its start and its end around an ellipsis in `width` columns: what differs often stands at the end."""
    if columns(text) <= width:
        return text
    head = _head(text, (width - 1) // 2)
    return head + ELLIPSIS + _head(text[::-1], width - 1 - columns(head))[::-1]


def cut_id(text: str, width: int) -> str:
    """A test's id, or as much of it as fits: what stands in brackets tells the items of a suite apart."""
    bracket = text[text.index("[", text.rfind("::")) :] if "[" in text[text.rfind("::") :] else ""
    room = width - 1 - columns(bracket)
    if columns(text) <= width or room >= columns(bracket) or room < _LEAST:
        return cut_middle(text, width)
    rest = text.removesuffix(bracket)
    head = _head(rest, room // 2)
    return head + ELLIPSIS + _head(rest[::-1], room - columns(head))[::-1] + bracket


def cut_left(text: str, width: int) -> str:
    """`text`, or as much of its end as fits `width` columns behind an ellipsis: of a dotted path it says the most."""
    return text if columns(text) <= width else ELLIPSIS + _head(text[::-1], width - 1)[::-1]


def _head(text: str, width: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += _char_columns(char)
        if used > width:
            return text[:index]
    return text


def wrap(text: str, width: int, *, separator: str = " ") -> list[str]:
    """`text` in lines of at most `width` columns, broken only at `separator`; a longer word keeps its own line.

    Paths, node ids and dotted names stay whole, so they can be copied.
    """
    lines: list[str] = []
    for word in text.split(separator):
        joined = f"{lines[-1]}{separator}{word}" if lines else word
        if lines and columns(joined) > width:
            lines[-1] += separator.rstrip()
            lines.append(word)
        else:
            lines[-1:] = [joined]
    return lines or [""]


def number(value: object) -> str:
    """A number in four significant digits, whole numbers in full; anything else as its escaped text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """`1 test`, `2 tests`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Sequence[object], *, most: int = 10, count: int = 0) -> str:
    """`3, 17, 20 … and 4 more`: at most `most` items, and how many were left out; `count` where there are more."""
    text, left_out = ", ".join(number(item) for item in items[:most]), max(count, len(items)) - most
    return f"{text} {ELLIPSIS} and {left_out} more" if left_out > 0 else text


def table(rows: Sequence[Mapping[str, object]], width: int, *, most: int = _TABLE_ROWS) -> list[str]:
    """A header and one line per row, at most `most`, fitted into `width` columns.

    Columns shrink, the widest first, with an ellipsis in the middle of what is too long, or in front of a layer's path;
    the last ones go if they must.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[escape(name) for name in names]]
    cells += [[number(row.get(name, "")) for name in names] for row in rows[:most]]
    widths = _fit_widths([max(map(columns, column)) for column in zip(*cells, strict=True)], width)
    numeric = [all(_is_number(row.get(name, 0)) for row in rows) for name in names]
    paths = [name in _PATHS for name in names]
    lines = [_table_line(line, widths, numeric, paths) for line in cells]
    return [*lines, *([f"{ELLIPSIS} and {plural(len(rows) - most, 'more row')}"] if len(rows) > most else [])]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fit_widths(widths: Sequence[int], width: int) -> list[int]:
    """Column widths that fit with two blanks between them; a last 0 stands for columns that had to go."""
    for kept in range(len(widths), 1, -1):
        gone = [0] if kept < len(widths) else []
        room = width - 3 * len(gone)
        fitted = _shrink(list(widths[:kept]), room)
        if _total(fitted) <= room:
            return [*fitted, *gone]
    return [min(widths[0], max(width - 3, _NARROWEST)), *([0] if len(widths) > 1 else [])]


def _shrink(widths: list[int], room: int) -> list[int]:
    while _total(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _total(widths: Iterable[int]) -> int:
    parts = list(widths)
    return sum(parts) + 2 * (len(parts) - 1)


def _table_line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], paths: Sequence[bool]) -> str:
    shown = [
        pad((cut_left if path else cut_id)(cell, width), width, right=right) if width else ELLIPSIS
        for cell, width, right, path in zip(cells, widths, numeric, paths, strict=False)
    ]
    return "  ".join(shown).rstrip()
