"""Outputs of outermost module calls: NaN born in evaluation, and everything a module may be asked to do meanwhile."""

from __future__ import annotations

import collections
import copy
import functools
import io
import pickle
import re
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from watched import batches, every_way, kinds, loss_of, mlp, raised, recorded, train, zero_change

from pytest_nanstab import NonFiniteError, watch
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

NAN, INF = float("nan"), float("inf")


class Ratio(nn.Module):
    """0 / 0 for an input of zeros."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        y = self.inner(x)
        return y / y.norm(dim=-1, keepdim=True)


def no_grad(model, x):
    with torch.no_grad():
        return model(x)


def inference_mode(model, x):
    with torch.inference_mode():
        return model(x)


@torch.no_grad()
def decorated(model, x):
    return model(x)


def grad_disabled(model, x):
    with torch.set_grad_enabled(False):
        return model(x)


def eval_mode(model, x):
    model.eval()
    return no_grad(model, x)


def eval_with_graph(model, x):
    model.eval()
    return model(x)


def training_without_backward(model, x):
    return model(x)


FORMS = [no_grad, inference_mode, decorated, grad_disabled, eval_mode, eval_with_graph, training_without_backward]
ZEROS, ONES = torch.zeros(2, 4), torch.ones(2, 4)


@every_way
@pytest.mark.parametrize("form", FORMS)
def test_nan_born_in_a_first_evaluation(ask, form):
    """NaN out of finite input is a finding in every kind of evaluation."""
    torch.manual_seed(0)
    assert ask(lambda: form(Ratio(), ONES)) == []
    findings = ask(lambda: form(Ratio(), ZEROS))
    assert kinds(findings) == ["nonfinite-output"]
    assert findings[0].module == "Ratio"
    assert findings[0].source.rpartition(":")[0].endswith("test_watch_outputs.py")


@every_way
@pytest.mark.parametrize("form", [no_grad, inference_mode, eval_mode, eval_with_graph])
def test_nan_born_in_a_late_evaluation(ask, form):
    """The same after hundreds of training steps, in the module that was trained."""
    torch.manual_seed(0)
    model = nn.Sequential(Ratio(), nn.Linear(4, 1))

    def body(x):
        model.train()
        train(model, torch.optim.SGD(model.parameters(), 0.001), 100)
        form(model, x)

    assert ask(lambda: body(ONES)) == []
    assert kinds(ask(lambda: body(ZEROS))) == ["nonfinite-output"]


@every_way
@pytest.mark.parametrize("form", [no_grad, inference_mode, eval_mode])
def test_nan_born_in_a_copy_evaluated_at_the_end(ask, form):
    """A module that was never called before: an averaged copy, evaluated after training."""
    torch.manual_seed(0)
    model = nn.Sequential(Ratio(), nn.Linear(4, 1))

    def body(x):
        train(model, torch.optim.SGD(model.parameters(), 0.001), 100)
        form(copy.deepcopy(model), x)

    assert ask(lambda: body(ONES)) == []
    assert kinds(ask(lambda: body(ZEROS))) == ["nonfinite-output"]


def calls_until_found(model, bad):
    """The call at which a strict watch raises, when one of 400 has zeros as its input."""
    try:
        with watch():
            for index in range(400):
                no_grad(model, ZEROS if index == bad else ONES)
    except NonFiniteError:
        return index
    return None


def test_a_strict_watch_judges_every_evaluation():
    """`watch()` misses no NaN in a long evaluation, wherever it comes."""
    model = Ratio().eval()
    for bad in (70, 333):
        assert calls_until_found(model, bad) == bad


def test_a_strict_watch_judges_modules_with_their_own_state():
    """The same for a class that cannot be counted, because it pickles itself in its own way."""

    class Own(Ratio):
        def __getstate__(self):
            return self.__dict__.copy()

    assert calls_until_found(Own().eval(), 150) == 150


@every_way
def test_a_broken_model_is_named_by_what_broke_it(ask):
    """A NaN that a parameter or a statistic carries into the output is named there."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        model[1].running_var.fill_(NAN)
    assert kinds(ask(lambda: no_grad(model, ONES))) == ["nonfinite-buffer"]
    with torch.no_grad():
        model[1].running_var.fill_(1)
        model[0].bias[0] = NAN
    findings = ask(lambda: no_grad(model, ONES))
    assert kinds(findings) == ["nonfinite-parameter"]
    assert findings[0].module == "0"


