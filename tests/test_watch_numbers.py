"""The numbers of a `Run`, against independent computations, and the limits that are judged by them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from watched import at, batches, kinds, loss_of, mlp, train, zero_change

from pytest_nanstab import NonFiniteError, StabilityError, watch
from pytest_nanstab.watching import measure
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region


def norm_of(parameters):
    """The global L2 norm in double precision."""
    squares = [p.grad.abs().double().pow(2).sum().item() for p in parameters if p.grad is not None]
    return math.sqrt(sum(squares))


class Book:
    """What an independent observer writes down beside the watch."""

    def __init__(self):
        self.loss, self.raw, self.received = [], [], []

    def check(self, run, *, raw=True):
        assert run.steps == len(self.loss) == len(run.loss)
        assert run.loss == pytest.approx(self.loss, rel=1e-6)
        assert run.clipped_grad_norm == pytest.approx(self.received, rel=1e-4)
        if raw:
            assert run.grad_norm == pytest.approx(self.raw, rel=1e-4)


def plain(book, model, optimizer, clip):
    for x, y in batches(4):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        book.loss.append(loss.item())
        book.raw.append(norm_of(model.parameters()))
        clip(model)
        book.received.append(norm_of(model.parameters()))
        optimizer.step()


def some(model):
    return [p for p in model.parameters() if p.dim() > 1]


CLIPS = {
    "none": lambda _: None,
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
    "norm that does nothing": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e6),
    "L1 norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5, norm_type=1),
    "inf norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05, norm_type=math.inf),
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.02),
    "part by norm": lambda model: nn.utils.clip_grad_norm_(some(model), 0.3),
    "part by L1 norm": lambda model: nn.utils.clip_grad_norm_(some(model), 0.3, 1.0),
    "part by value": lambda model: nn.utils.clip_grad_value_(some(model), 0.02),
    "two parts": lambda model: [nn.utils.clip_grad_norm_(layer.parameters(), 0.2) for layer in (model[0], model[2])],
    "value, then norm": lambda model: [
        nn.utils.clip_grad_value_(model.parameters(), 0.05),
        nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    ],
    "each parameter": lambda model: [nn.utils.clip_grad_norm_(p, 0.1) for p in model.parameters()],
    "clip, then by hand": lambda model: [
        nn.utils.clip_grad_norm_(model.parameters(), 1e6),
        [p.grad.mul_(1.0) for p in model.parameters()],
    ],
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_raw_and_clipped_norms(clip, dtype):
    """The norm before and after every kind of clip."""
    model, book = mlp().to(torch.float32), Book()
    model = model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    torch.set_default_dtype(dtype)
    try:
        with watch() as run:
            for x, y in batches(4):
                optimizer.zero_grad()
                loss = loss_of(model, x.to(dtype), y.to(dtype))
                loss.backward()
                book.loss.append(loss.item())
                book.raw.append(norm_of(model.parameters()))
                CLIPS[clip](model)
                book.received.append(norm_of(model.parameters()))
                optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    book.check(run)


@pytest.mark.parametrize("clip", ["none", "norm", "value"])
def test_norms_in_sampled_mode(clip):
    """The first steps of the zero-change mode are all measured."""
    model, book = mlp(), Book()
    with zero_change() as region:
        plain(book, model, torch.optim.SGD(model.parameters(), 0.01), CLIPS[clip])
    book.check(region.run)


def test_norms_of_a_large_model():
    """The same where gradients are too many for a flat copy."""
    torch.manual_seed(0)
    model, book = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 300), nn.Linear(300, 1)), Book()
    with watch() as run:
        plain(book, model, torch.optim.SGD(model.parameters(), 1e-4), CLIPS["none"])
    book.check(run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("size", [10, 100_000])
def test_norms_of_unusual_dtypes(dtype, size):
    """Half precision and complex gradients have norms in full precision."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(size, dtype=dtype))
    optimizer = torch.optim.SGD([w], 0.0)
    with watch() as run:
        w.grad = torch.randn(size, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
        expected = norm_of([w])
        optimizer.step()
    assert run.grad_norm == [pytest.approx(expected, rel=1e-4)]


def test_norms_of_sparse_gradients():
    """A sparse gradient counts by its coalesced values."""
    table, book = nn.Embedding(20, 3, sparse=True), []
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    with watch() as run:
        for _ in range(2):
            optimizer.zero_grad()
            table(torch.tensor([1, 1, 4])).pow(2).sum().backward()
            book.append(table.weight.grad.to_dense().norm().item())
            optimizer.step()
    assert run.grad_norm == pytest.approx(book, rel=1e-5)


@pytest.mark.parametrize("fused", [None, True])
def test_norms_under_autocast(fused):
    """A step taken under autocast is measured in full precision too."""
    model, book = mlp(), Book()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=fused)
    with watch() as run, torch.autocast("cpu", torch.bfloat16):
        plain(book, model, optimizer, CLIPS["none"])
    book.check(run)


