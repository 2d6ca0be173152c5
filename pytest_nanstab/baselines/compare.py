"""What is recorded of a run, and how far a later one may move from it. Imports no torch.

Everything is compared in bits: |log2(measured / recorded)| for losses, gradient norms and the root mean squares of the
initial parameters, lost bits for headroom. One bit is a factor of 2. What a point may move by:

- 0.25 bit, 0.5 where 16-bit formats are involved: room for another thread count, BLAS or torch patch release. Two
  threads in place of one moved a two-layer transformer under Adam by up to 0.04 bit in "32-true" (100 steps) and 0.14
  in "bf16-mixed" (20 steps); other BLAS libraries are not measured.
- with a recorded spread, three times the spread at that point, but never as much as one bit: a factor of 2 fails.
- the spread itself, where that is larger still. The summary of `--nanstab-update` says where that is so.

The spread is the largest distance of any of the other runs of the recording (three seeds, two thread counts) from the
first one. Losses and norms under 2**-23 (2**-52 in "64-true") of their curve's largest value count as that much; in a
loss that changes sign, 2**-10. Headroom of tensors more than 20 bits further from overflow than the nearest of their
kind counts as 20 bits further: the gradient in front of a batch norm is rounding noise. Headroom that grew is no fault.
Update ratios are information only, since the largest is often that of a parameter with such a gradient.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_nanstab.findings import Finding, Kind

if TYPE_CHECKING:
    from pytest_nanstab.watching.run import Run

Entry: TypeAlias = "dict[str, Any]"  # what is recorded of one run: plain JSON data

POINTS = 64
FLOOR_BITS = 0.25
FLOOR_BITS_16 = 0.5
NOTICED_BITS = 1.0  # a spread below this never hides a factor of 2
_BELOW_NOTICED = 0.95
_SPREADS = 3.0
_HEADROOM_REACH = 20.0
_SCALE = "initial scale"
CURVES = {"loss": "loss", "grad_norm": "gradient norm"}
_JUDGED: dict[str, tuple[Kind, str]] = {
    "loss": ("nonfinite-loss", "loss"),
    "grad_norm": ("nonfinite-gradient", "gradient norm"),
    "clipped_grad_norm": ("nonfinite-gradient", "clipped gradient norm"),
    "update_ratio": ("nonfinite-parameter", "update ratio"),
}
_REMEDY = "if the change is meant, record it with --nanstab-update and commit the file; else find what caused it"


# --- what is recorded


def entry_of(run: Run, *, seed: int | None) -> Entry:
    """The recorded form of a run: curves at up to 64 steps, first and last included, in six significant digits."""
    at = thinned(len(run.loss))
    entry: Entry = {"steps": run.steps, "skipped_steps": run.skipped_steps, "seed": seed, "at": [i + 1 for i in at]}
    for name in CURVES:
        entry[name] = [_short(getattr(run, name)[i]) for i in at]
    norms = [norm for norm in run.grad_norm if norm is not None]
    entry["grad_norm_range"] = [_short(min(norms)), _short(max(norms))] if norms else None
    if any(ratio is not None for ratio in run.update_ratio):
        entry["update_ratio"] = [_short(run.update_ratio[i]) for i in at]
    if run.headroom:
        entry["headroom"] = {
            quantity: {name: round(bits, 3) for name, bits in sorted(rows.items())}
            for quantity, rows in sorted(run.headroom.items())
        }
    if run.init_scale:
        entry["init_scale"] = {name: _short(scale) for name, scale in sorted(run.init_scale.items())}
    return entry


def thinned(count: int) -> list[int]:
    """Up to 64 indices of `count`, evenly spread, first and last included."""
    if count <= POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def nonfinite(run: Run) -> Finding | None:
    """The first value of a run that is NaN or infinite, or what its watch found: such a run is no baseline."""
    for name, (kind, what) in _JUDGED.items():
        for step, value in enumerate(getattr(run, name), start=1):
            if value is not None and not math.isfinite(value):
                return _unfit(f"the {what} is {value} at step {step}", kind, step=step)
    for quantity, rows in run.headroom.items():
        for name, bits in rows.items():
            if not math.isfinite(bits):
                return _unfit(f"the {quantity} headroom of {name} is {bits}", "headroom")
    return next((finding for finding in run.findings if finding.is_nonfinite), None)


def _unfit(message: str, kind: Kind, *, step: int | None = None) -> Finding:
    note = "a run with a value that is not finite is never recorded, and compares with nothing"
    return Finding(kind=kind, message=message, step=step, evidence={"note": note})


def spread_of(first: Entry, others: Sequence[Entry], *, precision: str) -> dict[str, Any]:
    """For every recorded number the largest distance, in bits, of any other run; None where no other run has it."""
    spread: dict[str, Any] = {}
    for name in CURVES:
        floor = _floor(first[name], precision)
        spread[name] = [
            _largest(_bits(value, other, floor) for other in _values_at(others, name, i)) if value is not None else None
            for i, value in enumerate(first[name])
        ]
    bounds = first["grad_norm_range"]
    floor = _floor(first["grad_norm"], precision)
    spread["grad_norm_range"] = bounds and [
        _largest(_bits(bounds[i], other["grad_norm_range"][i], floor) for other in others if other["grad_norm_range"])
        for i in (0, 1)
    ]
    spread["headroom"] = {
        quantity: {name: _largest(_headroom_distances(bits, others, quantity, name)) for name, bits in rows.items()}
        for quantity, rows in first.get("headroom", {}).items()
    }
    spread["init_scale"] = {
        name: _largest(_scale_distances(scale, others, name)) for name, scale in first.get("init_scale", {}).items()
    }
    return spread


def _values_at(others: Sequence[Entry], name: str, index: int) -> list[float]:
    return [other[name][index] for other in others if index < len(other[name]) and other[name][index] is not None]


def _headroom_distances(bits: float, others: Sequence[Entry], quantity: str, name: str) -> Iterator[float]:
    for other in others:
        there = other.get("headroom", {}).get(quantity, {}).get(name)
        if there is not None:
            yield abs(bits - there)


def _scale_distances(scale: float, others: Sequence[Entry], name: str) -> Iterator[float]:
    for other in others:
        there = other.get("init_scale", {}).get(name)
        if there is not None:
            yield abs(math.log2(there) - math.log2(scale))


def _largest(distances: Iterator[float]) -> float | None:
    largest = max(distances, default=None)
    return None if largest is None else round(largest, 3)


# --- distances


def _floor(curve: Sequence[float | None], precision: str) -> float:
    """What smaller values count as: below it, a logarithm would measure rounding."""
    values = [value for value in curve if value is not None]
    share = 2.0**-10 if any(value < 0 for value in values) else 2.0**-52 if precision == "64-true" else 2.0**-23
    return max(share * max(map(abs, values), default=0.0), sys.float_info.min)


def _bits(recorded: float, measured: float, floor: float) -> float:
    """The distance in bits; across zero, that of each to the floor, added."""
    low, high = (math.log2(max(abs(value), floor) / floor) for value in (recorded, measured))
    return low + high if (recorded < 0) != (measured < 0) else abs(high - low)


def allowed_bits(precision: str, spread: float | None) -> float:
    """How far a point may move; see the module's docstring."""
    floor = FLOOR_BITS_16 if "16" in precision else FLOOR_BITS
    return floor if spread is None else max(floor, min(_SPREADS * spread, _BELOW_NOTICED), spread)


