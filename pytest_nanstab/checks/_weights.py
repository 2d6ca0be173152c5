"""The weights of a model as initialisers see them: matrices with a fan-in and a fan-out, gate by gate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_nanstab.checks._leaves import readable
from pytest_nanstab.ranks.sharding import gathered, is_sharded

UNIFORM, NORMAL = 1.8, 3.0  # kurtosis of the two distributions
_GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("",)}
_OWN_WEIGHT = re.compile(r"weight|kernel|^[wW]([_0-9A-Zqkvo]|$)")


@dataclass(frozen=True)
class Expected:
    """The spread a distribution is meant to have."""

    std: float
    kurtosis: float


@dataclass(frozen=True, eq=False)
class View:
    """One matrix in a weight parameter.

    Attributes:
        layer: dotted path of the module.
        parameter: dotted path of the parameter.
        part: the projection or gate in it, "" for the whole.
        kind: the layer type it is compared with: "Linear", "Conv2d", "MultiheadAttention.out_proj".
        values: the numbers, output units along the first dimension.
        fans: (fan_in, fan_out) pairs that count as right: what torch.nn.init computes for the whole parameter, and the
            true ones of the part or group.
        defaults: what torch's own `reset_parameters` gives.
        whole: the parameter's matrix, for initialisers that cannot be judged part by part.
        groups: groups of output units that see different inputs.
        trainable: whether gradients reach it.
        tied: whether it is the weight of several layers of different types: an embedding that is the output layer too.
    """

    layer: str
    parameter: str
    part: str
    kind: str
    values: Tensor
    fans: tuple[tuple[int, int], ...]
    defaults: tuple[Expected, ...]
    whole: Tensor
    groups: int = 1
    trainable: bool = True
    tied: bool = False

    @property
    def name(self) -> str:
        """The parameter and the part."""
        return f"{self.parameter}[{self.part}]" if self.part else self.parameter


@dataclass(frozen=True, eq=False)
class Bias:
    """A bias and the bound of torch's default uniform distribution for it, where it has one."""

    parameter: str
    values: Tensor
    bound: float | None


def views_of(model: nn.Module) -> list[View]:
    """Every weight matrix of a model once, tied ones with the defaults of all their owners; call it in eval mode."""
    found: dict[tuple[int, str], View] = {}
    for path, module in model.named_modules():
        for view in _of_module(path, module):
            key = (id(_original(module, view.parameter, view.whole)), view.part)
            known = found.get(key)
            found[key] = view if known is None else _tied(known, view)
    return list(found.values())


def _tied(known: View, other: View) -> View:
    fans = dict.fromkeys((*known.fans, *other.fans))
    tied = known.tied or known.kind != other.kind
    return replace(known, fans=tuple(fans), defaults=(*known.defaults, *other.defaults), tied=tied)


def _original(module: nn.Module, parameter: str, effective: Tensor) -> object:
    """What identifies a weight: the parameter, or the module's own parametrization of it."""
    name = parameter.rpartition(".")[2]
    own = dict(module.named_parameters(recurse=False)).get(name)
    return effective if own is None else own


def _of_module(path: str, module: nn.Module) -> Iterator[View]:
    for cls, reader in _READERS:
        if isinstance(module, cls):
            yield from reader(path, module)
            return
    if type(module).__name__ == "Conv1D" and _weight(module) is not None:
        yield from _transformers_conv(path, module)
    else:
        yield from _own(path, module)


