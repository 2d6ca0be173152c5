"""Hypothesis draws small descriptions; the tensors are built from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from pytest_nanstab.batches import floats
from pytest_nanstab.batches.build import has_twins, kinds_of, realise
from pytest_nanstab.batches.layout import Plan, Sizes, plan
from pytest_nanstab.batches.recipe import FULL, LEVELS, REGIONS, Described, Description, Recipe
from pytest_nanstab.batches.spec import TensorSpec

Draw = Callable[[st.SearchStrategy[Any]], Any]
_WIDTHS = {"float16": 16, "float64": 64, "complex128": 64}  # the others fit in 32 bits
_WIDE = 256  # below it an integer range needs no levels
_SEEDS = st.integers(0, 0xFFFF)  # enough for distinct noise, few enough to shrink
_POSITIONS = st.integers(0, 0xFFFFF)
_EDIT_COUNTS = (*(0,) * 8, 1, 1, 2, 3)
_LEVELS = st.sampled_from(LEVELS)
_ALIKE = st.sampled_from((*(False,) * 7, True))
_REGIONS = st.sampled_from(REGIONS)


def described_from_spec(spec: Any, *, sizes: Sizes | None = None) -> st.SearchStrategy[Described]:
    """Like `from_spec`, but each example is a `Described`: the batch and the words for it."""
    return described(plan(spec, sizes))


def described(checked: Plan) -> st.SearchStrategy[Described]:
    """A strategy of described batches inside a checked domain."""
    drawn = _drawer(checked)

    @st.composite
    def described_batches(draw: Draw) -> Described:
        return drawn(draw)

    return described_batches()


def bare(checked: Plan) -> st.SearchStrategy[Any]:
    """Like `described`, but each example is the batch alone; cheaper than a map."""
    drawn = _drawer(checked)

    @st.composite
    def batches(draw: Draw) -> Any:
        return drawn(draw).batch

    return batches()  # without arguments, because Hypothesis prints them all with every message


def _drawer(checked: Plan) -> Callable[[Draw], Described]:
    """All strategies are made once; drawing an example only draws."""
    sizes = {name: st.integers(low, high) for name, (low, high) in checked.sizes.items()}
    recipes = [_recipe_drawer(field.spec) for field in checked.fields]
    alike = _ALIKE if has_twins(checked) else None

    def drawn(draw: Draw) -> Described:
        chosen = {name: draw(strategy) for name, strategy in sizes.items()}
        drawn_recipes = tuple(recipe(draw) for recipe in recipes)
        return realise(checked, Description(chosen, drawn_recipes, alike=alike is not None and draw(alike)))

    return drawn


def _recipe_drawer(spec: TensorSpec) -> Callable[[Draw], Recipe]:
    if spec.kind == "values":
        return _values_drawer(spec)
    kinds = st.sampled_from(kinds_of(spec))
    return lambda draw: _seeded(draw, draw(kinds))


def _seeded(draw: Draw, kind: str) -> Recipe:
    return Recipe(kind, seed=0 if kind in _UNSEEDED else draw(_SEEDS))


_UNSEEDED = frozenset({"plain", "upper", "lower", "all_ignored", "even", "certain", "longest", "shortest"})


def _values_drawer(spec: TensorSpec) -> Callable[[Draw], Recipe]:
    # Kind and number of edits are one draw: an example costs about as much as it has draws.
    kinds = st.sampled_from([(kind, edits) for kind in kinds_of(spec) for edits in _EDIT_COUNTS])
    levels, values = _levels(spec), _edit_values(spec)

    def recipe(draw: Draw) -> Recipe:
        """The plain kind has the shortest draw: shrinking tries it first, and keeps it together with an edit."""
        kind, count = draw(kinds)
        drawn: dict[str, Any] = {}
        if kind != "plain":
            drawn = {"region": draw(_REGIONS), "level": FULL if levels is None else draw(levels)}
            drawn["seed"] = 0 if kind in floats.NOISELESS | _UNSEEDED else draw(_SEEDS)
        edits = tuple((draw(_POSITIONS), draw(values)) for _ in range(count))
        return Recipe(kind, edits=edits, **drawn)

    return recipe


def _levels(spec: TensorSpec) -> st.SearchStrategy[float] | None:
    """The levels that differ from the full range inside this field's bounds; None when there is only the full range."""
    low, high = spec.float_bounds() if spec.family in ("float", "complex") else spec.int_bounds()
    if spec.family in ("int", "bool") and high - low < _WIDE:
        return None
    reach = max(abs(low), abs(high))
    levels = [level for level in LEVELS if level < reach or level == FULL]
    return None if levels[0] == FULL else st.sampled_from(levels)


def _edit_values(spec: TensorSpec) -> st.SearchStrategy[float]:
    if spec.family in ("int", "bool"):
        ints = st.integers(*spec.int_bounds())
        return ints if spec.ignore_index is None else ints | st.just(spec.ignore_index)
    low, high = spec.float_bounds()
    width = _WIDTHS.get(spec.dtype, 32)
    values = st.floats(
        low,
        high,
        allow_nan=False,
        allow_infinity=False,
        allow_subnormal=None if spec.allow_subnormal else False,
        width=width,  # type: ignore[arg-type]
    )
    odd = ["nan"] * spec.allow_nan + ["inf", "-inf"] * spec.allow_infinity
    return values | st.sampled_from(odd).map(float) if odd else values
