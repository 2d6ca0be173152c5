"""`assert_finite`: every kind of value with a bad number in it fails, its healthy twin passes."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import fractions
import traceback
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pytest_nanstab import NonFiniteError, StabilityError, assert_finite

# What torch says once about sparse tensors, whoever builds them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
]
NAN, INF = float("nan"), float("inf")
Pair = collections.namedtuple("Pair", "loss aux")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    text: str = "words"
    cache: object = None


def failure(obj, **kwargs):
    with pytest.raises(NonFiniteError) as caught:
        assert_finite(obj, **kwargs)
    return caught.value


def dtype_case(dtype, bad):
    return torch.tensor([1.0, bad, 2.0]).to(dtype)


def module_with(parameter=1.0, buffer=1.0):
    module = nn.BatchNorm1d(3)
    with torch.no_grad():
        module.weight[1] = parameter
        module.running_var[2] = buffer
    return nn.Sequential(collections.OrderedDict(norm=module))


def stepped_optimizer(bad):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.state[layer.weight]["exp_avg"][0, 1] = bad
    return optimizer


def cyclic(bad):
    items = [torch.tensor([bad])]
    items.append({"again": items})
    return items


def nested(bad, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.tensor([0.0, bad, 1.0])], layout=layout)


def model_output(bad):
    outputs = pytest.importorskip("transformers.modeling_outputs")
    return outputs.CausalLMOutput(loss=torch.tensor(1.0), logits=torch.tensor([[0.0, bad]]))


def packed(bad):
    return nn.utils.rnn.pack_padded_sequence(torch.tensor([[[1.0], [bad]]]), [2], batch_first=True)


def scipy_sparse(bad):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    return scipy_sparse.csr_matrix(np.array([[0.0, 1.0], [bad, 0.0]]))


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BUILDERS = {
    "tensor": lambda bad: torch.tensor([1.0, bad]),
    "scalar tensor": torch.tensor,
    "requires grad": lambda bad: torch.tensor([1.0, bad], requires_grad=True),
    "not contiguous": lambda bad: torch.tensor([[1.0, bad], [2.0, 3.0]]).T,
    "complex": lambda bad: torch.complex(torch.tensor([0.0, bad]), torch.tensor([1.0, 1.0])),
    "conjugated": lambda bad: torch.complex(torch.tensor([0.0, 1.0]), torch.tensor([1.0, bad])).conj(),
    "sparse coo": lambda bad: torch.sparse_coo_tensor([[0, 1], [2, 0]], [1.0, bad], (2, 3)),
    "sparse csr": lambda bad: torch.tensor([[0.0, bad], [1.0, 0.0]]).to_sparse_csr(),
    "nested strided": lambda bad: nested(bad, torch.strided),
    "nested jagged": lambda bad: nested(bad, torch.jagged),
    "numpy": lambda bad: np.array([[1.0, bad]]),
    "numpy scalar": np.float32,
    "numpy complex": lambda bad: np.array([complex(0, bad)]),
    "numpy object": lambda bad: np.array(["a", None, 1.0, bad], dtype=object),
    "numpy objects in objects": lambda bad: np.array([{"x": torch.tensor([bad])}, None], dtype=object),
    "numpy record": lambda bad: np.array([(1, bad)], dtype=[("id", "i4"), ("x", "f4")]),
    "numpy reversed": lambda bad: np.array([1.0, bad])[::-1],
    "float": lambda bad: bad,
    "complex number": lambda bad: complex(1.0, bad),
    "decimal": lambda bad: decimal.Decimal(str(bad)),
    "dict": lambda bad: {"a": None, "b": "text", "c": [torch.ones(1), torch.tensor([bad])]},
    "list of floats": lambda bad: [1.0, 2, bad, True, None],
    "set": lambda bad: {1.0, bad},
    "dict values": lambda bad: {"a": torch.tensor(bad)}.values(),
    "generator": lambda bad: (torch.tensor(value) for value in (1.0, bad)),
    "namedtuple": lambda bad: Pair(torch.tensor(1.0), (torch.tensor(bad), "text")),
    "dataclass": lambda bad: Output(torch.tensor([bad])),
    "deque": lambda bad: collections.deque([torch.tensor(bad)]),
    "packed sequence": packed,
    "module parameter": lambda bad: module_with(parameter=bad),
    "module buffer": lambda bad: module_with(buffer=bad),
    "module in a list": lambda bad: [module_with(buffer=bad)],
    "state dict": lambda bad: module_with(buffer=bad).state_dict(),
    "optimizer": stepped_optimizer,
    "optimizer state dict": lambda bad: stepped_optimizer(bad).state_dict(),
    "cycle": cyclic,
    "model output": model_output,
    "frame": lambda bad: pd.DataFrame({"id": [1, 2], "name": ["x", None], "x": [1.0, bad]}),
    "series": lambda bad: pd.Series([1.0, bad]),
    "object column": lambda bad: pd.DataFrame({"x": pd.Series([1.0, bad], dtype=object)}),
    "repeated columns": lambda bad: pd.DataFrame([[1.0, 2.0], [bad, 3.0]], columns=["x", "x"]),
    "scipy sparse": scipy_sparse,
    **{str(dtype): lambda bad, dtype=dtype: dtype_case(dtype, bad) for dtype in FLOATS},
    "float8": lambda bad: dtype_case(torch.float8_e5m2, bad),
    "0-d in a tuple": lambda bad: (torch.tensor(0), torch.tensor(bad)),
    "past nested lists": lambda bad: deep(bad, 2000),
}


def deep(value, depth):
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_bad_number_is_found_and_good_twin_passes(build, bad):
    """Whatever holds the number: NaN and either infinity fail, 1.0 in the same place passes."""
    assert_finite(build(1.0))
    assert failure(build(bad)).findings


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_allowed_kind_passes_and_the_other_does_not(build):
    """allow_inf lets Inf pass and NaN not, allow_nan the reverse."""
    assert_finite(build(-INF), allow_inf=True)
    assert_finite(build(NAN), allow_nan=True)
    failure(build(NAN), allow_inf=True)
    failure(build(INF), allow_nan=True)


def test_causal_mask_with_nan_beside_inf_fails():
    """allow_inf does not hide a NaN among the infinities of a causal mask."""
    scores = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -INF)
    assert_finite(scores, allow_inf=True)
    broken = torch.softmax(torch.full((4, 4), -INF), -1) + scores
    finding = failure(broken, allow_inf=True).findings[0]
    assert finding.evidence["nan"] == 16
    assert finding.evidence["inf"] == 0


def test_message_and_evidence_say_what_where_and_how_many():
    """The first line names kind, path and counts; the evidence has index, shape, dtype and the finite range."""
    logits = torch.zeros(64, 10)
    logits[3, 2] = logits[3, 7] = logits[9, 0] = NAN
    logits[1, 1], logits[0, 0] = -4.0, 7.0
    error = failure({"logits": [logits]})
    assert str(error).splitlines()[0] == "NaN in value['logits'][0] (3 of 640 values)"
    finding = error.findings[0]
    assert (finding.kind, finding.phase) == ("nonfinite-output", None)
    assert finding.evidence == {
        "tensor": "value['logits'][0]",
        "dtype": "float32",
        "shape": [64, 10],
        "count": 3,
        "of": 640,
        "nan": 3,
        "inf": 0,
        "first_index": [3, 2],
        "range": [-4.0, 7.0],
    }


def test_nan_and_inf_together_are_counted_apart():
    """Both kinds in one tensor appear in one line."""
    error = failure(torch.tensor([NAN, INF, -INF, 1.0]), name="scores")
    assert str(error).splitlines()[0] == "NaN and Inf in scores (1 NaN, 2 Inf of 4 values)"


def test_single_value_reads_naturally():
    """A scalar is 'of 1 value', and an item of a Python list is named by its index."""
    assert str(failure(torch.tensor(NAN), name="loss")).startswith("NaN in loss (1 of 1 value)\n")
    assert str(failure([1.0, 2.0, INF], name="losses")).startswith("Inf in losses[2] (1 of 3 values)\n")


def test_every_bad_leaf_is_a_finding():
    """All bad leaves of a pytree are reported at once, in order."""
    batch = {"a": torch.tensor([NAN]), "b": torch.ones(2), "c": (torch.tensor([INF]), np.array([NAN]))}
    paths = [finding.evidence["tensor"] for finding in failure(batch).findings]
    assert paths == ["value['a']", "value['c'][0]", "value['c'][1]"]


def test_many_bad_leaves_are_bounded_and_counted():
    """Twenty findings at most, and the first says how many there are."""
    error = failure([torch.tensor([NAN]) for _ in range(27)])
    assert len(error.findings) == 20
    assert error.findings[0].evidence["note"] == "27 tensors are not finite, the first 20 are listed"


def test_shared_object_is_reported_once():
    """A tensor reachable twice is one finding."""
    bad = torch.tensor([NAN])
    assert len(failure([bad, {"again": bad}]).findings) == 1


def test_parameters_and_buffers_have_their_own_kinds_and_names():
    """In a module the finding names the parameter or buffer as named_parameters does."""
    kinds = {finding.kind: finding.module for finding in failure(module_with(NAN, INF), name="model").findings}
    assert kinds == {"nonfinite-parameter": "norm.weight", "nonfinite-buffer": "norm.running_var"}
    assert failure(stepped_optimizer(NAN)).findings[0].kind == "nonfinite-optimizer-state"


def test_sparse_index_is_in_the_whole():
    """The first index of a sparse tensor is its place in the dense one."""
    sparse = torch.sparse_coo_tensor([[0, 1], [2, 0]], [1.0, NAN], (2, 3))
    evidence = failure(sparse).findings[0].evidence
    assert (evidence["first_index"], evidence["of"], evidence["shape"]) == ([1, 0], 6, [2, 3])


def test_finding_names_the_users_line():
    """The finding's source is the line of the call."""
    finding = failure(NAN).findings[0]
    assert finding.source is not None
    assert "test_assert_finite.py:" in finding.source