def _weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    """The effective floating weight: the result of a parametrization, not its parts."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor) or nn.parameter.is_lazy(value) or not value.is_floating_point():
        return None
    if not readable(value) or not value.numel() or value.layout is not torch.strided:
        return None
    return gathered(value) if is_sharded(value) else value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _trainable(module: nn.Module, name: str) -> bool:
    own = dict(module.named_parameters(recurse=False)).get(name)
    return own is None or own.requires_grad


def default_uniform(fan_in: int) -> Expected:
    """kaiming_uniform(a=sqrt(5)): bound 1/sqrt(fan_in), so std 1/sqrt(3 fan_in)."""
    return Expected(1 / math.sqrt(3 * max(fan_in, 1)), UNIFORM)


@dataclass(frozen=True)
class _Slot:
    """A named weight of a module."""

    path: str
    module: nn.Module
    name: str = "weight"

    def whole(self, kind: str, fans: list[tuple[int, int]], default: Expected | None, **more: Any) -> Iterator[View]:
        """The weight as one matrix."""
        weight = _weight(self.module, self.name)
        if weight is None:
            return
        defaults = () if default is None else (default,)
        values = more.pop("values", weight.detach())
        yield self._view(weight.detach(), values, kind, fans, defaults, **more)

    def parts(self, parts: tuple[str, ...], kind: str, default: Expected) -> Iterator[View]:
        """A stacked weight part by part: the part's fans and those torch.nn.init computes for the stack are right."""
        weight = _weight(self.module, self.name)
        if weight is None:
            return
        stack, width = weight.detach(), weight.shape[1]
        size = len(stack) // len(parts)
        for part, values in zip(parts, torch.split(stack, size), strict=True):
            yield self._view(stack, values, kind, [(width, size), (width, len(stack))], (default,), part=part)

    def _view(self, whole: Tensor, values: Tensor, kind: str, fans: Any, defaults: Any, **more: Any) -> View:
        return View(
            layer=self.path,
            parameter=_join(self.path, self.name),
            part=more.pop("part", ""),
            kind=kind,
            values=values,
            fans=tuple(dict.fromkeys(fans)),
            defaults=defaults,
            whole=whole,
            trainable=_trainable(self.module, self.name),
            **more,
        )


def _linear(path: str, module: Any) -> Iterator[View]:
    weight = _weight(module)
    if weight is None or weight.dim() != 2:
        return
    fan_out, fan_in = weight.shape
    # torch's own subclass inside MultiheadAttention; the models around it initialise it by another rule.
    kind = "MultiheadAttention.out_proj" if type(module).__name__.startswith("NonDynamically") else "Linear"
    yield from _Slot(path, module).whole(kind, [(fan_in, fan_out)], default_uniform(fan_in))


def _conv(path: str, module: Any) -> Iterator[View]:
    weight = _weight(module)
    if weight is None:
        return
    field = math.prod(weight.shape[2:])
    torch_fans = (weight.shape[1] * field, weight.shape[0] * field)
    true_in, true_out = module.in_channels // module.groups * field, module.out_channels // module.groups * field
    values = weight.detach().transpose(0, 1) if module.transposed else weight.detach()
    groups = 1 if module.transposed else module.groups
    fans, default = [torch_fans, (true_in, true_out)], default_uniform(torch_fans[0])
    kind = type(module).__name__ if type(module).__module__.startswith("torch.") else _torch_base(module)
    yield from _Slot(path, module).whole(kind, fans, default, values=values, groups=groups)


