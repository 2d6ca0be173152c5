"""The numbers in an object: every numeric leaf of a pytree, with its path in words.

pandas, polars, scipy and transformers are never imported: their objects are recognised by where their type lives.
"""

from __future__ import annotations

import cmath
import math
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pytest_nanstab.findings import Kind
from pytest_nanstab.watching import torch_private

# Which gaps (None, NaT, NA) count as NaN: none, those among numbers and times, or those among texts too.
Missing = Literal["", "numbers", "all"]
Array = npt.NDArray[Any]
Values = Tensor | Array
ACCEPTED = (
    "tensors, numpy arrays, numbers, data frames, modules, optimizers and dict, list, tuple, set or dataclass of these"
)
_OPAQUE = (str, bytes, bytearray, range, type)
_GROUPS = (Sequence, Set, KeysView, ValuesView, ItemsView)
_MISSING = frozenset({"NAType", "NaTType"})


@dataclass(frozen=True, eq=False)
class Leaf:
    """One tensor, array, column, number or flat list of numbers.

    Attributes:
        path: how Python reaches it, "value['logits'][0]".
        field: the same without the root, dotted, "logits.0"; "" for the root itself.
        values: the numbers, detached; of a sparse leaf only the stored ones.
        shape: of the whole, also where `values` holds less.
        dtype: as the library calls it, "float32"; "object" for mixed columns.
        kind: the kind of finding a bad value in it makes.
        module: dotted name of the parameter or buffer it is.
        flat: whether it is a Python list, so that an index extends `path`.
        locate: index in the whole from the position in `values`, where they differ.
    """

    path: str
    field: str
    values: Values
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "nonfinite-output"
    module: str | None = None
    flat: bool = False
    locate: Callable[[int], list[int]] | None = None


@dataclass(frozen=True)
class _Spot:
    """A node still to visit."""

    node: Any
    path: str
    field: str
    kind: Kind = "nonfinite-output"

    def item(self, key: object, node: Any) -> _Spot:
        return _Spot(node, f"{self.path}[{key!r}]", _joined(self.field, str(key)), self.kind)

    def attribute(self, name: str, node: Any) -> _Spot:
        return _Spot(node, f"{self.path}.{name}", _joined(self.field, name), self.kind)

    def replaced(self, node: Any) -> _Spot:
        return _Spot(node, self.path, self.field, self.kind)


def numeric_leaves(obj: Any, *, name: str = "value", missing: Missing = "", objects: bool = False) -> Iterator[Leaf]:
    """Every numeric leaf of `obj`, each object once, so cycles end; strings, None and unknown objects are passed over.

    Gaps in nullable number columns always count as NaN, others as `missing` says. Iterators are consumed. With
    `objects` those of the user's own classes are opened too: batches come in classes of their own.
    """
    seen: dict[int, Any] = {}
    stack = [_Spot(obj, name, "")]
    while stack:
        spot = stack.pop()
        if id(spot.node) in seen and not isinstance(spot.node, Number):
            continue
        seen[id(spot.node)] = spot.node  # kept alive, or its id could name another object later
        found = list(_opened(spot, missing))
        if objects and not found:
            found = _attributes(spot)
        yield from (item for item in found if isinstance(item, Leaf))
        stack.extend(item for item in reversed(found) if isinstance(item, _Spot))


def _attributes(spot: _Spot) -> list[Leaf | _Spot]:
    """The attributes of an object of a class that the user has written."""
    if not is_users_class(type(spot.node)) or isinstance(spot.node, (type, *_OPAQUE, *_GROUPS, Mapping)):
        return []
    return [spot.attribute(name, value) for name, value in attributes_of(spot.node).items()]


def is_users_class(kind: type) -> bool:
    """Whether a class stands in a file of the user's."""
    from pytest_nanstab.attribution.source import is_user_file

    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and is_user_file(file)


def attributes_of(node: object) -> dict[str, Any]:
    """What an object keeps in its dictionary and, where its class is the user's, in slots."""
    own = getattr(node, "__dict__", None)
    return {**(own if isinstance(own, dict) else {}), **slots_of(node)}


