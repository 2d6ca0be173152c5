"""Integers that a floating format cannot hold: counters, sums and positions that stop, and those that are meant to."""

from __future__ import annotations

import math
import textwrap
import warnings

import pytest
import torch
from torch import nn

from pytest_nanstab import StabilityError, watch
from pytest_nanstab.attribution.lost import LostIntegers, lasting_tensors
from pytest_nanstab.watching.counters import Counters
from pytest_nanstab.watching.names import Names

FORMATS = [torch.bfloat16, torch.float16]
STEPS = {torch.bfloat16: 270, torch.float16: 2060}


class Counting(nn.Module):
    """A model that counts its calls in one of the ways people do."""

    def __init__(self, how, dtype, start=0.0):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 1, dtype=dtype), how
        self.register_buffer("seen", torch.full((), start, dtype=dtype))
        self.total = torch.full((), start, dtype=dtype)
        self.register_buffer("classes", torch.zeros(3, dtype=dtype))
        self.fixed = nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)
        self.held = {"calls": torch.zeros((), dtype=dtype)}
        self.listed = [torch.zeros((), dtype=dtype)]
        self.calls = 0

    def forward(self, x):
        getattr(self, self.how)(x)
        return self.layer(x)

    def in_place(self, x):
        self.seen += 1

    def attribute(self, x):
        self.total = self.total + 4

    def copied(self, x):
        self.seen.copy_(self.seen + len(x))

    def down(self, x):
        self.seen -= 1

    def by_class(self, x):
        self.classes[1] += 1

    def scattered(self, x):
        self.classes.index_add_(0, torch.tensor([1]), torch.ones(1, dtype=self.classes.dtype))

    def frozen(self, x):
        self.fixed += 1

    def in_a_dict(self, x):
        self.held["calls"] += 1

    def in_a_list(self, x):
        self.listed[0] = self.listed[0] + 1

    def every_second(self, x):
        self.calls += 1
        if self.calls % 2 == 0:
            self.seen += 1

    def used_with_a_floor(self, x):
        self.seen += 1
        return x / self.seen.clamp(min=1)

    def used_for_a_log(self, x):
        self.seen += 1
        return self.seen % 100 == 0

    def capped_too_high(self, x):
        self.seen.copy_((self.seen + 1).clamp(max=1000))

    def ring_too_wide(self, x):
        self.seen = (self.seen + 1) % 1024

    # --- meant to stop, or able to go on

    def capped_in_place(self, x):
        self.seen.add_(1).clamp_(max=256)

    def capped_after_a_reset(self, x):
        self.classes.add_(1)
        self.classes[x.sum() < 0] = 0
        self.classes.clamp_(max=256)

    def chosen(self, x):
        self.seen = torch.where(self.seen < 256, self.seen + 1, self.seen)

    def by_a_condition(self, x):
        self.seen += self.seen < 256

    def filled(self, x):
        self.seen.fill_(min(self.seen.item() + 1, 256))

    def folded(self, x):
        self.seen = 256 - torch.relu(256 - (self.seen + 1))

    def towards(self, x):
        self.seen += torch.sign(256 - self.seen)

    def largest(self, x):
        self.calls += 1
        self.seen = torch.maximum(self.seen, torch.full_like(self.seen, min(self.calls, 256)))

    def capped(self, x):
        self.seen.copy_((self.seen + 1).clamp(max=2.0 ** {2: 8, 4: 24}[self.seen.element_size()]))

    def least_of(self, x):
        self.seen = torch.minimum(self.seen + 1, torch.full_like(self.seen, 256.0))

    def round_and_round(self, x):
        self.seen.copy_((self.seen + 1) % 100)

    def average(self, x):
        self.seen.mul_(0.9).add_(x.mean())

    def nothing(self, x):
        pass


