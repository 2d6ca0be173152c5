"""Sound programs that look faulty, each beside a faulty twin: clips, guards, classes of the user's own, memory."""

from __future__ import annotations

import pytest
from plugin_runs import run_inside

GUARDS = """
class Skipping(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        return super().step(closure) if all(g.isfinite().all() for g in grads) else None

class ByHand(torch.optim.Optimizer):
    def __init__(self, parameters, look, data):
        super().__init__(parameters, {})
        self.look, self.data = look, data
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if self.look and not p.grad.isfinite().all():
                continue
            if self.data:
                p.data = p.data - 0.01 * p.grad
            else:
                p -= 0.01 * p.grad

class Counting(torch.optim.SGD):
    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step(closure)

def fit(make, mark=3):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = make(model.parameters())
    for step in range(6):
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 4)) * (1e30 if step == mark else 1.0)).pow(2).mean()
        loss.backward()
        optimizer.step()
    return model

@MARK
def test_skips(): assert fit(lambda p: Skipping(p, 0.01)).weight.isfinite().all()
@MARK
def test_leaves_out(): assert fit(lambda p: ByHand(p, True, False)).weight.isfinite().all()
@MARK
def test_leaves_out_with_data(): assert fit(lambda p: ByHand(p, True, True)).weight.isfinite().all()
@MARK
def test_bad_uses(): fit(lambda p: ByHand(p, False, False))
@MARK
def test_bad_uses_with_data(): fit(lambda p: ByHand(p, False, True))
@MARK
def test_bad_only_counts(): fit(lambda p: Counting(p, 0.01))
"""


@pytest.mark.parametrize("mark", ["", "pytest.mark.nanstab"], ids=["watched", "marked"])
def test_optimizers_that_leave_out_bad_gradients_themselves(pytester, mark):
    """A step that changes no parameter has used nothing; the operation behind one that does is named."""
    body = GUARDS.replace("@MARK", f"@{mark}" if mark else "")
    ran = run_inside(pytester, body, "--nanstab")
    names = ("skips", "leaves_out", "leaves_out_with_data")
    assert {ran.outcomes[f"test_{name}"] for name in names} == {"passed"}
    assert {outcome for name, outcome in ran.outcomes.items() if "bad" in name} == {"failed"}
    assert ran.text.count("Inf in the loss at step 4, born in ") >= 3


CLIPS = """
def fit(clip, steps=5, other=None):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = model(torch.randn(16, 8)).pow(2).mean()
        optimizer.zero_grad()
        clip("before", model)
        loss.backward()
        clip("after", model)
        optimizer.step()
    return model

def norm(model, bound): return nn.utils.clip_grad_norm_(model.parameters(), bound)

def test_measured_after_training():
    model = fit(lambda when, model: None)
    model(torch.ones(2, 8)).sum().backward()
    assert norm(model, 1.0) > 0

def test_clip_of_a_model_that_is_trained_by_nobody_here():
    other = nn.Linear(3, 1)
    other(torch.ones(2, 3)).sum().backward()
    norm(other, 1.0)
    fit(lambda when, model: None)

def test_measures_another():
    other = nn.Linear(3, 1)
    other(torch.ones(2, 3)).sum().backward()
    fit(lambda when, model: norm(other, float("inf")))

def test_bad_another():
    other = nn.Linear(3, 1)
    other(torch.ones(2, 3)).sum().backward()
    fit(lambda when, model: norm(other, 1.0) if when == "after" else None)

def test_bad_too_early(): fit(lambda when, model: norm(model, 1e-3) if when == "before" else None)

def test_bad_too_early_and_measured(): fit(lambda when, model: norm(model, 1e-3 if when == "before" else float("inf")))

def scaled(bound, scale=1024.0, interval=2000):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    for _ in range(6):
        loss = model(torch.randn(16, 8)).pow(2).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        norm(model, bound(scaler))
        scaler.step(optimizer)
        scaler.update()

def test_scaled_bound(): scaled(lambda scaler: 0.5 * scaler.get_scale())
def test_scaled_bound_that_follows(): scaled(lambda scaler: 0.5 * scaler.get_scale(), interval=2)
def test_bad_scaled(): scaled(lambda scaler: 1.0)
def test_bad_scaled_by_little(): scaled(lambda scaler: 5.0, scale=8.0, interval=2)
"""