@every_way
def test_nan_that_went_in_is_no_finding(ask):
    """Evaluating data that holds NaN makes NaN, and is nobody's fault here."""
    model = mlp()
    x = ONES.clone()
    x[0, 0] = NAN
    assert ask(lambda: no_grad(model, x)) == []
    assert ask(lambda: no_grad(model, x + INF)) == []


@every_way
def test_infinite_outputs_are_legal(ask):
    """-inf for impossible classes, and +inf, are no NaN."""

    class Impossible(nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0, -INF), x + INF

    assert ask(lambda: no_grad(Impossible(), ONES)) == []


@every_way
def test_masks_are_no_bad_data(ask):
    """An additive mask of -inf is legal input: a NaN born of it was born inside."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x = torch.randn(1, 3, 4)
    causal = torch.full((3, 3), -INF).triu(1)
    assert ask(lambda: no_grad(lambda x: attention(x, x, x, attn_mask=causal, need_weights=True), x)) == []

    class Softmax(nn.Module):
        def forward(self, x, mask):
            return torch.exp(x + mask) / torch.exp(x + mask).sum(-1, keepdim=True)

    def masked(mask):
        with torch.no_grad():
            Softmax()(torch.zeros(2, 2), mask)

    assert ask(lambda: masked(torch.tensor([[0.0, -INF], [0.0, 0.0]]))) == []
    assert kinds(ask(lambda: masked(torch.tensor([[-INF, -INF], [0.0, 0.0]])))) == ["nonfinite-output"]


def test_opting_out_of_outputs():
    """`allow_nonfinite=("output",)` is for tests about NaN itself."""
    with Region(Options(allow_nonfinite=frozenset({"output"}))) as region:
        no_grad(Ratio(), ZEROS)
        eval_with_graph(Ratio(), ZEROS)
    assert region.findings == []


@every_way
def test_a_nan_that_the_loss_does_not_see(ask):
    """A padded row may be NaN in training as long as the loss leaves it out."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return torch.cat([self.inner(x), torch.full((1, 1), NAN)])

    padded = Padded()

    def body():
        for x, y in batches(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(padded(x)[:-1], y).backward()
            optimizer.step()

    assert ask(body) == []
    padded.eval()
    assert ask(body) == []


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()


Named = collections.namedtuple("Named", "logits")


class ModelOutput(collections.OrderedDict):
    """A mapping whose items are attributes too, as model libraries have it."""


WRAPPERS = {
    "dict": lambda y: {"logits": y},
    "dataclass": lambda y: Output(torch.zeros(1), (y,)),
    "named tuple": Named,
    "model output": lambda y: ModelOutput(loss=None, logits=y),
    "list": lambda y: [None, "text", (1, y)],
}


@every_way
@pytest.mark.parametrize("kind", WRAPPERS)
def test_outputs_of_every_kind_are_looked_into(ask, kind):
    """A NaN is found in dictionaries, dataclasses, tuples and lists."""

    class Wrapped(Ratio):
        def forward(self, x):
            return WRAPPERS[kind](super().forward(x))

    assert ask(lambda: no_grad(Wrapped(), ONES)) == []
    assert kinds(ask(lambda: no_grad(Wrapped(), ZEROS))) == ["nonfinite-output"]


def test_only_the_model_asked_for():
    """`watch(model)` judges that model's outputs, also in a wrapper, and no other module's."""
    model, other = Ratio(), Ratio()

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    with watch(model) as run:
        no_grad(other, ZEROS)
    assert run.findings == []
    for called in (model, Wrapper(model)):
        with pytest.raises(NonFiniteError), watch(model):
            no_grad(called, ZEROS)


@every_way
def test_two_models_in_different_modes(ask):
    """A teacher in eval mode without gradients beside a student in training."""
    teacher, student = mlp(0).eval(), mlp(1)
    optimizer = torch.optim.SGD(student.parameters(), 0.01)

    def body(bad):
        for step, (x, _) in enumerate(batches(150), start=1):
            with torch.no_grad():
                target = teacher(x * (1e38 if step == bad else 1.0))
            optimizer.zero_grad()
            nn.functional.mse_loss(student(x), target).backward()
            optimizer.step()

    assert ask(lambda: body(0)) == []


# -- a module that is watched is still itself --------------------------------------------------------------------------


class PicklesItself(nn.Linear):
    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "cache"}


