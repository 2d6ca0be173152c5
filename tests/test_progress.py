"""The progress of long runs: a note on a terminal that leaves no trace, and nothing anywhere else."""

from __future__ import annotations

import os
import re
import sys
import threading
from unittest.mock import ANY

import pytest

from pytest_nanstab import progress

if sys.platform == "win32":
    pytest.skip("no notes on Windows, and no pseudo-terminals", allow_module_level=True)

from terminals import on_terminal, screen

from pytest_nanstab.reporting.live import Note


@pytest.fixture
def at_once(monkeypatch):
    """Runs are shown from their first step on, at every step."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)


@pytest.fixture
def shown(at_once):
    """What is shown, in order."""
    seen: list[list[str]] = []
    with progress.shown_by(lambda stages: seen.append(list(stages))):
        yield seen


# --- when there is something to show


def test_nobody_is_told_where_nobody_looks():
    """Without anybody who shows it, a run gets no function to call."""
    with progress.shown_by(None), progress.stage("training", "step {}") as tell:
        assert tell is None


def test_a_run_and_one_inside_it(shown):
    """The innermost says how far it is, those around it what they are; after the last there is nothing."""
    with progress.stage("search", "{} s") as search:
        search(1)
        with progress.stage("training", "step {} of {}") as training:
            search(2)
            training(3, 40)
        search(4)
    assert shown == [["search, 1 s"], ["search", "training"], ["search", "training, step 3 of 40"], ["search, 4 s"], []]


def test_short_runs_say_nothing(shown, monkeypatch):
    """The twin: before two seconds have passed nothing is shown, and nothing has to be taken away."""
    monkeypatch.undo()
    assert (progress.FIRST, progress.EVERY) == (2.0, 0.25)
    with progress.stage("training", "step {}") as tell:
        for step in range(1000):
            tell(step)
    assert shown == []


def test_pace(shown, monkeypatch):
    """First after two seconds, counted from the beginning of the outermost run, then four times a second."""
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.stage("training", "step {}") as tell:
        for tick in range(1, 31):  # 3 s
            now[0] = 100 + tick / 10
            tell(tick)
    assert [stages[0] for stages in shown if stages] == [f"training, step {tick}" for tick in (20, 23, 26, 29)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_a_run(shown, error):
    """An exception or an interrupt takes the note away, and the next run begins anew."""

    def break_in():
        with progress.stage("outer", "{}"), progress.stage("training", "step {}") as tell:
            tell(1)
            raise error

    with pytest.raises(error):
        break_in()
    with progress.stage("training", "step {}") as tell:
        tell(2)
    assert shown == [["outer", "training, step 1"], [], ["training, step 2"], []]


def test_other_threads_and_forked_children_are_silent(shown):
    """Only the thread and the process that began to show anything write; the twin is the same run in both."""

    def train():
        with progress.stage("training", "step {}") as tell:
            told.append(tell is not None)

    told: list[bool] = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    train()
    assert told == [False, True]


def test_a_child_forked_within_a_run_is_silent(shown, monkeypatch):
    """A child neither shows its steps nor takes the parent's note away."""
    with progress.stage("training", "step {}") as tell:
        tell(1)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        tell(2)
    assert shown == [["training, step 1"]]


def test_sessions_inside_sessions(shown):
    """A session without a terminal inside one with a terminal shows nothing, and the outer one goes on afterwards."""
    with progress.shown_by(None), progress.stage("training", "step {}") as tell:
        assert tell is None
    with progress.stage("training", "step {}") as tell:
        tell(1)
    assert shown == [["training, step 1"], []]


# --- the note


class Terminal:
    """A pytest configuration whose writer stands at a column, and the end of a pipe in place of the terminal."""

    def __init__(self, monkeypatch, *, column: int, columns: int) -> None:
        self.width_of_current_line = column
        self._reading, writing = os.pipe()
        self._writing = writing
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
        self.note = Note(self, writing)

    def get_terminal_writer(self) -> Terminal:
        return self

    def markup(self, text: str, **_: bool) -> str:
        return text

    def close(self) -> str:
        os.close(self._writing)
        with open(self._reading, encoding="ascii") as file:
            return file.read()


SEARCHING = ["search", "training, step 3 of 40"]


@pytest.mark.parametrize(
    ("column", "columns", "text"),
    [
        (20, 80, " search, training, step 3 of 40"),
        (48, 80, " search, training, step 3 of 40"),
        (49, 80, " training, step 3 of 40"),
        (57, 80, " step 3 of 40"),
        (66, 80, " step 3 of 40"),
        (67, 80, None),
        (80, 80, None),
        (100, 80, " search, training, step 3 of 40"),
        (0, 0, " search, training, step 3 of 40"),
        (-1, 80, None),
    ],
)
def test_a_note_never_reaches_the_end_of_the_line(monkeypatch, column, columns, text):
    """What does not fit between the cursor and the last column is said shorter, or not at all."""
    terminal = Terminal(monkeypatch, column=column, columns=columns)
    terminal.note(SEARCHING)
    terminal.note(())
    assert terminal.close() == ("" if text is None else f"\x1b7\x1b[K{text}\x1b8\x1b[K")
    assert text is None or column % (columns or 80) + len(text) < (columns or 80)


