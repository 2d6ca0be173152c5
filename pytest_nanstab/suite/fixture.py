"""The `nanstab` fixture. Imports torch only when it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from pytest_nanstab.config import Limit, limits_from_call

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn
    from typing_extensions import Unpack

    from pytest_nanstab.baselines.items import ItemBaselines
    from pytest_nanstab.config import Limits
    from pytest_nanstab.findings import Finding
    from pytest_nanstab.suite.setup import TrainingSetup
    from pytest_nanstab.suite.spec import Precision
    from pytest_nanstab.watching.run import Run


class Nanstab:
    """Trains, watches and searches under the limits of the test that asked for it.

    Attributes:
        limits: the limits in force from marker and ini; a call's own go on top.
        notes: what searches have seen beside what they found; `-v` and the JSON report show it.
    """

    def __init__(
        self,
        *,
        limits: Mapping[str, Limit] | None = None,
        device: str = "cpu",
        again: str = "",
        baselines: ItemBaselines | None = None,
    ) -> None:
        self.limits = dict(limits or {})
        self.notes: list[str] = []
        self._device = device
        self._again = again
        self._baselines = baselines
        self._trained: list[tuple[Run, str, int]] = []

    def __repr__(self) -> str:
        bounds = ", ".join(f"{name}={limit.value:g}" for name, limit in self.limits.items())
        return f"<nanstab{': ' if bounds else ''}{bounds}>"

    def train(
        self,
        setup: TrainingSetup,
        *,
        steps: int = 20,
        precision: Precision = "32-true",
        seed: int = 0,
        **limits: Unpack[Limits],
    ) -> Run:
        """Train the given objects in place, every step watched.

        Args:
            setup: what to train.
            steps: optimizer steps, 1 or more.
            precision: "64-true", "32-true", "bf16-true", "16-true", "bf16-mixed" or "16-mixed". Skips the test when
                the model cannot run in it.
            seed: for torch, numpy and random; their states are put back afterwards.
            **limits: `max_loss`, `max_grad_norm`, `min_grad_norm`, `max_update_ratio`, `min_headroom_bits`; they go on
                top of those of marker and configuration, and None removes one.

        Raises:
            NonFiniteError: at the step where a NaN or infinity reached a sink.
            StabilityError: a limit was broken.
            TypeError, ValueError: wrong arguments.
        """
        __tracebackhide__ = True
        from pytest_nanstab.suite.driver import train
        from pytest_nanstab.suite.precision import InapplicableError

        merged = limits_from_call(limits, self.limits, besides=("steps", "precision", "seed"))
        _whole_seed(seed)
        context = {"again": self._again} if self._again else None
        try:
            run = train(
                setup,
                steps=steps,
                precision=precision,
                seed=seed,
                limits=merged,
                device=self._device,
                context=context,
            )
        except InapplicableError as error:
            pytest.skip(str(error))
        self._trained.append((run, precision, seed))
        return run

    def watch(
        self,
        model: nn.Module | None = None,
        *,
        name: str = "watch",
        on_instability: Literal["raise", "record"] = "raise",
        **limits: Unpack[Limits],
    ) -> AbstractContextManager[Run]:
        """Like `pytest_nanstab.watch`, with the test's own limits."""
        from pytest_nanstab.watching.api import ARGUMENTS, start_watch

        return start_watch(model, name, on_instability, limits_from_call(limits, self.limits, besides=ARGUMENTS))

    def search(self, setup: TrainingSetup, *, seconds: float = 10.0, evaluations: int | None = None) -> Finding | None:
        """Look for a legal batch that makes a NaN or infinity; the first finding, or None.

        Batches come from the setup's `domain`, or from what its first batches prove legal. They are tried, with one
        training step each, on the fresh model, on the model after 40 typical steps, on weights scaled 2 to 32 times,
        moved along the gradient of an operation's distance to its edge, and set to zero tensor by tensor;
        `evidence["grade"]` says which. Beyond what training reaches, numbers that only grow too large are no find.
        Model, optimizer and random states are put back exactly. How near which operation came to its edge is noted.

        Args:
            setup: the training to search.
            seconds: how long to search, above 0.
            evaluations: how many training steps and looks at gradients at most; None leaves it to `seconds`, until
                which other batches are tried, round after round.

        Raises:
            RuntimeError: in a process group of several ranks, each of which would go its own way.
        """
        __tracebackhide__ = True
        from pytest_nanstab.ranks.group import current
        from pytest_nanstab.search.hunts import search
        from pytest_nanstab.suite.driver import check_arguments
        from pytest_nanstab.suite.precision import InapplicableError

        check_arguments(setup, 1, "32-true")
        _check_budget(seconds, evaluations)
        if current() is not None:
            raise RuntimeError(
                "search() follows what one process sees, and the ranks of a process group would wait for each other in "
                "different batches; search the model without one"
            )
        try:
            found, notes = search(setup, seconds=float(seconds), evaluations=evaluations, device=self._device)
        except InapplicableError as error:
            pytest.skip(str(error))
        self.notes += notes
        return found

    def check_baseline(self, run: Run, *, name: str | None = None) -> None:
        """Compare a run with its baseline; `pytest --nanstab-update` records it instead.

        Losses, raw gradient norms, headroom and initial scales are compared in bits: they may move by 0.25 bit, or by
        0.5 in a precision of `train` with 16 bits. Baselines are kept by test, device kind and precision; runs of the
        test's own loops are kept under "own-loop". Seed what is random before the model and the batches are made.

        Args:
            run: what `train` returned, or a finished `watch`.
            name: tells several runs of one test apart.

        Raises:
            NonFiniteError: the run holds a value that is not finite; such a run is never recorded.
            StabilityError: there is no baseline, or the run moved too far from it; the finding says what moved most.
            TypeError, ValueError: wrong arguments, or two runs of one name.
        """
        __tracebackhide__ = True
        from pytest_nanstab.attribution.source import user_line
        from pytest_nanstab.findings import error_from
        from pytest_nanstab.watching.run import Run

        if not isinstance(run, Run):
            raise TypeError(f"run must be a Run, as nanstab.train returns it, got {run!r}")
        _check_name(name)
        if self._baselines is None:
            raise RuntimeError("check_baseline needs the test that asked for the fixture nanstab")
        precision, seed = next((known[1:] for known in self._trained if known[0] is run), (None, None))
        device = self._device.partition(":")[0]
        found, _ = self._baselines.check(run, device=device, precision=precision, name=name, seed=seed)
        if found is not None:
            known = {"precision": precision, "device": device, "seed": seed, "again": self._again}
            context = {key: value for key, value in known.items() if value not in (None, "")}
            raise error_from(
                [replace(found, source=found.source or user_line(), evidence={**context, **found.evidence})]
            )


def _check_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str or None, got {name!r}")
    if name is not None and (not name.strip() or not name.isprintable()):
        raise ValueError(f"name must be printable and not empty, got {name!r}")


def _whole_seed(seed: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed!r}")


def _check_budget(seconds: object, evaluations: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, got {seconds!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a finite number above 0, got {seconds!r}")
    if evaluations is None:
        return
    if isinstance(evaluations, bool) or not isinstance(evaluations, int):
        raise TypeError(f"evaluations must be a whole number or None, got {evaluations!r}")
    if evaluations < 1:
        raise ValueError(f"evaluations must be 1 or more, got {evaluations!r}")
