"""Baselines: what is recorded, what moved, the files, and their life in a real pytest."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import hypothesis  # noqa: F401 - see `loaded`
import pytest
import torch

from pytest_nanstab.baselines import files, items, update  # noqa: F401
from pytest_nanstab.baselines.compare import allowed_bits, compare, entry_of, nonfinite, spread_of, thinned
from pytest_nanstab.findings import Finding
from pytest_nanstab.suite import checks, fixture, spread  # noqa: F401
from pytest_nanstab.watching.run import Run

HEADROOM = {"activation": {"blocks.0 float32": 120.0, "blocks.1 float32": 125.0}}


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Load in this process what an inner run would load: pytester forgets modules, and torch cannot be loaded twice."""
    weight = torch.nn.Parameter(torch.ones(1))
    torch.optim.SGD([weight], 0.1).step(lambda: weight.detach().sum())


def run_of(steps=4, *, norm=2.0, **changes):
    """A healthy run whose loss halves every 10 steps."""
    losses = [2 ** (-i / 10) for i in range(steps)]
    given = {"steps": steps, "loss": losses, "grad_norm": [norm] * steps, "headroom": HEADROOM}
    return Run(**{"clipped_grad_norm": [norm] * steps, "update_ratio": [0.01] * steps, **given, **changes})


def compared(recorded, measured, *, precision="32-true", others=None):
    entry = entry_of(recorded, seed=0)
    if others is not None:
        entry["spread"] = spread_of(entry, [entry_of(other, seed=None) for other in others], precision=precision)
    return compare(entry, entry_of(measured, seed=0), precision=precision)


# --- what is recorded


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 127, 128, 1000, 100_000])
def test_thinning_keeps_both_ends(count):
    """At most 64 different steps, in order, with the first and the last."""
    kept = thinned(count)
    assert len(kept) == min(count, 64)
    assert sorted(set(kept)) == kept
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


def test_an_entry_is_short_strict_json():
    """Curves are thinned, numbers are short, the norm keeps the extremes that thinning drops."""
    norms = [1.0] * 500
    norms[3] = 9.123456789
    entry = entry_of(run_of(500, grad_norm=norms), seed=7)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert len(entry["loss"]) == len(entry["grad_norm"]) == len(entry["update_ratio"]) == len(entry["at"]) == 64
    assert (entry["at"][0], entry["at"][-1]) == (1, 500)
    assert entry["grad_norm_range"] == [1.0, 9.12346]
    assert entry["seed"] == 7


def test_what_was_not_measured_stays_out():
    """Steps without a measurement are null, quantities without any are left out."""
    entry = entry_of(Run(steps=2, loss=[1.0, None], grad_norm=[None, None], update_ratio=[None, None]), seed=None)
    assert entry["loss"] == [1.0, None]
    assert entry["grad_norm_range"] is None
    assert "headroom" not in entry
    assert "update_ratio" not in entry


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("curve", ["loss", "grad_norm", "clipped_grad_norm", "update_ratio"])
def test_a_non_finite_value_is_found_wherever_it_is(curve, bad):
    """One NaN or infinity in any curve makes a run unfit; the step is named. Without it the run is fit."""
    values = [1.0, None, bad, 1.0]
    found = nonfinite(run_of(**{curve: values}))
    assert found.kind.startswith("nonfinite-")
    assert found.step == 3
    assert nonfinite(run_of(**{curve: [1.0, None, 1.0, 1.0]})) is None


def test_non_finite_headroom_and_findings_make_a_run_unfit():
    """What the watch found counts too; findings about other things do not."""
    found = Finding(kind="nonfinite-output", message="NaN in the output at step 1")
    assert nonfinite(run_of(findings=[found])) is found
    assert nonfinite(run_of(findings=[Finding(kind="limit", message="loss above its limit")])) is None
    assert nonfinite(run_of(headroom={"activation": {"a float16": math.inf}})).kind == "headroom"


# --- what moved


def test_the_same_run_passes():
    """No finding and no note."""
    assert compared(run_of(), run_of()) == (None, [])


