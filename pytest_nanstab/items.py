"""One test item's call phase: its region, its verdict, its record. Imports torch only once the test has."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab.arrival import Arrival, torch_is_here
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.ranks.place import command
from pytest_nanstab.references import refers_to_torch
from pytest_nanstab.settings import ItemSettings
from pytest_nanstab.uncounted import uncounted
from pytest_nanstab.watching.living import Living

if TYPE_CHECKING:
    from pytest_nanstab.findings import Finding
    from pytest_nanstab.ranks.group import Group
    from pytest_nanstab.watching.region import Region
    from pytest_nanstab.watching.run import Run

WATCH: pytest.StashKey[ItemWatch] = pytest.StashKey()
_SKIPS = (pytest.skip.Exception, unittest.SkipTest)
_REGIONS = Living[bool]()  # those opened here, in contrast to the users' own
_INTERRUPTS = (KeyboardInterrupt, GeneratorExit, pytest.exit.Exception)


class ItemWatch:
    """Watches the call phase of one item: a context manager around the test's own code.

    Args:
        item: the test.
        mode: "explicit" raises at the sink; "watched" raises after the test has passed; "report" never raises.
        settings: limits and exceptions, for explicit tests.
        headroom: whether headroom is measured without a limit on it.
        explain: whether a failing computation is repeated on the spot.

    Attributes:
        findings: what the test failed with, or is told about; set on leaving.
        is_open: whether the test's code is running.
        shares: whether what is found is exchanged with other ranks at the end.
    """

    def __init__(
        self,
        item: pytest.Item,
        mode: str,
        settings: ItemSettings,
        *,
        headroom: bool = False,
        explain: bool = True,
    ) -> None:
        self.mode = mode
        self.settings = settings
        self.findings: tuple[Finding, ...] = ()
        self._item = item
        self._headroom = headroom
        self._explain = explain
        self._region: Region | None = None
        self._users: Region | None = None
        self._failures: list[BaseException] = []
        self._arrival = Arrival(self._open)
        self.is_open = False
        self.shares = True

    def __enter__(self) -> ItemWatch:
        self.is_open = True
        if torch_is_here():
            with uncounted():
                self._open()
        else:
            self._arrival.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        with uncounted():
            verdict = self._close(kind, error, traceback)
        if verdict is not None:
            raise verdict  # from here: pytest keeps the frames of a traceback, and this one refers to no tensor

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> StabilityError | None:
        self.is_open = False
        self._arrival.remove()
        region = self._region
        if region is None:
            self.findings = _unique(carried(error, *self._kept_errors()))
            return None
        _close_inner(region)
        region.leave()
        if isinstance(error, _INTERRUPTS):
            region.__exit__(kind, error, traceback)
            return None
        return self._conclude(region, error)

    def forget(self) -> None:
        """Let go of what was measured on: a failure's traceback, and so this watch, may live on."""
        self._region = self._users = None
        self._failures.clear()

    def failed_inside(self, error: BaseException) -> None:
        """A subtest has failed, and the test goes on."""
        self._failures.append(error)

    @property
    def has_failed_inside(self) -> bool:
        """Whether a subtest has failed."""
        return bool(self._failures)

    def _open(self) -> None:
        from pytest_nanstab.watching.options import Options
        from pytest_nanstab.watching.region import _ACTIVE, Region

        explicit = self.mode == "explicit"
        outer = _ACTIVE[-1] if _ACTIVE else None
        if outer is not None and not _REGIONS.get(outer) and self._is_covered_by(outer):
            self._users = outer
            return
        options = Options(
            raises=explicit,
            dense=explicit,
            limits=self.settings.limits,
            allow_nonfinite=self.settings.allow_nonfinite,
            headroom=self._headroom,
            explain=self._explain,
            defers=True,
            shares=self._item.nodeid if self.shares else None,
            keeps_traceback=self.mode == "watched" and bool(self._item.config.getoption("usepdb", False)),
        )
        self._region = Region(options, {"again": again(self._item, explicit=explicit)})
        _REGIONS[self._region] = True
        self._region.__enter__()

    def _is_covered_by(self, outer: Region) -> bool:
        """Whether the user's own watch, opened in a fixture around the test, judges all that we would."""
        return self.mode != "explicit" or self.settings.limits.keys() <= outer.options.limits.keys()

    def _kept_errors(self) -> list[BaseException]:
        """What unittest or subtests caught on pytest's behalf: such a test has failed although it raised nothing."""
        return [*self._failures, *(info.value for info in getattr(self._item, "_excinfo", None) or ())]

    def _conclude(self, region: Region, error: BaseException | None) -> StabilityError | None:
        """Judge what is only known at the end; returns what a test that has passed so far fails with."""
        errors = [raised for raised in (error, *self._kept_errors()) if raised is not None]
        raised_with = region.ranks.raised = list(carried(*errors))
        try:
            region.finish(quiet=bool(errors) or self.mode != "explicit", failed=bool(errors))
        except StabilityError as verdict:
            self.findings = verdict.findings
            return verdict.with_traceback(None)
        if any(isinstance(raised, _SKIPS) for raised in errors):
            return None
        # What an explicit test raised and caught itself is consumed; what watching only recorded is not.
        recorded = region.late if self.mode == "explicit" else region.findings
        recorded = [finding for finding in recorded if not any(finding.is_like(raised) for raised in raised_with)]
        if self.mode == "explicit" and any(finding.is_nonfinite for finding in raised_with):
            # What the same fault has left behind is no news.
            recorded = [finding for finding in recorded if not finding.is_nonfinite]
        self.findings = _unique([*raised_with, *recorded])
        if self.findings and not errors and self.mode == "watched":
            return _verdict(self.findings).with_traceback(region.traceback)
        return None

    def kept_errors(self) -> list[BaseException]:
        """What others caught on pytest's behalf, and the test has failed with."""
        return self._kept_errors()

    @property
    def explains(self) -> bool:
        """Whether a failing computation is repeated on the spot, and torch was watched at all."""
        return self._explain and self._region is not None

    @property
    def group(self) -> Group | None:
        """The other ranks that have seen this test, if there are any."""
        return None if self._region is None else self._region.ranks.group

    def differs_from(self, other: ItemWatch | None) -> str | None:
        """Where the losses of another run of the same test part from this one's; None while they are the same."""
        if other is None or self._region is None or other._region is None:
            return None
        for step, (first, second) in enumerate(zip(self._region.run.loss, other._region.run.loss, strict=False), 1):
            if first != second and first == first and second == second:  # noqa: PLR0124 - NaN differs from itself
                return f"loss at step {step}: {first:.6g}, then {second:.6g}"
        return None

    def record(self) -> dict[str, Any]:
        """The measured part of the item's test record."""
        region = self._region or self._users
        run = region.run if region is not None else None
        if region is not None and region.run.steps == 0 < region.inner.steps:
            run = region.inner
        return {
            "mode": self.mode,
            "check": None,
            "precision": None,
            "seed": None,
            "limits": limits_data(self.settings.limits if self.mode == "explicit" else {}),
            "run": None if run is None else run.as_dict(),
            **measured(run),
            "init_scale": None,
            "parity": None,
            "findings": [finding.as_dict() for finding in self.findings],
            "notes": [] if run is None or self.mode != "explicit" else list(run.notes),
            "used_torch": (region is not None and region.used) or refers_to_torch(getattr(self._item, "obj", None)),
        }


