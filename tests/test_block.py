"""The failure block, compared whole, and how it becomes pytest's failure report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import xml.etree.ElementTree as ET
from textwrap import dedent

import pytest
from _pytest._code import code as pytest_code

from pytest_nanstab.errors import NonFiniteError, StabilityError
from pytest_nanstab.findings import Finding, error_from, from_dict
from pytest_nanstab.reporting import text
from pytest_nanstab.reporting.block import render, split_source
from pytest_nanstab.reporting.failure import is_stability_error, longrepr, prune

ATTENTION = {
    "file": "models/attention.py",
    "first": 29,
    "guilty": 31,
    "lines": [
        "        scores = q @ k.transpose(-1, -2)\n",
        '        scores = scores.masked_fill(mask, float("-inf"))\n',
        "        p = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)\n",
    ],
}


def attention(**changes):
    finding = Finding(
        kind="nonfinite-loss",
        message="NaN in the loss at step 3, born in blocks.2.attn",
        step=3,
        phase="forward",
        module="blocks.2.attn",
        op="exp",
        source="models/attention.py:31",
        evidence={
            "steps": 50,
            "batch": 3,
            "seed": 0,
            "precision": "32-true",
            "device": "cpu",
            "module_class": "Attention",
            "dtype": "float32",
            "shape": [2, 6, 6],
            "count": 8,
            "of": 72,
            "inf": 8,
            "detail": "largest finite input 169, exp overflows float32 above 88.7",
            "chain": ["exp (inf)", "div (nan)", "matmul", "linear", "cross_entropy", "loss"],
            "excerpt": ATTENTION,
            "again": 'pytest "tests/test_gpt.py::test_gpt[adversarial_batches-32-true]"',
        },
        cause="softmax written as exp(x) / sum(exp(x)) without subtracting the row maximum",
        remedy="torch.softmax(scores, dim=-1)",
    )
    return dataclasses.replace(finding, **changes)


def bare(message="NaN in x", **fields):
    return Finding(**{"kind": "nonfinite-input", "message": message, **fields})


def value_of(block, key):
    """The value beside `key`, its lines joined."""
    lines = block.split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith(f"  {key} "))
    column = len(lines[start]) - len(lines[start][2 + len(key) :].lstrip())
    more = lines[start + 1 :]
    count = next((i for i, line in enumerate(more) if not line.startswith(" " * column) or not line.strip()), len(more))
    return "\n".join(line[column:] for line in lines[start : start + 1 + count])


# --- the block itself


def test_block_of_the_design():
    """The block of a fully explained finding reads exactly as the design shows it."""
    assert render([attention()]) == dedent("""\
        NaN in the loss at step 3, born in blocks.2.attn

            models/attention.py
              29 |     scores = q @ k.transpose(-1, -2)
              30 |     scores = scores.masked_fill(mask, float("-inf"))
            > 31 |     p = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)

          step      3 of 50, forward, batch 3, seed 0, precision 32-true, cpu
          module    blocks.2.attn (Attention)
          op        exp, float32[2, 6, 6]: 8 of 72 values became inf
                    largest finite input 169, exp overflows float32 above 88.7
          chain     exp (inf) -> div (nan) -> matmul -> linear -> cross_entropy -> loss
          cause     softmax written as exp(x) / sum(exp(x)) without subtracting the row
                    maximum
          remedy    torch.softmax(scores, dim=-1)
          again     pytest "tests/test_gpt.py::test_gpt[adversarial_batches-32-true]\"""")


