"""pytest's own switches beside --nanstab: each does what it does, and a bug is found as ever."""

from __future__ import annotations

import pytest
from plugin_runs import TRAINING, Ran, again, kinds_in, run_inside

BODY = """
def test_broken(): train(bad=2)

@pytest.mark.nanstab
def test_marked(): train(bad=2)

def test_healthy(): train()

@stability_suite(checks=["finite_steps", "finite_eval"], steps=3)
def test_suite(): return setup()
"""
FOUND = {
    "test_broken": "failed",
    "test_marked": "failed",
    "test_healthy": "passed",
    "test_suite[finite_steps-32-true]": "passed",
    "test_suite[finite_eval-32-true]": "passed",
}
KINDS = {name: ["nonfinite-loss"] if word == "failed" else [] for name, word in FOUND.items()}


PLAIN = ("-p", "no:randomly", "-W", "error", "--nanstab", "--nanstab-report=r.json")


@pytest.fixture
def session(pytester):
    """Run BODY with --nanstab and more; what is printed and what the report says."""

    def run(*options: str, body: str = BODY):
        pytester.makepyfile(test_it=TRAINING + body)
        ran = Ran(pytester.runpytest_inprocess(*PLAIN, *options))
        return ran, kinds_in(pytester) if (pytester.path / "r.json").exists() else None

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("-W", "error"),
        ("--strict-markers", "--strict-config"),
        ("--capture=no",),
        ("--capture=sys",),
        ("-p", "no:cacheprovider"),
        ("--import-mode=importlib",),
        ("--import-mode=prepend",),
        ("--import-mode=append",),
        ("--assert=plain",),
        ("-p", "nanstab"),
        ("-p", "no:logging"),
        ("-p", "no:warnings"),
        ("-p", "no:doctest", "-p", "no:unittest"),
        (
            "-p",
            "no:skipping",
        ),
        ("--full-trace",),
        ("--showlocals",),
        ("-s", "--setup-show"),
        ("--color=yes",),
        ("-v",),
        ("--durations=3", "-vv"),
        ("-o", "xfail_strict=true"),
        ("-o", "console_output_style=classic"),
        ("--rootdir=.",),
    ],
    ids=" ".join,
)
def test_what_is_found_stays_the_same(session, options):
    ran, kinds = session(*options)
    assert ran.result.parseoutcomes() == {"failed": 2, "passed": 3}
    assert kinds == KINDS
    assert ran.code == 1
    assert "INTERNALERROR" not in ran.text


@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "native", "no"])
def test_traceback_styles(session, style):
    """The block is there in every style but "no"; none of our lines, and none of torch's, is shown."""
    ran, kinds = session(f"--tb={style}")
    assert kinds == KINDS
    blocks = sum("op        mul, float32[]: the value became NaN" in line for line in ran.lines)
    # Before pytest 9 "line" is one line, whatever a failure says.
    assert blocks == 2 or style == "no" or (style == "line" and pytest.version_tuple < (9,))
    assert not any("pytest_nanstab" in line or "torch/optim" in line for line in ran.lines)


@pytest.mark.parametrize("quiet", ["-q", "-qq"])
def test_quiet(session, quiet):
    """Less is printed; what is found, and the report, stay."""
    ran, kinds = session(quiet)
    assert kinds == KINDS
    assert ran.code == 1


def test_color(session):
    """Colours are pytest's own, and the text between them is the same."""
    plain, _ = session("--color=no")
    coloured, _ = session("--color=yes")
    assert "\x1b[" not in plain.text
    assert "\x1b[" in coloured.text
    shown = coloured.result.stdout.str()
    assert "NaN in the loss at step 2, born in train()" in shown


def test_without_a_terminal(session):
    """-p no:terminal: nothing is printed, the verdicts and the report are the same."""
    ran, kinds = session("-p", "no:terminal")
    assert (ran.code, kinds, ran.text.strip(), ran.errors) == (1, KINDS, "", [])


def test_without_the_plugin(pytester):
    """-p no:nanstab: no option, no marker, no section."""
    plain = "import pytest\ndef test_broken(): train(bad=2)\n"
    ran = run_inside(pytester, plain, "-p", "no:nanstab")
    assert ran.outcomes == {"test_broken": "passed"}
    assert "nanstab:" not in ran.text
    assert run_inside(pytester, plain, "-p", "no:nanstab", "--nanstab").code == 4


