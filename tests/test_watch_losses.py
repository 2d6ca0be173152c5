"""Losses: what `backward()` is given, what becomes of a bad one, and guards that leave its step out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from watched import at, batches, every_way, kinds, loss_of, mlp, recorded, train

from pytest_nanstab import NonFiniteError, watch

NAN, INF = float("nan"), float("inf")


@every_way
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("step", [1, 3])
def test_a_bad_loss_is_found_at_its_step(ask, value, step):
    """A loss that is NaN or infinite is named with the step that used it."""
    model = mlp()
    findings = ask(lambda: train(model, torch.optim.SGD(model.parameters(), 0.01), 5, spoil=at(step, value)))
    assert findings[0].kind == "nonfinite-loss"
    assert findings[0].step == step
    assert findings[0].source is not None
    assert "watched.py" in findings[0].source


@every_way
def test_healthy_training_has_no_finding(ask):
    """The twin of every fault here: the same loop without it."""
    model = mlp()
    assert ask(lambda: train(model, torch.optim.Adam(model.parameters()), 60)) == []


def test_the_step_with_a_bad_loss_is_not_made():
    """A watch that raises does so before parameters change."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError), watch():
        train(model, optimizer, 1, spoil=at(1, NAN))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every_way
def test_a_late_bad_loss_is_found(ask):
    """A bad loss long after outputs and gradients are no longer judged closely is found all the same."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    findings = ask(lambda: train(model, optimizer, 250, spoil=at(240, NAN)))
    assert findings[0].kind == "nonfinite-loss"
    assert findings[0].step == 240


# -- the forms of backward ---------------------------------------------------------------------------------------------


def through_function(model, optimizer, value):
    for x, y in batches(2):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, x, y) * value)
        optimizer.step()


def several_losses(model, optimizer, value):
    for x, y in batches(2):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        torch.autograd.backward([loss, loss * value])
        optimizer.step()


def with_grad_tensors(model, optimizer, value):
    for x, y in batches(2):
        optimizer.zero_grad()
        rows = (model(x) - y) ** 2 * value
        torch.autograd.backward(rows, torch.full_like(rows, 0.2))
        optimizer.step()


def with_gradient(model, optimizer, value):
    for x, y in batches(2):
        optimizer.zero_grad()
        rows = (model(x) - y) ** 2 * value
        rows.backward(gradient=torch.ones_like(rows))
        optimizer.step()


def retained(model, optimizer, value):
    for x, y in batches(2):
        optimizer.zero_grad()
        loss = loss_of(model, x, y) * value
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()


def accumulated(model, optimizer, value):
    for _ in range(2):
        optimizer.zero_grad()
        for index, (x, y) in enumerate(batches(3)):
            (loss_of(model, x, y) * (value if index == 1 else 1.0) / 3).backward()
        optimizer.step()


def in_closure(model, optimizer, value):
    for x, y in batches(2):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model, x, y) * value
            loss.backward()
            return loss

        optimizer.step(closure)


def as_keyword_closure(model, optimizer, value):
    for x, y in batches(2):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model, x, y) * value
            loss.backward()
            return loss

        optimizer.step(closure=closure)


FORMS = [
    through_function,
    several_losses,
    with_grad_tensors,
    with_gradient,
    retained,
    accumulated,
    in_closure,
    as_keyword_closure,
]


@every_way
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_backward_is_seen(ask, form):
    """A bad loss is found however it is differentiated; its healthy twin has no finding."""
    model = mlp()
    findings = ask(lambda: form(model, torch.optim.SGD(model.parameters(), 0.01), NAN))
    assert findings[0].kind == "nonfinite-loss"
    assert findings[0].step == 1
    model = mlp()
    assert ask(lambda: form(model, torch.optim.SGD(model.parameters(), 0.01), 1.0)) == []


@every_way
def test_elements_of_weight_zero_do_not_count(ask):
    """A masked element of a non-scalar loss may be infinite."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        for x, y in batches(2):
            optimizer.zero_grad()
            rows = torch.cat([(model(x) - y) ** 2, torch.full((1, 1), INF)])
            weights = torch.ones_like(rows)
            weights[-1] = 0
            rows.backward(weights)
            optimizer.step()

    assert ask(body) == []


@every_way
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(ask, search):
    """LBFGS evaluates its closure many times: its first evaluation is the step's loss."""

    def body(value):
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5, line_search_fn=search)
        in_closure(model, optimizer, value)

    assert ask(lambda: body(1.0)) == []
    assert kinds(ask(lambda: body(NAN)))[0] == "nonfinite-loss"


