"""Where bad data and asserted values come from: the line that computed them, in suites, marked and unmarked tests."""

from __future__ import annotations

import sys

import pytest
from plugin_runs import run_inside

PIPELINE = """
from pytest_nanstab import assert_finite, assert_finite_batches

def standardised(x):
    center = x - x.mean(1, keepdim=True)
    return center / x.std(1, keepdim=True)  # the line

def readings(bad):
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    if bad:
        x[17] = 2.0
    return x

def stream(bad=True):
    x = readings(bad)
    for start in range(0, 24, 8):
        yield standardised(x[start:start + 8])

def listed(bad=True):
    return [batch.clone() for batch in stream(bad)]

def squares(model, batch):
    return model(batch).square().mean()

def setup_of(batches, **more):
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return TrainingSetup(model=model, loss=squares, optimizer=optimizer, batches=batches, **more)
"""


def is_told(text: str) -> bool:
    """Whether a part of the output names operation and line, with the cause that belongs to it."""
    marked = any(line.startswith("    >") and line.endswith("# the line") for line in text.splitlines())
    return marked and "0 / 0 gave nan there" in text and "the divisor is a spread" in " ".join(text.split())


@pytest.mark.parametrize("batches", ["stream", "listed()", "listed", "torch.utils.data.DataLoader(listed(), None)"])
def test_finite_data_names_the_line_that_made_a_batch_bad(pytester, batches):
    """Whether a stream computes it batch by batch, or the factory all of them."""
    body = f"""
{PIPELINE}
@stability_suite(steps=4, checks=["finite_data"])
def test_net(): return setup_of({batches})

@stability_suite(steps=4, checks=["finite_data"])
def test_healthy(): return setup_of(lambda: stream(bad=False))
"""
    ran = run_inside(pytester, body)
    assert ran.outcomes == {"test_net[finite_data]": "failed", "test_healthy[finite_data]": "passed"}
    assert is_told(ran.text)
    assert "NaN in batch 3, field batch" in ran.text
    assert "born in standardised()" in ran.text


def test_bad_evaluation_data_is_traced_in_its_own_source(pytester):
    body = f"""
{PIPELINE}
@stability_suite(steps=4, checks=["finite_data"])
def test_net(): return setup_of(listed(bad=False), eval_batches=stream)
"""
    ran = run_inside(pytester, body)
    assert is_told(ran.text)
    assert "  split     eval_batches" in ran.text


def test_data_that_no_operation_made_keeps_its_own_words(pytester):
    """A NaN that stands in the file: no operation is accused, and none is looked for at the user's cost."""
    body = f"""
{PIPELINE}
@stability_suite(steps=4, checks=["finite_data", "finite_steps"])
def test_net(): return setup_of([torch.ones(4, 5), torch.tensor([[1.0, 2.0, float("nan"), 4.0, 5.0]])])
"""
    ran = run_inside(pytester, body)
    block = ran.block("_ test_net[finite_data] _", "= nanstab =")
    assert "NaN in batch 2, field batch at [0, 2]" in block
    assert "  op " not in block


def test_a_recurrence_is_traced_to_the_end(pytester):
    """Thousands of operations a step, on a training of a tenth of a second: the line is worth some seconds."""
    body = f"""
{PIPELINE}
def windows():
    x = torch.randn(200, 40, generator=torch.Generator().manual_seed(3))
    x[190] = 1.5
    for start in range(0, 200, 20):
        yield standardised(x[start:start + 20])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 8, num_layers=2, batch_first=True), nn.Linear(8, 1)
    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])

@stability_suite(steps=12, checks=["finite_steps"])
def test_net():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return TrainingSetup(model=model, loss=squares, optimizer=optimizer, batches=windows)
"""
    ran = run_inside(pytester, body)
    assert is_told(ran.text)
    assert "  step      10 of 12, data, batch 10" in ran.text


def test_what_an_unmarked_test_is_fed_with_comes_with_the_command_that_traces_it(pytester):
    """On the spot the data are there already; the command that is told shows their line."""
    body = f"""
{PIPELINE}
def test_fit():
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for batch in stream():
        optimizer.zero_grad()
        squares(model, batch).backward()
        optimizer.step()
"""
    ran = run_inside(pytester, body, "--nanstab")
    (command,) = [line for line in ran.text.splitlines() if line.startswith("  trace ")]
    assert command.split(maxsplit=1)[1] == 'pytest -o nanstab_explain=rerun --nanstab "test_it.py::test_fit"'
    assert "if the test computed it, a rerun of the test shows where:" in ran.text
    assert is_told(run_inside(pytester, body, "--nanstab", "-o", "nanstab_explain=rerun").text)


ASSERTED = f"""
{PIPELINE}
from hypothesis import given, settings, strategies as st

def test_call(): assert_finite(standardised(readings(True)))

def test_name():
    z = standardised(readings(True))
    assert_finite(z, name="z")

def test_inside():
    out = dict(z=standardised(readings(True)), n=3)
    pytest_nanstab.assert_finite(out)

def test_healthy(): assert_finite(standardised(readings(False)))
"""