def _torch_base(module: nn.Module) -> str:
    return next(cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn"))


def _embedding(path: str, module: Any) -> Iterator[View]:
    weight = _weight(module)
    if weight is None:
        return
    values = weight.detach()
    padding = module.padding_idx
    if padding is not None and len(values) > 1:
        values = torch.cat([values[:padding], values[padding + 1 :]])
    fans = [(weight.shape[1], weight.shape[0])]
    yield from _Slot(path, module).whole("Embedding", fans, Expected(1.0, NORMAL), values=values)


def _bilinear(path: str, module: Any) -> Iterator[View]:
    weight = _weight(module)
    if weight is None:
        return
    out, first, second = weight.shape
    yield from _Slot(path, module).whole("Bilinear", [(first * second, out * second)], default_uniform(first))


def _attention(path: str, module: Any) -> Iterator[View]:
    whole = _weight(module, "in_proj_weight")
    if whole is not None:
        size, width = whole.shape
        slot = _Slot(path, module, "in_proj_weight")
        yield from slot.parts(("q", "k", "v"), "MultiheadAttention", _xavier(width, size))
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = _weight(module, name)
        if weight is not None:
            out, width = weight.shape
            yield from _Slot(path, module, name).whole("MultiheadAttention", [(width, out)], _xavier(width, out))


def _xavier(fan_in: int, fan_out: int) -> Expected:
    return Expected(math.sqrt(2 / (fan_in + fan_out)), UNIFORM)


def _recurrent(path: str, module: Any) -> Iterator[View]:
    mode = type(module).__name__.removesuffix("Cell")
    family = module.mode.partition("_")[0] if hasattr(module, "mode") else mode
    default = default_uniform(module.hidden_size)
    for name in dict(module.named_parameters(recurse=False)) | _parametrized(module):
        if "weight" not in name:
            continue
        parts = ("",) if "weight_hr" in name else _GATES.get(family, ("",))
        yield from _Slot(path, module, name).parts(parts, type(module).__name__, default)


def _parametrized(module: nn.Module) -> dict[str, None]:
    return dict.fromkeys(getattr(module, "parametrizations", ()))


def _transformers_conv(path: str, module: Any) -> Iterator[View]:
    weight = module.weight.detach()
    fans = [(weight.shape[0], weight.shape[1]), (weight.shape[1], weight.shape[0])]
    yield from _Slot(path, module).whole("Conv1D", fans, Expected(0.02, NORMAL), values=weight.T)


def view_used(model: nn.Module, parameter: str, fan_out: int, *, channels: bool = False) -> View | None:
    """A parameter of the user's own that a pass has multiplied with, whatever it is called: `fan_out` is the last size
    of the result, `channels` tells that it was a convolution. None for what is no matrix."""
    path, _, name = parameter.rpartition(".")
    module = dict(model.named_modules()).get(path)
    weight = None if module is None else _weight(module, name)
    if module is None or weight is None or weight.dim() < 2 or (not channels and min(weight.shape[-2:]) < 2):
        return None
    slot = _Slot(path, module, name)
    if channels:
        size, field = weight.shape[:2], math.prod(weight.shape[2:])
        fans = [(size[1] * field, size[0] * field)]
        return next(slot.whole(type(module).__name__, fans, None, values=weight.detach().flatten(1)), None)
    rows, columns = weight.shape[-2:]
    # x @ w has its outputs last, F.linear(x, w) first.
    values = weight.detach().transpose(-1, -2) if columns == fan_out else weight.detach()
    fans = [(columns, rows), (rows, columns)]
    return next(slot.whole(type(module).__name__, fans, None, values=values.reshape(-1, values.shape[-1])), None)


def _own(path: str, module: nn.Module) -> Iterator[View]:
    """Matrices a module of the user's holds itself; which side is the input is not known, so either counts."""
    for name, parameter in module.named_parameters(recurse=False):
        weight = _weight(module, name)
        if weight is None or parameter.dim() != 2 or min(parameter.shape) < 2 or not _OWN_WEIGHT.search(name):
            continue
        rows, columns = parameter.shape
        yield from _Slot(path, module, name).whole(type(module).__name__, [(columns, rows), (rows, columns)], None)


_READERS: list[tuple[Any, Callable[[str, Any], Iterator[View]]]] = [
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _conv),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.Bilinear, _bilinear),
]


def biases_of(model: nn.Module) -> Iterator[Bias]:
    """Every bias of the layers that `views_of` reads, with torch's default bound."""
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)):
            continue
        for name, bias in module.named_parameters(recurse=False):
            if "bias" in name and not nn.parameter.is_lazy(bias) and readable(bias) and bias.numel():
                yield Bias(_join(path, name), gathered(bias), _bias_bound(module))


def _bias_bound(module: Any) -> float | None:
    if hasattr(module, "hidden_size"):
        return 1 / math.sqrt(module.hidden_size)
    weight = _weight(module)
    if weight is None or weight.dim() < 2:
        return None
    fan_in = weight.shape[1] * (1 if isinstance(module, nn.Bilinear) else math.prod(weight.shape[2:]))
    return 1 / math.sqrt(fan_in)
