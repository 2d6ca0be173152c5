"""Initialisation schemes by the names of torch.nn.init, and the spread each gives a weight.

Sources: Glorot & Bengio 2010 (xavier: std = gain sqrt(2 / (fan_in + fan_out))), He et al. 2015 (kaiming: std = gain /
sqrt(fan)), LeCun et al. 1998 (lecun: std = 1 / sqrt(fan_in)), Saxe et al. 2014 (orthogonal), and torch.nn.init itself.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch.nn import init

from pytest_nanstab.checks._scheme_names import NAMES
from pytest_nanstab.checks._spread import Measured, fits, orthogonal_gain
from pytest_nanstab.checks._weights import NORMAL, UNIFORM, Expected, View

# std of a normal distribution cut at two standard deviations, relative to the uncut one.
_CUT_AT_TWO = 0.879626
_ARGUMENTS = {
    "xavier": ("gain",),
    "kaiming": ("mode", "nonlinearity", "a"),
    "orthogonal": ("gain",),
    "normal": ("std",),
    "trunc": ("std",),
    "uniform": ("a", "b"),
}


@dataclass(frozen=True)
class Scheme:
    """A scheme with its arguments.

    Attributes:
        text: as the user wrote it.
        name: one of `NAMES`.
        gain: factor on the std, where the scheme has one.
        mode: "fan_in" or "fan_out" of kaiming.
        std: of normal and trunc_normal; half the width over sqrt(3) of uniform.
        mean: of uniform.
        call: the line that applies it, with `{}` for the weight.
    """

    text: str
    name: str
    gain: float = 1.0
    mode: str = "fan_in"
    std: float = 0.0
    mean: float = 0.0
    call: str = ""

    @property
    def needs_fans(self) -> bool:
        """Whether the spread depends on the layer's size."""
        return self.name.startswith(("xavier", "kaiming", "lecun"))

    def expected(self, view: View) -> tuple[Expected, ...]:
        """The spreads that count as this scheme on a weight; none where it does not apply."""
        if self.name == "torch_default":
            return view.defaults
        if self.name == "orthogonal":
            return (Expected(self.gain / math.sqrt(max(view.values.flatten(1).shape)), NORMAL),)
        kurtosis = UNIFORM if self.name.endswith("uniform") else NORMAL
        if self.name == "trunc_normal":
            return Expected(self.std, kurtosis), Expected(_CUT_AT_TWO * self.std, kurtosis)
        if not self.needs_fans:
            return (Expected(self.std, kurtosis),)
        return tuple(Expected(self.gain * self._spread(*fans), kurtosis) for fans in view.fans)

    def _spread(self, fan_in: int, fan_out: int) -> float:
        if self.name.startswith("xavier"):
            return math.sqrt(2 / (fan_in + fan_out))
        return 1 / math.sqrt(fan_out if self.mode == "fan_out" else fan_in)

    def explains(self, view: View, seen: Measured, *, tests: int) -> bool:
        """Whether the weight looks like this scheme; also orthogonality, where the scheme promises it."""
        if self.name == "orthogonal":
            return _is_orthogonal(view, self.gain)
        if self.name == "zeros":
            return seen.is_zero
        shifted = Measured(seen.count, seen.mean - self.mean, seen.std, seen.largest)
        return any(fits(shifted, expected, tests=tests) for expected in self.expected(view))

    def remedy(self, view: View) -> str:
        """The line to change."""
        if self.name == "torch_default":
            return f"{attribute(view.layer)}.reset_parameters()"
        return self.call.format(attribute(view.parameter))


def _is_orthogonal(view: View, gain: float) -> bool:
    for matrix in (view.values, view.whole):
        measured = orthogonal_gain(matrix)
        if measured is not None and abs(measured - gain) <= 0.02 * gain:
            return True
    return False


def attribute(path: str) -> str:
    """A dotted path as Python source: "layers.0.weight" becomes "model.layers[0].weight"."""
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split(".") if part)


def parse(text: object, *, gain: float | None = None, nonlinearity: str | None = None) -> Scheme:
    """A scheme from its name, with arguments if wanted: "kaiming_normal(fan_out)", "normal(0.02)", "orthogonal(1.41)".

    Raises:
        ValueError: an unknown name or argument; the message lists the allowed ones.
    """
    name, positional, named = _call(text)
    allowed = _ARGUMENTS.get(name.partition("_")[0], ())
    arguments = dict(zip(allowed, positional, strict=False))
    if len(positional) > len(allowed) or set(named) - set(allowed):
        raise ValueError(f"scheme {text!r}: {name} takes {', '.join(allowed) or 'no arguments'}")
    return _BUILDERS[name.partition("_")[0]](_Request(str(text), name, {**arguments, **named}, gain, nonlinearity))


