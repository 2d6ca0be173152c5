"""Names of parameters, buffers and modules, as the user's own module tree has them."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_nanstab.attribution.source import user_frame
from pytest_nanstab.watching import measure, members, torch_private

# Looking for what no module has means listing all members: so many are listed in any case, and so many per question, or
# a model of a hundred thousand tensors would be listed a hundred thousand times.
_LISTED_FREELY, _LISTED_EACH = 2_000_000, 8


@dataclass
class _Found:
    """What a buffer held when its outermost module was first called."""

    nan: bool
    inf: bool


class Names:
    """The outermost modules seen, by weak reference, in order of their first call.

    Of a module that dies before the end its buffers are kept, and the names of parameters that an optimizer steps.
    """

    def __init__(self) -> None:
        self._roots: list[weakref.ref[nn.Module]] = []
        self._wrappers: list[weakref.ref[nn.Module]] = []
        self._buffers: list[_Buffers] = []
        self._labels: dict[int, str] = {}
        self._index: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._asked = self._listed = 0

    @torch_private.past_modes
    def add(self, module: nn.Module) -> bool:
        """Remember an outermost module before its first call; False when it is known already.

        A module whose method makes that call and that contains the module (a trainer's `training_step`) comes first:
        paths begin there.
        """
        if self._knows(module):
            return False
        container = _calling(module)
        if container is not None and not self._knows(container):
            self._remember(container)
        self._remember(module)
        return True

    def _knows(self, module: nn.Module) -> bool:
        return any(reference() is module for reference in (*self._roots, *self._wrappers))

    def _remember(self, module: nn.Module) -> None:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            self._wrappers.append(weakref.ref(module))
            module = module.module  # names are those of the user's model, without "module."
        self._roots.append(weakref.ref(module))
        holders = [(path, part._buffers) for path, part in members.named_modules(module) if part._buffers]
        if holders:
            self._buffers.append(_Buffers(holders))

    def accept_buffers(self) -> None:
        """Take the buffers as they are now for how they are meant."""
        for buffers in self._buffers:
            buffers.accept()

    def learn(self, parameters: Iterable[Tensor]) -> None:
        """Note the names of parameters that are about to be held: their module may die before they do."""
        wanted = {id(parameter) for parameter in parameters}
        for root in self.roots():
            for name, parameter in members.named_parameters(root, every_name=True):
                if id(parameter) in wanted:
                    self._labels.setdefault(id(parameter), name)

    def unlearn(self, parameters: Iterable[Tensor]) -> None:
        """Parameters are let go: another tensor may get their identity."""
        for parameter in parameters:
            self._labels.pop(id(parameter), None)

    def roots(self) -> Iterator[nn.Module]:
        """The outermost modules that are still alive."""
        for reference in self._roots:
            module = reference()
            if module is not None:
                yield module

    def parameter(self, parameter: Tensor) -> str | None:
        """The dotted name of a parameter in the first outermost module that owns it."""
        return self._member(parameter) or self._labels.get(id(parameter))

    def path(self, owner: Any) -> str:
        """The dotted name of a module or parameter; of an outermost or unknown one the name of its class."""
        return self._member(owner) or type(owner).__name__

    def _member(self, owner: Any) -> str | None:
        """The dotted name of a module or parameter in the first outermost module that has it, "" of such a module."""
        self._asked += 1
        name = self._indexed(owner)
        if name is None and self._listed <= _LISTED_FREELY + _LISTED_EACH * self._asked:
            self._list_members()
            name = self._indexed(owner)
        return name

    def _indexed(self, owner: Any) -> str | None:
        reference, name = self._index.get(id(owner), (None, None))
        return name if reference is not None and reference() is owner else None

    def _list_members(self) -> None:
        self._index.clear()
        for root in self.roots():
            for name, member in chain(members.named_modules(root), members.named_parameters(root)):
                self._index.setdefault(id(member), (weakref.ref(member), name))
        self._listed += max(len(self._index), 1)

    def label(self, optimizer: Any, parameter: Tensor) -> str:
        """The parameter's dotted name, or its place in the optimizer's groups."""
        name = self.parameter(parameter)
        if name is not None:
            return name
        for group, content in enumerate(optimizer.param_groups):
            for index, candidate in enumerate(content["params"]):
                if candidate is parameter:
                    return f"param_groups[{group}]['params'][{index}]"
        return "a parameter"

    def owned(self, tensor: Tensor) -> tuple[str, str] | None:
        """("parameter" or "buffer", dotted name) of a tensor that a known module keeps."""
        for root in self.roots():
            for kind, found in (
                ("parameter", members.named_parameters(root)),
                ("buffer", members.named_buffers(root)),
            ):
                for name, candidate in found:
                    if candidate is tensor or _same_memory(candidate, tensor):
                        return kind, name
        return None

    def bad_buffer(self) -> tuple[str, Tensor] | None:
        """The first buffer that was broken while watched: NaN, or an infinity in a running statistic.

        Only NaN and infinities that were not there at first count: sentinels are meant. Whether a buffer was written to
        cannot be asked: batch norm leaves the version of its statistics alone.
        """
        return next((bad for buffers in self._buffers for bad in buffers.broken()), None)

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._roots.clear()
        self._wrappers.clear()
        self._buffers.clear()
        self._labels.clear()
        self._index.clear()


class _Buffers:
    """The buffers of one outermost module: the dictionaries its parts keep them in, which outlive the module here."""

    def __init__(self, holders: list[tuple[str, dict[str, Tensor | None]]]) -> None:
        self._holders = holders
        self._found: dict[str, _Found] = {}
        self.accept()

    def accept(self) -> None:
        """Take the buffers as they are now for how they are meant."""
        self._found = {name: _as_found(buffer) for name, buffer in self._all()}

    def broken(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that were broken since."""
        for name, buffer in self._all():
            if _broken(name, buffer, self._found.get(name, _Found(nan=False, inf=False))):
                yield name, buffer

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        for path, buffers in self._holders:
            for name, buffer in buffers.items():
                if buffer is not None and not is_lazy(buffer) and buffer.is_floating_point():
                    yield f"{path}.{name}" if path else name, buffer


def _calling(module: nn.Module) -> nn.Module | None:
    """The module that contains another one and whose method, the user's own, is calling it."""
    frame = user_frame()
    if frame is None or not _is_modules_method(frame.f_code):
        return None
    caller = frame.f_locals.get("self")
    if not isinstance(caller, nn.Module) or caller is module:
        return None
    return caller if any(part is module for part in caller.modules()) else None


@lru_cache(maxsize=1024)
def _is_modules_method(code: CodeType) -> bool:
    """Whether code is a method of some class of modules.

    A frame's variables are read only then: up to Python 3.12 this keeps all of them alive until the function returns.
    Emptying that dictionary is no way out while nothing has failed: it is what the user's own `locals()` has returned.
    """
    if code.co_varnames[:1] != ("self",):
        return False
    methods = (vars(base).get(code.co_name) for kind in _module_classes() for base in kind.__mro__)
    return any(
        getattr(inspect.unwrap(method), "__code__", None) is code
        for method in methods
        if isinstance(method, FunctionType)
    )


def _module_classes() -> Iterator[type[nn.Module]]:
    waiting = [nn.Module]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or is_lazy(one) or one.layout is not other.layout:
        return False
    try:
        return one.numel() > 0 and one.data_ptr() == other.data_ptr()
    except RuntimeError:  # kinds without memory of their own
        return False


def _as_found(buffer: Tensor) -> _Found:
    seen = measure.extent(buffer)
    nan = seen is not None and seen.has_nan
    return _Found(nan=nan, inf=seen is not None and not nan and not seen.finite)


def _broken(name: str, buffer: Tensor, before: _Found) -> bool:
    seen = measure.extent(buffer)
    if seen is None or seen.finite:
        return False
    if seen.has_nan:
        return not before.nan
    return name.rpartition(".")[2].startswith("running_") and not before.inf


def owner(name: str) -> str:
    """The module path of a dotted parameter or buffer name; "" is the outermost module itself."""
    return name.rpartition(".")[0]