def test_block_of_a_limit():
    """Measured and allowed numbers, where the limit was stated, a table, unknown keys and notes have their places."""
    finding = Finding(
        kind="exploding-gradient",
        message="gradient norm 8.1e+04 at step 17, allowed 100",
        step=17,
        phase="optimizer",
        evidence={
            "optimizer": "AdamW, param group 0",
            "tensor": "gradient of encoder.weight",
            "dtype": "float32",
            "shape": [64, 32],
            "value": 81234.5678,
            "limit": 100.0,
            "limit_name": "max_grad_norm",
            "limit_source": "function marker",
            "range": [-512.25, 80123.4],
            "table": [
                {"parameter": "encoder.weight", "grad norm": 81234.5678},
                {"parameter": "encoder.bias", "grad norm": 3.25},
            ],
            "growth per step": 2.25,
            "learning_rates": [0.1, 0.2],
            "note": ["first note", "second note"],
        },
    )
    assert render([finding]) == dedent("""\
        gradient norm 8.1e+04 at step 17, allowed 100

          step             17, optimizer
          optimizer        AdamW, param group 0
          tensor           gradient of encoder.weight, float32[64, 32]
          measured         8.123e+04
          allowed          at most 100 (max_grad_norm, function marker)
          range            -512.2 to 8.012e+04
          table            parameter       grad norm
                           encoder.weight  8.123e+04
                           encoder.bias         3.25
          growth per step  2.25
          learning_rates   0.1, 0.2
          note             first note
                           second note""")


def test_message_alone():
    """A finding that knows nothing else is its message; no findings are an empty text."""
    assert render([bare("NaN in x")]) == "NaN in x"
    assert render([]) == ""


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"nan": 8, "of": 72, "first_index": [0, 1, 2]}, "8 of 72 values are NaN, first at [0, 1, 2]"),
        ({"nan": 1, "of": 72}, "1 of 72 values is NaN"),
        ({"inf": 2}, "2 values are inf"),
        ({"inf": 2, "negative_inf": 1}, "2 values are inf"),
        ({"inf": 2, "negative_inf": 2}, "2 values are -inf"),
        ({"count": 5, "of": 9}, "5 of 9 values are not finite"),
        ({"count": 5, "of": 9, "nan": 2, "inf": 3}, "5 of 9 values are not finite (2 NaN, 3 inf)"),
        ({"nan": 1, "of": 1, "first_index": []}, "the value is NaN"),
    ],
)
def test_tensor_counts(evidence, expected):
    """Counts are said in words that fit one and many, NaN and inf."""
    block = render([bare(evidence={"tensor": "loss", "dtype": "float32", "shape": [2, 6, 6], **evidence})])
    assert value_of(block, "tensor") == f"loss, float32[2, 6, 6]: {expected}"


def test_nothing_counted():
    """Zero counts say nothing: no "0 values are"."""
    assert "values" not in render([bare(evidence={"tensor": "loss", "count": 0, "nan": 0, "inf": 0, "of": 4})])


def test_tensor_is_named_once():
    """A tensor that is the parameter, buffer or field of another line is not named again."""
    block = render([bare(evidence={"parameter": "w", "tensor": "w", "dtype": "float32", "nan": 1, "of": 2})])
    assert block.endswith("  parameter  w\n  tensor     float32: 1 of 2 values is NaN")


