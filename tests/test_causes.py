"""The table of causes: what a program's fault is said to be, and what it must not be said to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from torch import Tensor, nn

from pytest_nanstab.attribution.case import Case
from pytest_nanstab.attribution.causes import advice_for
from pytest_nanstab.attribution.origin import Origin, origin_of, title
from pytest_nanstab.attribution.tracer import Tracer
from pytest_nanstab.attribution.wording import details_of

INF = float("inf")
HUGE = torch.full((2, 3), 100.0)  # beyond the edge of exp


def origin(compute: Callable[[], Tensor]) -> Origin:
    tracer = Tracer()
    with tracer:
        sink = compute()
    assert tracer.failed is None
    made = tracer.behind(sink)
    assert made is not None
    return origin_of(made)


def said(compute: Callable[[], Tensor]) -> str:
    """Cause and remedy of what a function returns."""
    advice = advice_for(Case(origin(compute)))
    return "" if advice is None else f"{advice.cause} | {advice.remedy}"


def details(compute: Callable[[], Tensor]) -> str:
    return " | ".join(details_of(origin(compute).guilty))


def check(compute: Callable[[], Tensor], words: str, wrong: str = "") -> None:
    """Each of the words is said, and none of the wrong ones; "; " between them."""
    text = said(compute)
    assert all(word in text for word in words.split("; ")), text
    assert not any(word in text for word in wrong.split("; ") if word), text


# -- exp ---------------------------------------------------------------------------------------------------------------


def contrastive_by_hand():
    sim = torch.full((3, 3), 100.0)
    e = torch.exp(sim)
    return -torch.log(e.diag() / e.sum(1)).mean()


def contrastive_whose_sum_overflows():
    sim = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    e = torch.exp(sim)
    return -torch.log(e.diag() / e.sum(1)).mean()


def contrastive_of_products():
    z = torch.full((3, 4), 9.0)
    e = torch.exp(z @ z.T)
    return -torch.log(e.diag() / e.sum(1)).mean()


def contrastive_without_itself():
    e = torch.exp(torch.full((3, 3), 100.0))
    return -torch.log(e.diag() / (e * (1 - torch.eye(3))).sum(1)).mean()


def gaussian_likelihood():
    log_var, y, mu = torch.full((3,), 200.0), torch.ones(3), torch.zeros(3)
    var = torch.exp(log_var)
    return (0.5 * ((y - mu) ** 2 / var + torch.log(var))).mean()


def autoencoder_with_cross_entropy_by_hand():
    lv, mu, x = torch.full((2, 3), 400.0), torch.zeros(2, 3), torch.full((2, 4), 0.3)
    z = mu + torch.ones(2, 3) * torch.exp(0.5 * lv)
    p = torch.sigmoid(z @ torch.tensor([[1.0] * 4, [-1.0] * 4, [0.5] * 4]))
    return -(x * torch.log(p) + (1 - x) * torch.log(1 - p)).mean()


def gate_before_another_head():
    g = torch.exp(torch.ones(2, 3) @ torch.full((3, 3), 100.0))
    h = g * torch.full((2, 3), 0.2)
    return torch.log(h.sum(1)).mean()


def gate_before_a_linear_head():
    g = torch.exp(torch.ones(2, 3) @ torch.full((3, 3), 100.0))
    return torch.log(g @ torch.full((3, 2), 0.2)).mean()


def masked_sum_of_exps():
    return torch.log((torch.exp(HUGE) * (HUGE > 0).float()).sum(1) + 1e-8).mean()


def masked_sum_that_is_nan_before_its_log():
    m = torch.tensor([1.0, 0.0, 1.0])
    return torch.log((torch.exp(HUGE) * m).sum(1) + 1e-8).mean()


def softmax_by_hand():
    e = torch.exp(HUGE)
    return (e / e.sum(1, keepdim=True)).mean()


def sigmoid_by_hand():
    e = torch.exp(HUGE)
    return (e / (1 + e)).mean()


def tanh_by_hand():
    up, down = torch.exp(HUGE), torch.exp(-HUGE)
    return ((up - down) / (up + down)).mean()


SOFTPLUS, LOGSUMEXP, UNBOUNDED = "F.softplus", "logsumexp", "log-variance"


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (contrastive_by_hand, "softmax written by hand; log_softmax; F.cross_entropy", "softplus; log(1; logsumexp"),
        (contrastive_of_products, "softmax written by hand; F.cross_entropy", "d_k; softplus"),
        (contrastive_without_itself, "softmax written by hand; F.cross_entropy", "logsumexp"),
        (contrastive_whose_sum_overflows, "overflowed to inf; log_softmax", "underflowed"),
        (gaussian_likelihood, UNBOUNDED, "softplus(x); log(1; logsumexp; softmax"),
        (autoencoder_with_cross_entropy_by_hand, UNBOUNDED, "log(1; logsumexp"),
        (gate_before_another_head, "exp of a large number overflows", "log(1; logsumexp; log(sum"),
        (gate_before_a_linear_head, "exp of a large number overflows", "log(1; logsumexp; log(sum"),
        (tanh_by_hand, "exp of a large number overflows", "softmax"),
        (sigmoid_by_hand, "torch.sigmoid", "softmax"),
        # what the rules are for
        (softmax_by_hand, "softmax written as; torch.softmax", "log_softmax"),
        (masked_sum_of_exps, LOGSUMEXP, SOFTPLUS),
        (masked_sum_that_is_nan_before_its_log, LOGSUMEXP, SOFTPLUS),
        (lambda: torch.log(1 + torch.exp(HUGE)).mean(), SOFTPLUS, LOGSUMEXP),
        (lambda: torch.log1p(torch.exp(HUGE)).mean(), SOFTPLUS, LOGSUMEXP),
        (lambda: torch.log(torch.ones(2, 3) + HUGE.exp().clone()).mean(), SOFTPLUS, LOGSUMEXP),
        (lambda: torch.log(torch.exp(HUGE) + 1e-6).mean(), "log(exp(x) + c)", "log(1; sum"),
        (lambda: torch.log(torch.exp(HUGE).sum(1)).mean(), LOGSUMEXP, SOFTPLUS),
        (lambda: torch.log(torch.exp(HUGE)).mean(), "exp of a large number overflows", "log(1; logsumexp"),
    ],
)
def test_exp(compute, words, wrong):
    """What follows the exponential directly decides, not any logarithm later on."""
    check(compute, words, wrong)


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (lambda: torch.log(1 - torch.tanh(HUGE).pow(2)).sum(), "tanh saturates; softplus(-2 * x)", "clamp_min"),
        (lambda: torch.log(1 - torch.tanh(HUGE) ** 2).sum(), "tanh saturates", "clamp_min"),
        (lambda: (-torch.tanh(HUGE).square() + 1).log().mean(), "tanh saturates", "clamp_min"),
        (lambda: ((1 - HUGE.tanh()) * (1 + HUGE.tanh())).log().mean(), "tanh saturates", "clamp_min"),
        (lambda: torch.log(torch.tanh(ZEROS)).mean(), "logarithm of 0", "saturates"),
        (lambda: torch.log(torch.tanh(ZEROS) ** 2).mean(), "logarithm of 0", "saturates"),
        (lambda: torch.log(1 - torch.tanh(HUGE)).mean(), "logarithm of 0", "tanh(x)**2"),
        (lambda: torch.log(1 - ONES.square()).mean(), "logarithm of 0", "tanh"),
    ],
)
def test_squashed(compute, words, wrong):
    """The density of a squashed action, in every spelling; what only has a tanh in it is not one."""
    check(compute, words, wrong)


# -- quotients ---------------------------------------------------------------------------------------------------------

ZEROS, ONES = torch.zeros(2, 3), torch.ones(2, 3)
MASK = torch.zeros(2, 3, dtype=torch.bool)
WEIGHTS = torch.tensor([0.5, -0.5, 0.0])
SPREAD, NOTHING = "a spread", "a mean over nothing"


def diffusion_step():
    xt, s, a, eps = ONES, 0.5, torch.zeros(1), 0.1 * ONES
    return ((xt - s * eps) / a.sqrt()).sum()


def min_max_scaled():
    low, high = ONES.min(0, keepdim=True).values, ONES.max(0, keepdim=True).values
    return ((ONES - low) / (high - low)).sum()


def scaled_by_root_of_variance():
    return ((ONES - 1) / torch.sqrt(ONES.var(0))).sum()


def standardised_by_hand():
    centred = ONES - ONES.mean(0)
    return (centred / ((ONES - ONES.mean(0)) ** 2).mean(0).sqrt()).sum()


def mean_over_a_cast_mask():
    m = MASK.float()
    return ((ONES * m).sum(1) / m.sum(1)).sum()


def mean_over_the_rest():
    padding = ~MASK
    return ((ONES * 0).sum(1) / (1 - padding.float()).sum(1)).sum()


def mean_by_degree():
    degree = torch.zeros(2).index_add(0, torch.tensor([0, 0]), torch.ones(2))
    return (torch.tensor([1.0, 0.0]) / degree).sum()


def weighted_mean():
    w = WEIGHTS * torch.ones(3)
    return (w * 2).sum() / w.sum()


def weighted_mean_of_a_masked_row():
    w = (WEIGHTS * torch.zeros(3, dtype=torch.bool).float()).abs()
    return (w * 2).sum() / w.sum()


def weights_picked_by_index():
    return torch.ones(()) / WEIGHTS[torch.tensor([0, 1])].sum()


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (diffusion_step, "a division by 0", SPREAD),
        (lambda: (ZEROS / ZEROS.amax(-1, keepdim=True)).sum(), "0 / 0", SPREAD),
        (lambda: (ONES / (ZEROS.amax(-1, keepdim=True) - 0.0)).sum(), "a division by 0", SPREAD),
        (lambda: ONES / ZEROS.std(0), SPREAD, ""),
        (min_max_scaled, SPREAD, ""),
        (lambda: (ONES - 1) / (ONES.amax(0) - ONES.amin(0)), SPREAD, ""),
        (scaled_by_root_of_variance, SPREAD, ""),
        (standardised_by_hand, SPREAD, "zero vector"),
        (lambda: (ZEROS / (ZEROS**2).sum(1, keepdim=True).sqrt()).sum(), "zero vector", SPREAD),
        (lambda: (ZEROS / ZEROS.norm(dim=1, keepdim=True)).sum(), "zero vector", SPREAD),
        (weighted_mean, "the divisor is a sum that is 0; add a small eps", f"clamp_min(1); {NOTHING}"),
        (weighted_mean_of_a_masked_row, "the divisor is a sum that is 0", f"clamp_min(1); {NOTHING}"),
        (weights_picked_by_index, "the divisor is a sum that is 0", f"clamp_min(1); {NOTHING}"),
        (lambda: (ONES * MASK).sum() / MASK.sum(), f"{NOTHING}; clamp_min(1)", "weights"),
        (lambda: (ONES * (ONES > 2)).sum() / (ONES > 2).float().sum(), f"{NOTHING}; clamp_min(1)", "weights"),
        (lambda: (ONES[MASK]).sum() / (MASK.sum() + 0), NOTHING, "weights"),
        (mean_over_a_cast_mask, NOTHING, "weights"),
        (mean_over_the_rest, NOTHING, "weights"),
        (mean_by_degree, NOTHING, "weights"),
    ],
)
def test_quotient(compute, words, wrong):
    """A zero divisor is called what it was computed as, or nothing more than a zero."""
    check(compute, words, wrong)


# -- logarithms of 0 ---------------------------------------------------------------------------------------------------

LOW = torch.full((2, 3), -200.0)


def denominator_without_negatives():
    s, neg = torch.ones(2, 3), torch.zeros(2, 3)
    den = (torch.exp(s) * neg).sum(1)
    return torch.log(den).mean()


def denominator_without_itself():
    e = torch.exp(torch.ones(1, 1))
    return torch.log(e.sum(1) - e.diag()).mean()


def masked_probabilities():
    scores = torch.zeros(2, 3).masked_fill(torch.tensor([True, False, False]), -INF)
    return torch.log(scores.softmax(-1)).sum()


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (denominator_without_negatives, "nothing is left in the sum; or all of it has underflowed", "have underflowed"),
        (denominator_without_itself, "nothing is left in the sum", "have underflowed"),
        (masked_probabilities, "masked or underflowed", "has underflowed"),
        (lambda: torch.log(torch.exp(LOW).sum(1)).mean(), "the exponentials have underflowed; logsumexp", "nothing"),
        (lambda: torch.log(torch.exp(LOW)).mean(), "the exponentials have underflowed", "nothing"),
        (lambda: torch.log((HUGE * torch.tensor([9.0, 0, 0])).softmax(-1)).mean(), "has underflowed", "masked"),
        (lambda: torch.log(ZEROS).mean(), "the logarithm of 0", "underflow"),
    ],
)
def test_log_of_zero(compute, words, wrong):
    """An underflow is claimed only where no mask can have made the zero."""
    check(compute, words, wrong)


# -- half precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (lambda: torch.full((3,), 10.0).half() * 20000.0, "mul overflows float16", "mask"),
        (lambda: torch.full((3,), 10.0).half() * -40000.0, "mul overflows float16", "mask"),
        (lambda: (1 - torch.tensor([1.0, 0.0]).half()) * -1e9, "mask constant is too large for float16", ""),
        (lambda: torch.full((3,), 10.0).half() + -1e9, "mask constant is too large for float16", ""),
    ],
)
def test_mask_constant(compute, words, wrong):
    """A mask's constant is negative, beyond the dtype, and put on a mask."""
    check(compute, words, wrong)


