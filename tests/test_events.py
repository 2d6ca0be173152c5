"""`--nanstab-report=PATH.tensorboard`: curves as event files, read back by TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from plugin_runs import TRAINING, again, run_outside

from pytest_nanstab.findings import Finding
from pytest_nanstab.reporting import events, model

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")


def record(node="test_a.py::test_x", **changes):
    """A suite's item that trained three steps and broke at the last."""
    run = {
        "steps": 3,
        "loss": [2.0, 1.0, float("nan")],
        "grad_norm": [4.0, 1e300, None],
        "clipped_grad_norm": [1.0, 1.0, 1.0],
        "update_ratio": [None, None, None],
    }
    broken = Finding(kind="nonfinite-loss", message="NaN in the loss at step 3", step=3, source="loss.py:31").as_dict()
    base = {"id": node, "mode": "explicit", "outcome": "failed", "precision": "32-true", "seed": 0, "run": run}
    headroom = {"activation": {"a float16": 3.5, "b float32": 90.0, "c float16": float("inf")}, "gradient": {}}
    return {**base, "headroom": headroom, "findings": [broken], **changes}


class Writer:
    """Stands in for torch's SummaryWriter: keeps what it is given, and leaves a file."""

    made: dict[str, Writer]

    def __init__(self, log_dir: str, **options: Any) -> None:
        self.options, self.scalars, self.texts, self.closed = options, [], {}, 0
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        (folder / f"events.out.tfevents.{number}{options['filename_suffix']}").write_text("")
        Writer.made[folder.name] = self

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag] = (text, step)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made(monkeypatch):
    """The writers that were made, by the name of their folder."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made = {}
    return Writer.made


POINTS = [
    ("nanstab/loss", 2.0, 1),
    ("nanstab/loss", 1.0, 2),
    ("nanstab/grad_norm", 4.0, 1),
    ("nanstab/clipped_grad_norm", 1.0, 1),
    ("nanstab/clipped_grad_norm", 1.0, 2),
    ("nanstab/clipped_grad_norm", 1.0, 3),
    ("nanstab/headroom_bits/activation", 3.5, 3),
]
GAPS = [
    "    loss: nan at step 3",
    "    grad_norm: beyond float32 at step 2",
    "    grad_norm: not measured at step 3",
    "    update_ratio: not measured at steps 1, 2, 3",
]


def test_what_is_written(tmp_path, made):
    """Finite numbers are points; what is left out and what was found are texts at the last step."""
    events.write(str(tmp_path / "new" / "r.tensorboard"), model.build([record()], {}))
    writer = made["test_a.py.test_x"]
    assert (writer.scalars, writer.closed) == (POINTS, 1)
    assert {step for _, step in writer.texts.values()} == {3}
    texts = {tag: text.splitlines() for tag, (text, _) in writer.texts.items()}
    assert list(texts) == ["nanstab/test", "nanstab/findings", "nanstab/left_out"]
    assert texts["nanstab/test"] == ["    test_a.py::test_x: failed, precision 32-true, seed 0"]
    assert texts["nanstab/findings"][0] == "    NaN in the loss at step 3"
    assert all(line.startswith("    ") for line in texts["nanstab/findings"])
    assert texts["nanstab/left_out"] == GAPS


def test_a_healthy_test_has_no_more_to_say(tmp_path, made):
    """The twin: without findings and gaps there are only points and the name; long lists of steps are cut."""
    run = {"steps": 2, "loss": [1.0, 2.0], "grad_norm": [], "clipped_grad_norm": []}
    healthy = record(run=run, findings=[], outcome="passed", precision=None, seed=None, headroom={})
    gaps = record("gaps", run={"steps": 20, "loss": [None] * 20}, findings=[])
    events.write(str(tmp_path), model.build([healthy, gaps], {}))
    writer = made["test_a.py.test_x"]
    assert writer.scalars == [("nanstab/loss", 1.0, 1), ("nanstab/loss", 2.0, 2)]
    assert writer.texts == {"nanstab/test": ("    test_a.py::test_x: passed", 2)}
    text, _ = made["gaps"].texts["nanstab/left_out"]
    assert text == "    loss: not measured at steps 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 10 more"


def test_only_tests_that_trained_have_a_folder(tmp_path, made):
    """No step, no run folder; the folder of the report is there all the same."""
    idle = record("idle", run={"steps": 0, "loss": []})
    events.write(str(tmp_path / "r.tensorboard"), model.build([idle, record("none", run=None)], {}))
    assert made == {}
    assert list((tmp_path / "r.tensorboard").iterdir()) == []


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("tests/test_gpt.py::test_gpt[finite_steps-32-true]", "tests.test_gpt.py.test_gpt-finite_steps-32-true"),
        ("t.py::TestA::test_b", "t.py.TestA.test_b"),
        ("t.py::test[a b]", "t.py.test-a_b-d669de6a"),
        ("t.py::test[../../x]", None),
        ("t.py::test[\N{SNOWMAN}:\\*?\x00]", None),
        ("t.py::test[" + "x" * 300 + "]", None),
        ("../t.py::test", None),
        ("t.py::test[\ud800]", None),
    ],
)
def test_run_names(node, name):
    """A node id becomes one folder name that every file system takes."""
    (found,) = events.run_names([node])
    assert found == name or name is None
    assert len(found) < 140
    assert not set(found) & set('/\\:*?"<>|[]\x00 ')
    assert not found.startswith(".")


def test_run_names_are_unique():
    """Ids that differ only in what a folder name cannot say, or in case, get their own, the same each time."""
    nodes = ["t.py::test[a/b]", "t.py::test[a.b]", "t.py::test[A.b]", "t.py::test[a b]", "t.py::test[a:b]"]
    found = list(events.run_names(nodes))
    assert len({name.casefold() for name in found}) == len(nodes)
    assert found == list(events.run_names(nodes))


def test_a_later_session_replaces_only_its_own(tmp_path, made):
    """What others have put into the folders stays; the points of the session before do not mix with the new ones."""
    report = model.build([record()], {})
    events.write(str(tmp_path), report)
    folder = tmp_path / "test_a.py.test_x"
    for name in ("events.out.tfevents.7.host", "notes.txt"):
        (folder / name).write_text("mine")
    (tmp_path / "other_run").mkdir()
    events.write(str(tmp_path), report)
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.out.tfevents.3.nanstab",
        "events.out.tfevents.7.host",
        "notes.txt",
    ]
    assert (tmp_path / "other_run").is_dir()
    assert made["test_a.py.test_x"].options["purge_step"] == 1


def test_a_tensorboard_that_cannot_be_imported(tmp_path, monkeypatch):
    """Whatever its import raises is told as an ImportError, which the session's summary shows."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"torch\.utils\.tensorboard cannot be imported \(ModuleNotFoundError: "):
        events.write(str(tmp_path), model.build([record()], {}))


