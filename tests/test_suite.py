"""The parts of a suite that need no training: setups, batch streams, precisions, the decorator, states."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from pytest_nanstab import Finding, TrainingSetup, stability_suite
from pytest_nanstab.checks.gradients import growth, leap
from pytest_nanstab.strategies import TensorSpec
from pytest_nanstab.suite import judging
from pytest_nanstab.suite.batching import converted, cycle, epoch, nonfinite_tensor
from pytest_nanstab.suite.precision import InapplicableError, arithmetic, explained
from pytest_nanstab.suite.setup import optimizers_of, owned_parameters, takes_closure
from pytest_nanstab.suite.spec import CHECKS, Case, suite_of
from pytest_nanstab.suite.state import Snapshot, modes, seeded


def mse(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def setup_of(own_model=None, **changes):
    model = nn.Linear(3, 1) if own_model is None else own_model
    given = {
        "model": model,
        "loss": mse,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "batches": [(torch.randn(4, 3), torch.randn(4, 1))],
    }
    return TrainingSetup(**{**given, **changes})


# --- TrainingSetup


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", torch.nn.functional.relu, "a torch.nn.Module"),
        ("loss", 3, "a function (model, batch)"),
        ("optimizer", "adam", "a torch.optim.Optimizer"),
        ("optimizer", [object()], r"optimizer[0] must be a torch.optim.Optimizer"),
        ("batches", 7, "a list of batches"),
        ("batches", torch.zeros(3), "got one Tensor; put it in a list"),
        ("eval_batches", {"x": 1}, "got one dict; put it in a list"),
        ("lr_scheduler", 0.1, "LRScheduler or None"),
        ("clip_grad_norm", "1", "a number or None"),
        ("clip_grad_norm", True, "a number or None"),
        ("training_step", 1, "a function (batch) or None"),
        ("repair", 1, "a function (batch) or None"),
    ],
)
def test_setup_refuses_wrong_types(name, value, words):
    """A wrong type names the argument and what is allowed."""
    with pytest.raises(TypeError) as caught:
        setup_of(**{name: value})
    assert name in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf")])
def test_setup_refuses_impossible_clips(bound):
    """A clip bound is a finite number above zero; NaN does not slip through."""
    with pytest.raises(ValueError, match="clip_grad_norm must be a finite number above 0"):
        setup_of(clip_grad_norm=bound)


def test_setup_refuses_an_empty_sequence_of_optimizers():
    """Without an optimizer nothing trains."""
    with pytest.raises(ValueError, match="got an empty list"):
        setup_of(optimizer=[])


@pytest.mark.parametrize("name", ["clip_grad_norm", "lr_scheduler"])
def test_a_training_step_excludes_what_it_does_itself(name):
    """clip_grad_norm and lr_scheduler would be ignored beside a training_step."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    value = 1.0 if name == "clip_grad_norm" else torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match=f"{name} and training_step exclude each other"):
        setup_of(model, optimizer=optimizer, training_step=print, **{name: value})


def test_setup_checks_its_domain():
    """A float field of a domain needs both bounds, sizes need a domain, and their names must be known."""
    bounded = TensorSpec(shape=("batch", 3), min_value=-1, max_value=1)
    setup_of(domain=(bounded, bounded), sizes={"batch": (2, 4)})
    with pytest.raises(ValueError, match="float field '1' needs min_value and max_value"):
        setup_of(domain=(bounded, TensorSpec(shape=("batch", 1), min_value=0)))
    with pytest.raises(ValueError, match="without domain"):
        setup_of(sizes={"batch": (2, 4)})
    with pytest.raises(ValueError, match="sizes names 'rows'"):
        setup_of(domain=bounded, sizes={"rows": (2, 4)})


def test_setup_is_frozen_keyword_only_and_short_in_print():
    """pytest prints arguments: one line says model and optimizer."""
    setup = setup_of()
    assert repr(setup) == "<TrainingSetup: Linear, SGD>"
    with pytest.raises(AttributeError):
        setup.model = None
    with pytest.raises(TypeError):
        TrainingSetup(nn.Linear(1, 1))


def test_parameters_of_all_optimizers_count_once():
    """A parameter in two optimizers is one parameter."""
    model = nn.Linear(3, 1)
    both = [torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD([model.weight], 0.1)]
    setup = setup_of(model, optimizer=both)
    assert optimizers_of(setup) == tuple(both)
    assert [p.shape for p in owned_parameters(setup)] == [model.weight.shape, model.bias.shape]


