"""Eighteen small trainings with one defect each, and the same trainings mended: what `comparison.py` runs tools on.

A program is written as its author would write it, `fixed` apart. The lines that may be named as the culprit end in
`# culprit`. Its loop trains and then evaluates; it makes no check of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

Batch = tuple[Tensor, Tensor]


@dataclass
class Program:
    """A training: what it trains, on what, and how it takes a step."""

    model: nn.Module
    optimizer: Optimizer
    batches: list[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    steps: int = 20
    before_step: Callable[[Tensor], None] | None = None
    training_step: Callable[[Batch], Tensor] | None = None
    precision: str = "32-true"
    function: Callable[[Tensor], Tensor] | None = None  # the defect as a function of one array, where it is one
    domain: str = "[-1000, 1000]"

    def step(self, batch: Batch) -> Tensor:
        """One step, the program's own or the usual one."""
        if self.training_step is not None:
            return self.training_step(batch)
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def losses(self) -> Iterator[Tensor]:
        """Train, then predict once."""
        self.model.train()
        for number in range(self.steps):
            yield self.step(self.batches[number % len(self.batches)])
        self.model.eval()
        with torch.no_grad():
            self.model(self.batches[0][0]).argmax(dim=-1)


def regression(count: int = 4, size: int = 16, width: int = 8) -> list[Batch]:
    return [(torch.randn(size, width), torch.randn(size, 1)) for _ in range(count)]


def classes(count: int = 4, size: int = 16, width: int = 8, kinds: int = 3) -> list[Batch]:
    return [(torch.randn(size, width), torch.randint(kinds, (size,))) for _ in range(count)]


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).pow(2).mean()


def crossed(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def mlp(out: int = 1, width: int = 8, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


def stack(depth: int, activation: type[nn.Module], width: int = 32, out: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]  # culprit
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
    return nn.Sequential(*layers, nn.Linear(width, out))


# -- gradients ---------------------------------------------------------------------------------------------------------


def rate_too_large(fixed: bool) -> Program:
    """ReLU stack, learning rate far too large: NaN after a few steps."""
    model = stack(6, nn.ReLU, out=1)
    optimizer = SGD(model.parameters(), lr=0.005 if fixed else 0.1)  # culprit
    return Program(model, optimizer, regression(width=32), squared)


class Recurrent(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 16, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(16, 1)
        if fixed:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)
        else:
            nn.init.uniform_(self.rnn.weight_hh_l0, 0.0, 0.5)  # culprit

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.rnn(series)[0][:, -1])  # culprit


def recurrence(fixed: bool) -> Program:
    """ReLU recurrence over 120 steps, matrix too large."""
    model = Recurrent(fixed)
    batches = [(torch.rand(8, 120, 1), torch.rand(8, 1)) for _ in range(2)]
    return Program(model, Adam(model.parameters(), lr=1e-3), batches, squared)


def vanishing(fixed: bool) -> Program:
    """Ten sigmoid layers."""
    model = stack(10, nn.ReLU if fixed else nn.Sigmoid)
    return Program(model, Adam(model.parameters(), lr=1e-3), classes(width=32), crossed)


def clip_too_early(fixed: bool) -> Program:
    """Gradients clipped before backward()."""
    model = mlp()
    optimizer = Adam(model.parameters(), lr=1e-3)

    def training_step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        loss = squared(model, batch)
        if not fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # culprit
        loss.backward()
        if fixed:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss.detach()

    return Program(model, optimizer, regression(), squared, training_step=training_step)


def clip_scaled(fixed: bool) -> Program:
    """Gradients clipped while a GradScaler has them multiplied."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def training_step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = squared(model, batch)
        scaler.scale(loss).backward()
        if fixed:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # culprit
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return Program(model, optimizer, regression(), squared, training_step=training_step)


def old_head(fixed: bool) -> Program:
    """The head is replaced after the optimizer was made."""
    model = mlp(out=10)
    optimizer = Adam(model.parameters(), lr=1e-3)  # culprit
    model[2] = nn.Linear(32, 3)
    if fixed:
        optimizer = Adam(model.parameters(), lr=1e-3)
    return Program(model, optimizer, classes(), crossed)


# -- initial scale -----------------------------------------------------------------------------------------------------


def unit_normal(fixed: bool) -> Program:
    """Weights drawn from N(0, 1)."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    for layer in model[::2]:
        if fixed:
            nn.init.kaiming_normal_(layer.weight)
        else:
            nn.init.normal_(layer.weight)  # culprit
    return Program(model, Adam(model.parameters(), lr=1e-3), classes(width=64), crossed)


def forgotten(fixed: bool) -> Program:
    """Two of seven layers were not initialised like the others."""
    hidden = [nn.Linear(48, 48) for _ in range(6)]  # culprit
    head = nn.Linear(48, 3)
    for layer in [*(hidden if fixed else hidden[2:]), head]:
        nn.init.xavier_uniform_(layer.weight)
    model = nn.Sequential(*(part for layer in hidden for part in (layer, nn.Tanh())), head)
    return Program(model, Adam(model.parameters(), lr=1e-3), classes(width=48), crossed)


# -- formulas ----------------------------------------------------------------------------------------------------------


def log_of_softmax(fixed: bool) -> Program:
    """log(softmax) by hand, confident logits."""
    model = nn.Linear(8, 3)
    batches = [(60 * inputs, labels) for inputs, labels in classes()]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch[0])
        if fixed:
            return F.cross_entropy(logits, batch[1])
        return F.nll_loss(torch.log(torch.softmax(logits, dim=-1)), batch[1])  # culprit

    def function(x: Tensor) -> Tensor:
        return torch.log_softmax(x, dim=-1) if fixed else torch.log(torch.softmax(x, dim=-1))

    return Program(model, SGD(model.parameters(), lr=1e-5), batches, loss, function=function)


