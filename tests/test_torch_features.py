"""What torch offers beside plain modules, in a watch: it works as without one, and what is non-finite is found."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from watched import TORCH, every_way, kinds, mlp, zero_change

from pytest_nanstab import watch

pytestmark = pytest.mark.filterwarnings("ignore")
NAN = float("nan")
REGIONS = [watch, zero_change]


class Scale(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight / weight.abs().max().clamp_min(1e-3)


class Slotted(nn.Module):
    __slots__ = ("note",)

    def __init__(self):
        super().__init__()
        self.lin, self.note = nn.Linear(4, 1), "kept"

    def forward(self, x):
        return self.lin(x)


class Forwards(nn.Module):
    """Hands on what it does not have, as wrappers do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x)


class OwnCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 1)

    def __call__(self, x):
        return super().__call__(x * 1.0)

    def forward(self, x):
        return self.lin(x)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs()


class SparseInput(nn.Module):
    """A graph convolution whose adjacency is sparse."""

    def __init__(self, layout):
        super().__init__()
        self.lin, self.layout = nn.Linear(4, 1), layout

    def forward(self, x):
        adjacency = torch.eye(len(x))
        adjacency = adjacency.to_sparse() if self.layout == "coo" else adjacency.to_sparse_csr()
        return torch.sparse.mm(adjacency, self.lin(x))


class SparseTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.lin = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.lin(self.table((x[:, 0].abs() * 3).long().clamp(max=9)) * x)


class Tagged(torch.Tensor):
    """A tensor of a class of its own."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs or {})


class TaggedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4).as_subclass(Tagged))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Nested(nn.Module):
    """Rows of different lengths, as a jagged nested tensor."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 1)

    def forward(self, x):
        rows = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return torch.cat(list(self.lin(rows).unbind()))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.rest, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 1), reentrant

    def forward(self, x):
        hidden = self.first(x)
        return torch.utils.checkpoint.checkpoint(self.rest, hidden, use_reentrant=self.reentrant)


class Quantised(nn.Module):
    """Fake quantisation while training."""

    def __init__(self):
        super().__init__()
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

        self.quantise = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
        self.lin = nn.Linear(4, 1)

    def forward(self, x):
        return self.lin(self.quantise(x))


def pruned():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def parametrized():
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Scale())
    return model


