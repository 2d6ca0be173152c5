"""What one observed pass holds: every operation with the size of its result and of the gradient that reached it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Operations that multiply an activation with a weight: those that a layer's initial scale is about.
MIXING = frozenset(
    {"linear", "matmul", "conv", "conv_transpose", "bilinear", "trilinear", "embedding", "embedding_bag"}
    | {"lstm", "gru", "rnn", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "scaled_dot_product_attention"}
)
NORMS = frozenset({"layer_norm", "batch_norm", "group_norm", "rms_norm", "instance_norm", "norm", "linalg_vector_norm"})

BOUNDED = frozenset({"tanh", "sigmoid", "softmax", "log_softmax", "hardtanh", "hardsigmoid", "sin", "cos", "erf"})
# What a signal goes through on its way from a layer to the operation that follows it.
PASSIVE = frozenset(
    {"add", "sub", "to", "clone", "contiguous", "cat", "stack", "native_dropout", "dropout", "mean", "sum", "index"}
    | {"max_pool2d_with_indices", "max_pool2d", "max_pool1d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d"}
    | {"pad", "constant_pad_nd", "reflection_pad2d", "slice_copy", "index_select", "gather", "copy", "bernoulli"}
    | {"unsafe_split", "split_with_sizes_copy", "unsafe_split_with_sizes", "unsafe_chunk"}
    | {"div", "mul", "masked_fill", "where", "repeat", "flip", "roll", "amax", "max", "upsample_nearest2d"}
    | {"upsample_bilinear2d", "pixel_shuffle", "scatter", "index_add", "bmm", "native_dropout_backward"}
)


@dataclass(eq=False, slots=True)
class Op:
    """One operation of the forward pass.

    Attributes:
        index: its place in the order of execution.
        name: as people call it.
        module: dotted path of the innermost module whose forward was running; "" is the model itself.
        spot: the user's line, as (file, line).
        shape: of its result.
        weights: names of the parameters among its operands, also where they went through a parametrization.
        sources: the operations whose results it was given.
        size_in: root mean square of the largest activation among its operands; None without one.
        size: root mean square of its result.
        top: largest magnitude of its result.
        finite: neither NaN nor +inf in the result.
        clean: neither in its operands.
        gradient: L2 norm of the loss's gradient with respect to its result; None where none arrived.
        norm: L2 norm of the result.
        dead: for each unit (feature or channel), whether it is at an end everywhere in the batch; of rectifiers only.
        saturated: share of the elements at which the activation is all but flat; of bounded ones only.
        entropy: of softmax, the mean entropy of its rows over the largest possible.
        spread: of softmax, the standard deviation of the logits within a row, averaged.
        numbers: the plain numbers among its arguments.
        trained: whether the result takes part in the gradient.
        raw: whether data that no operation has made, the batch for one, is among its operands.
        inside: whether a module's forward was running: the loss is computed outside.
    """

    index: int
    name: str
    module: str
    spot: tuple[str, int] | None
    shape: tuple[int, ...] = ()
    weights: frozenset[str] = frozenset()
    sources: tuple[Op, ...] = ()
    size_in: float | None = None
    size: float | None = None
    top: float | None = None
    finite: bool = True
    clean: bool = True
    gradient: float | None = None
    norm: float | None = None
    dead: tuple[bool, ...] | None = None
    saturated: float | None = None
    entropy: float | None = None
    spread: float | None = None
    numbers: tuple[float, ...] = ()
    trained: bool = False
    raw: bool = False
    inside: bool = True

    @property
    def mixes(self) -> bool:
        """Whether it multiplies an activation, or a look-up, with weights of the model."""
        return self.name in MIXING and bool(self.weights)

    @property
    def matrices(self) -> frozenset[str]:
        """The weights without biases: what identifies a layer, whichever way it is used."""
        return frozenset(name for name in self.weights if "bias" not in name.rpartition(".")[2]) or self.weights

    @property
    def sensitivity(self) -> float | None:
        """How much a relative change of the result moves the loss: |dL/dy| |y|, the same at every layer of a network
        that is linear up to rectifiers."""
        return None if self.gradient is None or self.norm is None else self.gradient * self.norm


@dataclass(slots=True)
class Pass:
    """All operations of a forward pass in order, and what its backward pass left.

    Attributes:
        ops: the operations; those that only look at memory another way are left out. Empty where they could not be
            seen to the end: half a pass says nothing.
        gradients: L2 norm of the gradient of each parameter that got one.
        failed: why there are no gradients.
    """

    ops: list[Op] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    failed: str | None = None

    def consumers(self) -> dict[int, list[Op]]:
        """For each operation, by index, those that were given its result."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for source in op.sources:
                found.setdefault(source.index, []).append(op)
        return found


def ratio(size: float | None, other: float | None) -> float | None:
    """`size / other`; None where one of them is missing, zero or not finite."""
    if not size or not other or not math.isfinite(size) or not math.isfinite(other):
        return None
    return size / other
