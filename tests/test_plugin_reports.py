"""What leaves the session: records over process borders, JSON, JUnit, HTML."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from plugin_runs import TRAINING, again, run_inside

EVERYTHING = """
@pytest.mark.nanstab(max_loss=100)
def test_explicit_broken(): train(bad=2)

@pytest.mark.nanstab(max_loss=10)
def test_explicit_healthy(): train()

@pytest.mark.nanstab
@pytest.mark.xfail(raises=NonFiniteError, strict=True)
def test_explicit_known(): train(bad=2)

@pytest.mark.nanstab
@pytest.mark.xfail
def test_explicit_better_than_known(): train()

@stability_suite(checks=["finite_steps", "gradient_bounds"], steps=3, max_grad_norm=1e-9)
def test_suite(): return setup()

class TestOld(unittest.TestCase):
    def test_watched_broken(self): train(bad=2)

def test_watched_healthy(): train()

def test_watched_fails_itself():
    train(bad=3)
    assert 1 == 2

def test_watched_skips():
    train(bad=2)
    pytest.skip("not here")

def test_plain(): pass
"""
MODES = {
    "test_it.py::test_explicit_broken": ("explicit", "failed"),
    "test_it.py::test_explicit_healthy": ("explicit", "passed"),
    "test_it.py::test_explicit_known": ("explicit", "xfailed"),
    "test_it.py::test_explicit_better_than_known": ("explicit", "xpassed"),
    "test_it.py::test_suite[finite_steps-32-true]": ("explicit", "passed"),
    "test_it.py::test_suite[gradient_bounds-32-true]": ("explicit", "failed"),
    "test_it.py::TestOld::test_watched_broken": ("watched", "failed"),
    "test_it.py::test_watched_healthy": ("watched", "passed"),
    "test_it.py::test_watched_fails_itself": ("watched", "failed"),
    "test_it.py::test_watched_skips": ("watched", "skipped"),
    "test_it.py::test_plain": ("watched", "passed"),
}
FILES = ("--nanstab-report=new/folder/r.json", "--junitxml=j.xml", "--html=h.html", "--self-contained-html")


def strict(path: Path) -> dict[str, Any]:
    """A JSON file, read as strictly as JSON is defined."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return found


def properties_in(path: Path) -> dict[str, dict[str, str]]:
    """The nanstab properties of each test case of a JUnit file that has any."""
    cases = {case.attrib["name"]: case.iter("property") for case in ET.parse(path).getroot().iter("testcase")}
    found = {name: {prop.attrib["name"]: prop.attrib["value"] for prop in props} for name, props in cases.items()}
    return {name: props for name, props in found.items() if props}


def extras_in(path: Path) -> dict[str, str]:
    """The html extras of each test of a pytest-html report that has any."""
    blob = re.search(r'data-jsonblob="([^"]*)"', path.read_text(encoding="utf-8"))
    assert blob is not None
    tests = json.loads(html.unescape(blob[1]))["tests"]
    found = {name: [extra["content"] for run in runs for extra in run["extras"]] for name, runs in tests.items()}
    return {name: "".join(contents) for name, contents in found.items() if contents}


@pytest.fixture
def everything(pytester):
    """The session over EVERYTHING in this process, with all of its files."""
    return run_inside(pytester, EVERYTHING, "--nanstab", *FILES)


def test_json_report(pytester, everything):
    """One record per test that ran, in order, strict JSON, in folders made for it; and where it is."""
    report = strict(pytester.path / "new" / "folder" / "r.json")
    assert list(report) == ["schema", "environment", "tests", "summary"]
    assert report["schema"] == 1
    assert report["environment"]["devices"] == ["cpu"]
    assert {record["id"]: (record["mode"], record["outcome"]) for record in report["tests"]} == MODES
    records = {record["id"].rpartition("::")[2]: record for record in report["tests"]}
    assert records["test_explicit_broken"]["limits"] == {"max_loss": {"value": 100.0, "source": "function marker"}}
    assert records["test_explicit_broken"]["run"]["loss"] == [2.25, "nan"]
    assert records["test_watched_broken"]["run"]["loss"][1:] == ["nan", "nan"]
    assert [finding["kind"] for finding in records["test_watched_fails_itself"]["findings"]] == ["nonfinite-loss"]
    assert records["test_watched_skips"]["findings"] == []
    assert records["test_plain"]["run"] is None or records["test_plain"]["run"]["steps"] == 0
    suite = records["test_suite[finite_steps-32-true]"]
    assert (suite["check"], suite["precision"], suite["seed"]) == ("finite_steps", "32-true", 0)
    margin = next(entry for entry in records["test_explicit_healthy"]["margins"] if entry["quantity"] == "loss")
    assert (margin["measured"], margin["limit"], margin["step"], margin["sampled"]) == (2.25, 10.0, 1, False)
    assert f"nanstab report: {pytester.path / 'new' / 'folder' / 'r.json'}" in everything.lines