def test_clips(pytester):
    """Only what steps have followed, and what was to be clipped at all, is judged; a bound may be scaled as well."""
    ran = run_inside(pytester, CLIPS, "--nanstab")
    assert {name for name, outcome in ran.outcomes.items() if outcome == "failed"} == {
        "test_bad_another",
        "test_bad_too_early",
        "test_bad_too_early_and_measured",
        "test_bad_scaled",
        "test_bad_scaled_by_little",
    }


TENSORS = """
import math

def polynomial(rate, guard=False):
    torch.manual_seed(0)
    x = torch.linspace(-math.pi, math.pi, 200)
    weights = [torch.randn((), requires_grad=True) for _ in range(4)]
    for _ in range(60):
        loss = (sum(w * x**power for power, w in enumerate(weights)) - torch.sin(x)).pow(2).sum()
        loss.backward()
        with torch.no_grad():
            for w in weights:
                if not guard or loss.isfinite():
                    w -= rate * w.grad
                w.grad = None

def test_bad_rate(): polynomial(1e-3)
def test_rate(): polynomial(1e-6)

def test_data_with_a_gradient():
    x = torch.tensor([1.0, float("nan")], requires_grad=True)
    for _ in range(2):
        x.sum().backward()
        x.grad = None
"""


def test_tensors_that_are_updated_by_hand(pytester):
    """No module, no optimizer: a tensor that a NaN loss's gradient has broken was trained on it."""
    ran = run_inside(pytester, TENSORS, "--nanstab")
    assert ran.outcomes == {"test_bad_rate": "failed", "test_rate": "passed", "test_data_with_a_gradient": "passed"}


