"""Settings of a session, read from pytest's configuration, and the limits of an item, merged from its markers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_nanstab.config import EXPLAIN, GRADES, LIMIT_HELP, LIMIT_NAMES, MODES, Limit, check_limits, merge_limits

_ALLOWED_NONFINITE = ("output",)
_MARKER_FORM = f"nanstab({', '.join(f'{name}=None' for name in LIMIT_NAMES)}, allow_nonfinite=())"
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
MARKER_HELP = (
    f"{_MARKER_FORM}: check the test for numerical stability: losses, gradients, parameters, buffers, optimizer state "
    "and module outputs stay finite, and within the limits given; raises at the step that breaks one. A limit of None "
    'removes an inherited one; allow_nonfinite=("output",) lets modules return NaN. For functions, classes and modules.'
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a session was asked for."""

    mode: str = "explicit"
    limits: Mapping[str, Limit] = field(default_factory=dict)
    device: str = "cpu"
    explain: str = ""
    fail_grade: str = GRADES[-1]
    baseline_dir: str = "nanstab_baselines"
    reports: tuple[str, ...] = ()
    headroom: int | None = None


def add_ini(parser: pytest.Parser) -> None:
    """Register the ini keys."""
    parser.addini(
        "nanstab",
        'what is checked: "explicit" tests that ask for it, "all" tests (as --nanstab does), "report" for all tests '
        'with findings only reported, "off" to skip explicit tests too',
        type="string",
        default="explicit",
    )
    for name, text in LIMIT_HELP.items():
        parser.addini(f"nanstab_{name}", f"{text}; for explicit tests", type="float", default=None)
    parser.addini("nanstab_device", "device that suites train on: cpu, cuda, cuda:1, mps", type="string", default="cpu")
    parser.addini(
        "nanstab_explain", f"how a failure is traced to its origin: {', '.join(EXPLAIN)}", type="string", default=""
    )
    parser.addini(
        "nanstab_fail_grade",
        f"the least likely kind of adversarial find that still fails: {', '.join(GRADES)}",
        type="string",
        default=GRADES[-1],
    )
    parser.addini("nanstab_baseline_dir", "folder of recorded baselines", type="string", default="nanstab_baselines")


def read(config: pytest.Config) -> Settings:
    """Settings of the session; `pytest.UsageError` names the key, what was given and what is allowed."""
    return Settings(
        mode=_mode(config),
        limits=_limits(config),
        device=_device(config),
        explain=_choice(config, "nanstab_explain", ("", *EXPLAIN)),
        fail_grade=_choice(config, "nanstab_fail_grade", GRADES),
        baseline_dir=str(config.getini("nanstab_baseline_dir")),
        reports=tuple(_report(path) for path in config.getoption("nanstab_report") or ()),
        headroom=config.getoption("nanstab_headroom"),
    )


def _mode(config: pytest.Config) -> str:
    mode = _choice(config, "nanstab", MODES)
    if not config.getoption("nanstab"):
        return mode
    if mode != "all" and _source(config, "nanstab") == "command line":
        raise pytest.UsageError(f"--nanstab means nanstab=all and cannot be combined with -o nanstab={mode}")
    return "all"


def _choice(config: pytest.Config, key: str, allowed: tuple[str, ...]) -> str:
    value = str(config.getini(key))
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed if choice)
        raise pytest.UsageError(f"{key} must be one of {choices}, got {value!r} ({_source(config, key)})")
    return value


def _device(config: pytest.Config) -> str:
    value = str(config.getini("nanstab_device"))
    kind, _, index = value.partition(":")
    if kind not in ("cpu", "cuda", "mps", "xpu") or (index and not index.isdigit()):
        raise pytest.UsageError(
            f"nanstab_device must be cpu, cuda, mps or xpu, with an optional index as in cuda:1, got {value!r} "
            f"({_source(config, 'nanstab_device')})"
        )
    return value


def _limits(config: pytest.Config) -> dict[str, Limit]:
    layers: list[tuple[str, Mapping[str, float | None]]] = []
    for name in LIMIT_NAMES:
        key = f"nanstab_{name}"
        source = _source(config, key)
        try:
            value = config.getini(key)
            if value is not None:
                layers.append((source, check_limits({name: value})))
        except (TypeError, ValueError) as error:
            raise pytest.UsageError(f"{key} must be a finite number, 0 or more: {error} ({source})") from None
    return merge_limits(layers)


def _source(config: pytest.Config, key: str) -> str:
    overrides = config.getoption("override_ini") or ()
    if any(entry.partition("=")[0].strip() == key for entry in overrides):
        return "command line"
    return config.inipath.name if config.inipath else "default"


def _report(path: str) -> str:
    from pytest_nanstab.reporting.model import report_format

    try:
        report_format(path)
    except ValueError as error:
        raise pytest.UsageError(f"--nanstab-report: {error}") from None
    return path


def headroom_number(text: str) -> int:
    """The N of --nanstab-headroom."""
    import argparse

    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 for all tests, got {text!r}")
    return int(text)


# --- items


@dataclass(frozen=True)
class ItemSettings:
    """What one explicit test is checked for."""

    limits: Mapping[str, Limit]
    allow_nonfinite: frozenset[str] = frozenset()


def of_item(item: pytest.Item, settings: Settings) -> ItemSettings:
    """Merge the item's markers, the closest last, on top of the session's limits, field by field."""
    layers: list[tuple[str, Mapping[str, float | None]]] = [
        (limit.source, {name: limit.value}) for name, limit in settings.limits.items()
    ]
    allowed: frozenset[str] = frozenset()
    for node, mark in reversed(list(item.iter_markers_with_node("nanstab"))):
        limits, nonfinite = check_mark(item, mark)
        layers.append((f"{_level(node)} marker", limits))
        allowed = allowed if nonfinite is None else nonfinite
    return ItemSettings(merge_limits(layers), allowed)


def _level(node: pytest.Collector | pytest.Item | Any) -> str:
    for kind, name in ((pytest.Class, "class"), (pytest.Package, "package"), (pytest.Module, "module")):
        if isinstance(node, kind):
            return name
    return "function"


def check_mark(item: pytest.Item, mark: pytest.Mark) -> tuple[dict[str, float | None], frozenset[str] | None]:
    """The limits and the allow_nonfinite of one marker; `pytest.UsageError` names the test and what is allowed."""
    if mark.args:
        raise pytest.UsageError(
            f"{item.nodeid}: marker nanstab takes keyword arguments only, got {mark.args[0]!r}; it is {_MARKER_FORM}"
        )
    given = dict(mark.kwargs)
    nonfinite = given.pop("allow_nonfinite", None)
    try:
        return check_limits(given), _nonfinite(nonfinite)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"{item.nodeid}: marker nanstab: {error}; it is {_MARKER_FORM}") from None


def _nonfinite(value: object) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, (tuple, list, set, frozenset)):
        raise TypeError(f'allow_nonfinite must be a tuple like ("output",), got {value!r}')
    unknown = [name for name in value if name not in _ALLOWED_NONFINITE]
    if unknown:
        raise ValueError(f'allow_nonfinite may hold "output" only, got {unknown[0]!r}')
    return frozenset(value)