def test_junit_properties_of_explicit_tests_only(pytester, everything):
    """nanstab_* properties stand at explicit tests, those of a finding at its failures, and nowhere else."""
    found = properties_in(pytester.path / "j.xml")
    failing = {"test_explicit_broken", "test_explicit_known", "test_suite[gradient_bounds-32-true]"}
    passing = {"test_explicit_healthy", "test_explicit_better_than_known", "test_suite[finite_steps-32-true]"}
    assert set(found) == failing | passing
    assert {name for name, properties in found.items() if "nanstab_kind" in properties} == failing
    assert found["test_explicit_healthy"] == {"nanstab_steps": "3"}
    suite = found["test_suite[finite_steps-32-true]"]
    assert 120 < float(suite.pop("nanstab_least_headroom_bits")) < 130
    assert re.fullmatch(r"(activation|gradient|parameter) \S+ float32", suite.pop("nanstab_least_headroom_of"))
    assert suite == {"nanstab_precision": "32-true", "nanstab_seed": "0", "nanstab_steps": "3"}
    assert found["test_explicit_broken"] == {
        "nanstab_steps": "2",
        "nanstab_kind": "nonfinite-loss",
        "nanstab_step": "2",
        "nanstab_op": "mul",
        "nanstab_source": "test_it.py:13",
        "nanstab_message": "NaN in the loss at step 2, born in train()",
        "nanstab_cause": "a plain number in this operation is NaN",
        "nanstab_remedy": "look at where that number comes from: a division by zero in numpy, a missing value",
    }


def test_html_report_holds_the_block(pytester, everything):
    """pytest-html shows findings and margins at the tests that have them."""
    found = extras_in(pytester.path / "h.html")
    block = found["test_it.py::TestOld::test_watched_broken"]
    for line in ("NaN in the loss at step 2", "again     pytest --nanstab", "loss.backward()"):
        assert line in html.unescape(block)
    assert "margins in bits" in found["test_it.py::test_explicit_healthy"]
    assert "test_it.py::test_watched_healthy" not in found


def test_no_extras_without_pytest_html(pytester):
    """Without the HTML plugin nothing is rendered for it; the twin carries the extra."""
    pytester.makeconftest("""
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    report = yield
    if report.when == "call":
        print("extras", len(getattr(report, "extras", [])))
    return report
""")
    ran = run_inside(pytester, "def test_broken(): train(bad=2)\n", "--nanstab", "-s")
    assert "test_it.py extras 1" in ran.text
    assert "test_it.py extras 0" in again(pytester, "--nanstab", "-s", "-p", "no:html").text


@pytest.mark.slow
def test_two_workers_report_what_one_process_does(pytester, everything):
    """Under xdist the controller alone prints and writes, and what it says is the same; a wrong marker is one error."""
    files = {name: pytester.path / name for name in ("new/folder/r.json", "j.xml", "h.html")}
    alone = strict(files["new/folder/r.json"])
    known = properties_in(files["j.xml"]), extras_in(files["h.html"])
    for path in files.values():
        path.unlink()
    pytester.makepyfile(test_wrong="import pytest\n@pytest.mark.nanstab(max_los=1)\ndef test_wrong(): pass\n")
    result = pytester.runpytest_subprocess("--nanstab", *FILES, "-n", "2", "-W", "error")
    spread = strict(files["new/folder/r.json"])
    assert by_id(spread) == by_id(alone)
    assert spread["summary"] == alone["summary"]
    assert without_args(spread["environment"]) == without_args(alone["environment"])
    assert (properties_in(files["j.xml"]), extras_in(files["h.html"])) == known
    own = section(everything.lines)
    assert set(section(result.outlines)) == set(own)
    assert result.parseoutcomes() == {**everything.result.parseoutcomes(), "errors": 1}
    result.stdout.fnmatch_lines(
        "test_wrong.py::test_wrong: marker nanstab: unknown argument 'max_los'; allowed are max_loss, *"
    )
    assert "INTERNALERROR" not in result.stdout.str()
    assert result.errlines == []


def by_id(report: dict[str, Any]) -> dict[str, Any]:
    return {record["id"]: record for record in report["tests"]}


def without_args(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name != "args"}


def section(lines: list[str]) -> list[str]:
    """The nanstab section down to the margins: items that share one run also share one line there, the first's."""
    start = next(number for number, line in enumerate(lines) if "= nanstab =" in line)
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("least headroom"))
    return lines[start:end]


LONG = """
def test_watched():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 1e-3)
    for _ in range(300):
        weight.sum().backward()
        optimizer.step()

@pytest.mark.nanstab
def test_explicit(): test_watched()
"""


def test_what_rides_on_reports_is_small(pytester):
    """A watched test's lists stay behind unless a report wants them; explicit tests keep theirs. The schema stays."""
    pytester.makeconftest("""
import json
def pytest_runtest_logreport(report):
    if report.when == "call":
        open(report.nodeid.rpartition("::")[2], "w").write(json.dumps(report.nanstab))
""")
    run_inside(pytester, LONG, "--nanstab")
    keys = {"steps", "loss", "grad_norm", "clipped_grad_norm", "update_ratio"}
    small, full = (strict(pytester.path / name) for name in ("test_watched", "test_explicit"))
    assert small["run"] == {**{key: [] for key in keys}, "steps": 300}
    assert set(full["run"]) == keys
    assert len(full["run"]["loss"]) == 300
    again(pytester, "--nanstab", "--nanstab-report=r.json")
    assert len(strict(pytester.path / "test_watched")["run"]["loss"]) == 300


