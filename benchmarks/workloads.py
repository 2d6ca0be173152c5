"""The loops that `overhead.py` times: small and large models as their authors write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# So small a step leaves the weights where they are: every block does the same work, and no gradient turns subnormal.
LEARNING_RATE = 1e-7


class Recurrent(nn.Module):
    """Two LSTM layers and a read-out of the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.lstm(batch)[0][:, -1])


def mlp() -> tuple[nn.Module, Tensor]:
    """Three linear layers, batch 32."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, torch.randn(32, 20)


def conv() -> tuple[nn.Module, Tensor]:
    """Three convolutions with batch norm, 32 images of 32 x 32."""
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(32, 3, 32, 32)


def lstm() -> tuple[nn.Module, Tensor]:
    """Two LSTM layers of 128, 16 sequences of 64."""
    return Recurrent(), torch.randn(16, 64, 128)


def transformer() -> tuple[nn.Module, Tensor]:
    """Four encoder layers of width 128 without dropout, 16 sequences of 64."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(16, 64, 128)


def big() -> tuple[nn.Module, Tensor]:
    """29 million parameters in seven linear layers, batch 16."""
    layers: list[nn.Module] = []
    for _ in range(7):
        layers += [nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(16, 2048)


@dataclass(frozen=True)
class Workload:
    """A loop to be watched: `steps` of it make a block, `rounds` pairs of blocks make a figure."""

    build: Callable[[], tuple[nn.Module, Tensor]]
    optimizer: str
    steps: int
    rounds: int

    @property
    def trains(self) -> bool:
        return self.optimizer != ""

    @property
    def warm(self) -> int:
        """Untimed steps at the start of a block: in short steps, the first ones, judged in any case, would show."""
        return 40 if self.steps >= 20 else 3 if self.build is big else 0


WORKLOADS = {
    "mlp_adam": Workload(mlp, "Adam", 30, 200),
    "mlp_sgd": Workload(mlp, "SGD", 50, 200),
    "conv": Workload(conv, "Adam", 1, 101),
    "lstm": Workload(lstm, "Adam", 1, 101),
    "transformer": Workload(transformer, "Adam", 1, 51),
    "big_adam": Workload(big, "Adam", 1, 41),
    "big_sgd": Workload(big, "SGD", 1, 61),
    "mlp_eval": Workload(mlp, "", 100, 200),
    "conv_eval": Workload(conv, "", 2, 101),
}


@dataclass
class Loop:
    """A built workload."""

    model: nn.Module
    batch: Tensor
    target: Tensor
    optimizer: torch.optim.Optimizer | None

    def run(self, steps: int) -> None:
        """The user's own loop, nothing else."""
        if self.optimizer is None:
            with torch.no_grad():
                for _ in range(steps):
                    self.model(self.batch)
            return
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(self.batch), self.target)
            loss.backward()
            self.optimizer.step()


def build(workload: Workload) -> Loop:
    """Model, data and optimizer, the same at every call."""
    torch.manual_seed(0)
    model, batch = workload.build()
    model.train(workload.trains)
    with torch.no_grad():
        target = torch.randn_like(model(batch))
    optimizer = getattr(torch.optim, workload.optimizer)(model.parameters(), LEARNING_RATE) if workload.trains else None
    return Loop(model, batch, target, optimizer)
