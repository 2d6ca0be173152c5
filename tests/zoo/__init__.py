"""Training programs as people write them: healthy ones that no check may accuse, and sick ones that it must name.

Each is a factory that takes an optimizer's maker and returns a `TrainingSetup`; `@healthy` and `@sick` register it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from pytest_nanstab import TrainingSetup

MakeOptimizer = Callable[..., Optimizer]  # (parameters, **overrides)
Factory = Callable[[MakeOptimizer], TrainingSetup]


def _maker(cls: type[Optimizer], **defaults: object) -> MakeOptimizer:
    def make(parameters: Iterable[torch.Tensor], **overrides: object) -> Optimizer:
        return cls(parameters, **{**defaults, **overrides})

    return make


# "lr" of a program replaces these; Adam's and RMSprop's are a tenth of SGD's.
OPTIMIZERS: dict[str, Callable[[float], MakeOptimizer]] = {
    "sgd": lambda lr: _maker(SGD, lr=lr, momentum=0.9),
    "adam": lambda lr: _maker(Adam, lr=lr / 10),
    "adamw": lambda lr: _maker(AdamW, lr=lr / 10, weight_decay=0.01),
    "rmsprop": lambda lr: _maker(RMSprop, lr=lr / 30),
}


@dataclass(frozen=True)
class Program:
    """A registered program.

    Attributes:
        name: the factory's name.
        make: the factory.
        lr: SGD's rate; the other optimizers' follow from it.
        optimizers: which of `OPTIMIZERS` it is run with; the factory may ignore the maker and bring its own.
        precisions: which of "32-true" and "bf16-true" it trains in.
        check: the suite check that must fail, of a sick one.
        kinds: the kinds of finding that name its fault.
        says: words, each of which message, cause, remedy or evidence must contain, in any case of letters.
        module: part of the module path the finding must name.
    """

    name: str
    make: Factory
    lr: float
    optimizers: tuple[str, ...]
    precisions: tuple[str, ...]
    check: str = ""
    kinds: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    module: str = ""

    def setup(self, optimizer: str = "") -> TrainingSetup:
        """Fresh objects; seed torch before."""
        return self.make(OPTIMIZERS[optimizer or self.optimizers[0]](self.lr))


HEALTHY: dict[str, Program] = {}
SICK: dict[str, Program] = {}


def healthy(
    *,
    lr: float = 0.05,
    optimizers: Sequence[str] = ("sgd", "adam", "adamw", "rmsprop"),
    precisions: Sequence[str] = ("32-true", "bf16-true"),
) -> Callable[[Factory], Factory]:
    """Register a program that trains well with these optimizers and precisions."""

    def register(factory: Factory) -> Factory:
        assert factory.__name__ not in HEALTHY, factory.__name__
        HEALTHY[factory.__name__] = Program(factory.__name__, factory, lr, tuple(optimizers), tuple(precisions))
        return factory

    return register


def sick(
    *,
    check: str,
    kinds: Sequence[str],
    says: Sequence[str] = (),
    module: str = "",
    lr: float = 0.05,
    optimizers: Sequence[str] = ("sgd",),
    precisions: Sequence[str] = ("32-true",),
) -> Callable[[Factory], Factory]:
    """Register a program with one fault, and what must be said of it."""

    def register(factory: Factory) -> Factory:
        assert factory.__name__ not in SICK, factory.__name__
        name = factory.__name__
        SICK[name] = Program(
            name, factory, lr, tuple(optimizers), tuple(precisions), check, tuple(kinds), tuple(says), module
        )
        return factory

    return register


for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith(("healthy_", "sick_")):
        importlib.import_module(f"{__name__}.{_module.name}")
