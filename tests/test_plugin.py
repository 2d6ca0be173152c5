"""What switches on when, and where a verdict falls: real tests in a real pytest."""

from __future__ import annotations

import pytest
from plugin_runs import again, run_inside

# Each of the four ways to be a test, broken and healthy.
FOUR_WAYS = """
@pytest.mark.nanstab
@pytest.mark.parametrize("bad", [2, None], ids=["broken", "healthy"])
def test_marked(bad):
    train(bad)

@pytest.mark.parametrize("bad", [2, None], ids=["broken", "healthy"])
def test_fixture(nanstab, bad):
    nanstab.train(setup(bad), steps=3)

@stability_suite(checks="finite_steps", steps=3)
@pytest.mark.parametrize("bad", [2, None], ids=["broken", "healthy"])
def test_suite(bad):
    return setup(bad)

@pytest.mark.parametrize("bad", [2, None], ids=["broken", "healthy"])
def test_plain(bad):
    train(bad)
"""
EXPLICIT = {"marked": "", "fixture": "", "suite": "finite_steps-32-true-"}


def four_ways(explicit: dict[str, str], plain: dict[str, str]) -> dict[str, str]:
    found = {f"test_{way}[{case}{twin}]": word for way, case in EXPLICIT.items() for twin, word in explicit.items()}
    return {**found, **{f"test_plain[{twin}]": word for twin, word in plain.items()}}


CHECKED = {"broken": "failed", "healthy": "passed"}
UNTOUCHED = {"broken": "passed", "healthy": "passed"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], four_ways(CHECKED, UNTOUCHED)),
        (["-o", "nanstab=explicit"], four_ways(CHECKED, UNTOUCHED)),
        (["-o", "nanstab=all"], four_ways(CHECKED, CHECKED)),
        (["--nanstab"], four_ways(CHECKED, CHECKED)),
        (["-o", "nanstab=report"], four_ways(CHECKED, UNTOUCHED)),
        (["-o", "nanstab=off"], four_ways({}, UNTOUCHED)),
    ],
    ids=["default", "explicit", "all", "flag", "report", "off"],
)
def test_what_switches_on_when(pytester, arguments, expected):
    """The table of modes, for every way to be a test."""
    ran = run_inside(pytester, FOUR_WAYS, *arguments)
    assert ran.outcomes == expected
    if "nanstab=off" in arguments:
        assert ran.result.parseoutcomes() == {"passed": 2, "skipped": 6}
        assert sum(": nanstab is off" in line for line in ran.lines) == 3  # pytest folds the twins


@pytest.mark.parametrize(
    ("arguments", "header"),
    [([], None), (["--nanstab"], "nanstab: all"), (["-o", "nanstab=report"], "nanstab: report")],
)
def test_header(pytester, arguments, header):
    """The header speaks up only when something else than the default is going on."""
    pytester.makepyfile("def test_x(): pass")
    ran = again(pytester, *arguments)
    assert [line for line in ran.lines if line.startswith("nanstab:")] == ([header] if header else [])


def test_report_mode_tells_what_it_found(pytester):
    """Nothing fails; the summary and the test's own section say what would have."""
    ran = run_inside(pytester, "def test_plain():\n    train(bad=2)\n", "-o", "nanstab=report")
    assert ran.code == 0
    assert ran.block("= nanstab =", "= short") == (
        "=================================== nanstab ====================================\n"
        "1 test watched, 3 optimizer steps, 1 reported\n"
        "reported  test_it.py::test_plain  step 2  test_it.py:13"
    )
    assert ran.block("_ test_plain _", "= nanstab =") == (
        "__________________________________ test_plain __________________________________\n"
        "----------------------------------- nanstab ------------------------------------\n"
        "NaN in the loss at step 2, born in train()\n"
        "\n"
        "    test_it.py\n"
        "      11 |     for step in range(1, steps + 1):\n"
        "      12 |         optimizer.zero_grad()\n"
        "    > 13 |         loss = model(torch.ones(4, 2)).pow(2).mean() *\n"
        '         |             (float("nan") if step == bad else scale)\n'
        "      14 |         loss.backward()\n"
        "      15 |         optimizer.step()\n"
        "\n"
        "  step      2, forward\n"
        "  op        mul, float32[]: the value became NaN\n"
        "            0.36 * nan there\n"
        "            operand float32[] 0.36\n"
        "  chain     mul (nan) -> loss\n"
        "  cause     a plain number in this operation is NaN\n"
        "  remedy    look at where that number comes from: a division by zero in numpy, a\n"
        "            missing value\n"
        '  again     pytest --nanstab "test_it.py::test_plain"'
    )


