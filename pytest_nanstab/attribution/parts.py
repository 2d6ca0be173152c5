"""Which bad values of a result go back to which origin, where it holds bad values of several.

A NaN in a row that nobody uses must not hide the infinity that an operation makes in another row. The operation is
repeated with ordinary numbers in place of some of its bad operands: what is bad all the same has another origin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from pytest_nanstab.attribution.calls import Call, repeated
from pytest_nanstab.attribution.history import Made
from pytest_nanstab.ranks.sharding import any_sharded

# They may leave out an operand's element.
_CHOOSE = frozenset({"where", "masked_fill"})


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Bad values of one origin in an input.

    Attributes:
        index: which input.
        made: the record behind them.
        where: truth values in the input's shape.
    """

    index: int
    made: Made
    where: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Bad values of a result that have one origin.

    Attributes:
        causes: the records they go back to; empty where the operation itself made them.
        where: truth values in the result's shape.
    """

    causes: tuple[Made, ...]
    where: Tensor


def can_tell(call: Call, output: Tensor) -> bool:
    """Whether an operation can be repeated, and its result be looked at value by value."""
    given = (output, *call.inputs)
    plain = all(type(t) in (Tensor, Parameter) and t.layout is torch.strided and not t.is_meta for t in given)
    return plain and not call.about.random and not any_sharded(call.inputs)


def bad_values(tensor: Tensor) -> Tensor:
    """Where a tensor is not finite."""
    return ~torch.isfinite(tensor.detach())


def shares_of(call: Call, output: Tensor, sources: Sequence[Source]) -> list[Share]:
    """The bad values of a result by their origin; none where every one of them has the same."""
    bad = bad_values(output)
    groups = _by_origin(sources)
    if len(groups) == 1 and bool(bad.all()):
        touched = _touched(call, output, sources)
        if touched is None or bool(touched.all()):
            return []
    own = _born_here(call, output, bad, sources)
    rest = bad & ~own
    found = [Share((), own)] if bool(own.any()) else []
    if bool(rest.any()):
        found += _of_groups(call, output, rest, groups)
    return found


def _by_origin(sources: Sequence[Source]) -> list[list[Source]]:
    groups: dict[frozenset[object], list[Source]] = {}
    for source in sources:
        groups.setdefault(source.made.roots, []).append(source)
    return list(groups.values())


def _born_here(call: Call, output: Tensor, bad: Tensor, sources: Sequence[Source]) -> Tensor:
    """The bad values that no bad operand had a part in.

    With one number in place of all the bad ones a spread would be 0: what is born must be so with varied ones, too.
    """
    touched = _touched(call, output, sources)
    if touched is not None:
        return bad & ~touched
    own = bad
    for varied in (False, True):
        own = own & _bad_without(call, output, sources, varied=varied)
        if not bool(own.any()):
            break
    return own


def _touched(call: Call, output: Tensor, sources: Sequence[Source]) -> Tensor | None:
    """Where bad operands stand, for operations that compute each element of theirs; None for all others."""
    by_element = call.func is None or torch.Tag.pointwise in getattr(call.func, "tags", ())
    by_element = by_element and call.about.name not in _CHOOSE
    try:
        places = [source.where.expand(output.shape) for source in sources] if by_element else []
    except RuntimeError:  # shapes that do not broadcast
        return None
    return torch.stack(places).any(dim=0) if places else None


def _of_groups(call: Call, output: Tensor, rest: Tensor, groups: Sequence[Sequence[Source]]) -> list[Share]:
    """Bad values that were handed on, by the origins that are each enough to spoil them."""
    everything = tuple(source.made for group in groups for source in group)
    if len(groups) == 1 or call.func is None:
        return [Share(everything, rest)]
    found, left = [], rest
    for group in groups:
        others = [source for other in groups if other is not group for source in other]
        spoilt = rest & _bad_without(call, output, others)
        left = left & ~spoilt
        if bool(spoilt.any()):
            found.append(Share(tuple(source.made for source in group), spoilt))
    if bool(left.any()):  # it takes several together: inf - inf
        found.append(Share(everything, left))
    if len(found) > 1 and all(bool((share.where == rest).all()) for share in found):
        return [Share(tuple(made for share in found for made in share.causes), rest)]
    return found


def _bad_without(call: Call, output: Tensor, replaced: Iterable[Source], *, varied: bool = False) -> Tensor:
    """Where the result is as bad when ordinary numbers take the place of some bad ones; nowhere if it cannot be had."""
    swap: dict[int, Tensor] = {}
    for source in replaced:
        given = call.inputs[source.index]
        values = swap.get(id(given), call.value(source.index).detach())
        swap[id(given)] = torch.where(source.where, _ordinary(values, varied=varied), values)
    try:
        result = repeated(call, swap, output)
    except (RuntimeError, ValueError):  # a singular matrix, a range that an operation checks
        result = None
    if result is None:
        return torch.zeros_like(output, dtype=torch.bool)
    # An overflow that a NaN had hidden is no second origin of that NaN.
    return torch.where(torch.isnan(output.detach()), torch.isnan(result), bad_values(result))


def _ordinary(values: Tensor, *, varied: bool) -> Tensor:
    """Numbers between 0.3 and 0.7, at which log, sqrt, div, acos and their kin are all finite."""
    if not varied:
        return torch.full((), 0.5, dtype=values.dtype, device=values.device)
    turns = torch.arange(values.numel(), device=values.device) * math.sqrt(2)
    return (0.3 + 0.4 * (turns % 1)).reshape(values.shape).to(values.dtype)
