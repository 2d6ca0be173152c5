"""pytest-xdist: items that share a training stay together, a worker that dies takes nothing along."""

from __future__ import annotations

import json
import random

import pytest
from plugin_runs import TRAINING, again, run_outside

pytest.importorskip("xdist")
from xdist.remote import Producer
from xdist.scheduler import LoadGroupScheduling, LoadScheduling, WorkStealingScheduling

from pytest_nanstab import spreading
from pytest_nanstab.spreading import groups_of

TRAINED = ["finite_steps", "finite_eval", "gradient_bounds", "headroom"]
SUITE = [f"a.py::test_gpt[{check}]" for check in ("init_scale", "finite_data")] + [
    f"a.py::test_gpt[{check}-{precision}]"
    for precision in ("32-true", "bf16-mixed")
    for check in (*TRAINED, "baseline")
]
CLASSES = [f"b.py::TestNets::test_net[{check}-64-true-{width}]" for width in ("4", "8") for check in TRAINED]
PLAIN_IDS = [f"a.py::test_plain[{number}]" for number in range(30)] + ["a.py::test_headroom", "a.py::test_x[32-true]"]
THEIRS = {"load": LoadScheduling, "worksteal": WorkStealingScheduling, "loadgroup": LoadGroupScheduling}


# --- which items belong together


def test_groups():
    """By function, the user's parameters and precision; what reads no training goes with the first precision."""
    found = groups_of([*PLAIN_IDS[:1], *SUITE, *CLASSES, *PLAIN_IDS])
    assert set(found) == {*SUITE, *CLASSES}
    assert {found[node_id] for node_id in SUITE[:7]} == {"a.py::test_gpt[*] 32-true"}
    assert {found[node_id] for node_id in SUITE[7:]} == {"a.py::test_gpt[*] bf16-mixed"}
    assert {found[node_id] for node_id in CLASSES[:4]} == {"b.py::TestNets::test_net[*-4] 64-true"}
    assert {found[node_id] for node_id in CLASSES[4:]} == {"b.py::TestNets::test_net[*-8] 64-true"}
    assert groups_of(PLAIN_IDS) == {}
    assert groups_of(["a.py::test_gpt[init_scale]"]) == {"a.py::test_gpt[init_scale]": "a.py::test_gpt[*] None"}


# --- the schedulers alone, with workers that only take notes


class Worker:
    """Stands in for xdist's controller of a worker."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = self
        self.id = name
        self.sent: list[int] = []
        self.stolen: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def send_steal(self, indices: list[int]) -> None:
        self.stolen += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def spread(config: pytest.Config, chosen: type, ids: list[str], *, seed: int) -> list[list[str]]:
    """Run all tests with two workers, the next to finish drawn by lot; returns what each has run, in order."""
    schedule, draw = chosen(config, Producer("test", enabled=False)), random.Random(seed)
    workers = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        schedule.add_node(worker)
        schedule.add_node_collection(worker, ids)
    schedule.schedule()
    done: dict[Worker, list[int]] = {worker: [] for worker in workers}
    while waiting := [worker for worker in workers if len(done[worker]) < len(worker.sent)]:
        worker = draw.choice(waiting)
        index = worker.sent[len(done[worker])]
        done[worker].append(index)
        schedule.mark_test_complete(worker, index, draw.choice([0.0, 1.0]))
        for victim in workers:
            taken, victim.stolen = victim.stolen, []
            if taken:
                victim.sent = [index for index in victim.sent if index not in taken]
                schedule.remove_pending_tests_from_node(victim, taken)
    assert sorted(index for indices in done.values() for index in indices) == list(range(len(ids)))
    return [[ids[index] for index in indices] for indices in done.values()]


def divided(runs: list[list[str]], ids: list[str]) -> set[str]:
    """The groups that more than one worker has run."""
    found = groups_of(ids)
    return set.intersection(*({found[node_id] for node_id in run if node_id in found} for run in runs))


@pytest.fixture
def config_of(pytester):
    def parsed(dist: str, *more: str) -> pytest.Config:
        return pytester.parseconfigure("-p", "no:randomly", "--tx", "2*popen", "--dist", dist, *more)

    return parsed


def shuffled(ids: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(ids, len(ids)) if seed else list(ids)


@pytest.mark.parametrize("dist", ["load", "loadgroup"])
def test_no_training_is_divided(config_of, dist):
    """In the order of the files and in any other; xdist's own scheduler, on the same tests, divides some."""
    config, ids = config_of(dist), PLAIN_IDS[:9] + SUITE + PLAIN_IDS[9:] + CLASSES
    ours = type(spreading.scheduler_for(config, Producer("test", enabled=False)))
    orders = [shuffled(ids, seed) for seed in range(8)]
    for seed, order in enumerate(orders):
        assert not divided(spread(config, ours, order, seed=seed), order)
        assert divided(spread(config, THEIRS[dist], order, seed=seed), order)


