"""What the tests of the watch share: small models, loops, and one way to ask what a watch found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_nanstab import StabilityError, watch
from pytest_nanstab.findings import Finding
from pytest_nanstab.watching.options import Options
from pytest_nanstab.watching.region import Region

torch.set_num_threads(1)  # the models here are tiny: threads cost far more than they save

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

Body = Callable[[], object]
Asked = Callable[[Body], list[str]]


def zero_change() -> Region:
    """A region as `--nanstab` opens it around an untouched test."""
    return Region(Options(raises=False, dense=False))


def raised(body: Body) -> list[Finding]:
    """What `watch()` raises for a body."""
    try:
        with watch():
            body()
    except StabilityError as error:
        return list(error.findings)
    return []


def recorded(body: Body) -> list[Finding]:
    """What `watch(on_instability="record")` records for a body."""
    with watch(on_instability="record") as run:
        body()
    return run.findings


def sampled(body: Body) -> list[Finding]:
    """What the zero-change mode records for a body."""
    with zero_change() as region:
        body()
    return region.findings


WAYS = {"raise": raised, "record": recorded, "zero-change": sampled}
every_way = pytest.mark.parametrize("ask", list(WAYS.values()), ids=list(WAYS))


def kinds(findings: list[Finding]) -> list[str]:
    """The kinds of findings, in order."""
    return [finding.kind for finding in findings]


def mlp(seed: int = 0) -> nn.Sequential:
    """4 -> 8 -> 1, the same weights for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(count: int, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 5 rows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(5, 4, generator=generator)
        yield x, x.sum(1, keepdim=True)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return (model(x) - y).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    before_step: Callable[[int], object] | None = None,
    spoil: Callable[[int, Tensor], Tensor] | None = None,
) -> None:
    """A plain loop; `spoil(step, loss)` may change a loss and `before_step(step)` the gradients; steps count from 1."""
    for step, (x, y) in enumerate(batches(steps), start=1):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        if spoil is not None:
            loss = spoil(step, loss)
        loss.backward()
        if before_step is not None:
            before_step(step)
        optimizer.step()


def at(step: int, value: float) -> Callable[[int, Tensor], Tensor]:
    """Multiply the loss of one step by a value."""
    return lambda now, loss: loss * value if now == step else loss


def is_marked(programs: Path, finding: Finding, word: str) -> bool:
    """Whether a finding's line is the one that a comment of these programs marks."""
    assert finding.source is not None, finding
    path, line = finding.source.rsplit(":", 1)
    assert Path(path).name == programs.name, finding.source
    return programs.read_text(encoding="utf-8").splitlines()[int(line) - 1].endswith(f"# {word}")
