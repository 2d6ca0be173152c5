"""Explained on the spot: the statements that computed a bad value are repeated, and leave no trace."""

from __future__ import annotations

import ast
import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_nanstab import Finding, StabilityError, watch
from pytest_nanstab.attribution.slices import Scope, line_of_backward, scope_of_frame, slice_of

torch.set_num_threads(1)


def found(body: Callable[[], object]) -> Finding:
    """The first finding of a watch around a body."""
    with pytest.raises(StabilityError) as caught, watch():
        body()
    return caught.value.findings[0]


def text_at(finding: Finding) -> str:
    path, line = finding.source.rsplit(":", 1)
    return Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def model() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    linear = nn.Linear(3, 3)
    return linear, torch.optim.SGD(linear.parameters(), 0.1)


# -- loops as people write them ----------------------------------------------------------------------------------------


def inline() -> None:
    net, optimizer = model()
    for _ in range(2):
        optimizer.zero_grad()
        out = net(torch.ones(2, 3))
        loss = torch.log(out - out).sum()  # here
        loss.backward()
        optimizer.step()


def in_a_helper() -> None:
    def step(net, optimizer, batch):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            out = net(batch)
            loss = torch.log(out - out).sum()  # here
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    losses = [step(*model(), torch.ones(2, 3)) for _ in range(2)]
    assert losses


class Trainer:
    def __init__(self) -> None:
        self.net, self.optimizer = model()
        self.seen: list[float] = []

    def loss(self, out: Tensor) -> Tensor:
        return torch.log(out - out).sum()  # here

    def fit(self) -> None:
        for batch in [torch.ones(2, 3)] * 2:
            loss = self.loss(self.net(batch))
            self.seen.append(0.0)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def in_one_expression() -> None:
    net, optimizer = model()
    out = net(torch.ones(2, 3))
    torch.log(out - out).sum().backward()  # here
    optimizer.step()


def summed_in_a_loop() -> None:
    net, optimizer = model()
    hidden, total = torch.ones(2, 3), 0.0
    for _ in range(3):
        hidden = net(hidden)
        total = total + torch.log(hidden - hidden).sum()  # here
    total.backward()
    optimizer.step()


def with_a_closure() -> None:
    net, _ = model()
    optimizer = torch.optim.LBFGS(net.parameters())
    batch = torch.ones(2, 3)

    def closure():
        optimizer.zero_grad()
        out = net(batch)
        loss = torch.log(out - out).sum()  # here
        loss.backward()
        return loss

    optimizer.step(closure)


def with_a_branch() -> None:
    net, optimizer = model()
    out = net(torch.ones(2, 3))
    if out.requires_grad:
        out = out * 2
        loss = torch.log(out - out).sum()  # here
    else:
        loss = out.sum()
    loss.backward()
    optimizer.step()


def several_losses() -> None:
    net, optimizer = model()
    out = net(torch.ones(2, 3))
    fine, bad = out.sum(), torch.log(out - out).sum()  # here
    torch.autograd.backward([fine, bad])
    optimizer.step()


class ByParts:
    """A trainer whose backward has returned when the step is made."""

    def __init__(self) -> None:
        self.net, self.optimizer = model()

    def loss(self, out: Tensor) -> Tensor:
        return torch.log(out - out).sum()  # here

    def train_step(self, batch: Tensor) -> Tensor:
        out = self.net(batch)
        loss = self.loss(out)
        loss.backward()
        return loss

    def two_functions(self) -> None:
        self.optimizer.zero_grad()
        self.train_step(torch.ones(2, 3))
        self.optimizer.step()

    def inside_a_closure(self) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            return self.train_step(torch.ones(2, 3))

        self.optimizer.step(closure)

    def without_a_step(self) -> None:
        self.train_step(torch.ones(2, 3))


LOOPS = [
    ByParts().two_functions,
    ByParts().inside_a_closure,
    ByParts().without_a_step,
    inline,
    in_a_helper,
    Trainer().fit,
    in_one_expression,
    summed_in_a_loop,
    with_a_closure,
    with_a_branch,
    several_losses,
]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_loops_as_people_write_them(loop):
    """The operation and its line are found without running anything but the failing computation again."""
    finding = found(loop)
    assert finding.op == "log"
    assert "# here" in text_at(finding)


def test_a_gradient_is_repeated_without_touching_the_users():
    """A fault of the backward pass; the gradients the user holds stay the ones that were found."""
    net, optimizer = model()
    kept: list[Tensor] = []

    def body():
        loss = torch.sqrt(net(torch.zeros(2, 3)) * 0).sum()  # here
        loss.backward()
        kept.append(net.weight.grad)
        optimizer.step()

    finding = found(body)
    assert (finding.op, finding.kind) == ("sqrt backward", "nonfinite-gradient")
    assert "# here" in text_at(finding)
    assert net.weight.grad is kept[0]


