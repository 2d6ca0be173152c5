"""One run of a pipeline, line by line: what every line of the user's functions was given and what it changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pytest_nanstab.attribution.source import is_user_file
from pytest_nanstab.pipelines.reading import Line, line_at

Spot = tuple[str, int]
Badness = Callable[[Any], Any]  # of a value: None for a good one, something that says how bad it is
_MOST_LINES = 20_000
_INNER = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")  # part of the line they stand in
_STAGES = ("transform", "fit_transform", "forward")


@dataclass
class Step:
    """One executed line.

    Attributes:
        spot: file and line.
        before: the names that held something bad when it began, and how bad.
        changed: the names that held something bad, or something else that is bad, when it was done.
        calls: the calls of the user's functions that it made, by number.
        fields: the fields that were corrupted, where they are known: other columns of a bad frame are good.
        outer: the names in its function that are not its own.
    """

    spot: Spot
    before: Mapping[str, Any]
    changed: dict[str, Any] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    fields: tuple[str, ...] = ()
    outer: tuple[str, ...] = ()

    @property
    def line(self) -> Line:
        """What the line does."""
        return line_at(*self.spot)

    @property
    def bad_reads(self) -> list[str]:
        """The names it read that held something bad."""
        return [name for read in self.line.reads if (name := self._name(read)) in self.before]

    @property
    def keeps(self) -> bool:
        """Whether it changed something that may outlive the call."""
        return any(name == "." or name in self.outer for name in self.line.keeps)

    def _name(self, read: str) -> str:
        """The name behind what was read; "" for a column that is none of the corrupted ones."""
        name, bracket, key = read.partition("[")
        if not bracket or not self.fields:
            return name
        wanted = key[1:-2]
        return name if any(wanted in field.split(".") or wanted == field for field in self.fields) else ""


@dataclass
class Call:
    """One call of a user's function: what it was given, its lines, and how bad what it gave back is."""

    given: Mapping[str, Any]
    steps: list[Step] = field(default_factory=list)
    result: Any = None


def _is_same_statement(one: Spot, other: Spot) -> bool:
    return one == other or (line_at(*one).start > 0 and line_at(*one).start == line_at(*other).start)


class LineTrace:
    """The calls of a run in the order in which they began."""

    def __init__(self, how_bad: Badness, fields: Sequence[str] = ()) -> None:
        self.how_bad = how_bad
        self.fields = tuple(fields)
        self.calls: list[Call] = []
        self.order: list[tuple[Call, Step]] = []
        self.stages: list[tuple[str, Any]] = []  # (what a library's object is called, how bad its output is)
        self._open: dict[int, Call] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Trace this thread; a debugger's or a coverage tool's own trace is set again afterwards."""
        before = sys.gettrace()
        sys.settrace(self._entered)
        try:
            yield
        finally:
            sys.settrace(before)

    def outermost(self) -> list[Call]:
        """The calls that no other user function made."""
        inner = {number for call in self.calls for step in call.steps for number in step.calls}
        return [call for number, call in enumerate(self.calls) if number not in inner]

    def _entered(self, frame: FrameType, event: str, _arg: Any) -> Any:
        code = frame.f_code
        if event != "call" or code.co_name in _INNER:
            return None
        if not is_user_file(code.co_filename):
            return self._stage(frame)
        caller = self._caller(frame)
        if caller is not None and caller.steps:
            caller.steps[-1].calls.append(len(self.calls))
        call = Call(self._bad_names(frame))
        self.calls.append(call)
        self._open[id(frame)] = call
        return self._inside

    def _stage(self, frame: FrameType) -> Any:
        """Watch only what a library's transform gives back."""
        if frame.f_code.co_name not in _STAGES or "self" not in frame.f_code.co_varnames[:1]:
            return None
        frame.f_trace_lines = False
        name = type(frame.f_locals["self"]).__name__

        def returned(_frame: FrameType, event: str, arg: Any) -> Any:
            if event == "return":
                self.stages.append((name, self.how_bad(arg)))
            return returned

        return returned

    def _caller(self, frame: FrameType) -> Call | None:
        outer = frame.f_back
        while outer is not None:
            if id(outer) in self._open:
                return self._open[id(outer)]
            outer = outer.f_back
        return None

    def _inside(self, frame: FrameType, event: str, arg: Any) -> Any:
        call = self._open.get(id(frame))
        if call is None or len(self.order) > _MOST_LINES:
            return None
        if event == "line":
            state = self._close(call, frame)
            code = frame.f_code
            if call.steps and _is_same_statement(call.steps[-1].spot, (code.co_filename, frame.f_lineno)):
                # Lines of one statement, and from Python 3.12 on the rounds of a comprehension, are one step.
                return self._inside
            outer = (*code.co_freevars, *code.co_names)
            step = Step((code.co_filename, frame.f_lineno), state, fields=self.fields, outer=outer)
            call.steps.append(step)
            self.order.append((call, step))
        elif event == "return":
            self._close(call, frame)
            call.result = self.how_bad(arg)
            del self._open[id(frame)]
        return self._inside

    def _close(self, call: Call, frame: FrameType) -> dict[str, Any]:
        """Note what the last line changed; the bad names now."""
        state = self._bad_names(frame)
        if call.steps:
            before = call.steps[-1].before
            call.steps[-1].changed.update({name: bad for name, bad in state.items() if before.get(name) != bad})
        return state

    def _bad_names(self, frame: FrameType) -> dict[str, Any]:
        """The bad ones among the local names and the attributes of `self`, by identity and badness."""
        variables = dict(frame.f_locals)  # before Python 3.13 a tracer's changes to it go back into the function
        owner = variables.pop("self", None)
        variables.update({f"self.{name}": value for name, value in getattr(owner, "__dict__", {}).items()})
        found = {}
        for name, value in variables.items():
            bad = self.how_bad(value)
            if bad is not None:
                found[name] = (id(value), bad)
        return found
