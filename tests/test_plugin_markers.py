"""Markers and settings: where they may stand, which one wins, and what a wrong one is answered."""

from __future__ import annotations

from itertools import dropwhile

import pytest
from plugin_runs import Ran, again, run_inside

LEVELS = """
pytestmark = pytest.mark.nanstab(max_loss=1e3, min_grad_norm=1e-6)

def test_module(): train()

@pytest.mark.nanstab(max_loss=None, max_grad_norm=50)
def test_function(): train()

@pytest.mark.nanstab(max_loss=2e3, max_grad_norm=60)
@pytest.mark.nanstab(max_loss=3e3)
def test_stacked(): train()

@pytest.mark.parametrize("scale", [1.0, pytest.param(2.0, marks=pytest.mark.nanstab(max_loss=20))])
@pytest.mark.nanstab(max_loss=10)
def test_parametrized(scale): train(scale=scale)

@pytest.mark.nanstab(max_loss=100, max_update_ratio=9)
class Base:
    def test_method(self): train()

class TestBase(Base):
    pass

@pytest.mark.nanstab(max_loss=200)
class TestDerived(Base):
    @pytest.mark.nanstab(min_grad_norm=None)
    def test_own(self): train()

class TestUnittest(unittest.TestCase):
    pytestmark = [pytest.mark.nanstab(max_loss=300)]

    @pytest.mark.nanstab(max_grad_norm=70)
    def test_method(self): train()

def test_call(nanstab):
    with nanstab.watch(max_loss=5, max_update_ratio=None) as run:
        train()
    assert run.steps == 3
"""


def limits_of(ran: Ran) -> dict[str, str]:
    """What -v says about the limits of each test."""
    found: dict[str, str] = {}
    section = iter(ran.block("= nanstab =", "short test summary").splitlines())
    for line in dropwhile(lambda line: not line.startswith("test_it.py::"), section):
        if line.startswith("    "):
            found[next(reversed(found))] += " " + line.strip()
        else:
            name, _, rest = line.partition("  ")
            found[name.partition("::")[2]] = rest
    return found


def test_markers_merge_field_by_field(pytester):
    """Function beats class beats module beats command line beats file; None removes; -v shows where each is from."""
    pytester.makeini("[pytest]\nnanstab_max_loss = 4e3\nnanstab_min_grad_norm = 1e-3\nnanstab_max_update_ratio = 8\n")
    ran = run_inside(pytester, LEVELS, "-v", "-o", "nanstab_max_update_ratio=7")
    assert set(ran.outcomes.values()) == {"passed"}
    module = "min_grad_norm=1e-06 (module marker)"
    line = "max_update_ratio=7 (command line)"
    assert limits_of(ran) == {
        "test_module": f"max_loss=1000 (module marker), {module}, {line}",
        "test_function": f"max_grad_norm=50 (function marker), {module}, {line}",
        "test_stacked": f"max_loss=3000 (function marker), max_grad_norm=60 (function marker), {module}, {line}",
        "test_parametrized[1.0]": f"max_loss=10 (function marker), {module}, {line}",
        "test_parametrized[2.0]": f"max_loss=20 (parameter marker), {module}, {line}",
        "TestBase::test_method": f"max_loss=100 (class marker), {module}, max_update_ratio=9 (class marker)",
        "TestDerived::test_method": f"max_loss=200 (class marker), {module}, max_update_ratio=9 (class marker)",
        "TestDerived::test_own": "max_loss=200 (class marker), max_update_ratio=9 (class marker)",
        "TestUnittest::test_method": "max_loss=300 (class marker), max_grad_norm=70 (function marker), "
        f"{module}, {line}",
        "test_call": f"max_loss=1000 (module marker), {module}, {line}",
    }


