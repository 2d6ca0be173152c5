"""Runs a failed test once more with its operations traced, to name the operation behind a finding.

pytest's side of attribution: fixtures of the test are set up anew, random states and shared models are put back to
what they were, and afterwards the session goes on as if there had been one run. Imports torch only once the test has.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab.arrival import torch_is_here
from pytest_nanstab.errors import StabilityError
from pytest_nanstab.items import WATCH, ItemWatch, again, carried, chain
from pytest_nanstab.ranks.place import is_one_of_several
from pytest_nanstab.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from pytest_nanstab.attribution.tracing import Tracing
    from pytest_nanstab.findings import Finding
    from pytest_nanstab.ranks.group import Group

_States = list[Callable[[], object]]
_BEFORE = pytest.StashKey[_States]()
_KNOWN = pytest.StashKey["list[tuple[Finding, Finding]]"]()
_CURRENT = pytest.StashKey[pytest.Item]()
_GROUP = pytest.StashKey["Group | None"]()
_TEARDOWN = pytest.StashKey[BaseException]()
EXAMPLE = pytest.StashKey["tuple[_States, Callable[[], object]]"]()
# torch's own first seed: what a process that imports torch starts with.
_FIRST_SEED = 67280421310721
# A test this short is traced from its first step on: tracing costs a tiny model about seven times its run.
_SHORT = 0.35
_MARGIN = 2


# -- before the run ----------------------------------------------------------------------------------------------------


def remember(item: pytest.Item) -> None:
    """Keep what a rerun must start from: call it before the item's fixtures are set up."""
    item.config.stash[_CURRENT] = item
    if wanted(item) and WATCH not in item.stash:
        item.stash[_BEFORE] = random_states()
        item.stash[_GROUP] = _group()


@contextmanager
def fixture_around(config: pytest.Config, scope: str) -> Iterator[None]:
    """A fixture is being set up; a rerun does not repeat one of a wider scope: the states are taken anew after it."""
    item = config.stash.get(_CURRENT, None)
    if item is None or _BEFORE not in item.stash:
        yield
        return
    if torch_is_here():
        from pytest_nanstab.attribution.constructions import recording

        with recording():
            yield
    else:
        yield
    if scope != "function":
        item.stash[_BEFORE], item.stash[_GROUP] = random_states(), _group()


def remember_shared(item: pytest.Item) -> None:
    """The same for models and optimizers that other tests share: they are no part of the item's own setup."""
    doctest = getattr(item, "dtest", None)
    if _BEFORE in item.stash and doctest is not None:  # it forgets its module's names when it has run
        names = dict(doctest.globs)
        item.stash[_BEFORE].append(lambda: doctest.globs.update(names))
    if _BEFORE in item.stash and "torch" in sys.modules:
        shared = list(_shared(item))
        if shared:
            from pytest_nanstab.attribution.snapshots import snapshot

            item.stash[_BEFORE].extend(snapshot(value) for value in shared)


@contextmanager
def deferring(item: pytest.Item) -> Iterator[None]:
    """Leave the explanation of what is found in the block to a rerun, if there will be one."""
    # Subtests report by themselves while they run: a rerun would report them twice.
    if _BEFORE not in item.stash or "subtests" in getattr(item, "fixturenames", ()):
        yield
        return
    from pytest_nanstab.attribution.plan import deferred

    with deferred() as known:
        item.stash[_KNOWN] = known
        yield


def wanted(item: pytest.Item) -> bool:
    """Whether a failure of this item is to be explained by a rerun: by default that of explicit tests."""
    settings: Settings = item.config.stash[SETTINGS]
    explicit = item.get_closest_marker("nanstab") is not None
    # Among several ranks nothing can be repeated on the spot, and all of them can run a failed test again.
    if settings.explain == "rerun" or (not settings.explain and is_one_of_several()):
        return explicit or settings.mode in ("all", "report")
    return not settings.explain and explicit


