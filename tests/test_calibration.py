"""The heuristics over whole trainings: no healthy program is accused, every sick one is named.

`benchmarks/calibration.py` runs every program with all its optimizers and precisions and prints how far each figure
stays from its threshold.
"""

from __future__ import annotations

import warnings
from itertools import count

import pytest
import torch
import zoo
from zoo.judged import gradient_verdicts, init_verdicts

from pytest_nanstab.suite.precision import InapplicableError

STEPS = 30
_number = count()


def combinations(program: zoo.Program) -> tuple[str, str]:
    """One of a program's optimizers and precisions: the next one for the next program."""
    number = next(_number)
    return (
        program.optimizers[number % len(program.optimizers)],
        program.precisions[(number // 3) % len(program.precisions)],
    )


healthy = pytest.mark.parametrize(
    ("name", "optimizer", "precision"),
    [  # every second on other versions too
        pytest.param(name, *combinations(program), marks=[pytest.mark.slow] * (number % 2))
        for number, (name, program) in enumerate(sorted(zoo.HEALTHY.items()))
    ],
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to these programs is not what is tested
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(zoo.HEALTHY))
def test_no_healthy_model_is_accused_of_its_initial_scale(name):
    """`auto` accepts what competent people write."""
    assert [finding.message for finding in init_verdicts(zoo.HEALTHY[name])] == []


@healthy
def test_no_healthy_training_is_accused(name, optimizer, precision):
    """Neither growth, decay, dead units nor saturation is found where there is none."""
    found, _, failed = verdicts(zoo.HEALTHY[name], optimizer, precision, STEPS)
    assert [finding.message for finding in found] == []
    assert failed is None


def verdicts(program, optimizer, precision, steps):
    """What a training shows; the oldest torch has no kernels for some losses in half precision."""
    try:
        return gradient_verdicts(program, optimizer, precision, steps=steps)
    except InapplicableError as error:
        pytest.skip(str(error))


def told(findings):
    """Everything a finding says, in small letters."""
    first = findings[0]
    return " ".join(map(str, (first.message, first.cause, first.remedy, first.evidence))).lower()


@pytest.mark.parametrize("name", sorted(zoo.SICK))
def test_every_sick_program_is_named(name):
    """The right kind, the layer, the user's file, and the words of the field."""
    program = zoo.SICK[name]
    if program.check == "init_scale":
        found = init_verdicts(program)
    else:
        found, _, _ = verdicts(program, program.optimizers[0], program.precisions[0], 50)
    assert found, f"{name} was not found: {program.make.__doc__}"
    assert found[0].kind in program.kinds
    assert program.module in (found[0].module or "")
    assert [word for word in program.says if word.lower() not in told(found)] == []
    assert found[0].cause
    assert found[0].remedy
    assert "/zoo/" in f"/{found[0].source}"
    assert max(map(len, found[0].message.splitlines())) <= 100