def test_limits_of_the_session_are_for_explicit_tests(pytester):
    """A limit in the ini file fails explicit tests only, --nanstab or not; a marker or a call takes it away."""
    pytester.makeini("[pytest]\nnanstab_max_loss = 1e-9\n")
    body = """
def test_plain(): train()

@pytest.mark.nanstab
def test_marked(): train()

@pytest.mark.nanstab(max_loss=None)
def test_removed(): train()

def test_fixture(nanstab): nanstab.train(setup(), steps=2)

def test_call(nanstab): nanstab.train(setup(), steps=2, max_loss=1e9)

def test_call_removes(nanstab):
    with nanstab.watch(max_loss=None):
        train()

@stability_suite(checks="gradient_bounds", steps=2)
def test_suite(): return setup()

@stability_suite(checks="gradient_bounds", steps=2, max_loss=None)
def test_suite_removes(): return setup()

@pytest.mark.nanstab(max_loss=100)
@stability_suite(checks="gradient_bounds", steps=2)
def test_suite_marker(): return setup()

def test_late(request):
    request.getfixturevalue("nanstab").train(setup(), steps=2)
"""
    ran = run_inside(pytester, body, "--nanstab")
    assert ran.outcomes == {
        "test_plain": "passed",
        "test_marked": "failed",
        "test_removed": "passed",
        "test_fixture": "failed",
        "test_call": "passed",
        "test_call_removes": "passed",
        "test_suite[gradient_bounds-32-true]": "failed",
        "test_suite_removes[gradient_bounds-32-true]": "passed",
        "test_suite_marker[gradient_bounds-32-true]": "passed",
        "test_late": "failed",
    }
    assert "  allowed   at most 1e-09 (max_loss, tox.ini)" in ran.lines


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("nanstab(100)", "it takes keyword arguments only (max_loss, max_grad_norm, min_grad_norm, max_update_ratio, "
         "min_headroom_bits, allow_nonfinite), got 100"),
        ("nanstab(max_los=1)", "unknown argument 'max_los'; allowed are max_loss, max_grad_norm, min_grad_norm, "
         "max_update_ratio, min_headroom_bits, allow_nonfinite; did you mean 'max_loss'?"),
        ("nanstab(max_loss='1')", "max_loss must be a number or None, got '1'"),
        ("nanstab(max_loss=True)", "max_loss must be a number or None, got True"),
        ("nanstab(max_loss=float('nan'))", "max_loss must be a finite number, 0 or more, got nan"),
        ("nanstab(max_grad_norm=-1)", "max_grad_norm must be a finite number, 0 or more, got -1"),
        ("nanstab(allow_nonfinite='output')", "allow_nonfinite must be a tuple like (\"output\",), got 'output'"),
        ("nanstab(allow_nonfinite=('loss',))", "allow_nonfinite may hold \"output\" only, got 'loss'"),
    ],
)  # fmt: skip
def test_wrong_markers(pytester, marker, message):
    """A wrong marker is a usage error before any test runs; it names the test, what was given and what is allowed."""
    pytester.makepyfile(f"import pytest\n\ndef test_a(): 1 / 0\n\n@pytest.mark.{marker}\ndef test_x(): pass\n")
    ran = again(pytester)
    assert ran.code == 4
    assert ran.errors == [f"ERROR: test_wrong_markers.py::test_x: marker nanstab: {message}"]
    assert "Traceback" not in ran.text


def test_all_wrong_markers_are_told_at_once(pytester):
    """One usage error for all of them, each once; after ten the rest are counted."""
    wrong = [f"@pytest.mark.nanstab(max_loss=-{number})\ndef test_{number}(): pass\n" for number in range(1, 13)]
    pytester.makepyfile("import pytest\n\n" + "".join(wrong[:2]) + "def test_fine(): pass\n")
    ran = again(pytester)
    name = "test_all_wrong_markers_are_told_at_once.py"
    message = "marker nanstab: max_loss must be a finite number, 0 or more, got"
    assert (ran.code, ran.errors) == (4, [f"ERROR: {name}::test_1: {message} -1", f"{name}::test_2: {message} -2"])
    pytester.makepyfile("import pytest\n\n" + "".join(wrong))
    ran = again(pytester)
    assert [len(ran.errors), ran.errors[-1]] == [11, "and 2 more"]