def slots_of(node: object) -> dict[str, Any]:
    """What an object of a user's class keeps in slots."""
    names = [name for kind in type(node).__mro__ if is_users_class(kind) for name in _slots(kind)]
    return {name: getattr(node, name) for name in names if hasattr(node, name)}


def _slots(kind: type) -> list[str]:
    names = vars(kind).get("__slots__", ())
    return [name for name in ([names] if isinstance(names, str) else names) if not name.startswith("__")]


def _joined(field: str, part: str) -> str:
    return f"{field}.{part}" if field else part


def _opened(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    """What a node consists of: leaves, further nodes, or nothing."""
    node = spot.node
    if node is None or isinstance(node, _OPAQUE):
        return ()
    if isinstance(node, (Tensor, nn.Module, torch.optim.Optimizer)):
        return _of_torch(spot)
    if isinstance(node, np.ndarray):
        return _array(spot, missing)
    if isinstance(node, (Number, np.generic)):
        return _array(spot.replaced(_number(node)), missing)
    opener = _FOREIGN[library(node)](node) if library(node) in _FOREIGN else None
    return (opener or _container)(spot, missing)


def _of_torch(spot: _Spot) -> Iterable[Leaf | _Spot]:
    node = spot.node
    if isinstance(node, nn.Module):
        return _module(spot)
    if isinstance(node, torch.optim.Optimizer):
        return (_Spot(node.state_dict(), spot.path, spot.field, "nonfinite-optimizer-state"),)
    return _tensor(spot)


def library(obj: object) -> str:
    """The top-level package an object's type comes from."""
    return type(obj).__module__.partition(".")[0]


def _number(node: Any) -> Array:
    try:
        return np.asarray(node if isinstance(node, (np.generic, float, complex)) else float(node))
    except (OverflowError, TypeError, ValueError):  # an int or fraction beyond float64 is finite all the same
        return np.asarray(0)


# --- tensors and modules


def _tensor(spot: _Spot) -> Iterable[Leaf | _Spot]:
    tensor: Tensor = spot.node
    if tensor.is_nested:
        return [spot.item(index, part) for index, part in enumerate(tensor.detach().unbind())]
    return (tensor_leaf(tensor, spot.path, spot.field, spot.kind),)


def tensor_leaf(tensor: Tensor, path: str, field: str, kind: Kind, module: str | None = None) -> Leaf:
    """A tensor as a leaf; sparse ones give their stored values, distributed ones their local shard."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = () if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)
    if not readable(tensor):
        return Leaf(path, field, tensor, shape, dtype, kind, module)
    with torch_private.unseen():
        values, locate = _dense(tensor.detach())
    return Leaf(path, field, values, shape, dtype, kind, module, locate=locate)


def readable(tensor: Tensor) -> bool:
    """Whether a tensor has numbers to read: meta, fake, lazy and functorch's wrapped tensors have none."""
    if nn.parameter.is_lazy(tensor):
        return False
    if tensor.device.type == "meta" or torch_private.is_functorch_wrapped(tensor):
        return False
    return not type(tensor).__module__.startswith("torch._subclasses")


def _dense(tensor: Tensor) -> tuple[Tensor, Callable[[int], list[int]] | None]:
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout is torch.strided:
        return tensor, None
    if tensor.layout is torch.sparse_coo:
        whole = tensor.coalesce()
        return whole.values(), lambda flat: _coo_index(whole, flat)
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc):
        whole = tensor.to_sparse(sparse_dim=2).coalesce()
        return whole.values(), lambda flat: _coo_index(whole, flat)
    return tensor.to_dense(), None


def _coo_index(tensor: Tensor, flat: int) -> list[int]:
    row, *rest = np.unravel_index(flat, tuple(tensor.values().shape))
    stored: list[int] = tensor.indices()[:, int(row)].tolist()
    return stored + [int(i) for i in rest]