# -- losses ------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
IGNORED = torch.tensor([-100, -100])
MASKED_CLASS = torch.tensor([[False, True, False]] * 2)


def masked_logits() -> Tensor:
    return LOGITS.masked_fill(MASKED_CLASS, -INF)


def summed_loss(count: object) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(LOGITS, IGNORED, reduction="sum") / count


def too_long_a_target():
    scores = torch.zeros(2, 1, 4).log_softmax(-1)
    return F.ctc_loss(scores, torch.tensor([[1, 1, 2]]), torch.tensor([2]), torch.tensor([3]))


LABELS = "every label is ignore_index"


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (
            lambda: F.cross_entropy(LOGITS, torch.tensor([0, 0]), weight=torch.tensor([0.0, 1.0, 1.0])),
            "the class weights of all its targets add up to 0; or every target is ignored",
            "no target is",
        ),
        (lambda: F.cross_entropy(LOGITS, IGNORED), "every target is ignored", "class weights"),
        (summed_loss(torch.tensor(0)), f"{LABELS}; collator", "add eps; mean over nothing"),
        (summed_loss(0), f"{LABELS}; collator", "add eps; mean over nothing"),
        (
            lambda: F.cross_entropy(LOGITS, IGNORED, reduction="sum") / (IGNORED >= 0).sum(),
            f"{LABELS}; labels",
            "mean over nothing",
        ),
        (too_long_a_target, "a target is longer than its input allows; zero_infinity=True", ""),
        (
            lambda: F.cross_entropy(masked_logits(), torch.tensor([0, 0]), label_smoothing=0.1),
            "label smoothing; large finite number",
            "target class is one",
        ),
        (
            lambda: F.cross_entropy(masked_logits(), torch.tensor([[0.5, 0.0, 0.5]] * 2)),
            "soft target; large finite number",
            "torch.where",
        ),
        (lambda: F.cross_entropy(masked_logits(), torch.tensor([1, 0])), "target class is one that was masked", "soft"),
        (lambda: F.mse_loss(1e30 * ONES, ZEROS), "the predictions or the targets; normalise the targets", ""),
        (lambda: F.mse_loss(ZEROS, 1e30 * ONES), "the predictions or the targets; normalise the targets", ""),
    ],
)
def test_loss(compute, words, wrong):
    """What a loss was given is told apart: labels, weights, lengths, masks and sizes."""
    check(compute, words, wrong)


