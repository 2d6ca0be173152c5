"""Settings of a session, read from pytest's configuration, and the limits of an item, merged from its markers."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from pytest_nanstab.config import (
    EXPLAIN,
    GRADES,
    LIMIT_HELP,
    LIMIT_NAMES,
    MODES,
    Limit,
    check_limits,
    maybe,
    merge_limits,
    told,
)

_ALLOWED_NONFINITE = ("output",)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:[0-9]+)?")
_DIGITS = 18  # more tests than this counts there are not
INI_KEYS = (
    "nanstab",
    *(f"nanstab_{name}" for name in LIMIT_NAMES),
    *(f"nanstab_{name}" for name in ("device", "explain", "fail_grade", "baseline_dir")),
)
_MARKER_KEYS = (*LIMIT_NAMES, "allow_nonfinite")
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
MARKER_HELP = (
    f"nanstab(*, {', '.join(f'{name}=...' for name in LIMIT_NAMES)}, allow_nonfinite=()): fail the test at the "
    "training step where a loss, gradient, parameter, buffer, optimizer state or module output becomes NaN or Inf, or "
    "breaks a limit. Works on functions, classes and modules; the closest marker wins, limit by limit, and None "
    'removes an inherited limit. allow_nonfinite=("output",) lets modules return NaN.'
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
    update: bool = False
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
        "nanstab_explain",
        'how a failure is traced to its operation: "rerun" runs the test once more with every operation traced, '
        '"local" repeats only the failing computation, "off" does neither (default: rerun for explicit tests, '
        "local for all others)",
        type="string",
        default="",
    )
    parser.addini(
        "nanstab_fail_grade",
        f"the least likely kind of adversarial find that still fails: {', '.join(GRADES)}",
        type="string",
        default=GRADES[-1],
    )
    parser.addini(
        "nanstab_baseline_dir",
        "folder of recorded baselines, relative to rootdir and inside it",
        type="string",
        default="nanstab_baselines",
    )


def read(config: pytest.Config) -> Settings:
    """Settings of the session; `pytest.UsageError` names the key, what was given and what is allowed."""
    _refuse_unknown(config)
    return Settings(
        mode=_mode(config),
        limits=_limits(config),
        device=_device(config),
        explain=_choice(config, "nanstab_explain", ("", *EXPLAIN)),
        fail_grade=_choice(config, "nanstab_fail_grade", GRADES),
        baseline_dir=_baseline_dir(config),
        update=_update(config),
        reports=tuple(_report(config, path) for path in config.getoption("nanstab_report") or ()),
        headroom=config.getoption("nanstab_headroom"),
    )


def _refuse_unknown(config: pytest.Config) -> None:
    """A key that only looks like one of ours would leave a limit out without a word."""
    overridden = (option.partition("=")[0].strip() for option in config.getoption("override_ini") or ())
    # pytest 9 has deprecated the public name without another in its place.
    in_file = config._inicfg if hasattr(config, "_inicfg") else config.inicfg
    for key in (*in_file, *overridden):
        if key.startswith("nanstab") and key not in INI_KEYS:
            raise pytest.UsageError(
                f"unknown ini key {told(key)}; allowed: {', '.join(INI_KEYS)}{maybe(key, INI_KEYS)}"
            )


def _mode(config: pytest.Config) -> str:
    mode = _choice(config, "nanstab", MODES)
    if not config.getoption("nanstab"):
        return mode
    if mode != "all" and _source(config, "nanstab") == "command line":
        raise pytest.UsageError(f"--nanstab means nanstab=all and cannot be combined with -o nanstab={mode}")
    return "all"


def _choice(config: pytest.Config, key: str, allowed: tuple[str, ...]) -> str:
    wanted = f"one of {', '.join(repr(choice) for choice in allowed if choice)}"
    value = _text(config, key, wanted)
    if value not in allowed:
        raise _wrong(config, key, wanted, told(value))
    return value


def _device(config: pytest.Config) -> str:
    wanted = "cpu, cuda, mps or xpu, with an optional index as in cuda:1"
    value = _text(config, "nanstab_device", wanted)
    if not _DEVICE.fullmatch(value):
        raise _wrong(config, "nanstab_device", wanted, told(value))
    return value


def _baseline_dir(config: pytest.Config) -> str:
    key, wanted = "nanstab_baseline_dir", "the name of a folder inside rootdir"
    value = _text(config, key, wanted)
    if not value.strip() or not _is_inside(config.rootpath, value):
        raise _wrong(config, key, wanted, told(value))
    return value


def _is_inside(root: Path, name: str) -> bool:
    """Whether a folder of this name lies below another one, links followed; one with a drive does on no system."""
    if PureWindowsPath(name).drive:
        return False
    try:
        return (root / name).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a name no file system can hold; links that go round in a circle
        return False


def _update(config: pytest.Config) -> bool:
    if not config.getoption("nanstab_update"):
        return False
    in_ci = os.environ.get("CI", "").strip().lower() not in ("", "0", "false", "no", "off")
    if in_ci and os.environ.get("NANSTAB_UPDATE_IN_CI") != "1":
        raise pytest.UsageError(
            "--nanstab-update would make CI accept whatever it measures: record baselines where you can read them; "
            "NANSTAB_UPDATE_IN_CI=1 allows it all the same (CI is set)"
        )
    return True


def _text(config: pytest.Config, key: str, wanted: str) -> str:
    value = _ini(config, key, wanted)
    if not isinstance(value, str):
        raise _wrong(config, key, wanted, told(value))
    return value


def _limits(config: pytest.Config) -> dict[str, Limit]:
    layers: list[tuple[str, Mapping[str, float | None]]] = []
    for name in LIMIT_NAMES:
        key, wanted = f"nanstab_{name}", "a finite number, 0 or more"
        value = _ini(config, key, wanted)
        if value is not None:
            try:
                layers.append((_source(config, key), check_limits({name: value})))
            except (TypeError, ValueError):
                raise _wrong(config, key, wanted, told(value)) from None
    return merge_limits(layers)


def _ini(config: pytest.Config, key: str, wanted: str) -> Any:
    try:
        return config.getini(key)
    except (TypeError, ValueError, pytest.UsageError) as error:  # which of them depends on pytest's version
        # pytest's own words end in the value, but need not name the key.
        raise _wrong(config, key, wanted, told(str(error).rpartition(": ")[2])[1:-1]) from None


def _wrong(config: pytest.Config, key: str, wanted: str, given: str) -> pytest.UsageError:
    quoted = "; write it without quotes" if given.strip("'").startswith('"') else ""
    return pytest.UsageError(f"{key} must be {wanted}, got {given} ({_source(config, key)}){quoted}")


def _source(config: pytest.Config, key: str) -> str:
    overrides = config.getoption("override_ini") or ()
    if any(entry.partition("=")[0].strip() == key for entry in overrides):
        return "command line"
    return config.inipath.name if config.inipath else "default"


def _report(config: pytest.Config, path: str) -> str:
    from pytest_nanstab.reporting.model import report_format
    from pytest_nanstab.reporting.pages import missing

    try:
        wanted = report_format(path)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    absent = missing(f"--nanstab-report={path}") if wanted == "html" else None
    if absent is not None:
        raise pytest.UsageError(absent)
    if wanted == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise pytest.UsageError(f"--nanstab-report={path} needs TensorBoard: pip install tensorboard")
    try:
        # A test may leave another working directory behind.
        place = str(config.invocation_params.dir / Path(path).expanduser())
        os.fsencode(place)
    except (RuntimeError, ValueError) as error:  # no such home; characters that no file name has
        raise pytest.UsageError(f"--nanstab-report={told(path)[1:-1]} cannot be written: {error}") from None
    if "\0" in place:
        raise pytest.UsageError(f"--nanstab-report={told(path)[1:-1]} cannot be written: a null character in its name")
    return place


def headroom_number(text: str) -> int:
    """The N of --nanstab-headroom."""
    import argparse

    if not text.isdecimal() or len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 for all tests, got {told(text)}")
    return int(text)


# --- items


@dataclass(frozen=True)
class ItemSettings:
    """What one explicit test is checked for."""

    limits: Mapping[str, Limit]
    allow_nonfinite: frozenset[str] = frozenset()


def of_unmarked(item: pytest.Item) -> ItemSettings:
    """What a test is checked for that did not ask for it. A doctest that shows NaN in what it expects means it."""
    wants = [example.want for example in getattr(getattr(item, "dtest", None), "examples", ())]
    shows_nan = any(re.search(r"\bnan\b", want, re.IGNORECASE) for want in wants)
    return ItemSettings({}, frozenset({"output"}) if shows_nan else frozenset())


def of_item(item: pytest.Item, settings: Settings) -> ItemSettings:
    """Merge the item's markers, the closest last, on top of the session's limits, field by field.

    Raises:
        pytest.UsageError: a marker is wrong; names the test, what was given and what is allowed.
    """
    layers: list[tuple[str, Mapping[str, float | None]]] = [
        (limit.source, {name: limit.value}) for name, limit in settings.limits.items()
    ]
    allowed: frozenset[str] = frozenset()
    for level, mark in _marks(item):
        limits, nonfinite = _check_mark(item, mark)
        layers.append((f"{level} marker", limits))
        allowed = allowed if nonfinite is None else nonfinite
    return ItemSettings(merge_limits(layers), allowed)


def _marks(item: pytest.Item) -> Iterator[tuple[str, pytest.Mark]]:
    """The item's markers and their levels, the weakest first."""
    callspec = getattr(item, "callspec", None)
    of_parameters = [] if callspec is None else [mark for mark in callspec.marks if mark.name == "nanstab"]
    for node in item.listchain():
        for mark in _weakest_first(node):
            if not any(mark is other for other in of_parameters):
                yield _level(node), mark
    for mark in of_parameters:
        yield "parameter", mark


