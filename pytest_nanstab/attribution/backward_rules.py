"""Derivatives that are not finite although the forward pass was."""

from __future__ import annotations

from pytest_nanstab.attribution.rule import SLOPE, Rule, always, is_below, is_of_squares, pytorch, rule

BACKWARD: tuple[Rule, ...] = (
    # --- derivatives
    rule(
        "sqrt pow norm",
        "backward",
        lambda c: c.op == "sqrt" and c.forward_from("var", "std"),
        "the slope of a root is infinite at 0: the values are all the same, so their variance is 0",
        "torch.std (its gradient at 0 is 0), or torch.sqrt(var + eps)",
        pytorch(2421),
    ),
    rule(
        "sqrt",
        "backward",
        is_of_squares,
        "the slope of sqrt is infinite at 0: this is the norm of a zero vector",
        "torch.linalg.vector_norm (its gradient at 0 is 0), or eps inside the root",
        pytorch(2421),
    ),
    rule(
        "sqrt log log2 log10 div pow acos asin rsqrt reciprocal log1p",
        "backward",
        lambda c: c.gradient_from("where", "masked_fill", "index_put", "nan_to_num"),
        "values that where, a mask or nan_to_num hides are differentiated too: 0 times the infinite slope of {case.op} "
        "at 0 is NaN",
        'make the argument safe before {case.op} ("double where"): f(torch.where(ok, x, 1.0)), then select',
        pytorch(68425),
    ),
    rule(
        "sqrt rsqrt",
        "backward",
        always,
        "the slope of {case.op} is infinite at 0",
        "torch.sqrt(x + eps), or clamp_min(eps) before it",
        pytorch(2421),
    ),
    rule(
        "pow",
        "backward",
        lambda c: is_below(c.number(), 1.0),
        "the slope of x**p is infinite at 0 for p below 1",
        "clamp_min(eps) on the base, or an exponent of 1 or more",
        "https://github.com/kornia/kornia/issues/918",
    ),
    rule(
        "log log2 log10",
        "backward",
        lambda c: c.forward_from("softmax", plain=True),
        "a softmax probability has underflowed: the slope of log is infinite there",
        "torch.log_softmax(logits, dim) in place of the log of a softmax",
        pytorch(24933),
    ),
    rule(
        "log log2 log10 log1p xlogy",
        "backward",
        always,
        "the slope of {case.op} is infinite at 0, and 0 times that is NaN",
        "clamp_min(eps) before the log: repairing its value afterwards leaves the gradient",
        "https://github.com/kornia/kornia/issues/4183",
    ),
    rule(
        "div",
        "backward",
        always,
        "the divisor is zero, or so small that its square underflows: the derivative divides by that square",
        "a floor under the divisor before dividing: clamp_min(eps), or softplus(x) + eps where it is learned",
        SLOPE,
    ),
    rule(
        "eigh svd eig",
        "backward",
        always,
        "the gradient of the vectors divides by differences of singular values (eigenvalues), and two are equal",
        "use the values only (torch.linalg.svdvals, eigvalsh), or keep them apart",
        pytorch(49886),
    ),
    rule(
        "norm",
        "backward",
        always,
        "the slope of the norm is not finite here",
        "add eps, or F.normalize with its eps",
        pytorch(2421),
    ),
    rule(
        "",
        "backward",
        lambda c: c.kind == "born" and not c.nan and c.made.op in ("mul", "matmul", "pow", "sum", "add", "exp"),
        "a product of large derivatives overflows {case.made.dtype} in the backward pass",
        "bound the factors (clamp, normalise), or lower the scale of loss and weights",
        SLOPE,
    ),
)
