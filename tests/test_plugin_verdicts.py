"""Verdicts in the company of what else pytest does: fixtures, unittest, interrupts, output styles, nested runs."""

from __future__ import annotations

import pytest
from plugin_runs import PLAIN, TRAINING, again, run_inside

NO_HOOKS = """
from torch.nn.modules import module as _module
from torch.optim.optimizer import _global_optimizer_pre_hooks as _step_hooks
_backward = torch.autograd.backward

def hooked():
    return torch.autograd.backward is not _backward or bool(_step_hooks) or bool(_module._global_forward_pre_hooks)
"""


def test_setup_and_teardown_are_left_alone(pytester):
    """What a fixture trains is not judged, and its own failures stay as they are; ours in a fixture shows its block."""
    body = """
@pytest.fixture
def trained():
    train(bad=2)

@pytest.fixture
def broken():
    raise ValueError("setup")

@pytest.fixture
def broken_after():
    yield
    raise ValueError("teardown")

@pytest.fixture
def checked():
    pytest_nanstab.assert_finite(torch.tensor(float("nan")), name="table")

def test_trained(trained): pass
def test_broken(broken): train(bad=2)
def test_broken_after(broken_after): train()
def test_checked(checked): pass
"""
    ran = run_inside(pytester, body, "--nanstab")
    assert ran.result.parseoutcomes() == {"passed": 2, "errors": 3}
    assert "2 tests watched, 3 optimizer steps; 1 test never used torch" not in ran.text
    assert "1 test watched, 3 optimizer steps; 1 test never used torch" in ran.lines
    assert ran.block("ERROR at setup of test_checked", "test_it.py:") == (
        "________________________ ERROR at setup of test_checked ________________________\n"
        "\n"
        "    @pytest.fixture\n"
        "    def checked():\n"
        '>       pytest_nanstab.assert_finite(torch.tensor(float("nan")), name="table")\n'
        "E       NonFiniteError: NaN in table (1 of 1 value)\n"
    )


UNITTEST = """
@pytest.mark.nanstab
class Explicit(unittest.TestCase):
    def test_broken(self):
        train(bad=2)

    def test_consumed(self):
        with self.assertRaises(NonFiniteError):
            train(bad=2)

    def test_consumed_then_fails(self):
        with self.assertRaises(NonFiniteError):
            train(bad=2)
        self.fail("mine")

    @unittest.expectedFailure
    def test_expected(self):
        train(bad=2)

    def test_healthy(self):
        train()

class Watched(unittest.TestCase):
    def setUp(self):
        self.bad = 2

    def test_broken(self):
        train(self.bad)

    def test_fails_itself(self):
        train(self.bad)
        self.fail("mine")

    @unittest.expectedFailure
    def test_expected(self):
        train(self.bad)
        self.fail("mine")

    @pytest.mark.nanstab(max_loss=1e-9)
    def test_method_with_marker(self):
        train()

    def test_skips(self):
        train(self.bad)
        self.skipTest("not here")

    def test_healthy(self):
        train()
"""


def test_unittest_classes_and_methods(pytester):
    """Markers on classes and methods of unittest work, and so does watching."""
    ran = run_inside(pytester, UNITTEST, "--nanstab")
    assert ran.outcomes == {
        "Explicit::test_broken": "failed",
        "Explicit::test_consumed": "passed",
        "Explicit::test_consumed_then_fails": "failed",
        "Explicit::test_expected": "xfail",
        "Explicit::test_healthy": "passed",
        "Watched::test_broken": "failed",
        "Watched::test_fails_itself": "failed",
        "Watched::test_expected": "xfail",
        "Watched::test_method_with_marker": "failed",
        "Watched::test_healthy": "passed",
    }
    assert ran.block("_ Explicit.test_broken _", "_ _ _") == (
        "_____________________________ Explicit.test_broken _____________________________\n"
        "\n"
        "self = <test_it.Explicit testMethod=test_broken>\n"
        "\n"
        "    def test_broken(self):\n"
        ">       train(bad=2)\n"
        "\n"
        "test_it.py:26: "
    )
    assert "torch/" not in ran.text
    assert ran.block("_ Watched.test_fails_itself _", "NaN in") == (
        "__________________________ Watched.test_fails_itself ___________________________\n"
        "\n"
        "self = <test_it.Watched testMethod=test_fails_itself>\n"
        "\n"
        "    def test_fails_itself(self):\n"
        "        train(self.bad)\n"
        '>       self.fail("mine")\n'
        "E       AssertionError: mine\n"
        "\n"
        "test_it.py:53: AssertionError\n"
        "----------------------------------- nanstab ------------------------------------"
    )
    consumed = ran.block("_ Explicit.test_consumed_then_fails _", "_ Watched.test_broken _")
    assert "- nanstab -" not in consumed