def test_nothing_changes_for_tests_that_did_not_ask(pytester):
    """Without the flag no hook is set in a plain test; the twin sees ours in place."""
    body = """
from torch.nn.modules import module
from torch.optim.optimizer import _global_optimizer_pre_hooks as STEP_HOOKS
ORIGINAL = torch.autograd.backward

def untouched():
    return torch.autograd.backward is ORIGINAL and not STEP_HOOKS and not module._global_forward_pre_hooks

def test_plain():
    assert untouched()

@pytest.mark.nanstab
def test_marked():
    assert not untouched()

def test_plain_again():
    assert untouched()
"""
    ran = run_inside(pytester, body)
    assert ran.outcomes == {"test_plain": "passed", "test_marked": "passed", "test_plain_again": "passed"}
    assert again(pytester, "--nanstab").outcomes["test_plain"] == "failed"


VERDICTS = """
class Boom(Exception): pass

def test_after_it_passed():
    train(bad=2)

@pytest.mark.xfail
def test_xfail():
    train(bad=2)

@pytest.mark.xfail(raises=NonFiniteError, strict=True)
def test_xfail_raises():
    train(bad=2)

@pytest.mark.xfail(raises=Boom, strict=True)
def test_xfail_of_another():
    train(bad=2)

@pytest.mark.xfail(raises=NonFiniteError, strict=True)
def test_xfail_healthy():
    train()

@pytest.mark.xfail(raises=NonFiniteError)
def test_xfail_healthy_not_strict():
    train()

def test_own_failure():
    train(bad=2)
    raise Boom("mine")

def test_own_pytest_fail():
    train(bad=2)
    pytest.fail("mine")

def test_exits():
    train(bad=2)
    raise SystemExit(3)

def test_skips():
    train(bad=2)
    pytest.skip("not here")

def test_xfails_inside():
    train(bad=2)
    pytest.xfail("known")

def test_healthy():
    train()
"""
EXPECTED_VERDICTS = {
    "test_after_it_passed": "failed",
    "test_xfail": "xfail",
    "test_xfail_raises": "xfail",
    "test_xfail_of_another": "failed",
    "test_xfail_healthy": "failed",
    "test_xfail_healthy_not_strict": "xpass",
    "test_own_failure": "failed",
    "test_own_pytest_fail": "failed",
    "test_exits": "failed",
    "test_xfails_inside": "xfail",
    "test_healthy": "passed",
}


def test_verdicts_of_watched_tests(pytester):
    """A watched test fails after its body has passed, and pytest's own means apply to that."""
    ran = run_inside(pytester, VERDICTS, "--nanstab")
    assert ran.outcomes == EXPECTED_VERDICTS
    assert ran.block("_ test_own_pytest_fail _", "NaN in") == (
        "_____________________________ test_own_pytest_fail _____________________________\n"
        "\n"
        "    def test_own_pytest_fail():\n"
        "        train(bad=2)\n"
        '>       pytest.fail("mine")\n'
        "E       Failed: mine\n"
        "\n"
        "test_it.py:54: Failed\n"
        "----------------------------------- nanstab ------------------------------------"
    )
    assert [line for line in ran.lines if line.startswith("FAILED") and "xfail_healthy" not in line] == [
        "FAILED test_it.py::test_after_it_passed - NonFiniteError: NaN in the loss at ...",
        "FAILED test_it.py::test_xfail_of_another - NonFiniteError: NaN in the loss at...",
        "FAILED test_it.py::test_own_failure - test_it.Boom: mine",
        "FAILED test_it.py::test_own_pytest_fail - Failed: mine",
        "FAILED test_it.py::test_exits - SystemExit: 3",
    ]
    ran.result.stdout.fnmatch_lines("SKIPPED [[]1[]] test_it.py:*: not here")