@pytest.mark.parametrize(
    ("precision", "bits", "fails"),
    [
        ("32-true", 0.2, False),
        ("32-true", 0.3, True),
        ("64-true", 0.3, True),
        ("16-mixed", 0.4, False),
        ("bf16-true", 0.6, True),
    ],
)
def test_floor_by_precision(precision, bits, fails):
    """Without a recorded spread 0.25 bit is allowed, 0.5 where 16-bit formats are involved."""
    found, _ = compared(run_of(), run_of(norm=2.0 * 2**bits), precision=precision)
    assert (found is not None) == fails


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_of_two_fails_even_beside_a_wide_spread(factor):
    """A spread of 0.9 bit would allow 2.7 by its triple; a factor of 2 still fails, either way."""
    others = [run_of(norm=2.0 * 2**0.9), run_of(norm=2.0 * 2**-0.5)]
    found, _ = compared(run_of(), run_of(norm=2.0 * factor), others=others)
    assert found.message == "gradient norm moved 1 bits from its baseline at step 1"
    assert "allowed 0.95 (recorded spread 0.9)" in found.evidence["moved"]
    assert compared(run_of(), run_of(norm=2.0 * 2**0.8), others=others) == (None, [])


def test_a_larger_spread_excuses_and_says_so():
    """Where the recording itself lay 1.5 bits apart, a factor of 2 passes with a note, and 1.6 bits fail."""
    others = [run_of(norm=2.0 * 2**1.5)]
    found, notes = compared(run_of(), run_of(norm=4.0), others=others)
    assert found is None
    assert "moved 1 bits, allowed 1.5 (recorded spread 1.5, more than a factor of 2)" in notes[0]
    found, _ = compared(run_of(), run_of(norm=2.0 * 2**1.6), others=others)
    assert "more than a factor of 2" in found.evidence["moved"]


def test_what_moved_most_is_named():
    """Quantity, step, recorded, measured and bits of the largest move; the others in a table."""
    now = run_of(norm=2.0 * 2**0.5)
    now.loss[2] *= 8
    found, _ = compared(run_of(), now)
    assert found.kind == "baseline"
    assert found.message == "loss moved 3 bits from its baseline at step 3"
    assert len(found.message) <= 60
    assert found.evidence["recorded"] == pytest.approx(2**-0.2, rel=1e-5)
    assert found.evidence["value"] == pytest.approx(8 * 2**-0.2, rel=1e-5)
    assert [row["bits"] for row in found.evidence["table"]] == [3.0, 0.5]
    assert found.evidence["off since"] == "step 1"
    assert "first step" in found.cause


def test_lost_headroom_names_the_module():
    """A bit of headroom lost fails and names the module and the dtype; headroom gained passes."""
    table = {"activation": {"decoder.layers.5.linear2 float16": 6.1}}
    lost = {"activation": {"decoder.layers.5.linear2 float16": 3.0}}
    found, _ = compared(run_of(headroom=table), run_of(headroom=lost), precision="16-mixed")
    assert found.message == "decoder.layers.5.linear2 lost 3.1 bits of float16 headroom"
    assert found.module == "decoder.layers.5.linear2"
    assert compared(run_of(headroom=lost), run_of(headroom=table), precision="16-mixed") == (None, [])


@pytest.mark.parametrize(("factor", "way"), [(4.0, "larger"), (0.25, "smaller")])
def test_another_initial_scale_names_the_parameter(factor, way):
    """Weights that start 2 bits off fail, though loss and norms agree; a sixth of a bit passes."""
    scales = {"decoder.0.weight": 0.05, "decoder.0.bias": 1.0}
    off = {**scales, "decoder.0.weight": 0.05 * factor}
    found, _ = compared(run_of(init_scale=scales), run_of(init_scale=off))
    assert found.message == f"decoder.0.weight starts 2 bits {way} than in its baseline"
    assert (found.module, found.evidence["value"], found.evidence["recorded"]) == ("decoder.0", 0.05 * factor, 0.05)
    near = {**scales, "decoder.0.weight": 0.05 * 2 ** (1 / 6)}
    assert compared(run_of(init_scale=scales), run_of(init_scale=near)) == (None, [])
    seeds = [run_of(init_scale=near), run_of(init_scale={**scales, "decoder.0.weight": 0.05 * 2**-0.3})]
    half = {**scales, "decoder.0.weight": 0.05 * 2**0.85}
    assert compared(run_of(init_scale=scales), run_of(init_scale=half), others=seeds) == (None, [])


def test_headroom_far_from_overflow_is_noise():
    """A gradient 2**40 times smaller than the largest may lose 3 bits; the one nearest to overflow may not."""

    def table(noise, largest):
        return {"gradient": {"k.bias float32": noise, "k.weight float32": largest}}

    assert compared(run_of(headroom=table(167.0, 127.0)), run_of(headroom=table(164.0, 127.0))) == (None, [])
    found, _ = compared(run_of(headroom=table(167.0, 127.0)), run_of(headroom=table(167.0, 126.0)))
    assert found.evidence["quantity"] == "gradient headroom"
    assert found.module == "k"


