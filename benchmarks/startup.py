"""What the plugin adds to the start of pytest: CPU time and modules of a session on an empty test file.

    python benchmarks/startup.py              61 rounds, about two minutes
    python benchmarks/startup.py --quick      9 rounds

Each way runs in a process of its own, in random order within a round; no other plugin that is installed is loaded, so
that their start does not hide ours. Where ours is not loaded, an empty one is: pytest looks for plugins without us too.
The bar without the flag is 15 ms over pytest alone; hypothesis' own plugin is told apart.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BAR_MS = 15.0
HYPOTHESIS = ("-p", "_hypothesis_pytestplugin")
EMPTY = ("-p", "nothing")
WAYS: dict[str, tuple[str, ...]] = {
    "pytest": EMPTY,
    "pytest, hypothesis": (*HYPOTHESIS, *EMPTY),
    "plugin": ("-p", "nanstab"),
    "plugin, hypothesis": (*HYPOTHESIS, "-p", "nanstab"),
    "plugin, --nanstab": ("-p", "nanstab", "--nanstab"),
}
LOADED = "import sys\ndef test_it(): print('modules', len(sys.modules), 'torch' in sys.modules)\n"


def milliseconds(arguments: tuple[str, ...], folder: str) -> float:
    """User and system time of one session."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "test_empty.py"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def modules(arguments: tuple[str, ...], folder: str) -> str:
    """How many modules a session has loaded, and whether torch is one."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments, "test_loaded.py"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    return next(line.partition("modules ")[2] for line in told.splitlines() if "modules " in line)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of starting pytest with the plugin.")
    parser.add_argument("--quick", action="store_true", help="9 rounds")
    rounds = 9 if parser.parse_args().quick else 61
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "nothing.py").touch()
        Path(folder, "test_empty.py").write_text("def test_it(): pass\n", encoding="utf-8")
        Path(folder, "test_loaded.py").write_text(LOADED, encoding="utf-8")
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(rounds + 1):
            for way in chance.sample(sorted(WAYS), len(WAYS)):
                spent = milliseconds(WAYS[way], folder)
                if turn:  # the first round compiles what is imported
                    times[way].append(spent)
        base = {way: times["pytest, hypothesis" if "hypothesis" in way else "pytest"] for way in WAYS}
        print(
            "CPU ms, median; over the same session without the plugin, median of the pairs; modules, torch among them"
        )
        for way, values in times.items():
            added = statistics.median(v - b for v, b in zip(values, base[way], strict=True))
            judged = way.startswith("plugin") and "--nanstab" not in way
            verdict = ("pass" if added <= BAR_MS else "MISS") if judged else ""
            spent = statistics.median(values)
            print(f"{way:20} {spent:7.1f} {added:+7.1f}  {verdict:5} {modules(WAYS[way], folder)}", flush=True)


if __name__ == "__main__":
    main()
