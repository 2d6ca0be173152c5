"""Several origins in one tensor: the one whose values reach the sink is blamed. Values that numpy made bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plugin_runs import run_inside
from torch import Tensor

from pytest_nanstab.attribution.origin import Origin, line_of, origin_of
from pytest_nanstab.attribution.tracer import Tracer

INF, NAN = float("inf"), float("nan")


def line_behind(compute) -> str:
    """The source line that is blamed for what a function returns."""
    tracer = Tracer()
    with tracer:
        sink = compute()
    assert tracer.failed is None
    made = tracer.behind(sink)
    assert made is not None
    return text_of(origin_of(made))


def text_of(found: Origin) -> str:
    spot = line_of(found.guilty)
    assert spot is not None
    return Path(spot[0]).read_text(encoding="utf-8").splitlines()[spot[1] - 1].strip()


def quotient_and_log() -> Tensor:
    """NaN in row 1, which nobody uses, and -inf in row 3."""
    sums, counts = torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    means = sums / counts  # unused
    return torch.log(means)  # guilty


KEPT = torch.tensor([0, 2, 3])
USES = {
    "index": lambda logs: logs[KEPT].sum(),
    "slice": lambda logs: logs[2:].sum(),
    "mask": lambda logs: torch.where(torch.tensor([True, False, True, True]), logs, 0.0).sum(),
    "matrix": lambda logs: (torch.eye(4)[KEPT].double() @ logs.nan_to_num(0.0, neginf=-INF).double()).sum(),
    "stacked": lambda logs: torch.stack([logs, logs])[:, KEPT].sum(),
    "joined": lambda logs: torch.cat([logs, torch.log(torch.zeros(2))])[KEPT].sum(),
    "written": lambda logs: torch.zeros(8).index_copy(0, torch.arange(4), logs)[KEPT].sum(),
    "half": lambda logs: logs.half()[KEPT].sum(),
    "transposed": lambda logs: logs.reshape(2, 2).t()[1, 1].sum(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_bad_value_that_nobody_uses_hides_no_other(use):
    assert line_behind(lambda: use(quotient_and_log())) == "return torch.log(means)  # guilty"


def test_the_unused_value_is_blamed_where_it_is_used_after_all():
    assert line_behind(lambda: quotient_and_log()[:2].sum()) == "means = sums / counts  # unused"
    assert line_behind(lambda: quotient_and_log().sum()) == "means = sums / counts  # unused"


def test_rows_of_a_buffer_have_an_origin_each():
    def compute(row: int) -> Tensor:
        rows = torch.zeros(3, 2)
        rows[0] = torch.tensor([1.0, 0.0]) / 0  # first
        rows[1] = torch.log(torch.tensor([-1.0, 1.0]))  # second
        rows[2] = 1.0
        return rows[row].sum()

    assert line_behind(lambda: compute(0)).endswith("# first")
    assert line_behind(lambda: compute(1)).endswith("# second")


def test_what_a_loop_writes_has_one_origin_a_line():
    """However many rows: the line that wrote the row in use is blamed."""

    def compute() -> Tensor:
        rows = torch.zeros(24, 2)
        for index in range(24):
            if index == 5:
                rows[index] = torch.acos(torch.tensor([2.0, 0.0]))  # used
            else:
                rows[index] = torch.log(torch.tensor([-1.0, 1.0]))
        return rows[5].sum()

    assert line_behind(compute).endswith("# used")


def test_everything_is_bad_and_not_all_of_it_was_before():
    def compute() -> Tensor:
        share = torch.tensor([1.0, 1.0, 0.0]) / torch.tensor([1.0, 1.0, 0.0])
        return torch.log(share - 2)[:2].sum()  # guilty

    assert line_behind(compute).endswith("# guilty")


def test_sparse_tensors_are_followed_as_one():
    def compute() -> Tensor:
        norm = torch.tensor([1.0, 0.0, 2.0]).pow(-0.5)  # guilty
        return torch.sparse.mm(torch.diag(norm).to_sparse(), torch.ones(3, 4)).sum()

    assert line_behind(compute).endswith("# guilty")


def test_telling_origins_apart_has_an_end():
    """A large buffer written row by row would cost the square of its size: then the last origin stands for all."""
    tracer = Tracer()
    with tracer:
        rows = torch.zeros(3000, 256)
        for index in range(0, 3000, 3):
            rows[index] = torch.log(torch.full((256,), float(index % 2) - 1))
    assert tracer.failed is None
    assert sum(mask.numel() for parts in tracer.ledger._parts.values() for _, mask in parts) < 2**23


def test_a_stated_infinity_beside_a_nan_is_not_blamed():
    """Masked scores: the NaN of one row and the mask of another are told apart through the softmax."""

    def compute() -> Tensor:
        scores = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        scores = scores / scores.sum(1, keepdim=True).sub(1.0)  # guilty
        scores = scores.masked_fill(torch.tensor([[False, True], [False, False]]), -INF)
        return torch.softmax(scores, dim=1).sum()

    assert line_behind(compute).endswith("# guilty")


def test_a_value_put_in_the_place_of_a_bad_one_makes_no_other():
    """A column of NaN replaced by one number would have no spread: only what is bad with other numbers too counts."""

    def compute() -> Tensor:
        table = torch.arange(12.0).reshape(4, 3)
        table = torch.cat([table, (torch.zeros(4, 1) / 0)], dim=1)  # guilty
        return torch.corrcoef(table.T)[:, 3].sum()

    assert line_behind(compute).endswith("# guilty")


def test_gradients_of_some_rows():
    """Backward, too: the row whose norm is 0 is blamed, not that of which the gradient is thrown away."""

    def compute() -> Tensor:
        points = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
        lengths = points.pow(2).sum(1).sqrt()  # guilty
        lengths.sum().backward()
        assert points.grad is not None
        return points.grad

    assert line_behind(compute).endswith("# guilty")


LINE = "        window = (window - window.mean()) / (window.std() + self.eps)"
MARKED = f"""
import numpy as np
from torch.utils.data import DataLoader, Dataset