def test_headroom_that_is_gone_fails():
    """A module that is not measured any more would be unguarded in silence."""
    found, _ = compared(run_of(), run_of(headroom={"activation": {"blocks.0 float32": 120.0}}))
    assert found.message == "no headroom of activation blocks.1 float32 any more"


def test_another_number_of_steps_is_its_own_message():
    """Nothing is compared point by point then."""
    found, _ = compared(run_of(20), run_of(18, skipped_steps=2))
    assert found.message == "18 optimizer steps, the baseline has 20"
    assert found.evidence["skipped steps"] == {"recorded": 0, "now": 2}


def test_a_quantity_that_is_no_longer_measured_fails():
    """None does not pass for a number; a number where there was None does."""
    found, _ = compared(run_of(), run_of(grad_norm=[2.0, None, 2.0, 2.0]))
    assert found.message == "the gradient norm is no longer measured at step 2"
    assert compared(run_of(grad_norm=[2.0, None, 2.0, 2.0]), run_of()) == (None, [])


def test_a_peak_between_the_recorded_steps_is_seen():
    """The extremes of the norm cover what thinning leaves out."""
    norms = [2.0] * 500
    norms[3] = 64.0
    assert 4 not in entry_of(run_of(500), seed=0)["at"]
    found, _ = compared(run_of(500), run_of(500, grad_norm=norms))
    assert found.message == "largest gradient norm moved 5 bits from its baseline"


@pytest.mark.parametrize(
    ("was", "now", "fails"),
    [
        ([1.0, 0.0], [1.0, 1e-9], False),
        ([1.0, 0.0], [1.0, 0.5], True),
        ([0.0, 0.0], [0.0, 0.0], False),
        ([0.0, 0.0], [0.0, 1.0], True),
        ([1.0, -1.0], [1.0, -1.1], False),
        ([1.0, -1.0], [1.0, -2.0], True),
        ([1.0, -1.0], [1.0, 1.0], True),
        ([1.0, -1e-5], [1.0, 1e-5], False),
        ([1e300, 1e-300], [1e300, 1e-300], False),
        ([1e-300, 1e-300], [1e300, 1e300], True),
    ],
)
def test_zeros_signs_and_extremes(was, now, fails):
    """Rounding around zero passes, a change of sign or of magnitude does not; nothing overflows."""
    found, _ = compared(run_of(2, loss=was), run_of(2, loss=now))
    assert (found is not None) == fails


def test_allowances():
    """The rule of the docstring: a floor, three spreads under one bit, the spread itself beyond."""
    allowed = [allowed_bits("32-true", bits) for bits in (None, 0.0, 0.05, 0.2, 0.4, 0.97, 1.0, 2.5)]
    assert allowed == pytest.approx([0.25, 0.25, 0.25, 0.6, 0.95, 0.97, 1.0, 2.5])
    assert allowed_bits("16-true", 0.1) == 0.5


# --- files


def record(item="test_a", label="cpu 32-true", **changes):
    return {"file": "test_it.py", "item": item, "label": label, "entry": {**entry_of(run_of(), seed=0), **changes}}


def test_files_are_merged_sorted_and_readable(tmp_path):
    """New entries join the old ones, each curve is one line, and writing the same again changes nothing."""
    path = tmp_path / "deep" / "test_it.json"
    assert files.update(path, [record("test_b"), record("test_a")]) == 2
    assert files.update(path, [record("test_a", "cpu bf16-true"), record("test_b", steps=4)]) == 1
    before = path.read_text()
    assert files.update(path, [record("test_b")]) == 0
    assert path.read_text() == before
    assert list(files.load(path)) == ["test_a", "test_b"]
    assert list(files.load(path)["test_a"]) == ["cpu 32-true", "cpu bf16-true"]
    assert '"grad_norm": [2.0, 2.0, 2.0, 2.0],' in before
    assert before.endswith("}\n")


