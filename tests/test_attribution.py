"""The tracer: which operation made a bad value that reached a sink, and which are not to blame."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_nanstab import StabilityError, watch
from pytest_nanstab.attribution.case import Case
from pytest_nanstab.attribution.causes import RULES, advice_for
from pytest_nanstab.attribution.origin import Origin, chain_of, line_of, origin_of, title
from pytest_nanstab.attribution.plan import traced
from pytest_nanstab.attribution.source import variables_of
from pytest_nanstab.attribution.tracer import Tracer
from pytest_nanstab.attribution.tracing import Tracing

INF, NAN = float("inf"), float("nan")
SWAPPED = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def origin(compute: Callable[[], Tensor]) -> Origin | None:
    """Where what a function returns went bad; None when it is finite."""
    tracer = Tracer()
    with tracer:
        sink = compute()
    assert tracer.failed is None
    made = tracer.behind(sink)
    return None if made is None else origin_of(made)


def gradient(leaf: Tensor, loss: Tensor) -> Tensor:
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def text_of_line(found: Origin) -> str:
    spot = line_of(found.guilty)
    assert spot is not None
    return Path(spot[0]).read_text(encoding="utf-8").splitlines()[spot[1] - 1]


# -- forward -----------------------------------------------------------------------------------------------------------


def test_the_first_operation_is_blamed_not_its_followers():
    """exp overflows, the quotient is NaN, and the mean only carries it."""

    def compute():
        scores = torch.tensor([[100.0, 1.0]])
        weights = torch.exp(scores)  # here
        return (weights / weights.sum(-1, keepdim=True)).mean()

    found = origin(compute)
    assert (title(found.guilty), chain_of(found.path)) == ("exp", ["exp (inf)", "div (nan)", "mean"])
    assert "# here" in text_of_line(found)
    assert found.guilty.bad.operands[0].at == 100.0


def test_a_mask_that_softmax_absorbs_is_nothing():
    """Infinities that never reach the sink leave no origin."""
    scores = torch.zeros(2, 3)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert origin(lambda: scores.masked_fill(mask, -INF).softmax(-1).sum()) is None


def test_a_fully_masked_row_blames_the_softmax_and_names_the_mask():
    """The infinity was intended; the NaN was not."""
    scores = torch.zeros(2, 3)

    def compute():
        masked = scores.masked_fill(torch.tensor([[True] * 3, [False] * 3]), -INF)
        return masked.softmax(-1).sum()

    found = origin(compute)
    assert title(found.guilty) == "softmax"
    assert title(found.intended) == "masked_fill"
    assert "every score of a row is -inf" in advice_for(Case(found)).cause


def test_an_intended_infinity_that_is_let_through():
    """The operation that picked it out is blamed: the masked class was the target."""
    logits = torch.tensor([[0.0, -INF]])
    found = origin(lambda: nn.functional.cross_entropy(logits.masked_fill(logits < -1, -INF), torch.tensor([1])))
    assert title(found.guilty) == "nll_loss in cross_entropy"


def test_an_unintended_overflow_beside_a_mask_is_the_root():
    """Both reach the sink; only one of them is a fault."""
    scores = torch.full((2, 2), 300.0, dtype=torch.float16)

    def compute():
        products = scores @ scores
        return products.masked_fill(torch.eye(2, dtype=torch.bool), -INF).softmax(-1).sum()

    found = origin(compute)
    assert title(found.guilty) == "matmul"
    assert "float16" in advice_for(Case(found)).cause


def test_an_operand_without_which_nothing_changes_is_not_followed():
    """Both branches of a where are bad; the taken one is to blame."""
    x = torch.tensor([0.0])

    def compute():
        not_taken = torch.exp(x + 1000)
        taken = x / 0.0
        return torch.where(x > -1, taken, not_taken).sum()

    assert title(origin(compute).guilty) == "div"


@pytest.mark.parametrize(
    ("compute", "op", "kind"),
    [
        (torch.zeros(0).mean, "mean", "born"),
        (lambda: torch.tensor([INF]) - torch.tensor([INF]), "sub", "turned"),
        (lambda: torch.zeros(1).log_(), "log", "born"),
        (lambda: torch.full((3,), 6e4, dtype=torch.float16).sum(), "sum", "born"),
        (lambda: torch.full((1,), 1e6).half(), "to", "born"),
        (lambda: torch.logdet(SWAPPED), "logdet", "born"),
        (lambda: torch.einsum("i,i->", torch.full((2,), 1e30), torch.full((2,), 1e30)), "einsum", "born"),
        (lambda: torch.ones(1, 2).var(0), "var", "born"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_operations_by_their_names(compute, op, kind):
    """Inner names, in-place forms and composites are called what the user calls them."""
    found = origin(compute)
    assert op in title(found.guilty)
    assert found.guilty.bad.kind == kind


def test_memory_that_is_written_in_parts_keeps_its_other_parts():
    """A finite row written beside a bad one does not hide where the bad one came from."""

    def compute():
        out = torch.zeros(2)
        out[0] = torch.zeros(1).log()[0]
        out[1] = 1.0
        return out.sum()

    assert title(origin(compute).guilty) == "log"


def test_a_repaired_value_is_no_origin():
    """What nan_to_num or a masked assignment has made good again is not bad at the sink."""

    def assigned():
        x = torch.zeros(2).log()
        x[x.isinf()] = 0.0
        return x.sum()

    assert origin(assigned) is None
    assert origin(lambda: (torch.zeros(2) / 0.0).nan_to_num().sum()) is None


# -- backward ----------------------------------------------------------------------------------------------------------


def test_a_derivative_names_its_forward_line():
    """sqrt is fine forward and infinite backward; anomaly mode would name the node after it."""
    x = leaf(0.0, 4.0)

    def compute():
        root = torch.sqrt(x)  # here
        return gradient(x, (root * 2).sum())

    found = origin(compute)
    assert title(found.guilty) == "sqrt backward"
    assert "# here" in text_of_line(found)


def test_the_untaken_branch_of_where():
    """The forward value is masked; its gradient is not, and the negative root is the origin."""
    x = leaf(-1.0, 4.0)
    found = origin(lambda: gradient(x, torch.where(x > 0, torch.sqrt(x), 0.0).sum()))
    assert (title(found.guilty), found.guilty.phase) == ("sqrt", "forward")
    assert "double where" in advice_for(Case(found)).remedy


def test_an_overflow_hidden_in_the_forward_pass():
    """1 / inf is 0 and finite; backward meets the infinity again."""
    x = leaf(100.0)
    found = origin(lambda: gradient(x, (1 / torch.exp(x)).sum()))
    assert title(found.guilty) == "exp"


def test_double_backward():
    """A gradient penalty at a zero gradient: the root of the norm, with its own line."""
    weight = leaf(0.0)

    def compute():
        (inner,) = torch.autograd.grad(
            (weight * torch.ones(1)).sum() * 0 + (weight**2).sum(), weight, create_graph=True
        )
        penalty = torch.sqrt((inner**2).sum())  # here
        return gradient(weight, penalty)

    assert "# here" in text_of_line(origin(compute))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch 2.4 uses what it has deprecated itself
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    """What a checkpoint computes again inside the backward pass has its own line."""
    x = leaf(0.0, 1.0)

    def block(value):
        return torch.sqrt(value)  # here

    def compute():
        out = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
        return gradient(x, out.sum())

    found = origin(compute)
    assert "# here" in text_of_line(found)


# -- the tracer changes nothing ----------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def trained(steps: int) -> list[Tensor]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(6, 4)
        model(x).square().mean().backward()
        optimizer.step()
    return [*model.parameters(), *model.buffers(), torch.rand(3)]


def test_traced_training_is_bit_identical():
    """Parameters, running statistics and random numbers are those of the untraced run."""
    plain = trained(4)
    with traced(Tracing()), watch():
        same = trained(4)
    assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))


def test_looking_for_causes_writes_nothing():
    """An in-place operation is repeated on copies only: the user's tensors are written once."""

    def compute():
        target = torch.zeros(3)
        target.copy_(torch.ones(3) / 0.0)
        kept = torch.ones(2)
        kept.add_(torch.tensor([INF, 1.0]))
        return torch.cat([target, kept])

    plain = compute()
    with Tracer():
        assert torch.equal(compute(), plain)