class Backtracking(torch.optim.Optimizer):
    """Tries a far point, and goes half as far when the loss there is not finite."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            gradients = [p.grad.clone() for p in group["params"]]
            for rate in (1e30, 1e-3):
                start = [p.clone() for p in group["params"]]
                for p, gradient in zip(group["params"], gradients, strict=True):
                    p.sub_(gradient * rate)
                with torch.enable_grad():
                    if math.isfinite(closure()):
                        break
                for p, before in zip(group["params"], start, strict=True):
                    p.copy_(before)


@every_way
def test_a_bad_trial_point_of_a_line_search_is_no_finding(ask):
    """A line search may step through a point with an infinite loss."""
    model = nn.Linear(4, 1)
    optimizer = Backtracking(model.parameters())
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, *next(batches(1)))
        loss.backward()
        seen.append(loss.item())
        return loss.item()

    assert ask(lambda: [optimizer.step(closure) for _ in range(3)]) == []
    assert math.inf in seen


@every_way
def test_double_backward_and_gradient_penalty(ask):
    """`autograd.grad` with `create_graph`, and gradients that keep a graph, are healthy."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.001)

    def body():
        for x, y in batches(3):
            optimizer.zero_grad()
            x.requires_grad_()
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (nn.functional.mse_loss(out, y) + slope.pow(2).mean()).backward()
            optimizer.step()

    assert ask(body) == []


@every_way
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_gradients_with_a_graph(ask):
    """`backward(create_graph=True)` leaves gradients that require gradients; they are measured all the same."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.001)

    def body(value):
        for x, y in batches(3):
            optimizer.zero_grad()
            loss_of(model, x, y).backward(create_graph=True)
            with torch.no_grad():
                model[0].weight.grad.mul_(value)
            optimizer.step()
        optimizer.zero_grad()

    assert ask(lambda: body(1.0)) == []
    assert kinds(ask(lambda: body(NAN)))[0] in ("nonfinite-gradient", "nonfinite-parameter")


@every_way
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.cpu.amp")  # torch 2.4's own
def test_checkpointing(ask, reentrant):
    """A checkpointed part of the model is as good as any: bad losses are found, healthy ones and guards are not."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def loop(bad, guard):
        for step, (x, y) in enumerate(batches(4), start=1):
            optimizer.zero_grad()
            x.requires_grad_()
            loss = nn.functional.mse_loss(checkpoint(model, x, use_reentrant=reentrant), y)
            loss = loss * NAN if step == bad else loss
            loss.backward()
            if guard and not math.isfinite(loss.item()):
                continue
            optimizer.step()

    assert ask(lambda: loop(0, False)) == []
    assert ask(lambda: loop(2, True)) == []
    assert ask(lambda: loop(4, True)) == []
    findings = ask(lambda: loop(2, False))
    assert findings[0].kind == "nonfinite-loss"
    assert findings[0].step == 2


# -- guards ------------------------------------------------------------------------------------------------------------


def clear_none(model, optimizer):
    optimizer.zero_grad(set_to_none=True)


def clear_zero(model, optimizer):
    optimizer.zero_grad(set_to_none=False)


def clear_module(model, optimizer):
    model.zero_grad(set_to_none=False)


def clear_by_hand(model, optimizer):
    for p in model.parameters():
        p.grad = None


CLEARINGS = [clear_none, clear_zero, clear_module, clear_by_hand]


@every_way
@pytest.mark.parametrize("clear", CLEARINGS)
@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("bad", [1, 3, 5])
def test_a_guard_that_skips_the_step_is_healthy(ask, clear, at_start, bad):
    """A loop that looks at its loss and leaves a bad step out is right, wherever it clears gradients."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())

    def body():
        for step, (x, y) in enumerate(batches(5), start=1):
            if at_start:
                clear(model, optimizer)
            loss = loss_of(model, x, y)
            loss = loss * NAN if step == bad else loss
            loss.backward()
            if math.isfinite(loss.item()):
                optimizer.step()
            elif at_start:
                continue
            if not at_start:
                clear(model, optimizer)

    assert ask(body) == []


@every_way
@pytest.mark.parametrize("bad", [1, 3])
def test_a_guard_before_backward_is_healthy(ask, bad):
    """A loop that leaves a bad batch out before it differentiates anything is right."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())

    def body():
        for step, (x, y) in enumerate(batches(3), start=1):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x * (NAN if step == bad else 1.0)), y)
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()

    assert ask(body) == []


