"""One operation as it was called, and what it gives when other values take the place of bad ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_nanstab.attribution import looking
from pytest_nanstab.attribution.history import Kind, Made
from pytest_nanstab.attribution.operations import Operation
from pytest_nanstab.ranks.sharding import any_sharded


@dataclass(slots=True, eq=False)
class Call:
    """One operation as it was called, or one element of an operation on lists.

    `before` holds what was in the arguments it writes to: whether that was bad, and a copy of it. `behind` has the
    record behind each input, and `parts` those of an input whose bad values have several origins, each with where.
    """

    func: Any
    about: Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: dict[int, tuple[bool, Tensor]]
    inputs: list[Tensor]
    behind: list[Made | None]
    parts: list[list[tuple[Made, Tensor]]] = field(default_factory=list)

    def value(self, index: int) -> Tensor:
        """An input as it was before the call."""
        kept = self.before.get(id(self.inputs[index]))
        return self.inputs[index] if kept is None else kept[1]

    def was_bad(self, index: int) -> bool:
        """Whether an input was bad before the call."""
        kept = self.before.get(id(self.inputs[index]))
        return looking.is_bad(self.inputs[index]) if kept is None else kept[0]


def why(call: Call, suspects: list[int], output: Tensor, facts: dict[str, Any]) -> tuple[Kind, list[int]]:
    """How a result became bad, and which bad inputs made it so.

    The operation is repeated with ordinary numbers in place of bad ones: what is still bad then was born in it, and an
    input without which nothing changes is not to blame.
    """
    if not suspects:
        return "born", []
    causing = list(suspects)
    # On distributed tensors it may be a collective, which other ranks would not join.
    if call.func is not None and not call.about.random and not any_sharded(call.inputs):
        word = "nan" if facts.get("nan") else "count"
        own = _bad_without(call, suspects, output, word)
        if len(suspects) > 1 or own:
            alone = [_bad_without(call, [j for j in suspects if j != i], output, word) for i in suspects]
            causing = [i for i, count in zip(suspects, alone, strict=True) if count > own]
            if own == facts.get(word) == output.numel():  # nothing to count: are the bad values enough by themselves?
                causing = _enough_alone(call, suspects, output, word)
            causing = causing or ([] if own else list(suspects))
        if own:
            return "born", causing
    had_nan = any(_has_nan(call.value(index)) for index in causing)
    return ("carried" if had_nan or not facts.get("nan") else "turned"), causing


def _bad_without(call: Call, replaced: Iterable[int], output: Tensor, word: str) -> int:
    """How many bad values ("count", or only "nan") the result has when these inputs hold ordinary numbers."""
    return _bad_with(call, {id(call.inputs[i]): looking.ordinary(call.value(i)) for i in replaced}, output, word)


def _enough_alone(call: Call, suspects: list[int], output: Tensor, word: str) -> list[int]:
    """The bad inputs whose bad values alone, among ordinary numbers, spoil the result as well."""
    if _bad_with(call, _tame(call), output, word):
        return []  # whatever it is given: an average of nothing
    return [i for i in suspects if _bad_with(call, _tame(call, keep=i), output, word)]


def _tame(call: Call, keep: int | None = None) -> dict[int, Tensor]:
    """Ordinary numbers for every floating input; of the one to keep, its bad values stay."""
    swap = {}
    for index, tensor in enumerate(call.inputs):
        if tensor.is_floating_point():
            values = call.value(index).detach()
            ordinary = looking.ordinary(torch.full_like(values, math.nan))
            swap[id(tensor)] = torch.where(torch.isfinite(values), ordinary, values) if index == keep else ordinary
    return swap


def _bad_with(call: Call, swap: dict[int, Tensor], output: Tensor, word: str) -> int:
    """How many bad values the result has when these tensors take the place of inputs, by their identity."""
    result = repeated(call, swap, output)
    return 0 if result is None else int(looking.facts_of(result).get(word, 0))


def repeated(call: Call, swap: dict[int, Tensor], output: Tensor) -> Tensor | None:
    """The result when these tensors take the place of inputs, by their identity; `output` is the one it had."""
    for tensor in looking.tensors_of(written_by(call.about, call.args, call.kwargs)):
        # What it writes to is the user's: the repetition gets a copy of its own.
        kept = call.before.get(id(tensor))
        swap.setdefault(id(tensor), (tensor if kept is None else kept[1]).detach().clone())

    def other(leaf: Any) -> Any:
        return swap.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map(other, (call.args, call.kwargs))
    with torch.no_grad():
        result = call.func(*args, **kwargs)
    written = written_by(call.about, args, kwargs)
    alike = (t for t in distinct_tensors([result, written]) if t.shape == output.shape and t.dtype == output.dtype)
    return next(alike, None)


def _has_nan(tensor: Tensor) -> bool:
    return bool(looking.facts_of(tensor).get("nan", 0))


def states_infinity(call: Call) -> bool:
    """Whether an infinity is written into the call: a mask constant, a sentinel, or a factory's fill value."""
    numbers = looking.numbers_of([*call.args, *call.kwargs.values()])
    flat = [n for number in numbers for n in (number if isinstance(number, (list, tuple)) else [number])]
    return any(isinstance(number, float) and math.isinf(number) for number in flat)


def is_sentinel(facts: dict[str, Any]) -> bool:
    """Whether numbers written into the program are meant: infinities only, or zeros and infinities as in a mask."""
    return not facts.get("nan") and facts.get("range", [0, 0]) == [0, 0]


def written_by(about: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments an operation writes to."""
    found = []
    for where in about.writes:
        if isinstance(where, str):
            found.append(kwargs.get(where))
        elif where < len(args):
            found.append(args[where])
    return [value for value in found if value is not None]


def distinct_tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, each once: the same argument may be given twice."""
    return list({id(tensor): tensor for value in values for tensor in looking.tensors_of(_as_list(value))}.values())


def _as_list(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value
    return [value] if value is None or isinstance(value, Tensor) else list(value) if hasattr(value, "__iter__") else []


def elements_of(call: Call, written: Sequence[Any]) -> Iterable[tuple[Call, list[Tensor]]]:
    """An operation on lists of tensors, element by element: each with what it has written to."""
    lists = [value for value in call.args if isinstance(value, (list, tuple)) and _holds_tensors(value)]
    targets = [value for value in written if isinstance(value, (list, tuple))]
    others = [value for value in call.args if not isinstance(value, (list, tuple))]
    known = {id(tensor): made for tensor, made in zip(call.inputs, call.behind, strict=True)}
    for index in range(max((len(value) for value in targets), default=0)):
        outputs = [value[index] for value in targets if index < len(value)]
        row = tuple(value[index] for value in lists if index < len(value)) + tuple(others)
        inputs = distinct_tensors([row])
        behind = [known.get(id(tensor)) for tensor in inputs]
        yield Call(None, call.about, row, {}, call.before, inputs, behind), outputs


def _holds_tensors(values: Sequence[Any]) -> bool:
    return next(looking.tensors_of(values), None) is not None