def test_only_lbfgs_like_optimizers_take_a_closure():
    """A step with an optional closure can do without."""
    weights = [nn.Parameter(torch.ones(2))]
    assert takes_closure(torch.optim.LBFGS(weights))
    assert not takes_closure(torch.optim.Adam(weights))


# --- streams of batches


def test_lists_loaders_and_functions_cycle():
    """What can be walked again is walked again and again."""
    loader = torch.utils.data.DataLoader(torch.arange(4.0), batch_size=2)
    for source in ([1, 2], lambda: iter([1, 2]), loader):
        stream = cycle(source)
        assert len([next(stream) for _ in range(5)]) == 5


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_one_shot_iterator_says_that_it_ran_out(wrapped):
    """The message tells how many batches there were and what to pass instead; a function around it changes nothing."""
    numbers = iter([1, 2, 3])
    stream = cycle((lambda: numbers) if wrapped else numbers)
    assert [next(stream) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="one-shot iterator and ran out after 3 batches; pass a list, a DataLoader"):
        next(stream)


def test_no_batch_at_all_is_an_error():
    """An empty list trains nothing."""
    with pytest.raises(ValueError, match="batches is empty"):
        next(cycle([]))


def test_a_function_must_return_batches():
    """A function that returns one tensor, or nothing, is told so."""
    with pytest.raises(TypeError, match="got one Tensor"):
        next(cycle(lambda: torch.zeros(2)))
    with pytest.raises(TypeError, match=r"what eval_batches\(\) returns"):
        next(epoch(lambda: None, argument="eval_batches"))


def test_converted_casts_float_tensors_only():
    """Integers, flags and text of a nested batch stay what they are."""
    batch = {"x": torch.ones(2), "n": [torch.ones(2, dtype=torch.int64), "text"], "ok": torch.tensor(True)}
    cast = converted(batch, device=None, dtype=torch.float64)
    assert cast["x"].dtype == torch.float64
    assert cast["n"][0].dtype == torch.int64
    assert cast["n"][1] == "text"
    assert cast["ok"].dtype == torch.bool
    assert converted(batch, device=None, dtype=None) is batch


def test_nonfinite_tensor_finds_the_bad_one():
    """NaN and Inf are found in any leaf; integers cannot hold them."""
    good, bad = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert nonfinite_tensor([good, torch.ones(2, dtype=torch.int64)]) is None
    assert nonfinite_tensor([good, {"x": bad}]) is bad


# --- precisions


def test_true_precisions_cast_model_batches_and_default_dtype():
    """The model stays cast, the default dtype comes back."""
    model = nn.BatchNorm1d(3)
    parameter = model.weight
    with arithmetic(setup_of(model), "64-true") as form:
        assert torch.get_default_dtype() == torch.float64
        assert form.batch(torch.ones(2)).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert model.weight is parameter
    assert model.weight.dtype == model.running_mean.dtype == torch.float64
    assert model.num_batches_tracked.dtype == torch.int64


def test_the_default_dtype_comes_back_after_an_exception():
    """A failing run leaves no half-precision default behind."""
    with pytest.raises(RuntimeError, match="boom"), arithmetic(setup_of(), "16-true"):
        raise RuntimeError("boom")
    assert torch.get_default_dtype() == torch.float32


def test_32_true_leaves_a_float32_model_and_its_batches_alone():
    """Even a float64 buffer and a float64 batch are the user's own decision."""
    model = nn.Linear(3, 1)
    model.register_buffer("table", torch.ones(2, dtype=torch.float64))
    batch = torch.ones(2, dtype=torch.float64)
    with arithmetic(setup_of(model), "32-true") as form:
        assert form.batch(batch) is batch
    assert model.table.dtype == torch.float64


def test_32_true_casts_a_float64_model():
    """A model with no float32 parameter is cast, and so are its batches."""
    model = nn.Linear(3, 1).double()
    with arithmetic(setup_of(model), "32-true") as form:
        assert form.batch(torch.ones(2, dtype=torch.float64)).dtype == torch.float32
    assert model.weight.dtype == torch.float32


