"""Errors in the middle of everything, caught, and training that goes on."""

import asyncio
import os
import signal
import sys

import pytest
import torch
from common import NotNow, X, both, net, sgd, spoiled, step, train
from torch import nn


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(2, 2), error

    def forward(self, x):
        x = self.layer(x)
        if self.error is not None:
            raise self.error
        return x


class OddError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


ERRORS = [
    ValueError("x"),
    OddError(),
    KeyboardInterrupt(),
    SystemExit(3),
    StopIteration(),
    GeneratorExit(),
    MemoryError(),
]


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_in_forward(error, bad):
    model = nn.Sequential(Raises(None), NotNow(), nn.Linear(2, 1))
    optimizer = sgd(model)
    for number in range(4):
        model[0].error, model[1].bad = error if number == 1 else None, bad and number == 2
        try:
            step(model, optimizer)
        except BaseException as raised:
            assert raised is error or isinstance(raised, RuntimeError)


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_in_evaluation(error, bad):
    model = nn.Sequential(Raises(error), NotNow())
    model.eval()
    with torch.no_grad():
        with pytest.raises(type(error)):
            model(X)
        model[0].error, model[1].bad = None, bad
        model(X)


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_in_one_model_and_another_goes_on(error, bad):
    with pytest.raises(type(error)):
        Raises(error)(X)
    model = NotNow().eval()
    with torch.no_grad():
        model.bad = bad
        model(X)


class RaisingSGD(torch.optim.SGD):
    error = None

    def step(self, closure=None):
        if self.error is not None:
            raise self.error
        return super().step(closure)


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_in_step(error, bad):
    model = net()
    optimizer = RaisingSGD(model.parameters(), 0.01)
    for number in range(4):
        optimizer.error = error if number == 1 else None
        try:
            step(model, optimizer, bad and number == 2)
        except BaseException as raised:
            if raised is not error:
                raise


@both
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_in_backward(error, bad):
    model = net()
    optimizer = sgd(model)

    def hook(*_):
        raise error

    for number in range(4):
        handle = model[0].register_full_backward_hook(hook) if number == 1 else None
        try:
            step(model, optimizer, bad and number == 2)
        except BaseException as raised:
            if handle is None:
                raise
            assert raised is not None
        if handle is not None:
            handle.remove()


@both
def test_recursion(bad):
    class Endless(nn.Module):
        def forward(self, x):
            return self(x)

    with pytest.raises(RecursionError):
        Endless()(X)
    train(bad)


@both
def test_recursion_in_training(bad):
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.on = nn.Linear(2, 1), False

        def forward(self, x):
            return self(x) if self.on else self.layer(x)

    model = Endless()
    optimizer = sgd(model)
    step(model, optimizer)
    model.on = True
    with pytest.raises(RecursionError):
        step(model, optimizer)
    model.on = False
    step(model, optimizer, bad)


@both
def test_alarm(bad):
    def ring(*_):
        raise TimeoutError("rung")

    model = net()
    optimizer = sgd(model)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError):
            while True:
                step(model, optimizer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    step(model, optimizer, bad)


@both
def test_coroutines(bad):
    async def main():
        model = net()
        optimizer = sgd(model)

        async def one(is_bad):
            optimizer.zero_grad()
            loss = spoiled(model(X).sum(), is_bad)
            await asyncio.sleep(0)
            loss.backward()
            optimizer.step()

        await one(False)
        await one(bad)

    asyncio.run(main())


@both
def test_generators(bad):
    def training():
        model = net()
        optimizer = sgd(model)
        while True:
            step(model, optimizer, (yield))

    running = training()
    next(running)
    running.send(False)
    running.send(bad)
    running.close()
    left = training()
    next(left)
    left.send(False)


@both
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork(bad):
    for leave in (os._exit, sys.exit):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                train(True)
                leave(3)
            except SystemExit as left:
                code = left.code
            except BaseException as error:
                code = 3 if type(error).__name__ == "NonFiniteError" else 9
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    train(bad)
