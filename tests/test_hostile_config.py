"""Configuration from a stranger: whatever is stated is taken, or refused with key, value and what is allowed."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_runs import PLAIN, again

from pytest_nanstab import settings as read_settings
from pytest_nanstab.config import EXPLAIN, GRADES, LIMIT_NAMES, MODES, check_limits, told

QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True)


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class NoEquality:
    __hash__ = object.__hash__

    def __eq__(self, other):
        raise RuntimeError("no equality")


class Coloured:
    def __repr__(self):
        return "\x1b[31mred\nsecond line\u202e"


ODD = [
    math.nan, math.inf, -math.inf, True, False, 10**400, -(10**400), 10**5000, 1e308, 5e-324, -0.0, 1j,
    np.float32(1), np.float64(2), np.float64("nan"), np.int64(3), np.bool_(True), np.array([1.0, 2.0]),
    torch.tensor(1.0), torch.tensor([1.0, 2.0]), torch.tensor(math.nan), Fraction(1, 3),
    "", "3", "nan", "x" * 10**6, "\x1b[31m", "\ud800", "\0", b"1", [], {}, (), object, len,
    NoRepr(), NoEquality(), Coloured(), [NoRepr()],
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    ["\ud800", "\0", "\x1b[2J", "a\nb", "\u202e", ""]
)
values = (
    st.sampled_from(ODD)
    | st.floats()
    | st.integers()
    | texts
    | st.recursive(st.none() | st.booleans() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
)


def is_readable(message):
    """One printable line that a person reads to its end."""
    return message.isprintable() and len(message) < 1000


# --- limits and markers


@QUICK
@given(st.sampled_from(LIMIT_NAMES), values)
def test_a_limit_is_a_number_or_refused(name, value):
    """No other exception, and no limit that is not finite."""
    try:
        limit = check_limits({name: value})[name]
    except (TypeError, ValueError) as error:
        assert name in str(error)
        assert "must be a" in str(error)
        assert is_readable(str(error))
    else:
        assert limit is None or (type(limit) is float and math.isfinite(limit) and limit >= 0)


def marked(*args, **kwargs):
    item = SimpleNamespace(nodeid="t.py::test_a")
    return read_settings._check_mark(item, SimpleNamespace(args=args, kwargs=kwargs))


@QUICK
@given(st.dictionaries(st.sampled_from(LIMIT_NAMES) | texts, values, max_size=3), st.lists(values, max_size=1))
def test_markers_are_taken_or_refused(kwargs, args):
    """A wrong marker names the test, what was given and what is allowed."""
    try:
        limits, allowed = marked(*args, **kwargs)
    except pytest.UsageError as error:
        assert str(error).startswith("t.py::test_a: marker nanstab: ")
        assert is_readable(str(error))
    else:
        assert not args
        assert set(limits) == set(kwargs) - {"allow_nonfinite"}
        assert allowed is None or allowed <= {"output"}


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_the_names_of_a_marker(value):
    """allow_nonfinite holds "output" or nothing: of what raises when it is compared, too."""
    for given_value in (value, (value,), ("output", value), [value]):
        try:
            _, allowed = marked(allow_nonfinite=given_value)
        except pytest.UsageError as error:
            assert "output" in str(error)
            assert is_readable(str(error))
        else:
            assert allowed == frozenset()
            assert len(given_value) == 0


def test_a_good_marker_is_taken():
    """The control: these functions do accept what is right."""
    assert marked(max_loss=3, allow_nonfinite=["output"]) == ({"max_loss": 3.0}, frozenset({"output"}))


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_values_in_messages(value):
    """Printable, short, and of objects whose own repr raises, too."""
    assert is_readable(told(value))


# --- ini values, as any version of pytest may hand them over


class Config:
    """As much of pytest's configuration as the settings are read from."""

    def __init__(self, root, ini=(), options=()):
        defaults = {"nanstab": "explicit", "nanstab_device": "cpu", "nanstab_explain": ""}
        defaults |= {"nanstab_fail_grade": GRADES[-1], "nanstab_baseline_dir": "nanstab_baselines"}
        self.ini, self.options = {**defaults, **dict(ini)}, dict(options)
        self.inicfg = self.ini
        self.rootpath, self.inipath = root, root / "pytest.ini"
        self.invocation_params = SimpleNamespace(dir=root)

    def getini(self, name):
        value = self.ini.get(name)
        if isinstance(value, Exception):
            raise value
        return value

    def getoption(self, name, default=None):
        return self.options.get(name, default)