def test_named_tensor_stands_apart_from_operation():
    """When the tensor has a name of its own, its counts are not put beside the operation."""
    block = render([attention(evidence={"tensor": "loss", "nan": 1, "of": 1})])
    assert (value_of(block, "op"), value_of(block, "tensor")) == ("exp", "loss, the value is NaN")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"step": 3}, "step      3"),
        ({"step": 3, "evidence": {"step_range": [2, 5], "steps": 9}}, "step      2 to 5 of 9 (sampled)"),
        ({"phase": "data", "evidence": {"batch": 2}}, "phase     data, batch 2"),
        ({"evidence": {"batch": 2, "seed": 0}}, "run       batch 2, seed 0"),
        ({"evidence": {"device": "cuda:0"}}, "device    cuda:0"),
        ({"evidence": {"limit": 4.0, "limit_name": "min_headroom_bits"}}, "allowed   at least 4 (min_headroom_bits)"),
        ({"evidence": {"limit": 4.0}}, "allowed   4"),
        ({"evidence": {"value": float("nan")}}, "measured  nan"),
        ({"evidence": {"value": "inf"}}, "measured  inf"),
        ({"evidence": {"rows": [0, 3], "row_count": 40}}, "rows      0, 3 … and 30 more"),
        (
            {"evidence": {"columns": [*range(16)], "column_count": 48, "shape": [32, 48]}},
            "tensor    [32, 48]\n  columns   all 48",
        ),
        (
            {"evidence": {"columns": [*range(16)], "column_count": 47, "shape": [32, 48]}},
            "tensor    [32, 48]\n  columns   0, 1, 2, 3, 4, 5, 6, 7, 8, 9 … and 37 more",
        ),
        ({"evidence": {"rows": list(range(12))}}, "rows      0, 1, 2, 3, 4, 5, 6, 7, 8, 9 … and 2 more"),
        ({"evidence": {"columns": ["age", "income"]}}, "columns   age, income"),
        ({"evidence": {"detail": "why"}}, "detail    why"),
        ({"evidence": {"counts": {"a": 1, "b": 2.5}}}, "counts    a 1, b 2.5"),
    ],
)
def test_single_keys(fields, line):
    """Every key has one place and one wording."""
    assert render([bare(**fields)]) == f"NaN in x\n\n  {line}"


def test_unmeasured_keys_are_left_out():
    """None in the evidence prints nothing."""
    evidence = dict.fromkeys(("batch", "seed", "value", "limit", "range", "chain", "table", "count", "again", "other"))
    assert render([bare(evidence=evidence)]) == "NaN in x"


def test_wrapping():
    """Long texts hang under the value column within the width, chains break at arrows, commands stay whole."""
    long_module = ".".join(["encoder", "layers"] * 12)
    again = "pytest " + "x" * 120
    chain = [f"operation_{i} (inf)" for i in range(9)]
    block = render([bare(module=long_module, cause="word " * 40, evidence={"chain": chain, "again": again})])
    assert long_module in block
    assert again in block
    assert value_of(block, "chain").split("\n")[0].endswith(" ->")
    wrapped = [line for line in block.split("\n") if long_module not in line and again not in line]
    assert max(map(len, wrapped)) <= 80
    assert value_of(block, "cause").count("\n") == 3


def test_a_command_that_shows_the_operation():
    """It stands right below the note that announces it, whole, and takes the place of the command to run again."""
    trace = f'pytest -o nanstab_explain=rerun "tests/test_{"x" * 80}.py::test_once"'
    note = "the operation cannot be seen from here, a rerun of the test shows it:"
    evidence = {"trace": trace, "other": 1, "note": note, "again": "pytest test_once"}
    assert render([bare(evidence=evidence, cause="why", remedy="how")]) == dedent(f"""\
        NaN in x

          other     1
          note      the operation cannot be seen from here, a rerun of the test shows
                    it:
          trace     {trace}
          cause     why
          remedy    how""")


def test_table_fits():
    """A table too wide for the block shortens its widest cells, then drops columns, and says so."""
    rows = [{"parameter": f"blocks.{i}.attention.projection.weight", **{f"c{j}": j for j in range(3)}} for i in (8, 11)]
    block = render([bare(evidence={"table": rows})], width=48)
    assert block == dedent("""\
        NaN in x

          table     parameter                 c0  c1  c2
                    blocks.8.at…ction.weight   0   1   2
                    blocks.11.a…ction.weight   0   1   2""")
    wide = [{f"column{j}": "x" * 20 for j in range(30)}]
    lines = value_of(render([bare(evidence={"table": wide})]), "table").split("\n")
    assert all(len(line) <= 68 and line.endswith("…") for line in lines)


def test_long_table_is_bounded():
    """Twenty rows are enough; the rest is counted."""
    assert text.table([{"n": i} for i in range(22)], 60)[-2:] == ["19", "… and 2 more rows"]


