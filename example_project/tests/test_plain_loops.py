"""Zero change: tests as they were before the plugin came. `pytest --nanstab` watches all of them."""

from __future__ import annotations

import unittest
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from data.diabetes import train_and_test
from data.digits import loaders
from data.names import NamePairs
from models.seq2seq import Seq2SeqTransformer, seq2seq_loss
from models.tabular import TabularRegressor, regression_loss
from models.vision import BatchNormNet, ConvNet, digits_loss
from training import evaluate, train, warmup


def test_translator_learns(names: NamePairs, make_translator: Callable[[], Seq2SeqTransformer]) -> None:
    model = make_translator()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    losses = train(model, seq2seq_loss, names.train, optimizer, steps=30, scheduler=warmup(optimizer, 10))
    assert losses[-1] < 0.85 * losses[0]
    assert evaluate(model, seq2seq_loss, names.held_out[:2]) < losses[0]


@pytest.mark.parametrize("cls", [ConvNet, BatchNormNet])
def test_classifier_learns(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cls()
    train_batches, test_batches = loaders()
    losses = train(model, digits_loss, train_batches, AdamW(model.parameters(), lr=3e-3), steps=60)
    assert evaluate(model, digits_loss, test_batches) < 0.7 * losses[0]


@pytest.mark.parametrize("scaler", ["z-score", "min-max"])
def test_regressor_learns(scaler: str) -> None:
    torch.manual_seed(0)
    model = TabularRegressor(features=10)
    train_batches, test_batches = train_and_test(scaler)
    losses = train(model, regression_loss, train_batches, AdamW(model.parameters(), lr=3e-3), steps=60)
    assert evaluate(model, regression_loss, test_batches) < 0.5 * losses[0]


class AccumulationTest(unittest.TestCase):
    """A loop of its own, in a `TestCase`: four small batches to one step."""

    def test_accumulated_gradients(self) -> None:
        torch.manual_seed(0)
        model = ConvNet()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        for index, batch in enumerate(loaders(batch_size=16)[0], start=1):
            loss = digits_loss(model, batch) / 4
            loss.backward()
            if index % 4 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        assert loss.item() < 0.5
