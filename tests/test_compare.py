"""`python -m pytest_nanstab compare`: the reports of a matrix run side by side."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from pytest_nanstab.__main__ import main
from pytest_nanstab.reporting.comparing import compare


def record(test="t.py::test_a", outcome="passed", findings=(), norm=2.0, bits=12.0):
    return {
        "id": test,
        "mode": "explicit",
        "outcome": outcome,
        "findings": list(findings),
        "run": {"steps": 2, "grad_norm": [norm, None, norm]},
        "headroom": {"activation": {"net.0 float32": bits, "net.1 float32": 90.0}},
    }


def report(*records, torch="2.13.0", python="3.11.7"):
    return {"schema": 1, "environment": {"python": python, "torch": torch}, "tests": list(records), "summary": {}}


NAN = {"kind": "nonfinite-loss", "step": 3, "message": "NaN in the loss at step 3"}


def written(folder, **reports):
    paths = []
    for name, content in reports.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        paths.append(str(path))
    return paths


def test_the_same_everywhere(tmp_path, capsys):
    """Nothing to tell, and success."""
    paths = written(tmp_path, a=report(record()), b=report(record(norm=2.2, bits=11.5), torch="2.4.1"))
    assert main(["compare", *paths]) == 0
    assert capsys.readouterr().out == "1 test in 2 environments: the same in all\n"


CHANGED = """\
2 tests in 2 environments: 1 x finite here, not there

test          torch 2.13.0     torch 2.4.1
t.py::test_a  passed, 12 bits  failed: nonfinite-loss, step 3

finite here, not there: t.py::test_a
  passed (torch 2.13.0); failed: nonfinite-loss, step 3 (torch 2.4.1)
"""


def test_finite_here_and_not_there(tmp_path, capsys):
    """The whole text, by name of what differs between the environments; the exit status says it to CI."""
    other = record("t.py::test_b")
    failed = record(outcome="failed", findings=[NAN])
    paths = written(tmp_path, a=report(record(), other), b=report(failed, other, torch="2.4.1"))
    assert main(["compare", *paths]) == 1
    assert capsys.readouterr().out == CHANGED


def test_figures_drift_without_failing(tmp_path, capsys):
    """A factor of two in the gradient norm and a bit of headroom are told."""
    paths = written(tmp_path, a=report(record()), b=report(record(norm=5.0, bits=10.5), torch="2.4.1"))
    assert main(["compare", *paths]) == 0
    text = capsys.readouterr().out
    assert "gradient norm: t.py::test_a\n  2 (torch 2.13.0) to 5 (torch 2.4.1), 1.3 bits apart" in text
    assert "headroom: t.py::test_a\n  10.5 bits (torch 2.4.1) to 12.0 (torch 2.13.0), least at activation net.0" in text


def test_another_outcome_and_tests_that_did_not_run():
    """An outcome is compared where the test ran; a skip is no outcome."""
    reports = [
        ("a.json", report(record(), record("t.py::test_b"), record("t.py::test_c", outcome="skipped"))),
        ("b.json", report(record(outcome="failed"), record("t.py::test_c"), torch="2.4.1")),
    ]
    comparison = compare(reports)
    assert [(change.kind, change.test) for change in comparison.changes] == [("outcome", "t.py::test_a")]
    assert comparison.rows["t.py::test_b"][1] is None
    assert comparison.fails


def test_environments_are_named_by_what_differs():
    """Python and torch where they differ, else the files."""
    one = report(record())
    named = compare([("x/a.json", one), ("x/b.json", report(record(), torch="2.4.1", python="3.10.1"))]).environments
    assert named == ("py3.11.7, torch 2.13.0", "py3.10.1, torch 2.4.1")
    assert compare([("x/a.json", one), ("x/b.json", copy.deepcopy(one))]).environments == ("a", "b")


def test_non_finite_figures_are_no_figures(tmp_path):
    """The strings that stand for them in the JSON are left out, not compared."""
    paths = written(tmp_path, a=report(record(norm="nan", bits="inf")), b=report(record(norm=9.0), torch="2.4.1"))
    assert main(["compare", *paths]) == 0


def test_markdown_escapes_what_users_named(tmp_path, capsys):
    """Names of tests hold brackets, underscores and pipes."""
    test = "t.py::test_a[x|y<b>]"
    paths = written(tmp_path, a=report(record(test)), b=report(record(test, outcome="failed"), torch="2.4.1"))
    output = tmp_path / "out.md"
    assert main(["compare", *paths, "--output", str(output)]) == 1
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "### nanstab: 1 test in 2 environments: 1 x another outcome"
    assert lines[2] == "| test | torch 2.13.0 | torch 2.4.1 |"
    assert lines[4].startswith("| t.py::test\\_a\\[x\\|y\\<b\\>\\] |")
    capsys.readouterr()


def test_a_folder_stands_for_its_reports(tmp_path, capsys):
    """In the order of their names."""
    written(tmp_path, a=report(record()), b=report(record(), torch="2.4.1"))
    assert main(["compare", str(tmp_path), "--all"]) == 0
    assert "t.py::test_a  passed, 12 bits  passed, 12 bits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON report of --nanstab-report"),
        ("[1]", "JSON, but no report of --nanstab-report: it has no list of tests"),
        ('{"schema": 2, "tests": []}', "schema 2, this version reads 1"),
        ('{"schema": 1, "tests": [], "x": NaN}', "NaN is no JSON number"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, capsys, content, message):
    """What is wrong with which file; nothing is compared."""
    path = tmp_path / "r.json"
    path.write_text(content, encoding="utf-8")
    assert main(["compare", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_records_of_any_origin_are_compared(tmp_path, capsys):
    """Odd types in any place are no failure, and no name reaches the terminal unescaped."""
    odd = [{"id": "\x1b[2J\ud800", name: value} for name in record() for value in (None, 3, "x", [], {"a": [1]}, [{}])]
    paths = written(tmp_path, a=report(*odd, 7, torch=["x"]), b=report(record("\x1b[2J\ud800"), torch="\x1b[2J"))
    for ending in ("md", "txt", "html"):
        main(["compare", *paths, "--all", "--output", str(tmp_path / f"x.{ending}")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b[2J\ud800" in shown


def test_missing_files_and_empty_folders(tmp_path, capsys):
    """Both are told like a damaged file."""
    assert main(["compare", str(tmp_path / "none.json")]) == 2
    assert main(["compare", str(tmp_path)]) == 2
    assert "a folder without any .json file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), "--output", "x.pdf"])
    assert "the ending must be .md, .txt or .html, got 'x.pdf'" in capsys.readouterr().err


def test_as_a_command_without_torch(tmp_path):
    """The real command, on real reports of two runs; neither it nor what it imports needs torch."""
    (tmp_path / "test_it.py").write_text("import torch\ndef test_it(): assert torch.ones(2).sum() == 2\n")
    for name in ("a", "b"):
        command = [sys.executable, "-m", "pytest", "-q", "--nanstab", f"--nanstab-report={name}.json"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    program = (
        "import sys; from pytest_nanstab.__main__ import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "compare", "a.json", "b.json"]
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "1 test in 2 environments: the same in all\n"), result.stderr