USERS_WATCH = """
@pytest.fixture
def run():
    with pytest_nanstab.watch(max_loss=5) as run:
        yield run

@pytest.fixture
def recorded():
    with pytest_nanstab.watch(on_instability="record") as run:
        yield run

def test_seen(run):
    train()
    assert run.steps == 3

@pytest.mark.nanstab
def test_seen_by_explicit(run):
    train()
    assert run.steps == 3

def test_broken(run):
    train(bad=2)

def test_recorded(recorded):
    train(bad=2)
    assert len(recorded.findings) == 1

@pytest.mark.nanstab(max_loss=1)
def test_limit_of_the_marker(run):
    train()

@pytest.mark.nanstab(max_grad_norm=1e-9)
def test_limit_the_fixture_lacks(recorded):
    train()
"""


def test_a_watch_in_a_fixture_owns_the_test(pytester):
    """Watching does not take a test's own watch away; the flag changes nothing; stated limits are never left out."""
    expected = {
        "test_seen": "passed",
        "test_seen_by_explicit": "passed",
        "test_broken": "failed",
        "test_recorded": "passed",
        "test_limit_of_the_marker": "passed",  # the fixture's own max_loss is the closer one
        "test_limit_the_fixture_lacks": "failed",
    }
    assert run_inside(pytester, USERS_WATCH).outcomes == expected
    ran = again(pytester, "--nanstab")
    assert ran.outcomes == expected
    assert "3 tests checked, 3 watched, 15 optimizer steps, 2 failed" in ran.text


def test_a_watch_left_open_ends_with_its_test(pytester):
    """A watch that a test forgets to close does not blind the watching of the tests after it."""
    body = f"""
{NO_HOOKS}
forgotten = []

def test_forgets():
    forgotten.append(pytest_nanstab.watch(on_instability="record"))
    forgotten[0].__enter__()

def test_unhooked_by_then():
    assert len(forgotten) == 1
    train(bad=2)
"""
    ran = run_inside(pytester, body, "--nanstab")
    assert ran.outcomes == {"test_forgets": "passed", "test_unhooked_by_then": "failed"}
    assert "FAILED test_it.py::test_unhooked_by_then - NonFiniteError: NaN in the loss at..." in ran.lines


SUBTESTS = """
@pytest.mark.nanstab
def test_explicit(subtests):
    with subtests.test("broken"): train(bad=2)
    with subtests.test("healthy"): train()

def test_watched(subtests):
    with subtests.test("broken"): train(bad=2)
    with subtests.test("healthy"): train()

class TestOld(unittest.TestCase):
    def test_watched(self):
        for bad in (2, None):
            with self.subTest(bad=bad):
                train(bad)
"""


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="subtests came with pytest 9")
def test_subtests(pytester):
    """A broken subtest of an explicit test fails with its block, and the test's record says so."""
    ran = run_inside(pytester, SUBTESTS, "--nanstab")
    assert ran.result.parseoutcomes()["failed"] == 4
    failed = [line for line in ran.lines if line.startswith(("FAILED", "SUBFAILED"))]
    assert failed == [
        "SUBFAILED[broken] test_it.py::test_explicit - NonFiniteError: NaN in the loss...",
        "FAILED test_it.py::test_explicit - contains 1 failed subtest",
        "FAILED test_it.py::test_watched - NonFiniteError: NaN in the loss at step 2, ...",
        "FAILED test_it.py::TestOld::test_watched - NonFiniteError: NaN in the loss at...",
    ]
    assert "1 test checked, 2 watched, 17 optimizer steps, 3 failed" in ran.lines