@dataclass(frozen=True, kw_only=True)
class Move:
    """One recorded number and what it is now.

    Attributes:
        quantity: "loss", "gradient norm", "largest gradient norm", "activation headroom", ...
        name: the tensor and its dtype, "decoder.layers.5.linear2 float16", for headroom.
        step: counted from 1; None for what spans the run.
        bits: how far it moved; for headroom, how much of it was lost.
        precision: the arithmetic of the run.
        spread: how far the runs of the recording lay apart; None without a measured spread.
    """

    quantity: str
    name: str | None = None
    step: int | None = None
    recorded: float
    measured: float
    bits: float
    precision: str
    spread: float | None

    @property
    def allowed(self) -> float:
        """How far it may move."""
        return allowed_bits(self.precision, self.spread)

    @property
    def is_within(self) -> bool:
        """Whether it moved by no more than allowed; NaN never did."""
        return self.bits <= self.allowed


def moves(recorded: Entry, measured: Entry, *, precision: str) -> list[Move]:
    """Every number that both have, compared; the largest distance first."""
    found = [
        *_curve_moves(recorded, measured, precision),
        *_headroom_moves(recorded, measured, precision),
        *_scale_moves(recorded, measured, precision),
    ]
    if len(recorded["at"]) < recorded["steps"]:
        found += _range_moves(recorded, measured, precision)
    return sorted(found, key=lambda move: -move.bits)


