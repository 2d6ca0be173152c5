"""What the tracer remembers: one record per operation, and which record stands behind a tensor's memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_nanstab.attribution.numpy_errors import Complaint
from pytest_nanstab.attribution.places import NOWHERE, Place

# How a bad value came about. "born": from finite operands. "turned": a NaN out of infinities. "carried": it was in an
# operand already. "outside": it was in a tensor that no traced operation made.
Kind = Literal["born", "turned", "carried", "outside"]
# Operations that leave a dtype's range by growth alone.
_GROWING = frozenset(
    {"matmul", "linear", "conv", "bilinear", "baddbmm", "einsum", "scaled_dot_product_attention", "lstm", "gru"}
    | {"add", "sub", "mul", "pow", "square", "lerp", "addcmul", "addcdiv", "cosh", "sinh", "to"}
    | {"sum", "mean", "norm", "cumsum", "cumprod", "prod", "var", "std", "cdist", "index_add", "scatter_add"}
    | {"mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss", "embedding_bag"}
    | {"layer_norm", "batch_norm", "group_norm", "rms_norm"}
)
# The same, and what hands large numbers on; torch calls a convolution's derivative by its longer name.
_LINEAR = (_GROWING - {"sinh", "cosh", "addcdiv"}) | {"neg", "abs", "relu", "gelu", "silu", "convolution", "dot"}
# torch's own stable softmax between two products: what breaks it is their size.
_FUSED, _SCORES = "scaled_dot_product", 1e2
# Numbers whose squares, a few of them added up, are beyond the dtype.
_LARGE = {"float16": 60.0, "bfloat16": 1e17, "float32": 1e17, "float64": 1e150}
# Records of finite values are cut off from their operands after so many steps: history must not grow for ever.
_KEPT_STEPS = 2
# More origins than this are not told apart.
_MOST_ROOTS = 64
_MOST_PARTS = 16
_MOST_DIVIDED = 64
# So many values are looked at one by one: it takes a tenth of a microsecond each.
_VALUES_TOLD_APART = 2**25


# Records, each with a mask over the whole memory that says where its bad values stand.
Parts = tuple[tuple["Made", Tensor], ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor an operation was given, when its result was bad.

    Attributes:
        made: the record of what made it; None when nothing traced did.
        low, high: the range of its finite values; None when it has none.
        smallest: the smallest magnitude of its finite values.
        at: its value where the first bad result stands, for operations that work element by element.
        nan, inf: counts.
    """

    made: Made | None
    dtype: str
    shape: tuple[int, ...]
    low: float | None
    high: float | None
    smallest: float | None
    zeros: int
    nan: int
    inf: int
    at: float | None = None

    @property
    def largest(self) -> float | None:
        """The largest finite magnitude."""
        return None if self.low is None or self.high is None else max(abs(self.low), abs(self.high))


@dataclass(slots=True, eq=False)
class Bad:
    """What is not finite in a result, and why.

    Attributes:
        kind: how it came about.
        nan: whether there is a NaN; otherwise there are only infinities.
        facts: dtype, shape, counts, first index, columns (the last indices of the bad values), as findings have them.
        causes: the records of the bad operands without which the result would be finite.
        operands: what the operation was given.
        intended: the infinity was written into the program: a mask constant, a sentinel.
        tensor: of "outside", the tensor itself.
        name: of "outside", what the user's code calls it.
        rows: the first indices of the bad values.
        called: the torch function that the user's line calls, where it has another name than the operation.
        before: of numbers from outside torch, what numpy complained of before.
        is_sure: whether that has made them.
        roots: what the causes go back to; see `Made.roots`.
    """

    kind: Kind
    nan: bool
    facts: dict[str, Any]
    causes: tuple[Made, ...] = ()
    operands: tuple[Operand, ...] = ()
    intended: bool = False
    tensor: Tensor | None = None
    name: str | None = None
    rows: tuple[int, ...] = ()
    called: str | None = None
    before: tuple[Complaint, ...] = ()
    is_sure: bool = False
    roots: frozenset[object] = frozenset()

    def __post_init__(self) -> None:
        roots: frozenset[object] = frozenset().union(*(made.roots for made in self.causes))
        self.roots = roots if len(roots) <= _MOST_ROOTS else frozenset({0})