def test_further_findings():
    """Further findings follow in a line each, ten at most, and the rest is counted."""
    others = [bare(f"NaN in p{i}", source="a.py:1") for i in range(22)]
    tail = render([bare("root"), *others]).split("\n\n")[1].split("\n")
    assert tail[0] == "  also: NaN in p0 (a.py:1)"
    assert (len(tail), tail[-1]) == (11, "  … and 12 more")
    assert render([bare("root"), bare("two")]) == "root\n\n  also: two"


def test_control_characters_are_escaped():
    """Escape codes, newlines, lone surrogates and bidirectional controls in user text cannot reach the terminal."""
    evil = "a\x1b[31m\r\nb\ud800\u202e"
    excerpt = {"file": evil, "first": 1, "guilty": 1, "lines": ["x = '\x1b[2J'\n"]}
    evidence = {
        "field": evil,
        evil: evil,
        "excerpt": excerpt,
        "chain": [evil],
        "columns": [evil],
        "table": [{evil: evil}],
    }
    block = render([bare(evil, module=evil, evidence=evidence), bare(evil, source=evil)])
    assert all(char == "\n" or char.isprintable() for char in block)
    assert block.count(r"a\x1b[31m\r\nb\ud800\u202e") >= 9
    block.encode("utf-8")


def test_non_ascii_text():
    """Text in any script is shown as it is, and wide characters count as two columns."""
    block = render([bare("NaN in größe", evidence={"columns": ["年齢", "größe"], "table": [{"列": "年齢", "n": 1}]})])
    assert block.endswith("columns   年齢, größe\n  table     列    n\n            年齢  1")


def test_texts_of_the_package_keep_their_lines():
    """A remedy may be several lines of code, indented as it was written."""
    block = render([bare(remedy="with x:\n    y()")])
    assert block.endswith("remedy    with x:\n                y()")


# --- the excerpt


def test_excerpt_is_read_from_the_source(tmp_path, monkeypatch):
    """Without an excerpt the block reads two lines around the source, from the current folder or one above it."""
    (tmp_path / "model.py").write_text("".join(f"line{i}\n" for i in range(1, 8)))
    (tmp_path / "inner").mkdir()
    expected = "\n\n    model.py\n      3 | line3\n      4 | line4\n    > 5 | line5\n      6 | line6\n      7 | line7"
    for folder in (tmp_path, tmp_path / "inner"):
        monkeypatch.chdir(folder)
        assert render([bare(source="model.py:5")]) == "NaN in x" + expected


@pytest.mark.parametrize("line", [1, 7])
def test_excerpt_at_the_edges(tmp_path, line):
    """The first and the last line of a file have less context."""
    path = tmp_path / "model.py"
    path.write_text("".join(f"line{i}\n" for i in range(1, 8)))
    block = render([bare(source=f"{path}:{line}")])
    assert block.count("|") == 3
    assert f"> {line} | line{line}" in block


