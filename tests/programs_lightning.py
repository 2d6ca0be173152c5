"""Lightning modules as people write them, with a fault each that can be switched on; imported where it is needed."""

from __future__ import annotations

import logging

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAN = float("nan")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loader(batches=6, *, bad=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5 * batches, 4, generator=generator)
    y = x.sum(1, keepdim=True)
    if bad is not None:
        x[5 * bad + 2, 1] = NAN
    return DataLoader(TensorDataset(x, y), batch_size=5)


def faulty(loss, fault):
    """A loss that breaks, forward or only in its derivative."""
    if fault == "forward":
        return torch.log(loss * 0 - 1)  # culprit
    if fault == "backward":
        return loss + torch.sqrt(loss * 0)  # culprit
    return loss


class Automatic(lightning.LightningModule):
    """What every tutorial begins with."""

    returns = staticmethod(lambda loss: loss)

    def __init__(self, fault=None, at=None, lr=1e-2):
        super().__init__()
        self.net, self.fault, self.at, self.lr = network(), fault, at, lr
        self.losses, self.norms = [], []

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss)
        loss = faulty(loss, self.fault if index == self.at else None)
        self.losses.append(loss.detach())
        return self.returns(loss)

    def on_before_optimizer_step(self, optimizer):
        norms = [p.grad.double().norm() for p in self.parameters() if p.grad is not None]
        self.norms.append(torch.stack(norms).norm().item())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class ReturnsDictionary(Automatic):
    returns = staticmethod(lambda loss: {"loss": loss, "extra": 1})


class Scheduled(Automatic):
    """The schedule divides by the steps that are left."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)  # optimizer
        rate = (lambda step: 1.0 if step < 4 else NAN) if self.fault == "schedule" else lambda step: 1.0
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Manual(Automatic):
    """Manual optimisation with a clip, before or after the backward pass."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        x, y = batch
        optimizer = self.optimizers()
        loss = faulty(nn.functional.mse_loss(self.net(x), y), self.fault if index == self.at else None)
        optimizer.zero_grad()
        if self.fault == "clip":
            self.clip_gradients(optimizer, gradient_clip_val=0.5)  # early clip
        self.manual_backward(loss)
        if self.fault != "clip":
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        self.losses.append(loss.detach())


class Adversarial(Automatic):
    """Two optimizers in turn, toggled as the documentation shows it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.critic = network()

    def training_step(self, batch, index):
        x, y = batch
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = nn.functional.mse_loss(self.net(x), y) - 0.1 * self.critic(x).mean()
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = (self.critic(x) - self.net(x).detach()).square().mean()
        loss = faulty(loss, self.fault if index == self.at else None)
        self.manual_backward(loss)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-3), torch.optim.SGD(self.critic.parameters(), 1e-3)


class Validated(Automatic):
    """An evaluation that divides by a spread which may be zero."""

    def validation_step(self, batch, index):
        x, y = batch
        out = self.net(x)
        self.log("val", nn.functional.mse_loss(out, y))

    test_step = validation_step


class Standardised(nn.Module):
    """Uses the running statistics that nobody has gathered in evaluation."""

    def __init__(self, fault):
        super().__init__()
        self.inner, self.fault = network(), fault

    def forward(self, x):
        if not self.training and self.fault == "validation":
            return self.inner(x) * 0 / (x.std(0, keepdim=True).sum() * 0)  # culprit
        return self.inner(x)


def validated(fault=None):
    model = Validated()
    model.net = Standardised(fault)
    return model


def trainer(**kwargs):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "devices": 1, **quiet, **kwargs})


def fit(model, data=None, **kwargs):
    run = trainer(**kwargs)
    run.fit(model, loader() if data is None else data)
    return run