MODELS = {
    "parametrize": parametrized,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 1)),
    "old weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 1)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 1)),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 1)),
    "pruned": pruned,
    "slots": Slotted,
    "own getattr": lambda: Forwards(mlp()),
    "own call": OwnCall,
    "complex": Complex,
    "sparse input": lambda: SparseInput("coo"),
    "csr input": lambda: SparseInput("csr"),
    "sparse gradients": SparseTable,
    "tensor subclass": TaggedWeight,
    "nested": Nested,
    "checkpoint": lambda: Checkpointed(False),
    "reentrant checkpoint": lambda: Checkpointed(True),
    "fake quantisation": Quantised,
    "script": lambda: torch.jit.script(mlp()),
    "trace": lambda: torch.jit.trace(mlp(), torch.ones(5, 4)),
    "fx": lambda: torch.fx.symbolic_trace(mlp()),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1)),
    "channels": lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 1, 1), nn.Flatten()).to(
        memory_format=torch.channels_last
    ),
}
if TORCH < (2, 6):
    del MODELS["nested"]  # its own backward fails there
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def trained(make, context, fault=None, steps=6):
    """Losses and state of a plain loop; the fourth batch may be bad in the loss or in its derivative."""
    torch.manual_seed(0)
    model = make()
    model(torch.ones(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    with context as watched:
        for step in range(1, steps + 1):
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            if fault == "loss" and step == 4:
                loss = loss * torch.log(loss * 0 - 1)
            if fault == "gradient" and step == 4:
                loss = loss + torch.sqrt(loss * 0)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if hasattr(model, "eval"):
            model.eval()
        # What a script has compiled under gradients refuses inference tensors.
        scripted = isinstance(model, torch.jit.ScriptModule)
        with torch.no_grad() if scripted else torch.inference_mode():
            losses.append(model(x).clone())
    return [*losses, *model.state_dict().values()], watched


def same(one, other):
    plain = [(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor)]
    return all(torch.equal(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor)) for a, b in plain)


@every_model
def test_they_train_as_ever(make):
    """Losses, state and an evaluation to the last bit, each step counted, nothing found."""
    plain, _ = trained(make, contextlib.nullcontext())
    for region in REGIONS:
        watched, run = trained(make, region())
        assert same(plain, watched), region
        assert (getattr(run, "run", run).steps, run.findings) == (6, [])


@every_model
def test_their_faults_are_found(make):
    """A loss and a derivative that break in the fourth step."""
    for fault, kind, context in (
        ("loss", "nonfinite-loss", zero_change()),
        ("gradient", "nonfinite-gradient", watch(on_instability="record")),
    ):
        _, run = trained(make, context, fault)
        assert (run.findings[0].kind, run.findings[0].step) == (kind, 4)


# -- copies, pickles, averages -----------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("region", REGIONS)
def test_copies_and_saved_models_hold_nothing_of_ours(make, region):
    """Copied, pickled and saved in the middle of a watch as before it, where torch can do it at all."""
    torch.manual_seed(0)
    model, x = make(), torch.ones(5, 4)
    ways = (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved)
    for way in ways:
        model(x)
        try:
            way(model)
        except (TypeError, RuntimeError, AttributeError, pickle.PicklingError):  # with hooks on its weights, for one
            continue
        with region():
            for _ in range(70):
                with torch.no_grad():
                    model(x)
            twin = way(model)
        with torch.no_grad():
            assert torch.equal(twin(x).as_subclass(torch.Tensor), model(x).as_subclass(torch.Tensor)) or model.training
        with contextlib.suppress(TypeError, RuntimeError, AttributeError):  # what cannot be pickled
            assert b"pytest_nanstab" not in pickle.dumps(twin)


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"pytest_nanstab" not in buffer.getvalue()
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def averaged(fault=None):
    """SWA with its schedule and `update_bn`, and an exponential average beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    swa = torch.optim.swa_utils.AveragedModel(model)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01)
    data = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    for step, x in enumerate(data, start=1):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        ema.update_parameters(model)
        if step > 3:
            swa.update_parameters(model)
            schedule.step()
    if fault == "batch":
        data[2] = torch.full((5, 4), NAN)
    torch.optim.swa_utils.update_bn(data, swa)
    swa.eval()
    with torch.no_grad():
        out = swa(torch.ones(2, 4)) + ema(torch.ones(2, 4))
    return [out, *swa.state_dict().values(), *ema.state_dict().values()]


@every_way
def test_averaged_models(ask):
    """A bad batch in `update_bn` poisons the statistics of the average, and is found in evaluation."""
    plain = averaged()
    with watch() as run:
        assert same(plain, averaged())
    assert (run.steps, run.findings) == (6, [])
    found = ask(lambda: averaged("batch"))
    assert found
    assert found[0].kind in ("nonfinite-buffer", "nonfinite-input", "nonfinite-output")


# -- transforms and modes ----------------------------------------------------------------------------------------------


def transforms():
    """Per-sample gradients, Jacobians and a training written with torch.func."""
    model = mlp()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    for _ in range(3):
        gradients = torch.func.grad(loss)(parameters, x)
        parameters = {name: p - 0.1 * gradients[name] for name, p in parameters.items()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    return [*parameters.values(), *each.values(), torch.func.jacrev(model)(x), torch.func.hessian(model)(x[0])]


def symbols():
    """Tensors without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            model(torch.empty(3, 4)).mean().backward()
            optimizer.step()
    meta = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 1, device="meta"))
    meta(torch.empty(3, 4, device="meta")).sum().backward()
    torch.optim.SGD(meta.parameters(), 0.1).step()
    exported = torch.export.export(mlp(), (torch.ones(3, 4),)).module()
    return [exported(torch.ones(3, 4)).detach()]


@every_way
@pytest.mark.parametrize("body", [transforms, symbols])
def test_transforms_and_symbols(ask, body):
    """The same results, and nothing found."""
    plain, seen = body(), []
    assert ask(lambda: seen.extend(body())) == []
    assert same(plain, seen)


@every_way
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_sparse_and_complex_outputs(ask, context):
    """A NaN in an output that is complex or sparse; the healthy twin."""

    class Output(nn.Module):
        def forward(self, x, kind):
            bad = torch.sqrt(x)
            return torch.complex(x, bad) if kind == "complex" else torch.diag(bad).to_sparse()

    def body(value, kind):
        with context():
            Output()(torch.full((3,), value), kind)

    for kind in ("complex", "sparse"):
        assert kinds(ask(lambda kind=kind: body(-1.0, kind))) == ["nonfinite-output"]
        assert ask(lambda kind=kind: body(1.0, kind)) == []