def train(model, steps, after=lambda model, step: None):
    """A plain loop; the batch is the same each time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.ones(2, 4, dtype=model.layer.weight.dtype)
    for step in range(steps):
        optimizer.zero_grad()
        model(x).float().pow(2).mean().backward()
        optimizer.step()
        after(model, step)


def found_in(model, steps, **more):
    """What a watch records."""
    with watch(model, on_instability="record") as run:
        train(model, steps, **more)
    assert all(finding.kind == "lost-precision" for finding in run.findings)
    return run.findings


# --- counters


NAMES = {
    "attribute": ("total", 1024, 4),
    "copied": ("seen", 512, 2),
    "down": ("seen", -256, -1),
    "by_class": ("classes", 256, 1),
    "scattered": ("classes", 256, 1),
    "frozen": ("fixed", 256, 1),
    "in_a_dict": ("held.calls", 256, 1),
    "in_a_list": ("listed.0", 256, 1),
}
MORE = ["in_place", "used_with_a_floor", "used_for_a_log", "capped_too_high", "ring_too_wide"]


@pytest.mark.parametrize("how", [*NAMES, *MORE])
def test_a_counter_that_stops_is_found_at_its_line(how):
    """However it is written: where it stands, what it was to grow by, and the line that adds."""
    (found,) = found_in(Counting(how, torch.bfloat16), 270)
    name, value, increment = NAMES.get(how, ("seen", 256, 1))
    assert found.message == f"{name} has stopped at {value}: bfloat16 cannot add {increment} to it"
    assert (found.evidence["value"], found.evidence["increment"]) == (value, increment)
    assert found.evidence["last grew"] == "at step 256"
    code = getattr(Counting, how).__code__
    assert found.source is not None
    assert found.source.endswith(f"test_lost_precision.py:{code.co_firstlineno + 1}")
    assert found.cause == (
        "bfloat16 has 8 significant bits: above 2**8 = 256 it skips integers, and what is added is rounded away"
    )


def test_the_format_decides_where():
    """float16 holds every integer up to 2048."""
    (found,) = found_in(Counting("in_place", torch.float16, 2040.0), 20)
    assert found.evidence["value"] == 2048


def test_float32_counts_far_and_stops_too():
    """Up to 2**24 = 16777216."""
    assert found_in(Counting("in_place", torch.float32), 300) == []
    (found,) = found_in(Counting("in_place", torch.float32, start=2.0**24 - 8), 40)
    assert found.evidence["value"] == 2**24
    assert found_in(Counting("in_place", torch.float64, start=2.0**24 - 8), 40) == []


SOUND = [
    "capped",
    "capped_in_place",
    "capped_after_a_reset",
    "least_of",
    "chosen",
    "by_a_condition",
    "filled",
    "folded",
    "towards",
    "largest",
]


@pytest.mark.parametrize("how", [*SOUND, "round_and_round", "average", "nothing"])
def test_what_is_meant_to_stop_is_not_accused(how):
    """A cap at the very number at which the format ends, a ring, an average, a constant."""
    assert found_in(Counting(how, torch.bfloat16), 300) == []


def test_counting_less_often_than_every_step():
    """256 of 520 steps; the steps between say nothing."""
    (found,) = found_in(Counting("every_second", torch.bfloat16), 540)
    assert found.evidence["value"] == 256


@pytest.mark.parametrize("layout", ["sparse", "csr", "nested"])
def test_buffers_of_other_layouts_are_left_alone(layout):
    """An adjacency matrix, a ragged table."""
    model = Counting("nothing", torch.float32)
    made = {"sparse": torch.eye(4).to_sparse, "csr": torch.eye(4).to_sparse_csr}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.nested.nested_tensor([torch.ones(2)]) if layout == "nested" else made[layout]()
    model.register_buffer("adjacency", tensor)
    model.cached = tensor
    assert found_in(model, 5) == []


def test_integers_count_on():
    """The remedy."""
    model = Counting("in_place", torch.bfloat16)
    model.seen = model.seen.long()
    assert found_in(model, 300) == []
    assert model.seen == 300


def test_one_that_is_no_longer_added_to_has_not_stopped():
    """256 batches counted, then the loop counts no more: nothing is lost."""

    def after(model, step):
        if step < 256:
            model.seen += 1

    assert found_in(Counting("nothing", torch.bfloat16), 300, after=after) == []


def test_a_loop_of_ones_own_that_adds_is_seen():
    """The counter is raised outside of every call, on this line."""

    def after(model, step):
        model.seen += 1

    (found,) = found_in(Counting("nothing", torch.bfloat16), 300, after=after)
    assert found.evidence["value"] == 256
    assert found.source.endswith(f"test_lost_precision.py:{after.__code__.co_firstlineno + 1}")


def test_explicit_watches_raise():
    """As for every other finding, at the step."""
    with pytest.raises(StabilityError, match="seen has stopped at 256"), watch():
        train(Counting("in_place", torch.bfloat16), 300)


def test_the_counter_is_left_as_it_was():
    """Repeating the call that proves it changes nothing: counter, weights and random numbers go on as without."""

    def run(watched):
        torch.manual_seed(0)
        model = Counting("in_place", torch.bfloat16, start=250.0)
        calls = []
        model.register_forward_hook(lambda *_: calls.append(model.training))
        if watched:
            assert len(found_in(model, 30)) == 1
        else:
            train(model, 30)
        return model.seen.item(), model.layer.weight.detach().clone(), torch.rand(3)

    plain, seen = run(watched=False), run(watched=True)
    assert plain[0] == seen[0]
    assert torch.equal(plain[1], seen[1])
    assert torch.equal(plain[2], seen[2])


def test_an_optimizers_own_counter():
    """State that an optimizer keeps in the format of its parameters."""

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    count = self.state[parameter].setdefault("count", torch.zeros((), dtype=parameter.dtype))
                    count += 1
            return super().step(closure)

    model = Counting("nothing", torch.bfloat16)
    with watch(model, on_instability="record") as run:
        optimizer = Counted(model.parameters(), lr=1e-3)
        for _ in range(300):
            optimizer.zero_grad()
            model(torch.ones(2, 4, dtype=torch.bfloat16)).float().mean().backward()
            optimizer.step()
    told = {finding.message.partition(" has")[0] for finding in run.findings}
    assert told == {"layer.weight count", "layer.bias count", "fixed count"}


def test_most_models_are_looked_at_a_few_times_only():
    """Running statistics are no integers, masks never change: after four steps nothing is looked at any more."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    model.register_buffer("mask", torch.ones(4))
    names = Names()
    names.add(model)
    counters = Counters(names)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(1, 6):
        model(torch.randn(8, 4)).sum().backward()
        assert counters.look(step, optimizer) == []
        optimizer.step()
    assert counters.active == []
    counters.forget()


