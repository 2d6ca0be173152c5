"""What a session reports: the summary section, the JSON file, JUnit properties and the HTML extra."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_nanstab.config import Limit
from pytest_nanstab.findings import Finding
from pytest_nanstab.reporting import extras, model, text
from pytest_nanstab.reporting.terminal import summary_lines, write_summary

GPT = "tests/test_gpt.py::test_gpt[adversarial_batches-32-true]"


def record(node="tests/test_a.py::test_x", **changes):
    """A healthy watched test of 15 steps."""
    run = {"steps": 15, "loss": [], "grad_norm": [], "clipped_grad_norm": [], "update_ratio": []}
    base = {"id": node, "mode": "watched", "check": None, "precision": None, "seed": None, "outcome": "passed"}
    rest = {"limits": {}, "run": run, "headroom": {}, "init_scale": None, "findings": [], "used_torch": True}
    return {**base, **rest, "margins": [], **changes}


def finding(**changes):
    fields = {"kind": "nonfinite-loss", "message": "NaN in the loss at step 3", "step": 3, "module": "blocks.2.attn"}
    return Finding(**{**fields, "source": "models/attention.py:31", **changes}).as_dict()


def margin(bits, measured=1.0, limit=2.0, quantity="loss", step=1):
    values = {"margin": bits, "measured": measured, "limit": limit, "quantity": quantity}
    return {**values, "step": step, "sampled": False}


def lines(*records, **options):
    return summary_lines(records, **options)


# --- the summary


def test_summary_of_the_design():
    """The section reads exactly as the design shows it."""
    records = [record(f"t{i}") for i in range(210)]
    records += [
        record(GPT, outcome="failed", findings=[finding()]),
        record("known", outcome="xfailed", findings=[finding()]),
        record(
            "tests/test_gpt.py::test_gpt[finite_steps-16-mixed]", margins=[margin(0.9, 3.4e4, 65504.0, "activation", 4)]
        ),
        record("tests/test_losses.py::test_kl", margins=[margin(7.0), margin(0.3, 8.1e3, 1e4, "grad norm", 17)]),
        *(record(f"n{i}", used_torch=False, run=None) for i in range(6)),
    ]
    for other in records[:212]:
        other["margins"] = [margin(9.0)]
    assert summary_lines(records, width=120) == [
        "214 tests watched, 3210 optimizer steps, 1 failed, 1 xfailed; 6 tests never used torch",
        f"non-finite  {GPT}  step 3  blocks.2.attn  models/attention.py:31",
        "least headroom (2 of 214, --nanstab-headroom=0 for all)",
        "  margin  measured  limit    quantity    step  test",
        "     0.3  8.1e+03   1.0e+04  grad norm     17  tests/test_losses.py::test_kl",
        "     0.9  3.4e+04   6.6e+04  activation     4  tests/test_gpt.py::test_gpt[finite_steps-16-mixed]",
    ]


def test_no_records_no_section():
    """A session without watched or checked tests prints nothing."""
    assert lines() == []


@pytest.mark.parametrize(
    ("records", "first"),
    [
        ([record()], "1 test watched, 15 optimizer steps"),
        ([record(run={"steps": 1})], "1 test watched, 1 optimizer step"),
        ([record(mode="explicit"), record(mode="explicit", run=None)], "2 tests checked, 15 optimizer steps"),
        ([record(mode="explicit"), record(), record()], "1 test checked, 2 watched, 45 optimizer steps"),
        ([record(used_torch=False, run=None)], "0 tests watched, 0 optimizer steps; 1 test never used torch"),
        ([record(used_torch=False, run=None, findings=[{}])], "1 test watched, 0 optimizer steps"),
        ([record(mode="explicit", used_torch=False, run=None)], "1 test checked, 0 optimizer steps"),
        ([record(mode="explicit", outcome="skipped", run=None)], "0 tests checked, 0 optimizer steps, 1 skipped"),
        ([record(outcome="skipped", run=None)], "0 tests watched, 0 optimizer steps"),
        ([record(mode="report", findings=[finding()])], "1 test watched, 15 optimizer steps, 1 reported"),
        ([record(outcome="failed")], "1 test watched, 15 optimizer steps"),
    ],
)
def test_counts(records, first):
    """One and many are said correctly; only what findings explain is counted as failed."""
    assert lines(*records)[0] == first


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (115, f"non-finite  {GPT}  step 3  blocks.2.attn  models/attention.py:31"),
        (100, "non-finite  tests…st_gpt[adversarial_batches-32-true]  step 3  blocks.2.attn  models/attention.py:31"),
        (80, "non-finite  tests/test…s-32-true]  step 3  blocks.2.attn  models/attention.py:31"),
        (76, "non-finite  tests/tes…s-32-true]  step 3  bloc….attn  models/attention.py:31"),
        (70, "non-finite  tests/test_g…ches-32-true]  step 3  models/attention.py:31"),
        (60, "non-finite  tests/test_…hes-32-true]  models/attention.py:31"),
        (20, "non-finite  tests/tes…s-32-true]  models/attention.py:31"),
    ],
)
def test_failure_line_fits(width, line):
    """The node id shrinks in the middle, then the module; step and module go before the source does."""
    shown = lines(record(GPT, outcome="failed", findings=[finding()]), width=width)[1]
    assert shown == line
    assert width < 58 or len(shown) <= width


def test_groups_are_aligned():
    """Failures of several kinds stand in columns; what a finding does not know leaves no gap."""
    records = [
        record("a", outcome="failed", findings=[finding(), finding(kind="limit")]),
        record("b", outcome="failed", findings=[finding(kind="ineffective-clip", step=None, module=None)]),
        record("c", mode="report", findings=[finding(source=None, module=None)]),
    ]
    assert lines(*records, width=120)[1:] == [
        "non-finite        a  step 3  blocks.2.attn  models/attention.py:31",
        "ineffective-clip  b  models/attention.py:31",
        "reported          c  step 3",
    ]


def test_reported_tests_keep_their_ids():
    """A reported test passed, so no other line names it: its id is not shortened, module and step go first."""
    shown = lines(record(GPT, mode="report", findings=[finding()]), width=80)[1]
    assert shown == f"reported  {GPT}  models/attention.py:31"


def test_expected_and_recorded_findings_show_when_asked():
    """Expected failures and merely recorded findings are listed with -v only."""
    records = [
        record("a", outcome="xfailed", findings=[finding()]),
        record("b", mode="explicit", findings=[finding(step=None, module=None)]),
    ]
    assert len(lines(*records)) == 1
    assert lines(*records, verbosity=1)[1:] == [
        "xfailed   a  step 3  blocks.2.attn  models/attention.py:31",
        "recorded  b  models/attention.py:31",
    ]


def test_user_text_in_the_summary():
    """Control characters are escaped and wide characters fitted by their columns."""
    evil = record("t[\x1b[2J\n]", outcome="failed", findings=[finding(module="a\rb", source="m\n.py:1")])
    assert lines(evil)[1] == r"non-finite  t[\x1b[2J\n]  step 3  a\rb  m\n.py:1"
    wide = record("テスト" * 30, outcome="failed", findings=[finding()])
    assert text.columns(lines(wide, width=80)[1]) <= 80


def test_very_long_module_path():
    """A module path longer than the line gives way; the source stays."""
    long = record("t.py::t", outcome="failed", findings=[finding(module="layer." * 50 + "weight")])
    shown = lines(long, width=80)[1]
    assert len(shown) == 80
    assert shown.startswith("non-finite  t.py::t  step 3  layer.layer.")
    assert shown.endswith("weight  models/attention.py:31")


# --- the table of margins

THREE = [
    record("far", margins=[margin(9.0)]),
    record("near", margins=[margin(2.0)]),
    record("over", margins=[margin(-0.5)]),
]


@pytest.mark.parametrize(
    ("headroom", "head", "tests"),
    [
        (None, "least headroom (2 of 3, --nanstab-headroom=0 for all)", ["over", "near"]),
        (1, "least headroom (1 of 3, --nanstab-headroom=0 for all)", ["over"]),
        (0, "least headroom", ["over", "near", "far"]),
        (5, "least headroom", ["over", "near", "far"]),
    ],
)
def test_headroom_option(headroom, head, tests):
    """The list holds what is under 4 bits, the N least or all, nearest first, and says how many it hides."""
    shown = lines(*THREE, headroom=headroom)[1:]
    assert shown[0] == head
    assert [line.split()[-1] for line in shown[2:]] == tests


def test_margins_of_four_bits_are_not_listed():
    """Four bits are enough: nothing is printed, unlike at 3.9."""
    assert len(lines(record(margins=[margin(4.0)]))) == 1
    assert len(lines(record(margins=[margin(3.9)]))) == 4


def test_margin_cells():
    """Sampled figures carry "≤"; what was not measured leaves its cell empty."""
    shown = lines(record("t", margins=[{**margin(1.25, None, None, "gradient", None), "sampled": True}]))
    assert shown[2:] == [
        "  margin  measured  limit  quantity  step  test",
        "    ≤1.2                   gradient        t",
    ]


def test_limits_in_verbose_mode():
    """With -v every explicit test shows its effective limits and where each was stated."""
    limits = {"max_grad_norm": {"value": 100.0, "source": "function marker"}}
    limits["max_loss"] = {"value": 50.0, "source": "pyproject.toml"}
    explicit = record("tests/test_a.py::test_x", mode="explicit", limits=limits)
    expected = "tests/test_a.py::test_x  max_grad_norm=100 (function marker), max_loss=50 (pyproject.toml)"
    assert lines(explicit, verbosity=1, width=100)[1:] == [expected]
    assert lines(explicit, verbosity=1, width=80)[1:] == [
        "tests/test_a.py::test_x  max_grad_norm=100 (function marker),",
        "    max_loss=50 (pyproject.toml)",
    ]
    assert len(lines(explicit)) == 1
    assert len(lines(record(limits=limits), verbosity=1)) == 1


def test_section_in_a_session(pytester, monkeypatch):
    """The section is written through the terminal reporter, at its width; without records there is none."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "60")
    records = [record(GPT, outcome="failed", findings=[finding()])]
    conftest = (
        "from pytest_nanstab.reporting.terminal import write_summary\n"
        "def pytest_terminal_summary(terminalreporter):\n    write_summary(terminalreporter, {records})\n"
    )
    pytester.makepyfile("def test_x(): pass")
    pytester.makeconftest(conftest.format(records=records))
    assert write_summary.__kwdefaults__ == {"headroom": None}
    result = pytester.runpytest_inprocess()
    start = next(i for i, line in enumerate(result.outlines) if "nanstab" in line and line.startswith("==="))
    assert result.outlines[start : start + 3] == [
        "========================= nanstab ==========================",
        "1 test watched, 15 optimizer steps, 1 failed",
        "non-finite  tests/test_…hes-32-true]  models/attention.py:31",
    ]
    pytester.makeconftest(conftest.format(records=[]))
    assert not [line for line in pytester.runpytest_inprocess().outlines if "= nanstab" in line]