def test_a_project_without_tests_is_told_what_to_do(pytester):
    """Only where the flag was given, and only where nothing was collected."""
    words = "nanstab: no test to watch; call your training from one, or put it under `with pytest_nanstab.watch():`"
    assert words in again(pytester, "--nanstab").lines
    assert words not in again(pytester).lines
    pytester.makepyfile("def test_a(): pass")
    assert words not in again(pytester, "--nanstab").lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "nanstab=sometimes"],
         "nanstab must be one of 'explicit', 'all', 'report', 'off', got 'sometimes' (command line)"),
        (["-o", "nanstab_max_loss=abc"],
         "nanstab_max_loss must be a finite number, 0 or more, got 'abc' (command line)"),
        (["-o", "nanstab_max_loss=nan"], "nanstab_max_loss must be a finite number, 0 or more, got nan (command line)"),
        (["-o", "nanstab_max_loss=-3"], "nanstab_max_loss must be a finite number, 0 or more, got -3.0 (command line)"),
        (["-o", "nanstab_device=tpu"], "nanstab_device must be cpu, cuda, mps or xpu, with an optional index as in "
         "cuda:1, got 'tpu' (command line)"),
        (["-o", "nanstab_device=cuda:"], "nanstab_device must be cpu, cuda, mps or xpu, with an optional index as in "
         "cuda:1, got 'cuda:' (command line)"),
        (["-o", "nanstab_explain=always"],
         "nanstab_explain must be one of 'rerun', 'local', 'off', got 'always' (command line)"),
        (["-o", "nanstab_max_gradnorm=3"],
         "unknown ini key 'nanstab_max_gradnorm'; allowed: nanstab, nanstab_max_loss, nanstab_max_grad_norm, "
         "nanstab_min_grad_norm, nanstab_max_update_ratio, nanstab_min_headroom_bits, nanstab_device, nanstab_explain, "
         "nanstab_fail_grade, nanstab_baseline_dir; did you mean 'nanstab_max_grad_norm'?"),
        (["-o", 'nanstab="report"'],
         "nanstab must be one of 'explicit', 'all', 'report', 'off', got '\"report\"' (command line); write it "
         "without quotes"),
        (["-o", "nanstab_fail_grade=bad"], "nanstab_fail_grade must be one of 'typical data', 'fresh model', 'trained "
         "model', 'adversarial training', 'scaled weights', 'zeroed weights', got 'bad' (command line)"),
        (
            ["--nanstab-report=x.txt"],
            "--nanstab-report must name a .json, .md or .html file or a .tensorboard folder, got 'x.txt'",
        ),
        (["--nanstab", "-o", "nanstab=off"], "--nanstab means nanstab=all and cannot be combined with -o nanstab=off"),
    ],
)  # fmt: skip
def test_wrong_settings(pytester, arguments, message):
    """A wrong setting ends the session at once, in one line that names the key, the value and what is allowed."""
    pytester.makepyfile("def test_x(): pass")
    ran = again(pytester, *arguments)
    assert ran.code == 4
    assert ran.errors == [f"ERROR: {message}"]
    assert ran.lines == []


@pytest.mark.parametrize("given", ["-1", "x", "1.5", "²", ""])
def test_wrong_headroom(pytester, given):
    """--nanstab-headroom takes a whole number."""
    ran = again(pytester, f"--nanstab-headroom={given}")
    assert ran.code == 4
    assert f"argument --nanstab-headroom: must be a whole number, 0 for all tests, got {given!r}" in "".join(ran.errors)


INI_FILES = [
    ("pytest.ini", "[pytest]\nnanstab = report\nnanstab_max_loss = 3\n"),
    ("tox.ini", "[pytest]\nnanstab = report\nnanstab_max_loss = 3.0\n"),
    ("setup.cfg", "[tool:pytest]\nnanstab = report\nnanstab_max_loss = 3\n"),
    ("pyproject.toml", '[tool.pytest.ini_options]\nnanstab = "report"\nnanstab_max_loss = 3\n'),
    ("pyproject.toml", '[tool.pytest.ini_options]\nnanstab = "report"\nnanstab_max_loss = "3e0"\n'),
    ("pyproject.toml", '[tool.pytest]\nstrict = true\nnanstab = "report"\nnanstab_max_loss = 3\n'),
    ("pytest.toml", '[pytest]\nnanstab = "report"\nnanstab_max_loss = 3.0\n'),
]
since_9 = pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="native TOML came with pytest 9")


@pytest.mark.parametrize(
    ("name", "text"),
    [pytest.param(*file, marks=since_9) if "ini_options" not in file[1] and "toml" in file[0] else file
     for file in INI_FILES],
    ids=["pytest.ini", "tox.ini", "setup.cfg", "ini_options", "ini_options-string", "native", "pytest.toml"],
)  # fmt: skip
def test_configuration_files(pytester, name, text):
    """Every kind of file pytest reads says the same."""
    (pytester.path / name).write_text(text)
    pytester.makepyfile("import pytest\n@pytest.mark.nanstab\ndef test_x(): pass\n")
    ran = again(pytester, "-v")
    assert "nanstab: report" in ran.lines
    assert f"test_configuration_files.py::test_x  max_loss=3 ({name})" in ran.lines


@since_9
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nanstab = true", "nanstab must be one of 'explicit', 'all', 'report', 'off', got True"),
        ('nanstab_max_loss = "3"', "nanstab_max_loss must be a finite number, 0 or more, got '3'"),
        ("nanstab_max_loss = nan", "nanstab_max_loss must be a finite number, 0 or more, got nan"),
        ("nanstab_device = 0", "nanstab_device must be cpu, cuda, mps or xpu, with an optional index as in cuda:1, "
         "got 0"),
    ],
)  # fmt: skip
def test_wrong_types_in_native_toml(pytester, text, message):
    """A value of the wrong TOML type is answered like any other wrong value."""
    pytester.makepyprojecttoml(f"[tool.pytest]\n{text}\n")
    ran = again(pytester)
    assert ran.code == 4
    assert ran.errors == [f"ERROR: {message} (pyproject.toml)"]