class Windows(Dataset):
    def __init__(self, data, eps): self.data, self.eps = data, eps
    def __len__(self): return len(self.data)
    def __getitem__(self, index):
        window = self.data[index]
{LINE}
        return torch.from_numpy(window)

def fit(data, eps=0.0):
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for batch in DataLoader(Windows(data, eps), batch_size=2):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

def table(constant):
    data = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    if constant:
        data[5] = 3.0
    return data
"""


def test_the_line_where_numpy_made_it(pytester):
    """numpy warns of the division; the rerun of a marked test points at that line, and warns as before."""
    body = f"""
{MARKED}
@pytest.mark.nanstab
def test_broken(): fit(table(True))

@pytest.mark.nanstab
def test_from_a_file():
    data = table(False)
    data[5, 2] = np.nan
    fit(data, eps=1e-3)

@pytest.mark.nanstab
def test_beside_a_metric():
    metric = np.zeros(1) / np.zeros(1)
    data = table(False)
    data[5, 2] = np.nan
    fit(data, eps=1e-3)

@pytest.mark.nanstab
def test_silenced():
    with np.errstate(all="ignore"):
        fit(table(True))

@pytest.mark.nanstab
def test_healthy(): fit(table(False))
"""
    ran = run_inside(pytester, body, "-W", "default")
    assert ran.outcomes == {
        "test_broken": "failed",
        "test_from_a_file": "failed",
        "test_beside_a_metric": "failed",
        "test_silenced": "failed",
        "test_healthy": "passed",
    }
    broken = ran.text[ran.text.index("_ test_broken _") : ran.text.index("_ test_from_a_file _")]
    line = 1 + (pytester.path / "test_it.py").read_text().splitlines().index(LINE)
    assert f"numpy warned  invalid value at test_it.py:{line}" in broken
    assert f"\ntest_it.py:{line}: NonFiniteError" in broken
    assert "RuntimeWarning" in ran.text
    others = ran.text[ran.text.index("_ test_from_a_file _") : ran.text.index("warnings summary")]
    assert "numpy met" not in others


def test_numpy_warns_in_a_rerun_as_ever(pytester):
    """Filters by its words, and tests that expect a warning or look at the settings, go the same way twice."""
    body = f"""
{MARKED}
import warnings

@pytest.mark.nanstab
def test_filtered():
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", message="invalid value encountered in divide")
    np.nan_to_num(np.zeros(2) / np.zeros(2))
    with pytest.warns(RuntimeWarning, match="divide by zero encountered in log"):
        np.log(np.zeros(1))
    assert np.geterr()["invalid"] == "warn"
    weight = nn.Parameter(torch.ones(2))
    torch.log(weight - 2).sum().backward()  # the bug
    torch.optim.SGD([weight], 0.1).step()
"""
    ran = run_inside(pytester, body)
    assert "ended in" not in ran.text
    assert "log, float32[2]: 2 of 2 values became NaN" in " ".join(ran.text.split())


def test_numpy_is_as_it_was_after_a_rerun(pytester):
    body = f"""
{MARKED}
@pytest.mark.nanstab
@pytest.mark.xfail(strict=True)
def test_broken(): fit(table(True))

def test_after():
    import warnings
    assert np.geterr()["invalid"] == "warn"
    assert "nanstab" not in warnings.showwarning.__module__