class Talkative(nn.Module):
    """A module with effects of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.calls = 0
        self.history: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        print("forward")  # noqa: T201
        self.calls += 1
        self.history.append(random.random() + np.random.rand())
        hidden = nn.functional.dropout(self.norm(self.linear(x)))
        return torch.log(hidden - hidden)


def run(talkative: Talkative, context: Any) -> list[Any]:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    optimizer = torch.optim.SGD(talkative.parameters(), 0.1)
    with contextlib.suppress(StabilityError), context:
        talkative(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    left = [talkative.calls, talkative.history, talkative.norm.num_batches_tracked.item()]
    return [*left, talkative.norm.running_mean.tolist(), torch.rand(1).item(), random.random(), np.random.rand()]


def test_no_trace_is_left(capsys):
    """Counters, lists, running statistics, random numbers and output are those of one run."""
    torch.manual_seed(1)
    plain = run(Talkative(), contextlib.nullcontext())
    capsys.readouterr()
    torch.manual_seed(1)
    with contextlib.nullcontext() as _:
        watched = run(Talkative(), watch())
    assert watched == plain
    assert capsys.readouterr().out == "forward\n"


def test_evaluation_is_explained_by_calling_the_module_again():
    """An output without a graph: the module's own line."""

    class Head(nn.Module):
        def forward(self, x):
            return x / x.sum()  # here

    def body():
        with torch.no_grad():
            Head().eval()(torch.zeros(3))

    finding = found(body)
    assert (finding.op, finding.phase) == ("div", "eval")
    assert "# here" in text_at(finding)


def test_what_cannot_be_repeated_is_not_guessed():
    """The bad loss came out of a generator that has moved on: the finding stays what the sink showed."""

    def losses(net):
        for _ in range(2):
            out = net(torch.ones(2, 3))
            yield torch.log(out - out).sum()

    def body():
        net, optimizer = model()
        for loss in losses(net):
            loss.backward()
            optimizer.step()

    finding = found(body)
    assert (finding.kind, finding.op, finding.cause) == ("nonfinite-loss", None, None)


def test_data_is_not_blamed_on_the_module():
    """A NaN target: the field, not the operation that met it."""
    net, optimizer = model()

    def body():
        target = torch.from_numpy(np.array([[1.0, np.nan, 2.0]], dtype=np.float32))
        loss = nn.functional.mse_loss(net(torch.ones(1, 3)), target)
        loss.backward()
        optimizer.step()

    finding = found(body)
    assert (finding.kind, finding.phase) == ("nonfinite-input", "data")
    assert finding.evidence["columns"] == [1]


# -- slices ------------------------------------------------------------------------------------------------------------


def source_of(text: str, line: int, values: dict[str, str], tmp_path: Path) -> str | None:
    """The slice that computes what `backward` differentiates at a line; values say what each name is worth."""
    file = tmp_path / "program.py"
    file.write_text(text, encoding="utf-8")
    scope = Scope(str(file), "<module>", 1, line, values)
    cut = slice_of(scope, line, lambda worth: worth)
    return None if cut is None else "\n".join(map(ast.unparse, cut.body))


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("out = net(x)\nprint(out)\nloss = out.sum()\nloss.backward()\n", 4, "out = net(x)\nloss = out.sum()"),
        ("for x in data:\n    out = net(x)\n    out.sum().backward()\n", 3, "out = net(x)"),
        (
            "out = net(x)\nout = out * 2\nloss = out.sum()\nloss.backward()\n",
            4,
            "out = net(x)\nout = out * 2\nloss = out.sum()",
        ),
        ("loss = 0\nloss += net(x)\nloss.backward()\n", 3, "loss = 0\nloss += net(x)"),
        ("loss = next(losses)\nloss.backward()\n", 2, None),
        ("out = net(x)\nfor y in ys:\n    loss = f(out, y)\n    loss.backward()\n", 4, None),
    ],
)
def test_slices(tmp_path, text, line, expected):
    """What is needed and nothing more; nothing where an effect would have to be repeated, or another turn of a loop."""
    graph = dict.fromkeys(("out", "loss"), "gone")
    assert source_of(text, line, {**graph, "x": "good", "net": "good"}, tmp_path) == expected


def test_the_line_of_the_last_backward():
    """From an optimizer's step back to the call that made its gradients."""

    def body():
        loss = torch.ones(1, requires_grad=True).sum()
        loss.backward()
        return line_of_backward(scope_of_frame(sys._getframe()))

    assert body() == body.__code__.co_firstlineno + 2


def handed_to_a_helper() -> None:
    def optimize(optimizer, objective):
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()

    net, optimizer = model()
    out = net(torch.ones(2, 3))
    loss = torch.log(out - out).sum()  # here
    optimize(optimizer, loss)


class Engine:
    """A stand-in for what calls `backward` for its users."""

    def backward(self, objective: Tensor, **more: Any) -> None:
        objective.backward(**more)


def through_an_engine() -> None:
    net, optimizer = model()
    engine = Engine()
    out = net(torch.ones(2, 3))
    loss = torch.log(out - out).sum()  # here
    engine.backward(loss)
    optimizer.step()


