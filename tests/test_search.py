"""The guided search: edges are torch's own, moves stay legal, every grade has a control, hidden bugs are found."""

from __future__ import annotations

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hidden_bugs import PROGRAMS
from hidden_bugs.hunted import STEPS, hunted
from hypothesis import given, settings
from hypothesis import strategies as st
from legality import TRANSLATION, assert_legal_translation, outside
from sound_programs import SOUND
from torch import nn
from torch.optim import SGD, Adam

from pytest_nanstab import TrainingSetup, watch
from pytest_nanstab.batches.drawing import described_from_spec
from pytest_nanstab.batches.layout import plan
from pytest_nanstab.batches.trees import leaves
from pytest_nanstab.config import GRADES
from pytest_nanstab.search import moves
from pytest_nanstab.search.sites import Lookup, Watcher
from pytest_nanstab.strategies import TensorSpec
from pytest_nanstab.suite.fixture import Nanstab

QUICK = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def data(rows=8, width=4, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(rows, width, generator=generator), torch.rand(rows, 1, generator=generator)) for _ in range(count)
    ]


def regression(model, loss, **changes):
    given = {"model": model, "loss": loss, "optimizer": Adam(model.parameters(), 1e-3), "batches": data()}
    return TrainingSetup(**{**given, **changes})


# --- edges

EDGES = {
    "log": (torch.log, 0.0, 1e-3),
    "log2": (torch.log2, 0.0, 1e-3),
    "log10": (torch.log10, 0.0, 1e-3),
    "log1p": (torch.log1p, -1.0, -0.99),
    "sqrt": (torch.sqrt, 0.0, 1e-3),
    "rsqrt": (torch.rsqrt, 0.0, 1e-3),
    "reciprocal": (torch.reciprocal, 0.0, 1e-3),
    "div": (lambda x: torch.ones(1) / x, 0.0, 1e-3),
    "remainder": (lambda x: torch.remainder(torch.ones(1), x), 0.0, 0.3),
    "exp": (torch.exp, 89.0, 88.0),
    "expm1": (torch.expm1, 89.0, 88.0),
    "exp2": (torch.exp2, 128.5, 127.0),
    "pow": (lambda x: 10.0**x, 38.6, 38.0),
    "sinh": (torch.sinh, -90.0, -88.0),
    "cosh": (torch.cosh, 90.0, 88.0),
    "i0": (torch.special.i0, 89.0, 88.0),
    "i1": (torch.special.i1, -89.0, -88.0),
    "entr": (torch.special.entr, 0.0, 1e-3),
    "ndtri": (torch.special.ndtri, 1.0, 0.99),
    "acos": (torch.acos, 1.0, 0.99),
    "asin": (torch.asin, -1.0, -0.99),
    "atanh": (torch.atanh, 1.0, 0.99),
    "acosh": (torch.acosh, 1.0, 1.01),
    "erfinv": (torch.erfinv, 1.0, 0.99),
    "logit": (torch.logit, 0.0, 0.01),
    "lgamma": (torch.lgamma, 0.0, 0.01),
    "digamma": (torch.digamma, 0.0, 0.01),
    "pow of a root": (lambda x: x**0.5, 0.0, 1e-3),
    "pow of an inverse": (lambda x: x**-2, 0.0, 1e-3),
    "pow of a fraction": (lambda x: x**1.5, -0.1, 0.0),
    "xlogy": (lambda x: torch.xlogy(torch.ones(1), x), 0.0, 1e-3),
    "addcdiv": (lambda x: torch.addcdiv(torch.ones(1), torch.ones(1), x), 0.0, 1e-3),
    "cholesky": (lambda x: torch.linalg.cholesky(torch.eye(2) * x + (1 - x)), 0.0, 0.1),
    "inv": (lambda x: torch.linalg.inv(torch.eye(2) * x + (1 - x)), 0.0, 0.1),
    "hypot": (lambda x: torch.hypot(x, x), 0.0, 1e-3),
}
SAFE = {
    "norm": lambda x: torch.linalg.vector_norm(x),
    "std": lambda x: x.std(),
    "cdist": lambda x: torch.cdist(x[None, :], x[None, :]),
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "logsigmoid": F.logsigmoid,
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "softplus": F.softplus,
    "square": lambda x: x**2,
    "by a number": lambda x: x / 3,
}