def _curve_moves(recorded: Entry, measured: Entry, precision: str) -> Iterator[Move]:
    spreads = recorded.get("spread") or {}
    for name, quantity in CURVES.items():
        floor = _floor(recorded[name], precision)
        for i, (step, was, now) in enumerate(zip(recorded["at"], recorded[name], measured[name], strict=True)):
            if was is not None and now is not None:
                yield Move(
                    quantity=quantity,
                    step=step,
                    recorded=was,
                    measured=now,
                    bits=_bits(was, now, floor),
                    precision=precision,
                    spread=spreads[name][i] if spreads else None,
                )


def _range_moves(recorded: Entry, measured: Entry, precision: str) -> Iterator[Move]:
    """The extremes of the norm, which may lie between the recorded points."""
    bounds, now = recorded["grad_norm_range"], measured["grad_norm_range"]
    spreads = (recorded.get("spread") or {}).get("grad_norm_range") or [None, None]
    floor = _floor(recorded["grad_norm"], precision)
    for i, word in enumerate(("smallest", "largest")):
        if bounds and now:
            yield Move(
                quantity=f"{word} gradient norm",
                recorded=bounds[i],
                measured=now[i],
                bits=_bits(bounds[i], now[i], floor),
                precision=precision,
                spread=spreads[i],
            )


def _headroom_moves(recorded: Entry, measured: Entry, precision: str) -> Iterator[Move]:
    spreads = (recorded.get("spread") or {}).get("headroom") or {}
    for quantity, rows in recorded.get("headroom", {}).items():
        now = measured.get("headroom", {}).get(quantity, {})
        for name, bits in rows.items():
            if name in now:
                cap = _HEADROOM_REACH + min(there for key, there in rows.items() if _dtype(key) == _dtype(name))
                yield Move(
                    quantity=f"{quantity} headroom",
                    name=name,
                    recorded=bits,
                    measured=now[name],
                    bits=min(bits, cap) - min(now[name], cap),
                    precision=precision,
                    spread=spreads.get(quantity, {}).get(name),
                )


def _scale_moves(recorded: Entry, measured: Entry, precision: str) -> Iterator[Move]:
    spreads = (recorded.get("spread") or {}).get("init_scale") or {}
    now = measured.get("init_scale", {})
    for name, scale in recorded.get("init_scale", {}).items():
        if name in now:
            yield Move(
                quantity=_SCALE,
                name=name,
                recorded=scale,
                measured=now[name],
                bits=abs(math.log2(now[name]) - math.log2(scale)),
                precision=precision,
                spread=spreads.get(name),
            )


def _dtype(label: str) -> str:
    return label.rpartition(" ")[2]


# --- what is said about it


def compare(recorded: Entry, measured: Entry, *, precision: str) -> tuple[Finding | None, list[str]]:
    """The finding of what moved most, or None; and notes on moves of a factor of 2 that the spread excuses."""
    changed = _changed(recorded, measured)
    if changed is not None:
        return changed, []
    compared = moves(recorded, measured, precision=precision)
    beyond = [move for move in compared if not move.is_within]
    if beyond:
        return _drift(beyond, recorded, measured), []
    excused = [move for move in compared if move.bits >= NOTICED_BITS]
    return None, [f"{_subject(move)} moved {move.bits:.2g} bits, {_allowance(move)}" for move in excused]


def _changed(recorded: Entry, measured: Entry) -> Finding | None:
    """What makes the two incomparable, or the second less than the first."""
    if recorded["steps"] != measured["steps"]:
        skipped = {"recorded": recorded["skipped_steps"], "now": measured["skipped_steps"]}
        return baseline_finding(
            f"{measured['steps']} optimizer steps, the baseline has {recorded['steps']}",
            {"skipped steps": skipped} if any(skipped.values()) else {},
        )
    if recorded["at"] != measured["at"]:
        return baseline_finding("the baseline holds other steps than this run", {"recorded": recorded["at"]})
    for name, quantity in CURVES.items():
        for step, was, now in zip(recorded["at"], recorded[name], measured[name], strict=True):
            if was is not None and now is None:
                return baseline_finding(
                    f"the {quantity} is no longer measured at step {step}", {"recorded": was}, step=step
                )
    return _gone(recorded, measured)


