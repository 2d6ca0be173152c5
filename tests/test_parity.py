"""Parity with 64-true: what rounding explains is not accused, what it does not is named with its module."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.suite.parity import deviation, parity
from pytest_nanstab.suite.precision import arithmetic
from pytest_nanstab.suite.projection import parity_notes


def setup_of(model, batch, loss=lambda m, b: m(b).pow(2).mean()):
    return TrainingSetup(model=model, loss=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), batches=[batch])


def compared(model, batch, precision, **more):
    setup = setup_of(model, batch, **more)
    with arithmetic(setup, precision) as form:
        return parity(setup, form, batch)


class Mlp(nn.Sequential):
    def __init__(self, depth=6):
        layers = [part for _ in range(depth) for part in (nn.Linear(16, 16), nn.ReLU())]
        super().__init__(nn.Linear(4, 16), *layers, nn.Linear(16, 1))


class Variance(nn.Module):
    """E[x^2] - E[x]^2, which cancels where the mean is large."""

    def __init__(self, stable):
        super().__init__()
        self.stable = stable

    def forward(self, x):
        if self.stable:
            return x.var(-1, unbiased=False, keepdim=True)
        return x.pow(2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).pow(2)


PRECISIONS = ["32-true", "bf16-true", "16-true", "bf16-mixed"]
EPS = {"32-true": 2.0**-23, "bf16-true": 2.0**-7, "16-true": 2.0**-10, "bf16-mixed": 2.0**-7}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_explains_a_healthy_model(precision):
    """A few eps after a dozen modules, none beyond the bound, every module of the model in order of returning."""
    torch.manual_seed(0)
    model = Mlp()
    found = compared(model, torch.randn(32, 4), precision)
    assert found["against"] == "64-true"
    assert found["precision"] == precision
    assert found["eps"] == EPS[precision]
    assert found["first"] is None
    assert [row["module"] for row in found["modules"]] == [*dict(model.named_children()), "Mlp"]
    assert all(0 < row["error"] < 4 * found["eps"] for row in found["modules"])
    assert 0 < found["loss"] < 16 * found["eps"]
    (line,) = parity_notes(found)
    assert line.startswith(f"{precision} against 64-true: ")
    assert line.endswith("; rounding explains all of it")


@pytest.mark.parametrize("stable", [False, True])
def test_cancellation_is_named(stable):
    """A variance by E[x^2] - E[x]^2 of values around 1000 loses all its digits in float32; by torch.var none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), Variance(stable), nn.Linear(1, 1))
    found = compared(model, torch.randn(32, 16) + 1000, "32-true")
    assert found["first"] == (None if stable else "1")
    if not stable:
        row = next(row for row in found["modules"] if row["module"] == "1")
        assert row["error"] > 100 * row["explained"]
        assert row["input_error"] == 0
        (line,) = parity_notes(found)
        assert "; beyond what rounding explains first in 1 (" in line
        assert line.endswith(" eps, 0 = 0 eps in its input)")


def test_the_figures_are_those_computed_by_hand():
    """||y - y64|| / ||y64|| of one layer, its input and the loss."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(8, 3)), torch.randn(5, 8)
    narrow = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(narrow).double()
    y, y64 = narrow(batch.bfloat16()).detach().double(), exact(batch.double()).detach()
    found = compared(model, batch, "bf16-true")
    row, _ = found["modules"]
    assert row["error"] == pytest.approx(float((y - y64).norm() / y64.norm()), rel=1e-12)
    wide = batch.double()
    assert row["input_error"] == pytest.approx(
        float((batch.bfloat16().double() - wide).norm() / wide.norm()), rel=1e-12
    )
    assert row["explained"] == 8 * 2.0**-7
    loss, loss64 = narrow(batch.bfloat16()).detach().pow(2).mean().double(), y64.pow(2).mean()
    assert found["loss"] == pytest.approx(float(abs(loss - loss64) / loss64), rel=1e-12)


def test_deviations_at_the_edges():
    """Masks are left out, zeros have no deviation, a number that only the wider format has is infinitely far."""
    inf, half = math.inf, torch.float16
    wide = torch.tensor([1.0, -inf, 2.0], dtype=torch.float64)
    assert deviation(torch.tensor([1.0, -inf, 2.0], dtype=half), wide) == 0
    assert deviation(torch.tensor([1.0, -inf, inf], dtype=half), wide) == inf
    assert deviation(torch.tensor([1.0, -inf, math.nan], dtype=half), wide) == inf
    assert deviation(torch.zeros(2, dtype=half), torch.zeros(2, dtype=torch.float64)) is None
    assert deviation(torch.zeros(2, dtype=half), torch.zeros(3, dtype=torch.float64)) is None
    assert deviation(None, wide) is None


def test_nothing_is_changed():
    """Weights, running statistics, gradients, modes, random numbers and the default dtype are what they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).eval()
    before = copy.deepcopy(model.state_dict())
    setup = setup_of(model, batch := torch.randn(16, 4))
    state = torch.get_rng_state()
    with arithmetic(setup, "32-true") as form:
        assert parity(setup, form, batch)["first"] is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is torch.float32
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_deviation_between_modules_is_said_to_be_there():
    """The variance is taken in the forward of the parent: what comes after it is not blamed."""

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = nn.Linear(1, 1)

        def forward(self, x):
            return self.child(Variance(stable=False).forward(x))

    torch.manual_seed(0)
    found = compared(Parent(), torch.randn(32, 16) + 1000, "32-true")
    assert (found["first"], found["before"]) == ("child", True)
    assert "first before child, in its input (" in parity_notes(found)[0]


