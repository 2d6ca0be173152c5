"""Every example of README and documentation runs, and the pages show what it prints."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import doc_examples
import plugin_runs  # noqa: F401 - loads torch before sessions inside this one
import pytest
import torch
from doc_examples import REPOSITORY, Block, blocks_of, changed, needs_of, pages, part_of, refreshed, run_page, same

import pytest_nanstab
import pytest_nanstab.strategies
from pytest_nanstab.config import GRADES
from pytest_nanstab.findings import KINDS, Finding
from pytest_nanstab.suite.judging import owner_of
from pytest_nanstab.suite.spec import CHECKS

PINNED = (REPOSITORY / "constraints.txt").read_text("utf-8").split("torch==")[1].split()[0].rsplit(".", 1)[0]
# The pages show the numbers of one torch; others round, and word their own messages, in other ways.
on_the_pages_torch = pytest.mark.skipif(
    not torch.__version__.startswith(PINNED + ".") or sys.platform != "linux" or sys.version_info < (3, 11),
    reason=f"the pages show torch {PINNED} on Linux",
)


@on_the_pages_torch
@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_page(path: Path, tmp_path: Path) -> None:
    """Every output on the page is what its command prints now."""
    for module in needs_of(path):
        pytest.importorskip(module)
    stale = [example for example in run_page(path, tmp_path) if not example.up_to_date]
    for example in stale:
        lines = difflib.unified_diff(
            example.block.text.splitlines(), example.actual.splitlines(), "the page", "now", lineterm=""
        )
        print(f"$ {example.command}", *lines, sep="\n")
    assert not stale, f"run: python docs/refresh.py {path.relative_to(REPOSITORY)}"


def test_blocks_and_their_options() -> None:
    text = '```python title="a.py"\nx = 1\n```\n\n  ```text part="failure" norun\n  y\n  ```\n'
    first, second = blocks_of(text)
    assert (first.language, first.options, first.text) == ("python", {"title": "a.py"}, "x = 1")
    assert (second.options, second.flags, second.text) == ({"part": "failure"}, ("norun",), "y")


def test_a_diff_changes_the_one_place_it_fits() -> None:
    block = Block("diff", {"title": "a.py"}, (), " a = 1\n-b = 2\n+b = 3", 1, 5)
    assert changed("a = 1\nb = 2\nc = 4\n", block) == "a = 1\nb = 3\nc = 4\n"
    with pytest.raises(ValueError, match="fits 0 places"):
        changed("a = 1\nb = 4\n", block)


@pytest.mark.parametrize(
    ("shown", "actual", "alike"),
    [
        ("1 failed in 0.31s", "1 failed in 12.70s", True),
        ("largest 221.5, exp overflows", "largest 224.9, exp\n   overflows", True),
        ("largest 221.5", "largest 290", False),
        ("step 3, forward", "step 4, forward", False),
        ("NaN in the loss", "Inf in the loss", False),
        ("=== 1 failed ===", "====== 1 failed ======", True),
        ("a b", "a", False),
    ],
)
def test_what_counts_as_the_same_output(shown: str, actual: str, alike: bool) -> None:
    assert same(shown, actual) is alike


def test_words_alone_can_be_compared():
    shown, actual = (
        "op exp: 483 of 26912 values\nrows 0, 1, 3 … and 5 more\nlargest 221.5",
        "op exp: 14 of 26912 values rows 0, 3 largest 129",
    )
    assert same(shown, actual, numbers=False)
    assert not same(shown, actual)
    assert not same(shown, actual.replace("exp", "log"), numbers=False)


def test_a_stale_page_is_found_and_mended(tmp_path: Path) -> None:
    """The control: a page whose output is wrong is not up to date, and is once it is rewritten."""
    page = tmp_path / "page.md"
    source = '```python title="hello.py"\nprint("hello", 6 * 7)\n```\n\n```console\n$ python hello.py\n```\n\n'
    page.write_text(source + "```text\ngoodbye 42\n```\n", "utf-8")
    examples = list(run_page(page, tmp_path))
    assert [example.up_to_date for example in examples] == [False]
    page.write_text(refreshed(page.read_text("utf-8"), examples), "utf-8")
    assert "hello 42" in page.read_text("utf-8")
    assert all(example.up_to_date for example in run_page(page, tmp_path))


def test_parts_of_an_output() -> None:
    output = (
        "=== test session starts ===\nplatform x\ncollected 1 item\n\n"
        "=== FAILURES ===\n___ test_a ___\nwhy\n=== nanstab ===\n1 watched\n=== 1 failed in 1s ==="
    )
    assert part_of(output, "failure") == "___ test_a ___\nwhy"
    assert part_of(output, "summary") == "=== nanstab ===\n1 watched"
    assert part_of(output, "all").startswith("collected 1 item")


def test_there_are_pages_to_run() -> None:
    assert len(pages()) > 10, doc_examples.DOCS


# --- the reference is complete

REFERENCE = REPOSITORY / "docs" / "reference"


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table row of a page."""
    lines = (REFERENCE / page).read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]


def test_every_kind_of_finding_is_described():
    kinds = [re.findall(r"`([^`]+)`", row[0])[0] for row in rows_of("findings.md")]
    assert sorted(kinds) == sorted(KINDS)


def test_owners_are_those_of_the_code():
    """The item that fails with a finding of the training, as the suite decides it."""
    for row in rows_of("findings.md"):
        kind, owners = row[0].strip("`"), re.findall(r"`(\w+)`", row[2])
        if kind.startswith("nonfinite-") or "suites" not in row[3] + "suites" * (row[3] == "everywhere"):
            continue
        expected = owner_of(Finding(kind=kind, message=""))
        if kind in ("init-scale", "bad-data", "baseline"):  # no findings of a training
            continue
        assert owners[0] == expected, kind


