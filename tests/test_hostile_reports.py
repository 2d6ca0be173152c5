"""Reports and baselines from a stranger: read, or refused in one line with file and place; nothing in them acts."""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from html_pages import Page, full_record
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_runs import run_inside

import pytest_nanstab
from pytest_nanstab.__main__ import main
from pytest_nanstab.baselines import files, items
from pytest_nanstab.baselines.compare import compare, entry_of
from pytest_nanstab.findings import Finding
from pytest_nanstab.reporting import extras, markdown, model, terminal, text
from pytest_nanstab.reporting.block import render
from pytest_nanstab.reporting.pages import report_page
from pytest_nanstab.watching.run import Run

QUICK = settings(max_examples=120, deadline=None, database=None, derandomize=True)
SLOW = settings(QUICK, max_examples=15)
# Markup, templates, Markdown, control characters, direction marks, a lone surrogate, and more than a line of it.
NASTY = (
    "<script>alert(1)</script>{{ 7*7 }}{% raw %}${HOME}`'\"|*_[x](javascript:alert(1))<img src=x onerror=alert(1)>"
    "&lt;\x00\x1b[31m\x1b]0;title\x07\r\n\u202e\u2066\u200f\ud800\x85\u2028"
)
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
texts = st.just(NASTY) | st.text(st.characters(exclude_categories=[])) | st.sampled_from(["nan", "inf", "", "../../x"])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 10**30, True, -0.0])
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def places_in(node, path=()):
    """Every place in JSON data."""
    yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from places_in(value, (*path, key))


def replaced(node, path, value):
    """The same data with something else in one place."""
    if not path:
        return value
    node = copy.copy(node)
    node[path[0]] = replaced(node[path[0]], path[1:], value)
    return node


def report(*records):
    return {"schema": 1, "environment": {"python": "3.11.7", "torch": "2.13.0"}, "tests": list(records), "summary": {}}


FULL = full_record()
FULL["run"] = {name: value[:3] if isinstance(value, list) else value for name, value in FULL["run"].items()}
FULL["headroom"]["activation"] = dict(list(FULL["headroom"]["activation"].items())[:2])
GOOD = report(FULL)
PLACES = list(places_in(GOOD))
spoiled = st.builds(lambda place, value: replaced(GOOD, place, value), st.sampled_from(PLACES), anything)


def compared(folder, *contents, options=()):
    """(exit status, stdout, stderr) of a comparison of files with these contents."""
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(folder / f"{number}.json"))
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / f"{number}.json").write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["compare", *paths, *options])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


# --- the reader


@QUICK
@given(spoiled)
def test_any_value_in_any_place(folder, data):
    """Compared, or refused with the name of the file; nothing on the way to a terminal is unescaped."""
    status, out, err = compared(folder, json.dumps(data), json.dumps(GOOD), options=["--all"])
    assert status in (0, 1, 2)
    assert not UNSEEN.search(out + err)
    if status == 2:
        assert not out
        assert err.startswith(f"pytest_nanstab compare: {folder / '0.json'}: ")
        assert len(err.splitlines()) == 1


@QUICK
@given(st.integers(0, len(json.dumps(GOOD)) - 1), st.binary(max_size=3))
def test_files_cut_off_and_overwritten(folder, at, put):
    """A file that ends anywhere, and one with other bytes anywhere."""
    whole = json.dumps(GOOD).encode()
    assert compared(folder, whole, whole[:at])[0] == 2
    status, out, err = compared(folder, whole, whole[:at] + put + whole[at + len(put) :], options=["--all"])
    assert status in (0, 1, 2)
    assert not UNSEEN.search(out + err)