OWN = """
import copy, gc, io, pickle, weakref
from collections.abc import Mapping
from dataclasses import dataclass
import pytest

def fit(model, steps=3, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 2)).pow(2).mean().backward()
        optimizer.step()
    return optimizer

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
    def forward(self, x): return self.layer(x)

class MakesItsTeacher(Small):
    def forward(self, x):
        if "teacher" not in self.__dict__:
            self.__dict__["teacher"] = copy.deepcopy(self)
        return self.layer(x)

def test_a_copy_made_in_forward_has_no_hook():
    model = MakesItsTeacher()
    fit(model)
    assert not model.__dict__["teacher"]._forward_hooks
    pickle.dumps(model.__dict__["teacher"])

class Saves(Small):
    def forward(self, x):
        torch.save(self, io.BytesIO())
        return self.layer(x)

def test_saved_in_forward(): fit(Saves())

class HooksAndRaises(Small):
    def forward(self, x):
        self.register_forward_hook(lambda *_: None)
        raise KeyError("mine")

def test_its_exception_stays():
    model = HooksAndRaises()
    for _ in range(3):
        with pytest.raises(KeyError):
            model(torch.ones(1, 2))
        with pytest.raises(KeyError):
            HooksAndRaises()(torch.ones(1, 2))
    assert len(model._forward_hooks) == 3

@dataclass
class Weighted(nn.Module):
    weight: float
    def __post_init__(self): super().__init__()
    def forward(self, x): return self.weight * x

def test_a_module_without_a_hash():
    with pytest.raises(TypeError):
        hash(Weighted(2.0))
    x = torch.ones(2, requires_grad=True)
    for _ in range(20):
        Weighted(2.0)(x).sum().backward()

class OldNames(Small):
    def named_parameters(self, prefix="", recurse=True): return super().named_parameters(prefix, recurse)
    def named_modules(self): return super().named_modules()
    def register_forward_hook(self, hook): raise RuntimeError("not here")

def test_methods_of_older_signatures(): fit(OldNames(), optimizer=torch.optim.SGD(Small().parameters(), 0.1))

class Unbound:
    @property
    def __class__(self): raise RuntimeError("unbound")

class ReturnsAProxy(nn.Module):
    def forward(self, x): return Unbound()

def test_a_proxy(): ReturnsAProxy()(torch.ones(1))

asked = []
class Lazy(Mapping):
    def __getitem__(self, key):
        asked.append(key)
        return torch.rand(2)
    def __iter__(self): return iter("ab")
    def __len__(self): return 2

class Emptied(list):
    def __iter__(self):
        while len(self):
            yield self.pop()

class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make
    def forward(self, x): return self.make()

def test_members_are_not_asked_for():
    before = torch.get_rng_state()
    for _ in range(3):
        Returns(Lazy)(1)
        assert len(Returns(lambda: Emptied([torch.ones(1)] * 2))(1)) == 2
    assert not asked
    assert torch.equal(before, torch.get_rng_state())

class Slotted:
    __slots__ = ("x",)
    def __init__(self, x): self.x = x

class Refuses:
    __slots__ = ("unset", "x")
    def __init__(self, x): self.x = x
    def __getattr__(self, name): raise RuntimeError("nobody asks me")

class Reads(nn.Module):
    def __init__(self, get):
        super().__init__()
        self.layer, self.get = nn.Linear(2, 1), get
    def forward(self, batch): return self.layer(self.get(batch))

def test_bad_data_in_containers_of_other_kinds():
    import types
    bad = torch.tensor([[1.0, float("nan")]])
    assert Reads(lambda batch: batch["x"])(types.MappingProxyType({"x": bad})).isnan().all()
    for kind in (Slotted, Refuses):
        assert Reads(lambda batch: batch.x)(kind(bad)).isnan().all()

class Guarding(torch.optim.Optimizer):
    def __init__(self, parameters, refuses=False):
        super().__init__(parameters, {})
        self.refuses = refuses
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad.isfinite().all():
                p -= 0.1 * p.grad
            elif self.refuses:
                raise FloatingPointError("a bad gradient")

def test_each_parameter_has_a_guard():
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Guarding([w, v])
    ((w[0] - w[0].detach()).sqrt() + v[0]).backward()
    optimizer.step()
    assert w.isfinite().all() and v[0] != 1
    assert not optimizer._optimizer_step_post_hooks

def test_an_optimizer_that_refuses():
    w = nn.Parameter(torch.ones(2))
    (w * float("nan")).sum().backward()
    with pytest.raises(FloatingPointError):
        Guarding([w], refuses=True).step()

KEPT = nn.Parameter(torch.ones(2))
OPTIMIZER = Guarding([KEPT])

def test_a_guard_of_a_longer_life():
    (KEPT * float("nan")).sum().backward()
    OPTIMIZER.step()

def test_no_hook_is_left(): assert not OPTIMIZER._optimizer_step_post_hooks

class Preconditioned(torch.optim.SGD):
    def step(self, model):
        assert isinstance(model, nn.Module)
        return super().step()

def test_a_step_that_takes_the_model():
    model = Small()
    optimizer = Preconditioned(model.parameters(), 0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step(model)

class Tagged(torch.optim.SGD):
    def step(self, closure):
        assert closure.tag == 7
        with torch.enable_grad():
            closure()
        return super().step()

def test_a_closure_keeps_its_attributes():
    model = Small()
    def closure():
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss
    closure.tag = 7
    Tagged(model.parameters(), 0.1).step(closure)

def test_param_groups_given_away():
    optimizer = fit(Small())
    optimizer.param_groups = None
    optimizer = fit(Small())
    del optimizer.param_groups

class Smallest(torch.optim.Optimizer):
    def __init__(self, parameters): super().__init__(parameters, {})
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("smallest", torch.full_like(p, float("inf")))
            p -= 0.01 * p.grad

def test_a_bound_that_nothing_has_lowered():
    model = Small()
    fit(model, optimizer=Smallest(model.parameters()))

def number_of_a_hook():
    tensor = torch.tensor(1.0, requires_grad=True)
    tensor.register_hook(lambda gradient: gradient)
    return next(iter(tensor._backward_hooks))

def test_hooks_are_numbered_as_without_a_watch():
    first = number_of_a_hook()
    fit(Small())
    assert number_of_a_hook() == first + 1 < 2**30

def test_what_is_freed():
    first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    x = torch.ones(2, 3)
    hidden = first(x)
    references = [weakref.ref(x), weakref.ref(hidden)]
    second(hidden).sum().backward()
    del x, hidden
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    x = torch.ones(2, 3)
    reference, y = weakref.ref(x), first(x)
    del x, y
    gc.collect()
    assert reference() is None
"""


def test_classes_of_the_users_own(pytester):
    """Whatever the user's classes make of torch's methods, of hashing, of copying and of asking for members."""
    plain = run_inside(pytester, OWN)
    assert set(plain.outcomes.values()) == {"passed"}
    assert run_inside(pytester, OWN, "--nanstab").outcomes == plain.outcomes
