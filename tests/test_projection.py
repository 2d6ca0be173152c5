"""What a run would be in half precision, against numbers computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from pytest_nanstab.suite.projection import projections

FLOAT32 = (2 - 2**-23) * 2.0**127


def bits(value):
    return math.log2(FLOAT32 / value)


def test_overflow_in_float16_and_room_in_bfloat16():
    """8.2e4 is beyond 65504; bfloat16 has float32's range, to half a percent."""
    headroom = {
        "activation": {"ff.linear2 float32": bits(8.2e4), "ff.linear1 float32": bits(7.0e4), "out float32": bits(3.0)},
        "gradient": {"out.weight float32": bits(0.5)},
    }
    assert projections(headroom) == [
        f"in its own float32: {bits(8.2e4):.1f} bits, least in activation ff.linear2",
        "in float16: overflows in activation ff.linear2 (8.2e+04 > 65504) and in 1 more",
        f"in bfloat16: {math.log2(3.3895313892515355e38 / 8.2e4):.1f} bits, least in activation ff.linear2",
    ]


def test_room_in_both():
    """A value of 1 is 16 bits below the end of float16."""
    assert projections({"parameter": {"w float32": bits(1.0)}})[1] == "in float16: 16.0 bits, least in parameter w"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_its_own_precision_is_not_projected(dtype):
    """What the run was in has been measured: only what is kept in that format counts for it."""
    told = projections({"activation": {f"x {dtype}": 3.0}, "parameter": {"w float32": 1.0}})
    assert told[:2] == [
        f"in its own {dtype}: 3.0 bits, least in activation x",
        "in its own float32: 1.0 bits, least in parameter w",
    ]
    assert [line.split(":")[0] for line in told[2:]] == ["in bfloat16" if dtype == "float16" else "in float16"]


@pytest.mark.parametrize("headroom", [{}, {"activation": {}}, {"activation": {"x float32": math.inf}}])
def test_nothing_measured_says_nothing(headroom):
    """Zeros have infinite headroom, and no range to project."""
    assert projections(headroom) == []


def test_float64_beyond_every_half_precision():
    """A number too large for both is named for both."""
    own, *told = projections({"activation": {"x float64": 1.0}})
    assert own == "in its own float64: 1.0 bits, least in activation x"
    assert all("overflows in activation x" in line for line in told)
    assert len(told) == 2


def test_the_item_notes_it(pytester):
    """In the JSON of a suite's item."""
    pytester.makepyfile(
        """
        import torch
        from pytest_nanstab import TrainingSetup, stability_suite

        @stability_suite(steps=2, checks=["headroom"])
        def test_net():
            torch.manual_seed(0)
            net = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.ones_(net.weight)
            batches = [torch.full((4, 2), 1e5)] * 2
            loss = lambda model, x: (model(x) / 1e6).mean()
            optimizer = torch.optim.SGD(net.parameters(), 1e-9)
            return TrainingSetup(model=net, loss=loss, optimizer=optimizer, batches=batches)
        """
    )
    pytester.runpytest_subprocess("--nanstab-report=r.json").assert_outcomes(passed=1)
    (record,) = json.loads((pytester.path / "r.json").read_text())["tests"]
    assert record["notes"][1] == "in float16: overflows in activation Linear (2e+05 > 65504)"