def test_a_cast_follows_into_optimizer_state_and_parameters_outside_the_model():
    """What the optimizer trains and remembers has one dtype."""
    model, scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([*model.parameters(), scale])
    mse(model, (torch.ones(2, 3), torch.ones(2, 1))).backward()
    optimizer.step()
    with arithmetic(setup_of(model, optimizer=optimizer), "64-true"):
        pass
    assert scale.dtype == torch.float64
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "precision", "why"),
    [
        (nn.Linear(3, 1, dtype=torch.complex64), "16-true", "complex64 parameters"),
        (nn.Linear(3, 1, dtype=torch.float64), "bf16-mixed", "autocast leaves alone"),
    ],
)
def test_what_a_precision_cannot_do_is_inapplicable(model, precision, why):
    """Complex and double models are told why they are skipped."""
    with pytest.raises(InapplicableError, match=why), arithmetic(setup_of(model), precision):
        pass


def test_a_scaler_cannot_drive_a_closure():
    """GradScaler and LBFGS exclude each other, as torch says."""
    model = nn.Linear(3, 1)
    setup = setup_of(model, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(InapplicableError, match="LBFGS"), arithmetic(setup, "16-mixed"):
        pass


def test_mixed_precisions_autocast_and_scale():
    """Only 16-mixed without a training_step scales the loss."""
    with arithmetic(setup_of(), "16-mixed") as form:
        assert form.new_scaler() is not None
        with form.autocast():
            assert nn.Linear(2, 2)(torch.ones(2, 2)).dtype == torch.float16
    with arithmetic(setup_of(), "bf16-mixed") as form:
        assert form.new_scaler() is None
    with arithmetic(setup_of(training_step=print), "16-mixed") as form:
        assert form.new_scaler() is None


def test_a_missing_kernel_is_inapplicable_but_an_integer_one_is_a_mistake():
    """torch names the dtype: Half is the precision's doing, Long is the program's; 32-true excuses nothing."""
    with pytest.raises(InapplicableError, match="16-true does not apply"), explained("16-true"):
        raise NotImplementedError("\"x_cpu\" not implemented for 'Half'")
    for precision, text in (("16-true", "not implemented for 'Long'"), ("32-true", "not implemented for 'Half'")):
        with pytest.raises(RuntimeError, match=text) as caught, explained(precision):
            raise RuntimeError(text)
        assert not isinstance(caught.value, InapplicableError)


def test_devices_that_are_missing_or_unknown():
    """cpu leaves everything in place; a missing accelerator is a skip, a typo an error."""
    with arithmetic(setup_of(), "32-true", device="cpu") as form:
        assert form.device is None
    with pytest.raises(ValueError, match="nanstab_device must be a torch device"):
        arithmetic(setup_of(), "32-true", device="gpu!").__enter__()
    if not torch.cuda.is_available():
        with pytest.raises(InapplicableError, match="device cuda does not apply"):
            arithmetic(setup_of(), "32-true", device="cuda").__enter__()


# --- states


def test_seeded_gives_the_same_numbers_and_restores_every_generator():
    """torch, numpy and random are put back bit for bit."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    draws = []
    for _ in range(2):
        with seeded(3):
            draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


def test_modes_restore_each_module_by_itself():
    """A batch norm frozen in eval mode is frozen again afterwards."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval())
    with modes(model, training=True):
        assert model[1].training
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS])
def test_a_snapshot_restores_bit_for_bit(optimizer):
    """Parameters, buffers, gradients, optimizer state and schedule come back, twice."""

    class Rebinding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 1), nn.BatchNorm1d(3)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen = self.seen + 1
            return self.layer(self.norm(x))

    model = Rebinding()
    own = optimizer(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(own, 1)
    setup = setup_of(model, optimizer=own, lr_scheduler=schedule)

    def step():
        def closure():
            own.zero_grad()
            loss = mse(model, (torch.randn(4, 3), torch.randn(4, 1)))
            loss.backward()
            return loss

        own.step(closure)
        schedule.step()

    def state():
        return (
            [t.clone() for t in (*model.parameters(), *model.buffers())],
            own.param_groups[0]["lr"],
            float(model.seen),
        )

    step()
    snapshot, before = Snapshot(setup), state()
    kept = {key: str(value) for key, value in own.state_dict().items()}
    for _ in range(2):
        step()
        assert state()[2] > before[2]
        snapshot.restore()
        after = state()
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
        assert before[1:] == after[1:]
        assert kept == {key: str(value) for key, value in own.state_dict().items()}
        assert model.layer.weight.grad is not None


# --- the decorator


def factory():
    def test_model():
        return None

    return test_model


def test_the_decorator_returns_the_function_itself():
    """Calling it directly still gives the TrainingSetup, with a spec and a mark attached."""
    setup = setup_of()

    def test_model():
        return setup

    decorated = stability_suite(steps=5, precision="64-true", max_grad_norm=3)(test_model)
    assert decorated is test_model
    assert decorated() is setup
    spec = suite_of(decorated)
    assert (spec.steps, [choice.value for choice in spec.precision], dict(spec.limits)) == (
        5,
        ["64-true"],
        {"max_grad_norm": 3.0},
    )
    assert [mark.name for mark in decorated.pytestmark] == ["nanstab"]


def test_cases_come_once_or_per_precision():
    """init_scale and finite_data run once; the rest precision by precision, in the order of the contract."""
    spec = suite_of(stability_suite(precision=["32-true", "bf16-true"])(factory()))
    cases = [case.id for case, _ in spec.cases()]
    assert cases[:2] == ["init_scale", "finite_data"]
    assert cases[2:7] == [f"{check}-32-true" for check in CHECKS[2:]]
    assert cases[7:] == [f"{check}-bf16-true" for check in CHECKS[2:]]
    assert Case("finite_data").id == "finite_data"


def test_marks_of_params_reach_their_cases():
    """A precision's marks go to all of its items, a check's to all of its own."""
    decorate = stability_suite(
        precision=["32-true", pytest.param("16-true", marks=pytest.mark.skip)],
        checks=["finite_steps", pytest.param("headroom", marks=[pytest.mark.xfail])],
    )
    marks = {case.id: [mark.name for mark in given] for case, given in suite_of(decorate(factory())).cases()}
    assert marks == {
        "finite_steps-32-true": [],
        "headroom-32-true": ["xfail"],
        "finite_steps-16-true": ["skip"],
        "headroom-16-true": ["xfail", "skip"],
    }


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number"),
        ({"steps": True}, TypeError, "steps must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be 0 or more"),
        ({"seeds": 0}, ValueError, "seeds must be 1 or more"),
        ({"precision": "fp16"}, ValueError, "'fp16' is not one of 64-true, 32-true"),
        ({"precision": []}, ValueError, "precision must name at least one"),
        ({"precision": 16}, TypeError, "precision must be a string or a sequence"),
        ({"precision": ["32-true", "32-true"]}, ValueError, "names '32-true' twice"),
        ({"checks": ["finite"]}, ValueError, "'finite' is not one of init_scale"),
        ({"checks": [3]}, TypeError, "checks must hold strings"),
        ({"checks": pytest.param("headroom", id="x")}, ValueError, "takes one value and marks"),
        ({"init_scale": "xavier"}, ValueError, "init_scale: 'xavier' is not 'auto' or one of xavier_uniform"),
        ({"init_scale": {"*": "he_normal"}}, ValueError, "init_scale: 'he_normal' is not 'auto' or one of"),
        ({"step": 3}, TypeError, "unknown argument 'step'; allowed are steps, precision, checks, init_scale, seed, "),
        ({"step": 3}, TypeError, "did you mean 'steps'?"),
        ({"precision": "16-tru"}, ValueError, "did you mean '16-true'?"),
        ({"init_scale": 3}, TypeError, "init_scale must be a scheme's name or a mapping"),
        ({"baseline": 1}, TypeError, "baseline must be True or False, got 1"),
        ({"max_los": 3}, TypeError, "unknown argument 'max_los'"),
        ({"max_loss": "3"}, TypeError, "max_loss must be a number or None"),
        ({"max_loss": float("nan")}, ValueError, "max_loss must be a finite number"),
        ({"max_loss": 3, "checks": "headroom"}, ValueError, "judged by the check 'gradient_bounds'"),
        ({"min_headroom_bits": 3, "checks": "finite_steps"}, ValueError, "judged by the check 'headroom'"),
    ],
)
def test_the_decorator_refuses_wrong_arguments_at_once(given, error, words):
    """A wrong argument fails at decoration, naming what is allowed."""
    with pytest.raises(error) as caught:
        stability_suite(**given)
    assert words in str(caught.value)