def random_states() -> _States:
    """For every random generator in use, the call that puts it back to what it is now."""
    python = random.getstate()
    states: _States = [lambda: random.setstate(python)]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        legacy = numpy.random.get_state()
        states.append(lambda: numpy.random.set_state(legacy))
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        states.append(_first_seed)
    else:
        cpu = torch.get_rng_state()
        states.append(lambda: torch.set_rng_state(cpu))
        if torch.cuda.is_initialized():
            cuda = torch.cuda.get_rng_state_all()
            states.append(lambda: torch.cuda.set_rng_state_all(cuda))
    return states


def _first_seed() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(_FIRST_SEED)


def _shared(item: pytest.Item) -> Iterator[Any]:
    """The values of the item's fixtures that live longer than the item."""
    info = getattr(item, "_fixtureinfo", None)
    arguments = getattr(item, "funcargs", None) or {}
    for name, value in arguments.items():
        definitions = getattr(info, "name2fixturedefs", {}).get(name)
        if definitions and definitions[-1].scope != "function":
            yield value


def forget(item: pytest.Item) -> None:
    """Drop it when the test is over: items live as long as the session."""
    keys: tuple[pytest.StashKey[Any], ...] = (_BEFORE, _KNOWN, EXAMPLE)
    for key in keys:
        if key in item.stash:
            del item.stash[key]


# -- after a failure ---------------------------------------------------------------------------------------------------


