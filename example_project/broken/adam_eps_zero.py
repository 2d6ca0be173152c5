"""Culprit: Adam(eps=0): a weight that got no gradient is updated by 0 / 0.

Seen: a smoke test of one step passes; the embeddings of characters that the batch does not hold are NaN afterwards.
Finding: parameters are NaN after the last step, under a finite loss and finite gradients.
"""

from __future__ import annotations

import math
import unittest

import torch
from torch.optim import Adam

from data.names import NamePairs
from models.seq2seq import Seq2SeqConfig, Seq2SeqTransformer, seq2seq_loss
from training import train

KIND = "nonfinite-parameter"
STEP = 1


class SmokeTest(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.names = NamePairs(batch_size=16)
        self.model = Seq2SeqTransformer(Seq2SeqConfig(len(self.names.source), len(self.names.target)))

    def one_step(self, optimizer: Adam) -> float:
        return train(self.model, seq2seq_loss, self.names.train, optimizer, steps=1)[0]

    def test_broken(self) -> None:
        assert math.isfinite(self.one_step(Adam(self.model.parameters(), eps=0.0)))  # culprit

    def test_healthy(self) -> None:
        assert math.isfinite(self.one_step(Adam(self.model.parameters())))