"""
    ran = run_inside(pytester, body, "-W", "ignore")
    assert ran.outcomes == {"test_broken": "xfail", "test_after": "passed"}


def test_two_bad_views_of_one_tensor_are_numbered(pytester):
    body = """
@pytest.mark.nanstab
def test_ratio():
    prices = torch.tensor([1.0, 0.0, 0.0, 2.0])
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(prices[1:] / prices[:-1]).sum().backward()
    optimizer.step()
"""
    ran = run_inside(pytester, body)
    assert "operand 1: " in ran.text
    assert "operand 2: " in ran.text


BLAME = """
from torch.func import jvp

class Field(nn.Module):
    def __init__(self, blocked):
        super().__init__()
        self.scores, self.emissions = nn.Parameter(torch.zeros(4, 4)), nn.Linear(8, 4)
        mask = torch.zeros(4, 4)
        mask[blocked] = float("-inf")
        self.register_buffer("mask", mask)
    def forward(self, x):
        scores = self.scores + self.mask
        emissions = self.emissions(x)
        state = emissions[:, 0]
        for index in range(1, x.shape[1]):
            state = torch.logsumexp(state[:, :, None] + scores, 1) + emissions[:, index]  # the sum
        return torch.logsumexp(state, 1).mean()

def fit(model, loss, steps=3):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

def test_a_mask_that_leaves_nothing():
    fit(Field((slice(None), 3)), lambda model: model(torch.randn(3, 5, 8)))

def test_a_mask():
    fit(Field((0, 3)), lambda model: model(torch.randn(3, 5, 8)))

def slope(model):
    x = torch.rand(16, 4)
    y, dy = jvp(lambda x: torch.log(model(x)), (x,), (torch.ones_like(x),))  # the logarithm
    return y.mean() + dy.pow(2).mean()

@pytest.mark.nanstab
def test_forward_mode(): fit(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), slope)

@pytest.mark.nanstab
def test_forward_mode_of_positive_numbers():
    fit(nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1), nn.Softplus()), slope)

def quotients(): return torch.log(torch.tensor([[1.0], [0.0], [2.0]]))

class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.left, self.right = nn.Parameter(torch.ones(())), nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        norms = (self.left(x) * (x != 0)).pow(2).sum(1).sqrt()  # the root
        return (self.scale * self.right(x).mean(1) - norms).square().mean()

def clipped(mark=None):
    torch.manual_seed(0)
    model = Distances()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(3):
        optimizer.zero_grad()
        x = torch.randn(6, 4)
        x[2] *= step != 1
        model(x).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

def test_spoiled_by_a_clip(): clipped()

@pytest.mark.nanstab
def test_marked_and_spoiled_by_a_clip(): clipped()

@pytest.mark.nanstab
def test_an_average_of_weights():
    model, average = nn.Linear(8, 1), nn.Linear(8, 1)
    def step(model):
        step.number = getattr(step, "number", -1) + 1
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters()):
                a += (p - a) / torch.tensor(step.number - 2.0)  # the average
        return model(torch.randn(16, 8)).pow(2).mean()
    fit(model, step, steps=8)
    with torch.no_grad():
        average(torch.randn(16, 8))

def test_a_target():
    targets = quotients()
    model = nn.Linear(2, 1)
    fit(model, lambda model: (model(torch.ones(3, 2)) - targets).square().mean())
"""


def test_who_is_to_blame(pytester):
    """A mask in a buffer is not; what forward-mode differentiation does is seen; a bad target comes with a command."""
    ran = run_inside(pytester, BLAME, "--nanstab", "-W", "ignore")  # torch deprecates what its jvp is made of
    assert ran.outcomes == {
        "test_a_mask_that_leaves_nothing": "failed",
        "test_a_mask": "passed",
        "test_forward_mode": "failed",
        "test_forward_mode_of_positive_numbers": "passed",
        "test_spoiled_by_a_clip": "failed",
        "test_marked_and_spoiled_by_a_clip": "failed",
        "test_an_average_of_weights": "failed",
        "test_a_target": "failed",
    }
    source = (pytester.path / "test_it.py").read_text().splitlines()
    named = {line.rsplit(":", 1)[1] for line in ran.lines if line.startswith("non-finite")}
    lines = {source[int(number) - 1].rpartition("# ")[2] for number in named}
    assert {"the sum", "the logarithm", "the root", "the average"} <= lines
    assert ran.text.count("NaN in the gradient of left.weight at step 2") >= 2
    assert "in the gradient of scale" not in ran.text
    assert "every score of a row is -inf" in ran.text or "a row of scores is -inf everywhere" in ran.text
    assert 'trace     pytest -o nanstab_explain=rerun --nanstab "test_it.py::test_a_target"' in ran.text