# -- products with infinity, normalisation -----------------------------------------------------------------------------


def evaluated_batch_norm():
    layer = nn.BatchNorm1d(3).eval()
    layer.running_var[1] = -1.0
    return layer(ONES).sum()


SQUARES = "squares of the input overflow"


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (lambda: ((1 - ONES) * -INF).sum(), "0 * inf; masked_fill; torch.where", "xlogy"),
        (lambda: (masked_logits() * ZEROS[:, :3]).sum(), "intended infinity", ""),
        (lambda: F.layer_norm(1e25 * LOGITS, (3,)).sum(), f"{SQUARES} float32", "the operands are so large"),
        (lambda: F.group_norm(1e25 * torch.rand(4, 8), 2).sum(), f"{SQUARES} float32", "the operands are so large"),
        (evaluated_batch_norm, "running_var holds a negative number", SQUARES),
    ],
)
def test_product_or_norm(compute, words, wrong):
    """Each has a rule of its own."""
    check(compute, words, wrong)


def slope(function: Callable[[Tensor], Tensor], at: float) -> Callable[[], Tensor]:
    def gradient() -> Tensor:
        x = torch.full((2,), at, requires_grad=True)
        (found,) = torch.autograd.grad(function(x).sum(), x)
        return found

    return gradient


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (lambda: torch.acosh(torch.tensor([0.99999994])), "below 1; clamp_min(1 + eps)", "[-1 + eps"),
        (slope(torch.acosh, 1.0), "where two points coincide; clamp_min(1 + eps)", "[-1 + eps"),
        (lambda: torch.acos(torch.tensor([1.0000001])), "clamp to [-1 + eps, 1 - eps]", "clamp_min"),
        (slope(torch.acos, 1.0), "slope of acos; clamp to [-1 + eps, 1 - eps]", "clamp_min"),
        (lambda: torch.atanh(torch.tensor([1.0])), "clamp to [-1 + eps, 1 - eps]", "clamp_min"),
    ],
)
def test_inverse_functions(compute, words, wrong):
    """Each is told the domain that it has."""
    check(compute, words, wrong)