# --- margins


def margins_of(limits, headroom=None, **run):
    stated = {name: {"value": value, "source": "call"} for name, value in limits.items()}
    return model.margins(run, stated, headroom=headroom)


@pytest.mark.parametrize(
    ("limits", "run", "expected"),
    [
        ({"max_loss": 8.0}, {"loss": [1.0, -2.0, 0.5]}, margin(2.0, 2.0, 8.0, "loss", 2)),
        ({"max_grad_norm": 8.0}, {"grad_norm": [1.0, 16.0]}, margin(-1.0, 16.0, 8.0, "grad norm", 2)),
        ({"min_grad_norm": 1.0}, {"grad_norm": [8.0, 4.0]}, margin(2.0, 4.0, 1.0, "min grad norm", 2)),
        ({"max_update_ratio": 1.0}, {"update_ratio": [None, 0.25]}, margin(2.0, 0.25, 1.0, "update ratio", 2)),
        ({"max_loss": 8.0}, {"loss": [math.nan, None, "nan", math.inf, 4.0]}, margin(1.0, 4.0, 8.0, "loss", 5)),
    ],
)
def test_margin_of_a_limit(limits, run, expected):
    """A margin is the worst step's distance to its limit in bits; steps count from 1."""
    assert margins_of(limits, **run) == [expected]