def norm_at_zero(fixed: bool) -> Program:
    """Gradient of a norm at zero: a pair of equal items."""
    model = nn.Embedding(8, 4)
    pairs = torch.tensor([[0, 1], [2, 3], [4, 4]])

    def norm(difference: Tensor) -> Tensor:
        squares = difference.pow(2).sum(dim=-1)
        return (squares + 1e-12).sqrt() if fixed else squares.sqrt()  # culprit

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        left, right = model(batch[0]).unbind(dim=1)
        return (norm(left - right) - batch[1]).pow(2).mean()

    return Program(model, SGD(model.parameters(), lr=0.1), [(pairs, torch.ones(3))], loss, function=norm)


class Attention(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.fixed = fixed

    def forward(self, inputs: Tensor) -> Tensor:
        padding = inputs.abs().sum(dim=-1) == 0
        scores = self.query(inputs) @ self.key(inputs).transpose(1, 2) / math.sqrt(8)
        fill = torch.finfo(scores.dtype).min if self.fixed else -math.inf
        scores = scores.masked_fill(padding[:, None], fill)
        return torch.softmax(scores, dim=-1) @ self.value(inputs)  # culprit


def masked_row(fixed: bool) -> Program:
    """Attention over a sequence that is all padding."""
    model = nn.Sequential(Attention(fixed), nn.Flatten(), nn.Linear(40, 1))
    inputs = torch.randn(6, 5, 8)
    inputs[2] = 0
    return Program(model, SGD(model.parameters(), lr=0.01), [(inputs, torch.randn(6, 1))], squared)


def where_gradient(fixed: bool) -> Program:
    """torch.where does not protect its gradient."""
    model = nn.Linear(4, 3)
    illegal = torch.tensor([False, True, False])

    def entropy(p: Tensor) -> Tensor:
        safe = torch.where(p > 0, p, 1.0)
        return -(p * (safe if fixed else p).log()).where(p > 0, 0.0).sum(dim=-1)  # culprit

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        p = torch.softmax(model(batch[0]).masked_fill(illegal, -math.inf), dim=-1)
        return -entropy(p).mean()

    batches = [(torch.randn(8, 4), torch.zeros(8))]
    return Program(model, SGD(model.parameters(), lr=0.1), batches, loss, function=entropy, domain="[0, 1]")


def hidden_constant(fixed: bool) -> Program:
    """z-score by batch; no batch of the author's has a constant column."""
    model = mlp()

    def scaled(x: Tensor) -> Tensor:
        spread = x.std(dim=0, correction=0)
        return (x - x.mean(dim=0)) / (spread.clamp(min=1e-3) if fixed else spread)  # culprit

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (model(scaled(batch[0])) - batch[1]).pow(2).mean()

    return Program(model, Adam(model.parameters(), lr=1e-3), regression(), loss, function=scaled)


# -- data, evaluation --------------------------------------------------------------------------------------------------


def nan_row(fixed: bool) -> Program:
    """One row of the eighth batch is NaN."""
    model = mlp()
    batches = regression(count=10)
    if not fixed:
        batches[7][0][3] = math.nan
    return Program(model, Adam(model.parameters(), lr=1e-3), batches, squared)


class Calibrated(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.body = mlp(out=3)
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.body(inputs)
        return logits if self.training else torch.softmax(logits / self.temperature, dim=-1)  # culprit


def eval_branch(fixed: bool) -> Program:
    """A branch of eval mode divides by zero."""
    model = Calibrated(1.5 if fixed else 0.0)
    return Program(model, Adam(model.parameters(), lr=1e-3), classes(), crossed)


# -- precision, optimizer ----------------------------------------------------------------------------------------------


class Energy(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 256)
        self.fixed = fixed

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer(inputs)
        if self.fixed:
            return hidden.float().pow(2).mean(dim=1, keepdim=True)
        return (hidden * hidden).sum(dim=1, keepdim=True) / 256  # culprit


def half_overflow(fixed: bool) -> Program:
    """A sum of squares overflows float16."""
    model = Energy(fixed).half()
    batches = [(60 * torch.randn(8, 8).half(), torch.ones(8, 1).half()) for _ in range(2)]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]).float() / 1e4 - batch[1].float()).abs().mean()

    return Program(model, SGD(model.parameters(), lr=5.0), batches, loss, precision="16-true")


