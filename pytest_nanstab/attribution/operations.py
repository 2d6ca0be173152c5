"""What an aten operation is called by people, and what its schema says about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

# aten's own words for what the public API calls otherwise; everything else is derived by `_plain`.
_NAMES = {
    "mm": "matmul",
    "bmm": "matmul",
    "mv": "matmul",
    "dot": "matmul",
    "vdot": "matmul",
    "baddbmm": "matmul",
    "addmv": "linear",
    "addmm": "linear",
    "addbmm": "linear",
    "convolution": "conv",
    "convolution_overrideable": "conv",
    "mkldnn_convolution": "conv",
    "mkldnn_linear": "linear",
    "linalg_vector_norm": "norm",
    "rsub": "sub",
    "to_copy": "to",
    "index_put_impl": "index_put",
    "unsafe_index": "index",
    "cudnn_batch_norm": "batch_norm",
    "miopen_batch_norm": "batch_norm",
    "cudnn_rnn": "rnn",
    "mkldnn_rnn_layer": "lstm",
    "thnn_fused_lstm_cell": "lstm_cell",
    "thnn_fused_gru_cell": "gru_cell",
    "linalg_eigh": "eigh",
    "linalg_svd": "svd",
    "linalg_det": "det",
    "linalg_slogdet": "slogdet",
    "linalg_cholesky_ex": "cholesky",
    "linalg_inv_ex": "inv",
    "linalg_lu_factor_ex": "lu",
    "linalg_solve_ex": "solve",
    "linalg_eig": "eig",
    "scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "scaled_dot_product_fused_attention_overrideable": "scaled_dot_product_attention",
    "safe_softmax": "softmax",
    "special_logsumexp": "logsumexp",
    "special_xlog1py": "xlog1py",
    "special_erfinv": "erfinv",
    "batch_norm_with_update": "batch_norm",
    "batch_norm_no_update": "batch_norm",
    "fused_rms_norm": "rms_norm",
    "log1_p": "log1p",
    "log_sum_exp": "logsumexp",
    "nll_loss2_d": "nll_loss",
    "nll_loss2d": "nll_loss",
}
# What the schema does not say: running statistics are written to.
_WRITES = dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), (3, 4))
_ENDINGS = re.compile(r"(_forward|_with_reserve|_legit.*|_functional)$")
_BEGINNINGS = re.compile(r"^(native_|aminmax_|foreach_)")
# Memory that nobody has written to yet: what it holds means nothing.
EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"})
# What stood in the memory before plays no part in the result.
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "_foreach_copy_"})
_IGNORED = frozenset({"_local_scalar_dense", "resize_", "record_stream", "set_", "is_same_size", "sym_size", "equal"})
_NODE = re.compile(r"Backward\d*$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Operation:
    """What the tracer needs to know of one overload.

    Attributes:
        name: as people call it.
        aten: aten's name of it, without namespace and overload.
        view: the result shares its memory with an argument and nothing is computed.
        writes: positions of the arguments it writes to, and names of keyword arguments.
        overwrites: what it writes to is no operand.
        empty: the result is memory nobody has written to.
        ignored: nothing to look at.
        foreach: works on lists of tensors, element by element.
        random: draws random numbers, so it cannot be repeated.
    """

    name: str
    aten: str
    view: bool
    writes: tuple[int | str, ...]
    overwrites: bool
    empty: bool
    ignored: bool
    foreach: bool
    random: bool


# What computes nothing, and what waits for other ranks: its result may not be there yet.
_UNSEEN = ("profiler", "prim", "c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "fsdp")


@lru_cache(maxsize=4096)
def describe(func: Any) -> Operation:
    """The description of an overload such as `torch.ops.aten.exp.default`."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Operation(str(func), str(func), False, (), False, False, True, False, False)
    space, _, aten = str(schema.name).partition("::")
    writes = tuple(
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    writes = writes or _WRITES.get(aten, ())
    shares = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
    tags = getattr(func, "tags", ())
    return Operation(
        name=friendly(aten),
        aten=aten,
        view=shares or aten == "_unsafe_view",
        writes=writes,
        overwrites=aten in _OVERWRITES,
        empty=aten in EMPTY,
        ignored=space in _UNSEEN or aten in _IGNORED,
        foreach=aten.startswith(("_foreach_", "_fused_")),
        random=torch.Tag.nondeterministic_seeded in tags,
    )


@lru_cache(maxsize=4096)
def friendly(aten: str) -> str:
    """The public name of an aten operation: "_softmax" is "softmax", "addmm" is "linear"."""
    name = aten.strip("_")
    if name in _NAMES:
        return _NAMES[name]
    name = _BEGINNINGS.sub("", _ENDINGS.sub("", name)).strip("_")
    return _NAMES.get(name, name)


@lru_cache(maxsize=1024)
def of_node(name: str) -> str:
    """The operation whose derivative an autograd node computes: "SqrtBackward0" is "sqrt"."""
    stem = _NODE.sub("", name.rpartition("::")[2])
    return friendly(_CAMEL.sub("_", stem).lower())