@pytest.mark.parametrize("dist", ["load", "worksteal", "loadgroup"])
def test_sessions_without_suites_are_spread_as_ever(config_of, dist):
    """Test by test what xdist does, and under its name; stealing loses nothing of suites either."""
    config = config_of(dist)
    ours = type(config.hook.pytest_xdist_make_scheduler(config=config, log=Producer("test", enabled=False)))
    assert issubclass(ours, THEIRS[dist])
    assert (ours.__name__, ours) != (THEIRS[dist].__name__, THEIRS[dist])
    assert ours.__name__ == THEIRS[dist].__name__
    for seed in range(5):
        ids = shuffled(PLAIN_IDS, seed)
        assert spread(config, ours, ids, seed=seed) == spread(config, THEIRS[dist], ids, seed=seed)
        spread(config, ours, shuffled(SUITE + CLASSES, seed), seed=seed)


@pytest.mark.parametrize("dist", ["loadscope", "loadfile", "each"])
def test_what_keeps_suites_together_already_is_left_alone(config_of, dist):
    config = config_of(dist)
    made = config.hook.pytest_xdist_make_scheduler(config=config, log=Producer("test", enabled=False))
    assert type(made).__module__.startswith("xdist.")


def test_groups_of_the_user_come_first(config_of):
    """A suite item with an xdist_group stays in it; its neighbours are grouped by us."""
    config = config_of("loadgroup")
    ids = ["a.py::test_a@mine", *(f"a.py::test_gpt[{check}-32-true]@mine" for check in TRAINED), *SUITE]
    chosen = type(spreading.scheduler_for(config, Producer("test", enabled=False)))
    schedule = chosen(config, Producer("test", enabled=False))
    schedule.collection = ids
    assert [schedule._split_scope(node_id) for node_id in ids[:5]] == ["mine"] * 5
    assert {schedule._split_scope(node_id) for node_id in ids[5:]} == {
        "a.py::test_gpt[*] 32-true",
        "a.py::test_gpt[*] bf16-mixed",
    }


def test_a_scheduler_of_the_users_own_goes_first(pytester):
    pytester.makeconftest("def pytest_xdist_make_scheduler(config, log): return 'mine'")
    config = pytester.parseconfigure("-p", "no:randomly", "--tx", "2*popen", "--dist", "load")
    assert config.hook.pytest_xdist_make_scheduler(config=config, log=Producer("test", enabled=False)) == "mine"


# --- real sessions

NOTES = """
import os, sys, pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

def pytest_runtest_call(item):
    with open(f"ran-{WORKER}.txt", "a") as file:
        file.write(item.nodeid.partition("@")[0] + "\\n")

def pytest_unconfigure(config):
    with open(f"torch-{WORKER}.txt", "w") as file:
        file.write(str("torch" in sys.modules))
"""
LAZY_SUITE = """
import os, pytest
from pytest_nanstab import stability_suite

@pytest.mark.parametrize("number", range(8))
def test_plain(number): pass

@stability_suite(steps=3, checks=["init_scale", "finite_steps", "finite_eval", "gradient_bounds"], max_loss=1e-9)
def test_net():
    import torch
    from pytest_nanstab import TrainingSetup
    with open("made.txt", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return TrainingSetup(
        model=model, loss=lambda m, b: m(b).pow(2).mean(), optimizer=optimizer, batches=[torch.randn(4, 2)] * 3
    )
"""


@pytest.mark.parametrize(
    "dist", ["load", *(pytest.param(dist, marks=pytest.mark.slow) for dist in ("loadgroup", "loadscope", "loadfile"))]
)
def test_one_training_in_one_worker(pytester, monkeypatch, dist):
    """The suite's items share their training, and the other worker, like the controller, never imports torch."""
    pytester.makeconftest(NOTES)
    pytester.makepyfile(test_it=LAZY_SUITE)
    ran = run_outside(pytester, monkeypatch, "--nanstab", "-rA", "-p", "xdist", "-n", "2", "--dist", dist)
    assert ran.result.parseoutcomes() == {"passed": 11, "failed": 1}
    assert ran.outcomes["test_net[gradient_bounds-32-true]"] == "failed"
    ran_by = {path.stem[4:]: path.read_text().splitlines() for path in pytester.path.glob("ran-*.txt")}
    (worker,) = [name for name, ids in ran_by.items() if any("test_net" in node_id for node_id in ids)]
    assert sum("test_net" in node_id for node_id in ran_by[worker]) == 4
    # Once for the initial weights, once for the training that three items read.
    assert (pytester.path / "made.txt").read_text().split() == [worker, worker]
    loaded = {path.stem[6:]: path.read_text() for path in pytester.path.glob("torch-*.txt")}
    assert loaded == {name: str(name == worker) for name in ("gw0", "gw1", "main")}