KEYS = ("nanstab", "nanstab_device", "nanstab_explain", "nanstab_fail_grade", "nanstab_baseline_dir")
KEYS += tuple(f"nanstab_{name}" for name in LIMIT_NAMES)
refusals = st.builds(TypeError, texts) | st.builds(ValueError, texts) | st.builds(pytest.UsageError, texts)


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS), values | refusals, max_size=3))
def test_ini_values_are_taken_or_refused(ini):
    """A usage error names the key, what was given, what is allowed, and the file."""
    try:
        taken = read_settings.read(Config(Path.cwd(), ini))
    except pytest.UsageError as error:
        assert any(str(error).startswith(f"{key} must be ") for key in ini)
        assert "(pytest.ini)" in str(error)
        assert is_readable(str(error))
    else:
        assert taken.mode in MODES
        assert taken.explain in ("", *EXPLAIN)
        assert taken.fail_grade in GRADES
        assert all(math.isfinite(limit.value) for limit in taken.limits.values())
        assert (Path.cwd() / taken.baseline_dir).resolve().is_relative_to(Path.cwd().resolve())


def read_with(root, **options):
    return read_settings.read(Config(root, (), options))


@QUICK
@given(st.lists((texts | st.just("~nobody_here/a")).map(lambda name: f"{name}.json"), max_size=2))
def test_report_paths_are_taken_or_refused(paths):
    """What no file can be called is refused before the tests run, not after them."""
    try:
        taken = read_with(Path.cwd(), nanstab_report=paths)
    except pytest.UsageError as error:
        assert str(error).startswith("--nanstab-report")
        assert str(error).isprintable()
    else:
        for path in taken.reports:
            assert Path(path).is_absolute()
            assert b"\0" not in os.fsencode(path)


@QUICK
@given(texts | st.from_regex(r"[0-9]{0,30}", fullmatch=True) | st.just("9" * 5000) | st.just("\uff11"))
def test_the_number_of_margins(text):
    """A whole number, or an error of the command line."""
    from argparse import ArgumentTypeError

    try:
        assert read_settings.headroom_number(text) >= 0
    except ArgumentTypeError as error:
        assert "whole number" in str(error)
        assert is_readable(str(error))


@QUICK
@given(texts, texts)
def test_ci_variables(ci, allowed):
    """No value of an environment variable does more than allow or refuse."""
    usual = (str(text).replace("\0", "").encode("utf-8", "replace").decode() for text in (ci, allowed))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("CI", "NANSTAB_UPDATE_IN_CI"), usual, strict=True):
            patch.setenv(name, value)
        try:
            assert read_with(Path.cwd(), nanstab_update=True).update is True
        except pytest.UsageError as error:
            assert "NANSTAB_UPDATE_IN_CI=1" in str(error)
            assert allowed != "1"


# --- folders of baselines


@pytest.fixture
def root(tmp_path):
    """A root with a good folder, one that leads out of it, and two links that lead to each other."""
    inside, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (inside / "good", outside):
        folder.mkdir(parents=True)
    (inside / "leak").symlink_to(outside)
    (inside / "one").symlink_to("two")
    (inside / "two").symlink_to("one")
    return inside


REFUSED = [
    "..", "../outside", "good/../..", "leak", "leak/deeper", "/", "/etc", "C:\\base", "C:base", "\\\\host\\share\\x",
    "a\0b", "\ud800", "", "  ", "\n", None, 3, True, ["good"], Path("good"),
]  # fmt: skip


@pytest.mark.parametrize("folder", REFUSED, ids=map(repr, REFUSED))
def test_folders_outside_the_root_are_refused(root, folder):
    """By name, by a link, by a drive, and what is no name at all."""
    with pytest.raises(
        pytest.UsageError, match="nanstab_baseline_dir must be the name of a folder inside rootdir, got "
    ):
        read_settings.read(Config(root, {"nanstab_baseline_dir": folder}))


def test_links_in_a_circle_are_no_crash(root):
    """Whether they are refused or lead nowhere depends on the version of Python."""
    try:
        taken = read_settings.read(Config(root, {"nanstab_baseline_dir": "one"}))
    except pytest.UsageError as error:
        assert "inside rootdir" in str(error)
    else:
        assert taken.baseline_dir == "one"