def _module(spot: _Spot) -> Iterator[Leaf]:
    module: nn.Module = spot.node
    for kind, named in _module_tensors(module):
        for name, tensor in named:
            yield tensor_leaf(tensor, f"{spot.path}.{name}", _joined(spot.field, name), kind, module=name)


def _module_tensors(module: nn.Module) -> Iterator[tuple[Kind, Iterable[tuple[str, Tensor]]]]:
    yield "nonfinite-parameter", module.named_parameters()
    yield "nonfinite-buffer", module.named_buffers()


# --- arrays


def _array(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    array: Array = spot.node
    if array.dtype.names:
        return [spot.item(name, array[name]) for name in array.dtype.names]
    if array.dtype.kind == "O":
        return _objects(spot, array, missing)
    if array.dtype.kind in "mM":
        gaps = np.where(np.isnat(array), np.nan, 0.0)
        return (_array_leaf(spot, gaps, array.shape, str(array.dtype)),) if missing else ()
    if array.dtype.kind == "V":  # bfloat16 and float8 of ml_dtypes
        return _converted(spot, array)
    if array.dtype.kind not in "fciub":
        return ()
    return (_array_leaf(spot, array, array.shape, str(array.dtype)),)


def _array_leaf(spot: _Spot, values: Array, shape: tuple[int, ...], dtype: str, *, flat: bool = False) -> Leaf:
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled(0)  # a masked entry is one the user declared absent
    return Leaf(spot.path, spot.field, values, tuple(shape), dtype, spot.kind, flat=flat)


def _converted(spot: _Spot, array: Array) -> Iterable[Leaf]:
    try:
        return (_array_leaf(spot, array.astype(np.float32), array.shape, str(array.dtype)),)
    except (TypeError, ValueError):
        return ()


def _objects(spot: _Spot, array: Array, missing: Missing) -> Iterable[Leaf | _Spot]:
    """An object array: one leaf when it holds scalars with a number or a gap among them, else its items as nodes."""
    items = array.ravel().tolist()
    if any(is_container(item) for item in items):
        return [spot.item(index, item) for index, item in enumerate(items)]
    numbers = [_as_float(item, missing) for item in items]
    only_gaps = missing == "all" and any(map(math.isnan, numbers))
    if not only_gaps and not any(isinstance(item, Number) for item in items):
        return ()
    values = np.array(numbers, dtype=np.float64).reshape(array.shape)
    return (_array_leaf(spot, values, array.shape, "object"),)


def is_container(item: object) -> bool:
    """Whether an item of an object array is more than a scalar."""
    return isinstance(item, (Tensor, np.ndarray, Mapping, list, tuple, set))


def _as_float(item: object, missing: Missing) -> float:
    if item is None or type(item).__name__ in _MISSING:
        return math.nan if missing else 0.0
    if isinstance(item, complex):
        return math.nan if cmath.isnan(item) else abs(item)
    return float(_number(item)) if isinstance(item, Number) else 0.0


# --- containers


def _container(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    node = spot.node
    if isinstance(node, Mapping) or (hasattr(node, "keys") and hasattr(type(node), "__getitem__")):
        return [spot.item(key, node[key]) for key in _keys(node)]
    if (names := _field_names(node)) is not None:
        return [spot.attribute(name, getattr(node, name, None)) for name in names]
    # Below the top an iterator is somebody's state (a file, a loader half way): reading it would change the program.
    if isinstance(node, _GROUPS) or (isinstance(node, Iterator) and not spot.field):
        return _group(spot, missing)
    if hasattr(node, "__array__"):
        return _array(spot.replaced(np.asarray(node)), missing)
    return ()


def _keys(node: Any) -> list[Any]:
    return list(node.keys() if callable(node.keys) else node.keys)


def _field_names(node: object) -> list[str] | None:
    """Fields of named tuples, dataclasses and attrs classes."""
    if isinstance(node, tuple):
        return list(getattr(node, "_fields", ())) or None
    if hasattr(node, "__dataclass_fields__"):
        return list(node.__dataclass_fields__)
    attributes = getattr(type(node), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _group(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    items = list(spot.node)
    types = set(map(type, items))
    if types and types <= {int, float, bool, type(None)} and types & {int, float, bool}:
        return (_number_list(spot, items, missing),)
    if isinstance(spot.node, (Set, Iterator)) and not isinstance(spot.node, Sequence):
        return [
            _Spot(item, f"{spot.path}{{{index}}}", _joined(spot.field, str(index)), spot.kind)
            for index, item in enumerate(items)
        ]
    return [spot.item(index, item) for index, item in enumerate(items)]


def _number_list(spot: _Spot, items: list[Any], missing: Missing) -> Leaf:
    """A flat list of Python numbers is one leaf: as fast as an array, and its message as short."""
    values = np.array([_as_float(item, missing) for item in items], dtype=np.float64)
    dtype = "float" if float in set(map(type, items)) else "int"
    return _array_leaf(spot, values, values.shape, dtype, flat=isinstance(spot.node, Sequence))


# --- data frames and scipy's sparse matrices

_Opener = Callable[[_Spot, Missing], Iterable[Leaf | _Spot]]


def _pandas_opener(node: Any) -> _Opener | None:
    kind = type(node).__mro__
    names = {cls.__name__ for cls in kind}
    if "DataFrame" in names:
        return _pandas_frame
    return _pandas_column if names & {"Series", "Index", "ExtensionArray"} else None


def _pandas_frame(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    columns = enumerate(spot.node.columns)
    return [item for at, label in columns for item in _pandas_column(spot.item(label, spot.node.iloc[:, at]), missing)]


def _pandas_column(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    column = spot.node
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iufcb" and not hasattr(column.dtype, "categories"):
        return (_array_leaf(spot, _pandas_numbers(column), (len(column),), str(column.dtype)),)
    if missing == "all" or (missing and kind in "mM"):
        gaps = np.where(np.asarray(column.isna(), dtype=bool), np.nan, 0.0)
        return (_array_leaf(spot, gaps, (len(column),), str(column.dtype)),) if np.isnan(gaps).any() else ()
    if str(column.dtype) == "object":
        return _objects(spot, column.to_numpy(), missing)
    return ()


def _pandas_numbers(column: Any) -> Array:
    if isinstance(column.dtype, np.dtype):
        return np.asarray(column)
    # Nullable columns keep their gaps beside the numbers: a gap is NaN as soon as it becomes a tensor.
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


def _polars_opener(node: Any) -> _Opener | None:
    return {"DataFrame": _polars_frame, "Series": _polars_column}.get(type(node).__name__)


def _polars_frame(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    return [
        item for column in spot.node.get_columns() for item in _polars_column(spot.item(column.name, column), missing)
    ]


def _polars_column(spot: _Spot, missing: Missing) -> Iterable[Leaf | _Spot]:
    column = spot.node
    numeric = column.dtype.is_numeric()
    if not numeric and missing != "all" and not (missing and column.dtype.is_temporal()):
        return ()
    gaps = np.asarray(column.is_null().to_numpy(), dtype=bool)
    numbers = np.asarray(column.to_numpy(), dtype=np.float64) if numeric else np.zeros(gaps.shape)
    return (_array_leaf(spot, np.where(gaps, np.nan, numbers), gaps.shape, str(column.dtype)),)


def _scipy_opener(node: Any) -> _Opener | None:
    return _scipy_sparse if hasattr(node, "tocoo") else None


def _scipy_sparse(spot: _Spot, _missing: Missing) -> Iterable[Leaf | _Spot]:
    whole = spot.node.tocoo()
    indices = whole.coords if hasattr(whole, "coords") else (whole.row, whole.col)

    def locate(flat: int) -> list[int]:
        return [int(index[flat]) for index in indices]

    return (Leaf(spot.path, spot.field, whole.data, tuple(whole.shape), str(whole.dtype), spot.kind, locate=locate),)


_FOREIGN: dict[str, Callable[[Any], _Opener | None]] = {
    "pandas": _pandas_opener,
    "polars": _polars_opener,
    "scipy": _scipy_opener,
}