@pytest.mark.parametrize(
    "source", ["gone.py:3", "model.py:99", "model.py:0", "model.py", "", ":3", "\0:1", "json:1", "é" * 999 + ":1"]
)
def test_missing_source_is_no_failure(tmp_path, monkeypatch, source):
    """A source that cannot be read leaves the excerpt out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("x\n")
    assert render([bare(source=source)]) == "NaN in x"


def test_undecodable_source_is_no_failure(tmp_path):
    """A file that is not text leaves the excerpt out."""
    path = tmp_path / "model.py"
    path.write_bytes(b"\xff\xfe\x00" * 5)
    assert render([bare(source=f"{path}:1")]) == "NaN in x"


def test_excerpt_lines_fit():
    """Source lines shed the indentation they share beyond one level and are cut at the width; the one in question is
    told in full, on lines of its own, but for a word that is longer than a line."""
    lines = [" " * 20 + "if x:" + " # words" * 20, " " * 24 + "y = " + "f(a) + " * 10 + "z" * 100, ""]
    block = render([bare(evidence={"excerpt": {"file": "m.py", "first": 9, "guilty": 10, "lines": lines}})])
    shown = block.split("\n")[3:]
    assert shown[0].startswith("       9 |     if x: # words")
    assert shown[0].endswith("…")
    assert shown[1] == "    > 10 |         y = f(a) + f(a) + f(a) + f(a) + f(a) + f(a) + f(a) + f(a)"
    assert shown[2] == "         |             + f(a) + f(a) +"
    assert shown[3].startswith("         |             zzz")
    assert shown[3].endswith("z…")
    assert max(map(len, shown)) == 80
    assert shown[4] == "      11 |"


def test_a_line_of_many_lines_is_cut_where_it_shows():
    lines = ["total = " + " + ".join(f"value_{n}" for n in range(90))]
    block = render([bare(evidence={"excerpt": {"file": "m.py", "first": 9, "guilty": 9, "lines": lines}})])
    shown = block.split("\n")[3:]
    assert len(shown) == 4
    assert [line.endswith("…") for line in shown] == [False, False, False, True]
    assert len(shown[3]) == 80


@pytest.mark.parametrize(
    ("source", "place"),
    [("a/b.py:31", ("a/b.py", 31)), ("C:\\a.py:2", ("C:\\a.py", 2)), ("a.py", None), ("a.py:x", None), (None, None)],
)
def test_split_source(source, place):
    """A source is a path and a line number, on any platform."""
    assert split_source(source) == place


def test_block_of_a_finding_from_json():
    """A finding read back from the JSON report makes the same block."""
    finding = attention()
    assert render([from_dict(json.loads(json.dumps(finding.as_dict())))]) == render([finding])


# --- pytest's internals, which failure.py builds on


def test_pytest_internals_are_as_expected():
    """If this fails, pytest changed its private representation classes: adapt reporting/failure.py to them."""
    fields = {
        "ReprEntry": ["lines", "reprfuncargs", "reprlocals", "reprfileloc", "style"],
        "ReprFileLocation": ["path", "lineno", "message"],
        "ReprTraceback": ["reprentries", "extraline", "style"],
    }
    for name, expected in fields.items():
        assert [field.name for field in dataclasses.fields(getattr(pytest_code, name))] == expected, name
    assert list(inspect.signature(pytest_code.ExceptionChainRepr).parameters) == ["chain"]
    assert {"reprtraceback", "reprcrash", "sections"} <= {f.name for f in dataclasses.fields(pytest_code.ExceptionRepr)}
    location = pytest_code.ReprFileLocation("m.py", 3, "Error")
    entry = pytest_code.ReprEntry(["E is no marker here", "for x in y"], None, None, location, "value")
    text_of_entry = str(pytest_code.ReprTraceback([entry], None, "value"))
    assert text_of_entry == "E is no marker here\nfor x in y\n\nm.py:3: Error"


# --- failures through a real pytest

CONFTEST = """
import json

import pytest
from pytest_nanstab.reporting.failure import is_stability_error, longrepr

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and is_stability_error(call.excinfo.value):
        report.longrepr = longrepr(item, call.excinfo)
        copy = type(report)._from_json(json.loads(json.dumps(report._to_json())))
        assert str(copy.longrepr) == str(report.longrepr)
        assert str(copy.longrepr.reprcrash) == str(report.longrepr.reprcrash)
    return report

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield)

pytest_plugins = ["library"]
"""
LIBRARY = """
import pytest
from pytest_nanstab.findings import Finding, error_from

def check(callback=None, **fields):
    if callback is not None:
        return callback()
    given = dict(kind="nonfinite-loss", message="NaN in the loss at step 3", step=3, source="models/attention.py:2")
    raise error_from([Finding(**{**given, **fields})])

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    for marker in item.iter_markers("verdict"):
        check(**marker.kwargs)
    return result

class Verdict(pytest.Item):
    def runtest(self):
        check()

def pytest_collection_modifyitems(items):
    for index, item in enumerate(items):
        if "suite" in item.keywords:
            items[index] = Verdict.from_parent(item.parent, name=item.name)
