"""Uses of the public API as a user would type them; lines with `# error` must be refused, all others must not.

Read by mypy and by pyright (`test_typing.py`), never run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_nanstab import (
    Finding,
    NonFiniteError,
    Run,
    StabilityError,
    TrainingSetup,
    assert_finite,
    assert_finite_batches,
    assert_handles_nonfinite,
    assert_init_scale,
    stability_suite,
    watch,
)
from pytest_nanstab.strategies import TensorSpec, corruptions, from_batch, from_spec

Batch = tuple[Tensor, Tensor]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches() -> Iterator[Batch]:
    yield torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)


@stability_suite(steps=50, precision=["32-true", "bf16-mixed"], init_scale="xavier_uniform", baseline=True)
def test_suite() -> TrainingSetup:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    return TrainingSetup(model=model, loss=loss_of, optimizer=optimizer, batches=batches, sizes={"batch": (1, 8)})


@stability_suite(
    precision=["32-true", pytest.param("16-true", marks=pytest.mark.xfail(raises=NonFiniteError, strict=True))],
    checks="finite_steps",
)
def test_with_marks(tmp_path: object) -> TrainingSetup:
    return test_suite()


@stability_suite(max_grad_norm=10.0, min_headroom_bits=None)
def test_with_limits() -> TrainingSetup:
    return test_suite()


@stability_suite(max_gradient=1.0)  # error
def test_wrong_limit() -> TrainingSetup:
    return test_suite()


@stability_suite(max_grad_norm="large")  # error
def test_wrong_limit_type() -> TrainingSetup:
    return test_suite()


stability_suite(20)  # error
stability_suite(precision="fp16")  # error
stability_suite(precision=["32-true", "fp16"])  # error
stability_suite(checks="finite")  # error
stability_suite(checks=["finite_steps", "finite"])  # error


def test_the_decorator_keeps_the_function() -> None:
    kept: Callable[[], TrainingSetup] = test_suite
    wrong: Callable[[], int] = test_suite  # error
    print(kept, wrong)


def test_setups() -> None:
    model = nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    TrainingSetup(model=model, loss=loss_of, optimizer=[sgd, sgd], batches=[1, 2], clip_grad_norm=1.0)
    TrainingSetup(model=model, loss=loss_of, optimizer=sgd)  # type: ignore[call-arg]  # pyright: ignore  # a missing field
    TrainingSetup(model=model, loss=loss_of, optimizer=sgd, batches=[1], clip_norm=1.0)  # error
    TrainingSetup(model="model", loss=loss_of, optimizer=sgd, batches=[1])  # error
    setup = test_suite()
    setup.model = model  # error


def test_watching(model: nn.Module) -> None:
    with watch(model, name="mine", on_instability="record", max_loss=5.0) as run:
        pass
    kept: Run = run
    losses: list[float | None] = kept.loss
    found: list[Finding] = run.findings
    print(losses, found, run.steps + 1)
    watch(model, on_instability="ignore")  # error
    watch(model, max_lose=5.0)  # error
    first: float = run.loss[0]  # error
    print(first)


def test_findings(error: StabilityError) -> None:
    finding = error.findings[0]
    text: str | None = finding.source
    data: dict[str, Any] = finding.as_dict()
    print(text, data, finding.is_nonfinite)
    step: int = finding.step  # error
    print(step)
    finding.step = 3  # error


def test_assertions(model: nn.Module) -> None:
    assert_finite({"a": [torch.ones(2)]}, allow_inf=True, name="state")
    assert_init_scale(model, "xavier_uniform", skip=["head"])
    assert_init_scale(model, {"encoder.*": "kaiming_normal"}, batch=torch.ones(2, 2), loss=loss_of)
    assert_handles_nonfinite(lambda table: table, torch.ones(3, 2), policy="reject", raises=ValueError)
    assert_finite_batches(batches, max_batches=3)
    assert_finite(torch.ones(2), True)  # error
    assert_handles_nonfinite(lambda table: table, torch.ones(3, 2))  # error
    assert_handles_nonfinite(lambda table: table, torch.ones(3, 2), policy="ignore")  # error


def test_strategies() -> None:
    spec = TensorSpec(shape=("batch", 3), min_value=0.0, max_value=1.0, kind="values")
    from_spec({"x": spec}, sizes={"batch": (1, 4)}).example()
    from_batch([torch.ones(2)]).example()
    corruptions(torch.ones(2, 3)).example()
    TensorSpec(shape=["batch", 3])  # error
    TensorSpec(shape=(3,), kind="numbers")  # error
    spec.shape = (4,)  # error
