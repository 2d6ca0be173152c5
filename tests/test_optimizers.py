"""torch.optim's whole family, found by looking, and optimizers as people write them: unchanged, counted, judged."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from watched import every_way, kinds, zero_change

from pytest_nanstab import watch

NAN = float("nan")
STEPS, BAD = 7, 4


def family():
    """Every optimizer that torch offers."""
    offered = vars(torch.optim).values()
    return [
        kind for kind in offered if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    ]


SWITCHES = ["foreach", "fused", "maximize", "amsgrad", "nesterov", "centered"]
SWITCHES += ["capturable"] if torch.cuda.is_available() else []  # torch refuses it on a CPU


def plainly(kind):
    """At its full rate LBFGS with its line search diverges on this problem, which would be found."""
    return {"lr": 0.1} if kind is torch.optim.LBFGS else {}


def variants():
    """(class, arguments) of each optimizer as it comes, and with each of its switches on."""
    for kind in family():
        yield pytest.param(kind, plainly(kind), id=kind.__name__)
        taken = inspect.signature(kind.__init__).parameters
        for name in SWITCHES:
            diverges = kind is torch.optim.LBFGS and name == "maximize"
            if name in taken and taken[name].default in (None, False) and not diverges:
                more = {"momentum": 0.9} if name == "nesterov" else {}
                yield pytest.param(kind, {name: True, **more}, id=f"{kind.__name__}-{name}")
    yield pytest.param(torch.optim.LBFGS, {"lr": 0.1, "line_search_fn": "strong_wolfe"}, id="LBFGS-strong_wolfe")
    yield pytest.param(torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}, id="SGD-momentum")
    yield pytest.param(torch.optim.Adam, {"lr": torch.tensor(1e-3)}, id="Adam-tensor lr")


every_variant = pytest.mark.parametrize(("kind", "arguments"), list(variants()))


class Bag(nn.Module):
    """Sums of embeddings, with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(10, 1, mode="sum", sparse=True)

    def forward(self, x):
        return self.table((x.abs() * 3).long().clamp(max=9))


def model_for(kind):
    """Something that the optimizer takes: Muon wants matrices, SparseAdam sparse gradients."""
    torch.manual_seed(0)
    if kind.__name__ == "SparseAdam":
        return Bag()
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))