# --- within one pass


def lost(function, *lasting):
    """What is lost while a function runs."""
    mode = LostIntegers(lasting)
    with mode:
        function()
    return mode.conclude(lasting)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_sum_in_a_loop_stops(dtype):
    """One line that adds to its own result."""

    def count():
        total = torch.zeros((), dtype=dtype)
        for _ in range(STEPS[dtype]):
            total = total + 1

    (found,) = lost(count)
    assert (found.kind, found.value, found.addend) == ("sum", 256 if dtype is torch.bfloat16 else 2048, 1)
    assert found.spot[1] == count.__code__.co_firstlineno + 3


def test_running_sums_and_ranges():
    """Positions beyond what the format can tell apart; within it, and in integers, nothing is lost."""
    for dtype, top in ((torch.bfloat16, 256), (torch.float16, 2048)):
        assert [x.op for x in lost(lambda t=top, d=dtype: torch.ones(2, t + 9, dtype=d).cumsum(-1))] == ["cumsum"]
        assert [x.op for x in lost(lambda t=top, d=dtype: torch.arange(t + 9, dtype=d))] == ["arange"]
        assert lost(lambda t=top, d=dtype: torch.ones(2, t, dtype=d).cumsum(-1)) == []
        assert lost(lambda t=top, d=dtype: torch.arange(t, dtype=d)) == []
    assert lost(lambda: torch.ones(5000).cumsum(-1)) == []
    assert lost(lambda: torch.arange(5000).cumsum(-1)) == []
    assert lost(lambda: torch.rand(5000).to(torch.bfloat16).cumsum(-1)) == []
    assert lost(lambda: torch.arange(256, 300, 0.5, dtype=torch.bfloat16)) == []