def test_parameters_that_come_and_go():
    """Gradients that are sometimes None count as zero, and are counted when they are back."""
    model, book = mlp(), Book()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    late = nn.Parameter(torch.ones(3))
    with watch() as run:
        for step, (x, y) in enumerate(batches(8), start=1):
            optimizer.zero_grad()
            model[0].requires_grad_(step not in (3, 4))
            if step == 6:
                optimizer.add_param_group({"params": [late]})
            loss = loss_of(model, x, y) + (late.pow(2).sum() if step > 5 else 0.0)
            loss.backward()
            book.loss.append(loss.item())
            book.raw.append(norm_of([*model.parameters(), *([late] if step > 5 else [])]))
            book.received.append(book.raw[-1])
            optimizer.step()
    book.check(run)


def test_a_parameter_group_swapped_for_another():
    """Parameters that are exchanged inside a group are measured from the next look on."""
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([first], 0.1)
    with watch(max_update_ratio=10) as run:
        for value, p in ((1.0, first), (2.0, second)):
            optimizer.param_groups[0]["params"] = [p]
            p.grad = torch.full((3,), value)
            optimizer.step()
    assert run.grad_norm == pytest.approx([math.sqrt(3), math.sqrt(12)])


def test_two_optimizers_with_a_joint_clip():
    """Each optimizer's norms are its own, before and after a clip over both."""
    models = [mlp(0), mlp(1)]
    both = [*models[0].parameters(), *models[1].parameters()]
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in models]
    book = Book()
    with watch() as run:
        for x, y in batches(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = loss_of(models[0], x, y) + loss_of(models[1], x, y)
            loss.backward()
            book.raw += [norm_of(model.parameters()) for model in models]
            nn.utils.clip_grad_norm_(both, 0.2)
            book.received += [norm_of(model.parameters()) for model in models]
            book.loss += [loss.item()] * 2
            for optimizer in optimizers:
                optimizer.step()
    book.check(run)


def test_two_optimizers_that_interleave():
    """backward, clip, backward, clip, step, step: each optimizer's clip is undone for its own norm."""
    models = [mlp(0), mlp(1)]
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in models]
    book = Book()
    with watch() as run:
        for x, y in batches(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                book.raw.append(norm_of(model.parameters()))
                nn.utils.clip_grad_norm_(model.parameters(), 0.2)
                book.received.append(norm_of(model.parameters()))
            book.loss += [loss.item()] * 2
            for optimizer in optimizers:
                optimizer.step()
    book.check(run)


@pytest.mark.parametrize("clip_each", [False, True])
def test_accumulation(clip_each):
    """Several backward calls make one step; a clip inside the accumulation is part of the raw norm."""
    model, book = mlp(), Book()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch() as run:
        for _ in range(3):
            optimizer.zero_grad()
            for x, y in batches(3):
                loss = loss_of(model, x, y) / 3
                loss.backward()
                raw = norm_of(model.parameters())
                if clip_each:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.2)
            book.loss.append(loss.item())
            book.raw.append(raw)
            book.received.append(norm_of(model.parameters()))
            optimizer.step()
    book.check(run)


@pytest.mark.parametrize("clip", [False, True])
def test_loss_scaling(clip):
    """Loss and norms are unscaled, whatever the scale."""
    model, book, scaler = mlp(), Book(), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch() as run:
        for x, y in batches(4):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            scaler.scale(loss).backward()
            book.loss.append(loss.item())
            book.raw.append(norm_of(model.parameters()) / scaler.get_scale())
            book.received.append(book.raw[-1])
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.2)
                book.received[-1] = norm_of(model.parameters())
            scaler.step(optimizer)
            scaler.update()
    book.check(run)


