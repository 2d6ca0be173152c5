"""One test function, many items: what pytest needs of a suite. Imports no torch: collection must stay cheap."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_nanstab.config import GRADES, Limit, limits_from_call
from pytest_nanstab.suite.spec import Case, Role, SuiteSpec, suite_of

if TYPE_CHECKING:
    from pytest_nanstab.findings import Finding
    from pytest_nanstab.suite.setup import TrainingSetup
    from pytest_nanstab.watching.run import Run

HIDDEN = "nanstab_case"  # the parameter that carries the case; the factory never sees it


@dataclass
class CaseRecord:
    """What one suite item did, for the reports; filled while the item runs.

    Attributes:
        check: the check the item runs.
        precision: its precision, None for checks that run once.
        seed: the first seed, or the first failing one.
        limits: the limits in force.
        run: the measurements of the training the item read; None where it read none.
        findings: what the item fails with.
        init_scale: the rows `assert_init_scale` measured; None in every other check.
        parity: how far the training's precision is from "64-true"; of the check `headroom`.
        notes: free lines, such as how many generated batches the model refused.
    """

    check: Role
    precision: str | None
    seed: int
    limits: Mapping[str, Limit]
    run: Run | None = None
    findings: tuple[Finding, ...] = ()
    init_scale: list[dict[str, Any]] | None = None
    parity: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


RECORD = pytest.StashKey[CaseRecord]()


@dataclass(frozen=True)
class ItemRequest:
    """One item to run: everything a check may ask for."""

    item: pytest.Function
    spec: SuiteSpec
    case: Case
    limits: Mapping[str, Limit]
    device: str
    record: CaseRecord
    fail_grade: str = GRADES[-1]
    explain: str = ""

    @property
    def group(self) -> str:
        """What the items that read the same training have in common: function, the user's parameters, precision."""
        return f"{_base(self.item, self.case)} {self.case.precision}"

    @property
    def seeds(self) -> range:
        """The seeds the item runs: a baseline is of the first, and knows the others as its spread."""
        first = self.spec.seed
        return range(first, first + (1 if self.case.check == "baseline" else self.spec.seeds))

    @property
    def again(self) -> str:
        """The command that runs this item alone."""
        from pytest_nanstab.items import again

        return again(self.item, explicit=True)

    def make_setup(self) -> TrainingSetup:
        """Call the factory with the item's fixtures."""
        __tracebackhide__ = True
        from pytest_nanstab.suite.setup import TrainingSetup

        arguments = {name: self.item.funcargs[name] for name in self.item._fixtureinfo.argnames}
        from pytest_nanstab.attribution.constructions import recording_writes

        with recording_writes():
            setup = self.item.obj(**arguments)
        if not isinstance(setup, TrainingSetup):
            raise TypeError(f"{self.item.originalname} must return a TrainingSetup, got {setup!r}")
        return setup

    def sibling(self, check: Role) -> pytest.Item | None:
        """The item of another check with the same parameters and precision, or none, that this session will run."""
        for item, case in self._family():
            if case.check == check and case.precision in (None, self.case.precision) and not _surely_skipped(item):
                return item
        return None

    def is_last_of_group(self) -> bool:
        """Whether no item after this one, in the session's order, reads the same training."""
        members = [item for item, case in self._family() if case.precision == self.case.precision]
        return not members or members[-1] is self.item

    def _family(self) -> Iterator[tuple[pytest.Item, Case]]:
        base = _base(self.item, self.case)
        for item in self.item.session.items:
            case = case_of(item)
            if case is not None and _base(item, case) == base:
                yield item, case


def generate(metafunc: pytest.Metafunc) -> None:
    """Parametrise a suite function with its cases: for `pytest_generate_tests`, before anybody else's."""
    spec = suite_of(metafunc.function)
    if spec is None:
        return
    metafunc.fixturenames.append(HIDDEN)
    cases = [pytest.param(case, marks=marks, id=case.id) for case, marks in spec.cases()]
    metafunc.parametrize(HIDDEN, cases)


def is_suite(item: pytest.Item) -> bool:
    """Whether a test item belongs to a suite; such items watch their own training."""
    return isinstance(item, pytest.Function) and suite_of(item.obj) is not None


def run_item(
    pyfuncitem: pytest.Function,
    inherited_limits: Mapping[str, Limit] | None = None,
    *,
    device: str = "cpu",
    fail_grade: str = GRADES[-1],
    explain: str = "",
) -> bool:
    """Run a suite's case instead of the bare function: for `pytest_pyfunc_call`. False where it is no suite.

    Raises:
        StabilityError: the case failed.
        pytest.skip.Exception: it does not apply, or another item owns the fault.
        Exception: whatever the user's own code raised.
    """
    __tracebackhide__ = True
    spec = suite_of(pyfuncitem.obj)
    if spec is None:
        return False
    case = case_of(pyfuncitem)
    if case is None:
        pytest.fail(_NOT_EXPANDED.format(name=pyfuncitem.name), pytrace=False)
    limits = limits_from_call(spec.limits, inherited_limits)
    record = CaseRecord(check=case.check, precision=case.precision, seed=spec.seed, limits=limits)
    pyfuncitem.stash[RECORD] = record
    from pytest_nanstab.suite.checks import execute  # imports torch

    try:
        execute(ItemRequest(pyfuncitem, spec, case, limits, device, record, fail_grade, explain))
    except (TypeError, ValueError) as error:
        from pytest_nanstab.attribution.source import spot_of_error

        if spot_of_error(error) is not None:
            raise
        _refuse(pyfuncitem, error)
    return True


def _refuse(item: pytest.Function, error: Exception) -> NoReturn:
    """The message and the factory's line: no code of the user's was running, and all frames are ours."""
    from pytest_nanstab.attribution.source import place

    code = inspect.unwrap(item.function).__code__
    where = place(code.co_filename, code.co_firstlineno)
    # This frame is not hidden, for pytest would say that all are; it shows none of a failure without traceback.
    raise pytest.fail.Exception(f"{error}\n\n{where}: {type(error).__name__}", pytrace=False) from None


def refuse_unexpanded(item: pytest.Item) -> None:
    """Fail a suite that pytest cannot expand (a method of unittest.TestCase): it would pass unchecked."""
    if is_suite(item) and case_of(item) is None:
        pytest.fail(_NOT_EXPANDED.format(name=item.name), pytrace=False)


_NOT_EXPANDED = (
    "{name}: stability_suite was not expanded into items, so nothing would be checked; it works on functions and on "
    "methods of plain classes, not on methods of unittest.TestCase"
)


def case_of(item: pytest.Item) -> Case | None:
    """The case of an expanded item."""
    callspec = getattr(item, "callspec", None)
    case = None if callspec is None else callspec.params.get(HIDDEN)
    return case if isinstance(case, Case) else None


def _base(item: pytest.Item, case: Case) -> str:
    """The node id without the case: equal for all items of one suite and one set of the user's parameters."""
    parent = "" if item.parent is None else item.parent.nodeid
    return f"{parent}::{item.name.replace(case.id, '*', 1)}"


def _surely_skipped(item: pytest.Item) -> bool:
    """Whether a mark skips the item without a condition that only its own setup can judge."""
    conditions = [arg for mark in item.iter_markers("skipif") for arg in (*mark.args, mark.kwargs.get("condition"))]
    is_skipped = any(condition is not None and not isinstance(condition, str) and condition for condition in conditions)
    is_not_run = any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail"))
    return is_skipped or is_not_run or item.get_closest_marker("skip") is not None