MODULES = {
    "sequential": mlp,
    "lstm": lambda: nn.LSTM(4, 3, batch_first=True),
    "own getstate": lambda: PicklesItself(4, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0),
}


@pytest.mark.parametrize("region", [watch, zero_change])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("calls", [0, 1, 300])
@pytest.mark.parametrize("gradients", [True, False])
def test_copies_and_pickles(region, make, calls, gradients):
    """A watched module can be copied, pickled and saved before and after hundreds of calls; the copy works alike."""
    model, x = make(), torch.randn(2, 3, 4)
    with region(), torch.set_grad_enabled(gradients):
        for _ in range(calls):
            model(x)
        copies = [copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))]
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        results = [twin(x) for twin in copies]
        expected = model(x)
    for result, twin in zip(results, copies, strict=True):
        assert_same(result, expected)
        assert "_compiled_call_impl" not in vars(twin)
    assert "_compiled_call_impl" not in vars(model)
    assert not model._forward_hooks


def assert_same(left, right):
    if isinstance(left, tuple):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert torch.equal(left, right)


@pytest.mark.parametrize("region", [watch, zero_change])
def test_shallow_copies_made_by_hand(region):
    """A clone that shares the module's `__dict__` entries, as in meta-learning, runs with its own parameters."""
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    with region():
        for _ in range(300):
            model(x)
        clone = model.__new__(type(model))
        clone.__dict__ = model.__dict__.copy()
        clone._parameters = {name: p * 0 for name, p in model._parameters.items()}
        assert torch.equal(clone(x), torch.zeros(3, 2))
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert torch.equal(clone(x), torch.zeros(3, 2))
    original = model(x)
    del model
    assert torch.equal(clone(x), torch.zeros(3, 2))
    assert original.shape == (3, 2)


@pytest.mark.parametrize("region", [watch, zero_change])
@pytest.mark.parametrize("calls", [0, 300])
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_tracing_and_scripting(region, calls):
    """A watched module can be traced and scripted, and what comes out is the same as without a watch."""
    model, x = mlp(), torch.randn(2, 4)
    traced, scripted = torch.jit.trace(model, x), torch.jit.script(model)
    with region():
        for _ in range(calls):
            model(x)
        watched_trace, watched_script = torch.jit.trace(model, x), torch.jit.script(model)
        outputs = [m(x) for m in (watched_trace, watched_script, traced, scripted)]
    graphs = [re.sub(r"__torch__\S*", "", str(trace.inlined_graph)) for trace in (watched_trace, traced)]
    assert graphs[0] == graphs[1]
    assert watched_script.code == scripted.code
    for output in outputs:
        assert torch.allclose(output, model(x))


@pytest.mark.parametrize("region", [watch, zero_change])
@pytest.mark.parametrize("calls", [0, 300])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_compiling(region, calls, before):
    """`torch.compile` works in a watch, before and after hundreds of calls, in one graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model, x = mlp(), torch.randn(2, 4)
    compiled = torch.compile(model, backend=backend) if before else None
    with region():
        for _ in range(calls):
            model(x)
        compiled = compiled or torch.compile(model, backend=backend)
        for _ in range(3):
            output = compiled(x)
            output.sum().backward()
        function = torch.compile(lambda x: model(x) * 2, backend=backend)
        assert torch.equal(function(x), model(x) * 2)
    assert torch.equal(output, model(x))
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore")
def test_compiling_in_place_inside_a_watch():
    """`module.compile()` takes the slot that the watch uses; the watch leaves the compiled call alone."""
    torch._dynamo.reset()
    model, x = mlp(), torch.randn(2, 4)
    with watch():
        for _ in range(300):
            model(x)
        model.compile(backend="eager")
        mine = model._compiled_call_impl
        model(x)
    assert model._compiled_call_impl is mine


@pytest.mark.filterwarnings("ignore")
def test_exporting_inside_a_watch():
    """`torch.export` sees the model alone."""
    model, x = mlp(), torch.randn(2, 4)
    with watch():
        for _ in range(100):
            model(x)
        program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x))


@every_way
@pytest.mark.filterwarnings("ignore:.torch.jit")  # jvp scripts its formulas
def test_functional_calls_and_transforms(ask):
    """`functional_call`, `vmap`, `grad` and `jacrev` of a module are no business of the watch's, and work."""
    model, x = mlp(), torch.randn(3, 4)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).sum()

    def body():
        for _ in range(70):
            torch.func.functional_call(model, parameters, (x,))
        torch.func.grad(loss)(parameters, x)
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        torch.func.vmap(model)(x)
        torch.func.jacrev(model)(x[0])
        torch.func.jvp(model, (x,), (x,))

    assert ask(body) == []
    zeros = {name: p * NAN for name, p in parameters.items()}
    assert ask(lambda: torch.func.vmap(lambda x: loss(zeros, x))(x)) == []