class Counting(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.register_buffer(
            "seen", torch.tensor(0 if fixed else 250.0, dtype=torch.int64 if fixed else torch.bfloat16)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 1  # culprit
        return self.layer(inputs)


def lost_counter(fixed: bool) -> Program:
    """A counter in bfloat16 stops at 256: finite, and wrong."""
    model = Counting(fixed)
    return Program(model, SGD(model.parameters(), lr=1e-3), regression(), squared)


def adam_eps(fixed: bool) -> Program:
    """Adam(eps=0), weights without gradient: the parameters are NaN, the loss is not."""
    model = nn.Embedding(10, 4)
    optimizer = Adam(model.parameters(), lr=1e-3, eps=1e-8 if fixed else 0.0)  # culprit

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0]).pow(2).mean()

    return Program(model, optimizer, [(torch.tensor([1, 2, 3]), torch.zeros(3))], loss)


DEFECTS: dict[str, Callable[[bool], Program]] = {
    make.__name__: make
    for make in (
        rate_too_large,
        recurrence,
        vanishing,
        clip_too_early,
        clip_scaled,
        old_head,
        unit_normal,
        forgotten,
        log_of_softmax,
        norm_at_zero,
        masked_row,
        where_gradient,
        hidden_constant,
        nan_row,
        eval_branch,
        half_overflow,
        lost_counter,
        adam_eps,
    )
}


def build(name: str, *, fixed: bool, seed: int = 0) -> Program:
    """A program, made anew."""
    torch.manual_seed(seed)
    return DEFECTS[name](fixed)
