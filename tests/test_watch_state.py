"""What stays: parameters, buffers and optimizer state, and the optimizers that are held to judge them."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from watched import at, batches, every_way, kinds, loss_of, mlp, recorded, train, zero_change

from pytest_nanstab import StabilityError, watch
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

NAN, INF = float("nan"), float("inf")


# -- parameters --------------------------------------------------------------------------------------------------------


def adam_without_eps(healthy):
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([w], lr=0.1, eps=1e-8 if healthy else 0.0)
    for _ in range(2):
        optimizer.zero_grad()
        (w * torch.tensor([1.0, 0.0])).sum().backward()
        optimizer.step()


def infinite_rate(healthy):
    model = mlp()
    train(model, torch.optim.SGD(model.parameters(), 0.1 if healthy else INF), 1)


def half_precision_eps(healthy):
    w = nn.Parameter(torch.ones(2, dtype=torch.float32 if healthy else torch.float16))
    optimizer = torch.optim.Adam([w], lr=0.01, foreach=False)
    for _ in range(2):
        optimizer.zero_grad()
        (w * torch.tensor([1.0, 0.0], dtype=w.dtype)).sum().backward()
        optimizer.step()


def weight_decay_overflow(healthy):
    w = nn.Parameter(torch.full((2,), 1e30))
    optimizer = torch.optim.SGD([w], lr=1e-3 if healthy else 1e20, weight_decay=0.1)
    for _ in range(2):
        w.grad = torch.zeros(2)
        optimizer.step()


def schedule_by_zero(healthy):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if healthy or step < 2 else NAN)
    for x, y in batches(3):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        schedule.step()


def written_by_hand(healthy):
    model = mlp()
    train(model, torch.optim.SGD(model.parameters(), 0.01), 3)
    with torch.no_grad():
        model[0].weight[0, 0] = 1.0 if healthy else NAN


BREAKS = [
    adam_without_eps,
    infinite_rate,
    half_precision_eps,
    weight_decay_overflow,
    schedule_by_zero,
    written_by_hand,
]


@every_way
@pytest.mark.parametrize("program", BREAKS)
def test_parameters_that_a_step_breaks(ask, program):
    """A parameter that is not finite is found although loss and gradients were."""
    assert ask(lambda: program(True)) == []
    findings = ask(lambda: program(False))
    assert kinds(findings)[:1] == ["nonfinite-parameter"]


def test_the_finding_shows_the_rate_and_its_cause():
    """A schedule that divided by zero is named as the cause."""
    (finding,) = recorded(lambda: schedule_by_zero(False))
    assert "lr is nan" in finding.cause
    assert finding.evidence["optimizer"] == "SGD, param group 0"


def decaying(bad_step):
    """A parameter is broken by hand after a step; the rate halves with every step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def body():
        for step, (x, y) in enumerate(batches(4), start=1):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
            if step == bad_step:
                with torch.no_grad():
                    model[2].bias.fill_(NAN)
            schedule.step()

    return recorded(body)[0].evidence


@pytest.mark.parametrize(("bad_step", "key"), [(4, "hyperparameters"), (2, "hyperparameters now")])
def test_hyperparameters_of_an_earlier_step_are_not_claimed(bad_step, key):
    """When steps have followed the one that is told, the rate shown is that of now."""
    evidence = decaying(bad_step)
    assert {name for name in evidence if name.startswith("hyperparameters")} == {key}
    assert evidence[key].startswith("lr ")


@every_way
def test_parameters_broken_before_the_first_step(ask):
    """A model that is NaN from the start is told from one that training broke."""
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(NAN)
    findings = ask(lambda: train(model, torch.optim.SGD(model.parameters(), 0.01), 3))
    assert kinds(findings) == ["nonfinite-parameter"]
    assert findings[0].phase == "init"
    assert findings[0].module == "2"


@every_way
def test_a_constant_mask_among_the_parameters(ask):
    """A parameter that takes no gradient may be -inf on purpose."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.mask = nn.Parameter(torch.tensor([0.0, -INF, 0.0, 0.0]), requires_grad=False)

        def forward(self, x):
            return torch.softmax(self.inner(x) + self.mask, -1)[:, :1]

    model = Masked()
    assert ask(lambda: train(model, torch.optim.Adam(model.parameters()), 4)) == []


# -- optimizer state ---------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(("size", "expected"), [(1e15, []), (1e22, ["nonfinite-optimizer-state"])])
def test_a_second_moment_that_overflows(ask, size, expected):
    """Adam squares the gradient: at 1e22 its state is infinite for good, and the parameter dead."""
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([w])

    def body():
        for _ in range(3):
            optimizer.zero_grad()
            (w * size).sum().backward()
            optimizer.step()

    assert kinds(ask(body)) == expected


class KeepsBest(torch.optim.SGD):
    """Keeps a bound that starts at infinity."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("best", torch.tensor(INF))
        return super().step(closure)