@pytest.mark.parametrize("scheme", ["auto", "kaiming_normal(fan_out)", "xavier_uniform_", {"*": "normal(0.02)"}])
def test_schemes_with_arguments_are_names_too(scheme):
    stability_suite(init_scale=scheme)


def test_without_parentheses_the_decorator_says_how():
    """The mistake every decorator with arguments invites."""
    with pytest.raises(TypeError, match=r"use it with parentheses: @stability_suite\(\)"):

        @stability_suite
        def test_model():
            return None


def test_the_decorator_wants_one_plain_function():
    """Classes, coroutines and a second decorator are refused."""
    with pytest.raises(TypeError, match="decorates a test function"):
        stability_suite()(type("TestX", (), {}))

    async def test_later():
        return None

    with pytest.raises(TypeError, match="needs a plain function"):
        stability_suite()(test_later)
    with pytest.raises(ValueError, match="two stability_suite decorators"):
        stability_suite()(stability_suite()(factory()))


# --- judging


RISING = [2.0**step for step in range(16)]


@pytest.mark.parametrize(
    ("norms", "losses", "explodes"),
    [
        (RISING, RISING, True),
        ([1.3**step for step in range(16)], [1.4**step for step in range(16)], True),
        (RISING, [-value for value in RISING], True),
        (RISING, [1.0] * 16, True),
        ([None, *RISING], [1.0, *RISING], True),
        (RISING[:11], RISING[:11], False),  # too short
        (RISING, RISING[::-1], False),  # the loss falls
        ([1.1**step for step in range(16)], [1.0] * 16, False),  # warm-up, sharpening
        ([1.0] * 13 + [1e9] * 3, [1.0] * 16, False),  # a spike
        ([1e6] * 16, [1.0] * 16, False),  # large and steady
        ([1.0] * 4 + [1e4] * 12, [1.0] * 4 + [9.0] * 12, False),  # a jump that stays
        ([0.0] * 6 + RISING[:10], [1.0] * 16, False),
        ([None, math.nan] * 8, [1.0] * 16, False),
    ],
)
def test_growth_is_told_from_a_spike_and_from_a_large_steady_norm(norms, losses, explodes):
    """A norm that keeps growing against its own past, beside a loss that does not fall, is an explosion."""
    assert (growth(norms, losses) is not None) == explodes