def at(function, value):
    """What one operation shows of its edges at a value, and whether value and derivative are finite there."""
    x = torch.tensor([value], requires_grad=True)
    watcher = Watcher()
    try:
        with watcher:
            result = function(x)
        (gradient,) = torch.autograd.grad(result.sum(), x)
        finite = bool(torch.isfinite(result).all() and torch.isfinite(gradient).all())
    except torch.linalg.LinAlgError:
        finite = False
    return watcher.seen, finite


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_is_where_torch_stops_being_finite(name):
    """At the edge value or derivative is not finite and no bit is left; a little inside both are, and bits are left."""
    function, edge, inside = EDGES[name]
    seen, finite = at(function, edge)
    assert not finite
    assert min(site.bits for site in seen.values()) < 1
    seen, finite = at(function, inside)
    assert finite
    (site,) = seen.values()
    assert site.bits > 0
    assert math.isfinite(site.bits)


@pytest.mark.parametrize("name", SAFE)
def test_what_torch_keeps_finite_has_no_edge(name):
    """Zeros and large values leave these finite, so nothing is searched there."""
    for values in ([0.0, 0.0], [1e3, -1e3]):
        x = torch.tensor(values, requires_grad=True)
        with Watcher() as watcher:
            result = SAFE[name](x)
        (gradient,) = torch.autograd.grad(result.sum(), x)
        assert torch.isfinite(gradient).all()
        assert not watcher.seen


def test_sites_are_the_users_lines_with_the_closest_operand():
    """Two calls of one line are one site; the backward pass and the optimizer are not looked at."""
    x = torch.tensor([2.0, 8.0], requires_grad=True)
    with Watcher() as watcher:
        for value in x:
            value.log().backward()
    ((site, seen),) = watcher.seen.items()
    assert site.op == "log"
    assert site.spot[0] == __file__
    assert seen.distance == 2
    assert seen.bits == pytest.approx(150)


# --- moves stay legal


def gradient_like(leaf, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.dtype)


@QUICK
@given(described_from_spec(TRANSLATION, sizes={"n": (1, 4)}), st.integers(0, 9), st.sampled_from([1.0, 0.25, 2.0**-10]))
def test_moves_stay_inside_the_domain(described, seed, share):
    """Sign steps, exchanged classes and tokens, Newton steps: padding, lengths, masks and rows stay as they must be."""
    checked, batch = plan(TRANSLATION, {"n": (1, 4)}), described.batch
    gradients = {
        path: gradient_like(leaf, seed)
        for path, leaf in leaves(batch)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    }
    table = gradient_like(torch.zeros(60, 3), seed)
    source = batch["src"]
    looked_up = Lookup(table, source, table[source])
    gradients |= moves.token_gains(checked, batch, [looked_up], [gradient_like(table[source], seed + 1)])
    for moved in (moves.moved(checked, batch, gradients, share), moves.newton(checked, batch, gradients, 1e6)):
        assert_legal_translation(moved)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bounds", [(-1e4, 1e4), (0.1, 0.7), (1e-6, 1e-3), (-6e4, 65504.0), (3.0, 3.0)])
@pytest.mark.parametrize("allow_subnormal", [True, False])
def test_moved_values_stay_inside_their_bounds(dtype, bounds, allow_subnormal):
    """Rounding to the dtype does not lead beyond a bound, whatever the step."""
    if dtype == "float16" and bounds[0] == 1e-6 and not allow_subnormal:
        bounds = (1e-4, 1e-3)
    spec = TensorSpec(
        shape=(40,), dtype=dtype, min_value=bounds[0], max_value=bounds[1], allow_subnormal=allow_subnormal
    )
    checked = plan(spec)
    low, high = spec.float_bounds()
    start = torch.linspace(low, high, 40, dtype=torch.float64).to(getattr(torch, dtype)).clamp(low, high)
    gradients = {(): torch.linspace(-1, 1, 40, dtype=torch.float64).to(start.dtype)}
    for share in (1.0, 0.3, 1e-5):
        assert not outside(spec, moves.moved(checked, start, gradients, share))
        assert not outside(spec, moves.newton(checked, start, gradients, share * 1e3))