DAMAGED = {
    "nested": ("[" * 100_000, "nested too deep"),
    "nested, closed": ('{"schema": 1, "tests": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "objects": ('{"a":' * 100_000, "nested too deep"),
    "NaN": ('{"schema": 1, "tests": [NaN]}', "NaN is no JSON number"),
    "twice": ('{"schema": 1, "tests": [], "tests": [{}]}', "the key 'tests' appears twice"),
    "many digits": ('{"schema": 1, "tests": [' + "9" * 5000 + "]}", "digits"),
    "not UTF-8": (b'{"schema": 1, "tests": ["\xff"]}', "can't decode byte 0xff in position 25"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "can't decode"),
    "binary": (bytes(range(256)), "can't decode"),
    "empty": ("", "line 1 column 1"),
    "schema true": ('{"schema": true, "tests": []}', "schema True, this version reads 1"),
    "schema text": (json.dumps({"schema": NASTY, "tests": []}), "this version reads 1"),
    "tests an object": ('{"schema": 1, "tests": {}}', "no list of tests"),
}


def test_a_byte_order_mark_is_passed_over(folder):
    """As editors on Windows write it."""
    whole = json.dumps(GOOD).encode()
    status, _out, err = compared(folder, whole, b"\xef\xbb\xbf" + whole)
    assert (status, err) == (0, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_refused(tmp_path):
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe.json")
    err = io.StringIO()
    with redirect_stderr(err):
        assert main(["compare", str(tmp_path / "pipe.json")]) == 2
    assert "pipe.json is no regular file" in err.getvalue()


@pytest.mark.parametrize("name", DAMAGED)
def test_one_damaged_file_among_good_ones(folder, name):
    """The file is named, with the place or the reason; the others are not compared without it."""
    content, reason = DAMAGED[name]
    status, out, err = compared(folder, json.dumps(GOOD), content, json.dumps(GOOD))
    assert (status, out) == (2, "")
    assert err.startswith(f"pytest_nanstab compare: {folder / '1.json'}: ")
    assert reason in err
    assert not UNSEEN.search(err)
    assert compared(folder, json.dumps(GOOD), json.dumps(GOOD))[0] == 0  # the control


def test_names_of_files(tmp_path):
    """Control characters and bytes that are no text in the names of the files, in the error and as environments."""
    odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m.json"
    with open(odd, "w", encoding="utf-8") as file:
        json.dump(GOOD, file)
    other = report({**FULL, "outcome": "passed", "findings": []})
    (tmp_path / "b.json").write_text(json.dumps(other))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["compare", os.fsdecode(odd), str(tmp_path / "b.json"), "--output", str(tmp_path / "x.md")]) == 1
        assert main(["compare", os.fsdecode(odd) + "x"]) == 2
    assert r"\udcff\x1b[31m" in out.getvalue()
    assert not UNSEEN.search(out.getvalue() + err.getvalue() + (tmp_path / "x.md").read_text(encoding="utf-8"))


def test_output_that_cannot_be_written(tmp_path, folder):
    """Exit status 2 and a reason; folders on the way are made."""
    (tmp_path / "file").write_text("")
    status, _, err = compared(folder, json.dumps(GOOD), options=["--output", str(tmp_path / "file" / "x.md")])
    assert status == 2
    assert "could not write" in err
    assert compared(folder, json.dumps(GOOD), options=["--output", str(tmp_path / "new" / "x.md")])[0] == 0
    assert (tmp_path / "new" / "x.md").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_of_few_characters(tmp_path, encoding):
    """Characters that the encoding lacks are shown as escapes; a reader that stops reading is no error."""
    shown = "\u4e2d" * 80
    for name, outcome in (("a", "passed"), ("b", "failed")):
        record = {**FULL, "id": f"t.py::{shown}", "outcome": outcome}
        (tmp_path / f"{name}.json").write_text(json.dumps(report(record)))
    command = [sys.executable, "-m", "pytest_nanstab", "compare", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert rb"\u4e2d" in result.stdout
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == b""
    process.stderr.close()


# --- the pages


def is_harmless(page):
    """Whether a page is what its template says: no element, attribute or reference that came with the data."""
    source = Page(page)
    tags = {tag for tag, _ in source.elements}
    assert source.wrong == []
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "form", "input", "button"}
    assert not [name for _, attributes in source.elements for name in attributes if name.startswith("on")]
    assert all(link.startswith("#") or link == "data:," for link in [*source.values("href"), *source.values("src")])
    assert not UNSEEN.search(page)
    page.encode("utf-8")
    return True


@SLOW
@given(spoiled)
def test_pages_of_any_report(data):
    """An HTML report shows what it can of anything."""
    assert is_harmless(report_page(data if isinstance(data, dict) else {}))


@settings(QUICK, max_examples=30)
@given(spoiled)
def test_pages_of_any_comparison(folder, data):
    """As HTML and Markdown."""
    for ending in ("html", "md"):
        target = folder / f"page.{ending}"
        target.unlink(missing_ok=True)
        status, _, _ = compared(
            folder, json.dumps(data), json.dumps(GOOD), options=["--all", "--output", str(target)]
        )  # fmt: skip
        if status != 2:
            page = target.read_text(encoding="utf-8")
            assert is_harmless(page) if ending == "html" else not UNSEEN.search(page)


def everywhere(node):
    """The same data with the nasty text in place of every text."""
    if isinstance(node, dict):
        return {(NASTY if "::" in key else key): everywhere(value) for key, value in node.items()}
    if isinstance(node, list):
        return [everywhere(value) for value in node]
    return NASTY if isinstance(node, str) and node not in KEPT else node


KEPT = ("failed", "passed", "explicit", "nonfinite-loss", "nan", "inf", "-inf")
NASTY_RECORD = {**everywhere(FULL), "notes": [NASTY], "margins": [
    {"margin": 0.5, "measured": 1.0, "limit": NASTY, "quantity": NASTY, "step": NASTY, "sampled": False}]}  # fmt: skip
SIGNS = r"\x00\x1b[31m"


def unescaped(page, signs):
    """The signs of Markdown that stand in a text outside of code, without a backslash."""
    outside = re.sub(r"(`+) ?.*? ?\1(?!`)", "", page)
    return re.findall(rf"(?<!\\)(?:\\\\)*[{re.escape(signs)}]", outside)


def test_markdown_of_nasty_names():
    """In every text field: shown as it is, neither markup nor links nor formulas, on a line of its own."""
    page = markdown.render(report(NASTY_RECORD))
    assert SIGNS in page
    assert not UNSEEN.search(page)
    rows = [line for line in page.splitlines() if not line.startswith("|")]
    assert unescaped("\n".join(rows), "<>[]`$~&") == []
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert unescaped("a < b", "<") == ["<"]  # the control


def test_html_of_nasty_names():
    """In every text field, of the page and of pytest-html's extra."""
    page = report_page(report(NASTY_RECORD))
    assert is_harmless(page)
    assert SIGNS in page
    assert "<script>alert(1)</script>{{ 7*7 }}{% raw %}" in Page(page).text
    extra = extras.html_extra(NASTY_RECORD)["content"]
    assert not re.search("<(?!/?(div|h4|pre)[ >])", extra)
    assert not UNSEEN.search(extra)


def test_terminal_and_junit_of_nasty_names():
    """In every text field."""
    lines = terminal.summary_lines([NASTY_RECORD], headroom=0, verbosity=1)
    lines += render([Finding(**{**NASTY_RECORD["findings"][0], "kind": "nonfinite-loss"})]).split("\n")
    lines += [value for _, value in extras.properties(NASTY_RECORD)]
    assert not UNSEEN.search("".join(lines))
    assert any(SIGNS in line for line in lines)


@pytest.mark.parametrize("name", ["a\x1b[31m", "\u202e", "\u200f", "\x85", "\u2028", "\ud800", "\x00"])
def test_every_unseen_character_is_shown(name):
    """The pattern above and `escape` mean the same characters."""
    assert UNSEEN.search(name)
    assert not UNSEEN.search(text.escape(name))
    assert text.escape("\u00e9\u4e2d\U0001f600") == "\u00e9\u4e2d\U0001f600"  # the control


def test_the_users_source_is_quoted_not_obeyed(tmp_path, monkeypatch):
    """Lines of a file with escapes, markup and bytes that are no UTF-8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_bytes(b"# coding: utf-8\nx = '\x1b[2J<script>{{7*7}}'\ny = 1\n")
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'\ny = 1\n")
    shown = render([Finding(kind="nonfinite-loss", message="m", source="net.py:2")])
    assert r"> 2 | x = '\x1b[2J<script>{{7*7}}'" in shown
    assert render([Finding(kind="nonfinite-loss", message="m", source="bad.py:1")]) == "m"
    finding = Finding(kind="nonfinite-loss", message="m", source="net.py:2").as_dict()
    assert is_harmless(report_page(report({**FULL, "findings": [finding]})))


def test_very_long_names_do_not_hide_the_rest():
    """A hundred thousand characters are cut in the middle; the JSON keeps them."""
    name = "n" * 100_000
    finding = Finding(kind="nonfinite-loss", message=f"NaN in {name} at step 3", module=name, evidence={"tensor": name})
    shown = render([finding, finding])
    assert len(shown) < 20_000
    assert shown.startswith("NaN in nnn")
    assert shown.split("\n")[0].endswith("n at step 3")
    assert finding.as_dict()["module"] == name
    short = Finding(kind="nonfinite-loss", message="m" * 1900)
    assert render([short]) == short.message  # the control


# --- baselines

RUN = Run(
    steps=3, loss=[1.0, 0.5, 0.25], grad_norm=[2.0, 2.0, 2.0], headroom={"activation": {"a float32": 100.0}},
    init_scale={"a.weight": 0.5},
)  # fmt: skip
ENTRY = {**entry_of(RUN, seed=0), "measured_with": {"torch": "2.13.0"}}
ENTRY["spread"] = {"loss": [0.1, None, 0.2], "grad_norm": [0.1] * 3, "headroom": {"activation": {"a float32": 0.1}}}
FILE = {"format": files.FORMAT, "schema": 1, "tests": {"test_a": {"cpu 32-true": ENTRY}}}
FILE_PLACES = list(places_in(FILE))


@settings(QUICK, max_examples=300)
@given(st.sampled_from(FILE_PLACES), anything, st.sampled_from(["32-true", "64-true", "16-mixed", "own-loop"]))
def test_any_value_in_any_place_of_a_baseline(folder, place, value, precision):
    """Refused with file and place, or compared: what was not measured so is a finding at most."""
    path = folder / "baseline.json"
    path.write_text(json.dumps(replaced(FILE, place, value)), encoding="utf-8")
    try:
        tests = files.load(path)
    except files.BaselineFileError as error:
        assert error.path == path
        assert error.short in ("is no baseline", "is damaged", "is too new", "cannot be read")
        return
    for entries in tests.values():
        for entry in entries.values():
            finding, notes = compare(entry, entry_of(RUN, seed=0), precision=precision)
            assert all(isinstance(note, str) for note in notes)
            if finding is not None:
                item = SimpleNamespace(nodeid="t.py::test_a")
                assert not UNSEEN.search(render([finding]))
                assert item.nodeid


@pytest.mark.parametrize("name", [name for name in DAMAGED if "schema" not in name and "tests" not in name])
def test_damaged_baselines(tmp_path, name):
    """The same files as above, in the place of a baseline: neither read nor overwritten."""
    content = DAMAGED[name][0]
    path = tmp_path / "test_it.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(files.BaselineFileError):
        files.update(path, [{"item": "test_a", "label": "cpu 32-true", "entry": ENTRY}])
    assert path.read_bytes() == before


OUTSIDE = ["../test_it.py", "/etc/test_it.py", "a/../../test_it.py", "leak/test_it.py", "deep/leak/more/test_it.py"]


@pytest.fixture
def baselines(tmp_path):
    """A folder of baselines with links that lead out of it."""
    folder, outside = tmp_path / "root" / "baselines", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    outside.mkdir()
    for link in (folder / "leak", folder / "deep" / "leak"):
        link.symlink_to(outside)
    return folder


@pytest.mark.parametrize("file", OUTSIDE)
def test_paths_outside_are_refused(baselines, file):
    """By name or by a link."""
    with pytest.raises(ValueError, match=r"outside pytest's rootdir|a link that leads out of"):
        files.path_for(baselines, file)
    for good in ("test_it.py", "deep/test_it.py", "new/..py/test_it.py"):  # the control
        assert files.path_for(baselines, good).is_relative_to(baselines)


def test_a_link_in_the_place_of_a_file_is_replaced(baselines, tmp_path):
    """What it leads to is not written to."""
    victim = tmp_path / "victim.json"
    victim.write_text(json.dumps({**FILE, "tests": {}}))
    before = victim.read_text()
    path = files.path_for(baselines, "test_it.py")
    path.symlink_to(victim)
    assert files.update(path, [{"item": "test_a", "label": "cpu 32-true", "entry": ENTRY}]) == 1
    assert victim.read_text() == before
    assert not path.is_symlink()


NAMED = """
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "C:\\\\x"])
def test_paths(nanstab, name):
    nanstab.check_baseline(nanstab.train(setup(), steps=2), name=name)