def trained(model, optimizer, *, fault=None, steps=STEPS):
    """The losses of a plain loop; some optimizers want a closure."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(1, steps + 1):
        x = torch.randn(5, 4, generator=generator)

        def closure(x=x, step=step):
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            if fault == "loss" and step == BAD:
                loss = loss * NAN
            if fault == "gradient" and step == BAD:
                loss = loss + torch.sqrt(loss * 0)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            losses.append(optimizer.step(closure).detach())
        else:
            losses.append(closure().detach())
            optimizer.step()
    return losses


def run_of(kind, arguments, context, fault=None):
    model = model_for(kind)
    optimizer = kind(model.parameters(), **arguments)
    with context as watched:
        losses = trained(model, optimizer, fault=fault)
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    return [*losses, *model.parameters(), *state], watched


def plain_run(kind, arguments):
    """A run without a watch; skips what torch itself cannot do here."""
    try:
        return run_of(kind, arguments, contextlib.nullcontext())[0]
    except (RuntimeError, AssertionError, ValueError) as error:
        pytest.skip(f"not on this torch and device: {error}")


@every_variant
@pytest.mark.parametrize("region", [watch, zero_change])
def test_every_optimizer_stays_as_it_is(kind, arguments, region):
    """Losses, parameters and state to the last bit; each step counts once."""
    plain = plain_run(kind, arguments)
    watched, run = run_of(kind, arguments, region())
    run = getattr(run, "run", run)
    assert len(plain) == len(watched)
    assert all(map(torch.equal, plain, watched))
    assert run.findings == []
    assert run.steps == len(run.loss) == len(run.grad_norm) == STEPS
    assert None not in run.grad_norm


@every_variant
@pytest.mark.parametrize(
    ("fault", "expected", "region"),
    [("loss", "nonfinite-loss", zero_change), ("gradient", "nonfinite-gradient", watch)],
)
def test_every_optimizer_is_judged(kind, arguments, fault, expected, region):
    """A loss, and a gradient of a finite loss, at its step."""
    plain_run(kind, arguments)
    options = {"on_instability": "record"} if region is watch else {}
    _, watched = run_of(kind, arguments, region(**options), fault)
    finding = watched.findings[0]
    assert (finding.kind, finding.step) == (expected, BAD)


def test_the_family_is_large():
    """The variants are real: most of them run here."""
    names = {kind.__name__ for kind in family()}
    assert {"SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "NAdam", "Rprop"} <= names
    for name in ("foreach", "fused"):
        model = model_for(torch.optim.Adam)
        trained(model, torch.optim.Adam(model.parameters(), **{name: True}))


def through_the_step(kind, fault=None):
    """Differentiate a rate through a step, as meta-learning does: the parameters are no leaves."""
    model, rate = model_for(kind), torch.tensor(0.1, requires_grad=True)
    parameters = {name: p.detach().mul(1.0 + 0 * rate).requires_grad_() for name, p in model.named_parameters()}
    for p in parameters.values():
        p.retain_grad()
    optimizer = kind(list(parameters.values()), differentiable=True)
    loss = torch.func.functional_call(model, parameters, (torch.ones(2, 4),)).square().mean()
    (loss * (NAN if fault else 1.0)).backward()
    optimizer.step()
    return list(parameters.values())


DIFFERENTIABLE = [k for k in family() if "differentiable" in inspect.signature(k.__init__).parameters]


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_a_step_with_a_graph(kind):
    """`differentiable=True`: the watch neither breaks nor lengthens the graph."""
    plain = through_the_step(kind)
    with watch(on_instability="record") as run:
        watched = through_the_step(kind)
        assert all(map(torch.equal, plain, watched))
        assert (run.steps, run.findings) == (1, [])
        through_the_step(kind, "loss")
    # What is no leaf keeps its gradient without anybody's having stored it there: the step alone tells of the loss.
    assert kinds(run.findings[:1]) in (["nonfinite-loss"], ["nonfinite-gradient"])


@every_way
def test_several_optimizers_of_several_kinds(ask):
    """A matrix optimizer beside one for the rest, as Muon is used."""

    def body(fault):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        first = torch.optim.SGD([p for p in model.parameters() if p.ndim == 2], 0.01, momentum=0.9)
        second = torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], 0.01)
        for step in range(1, 6):
            loss = (model(torch.ones(5, 4)) - 1).square().mean() * (NAN if fault and step == 3 else 1.0)
            loss.backward()
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()

    (finding,) = ask(lambda: body(True))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", 5)
    assert ask(lambda: body(False)) == []


# -- not from torch ----------------------------------------------------------------------------------------------------


class Plain(Optimizer):
    """A step of its own, without a word to its parent."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    p.sub_(self.state[p]["mean"], alpha=group["lr"])
        return loss


class Data(Plain):
    """The old style: `.data` everywhere, and no decorator."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad.data, alpha=-group["lr"])


class Through(torch.optim.Adam):
    """Does something of its own, then its parent's step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p.detach(), alpha=1e-3)
        return super().step(closure)


class Bare(Optimizer):
    """Never calls the parent's constructor, so torch runs no hooks around its step."""

    def __init__(self, params):
        self.param_groups, self.state, self.defaults = [{"params": list(params)}], defaultdict(dict), {}

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.01)

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None


class Noam:
    """No optimizer at all: holds one, and sets its rate."""

    def __init__(self, params):
        self.inner, self.count = torch.optim.Adam(params, 0.0), 0

    def step(self):
        self.count += 1
        for group in self.inner.param_groups:
            group["lr"] = 0.01 * min(self.count**-0.5, self.count * 0.1)
        self.inner.step()

    def zero_grad(self):
        self.inner.zero_grad()


STYLES = {"plain": Plain, "data": Data, "through": Through, "noam": Noam}
every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def own(style, context, fault=None):
    model = model_for(style)
    with context as watched:
        losses = trained(model, style(model.parameters()), fault=fault)
    return [*losses, *model.parameters()], watched


@every_style
@pytest.mark.parametrize("region", [watch, zero_change])
def test_styles_of_their_own(style, region):
    """Unchanged, each step counted once, faults at their step."""
    plain, _ = own(style, contextlib.nullcontext())
    watched, run = own(style, region())
    assert all(map(torch.equal, plain, watched))
    assert (getattr(run, "run", run).steps, run.findings) == (STEPS, [])
    options = {"on_instability": "record"} if region is watch else {}
    for fault in ("loss", "gradient"):
        _, run = own(style, region(**options), fault)
        assert (run.findings[0].kind, run.findings[0].step) == (f"nonfinite-{fault}", BAD)