def test_other_modes_may_come_and_go():
    """A mode of the user's that outlives the tracing, or ends before it, is left in its place."""

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    mode = Counting()
    tracing = Tracing()
    with traced(tracing):
        region = watch()
        region.__enter__()
        mode.__enter__()
        region.__exit__(None, None, None)
        before = Counting.calls
        torch.ones(2) + 1
        assert Counting.calls > before
        mode.__exit__(None, None, None)
    assert torch._C._len_torch_dispatch_stack() == 0


# -- through a region --------------------------------------------------------------------------------------------------


def findings_of(body: Callable[[], object], first: int = 1):
    with traced(Tracing(first)) as tracing:
        try:
            with watch():
                body()
        except StabilityError as error:
            assert tracing.failed is None
            return error.findings
    return ()


def test_a_parameter_broken_by_its_optimizer_names_the_hyperparameter():
    """The step itself divides 0 by 0; the line is where the optimizer is made."""

    def body():
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([weight], eps=0.0)  # here
        for _ in range(2):
            optimizer.zero_grad()
            (weight[0] * 1.0).backward()
            optimizer.step()

    (finding,) = findings_of(body)
    assert (finding.kind, finding.op) == ("nonfinite-parameter", "addcdiv in Adam")
    assert finding.cause.startswith("eps is 0")
    path, line = finding.source.rsplit(":", 1)
    assert "# here" in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