@every_way
@pytest.mark.parametrize("bad", [1, 3])
def test_a_guard_before_backward_when_the_model_overflows(ask, bad):
    """The same for NaN that the model itself made of a finite batch, between other steps or after them."""
    model = nn.Sequential(nn.Linear(4, 4), Overflowing())
    optimizer = torch.optim.Adam(model.parameters())

    def body():
        for step, (x, _) in enumerate(batches(4 if bad == 1 else 3), start=1):
            optimizer.zero_grad()
            loss = model(x * (1e30 if step == bad else 1.0)).mean()
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()

    assert ask(body) == []


class Overflowing(nn.Module):
    def forward(self, x):
        return torch.exp(x.abs() - 10) / torch.exp(x.abs() - 10).sum()


@every_way
@pytest.mark.parametrize("first", [True, False])
def test_a_guard_on_the_norm_is_healthy(ask, first):
    """`if not isfinite(norm): continue` after a clip is right, also for the only batch and without clearing."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())

    def step(value):
        x, y = next(batches(1))
        optimizer.zero_grad()
        (loss_of(model, x, y) * value).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()

    assert ask(lambda: [step(v) for v in ([NAN] if first else [1.0, NAN])]) == []
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    assert ask(lambda: [step(v) for v in (1.0, NAN, 1.0)]) == []


@every_way
def test_a_guard_that_zeroes_and_steps(ask):
    """Clearing the gradients and stepping all the same is a way to leave a step out."""
    for set_to_none in (True, False):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def guard(step, model=model, set_to_none=set_to_none):
            if step == 2:
                model.zero_grad(set_to_none=set_to_none)

        def body(model=model, optimizer=optimizer, guard=guard):
            train(model, optimizer, 4, spoil=at(2, NAN), before_step=guard)

        assert ask(body) == []


@every_way
def test_sanitised_gradients_are_a_finding(ask):
    """`nan_to_num_` on the gradients of a NaN loss hides it: the step that follows used it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def sanitise(_):
        for p in model.parameters():
            p.grad.nan_to_num_(0.0, 0.0, 0.0)

    findings = ask(lambda: train(model, optimizer, 4, spoil=at(2, NAN), before_step=sanitise))
    assert findings[0].kind == "nonfinite-loss"
    assert findings[0].step == 2
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    assert ask(lambda: train(model, optimizer, 4, before_step=sanitise)) == []


@every_way
def test_a_bad_loss_with_zero_gradients_is_a_finding(ask):
    """A NaN that is added to the loss leaves gradients alone, and the step used it; also after a clip."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body(clip):
        for step, (x, y) in enumerate(batches(3), start=1):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            (loss * 0.0 + NAN if step == 2 else loss).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    assert kinds(ask(lambda: body(False))) == ["nonfinite-loss"]
    assert kinds(ask(lambda: body(True))) == ["nonfinite-loss"]


@every_way
def test_a_guard_in_adversarial_training(ask):
    """An input that gets a gradient too keeps it for ever; a guard that clears the parameters' is enough."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        for step, (x, y) in enumerate(batches(4), start=1):
            optimizer.zero_grad()
            loss = loss_of(model, x.requires_grad_(), y)
            loss = loss * NAN if step == 2 else loss
            loss.backward()
            if math.isfinite(loss.item()):
                optimizer.step()

    assert ask(body) == []


@every_way
def test_a_guard_while_something_else_gets_gradients(ask):
    """Optimising an image through a model whose own gradients nobody clears."""
    model = mlp()
    image = torch.zeros(5, 4, requires_grad=True)
    optimizer = torch.optim.SGD([image], 0.01)

    def body():
        for step in range(1, 5):
            optimizer.zero_grad()
            loss = model(image).pow(2).mean()
            loss = loss * NAN if step == 4 else loss
            loss.backward()
            if math.isfinite(loss.item()):
                optimizer.step()

    assert ask(body) == []


@every_way
def test_a_bad_loss_without_any_optimizer(ask):
    """A test that only looks at gradients has no step; its bad loss is judged at the end."""
    model = mlp()
    x, y = next(batches(1))
    assert ask(lambda: loss_of(model, x, y).backward()) == []
    model.zero_grad()
    bad = loss_of(model, x, y) * NAN
    assert kinds(ask(bad.backward)) == ["nonfinite-loss"]


@every_way
def test_a_leftover_micro_batch_is_healthy(ask):
    """A bad loss that is left in the accumulation when the loop ends was never used."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        optimizer.zero_grad()
        for index, (x, y) in enumerate(batches(5), start=1):
            (loss_of(model, x, y) * (NAN if index == 5 else 1.0)).backward()
            if index % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()

    assert ask(body) == []


# -- the data ----------------------------------------------------------------------------------------------------------


class Batch:
    """A class of the user's own, as graph libraries have them."""

    def __init__(self, x, y):
        self.store = {"x": x, "y": y}


class OwnBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, batch):
        return self.inner(batch.store["x"])


class Keywords(OwnBatch):
    def forward(self, *, x, mask=None):
        return self.inner(x if mask is None else x * mask)


class Dictionary(OwnBatch):
    def forward(self, batch):
        return self.inner(batch["x"])


CALLS = {
    "positional": (mlp, lambda model, x, _: model(x)),
    "keyword": (Keywords, lambda model, x, _: model(x=x, mask=None)),
    "dict": (Dictionary, lambda model, x, y: model({"x": x, "y": y})),
    "nested": (Dictionary, lambda model, x, y: model({"x": x, "meta": [{"y": y}]})),
    "own class": (OwnBatch, lambda model, x, y: model(Batch(x, y))),
}


@every_way
@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_data_is_named_as_data(ask, form, bad):
    """NaN or Inf that was in the batch is the batch's fault, however it is handed over."""
    make, call = CALLS[form]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body(value):
        for step, (x, y) in enumerate(batches(3), start=1):
            if step == 2:
                x[1, 2] = value
            optimizer.zero_grad()
            nn.functional.mse_loss(call(model, x, y) * 1.0, y).backward()
            optimizer.step()

    assert ask(lambda: body(1.0)) == []
    findings = ask(lambda: body(bad))
    if bad == INF:  # tanh makes a finite number of an infinite one, or a NaN of two
        assert kinds(findings[:1]) in ([], ["nonfinite-input"], ["nonfinite-gradient"], ["nonfinite-parameter"])
        return
    assert findings[0].kind == "nonfinite-input"
    assert findings[0].step == 2
    assert findings[0].evidence["rows"] == [1]
    assert findings[0].evidence["columns"] == [2]


@pytest.mark.parametrize(
    ("places", "rows", "columns"),
    [
        (((slice(None), 2),), [0, 1, 2, 3, 4], [2]),
        (((1, 2), (4, 0)), [1, 4], [0, 2]),
        (((1, 2), (1, 3)), [1], [2, 3]),
    ],
)
def test_bad_data_is_named_with_all_rows_and_columns(places, rows, columns):
    """Not only where the first bad value stands."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        (x, y) = next(batches(1))
        for place in places:
            x[place] = NAN
        loss_of(model, x, y).backward()
        optimizer.step()

    (finding,) = recorded(body)
    assert (finding.kind, finding.evidence["rows"], finding.evidence["columns"]) == ("nonfinite-input", rows, columns)


@every_way
def test_late_bad_data_is_named_as_data(ask):
    """The same after hundreds of steps, when outputs are only sampled."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        for step, (x, y) in enumerate(batches(300), start=1):
            if step == 290:
                x[0, 0] = NAN
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()

    assert kinds(ask(body)) == ["nonfinite-input"]


@every_way
def test_bad_data_that_no_step_used_is_healthy(ask):
    """A test of a guard may feed NaN, once, before anything was trained."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        loss = model(torch.full((2, 4), NAN)).mean()
        loss.backward()
        if math.isfinite(loss.item()):
            optimizer.step()

    assert ask(body) == []


@every_way
def test_a_bad_batch_inside_an_accumulation_is_named(ask):
    """Data that broke one of several micro-batches is named at the step that used them."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def body():
        for _ in range(2):
            optimizer.zero_grad()
            for index, (x, y) in enumerate(batches(3)):
                if index == 1:
                    x[0, 0] = NAN
                loss_of(model, x, y).backward()
            optimizer.step()

    assert kinds(ask(body)) == ["nonfinite-input"]


# -- what a finding says -----------------------------------------------------------------------------------------------


@every_way
def test_a_finding_names_the_guilty_line(ask):
    """The finding's line is the user's own: the one that made the value bad, not the one that used it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = next(batches(1))

    def body():
        loss = loss_of(model, x, y) * NAN  # this line
        loss.backward()
        optimizer.step()

    (finding,) = ask(body)
    path, line = finding.source.rsplit(":", 1)
    assert path.endswith("test_watch_losses.py")
    assert "# this line" in Path(__file__).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_only_the_root_cause_is_recorded():
    """A run that goes on with NaN parameters has one non-finite finding, not one per step."""
    model = mlp()
    with watch(on_instability="record") as run:
        train(model, torch.optim.SGD(model.parameters(), 0.01), 6, spoil=at(2, NAN))
    assert kinds(run.findings) == ["nonfinite-loss"]
    assert run.steps == 6