@pytest.mark.parametrize(
    ("limits", "run"),
    [
        ({"max_loss": 8.0}, {"loss": []}),
        ({"max_loss": 8.0}, {"loss": [math.nan, None]}),
        ({"max_loss": 8.0}, {}),
        ({"max_loss": 8.0}, {"loss": [0.0]}),
        ({"max_loss": 0.0}, {"loss": [1.0]}),
        ({}, {"loss": [1.0]}),
        ({"min_headroom_bits": 4.0}, {"loss": [1.0]}),
    ],
)
def test_no_margin(limits, run):
    """Without a limit, a measurement or a finite distance there is no margin: NaN makes none."""
    assert margins_of(limits, **run) == []


def test_margin_takes_limit_objects_and_no_run():
    """Limits may be `config.Limit`s; a test that never trained has no run."""
    assert model.margins({"loss": [1.0]}, {"max_loss": Limit(2.0, "call")}) == [margin(1.0, 1.0, 2.0, "loss", 1)]
    assert model.margins(None, {"max_loss": Limit(2.0, "call")}) == []


def test_headroom_margins():
    """Headroom is the distance to the dtype's range, the worst tensor of each quantity."""
    headroom = {
        "activation": {"blocks.0 float16": 3.0, "blocks.1 float32": 90.0, "bad float16": math.nan},
        "gradient": {"my module w int_like": 5.0},
        "parameter": {},
    }
    activation, gradient = margins_of({}, headroom)
    assert activation == margin(3.0, 65504.0 / 8, 65504.0, "activation", None)
    assert gradient == margin(5.0, None, None, "gradient", None)
    assert model.margins(None, {}, headroom=headroom, sampled=True)[0]["sampled"] is True