def _call(text: object) -> tuple[str, list[Any], dict[str, Any]]:
    problem = f"scheme must be 'auto', one of {', '.join(NAMES)} or a mapping of patterns to these, got {text!r}"
    if not isinstance(text, str):
        raise TypeError(problem)
    try:
        node = ast.parse(text, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        values = [_literal(item) for item in call.args]
        named = {str(item.arg): _literal(item.value) for item in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(problem) from None
    name = name.removesuffix("_")
    if name not in NAMES:
        raise ValueError(problem)
    return name, values, named


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


@dataclass(frozen=True)
class _Request:
    """What was asked for: the text, its parts, and the defaults the call gave."""

    text: str
    name: str
    given: dict[str, Any]
    gain: float | None
    nonlinearity: str | None

    def gained(self) -> float:
        if "gain" in self.given:
            return float(self.given["gain"])
        if self.gain is not None:
            return self.gain
        return 1.0 if self.nonlinearity is None else gain_of(self.nonlinearity)


def gain_of(nonlinearity: str, slope: float = 0.0) -> float:
    """`torch.nn.init.calculate_gain`; `ValueError` lists the nonlinearities it knows."""
    try:
        return float(init.calculate_gain(nonlinearity, slope))  # type: ignore[arg-type]  # checked by torch itself
    except ValueError:
        known = "linear, conv1d, conv2d, conv3d, sigmoid, tanh, relu, leaky_relu, selu"
        raise ValueError(f"nonlinearity must be one of {known}, got {nonlinearity!r}; state gain instead") from None


def _xavier(asked: _Request) -> Scheme:
    gain = asked.gained()
    more = "" if gain == 1 else f", gain={gain:.6g}"
    return Scheme(asked.text, asked.name, gain=gain, call=f"init.{asked.name}_({{}}{more})")


def _kaiming(asked: _Request) -> Scheme:
    mode, slope = asked.given.get("mode", "fan_in"), asked.given.get("a", 0)
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"scheme {asked.text!r}: mode must be fan_in or fan_out, got {mode!r}")
    kind = asked.given.get("nonlinearity", asked.nonlinearity or "leaky_relu")
    gain = gain_of(kind, slope) if asked.gain is None else asked.gain
    more = [f"mode={mode!r}"] if mode != "fan_in" else []
    more += [f"nonlinearity={kind!r}"] if kind != "leaky_relu" else []
    more += [f"a={slope!r}"] if slope else []
    call = f"init.{asked.name}_({', '.join(['{}', *more])})"
    return Scheme(asked.text, asked.name, gain=gain, mode=mode, call=call)


def _lecun(asked: _Request) -> Scheme:
    kaiming = asked.name.replace("lecun", "kaiming")
    gain = 1.0 if asked.gain is None else asked.gain
    return Scheme(asked.text, asked.name, gain=gain, call=f"init.{kaiming}_({{}}, nonlinearity='linear')")


def _normal(asked: _Request) -> Scheme:
    std = asked.given.get("std")
    if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 < std < math.inf:
        raise ValueError(f"scheme {asked.text!r} needs its std, as in '{asked.name}(0.02)'")
    return Scheme(asked.text, asked.name, std=float(std), call=f"init.{asked.name}_({{}}, std={std!r})")


def _uniform(asked: _Request) -> Scheme:
    low, high = asked.given.get("a", math.nan), asked.given.get("b", math.nan)
    if not low < high:
        raise ValueError(f"scheme {asked.text!r} needs its bounds, as in 'uniform(-0.1, 0.1)'")
    std, call = (high - low) / math.sqrt(12), f"init.uniform_({{}}, {low!r}, {high!r})"
    return Scheme(asked.text, asked.name, std=std, mean=(low + high) / 2, call=call)


def _plain(asked: _Request) -> Scheme:
    return Scheme(asked.text, asked.name, call="init.zeros_({})")


_BUILDERS: dict[str, Callable[[_Request], Scheme]] = {
    "xavier": _xavier,
    "kaiming": _kaiming,
    "lecun": _lecun,
    "orthogonal": _xavier,
    "normal": _normal,
    "trunc": _normal,
    "uniform": _uniform,
    "zeros": _plain,
    "torch": _plain,
}


# --- recognising a scheme nobody named

# `*` stands for the distribution, uniform or normal; the gains are calculate_gain's for relu and tanh.
FAMILIES = (
    "xavier_*",
    "kaiming_*",
    "kaiming_*(fan_out)",
    "lecun_*",
    "xavier_*(1.41421)",
    "xavier_*(1.66667)",
    "kaiming_*(nonlinearity='tanh')",
)
ORTHOGONAL, DEFAULT = "orthogonal", "torch_default"
_GPT_STD = 0.02  # GPT-2's, and 0.02 / sqrt(2 blocks) for what writes to the residual stream


def shaped(name: str, seen: Measured) -> Scheme:
    """A recognised name as a scheme, with the distribution the weight has: xavier_uniform or xavier_normal."""
    return _parsed(name.replace("*", "uniform" if seen.kurtosis == UNIFORM else "normal"))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Scheme:
    return parse(text)


def constants(std: float, depths: Iterable[int]) -> list[Scheme]:
    """Normal distributions of one std, and of that std divided by sqrt(blocks) and sqrt(2 blocks)."""
    divisors = {1.0} | {math.sqrt(count) for depth in depths for count in (depth, 2 * depth)}
    return [_parsed(f"normal({std / divisor!r})") for divisor in sorted(divisors)]


def recognised(view: View, seen: Measured, *, tests: int, depths: Iterable[int] = ()) -> list[str]:
    """The names of all schemes a weight could come from; a small one can come from several, a wrong one from none."""
    if seen.is_zero:
        return ["zeros"]
    gain = orthogonal_gain(view.values) or orthogonal_gain(view.whole)
    if gain is not None and min(view.values.flatten(1).shape) > 1 and gain <= 2:
        return [ORTHOGONAL]  # no random matrix is
    names = [DEFAULT] if _parsed(DEFAULT).explains(view, seen, tests=tests) else []
    names += [name for name in FAMILIES if shaped(name, seen).explains(view, seen, tests=tests)]
    if any(scheme.explains(view, seen, tests=tests) for scheme in constants(_GPT_STD, depths)):
        names.append(f"normal({_GPT_STD})")
    return names