TRAINER = """
def fit(schedule):
    schedule.step()
"""


@pytest.mark.parametrize(("folder", "word"), [("mine", "# set"), ("site-packages", "# here")])
def test_a_rate_that_a_trainer_sets_is_blamed_on_its_optimizer(folder, word, tmp_path):
    """The user's line is then the one that starts the training: where the optimizer is made says more."""
    scope = {}
    exec(compile(TRAINER, str(tmp_path / folder / "trainer.py"), "exec"), scope)
    fit = scope["fit"] if folder == "site-packages" else lambda schedule: schedule.step()  # set

    def body():
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)  # here
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: NAN if step else 1.0)
        for _ in range(2):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
            fit(schedule)

    (finding,) = findings_of(body)
    assert finding.kind == "nonfinite-parameter"
    path, line = finding.source.rsplit(":", 1)
    assert word in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)

    def forward(self, *, x=None, scale=1.0):
        return torch.log(self.lin(x) * 0 + x.sum(1, keepdim=True) * scale)


@pytest.mark.parametrize("call", [lambda head, x: head(x=x), lambda head, x: head(scale=1.0, x=x)])
def test_rows_of_a_batch_given_by_keyword(call):
    """The batch size is known although torch tells its global hooks of positional arguments only."""

    def body():
        head = Head()
        optimizer = torch.optim.SGD(head.parameters(), 0.1)
        x = torch.ones(4, 2)
        x[2] = -1.0
        call(head, x).sum().backward()
        optimizer.step()
        assert not head._forward_hooks

    (finding,) = findings_of(body)
    assert (finding.op, finding.evidence["rows"]) == ("log", [2])


def test_all_columns_of_traced_data():
    """Where data is found by its trace, its bad columns are all told, as its rows are."""

    def body():
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], 0.1)
        target = torch.from_numpy(np.array([[1.0, np.nan, 2.0], [0.0, 1.0, 2.0], [1.0, 2.0, np.nan]]))
        (weight - target).square().mean().backward()
        optimizer.step()

    (finding,) = findings_of(body)
    assert (finding.kind, finding.evidence["rows"], finding.evidence["columns"]) == ("nonfinite-input", [0, 2], [1, 2])


@pytest.mark.parametrize("first", [1, 4])
def test_an_explosion_is_not_blamed_on_the_last_product(first):
    """Growth over the steps is measured and told; the first overflow is named as such."""

    def body():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
        x, y = torch.randn(8, 3), torch.randn(8, 1)
        for _ in range(40):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

    (finding,) = findings_of(body, first)
    assert "exploding since step" in finding.message
    assert "learning rate" in finding.remedy
    assert finding.evidence["table"][0]["grew"] in ("weight", "bias")


def test_what_ran_in_another_thread_is_not_guessed():
    """A loss computed where nothing is traced is said to be that."""
    import threading

    def body():
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], 0.1)
        made = []
        thread = threading.Thread(target=lambda: made.append((weight / 0.0).sum()))
        thread.start()
        thread.join()
        made[0].backward()
        optimizer.step()

    (finding,) = findings_of(body)
    assert finding.op is None
    assert "no operation is traced" in finding.evidence["note"]


def test_every_rule_has_words_and_a_source():
    """The table is whole: each rule says why, what to do and where that is described."""
    for rule in RULES:
        assert rule.cause
        assert rule.remedy
        assert rule.source
        assert rule.direction in ("forward", "backward", "any")


@pytest.mark.parametrize("asked", [False, True])
def test_reading_a_frame_leaves_what_it_has_itself(asked):
    """A function keeps the dictionary that it has from `locals()`."""

    def function():
        value = object()
        own = locals() if asked else {"value": value}
        assert variables_of(sys._getframe())["value"] is value
        return own["value"] is value

    assert function()