def measured(run: Run | None) -> dict[str, Any]:
    """What a test's record holds of a run beside its lists."""
    names = ("headroom", "left_out", "underflow")
    return {name: {} if run is None else getattr(run, name) for name in names}


def _close_inner(region: Region) -> None:
    """Close the watches that the test opened and never closed: the next test would take them for a fixture's."""
    from pytest_nanstab.watching.region import _ACTIVE

    while region in _ACTIVE and _ACTIVE[-1] is not region:
        _ACTIVE[-1].leave()


@contextmanager
def each_example(item: pytest.Item, start: Callable[[], ItemWatch]) -> Iterator[None]:
    """Watch every example of a Hypothesis test by itself, so that what only shows at its end shrinks, too.

    `inner_test` is what Hypothesis documents for this; the watch of the last example, the smallest failing one, stays.
    """
    from pytest_nanstab.replay import EXAMPLE, random_states

    if torch_is_here():
        importlib.import_module("pytest_nanstab.watching.region")  # not in the first example, which has a deadline
    handle = _hypothesis_of(item)
    inner = handle.inner_test

    @functools.wraps(inner)
    def watched(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True

        def run() -> Any:
            __tracebackhide__ = True
            watch = start()
            watch.shares = False  # how many examples there are, every rank decides for itself
            with watch:
                return inner(*args, **kwargs)

        # The last example that Hypothesis runs is the one it reports.
        item.stash[EXAMPLE] = (random_states(), run)
        return run()

    handle.inner_test = watched
    try:
        yield
    finally:
        handle.inner_test = inner


def has_examples(item: pytest.Item) -> bool:
    """Whether Hypothesis runs the test's function many times."""
    return hasattr(_hypothesis_of(item), "inner_test")


def _hypothesis_of(item: pytest.Item) -> Any:
    test = getattr(item, "obj", None)
    return getattr(test, "hypothesis", None) if getattr(test, "is_hypothesis_test", False) is True else None


def plain_id(item: pytest.Item) -> str:
    """The id as a command line takes it: under `--dist loadgroup`, xdist appends "@" and the item's groups to it."""
    plain = item.name if item.parent is None else f"{item.parent.nodeid}::{item.name}"
    return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid


def again(item: pytest.Item, *, explicit: bool) -> str:
    """The command that runs the item alone, from where pytest was started."""
    path, separator, names = plain_id(item).partition("::")
    try:
        # The id of a file outside the root has no path.
        file = item.config.rootpath / path if path else item.path
        path = Path(os.path.relpath(file, item.config.invocation_params.dir)).as_posix()
    except ValueError:  # another drive on Windows
        path = str(item.config.rootpath / path)
    node = f"{path}{separator}{names}"
    quoted = shlex.quote(node) if any(char in node for char in '"$`\\!') else f'"{node}"'
    is_doctest = hasattr(item, "dtest") and item.config.getoption("doctestmodules", False)
    return command(f"pytest {'' if explicit else '--nanstab '}{'--doctest-modules ' if is_doctest else ''}{quoted}")


def limits_data(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Effective limits as the JSON report has them."""
    return {name: {"value": limit.value, "source": limit.source} for name, limit in limits.items()}


def chain(*errors: BaseException | None) -> Iterator[BaseException]:
    """The exceptions, their causes as a traceback shows them, and the members of groups."""
    waiting, seen = list(errors), set()
    while waiting:
        error = waiting.pop(0)
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        members = getattr(error, "exceptions", ())
        waiting += members if isinstance(members, tuple) else ()
        waiting.append(error.__cause__ if error.__suppress_context__ else error.__context__)


def carried(*errors: BaseException | None) -> Iterator[Finding]:
    """The findings of the stability errors among these exceptions and what they come from."""
    for error in chain(*errors):
        if isinstance(error, StabilityError):
            yield from error.findings


def _unique(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    kept: list[Finding] = []
    for finding in findings:
        if finding not in kept:
            kept.append(finding)
    return tuple(kept)


def _verdict(findings: tuple[Finding, ...]) -> StabilityError:
    from pytest_nanstab.findings import error_from

    return error_from(findings)
