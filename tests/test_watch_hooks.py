"""Watching changes nothing: no bit, no random number, no mode sees it, and nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from plugin_runs import run_outside
from torch import nn
from torch.nn.modules import module as modules
from torch.nn.utils import clip_grad
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from watched import at, batches, kinds, loss_of, mlp, raised, train, zero_change

from pytest_nanstab import NonFiniteError, watch
from pytest_nanstab.watching import torch_private
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

NAN = float("nan")


def everything():
    """A region that measures all there is."""
    return Region(Options(headroom=True, update_ratio=True, check_parameters=True, track_parameters=True))


REGIONS = {"watch": watch, "zero-change": zero_change, "everything": everything}
every_region = pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)


# -- no bit ------------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(1))[0][:, 0])


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3)
        self.head = nn.Linear(9, 1)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x.unsqueeze(1)))).flatten(1))


def with_dropout():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    return nn.Sequential(layer, nn.Linear(4, 1))


MODELS = {"mlp": with_dropout, "conv": Convolution, "lstm": Tagger, "transformer": transformer}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


def experiment(make, optimize, context, steps=40):
    """Train with clip and schedule, evaluate in between; everything that can be compared afterwards."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model = make()
    optimizer = optimize(list(model.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    losses = []
    with context:
        for step, (x, y) in enumerate(batches(steps)):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_of(model, x + torch.rand_like(x) * 0.01, y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                losses.append(loss.detach())
                return loss

            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            schedule.step()
            if step % 10 == 0:
                model.eval()
                with torch.no_grad():
                    losses.append(model(x).sum())
                model.train()
        drawn = [torch.rand(2), torch.tensor(np.random.rand(2)), torch.tensor([random.random()])]
    return [*losses, *model.state_dict().values(), *drawn, torch.random.get_rng_state()]


@every_region
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_is_bit_identical(region, make, optimize):
    """Losses, parameters, buffers, outputs and random numbers are the same with and without a watch."""
    steps = 8 if optimize is OPTIMIZERS["lbfgs"] else 30
    left = experiment(make, optimize, contextlib.nullcontext(), steps)
    right = experiment(make, optimize, region(), steps)
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@every_region
def test_settings_of_torch_are_left_alone(region):
    """No dtype, thread count, determinism or gradient switch is touched."""

    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_anomaly_enabled(),
        )

    before = settings()
    with region():
        assert settings() == before
        model = mlp()
        train(model, torch.optim.SGD(model.parameters(), 0.01), 2)
        assert settings() == before
    assert settings() == before


# -- no mode -----------------------------------------------------------------------------------------------------------


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class CountFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def program(bad=False):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    for step, (x, y) in enumerate(batches(40)):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        if bad and step == 5:
            loss = loss * NAN
        if step % 2:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        if step % 2:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    with torch.no_grad():
        model.eval()(x)


@every_region
@pytest.mark.parametrize("mode", [CountOperations, CountFunctions])
def test_the_users_modes_see_nothing_of_it(region, mode):
    """A mode that counts operations or functions counts the same with and without a watch."""
    with mode() as plain:
        program()
    with region(), mode() as inside:
        program()
    assert inside.seen == plain.seen
    with mode() as outside, region():
        program()
    assert outside.seen == plain.seen


@pytest.mark.parametrize("mode", [CountOperations, CountFunctions])
def test_faults_are_found_under_the_users_modes(mode):
    """The failing twin: a bad loss under a mode is found, and the mode sees nothing of that either."""

    def guarded(bad):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        with mode():
            train(model, optimizer, 4, spoil=at(2, bad))

    assert raised(lambda: guarded(1.0)) == []
    assert kinds(raised(lambda: guarded(NAN))) == ["nonfinite-loss"]
    with mode() as plain:
        program(bad=True)
    with mode() as watched, watch(on_instability="record"):
        program(bad=True)
    assert watched.seen == plain.seen


# -- nothing left ------------------------------------------------------------------------------------------------------


def state_of_torch():
    """Everything the watch hooks into."""
    hooks = [
        modules._global_forward_hooks,
        modules._global_forward_pre_hooks,
        modules._global_forward_hooks_always_called,
        optimizers._global_optimizer_pre_hooks,
        optimizers._global_optimizer_post_hooks,
    ]
    cells = [torch_private.closure_cell(getattr(clip_grad, name)) for name in ("clip_grad_norm_", "clip_grad_value_")]
    scaler = torch.amp.GradScaler
    return [
        torch.autograd.backward,
        *[cell.cell_contents for cell in cells],
        *[getattr(scaler, name) for name in ("scale", "unscale_", "step", "update")],
        torch.no_grad.__enter__,
        torch.inference_mode.__enter__,
        torch.optim.Optimizer.zero_grad,
        nn.Module.zero_grad,
        *[dict(hook) for hook in hooks],
    ]


@pytest.fixture(autouse=True)
def _clean_torch():
    """Every test here leaves torch as it found it."""
    before = state_of_torch()
    yield
    assert state_of_torch() == before


def clean(model):
    """Whether a module has no hook of ours."""
    return not model._forward_hooks and not model._forward_pre_hooks and "_compiled_call_impl" not in vars(model)


class StopError(Exception):
    """A test's own error."""


@every_region
@pytest.mark.parametrize("error", [None, StopError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("steps", [0, 1, 120])
def test_all_hooks_are_gone(region, error, steps):
    """After a region, however it ends, torch and the model are as they were."""
    before, model = state_of_torch(), mlp()
    with contextlib.suppress(*([error] if error else [])), region():
        assert state_of_torch() != before
        train(model, torch.optim.SGD(model.parameters(), 0.01), steps)
        if error:
            raise error
    assert state_of_torch() == before
    assert clean(model)


@every_region
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("calls", [0, 40, 200])
def test_all_hooks_are_gone_after_an_error_in_forward(region, error, calls):
    """The same when the error comes out of the forward pass of a watched module."""

    class Failing(nn.Linear):
        def forward(self, x):
            if x.sum() > 1000:
                raise error
            return super().forward(x)

    model = Failing(4, 1)

    def body():
        with region():
            for _ in range(calls):
                model(torch.ones(1, 4))
            model(torch.full((1, 4), 1e4))

    with pytest.raises(error):
        body()
    assert clean(model)


@every_region
def test_all_hooks_are_gone_after_a_finding(region):
    """And when the watch itself raised, with a loss pending."""
    model = mlp()
    with contextlib.suppress(NonFiniteError), region():
        train(model, torch.optim.SGD(model.parameters(), 0.01), 5, spoil=at(3, NAN))
    with contextlib.suppress(NonFiniteError), region():
        (loss_of(model, *next(batches(1))) * NAN).backward()
    assert clean(model)


@every_region
def test_all_hooks_are_gone_from_a_closed_generator(region):
    """A watch inside a generator that is closed early, or just dropped."""

    def loop():
        with region():
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            while True:
                train(model, optimizer, 1)
                yield

    before = state_of_torch()
    generator = loop()
    next(generator)
    generator.close()
    assert state_of_torch() == before
    generator = loop()
    next(generator)
    del generator
    assert state_of_torch() == before


@every_region
def test_regions_that_end_out_of_order(region):
    """An outer watch that ends before an inner one leaves the inner one working, and nothing in the end."""
    before = state_of_torch()
    outer, inner = region(), region()
    outer.__enter__()
    run = inner.__enter__()
    outer.__exit__(None, None, None)
    model = mlp()
    train(model, torch.optim.SGD(model.parameters(), 0.01), 2)
    inner.__exit__(None, None, None)
    assert getattr(run, "run", run).steps == 2
    assert state_of_torch() == before


@every_region
def test_somebody_else_patches_meanwhile(region, monkeypatch):
    """A patch of the user's on top of ours survives us, and what it saved works after us."""
    calls = []
    original = torch.autograd.backward

    def backward(*args, **kwargs):
        calls.append(1)
        return mine(*args, **kwargs)

    with region():
        mine = torch.autograd.backward
        monkeypatch.setattr(torch.autograd, "backward", backward)
        train(mlp(), torch.optim.SGD(mlp().parameters(), 0.01), 2)
    assert torch.autograd.backward is backward
    monkeypatch.undo()
    train(mlp(), torch.optim.SGD(mlp().parameters(), 0.01), 1)
    assert len(calls) == 2
    with region() as watched:
        train(mlp(), torch.optim.SGD(mlp().parameters(), 0.01), 3)
    assert getattr(watched, "run", watched).steps == 3
    torch.autograd.backward = original


def test_clips_imported_long_ago_are_seen():
    """`from torch.nn.utils import clip_grad_norm_` before the watch began is the same function."""
    from torch.nn.utils import clip_grad_norm_

    model = mlp()
    with watch() as run:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        train(model, optimizer, 2, before_step=lambda _: clip_grad_norm_(model.parameters(), 1e-3))
    assert run.clipped_grad_norm == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert run.grad_norm[0] > 1e-2


def test_wrong_arguments():
    """Wrong arguments raise at once."""
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        watch("model")
    with pytest.raises(TypeError, match="name must be a str"):
        watch(name=3)
    with pytest.raises(ValueError, match="on_instability must be"):
        watch(on_instability="ignore")
    with pytest.raises(TypeError, match="unknown argument 'max_norm'"):
        watch(max_norm=3)
    with pytest.raises(ValueError, match="max_loss must be"):
        watch(max_loss=NAN)


def test_a_watch_has_a_name():
    """The name of a watch is in its findings."""
    with watch(name="warm-up", on_instability="record") as run:
        train(mlp(), torch.optim.SGD(mlp().parameters(), 0.01), 0)
        (loss_of(mlp(), *next(batches(1))) * NAN).backward()
    assert run.findings[0].evidence["watch"] == "warm-up"


def test_a_subclass_that_calls_its_parents_step_is_counted_once():
    """torch puts its hooks around both; around the parent's only once a plain one of it has been made."""

    class Averaging(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    weight = torch.nn.Parameter(torch.ones(2))
    torch.optim.SGD([weight], lr=0.1)
    optimizer = Averaging([weight], lr=0.1)
    with watch() as run:
        for _ in range(5):
            optimizer.zero_grad()
            weight.pow(2).sum().backward()
            optimizer.step()
    assert run.steps == 5


def test_torchscript_compiles_no_grad_while_watched(pytester, monkeypatch):
    """TorchScript reads the source of `torch.no_grad`, which an import inside a test may be the first to use."""
    pytester.makepyfile(
        test_it="""
        import warnings
        import torch

        def test_script():
            def evaluate(x: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    return x + 1

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert torch.jit.script(evaluate)(torch.ones(2)).tolist() == [2, 2]
        """
    )
    assert run_outside(pytester, monkeypatch, "--nanstab", "-W", "ignore").code == 0