@every_way
def test_an_infinite_bound_in_the_state_is_healthy(ask):
    """A single infinity is a bound that nothing has lowered yet."""
    model = mlp()
    assert ask(lambda: train(model, KeepsBest(model.parameters(), 0.01), 3)) == []


# -- buffers -----------------------------------------------------------------------------------------------------------


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


def guarded_loop(model, bad, value=NAN, frozen=False):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for step, (x, y) in enumerate(batches(4), start=1):
        if frozen:
            model[1].eval()
        if step == bad:
            x[0] = value
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        if not torch.isfinite(loss):
            continue
        loss.backward()
        optimizer.step()


@every_way
@pytest.mark.parametrize("bad", [2, 4])
@pytest.mark.parametrize("value", [NAN, 1e38])
def test_statistics_poisoned_by_a_batch_that_was_skipped(ask, bad, value):
    """A guard that skips the step does not undo what the batch did to the running statistics."""
    healthy, poisoned = normed(), normed()
    assert ask(lambda: guarded_loop(healthy, 0)) == []
    findings = ask(lambda: guarded_loop(poisoned, bad, value))
    assert kinds(findings) == ["nonfinite-buffer"]
    assert findings[0].module == "1"
    assert "statistics" in findings[0].cause


@every_way
def test_a_frozen_batch_norm_is_not_poisoned(ask):
    """In eval mode statistics stay as they are."""
    model = normed()
    assert ask(lambda: guarded_loop(model, 2, frozen=True)) == []


class Sentinels(nn.Module):
    """Buffers of every kind that hold NaN or infinities on purpose."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -INF).triu(1))
        self.register_buffer("running_min", torch.full((6,), INF))
        self.register_buffer("running_max", torch.full((6,), -INF))
        self.register_buffer("limit", torch.tensor(INF))
        self.register_buffer("best", torch.tensor(INF))
        self.register_buffer("unset", torch.full((3,), NAN))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.steps += 1
        seen = x.detach()
        self.running_min[:4] = torch.minimum(self.running_min[:4], seen.amin(0))
        self.running_max[:4] = torch.maximum(self.running_max[:4], seen.amax(0))
        self.unset[0] = self.steps
        self.best = self.limit.clone()
        return (self.inner(x) @ torch.softmax(self.mask, -1))[:, :1]


@every_way
def test_sentinels_in_buffers_are_healthy(ask):
    """Masks, bounds that nothing has lowered, and NaN for "not set yet"."""
    model = Sentinels()

    def body():
        train(model, torch.optim.Adam(model.parameters()), 4)
        model.eval()
        with torch.no_grad():
            model(torch.randn(3, 4))

    assert ask(body) == []


def test_buffers_are_judged_at_every_step_when_asked():
    """`check_parameters` judges buffers, parameters and state right after the step that broke them."""
    model = mlp()
    with pytest.raises(StabilityError) as caught, Region(Options(check_parameters=True)):
        train(model, torch.optim.SGD(model.parameters(), 0.01), 3, before_step=lambda step: spoil(model, step))
    assert caught.value.findings[0].kind == "nonfinite-parameter"
    assert caught.value.findings[0].step == 2


def spoil(model, step):
    if step == 2:
        with torch.no_grad():
            model[2].bias.fill_(INF)


# -- the optimizers that are held --------------------------------------------------------------------------------------


@every_way
def test_a_short_lived_optimizer_is_judged(ask):
    """A model that was trained, broken and thrown away is judged all the same."""

    def body(broken):
        for seed in range(12):
            infinite_rate(not (broken and seed == 3))

    assert ask(lambda: body(False)) == []
    assert kinds(ask(lambda: body(True)))[:1] == ["nonfinite-parameter"]


@every_way
def test_many_optimizers_that_take_turns(ask):
    """One optimizer per parameter, stepped from hooks: all are counted, and the broken one is found."""

    def body(rate):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)], nn.Linear(4, 1))
        optimizers = {p: torch.optim.SGD([p], 0.01) for p in model.parameters()}
        first = next(iter(optimizers))

        def step(p):
            if p is first:
                optimizers[p].param_groups[0]["lr"] = rate
            optimizers[p].step()
            optimizers[p].zero_grad()

        handles = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
        for x, y in batches(3):
            loss_of(model, x, y).backward()
        for handle in handles:
            handle.remove()
        return optimizers

    assert ask(lambda: body(0.01)) == []
    assert kinds(ask(lambda: body(NAN)))[:1] in (["nonfinite-parameter"], ["nonfinite-loss"])


@pytest.mark.parametrize("region", [watch, zero_change])
def test_at_most_four_optimizers_are_held(region):
    """A watch keeps few of the user's objects alive, and none afterwards."""
    alive = []
    with region() as watched:
        for seed in range(10):
            model = mlp(seed)
            optimizer = torch.optim.Adam(model.parameters())
            train(model, optimizer, 2)
            alive.append((weakref.ref(model), weakref.ref(optimizer)))
        del model, optimizer
        gc.collect()
        assert sum(reference() is not None for _, reference in alive) <= 4
    gc.collect()
    assert not any(reference() for pair in alive for reference in pair)
    assert watched is not None


