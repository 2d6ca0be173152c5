"""The HTML pages: what they show, that nothing of a record becomes markup, and that they need nothing else."""

from __future__ import annotations

import json
import random
import re
import sys

import matplotlib
import numpy as np
import pytest
from html_pages import FINDING, NASTY, Page, full_record, hostile_records, record

from pytest_nanstab.__main__ import main
from pytest_nanstab.reporting import html, pages, plots, svg
from pytest_nanstab.reporting.pages import report_page
from pytest_nanstab.reporting.series import Series
from pytest_nanstab.reporting.tolerant import tidy

FACTS = {"python": "3.11.7", "torch": "2.13.0", "devices": ["cpu"], "args": ["--nanstab", "tests"]}


def page_of(*records, environment=FACTS):
    return Page(report_page({"environment": environment, "tests": list(records)}))


@pytest.fixture(scope="module")
def full():
    """The page of one failed test with everything in it, a passed one, and a watched one."""
    return page_of(full_record(), record("t.py::test_passed"), record("t.py::test_watched", mode="watched"))


# --- content


def test_the_head_counts(full):
    """The same line as in the terminal, and the environment."""
    assert "2 tests checked, 1 watched, 60 optimizer steps, 1 failed" in full.text
    assert "python 3.11.7 torch 2.13.0 devices cpu args --nanstab tests" in full.text


def test_failed_tests_come_first_and_open(full):
    """Listed with message and place; their section is open, the others' are not."""
    assert "failed t.py::test_full NaN in the loss at step 18, born in net.0 kind nonfinite-loss step 18" in full.text
    assert [("open" in attributes) for attributes in full.all("details") if attributes.get("class") == "test"] == [
        True,
        False,
    ]


def test_a_finding_has_source_cause_remedy_and_command(full):
    """The excerpt with the guilty line, the measurements, and what to do in lines of their own."""
    assert "models/net.py 11 | def f(x): > 12 | return x.exp() step 18, forward module net.0 op exp" in full.text
    told = 'cause exp(x) overflows remedy subtract the maximum or torch.softmax run it again pytest "t.py::test_a[x]"'
    assert told in full.text


@pytest.mark.parametrize(
    "words",
    [
        "loss over the steps loss: first 2, least 2 at step 1, largest 40.83 at step 16, last 31.65, NaN at steps 18",
        "limit: max_loss 100 (function marker)",
        "not measured at 2 steps",
        "18 NaN 6.913 1 0.01",
        "activation, float16: 25 tensors tensor bits net.0 under the limit 3.0",
        "and 15 more",
        "float16 25 % 3 % embed.weight: 50 % become 0 2^10 to 2^16",
        "bfloat16 0 % 0 % embed.weight: 0 % become 0 none needed",
        "64-true, the loss deviates by 0.012, one rounding is 0.0039, beyond rounding first in net",
        "net.1 (first) LayerNorm 0.3 0.002 no",
        "layer shape scheme expected std verdict net.0.weight 4x4 none too small",
        "min_headroom_bits 4 call",
        "near miss: log came within 1e-3",
        "t.py::test_full ≤1.5 3.5e+01 1.0e+02 loss 17",
        "1 test without a section of their own test outcome mode steps least margin t.py::test_watched passed watched",
    ],
)
def test_what_was_measured_is_there_as_text(full, words):
    """Curves, headroom, underflow, parity, initial scale, limits, notes and margins."""
    assert words in full.text


def test_nothing_to_tell():
    """No tests, and tests without any measurement."""
    assert "no test was checked or watched" in page_of().text
    text = page_of({"id": "t.py::test_a", "mode": "watched", "outcome": "passed"}, environment={}).text
    assert "1 test never used torch" in text


def test_a_failure_without_a_finding_is_listed():
    """It is pytest's to explain."""
    text = page_of(record("t.py::test_own", "failed", mode="watched")).text
    assert "failed t.py::test_own failed without a finding: pytest tells why" in text


def test_one_training_is_drawn_once():
    """Items of a suite that read the same run refer to the first that shows it."""
    page = page_of(record("t.py::test_s[finite_steps]"), record("t.py::test_s[gradient_bounds]"))
    assert len(page.all("svg")) == 2
    assert "Curves and headroom: the same training as t.py::test_s[finite_steps]" in page.text


# --- figures