@pytest.mark.parametrize(
    ("options", "ran_tests"),
    [
        (("-x",), ["test_broken"]),
        (("--maxfail=1",), ["test_broken"]),
        (("--maxfail=2",), ["test_broken", "test_marked"]),
        (("--sw",), ["test_broken"]),
        (("--deselect", "test_it.py::test_broken", "-x"), ["test_marked"]),
        (("-k", "not broken and not marked"), list(FOUND)[2:]),
        (("-m", "nanstab"), ["test_marked", *list(FOUND)[3:]]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_runs(session, options, ran_tests):
    """A finding counts as a failure where pytest stops at one; what is left out is neither watched nor reported."""
    _, kinds = session(*options)
    assert kinds == {name: KINDS[name] for name in ran_tests}


def test_last_failed_first_and_stepwise(session, pytester):
    """What a finding failed is run again by --lf, first by --ff, and stepped from by --sw."""
    tests = BODY.split("\n\n")[:3]
    body = "\n\n".join([tests[2], *tests[:2]])
    session(body=body)
    for options, expected in (
        (("--lf",), ["test_broken", "test_marked"]),
        (("--ff",), ["test_broken", "test_marked", "test_healthy"]),
        (("--sw",), ["test_healthy", "test_broken"]),
        (("--sw",), ["test_broken"]),
        (("--sw", "--sw-skip"), ["test_broken", "test_marked"]),
    ):
        pytester.runpytest_inprocess(*PLAIN, *options)
        assert list(kinds_in(pytester))[:3] == expected


@pytest.mark.parametrize("options", [("--collect-only",), ("--co", "-q"), ("--setup-plan",), ("--fixtures-per-test",)])
def test_nothing_is_run(session, options):
    """Where pytest only shows what it would do, nothing trains, and no section and no report pretend that it did."""
    ran, _ = session(*options)
    assert ran.code == 0
    assert "tests checked" not in ran.text
    assert "tests watched" not in ran.text


def test_strict_xfail(session):
    """xfail_strict judges an expected finding that does not come, and one that does."""
    body = """
@pytest.mark.xfail
def test_known(): train(bad=2)

@pytest.mark.xfail(raises=NonFiniteError)
def test_better_than_known(): train()
"""
    ran, kinds = session("-o", "xfail_strict=true", "-rA", body=body)
    assert ran.outcomes == {"test_known": "xfail", "test_better_than_known": "failed"}
    assert kinds == {"test_known": ["nonfinite-loss"], "test_better_than_known": []}


DEBUGGER = """
import pdb

class Fake(pdb.Pdb):
    def interaction(self, frame, error, *rest):
        self.setup(frame, getattr(error, "__traceback__", error))
        frame, line = self.stack[self.curindex]
        names = sorted(name for name in frame.f_locals if not name.startswith("@"))
        print("debugs", frame.f_code.co_filename.replace("\\\\\\\\", "/").rpartition("/")[2], line, names)
"""


def test_pdb(pytester):
    """A finding enters the debugger at the user's line with the user's variables, whenever the verdict was raised."""
    body = BODY + "\ndef test_fails_itself():\n    train(bad=2)\n    mine = 1\n    assert mine == 2\n"
    body += "\ndef test_fixture(nanstab): nanstab.train(setup(bad=True), steps=3)\n"
    options = ("--nanstab", "--pdb", "--pdbcls=fake:Fake", "-s")
    ran = run_inside(pytester, body, *options, fake=DEBUGGER)
    trained = "['bad', 'loss', 'model', 'optimizer', 'scale', 'step', 'steps']"
    last = TRAINING.count("\n") + body[: body.index("assert mine")].count("\n") + 1
    assert [line for line in ran.lines if line.startswith("debugs")] == [
        f"debugs test_it.py 15 {trained}",
        f"debugs test_it.py 15 {trained}",
        f"debugs test_it.py {last - 1} ['mine']",
        f"debugs test_it.py {last + 1} ['nanstab']",
    ]
    assert ran.result.parseoutcomes() == {"failed": 4, "passed": 3}


def test_twice_in_one_process(pytester):
    """pytest.main() again, with other settings: nothing of the first session is left in the second."""
    pytester.makepyfile(test_it=TRAINING + BODY)
    words = {"--nanstab": FOUND, "-onanstab=off": {"test_broken": "passed", "test_healthy": "passed"}}
    explicit = {**FOUND, "test_broken": "passed"}
    for option, expected in (*words.items(), ("--nanstab", FOUND), ("-onanstab=explicit", explicit)):
        assert again(pytester, option).outcomes == expected


NESTED = """
import os
pytest_plugins = ["pytester"]
NEIGHBOURS = os.environ["PYTEST_ADDOPTS"].split()
INNER = '''
import torch
def test_inner():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    (weight.sum() * float("nan")).backward()
    optimizer.step()
'''

def inner(tmp_path, *options):
    (tmp_path / f"test_inner_{tmp_path.name}.py").write_text(INNER)
    return pytest.main([str(tmp_path), "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options])

def test_main_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inner(tmp_path, "--nanstab") == 1
    train()

def test_main_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inner(tmp_path, "-o", "nanstab=off") == 0

def test_pytester(pytester):
    pytester.makepyfile(INNER)
    pytester.runpytest_inprocess("--nanstab", "-p", "no:randomly", *NEIGHBOURS).assert_outcomes(failed=1)

def test_own_bug_after_a_session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inner(tmp_path, "--nanstab") == 1
    train(bad=2)

def test_healthy(): train()
"""


def test_sessions_within_watched_tests(pytester):
    """Each session judges its own tests; the outer one goes on watching when the inner has ended."""
    ran = run_inside(pytester, NESTED, "--nanstab", "--nanstab-report=r.json")
    outcomes = {name: word for name, word in ran.outcomes.items() if name != "test_inner"}  # printed by inner ones
    assert outcomes == {
        "test_main_watched": "passed",
        "test_main_off": "failed",  # nobody in there has judged it: it is the outer test's own training
        "test_pytester": "passed",
        "test_own_bug_after_a_session": "failed",
        "test_healthy": "passed",
    }
