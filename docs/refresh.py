"""Copy the outputs of the examples into the pages, from a real run of each, and what is made from the code.

    python docs/refresh.py                     every page
    python docs/refresh.py docs/tutorial.md    one page

Outputs that still agree are left as they are. `tests/test_docs.py` fails while a page is out of date.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doc_examples import REPOSITORY, pages, refreshed, run_page
from generated import filled


def main(names: list[str]) -> None:
    """Rewrite the named pages, or all."""
    for path in [Path(name).resolve() for name in names] or sorted(Path(__file__).parent.rglob("*.md")):
        text = path.read_text("utf-8")
        if filled(text) != text:
            path.write_text(filled(text), "utf-8")
            print(f"{path.relative_to(REPOSITORY)}: generated parts rewritten")
    for path in [path for path in pages() if not names or str(path) in map(os.path.abspath, names)]:
        with tempfile.TemporaryDirectory() as folder:
            examples = list(run_page(path, Path(folder).resolve()))
        stale = [example for example in examples if not example.up_to_date]
        if stale:
            path.write_text(refreshed(path.read_text("utf-8"), examples), "utf-8")
        print(f"{path.relative_to(REPOSITORY)}: {len(stale)} of {len(examples)} outputs rewritten")


if __name__ == "__main__":
    main(sys.argv[1:])