def test_backward_inside_a_transform_fails_as_ever():
    """torch refuses `backward()` inside `vmap`; the message is torch's own."""
    model, x = mlp(), torch.randn(3, 4)

    def wrong(x):
        model(x).sum().backward()
        return x

    with watch(), pytest.raises(RuntimeError, match="functorch"):
        torch.func.vmap(wrong)(x)


@every_way
def test_meta_and_fake_tensors(ask):
    """Tensors without numbers are nobody's finding."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def meta():
        model = mlp().to("meta")
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.empty(2, 4, device="meta")).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            nn.utils.clip_grad_value_(model.parameters(), 1.0)
            optimizer.step()
        no_grad(model, torch.empty(2, 4, device="meta"))

    def fake():
        with FakeTensorMode():
            model = nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.empty(2, 4)).sum().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

    assert ask(meta) == []
    assert ask(fake) == []


@every_way
def test_a_default_device(ask):
    """`set_default_device` is a mode of torch's own; training under it is judged like any."""

    def body(value):
        with torch.device("cpu"):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            train(model, optimizer, 3, spoil=lambda step, loss: loss * value if step == 2 else loss)

    assert ask(lambda: body(1.0)) == []
    assert kinds(ask(lambda: body(NAN))) == ["nonfinite-loss"]
    model = mlp()
    with torch.device("meta"):
        assert ask(lambda: step_under_mode(model)) == []


def step_under_mode(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for p in model.parameters():
        p.grad = torch.ones_like(p, device="cpu")
    optimizer.step()
    optimizer.step()


@every_way
def test_other_threads_are_left_alone(ask):
    """Modules called in other threads are not judged, and nothing fails."""
    from concurrent.futures import ThreadPoolExecutor

    model = Ratio().eval()

    def body():
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(functools.partial(no_grad, model), [ONES] * 40))

    assert ask(body) == []


@every_way
def test_an_exception_in_forward(ask):
    """A forward pass that raises leaves the watch as it was: the next one is judged."""

    class Moody(Ratio):
        def forward(self, x):
            if x.sum() > 100:
                raise ValueError("too large")
            return super().forward(x)

    model = Moody()

    def body(x):
        for _ in range(3):
            with pytest.raises(ValueError, match="too large"):
                model(ONES * 100)
        assert not model._forward_hooks
        no_grad(model, x)

    assert ask(lambda: body(ONES)) == []
    assert kinds(ask(lambda: body(ZEROS))) == ["nonfinite-output"]


def test_a_module_that_returns_nothing():
    """Modules may return None, numbers or strings."""

    class Odd(nn.Module):
        def forward(self, x):
            return x

    with watch():
        for value in (None, 3, "text", object(), [None], {}):
            Odd()(value)


# -- names -------------------------------------------------------------------------------------------------------------


class Lit(nn.Module):
    """A module that a trainer never calls itself."""

    def __init__(self):
        super().__init__()
        self.net, self.other = mlp(), nn.Linear(1, 1)

    def training_step(self, x, y):
        return (self.net(x) - y).square().mean()

    @torch.enable_grad()
    def decorated_step(self, x, y):
        return self.training_step(x, y)


class LogOfNegative(nn.Module):
    def forward(self, x):
        return torch.log(x * 0 - 1)


class Mixed:
    """A step that comes from no module class of its own."""

    def mixed_step(self, x, y):
        return loss_in(self.net, x, y)


class LitMixed(Mixed, Lit):
    pass


def loss_in(net, x, y):
    return (net(x) - y).square().mean()