@pytest.mark.parametrize("loop", [handed_to_a_helper, through_an_engine], ids=lambda loop: loop.__name__)
def test_a_loss_that_is_handed_on(loop):
    """The statements are those of the function that made the loss."""
    finding = found(loop)
    assert finding.op == "log"
    assert "# here" in text_at(finding)


def test_preprocessing_in_the_loop_is_no_bad_data():
    """A finite batch whose root is taken on the way to the model: the root is to blame, not the loader."""
    net, optimizer = model()

    def body():
        for batch in (torch.ones(2, 3), -torch.ones(2, 3)):
            rooted = torch.sqrt(batch)  # here
            loss = net(rooted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    finding = found(body)
    assert (finding.op, finding.step) == ("sqrt", 2)
    assert "# here" in text_at(finding)


def test_a_state_carried_from_turn_to_turn_is_not_taken_for_its_beginning():
    """What a name held when the turn began is gone: nothing is claimed about it."""
    net, optimizer = model()

    def body():
        state = torch.ones(2, 3)
        for turn in range(3):
            state = state.detach()
            if turn == 2:
                state = state * 0
            state = state / state.norm()
            loss = net(state).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    finding = found(body)
    assert finding.op is None or "norm" in text_at(finding)


# -- what must not be repeated -----------------------------------------------------------------------------------------

SEEN: list[int] = []
COUNT = 0


def counted(value: Tensor) -> Tensor:
    global COUNT  # noqa: PLW0603 - what is tested
    COUNT += 1
    return value


def listed(value: Tensor) -> Tensor:
    SEEN.append(1)
    return value


EFFECTS = {
    "a batch is drawn": lambda out, stream, _: out + next(stream),
    "a list of the module's is changed": lambda out, *_: listed(out),
    "a global is written to": lambda out, *_: counted(out),
    "a file is written": lambda out, _, path: out + path.write_text("x"),
}


@pytest.mark.parametrize("effect", list(EFFECTS.values()), ids=list(EFFECTS))
def test_what_has_an_effect_is_not_repeated(effect, tmp_path):
    """The finding stays without its operation; the effect happened once."""
    net, optimizer = model()
    stream = iter([torch.ones(1), torch.ones(1)])
    SEEN.clear()
    before = COUNT

    def body():
        out = net(torch.ones(2, 3))
        touched = effect(out, stream, tmp_path / "file")
        loss = torch.log(touched - touched).sum()
        loss.backward()
        optimizer.step()

    assert found(body).op is None
    assert (len(SEEN), COUNT - before, len(list(stream))) in {(0, 0, 1), (1, 0, 2), (0, 1, 2), (0, 0, 2)}


def test_in_place_changes_of_a_batch_are_undone():
    """An augmentation that writes into the data set is repeated on the same data, and leaves it as one run would."""
    net, optimizer = model()
    data = [torch.ones(2, 3)]

    def body():
        loss = torch.log(net(data[0].add_(1.0)).sum() * 0)
        loss.backward()
        optimizer.step()

    assert found(body).op == "log"
    assert torch.equal(data[0], torch.full((2, 3), 2.0))


def test_numbers_of_another_draw_are_not_stated():
    """With dropout before the fault the repetition draws anew: rows are left out, and the finding says why."""
    net, optimizer = model()

    def body():
        torch.manual_seed(0)
        hidden = nn.functional.dropout(net(torch.ones(8, 3)), 0.9)
        loss = (hidden / hidden.norm(dim=1, keepdim=True)).sum()  # here
        loss.backward()
        optimizer.step()

    finding = found(body)
    assert finding.op in ("div", "norm backward")
    assert "rows" not in finding.evidence
    assert "other random numbers" in finding.evidence["note"]


class MaskedMean(nn.Module):
    """Its mean is over nothing, forward or only in its derivative, where a batch has no valid row."""

    def __init__(self, forward):
        super().__init__()
        self.lin, self.forward_fault = nn.Linear(2, 1), forward

    def forward(self, x):
        valid = x[:, 0] > 0
        if self.forward_fault:
            return (self.lin(x)[:, 0] * valid).sum() / valid.sum()  # culprit
        return (self.lin(x)[:, 0] * valid).square().sum().sqrt()  # culprit


@pytest.mark.parametrize(("forward", "op"), [(True, "div"), (False, "sqrt")])
def test_an_earlier_batch_of_an_accumulated_step(forward, op):
    """When the step comes, other batches have been computed since the one that broke it: that one is repeated."""
    model = MaskedMean(forward)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    empty = torch.tensor([[-1.0, 1.0], [-2.0, 1.0]])
    with watch(on_instability="record") as run:
        for batch in (torch.ones(2, 2), empty, torch.ones(2, 2)):
            model(batch).backward()
        optimizer.step()
    (finding,) = run.findings[:1]
    assert finding.kind == ("nonfinite-loss" if forward else "nonfinite-gradient")
    assert op in finding.op
    path, line = finding.source.rsplit(":", 1)
    assert "# culprit" in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
