"""Healthy sequence models without attention over everything: recurrent, convolutional and state-space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import MakeOptimizer, healthy
from .healthy_data import cross_entropy, next_tokens, signals, token_cross_entropy


def listen(model: nn.Module, optimizer: MakeOptimizer, length: int = 20, clip: float | None = None) -> TrainingSetup:
    return TrainingSetup(
        model=model,
        loss=cross_entropy,
        optimizer=optimizer(model.parameters()),
        batches=signals(length=length),
        clip_grad_norm=clip,
    )


class LSTMClassifier(nn.Module):
    def __init__(self, bidirectional: bool = False, layers: int = 1):
        super().__init__()
        self.lstm = nn.LSTM(4, 32, num_layers=layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(64 if bidirectional else 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x)
        return self.head(outputs.mean(dim=1))


@healthy(lr=0.1)
def lstm_forget_bias_1(optimizer):
    """Keras' initialisation: Glorot inputs, orthogonal recurrence, forget bias 1, others 0."""
    model = LSTMClassifier()
    for name, parameter in model.lstm.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(parameter)
        elif "weight_hh" in name:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
            if "bias_ih" in name:
                parameter.data[32:64].fill_(1.0)
    return listen(model, optimizer)


@healthy(lr=0.1, optimizers=("adam", "adamw", "rmsprop"))
def lstm_bidirectional_two_layers(optimizer):
    """Torch's default initialisation, mean over time."""
    return listen(LSTMClassifier(bidirectional=True, layers=2), optimizer)


class LastState(nn.Module):
    def __init__(self, rnn: nn.RNNBase):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@healthy(lr=0.1)
def gru_last_state(optimizer):
    """Torch's default initialisation; only the last of twenty states is read."""
    return listen(LastState(nn.GRU(4, 32, batch_first=True)), optimizer)


@healthy(lr=0.02, precisions=("32-true",))
def elman_orthogonal_length_30(optimizer):
    """Tanh recurrence with an orthogonal matrix keeps gradients over thirty steps; norms are clipped."""
    rnn = nn.RNN(4, 32, batch_first=True)
    nn.init.orthogonal_(rnn.weight_hh_l0)
    nn.init.zeros_(rnn.bias_hh_l0)
    return listen(LastState(rnn), optimizer, length=30, clip=1.0)


@healthy(lr=0.005, optimizers=("sgd", "adam", "rmsprop"), precisions=("32-true",))
def irnn_identity_length_20(optimizer):
    """Le's IRNN: a ReLU recurrence that starts as the identity, with small inputs and clipped gradients."""
    rnn = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
    nn.init.eye_(rnn.weight_hh_l0)
    nn.init.normal_(rnn.weight_ih_l0, std=0.1)
    nn.init.zeros_(rnn.bias_ih_l0)
    nn.init.zeros_(rnn.bias_hh_l0)
    return listen(LastState(rnn), optimizer, clip=1.0)


class CellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 32)
        for step in x.unbind(dim=1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


@healthy(lr=0.1)
def lstm_cell_by_hand(optimizer):
    """One module called twelve times per forward pass."""
    return listen(CellLoop(), optimizer, length=12)


class HandwrittenGRU(nn.Module):
    def __init__(self, inputs: int = 4, hidden: int = 24):
        super().__init__()
        self.hidden = hidden
        self.reset = nn.Linear(inputs + hidden, hidden)
        self.update = nn.Linear(inputs + hidden, hidden)
        self.candidate = nn.Linear(inputs + hidden, hidden)
        self.head = nn.Linear(hidden, 3)
        nn.init.constant_(self.update.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hidden)
        for step in x.unbind(dim=1):
            joined = torch.cat([step, h], dim=1)
            r, z = torch.sigmoid(self.reset(joined)), torch.sigmoid(self.update(joined))
            n = torch.tanh(self.candidate(torch.cat([step, r * h], dim=1)))
            h = z * h + (1 - z) * n
        return self.head(h)


@healthy(lr=0.15)
def gru_by_hand(optimizer):
    """The update gate is biased to remember."""
    return listen(HandwrittenGRU(), optimizer, length=12)


class CharModel(nn.Module):
    def __init__(self, vocab: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.decoder = nn.Linear(48, vocab)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.dropout(self.embedding(x)))
        return self.decoder(self.dropout(outputs))


@healthy(lr=0.3)
def char_language_model(optimizer):
    """The word language model of PyTorch's examples: uniform 0.1 embeddings and decoder, clipping at 0.25."""
    model = CharModel()
    return TrainingSetup(
        model=model,
        loss=token_cross_entropy,
        optimizer=optimizer(model.parameters()),
        batches=next_tokens(),
        clip_grad_norm=0.25,
    )


@healthy(lr=0.1, optimizers=("sgd", "adam"))
def truncated_bptt(optimizer):
    """Sixty steps in four chunks; the state is detached between them and one optimizer step taken per chunk."""
    model = nn.ModuleDict({"rnn": nn.GRU(1, 24, batch_first=True), "head": nn.Linear(24, 1)})
    own = optimizer(model.parameters())

    def chunk_loss(model, x, y, state):
        outputs, state = model["rnn"](x, state)
        return F.mse_loss(model["head"](outputs), y), state

    def loss(model, batch):
        return chunk_loss(model, *batch, None)[0]

    def training_step(batch):
        state, losses = None, []
        for x, y in zip(batch[0].split(15, dim=1), batch[1].split(15, dim=1), strict=True):
            own.zero_grad()
            value, state = chunk_loss(model, x, y, state)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            own.step()
            state = state.detach()
            losses.append(value.detach())
        return torch.stack(losses).mean()

    batches = []
    for _ in range(4):
        wave = torch.sin(torch.linspace(0, 20, 61) + 6.28 * torch.rand(8, 1)) + 0.1 * torch.randn(8, 61)
        batches.append((wave[:, :-1, None], wave[:, 1:, None]))
    return TrainingSetup(model=model, loss=loss, optimizer=own, batches=batches, training_step=training_step)


class Chomp(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        weight_norm = torch.nn.utils.parametrizations.weight_norm
        padding = 2 * dilation
        conv1 = nn.Conv1d(inputs, outputs, 3, padding=padding, dilation=dilation)
        conv2 = nn.Conv1d(outputs, outputs, 3, padding=padding, dilation=dilation)
        conv1.weight.data.normal_(0, 0.01)
        conv2.weight.data.normal_(0, 0.01)
        self.net = nn.Sequential(
            weight_norm(conv1),
            Chomp(padding),
            nn.ReLU(),
            nn.Dropout(0.1),
            weight_norm(conv2),
            Chomp(padding),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + self.downsample(x))


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(TemporalBlock(4, 24, 1), TemporalBlock(24, 24, 2), TemporalBlock(24, 24, 4))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x.transpose(1, 2))[:, :, -1])