# -- operands in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "words", "wrong"),
    [
        (lambda: F.linear(torch.full((1, 2), 1e30), torch.full((3, 2), 1e30), torch.zeros(3)), "up to", "input 0"),
        (evaluated_batch_norm, "float32[2, 3]", "input"),
        (ZEROS.log, "the input is 0 there", ""),
        (
            lambda: torch.acos(torch.tensor([0.0, 1.00000012])),
            "the input is 1.00000012 there; 0 to 1.00000012",
            "is 1 ",
        ),
        (lambda: torch.log1p(torch.tensor([-1.00000012])), "the input is -1.00000012 there", ""),
        (lambda: torch.log1p(torch.tensor([-1.0])), "the input is -1 there", ""),
        (
            lambda: torch.tensor([INF]).sub(torch.tensor([INF]), alpha=2) + 0.0,
            "inf - inf * 2 gave nan there",
            "",
        ),
        (
            lambda: torch.tensor([3e38]).add(torch.tensor([-3e38]), alpha=-0.0288 * 30) + 0.0,
            "3e+38 + -3e+38 * -0.864 gave inf there",
            "",
        ),
        (lambda: 3e38 - torch.tensor([-3e38]), "3e+38 - -3e+38 there", ""),
        (
            lambda: torch.xlogy(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])),
            "xlogy(2, 0) gave inf there",
            "input",
        ),
    ],
)
def test_operands(compute, words, wrong):
    """The values that met are shown, with the digits that matter."""
    text = details(compute)
    assert all(word in text for word in words.split("; ")), text
    assert not any(word in text for word in wrong.split("; ") if word), text