def _weakest_first(node: Any) -> list[pytest.Mark]:
    marks: list[pytest.Mark] = [mark for mark in reversed(node.own_markers) if mark.name == "nanstab"]
    if isinstance(node, pytest.Class):
        # pytest lists those of base classes first, as if they were the closest.
        bases: dict[int, int] = {}
        for depth, cls in enumerate(node.obj.__mro__):
            bases.update((id(mark), depth) for mark in _own_marks(cls))
        marks.sort(key=lambda mark: -bases.get(id(mark), 0))
    return marks


def _own_marks(cls: type) -> list[pytest.Mark]:
    stated: Any = vars(cls).get("pytestmark", [])
    listed: list[Any] = stated if isinstance(stated, list) else [stated]
    return [getattr(mark, "mark", mark) for mark in listed]


def _level(node: object) -> str:
    for kind, name in ((pytest.Class, "class"), (pytest.Package, "package"), (pytest.Module, "module")):
        if isinstance(node, kind):
            return name
    return "function"


def _check_mark(item: pytest.Item, mark: pytest.Mark) -> tuple[dict[str, float | None], frozenset[str] | None]:
    """The limits and the allow_nonfinite of one marker."""
    try:
        if mark.args:
            raise TypeError(f"it takes keyword arguments only ({', '.join(_MARKER_KEYS)}), got {told(mark.args[0])}")
        unknown = next((name for name in mark.kwargs if name not in _MARKER_KEYS), None)
        if unknown is not None:
            allowed = ", ".join(_MARKER_KEYS)
            raise TypeError(f"unknown argument {unknown!r}; allowed are {allowed}{maybe(unknown, _MARKER_KEYS)}")
        given = dict(mark.kwargs)
        nonfinite = given.pop("allow_nonfinite", None)
        return check_limits(given), _nonfinite(nonfinite)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"{item.nodeid}: marker nanstab: {error}") from None


def _nonfinite(value: object) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, (tuple, list, set, frozenset)):
        raise TypeError(f'allow_nonfinite must be a tuple like ("output",), got {told(value)}')
    unknown = [name for name in value if not isinstance(name, str) or name not in _ALLOWED_NONFINITE]
    if unknown:
        raise ValueError(f'allow_nonfinite may hold "output" only, got {told(unknown[0])}')
    return frozenset(value)
