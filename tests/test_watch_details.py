"""What a run records beside its global norms: every parameter, clips by hand, and what is worth a note."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from watched import batches, loss_of, mlp, recorded

from pytest_nanstab import StabilityError, TrainingSetup, watch
from pytest_nanstab.config import Limit
from pytest_nanstab.suite.driver import train
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region


def norm_of(parameters):
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item()


def sgd(model, rate=0.01):
    return torch.optim.SGD(model.parameters(), rate)


# -- clips by hand -----------------------------------------------------------------------------------------------------


def scale_in_place(parameters):
    total = norm_of(parameters)
    for p in parameters:
        p.grad.mul_(min(1.0, 0.05 / total))


def scale_data(parameters):
    for p in parameters:
        p.grad.data.mul_(0.1)


def clamp(parameters):
    for p in parameters:
        p.grad.clamp_(-0.01, 0.01)


def replace_gradients(parameters):
    for p in parameters:
        p.grad = p.grad * 0.1


def only_when_large(parameters):
    if norm_of(parameters) > 0.5:
        scale_in_place(parameters)


def by_hand_after_the_function(parameters):
    clip_grad_norm_(parameters, 0.1)
    scale_data(parameters)


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("late", [False, True], ids=["made before", "made inside"])
@pytest.mark.parametrize(
    "clip", [scale_in_place, scale_data, clamp, replace_gradients, only_when_large, by_hand_after_the_function]
)
def test_the_raw_norm_is_that_before_a_clip_by_hand(clip, late, optimizers):
    """From the first step on, whoever made the optimizer and when."""
    model, raw, received = mlp(), [], []
    parts = (
        [list(model[0].parameters()), list(model[2].parameters())] if optimizers == 2 else [list(model.parameters())]
    )

    def make():
        return [torch.optim.SGD(part, 0.01) for part in parts]

    made = None if late else make()
    with watch() as run:
        made = made or make()
        for x, y in batches(4):
            model.zero_grad()
            loss_of(model, x, y).backward()
            raw += [norm_of(part) for part in parts]
            clip([p for part in parts for p in part])
            received += [norm_of(part) for part in parts]
            for optimizer in made:
                optimizer.step()
    assert run.clipped_grad_norm == pytest.approx(received, rel=1e-4)
    # Before its first step a second optimizer is not known.
    known = slice(0 if optimizers == 1 else 2, None)
    assert run.grad_norm[known] == pytest.approx(raw[known], rel=1e-4)


def test_a_limit_holds_before_a_clip_by_hand():
    """A clip by hand does not hide an explosion from max_grad_norm."""
    model = mlp()
    optimizer = sgd(model)

    def body():
        with watch(max_grad_norm=0.01):
            for x, y in batches(3):
                optimizer.zero_grad()
                loss_of(model, x, y).backward()
                for p in model.parameters():
                    p.grad.mul_(1e-6)
                optimizer.step()

    with pytest.raises(StabilityError, match=r"above max_grad_norm 0\.01 at step 1") as caught:
        body()
    assert caught.value.findings[0].evidence["gradients"].startswith(("0.weight ", "2.weight "))


def test_a_loss_scale_is_off_the_raw_norm():
    """The raw norm under a GradScaler is that of the unscaled loss, with and without unscale_."""
    for unscale in (False, True):
        model, raw = mlp(), []
        optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
        with watch() as run:
            for x, y in batches(4):
                optimizer.zero_grad()
                scaler.scale(loss_of(model, x, y)).backward()
                raw.append(norm_of(list(model.parameters())) / 1024.0)
                if unscale:
                    scaler.unscale_(optimizer)
                    scale_data(list(model.parameters()))
                scaler.step(optimizer)
                scaler.update()
        assert run.grad_norm == pytest.approx(raw, rel=1e-3)


# -- every parameter ---------------------------------------------------------------------------------------------------


def detailed(body):
    with Region(Options(details=True, update_ratio=True)) as region:
        body()
    return region.run


def test_each_parameter_has_its_own_norms_and_updates():
    """Raw, as received and relative to the weight, step by step, against computations by hand."""
    torch.manual_seed(0)
    model, expected = mlp(), []
    optimizer = sgd(model, 0.1)

    def body():
        for x, y in batches(3):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            raw = {name: p.grad.norm().item() for name, p in model.named_parameters()}
            clip_grad_norm_(model.parameters(), 0.2)
            row = {name: (raw[name], p.grad.norm().item(), p.norm().item()) for name, p in model.named_parameters()}
            expected.append(row)
            optimizer.step()

    run = detailed(body)
    assert list(run.parameters) == [name for name, _ in model.named_parameters()]
    for name, history in run.parameters.items():
        assert history.grad_norm == pytest.approx([row[name][0] for row in expected], rel=1e-5)
        assert history.clipped_grad_norm == pytest.approx([row[name][1] for row in expected], rel=1e-5)
        ratios = [0.1 * row[name][1] / row[name][2] for row in expected]
        assert history.update_ratio == pytest.approx(ratios, rel=1e-3)
    assert run.lr == [0.1] * 3
    assert run.loss_scale == [None] * 3
    assert run.optimizer == [0] * 3


def test_unusual_parameters_have_histories_too():
    """Sparse, complex, frozen, unused and tied ones; several optimizers by number."""
    torch.manual_seed(0)
    table, wave = nn.Embedding(9, 3, sparse=True), nn.Parameter(torch.randn(3, dtype=torch.complex64))
    unused = nn.Parameter(torch.ones(2))
    first = torch.optim.SGD(table.parameters(), 0.1)
    second = torch.optim.SGD([wave, unused], 0.2)

    def body():
        for index in range(3):
            first.zero_grad()
            second.zero_grad()
            (table(torch.tensor([index])).sum() * wave.abs().sum()).backward()
            first.step()
            second.step()

    run = detailed(body)
    assert run.optimizer == [0, 1] * 3
    assert run.lr == [0.1, 0.2] * 3
    weights = run.parameters["weight"].grad_norm
    assert [value is None for value in weights] == [False, True] * 3
    assert all(value > 0 for value in weights[::2])
    assert run.parameters["param_groups[0]['params'][1]"].grad_norm == [None] * 6


def test_norms_do_not_overflow_while_gradients_are_finite():
    """The squares of 1e25 are infinite in float32, the norm is not."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], 1e-30)

    def body():
        for _ in range(2):
            optimizer.zero_grad()
            (weight * 1e25).sum().backward()
            optimizer.step()

    run = detailed(body)
    assert run.grad_norm == pytest.approx([2e25] * 2)
    assert next(iter(run.parameters.values())).grad_norm == pytest.approx([2e25] * 2)