def test_tokens_are_exchanged_for_those_that_gain_most():
    """HotFlip: the first-order best exchange; ignored labels and values outside the range are left alone."""
    spec = TensorSpec(shape=(3,), dtype="int64", min_value=1, max_value=3, ignore_index=-100)
    tokens = torch.tensor([1, 2, 3])
    table = torch.tensor([[-9.0], [0.0], [1.0], [-2.0], [-9.0]])
    gains = moves.token_gains(plan(spec), tokens, [Lookup(table, tokens, table[tokens])], [torch.ones(3, 1)])
    assert moves.moved(plan(spec), tokens, gains, 1.0).tolist() == [3, 3, 3]
    assert moves.moved(plan(spec), tokens, gains, 0.3).tolist() == [1, 3, 3]


class Guard(nn.Module):
    """A sound model with several edges, whose forward refuses every batch outside the domain of the test."""

    def __init__(self, legal):
        super().__init__()
        self.embedding, self.layer, self.legal = nn.Embedding(51, 2), nn.Linear(2, 1), legal

    def forward(self, batch):
        self.legal({key: value.detach() if isinstance(value, torch.Tensor) else value for key, value in batch.items()})
        return self.layer(self.embedding(batch["src"]) + batch["x"])


def guarded_loss(model, batch):
    out = model(batch).squeeze(-1)
    weights = torch.exp(-out.square()) / (1 + out.square())
    return torch.log(weights.mean() + 1e-3) + torch.sqrt(out.square().mean() + 1e-6)


def test_no_batch_of_a_whole_search_leaves_the_domain():
    """Boundary, scaled, climbed, zeroed and drawn batches: the model itself looks at every one of them."""
    seen = []

    def legal(batch):
        assert_legal_translation(batch)
        seen.append(batch)

    spec = {**TRANSLATION}
    from pytest_nanstab.batches.boundary import boundary_batches

    batches = [described.batch for described in boundary_batches(spec, {"n": (2, 4)})][:4]
    model = Guard(legal)
    setup = TrainingSetup(
        model=model, loss=guarded_loss, optimizer=SGD(model.parameters(), 1e-3), batches=batches,
        domain=spec, sizes={"n": (2, 4), "time": (2, 6)},
    )  # fmt: skip
    assert Nanstab().search(setup, evaluations=400, seconds=60) is None
    assert len(seen) > 300


def test_a_find_outside_the_domain_is_impossible():
    """The same division fails where the domain includes its edge, and holds where it does not."""

    def setup(low):
        model = nn.Linear(4, 1)
        x = TensorSpec(shape=(8, 4), min_value=low, max_value=1.0)
        y = TensorSpec(shape=(8, 1), min_value=0.0, max_value=1.0)
        return regression(model, lambda m, b: (m(1 / b[0]) - b[1]).square().mean(), domain=(x, y))

    assert Nanstab().search(setup(0.0), evaluations=300, seconds=60) is not None
    assert Nanstab().search(setup(0.25), evaluations=300, seconds=60) is None


def test_repair_has_the_last_word():
    """What `repair` makes of a batch is what the model sees, moved ones included."""
    low = []

    def repair(batch):
        return batch[0].clamp(min=0.5), batch[1]

    def loss(model, batch):
        low.append(float(batch[0].min()))
        return (model(batch[0]) - torch.log(batch[0]).sum(1, keepdim=True)).square().mean()

    spec = (TensorSpec(shape=(8, 4), min_value=0.0, max_value=2.0), TensorSpec(shape=(8, 1), min_value=0, max_value=1))
    batches = [(x + 0.5, y) for x, y in data()]
    setup = regression(nn.Linear(4, 1), loss, batches=batches, repair=repair, domain=spec)
    assert Nanstab().search(setup, evaluations=250, seconds=60) is None
    assert min(low) == 0.5


# --- grades, each with a control


def nll(model, batch):
    return -torch.log(torch.softmax(model(batch[0]), dim=-1)[:, 0]).mean()  # grade: scaled


def stable_nll(model, batch):
    return -torch.log_softmax(model(batch[0]), dim=-1)[:, 0].mean()


def classifier():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def found(make, loss, **changes):
    torch.manual_seed(0)
    return hunted(lambda _: regression(make(), loss, **changes), False)


class Fading(nn.Module):
    """Divides by a count that reaches zero after some thirty steps."""

    def __init__(self, least):
        super().__init__()
        self.layer, self.least = nn.Linear(4, 1), least
        self.register_buffer("left", torch.tensor(30.0))

    def forward(self, x):
        if self.training:
            self.left.sub_(1.0).clamp_(min=self.least)
        return self.layer(x) / self.left


