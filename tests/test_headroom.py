"""Headroom against hand computations: what is measured, what is left out, what is sampled, what is small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_nanstab import watch
from pytest_nanstab.suite.projection import left_out, underflows
from pytest_nanstab.watching.headroom import LARGEST, bits
from pytest_nanstab.watching.names import Names
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region
from pytest_nanstab.watching.underflow import Underflow

TOP = torch.finfo(torch.float32).max


def bits_of(*values):
    """By hand: log2(finfo.max / max|value|)."""
    return math.log2(TOP / max(value.detach().abs().max().item() for value in values))


def measured(model, batches, loss, *, lr=0.1, **limits):
    """A watched training, and what its own hooks saw: outputs, losses, gradients, parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name, value):
        seen.setdefault(name, []).append(value.detach().clone())

    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, _a, out, path=path: keep(f"activation {path}", out))
    with watch(model, **{"min_headroom_bits": 0, **limits}) as run:
        for batch in batches:
            optimizer.zero_grad()
            value = loss(model, batch)
            keep("loss loss", value)
            value.backward()
            for name, parameter in model.named_parameters():
                keep(f"parameter {name}", parameter)
                keep(f"gradient {name}", parameter.grad)
            optimizer.step()
    for name, parameter in model.named_parameters():
        keep(f"parameter {name}", parameter)
    return run, seen


class Scores(nn.Module):
    """Attention scores computed between modules, masked: no leaf module returns them."""

    def __init__(self, fill=-math.inf):
        super().__init__()
        self.q, self.k, self.fill = nn.Linear(8, 8), nn.Linear(8, 8), fill

    def forward(self, x):
        scores = 50 * self.q(x) @ self.k(x).transpose(-1, -2)
        return scores.masked_fill(torch.ones(4, 4).triu(1).bool(), self.fill)


class Model(nn.Module):
    def __init__(self, fill=-math.inf):
        super().__init__()
        self.attention, self.out = Scores(fill), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.attention(x).softmax(-1))


def batches(count=5):
    torch.manual_seed(0)
    return [torch.randn(3, 4, 8) for _ in range(count)]


def squares(model, batch):
    return model(batch).pow(2).mean()


# --- the large end


def test_every_figure_is_the_one_computed_by_hand():
    """Outputs of leaf modules and containers, loss, gradients and parameters: the least of five steps each."""
    torch.manual_seed(1)
    run, seen = measured(Model(), batches(), squares)
    for quantity, rows in run.headroom.items():
        for label, found in rows.items():
            name = label.removesuffix(" float32")
            values = seen[f"{quantity} {'' if name == 'Model' else name}"]
            finite = [value[torch.isfinite(value)] for value in values]
            assert found == pytest.approx(bits_of(*finite), abs=1e-9), label
    assert set(run.headroom) == {"activation", "loss", "gradient", "parameter"}
    assert set(run.headroom["activation"]) == {f"attention{p} float32" for p in ("", ".q", ".k")} | {"out float32"}


def test_what_a_module_hands_on_is_measured_once():
    """A container that returns what its last module returned has no row of its own; one that changes it has."""
    run, _ = measured(nn.Sequential(nn.Linear(8, 2)), batches(), squares)
    assert set(run.headroom["activation"]) == {"0 float32"}

    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mul_(2)

    run, seen = measured(Doubled(nn.Linear(8, 2)), batches(), squares)
    assert run.headroom["activation"]["Doubled float32"] == pytest.approx(bits_of(*seen["activation "]), abs=1e-9)
    assert run.headroom["activation"]["0 float32"] == run.headroom["activation"]["Doubled float32"] + 1


@pytest.mark.parametrize("fill", [-math.inf, TOP, -TOP])
def test_masks_are_left_out_value_by_value_and_counted(fill):
    """The other scores of the same tensor still count."""
    torch.manual_seed(1)
    model = Model(fill) if fill < 0 else Scores(fill)
    loss = squares if fill < 0 else (lambda m, b: m(b).tril().sum() * 1e-3)
    run, seen = measured(model, batches(), loss)
    path = "attention" if fill < 0 else "Scores"
    finite = [value[value.abs() < TOP] for value in seen["activation attention" if fill < 0 else "activation "]]
    assert run.headroom["activation"][f"{path} float32"] == pytest.approx(bits_of(*finite), abs=1e-9)
    assert run.left_out == {f"activation {path} float32": 3 * 6}
    assert left_out(run.left_out) == [f"masks left out: 18 values of activation {path} float32"]


