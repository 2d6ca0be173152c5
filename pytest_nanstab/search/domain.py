"""What legal batches of a setup look like: as declared, or as far as the samples prove it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pytest_nanstab.batches import trees
from pytest_nanstab.batches.boundary import boundary_batches
from pytest_nanstab.batches.infer import infer_spec
from pytest_nanstab.batches.layout import with_dtype
from pytest_nanstab.batches.recipe import Described
from pytest_nanstab.suite.precision import Arithmetic, InapplicableError
from pytest_nanstab.suite.setup import Batch, TrainingSetup

NOTHING = "adversarial batches do not apply"
_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Domain:
    """What legal batches look like, and whether the user said so or the samples did."""

    spec: Any
    sizes: Mapping[str, tuple[int, int]] | None
    is_declared: bool

    def boundary(self, seed: int) -> Iterator[Described]:
        """The short list of batches at the edges."""
        return boundary_batches(self.spec, self.sizes, seed=seed)


def domain_of(setup: TrainingSetup, samples: Sequence[Batch], form: Arithmetic) -> Domain:
    """The declared domain, or what the samples prove legal; float fields in the run's own dtype.

    Raises:
        InapplicableError: no domain is declared and the samples hold no float or int tensor to vary.
    """
    half = None if form.cast is None else _HALVES.get(form.cast)
    if setup.domain is not None:
        spec, sizes, is_declared = setup.domain, setup.sizes, True
    else:
        if not any(_can_vary(leaf) for batch in samples for _, leaf in trees.leaves(batch)):
            raise InapplicableError(f"{NOTHING}: the batches hold no float or int tensor, and no domain is declared")
        spec, sizes, is_declared = _inferred(samples)
    return Domain(spec if half is None else with_dtype(spec, half), sizes, is_declared)


def _can_vary(leaf: object) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "fiuc"
    return isinstance(leaf, torch.Tensor) and leaf.dtype is not torch.bool


def _inferred(samples: Sequence[Batch]) -> tuple[Any, Mapping[str, tuple[int, int]], bool]:
    try:
        inferred = infer_spec(*samples)
    except (TypeError, ValueError) as error:
        raise InapplicableError(
            f"the batches tell no domain ({error}); declare one in TrainingSetup(domain=...)"
        ) from error
    return inferred.spec, inferred.sizes, False


def drawn_batches(domain: Domain, *, seed: int, count: int) -> Iterator[Described]:
    """Batches that Hypothesis draws, without shrinking and without its database; the same seed gives the same ones."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as with_seed

    from pytest_nanstab.batches.drawing import described_from_spec

    drawn: list[Described] = []

    @with_seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        derandomize=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(described_from_spec(domain.spec, sizes=domain.sizes))
    def collect(described: Described) -> None:
        drawn.append(described)

    collect()
    return iter(drawn)