def test_typical_data_is_the_strongest_grade():
    """What breaks in the first 40 steps of ordinary training, at its line, although the suite took only 20."""
    result = found(partial(Fading, 0.0), mse)
    assert result.grade == "typical data"
    assert result.finding.op == "div"
    assert "test_search.py" in result.finding.source
    assert found(partial(Fading, 1.0), mse).finding is None


def test_scaled_weights_reach_what_training_does_not():
    """The factor is told in words; the stable form of the same loss holds."""
    result = found(classifier, nll)
    assert result.grade == "scaled weights"
    assert re.fullmatch(r"fails from \d+ times the trained weights", result.finding.evidence["state"])
    assert re.search(r"for a legal batch at \d+x weights", result.finding.message)
    assert result.finding.op == "log"
    assert found(classifier, stable_nll).finding is None


def test_growth_alone_is_only_reported():
    """Products of large weights overflow in any deep enough net: told in a note, no failure."""

    def make():
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(24)), nn.Linear(4, 1))

    result = found(make, lambda m, b: (m(b[0]) - b[1]).square().mean())
    assert result.finding is None
    assert any("only growth, not failed" in note for note in result.notes)


class Ratio(nn.Module):
    """Divides by the size of a weight, through which no gradient is to flow."""

    def __init__(self, eps=0.0):
        super().__init__()
        self.layer, self.scale, self.eps = nn.Linear(4, 1), nn.Parameter(torch.tensor([1.5, 2.0])), eps

    def forward(self, x):
        return self.layer(x) / (self.scale.detach().norm() + self.eps)


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_zeroed_weights_reach_a_divisor_made_of_weights():
    """Named by the tensor; with an eps nothing is found."""
    result = found(Ratio, mse)
    assert result.grade == "zeroed weights"
    assert "scale" in result.finding.evidence["state"]
    assert "div" in result.finding.op
    assert found(lambda: Ratio(1e-3), mse).finding is None


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_torchs_own_parametrizations_are_excused_where_training_does_not_come(wrap):
    """Both divide by the norm of a weight that nothing sets to zero; the same division by hand is found above."""
    assert found(lambda: nn.Sequential(wrap(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 1)), mse).finding is None


class Difference(nn.Module):
    """Divides by the difference of two weights: an exact zero that no scaling and no zeroing reaches."""

    def __init__(self):
        super().__init__()
        self.layer, self.a, self.b = nn.Linear(4, 1), nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        return self.layer(x) / (self.a - self.b + 1.0)


def test_weights_follow_the_gradient_to_an_edge():
    """Adversarial training, with the line it was led to."""
    result = found(Difference, mse)
    assert result.grade == "adversarial training"
    assert "weights moved towards div at" in result.finding.evidence["state"]
    assert "at moved weights" in result.finding.message


def test_batches_follow_the_gradient_to_an_edge():
    """A dip that no boundary batch hits: the angle between a batch and a fixed direction."""

    def loss(model, batch):
        x = F.normalize(batch[0], dim=-1)
        direction = F.normalize(torch.tensor([0.31, 0.77, 0.15, 0.52]), dim=0)
        angle = torch.acos((x * direction).sum(-1) * scale)
        return (model(batch[0]).squeeze(-1) - angle).square().mean()

    scale = 1.0001
    result = found(lambda: nn.Linear(4, 1), loss)
    assert result.grade == "trained model"
    assert "following the gradient towards acos at" in result.finding.evidence["batch_description"]
    scale = 0.99
    assert found(lambda: nn.Linear(4, 1), loss).finding is None


def test_tokens_follow_the_gradient_to_an_edge():
    """Only one value of every position together brings the exponent over its limit."""
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(200, 1, generator=generator) * 4

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(200, 1)
            with torch.no_grad():
                self.embedding.weight.copy_(table)

        def forward(self, tokens):
            return torch.exp(self.embedding(tokens).sum(1)).log1p()

    batches = [torch.randint(0, 200, (4, 24), generator=generator) for _ in range(4)]
    torch.manual_seed(0)

    def make(_):
        model = Bag()
        return TrainingSetup(
            model=model, loss=lambda m, b: m(b).mean(), optimizer=SGD(model.parameters(), 1e-6), batches=batches
        )

    result = hunted(make, False)
    assert result.grade in ("fresh model", "trained model")
    assert result.finding.op == "exp"