def test_a_terminal_that_is_gone(monkeypatch):
    """Whatever becomes of the terminal is no reason for a test to fail."""
    terminal = Terminal(monkeypatch, column=0, columns=80)
    terminal.close()
    terminal.note(SEARCHING)
    terminal.note(())


# --- sessions on a terminal

CONFTEST = "from pytest_nanstab import progress\nprogress.FIRST, progress.EVERY = {first}, 0.0\n"
LONG_RUNS = """
import os, signal
import pytest
from pytest_nanstab import progress

def run(name="training"):
    with progress.stage(name, "step {} of {}") as tell:
        for step in range(1, 4):
            if tell is not None:
                tell(step, 3)
            yield step

def test_passes(capfd):
    for step in run("search"):
        os.write(1, b"of the test\\n")
        list(run())
    assert capfd.readouterr() == ("of the test\\n" * 3, "")

def test_prints():
    for step in run():
        print("printed")
    assert step == 1

def test_quick():
    pass

def test_is_stopped():
    def stop(*_):
        pytest.fail("Timeout", pytrace=False)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with progress.stage("training", "step {}") as tell:
            tell and tell(1)
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)

def test_forks():
    with progress.stage("training", "step {}") as tell:
        child = os.fork()
        tell and tell(child or 77)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

def test_skips():
    for step in run():
        pytest.skip("in the middle")

@pytest.mark.parametrize("number", [0, 1])
def test_with_quite_a_long_name_so_little_room_is_left(number):
    list(run())
"""
INTERRUPTED = """
from pytest_nanstab import progress

def test_passes(): pass

def test_interrupted():
    with progress.stage("training", "step {}") as tell:
        tell and tell(1)
        raise KeyboardInterrupt
"""
NOTE = re.compile(r"\x1b7\x1b\[K\x1b\[2m (.*?)\x1b\[0m\x1b8")
ESCAPES = ("\x1b7", "\x1b8", "\x1b[K", "step 1")


def timeless(lines: list[str]) -> list[str]:
    """The lines without the seconds that anything has taken."""
    ends = [re.sub(r"=* ?(.*) in \d+\.\d+s ?=*", r"\1", line) for line in lines]
    return [re.sub(r"\d+ of (\d+) s,", r"N of \1 s,", line) for line in ends]


def both(pytester: pytest.Pytester, *arguments: str, columns: int = 80) -> str:
    """What a session writes with notes; it must end as the same session without any does."""
    ends = []
    for first in ("1e9", "0.0"):
        pytester.makeconftest(CONFTEST.format(first=first))
        code, written = on_terminal(pytester.path, *arguments, columns=columns)
        ends.append([str(code), *timeless(screen(written, columns))])
        assert (first == "0.0") == bool(NOTE.search(written))
    assert ends[0] == ends[1]
    return written


@pytest.mark.parametrize("arguments", [(), ("-v", "--capture=sys"), ("-q", "-x")], ids=["dots", "verbose", "quiet"])
def test_notes_leave_no_trace(pytester, arguments):
    """The final screen is that of a session without notes, whatever ends the runs."""
    body = LONG_RUNS.replace("capfd", "capsys").replace("os.write(1, b", "print(end=") if arguments else LONG_RUNS
    pytester.makepyfile(test_it=body)
    written = both(pytester, *arguments)
    notes = NOTE.findall(written)
    assert notes[:4] == ["search, step 1 of 3", *(f"search, training, step {step} of 3" for step in (1, 2, 3))]
    assert not [note for note in notes if "77" in note.split()]
    if "-v" in arguments:
        assert notes[-1] == "step 3 of 3"  # there is room for no more
        assert "test_it.py::test_prints \x1b7\x1b[K\x1b[2m training, step 1 of 3\x1b[0m\x1b8" in written