def test_a_deviation_of_the_loss_alone_is_told():
    """Every module is right, and the loss is not."""
    torch.manual_seed(0)

    def loss(model, batch):
        return Variance(stable=False).forward(model(batch).flatten() + 1000).sum()

    found = compared(Mlp(2), torch.randn(32, 4), "32-true", loss=loss)
    assert found["first"] is None
    (line,) = parity_notes(found)
    assert " eps in the loss; rounding explains that of the modules, not that of the loss" in line


def test_masks_and_zeros_have_no_digits():
    """A mask of -1e9 does not hide an error, and an output that is zero but for rounding has none."""
    wide = torch.tensor([-1e9, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert deviation(torch.tensor([-1e9, 1.0, 2.0, 4.0]), wide) == pytest.approx(1 / math.sqrt(14))
    zero, given = torch.tensor([1e-16, -1e-16], dtype=torch.float64), torch.ones(2)
    assert deviation(torch.tensor([1e-8, 0.0]), zero, beside=given) is None
    assert deviation(torch.tensor([1e-8, 0.0]), zero) > 1e7


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.LSTM(8, 4, num_layers=2, dropout=0.5, batch_first=True),
    ],
    ids=["transformer", "lstm"],
)
def test_dropout_that_is_no_module_is_off(model):
    """The dropout of attention and of recurrent layers is an argument; it is put back."""
    loss = lambda m, b: (out[0] if isinstance(out := m(b), tuple) else out).pow(2).mean()  # noqa: E731
    found = compared(model, torch.randn(4, 5, 8), "bf16-mixed", loss=loss)
    if isinstance(found, str) and "primitive" in found:
        pytest.skip("this processor has no recurrent layers in bfloat16")
    assert isinstance(found, dict)
    assert found["first"] is None
    assert {module.dropout for module in model.modules() if hasattr(module, "num_heads")} <= {0.1}
    assert getattr(model, "num_layers", 2) == 2
    assert model.dropout != 0


def test_a_loss_that_changes_from_call_to_call_is_not_compared():
    """A schedule kept in a closure."""
    calls = []

    def loss(model, batch):
        calls.append(0)
        return model(batch * len(calls)).pow(2).mean()

    told = compared(Mlp(2), torch.randn(8, 4), "bf16-true", loss=loss)
    assert told == "the pass is another when it is run once more"


class Drawing(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(1).to(x)


def branching(model, batch):
    """Another module in each precision."""
    return model[0 if batch.dtype is torch.float64 else 1](batch).mean()


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (Drawing(4, 1), None, "the pass draws random numbers"),
        (nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)]), branching, "the passes call different modules"),
        (nn.Linear(4, 1), lambda m, b: m(b.float()).mean(), "RuntimeError: *"),
    ],
)
def test_what_cannot_be_compared_says_why(model, loss, reason):
    """Random numbers, other paths, a loss with a dtype of its own."""
    model = nn.Sequential(model) if loss is None else model
    told = compared(model, torch.randn(8, 4), "bf16-true", **({} if loss is None else {"loss": loss}))
    assert isinstance(told, str)
    assert told == reason or (reason.endswith("*") and told.startswith(reason[:-1]))
    assert parity_notes(told) == [f"not compared with 64-true: {told}"]


def test_losses_that_differentiate_work():
    """A gradient penalty inside the loss."""

    def penalised(model, batch):
        given = batch.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(given).sum(), given, create_graph=True)
        return model(batch).mean() + gradient.pow(2).sum()

    found = compared(Mlp(2), torch.randn(8, 4), "bf16-true", loss=penalised)
    assert isinstance(found, dict)