def drawn(values, bounds=(), clipped=()):
    lines = [plots.Line("raw", Series("loss", values))]
    lines += [plots.Line("clipped", Series("clipped", clipped))] if clipped else []
    with plots.drawing():
        made = plots.curves(lines, bounds, steps=len(values))
    return svg.inline(made, classes=plots.CLASSES, name="n", title="<t>", description="d")


def test_limits_are_labelled_lines():
    """A limit near the values is a line, one far away is a label that says where."""
    picture = drawn([1.0, 2.0, 3.0], [plots.Bound("max_loss", 4.0), plots.Bound("min_grad_norm", 1e-9)])
    assert re.search(r'<g class="limit"><path d="M[\d.]+ ([\d.]+)L[\d.]+ \1"/></g>', picture)
    assert ">max_loss 4</text>" in picture
    assert ">min_grad_norm 1e-09 (below)</text>" in picture


def test_gaps_and_nonfinite_steps_show():
    """A value that was not measured is a gap, a lone one a dot, NaN and Inf a band with its name."""
    picture = drawn([1.0, 2.0, None, 3.0, None, 2.0, 1.0, "nan", "nan", 1.5, 1.0, "inf"])
    (line,) = re.findall(r'<g class="raw"><path d="([^"]+)"', picture)
    assert line.count("M") == 3
    assert picture.count('<g class="raw dot">') == 1
    assert picture.count('<g class="bad"><path') == 2
    assert ">NaN</text>" in picture
    assert ">Inf</text>" in picture


def test_wide_ranges_are_logarithmic():
    """From two decades on, unless a value is negative; 0 stands at the foot."""
    assert ">1e4</text>" in drawn([1.0, 10.0, 1e5, 0.0])
    assert ">1e4</text>" not in drawn([-1.0, 10.0, 1e5])


def test_extremes_survive_thinning():
    """Of 10000 steps at most some 300 points are kept, among them the least and the largest value."""
    values = [1.0] * 10_000
    values[1234], values[8765] = 50.0, -3.0
    values[5000] = "nan"
    kept = [value for piece in Series("loss", values).pieces(300) for _, value in piece]
    assert len(kept) <= 304
    assert {50.0, -3.0} <= set(kept)
    assert str(Series("loss", values).stretches()[0]) == "NaN at step 5001"


@pytest.mark.parametrize("values", [[1e308, -1e308, 5.0], [5e-324, 1e308], [0.0, 0.0], [7.0] * 3, [1.0, "nan"]])
def test_extreme_numbers_can_be_drawn(values):
    """Without an overflow, a division by zero or a warning."""
    assert drawn(values, [plots.Bound("max_loss", 1e308), plots.Bound("min_grad_norm", 0.0)]).endswith("</svg>")


def test_what_cannot_be_drawn_is_told(monkeypatch):
    """A library in no state to draw costs the figures, not the page."""
    monkeypatch.setattr(plots, "curves", lambda *_, **__: 1 / 0)
    page = page_of(full_record())
    assert not page.all("svg")
    assert "could not be drawn: ZeroDivisionError: division by zero loss: first 2," in page.text


def test_titles_are_escaped():
    """As everything that is not drawn by matplotlib."""
    assert '<title id="n-t">&lt;t&gt;</title>' in drawn([1.0, 2.0])


def test_drawing_leaves_the_session_as_it_was():
    """Settings, backend and random numbers; what the session has set does not change the figures either."""
    before, loaded, numbers = dict(matplotlib.rcParams), set(sys.modules), np.random.get_state()[1].tolist()
    own = random.getstate()
    picture = drawn([1.0, 2.0])
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in set(sys.modules) - loaded
    assert np.random.get_state()[1].tolist() == numbers
    assert random.getstate() == own
    with matplotlib.rc_context({"axes.grid": True, "path.sketch": (1, 100, 2), "lines.marker": "o", "font.size": 30}):
        assert drawn([1.0, 2.0]) == picture


# --- safety


def test_nothing_of_a_record_becomes_markup():
    """Markup, control characters, direction marks and lone surrogates in any place; odd types in every place."""
    text = report_page({"environment": {NASTY: NASTY, "args": [NASTY]}, "tests": list(hostile_records())})
    text.encode("utf-8")
    page = Page(text)
    assert page.wrong == []
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "embed", "base", "form"} == set()
    assert "could not be drawn" not in page.text
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert "<script>alert(1)</script>" in page.text
    assert r"\x00\x1b[31m\u202egnp.exe\ud800é漢" in page.text
    assert len(page.all("style")) == len(page.all("title")) - len(page.all("svg")) == 1