def test_traceback_ends_in_the_test():
    """Every frame of the package in the traceback is hidden from pytest."""
    error = failure(NAN)
    frames = [
        frame for frame, _ in traceback.walk_tb(error.__traceback__) if "pytest_nanstab" in frame.f_code.co_filename
    ]
    assert frames
    assert all(frame.f_locals.get("__tracebackhide__") for frame in frames)


@pytest.mark.parametrize(
    "obj",
    ["a str", None, b"bytes", [], {}, ["only", "text"], {"grads": [None, None]}, object(), nn.ReLU(), iter(())],
    ids=lambda obj: type(obj).__name__,
)
def test_nothing_to_check_is_an_error(obj):
    """A check that would check nothing says what it accepts instead of passing."""
    with pytest.raises(TypeError, match="holds no numbers to check; allowed are tensors, numpy arrays"):
        assert_finite(obj)


@pytest.mark.parametrize(
    "obj",
    [
        torch.empty(0, 3),
        np.empty((0,)),
        torch.empty(2, device="meta"),
        torch.tensor([1, 2]),
        torch.tensor([True]),
        3,
        np.int64(7),
        10**400,
        fractions.Fraction(10**400, 3),
        np.array([1, 2]),
        pd.DataFrame({"id": [1, 2]}),
        [None, torch.ones(1), "text", object()],
        np.ma.masked_array([1.0, NAN], mask=[False, True]),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_values_without_bad_numbers_pass(obj):
    """Integers, empty and meta tensors, masked entries and strangers beside tensors are healthy."""
    assert_finite(obj)


def test_fake_and_lazy_tensors_are_passed_over():
    """Tensors that have no numbers yet cannot be judged."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    assert_finite(fake)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(3)
    assert_finite(lazy)


def test_inside_vmap_nothing_is_read():
    """Under functorch the wrapped tensor is passed over instead of breaking the transform."""

    def double(x):
        assert_finite(x)
        return 2 * x

    assert torch.equal(torch.func.vmap(double)(torch.ones(3)), torch.full((3,), 2.0))


def test_nullable_columns_count_gaps_as_nan():
    """A gap in a nullable numeric column becomes NaN in a tensor; categories and texts are no numbers."""
    frame = pd.DataFrame({"n": pd.array([1, None, 3], dtype="Int64"), "c": pd.Categorical([1.5, None, 1.5])})
    findings = failure(frame).findings
    assert [(f.evidence["tensor"], f.evidence["nan"], f.evidence["first_index"]) for f in findings] == [
        ("value['n']", 1, [1])
    ]


def test_no_graph_no_change_no_random_number():
    """Checking builds no graph, changes nothing and draws no random number."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    state, version = torch.get_rng_state(), x._version
    assert_finite({"x": x, "y": x.exp()})
    assert torch.equal(state, torch.get_rng_state())
    assert (x._version, x.grad) == (version, None)


def test_a_users_mode_does_not_see_the_check():
    """The few operations of the check stay invisible to a dispatch mode of the user's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.tensor([1.0, NAN])
    with Recorder():
        failure(x, allow_inf=True)
    assert not [func for func in seen if "detach" not in str(func)]


def test_largest_finite_numbers_pass():
    """Values at the edge of the format are finite: nothing overflows on the way."""
    for dtype in FLOATS:
        assert_finite(torch.full((4,), torch.finfo(dtype).max, dtype=dtype))
    assert_finite(np.full(4, np.finfo(np.float64).max))


def test_error_is_an_assertion_and_a_stability_error():
    """Runners see a failure, not an error."""
    error = failure(NAN)
    assert isinstance(error, (AssertionError, StabilityError))


def test_name_must_be_text():
    """A wrong argument is named with what was given."""
    with pytest.raises(TypeError, match="name must be a str, got 3"):
        assert_finite(1.0, name=3)


class FakePolars:
    """The part of polars that is used, for machines without polars."""

    def __init__(self, values, numeric=True):
        self.values, self.name, self.dtype = values, "x", self
        self.numeric = numeric

    def is_numeric(self):
        return self.numeric

    def is_null(self):
        return type(self)([value is None for value in self.values])

    def to_numpy(self):
        return np.array([NAN if value is None else value for value in self.values])


Series = type("Series", (FakePolars,), {"__module__": "polars.series.series"})
DataFrame = type("DataFrame", (), {"__module__": "polars.frame", "get_columns": lambda _: [Series([1.0, NAN, 2.0])]})


def test_polars_by_duck_typing():
    """A polars frame is read column by column without importing polars."""
    assert failure(DataFrame()).findings[0].evidence["tensor"] == "value['x']"
    assert failure(Series([1, None])).findings[0].evidence["first_index"] == [1]
    assert_finite(Series([1.0, 2.0]))
