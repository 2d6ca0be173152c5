"""Tests that leave the interpreter, torch and the process as no test should; a fixture puts it back afterwards."""

import contextlib
import gc
import io
import os
import random
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from common import NotNow, X, both, net, sgd, spoiled, step, train
from torch import nn


@pytest.fixture(autouse=True)
def put_back():
    here, out, err = os.getcwd(), sys.stdout, sys.stderr
    path, home = list(sys.path), os.environ.get("HOME")
    yield
    os.chdir(here)
    sys.stdout, sys.stderr = out, err
    sys.settrace(None)
    sys.setprofile(None)
    sys.setrecursionlimit(1000)
    sys.path[:] = path
    gc.enable()
    if home is not None:
        os.environ["HOME"] = home
    warnings.resetwarnings()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_anomaly_enabled(False)


def warnings_are_errors():
    warnings.simplefilter("error")


def half_by_default():
    torch.set_default_dtype(torch.float16)


def double_by_default():
    torch.set_default_dtype(torch.float64)


def traced():
    sys.settrace(lambda *_: None)


def profiled():
    sys.setprofile(lambda *_: None)


def little_stack():
    sys.setrecursionlimit(250)


def deterministic():
    torch.use_deterministic_algorithms(True)


def anomalies():
    torch.set_anomaly_enabled(True, check_nan=False)


def seeded():
    random.seed(0)
    torch.manual_seed(0)


def no_home():
    os.environ.pop("HOME", None)


def elsewhere():
    os.chdir("/")


def nowhere():
    folder = Path("gone")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    os.rmdir(Path(__file__).parent / "gone")


def no_stdout():
    sys.stdout = sys.stderr = None


def closed_stdout():
    sys.stdout = sys.stderr = io.StringIO()
    sys.stdout.close()


def ascii_stdout():
    sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def no_imports():
    sys.path.clear()


STATES = [
    warnings_are_errors, half_by_default, double_by_default, traced, profiled, gc.disable, deterministic, anomalies,
    seeded, no_home, elsewhere, nowhere, no_stdout, closed_stdout, ascii_stdout, no_imports, little_stack,
]  # fmt: skip


@both
@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_changed_before(change, bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    change()
    step(model, optimizer)
    step(model, optimizer, bad)


@both
@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_changed_after(change, bad):
    """The bug is in a parameter at the end: judged when all is changed."""
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    with torch.no_grad():
        model[0].weight.mul_(spoiled(1.0, bad))
    change()


@both
def test_gradients_off_for_good(bad):
    torch.set_grad_enabled(False)
    model = NotNow().eval()
    for number in range(3):
        model.bad = bad and number == 2
        model(X)


@both
def test_meta_by_default(bad):
    model = net()
    optimizer = sgd(model)
    step(model, optimizer)
    torch.set_default_device("meta")
    assert net()(torch.ones(4, 2)).is_meta
    step(model, optimizer, bad)


# --- modules and tensors that raise when they are looked at


def raising(name):
    def method(self, *_):
        raise RuntimeError(name)

    return method


METHODS = ["__repr__", "__str__", "__bool__", "__len__", "__eq__", "__iter__", "__contains__", "__getitem__", "__dir__"]


@both
@pytest.mark.parametrize("method", METHODS)
def test_modules_that_raise(method, bad):
    Odd = type("Odd", (NotNow,), {method: raising(method), "__hash__": nn.Module.__hash__})
    model = nn.Module()
    model.odd, model.head = Odd(), nn.Linear(2, 1)
    model.forward = lambda x: model.head(model.odd(x))
    optimizer = sgd(model)
    for number in range(3):
        model.odd.bad = bad and number == 1
        step(model, optimizer)


@both
def test_modules_without_attributes(bad):
    class Odd(NotNow):
        def __getattr__(self, name):
            if name in ("layer", "bad"):
                return super().__getattr__(name)
            raise KeyError(name)

    model = Odd()
    optimizer = sgd(model)
    for number in range(3):
        model.bad = bad and number == 1
        step(model, optimizer)
    model.eval()
    with torch.no_grad():
        model(X)


class Guarded(torch.Tensor):
    """A tensor with which only arithmetic may be done."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        allowed = ("mul", "sum", "square", "mean", "backward", "linear", "__mul__", "__rmul__")
        if name not in allowed:
            raise TypeError(f"{name} is not for Guarded")
        return super().__torch_function__(func, types, args, kwargs or {})


class ReturnsGuarded(NotNow):
    def forward(self, x):
        return super().forward(x).as_subclass(Guarded)


@both
def test_tensors_that_raise_in_evaluation(bad):
    model = ReturnsGuarded().eval()
    with torch.no_grad():
        for number in range(3):
            model.bad = bad and number == 1
            model(X)


@both
def test_tensors_that_raise_in_training(bad):
    model = ReturnsGuarded()
    optimizer = sgd(model)
    for number in range(3):
        model.bad = bad and number == 1
        step(model, optimizer)


class Opaque(dict):
    """A mapping that raises when it is looked at."""

    keys = values = items = __iter__ = __len__ = __getitem__ = raising("opaque")


@both
def test_containers_that_raise(bad):
    class Model(NotNow):
        def forward(self, x):
            return Opaque(), super().forward(x)

    model = Model().eval()
    with torch.no_grad():
        model.bad = bad
        model(X)


# --- sources that are not there

SOURCE = """
import torch
from common import X, sgd, spoiled

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 1)

    def forward(self, x):
        return torch.log(self.inner(x) * 0.0 + (-1.0 if self.bad else 1.0)) + self.inner(x)

def run(bad):
    model = Layer()
    optimizer = sgd(model)
    for number in range(3):
        model.bad = bad and number == 1
        optimizer.zero_grad()
        model(X).sum().backward()
        optimizer.step()
"""


def run_of(filename, text=SOURCE):
    names = {"__name__": "made"}
    exec(compile(text, filename, "exec"), names)
    return names["run"]


@both
@pytest.mark.parametrize("filename", ["<string>", "<ipython-input-1-abc>", "gone.py", "", "a\x1b[31m.py", "/dev/null"])
def test_code_without_a_file(filename, bad):
    run_of(filename)(bad)


@both
def test_a_file_that_is_not_utf_8(tmp_path, bad):
    path = tmp_path / "odd.py"
    path.write_bytes(b"# coding: latin-1\n# \xe9\xff\n" + SOURCE.encode())
    run_of(str(path), path.read_bytes())(bad)


@both
def test_a_file_that_is_no_text_any_more(tmp_path, bad):
    path = tmp_path / "odd.py"
    path.write_text(SOURCE)
    run = run_of(str(path))
    path.write_bytes(bytes(range(256)) * 20)
    run(bad)


@both
def test_a_file_that_has_changed(tmp_path, bad):
    path = tmp_path / "odd.py"
    path.write_text(SOURCE)
    run = run_of(str(path))
    path.write_text("x = 1\n")
    run(bad)


@both
def test_a_file_in_an_archive(tmp_path, bad):
    name = f"zipped_{'bad' if bad else 'good'}"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{name}.py", SOURCE)
    sys.path.insert(0, str(tmp_path / "a.zip"))
    __import__(name)
    sys.modules.pop(name).run(bad)


@both
def test_output_goes_elsewhere(bad):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(bad)