@healthy(lr=0.1, precisions=("32-true",))
def temporal_convolutions(optimizer):
    """The TCN of the authors' repository: weight norm over normal 0.01 weights, so branches start tiny."""
    return listen(TCN(), optimizer)


class WaveNet(nn.Module):
    """Gated dilated convolutions with skip connections; zeros in the last layer."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(4, 24, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**i) for i in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in range(4))
        self.end = nn.Linear(24, 3)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x.transpose(1, 2))
        skips = 0
        for i, (dilated, residual, skip) in enumerate(zip(self.dilated, self.residual, self.skip, strict=True)):
            values, gates = dilated(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            out = torch.tanh(values) * torch.sigmoid(gates)
            x = x + residual(out)
            skips = skips + skip(out)
        return self.end(F.relu(skips).mean(dim=2))


@healthy(lr=0.05)
def wavenet_gated(optimizer):
    """The last residual convolution is computed and never read: its parameters get no gradient."""
    return listen(WaveNet(), optimizer)


class DiagonalSSM(nn.Module):
    """S4D-real: a diagonal state space as a convolution; log steps from 0.001 to 0.1, decay rates 1..n."""

    def __init__(self, dim: int, states: int = 8):
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(dim) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.log_a = nn.Parameter(torch.log(torch.arange(1, states + 1).float()).repeat(dim, 1))
        self.c = nn.Parameter(torch.randn(dim, states) / math.sqrt(states))
        self.d = nn.Parameter(torch.ones(dim))
        self.mix = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x).transpose(1, 2)
        length = u.shape[-1]
        rate = -torch.exp(self.log_a) * torch.exp(self.log_dt)[:, None]
        powers = torch.exp(rate[..., None] * torch.arange(length))
        kernel = ((self.c * torch.expm1(rate) / -torch.exp(self.log_a))[..., None] * -powers).sum(dim=1)
        padded = F.pad(u, (length - 1, 0))
        y = F.conv1d(padded, kernel.flip(-1)[:, None], groups=u.shape[1]) + self.d[:, None] * u
        return x + self.mix(F.gelu(y.transpose(1, 2)))


class SSMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 24)
        self.layers = nn.Sequential(DiagonalSSM(24), DiagonalSSM(24))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.encoder(x)).mean(dim=1))


@healthy(lr=0.1, precisions=("32-true",))
def diagonal_state_space(optimizer):
    """Steps and rates are trained as logarithms, with a tenth of the rate; their gradients are small."""
    model = SSMClassifier()
    slow = [p for name, p in model.named_parameters() if name.endswith(("log_dt", "log_a"))]
    rest = [p for name, p in model.named_parameters() if not name.endswith(("log_dt", "log_a"))]
    own = optimizer([{"params": rest}, {"params": slow, "lr": 0.001}])
    return TrainingSetup(model=model, loss=cross_entropy, optimizer=own, batches=signals())


class CRNN(nn.Module):
    def __init__(self, symbols: int = 5):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv1d(4, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU())
        self.rnn = nn.LSTM(24, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, symbols)

    def forward(self, x: Tensor) -> Tensor:
        features = self.cnn(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.rnn(features)[0]).log_softmax(dim=-1)


@healthy(lr=0.05, precisions=("32-true",))
def crnn_ctc(optimizer):
    """CTC falls to the all-blank solution before it learns letters."""

    def loss(model, batch):
        x, y = batch
        lengths = torch.full((len(x),), x.shape[1]), torch.full((len(x),), y.shape[1])
        return F.ctc_loss(model(x).transpose(0, 1), y, *lengths, zero_infinity=True)

    codes = torch.randn(5, 4)
    batches = []
    for _ in range(6):
        y = torch.randint(1, 5, (16, 4))
        batches.append((codes[y].repeat_interleave(4, dim=1) + 0.2 * torch.randn(16, 16, 4), y))
    model = CRNN()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)