def test_headroom_limit_brings_the_limit_nearer():
    """With min_headroom_bits the margin is what is left above it."""
    entry = margins_of({"min_headroom_bits": 4.0}, {"activation": {"m float16": 3.0}})[0]
    assert (entry["margin"], entry["limit"]) == (-1.0, 65504.0 / 16)


def test_largest_numbers_are_torchs():
    """The table of dtype ranges, kept because reports never import torch, agrees with torch."""
    torch = pytest.importorskip("torch")
    for name, largest in model._LARGEST.items():
        assert torch.finfo(getattr(torch, name)).max == largest, name


# --- the report


def strict(path):
    """Parse as readers do that know no NaN."""
    return json.loads(Path(path).read_text("utf-8"), parse_constant=pytest.fail)


def test_report_is_strict_json(tmp_path):
    """Numbers that are not finite become strings, and the file parses with a strict reader."""
    bad = record(
        run={"steps": 1, "loss": [math.nan], "grad_norm": [math.inf]},
        findings=[finding(evidence={"value": -math.inf, "shape": (2, 3), "lone": "\ud800"})],
    )
    report = model.build([bad], {"python": "3.11"})
    model.write_text(tmp_path / "new" / "folder" / "out.json", model.json_text(report))
    read = strict(tmp_path / "new" / "folder" / "out.json")
    assert list(read) == ["schema", "environment", "tests", "summary"]
    assert read["schema"] == 1
    assert read["tests"][0]["run"] == {"steps": 1, "loss": ["nan"], "grad_norm": ["inf"]}
    assert read["tests"][0]["findings"][0]["evidence"] == {"value": "-inf", "shape": [2, 3], "lone": "\ud800"}
    assert list((tmp_path / "new" / "folder").iterdir()) == [tmp_path / "new" / "folder" / "out.json"]