def test_every_check_and_grade_is_described():
    text = (REFERENCE / "checks.md").read_text("utf-8")
    assert not [name for name in (*CHECKS, "baseline", *GRADES) if f"`{name}`" not in text]


def test_every_public_name_is_described():
    text = (REFERENCE / "api.md").read_text("utf-8")
    public = {f"pytest_nanstab.{name}" for name in pytest_nanstab.__all__}
    public |= {f"pytest_nanstab.strategies.{name}" for name in pytest_nanstab.strategies.__all__}
    described = set(re.findall(r":: (pytest_nanstab[\w.]*)", text))
    assert public <= described


def test_the_tables_hold_options_keys_and_limits():
    table = (REPOSITORY / "docs" / "reference" / "options.md").read_text("utf-8")
    for name in ("--nanstab-report=PATH", "--nanstab-headroom=N", "nanstab_fail_grade", "nanstab_max_loss", "max_loss"):
        assert f"| `{name}` |" in table


def test_what_is_made_from_the_code_is_up_to_date(monkeypatch: pytest.MonkeyPatch):
    """It stands in the pages themselves: not everybody who reads them builds them."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import generated

    pages = {path: path.read_text("utf-8") for path in REFERENCE.glob("*.md")}
    assert sum(text.count("<!-- generated: ") for text in pages.values()) == len(generated.TABLES)
    stale = [path.name for path, text in pages.items() if generated.filled(text) != text]
    assert not stale, "run: python docs/refresh.py"


def prose_of(path: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors():
    anchors = anchors_of(REPOSITORY / "docs" / "culprits" / "unsafe-formulas.md")
    assert {"forward-attention-scores-without-1sqrtd", "backward-torchwhere-does-not-protect"} <= anchors


def test_links_between_pages_lead_somewhere():
    """What Sphinx checks too, where it is installed; here also README, CONTRIBUTING and their anchors."""
    files = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]
    for path in (path for path in files if "_build" not in path.parts):
        text = prose_of(path)
        assert "[](" not in text, f"{path.name}: a link without words is seen by Sphinx alone"
        for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
            if "://" in target:
                continue
            page = path.parent / target if target else path
            assert page.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors_of(page), f"{path.name}: {target}#{anchor}"


CULPRITS = [path for path in sorted((REPOSITORY / "docs" / "culprits").glob("*.md")) if path.stem != "index"]


@pytest.mark.parametrize("path", CULPRITS, ids=lambda path: path.stem)
def test_a_culprit_has_symptom_finding_cause_and_fix(path: Path):
    """The first two may stand at the page's head, where its sections share them."""
    head, *sections = re.split(r"^## ", path.read_text("utf-8"), flags=re.MULTILINE)
    assert "**Symptom.**" in head
    assert re.search(r"\*\*Findings?\.\*\*", head)
    for section in (text for text in sections if 'part="failure"' in text):
        missing = [label for label in ("**Cause.**", "**Fix.**") if label not in section]
        assert not missing, section.splitlines()[0]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_a_page_stands_in_its_index(path: Path):
    """In the toctree, without which Sphinx hides it, and in the table or list of the same index."""
    if path.stem == "index" or "_build" in path.parts:
        return
    index = (path.parent / "index.md").read_text("utf-8")
    assert re.search(rf"^{path.stem}$", index, re.MULTILINE)
    assert f"({path.name})" in index


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", REPOSITORY / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


README_PRELUDE = """
import numpy, pytest, torch
from hypothesis import given
from torch import nn
from torch.optim import AdamW
from pytest_nanstab import (
    NonFiniteError, TrainingSetup, assert_finite, assert_handles_nonfinite, stability_suite, watch
)
from pytest_nanstab.strategies import TensorSpec, from_spec

class GPT(nn.Linear):
    def __init__(self, config):
        super().__init__(4, 3)
        nn.init.xavier_uniform_(self.weight)

def lm_loss(model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1])
def batches(config): return [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(3)]
def focal_loss(logits, target): return nn.functional.cross_entropy(logits, target)
@pytest.fixture
def tiny_config(): return None
@pytest.fixture
def setup(tiny_config):
    torch.manual_seed(0)
    model = GPT(tiny_config)
    optimizer = AdamW(model.parameters(), 0.3)
    return TrainingSetup(model=model, loss=lm_loss, optimizer=optimizer, batches=batches(None)[:1])
def preprocess(table):
    if not numpy.isfinite(table).all(): raise ValueError("not finite")
    return numpy.tanh(table)
sample = numpy.random.default_rng(0).normal(size=(6, 3))
"""


def test_the_seven_uses_of_the_readme_run(pytester: pytest.Pytester):
    """As they stand there, with the names they leave to the reader; the last two suites only need to be collected."""
    python = [b for b in blocks_of((REPOSITORY / "README.md").read_text("utf-8")) if b.language == "python"]
    (uses,) = [block for block in python if "from train import" not in block.text]
    body = uses.text.replace("def test_model(): ...", "def test_model(setup): return setup")
    pytester.makepyfile(test_uses=README_PRELUDE + body)
    once = ("-p", "no:randomly", "-p", "no:cacheprovider")
    fast = "not adversarial and not headroom and not baseline and not 16-true"
    assert pytester.runpytest_inprocess(*once, "-k", fast, "--nanstab").ret == 0
    collected = pytester.runpytest_inprocess(*once, "--collect-only", "-q").stdout.str()
    assert "test_gpt[baseline-bf16-mixed]" in collected
    assert "test_model[finite_steps-16-true]" in collected
