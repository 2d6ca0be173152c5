"""The files of baselines: one strict, readable JSON per test file; parsed, never run or unpickled."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pytest_nanstab import strict_json
from pytest_nanstab.items import plain_id
from pytest_nanstab.settings import SETTINGS

Tests: TypeAlias = "dict[str, dict[str, dict[str, Any]]]"  # test -> "cpu 32-true" -> entry

SCHEMA = 1
FORMAT = "pytest-nanstab baseline"
NAME_SEPARATOR = " / "
_ABOUT = "Measured by pytest --nanstab-update; distances in bits. Read the difference before you commit it."
_RESTORE = "restore it from version control, or delete it and record anew with --nanstab-update"


class BaselineFileError(ValueError):
    """A file that is no baseline.

    Attributes:
        path: the file.
        short: what it is, in few words.
        reason: where and why.
        remedy: what to do.
    """

    def __init__(self, path: Path, short: str, reason: str, remedy: str = _RESTORE) -> None:
        super().__init__(f"{path}: {short}: {reason}")
        self.path, self.short, self.reason, self.remedy = path, short, reason, remedy


# --- which file, which test


def file_of(item: pytest.Item) -> str:
    """The test file of an item, as its node id has it."""
    return plain_id(item).partition("::")[0]


def item_name(item: pytest.Item) -> str:
    """The node id without the file and, for a suite, without the check: "test_gpt", "TestNets::test_net[4]"."""
    from pytest_nanstab.suite.expand import case_of

    name = plain_id(item).partition("::")[2]
    case = case_of(item)
    if case is None:
        return name
    head, _, parameters = name.partition("[")
    values = f"-{parameters.removesuffix(']')}-"
    rest = values.replace(f"-{case.id}-", "-", 1)[1:-1]
    return f"{head}[{rest}]" if rest else head


def folder_of(config: pytest.Config) -> Path:
    """The folder of baselines."""
    return (config.rootpath / config.stash[SETTINGS].baseline_dir).resolve()


def path_of(item: pytest.Item) -> Path:
    """Where the baselines of an item's file are.

    Raises:
        ValueError: the test file lies outside pytest's rootdir, and so would its baselines.
    """
    return path_for(folder_of(item.config), file_of(item))


def path_for(folder: Path, file: str) -> Path:
    """`tests/test_gpt.py` -> `<folder>/tests/test_gpt.json`.

    Raises:
        ValueError: the file lies outside pytest's rootdir, or a link leads out of the folder.
    """
    path = (folder / file).with_suffix(".json")
    if not Path(os.path.normpath(path)).is_relative_to(folder):
        raise ValueError(f"{file} lies outside pytest's rootdir, so its baselines have no place under {folder}")
    # Writing replaces a link in the place of the file itself; only those above it would be followed.
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.parent} is a link that leads out of {folder}: no baselines are read or written there")
    return path


def measured_with(config: pytest.Config) -> dict[str, Any]:
    """Versions and the number of threads, for the reader."""
    from pytest_nanstab.reporting.model import environment

    known = environment(config)
    torch: Any = sys.modules.get("torch")
    versions = {name: known[name] for name in ("python", "torch", "numpy", "pytest-nanstab")}
    return {**versions, "threads": None if torch is None else torch.get_num_threads()}


# --- reading


def load(path: Path) -> Tests:
    """The entries of a file; none when there is no file.

    Raises:
        BaselineFileError: the file is damaged, foreign or newer than this version.
    """
    try:
        data = strict_json.read(path)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineFileError(path, "cannot be read", str(error)) from None
    except ValueError as error:
        raise BaselineFileError(path, "is damaged", f"not strict JSON: {error}") from None
    return _checked(path, data)


def _checked(path: Path, data: Any) -> Tests:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BaselineFileError(path, "is no baseline", f'it does not say "format": "{FORMAT}"')
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BaselineFileError(path, "is damaged", f"schema must be a whole number, got {schema!r}")
    if schema > SCHEMA:
        reason = f"it has schema {schema}, this pytest-nanstab reads up to {SCHEMA}"
        raise BaselineFileError(path, "is too new", reason, "upgrade pytest-nanstab, or record anew")
    tests = data.get("tests")
    for place, fault in _faults(tests):
        raise BaselineFileError(path, "is damaged", f"{place}: {fault}")
    assert isinstance(tests, dict)
    return tests


def _faults(tests: Any) -> Iterator[tuple[str, str]]:
    """(place, what is wrong) of everything that the comparison could not rely on."""
    if not isinstance(tests, dict):
        yield "tests", f"must be an object, got {type(tests).__name__}"
        return
    for item, entries in tests.items():
        if not isinstance(entries, dict):
            yield item, "must be an object"
            continue
        for label, entry in entries.items():
            fault = _entry_fault(entry)
            if fault is not None:
                yield f"{item}, {label}", fault


def _entry_fault(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "must be an object"
    at, spread = entry.get("at"), entry.get("spread", {})
    if not _is_count(entry.get("steps")) or not _is_count(entry.get("skipped_steps")):
        return "steps and skipped_steps must be whole numbers"
    if not isinstance(at, list) or not all(map(_is_count, at)):
        return "at must be a list of steps"
    if not isinstance(spread, dict) or not isinstance(entry.get("measured_with", {}), dict):
        return "spread and measured_with must be objects"
    return _numbers_fault(entry, len(at), "") or (_numbers_fault(spread, len(at), "spread.") if spread else None)


def _numbers_fault(part: Mapping[str, Any], points: int, place: str) -> str | None:
    for name in ("loss", "grad_norm"):
        if not _is_curve(part.get(name), points):
            return f"{place}{name} must be a list of {points} numbers or nulls, one for each step in at"
    bounds = part.get("grad_norm_range")
    if bounds is not None and not _is_curve(bounds, 2):
        return f"{place}grad_norm_range must be a list of two numbers"
    headroom = part.get("headroom", {})
    if not isinstance(headroom, dict) or not all(isinstance(rows, dict) for rows in headroom.values()):
        return f"{place}headroom must be an object of objects"
    may_lack = bool(place)
    if not all(_is_number(bits) or (may_lack and bits is None) for rows in headroom.values() for bits in rows.values()):
        return f"{place}headroom must hold numbers"
    scales = part.get("init_scale", {})
    if not isinstance(scales, dict) or not all(_is_scale(value, may_lack) for value in scales.values()):
        return f"{place}init_scale must hold numbers{'' if may_lack else ' above 0'}"
    return None


def _is_scale(value: Any, may_lack: bool) -> bool:
    """Whether a value is a scale, which is above 0; or the spread of one, which may lack."""
    return (value is None or _is_number(value)) if may_lack else _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    # An integer may be larger than any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_curve(value: Any, points: int) -> bool:
    return isinstance(value, list) and len(value) == points and all(x is None or _is_number(x) for x in value)


# --- writing


def update(path: Path, recorded: Iterable[Mapping[str, Any]]) -> int:
    """Put entries into a file and leave all others as they are; how many of them are new.

    Readers see the old file or the whole new one, and a killed process leaves the old one.

    Raises:
        BaselineFileError: what is there is no baseline; it is not touched.
        OSError: the folder or the file cannot be written.
        ValueError: a number that is not finite.
    """
    tests = load(path)
    new = 0
    for record in recorded:
        labels = tests.setdefault(record["item"], {})
        new += record["label"] not in labels
        labels[record["label"]] = record["entry"]
    ordered = {item: dict(sorted(tests[item].items())) for item in sorted(tests)}
    write(path, _text({"format": FORMAT, "schema": SCHEMA, "about": _ABOUT, "tests": ordered}) + "\n")
    return new


def write(path: Path, text: str) -> None:
    """Replace a file in one step. Creates the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp keeps others out; the file belongs into version control
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _text(value: Any, indent: str = "") -> str:
    """Strict JSON with one line per curve, so that a version control shows what changed."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = indent + "  "
    rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_text(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