def test_operands_that_are_infinite_already():
    """Where a mask's infinity and an overflow meet, the largest finite number is not all there is to say."""
    scores = torch.tensor([[2e38, 2e38, 0.0]])

    def compute():
        return scores.masked_fill(torch.tensor([[False, False, True]]), INF).cumsum(1).sum()

    assert "(1 already inf)" in details(compute)


# -- whose infinity it is ----------------------------------------------------------------------------------------------


def test_a_scalar_does_not_hide_where_its_infinity_came_from():
    """The finite rest overflows the loss as well: the infinity was there before, and its maker is the root."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    with torch.no_grad():
        layer.weight.fill_diagonal_(1e20)
    found = origin(lambda: F.mse_loss(layer(torch.tensor([[1e20, 1.0]])), torch.zeros(1, 2)))
    assert title(found.guilty) in ("matmul", "linear", "linear in linear", "matmul in linear")


def test_a_scalar_that_is_bad_whatever_it_is_given_is_to_blame_itself():
    """A mean over no target is NaN with or without the masked classes before it."""
    found = origin(lambda: F.cross_entropy(masked_logits(), IGNORED))
    assert (title(found.guilty), found.guilty.bad.kind) == ("nll_loss in cross_entropy", "born")
    assert "every target is ignored" in said(lambda: F.cross_entropy(masked_logits(), IGNORED))


def test_an_infinity_that_a_scalar_does_not_show_is_not_to_blame():
    """1 / inf is 0: dividing by it has nothing to do with the product that overflows."""

    def compute():
        small = torch.ones(2) / torch.exp(torch.full((2,), 100.0))
        return F.mse_loss(small, 1e30 * torch.ones(2))

    assert title(origin(compute).guilty) == "mse_loss"
