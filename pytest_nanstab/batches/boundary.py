"""The most telling legal batches of a domain, without Hypothesis: a short, fixed list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pytest_nanstab.batches.build import has_twins, kinds_of, realise
from pytest_nanstab.batches.layout import Plan, Sizes, plan
from pytest_nanstab.batches.recipe import FULL, Described, Description, Recipe
from pytest_nanstab.batches.spec import TensorSpec

_LARGE = 16  # rows and positions are not made longer than this for the list: it has to stay cheap
_LARGEST = 256  # but once


class Theme(NamedTuple):
    """What one batch of the list is about; a field without the kind named here takes its ordinary one."""

    floats: str = "uniform"
    ints: str = "uniform"
    mask: str = "most"
    lengths: str = "longest"
    probabilities: str = "mixed"
    level: float = 1.0
    smallest: bool = False
    largest: bool = False
    alike: bool = False


_THEMES = (
    Theme(),
    Theme(floats="plain", ints="plain", probabilities="even", level=FULL),
    Theme(floats="upper", ints="upper", probabilities="certain", level=FULL),
    Theme(floats="lower", ints="lower", probabilities="certain_random", level=FULL),
    Theme(floats="corners", ints="both_ends", probabilities="spiky", level=FULL),
    Theme(floats="sparse_corners", level=FULL),
    Theme(floats="one_nonzero", level=FULL),
    Theme(floats="alternating", level=FULL),
    Theme(floats="uniform", level=FULL, probabilities="almost_certain"),
    Theme(floats="log_uniform", level=FULL),
    Theme(floats="constant_column"),
    Theme(floats="equal_rows", ints="equal_rows"),
    Theme(floats="zero_rows"),
    Theme(floats="pairs"),
    Theme(alike=True),
    Theme(floats="outlier", level=FULL),
    Theme(floats="offset", level=FULL),
    Theme(floats="near_ends", level=FULL),
    Theme(floats="tiny"),
    Theme(floats="nonfinite"),
    Theme(ints="one_class"),
    Theme(ints="all_ignored"),
    Theme(ints="one_not_ignored"),
    Theme(mask="fewest"),
    Theme(mask="one_row_fewest"),
    Theme(mask="one"),
    Theme(lengths="shortest"),
    Theme(lengths="one_shortest", mask="random"),
    Theme(smallest=True),
    Theme(largest=True),
    Theme(floats="plain", ints="plain", smallest=True, mask="fewest", lengths="shortest"),
    Theme(floats="corners", level=FULL, smallest=True),
)


def boundary_batches(spec: Any, sizes: Sizes | None = None, *, seed: int = 0) -> Iterator[Described]:
    """A dozen or two legal batches at the edges of the domain, ordinary ones first; none twice.

    Args:
        spec: pytree of TensorSpec.
        sizes: ranges of the named sizes, as for `from_spec`.
        seed: of the noise; the same seed gives the same bits.

    Raises:
        TypeError, ValueError: as for `from_spec`.
    """
    return _batches(plan(spec, sizes), seed)


def _batches(checked: Plan, seed: int) -> Iterator[Described]:
    done: list[Description] = []
    for theme in _THEMES:
        description = _description(checked, theme, seed)
        if description not in done:
            done.append(description)
            yield realise(checked, description)


def _description(checked: Plan, theme: Theme, seed: int) -> Description:
    most = _LARGEST if theme.largest else _LARGE
    sizes = {name: low if theme.smallest else min(high, max(low, most)) for name, (low, high) in checked.sizes.items()}
    recipes = (_recipe(field.spec, theme, seed + index) for index, field in enumerate(checked.fields))
    return Description(sizes, tuple(recipes), alike=theme.alike and has_twins(checked))


def _recipe(spec: TensorSpec, theme: Theme, seed: int) -> Recipe:
    wanted, ordinary = _wanted(spec, theme), _wanted(spec, _THEMES[0])
    kind = wanted if wanted in kinds_of(spec) else ordinary
    # A theme that does not fit falls back to exactly the ordinary recipe, so that equal batches are recognised.
    level = theme.level if wanted == kind and spec.kind == "values" and spec.family != "int" else 1.0
    return Recipe(kind, seed=seed, level=FULL if spec.family in ("int", "bool") else level)


def _wanted(spec: TensorSpec, theme: Theme) -> str:
    if spec.kind == "values" and spec.family in ("float", "complex"):
        return theme.floats
    if spec.kind in ("values", "one_hot"):
        return theme.ints
    return {"mask": theme.mask, "lengths": theme.lengths, "probabilities": theme.probabilities}[spec.kind]
