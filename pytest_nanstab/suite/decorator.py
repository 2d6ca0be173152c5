"""`@stability_suite`: one factory of a `TrainingSetup`, a family of test items."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_nanstab.checks._scheme_names import NAMES, name_of
from pytest_nanstab.config import check_limits, maybe
from pytest_nanstab.suite.spec import CHECKS, PRECISIONS, SPEC_ATTRIBUTE, Check, Choice, Precision, SuiteSpec

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet  # what pytest.param returns; pytest has no public name for it
    from typing_extensions import Unpack

    from pytest_nanstab.config import Limits

F = TypeVar("F", bound=Callable[..., Any])
_USE = "use it with parentheses: @stability_suite() or @stability_suite(steps=50)"
_ARGUMENTS = ("steps", "precision", "checks", "init_scale", "seed", "seeds", "baseline")
_OWNERS = {"min_headroom_bits": "headroom"}  # every other limit is judged by gradient_bounds


def stability_suite(
    function: None = None,
    /,
    *,
    steps: int = 20,
    precision: Precision | Sequence[Precision | ParameterSet] = ("32-true",),
    checks: Check | Sequence[Check | ParameterSet] | None = None,
    init_scale: str | Mapping[str, str] = "auto",
    seed: int = 0,
    seeds: int = 1,
    baseline: bool = False,
    **limits: Unpack[Limits],
) -> Callable[[F], F]:
    """Expand a factory `def test_model(any fixtures) -> TrainingSetup` into one test item per check and precision.

    The factory is called anew for every precision and seed, after seeding; items that read the same training share
    it, so what the factory returns must outlive function-scoped fixtures of the item.

    Args:
        function: never given; it catches `@stability_suite` without parentheses.
        steps: training steps, 1 or more.
        precision: "64-true", "32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"; one, several, or
            `pytest.param("16-true", marks=...)`, whose marks go to every item of that precision.
        checks: "init_scale", "finite_data", "finite_steps", "finite_eval", "gradient_bounds", "adversarial_batches",
            "headroom"; one, several or `pytest.param`. None: all; those that do not apply are skipped with the reason.
        init_scale: the scheme or the mapping of schemes for `assert_init_scale`.
        seed: the first seed, 0 or more.
        seeds: how many seeds each item runs, from `seed` on; one failing seed fails the item.
        baseline: add an item per precision that compares losses, gradient norms and headroom of the first seed with
            those that `pytest --nanstab-update` recorded; it fails where nothing is recorded.
        **limits: max_loss, max_grad_norm, min_grad_norm, max_update_ratio (judged by gradient_bounds) and
            min_headroom_bits (judged by headroom); None removes an inherited one.

    Raises:
        TypeError: an argument of the wrong type or an unknown limit.
        ValueError: a value that is not allowed, or a limit whose check is left out.
    """
    if function is not None:
        raise TypeError(f"stability_suite takes keyword arguments only, got {function!r}; {_USE}")
    if not isinstance(baseline, bool):
        raise TypeError(f"baseline must be True or False, got {baseline!r}")
    spec = SuiteSpec(
        steps=_whole("steps", steps, lowest=1),
        precision=_choices("precision", precision, PRECISIONS),
        checks=_choices("checks", CHECKS if checks is None else checks, CHECKS),
        init_scale=_scheme(init_scale),
        seed=_whole("seed", seed, lowest=0),
        seeds=_whole("seeds", seeds, lowest=1),
        baseline=baseline,
        limits=MappingProxyType(check_limits(limits, besides=_ARGUMENTS)),
    )
    _check_owners(spec)
    return lambda factory: _mark(factory, spec)


def _mark(factory: F, spec: SuiteSpec) -> F:
    if not inspect.isroutine(factory):
        raise TypeError(f"stability_suite decorates a test function that returns a TrainingSetup, got {factory!r}")
    if inspect.iscoroutinefunction(factory) or inspect.isgeneratorfunction(factory):
        raise TypeError(f"stability_suite needs a plain function that returns a TrainingSetup, got {factory!r}")
    if SPEC_ATTRIBUTE in vars(factory):
        raise ValueError(f"{factory.__name__} has two stability_suite decorators; give one all the arguments")
    setattr(factory, SPEC_ATTRIBUTE, spec)
    return pytest.mark.nanstab(factory)


def _whole(name: str, value: object, *, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < lowest:
        raise ValueError(f"{name} must be {lowest} or more, got {value!r}")
    return value


def _scheme(value: object) -> str | Mapping[str, str]:
    if isinstance(value, str):
        return _named(value)
    if isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair):
        return MappingProxyType({pattern: _named(text) for pattern, text in value.items()})
    raise TypeError(f"init_scale must be a scheme's name or a mapping of module patterns to names, got {value!r}")


def _named(scheme: str) -> str:
    if name_of(scheme) not in ("auto", *NAMES):
        raise ValueError(f"init_scale: {scheme!r} is not 'auto' or one of {', '.join(NAMES)}{maybe(scheme, NAMES)}")
    return scheme


def _choices(name: str, given: object, allowed: Sequence[str]) -> tuple[Choice, ...]:
    """`given` as choices, in the order of `allowed` for the checks and in the user's order for precisions."""
    entries = _entries(name, given)
    choices = [_choice(name, entry, allowed) for entry in entries]
    if not choices:
        raise ValueError(f"{name} must name at least one of {', '.join(allowed)}, got {given!r}")
    values = [choice.value for choice in choices]
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{name} names {twice[0]!r} twice")
    if name == "checks":
        choices.sort(key=lambda choice: allowed.index(choice.value))
    return tuple(choices)


def _entries(name: str, given: object) -> list[object]:
    if isinstance(given, str) or _is_param(given):
        return [given]
    if isinstance(given, Iterable) and not isinstance(given, (Mapping, bytes)):
        return list(given)
    raise TypeError(f"{name} must be a string or a sequence of strings and pytest.param, got {given!r}")


def _choice(name: str, entry: object, allowed: Sequence[str]) -> Choice:
    marks: tuple[Any, ...] = ()
    if _is_param(entry):
        param: Any = entry  # a named tuple of a private type
        if param.id is not None or len(param.values) != 1:
            raise ValueError(f"{name}: pytest.param takes one value and marks here, got {entry!r}")
        entry, marks = param.values[0], tuple(param.marks)
    if not isinstance(entry, str):
        raise TypeError(f"{name} must hold strings or pytest.param, got {entry!r}")
    if entry not in allowed:
        raise ValueError(f"{name}: {entry!r} is not one of {', '.join(allowed)}{maybe(entry, allowed)}")
    return Choice(entry, marks)


def _is_param(value: object) -> bool:
    return isinstance(value, type(pytest.param("x")))


def _check_owners(spec: SuiteSpec) -> None:
    """A stated limit that no item of the suite would judge is a trap."""
    chosen = {choice.value for choice in spec.checks}
    for name, value in spec.limits.items():
        owner = _OWNERS.get(name, "gradient_bounds")
        if value is not None and owner not in chosen:
            raise ValueError(f"{name} is judged by the check {owner!r}, which checks leaves out; add it or drop {name}")


__all__ = ["stability_suite"]