def test_whole_positions_that_a_cast_loses():
    """`torch.arange(n).type_as(inv_freq)`, and positions counted from a mask; not labels, nor short ranges."""
    half = torch.ones(1, dtype=torch.bfloat16)
    assert [x.op for x in lost(lambda: torch.arange(400).type_as(half)[:, None] * half)] == ["to"]
    mask = torch.ones(2, 400).long()
    assert [x.op for x in lost(lambda: mask.cumsum(-1).to(torch.bfloat16))] == ["to"]
    assert lost(lambda: torch.arange(200).type_as(half)) == []
    assert lost(lambda: torch.tensor([1000, 1001]).type_as(half)) == []
    assert lost(lambda: torch.arange(400).float()) == []


def test_what_loses_an_addend_and_is_right():
    """Masks swallow scores, averages swallow small steps, sentinels mean never, a large number takes a small one."""
    scores = torch.arange(4.0).bfloat16()
    for fill in (-1e9, -1e4, -math.inf, torch.finfo(torch.bfloat16).min):
        mask = torch.full((4,), fill, dtype=torch.bfloat16)
        assert lost(lambda mask=mask: scores + mask) == []
        assert lost(lambda mask=mask: mask + scores, mask) == []
    assert lost(lambda: torch.full((4,), 512.0, dtype=torch.bfloat16) + 1) == []
    age = torch.tensor([0.0, 1e9, math.inf])
    assert lost(lambda: age.add_(1), age) == []

    def beams():
        total = torch.tensor([0.0, -1e9])
        for _ in range(20):
            total = total + 1

    assert lost(beams) == []

    def steps():
        weight = torch.ones(4, dtype=torch.bfloat16)
        for _ in range(300):
            weight = weight - 1e-4

    assert lost(steps) == []


def test_a_bound_after_other_writes():
    """What is stored at the end of the pass counts, whatever was in between."""
    for how in ("capped_in_place", "capped_after_a_reset", "capped"):
        model = Counting(how, torch.bfloat16, start=256.0)
        model.classes.fill_(256)
        given = torch.ones(2, 4, dtype=torch.bfloat16)
        assert lost(lambda model=model, given=given: model(given), *lasting_tensors([model])) == []


def test_a_counter_that_had_stopped_before():
    """A buffer that is full when the run begins: its own life shows nothing, the operation does."""
    model = Counting("in_place", torch.bfloat16, start=256.0)
    given = torch.ones(2, 4, dtype=torch.bfloat16)
    (found,) = lost(lambda: model(given), *lasting_tensors([model]))
    assert (found.kind, found.value) == ("counter", 256)


# --- suites


@pytest.mark.slow
def test_the_headroom_item_of_a_suite_owns_it(pytester):
    """The item fails in the precision that loses, with the lines; float32 passes; other items say nothing."""
    pytester.makepyfile(
        test_counts=textwrap.dedent(
            """
            import torch
            from torch import nn
            from pytest_nanstab import TrainingSetup, stability_suite

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(1, 1)
                    self.register_buffer("seen", torch.zeros(()))
                def forward(self, mask):
                    self.seen += 1
                    positions = mask.cumsum(-1)
                    return self.layer(positions[..., None] / 300)

            @stability_suite(steps=270, precision=["32-true", "bf16-true"], checks=["headroom", "finite_steps"])
            def test_net():
                model = Net()
                return TrainingSetup(model=model, loss=lambda m, b: m(b).pow(2).mean(),
                                     optimizer=torch.optim.SGD(model.parameters(), 1e-3),
                                     batches=[torch.ones(2, 300)])
            """
        )
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_net?headroom-bf16-true?*",
            "seen has stopped at 256: bfloat16 cannot add 1 to it",
            "    > 11 |         self.seen += 1",
            "  also: cumsum in bfloat16 gives 256 where other integers are meant",
            "        (test_counts.py:12)",
            "lost-precision  *test_counts.py:11",
        ]
    )


def test_a_proof_that_breaks_is_no_matter_of_the_users(monkeypatch):
    """Whatever goes wrong in looking, the training goes on, and nothing is proved."""

    def broken(*_):
        raise RuntimeError("an unknown kind of tensor")

    monkeypatch.setattr("pytest_nanstab.attribution.lost.place_of_call", broken)
    model = Counting("in_place", torch.bfloat16, start=240.0)
    assert found_in(model, 40) == []
    assert model.seen == 256