def test_an_interrupt_leaves_no_trace(pytester):
    """The note goes before pytest tells of the interrupt."""
    pytester.makepyfile(test_it=INTERRUPTED)
    written = both(pytester)
    assert NOTE.findall(written) == ["training, step 1"]
    assert "KeyboardInterrupt" in written


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("-s",), {}),
        (("--capture=tee-sys",), {}),
        (("-qq",), {}),
        (("-p", "no:terminal"), {}),
        (("--color=no",), {}),
        (("-o", "log_cli=true"), {}),
        ((), {"TERM": "dumb", "FORCE_COLOR": "1"}),
    ],
    ids=["no-capture", "tee", "very-quiet", "no-terminal-plugin", "no-colour", "live-logs", "dumb"],
)
def test_terminals_without_notes(pytester, arguments, variables):
    """Where a note would mix with other output, is not wanted, or cannot be taken away, there is none."""
    pytester.makepyfile(test_it=INTERRUPTED)
    pytester.makeconftest(CONFTEST.format(first="0.0"))
    _, written = on_terminal(pytester.path, *arguments, **variables)
    assert not [escape for escape in ESCAPES if escape in written]


DEBUGGED = """
from pytest_nanstab import progress

def test_debugged():
    with progress.stage("training", "step {}") as tell:
        tell(1)
        breakpoint()
        tell(2)
"""


def test_the_debugger_has_the_terminal_to_itself(pytester):
    """Once somebody debugs, no note comes in between."""
    pytester.makepyfile(test_it=DEBUGGED)
    pytester.makeconftest(CONFTEST.format(first="0.0"))
    code, written = on_terminal(pytester.path, typed="continue\n")
    assert (code, NOTE.findall(written)) == (0, ["training, step 1"])
    assert "PDB set_trace" in written


def test_no_byte_in_a_pipe(pytester, monkeypatch):
    """Neither a pipe nor the captured output of a test sees any of it, not even where colours are forced."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_it=LONG_RUNS)
    pytester.makeconftest(CONFTEST.format(first="0.0"))
    result = pytester.runpytest_subprocess("-p", "nanstab", "-rA", "--color=yes")
    result.assert_outcomes(passed=5, failed=2, skipped=1)
    written = result.stdout.str() + result.stderr.str()
    assert not [escape for escape in ESCAPES if escape in written]


def test_no_byte_under_xdist(pytester):
    """Workers have no terminal, and the controller runs nothing."""
    pytester.makepyfile(test_it=LONG_RUNS)
    pytester.makeconftest(CONFTEST.format(first="0.0"))
    _, written = on_terminal(pytester.path, "-p", "xdist", "-n", "2")
    assert "5 passed" in written
    assert not [escape for escape in ESCAPES if escape in written]


# --- who tells

REAL = """
import pytest, torch
from torch import nn
from pytest_nanstab import TrainingSetup, assert_finite_batches, stability_suite

def setup():
    model = nn.Linear(2, 1)
    batches = [torch.rand(4, 2) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return TrainingSetup(model=model, loss=lambda m, b: m(b).pow(2).mean(), optimizer=optimizer, batches=batches)

@stability_suite(steps=5, checks=["finite_data", "finite_steps", "finite_eval", "adversarial_batches"])
def test_suite(): return setup()

def test_train(nanstab): nanstab.train(setup(), steps=4)

def test_search(nanstab): nanstab.search(setup(), seconds=60, evaluations=10)

def test_walk(): assert_finite_batches([torch.ones(3), torch.tensor([float("nan")])])

@pytest.mark.nanstab
def test_breaks():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        (weight.sum() * (float("nan") if step == 3 else 1.0)).backward()
        optimizer.step()
"""


def test_every_long_run_tells(pytester):
    """Suites, trainings, searches, walks and the rerun that explains a failure are shown on a terminal."""
    pytester.makepyfile(test_it=REAL)
    few = "from pytest_nanstab.search import hunts\nhunts.SUITE_EVALUATIONS = 50\n"
    pytester.makeconftest(CONFTEST.format(first="0.0") + few)
    _, written = on_terminal(pytester.path, "-v", columns=140)
    notes = {line.split(" ")[0].partition("::")[2]: NOTE.findall(line) for line in timeless(written.split("\n"))}
    assert {name: (found[0], found[-1]) for name, found in notes.items() if found} == {
        "test_suite[finite_data]": ("finite_data batches, batch 1, faults 0", "finite_data batches, batch 3, faults 0"),
        "test_suite[finite_steps-32-true]": ("training, step 1 of 5", "evaluation, batch 3"),
        "test_suite[adversarial_batches-32-true]": ("search, N of 15 s, 4 of 50 evaluations", ANY),
        "test_train": ("training, step 1 of 4", "training, step 4 of 4"),
        "test_search": ("search, training, step 1 of 40", "search, N of 60 s, 10 of 10 evaluations"),
        "test_walk": ("assert_finite_batches, batch 1, faults 0", "assert_finite_batches, batch 2, faults 1"),
        "test_breaks": ("tracing, step 2", "tracing, step 3"),
    }
    shown = screen(written, 140)
    assert not [line for line in shown if line.startswith("test_it.py") and re.search("(step|batch) ", line)]
    assert not [line for line in shown if "Captured" in line]
