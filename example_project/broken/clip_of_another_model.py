"""Culprit: a model is distilled into a student that starts as its copy, and the teacher's gradients are clipped.

Seen: nothing. The teacher has gradients, since its targets are not detached, and nobody steps it.
Finding: the clip has no effect, at the clip call.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from data.digits import Batch, loaders
from models.vision import ConvNet, digits_loss

KIND = "ineffective-clip"


def build() -> tuple[ConvNet, ConvNet, AdamW]:
    torch.manual_seed(0)
    teacher = ConvNet()
    student = copy.deepcopy(teacher)
    return teacher, student, AdamW(student.parameters(), lr=1e-3)


def distillation_loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    images, _ = batch
    return digits_loss(student, batch) + F.mse_loss(student(images), teacher(images))


def test_broken() -> None:
    teacher, student, optimizer = build()
    for batch in list(loaders()[0])[:6]:
        optimizer.zero_grad()
        loss = distillation_loss(student, teacher, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), max_norm=1.0)  # culprit
        optimizer.step()
    assert torch.isfinite(loss)


def test_healthy() -> None:
    teacher, student, optimizer = build()
    for batch in list(loaders()[0])[:6]:
        optimizer.zero_grad()
        loss = distillation_loss(student, teacher, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), max_norm=1.0)
        optimizer.step()
    assert torch.isfinite(loss)
