"""What the gradient heuristics read: observed passes over the first batches, and whether the model moved at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_nanstab.checks._signal import first_pass
from pytest_nanstab.propagation.passes import Pass
from pytest_nanstab.ranks.sharding import local
from pytest_nanstab.suite.batching import copied
from pytest_nanstab.suite.precision import Arithmetic
from pytest_nanstab.suite.setup import Batch, TrainingSetup


def observed_passes(setup: TrainingSetup, form: Arithmetic, samples: Sequence[Batch]) -> list[Pass]:
    """One pass of the loss over each batch, forward and backward; model and random states are left as they were.

    A loss that cannot be repeated (it needs what only a `training_step` sets up) shows nothing.
    """
    try:
        with form.autocast():
            return [first_pass(setup.model, form.batch(copied(sample)), setup.loss) for sample in samples]
    except Exception as error:  # noqa: BLE001 - the training itself went well: what is not seen is not judged
        return [Pass(failed=f"{type(error).__name__}: {error}")]


class Start:
    """The parameters of a model before its training."""

    def __init__(self, model: nn.Module) -> None:
        parameters = {
            name: p for name, p in model.named_parameters() if not nn.parameter.is_lazy(p) and p.requires_grad
        }
        self._before = [(parameter, local(parameter).clone()) for parameter in parameters.values()]

    def unmoved(self) -> bool:
        """Whether all of them are bit for bit what they were, although some have a gradient that is not zero."""
        return any(_has_gradient(p) for p, _ in self._before) and all(
            torch.equal(local(parameter), before) for parameter, before in self._before
        )


def _has_gradient(parameter: Tensor) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return False
    gradient = local(gradient)
    return bool(torch.count_nonzero(gradient.coalesce().values() if gradient.is_sparse else gradient))