@pytest.mark.parametrize("mark", ["", "pytestmark = pytest.mark.nanstab"])
def test_assert_finite_names_the_operation(pytester, mark):
    """By a rerun in marked tests, on the spot in all others."""
    ran = run_inside(pytester, ASSERTED + mark, "--nanstab")
    names = ["test_call", "test_name", "test_inside"]
    assert ran.outcomes == {**dict.fromkeys(names, "failed"), "test_healthy": "passed"}
    ends = [*names[1:], None]
    for name, following in zip(names, ends, strict=True):
        block = ran.block(f"_ {name} _", f"_ {following} _" if following else "= nanstab =")
        assert is_told(block), name
        assert f'test_it.py::{name}"' in block
    assert "NaN in z (5 of 120 values), born in standardised()" in ran.text


def test_assert_finite_under_given(pytester):
    """The shrunk example is the one that is traced."""
    body = f"""
{PIPELINE}
from hypothesis import given, settings, strategies as st

@pytest.mark.nanstab
@settings(deadline=None, database=None)
@given(st.integers(2, 6))
def test_constant(rows):
    assert_finite(standardised(torch.ones(rows, 3)))
"""
    ran = run_inside(pytester, body)
    assert ran.outcomes == {"test_constant": "failed"}
    assert "rows=2" in ran.text
    assert is_told(ran.text)


def test_assert_finite_in_impure_surroundings_repeats_nothing(pytester):
    """What cannot be repeated without a trace is left alone: the finding stays as it was."""
    body = f"""
{PIPELINE}
calls = []

def noted(x):
    calls.append(x)
    return standardised(x)

def test_call(): assert_finite(noted(readings(True)))

def test_once(): assert len(calls) == 1
"""
    ran = run_inside(pytester, body, "--nanstab")
    assert ran.outcomes == {"test_call": "failed", "test_once": "passed"}
    assert "tensor    value, float32[24, 5]: 5 of 120 values are NaN" in ran.text


SCRIPT = """
import torch
from torch import nn
from pytest_nanstab import watch

def train():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(4):
        x = torch.full((3, 2), float("nan") if step == 2 else 1.0)
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()

with watch():
    train()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11 a `with` raises with the traceback it was left by")
def test_a_script_ends_at_the_users_line(pytester, monkeypatch):
    """Outside pytest nobody hides frames: the traceback ends where the user's code does, and then the message."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    ran = pytester.runpython(pytester.makepyfile(script=SCRIPT))
    errors = ran.stderr.str()
    assert ran.ret == 1
    assert [line.strip() for line in errors.splitlines() if line.startswith("  File ")] == [
        f'File "{pytester.path / "script.py"}", line 15, in <module>',
        f'File "{pytester.path / "script.py"}", line 12, in train',
    ]
    assert "NonFiniteError: NaN in the data of step 3, input 0 of Linear" in errors


def test_one_batch_far_beyond_all_others_fails_the_gradient_bounds(pytester):
    """An eps in place of the check for a constant row: finite, clipped, and 1e15 in the loss of one step."""
    body = f"""
{PIPELINE}
def scaled(eps):
    x, y = torch.randn(24, 5, generator=torch.Generator().manual_seed(3)), torch.ones(24, 1)
    x[23] = 2.0
    std = x.std(1, keepdim=True)
    std = std + 1e-8 if eps else torch.where(std == 0, 1.0, std)
    x, y = (x - x.mean(1, keepdim=True)) / std, y / std
    return [(x[n:n + 4], y[n:n + 4]) for n in range(0, 24, 4)]

def mse(model, batch): return (model(batch[0]) - batch[1]).square().mean()

def setup_with(eps):
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return TrainingSetup(model=model, loss=mse, optimizer=optimizer, batches=scaled(eps), clip_grad_norm=1.0)

@stability_suite(steps=12, checks=["gradient_bounds"])
def test_eps(): return setup_with(eps=True)

@stability_suite(steps=12, checks=["gradient_bounds"])
def test_one(): return setup_with(eps=False)
"""
    ran = run_inside(pytester, body)
    assert ran.outcomes == {
        "test_eps[gradient_bounds-32-true]": "failed",
        "test_one[gradient_bounds-32-true]": "passed",
    }
    assert "gradient norm leapt" in ran.text
    assert "  step      6 of 12, backward" in ran.text
    assert "one batch is unlike all others" in ran.text


@pytest.mark.parametrize("ending", ["raise OSError('gone')", "pytest.skip('gone')"])
@pytest.mark.parametrize("check", ["finite_data", "finite_steps"])
def test_a_factory_that_works_once_loses_no_finding(pytester, check, ending):
    """Looking for the line calls it again; what it raises then is no outcome of the test."""
    body = f"""
{PIPELINE}
calls = []

@stability_suite(steps=4, checks=["{check}"])
def test_net():
    calls.append(1)
    if len(calls) > 1: {ending}
    return setup_of(listed())
"""
    ran = run_inside(pytester, body)
    (outcome,) = ran.outcomes.values()
    assert outcome == "failed"
    assert "NonFiniteError: NaN in" in ran.text


def test_the_bad_field_is_the_one_that_is_traced(pytester):
    """Of a batch in which two fields are bad, each by its own line."""
    body = f"""
{PIPELINE}
def roots(x): return (x - 9).sqrt()

def pairs():
    for batch in stream():
        yield roots(batch) if batch.isnan().any() else batch.abs(), batch

@stability_suite(steps=4, checks=["finite_data"])
def test_net():
    setup = setup_of(lambda: ((y, x) for x, y in pairs()))
    return setup
"""
    assert is_told(run_inside(pytester, body).text)