def test_items_keep_nothing(pytester):
    """The measurements of a test go with its report: items live as long as the session."""
    pytester.makeconftest("""
def pytest_sessionfinish(session):
    from pytest_nanstab.items import WATCH
    from pytest_nanstab.suite.expand import RECORD
    print("kept", [item.name for item in session.items if WATCH in item.stash or RECORD in item.stash])
""")
    assert "kept []" in run_inside(pytester, EVERYTHING, "--nanstab", "-s").text


def test_a_report_that_cannot_be_written(pytester):
    """It is said in the summary, and the verdicts and the exit status stay what they are."""
    (pytester.path / "file").write_text("")
    ran = run_inside(pytester, "def test_x(): pass\n", "--nanstab-report=file/r.json", "--nanstab-report=r.json")
    assert ran.code == 0
    target = pytester.path / "file" / "r.json"
    assert [line for line in ran.lines if "nanstab report" in line] == [
        f"nanstab report: {pytester.path / 'r.json'}",
        f"could not write nanstab report {target}: {reason(target)}",
    ]


def reason(target: Path) -> str | None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("")
    except OSError as error:
        return error.strerror
    return None


def test_the_report_goes_where_the_session_began(pytester):
    """A test that leaves another working directory behind does not move it."""
    body = "def test_x(tmp_path):\n    import os\n    os.chdir(tmp_path)\n"
    run_inside(pytester, body, "--nanstab-report=r.json")
    assert strict(pytester.path / "r.json")["tests"] == []


def test_headroom_on_request(pytester):
    """--nanstab-headroom measures it in every test and lists the nearest; without it only suites and limits do."""
    body = """
def test_wide(): train()

def test_narrow():
    nn.Identity()(torch.full((2,), 3e38))

@pytest.mark.nanstab
def test_explicit(): train()
"""
    ran = run_inside(pytester, body, "--nanstab", "--nanstab-headroom=2")
    start = ran.lines.index("least headroom (2 of 3, --nanstab-headroom=0 for all)")
    assert ran.lines[start + 1 : start + 4] == [
        "  margin  measured  limit    quantity    step  test",
        "    ≤0.2  3.0e+38   3.4e+38  activation        test_it.py::test_narrow",
        "  ≤126.4  3.0e+00   3.4e+38  gradient          test_it.py::test_wide",
    ]
    assert "least headroom" not in again(pytester, "--nanstab").text


def test_reruns_replace_each_other(pytester):
    """A test that runs again is counted once, by its last record."""
    pytester.makeconftest("""
import pytest
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        report.outcome = "rerun" if report.failed else report.outcome
        item.ihook.pytest_runtest_logreport(report=report)
    item._initrequest()
    runtestprotocol(item, nextitem=nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
""")
    body = "bad = [2, None]\n@pytest.mark.nanstab\ndef test_flaky(): train(bad.pop(0))\n"
    # A run to explain the failure would take the second turn of this test, which has a state of its own.
    ran = run_inside(pytester, body, "--nanstab-report=r.json", "--junitxml=j.xml", "-o", "nanstab_explain=off")
    (record,) = strict(pytester.path / "r.json")["tests"]
    assert (record["outcome"], record["findings"]) == ("passed", [])
    assert "1 test checked, 3 optimizer steps" in ran.lines
    assert properties_in(pytester.path / "j.xml") == {"test_flaky": {"nanstab_steps": "3"}}


def test_training_prelude_is_what_the_line_numbers_say():
    """The expected outputs above count on it."""
    assert TRAINING.lstrip("\n").splitlines()[13].strip() == "loss.backward()"


INNER = """
def test_driver(nanstab):
    nanstab.train(setup(), steps=7)

def test_watch():
    for steps in (2, 5, 1):
        with pytest_nanstab.watch():
            train(steps=steps)
"""


def test_runs_of_inner_watches_are_the_tests(pytester):
    """What `nanstab.train` and `watch` measured is what a report tells of the test: of several the longest."""
    ran = run_inside(pytester, INNER, "--nanstab", "--nanstab-report=report.json")
    assert ", 12 optimizer steps" in ran.text
    tests = json.loads((pytester.path / "report.json").read_text("utf-8"))["tests"]
    assert [test["run"]["steps"] for test in tests] == [7, 5]
    assert all(len(test["run"]["loss"]) == test["run"]["steps"] for test in tests)


def test_a_clip_before_a_step_that_a_finding_stopped_is_not_called_useless(pytester):
    """The step that would have shown what the clip is good for never came."""
    ran = run_inside(
        pytester,
        """
@pytest.mark.nanstab
def test_clips():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = model(torch.ones(4, 2)).pow(2).mean() / 0
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
    )
    assert "Inf in the loss" in ran.text
    assert "had no effect" not in ran.text
