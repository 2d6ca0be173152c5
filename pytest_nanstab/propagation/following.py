"""What really follows each layer in the executed graph: the non-linearity that its initial scale is meant for."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_nanstab.attribution.source import shown
from pytest_nanstab.propagation.passes import NORMS, PASSIVE, Op, Pass

# The non-linearity by what people call it, and the gain of torch.nn.init.calculate_gain it has there.
NONLINEAR = {
    "relu": "relu",
    "relu6": "relu",
    "threshold": "relu",
    "clamp_min": "relu",
    "leaky_relu": "leaky_relu",
    "prelu": "leaky_relu",
    "rrelu_with_noise": "leaky_relu",
    "elu": "relu",
    "selu": "selu",
    "gelu": "relu",
    "silu": "relu",
    "mish": "relu",
    "hardswish": "relu",
    "softplus": "relu",
    "hardtanh": "tanh",
    "tanh": "tanh",
    "softsign": "tanh",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
    "log_sigmoid": "sigmoid",
    "sin": "linear",
    "cos": "linear",
}
_ENDS = frozenset({"softmax", "log_softmax", "logsumexp", "nll_loss", "mse_loss", "cross_entropy_loss", "l1_loss"})


@dataclass(frozen=True)
class Follower:
    """The first operation behind a layer that does more than hand its result on: `op`, None at the end of the graph."""

    op: Op | None

    @property
    def name(self) -> str:
        """In a word: "relu", "layer_norm", "linear" for another layer, "nothing"."""
        if self.op is None:
            return "nothing"
        return "another layer" if self.op.mixes else self.op.name

    @property
    def normalises(self) -> bool:
        """Whether what follows takes any scale back."""
        return self.op is not None and self.op.name in NORMS

    @property
    def is_linear(self) -> bool:
        """Whether another layer, or nothing, follows: no non-linearity, and nothing that takes a scale back."""
        return self.nonlinearity == "linear" and not self.normalises

    @property
    def nonlinearity(self) -> str:
        """As torch.nn.init.calculate_gain has it; "linear" where none follows."""
        return "linear" if self.op is None else NONLINEAR.get(self.op.name, "linear")

    def told(self) -> str:
        """How it is known, in words."""
        if self.op is None:
            return "nothing follows it, seen in one forward pass"
        where = shown(self.op.spot)
        parts = [part for part in (self.op.module, where) if part]
        return f"{self.name} follows it ({', '.join(parts)}), seen in one forward pass" if parts else self.name


def followers(seen: Pass) -> dict[int, Follower]:
    """What follows each weight-bearing operation, by its index: the nearest one of all the ways that lead on."""
    consumers = seen.consumers()
    return {op.index: _follow(op, consumers) for op in seen.ops if op.mixes}


def _follow(op: Op, consumers: dict[int, list[Op]]) -> Follower:
    waiting, seen = [op], {op.index}
    fallback: Follower | None = None
    while waiting:
        for other in sorted(consumers.get(waiting.pop(0).index, []), key=lambda item: item.index):
            if other.index in seen:
                continue
            seen.add(other.index)
            if other.name in NONLINEAR or other.name in NORMS or other.name in _ENDS:
                return Follower(other)
            if other.mixes or other.name not in PASSIVE:
                fallback = fallback or Follower(other)
            else:
                waiting.append(other)
    return fallback or Follower(None)
