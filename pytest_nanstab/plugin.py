"""The pytest hooks. Standard library and pytest only: nothing here may import torch, numpy or hypothesis.

What only checked tests need is imported when there is one: a session without any pays for its settings alone. Names are
imported, not modules: a session inside a session forgets modules, and the package would still hold the forgotten ones.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nanstab import settings as settings_module
from pytest_nanstab.gathering import Collector, Messenger
from pytest_nanstab.reporting import live
from pytest_nanstab.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from pytest_nanstab.items import ItemWatch
    from pytest_nanstab.suite.fixture import Nanstab

_SUITE = "__nanstab_suite__"
_OFF = "nanstab is off"
_WRONG = pytest.StashKey[str]()
_MOST_WRONG = 10  # markers that one usage error tells


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options and the ini keys."""
    group = parser.getgroup("nanstab", "numerical stability (pytest-nanstab)")
    group.addoption(
        "--nanstab",
        action="store_true",
        help="watch every test that uses torch; one that trains on NaN or Inf, or makes NaN out of finite input, fails "
        "even if its own assertions miss it (the same as -o nanstab=all)",
    )
    group.addoption(
        "--nanstab-report",
        action="append",
        metavar="PATH",
        help="write a report of all checked and watched tests, with every measurement; the ending gives the format "
        "(.json, .md, .html, or .tensorboard for a folder of event files); may be repeated",
    )
    group.addoption(
        "--nanstab-headroom",
        type=settings_module.headroom_number,
        default=None,
        metavar="N",
        help="measure the headroom of every test (of unmarked ones at sampled steps) and list the N nearest to "
        "overflow or to a limit, 0 for all (default: list what suites and limits measure, if under 4 bits)",
    )
    group.addoption(
        "--nanstab-update",
        action="store_true",
        help="record the baselines of the tests that run, in place of comparing with them; refused where CI is set, "
        "unless NANSTAB_UPDATE_IN_CI=1 is too",
    )
    settings_module.add_ini(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings; wrong ones are a usage error before anything is collected."""
    config.addinivalue_line("markers", settings_module.MARKER_HELP)
    config.stash[SETTINGS] = settings_module.read(config)
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Messenger(config), "nanstab-messenger")
    else:
        config.pluginmanager.register(Collector(config), "nanstab-collector")
    if config.stash[SETTINGS].update:
        from pytest_nanstab.baselines.update import BaselineUpdate

        config.pluginmanager.register(BaselineUpdate(config), "nanstab-baselines")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is watched, unless that is the default."""
    mode = config.stash[SETTINGS].mode
    return None if mode == "explicit" else f"nanstab: {mode}"


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Say what to do where there is nothing to watch: many who meet a NaN have a script, and no test."""
    if items or not config.getoption("nanstab"):
        return None
    return "nanstab: no test to watch; call your training from one, or put it under `with pytest_nanstab.watch():`"


@pytest.hookimpl(tryfirst=True)  # the suite's own parameter comes first in the id, before the user's
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Expand a suite into its items."""
    if hasattr(metafunc.function, _SUITE):
        from pytest_nanstab.suite import expand

        expand.generate(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the users of the fixture, so that -m selects them, and check every marker before any test runs."""
    settings, wrong = config.stash[SETTINGS], dict[str, None]()
    for item in items:
        if "nanstab" in getattr(item, "fixturenames", ()) and item.get_closest_marker("nanstab") is None:
            item.add_marker("nanstab")
        if item.get_closest_marker("nanstab") is None:
            continue
        try:
            settings_module.of_item(item, settings)
        except pytest.UsageError as error:
            wrong[str(error)] = None
            # xdist would report a usage error of a worker as a crash: there the test itself says what is wrong.
            item.stash[_WRONG] = str(error)
        if settings.mode == "off":
            item.add_marker(pytest.mark.skip(reason=_OFF))
    if wrong and not hasattr(config, "workerinput"):
        more = f"\nand {len(wrong) - _MOST_WRONG} more" if len(wrong) > _MOST_WRONG else ""
        raise pytest.UsageError("\n".join(list(wrong)[:_MOST_WRONG]) + more)


@pytest.hookimpl(optionalhook=True, trylast=True)  # a scheduler of the user's own goes first, xdist's comes after
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the suite items that share a training on one worker."""
    try:
        from pytest_nanstab.spreading import scheduler_for
    except ImportError:  # an xdist whose schedulers are called otherwise spreads as it likes
        return None
    return scheduler_for(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Show the progress of long runs while the tests run."""
    with live.showing(session.config):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a test with a wrong marker, where the session could not be refused; keep what a rerun starts from."""
    if _WRONG in item.stash:
        pytest.fail(item.stash[_WRONG], pytrace=False)
    if _is_checked(item) and not _is_suite(item):
        from pytest_nanstab.replay import remember

        remember(item)


def _is_suite(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), _SUITE)


def _is_checked(item: pytest.Item) -> bool:
    """Whether the test is explicit, or everything is watched."""
    return item.config.stash[SETTINGS].mode in ("all", "report") or item.get_closest_marker("nanstab") is not None


def _watch_of(item: pytest.Item) -> ItemWatch | None:
    """A new watch for one execution of the item's code, or None where nothing is watched."""
    if _is_suite(item) or not _is_checked(item):
        return None
    from pytest_nanstab.items import WATCH, ItemWatch

    settings: Settings = item.config.stash[SETTINGS]
    more: dict[str, bool] = {"headroom": settings.headroom is not None, "explain": settings.explain != "off"}
    if item.get_closest_marker("nanstab") is not None:
        watch = ItemWatch(item, "explicit", settings_module.of_item(item, settings), **more)
    else:
        mode = "watched" if settings.mode == "all" else "report"
        watch = ItemWatch(item, mode, settings_module.of_unmarked(item), **more)
    item.stash[WATCH] = watch
    return watch


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the call phase; a verdict is raised here, so that xfail, reruns and reports see an ordinary failure."""
    __tracebackhide__ = True
    if _is_suite(item):
        from pytest_nanstab.suite import expand

        expand.refuse_unexpanded(item)
    watch = _watch_of(item)
    if watch is None:
        return (yield)
    from pytest_nanstab.replay import deferring, remember_shared

    remember_shared(item)
    with deferring(item):
        return (yield from _watched(item, watch))


def _watched(item: pytest.Item, watch: ItemWatch) -> Generator[None, object, object]:
    """The call phase inside its watch, or inside one watch per example of Hypothesis."""
    __tracebackhide__ = True
    from pytest_nanstab.items import each_example, has_examples

    if watch.mode == "explicit" and has_examples(item):
        with each_example(item, lambda: _watch_of(item) or watch):
            return (yield)
    with watch:
        return (yield)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where several processes run beside each other, each tells which tests it has."""
    from pytest_nanstab.ranks import place

    place.collected(item.nodeid for item in session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a suite's case in place of the bare factory."""
    __tracebackhide__ = True
    if not _is_suite(pyfuncitem):
        return None
    from pytest_nanstab.suite import expand

    settings = pyfuncitem.config.stash[SETTINGS]
    inherited = settings_module.of_item(pyfuncitem, settings).limits
    ran = expand.run_item(
        pyfuncitem, inherited, device=settings.device, fail_grade=settings.fail_grade, explain=settings.explain
    )
    return ran or None


@pytest.fixture
def nanstab(request: pytest.FixtureRequest) -> Nanstab:
    """Train and watch with checks: `nanstab.train(setup, steps=50)` returns the `Run`; see the README.

    A test that uses it is an explicit stability test: its own loops are checked too, and it carries the marker
    `nanstab`.
    """
    from pytest_nanstab.baselines.items import ItemBaselines
    from pytest_nanstab.items import again
    from pytest_nanstab.records import NOTES
    from pytest_nanstab.suite.fixture import Nanstab

    settings = request.config.stash[SETTINGS]
    if request.node.get_closest_marker("nanstab") is None:  # asked for with getfixturevalue
        request.node.add_marker("nanstab")
        if settings.mode == "off":
            pytest.skip(_OFF)
    limits = settings_module.of_item(request.node, settings).limits
    harness = Nanstab(
        limits=limits,
        device=settings.device,
        again=again(request.node, explicit=True),
        baselines=ItemBaselines(request.node),
    )
    request.node.stash[NOTES] = harness.notes
    return harness


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Note what a fixture constructs, and that one of a wider scope is no part of what a rerun repeats."""
    if "pytest_nanstab.replay" not in sys.modules:  # nothing has been remembered that a rerun would start from
        return (yield)
    from pytest_nanstab.replay import fixture_around

    with fixture_around(request.config, fixturedef.scope):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Raise what a fixture's end raised before the test was run once more."""
    result = yield
    if "pytest_nanstab.replay" in sys.modules:
        from pytest_nanstab.replay import raise_kept

        raise_kept(item)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
    """Let a debugger begin at the user's line, not at ours or torch's."""
    if node.config.getoption("usepdb", False) and "pytest_nanstab.errors" in sys.modules:
        from pytest_nanstab.records import end_at_user

        end_at_user(node, call)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the test's record ride on the report, with findings that name their origin."""
    if call.when == "setup" and call.excinfo is not None and "pytest_nanstab.ranks.group" in sys.modules:
        from pytest_nanstab.ranks.group import pass_by

        pass_by(item.nodeid)
    # A test that is not checked may use `watch` or the assertions: their errors are loaded then.
    if not _is_checked(item) and "pytest_nanstab.errors" not in sys.modules:
        return (yield)
    from pytest_nanstab.records import attach, tidy
    from pytest_nanstab.replay import explain, forget

    with contextlib.suppress(pytest.fail.Exception):  # the clock of pytest-timeout runs on while we explain
        explain(item, call)
    tidy(call)
    report = yield
    attach(item, call, report)
    if call.when == "teardown":
        forget(item)
    return report