def test_a_scaled_loss_that_is_divided():
    """`(scaler.scale(loss) / k).backward()` gives the loss that was meant."""
    model, scaler = mlp(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch() as run:
        x, y = next(batches(1))
        loss = loss_of(model, x, y)
        (scaler.scale(loss) / 2).backward()
        scaler.step(optimizer)
        scaler.update()
    assert run.loss == [pytest.approx(loss.item() / 2)]


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search):
    """LBFGS: the loss and the norm of the first evaluation of each step."""
    model, book = mlp(), Book()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn=search)
    with watch() as run:
        for x, y in batches(3):
            seen = []

            def closure(x=x, y=y, seen=seen):
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                seen.append((loss.item(), norm_of(model.parameters())))
                return loss

            optimizer.step(closure)
            book.loss.append(seen[0][0])
            book.raw.append(seen[0][1])
            book.received.append(seen[0][1])
    book.check(run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_update_ratios(dtype):
    """||dw|| / ||w|| of the parameter that changed most, with the weights from before the step."""
    model = mlp().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    expected = []
    with Region(Options(update_ratio=True)) as region:
        for x, y in batches(4):
            optimizer.zero_grad()
            loss_of(model, x.to(dtype), y.to(dtype)).backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            pairs = zip(before, model.parameters(), strict=True)
            expected.append(max(((a - b).float().norm() / a.float().norm()).item() for a, b in pairs))
    assert region.run.update_ratio == pytest.approx(expected, rel=1e-3)


def test_update_ratios_count_what_can_be_counted():
    """A parameter that was zero has no ratio; one that becomes NaN breaks every limit."""
    zero, one = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    with watch(max_update_ratio=0.5) as run:
        optimizer = torch.optim.SGD([zero, one], 0.1)
        zero.grad, one.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
    assert run.update_ratio == [pytest.approx(0.1)]
    optimizer = torch.optim.SGD([one, zero], 0.1)
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(StabilityError) as caught, watch(max_update_ratio=0.5):
        optimizer.step()
    assert math.isnan(caught.value.findings[0].evidence["value"])


def test_headroom():
    """Bits between the largest value and the dtype's range, by name; constants at the edge are left out."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Identity())
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with Region(Options(headroom=True)) as region:
        model(torch.full((1, 4), 2.0)).sum().backward()
        optimizer.step()
    bits = math.log2(torch.finfo(torch.float32).max)
    assert region.run.headroom["activation"]["0 float32"] == pytest.approx(bits - 2)
    assert region.run.headroom["gradient"]["0.weight float32"] == pytest.approx(bits - 1)
    assert region.run.headroom["parameter"]["0.weight float32"] == pytest.approx(bits + 1)
    assert "0.bias float32" not in region.run.headroom["parameter"]


def test_headroom_of_models_that_are_gone():
    """Names are those of the model's own tree although it died before the end."""
    with Region(Options(headroom=True)) as region:
        for seed in range(5):
            model = mlp(seed)
            train(model, torch.optim.SGD(model.parameters(), 0.01), 1)
            del model
    assert set(region.run.headroom["parameter"]) == {
        f"{n} float32" for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    assert set(region.run.headroom["activation"]) == {"0 float32", "1 float32", "2 float32"}


# -- limits ------------------------------------------------------------------------------------------------------------


def steps(spoil=None, rate=0.01):
    model = mlp()
    train(model, torch.optim.SGD(model.parameters(), rate), 4, spoil=spoil)


LIMITS = {
    "max_loss": (30.0, lambda bad: steps(at(3, 100.0 if bad else 1.0)), 3),
    "max_grad_norm": (20.0, lambda bad: steps(at(3, 100.0 if bad else 1.0)), 3),
    "min_grad_norm": (1e-3, lambda bad: steps(at(3, 1e-6 if bad else 1.0)), 3),
    "max_update_ratio": (0.5, lambda bad: steps(at(3, 1000.0 if bad else 1.0)), 3),
    "min_headroom_bits": (30.0, lambda bad: steps(at(3, 1e32 if bad else 1.0), rate=1e-34), 3),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit(name):
    """A limit fails at the step that breaks it, says how, and leaves its healthy twin alone."""
    bound, program, step = LIMITS[name]
    with watch(**{name: bound}):
        program(False)
    with pytest.raises(StabilityError) as caught, watch(**{name: bound}):
        program(True)
    (finding,) = caught.value.findings
    assert finding.kind == "limit"
    assert finding.step == step
    assert finding.source is not None
    assert finding.evidence["limit_name"] == name
    assert finding.evidence["limit"] == bound
    assert finding.evidence["limit_source"] == "call"
    measured = finding.evidence["value"]
    assert measured < bound if name.startswith("min_") else measured > bound


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_recorded_too(name):
    """`on_instability="record"` records broken limits and goes on."""
    bound, program, _ = LIMITS[name]
    with watch(on_instability="record", **{name: bound}) as run:
        program(True)
    assert kinds(run.findings)[:1] == ["limit"]
    assert run.steps == 4


def test_a_limit_is_about_the_norm_before_clipping():
    """A clip does not hide an exploding gradient from `max_grad_norm`."""
    model = mlp()
    clip = lambda _: nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # noqa: E731
    with pytest.raises(StabilityError) as caught, watch(max_grad_norm=20):
        train(model, torch.optim.SGD(model.parameters(), 0.01), 4, spoil=at(3, 100.0), before_step=clip)
    assert caught.value.findings[0].step == 3


def test_a_limit_that_is_just_kept():
    """A limit may be reached."""
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], 0.0)
    with watch(max_grad_norm=2.0, min_grad_norm=2.0, max_loss=2.0):
        for _ in range(3):
            optimizer.zero_grad()
            (w * 2).sum().backward()
            optimizer.step()


def test_nan_breaks_every_limit():
    """A NaN loss is not below a limit; it is reported as what it is."""
    with pytest.raises(NonFiniteError), watch(max_loss=1e30, max_grad_norm=1e30):
        steps(at(2, math.nan))


def test_run_as_text_and_data():
    """The one-line repr and the lists of the report."""
    with watch() as run:
        steps()
    assert repr(run).startswith("<Run: 4 steps, loss ")
    assert run.as_dict()["loss"] == run.loss
    assert run.update_ratio == [None] * 4


def spoiled(shape, *places):
    tensor = torch.zeros(shape)
    for place in places:
        tensor[place] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (spoiled((4, 4)), {}),
        (spoiled((), ...), {}),
        (spoiled((5,), 1, 3), {"rows": [1, 3]}),
        (spoiled((3, 4, 5), (2, 0, 1), (0, 3, 4)), {"rows": [0, 2], "columns": [1, 4]}),
        (
            spoiled((20, 30), ...),
            {"rows": list(range(16)), "row_count": 20, "columns": list(range(16)), "column_count": 30},
        ),
        (torch.complex(spoiled((2, 3), (1, 2)), torch.zeros(2, 3)), {"rows": [1], "columns": [2]}),
        (spoiled((0, 3)), {}),
        (torch.zeros(2, 2, dtype=torch.long), {}),
        (spoiled((4, 4), (3, 1)).to_sparse(), {}),
    ],
)
def test_rows_and_columns_of_bad_data(tensor, expected):
    """All of them, at most 16 of each and then their number; none where the values have lost their places."""
    assert measure.places_in_data(tensor) == expected


def test_a_module_called_by_itself_and_in_its_owner_counts_once():
    """Before the first step it is not known whose the gradients are: those of all outermost modules, each once."""
    whole = nn.Sequential(mlp())
    optimizer = torch.optim.SGD(whole.parameters(), 0.01)
    expected = []

    def closure(x, y):
        optimizer.zero_grad()
        (loss_of(whole, x, y) + loss_of(whole[0], x, y)).backward()
        expected.append(torch.cat([p.grad.flatten() for p in whole.parameters()]).norm().item())
        return torch.zeros(())

    with watch() as run:
        for x, y in batches(2):
            optimizer.step(lambda x=x, y=y: closure(x, y))
    assert run.grad_norm == pytest.approx(expected)
    assert run.clipped_grad_norm == pytest.approx(expected)
