"""The Markdown report: what a CI step's summary shows."""

from __future__ import annotations

import pytest

from pytest_nanstab.reporting.markdown import code, escaped, render, table

FINDING = {
    "kind": "nonfinite-loss",
    "message": "NaN in the loss at step 3, born in net.0_a",
    "step": 3,
    "module": "net.0_a",
    "op": "exp",
    "source": "models/net.py:12",
    "cause": "exp(x) overflows",
    "remedy": "x - x.max()",
}


def record(test="tests/test_a.py::test_a[x|y]", outcome="failed", findings=(FINDING,), margins=()):
    return {
        "id": test,
        "mode": "explicit",
        "outcome": outcome,
        "used_torch": True,
        "run": {"steps": 3},
        "findings": list(findings),
        "margins": list(margins),
    }


WHOLE = """\
## nanstab

2 tests checked, 6 optimizer steps, 1 failed

python 3.11.7, torch 2.13.0

### findings

- `tests/test_a.py::test_a[x|y]`: NaN in the loss at step 3, born in net.0\\_a (failed, step 3)
  - nonfinite-loss, `models/net.py:12`, `net.0_a`, `exp`
  - cause: exp(x) overflows
  - remedy: x - x.max()

### least headroom

| margin | measured | limit | quantity | step | test |
| --- | --- | --- | --- | --- | --- |
| 0.5 | 7.1e+00 | 1.0e+01 | grad norm | 2 | t.py::test\\_b |
"""


def test_the_whole_report():
    """Counts, environment, each finding with place, cause and remedy, and the least margins."""
    margin = {"margin": 0.5, "measured": 7.1, "limit": 10.0, "quantity": "grad norm", "step": 2, "sampled": False}
    healthy = record("t.py::test_b", "passed", (), (margin, {**margin, "margin": 3.0}))
    report = {"environment": {"python": "3.11.7", "torch": "2.13.0"}, "tests": [record(), healthy]}
    assert render(report) == WHOLE


def test_nothing_to_tell():
    """No test, or none with findings."""
    assert render({"environment": {}, "tests": []}) == "## nanstab\n\nno test was checked or watched\n"
    text = render({"environment": {}, "tests": [record(outcome="passed", findings=())]})
    assert text == "## nanstab\n\n1 test checked, 3 optimizer steps\n"


def test_long_reports_are_cut():
    """A step's summary has a limit."""
    text = render({"environment": {}, "tests": [record(f"t.py::test_{number}") for number in range(60)]})
    assert "- and 10 more tests" in text


@pytest.mark.parametrize(("text", "shown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a`", "`` `a` ``"), ("a\nb", "`a b`")])
def test_code_holds_backticks(text, shown):
    """A fence is longer than what it holds."""
    assert code(text) == shown


def test_text_is_no_markup():
    """Names of users cannot make a link, a table cell or HTML."""
    assert escaped("[x](y) <b> a|b *c* _d_") == "\\[x\\](y) \\<b\\> a\\|b \\*c\\* \\_d\\_"
    assert table(["a"], [["x|y"]])[2] == "| x\\|y |"


def test_the_option_writes_it(pytester):
    """By the ending of the file's name, beside a JSON one."""
    pytester.makepyfile("import torch\ndef test_it(): assert torch.ones(2).sum() == 2\n")
    result = pytester.runpytest_subprocess("--nanstab", "--nanstab-report=s.md", "--nanstab-report=r.json")
    result.assert_outcomes(passed=1)
    assert (pytester.path / "s.md").read_text(encoding="utf-8").startswith("## nanstab\n\n")
    assert (pytester.path / "r.json").exists()