# -- notes -------------------------------------------------------------------------------------------------------------


def loop(clip, steps=12, micro=1, rate=0.01):
    """The notes of a loop that calls `clip(model)` after each backward."""
    model = mlp()
    optimizer = sgd(model, rate)
    with watch(on_instability="record") as run:
        for x, y in batches(steps):
            optimizer.zero_grad()
            for _ in range(micro):
                loss_of(model, x, y).backward()
                clip(model)
            optimizer.step()
    assert run.findings == []
    return run.notes


def test_a_clip_that_is_always_or_never_active_is_noted():
    """It is information: the bound, or the clip itself, does nothing for this training."""
    (always,) = loop(lambda model: clip_grad_norm_(model.parameters(), 1e-3))
    assert always.startswith("clip_grad_norm_(0.001) at tests/test_watch_details.py:")
    assert "was active at all 12 calls, norms " in always
    (never,) = loop(lambda model: clip_grad_norm_(model.parameters(), 1e3))
    assert "was never active in 12 calls" in never
    (by_value,) = loop(lambda model: clip_grad_value_(model.parameters(), 1e-6))
    assert "clip_grad_value_(1e-06)" in by_value
    assert "active at all" in by_value
    assert loop(lambda model: clip_grad_norm_(model.parameters(), float("inf"))) == []


def test_a_clip_of_some_of_the_parameters_is_noted():
    """A clip that leaves most of the optimizer's parameters alone says how many it covers."""
    notes = loop(lambda model: clip_grad_norm_(model[0].parameters(), 1e-3))
    assert any("covers 2 of 4 parameters that its optimizer steps" in note for note in notes)