"""
MODEL = "def attend(check):\n    return check()\n"
BLOCK = """\
    models/attention.py
      1 | def attend(check):
    > 2 |     return check()

  step      3"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose checks live in an installed library, so that their frames are not the user's."""
    library = pytester.mkdir("site-packages")
    (library / "library.py").write_text(LIBRARY)
    models = pytester.mkdir("models")
    (models / "__init__.py").write_text("")
    (models / "attention.py").write_text(MODEL)
    pytester.syspathinsert(library)
    monkeypatch.setenv("PYTHONPATH", str(library), prepend=os.pathsep)
    pytester.syspathinsert(pytester.path)
    pytester.makeconftest(CONFTEST)
    pytester.makeini(
        "[pytest]\nmarkers =\n    verdict: raise when the test has returned\n    suite: another item in its place\n"
    )
    monkeypatch.setenv("COLUMNS", "80")
    # Only this module's conftest makes reports, and no neighbour has to be imported anew by every inner session.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("CI", raising=False)
    return pytester


def run(project, *args):
    return project.runpytest_inprocess("-p", "no:cacheprovider", *args)


def failures(result):
    """Everything between the head of the first failure and the short summary."""
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if line.startswith("____"))
    end = next(i for i, line in enumerate(lines) if "short test summary" in line)
    return "\n".join(lines[start + 1 : end])


def summary_line(result):
    return next(line for line in result.outlines if line.startswith("FAILED"))


USER_TEST = """
from library import check
from models.attention import attend

def test_trains():
    attend(lambda: check(lambda: check()))
"""


def test_failure_in_user_code(project):
    """pytest shows the user's frames, one E-line, then the block with the culprit's location last."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    loss = 1\n    check()\n")
    result = run(project)
    expected = f"""
    def test_trains():
        loss = 1
>       check()
E       NonFiniteError: NaN in the loss at step 3

test_it.py:5: NonFiniteError
{"_ " * 40}

{BLOCK}

models/attention.py:2: NonFiniteError"""
    assert failures(result) == expected
    assert summary_line(result) == "FAILED test_it.py::test_trains - NonFiniteError: NaN in the loss at step 3"


def test_library_frames_between_user_frames_go(project):
    """Frames of libraries go wherever they stand; frames of the user's helpers stay."""
    project.makepyfile(test_it=USER_TEST)
    output = failures(run(project))
    assert "site-packages" not in output
    assert [line for line in output.split("\n") if line.endswith(": NonFiniteError")] == [
        "test_it.py:5: NonFiniteError",
        "models/attention.py:2: NonFiniteError",
    ]
    assert "models/attention.py:2: in attend" in output


def test_unpruned_control(project):
    """The twin: without our representation the same failure ends in the library's frames, with the block as E-lines."""
    project.makeconftest("")
    project.makepyfile(test_it=USER_TEST)
    output = failures(run(project))
    assert "site-packages" in output
    assert "E         step      3" in output


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (
            "short",
            f"test_it.py:4: in test_trains\n    check()\nE   NonFiniteError: NaN in the loss at step 3\n\n{BLOCK}\n\n"
            "models/attention.py:2: NonFiniteError",
        ),
        ("line", "models/attention.py:2: NonFiniteError: NaN in the loss at step 3"),
    ],
)
def test_traceback_styles(project, style, expected):
    """--tb=short and --tb=line keep their shapes."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    result = run(project, f"--tb={style}")
    text_of_run = result.stdout.str()
    assert expected in text_of_run


def test_native_style(project):
    """--tb=native prints Python's traceback of the user's frames, then the block."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    output = failures(run(project, "--tb=native"))
    assert output.startswith("Traceback (most recent call last):\n")
    assert "site-packages" not in output
    assert f"NonFiniteError: NaN in the loss at step 3\n\n{BLOCK}\n\nmodels/attention.py:2: NonFiniteError" in output


