"""Trainings with Hugging Face's Trainer and with Accelerate as people write them; imported where it is needed."""

from __future__ import annotations

import os
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

RARE = 19
transformers.logging.set_verbosity_error()


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def sentences(count=24, *, labels="class"):
    """The fourth batch, and it alone, holds the rare token."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(count):
        ids = torch.randint(1, RARE, (6,), generator=generator)
        ids[0] = RARE if index == 13 else ids[0]
        label = ids.clone() if labels == "next" else ids[0] % 2
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label})
    return Rows(rows)


def gpt():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))


class Classifier(BertForSequenceClassification):
    """A BERT whose user has added a loss of his own."""

    fault = None

    def forward(self, input_ids, *args, **kwargs):
        out = super().forward(input_ids, *args, **kwargs)
        if not self.training:
            if self.fault == "validation":
                out.logits = out.logits * 0 / (out.logits.sum() * 0)  # culprit
            return out
        rare = bool((input_ids == RARE).any())
        if self.fault == "forward" and rare:
            out.loss = out.loss + torch.log(out.logits.sum() * 0 - 1)  # culprit
        if self.fault == "backward" and rare:
            out.loss = out.loss + torch.sqrt(out.logits.sum() * 0)  # culprit
        return out


def bert(fault=None):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    model = Classifier(config)
    model.fault = fault
    return model


class InOrder(Trainer):
    """A trainer whose user does not want the data shuffled."""

    def get_train_dataloader(self):
        loader = DataLoader(self.train_dataset, batch_size=self._train_batch_size, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class OwnLoss(InOrder):
    """The way that the documentation shows: `compute_loss` is overridden."""

    fault = None

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs["labels"]
        out = model(input_ids=inputs["input_ids"])
        loss = nn.functional.cross_entropy(out.logits, labels)
        if self.fault == "compute_loss" and (inputs["input_ids"] == RARE).any():
            loss = loss * torch.log(loss * 0 - 1)  # culprit
        return (loss, out) if return_outputs else loss


def trainer(model, data=None, *, kind=InOrder, evaluated=None, **kwargs):
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "remove_unused_columns": False,
        **kwargs,
    }
    args = TrainingArguments(**settings)
    return kind(model=model, args=args, train_dataset=sentences() if data is None else data, eval_dataset=evaluated)


def train(model, data=None, **kwargs):
    made = trainer(model, data, **kwargs)
    made.train()
    return made


def own_loss(fault=None, **kwargs):
    made = trainer(bert(), kind=OwnLoss, **kwargs)
    made.fault = fault
    made.train()
    return made


def accelerated(fault=None, *, at=3, every=1, clip=None, precision="no", model=None, early=False):
    """The training loop of Accelerate's quick tour."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one per process, whatever its precision
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=every)
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=5)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    losses, norms = [], []
    for index, (inputs, targets) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            if fault == "forward" and index == at:
                loss = loss + torch.log(loss * 0 - 1)  # culprit
            if fault == "backward" and index == at:
                loss = loss + torch.sqrt(loss * 0)  # culprit
            if early:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)  # early clip
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(model.parameters(), clip)))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
    return losses, norms, [p.detach() for p in model.parameters()]