@every_way
def test_an_optimizer_without_torchs_hooks(ask):
    """Nothing tells of its steps: a loss that it has used is told all the same."""
    (finding,) = ask(lambda: own(Bare, contextlib.nullcontext(), "loss"))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", BAD)
    assert ask(lambda: own(Bare, contextlib.nullcontext())) == []


class Sharpness(Optimizer):
    """SAM as it is most used: two half steps around two backward passes."""

    def __init__(self, params, base=torch.optim.SGD, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.param_groups[0]["params"]]).norm()
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad, alpha=float(0.05 / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()


def sharpness_aware(fault=None, half=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = Sharpness(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(1, STEPS + 1):
        for number, move in ((1, optimizer.first_step), (2, optimizer.second_step)):
            loss = (model(torch.ones(5, 4)) - 1).square().mean()
            (loss * (NAN if fault and step == BAD and number == half else 1.0)).backward()
            move()
    return list(model.parameters())


@every_way
@pytest.mark.parametrize("half", [1, 2])
def test_two_half_steps(ask, half):
    """The second half steps the base optimizer: that is the step. A NaN in either half is found there."""
    plain = sharpness_aware()
    with watch() as run:
        watched = sharpness_aware()
    assert all(map(torch.equal, plain, watched))
    assert (run.steps, run.findings) == (STEPS, [])
    (finding,) = ask(lambda: sharpness_aware("loss", half))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-loss", BAD)


def unfreezing(fault=None):
    """Groups come, go and change between steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model[4].parameters(), 0.01)
    norms = []
    for step in range(1, STEPS + 1):
        if step == 3:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.001})
        if step == 5:
            optimizer.param_groups[0]["params"] = list(model[0].parameters())
        if step == 6:
            del optimizer.param_groups[1]
        model.zero_grad()
        loss = (model(torch.ones(5, 4)) - 1).square().mean()
        loss = loss + torch.sqrt(loss * 0) if fault and step == 5 else loss
        loss.backward()
        owned = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in owned]).norm().item())
        optimizer.step()
    return norms, list(model.parameters())


@every_way
def test_groups_that_change(ask):
    """Norms are those of the groups as they are at each step."""
    _, plain = unfreezing()
    with watch() as run:
        norms, watched = unfreezing()
    assert all(map(torch.equal, plain, watched))
    assert run.grad_norm == pytest.approx(norms, rel=1e-5)
    (finding,) = ask(lambda: unfreezing("gradient"))[:1]
    assert (finding.kind, finding.step) == ("nonfinite-gradient", 5)
    assert "0.weight" in finding.message
    assert ask(unfreezing) == []


def stepping_inside_backward(fault=None):
    """One optimizer for each parameter, stepped by a hook as soon as its gradient is there."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    optimizers = {p: torch.optim.Adam([p], 0.01, foreach=False) for p in model.parameters()}

    def hook(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    for step in range(1, STEPS + 1):
        loss = model(torch.ones(2, 4)).square().mean()
        loss = loss * NAN if fault == "loss" and step == BAD else loss
        loss = loss + torch.sqrt(loss * 0) if fault == "gradient" and step == BAD else loss
        loss.backward()
    return list(model.parameters())


@every_way
def test_steps_inside_the_backward_pass(ask):
    """More optimizers than are held; each is counted, and a fault is found before it reaches the first parameter."""
    plain = stepping_inside_backward()
    with watch() as run:
        watched = stepping_inside_backward()
    assert all(map(torch.equal, plain, watched))
    assert (run.steps, run.findings) == (STEPS * 8, [])
    for fault in ("loss", "gradient"):
        left = []
        (finding,) = ask(lambda fault=fault, left=left: left.extend(stepping_inside_backward(fault)))[:1]
        if ask.__name__ == "sampled" and fault == "gradient":  # beyond the steps judged in any case
            assert finding.step <= STEPS * 8
        else:
            assert (finding.kind, finding.step) == (f"nonfinite-{fault}", 8 * (BAD - 1) + 1)
        alone = stepping_inside_backward(fault)
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(alone, left, strict=False))