def test_no_traceback(project):
    """--tb=no prints no failure, and the summary line still says what happened."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    result = run(project, "--tb=no")
    assert "attention.py" not in result.stdout.str()
    assert summary_line(result).endswith("NonFiniteError: NaN in the loss at step 3")


def test_full_trace(project):
    """--full-trace prunes nothing and still ends with the block."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    output = failures(run(project, "--full-trace"))
    assert "site-packages" in output
    assert output.endswith(f"{BLOCK}\n\nmodels/attention.py:2: NonFiniteError")


@pytest.mark.parametrize("mark", ["suite", "verdict"])
def test_failure_without_user_frame(project, mark):
    """A suite item, or a verdict after the test returned, shows the block alone, conftest wrappers notwithstanding."""
    project.makepyfile(test_it=f"import pytest\n\n@pytest.mark.{mark}\ndef test_gpt():\n    pass\n")
    result = run(project)
    assert failures(result) == f"NaN in the loss at step 3\n\n{BLOCK}\n\nmodels/attention.py:2: NonFiniteError"
    assert summary_line(result) == "FAILED test_it.py::test_gpt - NonFiniteError: NaN in the loss at step 3"


def test_failure_without_any_place(project):
    """With neither source nor user frame the report is located at the test."""
    project.makepyfile(test_it="import pytest\n\n@pytest.mark.verdict(source=None)\ndef test_gpt():\n    pass\n")
    assert failures(run(project)) == "NaN in the loss at step 3\n\n  step      3\n\ntest_it.py:3: NonFiniteError"


def test_unknown_source_falls_back_to_the_users_line(project):
    """Without a source the block is located at the user's innermost line."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check(source=None)\n")
    assert failures(run(project)).endswith("  step      3\n\ntest_it.py:4: NonFiniteError")


def test_unittest_test_case(project):
    """Methods of unittest.TestCase get the same report."""
    project.makepyfile(
        test_it="import unittest\nfrom library import check\n\n"
        "class TestIt(unittest.TestCase):\n    def test_trains(self):\n        check()\n"
    )
    result = run(project)
    output = failures(result)
    assert (
        ">       check()\nE       NonFiniteError: NaN in the loss at step 3\n\ntest_it.py:6: NonFiniteError" in output
    )
    assert output.endswith(f"{BLOCK}\n\nmodels/attention.py:2: NonFiniteError")
    assert "site-packages" not in output


def test_chained_exceptions(project):
    """Causes are shown as pytest shows them; only the last exception of a chain gets the block."""
    project.makepyfile(
        test_it="from library import check\n\ndef test_trains():\n    try:\n        1 / 0\n"
        "    except ZeroDivisionError as error:\n        try:\n            check()\n"
        "        except AssertionError as found:\n            raise found from error\n"
    )
    output = failures(run(project))
    assert "E           ZeroDivisionError: division by zero" in output
    assert "The above exception was the direct cause of the following exception:" in output
    assert output.count("step      3") == 1
    assert output.endswith("models/attention.py:2: NonFiniteError")


def test_notes_survive(project):
    """What others add to the exception, as Hypothesis adds its falsifying example, is still printed."""
    project.makepyfile(
        test_it="import pytest\nfrom library import check\n\n"
        "def test_trains():\n    try:\n        check()\n    except AssertionError as error:\n"
        "        error.__notes__ = ['Falsifying example: batch=[0.0]']\n        raise\n"
    )
    assert "E           NonFiniteError: NaN in the loss at step 3\n" in failures(run(project))
    assert "Falsifying example: batch=[0.0]" in failures(run(project))


def test_message_without_findings(project):
    """An error raised by hand, without findings, is reported as pytest would."""
    project.makepyfile(
        test_it="from pytest_nanstab import StabilityError\n\ndef test_trains():\n    raise StabilityError('by hand')\n"
    )
    result = run(project)
    assert "E       StabilityError: by hand\n\ntest_it.py:4: StabilityError" in failures(result)


def test_fixture_failure(project):
    """A finding in a fixture is an error of the setup phase with the same block."""
    project.makepyfile(
        test_it="import pytest\nfrom library import check\n\n@pytest.fixture\ndef model():\n    check()\n\n"
        "def test_trains(model):\n    pass\n"
    )
    result = run(project)
    result.assert_outcomes(errors=1)
    assert failures(result).endswith(f"{BLOCK}\n\nmodels/attention.py:2: NonFiniteError")


def test_hidden_frames_stay_hidden(project):
    """Frames that the user hides stay hidden, and nothing breaks when that is all of them."""
    project.makepyfile(
        test_it="from library import check\n\ndef test_trains():\n    __tracebackhide__ = True\n    check()\n"
    )
    assert failures(run(project)) == (
        "\nE   NonFiniteError: NaN in the loss at step 3\n"
        f"{'_ ' * 40}\n\n{BLOCK}\n\nmodels/attention.py:2: NonFiniteError"
    )


def test_colour_does_not_touch_the_block(project):
    """With colours on the block is not highlighted as if it were Python."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    assert BLOCK in run(project, "--color=yes").stdout.str()


