"""The HTML report in a real browser, where there is one: it fits a phone, follows the scheme, and says no error."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

import pytest
from html_pages import FINDING, NASTY, full_record, record

from pytest_nanstab.reporting.pages import report_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OPTIONS += ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")
LOGGED = "--enable-logging=stderr"
# The page in frames of a phone's width and of a screen's, and what a script outside them measures.
AROUND = """<!doctype html><meta charset="utf-8"><title>waiting</title>{frames}<script>
addEventListener("load", () => {{
  const told = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
    page.querySelectorAll("details").forEach(part => part.open = true);
    const plots = [...page.querySelectorAll("svg.plot")].filter(plot => plot.getBoundingClientRect().height > 100);
    const line = page.querySelector(".raw path"), stroke = frame.contentWindow.getComputedStyle(line).stroke;
    const over = page.documentElement.scrollWidth - page.documentElement.clientWidth;
    return [over, style.backgroundColor, plots.length, stroke].join("|");
  }});
  document.title = "measured " + told.join(" / ");
}});
</script>"""
FRAME = '<iframe srcdoc="{page}" style="width:{width}px;height:900px;border:0;color-scheme:{scheme}"></iframe>'


def browse(folder, *arguments):
    """Run the browser with a profile of its own; what it printed, and what it told its log about the page."""
    command = [BROWSER, *OPTIONS, LOGGED, f"--user-data-dir={folder / 'profile'}", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, encoding="utf-8")
    if result.returncode:  # a stand-in that asks to install one, or a container that lacks what it needs
        pytest.skip(f"{BROWSER} does not start: {result.stderr[-200:]}")
    return result.stdout, re.findall(r".*CONSOLE.*", result.stderr)


@pytest.fixture(scope="module")
def page():
    long = {**record("t.py::test_" + "x" * 300, "failed", findings=[{**FINDING, "message": "y" * 400}])}
    return report_page({"environment": {"python": "3.11.7", "args": ["z" * 500]}, "tests": [full_record(), long]})


def test_it_fits_and_follows_the_scheme(tmp_path, page):
    """No sideways scrolling from 375 pixels on, both colour schemes, every figure drawn, nothing on the console."""
    escaped = html.escape(page)
    cases = [(width, scheme) for scheme in ("light", "dark") for width in (375, 1280)]
    frames = "".join(FRAME.format(page=escaped, width=width, scheme=scheme) for width, scheme in cases)
    (tmp_path / "around.html").write_text(AROUND.format(frames=frames), encoding="utf-8")
    dom, errors = browse(tmp_path, "--dump-dom", (tmp_path / "around.html").as_uri())
    assert errors == []
    measured = re.search(r"<title>measured (.*?)</title>", dom)
    assert measured is not None, dom[:500]
    light, dark = "rgb(255, 255, 255)|5|rgb(10, 86, 160)", "rgb(21, 23, 26)|5|rgb(131, 189, 247)"
    assert measured[1].split(" / ") == [f"0|{light}", f"0|{light}", f"0|{dark}", f"0|{dark}"]


def test_the_browser_reads_it_as_it_was_meant(tmp_path):
    """Text of a hostile record stays text, and the page renders without a complaint."""
    path = tmp_path / "r.html"
    path.write_text(report_page({"environment": {}, "tests": [record(NASTY, notes=[NASTY])]}), encoding="utf-8")
    dom, errors = browse(tmp_path, "--dump-dom", path.as_uri())
    assert errors == []
    assert "<script" not in dom
    assert "<img" not in dom
    assert "&lt;script&gt;alert(1)" in dom