# --- sessions


def test_without_tensorboard_the_session_is_refused(pytester, monkeypatch):
    """One line says what to install, before anything is collected."""
    real = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "tensorboard" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    pytester.makepyfile("def test_x(): pass")
    ran = again(pytester, "--nanstab-report=r.tensorboard")
    assert (ran.code, ran.lines) == (4, [])
    assert ran.errors == ["ERROR: --nanstab-report=r.tensorboard needs TensorBoard: pip install tensorboard"]


SESSION = (
    TRAINING
    + """
@pytest.mark.nanstab
def test_breaks(): train(bad=2)

def test_trains(): train()

def test_does_not(): pass
"""
)


def read_back(folder: Path) -> dict[str, Any]:
    """The points and texts of a run folder, as TensorBoard reads them."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder)).Reload()
    points = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): found.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
    }
    return {**points, **texts}


@needs_tensorboard
def test_tensorboard_reads_a_session_with_a_worker(pytester, monkeypatch):
    """The controller alone writes, one file per test that trained, and TensorBoard reads curves and findings."""
    pytester.makepyfile(test_it=SESSION)
    ran = run_outside(pytester, monkeypatch, "--nanstab", "--nanstab-report=r.tensorboard", "-p", "xdist", "-n", "1")
    folder = pytester.path / "r.tensorboard"
    assert f"nanstab report: {folder}" in ran.lines
    assert ran.errors == []
    files = {path.name: len(list(path.iterdir())) for path in folder.iterdir()}
    assert files == {"test_it.py.test_breaks": 1, "test_it.py.test_trains": 1}
    broken = read_back(folder / "test_it.py.test_breaks")
    assert broken["nanstab/loss"] == [(1, 2.25)]
    assert "nanstab/grad_norm" in broken
    assert broken["nanstab/left_out"].startswith("    loss: nan at step 2")
    assert broken["nanstab/test"] == "    test_it.py::test_breaks: failed"
    assert "NaN in the loss at step 2, born in train()" in broken["nanstab/findings"]
    healthy = read_back(folder / "test_it.py.test_trains")
    assert [step for step, _ in healthy["nanstab/loss"]] == [1, 2, 3]
    assert "nanstab/findings" not in healthy


@needs_tensorboard
def test_tensorboard_reads_the_last_session(tmp_path):
    """Written twice, the folder holds the later points once."""
    later = record(run={"steps": 2, "loss": [7.0, 8.0]}, findings=[], headroom={})
    for written in (record(), later):
        events.write(str(tmp_path), model.build([written], {}))
    found = read_back(tmp_path / "test_a.py.test_x")
    assert found["nanstab/loss"] == [(1, 7.0), (2, 8.0)]
    assert "nanstab/findings" not in found


@needs_tensorboard
def test_a_folder_that_cannot_be_made(pytester):
    """It is said in the summary, and the exit status stays what it is."""
    (pytester.path / "r.tensorboard").write_text("a file")
    pytester.makepyfile("def test_x(): pass")
    ran = again(pytester, "--nanstab-report=r.tensorboard")
    assert ran.code == 0
    assert f"could not write nanstab report {pytester.path / 'r.tensorboard'}: File exists" in ran.lines
