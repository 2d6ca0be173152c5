"""Nothing a test has made outlives it: no reference of ours, and no cycle that would wait for the garbage collector."""

from __future__ import annotations

import json

import pytest
from plugin_runs import run_inside

COUNTS = """
import gc, json, pytest

COUNTS = {}

@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    gc.collect()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()

def pytest_runtest_logfinish(nodeid):
    import torch, test_it
    alive = [reference() for reference in test_it.MADE]
    tensors = None
    if nodeid.endswith(("[1]", "[4]", "test_last", "test_leaks")):  # looking at every object takes a while
        tensors = sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())
    COUNTS[nodeid.partition("::")[2]] = [sum(value is not None for value in alive), tensors]
    del alive

def pytest_unconfigure():
    with open("counts.json", "w") as file:
        json.dump(COUNTS, file)
"""
TRAININGS = """
import weakref
MADE = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))

def fit(steps=5, bad=None, optimizer=torch.optim.Adam):
    model = Net()
    stepper = optimizer(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        x = torch.randn(8, 4)
        loss = model(x).square().mean() * (float("nan") if step == bad else 1.0)
        stepper.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
    model.eval()
    output = model(x)
    MADE.extend(weakref.ref(value) for value in (model, stepper, loss, output, x, *model.parameters()))
    for parameter in model.parameters():
        MADE.append(weakref.ref(parameter.grad))
    del parameter

@pytest.mark.parametrize("number", range(30))
def test_watched(number):
    fit(optimizer=[torch.optim.Adam, torch.optim.SGD][number % 2])

@pytest.mark.nanstab
@pytest.mark.parametrize("number", range(10))
def test_marked(number): fit()

@pytest.fixture(scope="module")
def shared(): return Net()

@pytest.mark.nanstab
@pytest.mark.parametrize("number", range(5))
def test_shared(number, shared): fit()

@pytest.mark.parametrize("number", range(5))
def test_fixture(nanstab, number):
    made = setup()
    MADE.extend(weakref.ref(value) for value in (made.model, made.optimizer, *made.model.parameters()))
    nanstab.train(made, steps=3)

@pytest.mark.parametrize("number", range(10))
def test_broken(number): fit(bad=3)

def test_last(): fit()
"""


@pytest.mark.parametrize("options", [(), ("--nanstab", "--nanstab-headroom=0")], ids=["explicit", "all"])
def test_memory_is_flat(pytester, options):
    """With the collector off, all a test made is gone when it has ended, and there are as many tensors as before it."""
    ran = run_inside(pytester, TRAININGS, *options, conftest=COUNTS)
    watching = "--nanstab" in options
    assert ran.result.parseoutcomes() == {"passed": 51, "failed": 10} if watching else {"passed": 61}
    counts = json.loads((pytester.path / "counts.json").read_text())
    assert {alive for alive, _ in counts.values()} == {0}
    tensors = {name: number for name, (_, number) in counts.items() if number is not None}
    before = tensors["test_watched[1]"]
    assert {name for name, number in tensors.items() if number > before} == {
        f"test_{name}[{number}]" for name in ("shared", "fixture", "broken") for number in (1, 4)
    }
    assert {tensors[name] for name in tensors if tensors[name] > before} == {before + 9}  # the model of `shared`


LEAKING = """
KEPT = []
def test_leaks():
    model = nn.Linear(2, 1)
    MADE.append(weakref.ref(model))
    model.myself = [model]
"""


def test_the_counts_see_what_is_left_behind(pytester):
    """The control: a cycle of the test's own is still there."""
    run_inside(pytester, "import weakref\nMADE = []\n" + LEAKING, "--nanstab", conftest=COUNTS)
    assert json.loads((pytester.path / "counts.json").read_text())["test_leaks"][0] == 1
