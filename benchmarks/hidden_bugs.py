"""How many hidden bugs the check `adversarial_batches` finds, how fast, at which line, and whether it cries wolf.

Each program of `tests/hidden_bugs` is trained for 20 steps, as an item of a suite would, and then searched; so is its
mended twin. Grades, evaluations and seconds are those of the search.

The programs of `tests/sound_programs`, whose operations look dangerous and are not, must stay silent as well.

Run: OMP_NUM_THREADS=1 python benchmarks/hidden_bugs.py [--seed N] [--fixed both|only|no] [--notes] [name ...]
Bars: at least 90 % of the buggy programs fail, the median find takes 5 s at most and none over 60 s, no twin fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hidden_bugs import PROGRAMS
from hidden_bugs.hunted import hunted
from sound_programs import SOUND


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixed", choices=("both", "only", "no"), default="both")
    parser.add_argument("--notes", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    programs = [p for p in PROGRAMS if not options.names or p.name in options.names]
    found, seconds, grades, lines, wolves, slowest = 0, [], Counter(), 0, [], 0.0
    missed = []
    print(f"{'program':<36} {'grade':<20} {'line':<5} {'evals':>5} {'s':>5}  twin evals     s")
    for program in programs:
        row = f"{program.name:<36} "
        if options.fixed != "only":
            start = time.perf_counter()
            result = hunted(program.make, False, options.seed)
            took = time.perf_counter() - start
            seconds.append(took)
            if result.finding is None:
                missed.append(program.name)
                row += f"{'missed':<20} {'':<5} "
            else:
                right = int((result.finding.source or ":0").rpartition(":")[2]) in program.lines
                found, lines = found + 1, lines + right
                grades[result.grade] += 1
                row += f"{result.grade:<20} {'right' if right else 'WRONG':<5} "
                if not right:
                    row += f"({result.finding.source} {result.finding.op}; {sorted(program.lines)}) "
            row += f"{result.evaluations:>5} {took:>5.1f}"
            if options.notes:
                row += "\n   " + "\n   ".join(result.notes)
        if options.fixed != "no":
            start = time.perf_counter()
            twin = hunted(program.make, True, options.seed)
            took = time.perf_counter() - start
            slowest = max(slowest, took)
            row += f"  {'ok' if twin.finding is None else 'WOLF':<4} {twin.evaluations:>5} {took:>5.1f}"
            if twin.finding is not None:
                wolves.append(program.name)
                row += f"\n    {twin.finding.message}, {twin.finding.source} {dict(twin.finding.evidence)}"
        print(row, flush=True)
    if seconds:
        print(
            f"\nfound {found} of {len(programs)} ({found / len(programs):.0%}), line right {lines} of {found}; "
            f"seconds: median {statistics.median(seconds):.1f}, most {max(seconds):.1f}; missed: {missed}"
        )
        print(", ".join(f"{grade}: {count}" for grade, count in grades.most_common()))
    print(f"twins that failed: {len(wolves)} {wolves}; slowest {slowest:.1f} s")
    if not options.names and options.fixed != "no":
        silent = [
            name for name, make in SOUND if hunted(lambda _, make=make: make(), True, options.seed).finding is None
        ]
        wolves += [name for name, _ in SOUND if name not in silent]
        print(f"sound programs: {len(SOUND)}, silent {len(silent)}")
    return bool(wolves) or bool(seconds and (found < 0.9 * len(programs) or max(seconds) > 60))


if __name__ == "__main__":
    sys.exit(main())