@pytest.mark.parametrize("name", ["a\\x1b[31m\\n", "\\ud800", "\\u202e", ""])
def test_unprintable(nanstab, name):
    with pytest.raises(ValueError, match="name must be printable"):
        nanstab.check_baseline(nanstab.train(setup(), steps=2), name=name)
"""


def test_names_of_runs_are_no_paths(pytester):
    """`check_baseline(name=...)` is a key in the file, whatever it looks like."""
    before = set(pytester.path.parent.rglob("*"))
    ran = run_inside(pytester, NAMED, "--nanstab-update")
    assert ran.code == 0, ran.text
    assert not UNSEEN.search("".join(ran.lines))
    written = {path.relative_to(pytester.path).as_posix() for path in set(pytester.path.parent.rglob("*")) - before}
    assert {name for name in written if name.endswith(".json")} == {"nanstab_baselines/test_it.json"}
    assert items.files.load(pytester.path / "nanstab_baselines" / "test_it.json")


# --- what the package may not do

CALLS = {"eval", "exec", "compile", "__import__"}
# `slices` runs statements of the program under test once more, as that program would; it reads no file of ours.
ALLOWED = {("attribution/slices.py", "eval"), ("attribution/slices.py", "exec"), ("attribution/slices.py", "compile")}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "joblib"}


def forbidden(tree):
    """(what, line) of calls that run or unpickle data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.func.id
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("load", "system"):
            owner = ast.unparse(node.func.value)
            if owner in ("torch", "np", "numpy", "os"):
                yield f"{owner}.{node.func.attr}"
        if isinstance(node, ast.Import) and {alias.name.partition(".")[0] for alias in node.names} & MODULES:
            yield "import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield "import"
        if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "weights_only"):
            yield node.arg


def test_nothing_is_run_or_unpickled():
    """No pickle, no eval, no torch.load anywhere in the package."""
    package = Path(pytest_nanstab.__file__).parent
    found = {
        (path.relative_to(package).as_posix(), what)
        for path in package.rglob("*.py")
        for what in forbidden(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED


@pytest.mark.parametrize("code", ["eval(x)", "import pickle", "from dill import loads", "torch.load(p)", "f(shell=1)"])
def test_the_search_can_fail(code):
    """The control."""
    assert list(forbidden(ast.parse(code)))


def test_strict_json_of_a_report():
    """What is written is what is read back, whatever the names."""
    data = json.loads(model.json_text(model.build([NASTY_RECORD], {NASTY: NASTY})))
    assert data["tests"][0]["id"] == NASTY