@pytest.mark.parametrize("report", [{}, {"tests": None, "environment": None}, {"tests": [None, 3, "x", []]}])
def test_no_report_is_too_odd(report):
    """Something is always shown."""
    assert Page(report_page(report)).wrong == []


def test_the_page_stands_alone(full):
    """No scripts, no network: every reference is a place in the page, and the policy forbids all else."""
    assert full.wrong == []
    assert not full.all("script")
    references = [*full.values("href"), *full.values("src"), *full.values("xlink:href")]
    assert all(reference.startswith("#") or reference == "data:," for reference in references)
    assert not re.search(r"url\(|@import|https?:", "".join(full.styles))
    policy = next(meta["content"] for meta in full.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_ids_are_unique_and_references_lead_somewhere(full):
    """Over all figures and sections."""
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    named = [name for value in full.values("aria-labelledby") for name in value.split()]
    assert set(named) | {href[1:] for href in full.values("href") if href.startswith("#")} <= set(ids)
    assert len(full.all("svg")) == len(full.all("desc")) == 5


def test_the_page_can_be_heard(full):
    """Landmarks, one heading of the first level, captions and scopes, and names for what scrolls."""
    tags = [tag for tag, _ in full.elements]
    assert [tags.count(tag) for tag in ("h1", "main", "header", "footer", "nav")] == [1] * 5
    assert tags.count("table") == tags.count("caption") > 10
    assert all(cell.get("scope") in ("row", "col") for cell in full.all("th"))
    assert all("aria-label" in attributes for _, attributes in full.elements if attributes.get("tabindex") == "0")
    assert all(attributes.get("role") == "img" for attributes in full.all("svg"))


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(full, scheme):
    """WCAG 2.2 AA: 4.5 for text on each ground it stands on, 3 for what is drawn."""
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", re.findall(r":root \{([^}]*)\}", full.styles[0])[scheme]))
    for ground in ("paper", "raised", "bad-tint"):
        for ink in ("ink", "muted", "bad", "link"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink in ("warn", "good", "limit"):
        assert contrast(colours[ink], colours["raised"]) >= 4.5, ink
    for mark in ("raw", "clipped", "limit", "bad", "edge"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


# --- the file


def test_the_same_report_makes_the_same_bytes():
    """No dates, no random ids."""
    report = {"environment": FACTS, "tests": [full_record()]}
    assert report_page(report) == report_page(report)


def test_many_tests(monkeypatch):
    """Watched tests are rows; sections with figures are counted, failed ones first, and the page says so."""
    monkeypatch.setattr(html, "_MOST_IN_FULL", 6)
    explicit = [record(f"t.py::test_{number}", steps=20 + number) for number in range(30)]
    failed = [record(f"t.py::test_f{number}", "failed", mode="watched", findings=[FINDING]) for number in range(3)]
    watched = [record(f"t.py::test_w{number}", mode="watched") for number in range(1967)]
    text = report_page({"environment": FACTS, "tests": [*explicit, *watched, *failed]})
    page = Page(text)
    sections = [attributes for attributes in page.all("details") if attributes.get("class") == "test"]
    assert len(sections) == 6
    assert "Figures and tables are shown of 6 of 33 tests, failed ones first: the JSON report has all." in page.text
    assert page.text.index("failed t.py::test_f0") < page.text.index("passed t.py::test_0")
    assert "1994 tests without a section of their own" in page.text
    assert len(text) < 1_000_000


def test_findings_are_told_beyond_the_figures(monkeypatch):
    """Without curves and tables, and the section says so."""
    monkeypatch.setattr(html, "_MOST_IN_FULL", 1)
    monkeypatch.setattr(html, "_MOST_FOUND", 3)
    page = page_of(*(record(f"t.py::test_{n}", "failed", steps=9 + n, findings=[FINDING]) for n in range(5)))
    assert len(page.all("svg")) == 2
    assert "failed or found (5)" in page.text
    assert "and 2 more tests: the JSON report has all" in page.text
    assert page.text.count("Figures and tables of this test are left out.") == 2


def test_tidy_keeps_what_is_right():
    """A sound record passes through unchanged where renderers read it."""
    given = full_record()
    kept = tidy(given)
    for name in ("id", "mode", "outcome", "run", "limits", "headroom", "init_scale", "parity", "notes", "margins"):
        assert kept[name] == given[name], name


def test_the_option_writes_it(pytester, monkeypatch):
    """A real session, warnings as errors, beside a JSON report."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a quick start
    pytester.makepyfile(
        """
        import pytest, torch

        @pytest.mark.nanstab(max_loss=100)
        def test_nan():
            weight = torch.nn.Parameter(torch.ones(2))
            optimizer = torch.optim.SGD([weight], 0.1)
            for step in range(6):
                optimizer.zero_grad()
                (weight.sum() * (float("nan") if step == 4 else 1.0)).backward()
                optimizer.step()
        """
    )
    result = pytester.runpytest_subprocess(
        "-p", "nanstab", "--nanstab-report=n/r.html", "--nanstab-report=r.json", "-W", "error"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["nanstab report: *r.html"])
    page = Page((pytester.path / "n" / "r.html").read_text(encoding="utf-8"))
    assert page.wrong == []
    assert "failed test_the_option_writes_it.py::test_nan NaN in the loss at step 5" in page.text
    assert "limit: max_loss 100 (function marker)" in page.text
    assert page.all("svg")


def test_a_missing_extra_is_a_usage_error(pytester, monkeypatch):
    """At the start, with what to install; other reports do without."""
    monkeypatch.setattr(pages, "_NEEDED", ("matplotlib", "no_such_package"))
    result = pytester.runpytest_inprocess("--nanstab-report=x.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    wanted = 'ERROR: --nanstab-report=x.html needs no_such_package: pip install "pytest-nanstab[report]"'
    assert wanted in result.stderr.str()
    assert pytester.runpytest_inprocess("--nanstab-report=x.json").ret == pytest.ExitCode.NO_TESTS_COLLECTED


# --- comparisons


@pytest.fixture
def compared(tmp_path, capsys):
    """The exit status and the page of a comparison of reports, one per torch version."""

    def run(*reports, options=()):
        paths = []
        for number, tests in enumerate(reports):
            path = tmp_path / f"{number}.json"
            facts = {"python": "3.11.7", "torch": f"2.{number}"}
            path.write_text(json.dumps({"schema": 1, "environment": facts, "tests": tests}), encoding="utf-8")
            paths.append(str(path))
        status = main(["compare", *paths, "--output", str(tmp_path / "x.html"), *options])
        capsys.readouterr()
        return status, Page((tmp_path / "x.html").read_text(encoding="utf-8"))

    return run


def test_a_comparison(compared):
    """Changed cells are marked in words, changes are listed, drift has a place on a track."""
    one = [record(NASTY), record("t.py::test_drift", headroom={"activation": {"net float32": 20.0}}), record("t.py::b")]
    two = [
        record(NASTY, "failed", findings=[FINDING]),
        record("t.py::test_drift", headroom={"activation": {"net float32": 12.0}}),
        record("t.py::b"),
    ]
    status, page = compared(one, two)
    assert status == 1
    assert page.wrong == []
    assert not page.all("script")
    assert "outcomes differ" in page.text
    assert "failed: nonfinite-loss, step 18 (not finite here)" in page.text
    assert "headroom by environment environment headroom torch 2.0 20.0 bits torch 2.1 12.0 bits" in page.text
    assert page.values("style") == ["left:96%", "left:4%"]
    assert "Tests that are the same everywhere 1 test" in page.text
    assert not [attributes for attributes in page.all("details") if "open" in attributes]


def test_a_comparison_without_changes(compared):
    """Says so; --all opens the list."""
    status, page = compared([record()], [record()], options=["--all"])
    assert status == 0
    assert "1 test in 2 environments: the same in all no outcome differs" in page.text
    assert [attributes for attributes in page.all("details") if "open" in attributes]


def test_a_comparison_needs_the_extra_too(tmp_path, monkeypatch, capsys):
    """Exit status 2 and what to install."""
    monkeypatch.setattr(pages, "_NEEDED", ("no_such_package",))
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(tmp_path), "--output", "x.html"])
    assert caught.value.code == 2
    assert 'x.html needs no_such_package: pip install "pytest-nanstab[report]"' in capsys.readouterr().err
