"""The parts of runs of several processes, each by itself: exchange, merging, fingerprints, drift, places."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from torch import nn

from pytest_nanstab.findings import Finding
from pytest_nanstab.ranks import group as groups
from pytest_nanstab.ranks import place
from pytest_nanstab.ranks.drift import Parameters, drifted
from pytest_nanstab.ranks.group import Group
from pytest_nanstab.ranks.merging import merged
from pytest_nanstab.ranks.prints import are_equal, fingerprint
from pytest_nanstab.watching import torch_private

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="no process groups here")


@pytest.fixture
def group():
    """Rank 0 of three, and a way for the others to speak: every round has a label of its own."""
    return Group(0, 3, torch.distributed.HashStore())


def say(group, label, rank, text, round_=1):
    group._store.set(f"pytest_nanstab/{label}/{round_}/{rank}", text)


# -- exchange ----------------------------------------------------------------------------------------------------------


def test_everybody_answers(group):
    """What each rank says arrives, in order of ranks."""
    say(group, "all", 2, '{"found": 2}')
    say(group, "all", 1, '{"found": 1}')
    assert group.gather("all", {"found": 0}) == {0: {"found": 0}, 1: {"found": 1}, 2: {"found": 2}}
    assert group.silent == set()


def test_an_answer_that_comes_later_is_waited_for(group):
    """A rank may reach the end of a test after this one."""
    say(group, "later", 1, "{}")
    speaker = threading.Timer(0.05, say, (group, "later", 2, '{"late": true}'))
    speaker.start()
    assert group.gather("later", {})[2] == {"late": True}
    speaker.join()


def test_a_silent_rank_is_missing_and_waited_for_less_the_next_time(group):
    """Its silence is told, and does not hold up every test after it."""
    say(group, "silent", 1, "{}")
    assert set(group.gather("silent", {}, patience=0.02)) == {0, 1}
    assert group.silent == {2}
    say(group, "again", 1, "{}")
    began = time.monotonic()
    group.gather("again", {})
    assert group.silent == {2}
    assert time.monotonic() - began < groups.PATIENCE_S / 2


def test_a_rank_that_passes_by_is_not_waited_for(group):
    """It has skipped the test."""
    say(group, "skipped", 1, '{"absent": true}')
    say(group, "skipped", 2, "{}")
    assert set(group.gather("skipped", {})) == {0, 2}
    assert group.silent == set()


def test_a_rank_without_the_test_is_not_waited_for(group, monkeypatch):
    """It has told which tests it has; one that has not, or has this one, may still come."""
    monkeypatch.setattr(place, "COLLECTED", ["test_a.py::test_here", "test_a.py::test_other"])
    group._store.set("pytest_nanstab/tests/1", '["test_a.py::test_other"]')
    group._store.set("pytest_nanstab/tests/2", '["test_a.py::test_here"]')
    speaker = threading.Timer(0.8, say, (group, "test_a.py::test_here 0", 2, "{}"))
    speaker.start()
    assert set(group.gather("test_a.py::test_here 0", {})) == {0, 2}
    speaker.join()
    assert group.silent == set()


def test_rounds_of_a_label_are_apart(group):
    """What was said in an earlier round is no answer to a later one, also after a group was formed anew."""
    for round_ in (1, 2):
        for rank in (1, 2):
            say(group, "rounds", rank, f'{{"round": {round_}}}', round_)
    assert group.gather("rounds", {})[1] == {"round": 1}
    later = Group(0, 3, group._store)
    assert later.gather("rounds", {})[1] == {"round": 2}


def test_what_was_said_is_taken_away(group):
    """A store does not grow with the number of tests."""
    for label in ("one", "two", "three"):
        say(group, label, 1, "{}")
        say(group, label, 2, "{}")
        group.gather(label, {})
    assert not group._store.check(["pytest_nanstab/one/1/0"])
    assert group._store.check(["pytest_nanstab/three/1/0"])


def test_all_must_be_ready(group):
    """A rerun takes all ranks, and one that comes too late finds that the others have given up."""
    for rank in (1, 2):
        say(group, "ready", rank, '{"ready": true}')
    assert group.agree("ready", ready=True)
    say(group, "not ready", 1, '{"ready": false}')
    say(group, "not ready", 2, '{"ready": true}')
    assert not group.agree("not ready", ready=True)
    assert group._store.get("pytest_nanstab/not ready/1/0") == b'{"ready": false}'


def test_a_store_that_is_gone_ends_nothing():
    """The process that kept it may have ended."""

    class Gone:
        def set(self, *_):
            raise RuntimeError("connection reset")

    group = Group(1, 2, Gone())
    assert group.gather("gone", {"mine": 1}) == {1: {"mine": 1}}
    assert group.silent == {0}
    group.pass_by("gone")


def test_a_pretended_group_is_none(tmp_path):
    """Nobody would answer behind the backend "fake", and there is nobody to ask in a group of one."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=fake.FakeStore())
    try:
        assert groups.current() is None
    finally:
        torch.distributed.destroy_process_group()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        assert groups.current() is None
        assert torch_private.group_store() is not None
    finally:
        torch.distributed.destroy_process_group()


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch):
    """No launcher, no group met."""
    monkeypatch.setattr(place, "_seen", [])
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_reports(nowhere):
    """Also one with a number that a cluster has left in its environment."""
    nowhere.setenv("RANK", "3")
    assert place.is_first()
    assert not place.is_one_of_several()
    nowhere.setenv("WORLD_SIZE", "many")
    assert place.is_first()