def test_a_clip_inside_an_accumulation_is_noted():
    """It has an effect, so it is no finding, but not on what the later backward passes add."""
    notes = loop(lambda model: clip_grad_norm_(model.parameters(), 1e-3), micro=3)
    assert any("ran before the last backward of its step in 24 of 36 calls" in note for note in notes)


def test_a_clip_that_stands_there_and_is_never_reached_is_noted():
    """A condition that never holds: the clip is in the function that steps, and was not called."""
    model = mlp()
    optimizer = sgd(model)

    def train_all(limit):
        for x, y in batches(12):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()

    with watch() as run:
        train_all(None)
    (note,) = run.notes
    assert note.startswith("clip_grad_norm_ stands in train_all() at tests/test_watch_details.py:")
    assert note.endswith("and was never reached")


def test_a_streak_of_skipped_steps_is_noted():
    """A scale that needs several halvings skips as many steps in a row: information, the training goes on."""
    model = mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**126)
    with watch() as run:
        for x, y in batches(16):
            optimizer.zero_grad()
            scaler.scale(256 * loss_of(model, x, y)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert any(note.startswith("GradScaler skipped ") for note in run.notes)


# -- clips for nobody --------------------------------------------------------------------------------------------------


def test_a_clip_of_other_parameters_than_the_optimizers():
    """Gradients are clipped that no optimizer steps, while those it steps are not."""
    model, other = mlp(0), mlp(1)
    optimizer = sgd(model)

    def body(clipped):
        for x, y in batches(4):
            optimizer.zero_grad()
            other.zero_grad()
            (loss_of(model, x, y) + loss_of(other, x, y)).backward()
            clip_grad_norm_(clipped.parameters(), 0.1)
            optimizer.step()

    assert recorded(lambda: body(model)) == []
    (finding,) = recorded(lambda: body(other))
    assert finding.kind == "ineffective-clip"
    assert finding.message == "clip_grad_norm_ had no effect: it got parameters that no optimizer steps"


def test_parameters_that_are_stepped_by_hand_are_somebodys():
    """Gradient descent written out has no optimizer, and its clip an effect."""
    model, head = mlp(0), mlp(1)
    optimizer = sgd(head)

    def body():
        for x, y in batches(4):
            model.zero_grad()
            optimizer.zero_grad()
            (loss_of(model, x, y) + loss_of(head, x, y)).backward()
            clip_grad_norm_(model.parameters(), 0.1)
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.1 * p.grad)
            optimizer.step()

    assert recorded(body) == []


def test_a_clip_before_a_step_that_was_refused_is_nobodys_fault():
    """The watch stops the step because of a NaN: that no step used the clipped gradients says nothing of the clip."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], 0.1)

    def body():
        weight.square().sum().sqrt().backward()
        clip_grad_norm_([weight], 1.0)
        optimizer.step()

    with pytest.raises(StabilityError), watch() as run:
        body()
    assert [finding.kind for finding in run.findings] == ["nonfinite-gradient"]


# -- telemetry ---------------------------------------------------------------------------------------------------------


def test_a_failure_of_a_training_shows_the_steps_before_it():
    """The first and the last steps, the middle left out, and the parameters whose gradients grew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    data = [(x, x.sum(1)) for x in torch.randn(4, 16, 4)]
    setup = TrainingSetup(
        model=model,
        loss=lambda m, batch: nn.functional.mse_loss(m(batch[0]), batch[1]),
        optimizer=torch.optim.SGD(model.parameters(), 1.5),
        batches=data,
    )
    with pytest.raises(StabilityError) as caught:
        train(setup, steps=60, limits={"max_grad_norm": Limit(1e4, "call")})
    (finding,) = caught.value.findings
    rows = finding.evidence["steps before"]
    assert [row["step"] for row in rows[:3]] == [1, 2, "…"]
    assert list(rows[0]) == ["step", "loss", "grad norm", "update"]
    assert rows[-1]["step"] == finding.step
    assert rows[-1]["grad norm"] > 1e4 >= rows[-2]["grad norm"]
    assert "-fold" in finding.evidence["gradients grew"]
    text = str(caught.value)
    assert all(len(line) <= 80 for line in text.splitlines()[1:] if "pytest " not in line)