def test_nothing_is_left_out_of_a_healthy_model():
    """No mask, no count, no line."""
    run, _ = measured(nn.Sequential(nn.Linear(8, 2)), batches(), squares)
    assert run.left_out == {}
    assert left_out(run.left_out) == []


def test_masks_of_the_largest_number_that_scores_are_added_to():
    """-65504 + 20 rounds to -65472 in float16: a mask, not a value near overflow."""

    class Masked(nn.Linear):
        def forward(self, x):
            mask = torch.zeros(4, dtype=x.dtype)
            mask[3] = torch.finfo(x.dtype).min
            return super().forward(x) + 20 + mask

    model = Masked(8, 4, dtype=torch.float16)
    run, _ = measured(
        model, [torch.ones(3, 8, dtype=torch.float16)], lambda m, b: m(b).float().softmax(-1)[:, 0].mean()
    )
    assert run.headroom["activation"]["Masked float16"] > 8
    assert run.left_out == {"activation Masked float16": 3}


def test_gradients_are_measured_before_they_are_clipped():
    """What a loss scale has to keep from overflow is what the backward makes, not what a clip leaves."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, min_headroom_bits=0) as run:
        for _ in range(4):
            optimizer.zero_grad()
            (1000 * model(torch.ones(2, 8))).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
            optimizer.step()
    assert run.headroom["gradient"]["weight float32"] == pytest.approx(math.log2(TOP / 1000))
    assert run.underflow["float16"]["below_normal"] == 0


def test_what_the_last_step_leaves_is_measured():
    """A step so large that the weights are near overflow afterwards, and nothing runs after it."""
    model = nn.Linear(8, 1, bias=False)
    with pytest.raises(AssertionError, match=r"parameter headroom 28\.\d+ bits below 60"):
        measured(model, [torch.ones(2, 8)], lambda m, b: m(b).mean(), lr=1e30, min_headroom_bits=60)


def test_parameters_that_nobody_trains_and_complex_ones_count():
    """They are cast with the model all the same."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Parameter(torch.full((2,), 1e5), requires_grad=False)
            self.phase = nn.Parameter(torch.full((2,), 3 + 4j))
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x * self.frozen / 1e5) * self.phase

    model = Model()
    optimizer = torch.optim.SGD([model.phase, *model.layer.parameters()], lr=0.0)
    with watch(model, min_headroom_bits=0) as run:
        model(torch.ones(3, 2)).abs().mean().backward()
        optimizer.step()
    assert run.headroom["parameter"]["frozen float32"] == pytest.approx(math.log2(TOP / 1e5))
    assert run.headroom["parameter"]["phase float32"] == pytest.approx(math.log2(TOP / 4))
    assert {"phase float32", "layer.weight float32"} <= set(run.headroom["gradient"])
    assert "Model float32" in run.headroom["activation"]


def test_the_loss_counts_for_the_limit():
    """A loss near overflow breaks the limit, and is named; with room it does not."""
    model = nn.Linear(8, 1)
    with pytest.raises(AssertionError, match=r"loss headroom .* bits below 20"):
        measured(model, batches(1), lambda m, b: m(b).mean() * 0 + 1e36, min_headroom_bits=20)
    measured(model, batches(), squares, min_headroom_bits=20)


def test_a_test_that_did_not_ask_is_measured_at_sampled_steps():
    """Beyond the first steps an unmarked test's outputs are looked at only when its gradients are."""

    def calls_measured(*, dense):
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with Region(Options(raises=False, dense=dense, headroom=True)) as region:
            seen = []
            original = region.headroom._activations
            region.headroom._activations = lambda *given: seen.append(0) or original(*given)
            for _ in range(400):
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
        assert region.run.headroom["activation"]
        return len(seen)

    assert calls_measured(dense=True) == 400
    assert 20 <= calls_measured(dense=False) < 400


def test_bits_has_no_figure_for_zeros_and_edges():
    """Zero, NaN and the largest number itself are no measurements."""
    for dtype, top in LARGEST.items():
        assert bits(top / 4, dtype) == 2
        for value in (0.0, top, math.inf, math.nan):
            assert bits(value, dtype) is None


# --- the small end


def table_of(*gradients, scale=1.0):
    """The underflow table of one look at some gradients, each of a parameter of its own."""
    model, names = nn.ParameterList(torch.zeros_like(gradient) for gradient in gradients), Names()
    names.add(model)
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = gradient
    underflow = Underflow(names)
    underflow.look(list(model), scale)
    return underflow.table(max(gradient.abs().max().item() for gradient in gradients) / scale)


