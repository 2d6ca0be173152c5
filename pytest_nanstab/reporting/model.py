"""The report model: test records in, one strictly JSON-able dictionary out. Every renderer reads the same records."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_nanstab.findings import jsonable

if TYPE_CHECKING:
    import pytest

Record: TypeAlias = "Mapping[str, Any]"  # one test, as it rides on pytest's reports

SCHEMA = 1
_PACKAGES = ("torch", "numpy", "pytest", "hypothesis", "pytest-nanstab")
_FORMATS = (".json", ".md", ".html", ".tensorboard")
# Limit on a list of the run: what the margin is about, and whether the limit bounds it from above.
_BOUNDED = {
    "max_loss": ("loss", "loss", True),
    "max_grad_norm": ("grad_norm", "grad norm", True),
    "min_grad_norm": ("grad_norm", "min grad norm", False),
    "max_update_ratio": ("update_ratio", "update ratio", True),
}
# torch.finfo(dtype).max, stated here because a report never imports torch.
_LARGEST = {
    "float64": sys.float_info.max,
    "float32": (2 - 2**-23) * 2.0**127,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float16": 65504.0,
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
}


def build(records: Iterable[Record], environment: Mapping[str, object]) -> dict[str, Any]:
    """The JSON report: `{schema, environment, tests, summary}`, strict JSON data throughout.

    Numbers that are not finite become the strings "nan", "inf" and "-inf".
    """
    tests = [jsonable(record) for record in records]
    return {"schema": SCHEMA, "environment": jsonable(environment), "tests": tests, "summary": summary(tests)}


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts over all records: tests by mode and outcome, optimizer steps, findings by kind."""
    outcomes = Counter(record["outcome"] for record in records)
    modes = Counter(record["mode"] for record in records)
    kinds = Counter(finding["kind"] for record in records for finding in findings_of(record))
    return {
        "tests": len(records),
        "explicit": modes["explicit"],
        "watched": modes["watched"] + modes["report"],
        "never_used_torch": sum(never_used_torch(record) for record in records),
        "optimizer_steps": sum(steps_of(record) for record in records),
        **{outcome: outcomes[outcome] for outcome in ("passed", "failed", "skipped", "xfailed", "xpassed")},
        "findings": dict(sorted(kinds.items())),
    }


def findings_of(record: Record) -> Sequence[Mapping[str, Any]]:
    """The findings of a record, root cause first, as dictionaries."""
    return record.get("findings") or ()


def steps_of(record: Record) -> int:
    """The optimizer steps a record's run made."""
    return int((record.get("run") or {}).get("steps") or 0)


def never_used_torch(record: Record) -> bool:
    """Whether a watched test ran without touching torch, so that nothing about it was judged."""
    judged = record["mode"] == "explicit" or record.get("used_torch") or record["findings"]
    return record["outcome"] != "skipped" and not judged


# --- the environment