def test_of_several_the_first_reports(nowhere):
    """By the launcher's word before a group is met, by the group's then."""
    nowhere.setenv("RANK", "1")
    nowhere.setenv("WORLD_SIZE", "2")
    assert place.is_first()  # two jobs that know nothing of each other
    nowhere.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not place.is_first()
    place.met(0, 2)
    assert place.is_first()
    place.met(1, 2)
    assert not place.is_first()


def test_the_command_is_the_launchers(nowhere):
    """What runs a test again."""
    assert place.command('pytest "a.py"') == 'pytest "a.py"'
    nowhere.setenv("WORLD_SIZE", "4")
    nowhere.setenv("LOCAL_WORLD_SIZE", "2")
    nowhere.setenv("TORCHELASTIC_RUN_ID", "none")
    assert place.command('pytest "a.py"') == 'torchrun --nproc-per-node=2 -m pytest "a.py"'


# -- merging -----------------------------------------------------------------------------------------------------------


def finding(kind="nonfinite-loss", step=3, phase="forward", **more):
    return Finding(kind=kind, message=more.pop("message", "NaN"), step=step, phase=phase, **more)


def test_the_earliest_is_the_root():
    """Averaging has carried one rank's NaN to the gradients of the other."""
    root, consequence = finding(), finding("nonfinite-gradient", phase="backward")
    (told,) = merged({0: [consequence], 1: [root]}, 2)
    assert told.message == "rank 1: NaN"
    assert told.evidence["rank"] == "1 of 2"


def test_what_all_have_found_is_one_finding():
    """Without a rank in front."""
    (told,) = merged({0: [finding()], 1: [finding()]}, 2)
    assert (told.message, told.evidence["rank"]) == ("NaN", "all 2")
    (told,) = merged({0: [finding()], 1: [finding()], 2: []}, 3)
    assert (told.message, told.evidence["rank"]) == ("ranks 0, 1: NaN", "0, 1 of 3")


def test_what_is_finite_stays_beside_it():
    """Other faults of other ranks are no consequence."""
    clip = finding("ineffective-clip", message="no effect")
    assert [told.kind for told in merged({0: [clip], 1: [finding()]}, 2)] == ["nonfinite-loss", "ineffective-clip"]


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_equal_numbers_have_equal_prints():
    """And one number among many shows."""
    torch.manual_seed(0)
    tensor = torch.randn(1000)
    other = tensor.clone()
    prints = [fingerprint(tensor), fingerprint(other)]
    assert are_equal(prints, elements=1000, eps=1.2e-7)
    other[17] += 1e-3
    assert not are_equal([prints[0], fingerprint(other)], elements=1000, eps=1.2e-7)


def test_the_order_of_summation_is_no_difference():
    """Other threads, another order: last bits."""
    torch.manual_seed(0)
    tensor = torch.randn(100_000)
    total, size = fingerprint(tensor)
    exact = math.fsum(tensor.tolist())
    assert are_equal([(total, size), (exact, size)], elements=100_000, eps=1.2e-7)


@pytest.mark.parametrize("tensor", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.tensor([1])])
def test_nothing_to_compare(tensor):
    """What is not finite is told otherwise."""
    assert fingerprint(tensor) is None


# -- drift -------------------------------------------------------------------------------------------------------------


def prints_of(model, *, gradients, other=None, steps=2, scale=1.0):
    """What one rank knows of a model after `steps` looks; `gradients` is the seed of what it has seen."""
    known = Parameters()
    torch.manual_seed(gradients)
    for step in range(steps):
        for number, parameter in enumerate(model.parameters()):
            own = other is not None and number == other
            parameter.grad = torch.randn_like(parameter) + (gradients + step if own else 0)
        known.stepping(list(model.parameters()), lambda p: _name(model, p))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    known.finish()
    return known


def _name(model, parameter):
    return next(name for name, p in model.named_parameters() if p is parameter)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def judge(*ranks):
    found = drifted({rank: known.details() for rank, known in enumerate(ranks)}, step=2, source=None)
    return None if found is None else (found.module, found.cause)


def test_equal_ranks_are_left_alone():
    """Same numbers, same gradients."""
    first, second = prints_of(net(), gradients=1), prints_of(net(), gradients=1)
    assert first.digest() == second.digest()
    assert judge(first, second) is None


def test_ranks_that_part():
    """Same gradients at first, other numbers at the end."""
    first, second = prints_of(net(), gradients=1), prints_of(net(), gradients=1, scale=1.001)
    assert first.digest() != second.digest()
    assert judge(first, second)[0] == "weight"


def test_models_of_their_own():
    """Neither the same gradients nor the same start: every rank trains for itself."""
    assert judge(prints_of(net(0), gradients=1), prints_of(net(1), gradients=2)) is None
    assert judge(prints_of(net(0), gradients=1), prints_of(net(0), gradients=2, scale=1.1)) is None


def test_constant_gradients_prove_nothing():
    """Those of a linear loss are equal on ranks that know nothing of each other."""

    def known(seed):
        model, seen = net(seed), Parameters()
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            seen.stepping(list(model.parameters()), lambda p: _name(model, p))
        seen.finish()
        return seen

    assert judge(known(0), known(1)) is None


def test_a_parameter_that_is_gone_is_not_judged():
    """Another tensor may have its identity by now."""
    known = Parameters()
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    known.stepping(list(model.parameters()), lambda _: "weight")
    del model, parameter
    known.finish()
    assert all(seen["ended"] is None for seen in known.details().values())


def test_names_that_come_twice_are_told_apart():
    """Two models with parts of the same names."""
    known = Parameters()
    for model in (net(0), net(1)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        known.stepping(list(model.parameters()), lambda p, model=model: _name(model, p))
    assert set(known.details()) == {"weight", "bias", "weight #2", "bias #2"}