def test_shares_at_the_edges_of_float16():
    """2**-14 is normal, just below is not; 2**-24 is subnormal, just below is lost; zeros do not count."""
    below = 1 - 2**-20
    gradient = torch.tensor([2**-8, 2**-14, 2**-14 * below, 2**-24, 2**-24 * below, 0.0, 0.0, 0.0])
    found = table_of(gradient)["float16"]
    assert found["below_normal"] == 3 / 5
    assert found["below_subnormal"] == 1 / 5
    assert found["worst"] == "0"
    assert found["worst_share"] == 1 / 5
    assert table_of(gradient)["bfloat16"] == {**found, "below_normal": 0, "below_subnormal": 0, "worst_share": 0} | {
        "loss_scale": table_of(gradient)["bfloat16"]["loss_scale"]
    }


@pytest.mark.parametrize("exponent", [-40, -30, -25, -24, -10, 0, 10])
def test_the_loss_scales_are_those_that_float16_proves(exponent):
    """At the smallest scale the values survive the cast, at half of it they do not; the same for overflow."""
    gradient = torch.full((64,), 2.0**exponent)
    low, high = table_of(gradient)["float16"]["loss_scale"]
    assert (gradient * low).half().count_nonzero() == 64
    if low > 1:
        assert float(gradient[0]) * low / 2 < 2.0**-24
    assert torch.isfinite((gradient * high).half()).all()
    assert not torch.isfinite((gradient * high * 2).half()).any()


WIDE = torch.full((50,), 1.99), torch.cat([torch.full((50,), 2.0**-39.4), torch.full((1,), 2.0**-19.5)])


def test_no_scale_where_the_range_is_too_wide():
    """Half the values 40 bits below the other half: none loses less than 1 % without overflow."""
    found = table_of(*WIDE)["float16"]
    assert found["loss_scale"] is None
    assert found["below_subnormal"] == pytest.approx(50 / 101)


def test_a_parameter_of_rounding_noise_does_not_count():
    """A bias in front of a batch norm has the gradient 1e-9 of rounding, and no loss scale is for that."""
    healthy, noise = torch.full((64,), 1e-2), torch.full((64,), 1e-9)
    assert table_of(healthy, noise)["float16"]["below_subnormal"] == 0
    assert table_of(healthy, noise * 1e3)["float16"]["below_normal"] == 0.5
    packed = torch.cat([healthy, noise])  # the keys' part of an in_proj_bias
    assert table_of(packed)["float16"]["below_subnormal"] == 0


def test_scales_of_an_optimizers_own_kernel_are_taken_off():
    """Gradients that are still scaled count as what they mean."""
    assert table_of(torch.full((8,), 1.0), scale=2.0**30)["float16"]["below_subnormal"] == 1


def test_large_gradients_are_sampled_evenly():
    """A million values: the shares are those of an even sample, weighted by the number of values."""
    large, small = torch.full((1_000_000,), 2.0**-30), torch.full((1000,), 2.0**-12)
    large[1::2] = 2.0**-12  # the sample is every 245th value
    assert table_of(large, small)["float16"]["below_subnormal"] == pytest.approx(0.4995, abs=1e-3)


def test_gradients_without_a_value_have_no_table():
    """All zeros, NaN, infinite: nothing to tell."""
    for value in (0.0, math.nan, math.inf):
        parameter = nn.Parameter(torch.zeros(4))
        parameter.grad = torch.full((4,), value)
        underflow = Underflow(Names())
        underflow.look([parameter], 1.0)
        assert underflow.table(1.0) == {}
        assert underflows(underflow.table(1.0)) == []


def test_steps_that_are_looked_at():
    """1, 2, 4, 8 ...: long runs cost nothing more."""
    assert [step for step in range(1, 100) if Underflow.is_due(step)] == [1, 2, 4, 8, 16, 32, 64]


def test_lines_for_people():
    """What is lost, in which parameter most, and which loss scales keep it."""
    gradient = torch.cat([torch.full((25,), 2.0**-29), torch.full((75,), 2.0**-10)])
    lines = underflows(table_of(gradient))
    assert lines == [
        "gradients in float16: 25 % of the values under the smallest normal, 25 % lost, most in "
        "0 (25 %); loss scales from 2**5 to 2**25 keep 99 %",
        "gradients in bfloat16: none under the smallest normal, no loss scale needed",
    ]
    wide = underflows(table_of(*WIDE))
    assert wide[0].endswith("; no loss scale keeps 99 % of them without overflow")
