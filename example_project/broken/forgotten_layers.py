"""Culprit: Xavier is applied to the decoder's layers and the head; nobody thought of the encoder.

Seen: nothing; the model learns a little more slowly than the paper's.
Finding: the encoder's two linear layers kept torch's default while all others of their type follow Xavier.
"""

from __future__ import annotations

from pytest_nanstab import TrainingSetup, stability_suite
from torch import nn
from torch.optim import AdamW

from data.names import NamePairs
from models.seq2seq import DecoderLayer, Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss

KIND = "init-scale"
EXPLICIT = True
MODULE = "encoder.layers.0.linear1"
ITEM = "init_scale"


def xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class HalfInitialised(Seq2SeqTransformer):
    def reset_parameters(self) -> None:
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, DecoderLayer) or module is self.head:  # culprit
            xavier(module)


class Initialised(HalfInitialised):
    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, DecoderLayer | nn.TransformerEncoderLayer) or module is self.head:
            xavier(module)


def setup_of(translator: type[Seq2SeqTransformer]) -> TrainingSetup:
    names = NamePairs(batch_size=16)
    model = translator(Seq2SeqConfig(len(names.source), len(names.target)))
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=seq2seq_loss, optimizer=optimizer, batches=names.train)


@stability_suite(checks=["init_scale"], init_scale="auto")
def test_broken() -> TrainingSetup:
    return setup_of(HalfInitialised)


@stability_suite(checks=["init_scale"], init_scale="auto")
def test_healthy() -> TrainingSetup:
    return setup_of(Initialised)
