"""From matplotlib's SVG to one that a page can hold: shapes and texts with classes, no ids, styles or metadata."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from xml.etree import ElementTree as ET

from markupsafe import Markup, escape

_NUMBER = re.compile(r"-?\d+\.\d+")
_BLANKS = re.compile(r"\s*([MLzZCQ])\s*")
_ANCHOR = re.compile(r"text-anchor:\s*(start|middle|end)")


def inline(source: str, *, classes: Collection[str], name: str, title: str, description: str) -> Markup:
    """The shapes and texts of `source` as an accessible SVG element.

    Args:
        source: what matplotlib has drawn.
        classes: ids of groups that become classes.
        name: a prefix for the ids of title and description, its own for each SVG of a page.
        title: what the figure shows.
        description: what it says, in words.
    """
    root = ET.fromstring(source)
    head = Markup(
        '<svg class="plot" viewBox="{}" role="img" aria-labelledby="{}-t {}-d"><title id="{}-t">{}</title>'
        '<desc id="{}-d">{}</desc>'
    ).format(root.get("viewBox", ""), name, name, name, title, name, description)
    return head + Markup("").join(_shapes(root, classes)) + Markup("</svg>")


def _shapes(element: ET.Element, classes: Collection[str]) -> Iterator[Markup]:
    for child in element:
        kind = _kind(child)
        if kind == "g" and child.get("id") in classes:
            yield Markup('<g class="{}">{}</g>').format(child.get("id"), Markup("").join(_shapes(child, classes)))
        elif kind in ("g", "svg"):
            yield from _shapes(child, classes)
        elif kind == "path":
            yield Markup('<path d="{}"/>').format(_compact(child.get("d", "")))
        elif kind == "text":
            yield _text(child)


def _kind(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element: ET.Element) -> Markup:
    anchor = _ANCHOR.search(element.get("style", ""))
    side = Markup(' text-anchor="{}"').format(anchor[1]) if anchor and anchor[1] != "start" else Markup("")
    place = Markup(' x="{}" y="{}"').format(*(_rounded(element.get(name, "0")) for name in ("x", "y")))
    return Markup("<text{}{}>{}</text>").format(place, side, escape("".join(element.itertext()).strip()))


def _compact(path: str) -> str:
    """The path in tenths of a point, without the blanks."""
    return _BLANKS.sub(r"\1", _NUMBER.sub(lambda found: _rounded(found[0]), path)).strip()


def _rounded(number: str) -> str:
    return f"{float(number):.1f}".removesuffix(".0")
