"""The digit classifiers: markers on class and `TestCase`, the fixture's watch, and the data."""

from __future__ import annotations

import unittest

import pytest
import torch
from pytest_nanstab import TrainingSetup, assert_finite, assert_finite_batches, stability_suite
from pytest_nanstab.strategies import TensorSpec
from torch.optim import SGD, AdamW

from data.digits import loaders
from models.vision import BatchNormNet, ConvNet, digits_loss
from training import evaluate, train

DOMAIN = (
    TensorSpec(shape=("batch", 1, 8, 8), min_value=0.0, max_value=1.0),
    TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=9),
)


def test_every_batch_is_inside_the_domain() -> None:
    for loader in loaders():
        assert_finite_batches(loader, domain=DOMAIN)


@stability_suite(steps=15, init_scale="kaiming_uniform", max_loss=20)
def test_convnet() -> TrainingSetup:
    model = ConvNet()
    train_batches, test_batches = loaders(batch_size=32)
    return TrainingSetup(
        model=model,
        loss=digits_loss,
        optimizer=AdamW(model.parameters(), lr=1e-3),
        batches=train_batches,
        eval_batches=test_batches,
        domain=DOMAIN,
        sizes={"batch": (1, 32)},
    )


@pytest.mark.nanstab(max_grad_norm=50)
class TestBatchNorm:
    """Every method is checked, and the marker's limit holds in each of them."""

    def test_train_and_eval(self) -> None:
        torch.manual_seed(0)
        model = BatchNormNet()
        train_batches, test_batches = loaders()
        train(model, digits_loss, train_batches, AdamW(model.parameters(), lr=3e-3), steps=20)
        assert_finite(model)
        assert evaluate(model, digits_loss, test_batches) < 2.0

    @pytest.mark.nanstab(max_loss=10)
    def test_blank_image(self) -> None:
        model = BatchNormNet()
        blank = (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
        train(model, digits_loss, [blank], SGD(model.parameters(), lr=0.1), steps=3)


class LongRunTest(unittest.TestCase):
    """Fixtures do not reach a `TestCase`; the marker does."""

    @pytest.mark.nanstab(max_loss=5)
    def test_momentum(self) -> None:
        torch.manual_seed(0)
        model = ConvNet()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = train(model, digits_loss, loaders()[0], optimizer, steps=20)
        assert losses[-1] < losses[0]


def test_only_the_fine_tuning_is_watched(nanstab) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    train_batches, _ = loaders()
    train(model, digits_loss, train_batches, AdamW(model.parameters(), lr=1e-2), steps=10)
    with nanstab.watch(model, name="fine-tuning", max_update_ratio=0.5) as run:
        train(model, digits_loss, train_batches, SGD(model.parameters(), lr=1e-3), steps=5)
    assert run.steps == 5
    assert not run.findings