@pytest.mark.parametrize(
    ("norms", "place"),
    [
        ([0.1, 0.2, 0.1, 2e15, 0.1], 3),
        ([None, 0.1, 0.2, 0.1, math.nan, 2e15], 5),
        ([5.0, 4.0, 3.0, 4.9e6], None),  # not a millionfold the largest
        ([1e-9, 2e-9, 1e-9, 1.0], None),  # large against next to nothing
        ([1e-9, 2e-9, 1e-9, 1e6], 3),
        ([1e9, 1.0, 1.0, 1.0], None),  # the first steps settle
        ([1.0, 1.0, 1e9, 1.0], None),
        ([0.0, 0.0, 0.0, 1e9], None),  # nothing to compare with
        ([2.0**step for step in range(40)], None),  # growth is another heuristic's
    ],
)
def test_a_leap_is_one_step_far_beyond_all_before_it(norms, place):
    assert leap(norms) == place


def test_a_limit_broken_at_every_step_is_told_once():
    """The first finding of each fault stands for the rest; each belongs to the check that owns it."""

    def limit(name, step):
        return Finding(kind="limit", message=name, step=step, evidence={"limit_name": name})

    findings = [limit("max_loss", 1), limit("min_headroom_bits", 1), limit("max_loss", 2), limit("max_grad_norm", 2)]
    findings.append(Finding(kind="scaled-clip", message="clip"))
    told = {check: [f.message for f in judging.owned(findings, check)] for check in CHECKS[2:]}
    assert told["gradient_bounds"] == ["max_loss", "max_grad_norm"]
    assert told["headroom"] == ["min_headroom_bits"]
    assert told["finite_steps"] == ["clip"]


def test_a_processor_without_a_kernel_is_no_fault_of_the_model():
    """oneDNN refuses recurrent layers in bfloat16 on processors that lack the instructions."""
    from pytest_nanstab.suite.precision import InapplicableError, explained

    refusal = "could not create a primitive descriptor for the LSTM forward propagation primitive"
    with pytest.raises(InapplicableError, match="bf16-mixed does not apply: could not create"), explained("bf16-mixed"):
        raise RuntimeError(refusal)
    with pytest.raises(RuntimeError, match="could not create"), explained("32-true"):
        raise RuntimeError(refusal)