@dataclass(slots=True, eq=False)
class Made:
    """One operation that ran, or one tensor that was there before ("outside": no operation).

    Attributes:
        number: counts operations.
        step: the training step it belongs to, from 1.
        op: the public name; "" for a tensor from outside.
        phase: "forward", "backward", "optimizer" or "eval".
        module: the innermost module whose forward was running.
        operands: the records of its tensor arguments, as far as known.
        numbers: its plain numbers, in order.
        derivative_of: in the backward pass, the forward operation whose derivative it is part of.
        node: in the backward pass, the name of the autograd node.
        by: in the optimizer, that optimizer.
    """

    number: int
    step: int
    op: str
    aten: str = ""
    phase: str = "forward"
    place: Place = NOWHERE
    module: nn.Module | None = None
    operands: tuple[Made, ...] = ()
    numbers: tuple[Any, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()
    derivative_of: Made | None = None
    node: str | None = None
    by: Any = None
    bad: Bad | None = None

    @property
    def roots(self) -> frozenset[object]:
        """What its bad values go back to: an operation at a line is one, in however many turns of a loop."""
        known = frozenset() if self.bad is None else self.bad.roots
        if known and self.bad is not None and self.bad.kind != "born":
            return known
        return known | {(self.op, self.place.spot) if self.op and self.place.spot is not None else id(self)}

    @property
    def bad_nan(self) -> bool:
        """Whether its result holds a NaN."""
        return self.bad is not None and self.bad.nan

    @property
    def bad_overflows(self) -> bool:
        """Whether it left the range of its dtype by size alone: no division, no logarithm.

        A NaN counts where the operands are so large that their squares overflow: inf - inf inside a fused kernel.
        """
        if self.bad is None or self.bad.kind != "born" or self.op not in _GROWING:
            return False
        largest = max((operand.largest or 0.0 for operand in self.bad.operands), default=0.0)
        return not self.bad.nan or largest > _LARGE.get(self.dtype, 1e17)

    @property
    def grew(self) -> bool:
        """Whether its operands were so large already that no operation at an edge is to blame.

        A quotient of a huge number counts, one by a tiny number does not; a power with a negative exponent does not.
        """
        if self.bad is None or self.bad.kind != "born" or not self.bad.operands:
            return False
        large = _LARGE.get(self.dtype, 1e17)
        largest = max(operand.largest or 0.0 for operand in self.bad.operands)
        if self.op in ("div", "addcdiv", "true_divide"):
            smallest = self.bad.operands[-1].smallest
            return len(self.bad.operands) > 1 and largest > large and smallest is not None and smallest * large > 1
        if self.op in ("pow", "prod", "cumprod"):
            exponent = next((n for n in self.numbers if isinstance(n, (int, float))), 2)
            return self.op != "pow" or (exponent > 1 and not self.bad.nan)
        if self.op.startswith(_FUSED):
            return largest > _SCORES
        return largest > large and self.op.removesuffix("_backward") in _LINEAR


@dataclass
class Ledger:
    """Which record stands behind which memory.

    Memory is known by the identity of its storage; a weak reference keeps that identity from being used again. Where
    the bad values in it have several origins, each has a record and a mask over the whole memory.
    """

    _made: dict[int, tuple[StorageWeakRef, Made]] = field(default_factory=dict)
    _parts: dict[int, Parts] = field(default_factory=dict)
    _steps: deque[list[Made]] = field(default_factory=deque)
    _limit: int = 20_000
    _left: int = _VALUES_TOLD_APART

    def of(self, tensor: Tensor) -> Made | None:
        """The record of what last wrote to the tensor's memory, or of the only origin its bad values have."""
        parts = self.parts(tensor) if self._parts else []
        return parts[0][0] if len(parts) == 1 else self.whole(tensor)[0]

    def whole(self, tensor: Tensor) -> tuple[Made | None, Parts]:
        """The record of what last wrote to the tensor's memory, and the parts of that memory."""
        key = storage_key(tensor)
        entry = None if key is None else self._made.get(key)
        return (None, ()) if entry is None or key is None else (entry[1], self._parts.get(key, ()))

    def parts(self, tensor: Tensor) -> list[tuple[Made, Tensor]]:
        """The records behind a tensor whose bad values have several origins, each with where; else nothing."""
        found = []
        for made, mask in self.whole(tensor)[1]:
            where = _view_like(mask, tensor)
            if where is not None and bool(where.any()):
                found.append((made, where))
        return found

    def note(self, tensor: Tensor, made: Made) -> None:
        """`made` has written to the tensor's memory."""
        key = storage_key(tensor)
        if key is None:
            return
        known = self._made.get(key)
        self._made[key] = (_weak(tensor) if known is None else known[0], made)
        self._parts.pop(key, None)
        if self._steps:
            self._steps[-1].append(made)
        if len(self._made) > self._limit:
            self._sweep()

    def divide(self, tensor: Tensor, parts: Sequence[tuple[Made, Tensor]], around: Parts = ()) -> None:
        """The bad values of a tensor have several origins; `around` are those of the memory it is a part of."""
        key = storage_key(tensor)
        if key is None or key not in self._made:
            return
        if not self.affords(memory_of(tensor)):
            return
        masks: dict[object, tuple[Made, Tensor]] = {}
        for made, mask in around:
            kept = mask.clone()
            _view(kept, tensor).fill_(False)
            masks.setdefault(made.roots, (made, torch.zeros_like(kept)))[1].logical_or_(kept)
        for made, where in parts:
            mask = torch.zeros(len(memory_of(tensor)), dtype=torch.bool, device=tensor.device)
            _view(mask, tensor).copy_(where)
            masks.setdefault(made.roots, (made, torch.zeros_like(mask)))[1].logical_or_(mask)
        if len(masks) <= _MOST_PARTS:
            self._parts[key] = tuple(masks.values())
        if len(self._parts) > _MOST_DIVIDED:
            self._parts = {key: parts for key, parts in self._parts.items() if not self._made[key][0].expired()}  # type: ignore[no-untyped-call]

    def affords(self, tensor: Tensor) -> bool:
        """Whether there is time left to tell the origins in a tensor apart; takes what it costs."""
        self._left -= tensor.numel()
        return self._left > 0

    def new_step(self) -> None:
        """A training step begins: let go of what finite values of earlier steps were computed from."""
        self._steps.append([])
        if len(self._steps) > _KEPT_STEPS + 1:
            for made in self._steps.popleft():
                if made.bad is None:
                    made.operands = ()
                    made.derivative_of = None

    def clear(self) -> None:
        """Forget everything."""
        self._made.clear()
        self._parts.clear()
        self._steps.clear()

    def _sweep(self) -> None:
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        self._parts = {key: parts for key, parts in self._parts.items() if key in self._made}
        self._limit = max(20_000, 2 * len(self._made))


def memory_of(tensor: Tensor) -> Tensor:
    """All the memory that a strided tensor lives in, as one row."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def _view(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _view_like(mask: Tensor, tensor: Tensor) -> Tensor | None:
    """The part of a mask over a memory that a tensor shows; None where it reads the memory as another dtype."""
    if tensor.layout is not torch.strided:
        return None
    return _view(mask, tensor) if len(mask) == len(memory_of(tensor)) else None


def _weak(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(storage_of(tensor))  # type: ignore[no-untyped-call]


def storage_key(tensor: Tensor) -> int | None:
    """The identity of the memory behind a tensor; None for kinds that have none of their own."""
    try:
        return int(storage_of(tensor)._cdata)
    except (NotImplementedError, RuntimeError):  # fake and wrapped tensors
        return None


def storage_of(tensor: Tensor) -> Any:
    """The memory that holds a tensor's values."""
    return (tensor._values() if tensor.layout is torch.sparse_coo else tensor).untyped_storage()


def distinct(records: Sequence[Made | None]) -> tuple[Made, ...]:
    """The records without None and repetitions, in order."""
    return tuple({id(made): made for made in records if made is not None}.values())