def _gone(recorded: Entry, measured: Entry) -> Finding | None:
    rows = measured.get("headroom", {})
    gone = [
        f"{quantity} {name}"
        for quantity, names in recorded.get("headroom", {}).items()
        for name in names
        if name not in rows.get(quantity, {})
    ]
    if not gone:
        return None
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    cause = "the module was renamed or removed, or the tensor is all zeros now, or infinite"
    return baseline_finding(f"no headroom of {gone[0]}{more} any more", {"recorded": gone}, cause=cause)


def _drift(beyond: Sequence[Move], recorded: Entry, measured: Entry) -> Finding:
    most = beyond[0]
    evidence: dict[str, Any] = {
        "value": most.measured,
        "recorded": most.recorded,
        "moved": f"{most.bits:.3g} bits, {_allowance(most)}",
    }
    if recorded.get("seed") != measured.get("seed"):
        evidence["recorded seed"] = str(recorded.get("seed"))
    if len(beyond) > 1:
        evidence["table"] = _worst(beyond)
    evidence["off since"], cause = _since(beyond)
    if most.name is None:
        message = _subject(most, f" moved {most.bits:.2g} bits from its baseline")
        return baseline_finding(message, evidence, step=most.step, cause=cause)
    if most.quantity == _SCALE:
        way = "larger" if most.measured > most.recorded else "smaller"
        return baseline_finding(
            f"{most.name} starts {most.bits:.2g} bits {way} than in its baseline",
            {"quantity": "root mean square before the first step", **evidence},
            module=most.name.rpartition(".")[0],
            cause="it is initialised on another scale",
        )
    name, _, dtype = most.name.rpartition(" ")
    return baseline_finding(
        f"{name} lost {most.bits:.2g} bits of {dtype} headroom",
        {"quantity": most.quantity, **evidence},
        module=name if most.quantity.startswith("activation") else name.rpartition(".")[0],
        cause=cause,
    )


def _worst(beyond: Sequence[Move]) -> list[dict[str, object]]:
    """The farthest point of each quantity, each tensor of its own."""
    rows: dict[str, dict[str, object]] = {}
    for move in beyond:
        what = move.quantity if move.name is None else f"{move.quantity} {move.name}"
        row = {"bits": round(move.bits, 2), "allowed": round(move.allowed, 2), "recorded": move.recorded}
        rows.setdefault(what, {**row, "now": move.measured, "step": move.step or "", "what": what})
    return list(rows.values())


def _since(beyond: Sequence[Move]) -> tuple[str | None, str | None]:
    """The first step that is off, and what that says."""
    first = min((move.step for move in beyond if move.step is not None), default=None)
    if first is None:
        return None, None
    cause = "it differs from the first step on: other initial weights, batches or random numbers, or another loss"
    return f"step {first}", cause if first == 1 else None


def _subject(move: Move, moved: str = "") -> str:
    at = "" if move.step is None else f" at step {move.step}"
    return f"{move.name or move.quantity}{moved}{at}"


def _allowance(move: Move) -> str:
    """Which rule decided: "allowed 0.95 (recorded spread 0.41)"."""
    if move.spread is None:
        return f"allowed {move.allowed:.2g} (for {move.precision}; no spread recorded)"
    note = ", more than a factor of 2" if move.spread >= NOTICED_BITS else ""
    return f"allowed {move.allowed:.2g} (recorded spread {move.spread:.2g}{note})"


def baseline_finding(
    message: str,
    evidence: Mapping[str, Any],
    *,
    step: int | None = None,
    module: str | None = None,
    cause: str | None = None,
    remedy: str = _REMEDY,
) -> Finding:
    """A finding of kind "baseline"."""
    return Finding(
        kind="baseline",
        message=message,
        step=step,
        module=module or None,
        evidence=dict(evidence),
        cause=cause,
        remedy=remedy,
    )
