"""Healthy encoders and decoders, packed and padded sequences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import text

PAD = 0


def reversals(vocab: int = 12, length: int = 6, rows: int = 24, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Sequences, and the same backwards behind a start symbol 1."""
    batches = []
    for _ in range(count):
        source = torch.randint(2, vocab, (rows, length))
        batches.append((source, torch.cat([torch.ones(rows, 1, dtype=torch.long), source.flip(1)], dim=1)))
    return batches


def translation_loss(model, batch):
    source, target = batch
    logits = model(source, target[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())


class AttentionSeq2Seq(nn.Module):
    """LSTM encoder, LSTM decoder with additive attention."""

    def __init__(self, vocab: int = 12, dim: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.encoder = nn.LSTM(dim, dim, batch_first=True)
        self.decoder = nn.LSTMCell(2 * dim, dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.score = nn.Linear(dim, 1, bias=False)
        self.head = nn.Linear(2 * dim, vocab)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, (h, c) = self.encoder(self.embedding(source))
        h, c = h[0], c[0]
        keys, logits = self.key(memory), []
        for token in self.embedding(target).unbind(dim=1):
            scores = self.score(torch.tanh(self.query(h)[:, None] + keys)).squeeze(-1)
            context = (scores.softmax(dim=-1)[..., None] * memory).sum(dim=1)
            h, c = self.decoder(torch.cat([token, context], dim=1), (h, c))
            logits.append(self.head(torch.cat([h, context], dim=1)))
        return torch.stack(logits, dim=1)


@healthy(lr=0.1)
def seq2seq_bahdanau(optimizer):
    """Additive attention behind tanh: query and key get hundredths of the decoder's gradient at first."""
    model = AttentionSeq2Seq()
    return TrainingSetup(
        model=model,
        loss=translation_loss,
        optimizer=optimizer(model.parameters()),
        batches=reversals(),
        clip_grad_norm=1.0,
    )


class Seq2SeqTransformer(nn.Module):
    """`nn.Transformer` with sinusoidal positions, scaled embeddings and Glorot matrices, as in PyTorch's tutorial."""

    def __init__(self, vocab: int = 12, dim: int = 32):
        super().__init__()
        self.dim = dim
        self.source = nn.Embedding(vocab, dim)
        self.target = nn.Embedding(vocab, dim)
        self.transformer = nn.Transformer(dim, 4, 1, 1, 64, dropout=0.1, batch_first=True)
        self.generator = nn.Linear(dim, vocab)
        position = torch.arange(16).float()[:, None]
        frequency = torch.exp(-torch.arange(0, dim, 2).float() * math.log(10000.0) / dim)
        table = torch.zeros(16, dim)
        table[:, 0::2], table[:, 1::2] = torch.sin(position * frequency), torch.cos(position * frequency)
        self.register_buffer("positions", table)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def embed(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        return table(tokens) * math.sqrt(self.dim) + self.positions[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(
            self.embed(self.source, source), self.embed(self.target, target), tgt_mask=mask, tgt_is_causal=True
        )
        return self.generator(hidden)


@healthy(lr=0.03, optimizers=("adam", "adamw", "sgd"))
def seq2seq_transformer(optimizer):
    """Causal mask of -inf in the decoder."""
    model = Seq2SeqTransformer()
    return TrainingSetup(
        model=model, loss=translation_loss, optimizer=optimizer(model.parameters()), batches=reversals(rows=16)
    )


class PackedTagger(nn.Module):
    def __init__(self, vocab: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 24, padding_idx=PAD)
        self.lstm = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != PAD).sum(dim=1)
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.head(outputs)


def padded_tags() -> list[tuple[Tensor, Tensor]]:
    batches = []
    for tokens in text(vocab=31, length=10):
        padding = torch.arange(10) >= torch.randint(3, 11, (len(tokens), 1))
        tags = (tokens % 4).masked_fill(padding, -100)
        batches.append(((tokens + 1).masked_fill(padding, PAD), tags))
    return batches


def tag_loss(model, batch):
    tokens, tags = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), tags.flatten(), ignore_index=-100)


@healthy(lr=0.2)
def packed_sequence_tagger(optimizer):
    """Padding row of zeros that never gets a gradient; packed sequences; ignored labels."""
    model = PackedTagger()
    return TrainingSetup(model=model, loss=tag_loss, optimizer=optimizer(model.parameters()), batches=padded_tags())


class PaddedEncoder(nn.Module):
    def __init__(self, vocab: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 32, padding_idx=PAD)
        self.positions = nn.Parameter(torch.zeros(10, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(tokens) + self.positions, src_key_padding_mask=tokens == PAD)
        return self.head(hidden)


@healthy(lr=0.02)
def padded_transformer_tagger(optimizer):
    """Key padding mask; the last positions are read in few rows."""
    model = PaddedEncoder()
    return TrainingSetup(model=model, loss=tag_loss, optimizer=optimizer(model.parameters()), batches=padded_tags())


class BagClassifier(nn.Module):
    """`nn.EmbeddingBag` with offsets, as in PyTorch's text tutorial."""

    def __init__(self, vocab: int = 200):
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab, 32)
        self.fc = nn.Linear(32, 4)
        self.embedding.weight.data.uniform_(-0.5, 0.5)
        self.fc.weight.data.uniform_(-0.5, 0.5)
        self.fc.bias.data.zero_()

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.embedding(tokens, offsets))


@healthy(lr=0.5, precisions=("32-true",))
def embedding_bag_text(optimizer):
    """Most rows of the table get no gradient in a step, and some never do."""

    def loss(model, batch):
        tokens, offsets, y = batch
        return F.cross_entropy(model(tokens, offsets), y)

    batches = []
    for _ in range(6):
        y = torch.randint(4, (16,))
        words = torch.randint(0, 40, (16, 8)) * 4 + y[:, None] * (torch.rand(16, 8) < 0.7)
        batches.append((words.flatten(), torch.arange(0, 128, 8), y))
    model = BagClassifier()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)