def test_nothing_of_the_users_is_kept():
    """After a region, also one with findings, model, optimizer, batch and loss die with their last name."""
    for bad in (0, 3):
        region = zero_change()
        with region:
            model = mlp()
            optimizer = torch.optim.Adam(model.parameters())
            train(model, optimizer, 60, spoil=at(bad, NAN))
            batch = torch.full((2, 4), NAN)
            loss = model(batch).sum()
            loss.backward()
        references = [weakref.ref(o) for o in (model, optimizer, batch, loss, *model.parameters())]
        del model, optimizer, batch, loss
        gc.collect()
        assert [reference() for reference in references] == [None] * len(references)
        assert region.run.steps == 60


# -- optimizers around optimizers --------------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    """Steps another optimizer, with the closure it is given."""

    def __init__(self, inner):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner = inner
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        loss = self.inner.step(closure)
        with torch.no_grad():
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)
        return loss


class SharpnessAware(torch.optim.Optimizer):
    """Climbs, evaluates again, and lets another optimizer step from where it was."""

    def __init__(self, inner):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner = inner

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        start = [p.clone() for p in self.param_groups[0]["params"]]
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=0.01)
        with torch.enable_grad():
            loss = closure()
        for p, before in zip(self.param_groups[0]["params"], start, strict=True):
            p.copy_(before)
        self.inner.step()
        return loss


@pytest.mark.parametrize("region", [watch, zero_change])
@pytest.mark.parametrize(("wrapper", "closure"), [(Lookahead, False), (Lookahead, True), (SharpnessAware, True)])
def test_a_wrapped_step_is_counted_once(region, wrapper, closure):
    """An optimizer that steps another is one step."""
    model = mlp()
    optimizer = wrapper(torch.optim.SGD(model.parameters(), 0.01))

    def evaluate(x, y):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    with region() as watched:
        for x, y in batches(5):
            if closure:
                optimizer.step(lambda x=x, y=y: evaluate(x, y))
            else:
                evaluate(x, y)
                optimizer.step()
    run = getattr(watched, "run", watched)
    assert run.steps == 5
    assert len(run.loss) == len(run.grad_norm) == 5
    assert run.findings == []


@every_way
def test_an_optimizer_that_raises(ask):
    """An error of the optimizer's own is the test's, and the watch goes on."""
    model = mlp()

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError(f"no {closure}")

    def body():
        x, y = next(batches(1))
        optimizer = Failing(model.parameters(), 0.01)
        loss_of(model, x, y).backward()
        with pytest.raises(RuntimeError, match="no"):
            optimizer.step()
        train(model, torch.optim.SGD(model.parameters(), 0.01), 2)

    assert ask(body) == []


# -- regions inside regions --------------------------------------------------------------------------------------------


def test_an_inner_watch_owns_its_region():
    """What an inner watch has seen is its own; the outer one says nothing about it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch() as outer:
        train(model, optimizer, 2)
        with watch(on_instability="record") as inner:
            train(model, optimizer, 3, spoil=at(2, NAN))
        with watch() as again:
            train(mlp(), torch.optim.SGD(mlp().parameters(), 0.01), 1)
    assert (outer.steps, inner.steps, again.steps) == (2, 3, 1)
    assert outer.findings == []
    assert kinds(inner.findings) == ["nonfinite-loss"]


def test_an_outer_watch_goes_on_after_an_inner_failure():
    """An inner failure that the test caught is consumed; the outer watch finds what comes later."""
    model = mlp()
    with zero_change() as outer:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        train(model, optimizer, 2)
        with pytest.raises(StabilityError), watch():
            train(model, optimizer, 2, spoil=at(1, INF))
        optimizer.zero_grad()
        train(model, optimizer, 2)
        assert outer.run.findings == []
        train(model, optimizer, 1, spoil=at(1, NAN))
    assert outer.run.steps == 5
    assert kinds(outer.run.findings) == ["nonfinite-loss"]


def test_watches_one_after_the_other():
    """Each watch begins anew."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        with watch() as run:
            train(model, optimizer, 2)
        assert run.steps == len(run.loss) == 2


def test_deep_copies_that_were_broken_elsewhere():
    """A copy of a model is a model of its own: the original stays healthy."""
    model = mlp()
    with watch() as run:
        train(model, torch.optim.SGD(model.parameters(), 0.01), 2)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].weight.fill_(NAN)
    assert run.findings == []
