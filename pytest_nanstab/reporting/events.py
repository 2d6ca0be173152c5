"""A report as TensorBoard's event files: one run folder per test that trained, one point per optimizer step.

torch and tensorboard are imported only when something is written.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_nanstab.findings import from_dict
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render
from pytest_nanstab.reporting.model import Record, findings_of, least_headroom, steps_of

_SERIES = ("loss", "grad_norm", "clipped_grad_norm", "update_ratio")
_OURS = ".nanstab"  # the ending of our files: what else lies in a folder belongs to somebody else
_LARGEST = (2 - 2**-23) * 2.0**127  # event files hold float32
_LISTED = 10
_LONGEST = 120


def write(folder: str, report: Mapping[str, Any]) -> None:
    """Write a run folder for each test with an optimizer step; it replaces what an earlier session wrote there.

    Raises:
        ImportError: torch.utils.tensorboard cannot be imported.
        OSError: the file system refuses.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    trained = [record for record in report["tests"] if steps_of(record)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tensorboard and its own imports warn of is no news about the tests
        for name, record in zip(run_names(record["id"] for record in trained), trained, strict=True):
            _write_run(target / name, record)


def run_names(nodes: Iterable[str]) -> Iterator[str]:
    """A folder name for each node id: legible, safe in every file system and shell, and no two the same."""
    taken: set[str] = set()
    for node in nodes:
        plain = re.sub(r"::|/", ".", node).replace("[", "-").removesuffix("]")
        safe = re.sub(r"[^\w.,=+-]", "_", plain, flags=re.ASCII).lstrip(".")
        if safe != plain or len(safe) > _LONGEST or safe.casefold() in taken:
            safe = f"{safe[:_LONGEST]}-{hashlib.sha256(node.encode('utf-8', 'replace')).hexdigest()[:8]}"
        taken.add(safe.casefold())
        yield safe


def _write_run(folder: Path, record: Record) -> None:
    earlier = list(folder.glob(f"events.out.tfevents.*{_OURS}"))
    # A TensorBoard that has loaded the earlier files drops their points when it meets the purge step.
    writer = _writer_class()(str(folder), purge_step=1, filename_suffix=_OURS)
    try:
        for tag, value, step in _scalars(record):
            writer.add_scalar(tag, value, step)
        for tag, lines in _texts(record):
            writer.add_text(tag, "\n".join(f"    {line}" for line in lines), steps_of(record))
    finally:
        writer.close()
    for path in earlier:
        path.unlink(missing_ok=True)


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except Exception as error:  # protobuf refuses what another version has generated with a TypeError
        raise ImportError(f"torch.utils.tensorboard cannot be imported ({type(error).__name__}: {error})") from error


# --- numbers


def _scalars(record: Record) -> Iterator[tuple[str, float, int]]:
    """Tag, value and step of everything that has a finite number."""
    for name, values in _series(record):
        for step, value in enumerate(values, start=1):
            if _left_out(value) is None:
                yield f"nanstab/{name}", value, step
    for quantity, (bits, _) in least_headroom(record).items():
        yield f"nanstab/headroom_bits/{quantity}", bits, steps_of(record)


def _series(record: Record) -> Iterator[tuple[str, Sequence[Any]]]:
    run = record["run"]
    return ((name, run.get(name) or ()) for name in _SERIES)


def _left_out(value: object) -> str | None:
    """Why a value is no point of a curve; None for one that is."""
    if value is None:
        return "not measured"
    if not isinstance(value, (int, float)):
        return str(value)  # "nan", "inf", "-inf"
    if not math.isfinite(value):
        return str(float(value))
    return None if abs(value) <= _LARGEST else "beyond float32"


# --- texts


def _texts(record: Record) -> Iterator[tuple[str, list[str]]]:
    yield "nanstab/test", [_title(record)]
    if findings_of(record):
        yield "nanstab/findings", render([from_dict(finding) for finding in findings_of(record)]).splitlines()
    gaps = list(_gaps(record))
    if gaps:
        yield "nanstab/left_out", gaps


def _title(record: Record) -> str:
    known = [f"{name} {record[name]}" for name in ("precision", "seed") if record.get(name) is not None]
    return ", ".join([f"{text.escape(record['id'])}: {record['outcome']}", *known])


def _gaps(record: Record) -> Iterator[str]:
    """Which steps have no point, and why."""
    for name, values in _series(record):
        steps: dict[str, list[int]] = {}
        for step, value in enumerate(values, start=1):
            why = _left_out(value)
            if why is not None:
                steps.setdefault(why, []).append(step)
        for why, at in steps.items():
            yield f"{name}: {why} at {_listed(at)}"


def _listed(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - _LISTED} more" if len(steps) > _LISTED else ""
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(map(str, steps[:_LISTED]))}{more}"
