"""Tables and bar lists of one record, as the page's templates show them. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.tolerant import listed, mapping, real, shown

_BARS = 10  # shown at once; the rest waits in a collapsed table
_ROWS = 200
_NO_SCALE = "none loses less than 1 % without overflow"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        caption: what it shows.
        names: the headings.
        rows: the cells as text.
        right: numbers of the columns of figures.
        marked: numbers of the rows to point out.
        hidden: how many rows were left out.
    """

    caption: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    hidden: int = 0


@dataclass(frozen=True)
class Bar:
    """One row of a bar list: a tensor, its bits as text, the length in percent, and whether a limit is broken."""

    name: str
    words: str
    percent: int
    broken: bool = False


@dataclass(frozen=True)
class Bars:
    """Headroom of one quantity in one dtype, least first; `rest` waits behind the first ones."""

    caption: str
    first: Sequence[Bar]
    rest: Sequence[Bar]
    hidden: int = 0


def limits_table(limits: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The limits in force and where they were stated."""
    rows = [[shown(name), shown(limit["value"]), limit["source"]] for name, limit in limits.items()]
    return _table("Limits", ["limit", "value", "stated in"], rows, right={1})


# --- headroom


def headroom(record: Mapping[str, Any]) -> list[Bars]:
    """A bar list for each quantity and dtype, the dtype with the least headroom first."""
    wanted = real((record["limits"].get("min_headroom_bits") or {}).get("value"))
    groups: dict[tuple[str, str], list[tuple[str, float | str]]] = {}
    for quantity, tensors in record["headroom"].items():
        for name, bits in tensors.items():
            tensor, _, dtype = name.rpartition(" ")
            groups.setdefault((shown(quantity), dtype if tensor else ""), []).append((tensor or name, bits))
    found = [_bars(*group, rows, wanted) for group, rows in groups.items()]
    return [bars for _, bars in sorted(found, key=lambda entry: entry[0])]


def _bars(
    quantity: str, dtype: str, rows: Sequence[tuple[str, float | str]], wanted: float | None
) -> tuple[float, Bars]:
    ordered = sorted(rows, key=lambda row: (_least(row[1]), row[0]))
    largest = max((bits for _, bits in rows if isinstance(bits, float)), default=0.0)
    bars = [_bar(name, bits, largest, wanted) for name, bits in ordered[:_ROWS]]
    kind = ", ".join(filter(None, (quantity, dtype)))
    caption = f"{kind}: {text.plural(len(rows), 'tensor')}"
    return _least(ordered[0][1]), Bars(caption, bars[:_BARS], bars[_BARS:], max(0, len(rows) - _ROWS))


def _least(bits: float | str) -> float:
    return bits if isinstance(bits, float) else math.inf


def _bar(name: str, bits: float | str, largest: float, wanted: float | None) -> Bar:
    if isinstance(bits, str):
        return Bar(name, bits, 0)
    percent = round(100 * max(bits, 0.0) / largest) if largest > 0 else 0
    return Bar(name, f"{bits:.1f}", percent, wanted is not None and bits < wanted)


# --- half precision


def underflow(record: Mapping[str, Any]) -> Table | None:
    """What half precision would make of the small gradients, in words."""
    rows = [[shown(name), *_underflow_cells(row)] for name, row in record["underflow"].items()]
    names = ["in", "lose digits", "become 0", "worst", "loss scales that help"]
    return _table("Gradient values that underflow", names, rows)


def _underflow_cells(row: Mapping[str, Any]) -> list[str]:
    worst = f"{shown(row['worst'])}: {_share(row.get('worst_share'))} become 0" if row.get("worst") else ""
    return [_share(row.get("below_normal")), _share(row.get("below_subnormal")), worst, _scales(row)]


def _share(value: object) -> str:
    share = real(value)
    if share is None:
        return "" if value is None else shown(value)
    return f"{100 * share:.2g} %" if 0 < share < 0.995 else f"{100 * share:.4g} %"


def _scales(row: Mapping[str, Any]) -> str:
    if "loss_scale" not in row:
        return ""
    ends = row["loss_scale"]
    if real(row.get("below_normal")) == 0:
        return "none needed"
    if ends is None:
        return _NO_SCALE
    return " to ".join(map(_scale, listed(ends))) or shown(ends)


def _scale(value: object) -> str:
    number = real(value)
    mantissa, exponent = math.frexp(number or 0.0)
    return f"2^{exponent - 1}" if mantissa == 0.5 else shown(value)


# --- parity


def parity(record: Mapping[str, Any]) -> Table | None:
    """Modules whose output deviates from the reference, the first of them pointed out."""
    given = record["parity"]
    rows = [mapping(row) for row in listed(given.get("modules"))]
    if not given:
        return None
    first = given.get("first")
    at = next((number for number, row in enumerate(rows) if first is not None and row.get("module") == first), None)
    begin = 0 if at is None or at < _ROWS else at - _BARS  # the first is always to be seen
    chosen = rows[begin : begin + _ROWS]
    marked = frozenset() if at is None else frozenset({at - begin})
    cells = [_parity_cells(row, number in marked) for number, row in enumerate(chosen)]
    names = ["module", "type", "error", "error of the input", "explained by it"]
    return Table(_parity_caption(given), names, cells, frozenset({2, 3, 4}), marked, len(rows) - len(chosen))


def _parity_caption(given: Mapping[str, Any]) -> str:
    told = [f"Parity: {shown(given.get('precision', 'this run'))} against {shown(given.get('against', 'a reference'))}"]
    if given.get("loss") is not None:
        told.append(f"the loss deviates by {shown(given['loss'])}")
    if given.get("eps") is not None:
        told.append(f"one rounding is {shown(given['eps'])}")
    if given.get("first") is not None:
        where = "before" if given.get("before") is True else "in"
        told.append(f"beyond rounding first {where} {shown(given['first'])}")
    return ", ".join(told)


def _parity_cells(row: Mapping[str, Any], first: bool) -> list[str]:
    module = shown(row.get("module", "")) + (" (first)" if first else "")
    return [module, *(cell(row.get(name)) for name in ("type", "error", "input_error", "explained"))]


def cell(value: object) -> str:
    """A value as the text of a cell: nothing for None, words for a truth value."""
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value)


# --- initial scale


def init_scale(record: Mapping[str, Any]) -> Table | None:
    """One row per judged weight, in the columns that the check has."""
    found = record["init_scale"]
    names = list(dict.fromkeys(name for row in found for name in row))[:20]
    rows = [[cell(row.get(name)) for name in names] for row in found]
    right = {number for number, name in enumerate(names) if all(_is_figure(row.get(name)) for row in found)}
    odd = {number for number, row in enumerate(found) if str(row.get("verdict", "ok")) not in ("ok", "note")}
    headings = [shown(name.replace("_", " ")) for name in names]
    return _table("Initial scale", headings, rows, right=right - {0}, marked=odd)


def _is_figure(value: object) -> bool:
    return value is None or real(value) is not None


def _table(
    caption: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Iterable[int] = (),
    marked: Iterable[int] = (),
) -> Table | None:
    if not rows:
        return None
    kept = frozenset(number for number in marked if number < _ROWS)
    return Table(caption, names, rows[:_ROWS], frozenset(right), kept, max(0, len(rows) - _ROWS))
