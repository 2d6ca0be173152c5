"""`torch.compile` in a watch: the same graphs, breaks and recompiles as without, and all that is outside is judged."""

from __future__ import annotations

import contextlib
import shutil
import warnings

import pytest
import torch
from torch import nn
from watched import TORCH, every_way, kinds, raised, sampled, zero_change

from pytest_nanstab import watch

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]
BACKENDS = [
    "eager",
    pytest.param("aot_eager", marks=pytest.mark.slow),
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def explicit_with_everything():
    return watch(min_headroom_bits=1e-3, max_update_ratio=1e9, max_grad_norm=1e9)


REGIONS = [watch, zero_change, explicit_with_everything]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class Program:
    """A model, its optimizer, and a step that a subclass compiles in its own way."""

    def __init__(self, backend, fault=None):
        self.model, self.fault, self.backend = network(), fault, backend
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.build()

    def build(self):
        raise NotImplementedError

    def compile(self, function):
        return torch.compile(function, backend=self.backend)

    def spoiled(self, x):
        """The fault comes with the data: the graph is one."""
        return torch.full_like(x, -1.0) if self.fault else x

    def run(self, steps=5, bad=3):
        losses = []
        for step in range(1, steps + 1):
            x = torch.full((5, 4), 0.1 * step)
            losses.append(self.step(self.spoiled(x) if step == bad else x).detach().clone())
        return [*losses, *(p.detach() for p in self.model.parameters())]

    def loss(self, out, x):
        return (out - 1).square().mean() + 0 * torch.log(x.sum())

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.loss(self.called(x), x)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss


class Model(Program):
    """`torch.compile(model)`."""

    def build(self):
        self.called = self.compile(self.model)


class Function(Program):
    """A compiled function that calls a model, beside calls that are not compiled."""

    def build(self):
        self.called = self.compile(lambda x: self.model(x))

    def step(self, x):
        loss = super().step(x)
        with torch.no_grad():
            self.model(x.abs())
        return loss


class Loss(Program):
    """Model and loss compiled together, with gradients off inside for a part."""

    def build(self):
        def whole(x):
            with torch.no_grad():
                scale = self.model(x).abs().mean() * 0 + 1
            return self.loss(self.model(x) * scale, x)

        self.called = self.compile(whole)

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.called(x)
        loss.backward()
        self.optimizer.step()
        return loss


class Step(Program):
    """The optimizer's step compiled, as the recipe for it shows."""

    def build(self):
        self.called = self.model
        self.stepping = self.compile(lambda: self.optimizer.step())

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), x)
        loss.backward()
        self.stepping()
        return loss


class Everything(Program):
    """Forward, backward, clip and step in one compiled function."""

    def build(self):
        def whole(x):
            self.optimizer.zero_grad()
            loss = self.loss(self.model(x), x)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            return loss

        self.step = self.compile(whole)


PROGRAMS = [Model, Function, Loss, *(pytest.param(long, marks=pytest.mark.slow) for long in (Step, Everything))]
every_program = pytest.mark.parametrize("program", PROGRAMS)


def counted(program, backend, context):
    """(graphs, breaks), the numbers of a run, and the watch."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = program(backend)
        with context as watched:
            values = made.run()
    graphs = counters["stats"].get("unique_graphs", 0)
    return (graphs, sum(counters["graph_break"].values())), values, watched


@every_program
@every_backend
def test_the_same_graphs(program, backend):
    """No graph, break or recompile more than without a watch, the same numbers to the last bit, and every step seen."""
    (graphs, breaks), plain, _ = counted(program, backend, contextlib.nullcontext())
    assert graphs >= 1
    if program in (Model, Function, Loss):
        assert (graphs, breaks) == (1, 0)
    for region in REGIONS if backend == "eager" else REGIONS[:1]:
        (now, broken), values, watched = counted(program, backend, region())
        run = getattr(watched, "run", watched)
        assert now <= graphs, region
        assert broken <= breaks, region
        assert all(map(torch.equal, plain, values)), region
        assert (run.steps, run.findings) == (5, [])
        assert run.loss == pytest.approx([loss.item() for loss in plain[:5]])
        assert None not in run.grad_norm


@every_program
@pytest.mark.parametrize("ask", [raised, sampled])
def test_a_fault_in_compiled_code(ask, program):
    """The log of a negative number in the third step; that its twin has none is seen above."""
    torch._dynamo.reset()
    (finding,) = ask(lambda: program("eager", fault=True).run())[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", 3)


class Evaluated(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 1)

    def forward(self, x):
        return torch.sqrt(self.lin(x) * 0 + x[:, :1])


@every_way
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_outputs_of_compiled_models(ask, backend):
    """An evaluation of a compiled model is judged at its output."""
    torch._dynamo.reset()

    def body(value):
        model = torch.compile(Evaluated().eval(), backend=backend)
        with torch.no_grad():
            model(torch.ones(2, 4))
            model(torch.full((2, 4), value))

    assert kinds(ask(lambda: body(-1.0))) == ["nonfinite-output"]
    assert ask(lambda: body(1.0)) == []


@every_way
def test_gradients_of_compiled_models(ask):
    """A slope that is infinite at 0, inside a compiled backward."""
    torch._dynamo.reset()

    def body(value):
        model = Evaluated()
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            compiled(torch.full((2, 4), value)).sum().backward()
            optimizer.step()

    (finding,) = ask(lambda: body(0.0))[:1]
    assert finding.kind == "nonfinite-gradient"
    assert ask(lambda: body(1.0)) == []


def test_compiled_before_a_watch_and_used_after():
    """Into a watch, out of it and into the next: at most once is compiled again, for the hook on outermost calls."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = network()
    function = torch.compile(lambda x: model(x).sum(), backend="eager")
    function(torch.ones(2, 4)).backward()
    for _ in range(4):
        for region in (watch, zero_change):
            with region():
                function(torch.ones(2, 4)).backward()
            function(torch.ones(2, 4)).backward()
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.skipif(TORCH < (2, 6), reason="this torch cannot compile `train()`")
def test_a_full_graph_stays_one():
    """`fullgraph=True` raises at the first break: none is added to a model, a loss and a clip."""
    torch._dynamo.reset()
    model = network()

    @torch.compile(backend="eager", fullgraph=True)
    def whole(x):
        model.train()
        with torch.no_grad():
            seen = model(x)
        return (model(x) - seen).square().mean()

    for region in REGIONS:
        with region():
            for _ in range(3):
                whole(torch.ones(2, 4)).backward()