def test_report_refuses_raw_nan(tmp_path):
    """The control: data that did not go through `build` cannot smuggle NaN into the file, and leaves the old one."""
    path = tmp_path / "out.json"
    model.write_text(path, model.json_text({"x": 1}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        model.write_text(path, model.json_text({"x": math.nan}))
    assert strict(path) == {"x": 1}


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    """When the rename fails, the old file stays and no temporary one is left."""
    path = tmp_path / "out.json"
    model.write_text(path, model.json_text({"x": 1}))

    def refuse(*args):
        raise OSError("disk gone")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk gone"):
        model.write_text(path, model.json_text({"x": 2}))
    assert strict(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_summary_counts():
    """The report's summary counts tests by mode and outcome, steps, and findings by kind."""
    records = [
        record(outcome="failed", findings=[finding(), finding(kind="limit")]),
        record(mode="explicit", outcome="xfailed", findings=[finding()]),
        record(mode="report", used_torch=False, run=None),
        record(mode="explicit", outcome="skipped", run=None),
    ]
    assert model.build(records, {})["summary"] == {
        "tests": 4,
        "explicit": 2,
        "watched": 2,
        "never_used_torch": 1,
        "optimizer_steps": 30,
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "xfailed": 1,
        "xpassed": 0,
        "findings": {"limit": 1, "nonfinite-loss": 2},
    }


def test_empty_report():
    """A session without records still makes a whole report."""
    report = model.build([], {})
    assert (report["tests"], report["summary"]["tests"], report["summary"]["findings"]) == ([], 0, {})


def test_environment(pytestconfig):
    """The environment names versions and the command line, as strict JSON data."""
    found = model.environment(pytestconfig)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["pytest"] == pytest.__version__
    assert found["pytest-nanstab"] is not None
    assert found["args"] == list(map(str, pytestconfig.invocation_params.args))
    json.dumps(found, allow_nan=False)


def test_environment_prefers_the_loaded_version(pytestconfig, monkeypatch):
    """A loaded torch tells its full version and its devices; without it nothing is imported to ask."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert model.environment(pytestconfig)["devices"] == []

    class Cuda:
        is_initialized = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        get_device_name = staticmethod("Card {}".format)

    class Torch:
        __version__ = "9.9.9+cpu"
        cuda = Cuda

    monkeypatch.setitem(sys.modules, "torch", Torch)
    found = model.environment(pytestconfig)
    assert (found["torch"], found["devices"]) == ("9.9.9+cpu", ["cpu", "Card 0", "Card 1"])
    monkeypatch.setattr(Cuda, "is_initialized", lambda: False)
    assert model.environment(pytestconfig)["devices"] == ["cpu"]


def test_unknown_distribution_has_no_version(monkeypatch):
    """A package that is not installed has no version, which is no error."""
    assert model._version("no-such-distribution-here") is None


@pytest.mark.parametrize(
    ("path", "format_"),
    [
        ("out.json", "json"),
        ("a/b.JSON", "json"),
        (Path("x.json"), "json"),
        ("s.md", "md"),
        ("h.html", "html"),
        ("runs.tensorboard", "tensorboard"),
        ("a/runs.TensorBoard/", "tensorboard"),
    ],
)
def test_report_format(path, format_):
    """The file name decides the format."""
    assert model.report_format(path) == format_


@pytest.mark.parametrize("path", ["out.txt", "out", ".json", "x.json.gz"])
def test_report_format_refuses_others(path):
    """Anything else is refused, naming what is allowed and what was given."""
    with pytest.raises(
        ValueError, match=r"must name a \.json, \.md or \.html file or a \.tensorboard folder, got '.*'"
    ) as caught:
        model.report_format(path)
    assert path in str(caught.value)


# --- JUnit and HTML


def test_junit_properties():
    """A failed explicit test carries its first finding as properties of text; what is unknown is left out."""
    failed = {"mode": "explicit", "outcome": "failed"}
    explicit = record(**failed, findings=[finding(message="NaN\x1b"), finding(kind="limit")])
    assert extras.properties(explicit) == [
        ("nanstab_steps", "15"),
        ("nanstab_kind", "nonfinite-loss"),
        ("nanstab_step", "3"),
        ("nanstab_module", "blocks.2.attn"),
        ("nanstab_source", "models/attention.py:31"),
        ("nanstab_message", r"NaN\x1b"),
    ]
    known = [name for name, _ in extras.properties(record(**failed, findings=[finding(step=None, module=None)]))]
    assert known == ["nanstab_steps", "nanstab_kind", "nanstab_source", "nanstab_message"]


def test_junit_properties_of_what_was_measured():
    """Every explicit test that ran says how; a finding that it did not fail with is left to the other reports."""
    headroom = {"activation": {"a float16": 9.0, "bad float16": math.nan}, "gradient": {"w float16": 3.256}}
    ran = record(mode="explicit", precision="16-mixed", seed=7, headroom=headroom, findings=[finding()])
    assert extras.properties(ran) == [
        ("nanstab_precision", "16-mixed"),
        ("nanstab_seed", "7"),
        ("nanstab_steps", "15"),
        ("nanstab_least_headroom_bits", "3.26"),
        ("nanstab_least_headroom_of", "gradient w float16"),
    ]
    assert extras.properties(record(mode="explicit", run=None)) == [("nanstab_steps", "0")]
    assert {name for name, _ in extras.properties(ran)} <= extras.NAMES


@pytest.mark.parametrize("mode", ["watched", "report"])
def test_no_properties_elsewhere(mode):
    """Watched and skipped tests get no property: strict readers of JUnit files choke on those they do not know."""
    assert extras.properties(record(mode=mode, outcome="failed", findings=[finding()], precision="32-true")) == []
    assert extras.properties(record(mode="explicit", outcome="skipped")) == []


def test_html_extra_escapes():
    """All user text is escaped in the HTML extra."""
    evil = "<script>alert(1)</script>"
    entry = extras.html_extra(
        record(findings=[finding(message=evil, module=evil, kind="limit")], margins=[margin(1.0)])
    )
    assert {name: entry[name] for name in ("name", "format_type", "mime_type", "extension")} == {
        "name": "nanstab",
        "format_type": "html",
        "mime_type": "text/html",
        "extension": "html",
    }
    assert "<script" not in entry["content"]
    assert entry["content"].startswith('<div class="nanstab"><h4>limit</h4><pre>&lt;script&gt;')
    assert "<h4>margins in bits</h4><pre>margin  measured  limit  quantity  step\n1.0" in entry["content"]


def test_html_extra_needs_content():
    """A test with nothing to tell gets no extra."""
    assert extras.html_extra(record()) is None


def test_html_report_shows_the_extra(pytester):
    """pytest-html takes the extra as it is."""
    pytest.importorskip("pytest_html")
    pytester.makepyfile("def test_x(): pass")
    entry = extras.html_extra(record(findings=[finding()]))
    pytester.makeconftest(
        "import pytest\n@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtest_makereport(item, call):\n    report = yield\n"
        f"    if call.when == 'call':\n        report.extras = [{entry!r}]\n    return report\n"
    )
    pytester.runpytest_inprocess("-p", "no:nanstab", "--html=out.html", "--self-contained-html").assert_outcomes(
        passed=1
    )
    assert "NaN in the loss at step 3" in (pytester.path / "out.html").read_text("utf-8")


# --- imports

MODULES = (
    *(
        "block",
        "compared",
        "comparing",
        "events",
        "extras",
        "failure",
        "html_tables",
        "live",
        "markdown",
        "model",
        "pages",
        "schema",
        "series",
    ),
    *("terminal", "text", "tolerant"),
)
DRAWING = ("html", "html_compare", "html_curves", "html_findings", "plots", "svg")  # loaded when a page is written
HEAVY = ("torch", "numpy", "hypothesis", "matplotlib", "jinja2")


def loaded_after(statement):
    """Which heavy modules a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_reporting_imports_nothing_heavy():
    """Reports are made in processes that never loaded torch, and do not load it."""
    used = "model.environment(type('Config', (), {'invocation_params': type('P', (), {'args': ()})}))"
    imports = "; ".join(f"from pytest_nanstab.reporting import {name}" for name in MODULES)
    assert loaded_after(f"{imports}; {used}") == []
    pages = "; ".join(f"from pytest_nanstab.reporting import {name}" for name in DRAWING)
    assert loaded_after(f"{imports}; {pages}") == ["numpy", "matplotlib", "jinja2"]


def test_import_check_can_fail():
    """The twin: the same question finds a heavy module that is loaded."""
    assert loaded_after("import numpy") == ["numpy"]


def test_every_module_is_asked():
    """No module of the room is missing from the import test."""
    folder = Path(model.__file__).parent
    assert tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")) == tuple(
        sorted(MODULES + DRAWING)
    )