class Owner:
    """No module, but it has one."""

    def __init__(self, net):
        self.net = net

    def training_step(self, x, y):
        return (self.net(x) - y).square().mean()


def fitted(lit, step, x):
    optimizer = torch.optim.SGD(lit.net.parameters(), 0.1)
    getattr(lit, step)(x, torch.zeros(2, 1)).backward()
    with torch.no_grad():
        lit.net[2].weight.grad[0, 0] = NAN
    optimizer.step()


@every_way
@pytest.mark.parametrize(
    ("make", "step", "name"),
    [
        (Lit, "training_step", "net.2"),
        (Lit, "decorated_step", "net.2"),
        (LitMixed, "training_step", "net.2"),
        (LitMixed, "mixed_step", "2"),  # it is a function that makes the call
        (lambda: Owner(mlp()), "training_step", "2"),
    ],
)
def test_names_begin_at_the_module_whose_method_calls(ask, make, step, name):
    """A trainer's module has steps that call its parts, and is never called itself."""
    (finding,) = ask(lambda: fitted(make(), step, ONES))
    assert (finding.kind, finding.module) == ("nonfinite-gradient", name)
    assert finding.evidence["parameter"] == f"{name}.weight"


def test_names_of_a_repetition_begin_there_too():
    """What is traced on the spot has the same names."""
    lit = Lit()
    lit.net[1] = LogOfNegative()
    optimizer = torch.optim.SGD(lit.net.parameters(), 0.1)

    def body():
        loss = lit.training_step(ONES, torch.zeros(2, 1))
        loss.backward()
        optimizer.step()

    (finding,) = recorded(body)
    assert (finding.op, finding.module) == ("log", "net.1")


def test_the_variables_of_a_caller_are_let_go():
    """Looking for the caller's module keeps nothing of a caller alive that has none."""

    class Case:
        def test(self):
            model, x = mlp(), ONES.clone()
            with torch.no_grad():
                model(x)
            kept = weakref.ref(x)
            del x
            return kept()

    with zero_change():
        assert Case().test() is None


def test_the_finding_tells_what_the_output_looks_like():
    """Evidence: shape, dtype, how many values of how many, where the first one is."""
    x = ONES.clone()
    x[1] = 0
    (finding,) = raised(lambda: no_grad(Ratio(), x))
    assert finding.evidence["shape"] == [2, 4]
    assert finding.evidence["dtype"] == "float32"
    assert (finding.evidence["nan"], finding.evidence["of"]) == (4, 8)
    assert finding.evidence["first_index"] == [1, 0]
    assert recorded(lambda: loss_of(mlp(), ONES, torch.ones(2, 1))) == []


# --- tests that break a module on purpose

BREAKING = """
import torch
from torch import nn

def broken_by(init):
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        init(layer.weight)
    return layer

def test_a_broken_weight_is_refused():
    layer = nn.Linear(3, 2)
    layer.weight.data.fill_(float("inf"))
    assert not torch.isfinite(layer(torch.zeros(1, 3))).all()

def test_a_weight_that_init_broke():
    layer = broken_by(lambda weight: weight.div_(weight.sum() - weight.sum()).sub_(weight))
    assert layer(torch.ones(1, 3)).shape == (1, 2)

def test_training_on_it():
    layer = nn.Linear(3, 2)
    layer.weight.data.fill_(float("nan"))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()

def test_the_gradients_of_an_empty_batch():
    layer = nn.Linear(3, 2)
    layer(torch.zeros(0, 3)).abs().mean().backward()
    assert not layer.weight.grad.any()

def test_an_empty_batch_that_is_stepped_with():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.zeros(0, 3)).abs().mean().backward()
    optimizer.step()
"""


def test_what_a_test_breaks_itself_is_its_own_business(pytester):
    """Weights set to inf where nothing is trained, an empty batch whose gradients nobody uses; no more than that."""
    pytester.makepyfile(test_it=BREAKING)
    result = pytester.runpytest_subprocess("--nanstab", "-p", "no:randomly", "-v")
    result.stdout.fnmatch_lines(
        [
            "*test_a_broken_weight_is_refused PASSED*",
            "*test_a_weight_that_init_broke FAILED*",
            "*test_training_on_it FAILED*",
            "*test_the_gradients_of_an_empty_batch PASSED*",
            "*test_an_empty_batch_that_is_stepped_with FAILED*",
        ]
    )