CRASH = """
@pytest.mark.parametrize("number", range(4))
def test_before(number): pass

def test_crashes():
    train(bad=2)
    import os
    os._exit(3)

def test_watched_broken(): train(bad=2)

@pytest.mark.nanstab
def test_marked_broken(): train(bad=2)

@pytest.mark.xdist_group("mine")
@pytest.mark.nanstab
def test_grouped_broken(): train(bad=3)

@stability_suite(checks=["finite_steps", "finite_eval"], steps=3)
def test_suite(): return setup(bad=True)

def test_healthy(): train()
"""


# With loadscope, loadfile and loadgroup xdist itself gives the test that crashed to the next worker, until none is
# left; with worksteal it may break in trying to take tests away from the worker that has just died.
@pytest.mark.slow
def test_a_worker_dies(pytester, monkeypatch):
    """Its test is xdist's to report; the findings of all others are there, once each, on the screen and in the JSON."""
    pytester.makepyfile(test_it=TRAINING + CRASH)
    options = ("--nanstab", "--nanstab-report=r.json", "-rA", "-p", "xdist", "-n", "2", "--dist", "load")
    ran = run_outside(pytester, monkeypatch, *options)
    outcomes = {name.partition("@")[0]: word for name, word in ran.outcomes.items()}
    assert outcomes == {
        **{f"test_before[{number}]": "passed" for number in range(4)},
        "test_crashes": "failed",
        "test_watched_broken": "failed",
        "test_marked_broken": "failed",
        "test_grouped_broken": "failed",
        "test_suite[finite_steps-32-true]": "failed",
        "test_healthy": "passed",
    }
    assert "INTERNALERROR" not in ran.text
    report = json.loads((pytester.path / "r.json").read_text())
    found = {record["id"]: [f["kind"] for f in record["findings"]] for record in report["tests"]}
    kinds = {
        "watched_broken": ["nonfinite-loss"],
        "marked_broken": ["nonfinite-loss"],
        "grouped_broken": ["nonfinite-loss"],
        "suite[finite_steps-32-true]": ["nonfinite-input"],
        "suite[finite_eval-32-true]": [],
        "healthy": [],
        **{f"before[{number}]": [] for number in range(4)},
    }
    assert found == {f"test_it.py::test_{name}": kind for name, kind in kinds.items()}
    assert report["environment"]["devices"] == ["cpu"]
    assert report["summary"]["failed"] == 4
    assert sum("non-finite  " in line for line in ran.lines) == 4
    assert 'again     pytest "test_it.py::test_grouped_broken"' in ran.text


def test_ids_without_the_group_that_xdist_appends(pytester):
    """Reports, commands and baselines know a test by the id that pytest takes, as in a session without workers."""
    pytester.makeconftest("""
def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "_nodeid"):
            item._nodeid += "@mine"  # what xdist does under loadgroup
        else:
            from _pytest.nodeid import coerce_node_id
            item._id = coerce_node_id(f"{item.nodeid}@mine")
""")
    body = """
@pytest.mark.nanstab
def test_broken(): train(bad=2)

@stability_suite(checks=["finite_steps"], steps=3, baseline=True)
def test_suite(): return setup()
"""
    pytester.makepyfile(test_it=TRAINING + body)
    ran = again(pytester, "--nanstab-report=r.json", "--nanstab-update")
    assert "test_broken@mine" in ran.outcomes
    report = json.loads((pytester.path / "r.json").read_text())
    assert [record["id"] for record in report["tests"]] == [
        "test_it.py::test_broken",
        "test_it.py::test_suite[finite_steps-32-true]",
        "test_it.py::test_suite[baseline-32-true]",
    ]
    assert 'again     pytest "test_it.py::test_broken"' in ran.text
    baselines = json.loads((pytester.path / "nanstab_baselines" / "test_it.json").read_text())
    assert list(baselines["tests"]) == ["test_suite"]