def explain(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Give the findings of a failed test their origin."""
    watch = item.stash.get(WATCH, None)
    if call.when != "call" or watch is None or watch.is_open:
        return
    error = None if call.excinfo is None else call.excinfo.value
    try:
        _explain(item, call, watch, error)
    except Exception as broken:  # noqa: BLE001 - looking meets objects of the user's, whose methods may raise anything
        first = next(iter(watch.findings), None)
        if first is not None:
            from pytest_nanstab.attribution.plan import broken_off

            _retell(watch, error, first, _with(first, note=broken_off(broken)))


def _retell(watch: ItemWatch, error: BaseException | None, finding: Finding, told: Finding) -> None:
    watch.findings = tuple(told if f is finding else f for f in watch.findings)
    for raised in chain(error, *watch.kept_errors()):
        if isinstance(raised, StabilityError):
            raised.retell(finding, told)


def _explain(item: pytest.Item, call: pytest.CallInfo[None], watch: ItemWatch, error: BaseException | None) -> None:
    if _BEFORE not in item.stash:
        _explain_assertion_on_the_spot(item, watch, error)
        return
    if watch.has_failed_inside or "subtests" in getattr(item, "fixturenames", ()):
        return
    kept = iter(watch.kept_errors())
    finding = next((f for f in watch.findings if _can_be_explained(f)), None)
    trouble = None if watch.group is None else _trouble_with_ranks(item, watch.group, finding)
    if finding is not None:
        told = _replayed(item, watch, finding, call.duration) if trouble is None else _with(finding, note=trouble)
        _retell(watch, error, finding, told if told.op is None else _of_item(item, watch, told))
    elif watch.group is None and not watch.findings and _is_about_bad_tensors(error or next(kept, None)):
        watch.findings = _behind_assertion(item, watch, call.duration)


def _trouble_with_ranks(item: pytest.Item, group: Group, finding: Finding | None) -> str | None:
    """Why a rerun cannot have all the ranks it needs; None where it can."""
    if item.stash[_GROUP] is not group or _group() is not group:
        # torch's ranks find each other through keys that are in the store once, for the first group.
        return "no rerun shows the operation: the test forms its process group itself, which works once in a process"
    ready = finding is not None and group.agree(f"{item.nodeid} rerun", ready=True)
    return None if ready else "no rerun shows the operation: not all ranks were ready for one"


def _group() -> Group | None:
    if not torch_is_here():
        return None
    from pytest_nanstab.ranks.group import current

    return current()


def _is_about_bad_tensors(error: BaseException | None) -> bool:
    """Whether an assertion of the user's has failed at a line that names a tensor with NaN or Inf."""
    if not isinstance(error, AssertionError) or isinstance(error, StabilityError) or "torch" not in sys.modules:
        return False
    from pytest_nanstab.attribution.asserted import bad_tensors, failed_line

    frame, line = failed_line(error)
    return frame is not None and bool(bad_tensors(frame, line))


def _explain_assertion_on_the_spot(item: pytest.Item, watch: ItemWatch, error: BaseException | None) -> None:
    if not isinstance(error, AssertionError) or not watch.explains or watch.group or "torch" not in sys.modules:
        return
    from pytest_nanstab.attribution.local import behind_assertion, behind_check

    if isinstance(error, StabilityError):
        finding = next((f for f in watch.findings if f in error.findings and _can_be_explained(f)), None)
        told = None if finding is None else behind_check(error, finding)
        if finding is not None and told is not None:
            _retell(watch, error, finding, _of_item(item, watch, told))
    elif not watch.findings:
        found = behind_assertion(error)
        watch.findings = () if found is None else (_of_item(item, watch, found),)


def _of_item(item: pytest.Item, watch: ItemWatch, finding: Finding) -> Finding:
    command = again(item, explicit=watch.mode == "explicit")
    return replace(finding, evidence={**finding.evidence, "again": command})


def _can_be_explained(finding: Finding) -> bool:
    """Whether an operation is behind a finding, and not known yet."""
    by_operation = (finding.is_nonfinite and finding.op is None) or finding.kind == "stuck-loss-scale"
    return by_operation and "chain" not in finding.evidence and finding.kind != "bad-data"


def _replayed(item: pytest.Item, watch: ItemWatch, finding: Finding, seconds: float) -> Finding:
    """The finding with what reruns tell about it."""
    told, note = None, None
    for first in _first_steps(finding, seconds):
        tracing = _new_tracing(first, seconds)
        with _rerun(item, tracing) as outcome:
            latest, note = _judged(finding, watch, outcome.findings(), outcome, tracing)
        told = latest or told
        if latest is not None and (latest.op is not None or first == 1):
            return latest
    known = next((kept for found, kept in item.stash.get(_KNOWN, []) if found == finding), None)
    return told or (known if known is not None else _with(finding, note=note))


def _first_steps(finding: Finding, seconds: float) -> list[int]:
    """From which step on to trace: near the failure at first, from the start if that shows no origin."""
    if is_one_of_several():  # all ranks alike
        return [1]
    late = (finding.step or 1) - _MARGIN
    step_range = finding.evidence.get("step_range")
    if step_range:
        late = min(late, int(step_range[0]) - _MARGIN)
    if late <= 1:
        return [1]
    return [1, late] if seconds < _SHORT else [late, 1]


def _new_tracing(first: int, seconds: float) -> Tracing:
    from pytest_nanstab.attribution.plan import patience
    from pytest_nanstab.attribution.tracing import Tracing

    deadline = math.inf if is_one_of_several() else time.monotonic() + patience(seconds)
    return Tracing(first, deadline=deadline)


def _judged(
    finding: Finding, watch: ItemWatch, found: list[Finding], outcome: _Outcome, tracing: Tracing
) -> tuple[Finding | None, str | None]:
    """What a rerun has shown, and what it could not."""
    again = next((f for f in found if f.is_nonfinite or f.kind == finding.kind), None)
    differs = watch.differs_from(outcome.watch)
    if again is None:
        return None, outcome.trouble or (
            "a rerun of the test stayed finite: it is not deterministic, so the operation is not known; seed it"
        )
    if tracing.failed:
        return None, f"the operations could not be traced ({tracing.failed.splitlines()[0][:120]})"
    context = {key: value for key, value in finding.evidence.items() if key in ("again", "seed", "precision", "device")}
    again = replace(again, evidence={**again.evidence, **context})
    return (_with(again, note=f"the rerun took another course ({differs})") if differs else again), None


def _with(finding: Finding, *, note: str | None) -> Finding:
    return finding if note is None else replace(finding, evidence={**finding.evidence, "note": note})


def _behind_assertion(item: pytest.Item, watch: ItemWatch, seconds: float) -> tuple[Finding, ...]:
    """Where the NaN comes from that the user's own assertion has met, if it has met one."""
    from pytest_nanstab.attribution.asserted import finding_behind

    tracing = _new_tracing(1, seconds)
    with _rerun(item, tracing) as outcome:
        found = finding_behind(outcome.error, tracing) if outcome.error is not None else None
    return () if found is None else (_of_item(item, watch, found),)


# -- the rerun itself --------------------------------------------------------------------------------------------------


class _Outcome:
    """How a rerun ended."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.watch: ItemWatch | None = None
        self.trouble: str | None = None

    def findings(self) -> list[Finding]:
        """What the rerun found, raised or recorded."""
        return [*carried(self.error), *(self.watch.findings if self.watch is not None else ())]


@contextmanager
def _rerun(item: pytest.Item, tracing: Tracing) -> Iterator[_Outcome]:
    """Run the item's setup and call once more; what the block does, it does while the traced objects are alive."""
    from pytest_nanstab.attribution.plan import traced

    outcome, original = _Outcome(), item.stash[WATCH]
    after = random_states()
    with _kept(item), traced(tracing), _quiet():
        try:
            _run(item, outcome)
        finally:
            watch = item.stash[WATCH]
            outcome.watch = None if watch is original else watch
            item.stash[WATCH] = original
            for put_back in after:
                put_back()
        yield outcome
        outcome.error = None


def _run(item: pytest.Item, outcome: _Outcome) -> None:
    example = item.stash.get(EXAMPLE, None)
    try:
        if example is not None:
            states, run = example
            for put_back in states:
                put_back()
            run()
            return
        _set_up_anew(item)
        item.ihook.pytest_runtest_call(item=item)
    except (KeyboardInterrupt, pytest.exit.Exception):
        raise
    except BaseException as error:  # noqa: BLE001 - it is the user's, and it is judged
        outcome.error = error
    kept = getattr(item, "_excinfo", None)  # what unittest caught on pytest's behalf
    if outcome.error is None and kept:
        outcome.error = kept[0].value
    if outcome.error is not None and not list(carried(outcome.error)):
        outcome.trouble = _trouble(outcome.error)


def _trouble(error: BaseException) -> str:
    from pytest_nanstab.attribution.plan import GIVEN_UP

    first = (str(error).splitlines() or [""])[0]
    if type(error).__name__ == "AbandonedError":
        return GIVEN_UP
    return f"a rerun of the test ended in {type(error).__name__}: {first}"


def _set_up_anew(item: pytest.Item) -> None:
    """Take the item's own fixtures down and set them up again, from the states that were kept."""
    try:
        # Of all that is set up only what the item does not share with its parent goes: the item itself.
        item.ihook.pytest_runtest_teardown(item=item, nextitem=item.parent)
    except Exception as error:  # noqa: BLE001 - raised again in the item's own teardown
        item.stash[_TEARDOWN] = error
    for put_back in item.stash[_BEFORE]:
        put_back()
    if hasattr(item, "_initrequest"):
        item._initrequest()
    vars(item).pop("_excinfo", None)
    item.ihook.pytest_runtest_setup(item=item)


def raise_kept(item: pytest.Item) -> None:
    """Raise what the first teardown of a rerun item raised: for the item's own teardown."""
    error = item.stash.get(_TEARDOWN, None)
    if error is not None:
        del item.stash[_TEARDOWN]
        raise error


@contextmanager
def _kept(item: pytest.Item) -> Iterator[None]:
    """What reports of the first run are made from stays as it was."""
    sections, properties = list(item._report_sections), list(item.user_properties)
    excinfo = vars(item).get("_excinfo")  # where pytest keeps what unittest has caught; absent until then
    try:
        yield
    finally:
        item._report_sections[:] = sections
        item.user_properties[:] = properties
        vars(item).pop("_excinfo", None)
        if excinfo is not None:
            vars(item)["_excinfo"] = excinfo


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing the rerun prints or warns about is news."""
    with (
        warnings.catch_warnings(record=True),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