def test_a_training_step_of_the_users_own_is_searched_as_well():
    """Two losses, two optimizers: gradients are taken before the backward pass that the step itself starts."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), Difference()

    def make(_):
        pair = Pair()
        first, second = SGD(pair.one.parameters(), 1e-3), SGD(pair.two.parameters(), 1e-3)

        def training_step(batch):
            x, y = batch
            for optimizer, loss in (
                (first, lambda: (pair.one(x) - x).square().mean()),
                (second, lambda: (pair.two(pair.one(x).detach()) - y).square().mean()),
            ):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                optimizer.step()
            return value

        return TrainingSetup(
            model=pair, loss=mse, optimizer=[first, second], batches=data(), training_step=training_step
        )

    torch.manual_seed(0)
    original = torch.autograd.backward
    assert hunted(make, False).grade == "adversarial training"
    assert torch.autograd.backward is original


def test_a_singular_matrix_that_torch_refuses_is_a_find():
    """cholesky raises instead of returning NaN; with jitter it does not."""

    def loss(model, batch, jitter):
        features = model(batch[0])
        kernel = features @ features.T + jitter * torch.eye(len(features))
        return torch.linalg.cholesky(kernel).diagonal().log().sum() * 1e-3

    result = found(lambda: nn.Linear(4, 16), partial(loss, jitter=1e-4))
    assert result.finding is not None
    assert result.finding.op == "cholesky"
    assert result.finding.source.startswith("tests/test_search.py:") or __file__ in result.finding.source
    assert found(lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh()), partial(loss, jitter=1.0)).finding is None


def perceptron(outputs):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


def of_distribution(model, batch, floor):
    mean, rate = model(batch[0]).chunk(2, dim=-1)
    rate = F.softplus(rate) + 1e-3 if floor else rate.exp() / (1 + rate.exp())  # inf / inf
    return -torch.distributions.Normal(mean, rate + 1e-3, validate_args=True).log_prob(batch[1]).mean() * 1e-3


def of_assertion(model, batch, floor):
    value = -torch.log(torch.sigmoid(model(batch[0])) + floor).mean()
    assert torch.isfinite(value), "loss is not finite"
    return value


@pytest.mark.parametrize(
    ("make", "loss", "op"),
    [(partial(perceptron, 2), of_distribution, "exp"), (partial(perceptron, 1), of_assertion, "log")],
)
def test_what_refuses_a_bad_value_in_its_own_words_is_looked_behind(make, loss, op):
    """A distribution's check of its arguments and the user's assertion raise before the loss is bad."""
    result = found(make, partial(loss, floor=0.0))
    assert result.finding is not None
    assert result.finding.op == op
    assert "Error" in result.finding.message
    assert result.grade in ("scaled weights", "adversarial training")
    assert found(make, partial(loss, floor=1e-6)).finding is None


def test_numpy_batches_are_varied():
    """They come back as arrays; what no gradient reaches is still tried at its edges."""

    def loss(model, batch, eps):
        assert isinstance(batch["x"], np.ndarray)
        x = torch.from_numpy(batch["x"])
        return model((x - x.mean(0)) / (x.std(0) + eps)).square().mean()

    batches = [{"x": x.numpy()} for x, _ in data()]
    result = found(lambda: nn.Linear(4, 1), partial(loss, eps=0.0), batches=batches)
    assert result.grade == "fresh model"
    assert found(lambda: nn.Linear(4, 1), partial(loss, eps=1e-3), batches=batches).finding is None


def test_a_schedule_that_is_over_stops_no_search():
    """One cycle of exactly the planned steps: what is tried afterwards takes no further step of it."""

    def make(loss):
        torch.manual_seed(0)
        model = classifier()
        optimizer = Adam(model.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
        return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data(), lr_scheduler=schedule)

    assert hunted(lambda _: make(nll), False).finding is not None
    result = hunted(lambda _: make(stable_nll), False)
    assert result.finding is None
    assert not any("refused" in note for note in result.notes)


def test_half_precision_is_climbed_in():
    """The slope of a logarithm leaves float16 long before its operand is 0: it is taken smaller."""
    torch.manual_seed(0)

    def loss(model, batch, floor):
        return -torch.log(torch.sigmoid(model(batch[0])).float() + floor).mean()

    def make(floor):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        return regression(model, partial(loss, floor=floor), optimizer=SGD(model.parameters(), 1e-2))

    assert hunted(lambda _: make(0.0), False, precision="16-true").finding is not None
    assert hunted(lambda _: make(1e-6), False, precision="16-true").finding is None


# --- what is left behind, and what is told


def test_the_same_seed_finds_the_same():
    """Message, batch and state repeat; another seed may differ."""
    one, two = found(classifier, nll), found(classifier, nll)
    assert one.finding == two.finding
    assert one.evaluations == two.evaluations


def test_a_model_that_writes_into_its_batch_spoils_no_later_try():
    """Every try gets a copy: the batches stay those that their words describe."""

    def loss(model, batch):
        batch[0].mul_(0.0)
        return mse(model, batch) + stable_nll(model, batch)

    assert found(classifier, loss).finding is None
    spec = (TensorSpec(shape=(8, 4), min_value=0.5, max_value=1), TensorSpec(shape=(8, 1), min_value=0, max_value=1))
    seen = []

    def reading(model, batch):
        seen.append(float(batch[0].min()))
        return loss(model, batch)

    found(classifier, reading, domain=spec, batches=lambda: [(x / 2 + 0.5, y) for x, y in data()])
    assert min(seen) >= 0.5


def test_a_watch_around_the_search_hears_nothing_of_it():
    """What the search breaks is its own business: the test that searches is judged by what it trains itself."""
    torch.manual_seed(0)
    model = classifier()
    with watch(model) as run:
        assert Nanstab().search(regression(model, nll), evaluations=300, seconds=60) is not None
    assert not run.findings


def test_near_misses_are_told_even_if_nothing_failed():
    """The operation, its line, the closest operand and the bits that were left; not what stayed far away."""

    def loss(model, batch):
        return -torch.log(torch.sigmoid(model(batch[0])).clamp(min=1e-30)).mean()

    assert not [note for note in found(lambda: nn.Linear(4, 1), loss).notes if note.startswith("near miss")]
    spec = (TensorSpec(shape=(8, 4), min_value=-99, max_value=99), TensorSpec(shape=(8, 1), min_value=0, max_value=1))
    result = found(lambda: nn.Linear(4, 1), loss, domain=spec)
    assert result.finding is None
    (line,) = [note for note in result.notes if note.startswith("near miss")]
    assert re.search(r"near miss: log at \S*test_search.py:\d+ came within \S+, \d+ bits above 0", line)


def test_notes_say_what_the_domain_rests_on():
    """Inferred from samples, or declared."""
    assert (
        "domain inferred from the first batches: only values seen are legal" in found(classifier, stable_nll).notes[0]
    )
    spec = (TensorSpec(shape=(8, 4), min_value=0, max_value=1), TensorSpec(shape=(8, 1), min_value=0, max_value=1))
    assert "domain declared" in found(classifier, stable_nll, domain=spec).notes[0]


def test_grades_are_those_that_can_be_set():
    """What a search hands out are words that nanstab_fail_grade knows."""
    assert found(classifier, nll).grade in GRADES


# --- programs with hidden bugs, and their twins

each_program = pytest.mark.parametrize(  # every third on other versions too
    "program",
    [pytest.param(x, id=x.name, marks=[pytest.mark.slow] * (number % 3 > 0)) for number, x in enumerate(PROGRAMS)],
)


@pytest.mark.filterwarnings("ignore")
@each_program
def test_a_hidden_bug_is_found_at_its_line(program):
    """On the fresh, trained, moved, scaled or zeroed model, with a legal batch."""
    result = hunted(program.make, False)
    assert result.finding is not None
    assert int(result.finding.source.rpartition(":")[2]) in program.lines


@pytest.mark.filterwarnings("ignore")
@each_program
def test_a_mended_twin_is_silent(program):
    """The same search finds nothing."""
    assert hunted(program.make, True).finding is None


# --- sound programs with operations that look dangerous


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [make for _, make in SOUND], ids=[name for name, _ in SOUND])
def test_a_sound_program_is_silent(make):
    """Guards of every kind: masks, sentinels, eps, clamps, stable formulas, bounded domains."""
    assert hunted(lambda _: make(), True).finding is None
