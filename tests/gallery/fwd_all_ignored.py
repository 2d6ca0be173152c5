"""Token tagging with ignore_index: one batch carries no labelled token and the mean cross entropy divides by zero."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

OP = ("cross_entropy", "cross_entropy_loss", "nll_loss")
PHASE = "forward"
MODULE = ""
STEP = 2
CAUSE = ("ignore_index", "ignored", "-100")

IGNORE = -100


class Tags(Dataset):
    """Sentences of seven tokens, of which only the annotated ones have a label."""

    def __init__(self, n: int = 9) -> None:
        gen = torch.Generator().manual_seed(8)
        self.tokens = torch.randint(1, 30, (n, 7), generator=gen)
        self.labels = torch.randint(0, 5, (n, 7), generator=gen)
        self.labels[:, 4:] = IGNORE
        self.labels[3:6] = IGNORE  # never annotated

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i], self.labels[i]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.conv = nn.Conv1d(12, 10, kernel_size=3, padding=1)
        self.tag = nn.Linear(10, 5)

    def forward(self, tokens):
        h = self.conv(self.embed(tokens).mT).relu()
        return self.tag(h.mT)


def train_tagger(skip_unlabelled: bool) -> Tagger:
    torch.manual_seed(0)
    model = Tagger()
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORE)
    optimizer = torch.optim.AdamW(model.parameters())
    for tokens, labels in DataLoader(Tags(), batch_size=3):
        if skip_unlabelled and (labels == IGNORE).all():
            continue
        logits = model(tokens)
        loss = criterion(logits.reshape(-1, 5), labels.view(-1))  # culprit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_broken() -> None:
    train_tagger(skip_unlabelled=False)


def test_healthy() -> None:
    model = train_tagger(skip_unlabelled=True)
    assert all(p.isfinite().all() for p in model.parameters())