@pytest.mark.parametrize("folder", [".", "good", "good/../good", "new/deep", "\u00fc \u4e2d", "~", "ab:c", "it's"])
def test_folders_inside_the_root_are_taken(root, folder):
    """The control: names that are odd and harmless."""
    assert read_settings.read(Config(root, {"nanstab_baseline_dir": folder})).baseline_dir == folder


# --- real sessions

LINES = {
    "pytest.ini": "[pytest]\n{key} = {value}\n",
    "tox.ini": "[pytest]\n{key} = {value}\n",
    "setup.cfg": "[tool:pytest]\n{key} = {value}\n",
    "pyproject.toml": '[tool.pytest.ini_options]\n{key} = "{value}"\n',
    "pytest.toml": '[pytest]\n{key} = "{value}"\n',
}
FILES = [name for name in LINES if name != "pytest.toml" or pytest.version_tuple >= (9, 0)]
WRONG = [("nanstab", "\u202ealles"), ("nanstab_max_loss", "-inf"), ("nanstab_baseline_dir", "../x")]


@pytest.mark.parametrize(("file", "key", "value"), [(name, *WRONG[i % 3]) for i, name in enumerate(FILES)])
def test_every_file_is_refused_in_one_line(pytester, file, key, value):
    """Exit status 4, and a line that names the key, the value and the file; no INTERNALERROR."""
    pytester.makepyfile("def test_x(): pass")
    (pytester.path / file).write_text(LINES[file].format(key=key, value=value), encoding="utf-8")
    ran = again(pytester)
    assert ran.code == 4
    assert [line for line in ran.errors if not line.startswith(f"ERROR: {key} must be ")] == [], ran.errors
    shown = told(value)[1:-1].strip("'")
    assert len(ran.errors) == 1
    assert shown in ran.errors[0]
    if pytest.version_tuple >= (9, 0) or "max_loss" not in key:
        assert f"({file})" in ran.errors[0]


NATIVE = [
    ("nanstab", "true"), ("nanstab", "1979-05-27"), ("nanstab_max_loss", "nan"), ("nanstab_max_loss", "[1, 2]"),
    ("nanstab_baseline_dir", "{a = 1}"), ("nanstab_baseline_dir", '"\\u0000"'),
]  # fmt: skip


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="native TOML came with pytest 9")
@pytest.mark.parametrize(("key", "value"), NATIVE)
def test_native_values_of_any_type(pytester, key, value):
    """TOML has types of its own."""
    pytester.makepyfile("def test_x(): pass")
    (pytester.path / "pytest.toml").write_text(f"[pytest]\n{key} = {value}\n", encoding="utf-8")
    ran = again(pytester)
    assert ran.code == 4
    assert len(ran.errors) == 1
    assert ran.errors[0].startswith(f"ERROR: {key} must be ")


MARKS = ["max_loss=10**400", "allow_nonfinite=(torch.ones(2),)", "Odd()", '**{"\\x1b[31m": 1}']
MARKED = """
import pytest, torch
class Odd:
    def __repr__(self): raise RuntimeError
    def __eq__(self, other): raise RuntimeError
@pytest.mark.nanstab({})
def test_x(): pass
"""


@pytest.mark.parametrize("mark", MARKS)
def test_wrong_marks_in_a_session(pytester, mark):
    """A usage error that names the test."""
    pytester.makepyfile(test_it=MARKED.format(mark))
    ran = again(pytester)
    assert ran.code == 4
    assert ran.errors[0].startswith("ERROR: test_it.py::test_x: marker nanstab: ")
    assert "INTERNALERROR" not in ran.text


def test_odd_and_right_in_a_session(pytester):
    """The control: numpy's own float is one, None takes a limit away, and an empty tuple allows nothing."""
    pytester.makepyfile(test_it=MARKED.format("max_loss=numpy.float64(3), max_grad_norm=None, allow_nonfinite=()")
                        .replace("import pytest", "import numpy, pytest"))  # fmt: skip
    ran = again(pytester, "-v")
    assert ran.code == 0
    assert "max_loss=3 (function marker)" in ran.text


def test_reports_that_cannot_be_named(pytester):
    """Refused before the tests, in one line."""
    pytester.makepyfile("def test_x(): pass")
    for path in ("~nobody_here/x.json", "x\0.json"):
        result = pytester.runpytest_inprocess(*PLAIN, f"--nanstab-report={path}")
        assert int(result.ret) == 4
        assert "cannot be written" in result.stderr.str()
