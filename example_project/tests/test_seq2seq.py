"""The translator under every explicit way in: suite, marker, fixture, context manager, initial scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_nanstab import TrainingSetup, assert_init_scale, stability_suite, watch
from pytest_nanstab.strategies import TensorSpec
from torch import Tensor
from torch.optim import AdamW

from data.names import BOS, EOS, PAD, NamePairs
from models.seq2seq import Seq2SeqTransformer, seq2seq_loss
from training import train, warmup

Make = Callable[[], Seq2SeqTransformer]


def framed(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every text starts with BOS and ends with EOS: what `TensorSpec` cannot say."""
    for ids in batch:
        ids[:, 0], ids[:, -1] = BOS, EOS
    return batch


@stability_suite(steps=15, precision=["32-true", "bf16-mixed"], init_scale="xavier_uniform", max_grad_norm=100)
def test_translator(names: NamePairs, make_translator: Make) -> TrainingSetup:
    model = make_translator()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    sizes = {"source": len(names.source), "target": len(names.target)}
    return TrainingSetup(
        model=model,
        loss=seq2seq_loss,
        optimizer=optimizer,
        batches=names.train,
        eval_batches=names.held_out[:3],
        lr_scheduler=warmup(optimizer, 5),
        clip_grad_norm=1.0,
        domain=tuple(
            TensorSpec(shape=("batch", field), dtype="int64", min_value=PAD, max_value=size - 1)
            for field, size in sizes.items()
        ),
        sizes={"batch": (1, 16), "source": (2, 24), "target": (3, 24)},
        repair=framed,
    )


def test_xavier_everywhere(make_translator: Make) -> None:
    assert_init_scale(make_translator(), "xavier_uniform")


@pytest.mark.nanstab(max_grad_norm=100, max_loss=20)
def test_own_loop_with_limits(names: NamePairs, make_translator: Make) -> None:
    model = make_translator()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    losses = train(model, seq2seq_loss, names.train, optimizer, steps=8, scheduler=warmup(optimizer, 4))
    assert losses[-1] < losses[0]


def test_ready_driver(nanstab, names: NamePairs, make_translator: Make) -> None:
    model = make_translator()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    setup = TrainingSetup(
        model=model,
        loss=seq2seq_loss,
        optimizer=optimizer,
        batches=names.train,
        lr_scheduler=warmup(optimizer, 5),
        clip_grad_norm=1.0,
    )
    run = nanstab.train(setup, steps=20, max_grad_norm=100)
    assert run.steps == 20
    assert run.loss[-1] < 0.9 * run.loss[0]
    assert max(run.clipped_grad_norm) <= 1.0 + 1e-4


def test_watched_region(names: NamePairs, make_translator: Make) -> None:
    model = make_translator()
    with watch(model, name="translator", max_grad_norm=100) as run:
        train(model, seq2seq_loss, names.train, AdamW(model.parameters(), lr=1e-3), steps=5)
    assert len(run.grad_norm) == 5
    assert all(torch.isfinite(torch.tensor(run.loss)))