def test_junit_message(project):
    """The JUnit file has the first line as its message and the block in its text."""
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    run(project, "--junitxml=out.xml")
    failure = ET.parse(project.path / "out.xml").getroot().find(".//failure")
    assert failure.get("message") == "NonFiniteError: NaN in the loss at step 3"
    assert BLOCK in failure.text


def test_xdist_round_trip(project):
    """Under xdist the controller prints exactly what one process prints."""
    pytest.importorskip("xdist")
    project.makepyfile(test_it="from library import check\n\ndef test_trains():\n    check()\n")
    alone = failures(run(project))
    spread = failures(project.runpytest_subprocess("-p", "xdist", "-n", "1"))
    assert spread.split("\n", 1)[1] == alone  # the first line names the worker
    assert BLOCK in spread


# --- pruning and kinds of exceptions


def test_prune_ends_in_user_code(tmp_path):
    """A pruned exception's traceback ends at the user's innermost line and holds user frames only."""
    site = tmp_path / "site-packages" / "lib.py"
    namespace = {}
    exec(compile("def outer(f):\n    return f()\ndef fail():\n    raise ValueError(3)\n", str(site), "exec"), namespace)

    def helper():
        namespace["fail"]()

    with pytest.raises(ValueError, match="3") as caught:
        namespace["outer"](helper)
    assert [entry.name for entry in caught.traceback][-3:] == ["outer", "helper", "fail"]
    assert [entry.name for entry in prune(caught).traceback] == ["test_prune_ends_in_user_code", "helper"]
    assert [entry.name for entry in caught.traceback][-1] == "fail"
    error = prune(caught.value)
    assert error is caught.value
    assert [entry.name for entry in pytest.ExceptionInfo.from_exception(error).traceback][-1] == "helper"


def test_prune_without_user_frames(tmp_path):
    """Where no frame is the user's the failure comes back as it was; the file named as the test's own is the user's."""
    installed = str(tmp_path / "site-packages" / "test_lib.py")
    namespace = {}
    exec(compile("def fail():\n    raise ValueError(3)\n", installed, "exec"), namespace)
    try:
        namespace["fail"]()
    except ValueError as error:
        error.__traceback__ = error.__traceback__.tb_next
        caught = pytest.ExceptionInfo.from_exception(error)
    assert prune(caught) is caught
    assert [entry.name for entry in prune(caught, own=installed).traceback] == ["fail"]


def test_is_stability_error():
    """Both exceptions of the package are recognised, and no other assertion failure."""
    assert is_stability_error(error_from([bare()]))
    assert is_stability_error(StabilityError("x"))
    assert is_stability_error(NonFiniteError("x"))
    assert not is_stability_error(AssertionError("x"))
    assert not is_stability_error(NonFiniteError)
    assert not is_stability_error(None)


def test_longrepr_refuses_other_exceptions(request):
    """Only stability errors have a block."""
    with pytest.raises(ValueError, match="x") as caught:
        raise ValueError("x")
    with pytest.raises(TypeError, match="longrepr is made for StabilityError, got ValueError"):
        longrepr(request.node, caught)