def test_non_finite_never_reaches_a_file(tmp_path):
    """Not even past the checks before it: the old file stays whole and no temporary one is left."""
    path = tmp_path / "test_it.json"
    files.update(path, [record()])
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        files.update(path, [record(loss=[math.nan] * 4)])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["test_it.json"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    """The new content appears in one step or not at all."""
    path = tmp_path / "test_it.json"
    files.update(path, [record()])
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.update(path, [record("test_b")])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["test_it.json"]


GOOD = {"format": files.FORMAT, "schema": 1, "tests": {}}


def entry_with(**changes):
    return json.dumps({**GOOD, "tests": {"test_a": {"cpu 32-true": {**entry_of(run_of(), seed=0), **changes}}}})


@pytest.mark.parametrize(
    ("text", "short", "reason"),
    [
        ("", "is damaged", "not strict JSON"),
        ('{"format": "pytest-nanstab base', "is damaged", "not strict JSON"),
        ("<<<<<<< HEAD\n{}\n", "is damaged", "not strict JSON"),
        ("[" * 100_000, "is damaged", "not strict JSON"),
        (entry_with(loss=[math.nan] * 4), "is damaged", "NaN is no JSON number"),
        (entry_with(loss=[1, 2, 3, "x"]).replace('"x"', "1e999"), "is damaged", "loss must be a list of 4 numbers"),
        ('{"tests": {}, "tests": {}}', "is damaged", "the key 'tests' appears twice"),
        ("[1, 2]", "is no baseline", '"format"'),
        ('{"a": 1}', "is no baseline", '"format"'),
        (json.dumps({**GOOD, "schema": 2}), "is too new", "schema 2"),
        (json.dumps({**GOOD, "schema": "1"}), "is damaged", "schema must be a whole number"),
        (json.dumps({**GOOD, "tests": []}), "is damaged", "tests: must be an object"),
        (json.dumps({**GOOD, "tests": {"test_a": 1}}), "is damaged", "test_a: must be an object"),
        (json.dumps({**GOOD, "tests": {"test_a": {"cpu 32-true": 1}}}), "is damaged", "test_a, cpu 32-true"),
        (entry_with(steps=-1), "is damaged", "whole numbers"),
        (entry_with(at=None), "is damaged", "at must be"),
        (entry_with(grad_norm=[1.0]), "is damaged", "grad_norm must be a list of 4 numbers"),
        (entry_with(grad_norm=[True] * 4), "is damaged", "grad_norm must be a list of 4 numbers"),
        (entry_with(grad_norm_range=[1.0]), "is damaged", "grad_norm_range"),
        (entry_with(headroom={"activation": [1.0]}), "is damaged", "headroom"),
        (entry_with(headroom={"activation": {"a float32": None}}), "is damaged", "headroom"),
        (entry_with(spread=3), "is damaged", "spread"),
        (entry_with(spread={"loss": [1.0]}), "is damaged", "spread.loss"),
        (entry_with(measured_with=3), "is damaged", "measured_with"),
    ],
)
def test_what_is_no_baseline_is_refused_and_left_alone(tmp_path, text, short, reason):
    """Damaged, foreign and newer files are named with the reason; recording does not overwrite them."""
    path = tmp_path / "test_it.json"
    path.write_text(text)
    for use in (files.load, lambda path: files.update(path, [record()])):
        with pytest.raises(files.BaselineFileError) as error:
            use(path)
        assert (error.value.path, error.value.short) == (path, short)
        assert reason in error.value.reason
    assert path.read_text() == text


def test_unreadable_files_are_refused(tmp_path):
    """A folder, or bytes that are no text."""
    with pytest.raises(files.BaselineFileError, match="cannot be read"):
        files.load(tmp_path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00pickle")
    with pytest.raises(files.BaselineFileError, match="cannot be read"):
        files.load(tmp_path / "x.json")


def test_a_test_outside_the_root_has_no_place(tmp_path):
    """Neither "../" nor an absolute path leads out of the folder."""
    assert files.path_for(tmp_path, "tests/test_gpt.py") == tmp_path / "tests" / "test_gpt.json"
    for file in ("../test_gpt.py", "/elsewhere/test_gpt.py"):
        with pytest.raises(ValueError, match="outside pytest's rootdir"):
            files.path_for(tmp_path, file)


# --- a real pytest, with runs made by hand: nothing to train

HAND_MADE = """
import json, pathlib, pytest
from pytest_nanstab import NonFiniteError, Run, StabilityError

def a_run(**changes):
    values = json.loads(pathlib.Path("run.json").read_text())
    return Run(**{**values, **changes})

def test_a(nanstab):
    nanstab.check_baseline(a_run())
"""


LEAN = ("-p", "no:randomly", "-p", "no:hypothesispytest", "-p", "no:html")  # what a new process need not load


@pytest.fixture
def project(pytester, monkeypatch):
    """A project with one test of a hand-made run; `project(options...)` runs it, `project.measure(...)` changes it."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NANSTAB_UPDATE_IN_CI", raising=False)

    class Project:
        path = pytester.path
        baseline = pytester.path / "nanstab_baselines" / "test_it.json"

        def __init__(self):
            self.write(HAND_MADE)
            self.measure()

        def write(self, body):
            pytester.makepyfile(test_it=body)

        def measure(self, **changes):
            values = {"steps": 3, "loss": [3.0, 2.0, 1.0], "grad_norm": [1.0, 1.0, 1.0], **changes}
            (pytester.path / "run.json").write_text(json.dumps(values))

        def __call__(self, *options):
            return pytester.runpytest_inprocess("-p", "no:randomly", "-W", "error", *options)

    return Project()


def test_life_of_a_baseline(project):
    """Missing fails with the command, recording passes, drift fails naming what moved, updating passes again."""
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*StabilityError: no baseline for cpu own-loop",
            "*file      nanstab_baselines/test_it.json",
            '*again     pytest --nanstab-update "test_it.py::test_a"',
        ]
    )
    assert not project.baseline.exists()

    result = project("--nanstab-update")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["nanstab_baselines/test_it.json: 1 recorded for the first time, 0 rewritten"])
    entry = json.loads(project.baseline.read_text())["tests"]["test_a"]["cpu own-loop"]
    assert entry["loss"] == [3.0, 2.0, 1.0]
    assert "pytest-nanstab" in entry["measured_with"]
    project().assert_outcomes(passed=1)

    before = project.baseline.read_text()
    project.measure(grad_norm=[1.0, 4.0, 1.0])
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*StabilityError: gradient norm moved 2 bits from its baseline at step 2",
            "*step *2, cpu",
            "*measured *4",
            "*recorded *1",
            "*moved *2 bits, allowed 0.25*",
            "*off since *step 2",
        ],
        consecutive=False,
    )
    assert project.baseline.read_text() == before

    result = project("--nanstab-update")
    result.stdout.fnmatch_lines(["nanstab_baselines/test_it.json: 0 recorded for the first time, 1 rewritten"])
    project().assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [(), ("--nanstab-update",)])
def test_nan_is_never_recorded_and_never_passes(project, options):
    """A run that went NaN fails with and without the option, as a NonFiniteError, and the old file stays."""
    project("--nanstab-update")
    before = project.baseline.read_text()
    project.write(HAND_MADE.replace("a_run())", "a_run(loss=[3.0, float('nan'), 1.0]))"))
    result = project(*options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NonFiniteError: the loss is nan at step 2*"])
    assert project.baseline.read_text() == before


def test_a_failed_test_records_nothing(project):
    """What fails after its check is no model; the summary says so."""
    project.write(HAND_MADE + "    assert False\n")
    result = project("--nanstab-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not recorded, the test did not pass: test_it.py::test_a cpu own-loop"])
    assert not project.baseline.exists()


def test_names_tell_runs_apart(project):
    """Two runs of one test need names; the same name twice is refused."""
    twice = "    nanstab.check_baseline(a_run(), name='second')\n"
    project.write(HAND_MADE + twice)
    project("--nanstab-update").assert_outcomes(passed=1)
    assert list(json.loads(project.baseline.read_text())["tests"]) == ["test_a", "test_a / second"]
    project().assert_outcomes(passed=1)
    project.write(HAND_MADE + twice + twice)
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: two baselines of test_a / second for cpu own-loop*"])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("None", "TypeError: run must be a Run, as nanstab.train returns it, got None"),
        ("a_run(), name=3", "TypeError: name must be a str or None, got 3"),
        ("a_run(), name=' '", "ValueError: name must be printable and not empty, got ' '"),
        ("Run()", "StabilityError: no optimizer step was measured"),
    ],
)
def test_wrong_arguments(project, call, error):
    """Said at once, with what is allowed; a run that took no step has no baseline either."""
    project.write(HAND_MADE.replace("a_run())", f"{call})"))
    for options in ((), ("--nanstab-update",)):
        project(*options).stdout.fnmatch_lines([f"*{error}"])


@pytest.mark.parametrize(
    ("ci", "allowed", "code"), [("true", "", 4), ("1", "0", 4), ("true", "1", 0), ("false", "", 0)]
)
def test_ci_cannot_loosen_by_accident(project, monkeypatch, ci, allowed, code):
    """With CI set, updating is a usage error that names the way out; without the option CI changes nothing."""
    project("--nanstab-update")
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("NANSTAB_UPDATE_IN_CI", allowed)
    assert project().ret == 0
    result = project("--nanstab-update")
    assert result.ret == code
    if code:
        result.stderr.fnmatch_lines(["*NANSTAB_UPDATE_IN_CI=1*"])


@pytest.mark.parametrize("folder", ["../outside", "/tmp", "", "a/../../b"])
def test_the_folder_must_be_inside_the_root(project, folder):
    """A path that leads out is a usage error, with and without updating."""
    for options in ((), ("--nanstab-update",)):
        result = project("-o", f"nanstab_baseline_dir={folder}", *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*nanstab_baseline_dir must be the name of a folder inside rootdir*"])


def test_another_folder(project):
    """The ini key moves the files."""
    project("-o", "nanstab_baseline_dir=recorded/here", "--nanstab-update")
    assert (project.path / "recorded" / "here" / "test_it.json").exists()
    project("-o", "nanstab_baseline_dir=recorded/here").assert_outcomes(passed=1)
    project().assert_outcomes(failed=1)


@pytest.mark.parametrize("options", [(), ("--nanstab-update",)])
def test_a_damaged_file_fails_the_test(project, options):
    """The item names file and reason; updating does not overwrite what it cannot read."""
    project("--nanstab-update")
    project.baseline.write_text("<<<<<<< HEAD\n")
    result = project(*options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*StabilityError: baseline file test_it.json: is damaged", "*reason*not strict JSON*"])
    assert project.baseline.read_text() == "<<<<<<< HEAD\n"


def test_stale_entries_are_listed_and_kept(project):
    """Entries of tests that are gone, or of files that are gone, are told at update and stay; others are not told."""
    project.write(HAND_MADE + "def test_old(nanstab):\n    nanstab.check_baseline(a_run(), name='x')\n")
    project("--nanstab-update")
    (project.baseline.parent / "test_gone.json").write_text(project.baseline.read_text())
    project.write(HAND_MADE)
    result = project("--nanstab-update")
    result.stdout.fnmatch_lines(
        [
            "stale, no test stands behind it (nothing is deleted):",
            "  test_gone.py::test_a cpu own-loop",
            "  test_gone.py::test_old / x cpu own-loop",
            "  test_it.py::test_old / x cpu own-loop",
        ],
        consecutive=True,
    )
    assert list(json.loads(project.baseline.read_text())["tests"]) == ["test_a", "test_old / x"]
    assert "test_it.py::test_old" not in project("--nanstab-update", "test_it.py::test_a").stdout.str()


def test_deselected_tests_are_not_stale(project):
    """-k leaves tests out of the run, not out of the project."""
    project.write(HAND_MADE + "def test_other(nanstab):\n    nanstab.check_baseline(a_run())\n")
    project("--nanstab-update")
    result = project("--nanstab-update", "-k", "test_a")
    result.stdout.no_fnmatch_line("stale, no test*")
    project().assert_outcomes(passed=2)


def test_nothing_to_record_is_said(project):
    """An update without any baseline is probably a mistake."""
    project.write("def test_a():\n    pass\n")
    project("--nanstab-update").stdout.fnmatch_lines(["no test asked for a baseline: nothing was recorded"])


def test_an_unwritable_folder_is_told(project):
    """A file where the folder should be fails the test that wants to record."""
    (project.path / "nanstab_baselines").write_text("in the way")
    project("--nanstab-update").stdout.fnmatch_lines(["*baseline file test_it.json: cannot be read*"])


def test_a_file_that_breaks_meanwhile_is_told(project):
    """What cannot be written in the end stands in the summary, and the file is left alone."""
    broken = "    folder = pathlib.Path('nanstab_baselines')\n    folder.mkdir()\n"
    project.write(HAND_MADE + broken + "    (folder / 'test_it.json').write_text('{')\n")
    result = project("--nanstab-update")
    result.stdout.fnmatch_lines(["could not write *test_it.json: is damaged: not strict JSON*"])
    assert project.baseline.read_text() == "{"


def test_workers_send_and_the_controller_writes(project, pytester):
    """With two workers every entry of one file arrives, and what is stale is told once."""
    body = HAND_MADE + '\n@pytest.mark.parametrize("n", range(4))\ndef test_n(nanstab, n):\n'
    body += "    nanstab.check_baseline(a_run())\n"
    project.write(body + "\ndef test_old(nanstab):\n    nanstab.check_baseline(a_run())\n")
    project("--nanstab-update")
    project.write(body)
    project.measure(grad_norm=[2.0, 2.0, 2.0])
    result = pytester.runpytest_subprocess(*LEAN, "-n", "2", "--nanstab-update")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["nanstab_baselines/test_it.json: 0 recorded for the first time, 5 rewritten"])
    assert result.stdout.str().count("test_it.py::test_old") == 1
    tests = json.loads(project.baseline.read_text())["tests"]
    assert {name: tests[name]["cpu own-loop"]["grad_norm"][0] for name in tests} == {
        "test_a": 2.0,
        **{f"test_n[{n}]": 2.0 for n in range(4)},
        "test_old": 1.0,
    }
    project().assert_outcomes(passed=5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
@pytest.mark.slow
def test_life_of_a_baseline_under_xdist(project, pytester):
    """Missing, recorded, passed, killed while recording anew, drifted with the module named, updated, passed."""
    body = HAND_MADE + "\ndef test_b(nanstab):\n    nanstab.check_baseline(a_run())\n"
    body += "    if pathlib.Path('kill').exists():\n"
    body += "        import os, signal\n        os.kill(os.getppid(), signal.SIGKILL)\n"
    project.write(body)
    project.measure(headroom={"activation": {"decoder.linear2 float16": 6.1}})

    def workers(*options):
        return pytester.runpytest_subprocess(*LEAN, "-n", "2", *options)

    workers().assert_outcomes(failed=2)
    assert not project.baseline.exists()
    workers("--nanstab-update").assert_outcomes(passed=2)
    before = project.baseline.read_bytes()
    assert list(json.loads(before)["tests"]) == ["test_a", "test_b"]
    workers().assert_outcomes(passed=2)

    project.measure(headroom={"activation": {"decoder.linear2 float16": 3.0}})
    (project.path / "kill").touch()
    assert workers("--nanstab-update").ret == -9
    assert project.baseline.read_bytes() == before
    (project.path / "kill").unlink()

    result = workers()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*StabilityError: decoder.linear2 lost 3.1 bits of float16 headroom"])
    assert project.baseline.read_bytes() == before
    workers("--nanstab-update").assert_outcomes(passed=2)
    workers().assert_outcomes(passed=2)


def test_a_killed_session_leaves_the_old_file(project, pytester):
    """Killed in the middle of an update, after a test has recorded: the file is the old one, byte by byte."""
    project("--nanstab-update")
    before = project.baseline.read_bytes()
    project.measure(grad_norm=[2.0, 2.0, 2.0])
    project.write(HAND_MADE + "\ndef test_b():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    result = pytester.runpytest_subprocess(*LEAN, "--nanstab-update", "-v")
    assert result.ret == -9
    result.stdout.fnmatch_lines(["*test_a PASSED*"])
    assert project.baseline.read_bytes() == before
    assert [path.name for path in Path(project.baseline.parent).iterdir()] == ["test_it.json"]


# --- suites

SUITE = """
import json, pathlib, pytest, torch
from torch import nn
from pytest_nanstab import TrainingSetup, stability_suite

def factor():
    return json.loads(pathlib.Path("factor.json").read_text())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

def setup_of():
    net = Net()
    x = torch.arange(32.0).reshape(8, 4) / 32
    return TrainingSetup(
        model=net,
        loss=lambda model, batch: factor() * (model(batch[0]) - batch[1]).square().mean(),
        optimizer=torch.optim.SGD(net.parameters(), 0.05),
        batches=[(x, x.sum(1, keepdim=True))],
    )
"""


@pytest.fixture
def suite(project):
    """The project with a suite in place of the hand-made run."""

    def write(decorator, body="def test_net():\n    return setup_of()\n", *, factor=1.0):
        project.write(f"{SUITE}\n{decorator}\n{body}")
        (project.path / "factor.json").write_text(json.dumps(factor))

    project.suite = write
    return project


BASELINE = '@stability_suite(checks="finite_steps", steps=4, seed=5, baseline=True)'


def test_life_of_a_suites_baseline(suite):
    """One item per precision; recording measures the spread; drift names what moved most."""
    suite.suite(BASELINE.replace("steps=4", 'steps=4, precision=["32-true", "bf16-true"]'))
    result = suite("-v")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        ["*test_net[[]baseline-32-true[]] FAILED*", "*test_net[[]baseline-bf16-true[]] FAILED*"]
    )
    result.stdout.fnmatch_lines(['*pytest --nanstab-update "test_it.py::test_net[[]baseline-32-true[]]"'])

    suite("--nanstab-update").assert_outcomes(passed=4)
    entries = json.loads(suite.baseline.read_text())["tests"]["test_net"]
    assert list(entries) == ["cpu 32-true", "cpu bf16-true"]
    entry = entries["cpu 32-true"]
    assert (entry["seed"], entry["steps"], entry["spread"]["seeds"]) == (5, 4, [5, 6, 7])
    assert len(entry["spread"]["threads"]) == 2
    assert len(entry["spread"]["loss"]) == 4
    assert max(entry["spread"]["loss"]) > 0
    assert "first float32" in entry["headroom"]["activation"]
    assert sorted(entry["init_scale"]) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    assert all(0 < value < 1 for value in entry["init_scale"].values())
    suite().assert_outcomes(passed=4)

    (suite.path / "factor.json").write_text("2")
    result = suite("-k", "baseline-32")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*moved*bits, allowed*(recorded spread*"])
    suite("--nanstab-update").assert_outcomes(passed=4)
    suite().assert_outcomes(passed=4)


def test_another_thread_count_passes(suite):
    """What is recorded with one thread holds with two."""
    suite.suite(BASELINE.replace("steps=4", "steps=30"))
    before = torch.get_num_threads()
    suite("--nanstab-update").assert_outcomes(passed=2)
    torch.set_num_threads(before + 1)
    try:
        suite().assert_outcomes(passed=2)
    finally:
        torch.set_num_threads(before)


def test_the_thread_count_comes_back(suite):
    """Recording runs on two thread counts and restores the one it found."""
    suite.suite(BASELINE)
    before = torch.get_num_threads()
    suite("--nanstab-update").assert_outcomes(passed=2)
    assert torch.get_num_threads() == before


def test_parameters_and_methods_have_baselines_of_their_own(suite):
    """Keys are node ids without the file and the check."""
    body = '@pytest.mark.parametrize("n", ["a", "-b"])\n{}def test_net({}n):\n{}    return setup_of()\n'
    suite.suite(BASELINE, body.format("", "", "") + "\nclass TestNets:\n    def helper(self): ...\n")
    suite("--nanstab-update").assert_outcomes(passed=4)
    assert list(json.loads(suite.baseline.read_text())["tests"]) == ["test_net[-b]", "test_net[a]"]
    method = f"class TestNets:\n    {BASELINE}\n    def test_net(self):\n        return setup_of()\n"
    suite.suite("", method)
    suite("--nanstab-update").stdout.fnmatch_lines(["  test_it.py::test_net[[]a[]] cpu 32-true"])
    assert "TestNets::test_net" in json.loads(suite.baseline.read_text())["tests"]


def test_a_baseline_is_of_the_first_seed(suite):
    """With several seeds the other items run them all, and the baseline item one."""
    suite.suite(BASELINE.replace("steps=4", "steps=4, seeds=2"))
    suite("--nanstab-update").assert_outcomes(passed=2)
    suite().assert_outcomes(passed=2)
    entry = json.loads(suite.baseline.read_text())["tests"]["test_net"]["cpu 32-true"]
    assert entry["seed"] == 5


def test_a_precision_that_is_gone_is_stale(suite):
    """The entry of a precision that the suite has no more is told."""
    suite.suite(BASELINE.replace("steps=4", 'steps=4, precision=["32-true", "64-true"]'))
    suite("--nanstab-update")
    suite.suite(BASELINE)
    suite("--nanstab-update").stdout.fnmatch_lines(["  test_it.py::test_net cpu 64-true"])


def test_other_steps_fail_with_their_own_message(suite):
    """A suite that was given more steps says so."""
    suite.suite(BASELINE)
    suite("--nanstab-update")
    suite.suite(BASELINE.replace("steps=4", "steps=12"))
    suite().stdout.fnmatch_lines(["12 optimizer steps, the baseline has 4"])


def test_a_training_that_stops_is_not_recorded(suite):
    """The item that owns the fault fails, the baseline skips, nothing is written; alone it fails itself."""
    suite.suite(BASELINE)
    (suite.path / "factor.json").write_text("NaN")
    suite("--nanstab-update").assert_outcomes(failed=1, skipped=1)
    suite("--nanstab-update", "-k", "baseline").assert_outcomes(failed=1)
    assert not suite.baseline.exists()


def test_a_seed_that_diverges_stops_the_recording(suite):
    """The spread is measured with finite runs only: a NaN of another seed fails the recording."""
    body = "def test_net():\n    import torch\n    setup = setup_of()\n    if torch.initial_seed() == 7:\n"
    body += "        setup.model.last.weight.data.fill_(3e38)\n    return setup\n"
    suite.suite(BASELINE, body)
    result = suite("--nanstab-update", "-k", "baseline")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*seed 7*"])
    assert not suite.baseline.exists()


def test_runs_of_the_fixture_are_kept_by_precision(suite):
    """`nanstab.train` knows the precision, the test's own loop does not."""
    body = """
import pytest_nanstab
def test_both(nanstab):
    torch.manual_seed(0)
    nanstab.check_baseline(nanstab.train(setup_of(), steps=3, precision="64-true"))
    setup = setup_of()
    with nanstab.watch() as run:
        for batch in setup.batches:
            setup.optimizer.zero_grad()
            setup.loss(setup.model, batch).backward()
            setup.optimizer.step()
    nanstab.check_baseline(run)
"""
    suite.suite("", body)
    suite("--nanstab-update").assert_outcomes(passed=1)
    assert list(json.loads(suite.baseline.read_text())["tests"]["test_both"]) == ["cpu 64-true", "cpu own-loop"]
    suite().assert_outcomes(passed=1)