def test_verdicts_without_the_flag(pytester):
    """The same tests unwatched: what fails then fails for itself, and nothing is said about stability."""
    ran = run_inside(pytester, VERDICTS)
    changed = {"test_after_it_passed": "passed", "test_xfail": "xpass", "test_xfail_raises": "failed"}
    assert ran.outcomes == {**EXPECTED_VERDICTS, **changed}
    assert "NaN in" not in ran.text
    assert "= nanstab =" not in ran.text


def test_verdicts_of_explicit_tests(pytester):
    """Explicit tests raise at the sink; what they catch themselves is consumed; what they fail with is theirs."""
    body = """
@pytest.mark.nanstab
class Test:
    def test_raises_at_the_sink(self):
        train(bad=2)
        assert False, "never reached"

    @pytest.mark.xfail(raises=NonFiniteError, strict=True)
    def test_xfail_raises(self):
        train(bad=2)

    def test_consumed(self):
        with pytest.raises(NonFiniteError, match="NaN in the loss at step 2") as caught:
            train(bad=2)
        assert caught.value.findings[0].source == "test_it.py:14"

    def test_consumed_then_fails(self):
        with pytest.raises(NonFiniteError):
            train(bad=2)
        assert 1 == 2

    def test_raises_from(self):
        try:
            train(bad=2)
        except NonFiniteError as error:
            raise RuntimeError("training broke") from error

    def test_only_at_the_end(self):
        self.model = nn.Linear(2, 1)
        torch.optim.SGD(self.model.parameters(), 0.1).step()
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        self.model.weight.data.fill_(float("nan"))

    def test_output_in_evaluation(self):
        nn.Threshold(0.0, float("nan")).eval()(torch.zeros(3))

    @pytest.mark.nanstab(allow_nonfinite=("output",))
    def test_output_allowed(self):
        nn.Threshold(0.0, float("nan")).eval()(torch.zeros(3))

    @pytest.mark.nanstab(allow_nonfinite=("output",))
    def test_loss_is_not_allowed(self):
        train(bad=2)

    def test_skips(self):
        with pytest.raises(NonFiniteError):
            train(bad=2)
        pytest.skip("not here")

    def test_inner_watch_owns(self):
        with pytest_nanstab.watch(on_instability="record") as run:
            train(bad=2)
        assert [finding.kind for finding in run.findings] == ["nonfinite-loss"]
"""
    ran = run_inside(pytester, body, "--nanstab-report=r.json")
    assert ran.outcomes == {
        "Test::test_raises_at_the_sink": "failed",
        "Test::test_xfail_raises": "xfail",
        "Test::test_consumed": "passed",
        "Test::test_consumed_then_fails": "failed",
        "Test::test_raises_from": "failed",
        "Test::test_only_at_the_end": "failed",
        "Test::test_output_in_evaluation": "failed",
        "Test::test_output_allowed": "passed",
        "Test::test_loss_is_not_allowed": "failed",
        "Test::test_inner_watch_owns": "passed",
    }
    assert ran.block("= nanstab =", "nanstab report:") == (
        "=================================== nanstab ====================================\n"
        "10 tests checked, 17 optimizer steps, 5 failed, 1 xfailed, 1 skipped\n"
        "non-finite  test_it.py::Test::test_raises_at_the_sink  step 2  test_it.py:13\n"
        "non-finite  test_it.py::Test::test_raises_from  step 2  test_it.py:13\n"
        "non-finite  test_it.py::Test::test_only_at_the_end  step 2  test_it.py:54\n"
        "non-finite  test_it.py::Test::te…_output_in_evaluation  Threshold  test_it.py:58\n"
        "non-finite  test_it.py::Test::test_loss_is_not_allowed  step 2  test_it.py:13"
    )