def environment(config: pytest.Config) -> dict[str, Any]:
    """Versions, platform, command-line arguments, and device names if torch is there already. Imports nothing."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in _PACKAGES},
        "devices": _devices(),
        "args": [str(argument) for argument in config.invocation_params.args],
    }


def _version(package: str) -> str | None:
    """What the imported module says (a wheel's "+cpu" included), else the installed distribution; None without both."""
    loaded = getattr(sys.modules.get(package.replace("-", "_")), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return []
    # Asking an uninitialised CUDA for names would initialise it, which a report has no business doing.
    cuda = torch.cuda.is_initialized() and [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["cpu", *(cuda or [])]


# --- margins


def margins(
    run: Mapping[str, Any] | None,
    limits: Mapping[str, Any],
    *,
    headroom: Mapping[str, Mapping[str, float]] | None = None,
    sampled: bool = False,
) -> list[dict[str, Any]]:
    """The distances to what applies, in bits: `log2(limit / measured)`, for lower bounds `log2(measured / limit)`.

    Args:
        run: `Run.as_dict()`; its lists have one entry per optimizer step.
        limits: limit names with `{"value": ..., "source": ...}`, or with `config.Limit`s.
        headroom: bits to the dtype's largest number, `{"activation": {"blocks.0 float32": 12.5}, ...}`;
            `min_headroom_bits` brings that limit nearer.
        sampled: whether `headroom` was measured at sampled steps only, so that the true margin may be smaller.

    Returns:
        one entry `{margin, measured, limit, quantity, step, sampled}` per quantity, its worst step; steps count from 1.
        None and non-finite measurements are left out: they are findings, not margins.
    """
    values = {name: _limit_value(limit) for name, limit in limits.items()}
    found = [_bounded(name, values[name], run or {}) for name in _BOUNDED if name in values]
    wanted = values.get("min_headroom_bits", 0.0)
    found += [_nearest(quantity, bits, wanted, sampled) for quantity, bits in (headroom or {}).items()]
    return [entry for entry in found if entry is not None]


def _limit_value(limit: Any) -> float:
    return float(limit["value"] if isinstance(limit, Mapping) else limit.value)


def _bounded(name: str, limit: float, run: Mapping[str, Any]) -> dict[str, Any] | None:
    column, quantity, above = _BOUNDED[name]
    entries = [(step, abs(value)) for step, value in enumerate(run.get(column) or (), start=1) if _is_measured(value)]
    if not entries:
        return None
    step, measured = (max if above else min)(entries, key=lambda entry: entry[1])
    bits = _bits(limit, measured) if above else _bits(measured, limit)
    return None if bits is None else _entry(bits, measured, limit, quantity, step=step)


def _is_measured(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _bits(larger: float, smaller: float) -> float | None:
    """`log2(larger / smaller)`; None when one of them is 0 and the distance infinite."""
    return math.log2(larger) - math.log2(smaller) if larger > 0 and smaller > 0 else None


def least_headroom(record: Record) -> dict[str, tuple[float, str]]:
    """Bits and tensor of what came nearest to its dtype's largest number, for each quantity that was measured."""
    nearest = {quantity: _least(tensors) for quantity, tensors in (record.get("headroom") or {}).items()}
    return {quantity: least for quantity, least in nearest.items() if least is not None}


def _least(tensors: Mapping[str, float]) -> tuple[float, str] | None:
    return min(((bits, name) for name, bits in tensors.items() if _is_measured(bits)), default=None)


def _nearest(quantity: str, tensors: Mapping[str, float], wanted: float, sampled: bool) -> dict[str, Any] | None:
    least = _least(tensors)
    if least is None:
        return None
    bits, name = least
    largest = _LARGEST.get(name.rpartition(" ")[2], math.nan)
    measured, limit = largest * 2.0**-bits, largest * 2.0**-wanted
    return _entry(bits - wanted, measured, limit, quantity, sampled=sampled)


def _entry(
    margin: float, measured: float, limit: float, quantity: str, *, step: int | None = None, sampled: bool = False
) -> dict[str, Any]:
    return {
        "margin": margin,
        "measured": measured if math.isfinite(measured) else None,
        "limit": limit if math.isfinite(limit) else None,
        "quantity": quantity,
        "step": step,
        "sampled": sampled,
    }


# --- the file


def report_format(path: str | os.PathLike[str]) -> str:
    """The format that a report's name asks for: its ending, without the dot. `ValueError` names what is allowed."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        *files, folder = _FORMATS
        allowed = f"a {', '.join(files[:-1])} or {files[-1]} file or a {folder} folder"
        raise ValueError(f"--nanstab-report must name {allowed}, got {os.fspath(path)!r}")
    return suffix[1:]


def json_text(report: Mapping[str, Any]) -> str:
    """The text of the JSON file; `ValueError` for numbers that are not finite."""
    return json.dumps(report, allow_nan=False, indent=1) + "\n"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text whole or not at all; the folders above it are created."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system; named by process, so runs do not meet.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