def test_selection(pytester):
    """-m knows every explicit test, users of the fixture included; -k and --lf work as ever."""
    body = """
@pytest.mark.nanstab
def test_marked(): train(bad=2)

def test_fixture(nanstab): pass

@pytest.fixture
def helper(nanstab): return nanstab

def test_indirect(helper): pass

@stability_suite(checks="finite_steps", steps=1)
def test_suite(): return setup()

def test_plain(): pass
"""
    explicit = {"test_marked": "failed", "test_fixture": "passed", "test_indirect": "passed"}
    explicit["test_suite[finite_steps-32-true]"] = "passed"
    assert run_inside(pytester, body, "-m", "nanstab").outcomes == explicit
    assert again(pytester, "-m", "not nanstab").outcomes == {"test_plain": "passed"}
    assert again(pytester, "-k", "indirect").outcomes == {"test_indirect": "passed"}
    pytester.runpytest_inprocess("-p", "no:randomly")
    failed = pytester.runpytest_inprocess("-p", "no:randomly", "--lf")
    failed.assert_outcomes(failed=1)


def test_what_help_says(pytester):
    """The options and keys as --help shows them, in 80 columns; --markers and --fixtures tell what there is."""
    text = pytester.runpytest_inprocess("--help").stdout.str()
    assert (
        """\
numerical stability (pytest-nanstab):
  --nanstab             watch every test that uses torch; one that trains on NaN
                        or Inf, or makes NaN out of finite input, fails even if
                        its own assertions miss it (the same as -o nanstab=all)
  --nanstab-report=PATH
                        write a report of all checked and watched tests, with
                        every measurement; the ending gives the format (.json,
                        .md, .html, or .tensorboard for a folder of event
                        files); may be repeated
  --nanstab-headroom=N  measure the headroom of every test (of unmarked ones at
                        sampled steps) and list the N nearest to overflow or to
                        a limit, 0 for all (default: list what suites and limits
                        measure, if under 4 bits)
"""
        in text
    )
    assert (
        """\
  nanstab (string):     what is checked: "explicit" tests that ask for it, "all"
                        tests (as --nanstab does), "report" for all tests with
                        findings only reported, "off" to skip explicit tests too
  nanstab_max_loss (float):
                        largest |loss| of any step; for explicit tests
"""
        in text
    )
    assert (
        "@pytest.mark.nanstab(*, max_loss=..., max_grad_norm=..., min_grad_norm=..., max_update_ratio=..., "
        "min_headroom_bits=..., allow_nonfinite=()): fail the test at the training step where a loss, gradient, "
        "parameter, buffer, optimizer state or module output becomes NaN or Inf, or breaks a limit. Works on "
        "functions, classes and modules; the closest marker wins, limit by limit, and None removes an inherited "
        'limit. allow_nonfinite=("output",) lets modules return NaN.\n'
    ) in pytester.runpytest_inprocess("--markers").stdout.str()
    lines = pytester.runpytest_inprocess("--fixtures").outlines
    place = next(number for number, line in enumerate(lines) if line.startswith("nanstab -- "))
    assert lines[place + 1] == (
        "    Train and watch with checks: `nanstab.train(setup, steps=50)` returns the `Run`; see the README."
    )


def test_switched_off_as_a_plugin(pytester):
    """-p no:nanstab leaves nothing behind: no option, no marker, no fixture, no hook; the twin has them all."""
    pytester.makeconftest("""
def pytest_unconfigure(config):
    plugins = [name for name, plugin in config.pluginmanager.list_name_plugin() if "nanstab" in name and plugin]
    open("names.txt", "w").write(" ".join(plugins))
""")
    pytester.makepyfile("def test_x(): pass\ndef test_y(nanstab): pass\n")
    assert pytester.runpytest_inprocess().parseoutcomes() == {"passed": 2}
    assert (pytester.path / "names.txt").read_text() == "nanstab nanstab-collector"
    without = pytester.runpytest_inprocess("-p", "no:nanstab")
    assert without.parseoutcomes() == {"passed": 1, "errors": 1}
    assert (pytester.path / "names.txt").read_text() == ""
    assert "nanstab" not in pytester.runpytest_inprocess("-p", "no:nanstab", "--markers").stdout.str()