def test_stopping_early(pytester):
    """-x stops at the first verdict as at any failure; a dead session says what it has seen so far."""
    body = """
def test_a(): train(bad=2)
def test_b(): train()
"""
    ran = run_inside(pytester, body, "--nanstab", "-x")
    assert ran.outcomes == {"test_a": "failed"}
    assert "1 test watched, 3 optimizer steps, 1 failed" in ran.lines


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", 'pytest.exit("enough")'], ids=["interrupt", "exit"])
def test_interrupts_leave_no_hooks(pytester, how):
    """Ctrl-C in a watched test takes every hook away."""
    body = f"""
{NO_HOOKS}
from pathlib import Path

@pytest.fixture(scope="session", autouse=True)
def look():
    yield
    Path("hooked").write_text(str(hooked()))

def test_a():
    assert hooked()
    train(bad=2)
    {how}
"""
    pytester.makepyfile(test_it=TRAINING + body)
    options = (*PLAIN, "--nanstab", "--nanstab-report=r.json")
    assert pytester.runpytest_inprocess(*options, no_reraise_ctrlc=True).ret == 2
    assert (pytester.path / "hooked").read_text() == "False"
    assert (pytester.path / "r.json").exists()


@pytest.mark.slow
def test_nested_session_leaves_the_outer_intact(pytester):
    """A test that runs pytest in this process has its own training judged before and after, and not the inner one's."""
    pytester.makepyfile(inner="from test_it import *\ndef test_inner(): train(bad=1)\n")
    body = f"""
{NO_HOOKS}

OPTIONS = ["-p", "no:randomly", "-p", "no:cacheprovider", "-q", "inner.py", "-k", "test_inner"]

def inner(*arguments):
    return int(pytest.main([*OPTIONS, *arguments]))

def test_outer():
    assert hooked()
    assert inner("--nanstab") == 1
    assert inner("-o", "nanstab=report") == 0
    assert hooked()
    train(bad=3)

def test_healthy():
    assert inner("--nanstab") == 1
    train()

def test_unhooked():
    pass
"""
    ran = run_inside(pytester, body, "--nanstab", "test_it.py")
    outcomes = {"test_outer": "failed", "test_healthy": "passed", "test_unhooked": "passed"}
    assert {name: word for name, word in ran.outcomes.items() if name != "test_inner"} == outcomes
    assert "non-finite  test_it.py::test_outer  step 3  test_it.py:13" in ran.lines


@pytest.mark.parametrize("style", ["short", "line", "no", "native", "long"])
def test_traceback_styles(pytester, style):
    """Every --tb shows the user's frames only, and the block where there is room for it."""
    ran = run_inside(pytester, "@pytest.mark.nanstab\ndef test_marked():\n    train(bad=2)\n", f"--tb={style}")
    assert ran.outcomes == {"test_marked": "failed"}
    for stranger in ("torch/", "pytest_nanstab/", "hotpath"):
        assert stranger not in ran.text
    assert style == "line" or ("  chain     mul (nan) -> loss" in ran.lines) == (style != "no")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-q"],
        ["-v"],
        ["-s"],
        ["--strict-markers", "--strict-config"],
        ["--import-mode=importlib"],
        ["-p", "no:logging", "-p", "no:warnings"],
        ["--full-trace", "-l"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_with_options_of_pytest(pytester, arguments):
    """The verdicts do not depend on how the session is told."""
    body = "def test_broken(): train(bad=2)\ndef test_healthy(): train()\n"
    ran = run_inside(pytester, body, "--nanstab", *arguments)
    assert ran.outcomes == {"test_broken": "failed", "test_healthy": "passed"}
    assert ran.code == 1


def test_command_to_run_again_fits_the_folder(pytester, monkeypatch):
    """The command in the block works from where pytest was started, below rootdir or not."""
    pytester.makeini("[pytest]")
    run_inside(pytester, "def test_broken(): train(bad=2)\n", **{"sub/test_sub": "from test_it import *\n"})
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.chdir(pytester.path / "sub")
    ran = again(pytester, "--nanstab", "-p", "nanstab")
    assert '  again     pytest --nanstab "test_sub.py::test_broken"' in ran.lines
    ran = again(pytester, "--nanstab", "../test_it.py")
    assert '  again     pytest --nanstab "../test_it.py::test_broken"' in ran.lines


def test_without_terminal_and_without_running(pytester):
    """No terminal plugin: verdicts count all the same. --collect-only checks markers, runs and writes nothing."""
    run_inside(pytester, "def test_broken(): train(bad=2)\n")
    assert pytester.runpytest_inprocess("--nanstab", "-p", "no:terminal", "-p", "no:randomly").ret == 1
    ran = again(pytester, "--nanstab", "--collect-only", "--nanstab-report=r.json")
    assert ran.code == 0
    assert "= nanstab =" not in ran.text
    assert not (pytester.path / "r.json").exists()
